//! What a claim needs next. Pure: values in, a decision out.
//!
//! The memory of a claim's walk is its own status, written by compare-and-swap:
//! `Waiting → Granted(id) → Told(id) → Releasing(id) → Finished`.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;

use crate::api::condition::{self, reasons, types};
use crate::api::{ConditionStatus, FINALIZER, LockClaim, LockMode, LockRequest, NodeUnreachablePolicy};
use crate::controller::SOON;
use crate::controller::fate::Fate;
use crate::controller::nodes::Reach;
use crate::lease::{FencingToken, HolderId, Mode};

/// What is said to a claim for a lock with an election.
const ELECTED: &str = "the lock elects its holders among pods; no claim can hold it";

/// How far a claim has come, as its status says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::controller) enum Stage {
    /// In the queue, or before it.
    Waiting,
    /// Redis has granted, etcd knows, nobody is told.
    Granted,
    /// `Held` is true.
    Told,
    /// etcd lets it go; Redis may still hold it.
    Releasing,
    /// Over.
    Finished,
}

/// Reads the stage from the conditions.
pub(in crate::controller) fn stage(claim: &LockClaim) -> Stage {
    let Some(status) = &claim.status else {
        return Stage::Waiting;
    };
    if condition::is_true(&status.conditions, types::FINISHED) {
        return Stage::Finished;
    }
    match condition::get(&status.conditions, types::HELD) {
        Some(held) if held.status == ConditionStatus::True => Stage::Told,
        Some(held) if held.reason == reasons::GRANTED => Stage::Granted,
        Some(held) if held.reason == reasons::RELEASING => Stage::Releasing,
        _ => Stage::Waiting,
    }
}

/// The attempt that waits or holds now, from 1.
pub(super) fn attempt(claim: &LockClaim) -> i32 {
    claim.status.as_ref().and_then(|status| status.attempt).unwrap_or(1)
}

/// The id of an attempt: a restart finds its own.
pub(crate) fn holder_id(claim: &LockClaim) -> Option<HolderId> {
    let recorded = claim.status.as_ref().and_then(|status| status.holder_id.clone());
    let id = recorded.unwrap_or_else(|| format!("{}.{}", claim.uid().unwrap_or_default(), attempt(claim)));
    HolderId::new(id).ok()
}

/// Who holds, as people read it.
pub(super) fn identity(claim: &LockClaim) -> String {
    match &claim.spec.holder_ref {
        Some(holder) => format!("pod/{}", holder.name),
        None => format!("claim/{}", claim.name_any()),
    }
}

/// What a request takes: one permit where it says nothing.
pub(super) fn mode(request: &LockRequest) -> Mode {
    match (request.mode, request.permits) {
        (Some(LockMode::Shared), _) => Mode::Shared,
        (Some(LockMode::Exclusive), _) => Mode::Exclusive,
        (Some(LockMode::Unknown) | None, permits) => Mode::Counted(permits.unwrap_or(1).max(1).unsigned_abs()),
    }
}

/// The token that etcd has for this claim's hold of a lock.
pub(super) fn recorded_token(claim: &LockClaim, lock: &str) -> Option<FencingToken> {
    FencingToken::new(claim.claimed(lock)?.fencing_token)
}

/// The locks in the order in which every claim takes them, so that no two wait for each other.
pub(super) fn in_order(claim: &LockClaim) -> Vec<&LockRequest> {
    let mut requests: Vec<_> = claim.spec.locks.iter().collect();
    requests.sort_by(|one, other| one.name.cmp(&other.name));
    requests
}

/// Whether a lock is the one that the claim takes first.
pub(super) fn is_first(claim: &LockClaim, lock: &str) -> bool {
    claim.spec.locks.iter().all(|asked| lock <= asked.name.as_str())
}

/// The last of its locks in whose queue it has come to stand, as etcd knows.
fn reached(claim: &LockClaim) -> Option<&str> {
    claim.status.as_ref()?.reached.as_deref()
}

/// Whether etcd knows that this attempt, or one before, has stood in the queue of one of the claim's locks, on its way to a
/// later one or at it.
pub(super) fn has_stood_at(claim: &LockClaim, lock: &str) -> bool {
    reached(claim).is_some_and(|reached| lock <= reached)
}

