//! The servers that other tests rely on do what those believe, and leave nothing behind.

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use rstest::rstest;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    ControlPlane, LIMIT, PodActor, Proxy, RedisServer, TestNamespace, containers_terminated, wait_for,
};

const SOON: Duration = Duration::from_millis(500);

fn a_config_map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
}

async fn as_controller(plane: &ControlPlane) -> Client {
    let file = Kubeconfig::read_from(plane.kubeconfig("controller")).unwrap();
    Client::try_from(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap()).unwrap()
}

#[tokio::test]
async fn writes_are_counted_by_user_and_reads_are_not() {
    let test = TestNamespace::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(as_controller(test.plane()).await, test.name());
    test.api::<ConfigMap>().create(&PostParams::default(), &a_config_map("by-the-test")).await.unwrap();
    maps.create(&PostParams::default(), &a_config_map("written")).await.unwrap();
    maps.create(&PostParams::default(), &a_config_map("written")).await.unwrap_err();
    maps.list(&ListParams::default()).await.unwrap();
    let writes = wait_for("two writes are in the audit log", LIMIT, async || {
        let mut writes = test.plane().controller_writes();
        writes.retain(|write| write.namespace == test.name());
        (writes.len() == 2).then_some(writes)
    });
    let writes = writes.await;
    assert!(writes.iter().all(|write| (write.verb.as_str(), write.resource.as_str()) == ("create", "configmaps")));
    assert_eq!(writes.iter().map(|write| write.code).collect::<Vec<_>>(), [201, 409]);
    assert!(writes[0].name == "written" && writes[0].time <= writes[1].time);
}

#[tokio::test]
async fn the_api_server_is_stopped_paused_and_back_with_its_data() {
    let plane = ControlPlane::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(plane.client().await, "default");
    maps.create(&PostParams::default(), &a_config_map("kept")).await.unwrap();

    plane.stop_apiserver();
    maps.get("kept").await.unwrap_err();
    plane.start_apiserver().await;
    assert_eq!(maps.get("kept").await.unwrap().name_any(), "kept");

    plane.pause_apiserver();
    // The signal is on its way when it is sent: a request may still be answered.
    let silent = async || tokio::time::timeout(SOON, maps.get("kept")).await.is_err().then_some(());
    wait_for("silence", LIMIT, silent).await;
    plane.resume_apiserver();
    wait_for("an answer", LIMIT, async || maps.get("kept").await.ok()).await;
}

#[tokio::test]
async fn what_belongs_to_a_pod_is_collected_after_it() {
    let test = TestNamespace::new().await;
    let pods = PodActor::new(test.client(), test.name());
    let pod = pods.run("owner", "Never", None).await;
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": pod.name_any(), "uid": pod.uid()});
    let mut map = a_config_map("owned");
    map.metadata.owner_references = Some(vec![serde_json::from_value(owner).unwrap()]);
    test.api::<ConfigMap>().create(&PostParams::default(), &map).await.unwrap();
    test.kubectl("delete pod owner").await.unwrap();
    test.gone::<ConfigMap>("owned", LIMIT).await;
}

#[tokio::test]
async fn a_namespace_can_be_deleted() {
    let test = TestNamespace::new().await;
    test.delete().await;
    let namespaces: Api<Namespace> = Api::all(test.client());
    let gone = async || namespaces.get_opt(test.name()).await.is_ok_and(|found| found.is_none()).then_some(());
    wait_for("the namespace is gone", LIMIT, gone).await;
}

#[tokio::test]
async fn a_pod_shows_what_a_kubelet_would_report() {
    let test = TestNamespace::new().await;
    let pods = PodActor::new(test.client(), test.name());
    let running = pods.run("worker", "Never", Some("a-node")).await;
    assert_eq!(running.status.unwrap().phase.as_deref(), Some("Running"));
    pods.report("worker", containers_terminated(3)).await;
    let ended: Pod = pods.api().get("worker").await.unwrap();
    let state = ended.status.unwrap().container_statuses.unwrap().remove(0).state.unwrap();
    assert_eq!(state.terminated.map(|ended| ended.exit_code), Some(3));
    assert!(state.running.is_none());
}

#[tokio::test]
async fn redis_is_killed_and_back_on_its_port_with_or_without_its_data() {
    let options = ["--requirepass", "secret", "--appendonly", "yes", "--appendfsync", "always"];
    let mut redis = RedisServer::with(&options).await;
    let port = redis.port();
    redis.send::<()>("SET key value").await;

    redis.kill();
    redis.try_send::<String>("PING").await.unwrap_err();
    redis.restart().await;
    assert_eq!(redis.send::<Option<String>>("GET key").await.as_deref(), Some("value"));

    redis.kill_and_wipe();
    redis.restart().await;
    assert_eq!((redis.send::<Option<String>>("GET key").await, redis.port()), (None, port));
}

#[tokio::test]
async fn a_paused_redis_answers_when_it_is_resumed() {
    let redis = RedisServer::start().await;
    redis.process().pause();
    assert!(tokio::time::timeout(SOON, redis.try_send::<String>("PING")).await.is_err());
    redis.process().resume();
    redis.send::<String>("PING").await;
}

