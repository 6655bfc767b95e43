//! `quaymaster top` on a terminal (by `script`), and without one.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::http::Listening;

fn quaymaster() -> &'static str {
    env!("CARGO_BIN_EXE_quaymaster")
}

#[test]
fn without_a_terminal_it_says_so() -> anyhow::Result<()> {
    let output = Command::new(quaymaster())
        .arg("top")
        .stdin(Stdio::null())
        .output()?;
    assert_eq!(output.status.code(), Some(69));
    let said = String::from_utf8(output.stderr)?;
    assert!(
        said.contains("needs a terminal") && said.contains("http://127.0.0.1:9464/status"),
        "{said}"
    );
    let output = Command::new(quaymaster())
        .args(["top", "--url", "https://127.0.0.1:9464"])
        .stdin(Stdio::null())
        .output()?;
    assert_eq!(output.status.code(), Some(2));
    Ok(())
}

/// Runs a line of shell on a terminal of 40 lines with 120 columns, types, and gives what was on it.
fn on_a_terminal(line: &str, until: &str, keys: &str) -> anyhow::Result<(Option<i32>, String)> {
    let mut child = Command::new("script")
        .args([
            "-qec",
            &format!("stty rows 40 cols 120; {line}"),
            "/dev/null",
        ])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("`script` of util-linux gives a terminal")?;
    let mut stdout = child.stdout.take().context("stdout is piped")?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    let mut seen = Vec::new();
    let mut typed = false;
    let mut room = [0; 4_096];
    loop {
        let count = stdout.read(&mut room)?;
        if count == 0 {
            break;
        }
        seen.extend_from_slice(room.get(..count).unwrap_or_default());
        if !typed && String::from_utf8_lossy(&seen).contains(until) {
            stdin.write_all(keys.as_bytes())?;
            typed = true;
        }
    }
    let status = child.wait()?;
    Ok((status.code(), String::from_utf8_lossy(&seen).into_owned()))
}

#[test]
fn it_shows_a_collector_until_a_key_ends_it() -> anyhow::Result<()> {
    let collector = Listening::start(&["--endpoint", "docker=unix:///nowhere/docker.sock"])?;
    let line = format!(
        "{} top --url http://{} --interval 200ms",
        quaymaster(),
        collector.address
    );
    let (code, screen) = on_a_terminal(&line, "/nowhere/docker.sock", "q")?;
    assert_eq!(code, Some(0), "{screen}");
    // Word by word: blanks are drawn as moves of the cursor.
    for part in ["containers", "owed", "second", "DROPPED", "down", "q:"] {
        assert!(screen.contains(part), "{part}\n{screen}");
    }
    // The alternate screen is left again.
    assert!(screen.contains("\u{1b}[?1049l"), "{screen}");
    Ok(())
}

#[test]
fn on_a_terminal_without_a_collector_it_says_what_to_do() -> anyhow::Result<()> {
    let line = format!("{} top --url http://127.0.0.1:1", quaymaster());
    let (code, screen) = on_a_terminal(&line, "never", "")?;
    assert_eq!(code, Some(69), "{screen}");
    assert!(
        screen.contains("no collector answers at `http://127.0.0.1:1/status`"),
        "{screen}"
    );
    assert!(screen.contains("--listen 127.0.0.1:9464"), "{screen}");
    assert!(!screen.contains("\u{1b}[?1049h"), "{screen}");
    Ok(())
}
