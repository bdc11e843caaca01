//! Which steps are tried, and how often: biased so that every outcome comes.

use std::ops::Range;
use std::time::Duration;

use leasehold::lease::{Acquired, Epoch, HolderId, Mode, Request, Wait};
use leasehold::store::model::Reign;
use leasehold::store::{HoldState, Inspection, Opening, Place, Provision, Remembered};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;

use super::answers::{Answer, STORE, Step};
use super::world::{PROCESSES, Plan, World, id};

type Steps = Vec<(u32, BoxedStrategy<Step>)>;

const LEASES_MS: [u64; 6] = [60, 1_000, 5_000, 15_000, 20_000, 61_000];

/// One in four at the highest epochs, one in four where an epoch's tokens end.
pub(crate) fn plan() -> BoxedStrategy<Plan> {
    let epoch = prop_oneof![3 => 1..5_i64, 1 => Epoch::MAX.get() - 6..=Epoch::MAX.get()];
    let epoch = epoch.prop_map(|epoch| Epoch::new(epoch).expect("an epoch"));
    let left = prop_oneof![3 => Just(None), 1 => (0..6_i64).prop_map(Some)];
    (epoch, left, prop::bool::weighted(0.95), 1..4_u32, select(&LEASES_MS[..]))
        .prop_map(|(epoch, tokens_left, guided, permits, lease)| {
            let lease = Duration::from_millis(lease);
            Plan { epoch, tokens_left, guided, permits, lease }
        })
        .boxed()
}

/// The steps that may follow.
pub(crate) fn steps(world: &World) -> BoxedStrategy<Step> {
    if let Some(step) = world.beginning() {
        return Just(step).boxed();
    }
    let record = world.model.inspect();
    let known = known(world, record.as_ref());
    let mut steps = workload(world, &known);
    steps.extend(delegated(world, &known, record.as_ref()));
    steps.extend(store(world));
    steps.extend(lock(world, record.as_ref()));
    steps.extend(events(world));
    steps.push((200, time(world, record.as_ref())));
    Union::new_weighted(steps).boxed()
}

fn wait() -> BoxedStrategy<Wait> {
    let time = select(&[1, 100, 5_000, 60_000_u64][..]).prop_map(|ms| Wait::For(Duration::from_millis(ms)));
    prop_oneof![2 => Just(Wait::No), 2 => Just(Wait::Forever), 3 => time].boxed()
}

fn mode() -> BoxedStrategy<Mode> {
    prop_oneof![
        8 => Just(Mode::Counted(1)),
        2 => (2..6_u32).prop_map(Mode::Counted),
        3 => Just(Mode::Shared),
        3 => Just(Mode::Exclusive),
    ]
    .boxed()
}

fn fresh_request(world: &World) -> BoxedStrategy<Request> {
    let id = id(world.next_id);
    let priority = select(&[0, 0, 0, 0, 1, -1, i32::MAX, i32::MIN][..]);
    let who = select(&[("pod/a", Some("uid-a")), ("claim/ü b", None), ("", None)][..]);
    (mode(), priority, wait(), who)
        .prop_map(move |(mode, priority, wait, (identity, pod))| {
            let (identity, pod_uid) = (identity.to_owned(), pod.map(str::to_owned));
            Request { id: id.clone(), mode, priority, wait, identity, pod_uid }
        })
        .boxed()
}

/// An id that means something, and the mode it holds or waits in.
type Known = BoxedStrategy<(HolderId, Mode)>;

fn known(world: &World, record: Option<&Inspection>) -> Known {
    let known = world.known_ids(record).into_iter().map(|(weight, known)| (weight, Just(known)));
    Union::new_weighted(known.collect::<Vec<_>>()).boxed()
}

fn some_id(known: &Known) -> BoxedStrategy<HolderId> {
    known.clone().prop_map(|(id, _)| id).boxed()
}

