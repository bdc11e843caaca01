//! What the command gets, and what the exit code says.

use std::time::{Duration, Instant};

use leasehold::lease::Mode;
use leasehold::store::Endpoint;
use rstest::rstest;

use super::fixture::{Run, Scene, nobody};
use crate::protocol::fixture::provision;

#[rstest]
#[case::its_own("exit 7", 7)]
#[case::success("true", 0)]
#[case::a_signal("kill -KILL $$", 137)]
#[case::another_signal("kill -TERM $$", 143)]
#[tokio::test]
async fn the_code_of_the_command_is_passed(#[case] script: &str, #[case] code: i32) {
    let scene = Scene::new().await;
    assert_eq!(scene.run("", script).code().await, Some(code));
    assert_eq!(scene.holders().await, 0, "it is released");
}

#[tokio::test]
async fn a_command_that_is_not_there_or_no_program_has_the_codes_of_a_shell() {
    let scene = Scene::new().await;
    for (command, code) in [("no-such-command", 127), ("/etc/passwd", 126)] {
        let mut run = scene.run_command("", &[command]);
        assert_eq!(run.code().await, Some(code));
        assert!(run.errors().contains(command), "{}", run.errors());
    }
}

#[tokio::test]
async fn a_lock_that_is_held_is_busy_or_not_had_in_time() {
    let scene = Scene::new().await;
    let _held = scene.hold().await;
    let cases =
        [("--no-wait", 118), ("-n -E 3", 3), ("--nb", 118), ("--wait 0.2", 119), ("-w 0.2 -E 4", 4), ("-w 0", 118)];
    for (flags, code) in cases {
        let mut run = scene.run(flags, "echo ran > $T/ran");
        assert_eq!(run.code().await, Some(code), "{flags}");
        assert_eq!(run.read("ran"), None, "{flags}");
        assert!(run.errors().starts_with("leasehold: report: "), "{}", run.errors());
    }
    assert_eq!((scene.waiters().await, scene.holders().await), (0, 1));
}

#[tokio::test]
async fn a_store_that_is_not_there_is_said_after_five_seconds() {
    let Endpoint { port, .. } = nobody();
    let begun = Instant::now();
    let mut run = Run::start(&format!("127.0.0.1:{port}"), "", &["true"]);
    assert_eq!(run.code().await, Some(121), "{}", run.errors());
    assert!(begun.elapsed() >= Duration::from_secs(5));
    assert!(
        run.errors().contains("the store can't be reached (Unreachable): check the URL and the network"),
        "{}",
        run.errors()
    );
    assert_eq!(run.errors().lines().count(), 1, "{}", run.errors());
}

#[rstest]
#[case::no_lock("--lock=other", "is a DistributedLock of this name declared")]
#[case::a_bad_name("--lock=Other", "may have only lower-case letters")]
#[case::twice("--lock=report --lock=report", "--lock report is given twice")]
#[case::too_many_permits("--permits=2", "the lock has 1 permits, fewer than were asked for")]
#[case::a_grace_that_does_not_fit("--grace=30", "a lease of 60s is too short to stop within 30.25s")]
#[case::a_kill_time_that_does_not_fit("--grace=29 --kill-time=2", "a lease of 60s is too short to stop within 31s")]
#[case::no_time_to_kill("--kill-time=0.1", "--kill-time 0.1: what is killed needs 0.25 s to be gone")]
#[tokio::test]
async fn what_can_t_be_is_said_in_one_line_and_nothing_runs(#[case] flags: &str, #[case] said: &str) {
    let scene = Scene::new().await;
    let mut run = scene.run(flags, "echo ran > $T/ran");
    assert_eq!(run.code().await, Some(125), "{}", run.errors());
    assert!(run.errors().contains(said) && run.errors().lines().count() == 1, "{}", run.errors());
    assert_eq!(run.read("ran"), None);
    assert_eq!((scene.waiters().await, scene.holders().await), (0, 0));
}

