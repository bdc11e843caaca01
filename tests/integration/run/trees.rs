//! Nothing of what the command has started is left when the lock is free: by the guardian alone, and by a control group.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rstest::rstest;
use rustix::process::Signal;

use super::fixture::{Deaths, Run, SOON, Scene, Watched, children};
use crate::support::{Scratch, eventually};

/// A child, one in a session of its own, and one that was forked twice; all of them ignore what asks them to end.
const TREE: &str = r#"
    trap '' TERM HUP INT
    sleep 600 & echo $! > $T/child
    setsid sh -c 'echo $$ > $T/session; exec sleep 601' &
    (setsid sh -c '(sh -c "echo \$\$ > $T/orphan; exec sleep 602" &)' &)
    while ! [ -s $T/session ] || ! [ -s $T/orphan ]; do sleep 0.02; done
    echo $$ > $T/command
    $END"#;

async fn tree(run: &Run) -> Vec<Watched> {
    let mut all = Vec::new();
    for name in ["child", "session", "orphan", "command"] {
        all.push(run.pid(name).await);
    }
    all
}

fn script(end: &str) -> String {
    TREE.replace("$END", end)
}

/// A control group of the test's own, if it may mount one.
struct Cgroup {
    mount: PathBuf,
    /// All mounts show one hierarchy.
    folder: PathBuf,
    _scratch: Scratch,
}

impl Cgroup {
    fn mount() -> Option<Self> {
        let scratch = Scratch::new("cgroup");
        let mount = scratch.path().join("mounted");
        std::fs::create_dir(&mount).unwrap();
        let mounted = std::process::Command::new("mount").args(["-t", "cgroup2", "none"]).arg(&mount).status();
        let folder = mount.join(scratch.path().file_name().unwrap());
        let made = mounted.is_ok_and(|status| status.success()) && std::fs::create_dir(&folder).is_ok();
        made.then_some(Self { mount, folder, _scratch: scratch })
    }

    fn all_leaves(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).unwrap().flatten();
        let leaves = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("leasehold-"));
        leaves.map(|entry| entry.path()).collect()
    }

    fn leaves(&self) -> usize {
        self.all_leaves().len()
    }

    fn leaf(&self) -> PathBuf {
        self.all_leaves().pop().expect("the leaf of a command that runs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.folder).ok();
        std::process::Command::new("umount").arg("--lazy").arg(&self.mount).status().ok();
    }
}

/// Both ways where both can be tried; `None` is the guardian's.
fn ways() -> Vec<Option<Cgroup>> {
    let mut ways = vec![None];
    match Cgroup::mount() {
        Some(cgroup) => ways.push(Some(cgroup)),
        None => eprintln!("no control group may be mounted here: that way is not tried"),
    }
    ways
}

fn run(scene: &Scene, way: Option<&Cgroup>, script: &str) -> Run {
    let flags = way.map(|cgroup| format!("--cgroup={}", cgroup.folder.display())).unwrap_or_default();
    match way {
        Some(_) => Run::start(&scene.proxy.address(), &format!("--grace=0.2 {flags}"), &["sh", "-c", script]),
        None => scene.run("--grace=0.2", script),
    }
}

#[tokio::test]
async fn what_a_command_leaves_behind_ends_before_the_lock_is_free() {
    for way in ways() {
        let scene = Scene::new().await;
        let mut run = run(&scene, way.as_ref(), &script("exit 3"));
        let all = tree(&run).await;
        let deaths = Deaths::of(&all);
        let next = scene.next(SOON).await;
        let gap = deaths.all_before(Instant::now(), all.len());
        println!("the last of the tree ended {gap} ms before token {}", next.token());
        assert_eq!(run.code().await, Some(3), "{}", run.errors());
        assert_eq!(way.map(|cgroup| cgroup.leaves()).unwrap_or_default(), 0, "the leaf is removed");
    }
}

#[tokio::test]
async fn the_control_group_is_the_command_s_own() {
    let Some(cgroup) = Cgroup::mount() else { return };
    let scene = Scene::new().await;
    let mut run = run(&scene, Some(&cgroup), "cat /proc/self/cgroup > $T/groups; sleep 600");
    let groups = run.says("groups").await;
    assert!(groups.lines().any(|line| line.starts_with("0::") && line.contains("/leasehold-")), "{groups}");
    assert_eq!(cgroup.leaves(), 1);
    run.process.terminate();
    assert_eq!(run.code().await, Some(143));
}

/// One that is no child of anybody here: only `cgroup.kill` reaches it.
#[tokio::test]
async fn what_is_in_the_control_group_is_killed_with_it() {
    let Some(cgroup) = Cgroup::mount() else { return };
    let scene = Scene::new().await;
    let mut run = run(&scene, Some(&cgroup), "trap '' TERM; echo $$ > $T/command; exec sleep 600");
    run.pid("command").await;
    let mut stranger = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(cgroup.leaf().join("cgroup.procs"), stranger.id().to_string()).unwrap();
    run.process.kill();
    let ended = eventually(SOON, async || stranger.try_wait().unwrap()).await;
    if ended.is_none() {
        stranger.kill().unwrap();
    }
    assert_eq!(ended.and_then(|status| status.signal()), Some(Signal::KILL.as_raw()));
}

