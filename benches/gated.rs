//! What pods that wait by their label cost the API server: a real control plane, the real controller, a semaphore, and a
//! bench that plays scheduler and kubelet.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, ResourceExt};
use leasehold::api::election::FENCING_TOKEN;
use leasehold::api::gated::is_gated;
use serde_json::{Value, json};

use crate::cluster::{Cluster, NAMESPACE};
use crate::report::verdict;
use crate::support::history::{Event as History, Kind, Micros, Recorder, Share, Why, boottime, check};
use crate::support::{AuditEntry, LIMIT, wait_for};

const PERMITS: usize = 20;
/// How long each pod runs once it is let go, where it is counted what turns cost.
const WORK: Duration = Duration::from_millis(50);
/// So many run for so long, where it is measured how busy the permits are kept (argo-workflows #16606: 5 % of them).
const BUSY: (usize, Duration) = (400, Duration::from_secs(5));
/// Of the permits, in the mean of the whole time.
const OCCUPANCY: f64 = 0.9;
/// Requests at the same time.
const AT_ONCE: usize = 32;
/// How long the whole may take, for each pod.
const PATIENCE: Duration = Duration::from_millis(500);
/// Writes of the controller, a pod.
const TARGET: f64 = 10.0;
/// Of memory, in MiB.
const MEMORY: f64 = 200.0;
/// One second, less what a request may take longer than the next.
const GAP: f64 = 0.9;
const LOCK: &str = "pool";
const NODE: &str = "bench";

struct Outcome {
    pods: usize,
    work: Duration,
    took: Duration,
    most_at_once: usize,
    violations: usize,
    writes: BTreeMap<String, usize>,
    /// Between two writes of the lock's status.
    shortest_gap: f64,
    peak: f64,
}

impl Outcome {
    fn per_pod(&self) -> f64 {
        self.writes.values().sum::<usize>() as f64 / self.pods as f64
    }

    /// How many of the permits were in use by a pod that runs, of all, in the mean.
    fn occupancy(&self) -> f64 {
        self.pods as f64 * self.work.as_secs_f64() / (PERMITS as f64 * self.took.as_secs_f64())
    }

    fn pods_a_second(&self) -> f64 {
        self.pods as f64 / self.took.as_secs_f64()
    }
}

struct Scene {
    cluster: Cluster,
    pods: Api<Pod>,
}

impl Scene {
    async fn new() -> Result<Self> {
        let cluster = Cluster::start().await?;
        let node = format!("{{apiVersion: v1, kind: Node, metadata: {{name: {NODE}}}}}");
        cluster.apply(&node)?;
        let ready =
            r#"{"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Bench", "message": ""}]}}"#;
        cluster.kubectl(&["patch", "node", NODE, "--subresource=status", "--patch", ready])?;
        let pods = Api::namespaced(cluster.client.clone(), NAMESPACE);
        Ok(Self { cluster, pods })
    }

    async fn create(&self, count: usize, pod: impl Fn(usize) -> Value) -> Result<()> {
        let made = stream::iter(0..count).map(|number| {
            let pod = serde_json::from_value::<Pod>(pod(number));
            async move { anyhow::Ok(self.pods.create(&PostParams::default(), &pod?).await?) }
        });
        made.buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await
    }
}

fn pod(name: &str, labels: Value, gates: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"automountServiceAccountToken": false, "restartPolicy": "Never", "schedulingGates": gates,
            "containers": [{"name": "main", "image": "none"}]}})
}

fn name(number: usize) -> String {
    format!("worker-{number}")
}

fn gated_pod(number: usize) -> Value {
    let gate = "leasehold.dev/lock";
    pod(&name(number), json!({ gate: LOCK }), json!([{ "name": gate }]))
}

/// Runs each number of pods, one after the other on a fresh control plane, and prints.
pub(crate) async fn run(counts: &[usize]) -> Result<()> {
    let mut outcomes = Vec::new();
    for count in counts {
        outcomes.push(turns(*count, WORK).await?);
    }
    for outcome in &outcomes {
        print(outcome);
    }
    if let [first, .., last] = outcomes.as_slice() {
        let ratio = last.per_pod() / first.per_pod();
        let met = verdict((0.95..=1.05).contains(&ratio));
        println!("  {:<44}{ratio:>8.3}  target 0.95 to 1.05, {met}", "writes a pod, the last against the first");
        let ratio = last.pods_a_second() / first.pods_a_second();
        println!(
            "  {:<44}{ratio:>8.3}  target ≥ 0.8, {}",
            "pods a second, the last against the first",
            verdict(ratio >= 0.8)
        );
    }
    let (count, work) = BUSY;
    print(&turns(count, work).await?);
    Ok(())
}

