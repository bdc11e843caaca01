//! Pods that wait for locks by a label and a gate. The test plays scheduler and kubelet.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use leasehold::api::condition::{reasons, types};
use leasehold::api::{DistributedLock, LockClaim};
use serde_json::{Value, json};

use super::fixture::{Fixture, Site, a_while, claim_condition};
use crate::support::{LIMIT, wait_for};

pub(crate) const GATE: &str = "leasehold.dev/lock";
const TOKEN: &str = "leasehold.dev/fencing-token";

fn gates(pod: &Pod) -> Vec<&str> {
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_deref()).unwrap_or_default();
    gates.iter().map(|gate| gate.name.as_str()).collect()
}

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

pub(crate) fn claim_of(pod: &Pod) -> String {
    format!("pod-{}", pod.uid().expect("a UID"))
}

/// Waits until the pod has been let go, and returns its token.
pub(crate) async fn let_go(f: &Site, name: &str) -> i64 {
    let pod = f.test.until::<Pod>(name, "is let go", LIMIT, |pod| gates(pod).is_empty()).await;
    let token = pod.annotations().get(TOKEN).expect("it has its token in the same write");
    token.parse().expect("a number")
}

async fn is_gated(f: &Site, name: &str) -> bool {
    let pod = f.pods().api().get(name).await.expect("it is there");
    gates(&pod).contains(&GATE) && !pod.annotations().contains_key(TOKEN)
}

/// Waits until the claim of a pod stands in the queue.
pub(crate) async fn queues(f: &Site, pod: &Pod) {
    let claim = claim_of(pod);
    wait_for("its claim is made", LIMIT, async || f.test.api::<LockClaim>().get_opt(&claim).await.ok().flatten()).await;
    f.claim_reason(&claim, types::HELD, reasons::WAITING).await;
}

pub(crate) async fn says(f: &Site, name: &str, reason: &str) -> PodCondition {
    let is = |pod: &Pod| condition(pod, types::LOCK_HELD).is_some_and(|said| said.reason.as_deref() == Some(reason));
    let pod = f.test.until::<Pod>(name, reason, LIMIT, is).await;
    condition(&pod, types::LOCK_HELD).expect("it says so").clone()
}

pub(crate) async fn fails(f: &Site, name: &str) -> Pod {
    let failed = |pod: &Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Failed"));
    f.test.until::<Pod>(name, "has failed", LIMIT, failed).await
}

pub(crate) async fn merge(f: &Site, name: &str, patch: Value) {
    f.pods().api().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("patched");
}

#[tokio::test]
async fn gated_pods_take_turns_and_each_gets_its_token() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.pods().gated("one", "a", &[GATE], json!({})).await;
    let first = let_go(&f, "one").await;
    let one = f.pods().start("one", f.test.name()).await;
    assert_eq!(one.annotations()["fencing-token.leasehold.dev/a"], first.to_string());
    let two = f.pods().gated("two", "a", &[GATE], json!({})).await;
    queues(&f, &two).await;
    let lock =
        f.lock_is("a", "names its holder", |lock| lock.status.as_ref().is_some_and(|s| s.holder.is_some())).await;
    assert_eq!(lock.status.unwrap().holder.as_deref(), Some("pod/one"));
    a_while().await;
    assert!(is_gated(&f, "two").await, "one holds while it runs");

    f.pods().report("one", json!({"phase": "Succeeded"})).await;
    assert!(let_go(&f, "two").await > first);
    f.test.gone::<LockClaim>(&claim_of(&one), LIMIT).await;
    let note = f.event("two", "LockAcquired").await;
    assert!(note.contains("holds a with token"), "{note}");
}

#[tokio::test]
async fn a_claim_is_made_once_ours_is_the_last_gate() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let pod = f.pods().gated("p", "a", &["quota", GATE], json!({})).await;
    a_while().await;
    assert!(f.test.api::<LockClaim>().get_opt(&claim_of(&pod)).await.expect("an answer").is_none());
    merge(&f, "p", json!({"spec": {"schedulingGates": [{ "name": GATE }]}})).await;
    let_go(&f, "p").await;
}

#[tokio::test]
async fn the_label_may_change_while_the_gate_is_there() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.ready_lock("b", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let pod = f.pods().gated("p", "a", &[GATE], json!({})).await;
    queues(&f, &pod).await;
    merge(&f, "p", json!({"metadata": {"labels": { GATE: "b" }}})).await;
    let token = let_go(&f, "p").await;
    let claim = f.claim_is(&claim_of(&pod), "holds", |claim| claim_condition(claim, types::HELD)).await;
    assert_eq!((claim.lock_names(), claim.status.unwrap().fencing_token), ("b".into(), Some(token)));
    f.lock_is("a", "has no waiter", |lock| lock.status.as_ref().is_some_and(|s| s.waiters == 0)).await;
}

