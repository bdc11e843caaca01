//! Claims of several locks: all of them or none.

use std::time::{Duration, Instant};

use futures::future::join_all;
use kube::ResourceExt;
use leasehold::api::condition::{self, reasons, types};
use leasehold::api::{DistributedLock, LockClaim, LockRequest};
use leasehold::lease::HolderId;
use leasehold::store::Store;

use super::fixture::{Fixture, Site, a_while, claim_condition, is_ready};
use super::pair::Pair;
use crate::failpoints::witness::never_two;
use crate::support::{LIMIT, RedisServer, wait_for};

/// A claim of these locks, as they are written.
pub(crate) async fn claim(f: &Site, name: &str, locks: &[&str]) -> LockClaim {
    let requests = locks.iter().map(|lock| LockRequest::new(*lock)).collect();
    f.claim(name, locks[0], |spec| spec.locks = requests).await
}

/// The tokens with which it holds, in the order in which it names them.
pub(crate) async fn tokens(f: &Site, name: &str) -> Vec<i64> {
    let held = f.claim_is(name, "holds", |claim| claim_condition(claim, types::HELD)).await;
    let status = held.status.clone().expect("a status");
    let names: Vec<_> = status.locks.iter().map(|lock| lock.name.clone()).collect();
    assert_eq!(names.join(","), held.lock_names(), "in the order in which it names them");
    let tokens: Vec<i64> = status.locks.iter().map(|lock| lock.fencing_token).collect();
    assert_eq!(status.fencing_token, tokens.first().copied());
    tokens
}

pub(crate) async fn waits_at(f: &Site, name: &str, lock: &str) {
    let waits = |claim: &LockClaim| {
        let conditions = claim.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        condition::get(conditions, types::HELD).is_some_and(|held| held.message.ends_with(&format!("at {lock}")))
    };
    f.claim_is(name, &format!("waits at {lock}"), waits).await;
}

async fn is_free(f: &Site, lock: &str) {
    let free = |lock: &DistributedLock| {
        lock.status.as_ref().is_some_and(|s| s.observed_generation.is_some() && s.holder.is_none())
    };
    f.lock_is(lock, "is free", free).await;
}

async fn locks(f: &Site, names: &[&str]) {
    for name in names {
        f.ready_lock(name, |spec| spec.lease_duration_seconds = 2).await;
    }
}

#[tokio::test]
async fn all_are_held_with_a_token_each_and_released_together() {
    let f = Fixture::new().await;
    locks(&f, &["a", "b", "c"]).await;
    claim(&f, "all", &["c", "a", "b"]).await;
    let first = tokens(&f, "all").await;
    let labels = f.test.api::<LockClaim>().get("all").await.expect("it").labels().clone();
    assert!(["a", "b", "c"].iter().all(|lock| labels.contains_key(&format!("lock.leasehold.dev/{lock}"))));
    let note = f.event("all", reasons::ACQUIRED).await;
    assert!(note.contains("holds c,a,b with the tokens"), "{note}");
    // Longer than their leases.
    a_while().await;
    a_while().await;
    for lock in ["a", "b", "c"] {
        f.claim(lock, lock, |_| {}).await;
        f.has_its_place(lock).await;
    }
    f.delete::<LockClaim>("all").await;
    for (at, lock) in ["c", "a", "b"].into_iter().enumerate() {
        assert!(f.token_of(lock).await > first[at]);
    }
}

#[tokio::test]
async fn eight_are_held_at_once_and_all_of_them_freed() {
    let f = Fixture::new().await;
    let mut eight = ["h", "c", "a", "f", "b", "g", "e", "d"];
    locks(&f, &eight).await;
    claim(&f, "all", &eight).await;
    let first = tokens(&f, "all").await;
    assert_eq!(first.len(), 8);
    f.delete::<LockClaim>("all").await;
    eight.reverse();
    claim(&f, "again", &eight).await;
    let second = tokens(&f, "again").await;
    assert!(first.iter().rev().zip(&second).all(|(first, second)| second > first), "{second:?} after {first:?}");
    f.delete::<LockClaim>("again").await;
    f.test.gone::<LockClaim>("again", LIMIT).await;
    for lock in eight {
        let record = f.workload().inspect(&f.key(lock)).await.expect("Redis answers").expect("a record");
        assert!(record.holds.is_empty() && record.waiters.is_empty(), "{lock}: {record:?}");
    }
}

