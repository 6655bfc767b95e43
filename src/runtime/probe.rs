//! Looks at a path before anything is asked there: is it a socket, may we connect, who serves it.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::time::Duration;

use tokio::net::UnixStream;

use super::{Endpoint, RuntimeError};

/// What is known of a socket before its protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// The user that listens (SO_PEERCRED: the credentials at the time of `listen`).
    pub(super) peer_uid: u32,
    /// Device and inode.
    pub(super) socket: (u64, u64),
}

/// Connects once, and lets the connection go again.
///
/// # Errors
/// One for each thing that can be wrong with the path, so that a person knows what to do.
pub(super) async fn probe(endpoint: &Endpoint, timeout: Duration) -> Result<Probe, RuntimeError> {
    let metadata = std::fs::metadata(&endpoint.path).map_err(|error| refused(endpoint, error))?;
    if !metadata.file_type().is_socket() {
        return Err(RuntimeError::NotASocket {
            endpoint: endpoint.uri(),
        });
    }
    let stream = tokio::time::timeout(timeout, UnixStream::connect(&endpoint.path))
        .await
        .map_err(|_| RuntimeError::Timeout {
            endpoint: endpoint.uri(),
            request: "connect",
            timeout,
        })?
        .map_err(|error| refused(endpoint, error))?;
    let credentials = stream
        .peer_cred()
        .map_err(|error| refused(endpoint, error))?;
    Ok(Probe {
        peer_uid: credentials.uid(),
        socket: (metadata.dev(), metadata.ino()),
    })
}

fn refused(endpoint: &Endpoint, error: io::Error) -> RuntimeError {
    let uri = endpoint.uri();
    if error.kind() == io::ErrorKind::NotFound || error.kind() == io::ErrorKind::NotADirectory {
        RuntimeError::NotThere { endpoint: uri }
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        RuntimeError::NoPermission { endpoint: uri }
    } else {
        RuntimeError::Connect {
            endpoint: uri,
            source: Box::new(error),
        }
    }
}