#[tokio::test]
async fn one_that_waits_for_several_locks_gets_the_token_of_each() {
    let f = Fixture::new().await;
    for lock in ["a", "b", "c"] {
        f.ready_lock(lock, |spec| spec.permits = 2).await;
    }
    f.claim("mine", "b", |spec| spec.locks[0].permits = Some(1)).await;
    f.token_of("mine").await;
    let pod = f.pods().gated("p", "c", &[GATE], json!({"leasehold.dev/locks": "c,a:shared,b=2"})).await;
    queues(&f, &pod).await;
    a_while().await;
    assert!(is_gated(&f, "p").await, "one permit of b is missing");
    f.delete::<LockClaim>("mine").await;
    let token = let_go(&f, "p").await;
    let pod = f.pods().api().get("p").await.expect("it is there");
    let of = |lock: &str| {
        pod.annotations()[&format!("fencing-token.leasehold.dev/{lock}")].parse::<i64>().expect("a number")
    };
    assert_eq!(of("c"), token);
    let claim = f.claim_is(&claim_of(&pod), "holds", |claim| claim_condition(claim, types::HELD)).await;
    for claimed in claim.status.expect("a status").locks {
        assert_eq!(of(&claimed.name), claimed.fencing_token, "{}", claimed.name);
    }
}

#[tokio::test]
async fn one_that_is_deleted_while_it_waits_leaves_the_queue() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let gone = f.pods().gated("gone", "a", &[GATE], json!({})).await;
    queues(&f, &gone).await;
    let next = f.pods().gated("next", "a", &[GATE], json!({})).await;
    queues(&f, &next).await;
    f.pods().delete_by_force(&gone).await;
    f.delete::<LockClaim>("mine").await;
    let_go(&f, "next").await;
}

#[tokio::test]
async fn a_lock_that_is_missing_is_said_until_it_is_there() {
    let f = Fixture::new().await;
    f.pods().gated("p", "later", &[GATE], json!({})).await;
    let said = says(&f, "p", reasons::LOCK_NOT_FOUND).await;
    assert!(said.status == "False" && said.message.unwrap().contains("create it"));
    let note = f.event("p", reasons::LOCK_NOT_FOUND).await;
    assert!(note.contains("later"), "{note}");
    f.ready_lock("later", |_| {}).await;
    let_go(&f, "p").await;
    assert_eq!(says(&f, "p", reasons::HELD).await.status, "True");
}

#[tokio::test]
async fn bad_annotations_are_said_and_mended_in_place() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.pods().gated("p", "a", &[GATE], json!({"leasehold.dev/locks": "a=0"})).await;
    let said = says(&f, "p", reasons::INVALID_LOCKS).await;
    assert!(said.message.unwrap().contains("no number of permits"));
    merge(&f, "p", json!({"metadata": {"annotations": {"leasehold.dev/locks": null}}})).await;
    let_go(&f, "p").await;
}

#[tokio::test]
async fn one_that_waited_for_too_long_fails_and_a_podfailurepolicy_can_tell() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    for (name, limit, reason) in [("at-once", "0", reasons::BUSY), ("soon", "1", reasons::WAIT_TIMEOUT)] {
        f.pods().gated(name, "a", &[GATE], json!({"leasehold.dev/wait-timeout-seconds": limit})).await;
        let pod = fails(&f, name).await;
        assert_eq!(pod.status.as_ref().unwrap().reason.as_deref(), Some(types::LOCK_NOT_ACQUIRED));
        let condition = condition(&pod, types::LOCK_NOT_ACQUIRED).expect("a condition");
        assert_eq!((condition.status.as_str(), condition.reason.as_deref()), ("True", Some(reason)));
        assert_eq!(gates(&pod), [GATE], "it never left the gate");
        f.test.gone::<LockClaim>(&claim_of(&pod), LIMIT).await;
        f.event(name, types::LOCK_NOT_ACQUIRED).await;
    }
}

#[tokio::test]
async fn one_that_holds_and_does_not_start_is_deleted_when_it_says_so() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.pods().gated("stuck", "a", &[GATE], json!({"leasehold.dev/start-timeout-seconds": "1"})).await;
    let first = let_go(&f, "stuck").await;
    f.pods().gated("next", "a", &[GATE], json!({})).await;
    f.test.gone::<Pod>("stuck", LIMIT).await;
    assert!(let_go(&f, "next").await > first);
    let note = f.event("stuck", reasons::HOLDER_NOT_STARTED).await;
    assert!(note.contains("within 1 s"), "{note}");
}

#[tokio::test]
async fn a_labelled_pod_that_nobody_has_gated_is_told_of() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.pods().gated("free", "a", &[], json!({})).await;
    let note = f.event("free", reasons::UNGATED).await;
    assert!(note.contains("runs without its lock"), "{note}");
    let counted = async || {
        f.controller.get("/metrics").await.filter(|(_, text)| text.contains("\nleasehold_pods_ungated_total 1\n"))
    };
    wait_for("the metric counts it", LIMIT, counted).await;
    f.test
        .until::<DistributedLock>("a", "is free", LIMIT, |lock| {
            lock.status.as_ref().is_some_and(|s| s.holder.is_none())
        })
        .await;
}

#[tokio::test]
async fn a_claim_that_somebody_deletes_is_made_again() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let pod = f.pods().gated("p", "a", &[GATE], json!({})).await;
    queues(&f, &pod).await;
    let before = f.test.api::<LockClaim>().get(&claim_of(&pod)).await.expect("it is there").uid();
    f.delete::<LockClaim>(&claim_of(&pod)).await;
    let another = async || {
        let claim = f.test.api::<LockClaim>().get_opt(&claim_of(&pod)).await.ok()??;
        (claim.uid() != before).then_some(claim)
    };
    wait_for("another claim is made", LIMIT, another).await;
    f.delete::<LockClaim>("mine").await;
    let token = let_go(&f, "p").await;
    f.lock_is("a", "is held with the pod's token", |lock| {
        lock.status.as_ref().is_some_and(|s| s.fencing_token == Some(token))
    })
    .await;
}