#[tokio::test]
async fn who_waits_for_one_is_told_of_none_and_blocks_no_lock_that_it_does_not_name() {
    let f = Fixture::new().await;
    locks(&f, &["a", "b", "other"]).await;
    f.claim("mine", "b", |_| {}).await;
    f.token_of("mine").await;
    claim(&f, "both", &["b", "a"]).await;
    waits_at(&f, "both", "b").await;
    f.claim("other", "other", |_| {}).await;
    f.token_of("other").await;
    // Its place in the queue of `b` and its hold of `a` outlive the lease.
    f.claim("later", "b", |_| {}).await;
    f.has_its_place("later").await;
    a_while().await;
    f.delete::<LockClaim>("mine").await;
    tokens(&f, "both").await;
    f.claim_reason("later", types::HELD, reasons::WAITING).await;
    f.delete::<LockClaim>("both").await;
    f.token_of("later").await;
}

#[tokio::test]
async fn opposite_orders_do_not_wait_for_each_other() {
    let f = Fixture::new().await;
    locks(&f, &["a", "b", "c"]).await;
    let orders = [["a", "b"], ["b", "a"], ["c", "a"], ["b", "c"], ["c", "b"], ["a", "c"]];
    let made = orders.iter().enumerate().map(|(number, order)| {
        let f = &f;
        async move { claim(f, &format!("claim-{number}"), order).await }
    });
    join_all(made).await;
    let turns = (0..orders.len()).map(|number| {
        let f = &f;
        async move {
            let name = format!("claim-{number}");
            let tokens = tokens(f, &name).await;
            f.delete::<LockClaim>(&name).await;
            tokens
        }
    });
    let tokens = join_all(turns).await.concat();
    assert_eq!(tokens.len(), 12, "each had its turn");
    for lock in ["a", "b", "c"] {
        is_free(&f, lock).await;
    }
}

#[tokio::test]
async fn a_stream_of_single_claims_starves_none_of_several() {
    let f = Fixture::new().await;
    locks(&f, &["a", "b"]).await;
    for lock in ["a", "b"] {
        f.claim(&format!("{lock}-0"), lock, |_| {}).await;
        f.token_of(&format!("{lock}-0")).await;
    }
    claim(&f, "both", &["a", "b"]).await;
    waits_at(&f, "both", "a").await;
    let stream = async |lock: &str| {
        for number in 1.. {
            let (last, next) = (format!("{lock}-{}", number - 1), format!("{lock}-{number}"));
            f.claim(&next, lock, |_| {}).await;
            f.has_its_place(&next).await;
            f.delete::<LockClaim>(&last).await;
            f.test.gone::<LockClaim>(&last, LIMIT).await;
            if number == 5 {
                break;
            }
        }
    };
    tokio::select! {
        _ = tokens(&f, "both") => {}
        () = async { tokio::join!(stream("a"), stream("b")); } => { tokens(&f, "both").await; }
    }
}

#[tokio::test]
async fn one_that_gives_up_keeps_nothing() {
    let f = Fixture::new().await;
    locks(&f, &["a", "b"]).await;
    f.claim("mine", "b", |_| {}).await;
    f.token_of("mine").await;
    for (name, limit, reason) in [("at-once", 0, reasons::BUSY), ("soon", 1, reasons::WAIT_TIMEOUT)] {
        f.claim(name, "a", |spec| {
            spec.locks = ["a", "b"].map(LockRequest::new).to_vec();
            spec.wait_timeout_seconds = Some(limit);
        })
        .await;
        f.claim_reason(name, types::FINISHED, reason).await;
    }
    f.claim("single", "a", |_| {}).await;
    f.token_of("single").await;
}

