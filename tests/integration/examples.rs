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
use crate::fencing::apply_fence;
use crate::policies::apply_gated;
use crate::support::{LIMIT, eventually};

const LABEL: &str = "leasehold.dev/lock";
const LOCKS: &str = "leasehold.dev/locks";
const TOKEN: &str = "leasehold.dev/fencing-token";
/// For what comes by itself.
const SOON: Duration = Duration::from_secs(15);

type Checked = Result<(), String>;

/// An example, applied.
struct Scene {
    f: Fixture,
}

/// Takes the label out of every template in an object, and the list that is refused without it.
fn unlabel(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove(LABEL);
            fields.remove(LOCKS);
            fields.values_mut().for_each(unlabel);
        }
        Value::Array(items) => items.iter_mut().for_each(unlabel),
        _ => {}
    }
}

/// The objects of an example.
fn example(file: &str) -> Vec<Value> {
    let path = format!("{}/docs/examples/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let objects = serde_saphyr::from_multiple::<Value>(&text).expect("YAML");
    assert!(text.contains(LABEL) && objects.len() > 1);
    objects
}

impl Scene {
    async fn new(file: &str, labelled: bool) -> Self {
        let f = Fixture::new().await;
        apply_gated(&f.test).await;
        let objects = example(file);
        if objects.iter().any(|object| object["metadata"]["labels"]["example.com/fenced"].is_string()) {
            apply_fence(&f.test).await;
        }
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

    /// Does what the container of a pod does, a kubectl with its arguments, as its kubelet starts it and with its rights.
    async fn acts(&self, name: &str) -> Checked {
        let pod = self.f.pods().api().get(name).await.map_err(|error| error.to_string())?;
        let spec = pod.spec.as_ref().ok_or("it has no spec")?;
        let mut words = spec.containers[0].args.clone().unwrap_or_default().join(" ");
        for variable in spec.containers[0].env.iter().flatten() {
            let of = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
            let value = match of.map(|of| of.field_path.as_str()) {
                Some("metadata.name") => name,
                Some("metadata.annotations['leasehold.dev/fencing-token']") => {
                    pod.annotations().get(TOKEN).map_or("", String::as_str)
                }
                other => return Err(format!("{}: {other:?}", variable.name)),
            };
            words = words.replace(&format!("$({})", variable.name), value);
        }
        let account = spec.service_account_name.as_deref().unwrap_or("default");
        let user = format!("system:serviceaccount:{}:{account}", self.f.test.name());
        self.f.test.kubectl(&format!("{words} --as={user}")).await.map(drop)
    }

    async fn token(&self, pod: &str) -> Result<i64, String> {
        let pod = self.f.pods().api().get(pod).await.map_err(|error| error.to_string())?;
        let token = pod.annotations().get(TOKEN).ok_or("it has no token")?;
        token.parse().map_err(|error| format!("{token}: {error}"))
    }

    /// A field of the data of a ConfigMap.
    async fn data(&self, name: &str, field: &str) -> Result<String, String> {
        self.f.test.kubectl(&format!("get configmap {name} -o jsonpath={{.data.{field}}}")).await
    }

    /// The Job that fails since its pod has given up, and what it says.
    async fn gave_up(&self) -> Result<(String, String), String> {
        let jobs: Api<Job> = self.f.test.api();
        let gave_up = async || {
            let jobs = jobs.list(&ListParams::default()).await.ok()?.items;
            let failed = |job: &Job| {
                let conditions = job.status.as_ref()?.conditions.as_ref()?;
                let failed =
                    conditions.iter().find(|condition| condition.type_ == "Failed" && condition.status == "True");
                failed.filter(|condition| condition.reason.as_deref() == Some("PodFailurePolicy")).cloned()
            };
            jobs.iter().find_map(|job| Some((job.name_any(), failed(job)?.message.unwrap_or_default())))
        };
        let (job, message) = eventually(SOON, gave_up).await.ok_or("no Job has given up")?;
        if message.contains("LockNotAcquired") { Ok((job, message)) } else { Err(message) }
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

/// Those that must not run at the same time take turns with the labels, and not without.
async fn excludes(file: &str, check: impl AsyncFn(&Scene) -> Checked) {
    holds(file, "run together", check).await;
}

/// It is so with the labels, and not without: then this is what is wrong.
async fn holds(file: &str, otherwise: &str, check: impl AsyncFn(&Scene) -> Checked) {
    let scene = Scene::new(file, true).await;
    let checked = check(&scene).await;
    assert_eq!(checked, Ok(()), "{file}; the controller says:\n{}", scene.f.controller.logs());
    let unlabelled = check(&Scene::new(file, false).await).await;
    let wrong = unlabelled.expect_err(&format!("{file}: nothing is different without the labels"));
    assert!(wrong.starts_with(otherwise), "{file} without the labels: {wrong}");
}

#[tokio::test]
async fn cronjobs_exclude_each_other() {
    excludes("cronjobs.yaml", async |scene: &Scene| {
        for name in ["import", "cleanup"] {
            scene.f.test.kubectl(&format!("create job {name} --from=cronjob/{name}")).await?;
        }
        scene.to_the_end(2, |running| running.len() < 2).await?;

        // One waits for too long.
        for name in ["import", "cleanup"] {
            scene.f.test.kubectl(&format!("create job {name}-again --from=cronjob/{name}")).await?;
        }
        scene.run(1).await?;
        let waits = scene.pods().await.into_iter().find(is_gated).ok_or("nobody waits")?;
        let limit = "leasehold.dev/wait-timeout-seconds";
        if waits.annotations().get(limit).map(String::as_str) != Some("600") {
            return Err("it waits for ever".into());
        }
        scene.f.test.kubectl(&format!("annotate pod {} {limit}=1 --overwrite", waits.name_any())).await?;
        let (job, message) = scene.gave_up().await?;
        assert_eq!(waits.labels().get("job-name"), Some(&job), "{message}");
        scene.run(1).await.map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_pool_of_connections_is_never_exceeded_and_is_used() {
    excludes("connection-pool.yaml", async |scene: &Scene| {
        let connections =
            |running: &[&str]| running.iter().map(|job| if *job == "report" { 2 } else { 1 }).sum::<i32>();
        let most = scene.to_the_end(6, |running| connections(running) <= 3).await?;
        if most >= 2 { Ok(()) } else { Err("they run one by one".into()) }
    })
    .await;
}

#[tokio::test]
async fn workers_are_served_in_the_order_of_their_creation() {
    holds("queue.yaml", "2 should run", async |scene: &Scene| {
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
    excludes("readers-and-a-writer.yaml", async |scene: &Scene| {
        let most = scene.to_the_end(4, |running| running.len() == 1 || !running.contains(&"writer")).await?;
        if most >= 2 { Ok(()) } else { Err("readers don't run together".into()) }
    })
    .await;
}

#[tokio::test]
async fn a_transfer_holds_both_ledgers_or_none_and_opposite_orders_go_on() {
    excludes("two-resources.yaml", async |scene: &Scene| {
        if scene.to_the_end(2, |running| running.len() < 2).await? != 1 {
            return Err("none ran".into());
        }
        let mut tokens = Vec::new();
        for pod in scene.pods().await {
            tokens.push(["TOKEN_A", "TOKEN_B"].map(|name| variable(&pod, name).unwrap_or_default()));
        }
        tokens.sort();
        let [[a, b], [later_a, later_b]] = &tokens[..] else { return Err(format!("{tokens:?}")) };
        assert!(0 < *a && a < later_a && 0 < *b && b < later_b, "each has the tokens of both: {tokens:?}");
        Ok(())
    })
    .await;
}

/// A token, as the container has it as its variable.
fn variable(pod: &Pod, name: &str) -> Option<i64> {
    let env = pod.spec.as_ref()?.containers[0].env.as_ref()?.iter().find(|env| env.name == name)?;
    let path = &env.value_from.as_ref()?.field_ref.as_ref()?.field_path;
    let key = path.strip_prefix("metadata.annotations['")?.strip_suffix("']")?;
    pod.annotations().get(key)?.parse().ok()
}

/// The pod that rebuilds the cache: one and not more.
async fn the_one_that_rebuilds(scene: &Scene) -> Result<String, String> {
    // Two readers run beside it.
    let running = scene.run(3).await?;
    let mut rebuild = running.into_iter().filter(|(_, of)| of.starts_with("rebuild")).map(|(name, _)| name);
    match (rebuild.next(), rebuild.next()) {
        (Some(one), None) => Ok(one),
        other => Err(format!("one should rebuild: {other:?}")),
    }
}

/// What all readers see, each in the ConfigMap that it has as its file.
async fn all_see(scene: &Scene) -> Result<String, String> {
    let readers =
        scene.pods().await.into_iter().filter(|pod| pod.labels().get("app").is_some_and(|app| app == "reads-prices"));
    let mut seen = Vec::new();
    for reader in readers {
        let volumes = reader.spec.and_then(|spec| spec.volumes).unwrap_or_default();
        let entry = volumes.iter().find_map(|volume| Some(volume.config_map.as_ref()?.name.as_str()));
        seen.push(scene.data(entry.ok_or("a reader has no entry")?, "built-by").await?);
    }
    seen.dedup();
    if seen.len() == 1 { Ok(seen.remove(0)) } else { Err(format!("they see {seen:?}")) }
}

#[tokio::test]
async fn a_cache_is_rebuilt_by_one_and_all_see_its_entry_and_no_older_one_comes_over_it() {
    holds("cache.yaml", "no Job has given up", async |scene: &Scene| {
        let (other, _) = scene.gave_up().await?;
        let first = the_one_that_rebuilds(scene).await?;
        let before = all_see(scene).await?;
        scene.acts(&first).await?;
        let after = all_see(scene).await?;
        assert_eq!(
            (before.as_str(), &after),
            ("nobody", &first),
            "all go on with the old entry, and then see the new one"
        );

        // It is taken for ended, and goes on: another one rebuilds, and then it writes once more.
        scene.succeeds(&first).await;
        scene.f.test.kubectl(&format!("delete job {other}")).await?;
        let again = example("cache.yaml").into_iter().find(|object| object["metadata"]["name"] == other.as_str());
        scene.f.test.kubectl_apply(&again.expect("it is in the file").to_string()).await?;
        let second = the_one_that_rebuilds(scene).await?;
        scene.acts(&second).await?;
        let refusal = scene.acts(&first).await.expect_err("its token is older");
        assert!(refusal.contains("is older than"), "{refusal}");
        assert_eq!(all_see(scene).await, Ok(second));
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn of_those_that_do_not_wait_the_resource_refuses_whoever_is_older_than_the_last_that_has_written() {
    holds("optimistic.yaml", "it has no token", async |scene: &Scene| {
        let running: Vec<String> = scene.run(2).await?.into_keys().collect();
        let (one, two) = (scene.token(&running[0]).await?, scene.token(&running[1]).await?);
        let (older, newer) = if one < two { (&running[0], &running[1]) } else { (&running[1], &running[0]) };
        assert_ne!(one, two);
        scene.acts(newer).await?;
        let refusal = scene.acts(older).await.expect_err("what it has read is older");
        assert!(refusal.contains("is older than"), "{refusal}");
        assert_eq!(scene.data("stock", "counted-by").await.as_ref(), Ok(newer));

        // Its Job begins again.
        scene.f.pods().report(older, json!({"phase": "Failed"})).await;
        let again = async || others(scene, &running).await.pop();
        let again = eventually(LIMIT, again).await.ok_or("its Job hasn't begun again")?;
        scene.acts(&again).await?;
        assert_eq!(scene.data("stock", "counted-by").await, Ok(again));
        Ok(())
    })
    .await;
}

/// Those that run and aren't among these.
async fn others(scene: &Scene, known: &[String]) -> Vec<String> {
    scene.running().await.into_keys().filter(|name| !known.contains(name)).collect()
}

#[tokio::test]
async fn a_deployment_rolls_over_with_never_two() {
    holds("deployment.yaml", "while the one before may still run", async |scene: &Scene| {
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
        assert_ne!(new, old);

        // Somebody deletes a pod by force that still runs: Kubernetes has another one made at once.
        let running = scene.f.pods().start(&new, scene.f.test.name()).await;
        scene.f.pods().delete_by_force(&running).await;
        let next = async || scene.pods().await.into_iter().find(|pod| ![&old, &new].contains(&&pod.name_any()));
        eventually(SOON, next).await.ok_or("no other pod is made")?;
        scene.run(0).await.map(drop).map_err(|error| format!("while the one before may still run: {error}"))
    })
    .await;
}

#[test]
fn every_example_is_tried_here() {
    let files = std::fs::read_dir(format!("{}/docs/examples", env!("CARGO_MANIFEST_DIR"))).expect("the folder");
    let names = files.map(|file| file.expect("a file").file_name().into_string().expect("UTF-8"));
    let examples: Vec<String> = names.filter(|name| name.ends_with(".yaml")).collect();
    assert!(examples.len() > 5, "{examples:?}");
    for example in examples {
        let tries = |by: &str| include_str!("examples.rs").contains(&format!("{by}(\"{example}\""));
        assert!(tries("holds") || tries("excludes"), "nobody tries {example}");
    }
}
