//! Stores on bad first days.

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use leasehold::api::condition::{self, reasons, types};
use leasehold::api::{FINALIZER, LockClaim, LockStore, NamespacesFrom, SecretRef, TlsSpec};
use serde_json::json;

use super::fixture::{Fixture, is_ready, lock_condition, lock_reason, not_ready, options, ready};
use crate::support::{Certificates, Controller, RedisServer};

#[tokio::test]
async fn a_redis_that_is_down_at_the_start_is_waited_for() {
    let mut f = Fixture::over(RedisServer::not_started(&[])).await;
    f.lock("a", |_| {}).await;
    f.store_is("is unreachable", |store| not_ready(store, reasons::UNREACHABLE)).await;
    f.lock_is("a", "says so", |lock| lock_reason(lock, types::READY, reasons::STORE_NOT_READY)).await;
    f.redis.restart().await;
    f.lock_is("a", "is Ready", |lock| lock_condition(lock, types::READY)).await;
}

async fn secret(f: &Fixture, password: &str) {
    let api: Api<Secret> = f.test.api();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis-auth"},
        "stringData": {"password": password}});
    api.patch("redis-auth", &PatchParams::apply("test"), &Patch::Apply(secret)).await.expect("a Secret");
}

#[tokio::test]
async fn a_password_is_made_once_and_stays() {
    let mut f = Fixture::with(RedisServer::start().await, |options| {
        (options.password_secret, options.makes_password) = (Some("redis-auth".into()), true);
    })
    .await;
    // A Redis without a password takes any for its default user.
    f.store_is("is Ready", is_ready).await;
    let secrets: Api<Secret> = f.test.api();
    let made = secrets.get("redis-auth").await.expect("a Secret");
    let password = made.data.as_ref().expect("it has keys")["password"].0.clone();
    assert!(password.len() >= 32, "{} bytes", password.len());
    f.redis.send::<String>(&format!("CONFIG SET requirepass {}", String::from_utf8_lossy(&password))).await;
    f.controller.restart().await;
    f.ready_lock("a", |_| {}).await;
    assert_eq!(secrets.get("redis-auth").await.expect("a Secret").data, made.data);
}

