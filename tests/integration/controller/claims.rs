//! Claims take turns, hold, and let go.

use std::time::{Duration, Instant};

use kube::api::{DeleteParams, PostParams};
use leasehold::api::condition::{self, reasons, types};
use leasehold::api::{DistributedLock, LOCK_LABEL, LockClaim, LockMode, LockRequest};
use serde_json::json;

use super::fixture::{Fixture, a_while, claim_condition, holder, lock_condition, store};
use crate::support::{LIMIT, wait_for};

#[tokio::test]
async fn the_second_claim_waits_and_gets_a_higher_token_when_the_first_is_deleted() {
    let f = Fixture::new().await;
    f.lock("a", |_| {}).await;
    f.claim("first", "a", |_| {}).await;
    let first = f.token_of("first").await;
    f.claim("second", "a", |_| {}).await;
    f.claim_reason("second", types::HELD, reasons::WAITING).await;
    let held = f
        .lock_is("a", "is held with one waiter", |lock| {
            lock.status.as_ref().is_some_and(|status| status.waiters == 1 && status.holder_count == 1)
        })
        .await;
    let status = held.status.expect("a status");
    assert_eq!((status.holder.as_deref(), status.fencing_token), (Some("claim/first"), Some(first)));
    f.delete::<LockClaim>("first").await;
    let second = f.token_of("second").await;
    assert!(second > first, "{second} is not above {first}");
    f.test.gone::<LockClaim>("first", LIMIT).await;
    f.lock_is("a", "is held by the second", |lock| {
        lock.status.as_ref().is_some_and(|status| status.holder.as_deref() == Some("claim/second"))
    })
    .await;
    f.delete::<LockClaim>("second").await;
    f.lock_is("a", "is free", |lock| !lock_condition(lock, types::HELD)).await;
}

#[tokio::test]
async fn two_of_three_claims_hold_a_semaphore_of_two_and_the_third_follows() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.permits = 2).await;
    for name in ["one", "two", "three"] {
        f.claim(name, "a", |_| {}).await;
        f.has_its_place(name).await;
    }
    let (one, two) = (f.token_of("one").await, f.token_of("two").await);
    f.claim_reason("three", types::HELD, reasons::WAITING).await;
    let full = |lock: &leasehold::api::DistributedLock| {
        lock.status.as_ref().is_some_and(|s| (s.holder_count, s.permits_held, s.waiters) == (2, 2, 1))
    };
    f.lock_is("a", "is full with one waiter", full).await;
    f.delete::<LockClaim>("one").await;
    assert!(f.token_of("three").await > one.max(two));
}

#[tokio::test]
async fn a_claim_can_be_found_by_the_name_of_its_lock() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let names = f.test.kubectl(&format!("get lclaim -l {LOCK_LABEL}a -o name")).await.unwrap();
    assert_eq!(names.trim(), "lockclaim.leasehold.dev/mine");
}

#[tokio::test]
async fn shared_claims_hold_together_and_an_exclusive_one_alone() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    for name in ["reader-1", "reader-2"] {
        f.claim(name, "a", |spec| spec.locks[0].mode = Some(LockMode::Shared)).await;
        f.token_of(name).await;
    }
    f.claim("writer", "a", |spec| spec.locks[0].mode = Some(LockMode::Exclusive)).await;
    f.claim_reason("writer", types::HELD, reasons::WAITING).await;
    f.claim("reader-3", "a", |spec| spec.locks[0].mode = Some(LockMode::Shared)).await;
    f.claim_reason("reader-3", types::HELD, reasons::WAITING).await;
    f.delete::<LockClaim>("reader-1").await;
    f.delete::<LockClaim>("reader-2").await;
    f.token_of("writer").await;
    a_while().await;
    f.claim_reason("reader-3", types::HELD, reasons::WAITING).await;
    f.delete::<LockClaim>("writer").await;
    f.token_of("reader-3").await;
}