async fn turns(count: usize, work: Duration) -> Result<Outcome> {
    let mut scene = Scene::new().await?;
    let lock = format!(
        "apiVersion: leasehold.dev/v1alpha1\nkind: DistributedLock\nmetadata: {{name: {LOCK}}}\nspec: {{permits: {PERMITS}}}"
    );
    scene.cluster.apply(&lock)?;
    scene.cluster.kubectl(&["wait", "--for=condition=Ready", &format!("dlock/{LOCK}"), "--timeout=60s"])?;
    let history = Recorder::default();
    let permits = u32::try_from(PERMITS)?;
    let lease: Micros = 15 * 1_000_000;
    history.note(History::Configured { lock: LOCK.to_owned(), permits, lease, sent: boottime() });
    for number in 0..count {
        let (lock, id) = (LOCK.to_owned(), name(number));
        history.note(History::Asks { lock, name: id.clone(), id, kind: Kind::Delegated, priority: 0 });
    }
    let (from, began) = (Instant::now(), Timestamp::now());
    let kubelet = play_kubelet(&scene.pods, count, work, &history);
    let ((), most_at_once) = tokio::try_join!(scene.create(count, gated_pod), kubelet)?;
    let took = from.elapsed();
    let claims_gone = async || {
        let left = scene.cluster.kubectl(&["get", "lclaim", "-A", "-o", "name"]).ok()?;
        left.trim().is_empty().then_some(())
    };
    wait_for("all claims are gone", LIMIT, claims_gone).await;
    let violations = check(&history.history());
    violations.iter().for_each(|violation| println!("{violation}"));
    let (writes, shortest_gap) = count_writes(&scene.cluster.plane.controller_writes(), began);
    let peak = scene.cluster.memory("VmHWM");
    Ok(Outcome { pods: count, work, took, most_at_once, violations: violations.len(), writes, shortest_gap, peak })
}

/// Each pod that is let go is bound, runs for a while and succeeds. Returns how many ran at the same time, at most.
async fn play_kubelet(pods: &Api<Pod>, count: usize, work: Duration, history: &Recorder) -> Result<usize> {
    let mut changes = pin!(watcher(pods.clone(), Config::default().labels("leasehold.dev/lock")));
    let (mut running, mut seen, mut most) = (BTreeSet::new(), BTreeSet::new(), 0);
    let (done, mut ended) = tokio::sync::mpsc::unbounded_channel::<Result<()>>();
    let (end, mut succeeded) = (Instant::now() + LIMIT + (PATIENCE + work) * u32::try_from(count)?, 0);
    while succeeded < count {
        let change = tokio::select! {
            change = changes.next() => change.context("the watch has ended")??,
            answer = ended.recv() => {
                answer.context("the channel is open")??;
                succeeded += 1;
                continue;
            }
            () = tokio::time::sleep_until(end.into()) => bail!("only {succeeded} of {count} pods have run"),
        };
        let (Event::Apply(pod) | Event::InitApply(pod)) = change else { continue };
        let name = pod.name_any();
        let over = pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Succeeded"));
        if over {
            running.remove(&name);
        } else if !is_gated(&pod) && seen.insert(name.clone()) {
            running.insert(name.clone());
            most = most.max(running.len());
            let token = pod.annotations().get(FENCING_TOKEN).and_then(|token| token.parse().ok());
            let token = token.with_context(|| format!("{name} was let go without a token"))?;
            let (pods, done, history) = (pods.clone(), done.clone(), history.clone());
            history.note(holds(&name, token));
            tokio::spawn(async move {
                let answer = run_pod(&pods, &name, work, &history).await;
                let _ = done.send(answer);
            });
        }
    }
    Ok(most)
}

fn holds(name: &str, token: i64) -> History {
    History::Holds {
        lock: LOCK.to_owned(),
        id: name.to_owned(),
        kind: Kind::Delegated,
        token,
        share: Share::Permits(1),
        until: None,
        lease_end: None,
    }
}