/// A connection on which one types.
struct Typist(TcpStream);

impl Typist {
    async fn try_connect(port: u16) -> io::Result<Self> {
        TcpStream::connect(("127.0.0.1", port)).await.map(Self)
    }

    async fn connect(port: u16) -> Self {
        Self::try_connect(port).await.unwrap()
    }

    async fn send(&mut self, command: &str) {
        self.0.write_all(format!("{command}\r\n").as_bytes()).await.unwrap();
    }

    /// `None`: the connection has ended.
    async fn receive(&mut self) -> Option<String> {
        let mut answer = [0; 1024];
        let length = tokio::time::timeout(LIMIT, self.0.read(&mut answer)).await.expect("an answer or an end");
        let length = length.ok().filter(|length| *length > 0)?;
        Some(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
    }

    async fn ask(&mut self, command: &str) -> Option<String> {
        self.send(command).await;
        self.receive().await
    }

    async fn is_silent(&self) -> bool {
        tokio::time::timeout(SOON, self.0.peek(&mut [0])).await.is_err()
    }
}

#[tokio::test]
async fn a_proxy_passes_what_it_is_asked_and_counts_it() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let mut typist = Typist::connect(proxy.port()).await;
    assert_eq!(typist.ask("SET key value").await.as_deref(), Some("+OK"));
    let passed = proxy.passed();
    assert_eq!((passed.accepted, passed.to_server, passed.from_server, passed.to_client), (1, 15, 5, 5));
    assert_eq!((passed.dropped, passed.cut), (0, 0));
    redis.process().interrupt();
    assert_eq!(typist.receive().await, None, "the end of the server is the end of the connection");
}

#[tokio::test]
async fn a_proxy_cuts_what_is_there_and_takes_new_connections() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let (mut one, mut two) = (Typist::connect(proxy.port()).await, Typist::connect(proxy.port()).await);
    assert_eq!((one.ask("PING").await.as_deref(), two.ask("PING").await.as_deref()), (Some("+PONG"), Some("+PONG")));
    proxy.cut();
    assert_eq!((one.receive().await, two.receive().await, proxy.passed().cut), (None, None, 2));
    let mut three = Typist::connect(proxy.port()).await;
    assert_eq!(three.ask("PING").await.as_deref(), Some("+PONG"));
}

#[tokio::test]
async fn a_proxy_refuses_new_connections_and_leaves_the_others() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let mut before = Typist::connect(proxy.port()).await;
    assert_eq!(before.ask("PING").await.as_deref(), Some("+PONG"));
    proxy.refuse(true).await;
    let refused = Typist::try_connect(proxy.port()).await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(before.ask("PING").await.as_deref(), Some("+PONG"));
    proxy.refuse(false).await;
    let mut after = Typist::connect(proxy.port()).await;
    assert_eq!(after.ask("PING").await.as_deref(), Some("+PONG"));
}

#[tokio::test]
async fn a_proxy_points_at_another_server_and_cuts_what_led_to_the_first() {
    let (one, two) = (RedisServer::start().await, RedisServer::start().await);
    one.send::<()>("SET name one").await;
    two.send::<()>("SET name two").await;
    let proxy = Proxy::start(one.port());
    let mut typist = Typist::connect(proxy.port()).await;
    assert_eq!(typist.ask("GET name").await.as_deref(), Some("$3\r\none"));
    proxy.point_at(two.port());
    assert_eq!(typist.receive().await, None);
    let mut typist = Typist::connect(proxy.port()).await;
    assert_eq!(typist.ask("GET name").await.as_deref(), Some("$3\r\ntwo"));
}

#[tokio::test]
async fn a_proxy_keeps_answers_back_and_delivers_them_in_their_order() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let mut typist = Typist::connect(proxy.port()).await;
    proxy.hold_replies(true);
    for (command, answered) in [("INCR n", 4), ("INCR n", 8)] {
        typist.send(command).await;
        wait_for("Redis answers", LIMIT, async || (proxy.passed().from_server == answered).then_some(())).await;
    }
    assert_eq!(redis.send::<i64>("GET n").await, 2, "the requests are not kept back");
    assert!(typist.is_silent().await && proxy.passed().to_client == 0);
    proxy.hold_replies(false);
    wait_for("all is delivered", LIMIT, async || (proxy.passed().to_client == 8).then_some(())).await;
    assert_eq!(typist.receive().await.as_deref(), Some(":1\r\n:2"));
}

