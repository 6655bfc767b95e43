//! Tasks: of each container that has one, the init process.

use std::collections::HashMap;

use tonic::transport::Channel;
use tonic::{Code, Status};

use super::proto::tasks::tasks_client::TasksClient;
use super::proto::tasks::{GetRequest, ListTasksRequest, Process};
use super::{in_namespace, utf8};

/// Longest list that is taken, as of CRI.
const LIST_BYTES_MAX: usize = crate::runtime::MESSAGE_BYTES_MAX;

/// The tasks of a namespace, by the ids of their containers. containerd asks every shim for it, one after another.
///
/// # Errors
/// What the server says; [`Code::Unimplemented`] where it is no containerd.
pub(super) async fn list(
    channel: Channel,
    namespace: &str,
) -> Result<HashMap<String, Process>, Status> {
    let mut calls = TasksClient::new(channel).max_decoding_message_size(LIST_BYTES_MAX);
    let request = in_namespace(ListTasksRequest {}, namespace)?;
    let tasks = calls.list(request).await?.into_inner().tasks;
    let by_id = |task: Process| Some((utf8(&task.id)?.to_owned(), task));
    Ok(tasks.into_iter().filter_map(by_id).collect())
}

/// The task of a container; `None` where it has none.
pub(super) async fn get(
    channel: Channel,
    namespace: &str,
    id: &str,
) -> Result<Option<Process>, Status> {
    let message = GetRequest {
        container_id: id.to_owned(),
    };
    let request = in_namespace(message, namespace)?;
    match TasksClient::new(channel).get(request).await {
        Ok(answer) => Ok(answer.into_inner().process),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}
