//! What holders go through, and what is done to their locks.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use leasehold::api::{DistributedLock, LockClaim, LockClaimSpec};
use serde_json::json;

use super::super::arena::{MUTEX, SEMAPHORE};
use super::super::stage::{LEASE, PERMITS, Stage};
use super::super::watches::Claim;
use crate::support::history::{Event, Stage as Progress, boottime, lost_updates};
use crate::support::{LIMIT, wait_for};

/// The positive control: what the lock is for is lost where nobody looks at the token.
pub(super) async fn paused(stage: &mut Stage) -> String {
    let lost = async || {
        let history = stage.recorder.history();
        let lost = lost_updates(&history);
        let unfenced = lost.iter().filter(|(entry, _)| matches!(entry.event, Event::Used { fenced: false, .. }));
        Some(unfenced.count()).filter(|count| *count > 0)
    };
    let lost = wait_for("the counter that refuses nothing loses an update", 2 * LIMIT, lost).await;
    format!("{lost} updates of the unfenced counter lost")
}

/// Waits until a pod of a claim is as it should be, and returns its name.
async fn pod_is(stage: &Stage, what: &str, is: impl Fn(&Pod) -> bool) -> String {
    let pods = stage.f.pods();
    let ask = async || {
        let pods = pods.api().list(&Default::default()).await.ok()?.items;
        pods.iter().find(|pod| pod.name_any().starts_with("claim-") && is(pod)).map(ResourceExt::name_any)
    };
    wait_for(&format!("a pod {what}"), LIMIT, ask).await
}

fn life(pod: &Pod) -> Option<String> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()?.container_id.clone()
}

pub(super) async fn container_restarted(stage: &mut Stage) -> String {
    let pod = pod_is(stage, "has its second container", |pod| life(pod).is_some_and(|id| id.ends_with("//2"))).await;
    let stage_of = |name: &str| stage.arena.seen.claims.borrow().get(name).map(|claim| claim.stage);
    let claim = stage_of(&pod);
    assert!(claim.is_none_or(|stage| stage != Progress::Waiting), "it lost its hold: {claim:?}");
    format!("the container of {pod} restarted, its claim is {claim:?}")
}

pub(super) async fn pod_deleted_by_force(stage: &mut Stage) -> String {
    let (pods, claims) = (stage.f.pods(), &stage.arena.seen.claims);
    let gone = async || {
        let there = pods.api().list(&Default::default()).await.ok()?.items;
        let told = |(name, claim): &(&String, &Claim)| name.starts_with("claim-1-") && claim.stage == Progress::Told;
        let told = claims.borrow().iter().filter(told).map(|(name, _)| name.clone()).collect::<Vec<_>>();
        told.into_iter().find(|name| there.iter().all(|pod| pod.name_any() != *name))
    };
    let pod = wait_for("the pod of a claim that holds is gone", LIMIT, gone).await;
    let since = tokio::time::Instant::now();
    let finished = async || {
        let claim = stage.arena.seen.claims.borrow().get(&pod).map(|claim| claim.stage);
        (claim != Some(Progress::Told)).then_some(())
    };
    wait_for("its claim ends", 3 * LIMIT, finished).await;
    let held = since.elapsed();
    assert!(held > Duration::from_secs(20), "it lost its hold after {held:?}, and may be running");
    format!("{pod} gone without a word, its claim held for {held:.0?}")
}

/// Claims go in the very moment in which they are granted and not yet told.
pub(super) async fn claim_deleted_when_granted(stage: &mut Stage) -> String {
    let mut deleted = 0;
    // The step from the grant to the word is by way of Redis.
    stage.proxy.delay_replies(Duration::from_millis(60));
    for number in 0..8 {
        let name = format!("gone-{number}");
        stage.f.claim(&name, SEMAPHORE, |_: &mut LockClaimSpec| {}).await;
        let mut claims = stage.arena.seen.claims.clone();
        let granted =
            claims.wait_for(|claims| claims.get(&name).is_some_and(|claim| !matches!(claim.stage, Progress::Waiting)));
        let at = tokio::time::timeout(LIMIT, granted).await.expect("it is granted in time").expect("it is watched")
            [&name]
            .stage;
        stage.f.delete::<LockClaim>(&name).await;
        deleted += u32::from(at == Progress::Granted);
    }
    stage.proxy.delay_replies(Duration::ZERO);
    assert!(deleted > 0, "none was deleted in time");
    format!("{deleted} of 8 claims deleted when granted and not told")
}

pub(super) async fn lock_recreated(stage: &mut Stage) -> String {
    let before = stage.lock(MUTEX).await.and_then(|lock| lock.uid()).expect("a UID");
    stage.f.delete::<DistributedLock>(MUTEX).await;
    stage.f.test.gone::<DistributedLock>(MUTEX, 2 * LIMIT).await;
    stage.declare_lock(MUTEX, 1, false).await;
    let after = stage.lock(MUTEX).await.and_then(|lock| lock.uid()).expect("a UID");
    assert_ne!(before, after, "it is the same lock");
    format!("UID {before:.8} then {after:.8}")
}

pub(super) async fn permits_lowered(stage: &mut Stage) -> String {
    for permits in [PERMITS - 1, PERMITS] {
        let sent = boottime();
        stage.f.change::<DistributedLock>(SEMAPHORE, json!({ "permits": permits })).await;
        stage.note_configuration(SEMAPHORE, sent, |record| record.permits == permits.unsigned_abs()).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    format!("the record had {} permits, then {PERMITS}", PERMITS - 1)
}

pub(super) async fn lease_shortened(stage: &mut Stage) -> String {
    for lease in [LEASE - 1, LEASE] {
        let sent = boottime();
        stage.f.change::<DistributedLock>(MUTEX, json!({ "leaseDurationSeconds": lease })).await;
        stage.note_configuration(MUTEX, sent, |record| record.lease == i64::from(lease) * 1000).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    format!("the record had leases of {} s, then {LEASE} s", LEASE - 1)
}
