//! The event stream: lines of JSON, cut out of the chunks of an endless answer.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::{self, StreamExt as _};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::exit_labels::ExitLabels;
use super::http::BoxError;
use super::normalise;
use super::wire::Event;
use crate::model::{EventKind, RuntimeEvent};
use crate::runtime::{EventStream, RuntimeError};

/// Longest line that is taken, in bytes. An event carries all labels of its container, on whose length
/// dockerd sets no limit.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The name of the request in errors.
pub(super) const REQUEST: &str = "events";

/// Turns the body of an answer into events. It reads only when polled, and never runs ahead by more than one
/// chunk. A line that cannot be understood is a [`RuntimeError::Malformed`] in its place.
pub(super) fn stream(
    endpoint: String,
    body: Incoming,
    exit_labels: Arc<ExitLabels>,
    is_podman: bool,
) -> EventStream {
    let reader = Reader {
        endpoint,
        exit_labels,
        is_podman,
        body: Some(body),
        lines: Lines::default(),
        ready: VecDeque::new(),
    };
    stream::unfold(reader, |mut reader| async move {
        let item = reader.next().await?;
        Some((item, reader))
    })
    .boxed()
}

struct Reader {
    endpoint: String,
    exit_labels: Arc<ExitLabels>,
    is_podman: bool,
    body: Option<Incoming>,
    lines: Lines,
    ready: VecDeque<Result<RuntimeEvent, RuntimeError>>,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<RuntimeEvent, RuntimeError>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            let body = self.body.as_mut()?;
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        let found = self.lines.push(&data);
                        self.take(found);
                    }
                }
                Some(Err(error)) => {
                    self.body = None;
                    return Some(Err(RuntimeError::Request {
                        endpoint: self.endpoint.clone(),
                        request: REQUEST,
                        source: Box::new(error),
                    }));
                }
                None => {
                    self.body = None;
                    let rest = self.lines.finish();
                    self.take(rest);
                }
            }
        }
    }

    fn take(&mut self, lines: Vec<Result<Vec<u8>, LineTooLong>>) {
        for line in lines {
            let item = match line {
                Ok(line) => parse_line(&line),
                Err(error) => Err(error.into()),
            };
            match item {
                Ok(Some(event)) => self.ready.push_back(Ok(self.screened(event))),
                Ok(None) => {}
                Err(source) => self.ready.push_back(Err(RuntimeError::Malformed {
                    endpoint: self.endpoint.clone(),
                    request: REQUEST,
                    source,
                })),
            }
        }
    }
}

impl Reader {
    fn screened(&self, mut event: RuntimeEvent) -> RuntimeEvent {
        if !self.is_podman {
            return self.exit_labels.screen(event);
        }
        if event.what != EventKind::Died {
            event.exit_code = None;
        }
        event
    }
}

/// `Ok(None)` for a line that is understood and no concern of ours.
pub(super) fn parse_line(line: &[u8]) -> Result<Option<RuntimeEvent>, BoxError> {
    let event: Event = serde_json::from_str(&String::from_utf8_lossy(line))?;
    Ok(normalise::event(&event)?)
}

/// Cuts chunks into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    overflowing: bool,
}

/// A line that passes the limit; its text is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {LINE_BYTES_MAX} bytes")]
pub(super) struct LineTooLong;

impl Lines {
    pub(super) fn push(&mut self, chunk: &[u8]) -> Vec<Result<Vec<u8>, LineTooLong>> {
        let mut found = Vec::new();
        let mut pieces = chunk.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            self.append(piece);
            if pieces.peek().is_some() {
                found.extend(self.close());
            }
        }
        found
    }

    pub(super) fn finish(&mut self) -> Vec<Result<Vec<u8>, LineTooLong>> {
        self.close().into_iter().collect()
    }

    fn append(&mut self, piece: &[u8]) {
        if self.overflowing || self.partial.len() + piece.len() > LINE_BYTES_MAX {
            self.overflowing = true;
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(piece);
        }
    }

    fn close(&mut self) -> Option<Result<Vec<u8>, LineTooLong>> {
        let line = std::mem::take(&mut self.partial);
        if std::mem::take(&mut self.overflowing) {
            Some(Err(LineTooLong))
        } else if line.trim_ascii().is_empty() {
            None
        } else {
            Some(Ok(line))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_chunks_end() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"{\"a\":"), vec![]);
        assert_eq!(
            lines.push(b"1}\n\r\n{}\n{"),
            vec![Ok(b"{\"a\":1}".to_vec()), Ok(b"{}".to_vec())]
        );
        assert_eq!(lines.finish(), vec![Ok(b"{".to_vec())]);
        assert_eq!(lines.finish(), vec![]);
    }

    #[test]
    fn a_line_that_is_too_long_costs_only_itself() {
        let mut lines = Lines::default();
        let chunk = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(lines.push(&chunk), vec![]);
        assert_eq!(lines.push(b"x"), vec![]);
        assert_eq!(
            lines.push(b"y\n{}\n"),
            vec![Err(LineTooLong), Ok(b"{}".to_vec())]
        );
        assert!(lines.partial.is_empty());
    }
}
