//! How long after the API server knows that a leader has ended another pod carries the leader's label: a real control
//! plane, the real controller, and a bench that plays the kubelet.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::watcher::{Config, Event, watcher};
use leasehold::api::election::{LEADER, ROLE_LABEL};
use serde_json::json;

use crate::cluster::{Cluster, NAMESPACE};
use crate::report::verdict;
use crate::support::{LIMIT, PodActor};

const NODE: &str = "bench";
const LOCK: &str = r#"
apiVersion: leasehold.dev/v1alpha1
kind: DistributedLock
metadata: {name: report}
spec: {election: {selector: {matchLabels: {app: report}}}}
"#;
/// Of 99 in 100.
const TARGET: Duration = Duration::from_millis(200);

/// Lets so many leaders end, one after the other, and prints.
pub(crate) async fn run(rounds: usize) -> Result<()> {
    let cluster = Cluster::start().await?;
    let pods = PodActor::new(cluster.client.clone(), NAMESPACE);
    pods.node(NODE, true).await;
    for number in 0..3 {
        pods.serve(&format!("report-{number}"), "report", NODE).await;
    }
    let mut changes = pin!(watcher(pods.api().clone(), Config::default().labels("app=report")));
    cluster.apply(LOCK)?;
    let (mut leader, _) = next_leader(&mut changes, "").await?;
    let mut times = Vec::with_capacity(rounds);
    for number in 3..rounds + 3 {
        pods.report(&leader.name_any(), json!({"phase": "Failed"})).await;
        let known = Instant::now();
        let (next, labelled) = next_leader(&mut changes, &leader.name_any()).await?;
        times.push(labelled.saturating_duration_since(known));
        pods.delete_by_force(&leader).await;
        pods.serve(&format!("report-{number}"), "report", NODE).await;
        leader = next;
    }
    print(times);
    Ok(())
}

/// The next pod with the leader's label but this one, and when that was seen.
async fn next_leader(
    changes: &mut (impl Stream<Item = kube::runtime::watcher::Result<Event<Pod>>> + Unpin),
    before: &str,
) -> Result<(Pod, Instant)> {
    let leads = |pod: &Pod| pod.name_any() != before && pod.labels().get(ROLE_LABEL).is_some_and(|role| role == LEADER);
    let end = Instant::now() + LIMIT;
    loop {
        let change = tokio::time::timeout_at(end.into(), changes.next()).await.context("nobody leads")?;
        match change.context("the watch has ended")?? {
            Event::Apply(pod) | Event::InitApply(pod) if leads(&pod) => return Ok((pod, Instant::now())),
            _ if Instant::now() > end => bail!("nobody leads"),
            _ => {}
        }
    }
}

fn print(mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let verdict = verdict(at(99) < TARGET);
    println!("Election: from the API server's knowledge of the death to the new leader's label, {} times", times.len());
    println!(
        "  p50 {:>8.1?}   p90 {:>8.1?}   p99 {:>8.1?}  target p99 < {TARGET:?}, {verdict}",
        at(50),
        at(90),
        at(99)
    );
}
