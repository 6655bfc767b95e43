//! Bundles in folders of the tests' own, by the kernel's real inotify, which has noted what is done by the time that it
//! is done.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::collector::{Input, ObservationSender};
use crate::procfs::ProcessTable;
use crate::reconcile::{Observation, ProcessReading};
use crate::runtime::Options;

const PATIENCE: Duration = Duration::from_secs(60);
/// More than containerd has at once, and fewer than are looked at.
const TASKS: usize = 3_000;

/// A folder of tasks, and what was told of it.
struct Fixture {
    folder: tempfile::TempDir,
    bundles: Bundles,
    /// A task may be told twice: when it is looked at, and when its folder's event is read.
    told: BTreeSet<String>,
    foreign: BTreeSet<String>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let bundles = Bundles::watch(folder.path().to_owned()).expect("it can be watched");
        Self {
            folder,
            bundles,
            told: BTreeSet::new(),
            foreign: BTreeSet::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn make(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).expect("a folder can be made");
        path
    }

    /// As runc does it: whole under another name first.
    fn write(&self, task: &str, pid: &str) {
        let folder = self.make(task);
        let hidden = folder.join(".init.pid");
        std::fs::write(&hidden, pid).expect("a file can be written");
        std::fs::rename(hidden, folder.join(PID_FILE)).expect("it can be renamed");
    }

    /// What was told since this was asked last.
    fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told).into_iter().collect()
    }

    fn scan(&mut self) {
        self.with(|bundles, _, mut tell| {
            bundles.scan(&mut tell);
            Ok(false)
        })
        .expect("a scan does not fail");
    }

    fn take(&mut self) -> Result<(), BundlesError> {
        while self.with(|bundles, buffer, mut tell| bundles.take(buffer, &mut tell))? {}
        Ok(())
    }

    fn with(
        &mut self,
        act: impl FnOnce(
            &mut Bundles,
            &mut [MaybeUninit<u8>],
            &mut dyn FnMut(Found<'_>),
        ) -> Result<bool, BundlesError>,
    ) -> Result<bool, BundlesError> {
        let mut buffer = vec![MaybeUninit::uninit(); EVENTS_BYTES];
        let (told, foreign) = (&mut self.told, &mut self.foreign);
        act(&mut self.bundles, &mut buffer, &mut |found| match found {
            Found::Pid { namespace, id, pid } => {
                let (namespace, id) = (namespace.to_string_lossy(), id.to_string_lossy());
                told.insert(format!("{namespace}/{id} {pid}"));
            }
            Found::Foreign { namespace, id } => {
                let (namespace, id) = (namespace.to_string_lossy(), id.to_string_lossy());
                foreign.insert(format!("{namespace}/{id}"));
            }
        })
    }
}

#[test]
fn a_pid_is_found_whenever_its_namespace_its_folder_and_its_file_come() {
    let mut fixture = Fixture::new();
    fixture.write("moby/there", "11");
    fixture.make("moby/waits");
    fixture.scan();
    assert_eq!(fixture.told(), ["moby/there 11"]);

    fixture.write("moby/waits", "12");
    fixture.write("moby/whole-before-it-is-seen", "13");
    fixture.make("k8s.io");
    fixture.take().expect("the folder is there");
    fixture.write("k8s.io/later", "14");
    fixture.make("k8s.io/in-place");
    fixture.take().expect("the folder is there");
    let in_place = fixture.path("k8s.io/in-place");
    std::fs::write(in_place.join("config.json"), "{}").expect("a file can be written");
    std::fs::write(in_place.join(PID_FILE), "15").expect("a file can be written");
    fixture.take().expect("the folder is there");
    let all = [
        "k8s.io/in-place 15",
        "k8s.io/later 14",
        "moby/there 11",
        "moby/waits 12",
        "moby/whole-before-it-is-seen 13",
    ];
    assert_eq!(fixture.told(), all);
    assert!(fixture.bundles.waiting.is_empty(), "nothing is awaited");
}

#[test]
fn an_empty_file_is_waited_for_and_a_foreign_one_is_skipped() {
    let mut fixture = Fixture::new();
    fixture.make("moby");
    fixture.scan();
    fixture.write("moby/empty", "");
    fixture.take().expect("the folder is there");
    assert!(fixture.told.is_empty() && fixture.foreign.is_empty());
    fixture.write("moby/empty", "17");
    fixture.take().expect("the folder is there");
    assert_eq!(fixture.told(), ["moby/empty 17"]);

    let texts = [
        "0",
        "-1",
        "+1",
        "01",
        "12a",
        "12\n",
        " 12",
        "4294967296",
        "99999999999",
        "\u{661}",
    ];
    for (index, text) in texts.into_iter().enumerate() {
        fixture.write(&format!("moby/text-{index}"), text);
    }
    let elsewhere = fixture.path("pid");
    std::fs::write(&elsewhere, "7").expect("a file can be written");
    let link = fixture.make("moby/link").join(PID_FILE);
    symlink(elsewhere, link).expect("a link can be made");
    let pipe = fixture.make("moby/pipe").join(PID_FILE);
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, pipe, mode).expect("a pipe can be made");
    fixture.make("moby/folder/init.pid");
    fixture.take().expect("the folder is there");
    assert!(fixture.told.is_empty(), "{:?}", fixture.told);
    assert_eq!(
        fixture.foreign.len(),
        texts.len() + 3,
        "{:?}",
        fixture.foreign
    );
    assert!(
        fixture.bundles.waiting.is_empty(),
        "nothing is awaited of them"
    );
}

