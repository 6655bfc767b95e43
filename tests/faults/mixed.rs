//! All faults in one history, by chance; short in `make test`, long in `make faults`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::brokers::broker_fault;
use crate::bus::{Bus, TWO_REPLICAS};
use crate::connections::{network_fault, proxy_before};
use crate::course::{Course, Figures, Setup, can_unshare};
use crate::disks::tear_state;
use crate::kills::EARLY_MS;
use crate::lab::{Broker, Fragile, fresh_topics, report};
use crate::proxy::Proxy;

/// How long the long course lasts at least where nobody says.
const LASTS: Duration = Duration::from_secs(30 * 60);
/// It goes on until so many kills were survived,
const KILLS_MIN: u64 = 1_000;
/// but begins no history after this time, and fails where they were fewer: `make faults` is to take an hour at most.
const LONGEST: Duration = Duration::from_secs(42 * 60);
/// Kills in a start, and in the start that follows it: each mends what the one before left.
const KILLS_IN_A_ROW: usize = 4;
/// Longest life between two kills, in milliseconds.
const LIFE_MS: u64 = 600;
/// How long one history of the long course lasts: the topics are read from their start.
const HISTORY: Duration = Duration::from_secs(120);

/// A few faults of any kind, the world going on all the while.
async fn some_faults(
    course: &mut Course,
    broker: &Fragile,
    proxy: &Proxy,
    faults: u64,
) -> anyhow::Result<()> {
    for _ in 0..faults {
        course.live(6).await?;
        let kind = course.rng.below(100);
        let which = course.rng.next() >> 8;
        match kind {
            0..35 => kill_after(course, LIFE_MS).await?,
            35..65 => {
                for _ in 0..KILLS_IN_A_ROW {
                    kill_after(course, EARLY_MS).await?;
                }
            }
            65..84 => course.runtime_fault(which).await?,
            84..90 => network_fault(course, proxy, which).await?,
            90..97 => broker_fault(course, broker, which).await?,
            _ => tear_state(course, which).await?,
        }
    }
    Ok(())
}

async fn kill_after(course: &mut Course, longest_ms: u64) -> anyhow::Result<()> {
    let life_ms = course.rng.below(longest_ms);
    tokio::time::sleep(Duration::from_millis(life_ms)).await;
    course.kill().await
}

