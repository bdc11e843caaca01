//! Elections among pods: who carries the leader's label, and when another one does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use leasehold::api::condition::{reasons, types};
use leasehold::api::election::{FENCING_TOKEN, LEADER, RELEASED_TOKEN, ROLE_LABEL, STANDBY, TERM};
use leasehold::api::{DistributedLock, DistributedLockSpec, ElectionSpec, LabelSelector, LockClaim};
use leasehold::lease::{Acquired, Wait};
use serde_json::json;

use super::fixture::{Fixture, Site, a_while, lock_reason, request};
use crate::support::{LIMIT, containers_terminated, serving, wait_for};

pub(crate) fn among(app: &str) -> impl Fn(&mut DistributedLockSpec) {
    let match_labels = [("app".to_owned(), app.to_owned())].into();
    let selector = LabelSelector { match_labels, match_expressions: Vec::new() };
    move |spec| spec.election = Some(ElectionSpec { selector: selector.clone(), failover_after_seconds: 1 })
}

async fn pods(site: &Site) -> Vec<Pod> {
    site.pods().api().list(&ListParams::default()).await.expect("a list").items
}

/// Name and token of each pod with the leader's label.
pub(crate) async fn leading(site: &Site) -> Vec<(String, i64)> {
    let pods = pods(site).await;
    let leading = pods.iter().filter(|pod| pod.labels().get(ROLE_LABEL).is_some_and(|role| role == LEADER));
    leading.map(|pod| (pod.name_any(), pod.annotations()[FENCING_TOKEN].parse().expect("a token"))).collect()
}

/// Waits until so many lead, none of them with a token of `before` or lower.
pub(crate) async fn leaders(site: &Site, count: usize, before: i64) -> Vec<(String, i64)> {
    let ask = async || Some(leading(site).await).filter(|l| l.len() == count && l.iter().all(|(_, t)| *t > before));
    wait_for(&format!("{count} pods lead with tokens above {before}"), LIMIT, ask).await
}

/// The reign that has marked a pod; 0: none has.
fn term(pod: &Pod) -> i64 {
    pod.annotations().get(TERM).map_or(0, |term| term.parse().expect("a term"))
}

/// Pods a, b and c of `app`, all Ready, on a Ready node.
pub(super) struct Stage {
    pub(super) f: Fixture,
}

impl Stage {
    async fn new() -> Self {
        Self::over(Fixture::new().await).await
    }

    async fn over(f: Fixture) -> Self {
        f.pods().node(f.test.name(), true).await;
        for pod in ["a", "b", "c"] {
            f.pods().serve(pod, "app", f.test.name()).await;
        }
        Self { f }
    }

    /// As `new`, each pod on a node of its own.
    pub(super) async fn apart() -> Self {
        let stage = Self { f: Fixture::new().await };
        for pod in ["a", "b", "c"] {
            stage.f.pods().node(&stage.node_of(pod), true).await;
            stage.f.pods().serve(pod, "app", &stage.node_of(pod)).await;
        }
        stage
    }

    pub(super) fn node_of(&self, pod: &str) -> String {
        format!("{}-{pod}", self.f.test.name())
    }

    pub(super) async fn leading(&self) -> Vec<(String, i64)> {
        leading(&self.f).await
    }

    async fn leaders(&self, count: usize, before: i64) -> Vec<(String, i64)> {
        leaders(&self.f, count, before).await
    }

    pub(super) async fn leader(&self, before: i64) -> (String, i64) {
        self.leaders(1, before).await.remove(0)
    }

    /// From now on, the names of all pods that are ever seen with the leader's label, each once.
    async fn labelled_leaders(&self) -> Arc<Mutex<BTreeSet<String>>> {
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let (api, note) = (self.f.pods().api().clone(), seen.clone());
        let config = watcher::Config::default().labels(&format!("{ROLE_LABEL}={LEADER}"));
        tokio::spawn(async move {
            let mut pods = std::pin::pin!(watcher(api, config).applied_objects());
            while let Some(pod) = pods.next().await {
                note.lock().expect("not poisoned").extend(pod.map(|pod| pod.name_any()));
            }
        });
        let noted = async || (!seen.lock().expect("not poisoned").is_empty()).then_some(());
        wait_for("the watch sees the leader", LIMIT, noted).await;
        seen
    }

    pub(super) async fn holder_is(&self, lock: &str, pod: &str, token: i64) {
        let identity = format!("pod/{pod}");
        let shown = |lock: &DistributedLock| {
            let status = lock.status.as_ref();
            status.is_some_and(|s| s.holder.as_ref() == Some(&identity) && s.fencing_token == Some(token))
        };
        self.f.lock_is(lock, &format!("is held by {pod} with {token}"), shown).await;
    }
}

