//! Claims take turns, hold, and let go.

use leasehold::api::condition::{reasons, types};
use leasehold::api::{DistributedLock, LockClaim, LockMode};
use serde_json::json;

use super::fixture::{Fixture, a_while, claim_condition, holder, lock_condition};
use crate::support::{LIMIT, containers_terminated};

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
