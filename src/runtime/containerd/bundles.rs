//! The shims' bundles: a pid as soon as there is a process, before containerd itself knows of it.
//!
//! A shim has a folder for its task, `<state>/io.containerd.runtime.v2.task/<namespace>/<id>` (containerd,
//! `core/runtime/v2/bundle.go`), and the OCI runtime leaves the pid in it at the end of its `create`, in `init.pid`, under
//! that name when it is whole (runc, `createPidFile`; another may write it in place). Only then does the shim answer
//! containerd, which publishes `/tasks/create`, and asks for the start. On a busy machine that event can come when a
//! process that lives some ms has ended; the file comes a `runc start` before it begins.
//!
//! inotify(7) tells of the namespace's folder, of the task's, and of the file; a task's folder is watched until its pid
//! is there. Each folder is looked into after it is watched, so that nothing falls between the two. What is lost (a queue
//! that overflows, too many folders, a folder that may not be read) costs only earliness: the events come all the same.
//!
//! The files are foreign: only a plain file with a number in it counts, through no symbolic link, and one that is some
//! seconds old is not read: its process may have ended, and lists tell of it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tonic::{Code, Status};

use super::client::channel;
use super::pids::Origin;
use super::proto::version::VersionRequest;
use super::proto::version::version_client::VersionClient;
use super::state_dir::{self, Folder};
use crate::backoff::Backoff;
use crate::runtime::VERSION_TIMEOUT;
use crate::runtime::watch::WatchContext;

