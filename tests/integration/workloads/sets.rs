//! StatefulSets and DaemonSets with fewer permits than pods.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use leasehold::api::DistributedLock;
use serde_json::{Value, json};

use super::{APP, apply, is_stopped, it_stays, pods, roll_over, runs, template, there_are, workload};
use crate::controller::fixture::Fixture;
use crate::controller::gated::{let_go, queues};
use crate::support::{LIMIT, serving, wait_for};

fn stateful_set(replicas: i32, management: &str) -> Value {
    workload("StatefulSet", json!({"serviceName": APP, "replicas": replicas, "podManagementPolicy": management}))
}

/// Waits until one waits and one doesn't, and has that run. Its name.
async fn the_first_runs(f: &Fixture) -> String {
    let first = there_are(f, 1, 1).await.remove(0).name_any();
    runs(f, &first).await;
    first
}

#[tokio::test]
async fn an_ordered_statefulset_makes_no_pod_behind_one_that_waits() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    apply(&f, &stateful_set(3, "OrderedReady")).await;
    runs(&f, "web-0").await;
    let names: Vec<String> = {
        it_stays(&f, 1, 1).await;
        pods(&f).await.iter().map(ResourceExt::name_any).collect()
    };
    assert_eq!(names, ["web-0", "web-1"]);
    f.change::<DistributedLock>("a", json!({"permits": 3})).await;
    runs(&f, "web-1").await;
    runs(&f, "web-2").await;
}

#[tokio::test]
async fn an_ordered_statefulset_is_not_updated_while_one_of_its_pods_waits() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    apply(&f, &stateful_set(2, "OrderedReady")).await;
    runs(&f, "web-0").await;
    there_are(&f, 1, 1).await;
    let before: Vec<_> = pods(&f).await.iter().map(ResourceExt::uid).collect();
    roll_over(&f, "statefulset").await;
    f.change::<StatefulSet>(APP, json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}}})).await;
    it_stays(&f, 1, 1).await;
    let after: Vec<_> = pods(&f).await.iter().map(ResourceExt::uid).collect();
    assert_eq!(before, after, "none was replaced");
}

#[tokio::test]
async fn a_parallel_statefulset_is_updated_if_more_may_be_missing_than_wait() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    apply(&f, &stateful_set(2, "Parallel")).await;
    let first = the_first_runs(&f).await;
    the_holder_is_replaced_only_if(&f, "statefulset", &first, json!({"rollingUpdate": {"maxUnavailable": 2}})).await;
    let_go(&f, if first == "web-0" { "web-1" } else { "web-0" }).await;
}

/// A new template replaces the pod that waits; the one that runs, only when the strategy is changed to `strategy`.
async fn the_holder_is_replaced_only_if(f: &Fixture, kind: &str, first: &str, strategy: Value) {
    let old = pods(f).await.into_iter().find(|pod| pod.name_any() != first).expect("one waits");
    roll_over(f, kind).await;
    let replaced = async || {
        let now = pods(f).await;
        (now.len() == 2 && now.iter().all(|pod| pod.uid() != old.uid())).then_some(())
    };
    wait_for("the one that waits is replaced", LIMIT, replaced).await;
    assert_eq!(it_stays(f, 1, 1).await[0].name_any(), first, "it runs on");
    let next = pods(f).await.into_iter().find(|pod| pod.name_any() != first).expect("one waits");
    queues(f, &next).await;
    let patch = json!({"spec": {"updateStrategy": strategy}}).to_string();
    f.test.kubectl(&format!("patch {kind} {APP} --type=merge -p {patch}")).await.expect("it is accepted");
    is_stopped(f, first).await;
    assert_eq!(there_are(f, 1, 1).await[0].uid(), next.uid(), "the one that waited has its turn");
}

/// The node for which a pod of a DaemonSet was made.
fn node_of(pod: &Pod) -> String {
    let pod = serde_json::to_value(pod).expect("JSON");
    let terms = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].as_str().expect("a node").to_owned()
}

#[tokio::test]
async fn a_daemonset_runs_on_as_many_nodes_as_there_are_permits_and_is_updated_if_more_may_be_missing_than_wait() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let of_test = |number: i32| format!("{}-{number}", f.test.name());
    for number in 0..2 {
        f.pods().node(&of_test(number), true).await;
        f.test.kubectl(&format!("label node {} test={}", of_test(number), f.test.name())).await.expect("a label");
    }
    let spec = json!({"nodeSelector": {"test": f.test.name()}, "tolerations": [{"operator": "Exists"}]});
    apply(&f, &workload("DaemonSet", json!({ "template": template(spec) }))).await;
    let first = there_are(&f, 1, 1).await.remove(0);
    let name = first.name_any();
    f.pods().start(&name, &node_of(&first)).await;
    f.pods().report(&name, serving(1, true)).await;
    it_stays(&f, 1, 1).await;
    the_holder_is_replaced_only_if(&f, "daemonset", &name, json!({"rollingUpdate": {"maxUnavailable": 2}})).await;
}