#[tokio::test]
async fn one_pod_leads_and_the_others_stand_by() {
    let stage = Stage::new().await;
    stage.f.ready_lock("l", among("app")).await;
    let (leader, token) = stage.leader(0).await;
    stage.holder_is("l", &leader, token).await;
    let standing_by = async || {
        let pods = pods(&stage.f).await;
        let count = pods.iter().filter(|p| p.labels().get(ROLE_LABEL).is_some_and(|role| role == STANDBY)).count();
        (count == 2).then_some(())
    };
    wait_for("the others stand by", LIMIT, standing_by).await;
    let version = stage.f.pods().api().get(&leader).await.unwrap().resource_version();
    stage.f.pods().serve("d", "app", stage.f.test.name()).await;
    a_while().await;
    assert_eq!(stage.leading().await, [(leader.clone(), token)], "a healthy leader is not moved");
    assert_eq!(stage.f.pods().api().get(&leader).await.unwrap().resource_version(), version, "nor written");
}

#[tokio::test]
async fn a_healthy_leader_stays_and_is_not_written_while_the_controller_starts_anew() {
    let mut stage = Stage::new().await;
    stage.f.ready_lock("l", among("app")).await;
    let (leader, token) = stage.leader(0).await;
    let before = stage.f.pods().api().get(&leader).await.unwrap();
    let seen = stage.labelled_leaders().await;
    stage.f.controller.kill();
    stage.f.controller.restart().await;
    let stamped = async || {
        let pods = pods(&stage.f).await;
        let mut standing_by = pods.iter().filter(|pod| pod.name_any() != leader);
        standing_by.all(|pod| term(pod) > term(&before)).then_some(())
    };
    wait_for("the new reign has stamped the others", LIMIT, stamped).await;
    stage.holder_is("l", &leader, token).await;
    a_while().await;
    assert_eq!(stage.leading().await, [(leader.clone(), token)]);
    let now = stage.f.pods().api().get(&leader).await.unwrap();
    assert_eq!(now.resource_version(), before.resource_version(), "its pod was written");
    assert_eq!(*seen.lock().expect("not poisoned"), [leader].into(), "somebody else led in between");
}

#[tokio::test]
async fn as_many_lead_as_there_are_permits() {
    let stage = Stage::new().await;
    stage
        .f
        .ready_lock("l", |spec| {
            among("app")(spec);
            spec.permits = 2;
        })
        .await;
    let leaders = stage.leaders(2, 0).await;
    assert_ne!(leaders[0].1, leaders[1].1);
    stage.f.change::<DistributedLock>("l", json!({"permits": 3})).await;
    stage.leaders(3, 0).await;
}

#[tokio::test]
async fn a_leader_that_ends_hands_over_with_a_higher_token() {
    let stage = Stage::new().await;
    stage.f.ready_lock("l", among("app")).await;
    let (first, token) = stage.leader(0).await;
    stage.f.pods().report(&first, json!({"phase": "Failed"})).await;
    let reported = Instant::now();
    let (second, higher) = stage.leader(token).await;
    println!("handed over after {:?}", reported.elapsed());
    assert_ne!(first, second);
    let ended = stage.f.pods().api().get(&first).await.unwrap();
    assert_eq!(ended.annotations()[RELEASED_TOKEN], token.to_string());
    stage.holder_is("l", &second, higher).await;
}

#[tokio::test]
async fn a_leader_whose_container_ends_hands_over_and_alone_it_begins_anew() {
    let stage = Stage::new().await;
    stage.f.ready_lock("l", among("app")).await;
    let (first, token) = stage.leader(0).await;
    stage.f.pods().report(&first, containers_terminated(1)).await;
    let (second, token) = stage.leader(token).await;
    assert_ne!(first, second);
    for pod in ["a", "b", "c"].into_iter().filter(|pod| *pod != second) {
        stage.f.pods().report(pod, serving(1, false)).await;
    }
    stage.f.pods().report(&second, containers_terminated(1)).await;
    a_while().await;
    assert_eq!(stage.leading().await, [(second.clone(), token)], "nobody else is Ready");
    stage.f.pods().report(&second, serving(2, true)).await;
    let (third, higher) = stage.leader(token).await;
    assert_eq!(third, second);
    stage.holder_is("l", &second, higher).await;
}