/// Its renewal tells it, not the look that would be due one day.
#[tokio::test]
async fn one_that_has_lost_its_first_lock_while_it_waits_for_the_second_begins_anew_at_once() {
    let f = Fixture::new().await;
    locks(&f, &["a", "b"]).await;
    f.claim("mine", "b", |_| {}).await;
    f.token_of("mine").await;
    let both = claim(&f, "both", &["a", "b"]).await;
    waits_at(&f, "both", "b").await;
    let id = HolderId::new(format!("{}.1", both.uid().expect("a UID"))).expect("an id");
    let lost = Instant::now();
    f.workload().cancel(&f.key("a"), &id).await.expect("it is taken away");
    let again = |claim: &LockClaim| claim.status.as_ref().is_some_and(|status| status.attempt == Some(2));
    f.claim_is("both", "begins anew", again).await;
    assert!(lost.elapsed() < Duration::from_secs(5), "after {:?}", lost.elapsed());
    waits_at(&f, "both", "b").await;
    f.delete::<LockClaim>("mine").await;
    assert_eq!(tokens(&f, "both").await.len(), 2);
}

/// It held its second lock, untold, under the id of an attempt that etcd has ended.
#[tokio::test]
async fn who_begins_anew_as_the_controller_ends_keeps_its_places() {
    let mut f = Fixture::new().await;
    locks(&f, &["a", "c"]).await;
    f.ready_lock("b", |spec| spec.lease_duration_seconds = 60).await;
    f.claim("mine", "c", |_| {}).await;
    f.token_of("mine").await;
    let all = claim(&f, "all", &["a", "b", "c"]).await;
    waits_at(&f, "all", "c").await;
    f.claim("later", "b", |_| {}).await;
    f.has_its_place("later").await;
    f.controller.kill();
    let id = HolderId::new(format!("{}.1", all.uid().expect("a UID"))).expect("an id");
    f.workload().cancel(&f.key("a"), &id).await.expect("it is taken away");
    f.controller.spawn_with(Some("kill after claim.retry".into()));
    wait_for("the controller dies", LIMIT, async || f.controller.process().exit_status()).await;
    f.controller.spawn_with(None);
    waits_at(&f, "all", "c").await;
    f.claim_reason("later", types::HELD, reasons::WAITING).await;
    f.delete::<LockClaim>("mine").await;
    assert_eq!(tokens(&f, "all").await.len(), 3);
    f.delete::<LockClaim>("all").await;
    f.token_of("later").await;
}

#[tokio::test]
async fn while_one_is_missing_the_others_are_free() {
    let f = Fixture::new().await;
    locks(&f, &["a", "b"]).await;
    f.claim("mine", "b", |_| {}).await;
    f.token_of("mine").await;
    claim(&f, "three", &["a", "b", "later"]).await;
    let missing = f.claim_reason("three", types::HELD, reasons::LOCK_NOT_FOUND).await;
    let held = condition::get(&missing.status.as_ref().unwrap().conditions, types::HELD).unwrap();
    assert!(held.message.contains("no DistributedLock later yet"), "{}", held.message);
    locks(&f, &["later"]).await;
    waits_at(&f, "three", "b").await;
    // `a` is held meanwhile; when `b` goes, it is given back.
    f.delete::<LockClaim>("mine").await;
    tokens(&f, "three").await;
    f.delete::<LockClaim>("three").await;
    f.claim("again", "b", |_| {}).await;
    f.token_of("again").await;
    claim(&f, "waits", &["a", "b"]).await;
    waits_at(&f, "waits", "b").await;
    f.delete::<DistributedLock>("b").await;
    f.claim_reason("waits", types::HELD, reasons::LOCK_NOT_FOUND).await;
    f.claim("single", "a", |_| {}).await;
    f.token_of("single").await;
}

