//! `quaymaster top`: a live view of a running collector, by its HTTP listener.
//!
//! One task asks again and again, and tells the newest [`Shown`]; a thread of its own draws it and reads keys. Nothing
//! is asked of the collector but `/status` and `/metrics`, and nothing while nobody looks.

mod fetch;
mod model;
mod view;

use std::io::{IsTerminal as _, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::fetch::{Address, Sample};
use self::model::Shown;
use super::{EXIT_FAILURE, EXIT_OK, EXIT_UNAVAILABLE, Failure, chain, parse_duration};

/// How long a key may wait, and how often a change is looked for.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// The arguments of `quaymaster top`.
#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// Where the collector listens (its `--listen`)
    #[arg(long, value_name = "URL", env = "QUAYMASTER_URL", default_value = "http://127.0.0.1:9464", value_parser = Address::parse)]
    pub url: Address,
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub interval: Duration,
}

/// Shows the collector until a key says that it is enough.
///
/// Returns 0 then; 69 where stdout is no terminal or no collector answers at first, 1 where the terminal fails.
pub async fn run(args: &TopArgs, err: &mut (dyn Write + Send)) -> u8 {
    match show(args).await {
        Ok(()) => EXIT_OK,
        Err(failure) => super::local::told(&failure, err),
    }
}

async fn show(args: &TopArgs) -> Result<(), Failure> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        let message = format!(
            "`top` needs a terminal; for programs there is {}/status",
            args.url
        );
        return Err(Failure::new(EXIT_UNAVAILABLE, message));
    }
    let first = fetch::sample(&args.url).await.map_err(|error| {
        let message = format!(
            "{}: start it with `--listen 127.0.0.1:9464`, or name where it listens with `--url`",
            chain(&error)
        );
        Failure::new(EXIT_UNAVAILABLE, message)
    })?;
    let (tell, shown) = watch::channel(Arc::new(Shown::first(args.url.to_string(), &first)));
    let stop = CancellationToken::new();
    let asking = tokio::spawn(ask(args.clone(), first, tell, stop.clone()));
    let drawing = tokio::task::spawn_blocking(move || draw(shown));
    let drawn = drawing.await;
    stop.cancel();
    // It ends at once; what went wrong in it ends here too.
    let _ = asking.await;
    match drawn {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::new(
            EXIT_FAILURE,
            format!("the terminal fails: {error}"),
        )),
        Err(error) => Err(Failure::new(EXIT_FAILURE, error.to_string())),
    }
}

/// Asks until `stop`, and tells what there is to see.
async fn ask(
    args: TopArgs,
    mut newest: Sample,
    tell: watch::Sender<Arc<Shown>>,
    stop: CancellationToken,
) {
    let mut due = tokio::time::interval(args.interval);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    due.tick().await;
    let mut answered_at = Instant::now();
    loop {
        let sample = tokio::select! {
            () = stop.cancelled() => return,
            sample = async {
                due.tick().await;
                fetch::sample(&args.url).await
            } => sample,
        };
        let shown = match sample {
            Ok(sample) => {
                let seconds = answered_at.elapsed().as_secs_f64();
                answered_at = Instant::now();
                let shown = tell.borrow().next(&newest, &sample, seconds);
                newest = sample;
                shown
            }
            Err(error) => tell.borrow().silent(&chain(&error), answered_at.elapsed()),
        };
        if tell.send(Arc::new(shown)).is_err() {
            return;
        }
    }
}

/// Draws what changes, until a key ends it. The terminal is put back whatever happens.
fn draw(mut shown: watch::Receiver<Arc<Shown>>) -> std::io::Result<()> {
    let mut terminal = ratatui::try_init()?;
    let result = (|| {
        loop {
            let now = Arc::clone(&shown.borrow_and_update());
            terminal.draw(|frame| view::render(frame, &now))?;
            loop {
                if event::poll(KEY_WAIT)? {
                    match event::read()? {
                        Event::Key(key) if key.kind == KeyEventKind::Press && is_end(key) => {
                            return Ok(());
                        }
                        Event::Resize(..) => break,
                        Event::Key(_)
                        | Event::FocusGained
                        | Event::FocusLost
                        | Event::Mouse(_)
                        | Event::Paste(_) => {}
                    }
                }
                match shown.has_changed() {
                    Ok(true) => break,
                    Ok(false) => {}
                    // Nobody asks any more.
                    Err(_) => return Ok(()),
                }
            }
        }
    })();
    ratatui::restore();
    result
}

fn is_end(key: event::KeyEvent) -> bool {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
        || (is_control && key.code == KeyCode::Char('c'))
}