async fn start(
    kind: Broker,
    broker: &Fragile,
    proxy: &Proxy,
    name: &'static str,
) -> anyhow::Result<Course> {
    let prefix = fresh_topics().prefix.replace('.', "_");
    let server = broker.servers.first().context("the lab tells no server")?;
    let bus = match kind {
        Broker::Kafka => Bus::kafka(server, &prefix),
        Broker::Nats => Bus::nats(server, &prefix),
    };
    let mut setup = Setup::new(name, Some(bus));
    if kind == Broker::Kafka {
        Broker::know_second_kafka().await?;
        setup.file = TWO_REPLICAS;
    }
    setup.through = Some(proxy.address.to_string());
    Course::start(setup).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_all_kinds_at_once_leave_the_truth_on_kafka() -> anyhow::Result<()> {
    let Some(broker) = Broker::Kafka.fragile().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let proxy = proxy_before(Broker::Kafka, &broker).await?;
    let mut course = start(Broker::Kafka, &broker, &proxy, "mixed, Kafka").await?;
    for _ in 0..3 {
        some_faults(&mut course, &broker, &proxy, 8).await?;
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_all_kinds_at_once_leave_the_truth_on_nats() -> anyhow::Result<()> {
    let Some(broker) = Broker::Nats.fragile().await? else {
        return Ok(());
    };
    if !can_unshare()? {
        return Ok(());
    }
    let proxy = proxy_before(Broker::Nats, &broker).await?;
    let mut course = start(Broker::Nats, &broker, &proxy, "mixed, NATS").await?;
    for _ in 0..3 {
        some_faults(&mut course, &broker, &proxy, 8).await?;
        course.converge().await?;
    }
    course.finish()?;
    Ok(())
}

/// When the long course is over.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    lasts: Duration,
    kills: u64,
    longest: Duration,
}

impl Bounds {
    /// `QUAYMASTER_FAULTS_MINUTES` asks for just that time, however few kills it has.
    fn asked_for() -> anyhow::Result<Self> {
        match std::env::var("QUAYMASTER_FAULTS_MINUTES") {
            Ok(text) => {
                let minutes: u64 = text
                    .parse()
                    .with_context(|| format!("QUAYMASTER_FAULTS_MINUTES={text} is no number"))?;
                let lasts = Duration::from_secs(60 * minutes);
                Ok(Self {
                    lasts,
                    kills: 0,
                    longest: lasts,
                })
            }
            Err(_) => Ok(Self {
                lasts: LASTS,
                kills: KILLS_MIN,
                longest: LONGEST,
            }),
        }
    }

    fn are_over(self, passed: Duration, kills: u64) -> bool {
        passed >= self.longest || (passed >= self.lasts && kills >= self.kills)
    }
}

/// What `make faults` runs. Histories on Kafka and on NATS in turn, until the time is over and there were kills enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "lasts half an hour; `make faults` runs it"]
async fn the_long_course() -> anyhow::Result<()> {
    let bounds = Bounds::asked_for()?;
    anyhow::ensure!(can_unshare()?, "the long course needs PID namespaces");
    let began = Instant::now();
    let mut total = Total::default();
    let mut histories = 0_u64;
    while !bounds.are_over(began.elapsed(), total.kills()) {
        let (kind, name) = match histories % 2 {
            0 => (Broker::Kafka, "long, Kafka"),
            _ => (Broker::Nats, "long, NATS"),
        };
        let broker = kind
            .fragile()
            .await?
            .context("the long course needs brokers")?;
        let proxy = proxy_before(kind, &broker).await?;
        let mut course = start(kind, &broker, &proxy, name).await?;
        let history = Instant::now();
        while history.elapsed() < HISTORY && began.elapsed() < bounds.longest {
            some_faults(&mut course, &broker, &proxy, 12).await?;
            course.converge().await?;
        }
        total.deltas += course.oracle.deltas;
        total.add(course.finish()?);
        histories += 1;
    }
    let kills = total.kills();
    total.print(histories, began.elapsed());
    anyhow::ensure!(
        kills >= bounds.kills,
        "{kills} SIGKILLs in {} min, and {} are asked for",
        began.elapsed().as_secs() / 60,
        bounds.kills
    );
    Ok(())
}

#[test]
fn the_long_course_goes_on_until_there_were_kills_enough() {
    let bounds = Bounds {
        lasts: LASTS,
        kills: KILLS_MIN,
        longest: LONGEST,
    };
    let second = Duration::from_secs(1);
    assert!(!bounds.are_over(LASTS - second, KILLS_MIN * 2));
    assert!(!bounds.are_over(LASTS, KILLS_MIN - 1));
    assert!(bounds.are_over(LASTS, KILLS_MIN));
    assert!(bounds.are_over(LONGEST, 0));
}

#[derive(Default)]
struct Total {
    figures: Figures,
    deltas: u64,
}

impl Total {
    fn kills(&self) -> u64 {
        self.figures.faults.get("SIGKILL").copied().unwrap_or(0)
    }

    fn add(&mut self, figures: Figures) {
        for (fault, count) in figures.faults {
            *self.figures.faults.entry(fault).or_default() += count;
        }
        self.figures.converged_ms.extend(figures.converged_ms);
        self.figures.lost += figures.lost;
        self.figures.owed_steps += figures.owed_steps;
        self.figures.wrong_owner += figures.wrong_owner;
    }

    fn print(mut self, histories: u64, lasted: Duration) {
        self.figures.converged_ms.sort_unstable();
        let times = &self.figures.converged_ms;
        let kills = self.figures.faults.remove("SIGKILL").unwrap_or(0);
        let others: BTreeMap<_, _> = self.figures.faults;
        report(&format!(
            "the long course, {} min, {histories} histories\n  SIGKILLs survived      {kills}\n  other faults           \
             {others:?}\n  deltas checked         {} (owed for sure: {})\n  lost                   {}\n  out of order           \
             0\n  wrong owner            {}\n  time to converge after the last fault: p50 {} ms, max {} ms, {} times",
            lasted.as_secs() / 60,
            self.deltas,
            self.figures.owed_steps,
            self.figures.lost,
            self.figures.wrong_owner,
            times.get(times.len() / 2).copied().unwrap_or(0),
            times.last().copied().unwrap_or(0),
            times.len(),
        ));
    }
}
