//! The guardian alone is stopped, or what it watches over is stubborn: each of the two processes makes up for the other.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::fixture::{Deaths, SOON, Scene};

const LEASE: Duration = Duration::from_secs(3);

/// The command has ended, and what it left behind ignores SIGTERM: renewals go on, and yet its time is the grace.
#[tokio::test]
async fn what_is_left_behind_has_the_grace_and_no_more_however_often_the_lease_is_renewed() {
    let scene = Scene::with_lease(LEASE).await;
    // Longer than the time between two renewals.
    let mut run =
        scene.run("--grace=0.8", "(trap '' TERM; echo ready > $T/ready; while :; do sleep 1; done) & while ! [ -e $T/go ]; do sleep 0.05; done; exit 4");
    run.says("ready").await;
    run.create("go");
    let begun = Instant::now();
    assert_eq!(run.code().await, Some(4), "{}", run.errors());
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(scene.holders().await, 0);
}

/// It can't kill in time, so that the wrapper does.
#[tokio::test]
async fn a_guardian_that_is_stopped_keeps_no_command_past_its_lease() {
    let scene = Scene::with_lease(LEASE).await;
    let script = "trap '' TERM; setsid sh -c 'echo $$ > $T/session; exec sleep 600' & echo $$ > $T/command; while :; do wait; done";
    let mut run = scene.run("--grace=0.2", script);
    let all = [run.pid("session").await, run.pid("command").await];
    let deaths = Deaths::of(&all);
    run.guardian().await.signal(Signal::STOP);
    scene.proxy.silence(true);
    let next = scene.next(SOON).await;
    let gap = deaths.all_before(Instant::now(), all.len());
    println!("the last of the tree ended {gap} ms before token {}", next.token());
    assert_eq!(run.code().await, Some(120), "{}", run.errors());
}

/// The lease is renewed all the while: what it hears on waking up is newer than what it knew.
#[tokio::test]
async fn a_guardian_that_was_stopped_while_the_lease_was_renewed_kills_nothing() {
    let scene = Scene::with_lease(LEASE).await;
    let mut run = scene.run("--grace=0.2", "echo $$ > $T/command; while ! [ -e $T/end ]; do sleep 0.05; done; exit 5");
    let command = run.pid("command").await;
    let guardian = run.guardian().await;
    guardian.signal(Signal::STOP);
    tokio::time::sleep(LEASE.mul_f64(1.5)).await;
    guardian.signal(Signal::CONT);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(command.is_alive(), "{}", run.errors());
    run.create("end");
    assert_eq!(run.code().await, Some(5), "{}", run.errors());
}

/// It reads nothing: what waits for it fills up, and the wrapper still watches its clock.
#[tokio::test]
async fn a_guardian_that_reads_nothing_keeps_the_wrapper_from_nothing() {
    let scene = Scene::with_lease(LEASE).await;
    let mut run = scene.run("--grace=0.2", "trap '' USR1; echo $$ > $T/command; sleep 600 & wait; wait");
    let command = run.pid("command").await;
    run.guardian().await.signal(Signal::STOP);
    for _ in 0..2_000 {
        super::fixture::Watched(run.process.pid()).signal(Signal::USR1);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    scene.proxy.silence(true);
    command.ends(SOON).await;
    assert_eq!(run.code().await, Some(120), "{}", run.errors());
}

/// Nothing is waited for: not the end of a lease of a minute.
#[tokio::test]
async fn a_command_ends_at_once_where_the_wrapper_is_killed() {
    let scene = Scene::new().await;
    let mut run = scene.run("--grace=0.2", "trap '' TERM; echo $$ > $T/command; while :; do sleep 0.05; done");
    let command = run.pid("command").await;
    run.process.kill();
    command.ends(Duration::from_secs(2)).await;
}

/// Nobody is left to stop it: the kernel does.
#[tokio::test]
async fn a_command_dies_with_wrapper_and_guardian_that_die_in_one_moment() {
    let scene = Scene::with_lease(LEASE).await;
    let mut run = scene.run("", "trap '' TERM HUP; echo $$ > $T/command; while :; do sleep 0.05; done");
    let (command, guardian) = (run.pid("command").await, run.guardian().await);
    run.process.pause();
    guardian.signal(Signal::STOP);
    guardian.signal(Signal::KILL);
    run.process.kill();
    command.ends(Duration::from_secs(1)).await;
}

/// All of it was stopped before it began, and the lock is another's: its time is over.
#[tokio::test]
async fn a_command_whose_time_is_over_is_not_started() {
    let scene = Scene::with_lease(LEASE).await;
    let mut tries = 0..20;
    let (mut run, guardian) = loop {
        assert!(tries.next().is_some(), "always stopped too late");
        let held = scene.hold().await;
        let mut run = scene.run("--grace=0.2", "echo ran > $T/ran");
        scene.is_queued().await;
        held.release().await.unwrap();
        let guardian = run.new_guardian();
        guardian.signal(Signal::STOP);
        run.process.pause();
        if run.read("ran").is_none() {
            break (run, guardian);
        }
        guardian.signal(Signal::CONT);
        run.process.resume();
        run.code().await;
    };
    let next = scene.next(SOON).await;
    run.process.resume();
    guardian.signal(Signal::CONT);
    assert_eq!((run.code().await, run.read("ran")), (Some(120), None), "{}", run.errors());
    next.release().await.unwrap();
}
