//! What a user meets before anything works: each is one line that says what to do.

use super::terminal::Terminal;
use crate::support::{ControlPlane, TestNamespace, free_port};

const COMMANDS: [&str; 6] =
    ["status a", "holders a", "waiters a", "acquire a", "release a", "force-release a --reason x"];

#[tokio::test]
async fn a_cluster_that_doesnt_answer() {
    let test = TestNamespace::new().await;
    let server = format!("https://127.0.0.1:{}\"", free_port());
    let terminal = Terminal::with(&test, |config| {
        let (head, rest) = config.split_once(r#""server": ""#).expect("a server");
        let (_, tail) = rest.split_once('"').expect("its end");
        format!(r#"{head}"server": "{server}{tail}"#)
    });
    for command in COMMANDS.iter().chain(&["doctor", "status"]) {
        terminal.run(command).await.fails("can't be reached");
    }
    terminal.run("status --context none").await.fails("look at --kubeconfig");
    terminal.run("status --kubeconfig /no/such/file").await.fails("cannot read /no/such/file");
}

#[tokio::test]
async fn kinds_that_are_not_installed() {
    let plane = ControlPlane::start().await;
    let terminal = Terminal::over(&std::fs::read_to_string(plane.kubeconfig("admin")).expect("a kubeconfig"));
    for command in COMMANDS {
        terminal.run(command).await.fails("leasehold crd | kubectl apply");
    }
    let doctor = terminal.run("doctor").await;
    assert_eq!(doctor.code, Some(1), "{doctor:?}");
    assert_eq!(
        doctor.out.lines().filter(|line| line.starts_with("WRONG") && line.contains("leasehold crd")).count(),
        3
    );
}

#[tokio::test]
async fn a_lock_that_is_missing_and_one_that_is_meant() {
    let test = TestNamespace::new().await;
    let terminal = Terminal::new(&test);
    terminal.run("status nightly").await.fails("there is none at all");
    assert!(terminal.run("status").await.err.contains("no locks in the namespace"));
    let lock = "{apiVersion: leasehold.dev/v1alpha1, kind: DistributedLock, metadata: {name: nightly-report}}";
    test.kubectl_apply(lock).await.expect("a lock");
    for command in
        ["status nightly-reprot", "holders nightly", "acquire nightly-repor", "force-release night --reason x"]
    {
        terminal.run(command).await.fails("did you mean nightly-report?");
    }
    terminal.run("release mine").await.fails("there is no LockClaim mine");
    let usage = terminal.run("acquire nightly-report --permits 2 --shared").await;
    assert_eq!(usage.code, Some(2), "{usage:?}");
}

#[tokio::test]
async fn an_account_without_rights() {
    let test = TestNamespace::new().await;
    let token = test.kubectl("create token default").await.expect("a token");
    let terminal = Terminal::with(&test, |config| config.replace("admin-token", token.trim()));
    for command in COMMANDS {
        let verb =
            if command == "release a" { "cannot get resource \"lockclaims\"" } else { "cannot get resource \"dist" };
        terminal.run(command).await.fails(verb);
    }
    terminal.run("status").await.fails("cannot list resource \"distributedlocks\"");
    let doctor = terminal.run("doctor").await;
    assert_eq!(doctor.code, Some(1), "{doctor:?}");
    assert!(doctor.out.contains("WRONG  you may not list distributedlocks"), "{doctor:?}");
    assert!(doctor.out.contains("NOTE   you may not forcerelease distributedlocks"), "{doctor:?}");
    let wrong = Terminal::with(&test, |config| config.replace("admin-token", "wrong"));
    wrong.run("status").await.fails("log in again");
}
