//! Locks: direct holders in the status, changes while held, deletion.

use std::time::{Duration, Instant};

use jiff::SignedDuration;
use leasehold::api::condition::{reasons, types};
use leasehold::api::{DistributedLock, LockClaim, NodeUnreachablePolicy};
use leasehold::lease::{Acquired, Renewed, Wait};
use serde_json::json;

use super::fixture::{Fixture, lock_condition, lock_reason, request};
use crate::support::{ApiProxy, LIMIT, RedisServer, TestNamespace, wait_for};

fn holder_is(lock: &DistributedLock, holder: Option<&str>) -> bool {
    lock.status.as_ref().is_some_and(|status| status.holder.as_deref() == holder)
}

#[tokio::test]
async fn a_direct_hold_is_in_the_status_within_a_second() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let store = f.workload();
    let request = request("direct", Wait::No);
    let start = Instant::now();
    let Acquired::Granted(grant) = store.acquire(&f.key("a"), &request).await.unwrap() else { panic!("not granted") };
    let lock = f.lock_is("a", "is held", |lock| holder_is(lock, Some("process/test"))).await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let status = lock.status.expect("a status");
    assert_eq!(status.fencing_token, Some(grant.token.get()));
    assert!(!status.holders[0].id.contains("direct"), "the id is a secret");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    store.release(&f.key("a"), &request.id).await.unwrap();
    f.lock_is("a", "is free", |lock| holder_is(lock, None)).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_dead_direct_holder_loses_its_hold_to_a_claim_when_its_lease_ends() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 3).await;
    let answer = f.workload().acquire(&f.key("a"), &request("dead", Wait::No)).await.unwrap();
    assert!(matches!(answer, Acquired::Granted(_)));
    let start = Instant::now();
    f.claim("next", "a", |_| {}).await;
    f.token_of("next").await;
    let took = start.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&took), "lease + 1 s at most: {took:?}");
}

#[tokio::test]
async fn a_lock_that_changes_hands_many_times_is_written_once_a_second() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let (store, key) = (f.workload(), f.key("a"));
    let before = f.status_writes("a");
    let start = Instant::now();
    let mut turns = 0;
    while start.elapsed() < Duration::from_secs(4) {
        let request = request(&format!("turn-{turns}"), Wait::No);
        if matches!(store.acquire(&key, &request).await.unwrap(), Acquired::Granted(_)) {
            store.release(&key, &request.id).await.unwrap();
            turns += 1;
        }
    }
    let writes = f.status_writes("a") - before;
    assert!(turns > 400, "only {turns} turns");
    assert!((2..=6).contains(&writes), "{writes} writes in 4 s");
}

/// What is known of the lock is old then, and the API server refuses what is written from that.
#[tokio::test]
async fn its_status_is_tried_once_a_second_while_no_watch_tells_of_it() {
    let test = TestNamespace::new().await;
    let proxy = ApiProxy::start(&test.plane().kubeconfig("controller"));
    let kubeconfig = proxy.kubeconfig(proxy.port());
    let f = Fixture::on(test, RedisServer::start().await, |options| options.kubeconfig = kubeconfig).await;
    f.ready_lock("a", |_| {}).await;
    proxy.drop_watch_events(true);
    let (store, request) = (f.workload(), request("direct", Wait::No));
    assert!(matches!(store.acquire(&f.key("a"), &request).await.unwrap(), Acquired::Granted(_)));
    let refused = async || Some(f.status_tries("a", 409)).filter(|tries| tries.len() >= 4);
    let refused = wait_for("it is tried", LIMIT, refused).await;
    let gaps = refused.windows(2).map(|pair| pair[1].duration_since(pair[0]));
    let shortest = gaps.min().expect("there are some");
    assert!(shortest > SignedDuration::from_millis(900), "{shortest:?}: {refused:?}");
    proxy.drop_watch_events(false);
    store.release(&f.key("a"), &request.id).await.unwrap();
    f.lock_is("a", "is free", |lock| holder_is(lock, None)).await;
}