/// As in a container with a control group of its own.
#[tokio::test]
async fn without_a_word_the_control_group_is_made_below_its_own() {
    let Some(cgroup) = Cgroup::mount() else { return };
    let scene = Scene::new().await;
    scene.declare("outer").await;
    let script = format!(
        "echo 0 > {}/cgroup.procs && exec unshare --mount {} run --redis-url=redis://{} --namespace=shop --key-prefix=test \
         --lock=report -- sh -c 'cat /proc/self/cgroup > $T/groups; exec sleep 600'",
        cgroup.folder.display(),
        env!("CARGO_BIN_EXE_leasehold"),
        scene.proxy.address()
    );
    let mut run = scene.run("--lock=outer", &script);
    let groups = run.says("groups").await;
    let name = cgroup.leaf().file_name().unwrap().to_string_lossy().into_owned();
    assert!(groups.lines().any(|line| line.starts_with("0::") && line.ends_with(&name)), "{groups}");
    run.process.terminate();
    assert_eq!(run.code().await, Some(143));
    assert_eq!(cgroup.leaves(), 0);
}

/// A group that takes no processes, as one that is only partly delegated: the guardian does without.
#[tokio::test]
async fn a_control_group_that_can_t_be_entered_keeps_no_command_from_running() {
    let Some(cgroup) = Cgroup::mount() else { return };
    std::fs::write(cgroup.folder.join("cgroup.type"), "threaded").expect("below it no group takes whole processes");
    let scene = Scene::new().await;
    let mut run = run(&scene, Some(&cgroup), &script("exit 3"));
    let all = tree(&run).await;
    let deaths = Deaths::of(&all);
    assert_eq!(run.code().await, Some(3), "{}", run.errors());
    deaths.all_before(Instant::now(), all.len());
    assert_eq!(cgroup.leaves(), 0);
}

/// The lock isn't released by anyone: it is free at the end of its lease.
#[rstest]
#[case::the_wrapper(true)]
#[case::the_guardian(false)]
#[tokio::test]
async fn nothing_lives_on_where_one_of_the_two_is_killed(#[case] wrapper: bool) {
    for way in ways() {
        let scene = Scene::with_lease(Duration::from_secs(3)).await;
        let mut run = run(&scene, way.as_ref(), &script("sleep 603"));
        let all = tree(&run).await;
        let deaths = Deaths::of(&all);
        if wrapper {
            run.process.kill();
        } else {
            run.guardian().await.signal(Signal::KILL);
        }
        let next = scene.next(SOON).await;
        let gap = deaths.all_before(Instant::now(), all.len());
        println!("the last of the tree ended {gap} ms before token {}", next.token());
        if !wrapper {
            assert_eq!(run.code().await, Some(137), "{}", run.errors());
        }
    }
}

#[rstest]
#[case::while_its_command_runs(false)]
#[case::while_it_waits(true)]
#[tokio::test]
async fn as_the_first_process_of_a_container_it_reaps_what_others_leave(#[case] waits: bool) {
    let scene = Scene::new().await;
    let held = if waits { Some(scene.hold().await) } else { None };
    let binary = env!("CARGO_BIN_EXE_leasehold");
    // An orphan of a process that is not below the guardian: as of `kubectl exec`.
    let script = format!(
        "exec unshare --pid --fork --mount-proc --kill-child {binary} run --redis-url=redis://{} --namespace=shop \
         --key-prefix=test --lock=report --cgroup=/proc/none -- sh -c 'echo ready > $T/ready; read -r _ < $T/none; sleep 600'",
        scene.proxy.address()
    );
    scene.declare("outer").await;
    let run = scene.run("--lock=outer", &script);
    if waits {
        scene.is_queued().await;
    } else {
        run.says("ready").await;
    }
    let init = first_process(&run).await;
    let enter = format!("nsenter --target {init} --pid --mount sh -c '(sleep 0.2 &)'");
    assert!(std::process::Command::new("sh").args(["-c", &enter]).status().unwrap().success());
    let zombies = || {
        let listed =
            std::process::Command::new("ps").args(["--ppid", &init.to_string(), "-o", "stat="]).output().unwrap();
        String::from_utf8(listed.stdout).unwrap().lines().filter(|stat| stat.starts_with('Z')).count()
    };
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(zombies(), 0);
    drop(held);
}

/// The process in the container whose parent is `unshare`.
async fn first_process(run: &Run) -> u32 {
    let guardian = run.guardian().await;
    children(children(guardian.0)[0])[0]
}
