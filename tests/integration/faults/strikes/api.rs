//! The API server is away, refuses, or tells not everything. Those who watch hear it all.

use std::time::Duration;

use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use leasehold::api::LockClaim;

use super::super::contention::LONG;
use super::super::stage::{Api, Replica, Stage};
use super::super::watches::Claim;
use crate::support::LIMIT;
use crate::support::history::{Event, Stage as Progress};

fn api(stage: &Stage) -> &Api {
    stage.api.as_ref().expect("the row has a proxy before the API server")
}

pub(super) async fn away(stage: &mut Stage) -> String {
    let Api { network, .. } = api(stage);
    let before = network.passed().cut;
    network.refuse(true).await;
    network.cut();
    let refused = tokio::net::TcpStream::connect(("127.0.0.1", network.port())).await.is_err();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let cut = network.passed().cut - before;
    assert!(refused && cut > 0, "the API server is there: {cut} connections were cut");
    network.refuse(false).await;
    stage.revive().await;
    format!("{cut} connections cut, new ones refused for 5 s")
}

pub(super) async fn writes_refused(stage: &mut Stage, code: u16) -> String {
    let Api { http, .. } = api(stage);
    http.refuse_writes(Some(code));
    tokio::time::sleep(Duration::from_secs(6)).await;
    http.refuse_writes(None);
    let refused = http.refused();
    assert!(refused > 0, "nothing was written");
    stage.revive().await;
    format!("{refused} writes answered {code}")
}

pub(super) async fn watch_events_dropped(stage: &mut Stage) -> String {
    let Api { http, .. } = api(stage);
    http.drop_watch_events(true);
    tokio::time::sleep(Duration::from_secs(4)).await;
    http.drop_watch_events(false);
    let dropped = http.dropped_events();
    assert!(dropped > 0, "nothing was told");
    format!("{dropped} watch events dropped")
}

/// etcd has again what it had before, as after a disaster. Redis goes on. Everything that watches begins anew.
pub(super) async fn etcd_put_back(stage: &mut Stage) -> String {
    let plane = stage.f.test.plane();
    let copy = plane.save_etcd().await;
    stage.revive().await;
    stage.heals().await;
    let held = a_long_claim_is_told(stage).await;
    for replica in [Replica::First, Replica::Second] {
        stage.controller(replica).kill();
    }
    plane.put_etcd_back(&copy).await;
    stage.recorder.note(Event::PutBack);
    let claims = stage.f.test.api::<LockClaim>();
    let forgotten = claims.get_opt(&held).await.expect("an answer").is_none();
    assert!(forgotten, "etcd remembers {held}, which was told since");
    // Claims of before, that were deleted since.
    let back = claims.list(&ListParams::default()).await.expect("a list").items;
    let unwanted: Vec<_> = back.iter().map(ResourceExt::name_any).filter(|name| !stage.arena.is_wanted(name)).collect();
    for name in &unwanted {
        claims.delete(name, &DeleteParams::default()).await.expect("deleted");
    }
    stage.watch_anew();
    for replica in [Replica::First, Replica::Second] {
        stage.controller(replica).restart().await;
    }
    format!("etcd has forgotten {held}, and has {} claims again that were deleted", unwanted.len())
}

/// One that etcd hears of only now.
async fn a_long_claim_is_told(stage: &Stage) -> String {
    let mut claims = stage.arena.seen.claims.clone();
    let before: Vec<String> = claims.borrow().keys().cloned().collect();
    let is_new = |(name, claim): &(&String, &Claim)| {
        name.starts_with(LONG) && !before.contains(name) && claim.stage == Progress::Told
    };
    let told = claims.wait_for(|claims| claims.iter().any(|claim| is_new(&claim)));
    let told = tokio::time::timeout(2 * LIMIT, told).await.expect("it is told in time").expect("it is watched");
    told.iter().find(is_new).map(|(name, _)| name.clone()).expect("one is")
}
