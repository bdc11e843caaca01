//! What pods that wait by their label cost the API server: a real control plane, the real controller, a semaphore, and a
//! bench that plays scheduler and kubelet.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, ResourceExt};
use leasehold::api::gated::is_gated;
use serde_json::{Value, json};

use crate::support::{AuditEntry, ControlPlane, Controller, ControllerOptions, LIMIT, RedisServer, wait_for};

const NAMESPACE: &str = "default";
const PERMITS: usize = 20;
/// How long each pod runs once it is let go.
const WORK: Duration = Duration::from_millis(50);
/// Requests at the same time.
const AT_ONCE: usize = 32;
/// How long the whole may take, for each pod.
const PATIENCE: Duration = Duration::from_millis(500);
/// Writes of the controller, a pod.
const TARGET: f64 = 10.0;
/// Of memory, in MiB.
const MEMORY: f64 = 200.0;

struct Outcome {
    pods: usize,
    took: Duration,
    most_at_once: usize,
    writes: BTreeMap<String, usize>,
    most_statuses_a_second: usize,
    peak: f64,
}

impl Outcome {
    fn per_pod(&self) -> f64 {
        self.writes.values().sum::<usize>() as f64 / self.pods as f64
    }
}

struct Scene {
    plane: ControlPlane,
    _redis: RedisServer,
    controller: Controller,
    pods: Api<Pod>,
}

impl Scene {
    async fn new() -> Result<Self> {
        let (plane, redis) = (ControlPlane::start().await, RedisServer::start().await);
        plane.install_crds();
        plane.kubectl(&["create", "namespace", "leasehold-system"]).map_err(anyhow::Error::msg)?;
        let mut options = ControllerOptions::new(env!("CARGO_BIN_EXE_leasehold"), &plane);
        options.redis_address = Some(redis.address());
        let controller = Controller::start(options).await;
        let client = plane.client().await;
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
        wait_for("the default service account", LIMIT, async || accounts.get_opt("default").await.ok()?).await;
        let pods = Api::namespaced(client, NAMESPACE);
        Ok(Self { plane, _redis: redis, controller, pods })
    }

    async fn create(&self, count: usize, pod: impl Fn(usize) -> Value) -> Result<()> {
        let made = stream::iter(0..count).map(|number| {
            let pod = serde_json::from_value::<Pod>(pod(number));
            async move { anyhow::Ok(self.pods.create(&PostParams::default(), &pod?).await?) }
        });
        made.buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await
    }

    /// The most memory that the controller has had, in MiB.
    fn peak(&mut self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.controller.process().pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}

fn pod(name: &str, labels: Value, gates: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"automountServiceAccountToken": false, "restartPolicy": "Never", "schedulingGates": gates,
            "containers": [{"name": "main", "image": "none"}]}})
}

fn gated_pod(number: usize) -> Value {
    let gate = "leasehold.dev/lock";
    pod(&format!("worker-{number}"), json!({ gate: "pool" }), json!([{ "name": gate }]))
}

/// Runs each number of pods, one after the other on a fresh control plane, and prints.
pub(crate) async fn run(counts: &[usize]) -> Result<()> {
    let mut outcomes = Vec::new();
    for count in counts {
        outcomes.push(turns(*count).await?);
    }
    for outcome in &outcomes {
        print(outcome);
    }
    if let [first, .., last] = outcomes.as_slice() {
        let ratio = last.per_pod() / first.per_pod();
        let met = verdict((0.95..=1.05).contains(&ratio));
        println!("  {:<44}{ratio:>8.3}  target 0.95 to 1.05, {met}", "writes a pod, the last against the first");
    }
    Ok(())
}

