//! A person takes a hold by force: from a claim, an elected leader or a direct holder, and never another one.

use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use leasehold::api::condition::{self, reasons, types};
use leasehold::api::force_release::{FORCE_RELEASE, FORCE_RELEASE_BY, FORCE_RELEASE_REASON};
use leasehold::api::{DistributedLock, LockClaim};
use leasehold::lease::{Acquired, Grant, Renewed, Wait};
use serde_json::{Value, json};

use super::elections::{Stage, among};
use super::fixture::{Fixture, a_while, claim_condition, holder, request};
use super::several;
use crate::policies::{allow, apply_force_release};
use crate::support::LIMIT;

const LOCKS: &str = "distributedlocks.leasehold.dev";
const ANN: &str = "ann";

/// A controller in a namespace where the policy is in force, and Ann may force-release.
pub(super) async fn guarded(f: &Fixture) {
    apply_force_release(&f.test).await;
    allow(&f.test, ANN, &[("get,update,patch,forcerelease", LOCKS)]).await;
}

/// What the README says that Ann should type.
pub(super) async fn force(f: &Fixture, lock: &str, token: i64) {
    let words =
        format!("--as={ANN} annotate dlock {lock} {FORCE_RELEASE}={token} {FORCE_RELEASE_REASON}=stuck --overwrite");
    f.test.kubectl(&words).await.expect("she has the verb");
}

/// Waits until the controller has taken the annotations off.
pub(super) async fn is_done(f: &Fixture, lock: &str) {
    let bare = |lock: &DistributedLock| !lock.annotations().keys().any(|key| key.starts_with(FORCE_RELEASE));
    f.lock_is(lock, "has no force-release any more", bare).await;
}

/// Waits until a claim has ended, because its hold was taken.
async fn is_taken(f: &Fixture, claim: &str) {
    let taken = |claim: &LockClaim| {
        let conditions = claim.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let why = condition::get(conditions, types::FINISHED).map(|finished| finished.reason.as_str());
        let over = claim_condition(claim, types::FINISHED) && !claim_condition(claim, types::HELD);
        over && why == Some(reasons::FORCE_RELEASED)
    };
    f.claim_is(claim, "has ended as ForceReleased", taken).await;
}

/// There is one Event of it, with who and why.
async fn is_recorded(f: &Fixture, lock: &str, token: i64) {
    let note = f.event(lock, reasons::FORCE_RELEASED).await;
    for part in [ANN, "stuck", &token.to_string()] {
        assert!(note.contains(part), "{part} is not in: {note}");
    }
    assert_eq!(f.events(lock, reasons::FORCE_RELEASED).await.len(), 1);
}

async fn annotate(f: &Fixture, lock: &str, annotations: Value) {
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    f.test.api::<DistributedLock>().patch(lock, &PatchParams::default(), &patch).await.expect("it is accepted");
}

async fn direct(f: &Fixture, lock: &str, id: &str) -> Grant {
    match f.workload().acquire(&f.key(lock), &request(id, Wait::No)).await.expect("an answer") {
        Acquired::Granted(grant) => grant,
        answer => panic!("not granted: {answer:?}"),
    }
}

async fn renew(f: &Fixture, lock: &str, id: &str) -> Renewed {
    let id = request(id, Wait::No).id;
    f.workload().renew(&[(f.key(lock), id)]).await.expect("an answer").remove(0)
}

#[tokio::test]
async fn the_hold_of_a_claim_is_taken_though_its_pod_lives() {
    let f = Fixture::new().await;
    guarded(&f).await;
    f.ready_lock("a", |_| {}).await;
    f.pods().node(f.test.name(), true).await;
    let pod = f.pods().run("worker", "Always", Some(f.test.name())).await;
    f.claim("worker", "a", |spec| spec.holder_ref = Some(holder(&pod))).await;
    let first = f.token_of("worker").await;
    f.claim("next", "a", |_| {}).await;
    f.has_its_place("next").await;
    force(&f, "a", first).await;
    is_taken(&f, "worker").await;
    assert!(f.token_of("next").await > first);
    is_done(&f, "a").await;
    is_recorded(&f, "a", first).await;
    assert!(f.event("worker", reasons::FORCE_RELEASED).await.contains(ANN));
    f.pods().api().get("worker").await.expect("the pod lives");
}