#[tokio::test]
async fn a_proxy_delivers_answers_later() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let mut typist = Typist::connect(proxy.port()).await;
    proxy.delay_replies(SOON);
    let start = Instant::now();
    assert_eq!(typist.ask("PING").await.as_deref(), Some("+PONG"));
    assert!(start.elapsed() >= SOON, "{:?}", start.elapsed());
    proxy.delay_replies(Duration::ZERO);
    let start = Instant::now();
    assert_eq!(typist.ask("PING").await.as_deref(), Some("+PONG"));
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_proxy_swallows_answers_to_what_has_been_done() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let (mut other, mut typist) = (Typist::connect(proxy.port()).await, Typist::connect(proxy.port()).await);
    proxy.aim_at("INCR");
    proxy.drop_replies(1);
    assert_eq!(other.ask("PING").await.as_deref(), Some("+PONG"), "it was not aimed at");
    assert_eq!(typist.ask("INCR n").await, None);
    let passed = proxy.passed();
    assert_eq!((passed.dropped, passed.cut), (4, 1));
    assert_eq!(redis.send::<i64>("GET n").await, 1, "Redis has done it");
    let mut typist = Typist::connect(proxy.port()).await;
    assert_eq!(typist.ask("INCR n").await.as_deref(), Some(":2"), "one answer was to be swallowed");
}

#[tokio::test]
async fn a_proxy_repeats_a_request_after_its_connection_has_ended() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port());
    let mut typist = Typist::connect(proxy.port()).await;
    proxy.aim_at("INCR");
    for command in ["INCR n", "PING"] {
        typist.ask(command).await.unwrap();
    }
    proxy.cut();
    assert_eq!(String::from_utf8(proxy.repeat_request().await).unwrap(), ":2\r\n");
    assert_eq!(redis.send::<i64>("GET n").await, 2);
}

#[tokio::test]
async fn a_replica_has_what_its_master_has_until_its_link_is_cut_and_can_be_promoted() {
    let master = RedisServer::start().await;
    master.send::<()>("SET key first").await;
    let link = Proxy::start(master.port());
    let replica = RedisServer::replica_of(link.port()).await;
    master.send::<()>("SET key second").await;
    master.wait_for_replica(&replica).await;
    assert_eq!(replica.send::<Option<String>>("GET key").await.as_deref(), Some("second"));
    link.refuse(true).await;
    link.cut();
    master.send::<()>("SET key third").await;
    replica.promote().await;
    assert_eq!(replica.send::<Option<String>>("GET key").await.as_deref(), Some("second"));
    assert_eq!(replica.replication("role").await.as_deref(), Some("master"));
    replica.send::<()>("SET key own").await;
}

#[tokio::test]
async fn a_panic_leaves_nothing_behind() {
    let redis = RedisServer::start().await;
    let (pid, folder) = (redis.process().pid(), redis.folder().to_owned());
    assert!(!is_gone(pid) && folder.exists());
    let test = std::thread::spawn(move || {
        let _redis = redis;
        panic!("as a failing test does");
    });
    test.join().unwrap_err();
    assert!(is_gone(pid) && !folder.exists());
}

#[rstest]
#[case::killed(Signal::KILL)]
#[case::interrupted(Signal::INT)]
#[case::asked_to_end(Signal::TERM)]
#[tokio::test]
async fn an_owner_that_ends_by_a_signal_leaves_nothing_behind(#[case] signal: Signal) {
    let mut owner = Owner::start();
    assert!(owner.pids.len() == 4 && owner.pids.iter().all(|pid| !is_gone(*pid)), "{:?}", owner.pids);
    assert!(owner.folders.len() == 2 && owner.folders.iter().all(|folder| Path::new(folder).exists()));
    kill_process(Pid::from_child(&owner.process), signal).unwrap();
    owner.process.wait().unwrap();
    let gone = async || {
        let ended = owner.pids.iter().all(|pid| is_gone(*pid));
        (ended && owner.folders.iter().all(|folder| !Path::new(folder).exists())).then_some(())
    };
    wait_for("its servers and folders are gone", LIMIT, gone).await;
}

/// This test binary, running [`owns_servers_until_it_is_killed`].
struct Owner {
    process: Child,
    pids: Vec<u32>,
    folders: Vec<String>,
}

impl Owner {
    /// Returns when its servers run.
    fn start() -> Self {
        // Works also when a build has replaced the file since.
        let mut process = Command::new("/proc/self/exe")
            .args(["--exact", "support_works::owns_servers_until_it_is_killed", "--ignored", "--nocapture"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut pids, mut folders) = (Vec::new(), Vec::new());
        for line in BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok) {
            match line.split_once(' ') {
                Some(("pid", pid)) => pids.push(pid.parse().unwrap()),
                Some(("folder", folder)) => folders.push(folder.to_owned()),
                _ if line == "started" => break,
                _ => {}
            }
        }
        Self { process, pids, folders }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[tokio::test]
#[ignore = "run by an_owner_that_ends_by_a_signal_leaves_nothing_behind, as a process of its own"]
async fn owns_servers_until_it_is_killed() {
    let (plane, redis) = (ControlPlane::start().await, RedisServer::start().await);
    println!();
    for pid in plane.pids().into_iter().chain([redis.process().pid()]) {
        println!("pid {pid}");
    }
    for folder in [plane.folder(), redis.folder()] {
        println!("folder {}", folder.display());
    }
    println!("started");
    tokio::time::sleep(LIMIT).await;
}

/// A process that nobody has waited for yet is gone, too.
fn is_gone(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}