async fn turns(count: usize) -> Result<Outcome> {
    let mut scene = Scene::new().await?;
    let lock = format!(
        "apiVersion: leasehold.dev/v1alpha1\nkind: DistributedLock\nmetadata: {{name: pool}}\nspec: {{permits: {PERMITS}}}"
    );
    scene.plane.apply(NAMESPACE, &lock).map_err(anyhow::Error::msg)?;
    scene
        .plane
        .kubectl(&["wait", "--for=condition=Ready", "dlock/pool", "--timeout=60s"])
        .map_err(anyhow::Error::msg)?;
    let from = Instant::now();
    let kubelet = play_kubelet(&scene.pods, count);
    let ((), most_at_once) = tokio::try_join!(scene.create(count, gated_pod), kubelet)?;
    let took = from.elapsed();
    let claims_gone = async || {
        let left = scene.plane.kubectl(&["get", "lclaim", "-A", "-o", "name"]).ok()?;
        left.trim().is_empty().then_some(())
    };
    wait_for("all claims are gone", LIMIT, claims_gone).await;
    let (writes, most_statuses_a_second) = count_writes(&scene.plane.controller_writes());
    let peak = scene.peak()?;
    Ok(Outcome { pods: count, took, most_at_once, writes, most_statuses_a_second, peak })
}

/// Each pod that is let go runs for a while and succeeds. Returns how many ran at the same time, at most.
async fn play_kubelet(pods: &Api<Pod>, count: usize) -> Result<usize> {
    let mut changes = pin!(watcher(pods.clone(), Config::default().labels("leasehold.dev/lock")));
    let (mut running, mut seen, mut most) = (BTreeSet::new(), BTreeSet::new(), 0);
    let (done, mut ended) = tokio::sync::mpsc::unbounded_channel::<Result<()>>();
    let (end, mut succeeded) = (Instant::now() + LIMIT + PATIENCE * u32::try_from(count)?, 0);
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
            let (pods, done) = (pods.clone(), done.clone());
            tokio::spawn(async move {
                tokio::time::sleep(WORK).await;
                let patch = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
                let answer = pods.patch_status(&name, &PatchParams::default(), &patch).await;
                let _ = done.send(answer.map(drop).map_err(Into::into));
            });
        }
    }
    Ok(most)
}

/// By kind; and how often the status of the lock was written within one second.
fn count_writes(writes: &[AuditEntry]) -> (BTreeMap<String, usize>, usize) {
    let (mut kinds, mut seconds) = (BTreeMap::new(), BTreeMap::<i64, usize>::new());
    for AuditEntry { verb, resource, subresource, code, time, .. } in writes {
        if resource == "leases" || resource == "lockstores" {
            continue;
        }
        let refused = if *code >= 400 { format!(" ({code})") } else { String::new() };
        *kinds.entry(format!("{verb} {resource} {subresource}{refused}")).or_default() += 1;
        if resource == "distributedlocks" && subresource == "status" {
            *seconds.entry(time.as_second()).or_default() += 1;
        }
    }
    (kinds, seconds.into_values().max().unwrap_or(0))
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

fn print(outcome: &Outcome) {
    let Outcome { pods, took, most_at_once, writes, most_statuses_a_second, peak } = outcome;
    println!("{pods} gated pods on a semaphore of {PERMITS}, each running for {WORK:?}: {:.1} s", took.as_secs_f64());
    for (kind, count) in writes {
        println!("  {kind:<44}{count:>8}  {:.2} a pod", *count as f64 / *pods as f64);
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
    let two = "  the lock's status, in one second of the clock";
    println!("{two:<46}{most_statuses_a_second:>8}  target ≤ 2, {}", verdict(*most_statuses_a_second <= 2));
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
    let (before, writes) = (scene.usage()?, scene.plane.controller_writes().len());
    scene
        .create(count, |number| pod(&format!("other-{number}"), json!({"app": "other"}), json!([{"name": "x"}])))
        .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (after, more) = (scene.usage()?, scene.plane.controller_writes().len() - writes);
    println!("{count} pods without the label");
    println!("  {:<44}{:>8.2}", "CPU seconds of the controller meanwhile", after.cpu - before.cpu);
    println!("  {:<44}{:>8.2}", "memory that it has more, MiB", after.memory - before.memory);
    println!("  {:<44}{more:>8}", "its writes meanwhile");
    Ok(())
}

struct Usage {
    cpu: f64,
    memory: f64,
}

impl Scene {
    fn usage(&mut self) -> Result<Usage> {
        let id = self.controller.process().pid();
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(Usage { cpu: ticks / 100.0, memory: line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0 })
    }
}
