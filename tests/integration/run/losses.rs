//! The lock is lost, or nearly: the command is stopped before the next holder is granted, and the exit code says it.

use std::time::{Duration, Instant};

use leasehold::keeper::{Options, Wait};
use leasehold::lease::{Epoch, LockKey};
use leasehold::store::Provision;
use rstest::rstest;

use super::fixture::{Deaths, SOON, Scene};
use crate::protocol::fixture::provision;
use crate::support::wait_for;

const LEASE: Duration = Duration::from_secs(3);
/// It doesn't end when it is asked to, and neither does its child.
const STUBBORN: &str = "trap '' TERM; sleep 600 & echo $! > $T/child; echo $$ > $T/command; while :; do wait; done";

#[rstest]
#[case::redis_stops("stop")]
#[case::redis_is_killed("kill")]
#[case::redis_is_emptied("empty")]
#[case::no_answer_comes("hold")]
#[case::connections_are_refused("refuse")]
#[case::answers_are_as_late_as_the_lease_is_long("late")]
#[tokio::test]
async fn a_stubborn_command_is_killed_before_the_next_one_is_granted(#[case] fault: &str) {
    let mut scene = Scene::with_lease(LEASE).await;
    let mut run = scene.run("--grace=0.3", STUBBORN);
    let all = [run.pid("child").await, run.pid("command").await];
    let deaths = Deaths::of(&all);
    let next = scene.waiting().await;
    // What is left of the lease at the server can't be longer than a whole one from here on.
    match fault {
        "stop" => {
            scene.declared.server.process().pause();
            tokio::time::sleep(LEASE).await;
            scene.declared.server.process().resume();
        }
        "kill" => {
            scene.declared.server.kill();
            scene.declared.server.restart().await;
            scene.open_again(LEASE).await;
        }
        "empty" => {
            scene.declared.server.send::<()>("FLUSHALL").await;
            scene.open_again(LEASE).await;
        }
        "hold" => scene.proxy.hold_replies(true),
        "late" => scene.proxy.delay_replies(LEASE),
        _ => {
            scene.proxy.refuse(true).await;
            scene.proxy.cut();
        }
    }
    let (next, granted) = next.await.unwrap();
    let gap = deaths.all_before(granted, all.len());
    println!("{fault}: the last of the tree ended {gap} ms before token {}", next.token());
    assert_eq!(run.code().await, Some(120), "{}", run.errors());
    let said = run.errors();
    assert!(said.contains("the lock is lost; the command is stopped") && !said.contains('\u{1b}'), "{said}");
}

/// For machines on which what is killed is slow to be gone.
#[tokio::test]
async fn a_longer_time_to_kill_ends_the_command_so_much_sooner() {
    let scene = Scene::with_lease(LEASE).await;
    let mut run = scene.run("--grace=0.2 --kill-time=0.8", STUBBORN);
    let all = [run.pid("child").await, run.pid("command").await];
    let deaths = Deaths::of(&all);
    // Nothing reaches the server: the next one is granted when the lease ends there.
    let next = scene.waiting().await;
    scene.proxy.silence(true);
    let (next, granted) = next.await.unwrap();
    let gap = deaths.all_before(granted, all.len());
    assert!(gap > 700, "only {gap} ms before token {}", next.token());
    assert_eq!(run.code().await, Some(120), "{}", run.errors());
}

#[tokio::test]
async fn a_lock_that_is_taken_away_is_heard_of_by_the_next_renewal() {
    let scene = Scene::with_lease(LEASE).await;
    let mut run = scene.run("", "trap 'echo asked > $T/asked; exit 0' TERM; echo $$ > $T/command; sleep 600 & wait");
    let command = run.pid("command").await;
    scene.declared.server.send::<()>("FLUSHALL").await;
    scene.declared.open(Epoch::new(2).unwrap()).await;
    scene.declared.provision(&provision(1, LEASE)).await;
    assert_eq!(run.code().await, Some(120), "{}", run.errors());
    assert_eq!(run.says("asked").await, "asked");
    command.ends(SOON).await;
}

