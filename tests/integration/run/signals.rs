//! Signals reach the command, and one that waits for its lock.

use std::time::Instant;

use rstest::rstest;
use rustix::process::Signal;
use rustix_libc_wrappers::process::SignalExt as _;

use super::fixture::{Deaths, SOON, Scene, Watched};

/// Nobody catches them, they say what a process has done itself, or the C library keeps them.
const NOT_SENT: [i32; 10] = [4, 7, 8, 9, 11, 13, 17, 19, 32, 33];

#[tokio::test]
async fn all_that_can_be_caught_reach_the_command() {
    let all: Vec<Signal> = (1..=64).filter(|number| !NOT_SENT.contains(number)).filter_map(Signal::from_raw).collect();
    assert_eq!(all.len(), 54);
    // A shell that says which signal it has got. What it waits for has left its group before the first one comes: some of
    // them stop, or end, what doesn't catch them.
    let numbers: Vec<_> = all.iter().map(|signal| signal.as_raw().to_string()).collect();
    let numbers = numbers.join(" ");
    let script = format!(
        r#"for signal in {numbers}; do trap "echo $signal >> $T/signals" $signal; done
        setsid sh -c 'echo $$ > $T/apart; until [ -e $T/end ]; do sleep 0.05; done' &
        until [ -e $T/end ]; do wait; done"#
    );
    let scene = Scene::new().await;
    let mut run = scene.run("", &script);
    run.pid("apart").await;
    let mut expected = String::new();
    for signal in all {
        Watched(run.process.pid()).signal(signal);
        expected += &format!("{}\n", signal.as_raw());
        let heard =
            crate::support::eventually(SOON, async || run.read("signals").filter(|text| *text == expected)).await;
        assert!(heard.is_some(), "{signal:?}: {:?}", run.read("signals"));
    }
    run.create("end");
    assert_eq!(run.code().await, Some(0));
}

#[tokio::test]
async fn the_whole_group_of_the_command_hears_it() {
    let scene = Scene::new().await;
    let mut run =
        scene.run("", "sh -c 'trap \"echo heard > $T/heard; exit\" TERM; echo $$ > $T/child; sleep 60 & wait' & wait");
    run.pid("child").await;
    run.process.terminate();
    assert_eq!(run.code().await, Some(143));
    assert_eq!(run.says("heard").await, "heard");
}

#[rstest]
#[case(Signal::TERM, 143)]
#[case(Signal::INT, 130)]
#[case(Signal::HUP, 129)]
#[case(Signal::QUIT, 131)]
#[tokio::test]
async fn one_that_waits_ends_leaves_the_queue_and_starts_nothing(#[case] signal: Signal, #[case] code: i32) {
    let scene = Scene::new().await;
    let held = scene.hold().await;
    let mut run = scene.run("", "echo ran > $T/ran");
    scene.is_queued().await;
    Watched(run.process.pid()).signal(signal);
    assert_eq!(run.code().await, Some(code));
    assert_eq!(scene.waiters().await, 0);
    held.release().await.unwrap();
    assert_eq!((scene.holders().await, run.read("ran")), (0, None));
}

/// consul ended by the defaults of HUP and QUIT, and its child lived on without the lock (#2489, #1210).
#[rstest]
#[case(Signal::HUP, 129)]
#[case(Signal::QUIT, 131)]
#[case(Signal::ALARM, 142)]
#[case(Signal::POWER, 158)]
#[tokio::test]
async fn a_signal_that_ends_the_command_leaves_no_orphan(#[case] signal: Signal, #[case] code: i32) {
    let scene = Scene::new().await;
    let script =
        "setsid sh -c 'echo $$ > $T/session; exec sleep 600' & echo $$ > $T/command; while :; do sleep 0.05; done";
    let mut run = scene.run("--grace=0.2", script);
    let all = [run.pid("session").await, run.pid("command").await];
    let deaths = Deaths::of(&all);
    Watched(run.process.pid()).signal(signal);
    let next = scene.next(SOON).await;
    deaths.all_before(Instant::now(), all.len());
    assert_eq!(run.code().await, Some(code), "{}", run.errors());
    next.release().await.unwrap();
}

/// Asked to end and granted in one moment: consul started its child then (#800, #1155).
#[tokio::test]
async fn one_that_was_asked_to_end_starts_nothing_though_the_lock_is_granted() {
    for _ in 0..3 {
        let scene = Scene::new().await;
        let held = scene.hold().await;
        let mut run = scene.run("", "echo ran > $T/ran");
        scene.is_queued().await;
        run.process.pause();
        held.release().await.unwrap();
        run.process.terminate();
        run.process.resume();
        assert_eq!((run.code().await, run.read("ran")), (Some(143), None), "{}", run.errors());
        assert_eq!((scene.holders().await, scene.waiters().await), (0, 0), "nothing is held");
    }
}

#[tokio::test]
async fn a_signal_that_was_ignored_at_the_start_stays_so() {
    let scene = Scene::new().await;
    let run = scene.run_command("", &["sh", "-c", "grep SigIgn /proc/self/status > $T/ignored; sleep 60"]);
    let usual = run.says("ignored").await;
    let under_nohup = format!(
        "trap '' HUP; exec {} run --redis-url=redis://{} --namespace=shop --key-prefix=test --lock=ledger -- \
         sh -c 'grep SigIgn /proc/self/status > $T/inner; sleep 60'",
        env!("CARGO_BIN_EXE_leasehold"),
        scene.proxy.address()
    );
    scene.declare("ledger").await;
    scene.declare("third").await;
    let run = scene.run_command("--lock=third", &["sh", "-c", &under_nohup]);
    let ignored = run.says("inner").await;
    let mask = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
    assert_eq!((mask(&usual) & 1, mask(&ignored) & 1), (0, 1), "SIGHUP");
}
