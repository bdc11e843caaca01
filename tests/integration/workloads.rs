//! What `docs/pods.md` says of each workload, on the real controllers of Kubernetes. The test plays the kubelet, and the
//! scheduler where it doesn't start one.

mod bad_days;
mod budgets;
mod controllers;
mod deadlines;
mod deployments;
mod jobs;
mod refused;
mod scale;
mod scheduling;
mod sets;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, EvictParams, ListParams};
use kube::{Resource, ResourceExt};
use leasehold::api::gated::is_gated;
use serde_json::{Value, json};

use crate::controller::fixture::{Fixture, a_while};
use crate::controller::gated::{GATE, let_go};
use crate::support::{LIMIT, serving, wait_for};

/// Of all workloads here.
const APP: &str = "web";
/// So many requests at once, so that a busy machine answers each in time.
const AT_ONCE: usize = 10;

/// A pod template of the lock `a`, with its gate, as one writes it where no policy adds it; `spec` is added to its own.
fn template(spec: Value) -> Value {
    let labels = json!({"app": APP, "leasehold.dev/lock": "a"});
    let containers = json!([{"name": "main", "image": "none"}]);
    let own =
        json!({"schedulingGates": [{ "name": GATE }], "terminationGracePeriodSeconds": 1, "containers": containers});
    json!({"metadata": {"labels": labels}, "spec": with(own, spec)})
}

/// A workload of this kind, whose pods are of that template.
fn workload(kind: &str, spec: Value) -> Value {
    let own = json!({"selector": {"matchLabels": {"app": APP}}, "template": template(json!({}))});
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": APP}, "spec": with(own, spec)})
}

/// A pod of that template, without an owner.
async fn bare_pod(f: &Fixture, name: &str, spec: Value) -> Pod {
    let mut pod = with(json!({"apiVersion": "v1", "kind": "Pod"}), template(spec));
    pod["metadata"]["name"] = json!(name);
    apply(f, &pod).await;
    f.pods().api().get(name).await.expect("it is there")
}

/// The fields of both; of a field that both have, `more`'s.
fn with(mut object: Value, more: Value) -> Value {
    let more = if let Value::Object(more) = more { more } else { panic!("an object") };
    object.as_object_mut().expect("an object").extend(more);
    object
}

async fn apply(f: &Fixture, object: &Value) {
    f.test.kubectl_apply(&object.to_string()).await.expect("it is accepted");
}

/// The pods that aren't being deleted, by name.
async fn pods(f: &Fixture) -> Vec<Pod> {
    let pods: Api<Pod> = f.test.api();
    let mut pods = pods.list(&ListParams::default()).await.expect("a list").items;
    pods.retain(|pod| pod.meta().deletion_timestamp.is_none());
    pods.sort_by_key(ResourceExt::name_any);
    pods
}

/// Those of them that were let go and have not ended.
async fn running(f: &Fixture) -> Vec<Pod> {
    let mut pods = pods(f).await;
    pods.retain(|pod| !is_gated(pod) && !over(pod));
    pods
}

/// Does this to each pod, to some at once.
async fn to_each(names: impl Iterator<Item = String>, act: impl AsyncFn(String)) {
    stream::iter(names).for_each_concurrent(AT_ONCE, |name| act(name)).await;
}

/// Waits until so many of them wait, and so many don't: those that don't.
async fn there_are(f: &Fixture, waiting: usize, let_go: usize) -> Vec<Pod> {
    let so_many = async || {
        let (gated, free): (Vec<Pod>, Vec<Pod>) = pods(f).await.into_iter().partition(is_gated);
        (gated.len() == waiting && free.len() == let_go).then_some(free)
    };
    wait_for(&format!("{waiting} pods wait and {let_go} don't"), LIMIT, so_many).await
}

/// Waits until it is so, and then a while in which it stays so.
async fn it_stays(f: &Fixture, waiting: usize, let_go: usize) -> Vec<Pod> {
    there_are(f, waiting, let_go).await;
    a_while().await;
    there_are(f, waiting, let_go).await
}

/// It has ended well.
fn over(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Succeeded"))
}

async fn evict(f: &Fixture, name: &str) -> Result<(), String> {
    let pods: Api<Pod> = Api::namespaced(f.test.plane().client_that_asks_once().await, f.test.name());
    pods.evict(name, &EvictParams::default()).await.map(drop).map_err(|error| error.to_string())
}

/// It is its turn: it is let go, starts and is Ready. Its token.
async fn runs(f: &Fixture, name: &str) -> i64 {
    let token = let_go(f, name).await;
    f.pods().start(name, f.test.name()).await;
    f.pods().report(name, serving(1, true)).await;
    token
}

/// Waits until it is being deleted, and ends it as its kubelet does.
async fn is_stopped(f: &Fixture, name: &str) {
    let leaves = |pod: &Pod| pod.meta().deletion_timestamp.is_some();
    let pod = f.test.until::<Pod>(name, "is being deleted", LIMIT, leaves).await;
    f.pods().report(name, json!({"phase": "Succeeded"})).await;
    f.pods().delete_by_force(&pod).await;
}

/// Another template: what a new version of a program is.
async fn roll_over(f: &Fixture, kind: &str) {
    f.test.kubectl(&format!("set env {kind}/{APP} VERSION=2")).await.expect("it is accepted");
}
