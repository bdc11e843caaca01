//! Namespaces whose processes hold locks by themselves: their Redis user and their Secret.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use leasehold::api::condition::reasons;
use leasehold::api::direct::{CONNECTION, DIRECT, DIRECT_STORE, ENABLED, ROTATE};
use leasehold::lease::{Acquired, HolderId, LockKey, Released, Renewed, Wait};
use leasehold::store::{Endpoint, Inbox, Password, Store, Tls};
use serde_json::{Value, json};

use super::fixture::{Fixture, Site, a_while, is_ready, request};
use super::stores::tls_secret;
use crate::support::{Certificates, LIMIT, RedisServer, Scratch, eventually, wait_for};

/// Merges into the metadata of the test's namespace.
async fn mark(site: &Site, metadata: Value) {
    let namespaces: Api<Namespace> = Api::all(site.test.client());
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    namespaces.patch(site.test.name(), &PatchParams::default(), &patch).await.expect("patched");
}

/// Labels the namespace, for the store of the test.
pub(crate) async fn enable(site: &Site) {
    let annotations = json!({ (DIRECT_STORE): site.store_name() });
    mark(site, json!({"labels": { (DIRECT): ENABLED }, "annotations": annotations})).await;
}

pub(crate) async fn disable(site: &Site) {
    mark(site, json!({"labels": { (DIRECT): null }})).await;
}

fn secrets(site: &Site) -> Api<Secret> {
    site.test.api()
}

/// The Secret, once it is as it should be.
pub(crate) async fn secret_is(site: &Site, what: &str, is: impl Fn(&Secret) -> bool) -> Secret {
    site.test.until(CONNECTION, what, LIMIT, is).await
}

pub(crate) fn text(secret: &Secret, key: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key)).unwrap_or_else(|| panic!("no key {key}"));
    String::from_utf8(bytes.0.clone()).expect("text")
}

/// What a workload makes of the Secret.
pub(crate) fn endpoint(secret: &Secret) -> Endpoint {
    let url = text(secret, "url");
    let (scheme, address) = url.split_once("://").expect("a URL");
    let (address, database) = address.split_once('/').unwrap_or((address, "0"));
    let (host, port) = address.rsplit_once(':').expect("host and port");
    let ca = secret.data.as_ref().and_then(|data| data.get("ca.crt")).map(|bytes| bytes.0.clone());
    Endpoint {
        database: database.parse().expect("a number"),
        username: Some(text(secret, "username")),
        password: Some(Password::new(text(secret, "password"))),
        tls: (scheme == "rediss").then_some(Tls { ca, client: None }),
        ..Endpoint::plain(host, port.parse().expect("a port"))
    }
}

fn store(secret: &Secret) -> Store {
    Store::connect(&endpoint(secret), &text(secret, "prefix")).expect("a store")
}

/// Whether one can log in as a Secret says.
pub(crate) async fn works(secret: &Secret) -> bool {
    store(secret).library().await.is_ok()
}

pub(crate) async fn works_soon(secret: &Secret) {
    wait_for("the Secret works", LIMIT, async || works(secret).await.then_some(())).await;
}

pub(crate) async fn refused_soon(secret: &Secret) {
    let refused = async || store(secret).library().await.is_err_and(|e| e.is_refused_credentials()).then_some(());
    wait_for("the Secret is refused", LIMIT, refused).await;
}

/// Sends a command as the user of a Secret, words separated by spaces.
async fn send(secret: &Secret, words: &str) -> redis::RedisResult<redis::Value> {
    let settings = redis::RedisConnectionInfo::default()
        .set_username(text(secret, "username"))
        .set_password(text(secret, "password"));
    let Endpoint { host, port, .. } = endpoint(secret);
    let info = redis::IntoConnectionInfo::into_connection_info((host, port))?.set_redis_settings(settings);
    let mut connection = redis::Client::open(info)?.get_multiplexed_async_connection().await?;
    let mut words = words.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap_or_default());
    words.for_each(|word| {
        cmd.arg(word);
    });
    cmd.query_async(&mut connection).await
}

