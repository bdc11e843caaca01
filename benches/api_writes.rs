//! What one held lock costs the API server: a real control plane, the real controller, a lock with leases of 15 s
//! that a claim holds, and somebody who reads the status each second.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use kube::{Api, Client};
use leasehold::api::DistributedLock;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cluster::{Cluster, NAMESPACE};
use crate::report::verdict;
use crate::support::AuditEntry;

const MANIFEST: &str = r#"
apiVersion: leasehold.dev/v1alpha1
kind: DistributedLock
metadata: {name: nightly-report}
spec: {leaseDurationSeconds: 15}
---
apiVersion: leasehold.dev/v1alpha1
kind: LockClaim
metadata: {name: nightly-report}
spec: {locks: [{name: nightly-report}]}
"#;
/// Of ten minutes.
const TARGET: u32 = 50;

/// Counts for so many minutes, and prints.
pub(crate) async fn run(minutes: u32) -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.apply(MANIFEST)?;
    // The claim is told first, the lock's status follows.
    cluster.kubectl(&["wait", "--for=condition=Held", "lclaim,dlock", "--all", "--timeout=60s"])?;
    println!("One held lock with leases of 15 s, for {minutes} minutes");
    let from = Timestamp::now();
    let seen = read_each_second(&cluster.client, Duration::from_secs(60 * u64::from(minutes))).await?;
    let writes: Vec<AuditEntry> =
        cluster.plane.controller_writes().into_iter().filter(|write| write.time >= from).collect();
    print(minutes, &writes, &seen);
    Ok(())
}

/// What the reader has seen.
#[derive(Default)]
struct Seen {
    readings: u32,
    in_the_past: u32,
    /// The shortest time that was left of a published lease.
    least: Option<SignedDuration>,
}

async fn read_each_second(client: &Client, time: Duration) -> Result<Seen> {
    let locks: Api<DistributedLock> = Api::namespaced(client.clone(), NAMESPACE);
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (end, mut seen) = (Instant::now() + time, Seen::default());
    while Instant::now() < end {
        ticks.tick().await;
        let status = locks.get("nightly-report").await?.status.context("a held lock has a status")?;
        let expire_time = status.expire_time.context("a held lock has an expireTime")?;
        let left = expire_time.0.duration_since(Timestamp::now());
        seen.readings += 1;
        seen.in_the_past += u32::from(left.is_negative());
        seen.least = Some(seen.least.map_or(left, |least| least.min(left)));
    }
    Ok(seen)
}

fn print(minutes: u32, writes: &[AuditEntry], seen: &Seen) {
    let mut kinds = BTreeMap::<String, u32>::new();
    for AuditEntry { verb, resource, subresource, .. } in writes {
        *kinds.entry(format!("{verb} {resource} {subresource}").trim().to_owned()).or_default() += 1;
    }
    for (kind, count) in &kinds {
        println!("  {kind:<44}{count:>6}");
    }
    let (count, target) = (writes.len(), TARGET * minutes / 10);
    println!(
        "  {:<44}{count:>6}  target ≤ {target}, {}",
        "API writes of the controller",
        verdict(count <= target as usize)
    );
    let Seen { readings, in_the_past, least } = seen;
    println!("  {:<44}{readings:>6}", "readings of the status");
    let met = verdict(*in_the_past == 0);
    println!("  {:<44}{in_the_past:>6}  target 0, {met}", "readings of an expireTime in the past");
    if let Some(least) = least {
        println!("  {:<44}{:>6.1} s", "shortest time left of a published lease", least.as_secs_f64());
    }
}
