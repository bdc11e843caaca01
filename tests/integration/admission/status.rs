//! Statuses at the API server: written apart from the spec, and bounded.

use leasehold::api::{DistributedLock, DistributedLockStatus, LockClaim, LockHolder, condition, time};
use serde_json::{Value, json};

use super::{Kind, create_lock_that_nobody_serves, surprise};
use crate::support::TestNamespace;

fn holder(id: usize) -> Value {
    let time = "2026-11-24T12:00:00.000001Z";
    json!({"id": format!("h{id}"), "identity": "pod/p", "fencingToken": 1,
        "acquireTime": time, "renewTime": time, "expireTime": time})
}

fn ready(reason: &str, message: &str) -> Value {
    json!({"type": "Ready", "status": "True", "reason": reason, "message": message,
        "lastTransitionTime": "2026-11-24T12:00:00Z"})
}

#[tokio::test]
async fn a_status_of_the_controller_comes_back_as_it_was_written() {
    let test = TestNamespace::new().await;
    let locks = Kind::namespaced::<DistributedLock>(&test);
    create_lock_that_nobody_serves(&test, "held").await;
    let now = jiff::Timestamp::now();
    let hold = LockHolder {
        id: "h".to_owned(),
        identity: "pod/p".to_owned(),
        pod_uid: Some("0c5f".to_owned()),
        permits: Some(1),
        mode: None,
        fencing_token: (1 << 53) - 1,
        acquire_time: time::micros(now),
        renew_time: time::micros(now),
        expire_time: time::micros(now),
    };
    let mut status = DistributedLockStatus {
        observed_generation: Some(1),
        holder: Some("pod/p".to_owned()),
        holders: vec![hold],
        expire_time: Some(time::seconds(now)),
        transitions: 1,
        ..Default::default()
    };
    condition::set(&mut status.conditions, "Held", true, "Held", "by pod/p", Some(1), now);
    let written = locks.merge_status("held", serde_json::to_value(&status).unwrap()).await.unwrap();
    let lock: DistributedLock = serde_json::from_value(written).unwrap();
    assert_eq!(lock.status, Some(status));
}

#[tokio::test]
async fn a_status_out_of_its_bounds_is_refused() {
    let test = TestNamespace::new().await;
    let locks = Kind::namespaced::<DistributedLock>(&test);
    create_lock_that_nobody_serves(&test, "l").await;
    for (status, expected) in [
        (json!({"holders": (0..21).map(holder).collect::<Vec<_>>()}), "must have at most 20 items"),
        (json!({"holders": [holder(1), holder(1)]}), "Duplicate value"),
        (json!({"conditions": [ready("Ready", ""), ready("Ready", "")]}), "Duplicate value"),
        (json!({"conditions": [ready("no word", "")]}), "should match"),
        (json!({"conditions": [ready("Ready", &"m".repeat(1025))]}), "may not be more than 1024"),
        (json!({"fencingToken": 1_i64 << 53}), "less than or equal to"),
        (json!({"waiters": -1}), "greater than or equal to 0"),
        (json!({"expireTime": "tomorrow"}), "must be of type date-time"),
    ] {
        let result = locks.merge_status("l", status.clone()).await;
        assert_eq!(surprise(&status, result, Some(expected)), None);
    }
}

#[tokio::test]
async fn the_status_of_a_new_object_is_not_what_its_creator_says() {
    let test = TestNamespace::new().await;
    let claims = Kind::namespaced::<LockClaim>(&test);
    let body = json!({"spec": {"locks": [{"name": "a"}]}, "status": {"fencingToken": 7}});
    let claim = claims.create("forged", body).await;
    assert_eq!(claim["status"]["fencingToken"], Value::Null);
}