#[tokio::test]
async fn all_are_put_back_when_redis_and_the_controller_are_lost() {
    let mut f = Fixture::over(RedisServer::start().await).await;
    locks(&f, &["a", "b"]).await;
    claim(&f, "both", &["b", "a"]).await;
    let before = tokens(&f, "both").await;
    claim(&f, "next", &["a", "b"]).await;
    waits_at(&f, "next", "a").await;
    f.controller.kill();
    f.redis.kill();
    f.redis.restart().await;
    f.controller.restart().await;
    a_while().await;
    assert_eq!(tokens(&f, "both").await, before);
    f.delete::<LockClaim>("both").await;
    let after = tokens(&f, "next").await;
    assert!(after[0] > before[1] && after[1] > before[0], "{after:?} after {before:?}");
}

/// One waits for its second lock, and such that came later for one of them alone.
async fn keeps_its_place_at_the_second(lose: impl AsyncFn(&mut Fixture)) {
    keeps_its_place_of(Fixture::over(RedisServer::start().await).await, lose).await;
}

async fn keeps_its_place_of(mut f: Fixture, lose: impl AsyncFn(&mut Fixture)) {
    locks(&f, &["a", "b"]).await;
    f.claim("mine", "b", |_| {}).await;
    f.token_of("mine").await;
    claim(&f, "both", &["a", "b"]).await;
    waits_at(&f, "both", "b").await;
    // Creation times are whole seconds.
    a_while().await;
    for (name, lock) in [("later", "b"), ("other", "a")] {
        f.claim(name, lock, |_| {}).await;
        f.has_its_place(name).await;
    }
    lose(&mut f).await;
    f.store_is("is Ready", is_ready).await;
    a_while().await;
    f.delete::<LockClaim>("mine").await;
    let both = tokens(&f, "both").await;
    let held = f.claim_is("both", "holds", |claim| claim_condition(claim, types::HELD)).await;
    assert_eq!(held.status.and_then(|status| status.attempt), Some(1));
    for name in ["later", "other"] {
        f.claim_reason(name, types::HELD, reasons::WAITING).await;
    }
    f.delete::<LockClaim>("both").await;
    assert!(f.token_of("other").await > both[0]);
    assert!(f.token_of("later").await > both[1]);
}

