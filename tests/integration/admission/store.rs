//! `LockStore` at the API server.

use leasehold::api::LockStore;
use serde_json::{Value, json};

use super::Kind;
use crate::support::TestNamespace;

/// No controller of ours serves this one.
const NOBODY: &str = "example.com/nobody";

/// A valid spec with some fields changed.
fn spec(fields: Value) -> Value {
    let mut spec = json!({"controllerName": NOBODY, "standalone": {"address": "redis:6379"}});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    spec
}

fn at(address: &str) -> Value {
    spec(json!({"standalone": {"address": address}}))
}

fn allowing(from: &str, selector: Value) -> Value {
    spec(json!({"allowedNamespaces": {"from": from, "selector": selector}}))
}

fn requiring(operator: &str, values: Value) -> Value {
    allowing("Selector", json!({"matchExpressions": [{"key": "team", "operator": operator, "values": values}]}))
}

#[tokio::test]
async fn a_store_with_an_address_alone_gets_all_defaults() {
    let test = TestNamespace::new().await;
    let stores = Kind::cluster::<LockStore>(&test);
    let store = stores.apply("new", json!({"spec": {"standalone": {"address": "redis:6379"}}}), true).await.unwrap();
    let expected = json!({
        "controllerName": "leasehold.dev/controller",
        "keyPrefix": "leasehold",
        "standalone": {"address": "redis:6379", "database": 0},
        "allowedNamespaces": {"from": "All"},
    });
    assert_eq!(store["spec"], expected);
    let created = stores.create("new", json!({"spec": spec(json!({}))})).await;
    let conditions = created["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.iter().map(|c| &c["type"]).collect::<Vec<_>>(), ["Ready", "Recovering"]);
    assert!(conditions.iter().all(|c| c["status"] == "Unknown"));
}

#[tokio::test]
async fn every_value_within_its_bounds_is_accepted() {
    let test = TestNamespace::new().await;
    let labels: serde_json::Map<_, _> = (0..16).map(|n| (format!("label-{n}"), json!("v".repeat(63)))).collect();
    Kind::cluster::<LockStore>(&test)
        .accepts(&[
            at("10.0.0.1:1"),
            at("[fd00::1]:65535"),
            at(&format!("{}:65535", "h".repeat(253))),
            spec(json!({"standalone": {"address": "r:6379", "database": 65535}})),
            spec(json!({"keyPrefix": "p".repeat(64)})),
            spec(json!({"controllerName": "example.com/other"})),
            spec(json!({"auth": {"secretRef": {"name": "redis-auth"}}})),
            spec(json!({"tls": {}})),
            spec(json!({"tls": {"caSecretRef": {"name": "ca"}, "clientSecretRef": {"name": "crt"}}})),
            spec(json!({"minimumEpoch": 0})),
            spec(json!({"minimumEpoch": 2097151})),
            spec(json!({"allowedNamespaces": {}})),
            allowing("Selector", json!({"matchLabels": labels})),
            requiring("In", json!(["shop"])),
            requiring("NotIn", json!(["shop", "bank"])),
            requiring("Exists", json!([])),
            requiring("DoesNotExist", json!([])),
        ])
        .await;
}

#[tokio::test]
async fn every_value_out_of_its_bounds_is_refused() {
    let test = TestNamespace::new().await;
    let address = "address must be a host and a port";
    Kind::cluster::<LockStore>(&test)
        .refuses(&[
            (at("redis"), address),
            (at(":6379"), address),
            (at("r:"), "should be at least 3 chars long"),
            (at("redis:0"), address),
            (at("redis:123456"), address),
            (at("redis://redis:6379"), address),
            (at("re dis:6379"), address),
            (at(&format!("{}:6379", "h".repeat(256))), "may not be more than 260"),
            (spec(json!({"standalone": {}})), "spec.standalone.address: Required value"),
            (spec(json!({"standalone": {"address": "r:6379", "database": -1}})), "greater than or equal to 0"),
            (spec(json!({"standalone": {"address": "r:6379", "database": 65536}})), "less than or equal to 65535"),
            (spec(json!({"keyPrefix": ""})), "should be at least 1 chars long"),
            (spec(json!({"keyPrefix": "p".repeat(65)})), "may not be more than 64"),
            (spec(json!({"keyPrefix": "a{b}"})), "spec.keyPrefix in body should match"),
            (spec(json!({"controllerName": ""})), "should be at least 1 chars long"),
            (spec(json!({"controllerName": "a b"})), "spec.controllerName in body should match"),
            (spec(json!({"controllerName": "c".repeat(254)})), "may not be more than 253"),
            (spec(json!({"auth": {}})), "spec.auth.secretRef: Required value"),
            (spec(json!({"minimumEpoch": -1})), "greater than or equal to 0"),
            (spec(json!({"minimumEpoch": 2097152})), "less than or equal to 2097151"),
        ])
        .await;
}

#[tokio::test]
async fn every_reference_to_a_secret_has_a_name_within_its_bounds() {
    let test = TestNamespace::new().await;
    let stores = Kind::cluster::<LockStore>(&test);
    let long = "n".repeat(254);
    for (part, reference) in [("auth", "secretRef"), ("tls", "caSecretRef"), ("tls", "clientSecretRef")] {
        let naming = |secret: Value| spec(json!({part: {reference: secret}}));
        let required = format!("spec.{part}.{reference}.name: Required value");
        stores
            .refuses(&[
                (naming(json!({})), &required),
                (naming(json!({"name": ""})), "should be at least 1 chars long"),
                (naming(json!({"name": long})), "may not be more than 253"),
            ])
            .await;
    }
}

#[tokio::test]
async fn exactly_one_deployment_must_be_named() {
    let test = TestNamespace::new().await;
    let one = "exactly one kind of Redis deployment must be set: standalone";
    Kind::cluster::<LockStore>(&test)
        .refuses(&[
            (json!({}), one),
            (spec(json!({"standalone": null})), "spec.standalone in body must be of type object"),
            (spec(json!({"cluster": {}})), "field not declared in schema"),
        ])
        .await;
    let missing = Kind::cluster::<LockStore>(&test).apply("refused", json!({}), true).await.unwrap_err();
    assert!(missing.contains("spec: Required value"), "{missing}");
}

#[tokio::test]
async fn a_selector_is_there_when_it_is_asked_for_and_says_something() {
    let test = TestNamespace::new().await;
    let pairing = "selector must be set if, and only if, from is Selector";
    let values = "In and NotIn need values, Exists and DoesNotExist take none";
    let many: serde_json::Map<_, _> = (0..17).map(|n| (format!("label-{n}"), json!("v"))).collect();
    Kind::cluster::<LockStore>(&test)
        .refuses(&[
            (spec(json!({"allowedNamespaces": {"from": "Selector"}})), pairing),
            (allowing("All", json!({"matchLabels": {"a": "b"}})), pairing),
            (allowing("Unknown", json!(null)), r#"supported values: "All", "Selector""#),
            (allowing("Selector", json!({})), "a selector must not be empty"),
            (allowing("Selector", json!({"matchLabels": {}})), "a selector must not be empty"),
            (allowing("Selector", json!({"matchLabels": many})), "must have at most 16 items"),
            (allowing("Selector", json!({"matchLabels": {"a": "v".repeat(64)}})), "may not be more than 63"),
            (
                allowing("Selector", json!({"matchLabels": {"k".repeat(318): "v"}})),
                "a label's key has 1 to 317 characters",
            ),
            (requiring("In", json!([])), values),
            (requiring("Exists", json!(["shop"])), values),
            (requiring("Unknown", json!([])), r#""In", "NotIn", "Exists", "DoesNotExist""#),
        ])
        .await;
}

#[tokio::test]
async fn every_requirement_of_a_selector_is_bounded() {
    let test = TestNamespace::new().await;
    let one = json!({"key": "team", "operator": "Exists"});
    let requirements = |list: Value| allowing("Selector", json!({"matchExpressions": list}));
    Kind::cluster::<LockStore>(&test)
        .refuses(&[
            (requirements(json!(vec![&one; 17])), "must have at most 16 items"),
            (requirements(json!([{"operator": "Exists"}])), "key: Required value"),
            (requirements(json!([{"key": "team"}])), "operator: Required value"),
            (requirements(json!([{"key": "", "operator": "Exists"}])), "should be at least 1 chars long"),
            (requirements(json!([{"key": "k".repeat(318), "operator": "Exists"}])), "may not be more than 317"),
            (requiring("In", json!(vec!["v"; 17])), "must have at most 16 items"),
            (requiring("In", json!(["v".repeat(64)])), "may not be more than 63"),
        ])
        .await;
}

#[tokio::test]
async fn controller_and_prefix_stay_and_the_rest_may_change() {
    let test = TestNamespace::new().await;
    let stores = Kind::cluster::<LockStore>(&test);
    stores.create("kept", json!({"spec": spec(json!({}))})).await;
    let changes = [
        (
            json!({"controllerName": "example.com/other"}),
            "spec.controllerName: Invalid value: controllerName is immutable",
        ),
        (json!({"controllerName": null}), "spec.controllerName: Invalid value: controllerName is immutable"),
        (json!({"keyPrefix": "other"}), "spec.keyPrefix: Invalid value: keyPrefix is immutable"),
    ];
    stores.cannot_change("kept", &changes).await;
    let rest = [
        json!({"standalone": {"address": "elsewhere:6379", "database": 1}}),
        json!({"auth": {"secretRef": {"name": "a"}}, "tls": {}, "minimumEpoch": 7}),
        json!({"keyPrefix": null}),
    ];
    stores.can_change("kept", &rest).await;
}
