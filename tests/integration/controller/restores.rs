//! etcd is put back to an older copy beside a Redis that goes on.

use kube::api::{Patch, PatchParams};
use leasehold::api::condition::{self, reasons, types};
use leasehold::api::{CONFIRM_ETCD_RESTORE, Condition, DistributedLock, LockClaim, LockStore};
use serde_json::json;

use super::fixture::{Fixture, a_while, claim_condition, is_ready};
use super::force_release::{force, guarded, is_done};
use crate::support::{ControllerOptions, LIMIT, RedisServer, Scratch, TestNamespace, wait_for};

/// Longer than a control plane takes to start again.
const PATIENT: (u16, u16, f64) = (60, 50, 0.5);

async fn fixture(change: impl FnOnce(&mut ControllerOptions)) -> Fixture {
    Fixture::on(TestNamespace::alone().await, RedisServer::start().await, change).await
}

async fn restored(f: &Fixture, status: bool) -> Condition {
    let condition = |store: &LockStore| {
        let status = store.status.clone()?;
        condition::get(&status.conditions, types::ETCD_RESTORED).cloned()
    };
    let is = |store: &LockStore| is_ready(store) && condition(store).is_some_and(|c| c.status == status.into());
    let store = f.store_is(&format!("has EtcdRestored={status}"), is).await;
    condition(&store).expect("it has")
}

/// What etcd has now; the controller begins a reign after it.
async fn copy_of_now(f: &mut Fixture) -> Scratch {
    f.controller.stop();
    let copy = f.test.plane().save_etcd().await;
    f.controller.restart().await;
    copy
}

/// etcd as it was when `forgotten` had not yet been granted the lock; the controller sees that it has gone back.
async fn goes_back(f: &mut Fixture, copy: &Scratch, forgotten: &str) -> Condition {
    f.controller.kill();
    put_back(f, copy, forgotten).await;
    f.controller.restart().await;
    restored(f, true).await
}

async fn put_back(f: &Fixture, copy: &Scratch, forgotten: &str) {
    f.test.plane().put_etcd_back(copy).await;
    let known = f.test.api::<LockClaim>().get_opt(forgotten).await.expect("an answer");
    assert!(known.is_none(), "etcd has forgotten {forgotten}");
}

#[tokio::test]
async fn a_hold_that_etcd_has_forgotten_is_kept_until_a_person_confirms() {
    let mut f = fixture(|_| {}).await;
    f.ready_lock("a", |_| {}).await;
    let copy = copy_of_now(&mut f).await;
    f.claim("since", "a", |_| {}).await;
    let since = f.token_of("since").await;
    let condition = goes_back(&mut f, &copy, "since").await;
    let told = f.event(&f.store_name(), reasons::ETCD_WENT_BACK).await;
    assert!(told.contains("older copy"), "{told}");
    f.claim("next", "a", |_| {}).await;
    f.has_its_place("next").await;
    assert!(is_held_with(&f, since).await, "what etcd has forgotten is held");
    // Another reign, another Redis process with the same data: still in doubt.
    f.redis.send::<String>("SAVE").await;
    f.redis.kill();
    f.redis.restart().await;
    f.controller.kill();
    f.controller.restart().await;
    restored(&f, true).await;
    a_while().await;
    assert!(is_held_with(&f, since).await, "what etcd has forgotten is held");

    confirm(&f, "2020-01-01T00:00:00Z").await;
    a_while().await;
    assert!(is_held_with(&f, since).await, "that was another restore");
    let line = condition.message.rsplit_once(&format!("{CONFIRM_ETCD_RESTORE}=")).expect("a command");
    confirm(&f, line.1).await;
    let next = f.token_of("next").await;
    assert!(next > since, "{next} after {since}");
    assert_eq!(restored(&f, false).await.reason, reasons::CONFIRMED);
}