#[tokio::test]
async fn a_labelled_namespace_holds_its_locks_with_its_secret_and_nothing_else() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    enable(&f).await;
    let secret = secret_is(&f, "is made", |_| true).await;
    f.namespace_event(reasons::CREDENTIALS_MADE).await;
    works_soon(&secret).await;
    assert_eq!(text(&secret, "url"), format!("redis://{}", f.redis.address()));
    assert_eq!((text(&secret, "namespace"), text(&secret, "prefix")), (f.test.name().into(), f.test.name().into()));
    assert!(!secret.data.as_ref().expect("data").contains_key("ca.crt"));
    assert_eq!(text(&secret, "password").len(), 64);

    // Everything that a holder does, also one that waits and hears of its turn.
    let (workload, key) = (store(&secret), f.key("a"));
    let first = request("first", Wait::No);
    assert!(matches!(workload.acquire(&key, &first).await, Ok(Acquired::Granted(_))));
    let renewed = workload.renew(&[(key.clone(), first.id.clone())]).await.expect("an answer");
    assert!(matches!(renewed[..], [Renewed::Held(_)]), "{renewed:?}");
    assert_eq!(workload.inspect(&key).await.expect("an answer").expect("a record").holds.len(), 1);
    let mut inbox = Inbox::connect(&endpoint(&secret), &text(&secret, "prefix")).await.expect("an inbox");
    let second = request("second", Wait::Forever);
    inbox.subscribe(&key, &second.id).await.expect("it may hear");
    assert!(matches!(workload.acquire(&key, &second).await, Ok(Acquired::Queued { .. })));
    assert_eq!(workload.release(&key, &first.id).await.expect("an answer"), Released::Released);
    let heard = tokio::time::timeout(LIMIT, inbox.next()).await.expect("in time").expect("an offer");
    assert_eq!(heard.0, second.id);
    inbox.unsubscribe(&key, &second.id).await.expect("it may");
    assert_eq!(workload.cancel(&key, &second.id).await.expect("an answer"), Released::Cancelled);

    let other = LockKey::new("other", "a").expect("a name");
    for outcome in [workload.acquire(&other, &first).await.map(drop), workload.inspect(&other).await.map(drop)] {
        assert_eq!(outcome.map_err(|error| error.label()), Err("PermissionDenied"));
    }
    let id = HolderId::new("x").expect("an id");
    let elsewhere = inbox.subscribe(&other, &id).await;
    assert!(elsewhere.is_err(), "it hears of others");
    let prefix = f.test.name();
    for command in [
        format!("FCALL leasehold1_provision 4 {prefix}:store a b c"),
        format!("FCALL leasehold1_open 1 {prefix}:store"),
        format!("FCALL leasehold1_provision 1 {prefix}:{{{prefix}/a}}:lock"),
        format!("FCALL leasehold1_open 1 {prefix}:{{{prefix}/a}}:lock"),
        format!("HGETALL {prefix}:store"),
        format!("HGETALL {prefix}:{{{prefix}-2/a}}:lock"),
        format!("PUBLISH {prefix}:{{other/a}}:inbox:x y"),
        format!("DEL {prefix}:{{{prefix}/a}}:lock"),
        "PSUBSCRIBE *".into(),
        "FLUSHALL".into(),
        "KEYS *".into(),
        "SCAN 0".into(),
        "CONFIG GET maxmemory".into(),
        "ACL WHOAMI".into(),
        "ACL LIST".into(),
        "CLIENT LIST".into(),
        "CLIENT TRACKING ON BCAST".into(),
        "FUNCTION FLUSH".into(),
        "SELECT 1".into(),
        "EVAL return 0".into(),
        "MONITOR".into(),
    ] {
        let code = send(&secret, &command).await.map_err(|error| error.code().map(ToOwned::to_owned));
        assert_eq!(code, Err(Some("NOPERM".to_owned())), "{command}");
    }
}

#[tokio::test]
async fn without_the_label_the_user_is_refused_and_the_secret_goes() {
    let f = Fixture::new().await;
    enable(&f).await;
    let secret = secret_is(&f, "is made", |_| true).await;
    works_soon(&secret).await;
    let connected = store(&secret);
    connected.library().await.expect("an answer");
    disable(&f).await;
    f.test.gone::<Secret>(CONNECTION, LIMIT).await;
    assert!(connected.library().await.is_err(), "it is still connected");
    refused_soon(&secret).await;
    enable(&f).await;
    let other = secret_is(&f, "is made anew", |_| true).await;
    works_soon(&other).await;
    assert!(!works(&secret).await, "the password of before works again");
}

