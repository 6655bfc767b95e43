//! Who this host is: its id, name and boot.

use std::path::Path;

use crate::config::check_host_id;

/// Where the host's id is kept; the second is where a container mounts the host's.
const MACHINE_ID: &str = "/etc/machine-id";

/// The host's id: as it is set, else the text of `/etc/machine-id`.
///
/// # Errors
/// A text that names what is wrong with it and what to do.
pub fn host_id(configured: Option<&str>) -> Result<String, String> {
    host_id_from(configured, Path::new(MACHINE_ID))
}

fn host_id_from(configured: Option<&str>, machine_id: &Path) -> Result<String, String> {
    if let Some(configured) = configured {
        check_host_id(configured)?;
        return Ok(configured.to_owned());
    }
    let text = std::fs::read_to_string(machine_id).map_err(|error| {
        format!(
            "failed to read `{}` for the host id ({error}): set one with `--host-id`",
            machine_id.display()
        )
    })?;
    let id = text.trim();
    check_host_id(id).map_err(|error| format!("`{}`: {error}", machine_id.display()))?;
    Ok(id.to_owned())
}

/// The kernel's name of the host.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// A random id, for a new epoch.
///
/// # Errors
/// When the kernel gives none.
pub fn random_id(procfs: &Path) -> std::io::Result<String> {
    let text = std::fs::read_to_string(procfs.join("sys/kernel/random/uuid"))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_refused_by_name() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let file = directory.path().join("machine-id");
        for (text, expected) in [
            ("", "is empty"),
            ("uninitialized\n", "uninitialized"),
            ("00000000000000000000000000000000\n", "all zeros"),
            ("a/b\n", "holds"),
        ] {
            std::fs::write(&file, text).expect("the file can be written");
            let error = host_id_from(None, &file).err().unwrap_or_default();
            assert!(error.contains(expected), "{text:?}: {error}");
            assert!(error.contains("--host-id"), "{error}");
        }
        std::fs::write(&file, "4c0ffee\n").expect("the file can be written");
        assert_eq!(host_id_from(None, &file), Ok("4c0ffee".to_owned()));
        assert_eq!(host_id_from(Some("mine"), &file), Ok("mine".to_owned()));
    }
}
