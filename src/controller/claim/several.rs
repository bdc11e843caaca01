//! Claims of several locks by random sequences: what [`plan`] decides, over the reference model of each lock's record.
//!
//! Redis is the model, etcd is the claim itself. The steps do to both what those of `walk.rs` do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, RngSeed, TestCaseResult};

use super::plan::{self, Facts, Stage, Step, Store};
use super::{STEPS, claim_of_id, has_ended, has_place, in_line, records as records_id, remembered, request, successor};
use crate::api::condition::{self, reasons, types};
use crate::api::{
    ClaimedLock, FINALIZER, LockClaim, LockClaimSpec, LockClaimStatus, LockMode, LockRequest, NodeUnreachablePolicy,
    time,
};
use crate::controller::nodes::Reach;
use crate::lease::{Acquired, Epoch, FencingToken, Grant, HolderId, LockKey, Mode, Renewed};
use crate::store::model::{Model, Reign};
use crate::store::{Hold, HoldState, Inspection, Opening, Place, Provision, Remembered};

/// The locks, and their permits.
const LOCKS: [(&str, u32); 4] = [("a", 1), ("b", 2), ("c", 1), ("d", 2)];
const LEASE: Duration = Duration::from_secs(15);
/// How often what is kept is renewed, and what is over is ended.
const BEAT_MS: i64 = 4_000;
const START_MS: i64 = 1_000_000;
/// In so many rounds, in each of which those that hold give back, every claim has its turn.
const ROUNDS: usize = 60;
/// So many claims for it alone wait for each lock meanwhile.
const STREAM: usize = 2;

/// What happens.
#[derive(Debug, Clone)]
enum Move {
    /// The controller takes the next step of a claim.
    Look(usize),
    /// It does, and ends after it has written to etcd. The next one begins, with that claim: the locks are looked at later.
    Crash { who: usize, first: usize },
    /// Somebody deletes a claim: it gives back, or gives up.
    Delete(usize),
    /// The controller is another one, that remembers nothing, after so many beats without one.
    Forget(i64),
    /// Redis is another process, without data; whether the controller goes with it.
    Lose { controller: bool },
    /// Redis is a replica that lacks what the last so many moves have written; whether the controller goes with it.
    Lag { moves: usize, controller: bool },
    /// So many beats pass.
    Pass(i64),
}

/// A claim, as etcd has it.
struct Actor {
    claim: LockClaim,
    /// The controller keeps for it a hold (`true`) or a place of these locks.
    kept: BTreeMap<String, bool>,
    /// Its finalizer is gone.
    gone: bool,
}

impl Actor {
    fn id(&self) -> HolderId {
        plan::holder_id(&self.claim).expect("an id")
    }
}

/// Where one stands: by its priority, then by its arrival.
type Rank = (Reverse<i32>, usize);
type Ranks = BTreeMap<&'static str, BTreeMap<String, Rank>>;

