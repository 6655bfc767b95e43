//! How it is laid out on a terminal.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};

use super::model::Shown;

/// The width of a figure's name.
const NAME_CHARS: usize = 16;
/// Lines of the chart with its frame.
const CHART_LINES: u16 = 5;

pub(super) fn render(frame: &mut Frame<'_>, shown: &Shown) {
    let count = |lines: usize| u16::try_from(lines).unwrap_or(u16::MAX);
    let [head, figures, chart, runtimes, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(count(shown.figures.len()) + 1),
        Constraint::Length(CHART_LINES),
        Constraint::Min(count(shown.runtimes.len()).min(4) + 2),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(vec![title(shown), bus(shown)]), head);
    frame.render_widget(Paragraph::new(named(shown)), figures);
    // Tenths, for the chart takes whole numbers.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the height of a bar"
    )]
    let tenths: Vec<u64> = shown.rates.iter().map(|it| (it * 10.0) as u64).collect();
    let room = usize::from(chart.width.saturating_sub(2));
    let newest = tenths.len().saturating_sub(room);
    let bars = Sparkline::default()
        .data(tenths.get(newest..).unwrap_or_default())
        .style(Style::new().fg(Color::Cyan))
        .block(Block::bordered().title("deltas per second"));
    frame.render_widget(bars, chart);
    frame.render_widget(table(shown), runtimes);
    let keys = format!("q: end    {}", shown.url);
    let dim = Style::new().add_modifier(Modifier::DIM);
    frame.render_widget(Paragraph::new(Span::styled(keys, dim)), foot);
}

fn title(shown: &Shown) -> Line<'_> {
    Line::styled(
        shown.title.as_str(),
        Style::new().add_modifier(Modifier::BOLD),
    )
}

fn bus(shown: &Shown) -> Line<'_> {
    if !shown.trouble.is_empty() {
        return Line::styled(shown.trouble.as_str(), bad());
    }
    match shown.is_bus_up {
        Some(true) => Line::styled("the bus takes messages", Style::new().fg(Color::Green)),
        Some(false) => Line::styled(
            "the bus does not take messages; they wait in the outbox",
            bad(),
        ),
        None => Line::raw(""),
    }
}

fn named(shown: &Shown) -> Vec<Line<'_>> {
    let figures = shown.figures.iter();
    figures
        .map(|(name, value)| {
            let name = format!("{name:NAME_CHARS$} ");
            let dim = Style::new().add_modifier(Modifier::DIM);
            Line::from(vec![Span::styled(name, dim), Span::raw(value.as_str())])
        })
        .collect()
}

fn table(shown: &Shown) -> Table<'_> {
    let head = [
        "RUNTIME", "VERSION", "STREAM", "EVENTS", "/S", "DROPPED", "ENDPOINT", "ERROR",
    ];
    let rows = shown.runtimes.iter().map(|cells| {
        let is_down = cells[2] == "down";
        let row = Row::new(cells.iter().map(|cell| Cell::from(cell.as_str())));
        if is_down { row.style(bad()) } else { row }
    });
    let widths = [
        Constraint::Length(10),
        Constraint::Length(15),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Fill(3),
        Constraint::Fill(2),
    ];
    Table::new(rows, widths).header(Row::new(head).style(Style::new().add_modifier(Modifier::BOLD)))
}

fn bad() -> Style {
    Style::new().fg(Color::Red)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn screen(shown: &Shown, width: u16, height: u16) -> String {
        let mut terminal =
            Terminal::new(TestBackend::new(width, height)).expect("it has no device");
        terminal
            .draw(|frame| render(frame, shown))
            .expect("it takes all that is drawn");
        terminal.backend().to_string()
    }

    #[test]
    fn all_is_on_the_screen_and_a_small_one_does_no_harm() {
        let shown = Shown {
            url: "http://127.0.0.1:9464".to_owned(),
            title: "quay-1 (h1)".to_owned(),
            is_bus_up: Some(false),
            figures: vec![("deltas", "42, 1.0/s".to_owned())],
            runtimes: vec![
                [
                    "docker",
                    "28",
                    "live",
                    "7",
                    "0.5",
                    "0",
                    "unix:///run/docker.sock",
                    "",
                ]
                .map(str::to_owned),
            ],
            rates: vec![0.0, 1.0, 1e300, f64::NAN],
            ..Shown::default()
        };
        let text = screen(&shown, 120, 30);
        for part in [
            "quay-1 (h1)",
            "does not take messages",
            "42, 1.0/s",
            "docker",
            "unix:///run/docker.sock",
            "q: end",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        for (width, height) in [(1, 1), (20, 5), (200, 3)] {
            screen(&shown, width, height);
        }
    }
}