/// Whether it has come to stand in the queue of one of the claim's locks, which each attempt does in that of its first.
pub(super) fn has_reached(claim: &LockClaim, lock: &str) -> bool {
    is_first(claim, lock) || has_stood_at(claim, lock)
}

/// Up to which of several locks its next attempt stands where this one stood.
pub(super) fn reached_by_next(claim: &LockClaim) -> Option<String> {
    let last = in_order(claim).last().map(|last| last.name.as_str());
    let granted = stage(claim) == Stage::Granted && claim.spec.locks.len() > 1;
    reached(claim).or(last.filter(|_| granted)).map(str::to_owned)
}

/// Whether it waits for what no turn brings, and would only keep others from theirs.
pub(super) fn can_have_no_turn(claim: &LockClaim) -> bool {
    let conditions = claim.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    condition::get(conditions, types::HELD).is_some_and(|held| match held.reason.as_str() {
        reasons::LOCK_IS_ELECTED | reasons::OTHER_CONTROLLER | reasons::UNSUPPORTED_VALUE | reasons::UNSATISFIABLE => {
            true
        }
        // One of several. A claim of this one alone goes on as soon as it is there.
        reasons::LOCK_NOT_FOUND => claim.spec.locks.len() > 1,
        _ => false,
    })
}

/// Whether it was granted one of the claim's locks, and stood in the queue of a next one.
pub(super) fn has_passed(claim: &LockClaim, lock: &str) -> bool {
    reached(claim).is_some_and(|reached| lock < reached)
}

/// The store as a claim sees it; that of several locks is the last of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Store {
    /// Its lock is there and its store is open.
    Open,
    /// The lock's store will be open soon: what has to be freed there waits for it.
    Starting,
    /// The lock's store can't be used now.
    Closed,
    /// The lock elects who holds it.
    Elected,
    /// The lock doesn't exist or is being deleted.
    NoLock,
    /// The lock is another controller's.
    Theirs,
}

