//! `doctor`, on a control plane of its own: it looks at all stores.

use jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams};
use leasehold::api::LockStore;
use leasehold::api::condition::{self, reasons, types};
use leasehold::store::Store;
use serde_json::{Value, json};

use super::terminal::{Answer, Terminal};
use crate::controller::fixture::{Fixture, is_ready, not_ready};
use crate::controller::gated::GATE;
use crate::controller::recovery::library_with_a_clock_to_set;
use crate::policies::{apply, apply_force_release, apply_gated};
use crate::support::{LIMIT, RedisServer, TestNamespace, wait_for};

/// The only line of this level that says this, with what to do.
fn line<'a>(answer: &'a Answer, level: &str, says: &str) -> &'a str {
    let lines: Vec<&str> = answer.out.lines().filter(|line| line.starts_with(level) && line.contains(says)).collect();
    assert_eq!(lines.len(), 1, "{level} {says}: {answer:?}");
    lines[0]
}

#[tokio::test]
async fn what_is_wrong_is_found_and_what_is_right_is_said() {
    let with_leases = |options: &mut crate::support::ControllerOptions| options.election = Some((6, 4, 0.5));
    let redis = RedisServer::start().await;
    let library = Store::connect(&redis.endpoint(), "any").unwrap();
    library.load_library(&library_with_a_clock_to_set()).await.unwrap();
    let mut f = Fixture::on(TestNamespace::alone().await, redis, with_leases).await;
    f.store_is("is Ready", is_ready).await;
    apply_force_release(&f.test).await;
    apply_gated(&f.test).await;
    for file in ["agent.yaml", "claims.yaml", "templates.yaml"] {
        apply(&f.test, file).await;
    }
    f.ready_lock("a", |_| {}).await;
    let terminal = Terminal::new(&f.test);
    let doctor = format!("doctor --controller-namespace {}", f.test.name());

    let five_in_force = async || {
        let good = terminal.run(&doctor).await;
        (good.out.lines().filter(|line| line.ends_with("yaml is in force")).count() == 5).then_some(good)
    };
    let good = wait_for("five policies are in force", LIMIT, five_in_force).await;
    assert!(good.code == Some(0) && !good.out.contains("WRONG"), "{good:?}");
    for says in [
        "distributedlocks.leasehold.dev is that",
        "open for grants",
        "leads, and renews",
        "clock of this machine",
        "all 1 are Ready",
        "force-release.yaml",
        "policy gated.yaml",
        "policy claims.yaml",
        "policy agent.yaml",
        "policy templates.yaml",
        "you may use all",
    ] {
        line(&good, "OK", says);
    }
    assert!(
        line(&good, "NOTE", "election.yaml")
            .contains("=> set policies.enabled of the chart, or apply charts/leasehold/policies/")
    );
    let everywhere = terminal.run(&format!("{doctor} -n default -A")).await;
    line(&everywhere, "OK", "locks in all namespaces: all 1 are Ready");
    let findings: Value = serde_json::from_str(&terminal.run(&format!("{doctor} -o json")).await.good()).unwrap();
    assert_eq!(findings[0]["level"], "Ok");

    f.redis.send::<()>("FCALL set_clock_by 0 3600").await;
    let has_stepped = |store: &LockStore| {
        let status = store.status.as_ref();
        status.is_some_and(|status| condition::is_true(&status.conditions, types::CLOCK_STEPPED))
    };
    f.store_is("has another clock", has_stepped).await;
    assert!(line(&terminal.run(&doctor).await, "WRONG", "ClockStepped is True").contains("time service"));

    f.lock("b", |spec| spec.store_name = "no-such-store".into()).await;
    f.lock_is("b", "is refused", |lock| {
        crate::controller::fixture::lock_reason(lock, "Ready", reasons::STORE_NOT_FOUND)
    })
    .await;
    f.pods().gated("waits", "gone", &[GATE], json!({})).await;
    f.redis.send::<()>("CONFIG SET maxmemory-policy allkeys-lru").await;
    f.store_is("isn't Ready", |store| not_ready(store, reasons::EVICTING_MEMORY_POLICY)).await;
    let bad = terminal.run(&doctor).await;
    assert_eq!(bad.code, Some(1), "{bad:?}");
    assert!(line(&bad, "WRONG", "StoreNotFound").contains("/b: Ready is False"));
    assert!(line(&bad, "WRONG", "lock gone, which isn't there: waits").contains("=> create the DistributedLock gone"));
    assert!(line(&bad, "WRONG", "Ready is False (EvictingMemoryPolicy").contains("noeviction"));

    f.redis.kill();
    f.store_is("isn't Ready", |store| not_ready(store, reasons::UNREACHABLE)).await;
    let closed = terminal.run(&doctor).await;
    assert!(line(&closed, "WRONG", "Ready is False (Unreachable").contains("=> Redis doesn't answer"), "{closed:?}");
    assert!(!closed.out.contains("open for grants"));

    f.controller.kill();
    let definition = "customresourcedefinition lockclaims.leasehold.dev";
    let older = json!([{"op": "remove", "path":
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/maxHoldSeconds"}]);
    f.test
        .kubectl(&format!("patch {definition} --type=json -p {}", older.to_string().replace(' ', "")))
        .await
        .expect("older");
    let old = terminal.run(&doctor).await;
    assert!(line(&old, "WRONG", "lacks spec.maxHoldSeconds").contains("=> upgrade"), "{old:?}");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("crds").display().to_string();
    f.test.kubectl(&format!("apply --server-side --force-conflicts -f {path}")).await.expect("they are put back");
    let dead = terminal.run(&doctor).await;
    line(&dead, "WRONG", "has led and doesn't renew");
    let lease = f.test.kubectl("get lease -o name").await.expect("the Lease");
    let renewed = Timestamp::now() + SignedDuration::from_hours(1);
    let ahead = format!(r#"{{"spec":{{"renewTime":"{renewed:.6}"}}}}"#);
    f.test.kubectl(&format!("patch {} --type=merge -p {ahead}", lease.trim())).await.expect("a leader's clock");
    let ahead = terminal.run(&doctor).await;
    assert!(line(&ahead, "NOTE", "ahead of that of the API server").contains("the clock of"), "{ahead:?}");

    let stores = f.stores();
    let status = Patch::Merge(json!({"status": null}));
    stores.patch_status(&f.store_name(), &PatchParams::default(), &status).await.expect("nobody has looked");
    line(&terminal.run(&doctor).await, "WRONG", "Ready is Unknown (Pending");
}