#[rstest]
#[case::permits("--permits=2", Mode::Counted(2))]
#[case::shared("--shared", Mode::Shared)]
#[case::exclusive("-x", Mode::Exclusive)]
#[tokio::test]
async fn as_much_is_held_as_was_asked_for(#[case] flags: &str, #[case] mode: Mode) {
    let scene = Scene::new().await;
    let permits = leasehold::store::Provision { generation: 2, ..provision(3, Duration::from_secs(60)) };
    scene.declared.provision(&permits).await;
    let run = scene.run(flags, "echo ran > $T/ran; sleep 600");
    run.says("ran").await;
    let record = scene.declared.store.inspect(&scene.declared.lock).await.unwrap().unwrap();
    assert_eq!(record.holds[0].mode, mode);
}

#[tokio::test]
async fn one_of_a_higher_priority_waits_with_that() {
    let scene = Scene::new().await;
    let _held = scene.hold().await;
    let _run = scene.run("--priority=7", "true");
    scene.is_queued().await;
    let (_, waiters) = scene.declared.store.inspect_in_full(&scene.declared.lock).await.unwrap().unwrap();
    assert_eq!((waiters[0].priority, waiters[0].mode), (7, Mode::Counted(1)));
}

/// It believes less of the lease than the lock has, and says the loss by a code of its own.
#[tokio::test]
async fn a_shorter_lease_ends_sooner_and_a_loss_has_the_code_that_was_asked_for() {
    let scene = Scene::with_lease(Duration::from_secs(20)).await;
    let script = "read -r until _ < $LEASEHOLD_DEADLINE_FILE; read -r now _ < /proc/uptime; echo $until $now > $T/when; sleep 600";
    let mut run = scene.run("--lease=2 --grace=0.2 --lost-exit-code=9", script);
    let said = run.says("when").await;
    let (until, now) = said.split_once(' ').unwrap();
    let left = until.parse::<f64>().unwrap() - now.parse::<f64>().unwrap();
    assert!(left > 0.5 && left < 2.0, "{said}");
    scene.proxy.silence(true);
    assert_eq!(run.code().await, Some(9), "{}", run.errors());
}

#[tokio::test]
async fn the_command_knows_its_lock_token_and_deadline_and_reads_stdin() {
    let scene = Scene::new().await;
    let script = r#"
        cat > $T/stdin
        echo "$LEASEHOLD_LOCK $LEASEHOLD_HOLDER $LEASEHOLD_LOCKS" > $T/who
        echo "$LEASEHOLD_TOKEN" > $T/token
        read -r deadline standing < "$LEASEHOLD_DEADLINE_FILE"
        read -r uptime _ < /proc/uptime
        echo "$deadline $uptime $standing $LEASEHOLD_DEADLINE_FILE" > $T/deadline
        while ! [ -e $T/end ]; do sleep 0.05; done"#;
    let mut run = scene.run("--identity=me", script);
    let record = {
        run.says("deadline").await;
        scene.declared.store.inspect(&scene.declared.lock).await.unwrap().unwrap()
    };
    let token = run.says("token").await;
    assert_eq!(record.holds[0].token.to_string(), token);
    assert_eq!((record.holds[0].identity.as_str(), run.says("stdin").await.as_str()), ("me", "from stdin"));
    assert_eq!(run.says("who").await, format!("report me report={token}"));
    let text = run.says("deadline").await;
    let words: Vec<&str> = text.split(' ').collect();
    let (deadline, uptime): (f64, f64) = (words[0].parse().unwrap(), words[1].parse().unwrap());
    // Of 60 s 98 % are believed.
    assert!((57.5..58.8).contains(&(deadline - uptime)) && words[2] == "held", "{text}");
    run.process.terminate();
    assert_eq!(run.code().await, Some(143));
    assert!(!std::path::Path::new(words[3]).exists(), "the file is removed");
}

