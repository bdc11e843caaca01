//! What one call of each function costs Redis: its own time and the commands it runs inside.

use anyhow::Result;

use crate::floor::Floor;
use crate::fresh_id;
use crate::ours::{Ours, holder};
use crate::server::Server;
use crate::support::RedisServer;
use crate::{LEASE, LOCKS};

const BATCHES: usize = 20;
const CALLS: f64 = (BATCHES * LOCKS) as f64;

/// Costs of one kind of call, summed over the batches.
#[derive(Default)]
struct Cost {
    calls: std::collections::BTreeMap<String, f64>,
    micros: f64,
}

impl Cost {
    /// Adds what was done since the last reset, of which the outermost command is `outer`.
    async fn add(&mut self, server: &Server<'_>, outer: &str) -> Result<()> {
        for (name, stat) in server.command_stats().await? {
            if name == outer {
                self.micros += stat.micros;
            } else {
                *self.calls.entry(name).or_default() += stat.calls;
            }
        }
        server.reset_stats().await
    }

    fn print(&self, what: &str) {
        let inner: Vec<String> =
            self.calls.iter().map(|(name, calls)| format!("{name} {:.2}", calls / CALLS)).collect();
        let total = self.calls.values().fold(0.0, |sum, calls| sum + calls);
        println!("  {what:<36}{:>7.1}{:>10.2}  {}", self.micros / CALLS, total / CALLS, inner.join(", "));
    }
}

/// The steps of a lock's life, each with what it has cost.
#[derive(Default)]
struct Steps {
    acquire: Cost,
    renew: Cost,
    queue: Cost,
    hand_over: Cost,
    accept: Cost,
    release: Cost,
    set: Cost,
    compare_and_delete: Cost,
}

macro_rules! each_lock {
    ($server:expr, $cost:expr, $outer:literal, |$lock:ident| $call:expr) => {
        for $lock in 0..LOCKS {
            $call.await?;
        }
        $cost.add($server, $outer).await?;
    };
}

impl Steps {
    async fn batch(&mut self, server: &Server<'_>, ours: &Ours, floor: &Floor) -> Result<()> {
        let first = (0..LOCKS).map(|_| holder()).collect::<Result<Vec<_>>>()?;
        let second = (0..LOCKS).map(|_| holder()).collect::<Result<Vec<_>>>()?;
        each_lock!(server, self.acquire, "fcall", |lock| ours.acquire(lock, &first[lock]));
        each_lock!(server, self.renew, "fcall", |lock| ours.renew(lock, &first[lock]));
        each_lock!(server, self.queue, "fcall", |lock| ours.queue(lock, &second[lock]));
        each_lock!(server, self.hand_over, "fcall", |lock| ours.release(lock, &first[lock]));
        each_lock!(server, self.accept, "fcall", |lock| ours.acquire(lock, &second[lock]));
        each_lock!(server, self.release, "fcall", |lock| ours.release(lock, &second[lock]));
        let ids: Vec<String> = (0..LOCKS).map(|_| fresh_id()).collect();
        each_lock!(server, self.set, "set", |lock| floor.acquire(lock, &ids[lock]));
        each_lock!(server, self.compare_and_delete, "evalsha", |lock| floor.release(lock, &ids[lock]));
        Ok(())
    }
}

/// Runs every step on all locks, and prints what each has cost.
pub(crate) async fn print(redis: &RedisServer) -> Result<()> {
    let server = &Server::of(redis).await?;
    let (ours, floor) = (&Ours::set_up(server, LEASE).await?, &Floor::set_up(server).await?);
    let mut steps = Steps::default();
    server.reset_stats().await?;
    for _ in 0..BATCHES {
        steps.batch(server, ours, floor).await?;
    }
    println!("# Commands that one call runs inside Redis");
    println!("  {:<36}{:>7}{:>10}", "", "µs", "commands");
    steps.acquire.print("acquire, free");
    steps.renew.print("renew");
    steps.queue.print("acquire, queued");
    steps.hand_over.print("release, to a waiter");
    steps.accept.print("acquire, of an offer");
    steps.release.print("release");
    steps.set.print("floor: SET NX PX");
    steps.compare_and_delete.print("floor: compare-and-delete");
    Ok(())
}
