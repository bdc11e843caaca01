//! Leasehold against the raw floors, side by side on one redis-server, through the same client and the same
//! kind of connection. Rounds of both sides alternate, so that drift of the machine hits both; medians are
//! shown. Targets are printed beside the ratios; a missed one fails nothing.
//!
//! `cargo bench --bench leasehold` takes three minutes, with the elections of pods at its end (`-- elections`: these
//! alone); `-- api-writes [minutes]` counts what one held lock costs the API server, in ten minutes or as many as are
//! given; `-- gated [pods]` what 200 and 2,000 pods cost that wait for a semaphore, or as many as are given;
//! `-- unrelated` what 20,000 pods cost that don't wait; `-- agent [renewals]` what an agent needs of memory after 3,600
//! renewals, which takes 12 minutes, or as many as are given.

mod agent;
mod api_writes;
mod cluster;
mod commands;
mod elections;
mod floor;
mod gated;
mod handover;
mod ours;
mod pairs;
mod report;
mod server;
#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::runtime::{Builder, Runtime};

use floor::Floor;
use ours::Ours;
use pairs::{Load, Sample, compare};
use report::{Bound, Table};
use server::Server;
use support::RedisServer;

const LOCKS: usize = 64;
const LEASE: Duration = Duration::from_secs(15);
const ROUNDS: usize = 7;
const ROUND_TIME: Duration = Duration::from_millis(1000);
const HANDOVERS: usize = 1500;

/// One that takes and gives back locks: Leasehold, or the least that Redis can do.
trait Side: Clone + Send + Sync + 'static {
    /// Takes lock number `lock` under a new id and gives it back.
    fn pair(&self, lock: usize) -> impl Future<Output = Result<()>> + Send;
}

/// An id as long as a UUID, never used before.
fn fresh_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{:036x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            against_the_floors()?;
            two_threads()?.block_on(elections::run(200))
        }
        ["elections"] => two_threads()?.block_on(elections::run(200)),
        ["api-writes"] => two_threads()?.block_on(api_writes::run(10)),
        ["api-writes", minutes] => {
            let minutes = minutes.parse().with_context(|| format!("{minutes} is no number of minutes"))?;
            two_threads()?.block_on(api_writes::run(minutes))
        }
        ["gated"] => two_threads()?.block_on(gated::run(&[200, 2000])),
        ["gated", pods] => {
            let pods = pods.parse().with_context(|| format!("{pods} is no number of pods"))?;
            two_threads()?.block_on(gated::run(&[pods]))
        }
        ["agent"] => two_threads()?.block_on(agent::run(3600)),
        ["agent", renewals] => {
            let renewals = renewals.parse().with_context(|| format!("{renewals} is no number of renewals"))?;
            two_threads()?.block_on(agent::run(renewals))
        }
        ["unrelated"] => two_threads()?.block_on(gated::unrelated(20_000)),
        _ => bail!(
            "leasehold takes nothing, or: elections, api-writes [minutes], gated [pods], unrelated, agent [renewals]"
        ),
    }
}

fn two_threads() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Everything twice: with a client like the `leasehold` binary, whose threads share the CPUs with Redis, and with one
/// on a single thread, which favours the floor: its pipelining is at its best and nothing is handed between threads.
fn against_the_floors() -> Result<()> {
    let threads = two_threads()?;
    let redis = threads.block_on(RedisServer::start());
    println!("{} CPUs; medians of {ROUNDS} alternating rounds\n", std::thread::available_parallelism()?);
    println!("# The client on two threads\n");
    threads.block_on(measure(&redis))?;
    println!("# The client on one thread\n");
    let thread = Builder::new_current_thread().enable_all().build()?;
    thread.block_on(measure(&redis))?;
    thread.block_on(commands::print(&redis))
}

async fn measure(redis: &RedisServer) -> Result<()> {
    let server = Server::of(redis).await?;
    let (ours, floor) = (Ours::set_up(&server, LEASE).await?, Floor::set_up(&server).await?);
    one_client(&server, &ours, &floor).await?;
    many_tasks(&server, &ours, &floor).await?;
    hand_over(&server).await
}

fn millis(pick: fn(&Sample) -> Duration) -> impl Fn(&Sample) -> f64 {
    move |sample| pick(sample).as_secs_f64() * 1e3
}

async fn one_client(server: &Server<'_>, ours: &Ours, floor: &Floor) -> Result<()> {
    let load = Load { tasks: 1, time: ROUND_TIME };
    let both = compare(server, ours, floor, load).await?;
    let mut table = Table::new("One client, acquire and release, against SET NX PX and compare-and-delete");
    table.row("a pair, p50, ms", both.medians(millis(|s| s.p50)), Some(Bound::AtMost(1.2)));
    table.row("a pair, p99, ms", both.medians(millis(|s| s.p99)), None);
    table.row("pairs a second", both.medians(|s| s.per_second), None);
    table.print();
    Ok(())
}

async fn many_tasks(server: &Server<'_>, ours: &Ours, floor: &Floor) -> Result<()> {
    let load = Load { tasks: LOCKS, time: ROUND_TIME };
    let both = compare(server, ours, floor, load).await?;
    let mut table = Table::new("64 tasks on 64 locks, one connection");
    table.row("pairs a second", both.medians(|s| s.per_second), Some(Bound::AtLeast(0.25)));
    table.row("  the aim", both.medians(|s| s.per_second), Some(Bound::AtLeast(0.4)));
    table.row("Redis CPU a pair, µs", both.medians(|s| s.cpu_micros), None);
    table.row("pairs a Redis CPU second", both.medians(|s| 1e6 / s.cpu_micros), Some(Bound::AtLeast(0.25)));
    table.row("a pair, p99, ms", both.medians(millis(|s| s.p99)), None);
    table.print();
    Ok(())
}

async fn hand_over(server: &Server<'_>) -> Result<()> {
    let both = handover::compare(server).await?;
    let mut table = Table::new("Hand-over to a waiter, against LPUSH to a blocked BLPOP");
    table.row("p50, ms", both.medians(millis(|s| s.p50)), Some(Bound::AtMost(2.0)));
    table.row("p99, ms", both.medians(millis(|s| s.p99)), Some(Bound::AtMost(4.0)));
    table.print();
    Ok(())
}
