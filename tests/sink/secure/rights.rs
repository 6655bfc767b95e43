//! What the tests of rights share: a broker whose administrator comes without a name, users who come with a password and have
//! topics of their own name, and a right that one of them is without.

use super::run::{Collector, Secrets, State, command};
use super::secure_lab::{SecureLab, written};

pub(crate) const PASSWORD: &str = "a-password-of-the-quay";
/// The host id of all that is run here.
pub(crate) const HOST: &str = "quay-secure";

/// A broker, and what is run at it.
pub(crate) struct Broker {
    pub(crate) lab: SecureLab,
    /// `--bus` of the administrator.
    bus: String,
    folder: tempfile::TempDir,
    secrets: Secrets,
}

impl Broker {
    /// Of a lab that runs; the folder is for files of this test's own.
    pub(crate) fn new(lab: SecureLab, bus: String, folder: tempfile::TempDir) -> Self {
        Self {
            lab,
            bus,
            folder,
            secrets: Secrets(vec![PASSWORD.to_owned()]),
        }
    }

    /// The path of a file with the password of all users.
    pub(crate) fn password_file(&self) -> anyhow::Result<String> {
        written(self.folder.path(), "password", PASSWORD)
    }

    /// Runs a command to its end: its code, and what it says.
    pub(crate) fn command(
        &self,
        words: &[&str],
        arguments: &[String],
    ) -> anyhow::Result<(Option<i32>, String)> {
        let arguments = words
            .iter()
            .copied()
            .chain(arguments.iter().map(String::as_str))
            .chain(["--host-id", HOST]);
        let ended = command(&arguments.collect::<Vec<_>>(), &[], &self.secrets)?;
        // The trace of the clients is no word of ours.
        let lines = ended
            .said
            .lines()
            .filter(|line| !line.contains("TRACE") && !line.contains("DEBUG"));
        Ok((ended.code, lines.collect::<Vec<_>>().join("\n")))
    }

    /// Makes a user's topics, as the administrator.
    pub(crate) fn topics_of(&self, user: &str) -> anyhow::Result<()> {
        let arguments = [self.bus.clone(), format!("--topics-prefix={user}")];
        let (code, said) = self.command(&["topics", "create"], &arguments)?;
        anyhow::ensure!(code == Some(0), "{said}");
        Ok(())
    }

    /// Starts a collector, with the state that another one left.
    pub(crate) fn collector(
        &self,
        arguments: &[String],
        state: Option<State>,
    ) -> anyhow::Result<Collector<'_>> {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        Collector::start_with(&arguments, &[], &self.secrets, state)
    }

    /// What a first collector leaves behind that was up with these rights.
    pub(crate) fn state_of(&self, arguments: &[String]) -> anyhow::Result<State> {
        let collector = self.collector(arguments, None)?;
        collector.until_up()?;
        collector.finish()
    }
}

/// A right that is left out, and who tells of it.
pub(crate) struct Missing<R> {
    pub(crate) user: &'static str,
    /// The user's `--topics-manage`.
    pub(crate) manage: &'static str,
    pub(crate) right: R,
    /// What is said of it.
    pub(crate) text: String,
    /// The subcommand of `topics` that ends with 77 and says so; with none all are content.
    pub(crate) command: Option<&'static str>,
    /// Whether the topics are there.
    pub(crate) is_made: bool,
    /// Whether it is found out only when something was acknowledged before.
    pub(crate) is_later: bool,
    /// Whether `doctor` says so. Topics that are missing are no trouble before `run`.
    pub(crate) doctor: bool,
}

impl<R> Missing<R> {
    /// Of a user who verifies, with topics that are there: `doctor` and a first collector tell of it.
    pub(crate) fn new(user: &'static str, right: R, text: String) -> Self {
        Self {
            user,
            manage: "verify",
            right,
            text,
            command: None,
            is_made: true,
            is_later: false,
            doctor: true,
        }
    }

    /// That those commands tell of it which should, and no other.
    pub(crate) fn is_told_by_commands(
        &self,
        broker: &Broker,
        arguments: &[String],
    ) -> anyhow::Result<()> {
        let text = &self.text;
        if let Some(command) = self.command {
            let (code, said) = broker.command(&["topics", command], arguments)?;
            anyhow::ensure!(code == Some(77) && said.contains(text), "{code:?} {said}");
        }
        let (_, said) = broker.command(&["doctor"], arguments)?;
        anyhow::ensure!(said.contains(text) == self.doctor, "`{text}`: {said}");
        Ok(())
    }
}

/// That deltas of these numbers leave out none between two of one epoch.
pub(crate) fn ensure_no_hole(user: &str, seqs: &[u64]) -> anyhow::Result<()> {
    let is_next = |pair: &[u64]| pair[1] <= pair[0] + 1;
    anyhow::ensure!(seqs.windows(2).all(is_next), "{user}: a hole in {seqs:?}");
    Ok(())
}