/// The file with the pid (containerd, `InitPidFile` of the shim).
const PID_FILE: &str = "init.pid";
/// The longest pid: the kernel's have seven digits at most, its type has ten.
const PID_DIGITS_MAX: u64 = 10;
/// A file that is older names a process that began so long ago that lists and inspects tell of it.
const FRESH: Duration = Duration::from_secs(10);
/// Namespaces of one containerd that are watched. There are three where Docker, CRI and nerdctl share one.
const NAMESPACES_MAX: usize = 64;
/// Tasks whose pid is awaited; beyond it the one that came first is no longer. A machine makes some ten at once; what has
/// no `init.pid` at all (Kata) waits for as long as it lives.
const WAITING_MAX: usize = 1_024;
/// Tasks of a namespace that are looked at when it is found, or after an overflow.
const SCANNED_MAX: usize = 16_384;
/// Room for what inotify tells at once: some hundred events.
const EVENTS_BYTES: usize = 16 * 1024;
/// The first and the longest wait before the folder is looked for again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Why no bundles are read.
#[derive(Debug, thiserror::Error)]
pub enum BundlesError {
    /// Something else than containerd is there.
    #[error("`{}` is not containerd's", .0.display())]
    NotContainerd(PathBuf),
    /// It does not answer.
    #[error("failed to ask `{}`", socket.display())]
    Ask {
        /// The socket.
        socket: PathBuf,
        /// What came.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It has another state directory than is usual.
    #[error("no folder of tasks is found beside `{}`", .0.display())]
    NotFound(PathBuf),
    /// It belongs to somebody else than who serves the socket.
    #[error("`{}` is another user's than the socket", .0.display())]
    Foreign(PathBuf),
    /// It cannot be watched.
    #[error("failed to watch `{}`", folder.display())]
    Watch {
        /// The folder.
        folder: PathBuf,
        /// What the kernel says.
        #[source]
        source: Errno,
    },
    /// It was there.
    #[error("`{}` is gone", .0.display())]
    Gone(PathBuf),
}

/// Tells of the pids in the bundles of the containerd at a socket, until `stop`, or for good where it is not containerd's.
pub(super) async fn read(socket: &Path, context: &WatchContext) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut said = String::new();
    loop {
        let ended = tokio::select! {
            () = context.stop.cancelled() => return,
            ended = session(socket, context, &mut backoff) => ended,
        };
        match ended {
            Ok(()) => {}
            Err(error @ BundlesError::NotContainerd(_)) => {
                tracing::debug!(%error, "no bundles of containerd here");
                return;
            }
            Err(error) => {
                let error = crate::telemetry::chain(&error);
                if error == said {
                    tracing::debug!(error, "no bundles still: pids come by events alone");
                } else {
                    tracing::info!(error, "no bundles: pids come by events alone");
                }
                said = error;
            }
        }
        tokio::select! {
            () = context.stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

/// The folder of the tasks of the containerd at a socket, if it can be watched.
///
/// # Errors
/// Why it cannot.
pub async fn folder(socket: &Path) -> Result<PathBuf, BundlesError> {
    let (folder, _) = found(socket).await?;
    Ok(Bundles::watch(folder.path)?.folder)
}

async fn session(
    socket: &Path,
    context: &WatchContext,
    backoff: &mut Backoff,
) -> Result<(), BundlesError> {
    let (folder, uid) = found(socket).await?;
    let bundles = Bundles::watch(folder.path)?;
    backoff.reset();
    tracing::debug!(folder = %bundles.folder.display(), "bundles are read");
    follow(bundles, uid, context).await
}

/// The folder at a socket, and who serves it.
async fn found(socket: &Path) -> Result<(Folder, u32), BundlesError> {
    let failed = |source| BundlesError::Ask {
        socket: socket.to_owned(),
        source,
    };
    let finding = async {
        let stream = UnixStream::connect(socket).await;
        let peer = stream.and_then(|stream| stream.peer_cred());
        let uid = peer.map_err(|error| failed(error.into()))?.uid();
        let channel = channel(socket);
        let mut versions = VersionClient::new(channel.clone());
        match versions.version(VersionRequest {}).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::Unimplemented => {
                return Err(BundlesError::NotContainerd(socket.to_owned()));
            }
            Err(status) => return Err(failed(status.into())),
        }
        let folder = state_dir::tasks_folder(socket, channel).await;
        let folder = folder.ok_or_else(|| BundlesError::NotFound(socket.to_owned()))?;
        if folder.uid == uid {
            Ok((folder, uid))
        } else {
            Err(BundlesError::Foreign(folder.path))
        }
    };
    let late = |_| failed(Status::deadline_exceeded("it does not answer").into());
    tokio::time::timeout(VERSION_TIMEOUT, finding)
        .await
        .map_err(late)?
}

/// Tells of what is found until the folder is gone.
async fn follow(
    mut bundles: Bundles,
    uid: u32,
    context: &WatchContext,
) -> Result<(), BundlesError> {
    let (claims, pids) = (&context.options.claims, &context.options.pids);
    let mut tell = |found: Found<'_>| match found {
        Found::Pid { namespace, id, pid } => {
            match claims.key(namespace.as_bytes(), id.as_bytes()) {
                Some(key) => pids.tell(Origin::Bundle, (key, pid), uid, context),
                None => pids.skip(),
            }
        }
        Found::Foreign { namespace, id } => {
            let (namespace, id) = (namespace.to_string_lossy(), id.to_string_lossy());
            tracing::debug!(%namespace, %id, "a bundle's pid file is not understood");
            pids.skip();
        }
    };
    let failed = |folder: &Path, error: &std::io::Error| BundlesError::Watch {
        folder: folder.to_owned(),
        source: Errno::from_io_error(error).unwrap_or(Errno::IO),
    };
    let readable = readable(Arc::clone(&bundles.inotify));
    let readable = readable.map_err(|error| failed(&bundles.folder, &error))?;
    let mut buffer = vec![MaybeUninit::uninit(); EVENTS_BYTES];
    bundles.scan(&mut tell);
    loop {
        let ready = readable.readable().await;
        let mut ready = ready.map_err(|error| failed(&bundles.folder, &error))?;
        if !bundles.take(&mut buffer, &mut tell)? {
            ready.clear_ready();
        }
        // What is told is decided elsewhere; this loop must let `stop` be seen.
        tokio::task::yield_now().await;
    }
}

#[expect(unsafe_code, reason = "tokio takes no fd by its type's promise alone")]
fn readable(inotify: Arc<OwnedFd>) -> std::io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an owned fd is open, and is the same one, for as long as anybody holds the Arc, which the AsyncFd does.
    let registered = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) };
    registered.map_err(std::io::Error::from)
}

/// What is in a bundle.
#[derive(Debug, PartialEq, Eq)]
enum Found<'a> {
    Pid {
        namespace: &'a OsStr,
        id: &'a OsStr,
        pid: u32,
    },
    /// A pid file that is none.
    Foreign { namespace: &'a OsStr, id: &'a OsStr },
}

