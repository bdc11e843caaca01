//! What becomes of a labelled pod. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerState, Pod, PodCondition, PodStatus};
use kube::ResourceExt;

use super::super::claim::{Stage, holder_id, name_for_pod, stage};
use crate::api::condition::{self, reasons, types};
use crate::api::election::FENCING_TOKEN;
use crate::api::gated::{self, LOCK, LOCKS, START_TIMEOUT, TOKEN_OF, WAIT_TIMEOUT, WITHDRAWN, is_gated};
use crate::api::{HolderKind, HolderRef, LockClaim, LockClaimSpec, LockRequest};
use crate::lease::LockKey;

/// How long a pod that holds may take to start before it is said that it blocks others.
pub(super) const SLOW_START: Duration = Duration::from_secs(30);
/// When it is looked again whether the name of a pod's claim is free.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Who makes a new pod when one has failed: a pod of theirs can't give up.
const REPLACING: [&str; 4] = ["ReplicaSet", "StatefulSet", "DaemonSet", "ReplicationController"];

/// What a condition of the pod says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) holds: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Said {
    fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: false, reason, message: message.into() }
    }

    fn yes(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: true, reason, message: message.into() }
    }

    /// Whether it is nothing that a person would have to look at.
    pub(super) fn is_normal(&self) -> bool {
        [reasons::WAITING, reasons::HELD].contains(&self.reason)
    }

    /// Whether the pod says so already. What is normal isn't said, unless something else was before.
    fn is_said_by(&self, pod: &Pod) -> bool {
        match lock_held(pod) {
            None => self.is_normal(),
            Some(now) => {
                let holds = if self.holds { "True" } else { "False" };
                let same = now.status == holds && now.reason.as_deref() == Some(self.reason);
                same && (self.is_normal() || now.message.as_deref() == Some(self.message.as_str()))
            }
        }
    }
}

/// The next step.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Nothing until something changes or so long has passed.
    Rest(Option<Duration>),
    /// Make its claim.
    Claim(Box<LockClaimSpec>),
    /// Its claim asks for something else, or has ended: delete it.
    Drop,
    /// It holds: write the tokens and take the gate away.
    LetGo(Vec<(String, String)>),
    /// It fails: the reason in its status, after which its condition is named; the reason of that; and more words.
    Fail(&'static str, &'static str, String),
    /// Write the condition.
    Say(Said),
    /// It held, or holds, and didn't start: delete it, and say why if that wasn't said.
    Delete(Option<String>),
    /// It runs, or will, without its lock: say so once.
    SayUngated,
}

/// What of the pod's condition was written, if it was.
fn lock_held(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().find(|condition| condition.type_ == types::LOCK_HELD)
}

/// Decides. `stalled` is for how long it has been seen to hold without having started.
pub(super) fn plan(pod: &Pod, claim: Option<&LockClaim>, stalled: Duration) -> Step {
    let named = claim;
    let claim = named.filter(|claim| is_for(claim, pod));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return ended(pod, claim);
    }
    if is_gated(pod) {
        return match gated(pod, claim) {
            Step::Claim(_) if named.is_some() => name_is_taken(pod),
            step => step,
        };
    }
    if pod.annotations().contains_key(FENCING_TOKEN) {
        return let_go(pod, claim, stalled);
    }
    Step::SayUngated
}

/// Whether it is for this pod, and not one that was made under its name for somebody else.
fn is_for(claim: &LockClaim, pod: &Pod) -> bool {
    claim.spec.holder_ref.as_ref().is_some_and(|holder| Some(holder.uid.as_str()) == pod.metadata.uid.as_deref())
}

/// Nothing tells when it is free again.
fn name_is_taken(pod: &Pod) -> Step {
    let name = claim_name(pod);
    let message = format!("the LockClaim {name} is for somebody else, and has the name of this pod's: delete it");
    match say(pod, Said::no(reasons::CLAIM_NAME_TAKEN, message)) {
        Step::Rest(_) => Step::Rest(Some(ASK_AGAIN)),
        step => step,
    }
}