/// What scheduler and kubelet do.
async fn run_pod(pods: &Api<Pod>, name: &str, work: Duration, history: &Recorder) -> Result<()> {
    let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": NODE}});
    pods.create_subresource::<Value, Value>("binding", name, &PostParams::default(), &binding).await?;
    tokio::time::sleep(work).await;
    history.note(History::Stopped { lock: LOCK.to_owned(), id: name.to_owned(), why: Why::PodEnded });
    let patch = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    pods.patch_status(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// What comes with the time, and not with pods: that it leads.
fn is_of_its_lead(write: &AuditEntry) -> bool {
    write.resource == "leases"
}

/// By kind; and the seconds between two writes of the lock's status, at least, once it has its record.
fn count_writes(writes: &[AuditEntry], began: Timestamp) -> (BTreeMap<String, usize>, f64) {
    let (mut kinds, mut statuses) = (BTreeMap::new(), Vec::new());
    for write in writes.iter().filter(|write| !is_of_its_lead(write)) {
        let AuditEntry { verb, resource, subresource, code, time, .. } = write;
        let refused = if *code >= 400 { format!(" ({code})") } else { String::new() };
        *kinds.entry(format!("{verb} {resource} {subresource}{refused}")).or_default() += 1;
        if resource == "distributedlocks" && subresource == "status" && *time >= began {
            statuses.push(*time);
        }
    }
    statuses.sort();
    let gaps = statuses.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64());
    (kinds, gaps.reduce(f64::min).unwrap_or(f64::INFINITY))
}

fn print(outcome: &Outcome) {
    let Outcome { pods, work, took, most_at_once, violations, writes, shortest_gap, peak } = outcome;
    let (took, pace) = (took.as_secs_f64(), outcome.pods_a_second());
    println!(
        "{pods} gated pods on a semaphore of {PERMITS}, each running for {work:?}: {took:.1} s, {pace:.1} a second"
    );
    for (kind, count) in writes {
        println!("  {kind:<44}{count:>8}  {:.2} a pod", *count as f64 / *pods as f64);
    }
    if *work > WORK {
        let occupancy = outcome.occupancy();
        let met = verdict(occupancy >= OCCUPANCY);
        println!("  {:<44}{occupancy:>8.3}  target ≥ {OCCUPANCY}, {met}", "permits in use, in the mean");
    }
    let per_pod = outcome.per_pod();
    println!(
        "  {:<44}{per_pod:>8.2}  target ≤ {TARGET}, {}",
        "writes of the controller, a pod",
        verdict(per_pod <= TARGET)
    );
    println!(
        "  {:<44}{most_at_once:>8}  target ≤ {PERMITS}, {}",
        "pods at the same time",
        verdict(*most_at_once <= PERMITS)
    );
    println!("  {:<44}{violations:>8}  target 0, {}", "violations, by the checker", verdict(*violations == 0));
    println!(
        "  {:<44}{shortest_gap:>8.2}  target ≥ {GAP}, {}",
        "between two writes of the lock's status, s",
        verdict(*shortest_gap >= GAP)
    );
    println!(
        "  {:<44}{peak:>8.1}  target < {MEMORY}, {}",
        "memory of the controller at its peak, MiB",
        verdict(*peak < MEMORY)
    );
}

/// Pods without the label: what the controller reads and keeps of them.
pub(crate) async fn unrelated(count: usize) -> Result<()> {
    let mut scene = Scene::new().await?;
    scene.create(1, gated_pod).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (before, writes) = (scene.usage()?, scene.writes());
    scene
        .create(count, |number| pod(&format!("other-{number}"), json!({"app": "other"}), json!([{"name": "x"}])))
        .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (after, more) = (scene.usage()?, scene.writes() - writes);
    println!("{count} pods without the label");
    let (cpu, memory) = (after.cpu - before.cpu, after.memory - before.memory);
    println!("  {:<44}{cpu:>8.2}  target ≤ 1, {}", "CPU seconds of the controller meanwhile", verdict(cpu <= 1.0));
    println!("  {:<44}{memory:>8.2}  target ≤ 5, {}", "memory that it has more, MiB", verdict(memory <= 5.0));
    println!("  {:<44}{more:>8}  target 0, {}", "its writes meanwhile", verdict(more == 0));
    Ok(())
}

struct Usage {
    cpu: f64,
    memory: f64,
}

impl Scene {
    fn writes(&self) -> usize {
        self.cluster.plane.controller_writes().iter().filter(|write| !is_of_its_lead(write)).count()
    }

    fn usage(&mut self) -> Result<Usage> {
        let stat = self.cluster.proc("stat")?;
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(Usage { cpu: ticks / 100.0, memory: self.cluster.memory("VmRSS") })
    }
}
