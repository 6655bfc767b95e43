//! The text of an endpoint: `docker=unix:///run/docker.sock`, `cri=unix:///run/containerd/containerd.sock`.
//! `containerd=…` is that containerd by its own API, for the namespaces that neither Docker nor CRI has.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::Endpoint;
use crate::model::RuntimeType;

/// Longest path of a unix socket, in bytes (`sun_path` of unix(7), less its closing NUL).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why a text is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no endpoint: {problem}")]
pub struct ParseEndpointError {
    /// What was given, made fit for a terminal.
    text: String,
    problem: Problem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    NoKind,
    UnknownKind,
    Scheme,
    Relative,
    TooLong,
    Nul,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoKind => {
                "say which protocol it speaks, as in `docker=unix:///run/docker.sock` or \
                 `cri=unix:///run/containerd/containerd.sock`"
            }
            Self::UnknownKind => {
                "the protocol before `=` is `docker` (also for Podman), `cri` or `containerd`"
            }
            Self::Scheme => "only unix sockets are watched: write `unix://` and an absolute path",
            Self::Relative => {
                "the path of the socket must be absolute, as in `unix:///run/docker.sock`"
            }
            Self::TooLong => "the path of a unix socket has at most 107 bytes",
            Self::Nul => "a path has no NUL in it",
        })
    }
}

impl Endpoint {
    /// Reads `docker=unix:///path`, `cri=unix:///path` or `containerd=unix:///path`. The path is not looked at.
    ///
    /// # Errors
    /// What is wrong with the text, and what to write instead.
    pub fn parse(text: &str) -> Result<Self, ParseEndpointError> {
        parse(text).map_err(|problem| ParseEndpointError {
            text: super::text::escaped(&super::text::bounded(text)),
            problem,
        })
    }
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// As [`Endpoint::parse`] reads it.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.runtime, self.uri())
    }
}

fn parse(text: &str) -> Result<Endpoint, Problem> {
    let (kind, address) = text.split_once('=').ok_or(Problem::NoKind)?;
    let runtime = match kind {
        "docker" => RuntimeType::Docker,
        "cri" => RuntimeType::Cri,
        "containerd" => RuntimeType::Containerd,
        // A bare address may have a `=` in its path.
        _ if kind.contains('/') || kind.contains(':') => return Err(Problem::NoKind),
        _ => return Err(Problem::UnknownKind),
    };
    let path = address.strip_prefix("unix://").ok_or(Problem::Scheme)?;
    if !path.starts_with('/') {
        return Err(Problem::Relative);
    }
    if path.len() > SOCKET_PATH_BYTES_MAX {
        return Err(Problem::TooLong);
    }
    if path.contains('\0') {
        return Err(Problem::Nul);
    }
    Ok(Endpoint {
        runtime,
        path: PathBuf::from(path),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_read_as_it_is_written() -> Result<(), ParseEndpointError> {
        for text in [
            "docker=unix:///run/docker.sock",
            "cri=unix:///run/a=b/containerd.sock",
            "containerd=unix:///run/containerd/containerd.sock",
        ] {
            assert_eq!(Endpoint::parse(text)?.to_string(), text);
        }
        Ok(())
    }

    #[test]
    fn a_wrong_endpoint_says_what_to_write() {
        let long = format!("docker=unix:///{}", "x".repeat(200));
        for (text, part) in [
            ("", "say which protocol"),
            ("/run/docker.sock", "say which protocol"),
            ("unix:///run/a=b", "say which protocol"),
            (
                "podman=unix:///run/podman.sock",
                "`docker` (also for Podman)",
            ),
            ("docker=/run/docker.sock", "write `unix://`"),
            ("docker=tcp://127.0.0.1:2375", "only unix sockets"),
            ("docker=unix://run/docker.sock", "must be absolute"),
            ("docker=unix://", "must be absolute"),
            ("docker=unix:///a\0b", "NUL"),
            (long.as_str(), "at most 107 bytes"),
        ] {
            let error = Endpoint::parse(text).expect_err("the text is wrong");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
