//! `quaymaster completions` and `quaymaster man`: what a shell and `man` need, generated from the command line itself.

use std::io::Write;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

use super::{EXIT_FAILURE, EXIT_NO_PERMISSION, Failure};

/// Prints the completions of a shell.
///
/// # Errors
/// [`EXIT_FAILURE`] where the output cannot be written.
pub fn completions(mut command: Command, shell: Shell, out: &mut dyn Write) -> Result<(), Failure> {
    let name = command.get_name().to_owned();
    // Into memory first: the generator panics where the output cannot be written.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    out.write_all(&text).map_err(|error| {
        Failure::new(
            EXIT_FAILURE,
            format!("failed to write the completions: {error}"),
        )
    })
}

/// Writes a page for the program and for each of its subcommands (`quaymaster.1`, `quaymaster-run.1`, …) into a
/// directory, which is made where it is not there.
///
/// # Errors
/// [`EXIT_NO_PERMISSION`] or [`EXIT_FAILURE`] where that cannot be done.
pub fn man(command: Command, directory: &Path) -> Result<(), Failure> {
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command, directory));
    written.map_err(|error| {
        let is_denied = error.kind() == std::io::ErrorKind::PermissionDenied;
        let code = if is_denied {
            EXIT_NO_PERMISSION
        } else {
            EXIT_FAILURE
        };
        let path = directory.display();
        Failure::new(
            code,
            format!("failed to write manual pages to `{path}`: {error}"),
        )
    })
}
