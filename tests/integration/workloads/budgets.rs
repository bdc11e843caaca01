//! PodDisruptionBudgets and ResourceQuotas, beside pods that wait.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use leasehold::api::LockClaim;
use leasehold::api::condition::{self, reasons, types};
use serde_json::{Value, json};

use super::{APP, apply, bare_pod, evict, is_stopped, pods, runs, there_are, with, workload};
use crate::controller::fixture::{Fixture, claim_condition};
use crate::controller::gated::{GATE, claim_of, let_go, queues};
use crate::support::LIMIT;

/// For what nothing keeps from happening.
const SOON: Duration = Duration::from_secs(5);

fn budget(spec: Value) -> Value {
    let spec = with(json!({"selector": {"matchLabels": {"app": APP}}}), spec);
    json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": APP}, "spec": spec})
}

#[tokio::test]
async fn a_pod_that_waits_is_not_healthy_for_a_budget_and_may_be_evicted_itself() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    apply(&f, &workload("Deployment", json!({"replicas": 2, "strategy": {"type": "Recreate"}}))).await;
    let holder = there_are(&f, 1, 1).await.remove(0).name_any();
    runs(&f, &holder).await;
    apply(&f, &budget(json!({"maxUnavailable": 1}))).await;
    let counted = |budget: &PodDisruptionBudget| {
        let of = |s: &k8s_openapi::api::policy::v1::PodDisruptionBudgetStatus| {
            (s.expected_pods, s.current_healthy, s.disruptions_allowed)
        };
        budget.status.as_ref().map(of) == Some((Some(2), Some(1), Some(0)))
    };
    f.test.until::<PodDisruptionBudget>(APP, "counts the holder alone", LIMIT, counted).await;
    let refused = evict(&f, &holder).await.expect_err("the one that waits is the one that may be missing");
    assert!(refused.contains("disruption budget"), "{refused}");
    let waiting = pods(&f).await.into_iter().find(|pod| pod.name_any() != holder).expect("one waits");
    evict(&f, &waiting.name_any()).await.expect("nothing of it runs");
    f.test.gone::<Pod>(&waiting.name_any(), LIMIT).await;
    f.test.gone::<LockClaim>(&claim_of(&waiting), LIMIT).await;
    f.change::<PodDisruptionBudget>(APP, json!({"maxUnavailable": 2})).await;
    let allowed =
        |budget: &PodDisruptionBudget| budget.status.as_ref().is_some_and(|s| s.disruptions_allowed == Some(1));
    f.test.until::<PodDisruptionBudget>(APP, "lets the holder go", LIMIT, allowed).await;
    evict(&f, &holder).await.expect("more may be missing than wait");
    is_stopped(&f, &holder).await;
    there_are(&f, 1, 1).await;
}

#[tokio::test]
async fn a_budget_that_forbids_to_evict_a_pod_that_holds_for_too_long_is_said_and_it_holds_on() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.max_hold_seconds = Some(1)).await;
    apply(&f, &budget(json!({"minAvailable": 1}))).await;
    let pod = bare_pod(&f, "p", json!({})).await;
    let first = runs(&f, "p").await;
    let claim = f.claim_reason(&claim_of(&pod), types::HELD, reasons::MAX_HOLD_EXCEEDED).await;
    assert!(claim_condition(&claim, types::HELD), "it holds on");
    let conditions = claim.status.expect("a status").conditions;
    let message = &condition::get(&conditions, types::HELD).expect("it is set").message;
    assert!(message.contains("can't be evicted") && message.contains("disruption budget"), "{message}");
    for name in ["next", "last"] {
        let next = bare_pod(&f, name, json!({})).await;
        queues(&f, &next).await;
    }
    // Nobody is asking in vain for so long that it would miss the end of the pod.
    f.pods().report("p", json!({"phase": "Failed"})).await;
    let asked = tokio::time::Instant::now();
    assert!(let_go(&f, "next").await > first);
    assert!(asked.elapsed() < SOON, "it took {:?}", asked.elapsed());
    runs(&f, "next").await;
    f.delete::<PodDisruptionBudget>(APP).await;
    is_stopped(&f, "next").await;
    let_go(&f, "last").await;
}

#[tokio::test]
async fn a_quota_counts_a_pod_that_waits() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "2"}}});
    apply(&f, &quota).await;
    let counts = |used: &'static str| {
        move |quota: &ResourceQuota| {
            let status = quota.status.as_ref().and_then(|status| status.used.as_ref());
            status.and_then(|of| of.get("pods")).is_some_and(|pods| pods.0 == used)
        }
    };
    f.test.until::<ResourceQuota>("q", "is counted", LIMIT, counts("0")).await;
    f.pods().gated("holds", "a", &[GATE], json!({})).await;
    runs(&f, "holds").await;
    let waits = f.pods().gated("waits", "a", &[GATE], json!({})).await;
    queues(&f, &waits).await;
    f.test.until::<ResourceQuota>("q", "counts both", LIMIT, counts("2")).await;
    let refused = f.test.kubectl("run third --image=none").await.expect_err("there is no room for a third");
    assert!(refused.contains("exceeded quota"), "{refused}");
}
