//! Namespaces that stay reserved while the service restarts, by a service manager of cardboard: it keeps the fds that it
//! is given, and hands them to the next process, as systemd does.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::collector::Setup;
use crate::fold::{self, field};
use crate::host::{BusKind, Host};
use crate::lab::Lab;
use crate::wait::eventually;
use crate::world::Docker;

/// Moves the fds whose numbers stand before `--` to 3, 4, …, and becomes the command after it.
const HAND_OVER: &str = r#"
to=3
while [ "$1" != -- ]; do
  eval "exec $to<&$1"
  to=$((to + 1))
  shift
done
shift
export LISTEN_PID=$$ LISTEN_FDS=$((to - 3))
exec "$@"
"#;

/// The service manager.
struct Manager {
    path: PathBuf,
    socket: UnixDatagram,
    fds: BTreeMap<String, OwnedFd>,
}

impl Manager {
    fn new(lab: &Lab) -> Result<Self> {
        let path = lab.dir().join("notify");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            path,
            socket,
            fds: BTreeMap::new(),
        })
    }

    /// Takes everything that it was told.
    fn listen(&mut self) -> Result<()> {
        loop {
            let mut text = [0; 1_024];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut text)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = match recvmsg(&self.socket, &mut parts, &mut control, flags) {
                Ok(received) => received,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let mut handed = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    handed.extend(fds);
                }
            }
            let text = String::from_utf8_lossy(&text[..received.bytes]).into_owned();
            let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
            if value("FDSTORE=1").is_some() {
                let name = value("FDNAME=").context("an fd without a name")?;
                let fd = handed.pop().context("a name without an fd")?;
                self.fds.insert(name.to_owned(), fd);
            }
            if value("FDSTOREREMOVE=1").is_some() {
                self.fds.remove(value("FDNAME=").context("no name")?);
            }
        }
    }

    /// The collector as this manager starts it, with all fds that it keeps.
    fn command(&self) -> Result<Command> {
        let mut command = Command::new("bash");
        command.args(["-c", HAND_OVER, "bash"]);
        for fd in self.fds.values() {
            // They go to the child under their numbers, from where the script moves them.
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            command.arg(fd.as_raw_fd().to_string());
        }
        let names: Vec<_> = self.fds.keys().cloned().collect();
        command
            .args(["--", env!("CARGO_BIN_EXE_quaymaster")])
            .env("NOTIFY_SOCKET", &self.path)
            .env("LISTEN_FDNAMES", names.join(":"));
        Ok(command)
    }
}

#[test]
fn a_number_stays_reserved_while_the_service_restarts() -> Result<()> {
    let Some(lab) = Lab::up(&["docker"])? else {
        return Ok(());
    };
    let docker = Docker::new(&lab, "DOCKER")?;
    let mut manager = Manager::new(&lab)?;
    // The mapping outlives the restart.
    let setup = Setup::new(&lab, "stdout:", &[docker.endpoint()]).with(&["--pns-linger", "15s"]);
    let mut host = Host::of(lab, vec![docker], Vec::new(), BusKind::Stdout)?;
    host.setup = setup;
    let collector = host.setup.start_by(manager.command()?)?;
    let docker = host.docker();
    let living = docker.run_staying("living", &[])?;
    let ended = docker.run_staying("ended", &[])?;
    host.converged("two containers")?;
    let record = host.record(&ended)?;
    let pns = field(&record, "pns").to_owned();
    let inode = field(&record, "pns_inode").to_owned();
    let living_inode = field(&host.record(&living)?, "pns_inode").to_owned();
    docker.call(&["rm", "-f", "ended"])?;
    host.converged("a removal")?;
    collector.stop()?;

    manager.listen()?;
    let names: Vec<_> = manager.fds.keys().cloned().collect();
    for inode in [&inode, &living_inode] {
        let begins = format!("pns-{inode}-");
        ensure!(
            names.iter().any(|name| name.starts_with(&begins)),
            "{inode} is not among {names:?}"
        );
    }
    for number in 0..6 {
        let name = format!("meanwhile-{number}");
        docker.run_staying(&name, &[])?;
        let pid = docker.pid(&name)?;
        let other = crate::world::pns_of(pid)?;
        ensure!(other != pns, "{pns} was given out again");
        docker.call(&["rm", "-f", &name])?;
    }

    let collector = host.setup.start_by(manager.command()?)?;
    // The manager lets go what it has handed over and is told to let go; it keeps the others.
    let messages = host.converged("the restart")?;
    let mapping = &fold::mappings(&messages)?[&pns];
    ensure!(mapping["container_id"] == *ended, "{mapping}");
    ensure!(!mapping["valid_to_ms"].is_null(), "{mapping}");
    host.told("the tombstone after the linger", |messages| {
        let mappings = fold::mappings(messages)?;
        ensure!(!mappings.contains_key(&pns), "{pns} is mapped still");
        Ok(())
    })?;
    eventually("the manager may let the ended one go", || {
        manager.listen()?;
        let begins = format!("pns-{inode}-");
        let is_kept = manager.fds.keys().any(|name| name.starts_with(&begins));
        ensure!(!is_kept, "it is kept still");
        Ok(())
    })?;
    let begins = format!("pns-{living_inode}-");
    let is_kept = manager.fds.keys().any(|name| name.starts_with(&begins));
    ensure!(is_kept, "the living one's is not kept");
    collector.stop()
}