/// Everything a decision needs.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) store: Store,
    /// The lock that it is so with.
    pub(super) about: String,
    /// `None`: the claim itself holds.
    pub(super) pod: Option<Fate>,
    /// Of the node of that pod, while it holds.
    pub(super) reach: Reach,
    /// Who takes the hold by force, and why, where that is so.
    pub(super) forced: Option<String>,
    pub(super) policy: NodeUnreachablePolicy,
    /// The shortest of the claim's and the locks' bounds.
    pub(super) max_hold: Option<Duration>,
    /// Whether a store frees nothing that etcd doesn't record, until a person has confirmed that etcd was put back.
    pub(super) in_doubt: bool,
    /// It was granted in an epoch of its store that is over: Redis may have been lost since, and forgotten that time had taken
    /// it, and that another was told of a higher token.
    pub(super) in_past_epoch: bool,
    pub(super) now: Timestamp,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Our finalizer, before anything is asked in Redis.
    AddFinalizer,
    /// Ask in Redis.
    Contend,
    /// Make the grant one that time doesn't take, then tell.
    Pin,
    /// End the attempt; the next one stands where it stood.
    NextAttempt,
    /// Write the gated pod, so that no older write lets it go by this hold.
    Withhold,
    /// Let it go in etcd, for this reason.
    Release(&'static str, String),
    /// Let it go in Redis, then finish or vanish.
    Free,
    /// Its pod has ended, as this says: delete it, then let it go in Redis.
    Vanish(String),
    /// End without ever having held.
    Finish(&'static str, String),
    /// Leave the queue and let the claim go.
    Withdraw,
    /// Let the claim go.
    RemoveFinalizer,
    /// Its time is over: delete it.
    Delete,
    /// The pod has held for too long: evict it. Its hold goes when it has ended.
    EvictPod,
    /// Held: keep it, and look again after so long at the latest.
    Keep(Option<Duration>, Option<(&'static str, String)>),
    /// Not now: say why, look again.
    Wait(&'static str, String),
    /// Nothing until something changes or so long has passed.
    Rest(Option<Duration>),
}

/// Decides.
pub(super) fn plan(claim: &LockClaim, facts: &Facts) -> Step {
    let deleting = claim.metadata.deletion_timestamp.is_some();
    let ours = claim.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    match stage(claim) {
        Stage::Finished => finished(claim, deleting, ours, facts.now),
        Stage::Releasing if facts.store == Store::Starting => Step::Rest(Some(SOON)),
        Stage::Releasing => Step::Free,
        // A controller that was uninstalled has taken it off.
        Stage::Granted | Stage::Told if !ours && !deleting => Step::AddFinalizer,
        Stage::Granted | Stage::Told => holding(claim, facts, deleting),
        Stage::Waiting if deleting && !ours => Step::Rest(None),
        Stage::Waiting if deleting && facts.store == Store::Starting => Step::Rest(Some(SOON)),
        Stage::Waiting if deleting => Step::Withdraw,
        Stage::Waiting if !ours => Step::AddFinalizer,
        Stage::Waiting => waiting(claim, facts),
    }
}

fn finished(claim: &LockClaim, deleting: bool, ours: bool, now: Timestamp) -> Step {
    if ours {
        return Step::RemoveFinalizer;
    }
    let Some(ttl) = claim.ttl_after_finished().filter(|_| !deleting) else {
        return Step::Rest(None);
    };
    let finished = claim.status.as_ref().and_then(|status| status.finish_time.as_ref());
    match finished.map(|at| ttl.saturating_sub(since(at.0, now))) {
        Some(Duration::ZERO) => Step::Delete,
        Some(left) => Step::Rest(Some(left)),
        None => Step::Rest(None),
    }
}

fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or(Duration::ZERO)
}

fn holding(claim: &LockClaim, facts: &Facts, deleting: bool) -> Step {
    let held_for = claim.status.as_ref().and_then(|status| status.locks.first());
    let held_for = held_for.map_or(Duration::ZERO, |lock| since(lock.acquire_time.0, facts.now));
    let left = facts.max_hold.map(|bound| bound.saturating_sub(held_for));
    let over = left == Some(Duration::ZERO);
    let is_granted = stage(claim) == Stage::Granted;
    // Where etcd has gone back somebody may have been told, until a person confirms that nobody is left of those.
    let anew = || if facts.in_doubt { Step::Rest(None) } else { Step::NextAttempt };
    let told = |note| match is_granted {
        true if facts.in_past_epoch => anew(),
        true => Step::Pin,
        false => Step::Keep(left, note),
    };
    if let (Some(Fate::Gated { withdrawn }), true) = (&facts.pod, is_of_gated_pod(claim)) {
        return gated(claim, facts, withdrawn.as_deref(), deleting, over).unwrap_or_else(|| told(None));
    }
    if let Some(forced) = &facts.forced {
        return Step::Release(reasons::FORCE_RELEASED, forced.clone());
    }
    match &facts.pod {
        None if deleting => Step::Release(reasons::RELEASED, "the claim was deleted".into()),
        // Nobody was told of it in all that time.
        None | Some(Fate::Alive { .. } | Fate::Gated { .. }) if over && is_granted => anew(),
        None if over => Step::Release(reasons::MAX_HOLD_EXCEEDED, "it has held for maxHoldSeconds".into()),
        None => told(None),
        Some(Fate::Ended(evidence)) => {
            let ended = format!("the pod has ended: {evidence}");
            if vanishes(claim, facts) { Step::Vanish(ended) } else { Step::Release(reasons::HOLDER_ENDED, ended) }
        }
        Some(Fate::Vanished { .. }) if stage(claim) == Stage::Granted => {
            Step::Release(reasons::HOLDER_ENDED, "the pod was gone before it was told that it holds".into())
        }
        Some(fate) if facts.is_taken() => {
            let note = format!("{}, and nodeUnreachablePolicy is Release", unreachable(fate, facts.reach));
            Step::Release(reasons::HOLDER_UNREACHABLE, note)
        }
        Some(Fate::Vanished { settled_in, .. }) if facts.reach.unreachable().is_none() => vanished(*settled_in, facts),
        Some(Fate::Alive { .. } | Fate::Gated { .. }) if over => Step::EvictPod,
        Some(fate) if facts.reach.unreachable().is_some() => {
            told(Some((reasons::HOLDER_UNREACHABLE, unreachable(fate, facts.reach))))
        }
        Some(_) if deleting => {
            told(Some((reasons::HELD, "the claim is being deleted; it holds until its pod has ended".into())))
        }
        Some(_) => told(None),
    }
}

/// The pod has not been let go, and holds nothing once it surely won't be by this hold: it is written first.
fn gated(claim: &LockClaim, facts: &Facts, withdrawn: Option<&str>, deleting: bool, over: bool) -> Option<Step> {
    let (reason, message) = match &facts.forced {
        Some(forced) => (reasons::FORCE_RELEASED, forced.clone()),
        None if deleting => (reasons::RELEASED, "the claim was deleted before its pod was let go".to_owned()),
        None if over => (reasons::MAX_HOLD_EXCEEDED, "it has held for maxHoldSeconds".to_owned()),
        None => return None,
    };
    let id = holder_id(claim)?;
    Some(if withdrawn == Some(id.as_str()) { Step::Release(reason, message) } else { Step::Withhold })
}

/// Whether etcd lets it go by its deletion, which nothing else keeps it from, and what it holds in Redis is freed for
/// certain then, also after a crash.
fn vanishes(claim: &LockClaim, facts: &Facts) -> bool {
    let is_only_ours = claim.finalizers().iter().all(|finalizer| finalizer == FINALIZER);
    let goes = claim.metadata.deletion_timestamp.is_none() && is_only_ours && stage(claim) == Stage::Told;
    is_of_gated_pod(claim) && goes && facts.store == Store::Open && !facts.in_doubt
}

/// Whether the controller has made this claim for a gated pod.
pub(in crate::controller) fn is_of_gated_pod(claim: &LockClaim) -> bool {
    let Some(holder) = &claim.spec.holder_ref else { return false };
    let owned = claim.owner_references().iter().any(|owner| owner.kind == "Pod" && owner.uid == holder.uid);
    owned && claim.name_any() == name_for_pod(&holder.uid)
}

/// Whether it waits where it asks for more than a lock has: a gated pod has nothing else to do, and permits may be raised.
pub(super) fn waits_for_permits(claim: &LockClaim) -> bool {
    is_of_gated_pod(claim) && claim.wait_timeout().is_none()
}

/// How the claim of a gated pod is called.
pub(in crate::controller) fn name_for_pod(uid: &str) -> String {
    format!("pod-{uid}")
}

impl Facts {
    /// Nobody can tell whether the pod still runs, and the lock's policy is to take its hold then.
    fn is_taken(&self) -> bool {
        self.reach.unreachable().is_some() && self.policy == NodeUnreachablePolicy::Release
    }
}

fn unreachable(fate: &Fate, reach: Reach) -> String {
    let (pod, node) = match fate {
        Fate::Vanished { node, .. } => ("the pod is gone, and its node", node.as_deref()),
        Fate::Alive { node } => ("the pod can't be asked: its node", node.as_deref()),
        Fate::Unknown | Fate::Gated { .. } | Fate::Ended(_) => ("its node", None),
    };
    let node = node.map(|name| format!(" {name}")).unwrap_or_default();
    format!("{pod}{node} {}", reach.unreachable().unwrap_or_default())
}

/// The pod is gone, and its node tells, or will, what runs on it.
fn vanished(settled_in: Duration, facts: &Facts) -> Step {
    let gone = "the pod is gone";
    match (settled_in, facts.reach) {
        (Duration::ZERO, Reach::Ready) => Step::Release(reasons::HOLDER_ENDED, format!("{gone} and its node is Ready")),
        (Duration::ZERO, _) => Step::Keep(None, Some((reasons::HELD, format!("{gone}; its node is being asked")))),
        (left, _) => {
            let note = format!("{gone}; it is believed to have ended in {} s", left.as_secs() + 1);
            Step::Keep(Some(left), Some((reasons::HELD, note)))
        }
    }
}

/// Whether a hold that ends for this reason was taken from a pod that may be alive: then the claim ends with it, too.
pub(super) fn is_taken(reason: &str) -> bool {
    [reasons::FORCE_RELEASED, reasons::HOLDER_UNREACHABLE].contains(&reason)
}

/// What is left of the time a claim waits; `None`: for ever.
pub(super) fn wait_left(claim: &LockClaim, now: Timestamp) -> Option<Duration> {
    let limit = claim.wait_timeout()?;
    let started = claim.status.as_ref().and_then(|status| status.start_time.as_ref());
    Some(started.map_or(limit, |at| limit.saturating_sub(since(at.0, now))))
}

fn waiting(claim: &LockClaim, facts: &Facts) -> Step {
    if let Some(field) = claim.unsupported_value() {
        let message = format!("{field} has a value that this release doesn't know");
        return Step::Wait(reasons::UNSUPPORTED_VALUE, message);
    }
    match &facts.pod {
        Some(Fate::Ended(evidence)) => {
            return Step::Finish(reasons::HOLDER_ENDED, format!("the pod has ended: {evidence}"));
        }
        Some(Fate::Vanished { .. }) => {
            return Step::Finish(reasons::HOLDER_ENDED, "there is no pod of this name and UID".into());
        }
        Some(Fate::Unknown) => return Step::Rest(None),
        Some(Fate::Alive { .. } | Fate::Gated { .. }) | None => {}
    }
    let name = &facts.about;
    let at_once = claim.wait_timeout() == Some(Duration::ZERO);
    let started = claim.status.as_ref().is_some_and(|status| status.start_time.is_some());
    let over = started && wait_left(claim, facts.now) == Some(Duration::ZERO);
    match facts.store {
        Store::NoLock if at_once => {
            Step::Finish(reasons::LOCK_NOT_FOUND, format!("there is no DistributedLock {name}"))
        }
        Store::Theirs if at_once => Step::Finish(reasons::OTHER_CONTROLLER, theirs(name)),
        Store::NoLock | Store::Elected | Store::Closed | Store::Starting | Store::Theirs if over && !at_once => {
            Step::Finish(reasons::WAIT_TIMEOUT, "it was not granted within waitTimeoutSeconds".into())
        }
        Store::NoLock => {
            Step::Wait(reasons::LOCK_NOT_FOUND, format!("there is no DistributedLock {name} yet; create it"))
        }
        Store::Elected if at_once => Step::Finish(reasons::LOCK_IS_ELECTED, ELECTED.into()),
        Store::Elected => Step::Wait(reasons::LOCK_IS_ELECTED, ELECTED.into()),
        Store::Closed | Store::Starting => Step::Wait(reasons::STORE_NOT_READY, "the lock's store is not Ready".into()),
        Store::Theirs => Step::Wait(reasons::OTHER_CONTROLLER, theirs(name)),
        Store::Open => Step::Contend,
    }
}

fn theirs(lock: &str) -> String {
    format!("another controller serves {lock}: claim it apart from the others")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{HolderKind, HolderRef, LockClaimSpec, LockClaimStatus, time};

    fn claim(pod: bool, held: Option<(bool, &str)>) -> LockClaim {
        let mut spec = LockClaimSpec::for_lock("a");
        if pod {
            let (name, uid) = ("p".into(), "u".into());
            spec.holder_ref = Some(HolderRef { api_group: String::new(), kind: HolderKind::Pod, name, uid });
        }
        let mut claim = LockClaim::new("c", spec);
        claim.metadata.finalizers = Some(vec![FINALIZER.into()]);
        let mut status = LockClaimStatus { start_time: Some(time::seconds(at(0))), ..Default::default() };
        if let Some((is, reason)) = held {
            condition::set(&mut status.conditions, types::HELD, is, reason, "", None, at(0));
        }
        claim.status = Some(status);
        claim
    }

    fn deleted(mut claim: LockClaim) -> LockClaim {
        claim.metadata.deletion_timestamp = Some(time::seconds(at(0)));
        claim
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn facts(pod: Option<Fate>) -> Facts {
        Facts {
            store: Store::Open,
            about: "a".into(),
            pod,
            reach: Reach::Ready,
            forced: None,
            policy: NodeUnreachablePolicy::Keep,
            max_hold: None,
            in_doubt: false,
            in_past_epoch: false,
            now: at(100),
        }
    }

    const TOLD: Option<(bool, &str)> = Some((true, "Held"));

    fn alive() -> Option<Fate> {
        Some(Fate::Alive { node: None })
    }

    #[test]
    fn the_walk_is_read_from_the_conditions() {
        assert_eq!(stage(&claim(false, None)), Stage::Waiting);
        assert_eq!(stage(&claim(false, Some((false, "Waiting")))), Stage::Waiting);
        assert_eq!(stage(&claim(false, Some((false, "Granted")))), Stage::Granted);
        assert_eq!(stage(&claim(false, TOLD)), Stage::Told);
        assert_eq!(stage(&claim(false, Some((false, "Releasing")))), Stage::Releasing);
    }

    #[test]
    fn deleting_a_claim_releases_what_it_holds_but_not_what_its_running_pod_holds() {
        assert!(matches!(plan(&deleted(claim(false, TOLD)), &facts(None)), Step::Release(..)));
        assert!(matches!(plan(&deleted(claim(true, TOLD)), &facts(alive())), Step::Keep(..)));
        let ended = facts(Some(Fate::Ended("x")));
        assert!(matches!(plan(&deleted(claim(true, TOLD)), &ended), Step::Release(..)));
    }

    #[test]
    fn what_has_to_be_freed_waits_for_a_store_that_starts_but_not_for_one_that_is_gone() {
        let starting = Facts { store: Store::Starting, ..facts(None) };
        let gone = Facts { store: Store::Closed, ..facts(None) };
        let releasing = || deleted(claim(false, Some((false, "Releasing"))));
        assert_eq!(plan(&releasing(), &starting), Step::Rest(Some(SOON)));
        assert_eq!(plan(&releasing(), &gone), Step::Free);
        assert_eq!(plan(&deleted(claim(false, None)), &starting), Step::Rest(Some(SOON)));
        assert_eq!(plan(&deleted(claim(false, None)), &gone), Step::Withdraw);
    }

    #[test]
    fn a_grant_is_pinned_before_it_is_told() {
        assert_eq!(plan(&claim(false, Some((false, "Granted"))), &facts(None)), Step::Pin);
    }

    const AWAY: Reach = Reach::Unreachable("does not report");

    #[test]
    fn a_vanished_pod_keeps_its_hold_unless_node_or_policy_let_it_go() {
        let gone = |left: u64| Some(Fate::Vanished { settled_in: Duration::from_secs(left), node: None });
        assert!(matches!(plan(&claim(true, TOLD), &facts(gone(9))), Step::Keep(..)));
        assert!(matches!(plan(&claim(true, TOLD), &facts(gone(0))), Step::Release(reasons::HOLDER_ENDED, _)));
        let unseen = Facts { reach: Reach::Unknown, ..facts(gone(0)) };
        assert!(matches!(plan(&claim(true, TOLD), &unseen), Step::Keep(_, Some((reasons::HELD, _)))));
        let unreachable = Facts { reach: AWAY, ..facts(gone(0)) };
        let kept = plan(&claim(true, TOLD), &unreachable);
        assert!(matches!(kept, Step::Keep(_, Some((reasons::HOLDER_UNREACHABLE, _)))));
        let release = Facts { policy: NodeUnreachablePolicy::Release, ..unreachable };
        assert!(matches!(plan(&claim(true, TOLD), &release), Step::Release(reasons::HOLDER_UNREACHABLE, _)));
    }

    #[test]
    fn a_pod_on_an_unreachable_node_keeps_its_hold_unless_the_policy_is_to_release() {
        let pod = Some(Fate::Alive { node: Some("n1".into()) });
        for (policy, kept) in [
            (NodeUnreachablePolicy::Keep, true),
            (NodeUnreachablePolicy::Unknown, true),
            (NodeUnreachablePolicy::Release, false),
        ] {
            let facts = Facts { reach: AWAY, policy, ..facts(pod.clone()) };
            match plan(&claim(true, TOLD), &facts) {
                Step::Keep(_, Some((reasons::HOLDER_UNREACHABLE, message))) if kept => {
                    assert_eq!(message, "the pod can't be asked: its node n1 does not report");
                }
                Step::Release(reasons::HOLDER_UNREACHABLE, _) if !kept => {}
                step => panic!("{policy:?}: {step:?}"),
            }
            assert_eq!(plan(&claim(true, Some((false, "Granted"))), &facts) == Step::Pin, kept);
        }
        let ended = Facts { pod: Some(Fate::Ended("x")), reach: Reach::OutOfService, ..facts(None) };
        assert!(matches!(plan(&claim(true, TOLD), &ended), Step::Release(reasons::HOLDER_ENDED, _)));
    }

    #[test]
    fn force_takes_the_hold_of_a_claim_whatever_its_pod_does() {
        let forced = |pod| Facts { forced: Some("taken by ann: stuck".into()), ..facts(pod) };
        for pod in [None, alive(), Some(Fate::Unknown)] {
            let expected = Step::Release(reasons::FORCE_RELEASED, "taken by ann: stuck".into());
            assert_eq!(plan(&claim(true, TOLD), &forced(pod)), expected);
        }
        assert_eq!(plan(&claim(true, None), &forced(alive())), Step::Contend, "it holds nothing");
    }

    #[test]
    fn the_bound_on_a_hold_takes_a_claims_own_hold_and_evicts_a_pod() {
        let mut bound = facts(None);
        bound.max_hold = Some(Duration::from_secs(10));
        let mut held = claim(false, TOLD);
        let lock = crate::api::ClaimedLock {
            name: "a".into(),
            fencing_token: 1,
            acquire_time: time::micros(at(95)),
            expire_time: None,
        };
        held.status.as_mut().unwrap().locks.push(lock);
        assert_eq!(plan(&held, &bound), Step::Keep(Some(Duration::from_secs(5)), None));
        bound.now = at(105);
        assert!(matches!(plan(&held, &bound), Step::Release(reasons::MAX_HOLD_EXCEEDED, _)));
        held.spec.holder_ref = claim(true, None).spec.holder_ref;
        bound.pod = alive();
        assert_eq!(plan(&held, &bound), Step::EvictPod);
    }

    #[test]
    fn a_claim_without_its_lock_waits_and_one_that_would_not_wait_ends() {
        let no_lock = Facts { store: Store::NoLock, ..facts(None) };
        assert!(matches!(plan(&claim(false, None), &no_lock), Step::Wait(reasons::LOCK_NOT_FOUND, _)));
        let mut impatient = claim(false, None);
        impatient.spec.wait_timeout_seconds = Some(0);
        assert!(matches!(plan(&impatient, &no_lock), Step::Finish(reasons::LOCK_NOT_FOUND, _)));
        impatient.spec.wait_timeout_seconds = Some(30);
        assert!(matches!(plan(&impatient, &no_lock), Step::Finish(reasons::WAIT_TIMEOUT, _)));
    }

    #[test]
    fn a_finished_claim_lets_go_of_its_finalizer_and_is_deleted_after_its_ttl() {
        let mut done = claim(false, None);
        let status = done.status.as_mut().unwrap();
        condition::set(&mut status.conditions, types::FINISHED, true, "Released", "", None, at(0));
        status.finish_time = Some(time::seconds(at(50)));
        assert_eq!(plan(&done, &facts(None)), Step::RemoveFinalizer);
        done.metadata.finalizers = None;
        assert_eq!(plan(&done, &facts(None)), Step::Rest(None));
        done.spec.ttl_seconds_after_finished = Some(60);
        assert_eq!(plan(&done, &facts(None)), Step::Rest(Some(Duration::from_secs(10))));
        done.spec.ttl_seconds_after_finished = Some(50);
        assert_eq!(plan(&done, &facts(None)), Step::Delete);
    }

    #[test]
    fn a_pod_that_is_gone_before_it_was_told_keeps_nothing() {
        let gone = Some(Fate::Vanished { settled_in: Duration::from_secs(9), node: None });
        let unknown = Facts { reach: AWAY, ..facts(gone) };
        let granted = claim(true, Some((false, "Granted")));
        assert!(matches!(plan(&granted, &unknown), Step::Release(reasons::HOLDER_ENDED, _)));
        assert!(matches!(plan(&claim(true, TOLD), &unknown), Step::Keep(..)));
    }

    #[test]
    fn a_claim_with_a_lock_of_another_controller_waits_and_one_that_would_not_wait_ends() {
        let theirs = Facts { store: Store::Theirs, ..facts(None) };
        assert!(matches!(plan(&claim(false, None), &theirs), Step::Wait(reasons::OTHER_CONTROLLER, _)));
        assert_eq!(plan(&deleted(claim(false, None)), &theirs), Step::Withdraw);
        let mut impatient = claim(false, None);
        impatient.spec.wait_timeout_seconds = Some(0);
        assert!(matches!(plan(&impatient, &theirs), Step::Finish(reasons::OTHER_CONTROLLER, _)));
    }

    /// The claim that the controller has made for it.
    fn of_gated_pod(held: Option<(bool, &str)>) -> LockClaim {
        let mut claim = claim(true, held);
        claim.metadata.name = Some(name_for_pod("u"));
        let owner = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"});
        claim.metadata.owner_references = Some(vec![serde_json::from_value(owner).unwrap()]);
        claim
    }

    #[test]
    fn only_the_claim_of_a_gated_pod_waits_for_permits_and_only_without_a_limit() {
        assert!(waits_for_permits(&of_gated_pod(None)) && !waits_for_permits(&claim(true, None)));
        let mut limited = of_gated_pod(None);
        limited.spec.wait_timeout_seconds = Some(5);
        assert!(!waits_for_permits(&limited));
    }

    #[test]
    fn what_was_granted_in_a_past_epoch_and_not_told_begins_anew_unless_etcd_has_gone_back() {
        let past = Facts { in_past_epoch: true, ..facts(None) };
        let granted = claim(true, Some((false, "Granted")));
        assert_eq!(plan(&granted, &past), Step::NextAttempt);
        assert_eq!(plan(&granted, &Facts { in_doubt: true, ..past.clone() }), Step::Rest(None));
        assert_eq!(plan(&granted, &Facts { in_doubt: true, ..facts(None) }), Step::Pin);
        assert!(matches!(plan(&claim(true, TOLD), &past), Step::Keep(..)));
        assert!(matches!(plan(&deleted(granted), &past), Step::Release(..)));
    }

    #[test]
    fn a_pod_that_was_not_told_for_max_hold_seconds_is_not_evicted_and_waits_again() {
        for pod in [None, alive()] {
            let over = Facts { max_hold: Some(Duration::ZERO), ..facts(pod) };
            let granted = claim(true, Some((false, "Granted")));
            assert_eq!(plan(&granted, &over), Step::NextAttempt);
            assert!(matches!(plan(&claim(true, TOLD), &over), Step::EvictPod | Step::Release(..)));
        }
    }

    #[test]
    fn the_claim_of_a_gated_pod_vanishes_with_what_it_held_where_that_is_freed_for_certain() {
        let ended = facts(Some(Fate::Ended("x")));
        assert_eq!(plan(&of_gated_pod(TOLD), &ended), Step::Vanish("the pod has ended: x".into()));
        let is_released = |claim: &LockClaim, facts: &Facts| matches!(plan(claim, facts), Step::Release(..));
        assert!(is_released(&claim(true, TOLD), &ended), "somebody may look at it");
        assert!(is_released(&deleted(of_gated_pod(TOLD)), &ended));
        assert!(is_released(&of_gated_pod(Some((false, "Granted"))), &ended), "it isn't pinned yet");
        assert!(is_released(&of_gated_pod(TOLD), &Facts { in_doubt: true, ..ended.clone() }));
        let mut kept = of_gated_pod(TOLD);
        kept.metadata.finalizers.get_or_insert_default().push("test/kept".into());
        assert!(is_released(&kept, &ended), "etcd would go on recording it");
        for store in [Store::Starting, Store::Closed, Store::NoLock] {
            assert!(is_released(&of_gated_pod(TOLD), &Facts { store, ..ended.clone() }));
        }
    }

    #[test]
    fn a_claim_by_hand_for_a_gated_pod_holds_until_that_has_ended() {
        let gated = Some(Fate::Gated { withdrawn: None });
        assert!(matches!(plan(&deleted(claim(true, TOLD)), &facts(gated)), Step::Keep(..)));
    }

    #[test]
    fn the_hold_of_a_gated_pod_goes_only_after_the_pod_was_written() {
        let gated = |withdrawn: Option<&str>| Some(Fate::Gated { withdrawn: withdrawn.map(str::to_owned) });
        let mut told = of_gated_pod(TOLD);
        told.metadata.uid = Some("c".into());
        assert_eq!(plan(&told, &facts(gated(None))), Step::Keep(None, None));
        let told = deleted(told);
        for other in [None, Some("c.2")] {
            assert_eq!(plan(&told, &facts(gated(other))), Step::Withhold);
        }
        assert!(matches!(plan(&told, &facts(gated(Some("c.1")))), Step::Release(reasons::RELEASED, _)));
        let forced = Facts { forced: Some("taken by ann".into()), ..facts(gated(None)) };
        assert_eq!(plan(&told, &forced), Step::Withhold);
    }
}
