//! Until it is held: whoever gives up is gone, in time, also where the store is silent.

use std::time::{Duration, Instant};

use leasehold::clock::boottime;
use leasehold::keeper::{AcquireError, Rules, Wait};
use leasehold::store::StoreError;
use rstest::rstest;

use super::{LEASE, lock, nobody_is_left, options, store};
use crate::run::fixture::{SOON, Scene};
use crate::support::wait_for;

#[tokio::test]
async fn an_acquire_that_is_dropped_leaves_no_waiter() {
    let scene = Scene::new().await;
    let other = scene.hold().await;
    let lock = lock(&scene);
    let asks = tokio::spawn(async move { lock.acquire(options(Wait::Forever)).await });
    scene.is_queued().await;
    asks.abort();
    wait_for("it leaves the queue", super::AT_ONCE, async || (scene.waiters().await == 0).then_some(())).await;
    other.release().await.unwrap();
    assert_eq!(scene.holders().await, 0, "nobody is offered the lock");
}

/// Granted or not when it was dropped: what was on its way is cancelled.
#[tokio::test]
async fn an_acquire_that_is_dropped_before_its_answer_holds_nothing() {
    let scene = Scene::new().await;
    let lock = lock(&scene);
    lock.holders().await.expect("it is connected");
    scene.proxy.hold_replies(true);
    let asks = tokio::spawn(async move { lock.acquire(options(Wait::Forever)).await });
    wait_for("it is granted", SOON, async || (scene.holders().await == 1).then_some(())).await;
    asks.abort();
    scene.proxy.hold_replies(false);
    nobody_is_left(&scene).await;
}

#[rstest]
#[case::from_the_start(false, Rules::default())]
#[case::before_the_lease_is_known(false, Rules::stopping_within(Duration::from_millis(300)))]
#[case::in_the_queue(true, Rules::default())]
#[tokio::test]
async fn a_wait_ends_in_time_also_where_the_store_is_silent(#[case] queued: bool, #[case] rules: Rules) {
    let scene = Scene::new().await;
    let other = scene.hold().await;
    let (lock, limit) = (lock(&scene), Duration::from_millis(1500));
    scene.proxy.silence(!queued);
    let begun = Instant::now();
    let options = leasehold::keeper::Options { rules, ..options(Wait::For(limit)) };
    let asks = tokio::spawn(async move { lock.acquire(options).await });
    if queued {
        scene.is_queued().await;
        scene.proxy.silence(true);
    }
    let error = tokio::time::timeout(SOON, asks).await.expect("an end").unwrap().unwrap_err();
    let waited = begun.elapsed();
    // Of one that waits in the queue nothing is on its way at that moment.
    let is_said = match error {
        AcquireError::TimedOut(told) => queued && told == limit,
        AcquireError::Unreachable(_) => true,
        _ => false,
    };
    assert!(is_said, "{error}");
    assert!(waited >= limit && waited < limit + Duration::from_secs(1), "{waited:?}");
    // What is left of it is cancelled once the store can be asked.
    scene.proxy.silence(false);
    other.release().await.unwrap();
    nobody_is_left(&scene).await;
}

/// The store has granted it, and the answer never came.
#[tokio::test]
async fn a_grant_that_was_never_heard_of_is_given_back() {
    let scene = Scene::new().await;
    let lock = lock(&scene);
    lock.holders().await.expect("it is connected");
    scene.proxy.hold_replies(true);
    let begun = Instant::now();
    let asks = tokio::spawn(async move { lock.acquire(options(Wait::No)).await });
    wait_for("it is granted", SOON, async || (scene.holders().await == 1).then_some(())).await;
    let error = tokio::time::timeout(SOON, asks).await.expect("an end").unwrap().unwrap_err();
    assert!(matches!(error, AcquireError::Unreachable(_)), "{error}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    scene.proxy.hold_replies(false);
    nobody_is_left(&scene).await;
}

/// By every answer the lease is over that it grants.
#[tokio::test]
async fn one_that_does_not_wait_ends_where_each_answer_is_later_than_the_lease() {
    let lease = Duration::from_secs(1);
    let scene = Scene::with_lease(lease).await;
    let lock = lock(&scene);
    lock.holders().await.expect("it is connected");
    scene.proxy.delay_replies(lease + Duration::from_millis(100));
    let asks = lock.acquire(options(Wait::No));
    let error = tokio::time::timeout(SOON, asks).await.expect("an end").unwrap_err();
    assert!(matches!(error, AcquireError::Unreachable(StoreError::Timeout { limit, .. }) if limit < lease), "{error}");
    scene.proxy.delay_replies(Duration::ZERO);
    nobody_is_left(&scene).await;
}

/// Its message arrives when the server has given up the offer: to believe it would be to hold beside the next.
#[tokio::test]
async fn a_late_offer_is_not_believed() {
    let scene = Scene::with_lease(LEASE).await;
    let first = scene.hold().await;
    let lock = lock(&scene);
    let asks = tokio::spawn(async move { lock.acquire(options(Wait::Forever)).await });
    scene.is_queued().await;
    scene.proxy.silence(true);
    first.release().await.unwrap();
    // An offer lasts as long as a lease at most.
    let second = scene.next(SOON).await;
    scene.proxy.silence(false);
    scene.is_queued().await;
    assert!(!asks.is_finished(), "it holds beside another");
    let token = second.token();
    second.release().await.unwrap();
    let third = tokio::time::timeout(SOON, asks).await.expect("it is granted").unwrap().unwrap();
    assert!(third.token() > token, "{} after {token}", third.token());
}

/// Both of the grant and of each renewal: the server's own end of the lease is later, however late the answers are.
#[tokio::test]
async fn a_deadline_counts_from_the_question_however_late_the_answer() {
    let scene = Scene::with_lease(LEASE).await;
    scene.proxy.delay_replies(Duration::from_millis(400));
    let hold = lock(&scene).acquire(options(Wait::No)).await.unwrap();
    let (begun, first) = (boottime(), hold.deadline());
    while boottime() < begun + LEASE {
        let before = boottime();
        let record = scene.declared.store.inspect(&scene.declared.lock).await.unwrap().unwrap();
        let left = Duration::from_millis((record.holds[0].expires - record.now).unsigned_abs());
        let deadline = hold.deadline();
        assert!(deadline < before + left, "believed {:?} longer than it lasts", deadline - (before + left));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(hold.deadline() > first, "it was renewed");
}

#[tokio::test]
async fn a_subscription_that_is_not_answered_is_given_up() {
    let scene = Scene::new().await;
    let mut inbox = store(&scene).inbox().await.unwrap();
    scene.proxy.hold_replies(true);
    let id = crate::protocol::fixture::id("waiter");
    let subscribed = tokio::time::timeout(SOON, inbox.subscribe(&scene.declared.lock, &id)).await;
    assert!(matches!(subscribed, Ok(Err(StoreError::Timeout { .. }))), "{subscribed:?}");
}