/// What a look for a pid file finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Pid(u32),
    NotYet,
    Old,
    Foreign,
}

/// The folders that are watched.
struct Bundles {
    inotify: Arc<OwnedFd>,
    folder: PathBuf,
    /// The folder's own watch.
    root: i32,
    /// Their names, by their watches. None is held open: a folder that is has no end for inotify.
    namespaces: BTreeMap<i32, OsString>,
    /// The tasks without a pid, by their watches: the kernel gives them rising numbers (`idr_alloc_cyclic`).
    waiting: BTreeMap<i32, Task>,
}

struct Task {
    /// The watch of its namespace.
    namespace: i32,
    id: OsString,
}

/// An event without its borrows.
struct Noted {
    watch: i32,
    flags: ReadFlags,
    name: Option<OsString>,
}

impl Bundles {
    /// Watches a folder of tasks; what is in it is seen by [`Self::scan`].
    fn watch(folder: PathBuf) -> Result<Self, BundlesError> {
        let watched = || {
            let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            let root = watch(&inotify, &folder, WatchFlags::CREATE)?;
            Ok((inotify, root))
        };
        match watched() {
            Ok((inotify, root)) => Ok(Self {
                inotify: Arc::new(inotify),
                folder,
                root,
                namespaces: BTreeMap::new(),
                waiting: BTreeMap::new(),
            }),
            Err(source) => Err(BundlesError::Watch { folder, source }),
        }
    }