struct World {
    reign: Reign,
    records: BTreeMap<&'static str, Model>,
    actors: Vec<Actor>,
    /// Of the claims that hold or wait for a lock, by UID.
    places: Ranks,
    arrived: usize,
    /// The holds of each lock that somebody was ever told of.
    told: BTreeMap<&'static str, Vec<Hold>>,
    /// The records and places before each of the last moves, since Redis is this process.
    history: Vec<(BTreeMap<&'static str, Model>, Ranks)>,
    /// The controller ends before it frees what etcd has let go.
    ends: bool,
    /// One has ended so.
    has_crashed: bool,
    /// Redis processes there were.
    processes: i64,
}

fn opening(process: i64) -> Opening {
    let epoch = Epoch::new(process).expect("an epoch");
    Opening { run_id: format!("run-{process}"), replid: "data".into(), epoch }
}

fn key(lock: &str) -> LockKey {
    LockKey::new("shop", lock).expect("a name")
}

fn record(reign: &Reign, permits: u32) -> Model {
    let first = opening(1);
    let mut record = Model::new(START_MS, (first.run_id.clone(), first.replid.clone()));
    record.open(reign, &first).expect("it is opened");
    record.provision(reign, &Provision::new("lock", permits, LEASE)).expect("it is provisioned");
    record
}

/// Of the claim whose attempt this is.
fn uid(id: &HolderId) -> &str {
    claim_of_id(id).expect("an attempt of a claim")
}

fn crowded(holds: &[Hold], permits: u32) -> bool {
    let has = |mode| holds.iter().any(|hold| hold.mode == mode);
    let counted: u32 = holds.iter().map(|hold| hold.mode.counted()).sum();
    if has(Mode::Exclusive) { holds.len() > 1 } else { counted + u32::from(has(Mode::Shared)) > permits }
}

impl World {
    fn of(specs: Vec<LockClaimSpec>) -> Self {
        let reign = Reign { uid: "store".into(), term: 1 };
        let records = LOCKS.iter().map(|(lock, permits)| (*lock, record(&reign, *permits))).collect();
        let places = LOCKS.iter().map(|(lock, _)| (*lock, BTreeMap::new())).collect();
        let mut world = Self {
            reign,
            records,
            actors: Vec::new(),
            places,
            arrived: 0,
            told: LOCKS.iter().map(|(lock, _)| (*lock, Vec::new())).collect(),
            history: Vec::new(),
            ends: false,
            has_crashed: false,
            processes: 1,
        };
        specs.into_iter().for_each(|spec| world.create(spec));
        world
    }

    fn create(&mut self, spec: LockClaimSpec) {
        let name = format!("claim-{}", self.actors.len());
        let mut claim = LockClaim::new(&name, spec);
        claim.metadata.namespace = Some("shop".into());
        claim.metadata.uid = Some(format!("uid-of-{name}"));
        claim.metadata.finalizers = Some(vec![FINALIZER.into()]);
        self.actors.push(Actor { claim, kept: BTreeMap::new(), gone: false });
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.records["a"].now).expect("a time")
    }

    fn record(&mut self, lock: &str) -> &mut Model {
        self.records.get_mut(lock).expect("one of the locks")
    }

    fn stands_at(&self, lock: &str, id: &HolderId) -> bool {
        self.records[lock].placed().any(|placed| placed == id)
    }