#[tokio::test]
async fn several_locks_are_held_together_and_opposite_orders_go_on() {
    let scene = Scene::new().await;
    scene.declare("ledger").await;
    let script = "echo $LEASEHOLD_LOCKS > $T/locks; sleep 0.3";
    let mut runs: Vec<Run> = ["--lock=report --lock=ledger", "--lock=ledger,report"]
        .into_iter()
        .cycle()
        .take(6)
        .map(|flags| scene.run(flags, script))
        .collect();
    for run in &mut runs {
        assert_eq!(run.code().await, Some(0), "{}", run.errors());
        let locks = run.says("locks").await;
        assert!(locks.contains("report=") && locks.contains("ledger="), "{locks}");
    }
    let _ledger = {
        let lock = scene.store().lock(leasehold::lease::LockKey::new("shop", "ledger").unwrap());
        lock.acquire(leasehold::keeper::Options::named("other")).await.unwrap()
    };
    assert_eq!(scene.run("--lock=report --lock=ledger -n", "true").code().await, Some(118));
    assert_eq!(scene.holders().await, 0, "the other is given back");
}

#[rstest]
#[case::busy("-n", 118)]
#[case::not_in_time("--wait=0.3", 119)]
#[tokio::test]
async fn where_one_lock_is_not_had_the_others_are_free_at_the_end(#[case] flags: &str, #[case] code: i32) {
    let scene = Scene::new().await;
    // The first in the order in which they are taken is free.
    scene.declare("zebra").await;
    let zebra = scene.store().lock(leasehold::lease::LockKey::new("shop", "zebra").unwrap());
    let _zebra = zebra.acquire(leasehold::keeper::Options::named("other")).await.unwrap();
    let mut run = scene.run(&format!("--lock=report --lock=zebra {flags}"), "true");
    assert_eq!(run.code().await, Some(code), "{}", run.errors());
    assert_eq!((scene.holders().await, scene.waiters().await), (0, 0));
}

/// Nobody waits for the one to hear then that the other can't be.
#[tokio::test]
async fn a_lease_of_any_lock_that_is_too_short_is_said_before_the_first_is_waited_for() {
    let scene = Scene::with_lease(Duration::from_secs(600)).await;
    scene.declare("zebra").await;
    let _held = scene.next(Duration::from_secs(5)).await;
    let mut run = scene.run("--lock=report --lock=zebra --grace=30", "true");
    assert_eq!(run.code().await, Some(125), "{}", run.errors());
    assert!(run.errors().contains("a lease of 60s is too short to stop within 30.25s"), "{}", run.errors());
    assert_eq!(scene.waiters().await, 0);
}

/// `--wait` is a promise to a script: nothing lengthens it, and what kept the lock from being granted is said.
#[rstest]
#[case("silent", 121, "the store can't be reached (Unreachable)")]
#[case("not there", 121, "check the URL and the network")]
#[case("not opened", 125, "its controller has not opened it")]
#[case("not declared", 125, "is a DistributedLock of this name declared")]
#[case("held", 119, "not granted within 1s")]
#[tokio::test]
async fn a_wait_ends_in_time_and_says_what_it_has_waited_for(#[case] is: &str, #[case] code: i32, #[case] says: &str) {
    let mut scene = Scene::new().await;
    let _held = scene.hold().await;
    match is {
        "silent" => scene.proxy.silence(true),
        "not there" => scene.declared.server.kill(),
        "not opened" => scene.declared.control.close().await.unwrap().unwrap(),
        _ => {}
    }
    let begun = Instant::now();
    let mut run = scene.run(if is == "not declared" { "--wait=1 --lock=other" } else { "--wait=1" }, "true");
    assert_eq!(run.code().await, Some(code), "{}", run.errors());
    assert!(begun.elapsed() < Duration::from_millis(2_500), "{:?}", begun.elapsed());
    assert!(run.errors().contains(says) && run.errors().lines().count() == 1, "{}", run.errors());
}
