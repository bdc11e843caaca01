//! In which order claims enter the queues of their locks.
//!
//! Claims are looked at side by side, and each needs its finalizer in etcd before it is asked for in Redis: left alone,
//! ten claims created within a few milliseconds would enter in any order. So they are numbered as the watch tells them,
//! which is the order of their creation, and those that have not entered yet stand in line, one line for each lock:
//! only its head asks in Redis, and makes place for the next. A claim of several locks stands in that of the first one that
//! it takes.
//!
//! The claims of gated pods are made side by side, too, by us: such a pod stands in line itself, in the order of the pods'
//! creation, and its claim has its place.
//!
//! A line is a courtesy, never a lock: a head that doesn't come is passed over after [`PATIENCE`], one that can't
//! come steps aside, and a line that is lost with the process begins anew with the creation times.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;

use super::plan::{self, Stage};
use crate::api::LockClaim;
use crate::lease::LockKey;

/// How long the others stand behind a head that doesn't come.
const PATIENCE: Duration = Duration::from_secs(2);

/// When it was created, in whole seconds, and as which one this process has seen it.
pub(super) type Place = (Option<Timestamp>, u64);

/// How a look left the claim's place in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::controller) enum Standing {
    /// It has entered, or won't.
    Leaves,
    /// It waits for what the whole line waits for: the lock, or its store.
    WaitsWithAll,
    /// It will come.
    Comes,
}

/// A claim, or a pod that has or will have one.
struct Arrived {
    place: Place,
    /// In whose line it stands.
    lock: Option<LockKey>,
    claim: ObjectRef<LockClaim>,
    /// The listing of claims in which its claim was seen last.
    claim_seen: Option<u64>,
    /// The listing of pods in which its pod was.
    pod_seen: Option<u64>,
}

#[derive(Default)]
struct Line {
    places: BTreeMap<Place, ObjectRef<LockClaim>>,
    /// Since when somebody has stood behind a head that doesn't come.
    stuck_since: Option<Instant>,
}

impl Line {
    fn is_first(&self, place: &Place) -> bool {
        self.places.first_key_value().is_some_and(|(first, _)| first == place)
    }
}

#[derive(Default)]
struct Lines {
    seen: u64,
    claims_listing: u64,
    pods_listing: u64,
    /// By the UID of the pod, of a gated one, or of the claim.
    arrived: HashMap<String, Arrived>,
    lines: HashMap<LockKey, Line>,
}

/// All claims and gated pods, and the lines of those that have not entered.
#[derive(Default)]
pub(in crate::controller) struct Arrivals(Mutex<Lines>);

/// The pod whose place a claim has, or the claim itself.
fn whose(claim: &LockClaim) -> &str {
    let pod = claim.spec.holder_ref.as_ref().filter(|_| plan::is_of_gated_pod(claim)).map(|holder| holder.uid.as_str());
    pod.or(claim.metadata.uid.as_deref()).unwrap_or_default()
}

impl Arrivals {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the watch of claims tells, in its order.
    pub(in crate::controller) fn note(&self, event: &Event<LockClaim>) {
        let mut lines = self.lines();
        match event {
            Event::Init => lines.claims_listing += 1,
            Event::InitApply(claim) | Event::Apply(claim) => lines.see(claim),
            Event::InitDone => {
                let listing = lines.claims_listing;
                let is_gone = |arrived: &Arrived| arrived.claim_seen.is_some_and(|seen| seen != listing);
                lines.those(is_gone).iter().for_each(|whose| lines.forget_claim(whose));
            }
            Event::Delete(claim) => lines.forget_claim(whose(claim)),
        }
    }

    /// Notes what the watch of labelled pods tells, in its order. `stands_at`: the lock at which a pod waits for its claim.
    pub(in crate::controller) fn note_pod(&self, event: &Event<Pod>, stands_at: impl Fn(&Pod) -> Option<LockKey>) {
        let mut lines = self.lines();
        match event {
            Event::Init => lines.pods_listing += 1,
            Event::InitApply(pod) | Event::Apply(pod) => lines.see_pod(pod, stands_at),
            Event::InitDone => {
                let listing = lines.pods_listing;
                let is_gone = |arrived: &Arrived| arrived.pod_seen.is_some_and(|seen| seen != listing);
                lines.those(is_gone).iter().for_each(|whose| lines.forget_pod(whose));
            }
            Event::Delete(pod) => lines.forget_pod(pod.metadata.uid.as_deref().unwrap_or_default()),
        }
    }