#[tokio::test]
async fn a_store_that_was_emptied_is_no_loss_until_the_deadline() {
    let scene = Scene::with_lease(LEASE).await;
    let begun = Instant::now();
    let mut run = scene.run("--grace=0.2", "echo $$ > $T/command; sleep 600");
    run.pid("command").await;
    scene.declared.server.send::<()>("FLUSHALL").await;
    assert_eq!(run.code().await, Some(120), "{}", run.errors());
    assert!(begun.elapsed() > LEASE / 2, "unknown is not lost: {:?}", begun.elapsed());
}

/// Unknown is not lost, to the end: the command has done its work while the lock was its own.
#[tokio::test]
async fn a_command_that_ends_by_itself_beside_an_emptied_store_has_its_own_code() {
    let scene = Scene::new().await;
    let mut run = scene.run("", "echo $$ > $T/command; while ! [ -e $T/end ]; do sleep 0.05; done; exit 6");
    run.pid("command").await;
    scene.declared.server.send::<()>("FLUSHALL").await;
    run.create("end");
    assert_eq!(run.code().await, Some(6), "{}", run.errors());
}

#[tokio::test]
async fn the_file_says_each_new_deadline_and_that_it_is_lost() {
    let scene = Scene::with_lease(LEASE).await;
    let script =
        "trap '' TERM; echo $$ > $T/command; while :; do cat $LEASEHOLD_DEADLINE_FILE >> $T/seen; sleep 0.02; done";
    let mut run = scene.run("--grace=0.5", script);
    run.pid("command").await;
    let seen = || {
        let mut lines: Vec<String> = run.read("seen").unwrap_or_default().lines().map(str::to_owned).collect();
        lines.dedup();
        lines
    };
    let renewed = async || (seen().iter().filter(|line| line.ends_with(" held")).count() >= 3).then_some(());
    wait_for("two renewals", SOON, renewed).await;
    let deadline = |line: &String| line.split(' ').next().and_then(|seconds| seconds.parse::<f64>().ok());
    let held: Vec<f64> = seen().iter().filter_map(deadline).collect();
    assert!(held.windows(2).all(|pair| pair[0] < pair[1]), "{held:?}");
    scene.proxy.hold_replies(true);
    let lost = async || seen().last().is_some_and(|line| line.ends_with(" lost")).then_some(());
    wait_for("it says that it is lost, while the command has its grace", SOON, lost).await;
    assert_eq!(run.code().await, Some(120), "{}", run.errors());
}

/// Its lease may have been another's meanwhile: what it has done isn't what it was asked to do.
#[tokio::test]
async fn a_lock_that_turns_out_to_be_lost_when_it_is_given_back_has_the_code_of_a_loss() {
    let lease = Duration::from_secs(60);
    let scene = Scene::with_lease(lease).await;
    let mut run = scene.run("", "echo $$ > $T/command; while ! [ -e $T/end ]; do sleep 0.05; done");
    run.pid("command").await;
    // Long before the next renewal.
    scene.declared.server.send::<()>("FLUSHALL").await;
    scene.declared.open(Epoch::new(2).unwrap()).await;
    scene.declared.provision(&provision(1, lease)).await;
    run.create("end");
    assert_eq!(run.code().await, Some(120), "{}", run.errors());
    assert!(run.errors().contains("the lease had ended before the command ended"), "{}", run.errors());
}

/// consul's child lived for minutes where packets were dropped and no connection was reset, beside the next one
/// (#18271, #9788, #1843).
#[tokio::test]
async fn a_silent_partition_ends_the_command_within_its_lease_and_the_next_is_granted_after_it() {
    let scene = Scene::with_lease(LEASE).await;
    let mut run = scene.run("--grace=0.8", "sleep 600 & echo $! > $T/child; echo $$ > $T/command; wait");
    let all = [run.pid("child").await, run.pid("command").await];
    let deaths = Deaths::of(&all);
    scene.proxy.silence(true);
    let begun = Instant::now();
    let next = scene.next(SOON).await;
    let granted = Instant::now();
    assert!(granted - begun < LEASE + Duration::from_secs(1), "the lease of a dead holder ends: {:?}", granted - begun);
    let gap = deaths.all_before(granted, all.len());
    println!("stopped {gap} ms before token {}, which came {:?} after the fault", next.token(), granted - begun);
    assert_eq!(run.code().await, Some(120), "{}", run.errors());
}