/// A request that was made before: by one that waits, or with an id that holds or has ended.
fn old_request(world: &World, known: &Known) -> BoxedStrategy<Request> {
    let changed = (known.clone(), wait()).prop_map(|((id, mode), wait)| {
        let identity = "again".to_owned();
        Request { id, mode, priority: 0, wait, identity, pod_uid: None }
    });
    let waiting = world.model.waiting();
    if waiting.is_empty() {
        return changed.boxed();
    }
    let repeated = (select(waiting), prop::bool::weighted(0.1), wait()).prop_map(|(request, other, wait)| {
        let wait = if other { wait } else { request.wait };
        Request { wait, ..request }
    });
    prop_oneof![1 => changed, 3 => repeated].boxed()
}

fn workload(world: &World, known: &Known) -> Steps {
    let many = (world.next_id..world.next_id + 70).map(id).collect::<Vec<_>>();
    let ids = prop::collection::vec(some_id(known), 1..4);
    vec![
        (200, fresh_request(world).prop_map(Step::Acquire).boxed()),
        (150, old_request(world, known).prop_map(Step::Acquire).boxed()),
        (100, ids.prop_map(Step::Renew).boxed()),
        (90, some_id(known).prop_map(Step::Release).boxed()),
        (30, some_id(known).prop_map(Step::Cancel).boxed()),
        (2, Just(Step::CancelMany(many)).boxed()),
    ]
}

/// Mostly the controller that reigns, sometimes its predecessor or another install.
fn reign(world: &World) -> BoxedStrategy<Reign> {
    let own = world.reign();
    let stale = Reign { term: own.term - 1, ..own.clone() };
    let other = Reign { uid: "other".to_owned(), term: 1 };
    prop_oneof![90 => Just(own), 6 => Just(stale), 2 => Just(other)].boxed()
}

fn delegated(world: &World, known: &Known, record: Option<&Inspection>) -> Steps {
    let ids = |state: HoldState| -> Vec<HolderId> {
        let holds = record.iter().flat_map(|record| &record.holds);
        holds.filter(|hold| hold.state == state).map(|hold| hold.id.clone()).collect()
    };
    let mut steps = vec![
        (60, (reign(world), fresh_request(world)).prop_map(|(r, request)| Step::Claim(r, request)).boxed()),
        (40, (reign(world), old_request(world, known)).prop_map(|(r, request)| Step::Claim(r, request)).boxed()),
        (10, (reign(world), fresh_request(world)).prop_map(|(r, request)| Step::Reserve(r, request)).boxed()),
        (20, (reign(world), old_request(world, known)).prop_map(|(r, request)| Step::Reserve(r, request)).boxed()),
        (30, pin(world, some_id(known))),
        (20, free(world, known, some_id(known))),
    ];
    for (weight, state) in [(60, HoldState::Offer), (20, HoldState::Held)] {
        let ids = ids(state);
        if !ids.is_empty() {
            steps.push((weight, pin(world, select(ids).boxed())));
        }
    }
    let pinned = ids(HoldState::Pinned);
    if !pinned.is_empty() {
        steps.push((70, free(world, known, select(pinned).boxed())));
    }
    steps
}

/// Mostly by the epoch that is open, sometimes by one that is over, or not yet known.
fn pin(world: &World, ids: BoxedStrategy<HolderId>) -> BoxedStrategy<Step> {
    let other = Epoch::new((world.epoch.get() - 1).max(1)).unwrap_or(world.epoch);
    let epoch = prop_oneof![19 => Just(world.epoch), 1 => Just(other)];
    (reign(world), ids, epoch).prop_map(|(reign, id, epoch)| Step::Pin(reign, id, epoch)).boxed()
}

/// Mostly for good, sometimes for a next attempt, which may have come before.
fn free(world: &World, known: &Known, ids: BoxedStrategy<HolderId>) -> BoxedStrategy<Step> {
    let next = prop_oneof![
        6 => Just(None),
        3 => Just(Some(id(world.next_id))),
        1 => some_id(known).prop_map(Some),
    ];
    (reign(world), ids, next).prop_map(|(reign, id, next)| Step::Free(reign, id, next)).boxed()
}

