//! How Redis and the namespace are named: flags, variables, and what is mounted.

use std::process::Command;

use leasehold::lease::Epoch;

use super::fixture::{Run, SOON, Scene};
use crate::support::{Certificates, Scratch, wait_for};

#[tokio::test]
async fn a_mounted_secret_names_all() {
    let scene = Scene::new().await;
    scene.declared.server.send::<()>("ACL SETUSER shop on >secret ~* &* +@all").await;
    let folder = Scratch::new("connection");
    folder.write("url", &format!("redis://{}\n", scene.proxy.address()));
    folder.write("username", "shop");
    folder.write("password", "secret");
    let mut run = Run::start_with(&format!("--connection={}", folder.path().display()), "", &["true"]);
    assert_eq!(run.code().await, Some(0), "{}", run.errors());

    folder.write("password", "wrong");
    let mut run = Run::start_with(&format!("--connection={}", folder.path().display()), "", &["true"]);
    assert_eq!(run.code().await, Some(125));
    let said = "the store refuses (AuthenticationFailed): check the user name and the password";
    assert!(run.errors().contains(said) && run.errors().lines().count() == 1, "{}", run.errors());
}

/// What `run` does with variables alone: its exit code, and what it says.
fn with_variables(variables: &[(&str, &str)], before: &str) -> (Option<i32>, String) {
    let run =
        format!("{before} exec {} run --lock=report --cgroup=/proc/none -- true", env!("CARGO_BIN_EXE_leasehold"));
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &run]).envs(variables.iter().copied());
    let output = command.output().expect("unshare runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn variables_name_all() {
    let scene = Scene::new().await;
    scene.declared.server.send::<()>("ACL SETUSER shop on >secret ~* &* +@all").await;
    let folder = Scratch::new("connection");
    let (url, password) = (format!("redis://{}", scene.proxy.address()), folder.write("password", "secret"));
    let password = password.display().to_string();
    let user = ("LEASEHOLD_REDIS_USERNAME", "shop");
    let named =
        [("LEASEHOLD_REDIS_URL", url.as_str()), ("LEASEHOLD_KEY_PREFIX", "test"), ("LEASEHOLD_NAMESPACE", "shop")];
    let logins = [
        vec![],
        vec![user, ("LEASEHOLD_REDIS_PASSWORD", "secret")],
        vec![user, ("LEASEHOLD_REDIS_PASSWORD_FILE", password.as_str())],
    ];
    for login in logins {
        let (code, said) = with_variables(&[&named[..], &login].concat(), "");
        assert_eq!(code, Some(0), "{login:?}: {said}");
    }
    let (code, said) = with_variables(&[&named[..], &[user, ("LEASEHOLD_REDIS_PASSWORD", "wrong")]].concat(), "");
    assert!(code == Some(125) && said.contains("check the user name and the password"), "{said}");
    folder.write("url", &url);
    let folder = folder.path().display().to_string();
    let (code, said) = with_variables(&[&[("LEASEHOLD_CONNECTION", folder.as_str()), user], &named[1..]].concat(), "");
    assert_eq!(code, Some(0), "{said}");
}

/// As in a pod, whose service account's namespace is mounted.
#[tokio::test]
async fn the_namespace_is_that_of_the_service_account() {
    let scene = Scene::new().await;
    let url = format!("redis://{}", scene.proxy.address());
    let named = [("LEASEHOLD_REDIS_URL", url.as_str()), ("LEASEHOLD_KEY_PREFIX", "test")];
    let mounted = |namespace: &str| {
        let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
        format!("mount -t tmpfs none /run && mkdir -p {folder} && printf {namespace} > {folder}/namespace &&")
    };
    let (code, said) = with_variables(&named, &mounted("shop"));
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = with_variables(&named, &mounted("elsewhere"));
    assert!(code == Some(125) && said.contains("the store knows no such lock"), "{said}");
}