#[tokio::test]
async fn a_direct_hold_is_taken_and_its_holder_is_told_at_its_next_renewal() {
    let f = Fixture::new().await;
    guarded(&f).await;
    // Longer than anybody waits for it to end by itself.
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 600).await;
    let grant = direct(&f, "a", "one").await;
    assert!(matches!(renew(&f, "a", "one").await, Renewed::Held(_)));
    force(&f, "a", grant.token.get()).await;
    is_done(&f, "a").await;
    assert_eq!(renew(&f, "a", "one").await, Renewed::Lost);
    assert!(direct(&f, "a", "two").await.token > grant.token);
    is_recorded(&f, "a", grant.token.get()).await;
}

#[tokio::test]
async fn a_leader_is_unmarked_before_another_one_leads() {
    let stage = Stage::apart().await;
    guarded(&stage.f).await;
    stage.f.ready_lock("l", among("app")).await;
    let (first, token) = stage.leader(0).await;
    stage.holder_is("l", &first, token).await;
    force(&stage.f, "l", token).await;
    let (second, higher) = stage.leader(token).await;
    assert_ne!(first, second);
    stage.holder_is("l", &second, higher).await;
    is_done(&stage.f, "l").await;
    is_recorded(&stage.f, "l", token).await;
}

#[tokio::test]
async fn one_hold_of_several_is_taken_and_an_old_token_takes_none() {
    let f = Fixture::new().await;
    guarded(&f).await;
    f.ready_lock("a", |spec| spec.permits = 2).await;
    f.claim("one", "a", |_| {}).await;
    let one = f.token_of("one").await;
    f.claim("two", "a", |_| {}).await;
    let two = f.token_of("two").await;
    force(&f, "a", one).await;
    is_taken(&f, "one").await;
    is_done(&f, "a").await;
    f.claim("three", "a", |_| {}).await;
    f.token_of("three").await;
    force(&f, "a", one).await;
    is_done(&f, "a").await;
    assert!(f.event("a", reasons::NOTHING_TO_RELEASE).await.contains(&one.to_string()));
    a_while().await;
    for claim in ["two", "three"] {
        f.claim_is(claim, "still holds", |claim| claim_condition(claim, types::HELD)).await;
    }
    assert_eq!(f.token_of("two").await, two);
    is_recorded(&f, "a", one).await;
}

/// All or nothing: a claim isn't left with two of its three locks.
#[tokio::test]
async fn a_claim_of_several_locks_loses_all_when_one_is_taken() {
    let f = Fixture::new().await;
    guarded(&f).await;
    for lock in ["a", "b", "c"] {
        f.ready_lock(lock, |_| {}).await;
    }
    several::claim(&f, "all", &["c", "a", "b"]).await;
    let tokens = several::tokens(&f, "all").await;
    for lock in ["a", "b", "c"] {
        f.claim(lock, lock, |_| {}).await;
        f.has_its_place(lock).await;
    }
    force(&f, "b", tokens[2]).await;
    is_taken(&f, "all").await;
    for (lock, before) in ["c", "a", "b"].into_iter().zip(&tokens) {
        assert!(f.token_of(lock).await > *before);
    }
    is_done(&f, "b").await;
    is_recorded(&f, "b", tokens[2]).await;
    for lock in ["a", "c"] {
        assert!(f.events(lock, reasons::FORCE_RELEASED).await.is_empty(), "nobody has asked for {lock}");
    }
}