#[tokio::test]
async fn a_leader_that_is_not_ready_for_long_hands_over_if_another_is() {
    let stage = Stage::new().await;
    stage.f.ready_lock("l", among("app")).await;
    let (first, token) = stage.leader(0).await;
    for pod in ["a", "b", "c"] {
        stage.f.pods().report(pod, serving(1, false)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(stage.leading().await, [(first.clone(), token)], "nobody is Ready: the leader stays");
    let other = ["a", "b", "c"].into_iter().find(|pod| *pod != first).expect("another pod");
    stage.f.pods().report(other, serving(1, true)).await;
    assert_eq!(stage.leader(token).await.0, other);
}

#[tokio::test]
async fn a_leader_that_is_deleted_is_followed_once_it_is_gone() {
    let stage = Stage::new().await;
    stage.f.ready_lock("l", among("app")).await;
    let (first, token) = stage.leader(0).await;
    let kept = Patch::Merge(json!({"metadata": {"finalizers": ["test/kept"]}}));
    stage.f.pods().api().patch(&first, &PatchParams::default(), &kept).await.expect("patched");
    stage.f.pods().api().delete(&first, &DeleteParams::default()).await.expect("deleted");
    a_while().await;
    assert_eq!(stage.leading().await, [(first.clone(), token)], "a terminating pod leads until it has ended");
    stage.f.pods().report(&first, json!({"phase": "Succeeded"})).await;
    let free = Patch::Merge(json!({"metadata": {"finalizers": []}}));
    stage.f.pods().api().patch(&first, &PatchParams::default(), &free).await.expect("patched");
    assert_ne!(stage.leader(token).await.0, first);
}

#[tokio::test]
async fn redis_and_the_controller_are_lost_and_the_leader_leads_on() {
    let mut stage = Stage::new().await;
    stage
        .f
        .ready_lock("l", |spec| {
            among("app")(spec);
            spec.lease_duration_seconds = 2;
        })
        .await;
    let (first, token) = stage.leader(0).await;
    stage.f.controller.kill();
    stage.f.redis.kill();
    stage.f.redis.restart().await;
    stage.f.controller.restart().await;
    let key = stage.f.key("l");
    let back = async || stage.f.workload().inspect(&key).await.ok().flatten().filter(|record| !record.holds.is_empty());
    let record = wait_for("the hold is put back", LIMIT, back).await;
    assert_eq!((record.holds.len(), record.holds[0].token.get()), (1, token));
    a_while().await;
    assert_eq!(stage.leading().await, [(first.clone(), token)]);
    stage.f.pods().report(&first, json!({"phase": "Failed"})).await;
    assert_ne!(stage.leader(token).await.0, first);
}

#[tokio::test]
async fn nobody_else_can_hold_an_elected_lock() {
    let stage = Stage::new().await;
    stage.f.ready_lock("l", among("app")).await;
    stage.leader(0).await;
    let direct = stage.f.workload().acquire(&stage.f.key("l"), &request("direct", Wait::Forever)).await;
    assert_eq!(direct.unwrap(), Acquired::LockIsElected);
    stage.f.claim("waits", "l", |_| {}).await;
    stage.f.claim_reason("waits", types::HELD, reasons::LOCK_IS_ELECTED).await;
    stage.f.claim("wont", "l", |spec| spec.wait_timeout_seconds = Some(0)).await;
    stage.f.claim_reason("wont", types::FINISHED, reasons::LOCK_IS_ELECTED).await;
    stage.f.change::<DistributedLock>("l", json!({"election": null})).await;
    stage.f.token_of("waits").await;
    assert_eq!(stage.leading().await, [], "the election is over");
    stage.f.delete::<LockClaim>("waits").await;
}

#[tokio::test]
async fn two_locks_that_elect_the_same_pods_are_refused() {
    let stage = Stage::new().await;
    stage.f.ready_lock("l", among("app")).await;
    let leader = stage.leader(0).await;
    stage.f.lock("m", among("app")).await;
    let conflict = |lock: &DistributedLock| lock_reason(lock, types::READY, reasons::ROLE_LABEL_CONFLICT);
    stage.f.lock_is("m", "is refused", conflict).await;
    assert_eq!(stage.leading().await, std::slice::from_ref(&leader));
    stage.f.delete::<DistributedLock>("l").await;
    stage.f.test.gone::<DistributedLock>("l", LIMIT).await;
    let (pod, token) = stage.leader(0).await;
    stage.holder_is("m", &pod, token).await;
}

#[tokio::test]
async fn a_lock_that_is_deleted_takes_its_lead_back() {
    let stage = Stage::new().await;
    stage.f.ready_lock("l", among("app")).await;
    let (_, token) = stage.leader(0).await;
    stage.f.delete::<DistributedLock>("l").await;
    stage.f.test.gone::<DistributedLock>("l", LIMIT).await;
    assert_eq!(stage.leading().await, []);
    stage.f.ready_lock("l", among("app")).await;
    stage.leader(token).await;
}
