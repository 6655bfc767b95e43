//! Tells systemd that the service is ready, alive, or about to stop (`sd_notify(3)`), and gives it fds to keep: datagrams
//! to the socket that `NOTIFY_SOCKET` names. Without one, nothing is done.
//!
//! Best effort: a service manager that does not listen is no reason to stop.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix};

/// The first fd that a service manager hands over (`SD_LISTEN_FDS_START`, sd_listen_fds(3)).
const LISTEN_FDS_START: i32 = 3;
/// Most fds that are taken over.
const LISTEN_FDS_MAX: i32 = 65_536;

/// The way to the service manager.
#[derive(Debug, Default)]
pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// What this process's environment says.
    pub fn of_environment() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET");
        let watchdog = std::env::var("WATCHDOG_USEC").ok();
        let is_ours = std::env::var("WATCHDOG_PID").map_or(true, |pid| {
            pid.parse().is_ok_and(|pid: u32| pid == std::process::id())
        });
        let watchdog = watchdog.filter(|_| is_ours);
        Self::new(socket.as_deref(), watchdog.as_deref())
    }

    /// What these values of `NOTIFY_SOCKET` and `WATCHDOG_USEC` say.
    pub fn new(socket: Option<&OsStr>, watchdog_usec: Option<&str>) -> Self {
        let manager = socket.and_then(|socket| {
            let address = address(socket)?;
            let ours = UnixDatagram::unbound().ok()?;
            // A manager that reads slowly must not stop us.
            ours.set_nonblocking(true).ok()?;
            Some((ours, address))
        });
        let watchdog = watchdog_usec
            .and_then(|text| text.parse().ok())
            .filter(|usec| *usec > 0)
            .map(Duration::from_micros);
        Self { manager, watchdog }
    }

    /// How long the watchdog waits for [`Self::alive`] before it kills us; `None` where there is none.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The service is ready.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// The service is alive.
    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.tell("WATCHDOG=1");
        }
    }

    /// The service is about to stop.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Whether there is a service manager.
    pub fn is_there(&self) -> bool {
        self.manager.is_some()
    }

    /// Gives the service manager an fd to keep for the next process of the service; `false` where that failed. One
    /// that keeps none ignores it.
    pub fn store_fd(&self, name: &str, fd: BorrowedFd<'_>) -> bool {
        let Some((ours, manager)) = &self.manager else {
            return false;
        };
        let Some(manager) = datagram_address(manager) else {
            return false;
        };
        let state = format!("FDSTORE=1\nFDNAME={name}");
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let state = [IoSlice::new(state.as_bytes())];
        let flags = SendFlags::NOSIGNAL;
        match rustix::net::sendmsg_addr(ours, &manager, &state, &mut control, flags) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, name, "the service manager cannot be given an fd");
                false
            }
        }
    }

    /// The service manager need keep the fd of this name no longer.
    pub fn remove_fd(&self, name: &str) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }

    fn tell(&self, state: &str) {
        if let Some((ours, manager)) = &self.manager
            && let Err(error) = ours.send_to_addr(state.as_bytes(), manager)
        {
            tracing::debug!(%error, state, "the service manager cannot be told");
        }
    }
}

/// Takes over the fds that the service manager hands to this process (sd_listen_fds(3)), with their names. To be called
/// once; the fds are closed in programs that are started later.
pub fn take_handed_fds() -> Vec<(String, OwnedFd)> {
    let number = |name| std::env::var(name).ok()?.parse::<i32>().ok();
    let is_ours = number("LISTEN_PID")
        .and_then(|pid| u32::try_from(pid).ok())
        .is_some_and(|pid| pid == std::process::id());
    let count = number("LISTEN_FDS").filter(|_| is_ours).unwrap_or(0);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    (LISTEN_FDS_START..)
        .take(usize::try_from(count.clamp(0, LISTEN_FDS_MAX)).unwrap_or(0))
        .filter_map(|raw| {
            let name = names.next().unwrap_or_default().to_owned();
            Some((name, take_fd(raw)?))
        })
        .collect()
}

/// Owns an fd of this number; `None` where none is open.
#[expect(unsafe_code, reason = "the manager names its fds by number only")]
fn take_fd(raw: i32) -> Option<OwnedFd> {
    // SAFETY: it is borrowed only to ask whether it is open, which the call answers for any number.
    let open = unsafe { BorrowedFd::borrow_raw(raw) };
    rustix::io::fcntl_setfd(open, rustix::io::FdFlags::CLOEXEC).ok()?;
    // SAFETY: the number is open, the manager opened it for this process alone, and it is taken over once.
    Some(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn datagram_address(manager: &SocketAddr) -> Option<SocketAddrUnix> {
    match (manager.as_pathname(), manager.as_abstract_name()) {
        (Some(path), _) => SocketAddrUnix::new(path).ok(),
        (None, Some(name)) => SocketAddrUnix::new_abstract_name(name).ok(),
        (None, None) => None,
    }
}

/// A path, or a name in the abstract namespace, which begins with `@`.
fn address(socket: &OsStr) -> Option<SocketAddr> {
    match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(socket).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let count = manager.recv(&mut buffer).expect("something was said");
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn the_manager_hears_of_the_start_the_life_and_the_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify.sock");
        let manager = UnixDatagram::bind(&path).expect("it can be bound");
        let notifier = Notifier::new(Some(path.as_os_str()), Some("30000000"));
        assert_eq!(notifier.watchdog(), Some(Duration::from_secs(30)));
        notifier.ready();
        notifier.alive();
        notifier.stopping();
        let all = [heard(&manager), heard(&manager), heard(&manager)];
        assert_eq!(all, ["READY=1", "WATCHDOG=1", "STOPPING=1"]);
    }

    #[test]
    fn a_name_without_a_path_is_heard_too_and_nothing_is_said_without_a_manager() {
        let name = format!("quaymaster-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a good name");
        let manager = UnixDatagram::bind_addr(&address).expect("it can be bound");
        let socket = format!("@{name}");
        Notifier::new(Some(OsStr::new(&socket)), None).ready();
        assert_eq!(heard(&manager), "READY=1");
        for socket in [None, Some(OsStr::new("")), Some(OsStr::new("relative"))] {
            let notifier = Notifier::new(socket, Some("0"));
            notifier.ready();
            assert_eq!(notifier.watchdog(), None);
        }
    }
}