    /// When the claim came, for sorting.
    pub(super) fn place(&self, claim: &LockClaim) -> Place {
        let lines = self.lines();
        let arrived = lines.arrived.get(whose(claim));
        arrived.map_or((claim.creation_timestamp().map(|at| at.0), u64::MAX), |arrived| arrived.place)
    }

    /// Whether the claim may be asked for in Redis now: it is the first of its line, has left it, or the first
    /// doesn't come.
    pub(super) fn may_enter(&self, claim: &LockClaim, now: Instant) -> bool {
        let mut lines = self.lines();
        let Lines { arrived, lines, .. } = &mut *lines;
        let Some(arrived) = arrived.get(whose(claim)) else { return true };
        let Some(line) = arrived.lock.as_ref().and_then(|lock| lines.get_mut(lock)) else { return true };
        if line.is_first(&arrived.place) {
            return true;
        }
        now.duration_since(*line.stuck_since.get_or_insert(now)) > PATIENCE
    }

    /// Heeds the end of a look. Who is first of the line now, if that has changed.
    pub(in crate::controller) fn heed(&self, claim: &LockClaim, standing: Standing) -> Option<ObjectRef<LockClaim>> {
        let (mut lines, whose) = (self.lines(), whose(claim));
        match standing {
            Standing::Leaves => lines.leave(whose),
            Standing::WaitsWithAll => {
                let Lines { arrived, lines, .. } = &mut *lines;
                if let Some(arrived) = arrived.get(whose)
                    && let Some(line) = arrived.lock.as_ref().and_then(|lock| lines.get_mut(lock))
                    && line.is_first(&arrived.place)
                {
                    line.stuck_since = None;
                }
                None
            }
            Standing::Comes => None,
        }
    }
}

impl Lines {
    fn those(&self, are: impl Fn(&Arrived) -> bool) -> Vec<String> {
        self.arrived.iter().filter(|(_, arrived)| are(arrived)).map(|(whose, _)| whose.clone()).collect()
    }

    fn next_place(&mut self, created: Option<Timestamp>) -> Place {
        self.seen += 1;
        (created, self.seen)
    }

    fn see(&mut self, claim: &LockClaim) {
        let (whose, listing) = (whose(claim).to_owned(), self.claims_listing);
        if let Some(seen) = self.arrived.get_mut(&whose).and_then(|arrived| arrived.claim_seen.as_mut()) {
            *seen = listing;
            return;
        }
        if !self.arrived.contains_key(&whose) {
            let place = self.next_place(claim.creation_timestamp().map(|at| at.0));
            let (lock, claim) = (None, ObjectRef::from_obj(claim));
            self.arrived.insert(whose.clone(), Arrived { place, lock, claim, claim_seen: None, pod_seen: None });
        }
        let namespace = claim.namespace().unwrap_or_default();
        let first = plan::in_order(claim).into_iter().next();
        let asked = first.filter(|_| plan::stage(claim) == Stage::Waiting);
        self.stand(&whose, asked.and_then(|asked| LockKey::new(&namespace, &asked.name).ok()));
        if let Some(arrived) = self.arrived.get_mut(&whose) {
            arrived.claim_seen = Some(listing);
        }
    }

    fn see_pod(&mut self, pod: &Pod, stands_at: impl Fn(&Pod) -> Option<LockKey>) {
        let Some(uid) = pod.uid() else { return };
        let listing = self.pods_listing;
        if self.arrived.get(&uid).is_none_or(|arrived| arrived.pod_seen.is_none()) {
            self.come(pod, &uid);
        }
        let Some(arrived) = self.arrived.get_mut(&uid) else { return };
        arrived.pod_seen = Some(listing);
        if arrived.claim_seen.is_some() {
            return;
        }
        let lock = stands_at(pod);
        if arrived.lock != lock {
            self.stand(&uid, lock);
        }
    }

    /// A pod that wasn't known: if its claim was, that gets the pod's place.
    fn come(&mut self, pod: &Pod, uid: &str) {
        let place = self.next_place(pod.creation_timestamp().map(|at| at.0));
        let stood_at = self.arrived.get(uid).and_then(|arrived| arrived.lock.clone());
        self.leave(uid);
        let claim = ObjectRef::new(&plan::name_for_pod(uid)).within(&pod.namespace().unwrap_or_default());
        let new = Arrived { place, lock: None, claim, claim_seen: None, pod_seen: None };
        self.arrived.entry(uid.to_owned()).or_insert(new).place = place;
        self.stand(uid, stood_at);
    }

    /// Stands in the line of this lock from now on, and in no other.
    fn stand(&mut self, whose: &str, lock: Option<LockKey>) {
        self.leave(whose);
        if let (Some(arrived), Some(lock)) = (self.arrived.get_mut(whose), lock) {
            self.lines.entry(lock.clone()).or_default().places.insert(arrived.place, arrived.claim.clone());
            arrived.lock = Some(lock);
        }
    }

