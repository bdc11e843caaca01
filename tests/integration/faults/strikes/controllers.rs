//! The leading controller is lost.

use std::time::Duration;

use super::super::stage::Stage;
use super::is_gone;
use crate::support::{LIMIT, wait_for};

pub(super) async fn killed(stage: &mut Stage) -> String {
    let leader = stage.leading().await;
    let pid = stage.controller(leader).process().pid();
    stage.controller(leader).kill();
    assert!(is_gone(pid), "the controller is still there");
    let next = stage.leading().await;
    assert_ne!(next, leader, "a dead controller leads");
    stage.controller(leader).restart().await;
    format!("pid {pid} gone, the other leads")
}

pub(super) async fn stopped(stage: &mut Stage) -> String {
    let leader = stage.leading().await;
    let process = stage.controller(leader).process();
    let pid = process.pid();
    process.pause();
    wait_for("the controller is stopped", LIMIT, async || process.is_stopped().then_some(())).await;
    // Longer than its Lease: the other leads meanwhile.
    tokio::time::sleep(Duration::from_secs(6)).await;
    stage.controller(leader).process().resume();
    tokio::time::sleep(Duration::from_secs(2)).await;
    stage.revive().await;
    let next = stage.leading().await;
    assert_ne!(next, leader, "one that was stopped for so long leads still");
    format!("pid {pid} stopped for 6 s, the other leads")
}
