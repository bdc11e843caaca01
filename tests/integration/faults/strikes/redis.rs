//! Redis is lost, in whole or in part.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::Duration;

use super::super::dice::Dice;
use super::super::stage::{LEASE, Stage};
use super::is_gone;
use crate::support::{LIMIT, Proxy, RedisServer, wait_for};

async fn identity(redis: &RedisServer) -> String {
    let info: String = redis.send("INFO server").await;
    let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).expect("a run_id");
    run_id[..8].to_owned()
}

/// Ends it at once, and starts it again after a while.
async fn kill_and_restart(stage: &mut Stage, away: Duration) -> String {
    let (pid, before) = (stage.f.redis.process().pid(), identity(&stage.f.redis).await);
    stage.f.redis.kill();
    assert!(is_gone(pid), "Redis is still there");
    tokio::time::sleep(away).await;
    stage.f.redis.restart().await;
    let after = identity(&stage.f.redis).await;
    assert_ne!(before, after, "it is the same process");
    format!("pid {pid} gone, run_id {before} then {after}")
}

pub(super) async fn killed(stage: &mut Stage, dice: &mut Dice) -> String {
    let proof = kill_and_restart(stage, dice.millis(50..2500)).await;
    assert!(!stage.f.redis.log().contains("DB loaded"), "it came back with data");
    format!("{proof}, empty")
}

pub(super) async fn killed_with_aof(stage: &mut Stage, dice: &mut Dice) -> String {
    let proof = kill_and_restart(stage, dice.millis(50..1000)).await;
    assert!(stage.f.redis.log().contains("DB loaded"), "it came back without data");
    format!("{proof}, loaded from its AOF")
}

pub(super) async fn stopped(stage: &mut Stage) -> String {
    let redis = stage.f.redis.process();
    redis.pause();
    wait_for("Redis is stopped", LIMIT, async || redis.is_stopped().then_some(())).await;
    let away = Duration::from_secs(LEASE.unsigned_abs().into()) + Duration::from_secs(1);
    tokio::time::sleep(away).await;
    redis.resume();
    format!("pid {} stopped for {away:?}", redis.pid())
}

pub(super) async fn flushed(stage: &mut Stage) -> String {
    let before: u64 = stage.f.redis.send("DBSIZE").await;
    assert!(before > 0, "there is nothing to lose");
    stage.f.redis.send::<()>("FLUSHALL").await;
    let stats: String = stage.f.redis.send("INFO commandstats").await;
    assert!(stats.contains("cmdstat_flushall:calls=1"), "{stats}");
    format!("{before} keys flushed")
}

pub(super) async fn lagging_replica_promoted(stage: &mut Stage) -> String {
    let link = Proxy::start(stage.f.redis.port());
    let replica = RedisServer::replica_of(link.port()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    link.hold_replies(true);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let offset = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok()).expect("an offset");
    let done = offset(stage.f.redis.replication("master_repl_offset").await);
    let has = offset(replica.replication("slave_repl_offset").await);
    assert!(has < done, "the replica doesn't lag");
    let before = stage.f.redis.replication("master_replid").await.expect("a replid");
    stage.f.redis.kill();
    replica.promote().await;
    stage.proxy.point_at(replica.port());
    stage.f.redis = replica;
    let after = stage.f.redis.replication("master_replid").await.expect("a replid");
    assert_ne!(before, after, "it is the same master");
    format!("{} bytes behind, replid {:.8} then {:.8}", done - has, before, after)
}

/// The file to which is appended.
fn appended(redis: &RedisServer) -> PathBuf {
    let folder = redis.folder().join("appendonlydir");
    let files = std::fs::read_dir(folder).expect("its folder").flatten().map(|entry| entry.path());
    files.into_iter().find(|path| path.to_string_lossy().ends_with(".incr.aof")).expect("an AOF")
}

/// A machine that crashes loses what was not yet on its disk.
pub(super) async fn loses_its_last_second(stage: &mut Stage) -> String {
    let file = appended(&stage.f.redis);
    let length = || std::fs::metadata(&file).expect("its AOF").len();
    let synced = length();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pid = stage.f.redis.process().pid();
    stage.f.redis.kill();
    assert!(is_gone(pid), "Redis is still there");
    let lost = length() - synced;
    assert!(lost > 0, "nothing was written in the last second");
    OpenOptions::new().write(true).open(&file).and_then(|file| file.set_len(synced)).expect("its AOF");
    stage.f.redis.restart().await;
    format!("pid {pid} gone, the last {lost} bytes of its AOF lost")
}