fn opening(world: &World) -> BoxedStrategy<Opening> {
    let right = world.opening(world.epoch);
    let next = world.epoch.next().unwrap_or(Epoch::MAX);
    let lower = Epoch::new((world.epoch.get() - 1).max(1)).unwrap_or(world.epoch);
    let epoch = prop_oneof![12 => Just(next), 5 => Just(world.epoch), 2 => Just(lower)];
    (epoch, 0..20_u32)
        .prop_map(move |(epoch, wrong)| {
            let mut opening = Opening { epoch, ..right.clone() };
            match wrong {
                0 => opening.run_id = "another".to_owned(),
                1 => opening.replid = "another".to_owned(),
                _ => {}
            }
            opening
        })
        .boxed()
}

fn store(world: &World) -> Steps {
    let next = Reign { term: world.term + 1, ..world.reign() };
    let reigns = prop_oneof![9 => reign(world), 1 => Just(next)];
    let names = prop_oneof![29 => Just(0_u8), 1 => Just(1)];
    let closed = !world.model.is_open(STORE);
    let exhausted = matches!(world.answer, Answer::Acquired(Acquired::EpochExhausted));
    let urgent = if closed || exhausted { 300 } else { 15 };
    vec![
        (30, (reigns.clone(), names).prop_map(|(reign, name)| Step::Heartbeat(reign, name)).boxed()),
        (50, reign(world).prop_map(Step::Expire).boxed()),
        (6, reign(world).prop_map(Step::Close).boxed()),
        (if world.taken { 60 } else { 8 }, reign(world).prop_map(Step::Leave).boxed()),
        (urgent, (reigns, opening(world)).prop_map(|(r, opening)| Step::Open(r, opening)).boxed()),
    ]
}

fn provision(world: &World, record: Option<&Inspection>) -> BoxedStrategy<Provision> {
    let highest = world.token_floor();
    let end = world.epoch.ceiling();
    let uid = record.map_or("lock-1", |record| record.lock_uid.as_str()).to_owned();
    let uid = prop_oneof![12 => Just(uid), 1 => Just("lock-1".to_owned()), 1 => Just("lock-2".to_owned())];
    let generation = world.generation;
    let generation = prop_oneof![5 => Just(generation), 3 => Just(generation + 1), 1 => Just(generation - 1)];
    let lease = select(&LEASES_MS[..]).prop_map(Duration::from_millis);
    let max_hold =
        select(&[None, None, None, Some(100), Some(20_000)][..]).prop_map(|ms| ms.map(Duration::from_millis));
    let floor = prop_oneof![40 => Just(highest), 5 => Just(0), 1 => Just(end - 3), 2 => Just(end + 5)];
    let checks = if record.is_some_and(|record| record.last >= end) { 20 } else { 1 };
    let ceiling = prop_oneof![3 => Just(None), checks => Just(Some(end))];
    let elected = prop::bool::weighted(0.06);
    let lock = (uid, generation, 1..5_u32, lease, max_hold, elected);
    (lock, floor, quarantine(world, record), ceiling, holds(world, record), places(world))
        .prop_map(|(lock, floor, quarantine, token_ceiling, holds, waiters)| {
            let (lock_uid, generation, permits, lease, max_hold, elected) = lock;
            let token_floor = floor.min((1 << 53) - 1);
            Provision {
                lock_uid,
                generation,
                permits,
                lease,
                max_hold,
                elected,
                token_floor,
                quarantine,
                token_ceiling,
                holds,
                waiters,
            }
        })
        .boxed()
}

fn quarantine(world: &World, record: Option<&Inspection>) -> BoxedStrategy<Duration> {
    let right = world.checker.longest_belief(world.model.now);
    let rule = if record.is_none() { 12 } else { 1 };
    let some = (1..8_000_u64).prop_map(Duration::from_millis);
    prop_oneof![rule => Just(right), 8 => Just(Duration::ZERO), 2 => some].boxed()
}

