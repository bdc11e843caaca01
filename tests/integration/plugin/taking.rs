//! `acquire` and `release`.

use kube::api::ListParams;
use leasehold::api::LockClaim;
use rstest::rstest;
use rustix::process::Signal;

use super::terminal::Terminal;
use crate::controller::fixture::{Fixture, holder};
use crate::support::{LIMIT, containers_terminated};

async fn claims(f: &Fixture) -> usize {
    f.test.api::<LockClaim>().list(&ListParams::default()).await.expect("a list").items.len()
}

#[tokio::test]
async fn a_lock_is_taken_with_its_token_and_given_back() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.permits = 3).await;
    let terminal = Terminal::new(&f.test);
    let answer = terminal.run("acquire a --claim mine --permits 2").await;
    assert!(answer.err.contains("release mine"), "{answer:?}");
    assert_eq!(answer.good().trim(), f.token_of("mine").await.to_string());
    let made = terminal.run("acquire a -o name").await.good();
    let made = made.trim().strip_prefix("lockclaim.leasehold.dev/").expect("a name");
    assert!(made.starts_with("a-"), "{made}");
    assert_eq!(terminal.run(&format!("release {made}")).await.good(), "released a\n");
    assert_eq!(terminal.run("release mine -o name").await.good(), "lockclaim.leasehold.dev/mine\n");
    assert_eq!(claims(&f).await, 0);
    terminal.run("acquire a --claim x --exclusive").await.good();
    terminal.run("acquire a --claim x").await.fails("there is a claim x already");
}

#[tokio::test]
async fn a_lock_that_is_held_is_not_taken_in_time() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("first", "a", |_| {}).await;
    let token = f.token_of("first").await;
    let terminal = Terminal::new(&f.test);
    for words in ["acquire a --no-wait", "acquire a --wait 1"] {
        let answer = terminal.run(words).await;
        assert_eq!((answer.code, answer.out.as_str()), (Some(3), ""), "{answer:?}");
        assert!(answer.err.contains(&format!("held by claim/first (token {token})")), "{answer:?}");
    }
    f.claim_is("first", "is the only claim", |_| true).await;
    let alone = async || (claims(&f).await == 1).then_some(());
    crate::support::wait_for("the claims that gave up are gone", LIMIT, alone).await;
}

#[rstest]
#[case::ctrl_c(Signal::INT)]
#[case::a_closed_terminal(Signal::HUP)]
#[tokio::test]
async fn one_that_is_ended_while_it_waits_deletes_the_claim(#[case] signal: Signal) {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("first", "a", |_| {}).await;
    f.token_of("first").await;
    let terminal = Terminal::new(&f.test);
    let waits = terminal.start("acquire a --claim second");
    f.has_its_place("second").await;
    waits.says("Waiting").await;
    waits.process.signal(signal);
    let answer = waits.answer().await;
    assert_eq!((answer.code, answer.out.as_str()), (Some(130), ""), "{answer:?}");
    f.test.gone::<LockClaim>("second", LIMIT).await;
}

#[tokio::test]
async fn a_claim_of_a_pod_is_released_when_that_has_ended_and_says_so_before() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.pods().node(f.test.name(), true).await;
    let pod = f.pods().run("worker", "Never", Some(f.test.name())).await;
    let terminal = Terminal::new(&f.test);
    terminal.run("acquire a --claim mine --for pod/worker").await.good();
    let claim = f.claim_is("mine", "is there", |_| true).await;
    assert_eq!(claim.spec.holder_ref, Some(holder(&pod)));
    let late = terminal.run("release mine --wait 1").await;
    assert_eq!(late.code, Some(3), "{late:?}");
    let release = terminal.start("release mine");
    release.says("mine holds a for pod/worker until that has ended").await;
    f.pods().report("worker", containers_terminated(0)).await;
    assert_eq!(release.answer().await.good(), "released a\n");
    terminal.run("acquire a --for pod/walker").await.fails("there is no Pod walker");
}