fn ended(pod: &Pod, claim: Option<&LockClaim>) -> Step {
    let not_started =
        pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some(reasons::HOLDER_NOT_STARTED);
    match claim {
        Some(claim) if stage(claim) == Stage::Finished && !is_leaving(claim) => Step::Drop,
        None if not_started && pod.metadata.deletion_timestamp.is_none() => Step::Delete(None),
        _ => Step::Rest(None),
    }
}

/// The lock in whose line a pod stands until it has its claim: the first of those that it takes.
pub(in super::super) fn stands_at(pod: &Pod) -> Option<LockKey> {
    let Step::Claim(wanted) = plan(pod, None, Duration::ZERO) else { return None };
    let first = wanted.locks.iter().map(|lock| lock.name.as_str()).min()?;
    LockKey::new(&pod.namespace()?, first).ok()
}

fn gated(pod: &Pod, claim: Option<&LockClaim>) -> Step {
    if pod.metadata.deletion_timestamp.is_some() {
        return match claim.filter(|claim| !is_leaving(claim)) {
            Some(_) => Step::Drop,
            None => Step::Rest(None),
        };
    }
    let wanted = match wanted(pod) {
        Ok(wanted) => wanted,
        // What it asked for before may be granted any moment, and would be held by a pod that can't be let go.
        Err(_) if claim.is_some_and(|claim| !is_leaving(claim)) => return Step::Drop,
        Err(message) => return say(pod, Said::no(reasons::INVALID_LOCKS, message)),
    };
    if gates(pod) > 1 {
        return Step::Rest(None);
    }
    let Some(claim) = claim else {
        return Step::Claim(Box::new(wanted));
    };
    if is_leaving(claim) {
        return Step::Rest(None);
    }
    if claim.spec.locks != wanted.locks || claim.spec.wait_timeout_seconds != wanted.wait_timeout_seconds {
        return Step::Drop;
    }
    match stage(claim) {
        Stage::Finished => finished(claim),
        Stage::Told if pod.annotations().get(WITHDRAWN).map(String::as_str) == id_of(claim).as_deref() => {
            Step::Rest(None)
        }
        Stage::Told => Step::LetGo(tokens(claim)),
        Stage::Granted | Stage::Releasing => Step::Rest(None),
        Stage::Waiting => say(pod, waits(claim)),
    }
}

fn id_of(claim: &LockClaim) -> Option<String> {
    holder_id(claim).map(|id| id.as_str().to_owned())
}

fn is_leaving(claim: &LockClaim) -> bool {
    claim.metadata.deletion_timestamp.is_some()
}

fn gates(pod: &Pod) -> usize {
    pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_deref()).unwrap_or_default().len()
}

/// What the pod asks for.
fn wanted(pod: &Pod) -> Result<LockClaimSpec, String> {
    let label = pod.labels().get(LOCK).map(String::as_str).unwrap_or_default();
    let locks: Vec<LockRequest> = gated::locks(label, pod.annotations().get(LOCKS).map(String::as_str))?;
    let wait_timeout_seconds = seconds(pod, WAIT_TIMEOUT)?;
    let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
    if let Some(owner) =
        owner.filter(|owner| wait_timeout_seconds.is_some() && REPLACING.contains(&owner.kind.as_str()))
    {
        let message = "has no use for its pods: one that fails is followed by another. Take the annotation away";
        return Err(format!("{WAIT_TIMEOUT}: a {} {message}", owner.kind));
    }
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    let holder_ref = Some(HolderRef { api_group: String::new(), kind: HolderKind::Pod, name, uid });
    Ok(LockClaimSpec { locks, holder_ref, wait_timeout_seconds, ..LockClaimSpec::default() })
}