    fn seen(&self) -> BTreeMap<&'static str, Inspection> {
        self.records.iter().map(|(lock, record)| (*lock, record.inspect().expect("a record"))).collect()
    }

    /// Does it and checks what must hold; whether a claim has a next step at once.
    fn act(&mut self, what: &Move) -> Result<bool, TestCaseError> {
        let mut before = self.seen();
        let goes_on = match what {
            Move::Look(who) => self.look(*who, &before)?,
            Move::Crash { who, first } => {
                (self.ends, self.has_crashed) = (true, true);
                self.look(*who, &before)?;
                self.ends = false;
                self.forget();
                self.beat(0);
                self.check_orders(&before)?;
                before = self.seen();
                self.look(*first, &before)?;
                self.free_orphans();
                false
            }
            Move::Delete(who) => {
                let now = self.now();
                self.actors[*who].claim.metadata.deletion_timestamp.get_or_insert(time::seconds(now));
                false
            }
            Move::Forget(beats) => {
                self.records.values_mut().for_each(|record| record.now += beats * BEAT_MS);
                self.forget();
                self.beat(0);
                self.free_orphans();
                false
            }
            Move::Lose { controller } => {
                if *controller {
                    self.forget();
                }
                self.lose(&before, |record, to| record.restart((to.run_id.clone(), to.replid.clone())))?;
                // What is put back is not granted.
                self.check(&self.seen())?;
                return Ok(false);
            }
            Move::Lag { moves, controller } => {
                if *controller {
                    self.forget();
                }
                let now = self.records["a"].now;
                let copy = self.history.swap_remove(self.history.len().saturating_sub(1 + moves));
                (self.records, self.places) = copy;
                self.records.values_mut().for_each(|record| record.now = now);
                self.lose(&before, |record, to| {
                    record.promoted(to.replid.clone());
                    record.process.0.clone_from(&to.run_id);
                })?;
                self.check(&self.seen())?;
                return Ok(false);
            }
            Move::Pass(beats) => {
                for _ in 0..*beats {
                    self.beat(BEAT_MS);
                    self.free_orphans();
                }
                false
            }
        };
        self.check(&before)?;
        Ok(goes_on)
    }

    fn forget(&mut self) {
        self.reign.term += 1;
        self.actors.iter_mut().for_each(|actor| actor.kept.clear());
    }

    /// Each record is put back from etcd; whoever had a place, or a hold that nobody was told of, waits.
    fn lose(
        &mut self,
        before: &BTreeMap<&'static str, Inspection>,
        replace: impl Fn(&mut Model, &Opening),
    ) -> TestCaseResult {
        self.processes += 1;
        let (to, now, reign) = (opening(self.processes), self.now(), self.reign.clone());
        for (lock, permits) in LOCKS {
            let there = || self.actors.iter().enumerate().filter(|(_, actor)| !actor.gone);
            let holds: Vec<Remembered> =
                there().filter_map(|(_, actor)| remembered(&actor.claim, &key(lock))).collect();
            let waits = |actor: &Actor| has_place(&actor.claim, &key(lock), actor.kept.contains_key(lock), now);
            let waiting = there().filter(|(_, actor)| waits(actor)).map(|(at, actor)| (&actor.claim, at));
            let waiters = in_line(&key(lock), now, waiting);
            let has = |id: &HolderId| {
                waiters.iter().map(|w| &w.request.id).chain(holds.iter().map(|h| &h.id)).any(|i| i == id)
            };
            let had = &before[lock];
            for id in had.holds.iter().map(|hold| &hold.id).chain(had.waiters.iter().map(|(id, _)| id)) {
                let owner = there().find(|(_, actor)| actor.id() == *id).map(|(_, actor)| &actor.claim);
                let over = owner.is_none_or(|claim| {
                    // Another was granted its lock, and it has given up.
                    let has_given_up = plan::attempt(claim) > 1 && !plan::has_reached(claim, lock);
                    let is_late = plan::wait_left(claim, now) == Some(Duration::ZERO);
                    plan::stage(claim) == Stage::Releasing || is_late || has_given_up
                });
                prop_assert!(over || has(id), "{} has lost its place at {lock}", id.as_str());
            }
            let quarantine = LEASE + Duration::from_secs(1);
            let line = waiters.clone();
            let wanted = Provision { quarantine, holds, waiters, ..Provision::new("lock", permits, LEASE) };
            let record = self.records.get_mut(lock).expect("one of the locks");
            replace(record, &to);
            // Whom it doesn't know, or whose place it has taken, comes anew.
            let places = self.places.get_mut(lock).expect("one of the locks");
            places.retain(|place, _| record.placed().any(|id| uid(id) == place));
            record.heartbeat(&reign, &reign.term.to_string(), 0).expect("it reigns");
            record.restore(&reign, &wanted, &to).expect("it reigns");
            record.open(&reign, &to).expect("it reigns");
            for Place { request, .. } in line.iter().filter(|place| record.placed().any(|id| *id == place.request.id)) {
                self.arrived += 1;
                places.entry(uid(&request.id).to_owned()).or_insert((Reverse(request.priority), self.arrived));
            }
        }
        self.free_orphans();
        self.history.clear();
        Ok(())
    }

    /// As the look at a lock does.
    fn free_orphans(&mut self) {
        let Self { reign, records, actors, .. } = self;
        for record in records.values_mut() {
            let seen = record.inspect().expect("a record");
            let is_over = |hold: &&Hold| {
                let is_over = |actor: &Actor| !actor.gone && has_ended(&actor.claim, &hold.id);
                hold.state == HoldState::Pinned || actors.iter().any(is_over)
            };
            let over = seen.holds.iter().filter(is_over).map(|hold| &hold.id);
            for id in over.chain(seen.waiters.iter().map(|(id, _)| id)) {
                let mut there = actors.iter().filter(|actor| !actor.gone).map(|actor| &actor.claim);
                let claim = there.find(|claim| claim.uid().as_deref() == claim_of_id(id));
                if !claim.is_some_and(|claim| records_id(claim, id)) {
                    let successor = claim.and_then(|claim| successor(claim, id));
                    record.free(reign, id, successor.as_ref()).expect("it reigns");
                }
            }
        }
    }

    /// The heartbeat, the renewals and the ends of one moment.
    fn beat(&mut self, passed: i64) {
        let Self { reign, records, actors, .. } = self;
        for (lock, record) in records {
            record.now += passed;
            record.heartbeat(reign, &reign.term.to_string(), 0).expect("it reigns");
            for actor in actors.iter().filter(|actor| actor.kept.get(*lock) == Some(&true)) {
                record.renew(&actor.id());
            }
            record.expire(reign).expect("it reigns");
        }
    }

    fn look(&mut self, who: usize, before: &BTreeMap<&'static str, Inspection>) -> Result<bool, TestCaseError> {
        let Actor { claim, gone, .. } = &self.actors[who];
        if *gone {
            return Ok(false);
        }
        let facts = Facts {
            store: Store::Open,
            about: "a".into(),
            pod: None,
            reach: Reach::Ready,
            forced: None,
            policy: NodeUnreachablePolicy::Keep,
            max_hold: None,
            in_doubt: false,
            in_past_epoch: claim.status.iter().flat_map(|status| &status.locks).any(|lock| {
                FencingToken::new(lock.fencing_token).is_some_and(|token| token.epoch().get() < self.processes)
            }),
            now: self.now(),
        };
        let is_free = |one: &LockRequest| {
            let record = &before[one.name.as_str()];
            record.holds.is_empty() && record.waiters.is_empty() && record.quarantine == 0
        };
        let at_once = claim.status.is_none() && claim.spec.locks.iter().all(is_free);
        match plan::plan(claim, &facts) {
            Step::Contend => {
                let goes_on = self.contend(who);
                let granted = plan::stage(&self.actors[who].claim) == Stage::Granted;
                prop_assert!(granted || !at_once, "{who} was not granted, though nobody has or wants its locks");
                Ok(goes_on)
            }
            Step::Pin => Ok(self.pin(who)),
            Step::NextAttempt => Ok(self.next_attempt(who)),
            Step::Release(..) => Ok(self.write(who, false, reasons::RELEASING, |_| {})),
            step @ (Step::Free | Step::Withdraw) => {
                self.ends &= step == Step::Withdraw;
                self.free_all(who, &self.actors[who].id(), None);
                self.actors[who].gone = true;
                Ok(false)
            }
            Step::RemoveFinalizer => {
                self.actors[who].gone = true;
                Ok(false)
            }
            Step::Keep(..) => {
                self.keep_all(who);
                Ok(false)
            }
            Step::Rest(_) => Ok(false),
            other => Err(TestCaseError::fail(format!("nothing leads to {other:?}"))),
        }
    }

    fn write(&mut self, who: usize, held: bool, reason: &str, change: impl FnOnce(&mut LockClaimStatus)) -> bool {
        let now = self.now();
        let status = self.actors[who].claim.status.get_or_insert_default();
        status.start_time.get_or_insert(time::seconds(now));
        condition::set(&mut status.conditions, types::HELD, held, reason, "", None, now);
        change(status);
        true
    }

    /// Asks for each lock once those before it are granted.
    fn contend(&mut self, who: usize) -> bool {
        let (claim, now, reign) = (self.actors[who].claim.clone(), self.now(), self.reign.clone());
        let (asked, mut grants) = (plan::in_order(&claim), BTreeMap::new());
        for (at, one) in asked.iter().enumerate() {
            let request = request(&claim, one, now).expect("a request");
            self.actors[who].kept.entry(one.name.clone()).or_insert(false);
            let answer = self.record(&one.name).claim(&reign, &request).expect("it reigns");
            let kept = &mut self.actors[who].kept;
            let Acquired::Granted(grant) = answer else {
                kept.insert(one.name.clone(), false);
                if matches!(answer, Acquired::Queued { .. }) && !self.keeps_its_places(who, &asked[at + 1..]) {
                    return self.next_attempt(who);
                }
                return self.not_granted(who, &one.name, answer);
            };
            if asked.len() > 1 {
                kept.insert(one.name.clone(), true);
            }
            grants.insert(one.name.clone(), grant);
        }
        self.granted(who, &grants)
    }

    fn keeps_its_places(&mut self, who: usize, next: &[&LockRequest]) -> bool {
        let (claim, now, reign) = (self.actors[who].claim.clone(), self.now(), self.reign.clone());
        for one in next {
            let kept = self.actors[who].kept.contains_key(&one.name);
            if kept || plan::has_stood_at(&claim, &one.name) {
                let request = request(&claim, one, now).expect("a request");
                let answer = self.record(&one.name).reserve(&reign, &request).expect("it reigns");
                if matches!(answer, Acquired::Granted(_) | Acquired::Lost) {
                    return false;
                }
                self.actors[who].kept.insert(one.name.clone(), false);
            }
        }
        true
    }

    fn granted(&mut self, who: usize, grants: &BTreeMap<String, Grant>) -> bool {
        let at = time::micros(self.now());
        let claimed = |(name, grant): (&String, &Grant)| {
            let (name, fencing_token, acquire_time) = (name.clone(), grant.token.get(), at.clone());
            ClaimedLock { name, fencing_token, acquire_time, expire_time: None }
        };
        let (id, locks) = (self.actors[who].id(), grants.iter().map(claimed).collect());
        self.write(who, false, reasons::GRANTED, |status| {
            (status.holder_id, status.locks, status.reached) = (Some(id.as_str().to_owned()), locks, None);
        })
    }

    fn not_granted(&mut self, who: usize, lock: &str, answer: Acquired) -> bool {
        match answer {
            Acquired::Queued { .. } => {
                let known = plan::has_reached(&self.actors[who].claim, lock);
                self.write(who, false, reasons::WAITING, |status| {
                    if !known {
                        status.reached = Some(lock.to_owned());
                    }
                });
                false
            }
            Acquired::Lost => self.next_attempt(who),
            Acquired::Busy { .. } => {
                let now = self.now();
                self.free_all(who, &self.actors[who].id(), None);
                self.write(who, false, reasons::WAIT_TIMEOUT, |status| {
                    condition::set(&mut status.conditions, types::FINISHED, true, reasons::WAIT_TIMEOUT, "", None, now);
                })
            }
            other => unreachable!("{other:?}"),
        }
    }

    /// All that is held is freed, under the id of before.
    fn next_attempt(&mut self, who: usize) -> bool {
        let reached = plan::reached_by_next(&self.actors[who].claim);
        self.begin_anew(who, reached)
    }

    fn begin_anew(&mut self, who: usize, reached: Option<String>) -> bool {
        let (before, attempt) = (self.actors[who].id(), plan::attempt(&self.actors[who].claim) + 1);
        self.write(who, false, reasons::WAITING, |status| {
            (status.attempt, status.holder_id, status.reached) = (Some(attempt), None, reached);
            status.locks.clear();
        });
        let next = self.actors[who].id();
        let stood: Vec<_> = LOCKS.iter().map(|(lock, _)| lock).filter(|lock| self.stands_at(lock, &before)).collect();
        self.free_all(who, &before, Some(&next));
        let is_late = plan::wait_left(&self.actors[who].claim, self.now()) == Some(Duration::ZERO);
        for lock in stood.into_iter().filter(|_| !self.ends && !is_late) {
            assert!(self.stands_at(lock, &next), "{} has lost its place at {lock}", next.as_str());
        }
        true
    }

    fn pin(&mut self, who: usize) -> bool {
        let (claim, id, reign) = (self.actors[who].claim.clone(), self.actors[who].id(), self.reign.clone());
        let processes = self.processes;
        for one in plan::in_order(&claim) {
            let token = plan::recorded_token(&claim, &one.name).expect("it was granted");
            let pinned = self.record(&one.name).pin(&reign, &id, opening(processes).epoch).expect("it reigns");
            if !matches!(pinned, Renewed::Held(grant) if grant.token == token) {
                return self.next_attempt(who);
            }
        }
        self.keep_all(who);
        self.write(who, true, reasons::HELD, |_| {})
    }

    fn keep_all(&mut self, who: usize) {
        let Actor { claim, kept, .. } = &mut self.actors[who];
        kept.extend(claim.spec.locks.iter().map(|one| (one.name.clone(), true)));
    }

    /// After etcd has let it go: unless the controller ends between the two.
    fn free_all(&mut self, who: usize, id: &HolderId, successor: Option<&HolderId>) {
        let Self { reign, records, actors, ends, .. } = self;
        actors[who].kept.clear();
        for one in actors[who].claim.spec.locks.iter().filter(|_| !*ends) {
            let record = records.get_mut(one.name.as_str()).expect("one of the locks");
            record.free(reign, id, successor).expect("it reigns");
        }
    }

    fn check(&mut self, before: &BTreeMap<&'static str, Inspection>) -> TestCaseResult {
        let after = self.seen();
        for (lock, record) in &after {
            let told = |hold: &&Hold| {
                let of_hold = self.actors.iter().find(|actor| !actor.gone && actor.id() == hold.id);
                of_hold.is_some_and(|actor| plan::stage(&actor.claim) == Stage::Told)
            };
            let told: Vec<Hold> = record.holds.iter().filter(told).cloned().collect();
            prop_assert!(!crowded(&told, record.permits), "I1: {lock} is held by {told:?}");
            self.check_tokens(lock, told, record.permits)?;
            let is_crowded = crowded(&record.holds, record.permits);
            prop_assert!(!is_crowded || self.processes > 1, "I1: {lock} is held by {:?}", record.holds);
            // What a controller that ended, or an old copy, has left unpinned ends by itself.
            let is_left = |hold: &&Hold| self.has_crashed || hold.token.epoch().get() < self.processes;
            let held = record.holds.iter().filter(|hold| hold.state == HoldState::Pinned || !is_left(hold));
            let held = held.map(|hold| &hold.id);
            for id in held.chain(record.waiters.iter().map(|(id, _)| id)) {
                let there = |actor: &Actor| !actor.gone && plan::stage(&actor.claim) != Stage::Finished;
                let known = self.actors.iter().any(|actor| there(actor) && actor.id() == *id);
                prop_assert!(known, "{} has or wants {lock}, and is over", id.as_str());
            }
        }
        self.check_orders(before)?;
        for Actor { claim, .. } in self.actors.iter().filter(|actor| plan::stage(&actor.claim) == Stage::Told) {
            for one in &claim.spec.locks {
                let token = plan::recorded_token(claim, &one.name);
                let holds = &after[one.name.as_str()].holds;
                let held = holds.iter().any(|hold| hold.state == HoldState::Pinned && Some(hold.token) == token);
                prop_assert!(held, "{} was told, and holds no {}", claim.name_any(), one.name);
            }
        }
        Ok(())
    }

    /// Who is told has a higher token than all who were told before and couldn't hold beside it.
    fn check_tokens(&mut self, lock: &str, told: Vec<Hold>, permits: u32) -> TestCaseResult {
        let ever = self.told.get_mut(lock).expect("one of the locks");
        for hold in told {
            let excludes = |old: &&Hold| crowded(&[(*old).clone(), hold.clone()], permits);
            let higher = ever.iter().filter(excludes).find(|old| old.id != hold.id && old.token >= hold.token);
            prop_assert!(higher.is_none(), "I2: of {lock} {hold:?} is told after {higher:?}");
            if ever.iter().all(|old| old.id != hold.id) {
                ever.push(hold);
            }
        }
        Ok(())
    }

    fn check_orders(&mut self, before: &BTreeMap<&'static str, Inspection>) -> TestCaseResult {
        self.seen().iter().try_for_each(|(lock, record)| self.check_order(lock, &before[lock], record))
    }

    /// Nobody is granted while one waits that came before, of the same or a higher priority, and has the locks before it.
    fn check_order(&mut self, lock: &'static str, before: &Inspection, after: &Inspection) -> TestCaseResult {
        let is_new = |hold: &&Hold| before.holds.iter().all(|old| old.id != hold.id);
        let granted: Vec<&HolderId> = after.holds.iter().filter(is_new).map(|hold| &hold.id).collect();
        let waiting: Vec<&HolderId> = after.waiters.iter().map(|(id, _)| id).collect();
        let places = self.places.get_mut(lock).expect("one of the locks");
        for uid in waiting.iter().chain(&granted).map(|id| uid(id)) {
            let priority = self.actors.iter().find(|actor| actor.claim.uid().as_deref() == Some(uid));
            let priority = priority.map_or(0, |actor| actor.claim.spec.priority);
            self.arrived += 1;
            places.entry(uid.to_owned()).or_insert((Reverse(priority), self.arrived));
        }
        for id in granted {
            let overtaken = waiting
                .iter()
                .find(|waiting| places[uid(waiting)] < places[uid(id)] && !self.records[lock].is_reserved(waiting));
            prop_assert!(overtaken.is_none(), "{} overtakes {overtaken:?} at {lock}", id.as_str());
        }
        prop_assert!(
            waiting.iter().map(|id| places[uid(id)]).is_sorted(),
            "{waiting:?} don't stand at {lock} as they came: {places:?}"
        );
        let there: BTreeSet<&str> = after.holds.iter().map(|hold| &hold.id).chain(waiting).map(uid).collect();
        places.retain(|uid, _| there.contains(uid.as_str()));
        Ok(())
    }

    /// Those that wait for one lock alone never end.
    fn stream(&mut self) {
        for (lock, _) in LOCKS {
            let alone = |actor: &&Actor| !actor.gone && actor.claim.lock_names() == lock;
            for _ in self.actors.iter().filter(alone).count()..STREAM {
                self.create(LockClaimSpec::for_lock(lock));
            }
        }
    }

    /// Everybody goes on, and gives back what it holds: each claim has its turn, and then nothing is left.
    fn settle(mut self) -> TestCaseResult {
        let claims = self.actors.len();
        for _ in 0..ROUNDS {
            if self.actors[..claims].iter().all(|actor| actor.gone) {
                return Ok(());
            }
            self.stream();
            for who in 0..self.actors.len() {
                for _ in 0..STEPS {
                    if !self.act(&Move::Look(who))? {
                        break;
                    }
                }
                if plan::stage(&self.actors[who].claim) == Stage::Told {
                    self.act(&Move::Delete(who))?;
                }
            }
            self.act(&Move::Pass(1))?;
        }
        let waiting: Vec<_> = self.actors[..claims].iter().filter(|a| !a.gone).map(|a| a.claim.name_any()).collect();
        Err(TestCaseError::fail(format!("{waiting:?} have had no turn in {ROUNDS} rounds: {:#?}", self.seen())))
    }
}

