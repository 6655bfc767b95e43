//! What is read of Docker's JSON: everything optional.

use serde::Deserialize;

use crate::runtime::lenient::{Lenient, TextMap, object_shape};

/// `GET /version`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Version {
    pub(super) version: Lenient<String>,
    pub(super) api_version: Lenient<String>,
    #[serde(rename = "MinAPIVersion")]
    pub(super) min_api_version: Lenient<String>,
    pub(super) components: Lenient<Vec<Component>>,
}

/// One of the parts of the engine.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Component {
    pub(super) name: Lenient<String>,
}

/// The body of an error.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Problem {
    pub(super) message: Lenient<String>,
}

/// One row of `GET /containers/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Row {
    pub(super) id: Lenient<String>,
    pub(super) names: Lenient<Vec<String>>,
    pub(super) image: Lenient<String>,
    #[serde(rename = "ImageID")]
    pub(super) image_id: Lenient<String>,
    pub(super) created: Lenient<i64>,
    pub(super) state: Lenient<String>,
    pub(super) status: Lenient<String>,
    pub(super) labels: Lenient<TextMap>,
}

/// `GET /containers/{id}/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Details {
    pub(super) id: Lenient<String>,
    pub(super) name: Lenient<String>,
    pub(super) created: Lenient<String>,
    pub(super) state: Lenient<DetailsState>,
    pub(super) image: Lenient<String>,
    pub(super) restart_count: Lenient<i64>,
    pub(super) config: Lenient<DetailsConfig>,
    pub(super) host_config: Lenient<DetailsHostConfig>,
}

/// Its `State`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct DetailsState {
    pub(super) status: Lenient<String>,
    pub(super) pid: Lenient<i64>,
    pub(super) exit_code: Lenient<i64>,
    #[serde(rename = "OOMKilled")]
    pub(super) oom_killed: Lenient<bool>,
    pub(super) error: Lenient<String>,
    pub(super) started_at: Lenient<String>,
    pub(super) finished_at: Lenient<String>,
}

/// Its `Config`. Environment and command line are never read.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct DetailsConfig {
    pub(super) image: Lenient<String>,
    pub(super) labels: Lenient<TextMap>,
}

/// Its `HostConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct DetailsHostConfig {
    pub(super) pid_mode: Lenient<String>,
    pub(super) privileged: Lenient<bool>,
}

/// One line of `GET /events`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    #[serde(rename = "Type")]
    pub(super) scope: Lenient<String>,
    #[serde(rename = "Action")]
    pub(super) action: Lenient<String>,
    #[serde(rename = "Actor")]
    pub(super) actor: Lenient<Actor>,
    pub(super) time: Lenient<i64>,
    #[serde(rename = "timeNano")]
    pub(super) time_nano: Lenient<i64>,
}

/// Its `Actor`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Actor {
    #[serde(rename = "ID")]
    pub(super) id: Lenient<String>,
    #[serde(rename = "Attributes")]
    pub(super) attributes: Lenient<Attributes>,
}

/// Its `Attributes`: the event's own, with all labels of the container among them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Attributes {
    #[serde(rename = "exitCode")]
    pub(super) exit_code: Lenient<String>,
    pub(super) name: Lenient<String>,
    pub(super) image: Lenient<String>,
    #[serde(rename = "containerExitCode")]
    pub(super) container_exit_code: Lenient<String>,
    #[serde(rename = "io.kubernetes.docker.type")]
    pub(super) kubernetes_type: Lenient<String>,
}

/// `GET /exec/{id}/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct ExecDetails {
    pub(super) running: Lenient<bool>,
    pub(super) exit_code: Lenient<i64>,
}

object_shape!(
    Component,
    Row,
    DetailsState,
    DetailsConfig,
    DetailsHostConfig,
    Actor,
    Attributes,
);