#[tokio::test]
async fn a_new_password_is_made_on_demand_and_the_old_one_works_for_a_while() {
    let overlap = Duration::from_secs(6);
    let f = Fixture::with(RedisServer::start().await, |options| options.password_overlap = Some(6)).await;
    enable(&f).await;
    let mut before = secret_is(&f, "is made", |_| true).await;
    works_soon(&before).await;
    let wish = async |value: &str| {
        let patch = Patch::Merge(json!({"metadata": {"annotations": { (ROTATE): value }}}));
        secrets(&f).patch(CONNECTION, &PatchParams::default(), &patch).await.expect("patched");
    };
    for deleted in [false, true] {
        let since = std::time::Instant::now();
        if deleted {
            secrets(&f).delete(CONNECTION, &DeleteParams::default()).await.expect("deleted");
        } else {
            wish("once").await;
        }
        let old = text(&before, "password");
        let after = secret_is(&f, "has another password", |secret| text(secret, "password") != old).await;
        works_soon(&after).await;
        assert!(works(&before).await, "the old password stopped after {:?}", since.elapsed());
        refused_soon(&before).await;
        assert!(since.elapsed() >= overlap, "the old password worked for {:?}", since.elapsed());
        assert!(works(&after).await);
        before = after;
    }
    f.namespace_event(reasons::CREDENTIALS_ROTATED).await;
    // The same wish again is none.
    wish("twice").await;
    let old = text(&before, "password");
    let after = secret_is(&f, "has another password", |secret| text(secret, "password") != old).await;
    wish("twice").await;
    a_while().await;
    assert_eq!(text(&secrets(&f).get(CONNECTION).await.expect("there"), "password"), text(&after, "password"));
}

#[tokio::test]
async fn a_redis_that_lost_its_users_gets_them_again_and_those_of_nobody_go() {
    let mut f = Fixture::new().await;
    enable(&f).await;
    let secret = secret_is(&f, "is made", |_| true).await;
    works_soon(&secret).await;
    f.redis.kill();
    f.redis.restart().await;
    works_soon(&secret).await;
    // By a person's hand.
    f.redis.send::<i64>(&format!("ACL DELUSER {}", text(&secret, "username"))).await;
    works_soon(&secret).await;
    // What nobody was there to see.
    f.controller.kill();
    let orphan = format!("{}.direct.long-gone", f.test.name());
    f.redis.send::<()>(&format!("ACL SETUSER {orphan} on >secret +ping")).await;
    f.redis.send::<()>("ACL SETUSER somebody on >secret +ping").await;
    f.controller.restart().await;
    let gone = async || {
        let users: Vec<String> = f.redis.send("ACL USERS").await;
        assert!(users.contains(&"somebody".to_owned()), "a user that isn't ours was deleted");
        (!users.contains(&orphan)).then_some(())
    };
    wait_for("the user of nobody is gone", LIMIT, gone).await;
    works_soon(&secret).await;
    let now = secrets(&f).get(CONNECTION).await.expect("it is there");
    assert_eq!(now.data, secret.data);
}

#[tokio::test]
async fn a_secret_of_somebody_else_is_left_alone() {
    let f = Fixture::new().await;
    let theirs = json!({"metadata": {"name": CONNECTION}, "stringData": {"password": "theirs"}});
    let theirs = serde_json::from_value(theirs).expect("a Secret");
    let theirs = secrets(&f).create(&PostParams::default(), &theirs).await.expect("created");
    enable(&f).await;
    f.namespace_event(reasons::SECRET_NOT_OURS).await;
    disable(&f).await;
    a_while().await;
    let now = secrets(&f).get(CONNECTION).await.expect("it is there");
    assert_eq!(now.resource_version(), theirs.resource_version());
    enable(&f).await;
    secrets(&f).delete(CONNECTION, &DeleteParams::default()).await.expect("deleted");
    works_soon(&secret_is(&f, "is made", |_| true).await).await;
}

