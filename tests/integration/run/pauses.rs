//! Processes that are stopped and go on: what was stopped can't stop itself.

use std::time::Duration;

use rstest::rstest;
use rustix::process::Signal;

use super::fixture::{Deaths, SOON, Scene};

const LEASE: Duration = Duration::from_secs(3);
/// It doesn't end when it is asked to.
const STUBBORN: &str = "trap '' TERM; echo $$ > $T/command; while ! [ -e $T/end ]; do sleep 0.05; done";

/// The wrapper alone is stopped: the guardian stops the command by its own clock.
#[rstest]
#[case::half_a_lease(0.5, 0)]
#[case::nearly_a_lease(0.9, 120)]
#[case::more_than_a_lease(1.1, 120)]
#[case::two_leases(2.0, 120)]
#[tokio::test]
async fn a_wrapper_that_is_stopped_keeps_no_command_past_its_lease(#[case] leases: f64, #[case] code: i32) {
    let scene = Scene::with_lease(LEASE).await;
    let mut run = scene.run("--grace=0.2", STUBBORN);
    let command = run.pid("command").await;
    let deaths = Deaths::of(&[command]);
    let next = if leases > 0.5 { Some(scene.waiting().await) } else { None };
    run.process.pause();
    tokio::time::sleep(LEASE.mul_f64(leases)).await;
    if code == 0 {
        assert!(command.is_alive(), "after {leases} leases");
    } else {
        // Its lease ends a tenth later, at the latest.
        command.ends(LEASE / 10).await;
    }
    let granted = match next {
        Some(next) => {
            let (next, granted) = next.await.unwrap();
            next.release().await.unwrap();
            Some(granted)
        }
        None => None,
    };
    run.process.resume();
    run.create("end");
    assert_eq!(run.code().await, Some(code), "{}", run.errors());
    if let Some(granted) = granted {
        println!(
            "after {leases} leases the command had ended {} ms before the next token",
            deaths.all_before(granted, 1)
        );
    }
}

/// It was promoted meanwhile, and its offer is over: what it hears on going on is not believed.
#[tokio::test]
async fn one_that_waits_and_is_stopped_past_its_offer_starts_nothing_beside_the_next() {
    let scene = Scene::with_lease(LEASE).await;
    let held = scene.hold().await;
    let mut run = scene.run("--grace=0.2", "echo ran > $T/ran");
    scene.is_queued().await;
    run.process.pause();
    held.release().await.unwrap();
    let next = scene.next(SOON).await;
    run.process.resume();
    scene.is_queued().await;
    assert_eq!(run.read("ran"), None, "{}", run.errors());
    next.release().await.unwrap();
    assert_eq!(run.code().await, Some(0), "{}", run.errors());
}

/// Adds one to a counter, taking its time; one that is stopped in between writes what it had read.
const UNFENCED: &str =
    "read -r n < $C/n; echo $$ > $T/command; while ! [ -e $T/go ]; do sleep 0.05; done; echo $((n + 1)) > $C/n";
/// The same, where the counter keeps the highest token that has written it and refuses a lower one.
const FENCED: &str = r#"
    read -r n < $C/n; echo $$ > $T/command; while ! [ -e $T/go ]; do sleep 0.05; done
    flock $C/lock sh -c 'read -r seen < $C/seen; [ $LEASEHOLD_TOKEN -ge $seen ] && echo $LEASEHOLD_TOKEN > $C/seen \
        && echo $(('$n' + 1)) > $C/n'"#;

/// Everything is stopped, as a machine is that is suspended: no program can help itself, the token does.
#[rstest]
#[case::unfenced(UNFENCED, "1")]
#[case::fenced(FENCED, "1")]
#[tokio::test]
async fn a_tree_that_is_stopped_past_its_lease_is_refused_by_its_token_alone(
    #[case] script: &str,
    #[case] first: &str,
) {
    let scene = Scene::with_lease(LEASE).await;
    let counter = crate::support::Scratch::new("counter");
    counter.write("n", "0\n");
    counter.write("seen", "0\n");
    let script = script.replace("$C", &counter.path().display().to_string());
    let mut run = scene.run("--grace=0.2", &script);
    let command = run.pid("command").await;
    let all = [run.guardian().await, command];
    run.process.pause();
    for process in all {
        process.signal(Signal::STOP);
    }
    // Others count on meanwhile.
    let read = || std::fs::read_to_string(counter.path().join("n")).unwrap().trim().to_owned();
    for expected in [first, "2"] {
        let mut other = scene.run("--grace=0.2 --wait 10", &script);
        other.pid("command").await;
        other.create("go");
        assert_eq!(other.code().await, Some(0), "{}", other.errors());
        assert_eq!(read(), expected);
    }
    // The command goes on before anyone can stop it.
    run.create("go");
    command.signal(Signal::CONT);
    command.ends(SOON).await;
    let lost = if script.contains("seen") { "2" } else { "1" };
    assert_eq!(read(), lost, "an update is lost without the token, and none with it");
    all[0].signal(Signal::CONT);
    run.process.resume();
    assert_eq!(run.code().await, Some(120), "it ended well, and after its lease: {}", run.errors());
}