#[tokio::test]
async fn a_redis_without_a_disk_is_said_to_be_ephemeral() {
    for (settings, is) in [(["--save", ""], true), (["--save", "60 1"], false)] {
        let f = Fixture::over(RedisServer::with(&settings).await).await;
        let store = f.store_is("is Ready", is_ready).await;
        let conditions = store.status.expect("a status").conditions;
        assert_eq!(condition::is_true(&conditions, types::EPHEMERAL), is, "{settings:?}: {conditions:?}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_said_and_the_right_one_is_read_without_a_restart() {
    let redis = RedisServer::with(&["--requirepass", "correct-horse"]).await;
    let f = Fixture::with(redis, |options| options.password_secret = Some("redis-auth".into())).await;
    f.store_is("misses its Secret", |store| not_ready(store, reasons::SECRET_NOT_FOUND)).await;
    secret(&f, "wrong-battery").await;
    f.store_is("is refused", |store| not_ready(store, "AuthenticationFailed")).await;
    secret(&f, "correct-horse").await;
    f.store_is("is Ready", is_ready).await;
    let (logs, store) = (f.controller.logs(), format!("{:?}", f.stores().get(&f.store_name()).await.unwrap()));
    for password in ["correct-horse", "wrong-battery"] {
        assert!(!logs.contains(password) && !store.contains(password), "a password was told");
    }
}

#[tokio::test]
async fn a_memory_policy_that_evicts_locks_is_refused_and_one_that_may_not_is_warned_of() {
    let f = Fixture::over(RedisServer::with(&["--maxmemory-policy", "allkeys-lru"]).await).await;
    let store = f.store_is("is refused", |store| not_ready(store, reasons::EVICTING_MEMORY_POLICY)).await;
    let conditions = &store.status.expect("a status").conditions;
    assert!(condition::get(conditions, types::READY).is_some_and(|ready| ready.message.contains("noeviction")));
    let f = Fixture::over(RedisServer::with(&["--maxmemory-policy", "volatile-lru"]).await).await;
    let store = f.store_is("is Ready", is_ready).await;
    let conditions = &store.status.expect("a status").conditions;
    let safe = condition::get(conditions, types::EVICTION_SAFE).expect("a warning");
    assert_eq!((safe.status, safe.reason.as_str()), (false.into(), reasons::EVICTS_VOLATILE_KEYS));
}

#[tokio::test]
async fn a_redis_that_is_too_old_is_refused_with_the_version_that_is_needed() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/redis6.sh");
    let fetched = std::process::Command::new(script).stderr(std::process::Stdio::inherit()).output().unwrap();
    assert!(fetched.status.success(), "Redis 6 could not be fetched");
    let binary = String::from_utf8_lossy(&fetched.stdout).trim().to_owned();
    let f = Fixture::over(RedisServer::of(&binary).await).await;
    let store = f.store_is("is refused", |store| not_ready(store, reasons::UNSUPPORTED_SERVER)).await;
    let conditions = &store.status.expect("a status").conditions;
    let message = &condition::get(conditions, types::READY).expect("Ready").message;
    assert!(message.contains("6.2") && message.contains("Redis 7.0"), "{message}");
}

#[tokio::test]
async fn a_second_install_on_the_same_redis_and_prefix_is_refused() {
    let f = Fixture::new().await;
    let other = Fixture::with(RedisServer::not_started(&[]), |options| {
        options.redis_address = Some(f.redis.address());
        options.key_prefix = Some(f.test.name().to_owned());
    })
    .await;
    other.store_is("is refused", |store| not_ready(store, reasons::STORE_IN_USE)).await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
}

#[tokio::test]
async fn a_controller_touches_only_its_own_stores_and_their_locks() {
    let f = Fixture::new().await;
    let foreign = format!("{}-foreign", f.test.name());
    let store = super::fixture::store(&foreign, &f.redis.address(), "somebody.else/controller");
    f.stores().create(&PostParams::default(), &store).await.unwrap();
    f.lock("theirs", |spec| spec.store_name = foreign.clone()).await;
    f.claim("theirs", "theirs", |_| {}).await;
    // One that their controller has told, and one that it is about to free: whose finalizer we took off, theirs would
    // never free.
    for (name, status, reason) in [("told", "True", "Held"), ("releasing", "False", "Releasing")] {
        f.claim(name, "theirs", |_| {}).await;
        let finalizer = json!({"metadata": {"finalizers": [FINALIZER]}});
        let claims = f.test.api::<LockClaim>();
        claims.patch(name, &PatchParams::default(), &Patch::Merge(finalizer)).await.unwrap();
        let held = json!({"type": "Held", "status": status, "reason": reason, "message": "",
            "lastTransitionTime": "2026-11-24T12:00:00Z"});
        let status = json!({"status": {"conditions": [held], "holderID": name, "fencingToken": 7}});
        claims.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        f.delete::<LockClaim>(name).await;
    }
    let names = ["theirs", "told", "releasing"];
    f.ready_lock("ours", |_| {}).await;
    super::fixture::a_while().await;
    let written = |entry: &&crate::support::AuditEntry| {
        entry.name == foreign || entry.namespace == f.test.name() && names.contains(&entry.name.as_str())
    };
    let writes = f.test.plane().controller_writes();
    assert_eq!(writes.iter().filter(written).map(|entry| &entry.resource).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[tokio::test]
async fn a_store_serves_the_namespaces_that_it_allows() {
    let f = Fixture::new().await;
    let selector = json!({"allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"locks": "yes"}}}});
    let patch = Patch::Merge(json!({"spec": selector}));
    let store = f.stores().patch(&f.store_name(), &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(store.spec.allowed_namespaces.from, NamespacesFrom::Selector);
    f.lock("a", |_| {}).await;
    f.lock_is("a", "is refused", |lock| lock_reason(lock, types::READY, reasons::NAMESPACE_NOT_ALLOWED)).await;
    f.test.kubectl(&format!("label namespace {} locks=yes", f.test.name())).await.unwrap();
    f.lock_is("a", "is Ready", |lock| lock_condition(lock, types::READY)).await;
}

#[tokio::test]
async fn the_default_store_is_made_once_and_never_overwritten() {
    let mut f = Fixture::new().await;
    let patch = Patch::Merge(json!({"spec": {"minimumEpoch": 5}}));
    f.stores().patch(&f.store_name(), &PatchParams::default(), &patch).await.unwrap();
    f.controller.kill();
    let mut again = options(&f.test, &f.redis);
    again.redis_address = Some("elsewhere.invalid:6379".into());
    let _second = Controller::start(again).await;
    let store = f.store_is("is Ready", is_ready).await;
    assert_eq!(store.spec.minimum_epoch, Some(5));
    assert_eq!(store.spec.standalone.map(|standalone| standalone.address), Some(f.redis.address()));
}

pub(super) async fn tls_secret(f: &Fixture, certificates: &Certificates, name: &str, files: &[(&str, &str)]) {
    let one = |(key, file): &(&str, &str)| ((*key).to_owned(), certificates.read(file).into());
    let data: serde_json::Map<_, _> = files.iter().map(one).collect();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data});
    f.test.api::<Secret>().patch(name, &PatchParams::apply("test"), &Patch::Apply(secret)).await.unwrap();
}

#[tokio::test]
async fn a_store_is_reached_by_tls_with_a_certificate_of_its_own_in_another_database() {
    let certificates = Certificates::new();
    let (redis, port) = certificates.server(&[]).await;
    let f = Fixture::over(redis).await;
    tls_secret(&f, &certificates, "ca", &[("ca.crt", "ca.crt")]).await;
    tls_secret(&f, &certificates, "client", &[("tls.crt", "client.crt"), ("tls.key", "client.key")]).await;
    let name = format!("{}-tls", f.test.name());
    let address = format!("localhost:{port}");
    let mut store = super::fixture::store(&name, &address, &format!("test/{}", f.test.name()));
    let secret = |name: &str| Some(SecretRef { name: name.to_owned() });
    store.spec.standalone.as_mut().unwrap().database = 3;
    store.spec.tls = Some(TlsSpec { ca_secret_ref: secret("ca"), client_secret_ref: None });
    f.stores().create(&PostParams::default(), &store).await.unwrap();
    let refused = |store: &LockStore| ready(store).is_some_and(|(is, _)| !is);
    super::fixture::store_is(&f.stores(), &name, "is refused without a certificate", refused).await;
    let patch = Patch::Merge(json!({"spec": {"tls": {"clientSecretRef": {"name": "client"}}}}));
    f.stores().patch(&name, &PatchParams::default(), &patch).await.unwrap();
    super::fixture::store_is(&f.stores(), &name, "is Ready", is_ready).await;
    let databases: String = f.redis.send("INFO keyspace").await;
    assert!(databases.contains("db3:keys="), "{databases}");
}

#[tokio::test]
async fn a_bad_address_is_said() {
    let f = Fixture::new().await;
    let name = format!("{}-bad", f.test.name());
    let mut store = super::fixture::store(&name, "unresolvable.invalid:6379", &format!("test/{}", f.test.name()));
    store.spec.key_prefix = "bad".into();
    f.stores().create(&PostParams::default(), &store).await.unwrap();
    super::fixture::store_is(&f.stores(), &name, "is unreachable", |store| not_ready(store, reasons::UNREACHABLE))
        .await;
}
