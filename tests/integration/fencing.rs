//! The fence kit in `docs/fencing`: a stale writer is refused, by a real database, a real Redis, a real service and a real API
//! server.

use std::path::PathBuf;
use std::process::Command;

use crate::support::{LIMIT, Process, RedisServer, Scratch, TestNamespace, free_port, wait_for};

fn kit(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/fencing").join(file)
}

/// Two writers of one counter, each in a transaction of its own: the older one comes last.
const DATABASE: &str = r#"
import pathlib, sqlite3, sys, threading, time
create, fence = [part.split("\n", 1)[1] for part in pathlib.Path(sys.argv[1]).read_text().split("\n\n")]
def write(token, value):
    connection = sqlite3.connect(sys.argv[2], isolation_level=None)
    connection.execute(create)
    connection.execute("CREATE TABLE IF NOT EXISTS counter (value INTEGER)")
    connection.execute("BEGIN IMMEDIATE")
    row = connection.execute(fence, {"resource": "counter", "token": token}).fetchone()
    if row is None:
        connection.execute("ROLLBACK")
        return "refused"
    connection.execute("DELETE FROM counter")
    connection.execute("INSERT INTO counter VALUES (?)", (value,))
    connection.execute("COMMIT")
    return "written"
newest = 203456895778818
def write_at_once(first, second):
    # The second asks while the first has written and not committed.
    older = sqlite3.connect(sys.argv[2], isolation_level=None)
    older.execute("BEGIN IMMEDIATE")
    older.execute(fence, {"resource": "counter", "token": first}).fetchone()
    answers = []
    waits = threading.Thread(target=lambda: answers.append(write(second, second)))
    waits.start()
    time.sleep(0.3)
    assert not answers, "it waits for the row"
    older.execute("COMMIT")
    waits.join()
    return answers[0]
answers = [write(7, 1), write(newest, 2), write(newest, 3), write(7, 4), write(newest - 1, 5)]
value = sqlite3.connect(sys.argv[2]).execute("SELECT value FROM counter").fetchone()[0]
print(*answers, value, write_at_once(newest + 1, newest + 2), write_at_once(newest + 4, newest + 3))
"#;

#[test]
fn a_database_refuses_an_old_token() {
    let folder = Scratch::new("fence");
    let mut python = Command::new("python3");
    python.arg("-c").arg(DATABASE).arg(kit("fence.sql")).arg(folder.path().join("db"));
    let output = python.output().expect("python3 runs");
    let (answers, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let expected = "written written written refused refused 3 written refused";
    assert_eq!(answers.trim(), expected, "{errors}");
}

#[tokio::test]
async fn redis_refuses_an_old_token() {
    let redis = RedisServer::start().await;
    let script = std::fs::read_to_string(kit("fence.lua")).expect("the script");
    let client = redis::Client::open(format!("redis://{}", redis.address())).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let mut write = async |token: i64, value: &str| {
        let mut call = redis::cmd("EVAL");
        call.arg(&script).arg(2).arg("{cart}").arg("{cart}:fence").arg(token).arg(value);
        call.query_async::<String>(&mut connection).await
    };
    let newest = 203_456_895_778_818;
    write(7, "a").await.expect("the first");
    write(newest, "b").await.expect("a newer one");
    write(newest, "c").await.expect("the same again");
    for stale in [7, newest - 1] {
        let refusal = write(stale, "d").await.expect_err("it is old").to_string();
        assert!(refusal.contains("FENCED"), "{refusal}");
    }
    assert_eq!(redis.send::<String>("GET {cart}").await, "c");
}

#[tokio::test]
async fn a_service_refuses_an_old_token_also_after_a_restart() {
    let (folder, port) = (Scratch::new("fence"), free_port());
    let args =
        [kit("service.py").display().to_string(), port.to_string(), folder.path().join("db").display().to_string()];
    let start = || Process::start("python3", &args, |_| {});
    let put = async |token: Option<i64>, value: &str| {
        let header = token.map(|token| format!("Fencing-Token: {token}\r\n")).unwrap_or_default();
        let request =
            format!("PUT /prices HTTP/1.0\r\nHost: x\r\n{header}Content-Length: {}\r\n\r\n{value}", value.len());
        wait_for("it answers", LIMIT, async || exchange(port, &request).await).await
    };
    let mut service = start();
    assert!(put(None, "x").await.contains(" 400 "));
    assert!(put(Some(7), "a").await.contains(" 200 "));
    assert!(put(Some(9), "b").await.contains(" 200 "));
    assert!(put(Some(7), "c").await.contains(" 409 "));
    service.stop(LIMIT);
    let _service = start();
    assert!(put(Some(8), "d").await.contains(" 409 "), "it remembers");
    let get = "GET /prices HTTP/1.0\r\nHost: x\r\n\r\n";
    assert!(exchange(port, get).await.expect("an answer").ends_with("\r\n\r\nb"));
}

async fn exchange(port: u16, request: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer).filter(|answer| !answer.is_empty())
}

/// Applies the policy under a name of this test and bound to its namespace, and waits until it is in force.
pub(crate) async fn apply_fence(test: &TestNamespace) {
    let policy = std::fs::read_to_string(kit("policy.yaml")).expect("the policy");
    let here = format!("namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {}}}}}", test.name());
    let policy =
        policy.replace("namespaceSelector: {}", &here).replace("fenced-configmaps", &format!("fenced-{}", test.name()));
    test.kubectl_apply(&policy).await.expect("the policy is accepted");
    let folder = Scratch::new("fence");
    let probe = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: probe, labels: {example.com/fenced: \"\"}}\n";
    let ask = format!("create --dry-run=server -f {}", folder.write("probe.yaml", probe).display());
    let refused = async || test.kubectl(&ask).await.err().filter(|error| error.contains("is missing"));
    wait_for("the policy is in force", LIMIT, refused).await;
}

#[tokio::test]
async fn the_api_server_refuses_an_old_token() {
    let test = TestNamespace::new().await;
    apply_fence(&test).await;
    let write = async |token: Option<i64>, value: i32| {
        let annotation = token.map(|token| format!("annotations: {{example.com/fencing-token: \"{token}\"}}, "));
        let object = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{{}name: state, labels: {{example.com/fenced: \"\"}}}}\ndata: {{value: \"{value}\"}}\n",
            annotation.unwrap_or_default()
        );
        test.kubectl_apply(&object).await
    };
    let refusal = write(None, 0).await.expect_err("it has no token");
    assert!(refusal.contains("is missing"), "{refusal}");
    let newest = 203_456_895_778_818;
    for (token, value) in [(7, 1), (newest, 2), (newest, 3)] {
        write(Some(token), value).await.expect("it isn't old");
    }
    for stale in [7, newest - 1] {
        let refusal = write(Some(stale), 9).await.expect_err("it is old");
        assert!(refusal.contains("is older than"), "{refusal}");
    }
    // What docs/fencing.md says of it: who doesn't send its token is taken for the newest.
    test.kubectl("label configmap state touched=yes").await.expect("the token of the last write stands there");
    let unlabel = test.kubectl("label configmap state example.com/fenced-").await.expect_err("the label stays");
    assert!(unlabel.contains("stays"), "{unlabel}");
    assert_eq!(test.kubectl("get configmap state -o jsonpath={.data.value}").await.expect("it"), "3");
}