#[tokio::test]
async fn a_namespace_that_the_store_allows_no_more_and_one_that_is_deleted_lose_their_user() {
    let f = Fixture::new().await;
    mark(&f, json!({"labels": {"locks": "yes"}})).await;
    let allowed = json!({"from": "Selector", "selector": {"matchLabels": {"locks": "yes"}}});
    let patch = Patch::Merge(json!({"spec": {"allowedNamespaces": allowed}}));
    f.stores().patch(&f.store_name(), &PatchParams::default(), &patch).await.expect("patched");
    enable(&f).await;
    let secret = secret_is(&f, "is made", |_| true).await;
    works_soon(&secret).await;
    mark(&f, json!({"labels": {"locks": null}})).await;
    f.test.gone::<Secret>(CONNECTION, LIMIT).await;
    refused_soon(&secret).await;
    f.namespace_event(reasons::NAMESPACE_NOT_ALLOWED).await;
    mark(&f, json!({"labels": {"locks": "yes"}})).await;
    let secret = secret_is(&f, "is made", |_| true).await;
    works_soon(&secret).await;
    f.test.delete().await;
    refused_soon(&secret).await;
}

#[tokio::test]
async fn a_redis_that_lets_nobody_make_users_is_said_with_what_to_grant() {
    let redis = RedisServer::start().await;
    redis.send::<()>("ACL SETUSER default -acl").await;
    let f = Fixture::over(redis).await;
    f.store_is("is Ready", is_ready).await;
    enable(&f).await;
    let note = f.namespace_event("PermissionDenied").await;
    assert!(note.contains("+acl|setuser"), "{note}");
    assert!(secrets(&f).get_opt(CONNECTION).await.expect("an answer").is_none(), "it has a Secret that can't work");
}

#[tokio::test]
async fn the_authority_of_a_redis_with_tls_is_in_the_secret() {
    let certificates = Certificates::new();
    let (redis, port) = certificates.server(&["--tls-auth-clients", "no"]).await;
    let f = Fixture::over(redis).await;
    enable(&f).await;
    works_soon(&secret_is(&f, "is made", |_| true).await).await;
    tls_secret(&f, &certificates, "ca", &[("ca.crt", "ca.crt")]).await;
    let spec = json!({"tls": {"caSecretRef": {"name": "ca"}},
        "standalone": {"address": format!("localhost:{port}"), "database": 3}});
    let patch = Patch::Merge(json!({ "spec": spec }));
    f.stores().patch(&f.store_name(), &PatchParams::default(), &patch).await.expect("patched");
    let url = format!("rediss://localhost:{port}/3");
    let secret = secret_is(&f, "has the new address", |secret| text(secret, "url") == url).await;
    assert_eq!(text(&secret, "ca.crt"), certificates.read("ca.crt"));
    works_soon(&secret).await;
    f.ready_lock("a", |_| {}).await;
    let granted = async || match store(&secret).acquire(&f.key("a"), &request("one", Wait::No)).await {
        Ok(Acquired::Granted(_)) => Some(()),
        _ => None,
    };
    assert!(eventually(LIMIT, granted).await.is_some(), "it gets no lock");
    store(&secret).release(&f.key("a"), &request("one", Wait::No).id).await.expect("released");
    run_holds(&f, &secret, "a").await;
}

/// `leasehold run` with the Secret as a volume of the pod has it.
async fn run_holds(f: &Fixture, secret: &Secret, lock: &str) {
    let folder = Scratch::new("mounted");
    for key in secret.data.iter().flatten().map(|(key, _)| key) {
        folder.write(key, &text(secret, key));
    }
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(["run", "--wait=10", "--namespace", f.test.name(), "--lock", lock, "--connection"]);
    command.arg(folder.path()).args(["--", "sh", "-c", "echo token $LEASEHOLD_TOKEN"]);
    let ran = tokio::task::spawn_blocking(move || command.output()).await.expect("it ends").expect("it runs");
    let (said, errors) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert_eq!(ran.status.code(), Some(0), "{errors}");
    let token = said.trim().strip_prefix("token ").and_then(|token| token.parse::<i64>().ok());
    let last = store(secret).inspect(&f.key(lock)).await.expect("an answer").expect("a record").last;
    assert_eq!(token, Some(last), "{said}");
}