/// As soon as one is taken away; what is left of the others is given back when the command has stopped.
#[rstest]
#[case::the_first_that_is_taken("alpha")]
#[case::the_last_that_is_taken("zebra")]
#[tokio::test]
async fn of_several_locks_each_stops_the_command_when_it_is_lost(#[case] other: &str) {
    let scene = Scene::with_lease(LEASE).await;
    let key = LockKey::new("shop", other).unwrap();
    let control = &scene.declared.control;
    let declare = async |floor| {
        let wanted = Provision { token_floor: floor, ..provision(1, LEASE) };
        control.provision(&key, &wanted).await.unwrap().unwrap();
    };
    declare(0).await;
    let mut run = scene.run(&format!("--lock=report --lock={other}"), "echo $$ > $T/command; exec sleep 600");
    let command = run.pid("command").await;
    let before = scene.store().inspect(&key).await.unwrap().expect("a record").last;
    scene.declared.server.send::<()>(&format!("DEL test:{{shop/{other}}}:lock")).await;
    declare(before).await;
    let waits = Options { wait: Wait::For(SOON), ..Options::named("next") };
    let next = scene.store().lock(scene.declared.lock.clone()).acquire(waits).await.expect("report is given back");
    assert!(!command.is_alive(), "it works on while somebody else has a lock of its");
    assert!(next.token().get() > 0);
    assert_eq!(run.code().await, Some(120), "{}", run.errors());
}

#[rstest]
#[case::cut("cut")]
#[case::replies_dropped("drop")]
#[case::replies_late("delay")]
#[case::restarted_with_its_data("restart")]
#[tokio::test]
async fn what_passes_within_the_lease_is_survived(#[case] fault: &str) {
    let mut scene = Scene::with_lease(LEASE).await;
    let mut run = scene.run("", "echo $$ > $T/command; sleep 4; echo done > $T/done");
    run.pid("command").await;
    match fault {
        "cut" => scene.proxy.cut(),
        "drop" => scene.proxy.drop_replies(2),
        "delay" => scene.proxy.delay_replies(Duration::from_millis(400)),
        _ => {
            scene.declared.server.send::<()>("CONFIG SET appendonly yes").await;
            scene.declared.server.send::<()>("SAVE").await;
            scene.declared.server.restart().await;
        }
    }
    assert_eq!(run.code().await, Some(0), "{}", run.errors());
    assert_eq!(run.says("done").await, "done");
    let passed = scene.proxy.passed();
    match fault {
        "cut" => assert!(passed.cut > 0, "{passed:?}"),
        "drop" => assert!(passed.dropped > 0, "{passed:?}"),
        _ => {}
    }
}

#[tokio::test]
async fn jeopardy_is_told_and_so_is_its_end() {
    let scene = Scene::with_lease(Duration::from_secs(5)).await;
    let script = r#"
        trap 'read -r _ standing < $LEASEHOLD_DEADLINE_FILE; echo $standing >> $T/told' USR1
        echo $$ > $T/command
        while ! [ -e $T/end ]; do sleep 0.05; done"#;
    let mut run = scene.run("--on-jeopardy=USR1", script);
    run.pid("command").await;
    scene.proxy.hold_replies(true);
    for expected in ["jeopardy\n", "jeopardy\nheld\n"] {
        let told = crate::support::eventually(SOON, async || run.read("told").filter(|told| told == expected)).await;
        assert!(told.is_some(), "{:?}: {}", run.read("told"), run.errors());
        scene.proxy.hold_replies(false);
    }
    run.create("end");
    assert_eq!(run.code().await, Some(0));
}
