//! What an install runs beside the controller: `check` and `release-finalizers`.

use std::process::{Command, Output};

use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use leasehold::api::condition::types;
use leasehold::api::{DistributedLock, FINALIZER, LockClaim, LockStore};
use serde_json::json;

use super::fixture::{Fixture, claim_condition, is_ready};
use super::gated::GATE;
use crate::support::{LIMIT, wait_for};

/// Runs a command of the binary as the controller's user.
async fn run(f: &Fixture, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.arg(args[0]).arg("--kubeconfig").arg(f.test.plane().kubeconfig("controller")).args(&args[1..]);
    command.env("LEASEHOLD_NAMESPACE", f.test.name());
    tokio::task::spawn_blocking(move || command.output().expect("the binary runs")).await.expect("it ends")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn a_check_takes_and_releases_a_lock_and_leaves_nothing() {
    let f = Fixture::new().await;
    let done = run(&f, &["check", "--store", &f.store_name()]).await;
    assert!(done.status.success() && text(&done).contains("with token "), "{}", text(&done));
    assert!(f.test.api::<DistributedLock>().list(&ListParams::default()).await.unwrap().items.is_empty());
    assert!(f.test.api::<LockClaim>().list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_check_that_fails_says_why_and_leaves_nothing() {
    let f = Fixture::new().await;
    let done = run(&f, &["check", "--store", "no-such-store", "--timeout", "3"]).await;
    assert!(!done.status.success() && text(&done).contains("not held after 3 s (StoreNotReady"), "{}", text(&done));
    // Nobody serves that store, so that nobody has put a finalizer there.
    assert!(f.test.api::<DistributedLock>().list(&ListParams::default()).await.unwrap().items.is_empty());
}

async fn release_finalizers(f: &Fixture) -> String {
    let name = format!("test/{}", f.test.name());
    let done = run(f, &["release-finalizers", "--controller-name", &name]).await;
    assert!(done.status.success(), "{}", text(&done));
    text(&done)
}

#[tokio::test]
async fn without_finalizers_everything_is_deleted_without_a_controller() {
    let (mut f, other) = (Fixture::new().await, Fixture::new().await);
    other.ready_lock("a", |_| {}).await;
    f.ready_lock("a", |_| {}).await;
    f.claim("c", "a", |_| {}).await;
    f.token_of("c").await;
    f.pods().gated("waits", "a", &[GATE], json!({})).await;
    f.controller.stop();
    let told = release_finalizers(&f).await;
    assert!(told.contains(&format!("{}/waits still waits for a lock", f.test.name())), "{told}");
    f.delete::<LockClaim>("c").await;
    f.delete::<DistributedLock>("a").await;
    f.test.gone::<LockClaim>("c", LIMIT).await;
    f.test.gone::<DistributedLock>("a", LIMIT).await;
    f.stores().delete(&f.store_name(), &DeleteParams::default()).await.expect("deleted");
    let gone = async || f.stores().get_opt(&f.store_name()).await.ok()?.is_none().then_some(());
    wait_for("the store is gone", LIMIT, gone).await;
    let theirs = other.test.api::<DistributedLock>().get("a").await.expect("the lock of another controller");
    assert!(theirs.finalizers().iter().any(|finalizer| finalizer == FINALIZER));
}

#[tokio::test]
async fn a_controller_that_is_installed_again_goes_on() {
    let mut f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("c", "a", |_| {}).await;
    let token = f.token_of("c").await;
    f.controller.stop();
    release_finalizers(&f).await;
    f.controller.restart().await;
    f.store_is("is Ready", |store: &LockStore| is_ready(store) && !store.finalizers().is_empty()).await;
    let guarded = |claim: &LockClaim| claim_condition(claim, types::HELD) && !claim.finalizers().is_empty();
    f.claim("next", "a", |_| {}).await;
    f.has_its_place("next").await;
    f.claim_is("c", "holds on, with its finalizer", guarded).await;
    assert_eq!(f.token_of("c").await, token);
    f.delete::<LockClaim>("c").await;
    assert!(f.token_of("next").await > token);
}
