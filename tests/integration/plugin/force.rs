//! `force-release`.

use leasehold::api::LockClaim;
use leasehold::api::condition::{reasons, types};

use super::terminal::Terminal;
use crate::controller::fixture::{Fixture, a_while, claim_condition};
use crate::policies::{allow, apply_force_release, apply_refusing_force_release};

const LOCKS: &str = "distributedlocks.leasehold.dev";
const RIGHTS: [(&str, &str); 2] = [("get,list", "lockclaims.leasehold.dev"), ("list", "events")];

#[tokio::test]
async fn a_hold_is_taken_by_its_token_and_no_other() {
    let f = Fixture::new().await;
    apply_force_release(&f.test).await;
    allow(&f.test, "ann", &[("get,list,patch,forcerelease", LOCKS), RIGHTS[0], RIGHTS[1]]).await;
    allow(&f.test, "dev", &[("get,list,patch", LOCKS), RIGHTS[0], RIGHTS[1]]).await;
    f.ready_lock("a", |spec| spec.permits = 2).await;
    f.claim("one", "a", |_| {}).await;
    let one = f.token_of("one").await;
    let (ann, dev) = (Terminal::of(&f.test, "ann"), Terminal::of(&f.test, "dev"));
    dev.run("force-release a --reason stuck").await.fails("ask for the verb forcerelease");
    ann.run(&format!("force-release a --reason stuck --token {}", one + 1)).await.fails(&format!("(token {one})"));
    a_while().await;
    f.claim_is("one", "holds on", |claim| claim_condition(claim, types::HELD)).await;
    f.claim("two", "a", |_| {}).await;
    let two = f.token_of("two").await;
    f.lock_is("a", "lists both", |lock| lock.status.as_ref().is_some_and(|status| status.holders.len() == 2)).await;
    ann.run("force-release a --reason stuck").await.fails("say which with --token");
    let taken = ann.call(&["force-release", "a", "--reason", "n1 burnt down", "--token", &one.to_string()]).await;
    assert!(taken.err.contains(&format!("held by claim/two (token {two})")), "{taken:?}");
    assert!(taken.good().contains(&format!("the token {one}")));
    f.claim_reason("one", types::FINISHED, reasons::FORCE_RELEASED).await;
    assert!(f.event("a", reasons::FORCE_RELEASED).await.contains("n1 burnt down"));
    f.claim_is("two", "still holds", |claim| claim_condition(claim, types::HELD)).await;
    let named = ann.run("force-release a --reason stuck -o name").await.good();
    assert_eq!(named, "distributedlock.leasehold.dev/a\n");
    ann.run("force-release a --reason stuck").await.fails("nobody holds it");
}

#[tokio::test]
async fn where_no_policy_fills_in_who_asks_it_says_so_itself() {
    let f = Fixture::new().await;
    apply_refusing_force_release(&f.test).await;
    allow(&f.test, "ann", &[("get,list,patch,forcerelease", LOCKS), RIGHTS[0], RIGHTS[1]]).await;
    f.ready_lock("a", |_| {}).await;
    f.claim("one", "a", |_| {}).await;
    f.token_of("one").await;
    Terminal::of(&f.test, "ann").run("force-release a --reason stuck").await.good();
    f.claim_reason("one", types::FINISHED, reasons::FORCE_RELEASED).await;
    assert!(f.event("a", reasons::FORCE_RELEASED).await.contains("ann"));
}

#[tokio::test]
async fn without_the_policy_nothing_is_taken_and_that_is_said() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("one", "a", |_| {}).await;
    f.token_of("one").await;
    Terminal::new(&f.test).run("force-release a --reason stuck").await.fails("force-release.yaml");
    let held = |claim: &LockClaim| claim_condition(claim, types::HELD);
    f.claim_is("one", "holds on", held).await;
}
