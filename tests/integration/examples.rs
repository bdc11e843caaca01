//! The files in `docs/examples` do what they say, on a real API server with the chart's policies and a real controller. The
//! test plays scheduler and kubelet. Each is also tried without its labels: what it says must then not be so.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use leasehold::api::gated::is_gated;
use serde_json::{Value, json};

use crate::controller::fixture::{Fixture, a_while};
use crate::policies::apply_gated;
use crate::support::eventually;

const LABEL: &str = "leasehold.dev/lock";
const TOKEN: &str = "leasehold.dev/fencing-token";
/// For what comes by itself.
const SOON: Duration = Duration::from_secs(15);

type Checked = Result<(), String>;

/// An example, applied.
struct Scene {
    f: Fixture,
}

/// Takes the label out of every template in an object.
fn unlabel(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove(LABEL);
            fields.values_mut().for_each(unlabel);
        }
        Value::Array(items) => items.iter_mut().for_each(unlabel),
        _ => {}
    }
}

impl Scene {
    async fn new(file: &str, labelled: bool) -> Self {
        let f = Fixture::new().await;
        apply_gated(&f.test).await;
        let path = format!("{}/docs/examples/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let objects = serde_saphyr::from_multiple::<Value>(&text).expect("YAML");
        assert!(text.contains(LABEL) && objects.len() > 1);
        for mut object in objects {
            if object["kind"] == "DistributedLock" {
                object["spec"]["storeName"] = json!(f.store_name());
            } else if !labelled {
                unlabel(&mut object);
            }
            f.test.kubectl_apply(&object.to_string()).await.expect("it is accepted");
        }
        Self { f }
    }

    async fn pods(&self) -> Vec<Pod> {
        let pods: Api<Pod> = self.f.test.api();
        let mut pods = pods.list(&ListParams::default()).await.expect("a list").items;
        pods.sort_by_key(ResourceExt::name_any);
        pods
    }

    /// The pods that run or could: name → the name of its Job, Deployment or its own, up to the first number.
    async fn running(&self) -> BTreeMap<String, String> {
        let over = |pod: &Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        let pods = self.pods().await.into_iter().filter(|pod| !is_gated(pod) && !over(pod));
        let of = |pod: &Pod| pod.labels().get("job-name").or(pod.labels().get("app")).cloned();
        pods.map(|pod| (pod.name_any(), of(&pod).unwrap_or_else(|| pod.name_any()))).collect()
    }

    /// Waits until exactly so many run, and nobody joins them.
    async fn run(&self, count: usize) -> Result<BTreeMap<String, String>, String> {
        eventually(SOON, async || (self.running().await.len() == count).then_some(())).await;
        a_while().await;
        let running = self.running().await;
        if running.len() == count { Ok(running) } else { Err(format!("{count} should run: {running:?}")) }
    }

    async fn succeeds(&self, name: &str) {
        self.f.pods().report(name, json!({"phase": "Succeeded"})).await;
    }

    /// Lets all pods run, and asks at each moment whether those that run may do so together. How many did, at most.
    async fn to_the_end(&self, pods: usize, may: impl Fn(&[&str]) -> bool) -> Result<usize, String> {
        let all = eventually(SOON, async || (self.pods().await.len() == pods).then_some(())).await;
        all.ok_or_else(|| format!("not {pods} pods"))?;
        let mut most = 0;
        for _ in 0..pods {
            let some =
                eventually(SOON, async || Some(self.running().await).filter(|running| !running.is_empty())).await;
            some.ok_or("nobody runs")?;
            a_while().await;
            let running = self.running().await;
            let names: Vec<&str> = running.values().map(String::as_str).collect();
            if !may(&names) {
                return Err(format!("run together: {running:?}"));
            }
            most = most.max(running.len());
            let first = running.keys().next().ok_or("nobody runs")?;
            self.succeeds(first).await;
        }
        Ok(most)
    }
}

/// It is so with the labels, and not without.
async fn holds(file: &str, check: impl AsyncFn(&Scene) -> Checked) {
    let checked = check(&Scene::new(file, true).await).await;
    assert_eq!(checked, Ok(()), "{file}");
    let unlabelled = check(&Scene::new(file, false).await).await;
    assert!(unlabelled.is_err(), "{file}: nothing is different without the labels");
}

#[tokio::test]
async fn cronjobs_exclude_each_other() {
    holds("cronjobs.yaml", async |scene: &Scene| {
        for name in ["import", "cleanup"] {
            scene.f.test.kubectl(&format!("create job {name} --from=cronjob/{name}")).await?;
        }
        if scene.to_the_end(2, |running| running.len() < 2).await? == 1 { Ok(()) } else { Err("none ran".into()) }
    })
    .await;
}

#[tokio::test]
async fn a_pool_of_connections_is_never_exceeded_and_is_used() {
    holds("connection-pool.yaml", async |scene: &Scene| {
        let connections =
            |running: &[&str]| running.iter().map(|job| if *job == "report" { 2 } else { 1 }).sum::<i32>();
        let most = scene.to_the_end(6, |running| connections(running) <= 3).await?;
        if most >= 2 { Ok(()) } else { Err("they run one by one".into()) }
    })
    .await;
}

#[tokio::test]
async fn workers_are_served_in_the_order_of_their_creation() {
    holds("queue.yaml", async |scene: &Scene| {
        for (done, then) in [(None, ["worker-1", "worker-2"]), (Some("worker-1"), ["worker-2", "worker-3"])] {
            if let Some(done) = done {
                scene.succeeds(done).await;
            }
            let running = scene.run(2).await?;
            if running.keys().ne(then) {
                return Err(format!("{running:?}"));
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn readers_run_together_and_a_writer_alone() {
    holds("readers-and-a-writer.yaml", async |scene: &Scene| {
        let most = scene.to_the_end(4, |running| running.len() == 1 || !running.contains(&"writer")).await?;
        if most >= 2 { Ok(()) } else { Err("readers don't run together".into()) }
    })
    .await;
}

#[tokio::test]
async fn a_transfer_holds_both_ledgers_or_none_and_opposite_orders_go_on() {
    holds("two-resources.yaml", async |scene: &Scene| {
        if scene.to_the_end(2, |running| running.len() < 2).await? == 1 { Ok(()) } else { Err("none ran".into()) }
    })
    .await;
}

#[tokio::test]
async fn a_cache_is_rebuilt_by_one_and_the_other_gives_up_at_once() {
    holds("cache.yaml", async |scene: &Scene| {
        let jobs: Api<Job> = scene.f.test.api();
        let gave_up = async || {
            let jobs = jobs.list(&ListParams::default()).await.ok()?.items;
            let conditions = jobs.iter().filter_map(|job| job.status.as_ref()?.conditions.as_ref()).flatten();
            let failed = conditions.filter(|condition| condition.type_ == "Failed" && condition.status == "True");
            failed.into_iter().find(|condition| condition.reason.as_deref() == Some("PodFailurePolicy")).cloned()
        };
        let reason = eventually(SOON, gave_up).await.ok_or("no Job has given up")?;
        let running = scene.run(1).await?;
        let message = reason.message.unwrap_or_default();
        if message.contains("LockNotAcquired") { Ok(()) } else { Err(format!("{message}; {running:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_deployment_rolls_over_with_never_two() {
    holds("deployment.yaml", async |scene: &Scene| {
        let old = scene.run(1).await?.into_keys().next().ok_or("nobody runs")?;
        scene.f.pods().start(&old, scene.f.test.name()).await;
        scene.f.test.kubectl("set env deployment/consumer VERSION=2").await?;
        let leaves = async || {
            let pod = scene.f.pods().api().get(&old).await.ok()?;
            pod.metadata.deletion_timestamp.map(|_| ())
        };
        eventually(SOON, leaves).await.ok_or("the old one isn't deleted")?;
        scene.run(1).await?;
        let gone = scene.f.pods().api().get(&old).await.map_err(|error| error.to_string())?;
        scene.succeeds(&old).await;
        scene.f.pods().delete_by_force(&gone).await;
        let new = scene.run(1).await?.into_keys().next().ok_or("nobody runs")?;
        let pod = scene.f.pods().api().get(&new).await.map_err(|error| error.to_string())?;
        if new != old && pod.annotations().contains_key(TOKEN) { Ok(()) } else { Err(format!("{new} has no token")) }
    })
    .await;
}