#[test]
fn no_link_leads_out_of_the_folder() {
    let mut fixture = Fixture::new();
    let outside = tempfile::tempdir().expect("a folder can be made");
    std::fs::create_dir(outside.path().join("task")).expect("a folder can be made");
    std::fs::write(outside.path().join("task").join(PID_FILE), "7").expect("a file can be written");
    symlink(outside.path(), fixture.path("linked")).expect("a link can be made");
    fixture.make("moby");
    symlink(outside.path().join("task"), fixture.path("moby/task")).expect("a link can be made");
    fixture.scan();
    fixture.take().expect("the folder is there");
    assert!(fixture.told.is_empty(), "{:?}", fixture.told);
    assert!(fixture.bundles.waiting.is_empty(), "no link is watched");
    assert_eq!(fixture.bundles.namespaces.len(), 1);
}

#[test]
fn a_folder_that_goes_at_once_leaves_no_watch() {
    let mut fixture = Fixture::new();
    fixture.make("moby/brief");
    fixture.scan();
    fixture.make("moby/unseen");
    for name in ["moby/brief", "moby/unseen"] {
        std::fs::remove_dir(fixture.path(name)).expect("it is empty");
    }
    fixture.take().expect("the folder is there");
    assert!(fixture.bundles.waiting.is_empty());
    std::fs::remove_dir(fixture.path("moby")).expect("it is empty");
    fixture.take().expect("the folder is there");
    assert!(fixture.bundles.namespaces.is_empty());
    std::fs::remove_dir(fixture.path("")).expect("it is empty");
    let gone = fixture.take().expect_err("the folder is gone");
    assert!(matches!(gone, BundlesError::Gone(_)), "{gone}");
}

#[test]
fn after_an_overflow_the_folders_are_looked_at_again() {
    let mut fixture = Fixture::new();
    let moby = fixture.make("moby");
    fixture.scan();
    let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events");
    let most: usize = most.expect("it is there").trim().parse().expect("a number");
    // Two names in turn: the kernel makes one of two events that are the same.
    for _ in 0..=most / 2 {
        for name in ["a", "b"] {
            let path = moby.join(name);
            std::fs::File::create(&path).expect("a file can be made");
            std::fs::remove_file(path).expect("it is there");
        }
    }
    fixture.write("moby/unheard", "18");
    fixture.write("default/unheard", "19");
    fixture.take().expect("the folder is there");
    assert_eq!(fixture.told(), ["default/unheard 19", "moby/unheard 18"]);
}

#[test]
fn of_thousands_of_tasks_at_the_start_only_the_new_ones_are_told() {
    let mut fixture = Fixture::new();
    let long_ago = SystemTime::now() - FRESH * 2;
    for number in 0..TASKS {
        let name = format!("k8s.io/old-{number}");
        fixture.write(&name, "7");
        let file = std::fs::File::options()
            .append(true)
            .open(fixture.path(&name).join(PID_FILE))
            .expect("it is there");
        file.set_modified(long_ago).expect("a time can be set");
    }
    fixture.write("k8s.io/new", "20");
    fixture.make("k8s.io/being-made");
    fixture.scan();
    assert_eq!(fixture.told(), ["k8s.io/new 20"]);
    assert_eq!(fixture.bundles.waiting.len(), 1, "old ones need no watch");
}

#[test]
fn of_too_many_that_wait_the_first_is_let_go() {
    let mut fixture = Fixture::new();
    fixture.make("k8s.io/first");
    fixture.scan();
    for number in 0..WAITING_MAX {
        fixture.make(&format!("k8s.io/kata-{number}"));
    }
    fixture.take().expect("the folder is there");
    assert_eq!(fixture.bundles.waiting.len(), WAITING_MAX);
    fixture.write("k8s.io/first", "21");
    fixture.write("k8s.io/kata-7", "22");
    fixture.take().expect("the folder is there");
    assert_eq!(fixture.told(), ["k8s.io/kata-7 22"]);
}

#[tokio::test]
async fn the_process_of_a_bundle_is_read_and_told() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let bundles = Bundles::watch(folder.path().to_owned())?;
    let (inputs, mut queue) = mpsc::channel(8);
    let context = WatchContext {
        observations: ObservationSender::new(inputs),
        options: Options::default(),
        processes: Arc::new(ProcessTable::open(Path::new("/proc"))?),
        stop: CancellationToken::new(),
    };
    let (pids, uid) = (
        Arc::clone(&context.options.pids),
        rustix::process::geteuid().as_raw(),
    );
    let following = tokio::spawn(async move { follow(bundles, uid, &context).await });
    let ours = std::process::id();
    for (id, pid) in [("no id", "7".to_owned()), ("web", ours.to_string())] {
        let task = folder.path().join("default").join(id);
        std::fs::create_dir_all(&task)?;
        std::fs::write(task.join(PID_FILE), pid)?;
    }
    let told = tokio::time::timeout(PATIENCE, queue.recv()).await?;
    let Some(Input::Observed(Observation::Process { id, pid, reading })) = told else {
        anyhow::bail!("something else is told: {told:?}");
    };
    assert_eq!((id.as_str(), pid), ("default:web", ours));
    assert!(matches!(reading, ProcessReading::Alive(_)), "{reading:?}");
    drop(folder);
    let ended = tokio::time::timeout(PATIENCE, following).await??;
    assert!(matches!(ended, Err(BundlesError::Gone(_))), "{ended:?}");
    assert_eq!((pids.of_bundles(), pids.of_events()), (1, 0));
    Ok(())
}

#[tokio::test]
async fn where_nothing_answers_there_is_no_folder() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let socket = folder.path().join("containerd.sock");
    let found = super::folder(&socket).await;
    assert!(matches!(found, Err(BundlesError::Ask { .. })), "{found:?}");
}
