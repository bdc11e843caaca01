//! `status`, `holders`, `waiters` and `completion`.

use std::process::Command;
use std::time::Duration;

use leasehold::lease::Wait;
use serde_json::Value;

use super::terminal::Terminal;
use crate::controller::fixture::{Fixture, request};
use crate::support::{LIMIT, wait_for};

/// As for kubectl itself.
#[tokio::test]
async fn the_cluster_and_the_namespace_are_those_that_flags_name() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let terminal = Terminal::with(&f.test, |config| {
        let (named, here) = (format!(r#""namespace": "{}""#, f.test.name()), r#""current-context": "test""#);
        assert!(config.contains(&named) && config.contains(here), "{config}");
        let elsewhere = r#"{"name": "elsewhere", "context": {"cluster": "none", "user": "none"}}"#;
        let contexts = config.replace(&named, r#""namespace": "default""#).replacen(
            r#""contexts": ["#,
            &format!(r#""contexts": [{elsewhere}, "#),
            1,
        );
        contexts.replace(here, r#""current-context": "elsewhere""#)
    });
    terminal.run("status a").await.fails("the cluster of context: none");
    terminal.run("status a --context test").await.fails("a");
    let (named, config) = (f.test.name(), terminal.kubeconfig.display().to_string());
    let shown = terminal.run(&format!("status a --context test -n {named}")).await.cells().remove(0);
    assert_eq!(shown[0], "a");
    let without = Terminal::over("{}");
    let shown =
        without.run(&format!("status a --kubeconfig {config} --context=test --namespace={named}")).await.cells();
    assert_eq!(shown[0][0], "a");
}

#[tokio::test]
async fn who_holds_and_who_waits_is_shown() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("first", "a", |_| {}).await;
    let token = f.token_of("first").await;
    f.claim("second", "a", |_| {}).await;
    f.has_its_place("second").await;
    f.claim("urgent", "a", |spec| spec.priority = 5).await;
    f.has_its_place("urgent").await;
    let direct = async || {
        let waits = request("direct", Wait::For(Duration::from_secs(60)));
        f.workload().acquire(&f.key("a"), &waits).await.expect("an answer");
    };
    direct().await;
    f.lock_is("a", "has three waiters", |lock| lock.status.as_ref().is_some_and(|status| status.waiters == 3)).await;
    let terminal = Terminal::new(&f.test);

    let status = terminal.run("status").await.cells().remove(0);
    let shown = [&status[..4], &status[5..7]].concat();
    assert_eq!(shown, ["a", "True", "claim/first", &token.to_string(), "3", "True"]);
    let wide = terminal.run("status a -o wide").await.cells().remove(0);
    assert_eq!(wide[8..11], ["1/1", "15s", &f.store_name()]);
    let all = terminal.run("status -A").await.good();
    assert!(all.lines().any(|line| line.starts_with(&format!("{} ", f.test.name()))), "{all}");
    assert_eq!(terminal.run("status -o name").await.good(), "distributedlock.leasehold.dev/a\n");
    let lock: Value = serde_json::from_str(&terminal.run("status a -o json").await.good()).unwrap();
    assert_eq!((&lock["kind"], &lock["status"]["fencingToken"]), (&"DistributedLock".into(), &token.into()));
    let list = terminal.run("status -o yaml").await.good();
    assert!(list.contains("kind: List") && !list.contains("managedFields"), "{list}");

    let holder = terminal.run("holders a").await.cells().remove(0);
    assert_eq!(holder[..4], ["claim/first", &token.to_string(), "1", "first"]);
    let holders: Value = serde_json::from_str(&terminal.run("holders a -o json").await.good()).unwrap();
    assert_eq!((&holders[0]["lock"], &holders[0]["fencingToken"]), (&"a".into(), &token.into()));

    let beside = async || {
        direct().await;
        let answer = terminal.run("waiters a").await;
        answer.err.contains("and 1 that wait for a by themselves").then_some(answer)
    };
    let waiters = wait_for("a process waits, too", LIMIT, beside).await.cells();
    let names: Vec<&str> = waiters.iter().map(|row| row[0].as_str()).collect();
    assert_eq!((names, waiters[1][5].as_str()), (vec!["urgent", "second"], "Waiting"));
    let names = terminal.run("waiters a -o name").await.good();
    assert_eq!(names, "lockclaim.leasehold.dev/urgent\nlockclaim.leasehold.dev/second\n");
    let waiters: Value = serde_json::from_str(&terminal.run("waiters a -o json").await.good()).unwrap();
    assert_eq!((&waiters[0]["claim"], &waiters[0]["priority"]), (&"urgent".into(), &5.into()));

    // Redis knows the process, too, and its place.
    let redis = format!("--from redis --redis-url redis://{} --key-prefix {}", f.redis.address(), f.test.name());
    direct().await;
    let queue = terminal.run(&format!("waiters a {redis}")).await.cells();
    let places: Vec<_> = queue.iter().map(|row| [row[0].as_str(), row[1].as_str()]).collect();
    assert_eq!(places, [["urgent", "-"], ["second", "-"], ["-", "process/test"]]);
    let held = terminal.run(&format!("holders a {redis} -o json")).await.good();
    for (words, says) in [
        ("holders a -o yaml", "identity: claim/first"),
        ("holders a -o wide", "claim/first"),
        ("holders a -o name", "first"),
        ("waiters a -o yaml", "claim: urgent"),
        ("waiters a -o wide", "urgent"),
    ] {
        let answer = terminal.run(words).await.good();
        assert!(answer.contains(says), "{words}: {answer}");
    }
    let held: Value = serde_json::from_str(&held).unwrap();
    assert_eq!((&held[0]["identity"], &held[0]["fencingToken"]), (&"claim/first".into(), &token.into()));

    let nowhere = terminal.run("waiters a --from redis").await;
    nowhere.fails("no Redis is named");
    let elsewhere = format!("--from redis --redis-url redis://{} --key-prefix other", f.redis.address());
    terminal.run(&format!("holders a {elsewhere}")).await.fails("has no record of a");
    let nobody = "holders a --from redis --redis-url redis://127.0.0.1:1 --key-prefix x";
    terminal.run(nobody).await.fails("a can't be read from Redis (Unreachable): check the URL and the network");
    let url = format!("redis://nobody:wrong@{}", f.redis.address());
    let stranger = format!("waiters a --from redis --redis-url {url} --key-prefix {}", f.test.name());
    terminal.run(&stranger).await.fails("(AuthenticationFailed): check the user name and the password");
    let all = terminal.run(&format!("holders {elsewhere}")).await;
    assert!(all.code == Some(1) && all.err.contains("has no record of a"), "{all:?}");

    // Of all locks of the namespace, and of all namespaces; what other tests have there is not ours.
    let ours = |rows: Vec<Vec<String>>| rows.into_iter().filter(|row| row[0] == f.test.name()).collect::<Vec<_>>();
    assert_eq!(terminal.run("holders").await.cells()[0][..2], ["a", "claim/first"]);
    assert_eq!(ours(terminal.run("holders -A").await.cells())[0][1..3], ["a", "claim/first"]);
    assert_eq!(terminal.run("waiters").await.cells()[1][..2], ["a", "second"]);
    assert_eq!(ours(terminal.run("waiters -A").await.cells())[1][1..3], ["a", "second"]);
}

#[tokio::test]
async fn a_lock_that_cant_be_used_says_why() {
    let f = Fixture::new().await;
    f.lock("a", |spec| spec.store_name = "no-such-store".into()).await;
    let terminal = Terminal::new(&f.test);
    let says = async || {
        let answer = terminal.run("status a").await;
        answer.err.contains("a is not Ready (StoreNotFound").then_some(answer)
    };
    let answer = wait_for("status says why", LIMIT, says).await;
    assert!(answer.good().contains("StoreNotFound"));
    assert!(terminal.run("holders a").await.err.contains("nobody holds a"));
    assert!(terminal.run("waiters a").await.err.contains("nobody waits for a"));
    assert!(terminal.run("holders").await.err.contains("nobody holds any lock of the namespace"));
    assert!(terminal.run("waiters").await.err.contains("nobody waits for any lock of the namespace"));
    let both = terminal.run("holders a -A").await;
    assert!(both.err.contains("cannot be used with"), "{}", both.err);
}

#[tokio::test]
async fn kubectl_finds_the_plugin_and_shells_complete_it() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let terminal = Terminal::new(&f.test);
    let (kubectl, leasehold) = (f.test.plane().kubectl_command(), env!("CARGO_BIN_EXE_leasehold"));
    let sourced = format!(
        "{kubectl} leasehold status -o name; {leasehold} kubectl status a -o name; {kubectl} __complete leasehold rel;
         source <(kubectl-leasehold completion bash); complete -p kubectl-leasehold"
    );
    let mut bash = Command::new("timeout");
    bash.args(["60", "bash", "-euo", "pipefail", "-c", &sourced]);
    bash.env("PATH", terminal.path()).env("KUBECONFIG", &terminal.kubeconfig);
    let output = bash.output().expect("bash runs");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..2], ["distributedlock.leasehold.dev/a"; 2]);
    assert!(lines[2].starts_with("release\t") && lines[3] == ":4", "{out}");
    assert!(lines[4].ends_with("kubectl-leasehold"), "{out}");
}
