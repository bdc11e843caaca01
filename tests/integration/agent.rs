//! `leasehold agent`: the real binary, asked over HTTP as an app asks it.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use leasehold::clock::boottime;
use leasehold::lease::{Epoch, Released};
use rstest::rstest;
use serde_json::Value;

use crate::protocol::server::PREFIX;
use crate::run::fixture::{SOON, Scene, Watched};
use crate::support::{Process, Scratch, ask, eventually, free_port};

const LEASE: Duration = Duration::from_secs(3);

pub(crate) struct Agent {
    process: Process,
    pub(crate) address: String,
    scratch: Scratch,
}

impl Agent {
    pub(crate) fn start(scene: &Scene, name: &str, flags: &str) -> Self {
        let flags = format!("--redis-url=redis://{} --lock=report {flags}", scene.proxy.address());
        Self::start_with(name, &flags, &[])
    }

    /// One that is told by flags and variables where its Redis is, and which lock is meant.
    fn start_with(name: &str, flags: &str, variables: &[(&str, &str)]) -> Self {
        let (scratch, port) = (Scratch::new("agent"), free_port());
        let address = format!("127.0.0.1:{port}");
        let own = format!(
            "agent --namespace=shop --key-prefix={PREFIX} --pod-name={name} --pod-uid=uid-{name} --listen={address} {flags}"
        );
        let args: Vec<String> = own.split_whitespace().map(str::to_owned).collect();
        let process = Process::start(env!("CARGO_BIN_EXE_leasehold"), &args, |start| {
            start.stderr(scratch.append("err")).envs(variables.iter().copied());
        });
        Self { process, address, scratch }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("err")).unwrap_or_default()
    }

    async fn get(&self, path: &str) -> Option<(u16, String)> {
        ask("GET", &self.address, path).await
    }

    pub(crate) async fn hold(&self) -> Option<Value> {
        let (_, body) = self.get("/v1/hold").await?;
        serde_json::from_str(&body).ok()
    }

    async fn is_held(&self) -> bool {
        self.hold().await.is_some_and(|hold| hold["held"] == true)
    }

    /// Waits until it holds, or not.
    async fn holds(&self, held: bool) {
        let so = eventually(SOON, async || (self.is_held().await == held).then_some(())).await;
        assert!(so.is_some(), "held: {}; {}", !held, self.said());
    }

    async fn name(&self) -> String {
        let (_, body) = self.get("/").await.expect("an answer");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        body["name"].as_str().expect("a name").to_owned()
    }

    async fn code(&mut self) -> Option<i32> {
        eventually(SOON, async || self.process.exit_status()).await.expect("it ends").code()
    }

    fn probe(&self, path: &str) -> bool {
        let probe = ["probe", path, "--address", &self.address];
        std::process::Command::new(env!("CARGO_BIN_EXE_leasehold")).args(probe).status().expect("it runs").success()
    }

    /// The names of its events from now on, up to the first of this name.
    fn told(&self, end: &'static str) -> std::thread::JoinHandle<String> {
        let address = self.address.clone();
        let (listens, heard) = std::sync::mpsc::channel();
        let told = std::thread::spawn(move || {
            let named = |found: &[(String, String)]| {
                let _ = listens.send(());
                found.last().is_some_and(|(_, name)| name == end)
            };
            let events = events_of(&address, None, named);
            events.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(" ")
        });
        heard.recv_timeout(SOON).expect("its first event");
        told
    }

    /// So many of its events: id and name.
    fn events(&self, count: usize, last: Option<&str>) -> Vec<(String, String)> {
        events_of(&self.address, last, |found| found.len() == count)
    }
}

