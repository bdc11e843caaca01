//! `LockClaim` at the API server.

use leasehold::api::LockClaim;
use serde_json::{Value, json};

use super::Kind;
use crate::support::TestNamespace;

/// A valid spec with some fields changed.
fn spec(fields: Value) -> Value {
    let mut spec = json!({"locks": [{"name": "db-migrate"}]});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    spec
}

fn lock(lock: Value) -> Value {
    json!({"locks": [lock]})
}

fn held_by(kind: &str, fields: Value) -> Value {
    let mut holder = json!({"kind": kind, "name": "p", "uid": "0c5f"});
    holder.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    spec(json!({"holderRef": holder}))
}

#[tokio::test]
async fn a_claim_with_a_lock_alone_gets_all_defaults() {
    let test = TestNamespace::new().await;
    let claims = Kind::namespaced::<LockClaim>(&test);
    let claim = claims.create("new", json!({"spec": spec(json!({}))})).await;
    assert_eq!(claim["spec"], json!({"locks": [{"name": "db-migrate"}], "priority": 0}));
    let with_pod = claims.apply("pod", json!({"spec": held_by("Pod", json!({}))}), true).await.unwrap();
    assert_eq!(with_pod["spec"]["holderRef"], json!({"apiGroup": "", "kind": "Pod", "name": "p", "uid": "0c5f"}));
}

#[tokio::test]
async fn a_claim_that_no_controller_has_seen_is_unknown_in_every_condition() {
    let test = TestNamespace::new().await;
    let claims = Kind::namespaced::<LockClaim>(&test);
    let claim = claims.create("new", json!({"spec": spec(json!({}))})).await;
    let claim: LockClaim = serde_json::from_value(claim).unwrap();
    let conditions = claim.status.unwrap().conditions;
    let seen: Vec<_> = conditions.iter().map(|c| (c.type_.as_str(), c.reason.as_str())).collect();
    assert_eq!(seen, [("Held", "Pending"), ("Finished", "Pending")]);
}

#[tokio::test]
async fn every_value_within_its_bounds_is_accepted() {
    let test = TestNamespace::new().await;
    let eight: Vec<Value> = (0..8).map(|number| json!({"name": format!("lock-{number}")})).collect();
    Kind::namespaced::<LockClaim>(&test)
        .accepts(&[
            json!({"locks": eight}),
            lock(json!({"name": "n".repeat(63)})),
            lock(json!({"name": "a.b-c"})),
            lock(json!({"name": "a", "permits": 1})),
            lock(json!({"name": "a", "permits": 10000})),
            lock(json!({"name": "a", "mode": "Shared"})),
            lock(json!({"name": "a", "mode": "Exclusive"})),
            held_by("Pod", json!({"apiGroup": ""})),
            held_by("Pod", json!({"name": "p".repeat(253), "uid": "u".repeat(64)})),
            spec(json!({"waitTimeoutSeconds": 0, "priority": -1000000000, "maxHoldSeconds": 1, "ttlSecondsAfterFinished": 0})),
            spec(json!({"waitTimeoutSeconds": 31536000, "priority": 1000000000, "maxHoldSeconds": 31536000})),
            spec(json!({"ttlSecondsAfterFinished": 31536000})),
        ])
        .await;
}

#[tokio::test]
async fn every_lock_out_of_its_bounds_is_refused() {
    let test = TestNamespace::new().await;
    let nine: Vec<Value> = (0..9).map(|number| json!({"name": format!("lock-{number}")})).collect();
    Kind::namespaced::<LockClaim>(&test)
        .refuses(&[
            (json!({}), "spec.locks: Required value"),
            (json!({"locks": []}), "should have at least 1 items"),
            (json!({"locks": nine}), "must have at most 8 items"),
            (json!({"locks": [{"name": "a"}, {"name": "a"}]}), "duplicate entries"),
            (lock(json!({"name": "n".repeat(64)})), "may not be more than 63"),
            (lock(json!({"name": "Upper"})), "should match"),
            (lock(json!({"name": ""})), "should be at least 1 chars long"),
            (lock(json!({})), "name"),
            (lock(json!({"name": "a", "permits": 0})), "greater than or equal to 1"),
            (lock(json!({"name": "a", "permits": 10001})), "less than or equal to 10000"),
            (lock(json!({"name": "a", "mode": "Unknown"})), r#"supported values: "Shared", "Exclusive""#),
            (lock(json!({"name": "a", "permits": 1, "mode": "Shared"})), "set permits or mode, not both"),
        ])
        .await;
}

#[tokio::test]
async fn every_other_value_out_of_its_bounds_is_refused() {
    let test = TestNamespace::new().await;
    Kind::namespaced::<LockClaim>(&test)
        .refuses(&[
            (held_by("Job", json!({})), r#"supported values: "Pod""#),
            (held_by("Pod", json!({"apiGroup": "apps"})), r#"supported values: """#),
            (held_by("Pod", json!({"uid": ""})), "should be at least 1 chars long"),
            (held_by("Pod", json!({"name": ""})), "should be at least 1 chars long"),
            (held_by("Pod", json!({"uid": "u".repeat(65)})), "may not be more than 64"),
            (held_by("Pod", json!({"name": "p".repeat(254)})), "may not be more than 253"),
            (spec(json!({"holderRef": {"kind": "Pod", "name": "p"}})), "spec.holderRef.uid: Required value"),
            (spec(json!({"waitTimeoutSeconds": -1})), "greater than or equal to 0"),
            (spec(json!({"waitTimeoutSeconds": 31536001})), "less than or equal to 31536000"),
            (spec(json!({"priority": 1000000001})), "less than or equal to 1000000000"),
            (spec(json!({"priority": -1000000001})), "greater than or equal to -1000000000"),
            (spec(json!({"maxHoldSeconds": 0})), "greater than or equal to 1"),
            (spec(json!({"maxHoldSeconds": 31536001})), "less than or equal to 31536000"),
            (spec(json!({"ttlSecondsAfterFinished": -1})), "greater than or equal to 0"),
            (spec(json!({"ttlSecondsAfterFinished": 31536001})), "less than or equal to 31536000"),
        ])
        .await;
}

#[tokio::test]
async fn what_is_claimed_for_whom_stays_and_times_may_change() {
    let test = TestNamespace::new().await;
    let claims = Kind::namespaced::<LockClaim>(&test);
    claims.create("for-itself", json!({"spec": spec(json!({"waitTimeoutSeconds": 5}))})).await;
    claims.create("for-a-pod", json!({"spec": held_by("Pod", json!({}))})).await;
    let holder = "spec.holderRef: Invalid value: holderRef is immutable";
    let locks = "spec.locks: Invalid value: locks is immutable";
    let changes = [
        (lock(json!({"name": "other"})), locks),
        (lock(json!({"name": "db-migrate", "permits": 2})), locks),
        (json!({"holderRef": {"kind": "Pod", "name": "p", "uid": "0c5f"}}), holder),
        (json!({"priority": 1}), "spec.priority: Invalid value: priority is immutable"),
    ];
    claims.cannot_change("for-itself", &changes).await;
    let changes = [(json!({"holderRef": null}), holder), (json!({"holderRef": {"uid": "another"}}), holder)];
    claims.cannot_change("for-a-pod", &changes).await;
    let times = [
        json!({"waitTimeoutSeconds": null, "maxHoldSeconds": 9, "ttlSecondsAfterFinished": 9}),
        json!({"waitTimeoutSeconds": 60}),
        json!({"priority": 0}),
    ];
    claims.can_change("for-itself", &times).await;
}
