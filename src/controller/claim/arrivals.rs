//! In which order claims enter the queues of their locks.
//!
//! Claims are looked at side by side, and each needs its finalizer in etcd before it is asked for in Redis: left alone,
//! ten claims created within a few milliseconds would enter in any order. So they are numbered as the watch tells them,
//! which is the order of their creation, and those that have not entered yet stand in line, one line for each lock:
//! only its head asks in Redis, and makes place for the next. A claim of several locks stands in that of the first one that
//! it takes.
//!
//! A line is a courtesy, never a lock: a head that doesn't come is passed over after [`PATIENCE`], one that can't
//! come steps aside, and a line that is lost with the process begins anew with the creation times.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
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

struct Arrived {
    place: Place,
    lock: Option<LockKey>,
    listing: u64,
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
    listing: u64,
    arrived: HashMap<String, Arrived>,
    lines: HashMap<LockKey, Line>,
}

/// All claims by UID, and the lines of those that have not entered.
#[derive(Default)]
pub(in crate::controller) struct Arrivals(Mutex<Lines>);

impl Arrivals {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the watch tells, in its order.
    pub(in crate::controller) fn note(&self, event: &Event<LockClaim>) {
        let mut lines = self.lines();
        match event {
            Event::Init => lines.listing += 1,
            Event::InitApply(claim) | Event::Apply(claim) => lines.see(claim),
            Event::InitDone => {
                let listing = lines.listing;
                let gone = lines.arrived.iter().filter(|(_, arrived)| arrived.listing != listing);
                for uid in gone.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
                    lines.forget(&uid);
                }
            }
            Event::Delete(claim) => lines.forget(&claim.uid().unwrap_or_default()),
        }
    }

    /// When the claim came, for sorting.
    pub(super) fn place(&self, claim: &LockClaim) -> Place {
        let lines = self.lines();
        let arrived = lines.arrived.get(claim.metadata.uid.as_deref().unwrap_or_default());
        arrived.map_or((claim.creation_timestamp().map(|at| at.0), u64::MAX), |arrived| arrived.place)
    }

    /// Whether the claim may be asked for in Redis now: it is the first of its line, has left it, or the first
    /// doesn't come.
    pub(super) fn may_enter(&self, claim: &LockClaim, now: Instant) -> bool {
        let mut lines = self.lines();
        let Lines { arrived, lines, .. } = &mut *lines;
        let Some(arrived) = arrived.get(claim.metadata.uid.as_deref().unwrap_or_default()) else { return true };
        let Some(line) = arrived.lock.as_ref().and_then(|lock| lines.get_mut(lock)) else { return true };
        if line.is_first(&arrived.place) {
            return true;
        }
        now.duration_since(*line.stuck_since.get_or_insert(now)) > PATIENCE
    }

    /// Heeds the end of a look. Who is first of the line now, if that has changed.
    pub(in crate::controller) fn heed(&self, claim: &LockClaim, standing: Standing) -> Option<ObjectRef<LockClaim>> {
        let (mut lines, uid) = (self.lines(), claim.metadata.uid.as_deref().unwrap_or_default());
        match standing {
            Standing::Leaves => lines.leave(uid),
            Standing::WaitsWithAll => {
                let Lines { arrived, lines, .. } = &mut *lines;
                if let Some(arrived) = arrived.get(uid)
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
    fn see(&mut self, claim: &LockClaim) {
        let listing = self.listing;
        let Some(uid) = claim.uid() else { return };
        if let Some(arrived) = self.arrived.get_mut(&uid) {
            arrived.listing = listing;
            return;
        }
        self.seen += 1;
        let place = (claim.creation_timestamp().map(|at| at.0), self.seen);
        let namespace = claim.namespace().unwrap_or_default();
        let first = plan::in_order(claim).into_iter().next();
        let asked = first.filter(|_| plan::stage(claim) == Stage::Waiting);
        let lock = asked.and_then(|asked| LockKey::new(&namespace, &asked.name).ok());
        if let Some(lock) = lock.clone() {
            self.lines.entry(lock).or_default().places.insert(place, ObjectRef::from_obj(claim));
        }
        self.arrived.insert(uid, Arrived { place, lock, listing });
    }

    fn leave(&mut self, uid: &str) -> Option<ObjectRef<LockClaim>> {
        let arrived = self.arrived.get_mut(uid)?;
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
    fn forget(&mut self, uid: &str) {
        self.leave(uid);
        self.arrived.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::LockClaimSpec;

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
}
