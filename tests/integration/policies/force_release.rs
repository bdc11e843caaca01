//! Force-release is for those who have the verb, under their own name, and with a reason.

use kube::{Api, ResourceExt};
use leasehold::api::DistributedLock;
use leasehold::api::force_release::{FORCE_RELEASE, FORCE_RELEASE_BY, FORCE_RELEASE_REASON};
use serde_json::json;

use super::{Account, LOCK_RESOURCE, apply_force_release, assert_refused};
use crate::support::{Scratch, TestNamespace};

const ALL: (&str, &str) = ("get,create,update,patch,forcerelease", LOCK_RESOURCE);

/// A lock `a` that nobody serves; `dev` may write locks, `ann` may force-release, too.
struct Scene {
    test: TestNamespace,
    dev: Account,
    ann: Account,
}

impl Scene {
    async fn new() -> Self {
        let test = TestNamespace::new().await;
        apply_force_release(&test).await;
        let lock = "apiVersion: leasehold.dev/v1alpha1\nkind: DistributedLock\nmetadata: {name: a}\n\
            spec: {storeName: nobody-serves-this}\n";
        test.kubectl_apply(lock).await.expect("a lock");
        let dev = Account::new(&test, "dev", &[("get,create,update,patch", LOCK_RESOURCE)]).await;
        let ann = Account::new(&test, "ann", &[ALL]).await;
        Self { test, dev, ann }
    }
}

fn annotate(token: &str, more: &str) -> String {
    format!("annotate dlock a --overwrite {FORCE_RELEASE}={token} {more}")
}

async fn by(test: &TestNamespace) -> Option<String> {
    let locks: Api<DistributedLock> = test.api();
    locks.get("a").await.expect("a lock").annotations().get(FORCE_RELEASE_BY).cloned()
}

#[tokio::test]
async fn who_asks_is_filled_in() {
    let Scene { test, ann, .. } = Scene::new().await;
    let reason = format!("{FORCE_RELEASE_REASON}=stuck");
    ann.kubectl(&annotate("7", &reason)).await.expect("she has the verb");
    assert_eq!(by(&test).await, Some(ann.user()));
    ann.kubectl(&annotate("8", &reason)).await.expect("another token");
    let bob = Account::new(&test, "bob", &[ALL]).await;
    bob.kubectl(&annotate("9", "")).await.expect("he has the verb, too");
    assert_eq!(by(&test).await, Some(bob.user()), "not who asked before");
}

#[tokio::test]
async fn without_the_verb_a_name_or_a_reason_it_is_refused() {
    let Scene { test, dev, ann } = Scene::new().await;
    let reason = format!("{FORCE_RELEASE_REASON}=stuck");
    let forged = |who: &Account| format!("{reason} {FORCE_RELEASE_BY}={}", who.user());
    assert_refused(dev.kubectl(&annotate("7", &reason)).await, "ask for the verb forcerelease");
    assert_refused(dev.kubectl(&annotate("7", &forged(&ann))).await, "ask for the verb forcerelease");
    assert_refused(ann.kubectl(&annotate("7", &forged(&dev))).await, &format!("is who asks, {}", ann.user()));
    for reason in ["", &format!("{FORCE_RELEASE_REASON}={}", "x".repeat(257))] {
        assert_refused(ann.kubectl(&annotate("7", reason)).await, "say why in leasehold.dev/force-release-reason");
    }
    for token in ["", "0", "07", "-7", "seven", "12345678901234567"] {
        assert_refused(ann.kubectl(&annotate(token, &reason)).await, "must be a fencing token");
    }
    assert_eq!(by(&test).await, None);
    ann.kubectl(&annotate("7", &forged(&ann))).await.expect("her own name");
}

#[tokio::test]
async fn a_lock_is_not_born_with_it() {
    let Scene { dev, ann, .. } = Scene::new().await;
    let annotations = json!({FORCE_RELEASE: "7", FORCE_RELEASE_REASON: "x", FORCE_RELEASE_BY: ann.user()});
    let lock = json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "DistributedLock",
        "metadata": {"name": "new", "annotations": annotations}});
    let file = Scratch::new("manifest");
    let path = file.write("lock.json", &lock.to_string()).display().to_string();
    assert_refused(dev.kubectl(&format!("create -f {path}")).await, "ask for the verb forcerelease");
}

#[tokio::test]
async fn what_has_nothing_to_do_with_it_passes() {
    let Scene { dev, ann, .. } = Scene::new().await;
    let reason = format!("{FORCE_RELEASE_REASON}=stuck");
    dev.kubectl("annotate dlock a team=shop").await.expect("other annotations are free");
    ann.kubectl(&annotate("7", &reason)).await.expect("she has the verb");
    dev.kubectl("annotate dlock a --overwrite team=other").await.expect("also while it stands");
    let other_reason = format!("annotate dlock a --overwrite {FORCE_RELEASE_REASON}=because");
    assert_refused(dev.kubectl(&other_reason).await, "ask for the verb forcerelease");
    assert_refused(dev.kubectl(&format!("annotate dlock a {FORCE_RELEASE_BY}-")).await, "forcerelease");
    let withdraw = format!("annotate dlock a {FORCE_RELEASE}- {FORCE_RELEASE_REASON}- {FORCE_RELEASE_BY}-");
    dev.kubectl(&withdraw).await.expect("to take it back releases nothing");
}