fn seconds(pod: &Pod, annotation: &str) -> Result<Option<i32>, String> {
    let Some(text) = pod.annotations().get(annotation) else { return Ok(None) };
    let number = text.parse().ok().filter(|number| (0..=crate::api::MAX_SECONDS).contains(number));
    number.map(Some).ok_or_else(|| format!("{annotation}: {text:?} is no number of seconds"))
}

fn held(claim: &LockClaim) -> Option<&crate::api::Condition> {
    condition::get(&claim.status.as_ref()?.conditions, types::HELD)
}

/// What a waiting claim waits for, if not for its turn.
fn waits(claim: &LockClaim) -> Said {
    let held = held(claim);
    let message = held.map(|held| held.message.clone()).unwrap_or_default();
    let known = [
        reasons::LOCK_NOT_FOUND,
        reasons::LOCK_IS_ELECTED,
        reasons::OTHER_CONTROLLER,
        reasons::UNSUPPORTED_VALUE,
        reasons::UNSATISFIABLE,
    ];
    match known.into_iter().find(|known| held.is_some_and(|held| held.reason == *known)) {
        Some(reason) => Said::no(reason, message),
        None => Said::no(reasons::WAITING, "it waits for its turn"),
    }
}

fn say(pod: &Pod, said: Said) -> Step {
    if said.is_said_by(pod) { Step::Rest(None) } else { Step::Say(said) }
}

/// A claim that gave up takes the pod with it; one that lost its hold is followed by another.
fn finished(claim: &LockClaim) -> Step {
    let held = held(claim);
    let (reason, message) = held.map_or(("", ""), |held| (held.reason.as_str(), held.message.as_str()));
    let gave_up = [
        reasons::WAIT_TIMEOUT,
        reasons::BUSY,
        reasons::LOCK_NOT_FOUND,
        reasons::LOCK_IS_ELECTED,
        reasons::OTHER_CONTROLLER,
        reasons::UNSATISFIABLE,
    ];
    match gave_up.into_iter().find(|known| *known == reason) {
        Some(reason) => Step::Fail(reasons::LOCK_NOT_ACQUIRED, reason, format!("{}: {message}", claim.lock_names())),
        None => Step::Drop,
    }
}

/// The annotations that a pod gets when it is let go.
fn tokens(claim: &LockClaim) -> Vec<(String, String)> {
    let status = claim.status.as_ref();
    let first = status.and_then(|status| status.fencing_token);
    let all = status.map(|status| status.locks.as_slice()).unwrap_or_default();
    let of_each = all.iter().map(|lock| (format!("{TOKEN_OF}{}", lock.name), lock.fencing_token.to_string()));
    first.map(|token| (FENCING_TOKEN.to_owned(), token.to_string())).into_iter().chain(of_each).collect()
}

/// Whether some container of it has run.
fn has_started(status: &PodStatus) -> bool {
    states(status).any(|state| state.running.is_some() || state.terminated.is_some())
}

/// The states of its containers, in the order in which they start.
fn states(status: &PodStatus) -> impl Iterator<Item = &ContainerState> {
    let of = [&status.init_container_statuses, &status.container_statuses];
    of.into_iter().flatten().flatten().filter_map(|container| container.state.as_ref())
}

/// Whether it holds, and nothing of it has run yet.
pub(super) fn is_stalled(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let pending = status.is_none_or(|status| status.phase.as_deref() == Some("Pending") && !has_started(status));
    let let_go = !is_gated(pod) && pod.annotations().contains_key(FENCING_TOKEN);
    pending && let_go && pod.metadata.deletion_timestamp.is_none()
}