#[tokio::test]
async fn permits_that_are_raised_under_a_writer_let_nobody_in() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("writer", "a", |spec| spec.locks[0].mode = Some(LockMode::Exclusive)).await;
    let token = f.token_of("writer").await;
    f.claim("counted", "a", |_| {}).await;
    f.claim("reader", "a", |spec| spec.locks[0].mode = Some(LockMode::Shared)).await;
    for waiter in ["counted", "reader"] {
        f.has_its_place(waiter).await;
    }
    let raised: DistributedLock = f.change("a", json!({"permits": 5})).await;
    let seen = |lock: &DistributedLock| {
        lock.status.as_ref().is_some_and(|s| s.observed_generation == raised.metadata.generation)
    };
    f.lock_is("a", "has seen it", seen).await;
    a_while().await;
    for waiter in ["counted", "reader"] {
        f.claim_reason(waiter, types::HELD, reasons::WAITING).await;
    }
    f.delete::<LockClaim>("writer").await;
    for waiter in ["counted", "reader"] {
        assert!(f.token_of(waiter).await > token, "both fit now");
    }
}

#[tokio::test]
async fn a_higher_priority_is_served_first() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("holder", "a", |_| {}).await;
    f.token_of("holder").await;
    f.claim("low", "a", |_| {}).await;
    f.claim_reason("low", types::HELD, reasons::WAITING).await;
    f.claim("high", "a", |spec| spec.priority = 10).await;
    f.claim_reason("high", types::HELD, reasons::WAITING).await;
    f.delete::<LockClaim>("holder").await;
    let high = f.token_of("high").await;
    f.delete::<LockClaim>("high").await;
    assert!(f.token_of("low").await > high);
}

#[tokio::test]
async fn a_claim_that_would_not_wait_ends_at_once() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("holder", "a", |_| {}).await;
    f.token_of("holder").await;
    f.claim("hasty", "a", |spec| spec.wait_timeout_seconds = Some(0)).await;
    f.claim_reason("hasty", types::FINISHED, reasons::BUSY).await;
    f.claim("patient", "a", |spec| spec.wait_timeout_seconds = Some(1)).await;
    f.claim_reason("patient", types::FINISHED, reasons::WAIT_TIMEOUT).await;
    f.claim("lost", "nowhere", |spec| spec.wait_timeout_seconds = Some(0)).await;
    f.claim_reason("lost", types::FINISHED, reasons::LOCK_NOT_FOUND).await;
    f.lock_is("a", "has no waiter", |lock| lock.status.as_ref().is_some_and(|status| status.waiters == 0)).await;
}

#[tokio::test]
async fn a_claim_waits_for_a_lock_that_does_not_exist_yet() {
    let f = Fixture::new().await;
    f.claim("early", "later", |_| {}).await;
    f.claim_reason("early", types::HELD, reasons::LOCK_NOT_FOUND).await;
    f.lock("later", |_| {}).await;
    f.token_of("early").await;
}

#[tokio::test]
async fn a_claim_for_more_permits_than_the_lock_has_is_rejected() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.permits = 2).await;
    f.claim("greedy", "a", |spec| spec.locks[0].permits = Some(3)).await;
    let claim = f.claim_reason("greedy", types::FINISHED, reasons::UNSATISFIABLE).await;
    let message = &claim.status.expect("a status").conditions[0].message;
    assert!(message.contains("2 permits"), "{message}");
    f.claim("modest", "a", |spec| spec.locks[0].permits = Some(2)).await;
    f.token_of("modest").await;
}

#[tokio::test]
async fn a_hold_ends_after_its_longest_time_and_the_claim_goes_after_its_own() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let begun = Instant::now();
    f.claim("brief", "a", |spec| {
        spec.max_hold_seconds = Some(1);
        spec.ttl_seconds_after_finished = Some(3);
    })
    .await;
    let brief = f.token_of("brief").await;
    f.claim("next", "a", |_| {}).await;
    assert!(f.token_of("next").await > brief);
    f.test.gone::<LockClaim>("brief", LIMIT).await;
    // A second of holding and three that are its own, of which one may be missing: a time in etcd has whole seconds.
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_waiting_claim_that_is_deleted_leaves_the_queue() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("holder", "a", |_| {}).await;
    f.token_of("holder").await;
    f.claim("waiter", "a", |_| {}).await;
    f.claim_reason("waiter", types::HELD, reasons::WAITING).await;
    f.delete::<LockClaim>("waiter").await;
    f.test.gone::<LockClaim>("waiter", LIMIT).await;
    f.lock_is("a", "has no waiter", |lock| lock.status.as_ref().is_some_and(|status| status.waiters == 0)).await;
    f.claim_is("holder", "holds", |claim| claim_condition(claim, types::HELD)).await;
}

