//! The demo, on a control plane, tells the truth, and leaves nothing behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{LIMIT, Process, Scratch, wait_for};

const STORY: Duration = Duration::from_secs(180);

fn demo() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_leasehold")).parent().expect("a folder");
    folder.join("examples/demo")
}

fn start(scratch: &Scratch, keep: bool) -> Process {
    let (output, errors) = (scratch.append("output"), scratch.append("output"));
    Process::start(&demo().display().to_string(), &[], |command| {
        command.env("KEEP", if keep { "1" } else { "0" }).stdout(output).stderr(errors);
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
    })
}

fn output(scratch: &Scratch) -> String {
    std::fs::read_to_string(scratch.path().join("output")).unwrap_or_default()
}

/// Command lines of processes, and folders, that belong to the demo with this process id.
fn left_behind(pid: u32) -> Vec<String> {
    let marks = ["cluster", "redis", "controller", "manifest"].map(|what| format!("leasehold-{what}-{pid}-"));
    let marked = |text: &String| marks.iter().any(|mark| text.contains(mark));
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    let folders = std::fs::read_dir(std::env::temp_dir()).expect("the temporary folder").flatten();
    let folders = folders.map(|entry| entry.path().display().to_string());
    lines.chain(folders).filter(marked).collect()
}

async fn nothing_is_left(pid: u32) {
    let nothing = async || left_behind(pid).is_empty().then_some(());
    if crate::support::eventually(LIMIT, nothing).await.is_none() {
        panic!("left behind: {:#?}", left_behind(pid));
    }
}

/// Name → holder and token, of the last table of locks in the output.
fn told(output: &str) -> BTreeMap<String, (Option<String>, i64)> {
    let last = output.rsplit("$ kubectl get dlock,lclaim\n").next().expect("a table");
    let rows = last.lines().filter_map(|line| line.strip_prefix("distributedlock.leasehold.dev/"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split_whitespace().collect();
        let holder = (cells[1] == "True").then(|| cells[2].to_owned());
        let token = cells[if holder.is_some() { 3 } else { 2 }].parse().expect("a token");
        (cells[0].to_owned(), (holder, token))
    })
    .collect()
}

fn true_of(objects: &Value) -> BTreeMap<String, (Option<String>, i64)> {
    let items = objects["items"].as_array().expect("a list");
    let row = |item: &Value| {
        let status = &item["status"];
        let holder = status["holder"].as_str().map(ToOwned::to_owned);
        let name = item["metadata"]["name"].as_str().expect("a name").to_owned();
        (name, (holder, status["fencingToken"].as_i64().expect("a token")))
    };
    items.iter().map(row).collect()
}

#[tokio::test]
async fn what_the_demo_tells_is_what_the_objects_say_and_ctrl_c_leaves_nothing() {
    let scratch = Scratch::new("demo");
    let mut process = start(&scratch, true);
    let pid = process.pid();
    let told_all = async || {
        assert!(process.exit_status().is_none(), "the demo has ended:\n{}", output(&scratch));
        let text = output(&scratch);
        text.contains("get leasehold\n").then_some(text)
    };
    let text = wait_for("the demo has told its story", STORY, told_all).await;
    let command = text.lines().last().and_then(|line| line.strip_prefix("# ")).expect("a command");
    let config = text.lines().find_map(|line| line.strip_prefix("# export KUBECONFIG=")).expect("a kubeconfig");
    let mut words: Vec<&str> = command.trim_end_matches(" get leasehold").split(' ').collect();
    words.extend(["get", "dlock", "-o", "json"]);
    let asked = Command::new(words[0]).args(&words[1..]).env("KUBECONFIG", config).output().expect("kubectl runs");
    let objects: Value = serde_json::from_slice(&asked.stdout).expect("JSON");
    assert_eq!(told(&text), true_of(&objects), "{text}");
    assert_eq!(told(&text).len(), 4);
    process.interrupt();
    wait_for("the demo has ended", LIMIT, async || process.exit_status()).await;
    nothing_is_left(pid).await;
}

#[tokio::test]
async fn the_demo_ends_by_itself_and_one_that_is_interrupted_leaves_nothing() {
    let scratch = Scratch::new("demo");
    let mut process = start(&scratch, false);
    let pid = process.pid();
    let ended = wait_for("the demo has ended", STORY, async || process.exit_status()).await;
    assert!(ended.success(), "{}", output(&scratch));
    nothing_is_left(pid).await;

    let scratch = Scratch::new("demo");
    let mut process = start(&scratch, false);
    let begun = async || output(&scratch).contains("get lockstore").then_some(());
    wait_for("the demo has begun", STORY, begun).await;
    process.interrupt();
    let ended = wait_for("the demo has ended", LIMIT, async || process.exit_status()).await;
    assert!(!ended.success());
    nothing_is_left(process.pid()).await;
}
