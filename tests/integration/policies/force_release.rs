//! Force-release is for those who have the verb, under their own name, and with a reason.

use kube::{Api, ResourceExt};
use leasehold::api::DistributedLock;
use leasehold::api::force_release::{FORCE_RELEASE, FORCE_RELEASE_BY, FORCE_RELEASE_REASON};
use serde_json::json;

use super::{allow, apply_force_release, assert_refused};
use crate::support::{Scratch, TestNamespace};

const LOCKS: &str = "distributedlocks.leasehold.dev";

/// A lock `a` that nobody serves; `dev` may write locks, `admin` may force-release, too.
async fn with_policies() -> TestNamespace {
    let test = TestNamespace::new().await;
    apply_force_release(&test).await;
    let lock = "apiVersion: leasehold.dev/v1alpha1\nkind: DistributedLock\nmetadata: {name: a}\n\
        spec: {storeName: nobody-serves-this}\n";
    test.kubectl_apply(lock).await.expect("a lock");
    allow(&test, "dev", &[("get,create,update,patch", LOCKS)]).await;
    allow(&test, "ann", &[("get,create,update,patch,forcerelease", LOCKS)]).await;
    test
}

fn annotate(user: &str, token: &str, more: &str) -> String {
    format!("--as={user} annotate dlock a --overwrite {FORCE_RELEASE}={token} {more}")
}

async fn by(test: &TestNamespace) -> Option<String> {
    let locks: Api<DistributedLock> = test.api();
    locks.get("a").await.expect("a lock").annotations().get(FORCE_RELEASE_BY).cloned()
}

#[tokio::test]
async fn who_asks_is_filled_in() {
    let test = with_policies().await;
    let reason = format!("{FORCE_RELEASE_REASON}=stuck");
    test.kubectl(&annotate("ann", "7", &reason)).await.expect("she has the verb");
    assert_eq!(by(&test).await.as_deref(), Some("ann"));
    test.kubectl(&annotate("ann", "8", &reason)).await.expect("another token");
    allow(&test, "bob", &[("get,update,patch,forcerelease", LOCKS)]).await;
    test.kubectl(&annotate("bob", "9", "")).await.expect("he has the verb, too");
    assert_eq!(by(&test).await.as_deref(), Some("bob"), "not who asked before");
}

#[tokio::test]
async fn without_the_verb_a_name_or_a_reason_it_is_refused() {
    let test = with_policies().await;
    let reason = format!("{FORCE_RELEASE_REASON}=stuck");
    let forged = |who: &str| format!("{reason} {FORCE_RELEASE_BY}={who}");
    assert_refused(test.kubectl(&annotate("dev", "7", &reason)).await, "ask for the verb forcerelease");
    assert_refused(test.kubectl(&annotate("dev", "7", &forged("ann"))).await, "ask for the verb forcerelease");
    assert_refused(test.kubectl(&annotate("ann", "7", &forged("dev"))).await, "is who asks, ann");
    assert_refused(test.kubectl(&annotate("ann", "7", "")).await, "say why in leasehold.dev/force-release-reason");
    for token in ["", "0", "07", "-7", "seven", "12345678901234567"] {
        assert_refused(test.kubectl(&annotate("ann", token, &reason)).await, "must be a fencing token");
    }
    assert_eq!(by(&test).await, None);
    test.kubectl(&annotate("ann", "7", &forged("ann"))).await.expect("her own name");
}

#[tokio::test]
async fn a_lock_is_not_born_with_it() {
    let test = with_policies().await;
    let annotations = json!({FORCE_RELEASE: "7", FORCE_RELEASE_REASON: "x", FORCE_RELEASE_BY: "ann"});
    let lock = json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "DistributedLock",
        "metadata": {"name": "new", "annotations": annotations}});
    let file = Scratch::new("manifest");
    let path = file.write("lock.json", &lock.to_string()).display().to_string();
    assert_refused(test.kubectl(&format!("--as=dev create -f {path}")).await, "ask for the verb forcerelease");
}

#[tokio::test]
async fn what_has_nothing_to_do_with_it_passes() {
    let test = with_policies().await;
    let reason = format!("{FORCE_RELEASE_REASON}=stuck");
    test.kubectl("--as=dev annotate dlock a team=shop").await.expect("other annotations are free");
    test.kubectl(&annotate("ann", "7", &reason)).await.expect("she has the verb");
    test.kubectl("--as=dev annotate dlock a --overwrite team=other").await.expect("also while it stands");
    let other_reason = format!("--as=dev annotate dlock a --overwrite {FORCE_RELEASE_REASON}=because");
    assert_refused(test.kubectl(&other_reason).await, "ask for the verb forcerelease");
    assert_refused(test.kubectl(&format!("--as=dev annotate dlock a {FORCE_RELEASE_BY}-")).await, "forcerelease");
    let withdraw = format!("--as=dev annotate dlock a {FORCE_RELEASE}- {FORCE_RELEASE_REASON}- {FORCE_RELEASE_BY}-");
    test.kubectl(&withdraw).await.expect("to take it back releases nothing");
}
