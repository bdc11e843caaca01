//! What people see of the kinds with kubectl.

use kube::api::ListParams;
use leasehold::api::{DistributedLock, LockClaim, LockStore};
use serde_json::{Value, json};

use super::{Kind, create_lock_that_nobody_serves};
use crate::support::{LIMIT, TestNamespace, wait_for};

/// The words of each line.
fn words(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

fn held(generation: i64) -> Value {
    json!([{"type": "Held", "status": "True", "reason": "Held", "message": "", "observedGeneration": generation,
        "lastTransitionTime": "2026-11-24T12:00:00Z"}])
}

/// Returns the name of the lock's store.
async fn create_held_lock(test: &TestNamespace, name: &str, holder: &str) -> String {
    let store = create_lock_that_nobody_serves(test, name).await;
    let status = json!({"holder": holder, "fencingToken": 21474836481_i64, "expireTime": "2099-11-24T12:00:15Z",
        "waiters": 2, "transitions": 7, "conditions": held(1)});
    Kind::namespaced::<DistributedLock>(test).merge_status(name, status).await.unwrap();
    store
}

#[tokio::test]
async fn a_lock_is_shown_with_holder_token_and_expiry() {
    let test = TestNamespace::new().await;
    let store = create_held_lock(&test, "report", "pod/report-0").await;
    let table = test.kubectl("get dlock").await.unwrap();
    let rows = words(&table);
    assert_eq!(rows[0], ["NAME", "HELD", "HOLDER", "TOKEN", "EXPIRES", "WAITERS", "AGE"]);
    assert_eq!(rows[1][..6], ["report", "True", "pod/report-0", "21474836481", "2099-11-24T12:00:15Z", "2"]);
    let wide = test.kubectl("get dlock -o wide").await.unwrap();
    assert_eq!(words(&wide)[0][7..], ["PERMITS", "STORE", "TRANSITIONS", "REASON"]);
    assert_eq!(words(&wide)[1][7..], ["1", &store, "7"]);
}

#[tokio::test]
async fn locks_are_selected_by_their_holder() {
    let test = TestNamespace::new().await;
    create_held_lock(&test, "mine", "pod/me").await;
    create_held_lock(&test, "other", "pod/you").await;
    let names = test.kubectl("get dlock --field-selector status.holder=pod/me -o name").await.unwrap();
    assert_eq!(names.trim(), "distributedlock.leasehold.dev/mine");
}

#[tokio::test]
async fn stores_locks_and_claims_are_listed_by_the_name_of_the_project() {
    let test = TestNamespace::new().await;
    let store = json!({"spec": {"controllerName": "example.com/nobody", "standalone": {"address": "redis:6379"}}});
    Kind::cluster::<LockStore>(&test).create("s", store).await;
    Kind::namespaced::<DistributedLock>(&test).create("l", json!({})).await;
    let claims = Kind::namespaced::<LockClaim>(&test);
    claims.create("c", json!({"spec": {"locks": [{"name": "l"}]}})).await;
    let names = test.kubectl("get leasehold -o name").await.unwrap();
    for name in [
        &format!("lockstore.leasehold.dev/{}-s", test.name()),
        "distributedlock.leasehold.dev/l",
        "lockclaim.leasehold.dev/c",
    ] {
        assert!(names.lines().any(|line| line == name), "{name} is not in\n{names}");
    }
    let stores = test.kubectl("get lstore").await.unwrap();
    assert_eq!(words(&stores)[0], ["NAME", "READY", "ADDRESS", "SERVER", "EPOCH", "AGE"]);
    let claims = test.kubectl("get lclaim").await.unwrap();
    assert_eq!(words(&claims)[0], ["NAME", "HELD", "LOCKS", "TOKEN", "REASON", "AGE"]);
}

#[tokio::test]
async fn waiting_for_a_claim_ends_when_it_is_held_and_not_by_an_old_condition() {
    let test = TestNamespace::new().await;
    create_lock_that_nobody_serves(&test, "l").await;
    let claims = Kind::namespaced::<LockClaim>(&test);
    claims.create("x", json!({"spec": {"locks": [{"name": "l"}]}})).await;
    let wait = "wait --for=condition=Held --timeout=1s lclaim/x";
    assert!(test.kubectl(wait).await.unwrap_err().contains("timed out"));
    claims.merge_status("x", json!({"conditions": held(1)})).await.unwrap();
    test.kubectl(wait).await.unwrap();
    let body = json!({"spec": {"locks": [{"name": "l"}], "maxHoldSeconds": 60}});
    assert_eq!(claims.create("x", body).await["metadata"]["generation"], 2);
    // kubectl begins with the API server's cache, which may lag behind the write.
    let cached = async || {
        let list = test.api::<LockClaim>().list(&ListParams::default().match_any()).await.ok()?;
        (list.items.first()?.metadata.generation == Some(2)).then_some(())
    };
    wait_for("the change is in the cache", LIMIT, cached).await;
    assert!(test.kubectl(wait).await.unwrap_err().contains("timed out"));
    claims.merge_status("x", json!({"conditions": held(2)})).await.unwrap();
    test.kubectl(wait).await.unwrap();
}

#[tokio::test]
async fn a_field_that_does_not_exist_is_named() {
    let test = TestNamespace::new().await;
    let refusal = test
        .kubectl_apply(
            "apiVersion: leasehold.dev/v1alpha1\nkind: DistributedLock\nmetadata: {name: a}\nspec: {permit: 2}\n",
        )
        .await
        .unwrap_err();
    assert!(refusal.contains(r#"unknown field "spec.permit""#), "{refusal}");
}

#[tokio::test]
async fn explain_tells_units_defaults_and_choices() {
    let test = TestNamespace::new().await;
    for (what, expected) in [
        ("dlock", "A lock that pods, Jobs and processes hold through a lease in Redis"),
        (
            "dlock.spec",
            "leaseDurationSeconds <integer> Seconds after its last renewal until a holder that is gone loses the lock: 1 to 3600.",
        ),
        ("dlock.spec.permits", "1 is a mutex, more make it a semaphore, up to 10000."),
        ("dlock.spec.nodeUnreachablePolicy", "ENUM: Keep Release"),
        ("dlock.status.fencingToken", "It rises with every grant and never falls"),
        ("lclaim.spec.waitTimeoutSeconds", "0: fails at once where the lock is not free. Absent: waits for ever."),
        ("lclaim.spec.locks", "mode <string> enum: Shared, Exclusive"),
        ("lstore.spec.auth.secretRef", "A Secret with the key password"),
        ("lstore.spec.standalone.address", "Host and port, such as redis.leasehold-system:6379."),
    ] {
        let text = test.kubectl(&format!("explain {what}")).await.unwrap();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(expected), "explain {what} doesn't say {expected:?}:\n{text}");
    }
}
