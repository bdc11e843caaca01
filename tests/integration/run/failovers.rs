//! The server changes under a command: consul's lock was violated then (#985), or given up without need (#5437, #1162).

use std::time::{Duration, Instant};

use leasehold::lease::Epoch;
use leasehold::store::{Control, LIBRARY_SOURCE, Opening, Store};

use super::fixture::{Deaths, Run, SOON, Scene};
use crate::protocol::fixture::provision;
use crate::protocol::server::PREFIX;
use crate::support::RedisServer;

const LEASE: Duration = Duration::from_secs(3);

/// A lock on a master with a replica. The first one changes the master's replication id: its gate is opened again.
async fn pair() -> (Scene, RedisServer) {
    let scene = Scene::with_lease(LEASE).await;
    let replica = RedisServer::replica_of(scene.declared.server.endpoint().port).await;
    scene.declared.open(Epoch::new(2).unwrap()).await;
    (scene, replica)
}

/// What a controller does on a new master, once the longest lease is over.
async fn open(replica: &RedisServer) -> Store {
    let store = Store::connect(&replica.endpoint(), PREFIX).unwrap();
    let control = Control::new(store.clone(), "store", 1);
    let beat = control.heartbeat("test", 0).await.unwrap().unwrap();
    let opening = Opening { run_id: beat.run_id, replid: beat.replid, epoch: Epoch::new(3).unwrap() };
    control.open(&opening).await.unwrap().unwrap();
    store
}

async fn fail_over(scene: &mut Scene, replica: &RedisServer) {
    scene.declared.server.kill();
    replica.promote().await;
    scene.proxy.point_at(replica.port());
}

/// The replica has the lease: the command goes on under its token, and one that waits is served after it.
#[tokio::test]
async fn a_command_and_one_that_waits_survive_a_failover() {
    let (mut scene, replica) = pair().await;
    let mut run = scene.run(
        "--grace=0.2",
        "echo $LEASEHOLD_TOKEN > $T/token; echo $$ > $T/command; while ! [ -e $T/end ]; do sleep 0.05; done",
    );
    let (token, command) = (run.says("token").await, run.pid("command").await);
    let mut waits = scene.run("--grace=0.2 --wait 60", "echo $LEASEHOLD_TOKEN > $T/token");
    scene.is_queued().await;
    let caught_up = async || {
        let offset = |field: &'static str| async { scene.declared.server.info(field).await };
        (replica.replication("slave_repl_offset").await? >= offset("master_repl_offset").await).then_some(())
    };
    crate::support::wait_for("the replica has it", SOON, caught_up).await;
    fail_over(&mut scene, &replica).await;
    // Nothing is granted before the controller has opened the new master; what is held is renewed.
    tokio::time::sleep(LEASE.mul_f64(1.5)).await;
    assert!(command.is_alive(), "{}", run.errors());
    let store = open(&replica).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let record = store.inspect(&scene.declared.lock).await.unwrap().unwrap();
    assert_eq!((record.holds.len(), waits.read("token")), (1, None), "it is held by one");
    let deaths = Deaths::of(&[command]);
    run.create("end");
    assert_eq!(run.code().await, Some(0), "{}", run.errors());
    let next = waits.says("token").await;
    deaths.all_before(Instant::now(), 1);
    assert_eq!(waits.code().await, Some(0), "{}", waits.errors());
    assert!(next.parse::<i64>().unwrap() > token.parse().unwrap(), "{next} after {token}");
}

/// Who waits has been answered before: that the server knows neither its user nor the library any more will pass.
#[tokio::test]
async fn one_that_waits_survives_a_server_that_restarts_empty() {
    let mut scene = Scene::with_lease(LEASE).await;
    scene.declared.server.send::<()>("ACL SETUSER shop on >secret ~* &* +@all").await;
    let held = scene.hold().await;
    let folder = crate::support::Scratch::new("connection");
    for (name, text) in [("username", "shop"), ("password", "secret")] {
        folder.write(name, text);
    }
    folder.write("url", &format!("redis://{}", scene.proxy.address()));
    let mut waits = Run::start_with(&format!("--connection={}", folder.path().display()), "--grace=0.2", &["true"]);
    scene.is_queued().await;
    drop(held);
    scene.declared.server.restart().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.declared.server.send::<()>("ACL SETUSER shop on >secret ~* &* +@all").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let store = scene.store();
    store.load_library(LIBRARY_SOURCE).await.unwrap();
    let control = Control::new(store, "store", 1);
    let beat = control.heartbeat("test", 0).await.unwrap().unwrap();
    let opening = Opening { run_id: beat.run_id, replid: beat.replid, epoch: Epoch::new(2).unwrap() };
    control.open(&opening).await.unwrap().unwrap();
    control.provision(&scene.declared.lock, &provision(1, LEASE)).await.unwrap().unwrap();
    assert_eq!(waits.code().await, Some(0), "{}", waits.errors());
}

/// The replica lagged behind and doesn't know the hold: the command is stopped by the next renewal, long before the new
/// master is opened, and the next token is higher though the counter has gone back.
#[tokio::test]
async fn a_lease_that_a_failover_has_forgotten_is_no_lock_for_two() {
    let (mut scene, replica) = pair().await;
    replica.promote().await;
    let script = "echo $LEASEHOLD_TOKEN > $T/token; trap '' TERM; echo $$ > $T/command; while :; do sleep 0.05; done";
    let mut run = scene.run("--grace=0.2", script);
    let (token, command) = (run.says("token").await, run.pid("command").await);
    let deaths = Deaths::of(&[command]);
    let mut waits = scene.run("--grace=0.2 --wait 60", "echo $LEASEHOLD_TOKEN > $T/token");
    scene.is_queued().await;
    fail_over(&mut scene, &replica).await;
    let begun = Instant::now();
    command.ends(LEASE).await;
    println!("stopped {} ms after the failover", begun.elapsed().as_millis());
    // The quarantine of the controller: the longest lease.
    tokio::time::sleep(LEASE.saturating_sub(begun.elapsed())).await;
    open(&replica).await;
    let next = waits.says("token").await;
    deaths.all_before(Instant::now(), 1);
    assert!(next.parse::<i64>().unwrap() > token.parse().unwrap(), "{next} after {token}");
    assert_eq!((run.code().await, waits.code().await), (Some(120), Some(0)), "{}", run.errors());
}