/// What a claim has of some of its locks while it waits for another can be taken too: it begins anew.
#[tokio::test]
async fn one_that_waits_for_its_second_lock_and_loses_its_first_asks_for_both_again() {
    let f = Fixture::new().await;
    guarded(&f).await;
    for lock in ["a", "b"] {
        f.ready_lock(lock, |_| {}).await;
    }
    f.claim("mine", "b", |_| {}).await;
    f.token_of("mine").await;
    several::claim(&f, "both", &["a", "b"]).await;
    several::waits_at(&f, "both", "b").await;
    f.claim("next", "a", |_| {}).await;
    f.has_its_place("next").await;
    let holds = |lock: &DistributedLock| lock.status.as_ref().is_some_and(|status| !status.holders.is_empty());
    let status = f.lock_is("a", "names who holds it", holds).await.status.expect("a status");
    let first = status.holders[0].fencing_token;
    force(&f, "a", first).await;
    assert!(f.token_of("next").await > first);
    is_done(&f, "a").await;
    several::waits_at(&f, "both", "a").await;
    f.delete::<LockClaim>("mine").await;
    f.delete::<LockClaim>("next").await;
    assert!(several::tokens(&f, "both").await[0] > first);
}

#[tokio::test]
async fn a_lock_that_is_deleted_goes_when_its_last_holder_is_taken() {
    let f = Fixture::new().await;
    guarded(&f).await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    let token = f.token_of("mine").await;
    f.delete::<DistributedLock>("a").await;
    a_while().await;
    force(&f, "a", token).await;
    f.test.gone::<DistributedLock>("a", LIMIT).await;
    is_taken(&f, "mine").await;
}

#[tokio::test]
async fn a_controller_that_starts_goes_on_with_what_was_asked_for() {
    let mut f = Fixture::new().await;
    guarded(&f).await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    let token = f.token_of("mine").await;
    f.controller.kill();
    force(&f, "a", token).await;
    f.controller.restart().await;
    is_taken(&f, "mine").await;
    is_done(&f, "a").await;
}

#[tokio::test]
async fn without_the_policy_nothing_is_taken_also_not_when_it_comes_later() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    let token = f.token_of("mine").await;
    let forged = json!({FORCE_RELEASE: token.to_string(), FORCE_RELEASE_REASON: "mine", FORCE_RELEASE_BY: "root"});
    annotate(&f, "a", forged).await;
    is_done(&f, "a").await;
    let note = f.event("a", reasons::POLICY_MISSING).await;
    assert!(note.contains("force-release.yaml"), "{note}");
    guarded(&f).await;
    a_while().await;
    f.claim_is("mine", "still holds", |claim| claim_condition(claim, types::HELD)).await;
    assert_eq!(f.test.api::<LockClaim>().list(&ListParams::default()).await.unwrap().items.len(), 1);
    force(&f, "a", token).await;
    is_taken(&f, "mine").await;
}

#[tokio::test]
async fn a_policy_that_only_warns_is_none() {
    let f = Fixture::new().await;
    guarded(&f).await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    let token = f.token_of("mine").await;
    let binding = format!("validatingadmissionpolicybinding {}-force-release", f.test.name());
    let warn = r#"{"spec":{"validationActions":["Warn"]}}"#;
    f.test.kubectl(&format!("patch {binding} --type=merge -p {warn}")).await.expect("it only warns");
    let forged = json!({FORCE_RELEASE: token.to_string(), FORCE_RELEASE_BY: "root"});
    let accepted = async || {
        let patch = Patch::Merge(json!({"metadata": {"annotations": forged}}));
        f.test.api::<DistributedLock>().patch("a", &PatchParams::default(), &patch).await.ok()
    };
    crate::support::wait_for("the forged annotations are accepted", LIMIT, accepted).await;
    f.event("a", reasons::POLICY_MISSING).await;
    is_done(&f, "a").await;
    f.claim_is("mine", "still holds", |claim| claim_condition(claim, types::HELD)).await;
}
