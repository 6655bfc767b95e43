//! Reports on their way back, and the sink's health: what all sinks share.
//!
//! A sink never waits for the receiver of its reports while messages wait for it: the two sides could then
//! wait for each other. Reports that do not fit are kept here; they count as unreported, so that
//! [`super::IN_FLIGHT_MAX`] bounds them too.

use std::collections::VecDeque;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Outcome, Report, SinkHealth};

/// The receiver of the reports is gone: nobody is there to work for.
#[derive(Debug)]
pub(super) struct Abandoned;

/// Hands reports over, in order.
pub(super) struct Reporter {
    sender: mpsc::Sender<Report>,
    waiting: VecDeque<Report>,
}

impl Reporter {
    pub(super) fn new(sender: mpsc::Sender<Report>) -> Self {
        Self {
            sender,
            waiting: VecDeque::new(),
        }
    }

    /// How many reports wait for room.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Reports a message's end. Row 0 (a status message) is not reported.
    pub(super) fn push(&mut self, row: u64, outcome: Outcome) {
        if row != 0 {
            self.waiting.push_back(Report { row, outcome });
        }
    }

    /// Hands over what fits now.
    pub(super) fn offer(&mut self) -> Result<(), Abandoned> {
        while let Some(report) = self.waiting.pop_front() {
            match self.sender.try_send(report) {
                Ok(()) => {}
                Err(TrySendError::Full(report)) => {
                    self.waiting.push_front(report);
                    return Ok(());
                }
                Err(TrySendError::Closed(_)) => return Err(Abandoned),
            }
        }
        Ok(())
    }

    /// Waits for room for one report and hands it over; pending for ever when none waits. Dropped midway,
    /// it loses nothing.
    pub(super) async fn hand_over_one(&mut self) -> Result<(), Abandoned> {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        let permit = self.sender.reserve().await.map_err(|_| Abandoned)?;
        if let Some(report) = self.waiting.pop_front() {
            permit.send(report);
        }
        Ok(())
    }

    /// Hands over all, until `stop`.
    pub(super) async fn hand_over_all(
        &mut self,
        stop: &CancellationToken,
    ) -> Result<(), Abandoned> {
        while self.waiting() > 0 {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                handed = self.hand_over_one() => handed?,
            }
        }
        Ok(())
    }
}

/// Tells the health and logs its changes, once each.
pub(super) struct HealthTeller {
    sender: watch::Sender<SinkHealth>,
    bus: &'static str,
}

impl HealthTeller {
    pub(super) fn new(sender: watch::Sender<SinkHealth>, bus: &'static str) -> Self {
        Self { sender, bus }
    }

    /// A message was acknowledged.
    pub(super) fn up(&self) {
        let bus = self.bus;
        self.sender.send_if_modified(|health| {
            let changed = !health.up;
            if changed {
                if health.is_brief {
                    tracing::debug!(bus, "the bus takes messages");
                } else {
                    tracing::info!(bus, "the bus takes messages");
                }
                health.up = true;
                health.error.clear();
            }
            changed
        });
    }

    /// A send is failing.
    pub(super) fn down(&self, error: &str) {
        let bus = self.bus;
        self.sender.send_if_modified(|health| {
            if health.is_brief {
                tracing::debug!(bus, error, "the bus does not take messages");
            } else if health.up || health.error.is_empty() {
                tracing::warn!(bus, error, "the bus does not take messages");
            }
            let changed = health.up || health.error != error;
            if changed {
                health.up = false;
                error.clone_into(&mut health.error);
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::Position;

    #[tokio::test]
    async fn a_full_receiver_gets_all_reports_in_order_and_no_status() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut reporter = Reporter::new(sender);
        let acked = Outcome::Acked(Position {
            partition: 0,
            offset: 1,
        });
        for row in [1, 0, 2, 3] {
            reporter.push(row, acked.clone());
        }
        reporter.offer().expect("the receiver is there");
        assert_eq!(reporter.waiting(), 2);
        let mut rows = Vec::new();
        for _ in 0..3 {
            rows.push(receiver.recv().await.map_or(0, |report| report.row));
            if reporter.waiting() > 0 {
                reporter
                    .hand_over_one()
                    .await
                    .expect("the receiver is there");
            }
        }
        assert_eq!(rows, [1, 2, 3]);
        drop(receiver);
        reporter.push(4, acked);
        assert!(reporter.offer().is_err());
    }
}