#[tokio::test]
async fn ten_claims_created_at_once_are_served_in_their_order() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let names: Vec<String> = (0..10).map(|n| format!("claim-{n}")).collect();
    for name in &names {
        f.claim(name, "a", |_| {}).await;
    }
    for name in &names {
        f.has_its_place(name).await;
    }
    let mut last = 0;
    for name in &names {
        let token = f.token_of(name).await;
        assert!(token > last, "{name} has {token}, after {last}");
        last = token;
        f.delete::<LockClaim>(name).await;
    }
}

#[tokio::test]
async fn every_condition_carries_the_generation_also_after_a_change() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    f.change::<LockClaim>("mine", serde_json::json!({"ttlSecondsAfterFinished": 60})).await;
    f.test.kubectl("wait --for=condition=Held lclaim/mine --timeout=20s").await.unwrap();
    let current = |claim: &LockClaim| {
        let conditions = claim.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        !conditions.is_empty() && conditions.iter().all(|c| c.observed_generation == claim.metadata.generation)
    };
    f.test.until("mine", "is up to date", Duration::from_secs(10), current).await;
}

#[tokio::test]
async fn claims_that_are_deleted_at_once_leave_nothing_in_the_queue() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("holder", "a", |_| {}).await;
    f.token_of("holder").await;
    let names: Vec<_> = (0..60).map(|number| format!("hasty-{number}")).collect();
    for (name, wait) in names.iter().zip(0..) {
        f.claim(name, "a", |_| {}).await;
        tokio::time::sleep(Duration::from_millis(wait % 20)).await;
        f.delete::<LockClaim>(name).await;
    }
    for name in &names {
        f.test.gone::<LockClaim>(name, LIMIT).await;
    }
    // An API server that has read a claim without our finalizer deletes it even if that has come meanwhile, so that a
    // place may be left behind until the lock is looked at.
    let empty = async || f.workload().inspect(&f.key("a")).await.ok()??.waiters.is_empty().then_some(());
    wait_for("who is gone waits no more", LIMIT, empty).await;
}

/// What was seen may be old: etcd decides first.
#[tokio::test]
async fn nothing_is_freed_in_redis_before_etcd_has_let_it_go() {
    let mut f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let pod = f.pods().run("p", "Always", None).await;
    for name in ["goes", "ends"] {
        f.controller.kill();
        f.controller.spawn_with(Some("kill before claim.withdraw".into()));
        f.claim(name, "a", |spec| spec.holder_ref = Some(holder(&pod))).await;
        f.has_its_place(name).await;
        match name {
            "goes" => f.delete::<LockClaim>(name).await,
            _ => f.pods().delete_by_force(&pod).await,
        }
        wait_for("the controller dies", LIMIT, async || f.controller.process().exit_status()).await;
    }
    f.test.gone::<LockClaim>("goes", LIMIT).await;
    let ended = f.test.api::<LockClaim>().get("ends").await.expect("it is there");
    assert!(claim_condition(&ended, types::FINISHED), "{:?}", ended.status);

    f.controller.restart().await;
    f.delete::<LockClaim>("mine").await;
    f.claim("next", "a", |_| {}).await;
    f.token_of("next").await;
}

#[tokio::test]
async fn a_claim_over_the_locks_of_two_controllers_says_so_and_can_be_deleted() {
    let f = Fixture::new().await;
    let foreign = format!("{}-foreign", f.store_name());
    f.stores().create(&PostParams::default(), &store(&foreign, "none:6379", "somebody/else")).await.expect("a store");
    f.ready_lock("a", |_| {}).await;
    f.lock("theirs", |spec| spec.store_name = foreign.clone()).await;
    f.claim("both", "theirs", |spec| spec.locks.push(LockRequest::new("a"))).await;
    let claim = f.claim_reason("both", types::HELD, reasons::OTHER_CONTROLLER).await;
    let held = condition::get(&claim.status.as_ref().unwrap().conditions, types::HELD).unwrap();
    assert!(held.message.contains("another controller serves theirs"), "{}", held.message);
    f.claim("single", "a", |_| {}).await;
    f.token_of("single").await;
    f.delete::<LockClaim>("both").await;
    f.test.gone::<LockClaim>("both", LIMIT).await;
    f.stores().delete(&foreign, &DeleteParams::default()).await.expect("deleted");
}
