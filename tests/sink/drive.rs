//! A running sink, messages for it, and what it reports.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use quaymaster::model::Topic;
use quaymaster::sink::{
    Ended, IN_FLIGHT_MAX, Outcome, Outgoing, Report, Sink, SinkError, SinkHealth,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::lab::Fragile;

/// Longest wait for anything.
pub(crate) const WAIT: Duration = Duration::from_secs(60);

pub(crate) const HOST: &str = "4c4c4544004d3510";

pub(crate) struct Driven {
    pub(crate) requests: mpsc::Sender<Outgoing>,
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) health: watch::Receiver<SinkHealth>,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<Ended, SinkError>>,
}

impl Driven {
    pub(crate) fn start(mut sink: Box<dyn Sink>) -> Self {
        let (requests, request_receiver) = mpsc::channel(256);
        let (report_sender, reports) = mpsc::channel(IN_FLIGHT_MAX);
        let (health_sender, health) = watch::channel(SinkHealth::default());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            sink.run(request_receiver, report_sender, health_sender, stopped)
                .await
        });
        Self {
            requests,
            reports,
            health,
            stop,
            task,
        }
    }

    pub(crate) async fn prepared(mut sink: Box<dyn Sink>) -> anyhow::Result<Self> {
        tokio::time::timeout(WAIT, sink.prepare()).await??;
        Ok(Self::start(sink))
    }

    pub(crate) async fn send(&self, message: Outgoing) -> anyhow::Result<()> {
        tokio::time::timeout(WAIT, self.requests.send(message))
            .await
            .context("the sink takes nothing")??;
        Ok(())
    }

    /// Sends from a task of its own, so that reports can be read meanwhile.
    pub(crate) fn send_all(&self, messages: Vec<Outgoing>) -> JoinHandle<()> {
        let requests = self.requests.clone();
        tokio::spawn(async move {
            for message in messages {
                if requests.send(message).await.is_err() {
                    return;
                }
            }
        })
    }

    pub(crate) async fn report(&mut self) -> anyhow::Result<Report> {
        tokio::time::timeout(WAIT, self.reports.recv())
            .await
            .context("no report in time")?
            .context("the sink has ended")
    }

    /// The next reports, which must all be acknowledgements: their rows.
    pub(crate) async fn acked(&mut self, count: usize) -> anyhow::Result<Vec<u64>> {
        let mut rows = Vec::with_capacity(count);
        while rows.len() < count {
            let report = self
                .report()
                .await
                .with_context(|| format!("after {} of {count}", rows.len()))?;
            match report.outcome {
                Outcome::Acked(_) => rows.push(report.row),
                Outcome::Rejected(reason) | Outcome::Replaced { reason, .. } => {
                    bail!("row {} was rejected: {reason}", report.row)
                }
            }
        }
        Ok(rows)
    }

    pub(crate) async fn until_health(&mut self, up: bool) -> anyhow::Result<SinkHealth> {
        until_health(&mut self.health, up).await
    }

    /// Sends `first`, ends the broker while they are on their way, sends `second`, waits until the sink
    /// notices, starts the broker again, and returns all acknowledged rows and the error that was told.
    pub(crate) async fn over_an_outage(
        &mut self,
        broker: &Fragile,
        ends_with: &'static str,
        first: Vec<Outgoing>,
        second: Vec<Outgoing>,
    ) -> anyhow::Result<(Vec<u64>, SinkHealth)> {
        let total = first.len() + second.len();
        let sending = self.send_all(first);
        let mut acked = self.acked(total / 20).await?;
        let requests = self.requests.clone();
        let mut health = self.health.clone();
        let outage = async {
            broker.order(ends_with).await?;
            let sending_more = tokio::spawn(async move {
                // In order: the second part follows the first.
                let _ = sending.await;
                for message in second {
                    if requests.send(message).await.is_err() {
                        return;
                    }
                }
            });
            let told = until_health(&mut health, false).await;
            broker.order("start").await?;
            sending_more.await?;
            told
        };
        let (told, rest) = tokio::join!(outage, self.acked(total - total / 20));
        acked.extend(rest?);
        Ok((acked, told?))
    }

    /// Closes the requests, and waits until the sink has ended well.
    pub(crate) async fn finish(self) -> anyhow::Result<Vec<Report>> {
        let Self {
            requests,
            mut reports,
            task,
            ..
        } = self;
        drop(requests);
        let mut rest = Vec::new();
        while let Some(report) = tokio::time::timeout(WAIT, reports.recv()).await? {
            rest.push(report);
        }
        tokio::time::timeout(WAIT, task).await???;
        Ok(rest)
    }
}

async fn until_health(
    health: &mut watch::Receiver<SinkHealth>,
    up: bool,
) -> anyhow::Result<SinkHealth> {
    let told = tokio::time::timeout(WAIT, health.wait_for(|health| health.up == up));
    Ok(told
        .await
        .with_context(|| format!("the health is never up={up}"))??
        .clone())
}

pub(crate) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(0))
}

pub(crate) fn delta(row: u64) -> Outgoing {
    let value = format!("{{\"op\":\"update\",\"seq\":{row},\"text\":\"some container's fields\"}}");
    Outgoing {
        row,
        topic: Topic::Deltas,
        host_id: Arc::from(HOST),
        item: Arc::from(""),
        op: Arc::from("update"),
        value: Some(value.as_bytes().to_vec().into()),
        ce_id: Arc::from(format!("{HOST}:epoch:{row}").as_str()),
        ce_type: "io.quaymaster.delta.v1",
        ce_source: Arc::from("quaymaster/test"),
        time_ms: now_ms(),
    }
}

pub(crate) fn state(row: u64, topic: Topic, item: &str, value: Option<String>) -> Outgoing {
    Outgoing {
        topic,
        item: Arc::from(item),
        op: Arc::from(""),
        value: value.map(|text| text.as_bytes().to_vec().into()),
        ce_id: Arc::from(format!("{HOST}:epoch:r{row}").as_str()),
        ce_type: "io.quaymaster.record.v1",
        ..delta(row)
    }
}

/// A JSON text of about this length that does not compress.
pub(crate) fn noise(bytes: usize, seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut text = String::with_capacity(bytes + 2);
    text.push('"');
    while text.len() <= bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(&format!("{state:016x}"));
    }
    text.push('"');
    text
}
