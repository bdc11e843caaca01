//! The health checks for Argo CD in `docs/gitops.md`, on real objects. Redis has the same Lua as Argo CD: 5.1.

use leasehold::api::condition::{reasons, types};
use leasehold::api::{DistributedLock, LockStore};
use serde::Serialize;
use serde_json::json;

use super::page::Page;
use crate::controller::fixture::{Fixture, lock_reason};

/// The checks by kind.
fn check(kind: &str) -> String {
    let blocks = Page::read("docs/gitops.md").blocks();
    let mut of_it = blocks.into_iter().filter(|block| {
        let kinds = block.mark.as_deref().and_then(|mark| mark.strip_prefix("checks: "));
        block.language == "lua" && kinds.is_some_and(|kinds| kinds.split(' ').any(|name| name == kind))
    });
    of_it.next().unwrap_or_else(|| panic!("no check of {kind}")).text
}

/// What Argo CD would show.
fn health(f: &Fixture, kind: &str, object: &impl Serialize) -> String {
    let head = "local obj = cjson.decode(ARGV[1])\nlocal function check()\n";
    let script = format!("{head}{}end\nlocal hs = check()\nassert(hs.message)\nreturn hs.status", check(kind));
    let client = redis::Client::open(format!("redis://{}", f.redis.address())).expect("a client");
    let mut connection = client.get_connection().expect("a connection");
    let object = serde_json::to_string(object).expect("JSON");
    redis::cmd("EVAL").arg(script).arg(0).arg(object).query(&mut connection).expect("the check runs")
}

#[tokio::test]
async fn argo_cd_shows_what_is_so() {
    let f = Fixture::new().await;
    let store = f.store_is("is there", |_| true).await;
    assert_eq!(health(&f, "LockStore", &store), "Healthy");
    let lock = f.ready_lock("a", |_| {}).await;
    assert_eq!(health(&f, "DistributedLock", &lock), "Healthy");
    f.lock("b", |spec| spec.store_name = "no-such-store".into()).await;
    let refused = |lock: &DistributedLock| lock_reason(lock, types::READY, reasons::STORE_NOT_FOUND);
    let lock = f.lock_is("b", "has no store", refused).await;
    assert_eq!(health(&f, "DistributedLock", &lock), "Degraded");

    f.claim("holds", "a", |_| {}).await;
    let claim = f.claim_reason("holds", types::HELD, reasons::HELD).await;
    assert_eq!(health(&f, "LockClaim", &claim), "Healthy");
    f.claim("waits", "a", |_| {}).await;
    let claim = f.claim_reason("waits", types::HELD, reasons::WAITING).await;
    assert_eq!(health(&f, "LockClaim", &claim), "Progressing");
    f.claim("comes-late", "a", |spec| spec.wait_timeout_seconds = Some(0)).await;
    let claim = f.claim_reason("comes-late", types::FINISHED, reasons::BUSY).await;
    assert_eq!(health(&f, "LockClaim", &claim), "Degraded");
    f.claim("gives-back", "c", |spec| spec.max_hold_seconds = Some(1)).await;
    f.lock("c", |_| {}).await;
    let claim = f.claim_reason("gives-back", types::FINISHED, reasons::RELEASED).await;
    assert_eq!(health(&f, "LockClaim", &claim), "Healthy");
}

#[tokio::test]
async fn what_no_controller_has_looked_at_is_in_progress() {
    let f = Fixture::new().await;
    let unknown = |types: &[&str]| {
        let conditions = types.iter().map(|type_| json!({"type": type_, "status": "Unknown", "message": "Waiting"}));
        json!({"metadata": {"generation": 1}, "status": {"conditions": conditions.collect::<Vec<_>>()}})
    };
    for (kind, types) in
        [("LockStore", [types::READY, types::RECOVERING]), ("LockClaim", [types::HELD, types::FINISHED])]
    {
        assert_eq!(health(&f, kind, &unknown(&types)), "Progressing");
        assert_eq!(health(&f, kind, &json!({"metadata": {"generation": 1}})), "Progressing");
    }
    // What was said of the spec of before is no news.
    let mut store: serde_json::Value =
        serde_json::to_value(f.store_is("is there", |_: &LockStore| true).await).unwrap();
    store["metadata"]["generation"] = json!(99);
    assert_eq!(health(&f, "LockStore", &store), "Progressing");
}