fn let_go(pod: &Pod, claim: Option<&LockClaim>, stalled: Duration) -> Step {
    if claim.is_none_or(|claim| stage(claim) != Stage::Told) {
        return Step::Rest(None);
    }
    if !is_stalled(pod) || lock_held(pod).is_some_and(|said| said.status == "False") {
        return say(pod, Said::yes(reasons::HELD, "it holds"));
    }
    let limit = seconds(pod, START_TIMEOUT).ok().flatten();
    let limit = limit.map(|limit| Duration::from_secs(u64::from(limit.unsigned_abs())));
    if let Some(limit) = limit.filter(|limit| stalled >= *limit) {
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let message = format!("it holds and has not started within {} s: {}", limit.as_secs(), why(pod));
        // One that is bound ends by its kubelet. Of one that isn't, its end is told before it goes: whoever only finds it
        // gone couldn't know that it has never run.
        let (now, reason) = (reasons::HOLDER_NOT_STARTED, reasons::START_TIMEOUT);
        return if bound { Step::Delete(Some(message)) } else { Step::Fail(now, reason, message) };
    }
    let rest = limit.map(|limit| limit.saturating_sub(stalled));
    if stalled < SLOW_START {
        let slow = SLOW_START.saturating_sub(stalled);
        return Step::Rest(Some(rest.map_or(slow, |rest| rest.min(slow))));
    }
    let message =
        format!("it holds and has not started for {} s, while others may wait: {}", SLOW_START.as_secs(), why(pod));
    match say(pod, Said::yes(reasons::HOLDER_NOT_STARTED, message)) {
        Step::Rest(_) => Step::Rest(rest),
        step => step,
    }
}

/// Why a pod doesn't start, as the scheduler and the kubelet say it.
fn why(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    // What was said while it had its gate stands there until a scheduler says something else.
    let is_of_now = |condition: &&PodCondition| condition.reason.as_deref() != Some("SchedulingGated");
    let unscheduled = conditions
        .iter()
        .filter(is_of_now)
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    let waiting = status.into_iter().flat_map(states).find_map(|state| state.waiting.as_ref());
    let words = match (unscheduled, waiting) {
        (Some(condition), _) => [condition.reason.as_deref(), condition.message.as_deref()],
        (None, Some(waiting)) => [waiting.reason.as_deref(), waiting.message.as_deref()],
        (None, None) => [None, None],
    };
    let words: Vec<&str> = words.into_iter().flatten().collect();
    if words.is_empty() { "nothing is known of it yet".to_owned() } else { words.join(": ") }
}

