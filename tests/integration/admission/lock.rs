//! `DistributedLock` at the API server.

use leasehold::api::DistributedLock;
use serde_json::{Value, json};

use super::Kind;
use crate::support::TestNamespace;

fn among_apps() -> Value {
    json!({"selector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}})
}

#[tokio::test]
async fn a_lock_without_a_spec_gets_all_defaults() {
    let test = TestNamespace::new().await;
    let locks = Kind::namespaced::<DistributedLock>(&test);
    let defaults = json!({
        "leaseDurationSeconds": 15, "permits": 1, "storeName": "default", "nodeUnreachablePolicy": "Keep",
    });
    for (name, body) in [("bare", json!({})), ("empty", json!({"spec": {}}))] {
        assert_eq!(locks.create(name, body).await["spec"], defaults, "{name}");
    }
    let typed: DistributedLock = serde_json::from_value(locks.create("bare", json!({})).await).unwrap();
    assert_eq!(typed.spec, Default::default());
}

#[tokio::test]
async fn a_lock_that_no_controller_has_seen_is_unknown_in_every_condition() {
    let test = TestNamespace::new().await;
    let locks = Kind::namespaced::<DistributedLock>(&test);
    let body = json!({"spec": {"storeName": "nobody-serves-this"}});
    let lock: DistributedLock = serde_json::from_value(locks.create("new", body).await).unwrap();
    let conditions = lock.status.unwrap().conditions;
    let seen: Vec<_> = conditions.iter().map(|c| (c.type_.as_str(), c.reason.as_str())).collect();
    let all = ["Ready", "Held", "Provisioned", "HolderUnreachable"];
    assert_eq!(seen, all.map(|type_| (type_, "Pending")));
    assert!(conditions.iter().all(|c| c.message == "Waiting for controller"));
}

#[tokio::test]
async fn every_value_within_its_bounds_is_accepted() {
    let test = TestNamespace::new().await;
    Kind::namespaced::<DistributedLock>(&test)
        .accepts(&[
            json!({"leaseDurationSeconds": 1, "permits": 1, "maxHoldSeconds": 1}),
            json!({"leaseDurationSeconds": 3600, "permits": 10000, "maxHoldSeconds": 31536000}),
            json!({"nodeUnreachablePolicy": "Keep"}),
            json!({"nodeUnreachablePolicy": "Release"}),
            json!({"storeName": "s".repeat(253)}),
            json!({"election": among_apps(), "permits": 20}),
            json!({"election": {"selector": {"matchLabels": {"app": "a"}}, "failoverAfterSeconds": 0}}),
        ])
        .await;
}

#[tokio::test]
async fn every_value_out_of_its_bounds_is_refused() {
    let test = TestNamespace::new().await;
    Kind::namespaced::<DistributedLock>(&test)
        .refuses(&[
            (
                json!({"leaseDurationSeconds": 0}),
                "spec.leaseDurationSeconds in body should be greater than or equal to 1",
            ),
            (json!({"leaseDurationSeconds": 3601}), "should be less than or equal to 3600"),
            (json!({"permits": 0}), "spec.permits in body should be greater than or equal to 1"),
            (json!({"permits": 10001}), "should be less than or equal to 10000"),
            (json!({"permits": "two"}), "expected numeric"),
            (json!({"storeName": ""}), "spec.storeName in body should be at least 1 chars long"),
            (json!({"storeName": "s".repeat(254)}), "may not be more than 253"),
            (json!({"nodeUnreachablePolicy": "Unknown"}), r#"supported values: "Keep", "Release""#),
            (json!({"nodeUnreachablePolicy": "Ask"}), r#"supported values: "Keep", "Release""#),
            (json!({"maxHoldSeconds": 0}), "spec.maxHoldSeconds in body should be greater than or equal to 1"),
            (json!({"maxHoldSeconds": 31536001}), "should be less than or equal to 31536000"),
            (json!({"quorum": {}}), "field not declared in schema"),
            (json!({"election": {}}), "spec.election.selector: Required value"),
            (json!({"election": {"selector": {}}}), "a selector must not be empty"),
            (json!({"election": {"selector": {"matchLabels": {}}}}), "a selector must not be empty"),
            (json!({"election": among_apps(), "permits": 21}), "with an election there are at most 20 permits"),
            (
                json!({"election": {"selector": {"matchLabels": {"app": "a"}}, "failoverAfterSeconds": -1}}),
                "should be greater than or equal to 0",
            ),
        ])
        .await;
}

#[tokio::test]
async fn a_name_has_at_most_63_characters() {
    let test = TestNamespace::new().await;
    let locks = Kind::namespaced::<DistributedLock>(&test);
    assert!(locks.apply(&"n".repeat(63), json!({}), true).await.is_ok());
    let refusal = locks.apply(&"n".repeat(64), json!({}), true).await.unwrap_err();
    assert!(refusal.contains("a lock's name has at most 63 characters"), "{refusal}");
}

#[tokio::test]
async fn the_store_of_a_lock_stays_and_the_rest_may_change() {
    let test = TestNamespace::new().await;
    let locks = Kind::namespaced::<DistributedLock>(&test);
    locks.create("by-default", json!({})).await;
    locks.create("by-name", json!({"spec": {"storeName": "other"}})).await;
    let immutable = "spec.storeName: Invalid value: storeName is immutable";
    locks.cannot_change("by-default", &[(json!({"storeName": "other"}), immutable)]).await;
    let changes = [
        (json!({"storeName": "another"}), immutable),
        (json!({"storeName": "default"}), immutable),
        (json!({"storeName": null}), immutable),
        (json!(null), immutable),
    ];
    locks.cannot_change("by-name", &changes).await;
    let rest = [
        json!({"storeName": "default"}),
        json!({"storeName": null}),
        json!({"permits": 3, "leaseDurationSeconds": 60, "maxHoldSeconds": 60, "nodeUnreachablePolicy": "Release"}),
        json!(null),
    ];
    locks.can_change("by-default", &rest).await;
}