/// A connection that is there goes on; a new one needs the new password.
#[tokio::test]
async fn a_password_that_is_rotated_is_read_again() {
    let scene = Scene::with_lease(std::time::Duration::from_secs(3)).await;
    scene.declared.server.send::<()>("ACL SETUSER shop on >old ~* &* +@all").await;
    let folder = Scratch::new("connection");
    folder.write("url", &format!("redis://{}\n", scene.proxy.address()));
    folder.write("username", "shop");
    folder.write("password", "old");
    let connection = format!("--connection={}", folder.path().display());
    let mut run = Run::start_with(&connection, "", &["sh", "-c", "echo $$ > $T/command; sleep 4; echo done > $T/done"]);
    run.pid("command").await;
    folder.write("password", "new");
    scene.declared.server.send::<()>("ACL SETUSER shop resetpass >new").await;
    scene.proxy.cut();
    assert_eq!(run.code().await, Some(0), "{}", run.errors());
    assert_eq!(run.says("done").await, "done");
}

#[tokio::test]
async fn what_is_missing_or_wrong_is_said_in_one_line() {
    let scene = Scene::new().await;
    let url = format!("--redis-url=redis://{}", scene.proxy.address());
    let cases = [
        ("", "no Redis is named: give --redis-url"),
        ("--redis-url=http://redis", "the URL of Redis: write redis://HOST:PORT"),
        ("--redis-url=redis://127.0.0.1:1 --redis-ca-file=/etc/hostname", "the URL is not rediss://"),
        ("--redis-url=redis://127.0.0.1:1 --redis-password-file=/none", "/none: No such file"),
    ];
    for (connection, said) in cases {
        let mut run = Run::start_with(connection, "", &["true"]);
        assert_eq!(run.code().await, Some(125), "{connection}");
        assert!(run.errors().contains(said) && run.errors().lines().count() == 1, "{}", run.errors());
    }
    scene.declared.server.send::<()>("FUNCTION FLUSH").await;
    let mut run = Run::start_with(&url, "", &["true"]);
    assert_eq!(run.code().await, Some(125), "{}", run.errors());
    let said = "its function library is not loaded";
    assert!(run.errors().contains(said) && run.errors().lines().count() == 1, "{}", run.errors());
}

#[tokio::test]
async fn a_store_that_its_controller_has_not_opened_is_said_or_waited_for() {
    let scene = Scene::new().await;
    scene.declared.control.close().await.unwrap().unwrap();
    let mut run = scene.run("-n", "true");
    assert_eq!(run.code().await, Some(125), "{}", run.errors());
    assert!(run.errors().contains("its controller has not opened it"), "{}", run.errors());
    assert_eq!(run.errors().lines().count(), 1, "{}", run.errors());
    let mut run = scene.run("--verbose", "true");
    let waits = async || run.errors().contains("waiting: the store grants nothing yet").then_some(());
    wait_for("it says what it waits for", SOON, waits).await;
    scene.declared.open(Epoch::new(2).unwrap()).await;
    assert_eq!(run.code().await, Some(0), "{}", run.errors());
}

#[tokio::test]
async fn a_redis_with_tls_is_believed_by_its_authority_alone() {
    let (certificates, others) = (Certificates::new(), Certificates::new());
    let (_redis, port) = certificates.server(&["--tls-auth-clients", "no"]).await;
    let folder = Scratch::new("connection");
    folder.write("url", &format!("rediss://localhost:{port}"));
    for (authority, code, said) in
        [(&certificates, 125, "its function library is not loaded"), (&others, 121, "the store can't be reached")]
    {
        let file = folder.write("ca.crt", &authority.read("ca.crt")).display().to_string();
        let url = format!("rediss://localhost:{port}");
        let variables = [
            ("LEASEHOLD_REDIS_URL", url.as_str()),
            ("LEASEHOLD_REDIS_CA_FILE", &file),
            ("LEASEHOLD_NAMESPACE", "shop"),
        ];
        let (by_variables, _) = with_variables(&variables, "");
        assert_eq!(by_variables, Some(code));
        let mut run = Run::start_with(&format!("--connection={}", folder.path().display()), "", &["true"]);
        assert_eq!(run.code().await, Some(code), "{}", run.errors());
        assert!(run.errors().contains(said) && run.errors().lines().count() == 1, "{}", run.errors());
    }
}
