//! `quaymaster exec`: runs a command in a container of any runtime.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;

use super::choose::choose;
use super::gather::{Found, gather};
use super::{EXIT_FAILURE, chain, parse_duration};
use crate::model::ContainerKind;
use crate::runtime::{Endpoint, ExecOutput, Options};

/// The arguments of `quaymaster exec`.
#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    /// Ask this runtime only, as in `docker=unix:///run/docker.sock` or `cri=unix:///run/crio/crio.sock`; may be
    /// given more than once
    #[arg(long, value_name = "KIND=URI")]
    pub endpoint: Vec<Endpoint>,
    /// Give up after this time, as in `30s` or `500ms`. CRI servers then end the command; Docker lets it go on
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// The container: its id, a beginning of it, or its name (`name`, `pod/name` or `namespace/pod/name`)
    #[arg(value_name = "ID|NAME")]
    pub container: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Runs the command; its stdout goes to `out` and its stderr to `err`, live from Docker, at the end from CRI.
///
/// Returns the command's exit code; 1 with a line on `err` when the container is not found or not the only one, when
/// the time is over, or when the runtime refuses; 69 when no runtime answers, 77 when we may not connect to any.
pub async fn run(
    args: &ExecArgs,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> u8 {
    let gathered = gather(&args.endpoint, &Options::default()).await;
    let unanswered = gathered.exit_code_if_unanswered();
    // Commands run in containers, not in the sandboxes of pods.
    let is_container = |found: &Found| found.container.kind == ContainerKind::Container;
    let chosen = choose(&gathered.found, &args.container, &is_container);
    if chosen.is_err() {
        for problem in &gathered.problems {
            // When even stderr is closed there is nobody left to tell.
            let _ = writeln!(err, "quaymaster: {problem}");
        }
    }
    if let Some(code) = unanswered {
        return code;
    }
    let found = match chosen {
        Ok(found) => found,
        Err(problem) => {
            let _ = writeln!(err, "quaymaster: {problem}");
            return EXIT_FAILURE;
        }
    };

    let mut output = Output { out, err };
    let id = &found.container.id;
    let result = found
        .client
        .exec(id, &args.command, args.timeout, &mut output)
        .await;
    match result {
        Ok(status) => u8::try_from(status.exit_code).unwrap_or(u8::MAX),
        Err(error) => {
            let _ = writeln!(output.err, "quaymaster: {}", chain(&error));
            EXIT_FAILURE
        }
    }
}

struct Output<'a> {
    out: &'a mut (dyn Write + Send),
    err: &'a mut (dyn Write + Send),
}

impl ExecOutput for Output<'_> {
    fn stdout(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.flush()
    }

    fn stderr(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.err.write_all(bytes)?;
        self.err.flush()
    }
}