    fn leave(&mut self, whose: &str) -> Option<ObjectRef<LockClaim>> {
        let arrived = self.arrived.get_mut(whose)?;
        let lock = arrived.lock.take()?;
        let line = self.lines.get_mut(&lock)?;
        let was_first = line.is_first(&arrived.place);
        line.places.remove(&arrived.place);
        if was_first {
            line.stuck_since = None;
        }
        let Some((_, first)) = line.places.first_key_value() else {
            self.lines.remove(&lock);
            return None;
        };
        was_first.then(|| first.clone())
    }

    /// A claim that has gone without a look leaves its line, too: the next one is found by its own next look.
    fn forget_claim(&mut self, whose: &str) {
        self.leave(whose);
        self.forget(whose, |arrived| arrived.claim_seen = None);
    }

    /// A claim that was there outlasts its pod, and stands where it stood.
    fn forget_pod(&mut self, uid: &str) {
        if self.arrived.get(uid).is_some_and(|arrived| arrived.claim_seen.is_none()) {
            self.leave(uid);
        }
        self.forget(uid, |arrived| arrived.pod_seen = None);
    }

    fn forget(&mut self, whose: &str, part: impl FnOnce(&mut Arrived)) {
        let Some(arrived) = self.arrived.get_mut(whose) else { return };
        part(arrived);
        if arrived.claim_seen.is_none() && arrived.pod_seen.is_none() {
            self.arrived.remove(whose);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;
    use crate::api::{HolderKind, HolderRef, LockClaimSpec};

    fn claim(name: &str, created: i64) -> LockClaim {
        let mut claim = LockClaim::new(name, LockClaimSpec::for_lock("a"));
        claim.metadata.namespace = Some("shop".into());
        claim.metadata.uid = Some(format!("uid-of-{name}"));
        claim.metadata.creation_timestamp =
            Some(crate::api::time::seconds(Timestamp::from_second(created).expect("a time")));
        claim
    }

    fn noted(claims: &[&LockClaim]) -> Arrivals {
        let arrivals = Arrivals::default();
        for claim in claims {
            arrivals.note(&Event::Apply((*claim).clone()));
        }
        arrivals
    }

    #[test]
    fn only_the_first_enters_and_then_the_next() {
        let (a, b) = (claim("z", 5), claim("a", 5));
        let (arrivals, now) = (noted(&[&a, &b]), Instant::now());
        assert!(arrivals.may_enter(&a, now) && !arrivals.may_enter(&b, now));
        assert_eq!(arrivals.heed(&a, Standing::Comes), None);
        assert_eq!(arrivals.heed(&a, Standing::Leaves), Some(ObjectRef::from_obj(&b)));
        assert!(arrivals.may_enter(&a, now) && arrivals.may_enter(&b, now));
        assert_eq!(arrivals.heed(&b, Standing::Leaves), None);
    }

    #[test]
    fn an_older_one_stands_before_those_seen_earlier() {
        let (young, old) = (claim("young", 9), claim("old", 5));
        let arrivals = noted(&[&young, &old]);
        assert!(arrivals.may_enter(&old, Instant::now()) && !arrivals.may_enter(&young, Instant::now()));
    }

    #[test]
    fn a_first_that_does_not_come_is_passed_over_but_not_one_that_waits_with_all() {
        let (a, b) = (claim("a", 5), claim("b", 5));
        let (arrivals, now) = (noted(&[&a, &b]), Instant::now());
        let late = now + PATIENCE + Duration::from_millis(1);
        assert!(!arrivals.may_enter(&b, now));
        arrivals.heed(&a, Standing::WaitsWithAll);
        assert!(!arrivals.may_enter(&b, late), "its patience begins when it asks");
        assert!(arrivals.may_enter(&b, late + PATIENCE + Duration::from_millis(1)));
    }

    #[test]
    fn one_that_is_gone_blocks_nobody() {
        let (a, b, c) = (claim("a", 5), claim("b", 5), claim("c", 5));
        let (arrivals, now) = (noted(&[&a, &b, &c]), Instant::now());
        arrivals.note(&Event::Delete(a));
        assert!(arrivals.may_enter(&b, now));
        arrivals.note(&Event::Init);
        arrivals.note(&Event::InitApply(c.clone()));
        arrivals.note(&Event::InitDone);
        assert!(arrivals.may_enter(&c, now), "b was not in the list any more");
    }

    fn pod(uid: &str, created: i64) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("shop".into());
        pod.metadata.uid = Some(uid.into());
        pod.metadata.creation_timestamp =
            Some(crate::api::time::seconds(Timestamp::from_second(created).expect("a time")));
        pod
    }

    /// The claim of a gated pod.
    fn claim_of(pod: &Pod, created: i64) -> LockClaim {
        let uid = pod.uid().expect("a UID");
        let mut claim = claim(&plan::name_for_pod(&uid), created);
        claim.spec.holder_ref =
            Some(HolderRef { api_group: String::new(), kind: HolderKind::Pod, name: "p".into(), uid: uid.clone() });
        let owner = OwnerReference { kind: "Pod".into(), uid, ..OwnerReference::default() };
        claim.metadata.owner_references = Some(vec![owner]);
        claim
    }

    fn at(lock: &str) -> Option<LockKey> {
        Some(LockKey::new("shop", lock).expect("a key"))
    }

    #[test]
    fn claims_of_pods_enter_in_the_order_of_the_pods() {
        let (one, two) = (pod("z", 5), pod("y", 5));
        let (first, second) = (claim_of(&one, 9), claim_of(&two, 8));
        let (arrivals, now) = (Arrivals::default(), Instant::now());
        for pod in [&one, &two] {
            arrivals.note_pod(&Event::Apply(pod.clone()), |_| at("a"));
        }
        arrivals.note(&Event::Apply(second.clone()));
        assert!(!arrivals.may_enter(&second, now), "the first has no claim yet");
        arrivals.note(&Event::Apply(first.clone()));
        assert!(arrivals.may_enter(&first, now) && !arrivals.may_enter(&second, now));
        assert_eq!(arrivals.heed(&first, Standing::Leaves), Some(ObjectRef::from_obj(&second)));
        arrivals.note_pod(&Event::Apply(one), |_| at("a"));
        assert!(arrivals.may_enter(&second, now), "the first has entered, and stands in no line any more");
    }

    #[test]
    fn a_claim_that_is_known_before_its_pod_gets_the_place_of_that() {
        let (old, young) = (pod("old", 5), pod("young", 6));
        let (late, early) = (claim_of(&old, 9), claim_of(&young, 7));
        let (arrivals, now) = (noted(&[&early, &late]), Instant::now());
        assert!(arrivals.may_enter(&early, now) && !arrivals.may_enter(&late, now));
        for pod in [&young, &old] {
            arrivals.note_pod(&Event::InitApply(pod.clone()), |_| at("a"));
        }
        assert!(arrivals.may_enter(&late, now) && !arrivals.may_enter(&early, now));
    }

    #[test]
    fn a_pod_that_asks_for_another_lock_or_for_none_or_goes_blocks_nobody() {
        let (first, now) = (pod("first", 5), Instant::now());
        let second = claim("second", 6);
        type End = (Event<Pod>, Option<LockKey>);
        let ends: [End; 3] = [
            (Event::Apply(first.clone()), at("b")),
            (Event::Apply(first.clone()), None),
            (Event::Delete(first.clone()), at("a")),
        ];
        for (event, lock) in ends {
            let arrivals = Arrivals::default();
            arrivals.note_pod(&Event::Apply(first.clone()), |_| at("a"));
            arrivals.note(&Event::Apply(second.clone()));
            assert!(!arrivals.may_enter(&second, now));
            arrivals.note_pod(&event, |_| lock.clone());
            assert!(arrivals.may_enter(&second, now), "{event:?}");
        }
        let arrivals = Arrivals::default();
        arrivals.note_pod(&Event::Apply(first), |_| at("a"));
        arrivals.note(&Event::Apply(second.clone()));
        arrivals.note_pod(&Event::Init, |_| None);
        arrivals.note_pod(&Event::InitDone, |_| None);
        assert!(arrivals.may_enter(&second, now), "it was not in the list any more");
        assert_eq!(arrivals.0.lock().expect("no panic").arrived.len(), 1, "nothing is kept of it");
    }

    #[test]
    fn a_pod_whose_claim_is_made_anew_stands_in_line_again() {
        let first = pod("first", 5);
        let (of_first, second) = (claim_of(&first, 6), claim("second", 7));
        let (arrivals, now) = (Arrivals::default(), Instant::now());
        let seen = || arrivals.note_pod(&Event::Apply(first.clone()), |_| at("a"));
        seen();
        arrivals.note(&Event::Apply(of_first.clone()));
        arrivals.note(&Event::Delete(of_first));
        arrivals.note(&Event::Apply(second.clone()));
        assert!(arrivals.may_enter(&second, now));
        seen();
        assert!(!arrivals.may_enter(&second, now));
    }
}
