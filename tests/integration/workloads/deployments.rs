//! Deployments of one pod, which are rolled over.

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{APP, apply, is_stopped, it_stays, pods, roll_over, runs, there_are, workload};
use crate::controller::fixture::Fixture;
use crate::controller::gated::{is_gated, let_go, queues};

/// A Deployment with this strategy, whose pod runs. Its name and its token.
async fn deployed(f: &Fixture, strategy: Value) -> (String, i64) {
    f.ready_lock("a", |_| {}).await;
    apply(f, &workload("Deployment", json!({"replicas": 1, "strategy": strategy}))).await;
    let old = there_are(f, 0, 1).await.remove(0).name_any();
    let token = runs(f, &old).await;
    (old, token)
}

/// Ends the old pod, which is being deleted; the one that comes after it has a higher token.
async fn the_next_follows(f: &Fixture, old: &str, token: i64) {
    is_stopped(f, old).await;
    let new = there_are(f, 0, 1).await.remove(0).name_any();
    assert_ne!(new, old);
    let next = let_go(f, &new).await;
    assert!(next > token, "{next} after {token}");
}

#[tokio::test]
async fn a_rolling_update_with_a_surge_waits_until_the_surge_is_taken_away() {
    let f = Fixture::new().await;
    let (old, token) = deployed(&f, json!({})).await;
    roll_over(&f, "deployment").await;
    let free = it_stays(&f, 1, 1).await;
    assert_eq!(free[0].name_any(), old, "the old one runs on");
    let next = pods(&f).await.into_iter().find(|pod| pod.name_any() != old).expect("the new one waits");
    queues(&f, &next).await;
    assert!(is_gated(&f, &next.name_any()).await);
    f.change::<Deployment>(APP, json!({"strategy": {"rollingUpdate": {"maxSurge": 0}}})).await;
    the_next_follows(&f, &old, token).await;
}

#[tokio::test]
async fn a_rolling_update_without_a_surge_goes_on() {
    let f = Fixture::new().await;
    let (old, token) = deployed(&f, json!({"rollingUpdate": {"maxSurge": 0}})).await;
    roll_over(&f, "deployment").await;
    the_next_follows(&f, &old, token).await;
}