    /// Looks at every namespace and task that is there.
    fn scan(&mut self, tell: &mut impl FnMut(Found<'_>)) {
        for name in names_in(&self.folder, NAMESPACES_MAX) {
            self.begin_namespace(name, tell);
        }
    }

    /// Takes what inotify has told by now, as far as the buffer has room; `false` where there is no more.
    fn take(
        &mut self,
        buffer: &mut [MaybeUninit<u8>],
        tell: &mut impl FnMut(Found<'_>),
    ) -> Result<bool, BundlesError> {
        let inotify = Arc::clone(&self.inotify);
        let mut reader = Reader::new(&*inotify, buffer);
        loop {
            let noted = match reader.next() {
                Ok(event) => Noted {
                    watch: event.wd(),
                    flags: event.events(),
                    name: event
                        .file_name()
                        .map(|name| OsString::from_vec(name.to_bytes().to_vec())),
                },
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(source) => {
                    let folder = self.folder.clone();
                    return Err(BundlesError::Watch { folder, source });
                }
            };
            self.handle(noted, tell)?;
            if reader.is_buffer_empty() {
                return Ok(true);
            }
        }
    }

    fn handle(
        &mut self,
        noted: Noted,
        tell: &mut impl FnMut(Found<'_>),
    ) -> Result<(), BundlesError> {
        let Noted { watch, flags, name } = noted;
        let is_over = flags.intersects(ReadFlags::IGNORED | ReadFlags::UNMOUNT);
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            tracing::debug!("more bundles than inotify keeps: they are looked at again");
            self.scan(tell);
        } else if watch == self.root {
            if is_over {
                return Err(BundlesError::Gone(self.folder.clone()));
            }
            if let Some(name) = name {
                self.begin_namespace(name, tell);
            }
        } else if is_over {
            self.namespaces.remove(&watch);
            self.waiting.remove(&watch);
        } else if self.namespaces.contains_key(&watch) {
            if let Some(id) = name {
                self.begin_task(watch, id, tell);
            }
        } else if name.as_deref() == Some(OsStr::new(PID_FILE)) {
            self.look_again(watch, tell);
        }
        Ok(())
    }

    /// Watches a namespace, and looks at its tasks.
    fn begin_namespace(&mut self, name: OsString, tell: &mut impl FnMut(Found<'_>)) {
        let path = self.folder.join(&name);
        let id = match watch(&self.inotify, &path, WatchFlags::CREATE) {
            Ok(id) => id,
            Err(error) => {
                tracing::debug!(folder = %path.display(), %error, "a namespace's bundles are not read");
                return;
            }
        };
        if self.namespaces.len() >= NAMESPACES_MAX && !self.namespaces.contains_key(&id) {
            tracing::debug!(folder = %path.display(), "too many namespaces: its bundles are not read");
            self.unwatch(id);
            return;
        }
        self.namespaces.insert(id, name);
        for task in names_in(&path, SCANNED_MAX) {
            self.begin_task(id, task, tell);
        }
    }

    /// Looks for a task's pid, and watches its folder where that is not there yet.
    fn begin_task(&mut self, namespace: i32, id: OsString, tell: &mut impl FnMut(Found<'_>)) {
        let Some(name) = self.namespaces.get(&namespace) else {
            return;
        };
        if self.look(name, &id, tell) != Look::NotYet {
            return;
        }
        let path = self.folder.join(name).join(&id);
        let written = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        // A task that has gone meanwhile needs none.
        let Ok(watch) = watch(&self.inotify, &path, written) else {
            return;
        };
        self.waiting.insert(watch, Task { namespace, id });
        self.look_again(watch, tell);
        if self.waiting.len() > WAITING_MAX
            && let Some((oldest, _)) = self.waiting.pop_first()
        {
            self.unwatch(oldest);
        }
    }

    /// Looks for the pid of a task that waits for it.
    fn look_again(&mut self, watch: i32, tell: &mut impl FnMut(Found<'_>)) {
        let Some(task) = self.waiting.get(&watch) else {
            return;
        };
        let namespace = self.namespaces.get(&task.namespace);
        let is_done = namespace.is_none_or(|name| self.look(name, &task.id, tell) != Look::NotYet);
        if is_done {
            self.waiting.remove(&watch);
            self.unwatch(watch);
        }
    }

    /// Looks for a task's pid file, and tells of what is in it.
    fn look(&self, namespace: &OsStr, id: &OsStr, tell: &mut impl FnMut(Found<'_>)) -> Look {
        let look = look(&self.folder.join(namespace), id);
        match look {
            Look::Pid(pid) => tell(Found::Pid { namespace, id, pid }),
            Look::Foreign => tell(Found::Foreign { namespace, id }),
            Look::NotYet | Look::Old => {}
        }
        look
    }

    fn unwatch(&self, watch: i32) {
        // A folder that is gone has taken its watch along.
        let _ = inotify::remove_watch(&*self.inotify, watch);
    }
}

/// Watches a folder itself, and not what a link of its name leads to.
fn watch(inotify: &OwnedFd, folder: &Path, flags: WatchFlags) -> Result<i32, Errno> {
    let only = WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
    inotify::add_watch(inotify, folder, flags | only)
}

/// The names in a folder, as far as it can be read; hidden ones are of folders that are being removed (containerd,
/// `atomicDelete`).
fn names_in(folder: &Path, most: usize) -> Vec<OsString> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| !name.as_bytes().starts_with(b"."))
        .take(most)
        .collect()
}

/// Looks into a task's folder, each step by itself, so that no link is followed.
fn look(namespace: &Path, id: &OsStr) -> Look {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let bundle = rustix::fs::open(namespace, folder, Mode::empty())
        .and_then(|namespace| openat(namespace, id, folder, Mode::empty()));
    let Ok(bundle) = bundle else {
        return Look::NotYet;
    };
    // A pipe would be waited for.
    let plain = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat(&bundle, PID_FILE, plain, Mode::empty()) {
        Ok(file) => pid_of(&std::fs::File::from(file)).unwrap_or(Look::Foreign),
        Err(Errno::NOENT) => Look::NotYet,
        Err(_) => Look::Foreign,
    }
}

fn pid_of(file: &std::fs::File) -> std::io::Result<Look> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > PID_DIGITS_MAX {
        return Ok(Look::Foreign);
    }
    let age = match SystemTime::now().duration_since(metadata.modified()?) {
        Ok(age) => age,
        // The clock was set back.
        Err(error) => error.duration(),
    };
    if age > FRESH {
        return Ok(Look::Old);
    }
    let mut text = Vec::new();
    file.take(PID_DIGITS_MAX + 1).read_to_end(&mut text)?;
    Ok(match text.as_slice() {
        // It is being written.
        [] => Look::NotYet,
        digits => parse(digits).map_or(Look::Foreign, Look::Pid),
    })
}

/// Digits alone, as containerd itself wants them.
pub(super) fn parse(digits: &[u8]) -> Option<u32> {
    let is_number = digits.iter().all(u8::is_ascii_digit) && digits.first() != Some(&b'0');
    let text = is_number.then_some(digits)?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
#[path = "bundles_tests.rs"]
mod tests;