fn share(lock: &'static str, permits: u32) -> impl Strategy<Value = LockRequest> {
    let counted = move |permits| LockRequest { permits, ..LockRequest::new(lock) };
    let by_mode = move |mode| LockRequest { mode: Some(mode), ..LockRequest::new(lock) };
    prop_oneof![
        3 => (1..=permits.cast_signed()).prop_map(move |permits| counted(Some(permits))),
        1 => select(vec![LockMode::Shared, LockMode::Exclusive]).prop_map(by_mode),
    ]
}

/// One to all of the first locks, in any order.
fn spec(of: usize) -> impl Strategy<Value = LockClaimSpec> {
    let locks = subsequence(LOCKS[..of].to_vec(), 1..=of).prop_shuffle();
    let locks =
        locks.prop_flat_map(|locks| locks.into_iter().map(|(lock, permits)| share(lock, permits)).collect::<Vec<_>>());
    let patience = prop_oneof![4 => Just(None), 1 => (0..40).prop_map(Some)];
    (locks, 0..2, patience).prop_map(|(locks, priority, wait_timeout_seconds)| LockClaimSpec {
        locks,
        priority,
        wait_timeout_seconds,
        ..LockClaimSpec::default()
    })
}

fn one_move(claims: usize) -> impl Strategy<Value = Move> {
    prop_oneof![
        12 => (0..claims).prop_map(Move::Look),
        1 => (0..claims, 0..claims).prop_map(|(who, first)| Move::Crash { who, first }),
        2 => (0..claims).prop_map(Move::Delete),
        1 => (0..6_i64).prop_map(Move::Forget),
        1 => any::<bool>().prop_map(|controller| Move::Lose { controller }),
        1 => (0..9_usize, any::<bool>()).prop_map(|(moves, controller)| Move::Lag { moves, controller }),
        2 => (1..8_i64).prop_map(Move::Pass),
    ]
}

