//! Claims that hold for a pod: until it has ended, and not a moment less.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use leasehold::api::LockClaim;
use leasehold::api::condition::{reasons, types};
use serde_json::json;

use super::fixture::{Fixture, a_while, claim_condition, holder};
use crate::support::{LIMIT, containers_terminated};

/// A pod that is gone without a word is believed to have ended after 30 s.
const SETTLED: Duration = Duration::from_secs(50);

#[tokio::test]
async fn a_claim_loses_its_hold_when_the_containers_of_its_pod_have_terminated() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let pod = f.pods().run("worker", "Never", Some("node")).await;
    f.claim("worker", "a", |spec| spec.holder_ref = Some(holder(&pod))).await;
    let first = f.token_of("worker").await;
    f.lock_is("a", "is held by the pod", |lock| {
        lock.status.as_ref().is_some_and(|status| {
            status.holder.as_deref() == Some("pod/worker") && status.holders[0].pod_uid == pod.metadata.uid
        })
    })
    .await;
    f.claim("next", "a", |_| {}).await;
    f.claim_reason("next", types::HELD, reasons::WAITING).await;
    f.pods().report("worker", containers_terminated(1)).await;
    assert!(f.token_of("next").await > first);
    f.claim_reason("worker", types::FINISHED, reasons::RELEASED).await;
}

#[tokio::test]
async fn a_container_that_restarts_in_place_has_not_ended() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let pod = f.pods().run("worker", "Always", Some("node")).await;
    f.claim("worker", "a", |spec| spec.holder_ref = Some(holder(&pod))).await;
    f.token_of("worker").await;
    f.pods().report("worker", containers_terminated(1)).await;
    a_while().await;
    f.claim_is("worker", "still holds", |claim| claim_condition(claim, types::HELD)).await;
}

#[tokio::test]
async fn a_claim_for_a_pod_that_has_ended_or_never_was_ends() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let pod = f.pods().run("done", "Never", Some("node")).await;
    f.pods().report("done", json!({"phase": "Succeeded"})).await;
    f.claim("late", "a", |spec| spec.holder_ref = Some(holder(&pod))).await;
    f.claim_reason("late", types::FINISHED, reasons::HOLDER_ENDED).await;
    let mut nobody = holder(&pod);
    nobody.name = "nobody".into();
    f.claim("nobody", "a", |spec| spec.holder_ref = Some(nobody)).await;
    f.claim_reason("nobody", types::FINISHED, reasons::HOLDER_ENDED).await;
}

#[tokio::test]
async fn a_new_pod_of_the_same_name_is_not_the_holder() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let old = f.pods().run("worker", "Always", None).await;
    f.claim("old", "a", |spec| spec.holder_ref = Some(holder(&old))).await;
    let first = f.token_of("old").await;
    f.pods().delete_by_force(&old).await;
    let new = f.pods().run("worker", "Always", Some("node")).await;
    assert_ne!(old.metadata.uid, new.metadata.uid);
    f.claim_reason("old", types::FINISHED, reasons::RELEASED).await;
    f.claim("new", "a", |spec| spec.holder_ref = Some(holder(&new))).await;
    assert!(f.token_of("new").await > first);
}

#[tokio::test]
async fn deleting_the_claim_of_a_running_pod_takes_nothing_from_it() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let pod = f.pods().run("worker", "Always", Some("node")).await;
    f.claim("worker", "a", |spec| spec.holder_ref = Some(holder(&pod))).await;
    f.token_of("worker").await;
    f.delete::<LockClaim>("worker").await;
    f.claim("next", "a", |_| {}).await;
    f.claim_reason("next", types::HELD, reasons::WAITING).await;
    a_while().await;
    f.claim_is("worker", "still holds", |claim| {
        claim.metadata.deletion_timestamp.is_some() && claim_condition(claim, types::HELD)
    })
    .await;
    f.claim_reason("next", types::HELD, reasons::WAITING).await;
    f.pods().report("worker", json!({"phase": "Failed"})).await;
    f.token_of("next").await;
    f.test.gone::<LockClaim>("worker", LIMIT).await;
}

#[tokio::test]
async fn a_pod_deleted_by_force_is_believed_to_have_ended_later_where_its_node_is_ready() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.pods().node(f.test.name(), true).await;
    let pod = f.pods().run("worker", "Always", Some(f.test.name())).await;
    f.claim("worker", "a", |spec| spec.holder_ref = Some(holder(&pod))).await;
    f.token_of("worker").await;
    f.pods().delete_by_force(&pod).await;
    a_while().await;
    f.claim_is("worker", "still holds", |claim| claim_condition(claim, types::HELD)).await;
    f.test.until::<LockClaim>("worker", "has ended", SETTLED, |claim| claim_condition(claim, types::FINISHED)).await;
}

#[tokio::test]
async fn a_pod_that_holds_too_long_is_evicted_and_holds_until_it_has_ended() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let pod = f.pods().run("worker", "Always", Some("node")).await;
    // It takes its time to end.
    let stays = json!({"metadata": {"finalizers": ["leasehold.dev/test"]}});
    f.pods().api().patch("worker", &PatchParams::default(), &Patch::Merge(stays)).await.unwrap();
    f.claim("worker", "a", |spec| {
        spec.holder_ref = Some(holder(&pod));
        spec.max_hold_seconds = Some(1);
    })
    .await;
    f.token_of("worker").await;
    let evicted = f.claim_reason("worker", types::HELD, reasons::MAX_HOLD_EXCEEDED).await;
    assert!(claim_condition(&evicted, types::HELD), "it holds while its pod is there");
    let pod = f.pods().api().get("worker").await.unwrap();
    assert!(pod.metadata.deletion_timestamp.is_some(), "it was not evicted");
    f.pods().report("worker", json!({"phase": "Failed"})).await;
    f.claim_is("worker", "has ended", |claim| claim_condition(claim, types::FINISHED)).await;
    let goes = json!({"metadata": {"finalizers": null}});
    f.pods().api().patch("worker", &PatchParams::default(), &Patch::Merge(goes)).await.unwrap();
}