/// Its events until that is enough.
fn events_of(address: &str, last: Option<&str>, enough: impl Fn(&[(String, String)]) -> bool) -> Vec<(String, String)> {
    let mut stream = TcpStream::connect(address).expect("it serves");
    stream.set_read_timeout(Some(SOON)).unwrap();
    let last = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
    write!(stream, "GET /v1/events HTTP/1.1\r\nHost: {address}\r\n{last}\r\n").unwrap();
    let (mut found, mut id, mut event) = (Vec::new(), String::new(), String::new());
    for line in BufReader::new(stream).lines() {
        let line = line.expect("an event in time");
        match line.split_once(": ") {
            Some(("id", text)) => id = text.to_owned(),
            Some(("event", text)) => event = text.to_owned(),
            _ if line.is_empty() && !event.is_empty() => {
                found.push((std::mem::take(&mut id), std::mem::take(&mut event)));
                if enough(&found) {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

#[tokio::test]
async fn one_leads_the_other_names_it_and_takes_over_within_a_second() {
    let scene = Scene::with_lease(LEASE).await;
    let mut first = Agent::start(&scene, "a", "");
    first.holds(true).await;
    let second = Agent::start(&scene, "b", "");
    scene.is_queued().await;
    assert_eq!((first.name().await, second.name().await), ("a".into(), "a".into()));
    assert_eq!((first.probe("/started"), second.probe("/started"), second.probe("/healthz")), (true, false, true));
    let hold = first.hold().await.unwrap();
    let record = scene.declared.store.inspect(&scene.declared.lock).await.unwrap().unwrap();
    assert_eq!(hold["fencingToken"], record.holds[0].token.get());
    assert_eq!((hold["lock"].as_str(), record.holds[0].pod_uid.as_deref()), (Some("shop/report"), Some("uid-a")));
    let left = hold["remainingMilliseconds"].as_u64().unwrap();
    assert!((500..2_950).contains(&left) && hold["holder"] == "a", "{hold}");
    let other = second.hold().await.unwrap();
    assert_eq!((&other["held"], &other["holder"], &other["fencingToken"]), (&false.into(), &"a".into(), &Value::Null));

    let begun = Instant::now();
    first.process.terminate();
    second.holds(true).await;
    // Half a second of it is for the asking, on a machine that is busy.
    assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
    assert_eq!((first.code().await, second.name().await), (Some(0), "b".into()));
}

#[tokio::test]
async fn one_that_waits_leaves_the_queue_when_it_is_asked_to_end() {
    let scene = Scene::new().await;
    let other = scene.hold().await;
    let mut agent = Agent::start(&scene, "a", "");
    scene.is_queued().await;
    let begun = Instant::now();
    agent.process.terminate();
    assert_eq!(agent.code().await, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(scene.waiters().await, 0);
    other.release().await.unwrap();
    assert_eq!(scene.holders().await, 0, "nobody is offered it");
}

#[tokio::test]
async fn it_tells_what_happens_and_goes_on_where_a_listener_was() {
    let scene = Scene::with_lease(LEASE).await;
    let other = scene.hold().await;
    let agent = Agent::start(&scene, "a", "");
    scene.is_queued().await;
    let events = agent.events(1, None);
    assert_eq!(events[0].1, "waiting");
    assert_eq!(other.release().await.unwrap(), Released::Released);
    agent.holds(true).await;
    scene.proxy.hold_replies(true);
    let mut seen = agent.events(2, Some(&events[0].0));
    scene.proxy.hold_replies(false);
    let last = seen.last().unwrap().0.clone();
    seen.extend(agent.events(1, Some(&last)));
    let names: Vec<&str> = seen.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["acquired", "jeopardy", "safe"]);
    assert_eq!(agent.events(1, Some("1-0"))[0].1, "safe", "an id of another life: the last one");
}

#[tokio::test]
async fn it_gives_back_when_asked_and_contends_again() {
    let scene = Scene::new().await;
    let agent = Agent::start(&scene, "a", "");
    agent.holds(true).await;
    let before = agent.hold().await.unwrap()["fencingToken"].as_i64().unwrap();
    let lock = scene.store().lock(scene.declared.lock.clone());
    let next = tokio::spawn(async move {
        let wait = leasehold::keeper::Wait::For(SOON);
        lock.acquire(leasehold::keeper::Options { wait, ..leasehold::keeper::Options::named("next") }).await
    });
    scene.is_queued().await;
    let (_, body) = ask("POST", &agent.address, "/v1/release").await.unwrap();
    assert_eq!(body, r#"{"released":true}"#);
    let given = scene.store().inspect(&scene.declared.lock).await.unwrap().expect("a record").last;
    assert!(given > before, "it is done before the answer");
    let next = next.await.unwrap().expect("it is granted");
    assert!(next.token().get() > before && !agent.is_held().await);
    next.release().await.unwrap();
    agent.holds(true).await;
}

/// Redis answers again right after the app was told: another must not be let in beside an app that is still stopping.
#[tokio::test]
async fn a_lock_that_is_lost_is_not_given_back_before_the_app_had_its_time() {
    let scene = Scene::with_lease(Duration::from_secs(5)).await;
    let agent = Agent::start(&scene, "a", "--grace=1.5");
    agent.holds(true).await;
    let mut told = Duration::ZERO;
    scene.declared.server.process().pause();
    let mut asked = Instant::now();
    while let Some(hold) = agent.hold().await.filter(|hold| hold["held"] == true) {
        (asked, told) = (Instant::now(), Duration::from_millis(hold["remainingMilliseconds"].as_u64().unwrap()));
    }
    // Up to now the app was told that it may go on until then.
    let until = asked + told;
    scene.declared.server.process().resume();
    scene.next(SOON).await;
    let early = until.saturating_duration_since(Instant::now());
    assert!(early < Duration::from_millis(100), "another holds {early:?} before the app's time was over");
}

/// Its own clock goes on while it is stopped.
#[tokio::test]
async fn it_never_says_held_after_its_deadline_also_when_it_was_stopped() {
    let scene = Scene::with_lease(LEASE).await;
    let agent = Agent::start(&scene, "a", "");
    agent.holds(true).await;
    agent.process.pause();
    let next = scene.next(SOON).await;
    // It is asked before it runs: its very first answer of each kind counts.
    let asked = ["/v1/hold", "/started", "/"].map(|path| {
        let address = agent.address.clone();
        tokio::spawn(async move { ask("GET", &address, path).await })
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    agent.process.resume();
    let [hold, started, leader] = asked;
    let (_, hold) = hold.await.unwrap().expect("an answer");
    assert!(hold.contains(r#""held":false"#), "{hold}");
    assert_eq!(started.await.unwrap().map(|(code, _)| code), Some(503));
    let (_, leader) = leader.await.unwrap().expect("an answer");
    assert!(!leader.contains(r#""name":"a""#), "{leader}");
    next.release().await.unwrap();
    agent.holds(true).await;
}

#[tokio::test]
async fn without_answers_it_holds_until_its_deadline_and_no_longer() {
    let scene = Scene::with_lease(LEASE).await;
    let agent = Agent::start(&scene, "a", "");
    agent.holds(true).await;
    scene.proxy.hold_replies(true);
    let begun = Instant::now();
    let mut last = (Instant::now(), 0);
    while let Some(hold) = agent.hold().await.filter(|hold| hold["held"] == true) {
        last = (Instant::now(), hold["remainingMilliseconds"].as_u64().unwrap());
        assert!(begun.elapsed() < 2 * LEASE, "held beyond its lease");
    }
    assert!(last.1 < 2_950 && begun.elapsed() > LEASE / 3, "{last:?}");
    scene.proxy.hold_replies(false);
    agent.holds(true).await;
}

/// As after a restart of Redis, whose users the controller makes again.
#[tokio::test]
async fn refused_by_redis_it_goes_on_when_its_user_is_back() {
    let scene = Scene::with_lease(LEASE).await;
    scene.declared.server.send::<()>("ACL SETUSER shop on >secret ~* &* +@all").await;
    let folder = Scratch::new("password");
    let file = folder.write("password", "secret");
    let agent = Agent::start(&scene, "a", &format!("--redis-username=shop --redis-password-file={}", file.display()));
    agent.holds(true).await;
    scene.declared.server.send::<i64>("ACL DELUSER shop").await;
    agent.holds(false).await;
    tokio::time::sleep(2 * LEASE).await;
    scene.declared.server.send::<()>("ACL SETUSER shop on >secret ~* &* +@all").await;
    agent.holds(true).await;
}

#[tokio::test]
async fn asked_to_end_it_does_within_a_second_whether_or_not_redis_answers() {
    let scene = Scene::with_lease(LEASE).await;
    let mut agent = Agent::start(&scene, "a", "");
    agent.holds(true).await;
    scene.proxy.hold_replies(true);
    let begun = Instant::now();
    agent.process.terminate();
    assert_eq!(agent.code().await, Some(0));
    assert!(begun.elapsed() < Duration::from_millis(1_200), "{:?}", begun.elapsed());
    assert!(agent.said().contains("the lease ends by itself"), "{}", agent.said());
}

#[tokio::test]
async fn in_mode_gate_it_ends_when_the_lock_is_lost() {
    let scene = Scene::with_lease(LEASE).await;
    let mut agent = Agent::start(&scene, "a", "--mode=gate --grace=1");
    agent.holds(true).await;
    let ends = agent.told("lost");
    scene.proxy.hold_replies(true);
    assert_eq!(agent.code().await, Some(120));
    assert_eq!(ends.join().expect("it was told"), "acquired jeopardy lost");
}

#[tokio::test]
async fn in_mode_elect_a_loss_is_told_and_what_comes_after_it() {
    let scene = Scene::with_lease(LEASE).await;
    let agent = Agent::start(&scene, "a", "");
    agent.holds(true).await;
    let ends = agent.told("waiting");
    scene.proxy.hold_replies(true);
    agent.holds(false).await;
    scene.proxy.hold_replies(false);
    assert_eq!(ends.join().expect("it was told"), "acquired jeopardy lost waiting");
}

/// Its end is what stops the app: that still runs, whoever gave the lock up.
#[tokio::test]
async fn in_mode_gate_nobody_has_it_before_the_app_had_its_time_to_stop() {
    let scene = Scene::with_lease(LEASE).await;
    let folder = Scratch::new("health");
    let file = folder.write("well", "");
    let health = format!("--health-timeout=1 --health-file={}", file.display());
    for gives_up in ["unwell", "released"] {
        folder.write("well", "");
        let mut agent = Agent::start(&scene, "a", &format!("--mode=gate --grace=1 {health}"));
        agent.holds(true).await;
        match gives_up {
            "unwell" => std::fs::remove_file(&file).unwrap(),
            _ => {
                let (_, body) = ask("POST", &agent.address, "/v1/release").await.unwrap();
                assert_eq!(body, r#"{"released":false}"#);
            }
        }
        assert_eq!(agent.code().await, Some(120), "{gives_up}");
        let ended = Instant::now();
        let next = scene.next(SOON).await;
        assert!(ended.elapsed() > Duration::from_millis(900), "{gives_up}: free after {:?}", ended.elapsed());
        next.release().await.unwrap();
    }
}

#[tokio::test]
async fn in_mode_gate_a_lease_that_is_too_short_for_the_kubelet_is_refused() {
    let scene = Scene::with_lease(LEASE).await;
    let mut agent = Agent::start(&scene, "a", "--mode=gate");
    assert_eq!(agent.code().await, Some(125));
    let said = std::fs::read_to_string(agent.scratch.path().join("err")).unwrap();
    assert!(said.contains("is too short to stop within 4s"), "{said}");
}

#[tokio::test]
async fn as_an_ordinary_container_it_renews_until_it_is_killed() {
    let scene = Scene::with_lease(LEASE).await;
    let mut agent = Agent::start(&scene, "a", "--place=container");
    agent.holds(true).await;
    agent.process.terminate();
    tokio::time::sleep(LEASE.mul_f64(1.2)).await;
    assert!(agent.is_held().await && agent.process.exit_status().is_none());
    agent.process.kill();
    scene.next(SOON).await;
}

/// The app may still run, but must not begin to work under a lock now.
#[tokio::test]
async fn as_an_ordinary_container_it_asks_for_nothing_any_more_once_it_was_told_to_end() {
    let scene = Scene::with_lease(LEASE).await;
    let first = scene.next(SOON).await;
    let mut agent = Agent::start(&scene, "a", "--place=container");
    scene.is_queued().await;
    agent.process.terminate();
    assert_eq!(agent.code().await, Some(0));
    assert_eq!(scene.waiters().await, 0, "it has left the queue");
    first.release().await.unwrap();
    let mut holder = Agent::start(&scene, "b", "--place=container");
    holder.holds(true).await;
    holder.process.terminate();
    scene.proxy.hold_replies(true);
    assert_eq!(holder.code().await, Some(0), "lost after that");
}

#[rstest]
#[case::no_such_lock("REDIS --lock=other", "the store knows no such lock")]
#[case::a_wrong_port("--redis-url=redis://127.0.0.1:1 --lock=report", "(Unreachable): check the URL and the network")]
#[case::a_wrong_password(
    "REDIS --lock=report --redis-username=nobody --redis-password-file=/etc/hostname",
    "(AuthenticationFailed): check the user name and the password"
)]
#[tokio::test]
async fn what_time_may_mend_is_said_in_one_line_and_tried_again(#[case] flags: &str, #[case] says: &str) {
    let scene = Scene::new().await;
    let redis = format!("--redis-url=redis://{}", scene.proxy.address());
    let mut agent = Agent::start_with("a", &flags.replace("REDIS", &redis), &[]);
    let lines =
        async || agent.said().lines().filter(|line| line.contains("tried again") && line.contains(says)).count();
    let twice = eventually(2 * SOON, async || (lines().await > 1).then_some(())).await;
    assert!(twice.is_some(), "{}", agent.said());
    assert_eq!(agent.get("/healthz").await.map(|(code, _)| code), Some(200));
    assert_eq!(agent.process.exit_status(), None, "it goes on");
}

#[tokio::test]
async fn a_store_that_is_not_opened_is_said_and_waited_for() {
    let scene = Scene::new().await;
    scene.declared.control.close().await.unwrap().unwrap();
    let agent = Agent::start(&scene, "a", "");
    let says = async || agent.said().contains("waiting: the store grants nothing yet").then_some(());
    assert!(eventually(2 * SOON, says).await.is_some(), "{}", agent.said());
    scene.declared.open(Epoch::new(2).unwrap()).await;
    agent.holds(true).await;
}

#[tokio::test]
async fn lock_and_mode_may_be_variables_and_a_url_that_is_none_ends_it() {
    let scene = Scene::new().await;
    let url = format!("redis://{}", scene.proxy.address());
    let variables =
        [("LEASEHOLD_REDIS_URL", url.as_str()), ("LEASEHOLD_AGENT_LOCK", "report"), ("LEASEHOLD_AGENT_MODE", "gate")];
    let mut agent = Agent::start_with("a", "", &variables);
    agent.holds(true).await;
    ask("POST", &agent.address, "/v1/release").await.expect("an answer");
    assert_eq!(agent.code().await, Some(120), "in mode gate it ends with its hold");
    let mut wrong = Agent::start_with("a", "--lock=report --redis-url=http://here", &[]);
    assert_eq!(wrong.code().await, Some(125));
    assert!(wrong.said().starts_with("leasehold: ") && wrong.said().contains("the URL of Redis"), "{}", wrong.said());
    assert_eq!(wrong.said().lines().count(), 1, "{}", wrong.said());
}

#[tokio::test]
async fn an_app_that_is_unwell_loses_the_lock_until_it_is_well() {
    const LEASE: Duration = Duration::from_secs(20);
    let scene = Scene::with_lease(LEASE).await;
    let folder = Scratch::new("health");
    let file = folder.write("well", "");
    let agent = Agent::start(&scene, "a", &format!("--health-timeout=1.5 --health-file={}", file.display()));
    agent.holds(true).await;
    // For less than the limit.
    std::fs::remove_file(&file).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    folder.write("well", "");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    agent.holds(true).await;
    let asked = boottime();
    let told = agent.hold().await.expect("an answer");
    let may_work_until = asked + Duration::from_millis(told["stopInMilliseconds"].as_u64().expect("a number"));
    std::fs::remove_file(&file).unwrap();
    agent.holds(false).await;
    let other = scene.next(2 * LEASE).await;
    assert!(boottime() > may_work_until, "the app may still have worked");
    assert_eq!(scene.waiters().await, 0, "it doesn't contend");
    other.release().await.unwrap();
    folder.write("well", "");
    agent.holds(true).await;
}

#[tokio::test]
async fn an_app_that_answers_well_by_http_keeps_it() {
    let scene = Scene::new().await;
    // Another agent is such an app: it answers 503 while it doesn't hold.
    scene.declare("ledger").await;
    let app = Agent::start(&scene, "app", "");
    app.holds(true).await;
    let other = scene.run_command("--lock=ledger", &["sleep", "60"]);
    let health = format!("--health-timeout=1 --health-url=http://{}/healthz", app.address);
    let mut agent = Agent::start(&scene, "a", &health);
    scene.is_queued().await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(scene.waiters().await, 1, "it is well and waits");
    drop(app);
    let left = eventually(SOON, async || (scene.waiters().await == 0).then_some(())).await;
    assert!(left.is_some(), "unwell, it contends no more");
    agent.process.kill();
    drop(other);
}

#[tokio::test]
async fn an_app_that_answers_503_is_unwell() {
    let scene = Scene::new().await;
    let other = scene.hold().await;
    // Another agent is such an app while it waits.
    let app = Agent::start(&scene, "app", "");
    scene.is_queued().await;
    let health = format!("--health-timeout=1 --health-url=http://{}/started", app.address);
    let agent = Agent::start(&scene, "a", &health);
    let waiting = async |count: usize| {
        let so = eventually(SOON, async || (scene.waiters().await == count).then_some(())).await;
        assert!(so.is_some(), "{count} wait: {}", agent.said());
    };
    waiting(2).await;
    waiting(1).await;
    other.release().await.unwrap();
    app.holds(true).await;
    waiting(1).await;
}

#[tokio::test]
async fn an_app_whose_url_says_unwell_loses_what_it_holds() {
    let scene = Scene::with_lease(LEASE).await;
    scene.declare("ledger").await;
    // Another agent is such an app: it is well while it holds.
    let redis = format!("--redis-url=redis://{}", scene.proxy.address());
    let app = Agent::start_with("app", &format!("{redis} --lock=ledger"), &[]);
    app.holds(true).await;
    let health = format!("--health-timeout=1 --health-url=http://{}/started", app.address);
    let agent = Agent::start(&scene, "a", &health);
    agent.holds(true).await;
    tokio::time::sleep(LEASE / 2).await;
    assert!(agent.is_held().await, "it is well");
    let key = leasehold::lease::LockKey::new("shop", "ledger").unwrap();
    let next = scene.store().lock(key);
    let next = tokio::spawn(async move {
        let wait = leasehold::keeper::Wait::For(SOON);
        next.acquire(leasehold::keeper::Options { wait, ..leasehold::keeper::Options::named("next") }).await
    });
    let given = async || {
        ask("POST", &app.address, "/v1/release").await;
        next.is_finished().then_some(())
    };
    assert!(eventually(SOON, given).await.is_some(), "the app goes on");
    agent.holds(false).await;
}

/// How small is measured by `cargo bench --bench leasehold -- agent`.
#[tokio::test]
async fn it_stays_small() {
    let scene = Scene::with_lease(Duration::from_secs(1)).await;
    let agent = Agent::start(&scene, "a", "");
    agent.holds(true).await;
    let early = agent.process.memory("VmRSS");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let late = agent.process.memory("VmRSS");
    println!("VmRSS {early} kB, after 25 renewals {late} kB (a build with debug information)");
    assert!(late < early + 1024, "it grows: {early} kB to {late} kB");
    assert!(Watched(agent.process.pid()).is_alive());
}
