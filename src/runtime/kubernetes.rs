//! The labels by which kubelet names the pod of a container (kubernetes, `pkg/kubelet/types/labels.go`).

use super::text;
use crate::model::Pod;

/// The pod's name.
pub const POD_NAME_LABEL: &str = "io.kubernetes.pod.name";
/// The pod's namespace.
pub const POD_NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// The pod's uid.
pub const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";
/// The id of the pod's sandbox, which cri-dockerd adds.
pub const SANDBOX_ID_LABEL: &str = "io.kubernetes.sandbox.id";

/// The pod that the labels name; `None` where they name none.
pub(super) fn pod_of_labels<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Option<Pod> {
    let field = |key| get(key).map(text::bounded).unwrap_or_default();
    let pod = Pod {
        name: field(POD_NAME_LABEL),
        namespace: field(POD_NAMESPACE_LABEL),
        uid: field(POD_UID_LABEL),
        sandbox_id: field(SANDBOX_ID_LABEL),
    };
    (pod != Pod::default()).then_some(pod)
}