/// The name of a pod's claim.
pub(super) fn claim_name(pod: &Pod) -> String {
    name_for_pod(&pod.uid().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::{ClaimedLock, LockClaimStatus, time};

    fn pod(gates: &[&str], annotations: serde_json::Value) -> Pod {
        let gates: Vec<_> = gates.iter().map(|name| json!({ "name": name })).collect();
        let labels = json!({ (LOCK): "a" });
        let metadata =
            json!({"name": "p", "namespace": "shop", "uid": "u", "labels": labels, "annotations": annotations});
        let spec = json!({"containers": [{"name": "c"}], "schedulingGates": gates});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}})).unwrap()
    }

    fn waiting() -> Pod {
        pod(&[LOCK], json!({}))
    }

    fn running_with(annotations: serde_json::Value) -> Pod {
        let mut pod = pod(&[], annotations);
        pod.metadata.annotations.get_or_insert_default().insert(FENCING_TOKEN.into(), "7".into());
        pod
    }

    fn claim(held: bool, reason: &str, finished: bool) -> LockClaim {
        let mut claim = LockClaim::new("pod-u", wanted(&waiting()).unwrap());
        claim.metadata.uid = Some("claim".into());
        let now = jiff::Timestamp::UNIX_EPOCH;
        let mut status = LockClaimStatus { fencing_token: Some(7), ..LockClaimStatus::default() };
        let (acquire_time, expire_time) = (time::micros(now), None);
        status.locks = vec![ClaimedLock { name: "a".into(), fencing_token: 7, acquire_time, expire_time }];
        condition::set(&mut status.conditions, types::HELD, held, reason, "why", None, now);
        condition::set(&mut status.conditions, types::FINISHED, finished, reason, "why", None, now);
        claim.status = Some(status);
        claim
    }

    fn step(pod: &Pod, claim: Option<&LockClaim>) -> Step {
        plan(pod, claim, Duration::ZERO)
    }

    #[test]
    fn a_claim_is_made_once_ours_is_the_last_gate() {
        assert_eq!(step(&pod(&["other", LOCK], json!({})), None), Step::Rest(None));
        let Step::Claim(spec) = step(&waiting(), None) else { panic!("a claim") };
        assert_eq!(spec.locks, [LockRequest::new("a")]);
        assert_eq!(spec.holder_ref.unwrap().uid, "u");
    }

    #[test]
    fn it_is_let_go_with_its_tokens_when_the_claim_was_told() {
        let told = claim(true, reasons::HELD, false);
        let tokens = [(FENCING_TOKEN, "7"), ("fencing-token.leasehold.dev/a", "7")];
        let tokens = tokens.map(|(key, token)| (key.to_owned(), token.to_owned())).to_vec();
        assert_eq!(step(&waiting(), Some(&told)), Step::LetGo(tokens));
        for untold in [claim(false, reasons::GRANTED, false), claim(false, reasons::RELEASING, false)] {
            assert_eq!(step(&waiting(), Some(&untold)), Step::Rest(None));
        }
    }

    #[test]
    fn a_hold_that_was_withdrawn_lets_nothing_go() {
        let told = claim(true, reasons::HELD, false);
        let pod = pod(&[LOCK], json!({ (WITHDRAWN): "claim.1" }));
        assert_eq!(step(&pod, Some(&told)), Step::Rest(None));
        let mut other = told;
        other.metadata.uid = Some("another".into());
        assert!(matches!(step(&pod, Some(&other)), Step::LetGo(_)));
    }

    #[test]
    fn a_claim_for_something_else_or_without_its_hold_is_dropped() {
        let (told, changed) = (claim(true, reasons::HELD, false), pod(&[LOCK], json!({ (LOCKS): "a,b" })));
        assert_eq!(step(&changed, Some(&told)), Step::Drop);
        assert_eq!(step(&waiting(), Some(&claim(false, reasons::FORCE_RELEASED, true))), Step::Drop);
        let mut leaving = waiting();
        leaving.metadata.deletion_timestamp = Some(time::seconds(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(step(&leaving, Some(&claim(false, reasons::WAITING, false))), Step::Drop);
        assert_eq!(step(&leaving, None), Step::Rest(None));
    }

    #[test]
    fn one_that_waited_for_too_long_fails() {
        for reason in [reasons::WAIT_TIMEOUT, reasons::BUSY, reasons::LOCK_NOT_FOUND] {
            let step = step(&waiting(), Some(&claim(false, reason, true)));
            assert_eq!(step, Step::Fail(reasons::LOCK_NOT_ACQUIRED, reason, "a: why".into()));
        }
    }

    #[test]
    fn only_what_a_person_should_look_at_is_said_and_once() {
        assert_eq!(step(&waiting(), Some(&claim(false, reasons::WAITING, false))), Step::Rest(None));
        let missing = claim(false, reasons::LOCK_NOT_FOUND, false);
        let Step::Say(said) = step(&waiting(), Some(&missing)) else { panic!("it is said") };
        assert_eq!((said.holds, said.reason), (false, reasons::LOCK_NOT_FOUND));
        let mut told = waiting();
        let condition = json!([{"type": types::LOCK_HELD, "status": "False", "reason": said.reason, "message": "why"}]);
        told.status.as_mut().unwrap().conditions = serde_json::from_value(condition).unwrap();
        assert_eq!(step(&told, Some(&missing)), Step::Rest(None));
        let Step::Say(said) = step(&told, Some(&claim(false, reasons::WAITING, false))) else { panic!("it is over") };
        assert_eq!(said.reason, reasons::WAITING);
    }

    #[test]
    fn bad_annotations_are_said_and_nothing_is_claimed() {
        for (annotation, value) in [(LOCKS, "b"), (WAIT_TIMEOUT, "soon"), (WAIT_TIMEOUT, "-1")] {
            let Step::Say(said) = step(&pod(&[LOCK], json!({ (annotation): value })), None) else { panic!("{value}") };
            assert_eq!(said.reason, reasons::INVALID_LOCKS);
        }
        let mut of_replica_set = pod(&[LOCK], json!({ (WAIT_TIMEOUT): "0" }));
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
        of_replica_set.metadata.owner_references = serde_json::from_value(owner).unwrap();
        assert!(matches!(step(&of_replica_set, None), Step::Say(_)));
    }

    #[test]
    fn one_that_holds_and_does_not_start_is_said_and_deleted_only_if_it_says_so() {
        let (told, long) = (claim(true, reasons::HELD, false), Duration::from_secs(600));
        assert_eq!(step(&running_with(json!({})), Some(&told)), Step::Rest(Some(SLOW_START)));
        let Step::Say(said) = plan(&running_with(json!({})), Some(&told), long) else { panic!("it is said") };
        assert_eq!((said.holds, said.reason), (true, reasons::HOLDER_NOT_STARTED));
        let impatient = running_with(json!({ (START_TIMEOUT): "10" }));
        assert_eq!(step(&impatient, Some(&told)), Step::Rest(Some(Duration::from_secs(10))));
        let late = Duration::from_secs(10);
        assert!(matches!(plan(&impatient, Some(&told), late), Step::Fail(reasons::HOLDER_NOT_STARTED, ..)));
        let mut failed = impatient.clone();
        failed.status =
            serde_json::from_value(json!({"phase": "Failed", "reason": reasons::HOLDER_NOT_STARTED})).unwrap();
        assert_eq!(step(&failed, Some(&told)), Step::Rest(None), "its hold goes first");
        assert_eq!(step(&failed, None), Step::Delete(None));
        let mut bound = impatient.clone();
        bound.spec.as_mut().unwrap().node_name = Some("n".into());
        assert!(matches!(plan(&bound, Some(&told), late), Step::Delete(Some(_))));
        let mut started = impatient;
        let state = json!([{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]);
        started.status.as_mut().unwrap().container_statuses = serde_json::from_value(state).unwrap();
        assert_eq!(plan(&started, Some(&told), long), Step::Rest(None));
    }

    #[test]
    fn why_one_does_not_start_is_what_its_scheduler_or_its_first_container_says() {
        let words = |status: serde_json::Value| {
            let mut pod = running_with(json!({}));
            pod.status = serde_json::from_value(status).unwrap();
            why(&pod)
        };
        let unscheduled = |reason: &str| json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": reason, "message": "why"}]});
        assert_eq!(words(unscheduled("Unschedulable")), "Unschedulable: why");
        assert_eq!(words(unscheduled("SchedulingGated")), "nothing is known of it yet", "it has no gate any more");
        let waits = |reason: &str| {
            let state = json!({"waiting": {"reason": reason}});
            json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}])
        };
        let (first, then) = (waits("ImagePullBackOff"), waits("PodInitializing"));
        assert_eq!(words(json!({"initContainerStatuses": first, "containerStatuses": then})), "ImagePullBackOff");
    }

    #[test]
    fn a_labelled_pod_without_gate_and_token_runs_without_its_lock() {
        assert_eq!(step(&pod(&[], json!({})), None), Step::SayUngated);
        let mut over = pod(&[], json!({}));
        over.status.as_mut().unwrap().phase = Some("Succeeded".into());
        assert_eq!(step(&over, None), Step::Rest(None));
        assert_eq!(step(&over, Some(&claim(false, reasons::WAIT_TIMEOUT, true))), Step::Drop);
    }
}