#[tokio::test]
async fn a_hold_that_etcd_has_forgotten_is_taken_by_force() {
    let mut f = fixture(|_| {}).await;
    f.ready_lock("a", |spec| spec.permits = 2).await;
    let copy = copy_of_now(&mut f).await;
    f.claim("since", "a", |_| {}).await;
    f.claim("also", "a", |_| {}).await;
    let (since, also) = (f.token_of("since").await, f.token_of("also").await);
    goes_back(&mut f, &copy, "since").await;
    guarded(&f).await;
    f.claim("next", "a", |_| {}).await;
    f.has_its_place("next").await;
    force(&f, "a", since).await;
    assert!(f.token_of("next").await > also);
    is_done(&f, "a").await;
    assert!(is_held_with(&f, also).await, "only that one was taken");
    restored(&f, true).await;
}

async fn is_held_with(f: &Fixture, token: i64) -> bool {
    let record = f.workload().inspect(&f.key("a")).await.expect("an answer").expect("a record");
    record.holds.iter().any(|hold| hold.token.get() == token)
}

async fn confirm(f: &Fixture, which: &str) {
    let annotation = Patch::Merge(json!({"metadata": {"annotations": { CONFIRM_ETCD_RESTORE: which }}}));
    f.stores().patch(&f.store_name(), &PatchParams::default(), &annotation).await.expect("patched");
}

#[tokio::test]
async fn a_hold_that_etcd_has_again_is_put_back() {
    let mut f = fixture(|_| {}).await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 2).await;
    f.claim("before", "a", |_| {}).await;
    let before = f.token_of("before").await;
    let copy = copy_of_now(&mut f).await;
    f.delete::<LockClaim>("before").await;
    f.test.gone::<LockClaim>("before", LIMIT).await;
    f.claim("since", "a", |_| {}).await;
    let since = f.token_of("since").await;
    f.delete::<LockClaim>("since").await;
    f.test.gone::<LockClaim>("since", LIMIT).await;
    goes_back(&mut f, &copy, "since").await;
    wait_for("it is put back", LIMIT, async || is_held_with(&f, before).await.then_some(())).await;
    f.claim("next", "a", |_| {}).await;
    f.has_its_place("next").await;
    f.claim_is("before", "holds", |claim| claim_condition(claim, types::HELD)).await;
    f.delete::<LockClaim>("before").await;
    let next = f.token_of("next").await;
    assert!(next > since, "{next} after {since}");
}

#[tokio::test]
async fn a_lock_that_was_made_and_deleted_since_the_copy_goes_on_above_its_tokens() {
    let mut f = fixture(|_| {}).await;
    f.ready_lock("a", |_| {}).await;
    let copy = copy_of_now(&mut f).await;
    f.ready_lock("b", |_| {}).await;
    f.claim("since", "b", |_| {}).await;
    let since = f.token_of("since").await;
    f.delete::<LockClaim>("since").await;
    f.delete::<DistributedLock>("b").await;
    f.test.gone::<DistributedLock>("b", LIMIT).await;
    goes_back(&mut f, &copy, "since").await;
    f.ready_lock("b", |_| {}).await;
    f.claim("next", "b", |_| {}).await;
    let next = f.token_of("next").await;
    assert!(next > since, "{next} after {since}");
}

#[tokio::test]
async fn a_leader_that_lives_through_it_reads_all_anew() {
    let mut f = fixture(|options| options.election = Some(PATIENT)).await;
    f.ready_lock("a", |_| {}).await;
    let copy = f.test.plane().save_etcd().await;
    f.claim("since", "a", |_| {}).await;
    let since = f.token_of("since").await;
    // No other reign shows it here: the mark does.
    f.store_is("has told Redis of it", |store| store.status.as_ref().is_some_and(|s| s.mark.is_some())).await;
    a_while().await;
    put_back(&f, &copy, "since").await;
    let ended = async || f.controller.process().exit_status();
    wait_for("the controller ends", LIMIT, ended).await;
    assert!(f.controller.logs().contains("older copy"));
    f.controller.restart().await;
    restored(&f, true).await;
    assert!(is_held_with(&f, since).await, "what etcd has forgotten is held");
}