/// Of those that wait or hold, of those that etcd remembers, and of one that nobody has heard of.
fn places(world: &World) -> BoxedStrategy<Vec<Place>> {
    let of_hold =
        |id, mode, identity, pod_uid| Request { id, mode, priority: 0, wait: Wait::Forever, identity, pod_uid };
    let mut known = world.model.waiting();
    let holds = world.model.inspect().into_iter().flat_map(|record| record.holds);
    known.extend(holds.map(|hold| of_hold(hold.id, hold.mode, hold.identity, hold.pod_uid)));
    let remembered = world.remembered.iter().cloned();
    known.extend(remembered.map(|hold| of_hold(hold.id, hold.mode, hold.identity, hold.pod_uid)));
    let known = prop::sample::subsequence(known.clone(), 0..=known.len());
    let all = (known, fresh_request(world)).prop_map(|(known, fresh)| known.into_iter().chain([fresh]));
    let places = all.prop_flat_map(|all| {
        let each =
            all.map(|request| any::<bool>().prop_map(move |reserved| Place { request: request.clone(), reserved }));
        each.collect::<Vec<_>>()
    });
    prop_oneof![2 => Just(Vec::new()), 1 => places].boxed()
}

fn holds(world: &World, record: Option<&Inspection>) -> BoxedStrategy<Vec<Remembered>> {
    let remembered = world.remembered.to_vec();
    let (rule, none) = if record.is_none() { (9, 2) } else { (2, 9) };
    let lost = world.invented();
    let invented = mode().prop_map(move |mode| lost.iter().map(|hold| Remembered { mode, ..hold.clone() }).collect());
    prop_oneof![rule => Just(remembered), none => Just(Vec::new()), 1 => invented].boxed()
}

fn lock(world: &World, record: Option<&Inspection>) -> Steps {
    let uid = record.map_or("lock-1", |record| record.lock_uid.as_str()).to_owned();
    let uid = prop_oneof![9 => Just(uid), 1 => Just("lock-3".to_owned())];
    let sealed = record.is_some_and(|record| record.sealed);
    let (provisions, restores) = match record {
        None => (250, 80),
        Some(record) if !world.model.is_open(STORE) => {
            (40, if record.last >= world.epoch.ceiling() { 600 } else { 80 })
        }
        Some(_) if sealed => (80, 15),
        Some(_) => (40, 15),
    };
    let (seals, purges) = if sealed { (10, 80) } else { (12, 12) };
    let restored = (reign(world), provision(world, record), opening(world));
    vec![
        (provisions, (reign(world), provision(world, record)).prop_map(|(r, p)| Step::Provision(r, p)).boxed()),
        (restores, restored.prop_map(|(r, p, o)| Step::Restore(r, p, o)).boxed()),
        (seals, (reign(world), uid.clone()).prop_map(|(r, uid)| Step::Seal(r, uid)).boxed()),
        (purges, (reign(world), uid).prop_map(|(r, uid)| Step::Purge(r, uid)).boxed()),
    ]
}

fn events(world: &World) -> Steps {
    let mut steps: Steps = vec![
        (if world.taken { 120 } else { 8 }, Just(Step::FlushAll).boxed()),
        (8, Just(Step::LoseRecord).boxed()),
        (8, Just(Step::ReloadLibrary).boxed()),
        (8, Just(Step::Promoted).boxed()),
    ];
    if world.restarts + 1 < PROCESSES {
        steps.push((10, Just(Step::Restart).boxed()));
    }
    steps
}

/// Small steps, one back, steps to just before, at and after a deadline, and past everything.
fn time(world: &World, record: Option<&Inspection>) -> BoxedStrategy<Step> {
    let some = |range: Range<i64>| range.prop_map(Step::Pass).boxed();
    let quarantine = record.map_or(0, |record| record.quarantine);
    let mut times: Steps = vec![(6, some(1..50)), (1, some(-9..0)), (1, some(900..9_000)), (2, some(10_001..70_000))];
    if quarantine > 0 {
        times.push((6, Just(Step::Pass(quarantine)).boxed()));
    }
    let now = world.model.now;
    let mut deadlines: Vec<i64> = world.model.deadlines().into_iter().map(|at| at - now).collect();
    deadlines.sort_unstable();
    deadlines.dedup();
    if !deadlines.is_empty() {
        let to_one = (select(deadlines), -1..=1_i64).prop_map(|(ms, off)| Step::Pass((ms + off).max(1)));
        times.push((10, to_one.boxed()));
    }
    Union::new_weighted(times).boxed()
}

/// Whether shrinking has left a step possible.
pub(crate) fn possible(world: &World, step: &Step) -> bool {
    match step {
        Step::Restart => world.restarts + 1 < PROCESSES,
        _ => true,
    }
}