#[tokio::test]
async fn permits_and_lease_change_while_it_is_held() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 5).await;
    f.claim("one", "a", |_| {}).await;
    let one = f.token_of("one").await;
    f.claim("two", "a", |_| {}).await;
    f.claim_reason("two", types::HELD, reasons::WAITING).await;
    f.change::<DistributedLock>("a", json!({"permits": 2, "leaseDurationSeconds": 20})).await;
    assert!(f.token_of("two").await > one);
    let longest = |seconds: i32| {
        move |lock: &DistributedLock| lock.status.as_ref().and_then(|s| s.longest_lease_seconds) == Some(seconds)
    };
    f.lock_is("a", "remembers the longer lease", longest(20)).await;
    f.change::<DistributedLock>("a", json!({"permits": 1, "leaseDurationSeconds": 2})).await;
    f.lock_is("a", "still remembers the longer lease", |lock| {
        longest(20)(lock) && lock.status.as_ref().and_then(|s| s.observed_generation) == lock.metadata.generation
    })
    .await;
    f.claim("three", "a", |_| {}).await;
    f.claim_reason("three", types::HELD, reasons::WAITING).await;
    f.delete::<LockClaim>("one").await;
    f.test.gone::<LockClaim>("one", LIMIT).await;
    f.lock_is("a", "is held by the second alone", |lock| holder_is(lock, Some("claim/two"))).await;
    f.claim_reason("three", types::HELD, reasons::WAITING).await;
    f.test.until("a", "forgets the longer lease one old lease later", 2 * LIMIT, longest(2)).await;
}

#[tokio::test]
async fn a_lock_is_usable_under_each_policy_and_bound() {
    let f = Fixture::new().await;
    f.lock("keep", |spec| spec.node_unreachable_policy = NodeUnreachablePolicy::Keep).await;
    f.lock("release", |spec| spec.node_unreachable_policy = NodeUnreachablePolicy::Release).await;
    f.lock("bounded", |spec| spec.max_hold_seconds = Some(1)).await;
    for name in ["keep", "release", "bounded"] {
        f.lock_is(name, "is Ready", |lock| lock_condition(lock, types::READY)).await;
        f.claim(name, name, |_| {}).await;
        f.token_of(name).await;
    }
    f.claim_reason("bounded", types::FINISHED, reasons::RELEASED).await;
}

#[tokio::test]
async fn a_lock_of_an_unknown_store_says_so_and_heals() {
    let f = Fixture::new().await;
    let name = format!("{}-late", f.test.name());
    f.lock("a", |spec| spec.store_name = name.clone()).await;
    let lock = f.lock_is("a", "has no store", |lock| lock_reason(lock, types::READY, reasons::STORE_NOT_FOUND)).await;
    let ready = &lock.status.expect("a status").conditions;
    assert!(ready.iter().any(|condition| condition.message.contains(&name)), "{ready:?}");
    let store = super::fixture::store(&name, &f.redis.address(), &format!("test/{}", f.test.name()));
    f.stores().create(&kube::api::PostParams::default(), &store).await.unwrap();
    f.lock_is("a", "is Ready", |lock| lock_condition(lock, types::READY)).await;
}

#[tokio::test]
async fn a_lock_deleted_while_a_claim_holds_it_waits_and_its_successor_has_higher_tokens() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    let first = f.token_of("mine").await;
    f.delete::<DistributedLock>("a").await;
    f.lock_is("a", "waits for its holder", |lock| lock_reason(lock, types::READY, reasons::DELETING)).await;
    f.claim_is("mine", "still holds", |claim| super::fixture::claim_condition(claim, types::HELD)).await;
    f.delete::<LockClaim>("mine").await;
    f.test.gone::<DistributedLock>("a", LIMIT).await;
    f.ready_lock("a", |_| {}).await;
    f.claim("again", "a", |_| {}).await;
    let second = f.token_of("again").await;
    assert!(second > first, "{second} is not above {first}");
}

#[tokio::test]
async fn a_direct_holder_of_a_deleted_lock_is_told_and_its_lease_is_waited_for() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 3).await;
    let (store, key, request) = (f.workload(), f.key("a"), request("direct", Wait::No));
    let Acquired::Granted(grant) = store.acquire(&key, &request).await.unwrap() else { panic!("not granted") };
    let start = Instant::now();
    f.delete::<DistributedLock>("a").await;
    let told = async || {
        let answers = store.renew(&[(key.clone(), request.id.clone())]).await.unwrap();
        matches!(answers[..], [Renewed::Lost]).then_some(())
    };
    wait_for("the holder is told", LIMIT, told).await;
    f.test.gone::<DistributedLock>("a", LIMIT).await;
    assert!(start.elapsed() > Duration::from_secs(2), "gone before the lease was over: {:?}", start.elapsed());
    f.ready_lock("a", |_| {}).await;
    f.claim("next", "a", |_| {}).await;
    assert!(f.token_of("next").await > grant.token.get());
}
