//! The API server is away, refuses, or tells not everything. Those who watch hear it all.

use std::time::Duration;

use super::super::stage::{Api, Stage};

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