fn sequence() -> impl Strategy<Value = (Vec<LockClaimSpec>, Vec<Move>)> {
    let specs = (1..=LOCKS.len()).prop_flat_map(|of| vec(spec(of), 1..=6));
    specs.prop_flat_map(|specs| {
        let moves = vec(one_move(specs.len()), 0..60);
        (Just(specs), moves)
    })
}

/// The same sequences in each run; others by `LEASEHOLD_SEED`, and more of them by `LEASEHOLD_SEQUENCES`.
fn config() -> Config {
    let number = |name, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let cases = u32::try_from(number("LEASEHOLD_SEQUENCES", 1_000)).expect("a sensible number");
    let rng_seed = RngSeed::Fixed(number("LEASEHOLD_SEED", 8));
    Config { cases, rng_seed, max_shrink_iters: 500, failure_persistence: None, ..Config::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn all_are_held_or_none_nobody_is_overtaken_and_everybody_has_its_turn((specs, moves) in sequence()) {
        let mut world = World::of(specs);
        for one in &moves {
            world.history.push((world.records.clone(), world.places.clone()));
            world.act(one)?;
        }
        world.settle()?;
    }
}

/// Time takes what one was granted, untold; another holds it, and gives it back; then Redis is lost.
#[test]
fn who_was_granted_before_a_loss_is_not_told_of_a_token_lower_than_another_was() -> TestCaseResult {
    let mut world = World::of(vec![LockClaimSpec::for_lock("a"), LockClaimSpec::for_lock("a")]);
    world.act(&Move::Look(0))?;
    world.act(&Move::Forget(6))?;
    while plan::stage(&world.actors[1].claim) != Stage::Told {
        world.act(&Move::Look(1))?;
        world.act(&Move::Pass(1))?;
    }
    world.act(&Move::Delete(1))?;
    while !world.actors[1].gone {
        world.act(&Move::Look(1))?;
    }
    prop_assert_eq!(plan::stage(&world.actors[0].claim), Stage::Granted);
    world.act(&Move::Lose { controller: true })?;
    world.settle()
}