#[tokio::test]
async fn who_waits_for_its_second_lock_keeps_its_place_when_redis_and_the_controller_are_lost() {
    keeps_its_place_at_the_second(async |f| {
        f.controller.kill();
        f.redis.kill();
        f.redis.restart().await;
        f.controller.restart().await;
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_its_second_lock_keeps_its_place_when_redis_is_lost() {
    keeps_its_place_at_the_second(async |f| {
        f.redis.kill();
        f.store_is("is not Ready", |store| !is_ready(store)).await;
        f.redis.restart().await;
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_its_second_lock_keeps_its_place_when_redis_is_emptied() {
    keeps_its_place_at_the_second(async |f| {
        let epoch = f.store_is("is Ready", is_ready).await.status.and_then(|status| status.epoch);
        f.redis.send::<()>("FLUSHALL").await;
        f.store_is("has another epoch", |store| store.status.as_ref().is_some_and(|s| s.epoch > epoch)).await;
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_its_second_lock_keeps_its_place_while_redis_does_not_answer() {
    keeps_its_place_at_the_second(async |f| {
        f.redis.process().pause();
        f.store_is("is not Ready", |store| !is_ready(store)).await;
        // Longer than the lease.
        a_while().await;
        a_while().await;
        f.redis.process().resume();
    })
    .await;
}

/// Its first lock, that nobody was told of, is over.
async fn time_takes_the_first(f: &Site, redis: &RedisServer) {
    let store = Store::connect(&redis.endpoint(), f.test.name()).expect("a store");
    wait_for("time takes the first lock", LIMIT, async || {
        let record = store.inspect(&f.key("a")).await.ok()??;
        record.holds.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_its_second_lock_keeps_its_place_while_no_controller_is_there() {
    keeps_its_place_at_the_second(async |f| {
        f.controller.kill();
        time_takes_the_first(f, &f.redis).await;
        f.controller.restart().await;
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_its_second_lock_keeps_its_place_when_a_replica_takes_over() {
    let primary = RedisServer::start().await;
    let pair = Pair::of(&primary).await;
    keeps_its_place_of(pair.fixture(primary).await, async |f| {
        f.redis.wait_for_replica(&pair.replica).await;
        f.controller.kill();
        f.redis.kill();
        time_takes_the_first(f, &pair.replica).await;
        pair.promote().await;
        f.controller.restart().await;
    })
    .await;
}

/// The replica doesn't know yet that it has been granted its first lock.
#[tokio::test]
async fn who_waits_for_its_second_lock_keeps_its_place_when_a_replica_that_lags_takes_over() {
    let primary = RedisServer::start().await;
    let pair = Pair::of(&primary).await;
    let mut f = pair.fixture(primary).await;
    locks(&f, &["a", "b"]).await;
    for (name, lock) in [("early", "a"), ("mine", "b")] {
        f.claim(name, lock, |_| {}).await;
        f.token_of(name).await;
    }
    claim(&f, "both", &["b", "a"]).await;
    waits_at(&f, "both", "a").await;
    f.claim("other", "a", |_| {}).await;
    f.has_its_place("other").await;
    f.redis.wait_for_replica(&pair.replica).await;
    pair.cut().await;
    f.delete::<LockClaim>("early").await;
    waits_at(&f, "both", "b").await;
    f.redis.kill();
    let epoch = f.store_is("is there", |_| true).await.status.and_then(|status| status.epoch);
    pair.promote().await;
    f.store_is("has another epoch", |store| store.status.as_ref().is_some_and(|s| s.epoch > epoch)).await;
    f.delete::<LockClaim>("mine").await;
    let both = tokens(&f, "both").await;
    f.claim_reason("other", types::HELD, reasons::WAITING).await;
    f.delete::<LockClaim>("both").await;
    assert!(f.token_of("other").await > both[1]);
}

/// The same numbers in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % limit
    }

    /// Some of them, in any order.
    fn some_of<'a>(&mut self, all: &[&'a str], count: usize) -> Vec<&'a str> {
        let mut left = all.to_vec();
        (0..count).map(|_| left.remove(self.below(left.len()))).collect()
    }
}

const RING: [&str; 4] = ["a", "b", "c", "d"];

/// Claims one to three locks again and again, and holds each time for a moment. The tokens of each lock, in their order.
async fn work(f: &Site, worker: usize, rounds: usize) -> Vec<(String, i64)> {
    let (mut dice, mut all) = (Dice(worker as u64 + 7), Vec::new());
    for round in 0..rounds {
        let count = 1 + dice.below(3);
        let (name, asked) = (format!("worker-{worker}-{round}"), dice.some_of(&RING, count));
        claim(f, &name, &asked).await;
        let tokens = tokens(f, &name).await;
        all.extend(asked.iter().map(|lock| (*lock).to_owned()).zip(tokens));
        tokio::time::sleep(Duration::from_millis(dice.below(40) as u64)).await;
        f.delete::<LockClaim>(&name).await;
    }
    all
}

#[tokio::test]
async fn random_claims_under_kills_never_share_a_lock_and_all_have_their_turn() {
    let mut f = Fixture::over(RedisServer::start().await).await;
    locks(&f, &RING).await;
    let shared = never_two(f.pods().api().clone(), f.test.api());
    let (workers, rounds) = (6, 12);
    let site = Site { test: f.test.clone(), redis: RedisServer::start().await };
    let all = join_all((0..workers).map(|worker| work(&site, worker, rounds)));
    let strikes = async {
        for strike in 0..3 {
            a_while().await;
            a_while().await;
            if strike == 1 {
                f.redis.kill();
                f.redis.restart().await;
            }
            f.controller.kill();
            f.controller.restart().await;
        }
    };
    let granted = tokio::select! {
        why = shared => panic!("{why}"),
        (granted, ()) = async { tokio::join!(all, strikes) } => granted.concat(),
    };
    for lock in RING {
        let mut tokens: Vec<i64> = granted.iter().filter(|(of, _)| of == lock).map(|(_, token)| *token).collect();
        let count = tokens.len();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), count, "each grant of {lock} has a token of its own");
    }
    println!("{} claims were granted {} locks", workers * rounds, granted.len());
}
