//! Acquire and release, again and again, for a time.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use crate::server::Server;
use crate::{ROUNDS, Side};

/// How many tasks, each on a lock of its own, for how long.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) tasks: usize,
    pub(crate) time: Duration,
}

/// What one round of one side gave.
pub(crate) struct Sample {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) per_second: f64,
    pub(crate) cpu_micros: f64,
}

impl Sample {
    /// From the times of all steps of a round, which must not be empty.
    pub(crate) fn new(mut times: Vec<Duration>, whole: Duration, cpu: Duration) -> Self {
        times.sort_unstable();
        let steps = times.len() as f64;
        Self {
            p50: times[times.len() / 2],
            p99: times[times.len() * 99 / 100],
            per_second: steps / whole.as_secs_f64(),
            cpu_micros: cpu.as_secs_f64() * 1e6 / steps,
        }
    }
}

/// The rounds of both sides.
#[derive(Default)]
pub(crate) struct Rounds {
    pub(crate) ours: Vec<Sample>,
    pub(crate) floor: Vec<Sample>,
}

impl Rounds {
    /// The median over the rounds of each side, ours first.
    pub(crate) fn medians(&self, value: impl Fn(&Sample) -> f64) -> (f64, f64) {
        let median = |samples: &[Sample]| {
            let mut values: Vec<f64> = samples.iter().map(&value).collect();
            values.sort_unstable_by(f64::total_cmp);
            values[values.len() / 2]
        };
        (median(&self.ours), median(&self.floor))
    }
}

/// Alternating rounds, after one of each that isn't counted: it fills the memory of finished ids.
pub(crate) async fn compare(server: &Server<'_>, ours: &impl Side, floor: &impl Side, load: Load) -> Result<Rounds> {
    round(server, ours, load).await?;
    round(server, floor, load).await?;
    let mut rounds = Rounds::default();
    for _ in 0..ROUNDS {
        rounds.ours.push(round(server, ours, load).await?);
        rounds.floor.push(round(server, floor, load).await?);
    }
    Ok(rounds)
}

async fn round(server: &Server<'_>, side: &impl Side, load: Load) -> Result<Sample> {
    let cpu = server.cpu().await?;
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for lock in 0..load.tasks {
        tasks.spawn(pairs(side.clone(), lock, start + load.time));
    }
    let mut times = Vec::new();
    while let Some(task) = tasks.join_next().await {
        times.append(&mut task??);
    }
    Ok(Sample::new(times, start.elapsed(), server.cpu().await?.saturating_sub(cpu)))
}

async fn pairs(side: impl Side, lock: usize, end: Instant) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    let mut last = Instant::now();
    while last < end {
        side.pair(lock).await?;
        let now = Instant::now();
        times.push(now - last);
        last = now;
    }
    Ok(times)
}
