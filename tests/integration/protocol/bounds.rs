//! Numbers at their ends, and records that don't grow.

use std::time::Duration;

use futures::future::join_all;
use leasehold::lease::{Acquired, Epoch, Mode, Released, Wait};
use leasehold::store::{Due, Provision};

use super::fixture::{Declared, id, provision, request};
use crate::support::{LIMIT, wait_for};

/// Ended ids that a record keeps at most: those remembered, and as many that wait to be dropped together.
const ENDED_IDS: usize = 2 * 128;
/// The fields of a record that belong to no id.
const OWN_FIELDS: usize = 2;

#[tokio::test]
async fn tokens_near_2_to_the_53_come_through_whole() {
    let declared = Declared::mutex().await;
    declared.open(Epoch::MAX).await;
    let end = Epoch::MAX.ceiling();
    declared.provision(&Provision { token_floor: end - 3, ..provision(1, Duration::from_secs(600)) }).await;
    for (holder, token) in [("a", end - 2), ("b", end - 1)] {
        assert_eq!(declared.granted(holder).await.token.get(), token);
        let record = declared.store.inspect(&declared.lock).await.unwrap().unwrap();
        assert_eq!((record.last, record.holds[0].token.get()), (token, token));
        declared.store.release(&declared.lock, &id(holder)).await.unwrap();
    }
    assert_eq!(declared.acquire("c", Wait::No).await, Acquired::EpochExhausted);
    assert_eq!(declared.control.seal(&declared.lock, "uid").await.unwrap().unwrap().last, end - 1);
}

async fn server_time(declared: &Declared) -> i64 {
    let (seconds, micros): (i64, i64) = declared.server.send("TIME").await;
    seconds * 1000 + micros / 1000
}

#[tokio::test]
async fn the_clock_is_the_servers_in_milliseconds() {
    let declared = Declared::with(&provision(1, Duration::from_millis(300))).await;
    let before = server_time(&declared).await;
    let now = declared.control.heartbeat("test", 0).await.unwrap().unwrap().now;
    let after = server_time(&declared).await;
    assert!((before..=after).contains(&now), "{now} is not between {before} and {after}");
    assert_eq!(declared.granted("first").await.remaining, Duration::from_millis(300));
    wait_for("the lease to end", LIMIT, async || {
        matches!(declared.acquire("second", Wait::No).await, Acquired::Granted(_)).then_some(())
    })
    .await;
    assert!(server_time(&declared).await >= after + 300);
    assert_eq!(declared.store.release(&declared.lock, &id("first")).await.unwrap(), Released::Lost);
}

#[tokio::test]
async fn a_record_keeps_a_bounded_number_of_ended_ids() {
    let declared = Declared::mutex().await;
    for n in 0..1_000 {
        declared.granted(&format!("holder-{n}")).await;
        declared.store.release(&declared.lock, &id(&format!("holder-{n}"))).await.unwrap();
        let size = declared.size("HLEN", "lock").await;
        assert!(size <= OWN_FIELDS + ENDED_IDS, "{size} fields after {n} holders");
    }
    assert_eq!(declared.acquire("holder-999", Wait::No).await, Acquired::Lost);
    assert_eq!(declared.acquire("holder-872", Wait::No).await, Acquired::Lost, "the 128th of the last");
}

#[tokio::test]
async fn a_thousand_leases_that_end_at_once_leave_nothing_behind() {
    let declared = Declared::with(&provision(2_000, Duration::from_secs(60))).await;
    declared.provision(&Provision { generation: 2, ..provision(2_000, Duration::from_millis(500)) }).await;
    let names: Vec<String> = (0..1_200).map(|n| format!("holder-{n}")).collect();
    let last = request("holder-1200", Wait::No);
    let all = join_all(names.iter().map(|name| declared.acquire(name, Wait::No))).await;
    assert!(all.iter().all(|acquired| matches!(acquired, Acquired::Granted(_))));
    wait_for("all leases to end", LIMIT, async || {
        declared.control.expire(std::slice::from_ref(&declared.lock)).await.unwrap().unwrap();
        let record = declared.store.inspect(&declared.lock).await.unwrap().unwrap();
        record.holds.is_empty().then_some(())
    })
    .await;
    // Some may have ended between that sweep and the look, which doesn't show them.
    declared.control.expire(std::slice::from_ref(&declared.lock)).await.unwrap().unwrap();
    let size = declared.size("HLEN", "lock").await;
    assert!(size <= OWN_FIELDS + ENDED_IDS, "{size} fields");
    let exclusive = leasehold::lease::Request { mode: Mode::Exclusive, ..last };
    let acquired = declared.store.acquire(&declared.lock, &exclusive).await.unwrap();
    assert!(matches!(acquired, Acquired::Granted(_)), "{acquired:?}");
}

#[tokio::test]
async fn waiters_that_died_are_dropped_while_the_lock_stays_held() {
    let declared = Declared::mutex().await;
    declared.granted("holder").await;
    declared.control.pin(&declared.lock, &id("holder"), Epoch::new(1).unwrap()).await.unwrap().unwrap();
    declared.provision(&Provision { generation: 2, ..provision(1, Duration::from_millis(200)) }).await;
    let names: Vec<String> = (0..300).map(|n| format!("waiter-{n}")).collect();
    join_all(names.iter().map(|name| declared.acquire(name, Wait::Forever))).await;
    assert_eq!(declared.size("ZCARD", "queue").await, 300);
    let locks = std::slice::from_ref(&declared.lock);
    wait_for("the waiters to be given up", LIMIT, async || {
        let due = declared.control.expire(locks).await.unwrap().unwrap();
        assert!(matches!(due[..], [Due::In(left)] if left <= Duration::from_secs(600)), "{due:?}");
        (declared.size("ZCARD", "queue").await == 0).then_some(())
    })
    .await;
    assert_eq!(declared.size("HLEN", "waiters").await, 0);
    assert_eq!(declared.store.inspect(&declared.lock).await.unwrap().unwrap().waiters, []);
}
