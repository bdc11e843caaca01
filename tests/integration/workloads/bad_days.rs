//! Pods that hold or wait, while something is lost: Redis, the API server, a node, their namespace.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, ResourceExt};
use leasehold::api::condition::{reasons, types};
use leasehold::api::{DistributedLock, LockClaim, NodeUnreachablePolicy};
use rstest::rstest;
use serde_json::json;

use super::{bare_pod, evict, is_stopped, it_stays, running, runs, there_are, to_each};
use crate::controller::fixture::{Fixture, a_while, claim_condition, epoch, is_ready};
use crate::controller::gated::{GATE, claim_of, is_gated as waits, let_go, queues};
use crate::support::{ApiProxy, LIMIT, Proxy, RedisServer, TestNamespace, wait_for};

const PERMITS: usize = 50;

/// The tokens of the pods that run, by the pods' names.
async fn tokens(f: &Fixture) -> HashMap<String, i64> {
    let token = |pod: &Pod| pod.annotations()["leasehold.dev/fencing-token"].parse().expect("a number");
    running(f).await.iter().map(|pod| (pod.name_any(), token(pod))).collect()
}

/// Waits until so many run, and then a while in which it stays so.
async fn so_many_run(f: &Fixture, count: usize) -> HashMap<String, i64> {
    let run = async || (tokens(f).await.len() == count).then_some(());
    wait_for(&format!("{count} pods run"), 4 * LIMIT, run).await;
    a_while().await;
    let tokens = tokens(f).await;
    assert_eq!(tokens.len(), count);
    tokens
}

#[rstest]
#[case::restarted(true)]
#[case::flushed(false)]
#[tokio::test]
async fn redis_emptied_under_fifty_that_hold_and_fifty_that_wait_takes_no_hold_and_grants_none_twice(
    #[case] restarts: bool,
) {
    let mut f = Fixture::new().await;
    f.ready_lock("a", |spec| (spec.permits, spec.lease_duration_seconds) = (50, 2)).await;
    let make = async |name: String| drop(f.pods().gated(&name, "a", &[GATE], json!({})).await);
    to_each((0..2 * PERMITS).map(|number| format!("p-{number}")), make).await;
    let held = so_many_run(&f, PERMITS).await;
    to_each(held.keys().cloned(), async |name: String| drop(f.pods().start(&name, f.test.name()).await)).await;

    let before = epoch(&f.store_is("is Ready", is_ready).await);
    if restarts {
        f.redis.kill();
        f.store_is("is not Ready", |store| !is_ready(store)).await;
        f.redis.restart().await;
    } else {
        f.redis.send::<()>("FLUSHALL").await;
    }
    f.store_is("is Ready in a new epoch", |store| epoch(store) > before && is_ready(store)).await;
    assert_eq!(so_many_run(&f, PERMITS).await, held, "each holds on with its token, and nobody else does");
    let record = f.workload().inspect(&f.key("a")).await.expect("an answer").expect("a record");
    assert_eq!(record.holds.len(), PERMITS);

    let end = async |name: String| drop(f.pods().report(&name, json!({"phase": "Succeeded"})).await);
    to_each(held.keys().take(20).cloned(), &end).await;
    let highest = held.values().max().copied().expect("some hold");
    let now = so_many_run(&f, PERMITS).await;
    let new: Vec<_> = now.iter().filter(|(name, _)| !held.contains_key(*name)).collect();
    assert_eq!(new.len(), 20, "one for each that has ended");
    assert!(new.iter().all(|(_, token)| **token > highest), "{new:?} after {highest}");
    to_each(held.keys().skip(20).cloned(), &end).await;
    let all = so_many_run(&f, PERMITS).await;
    let distinct: std::collections::HashSet<_> = held.values().chain(all.values()).collect();
    assert_eq!(distinct.len(), 2 * PERMITS, "each has a token of its own");
}

#[tokio::test]
async fn an_api_server_that_is_away_takes_no_hold_and_what_ended_meanwhile_is_handed_over() {
    let test = TestNamespace::new().await;
    let http = ApiProxy::start(&test.plane().kubeconfig("controller"));
    let network = Proxy::start(http.port());
    let kubeconfig = http.kubeconfig(network.port());
    let f = Fixture::on(test, RedisServer::start().await, |options| options.kubeconfig = kubeconfig).await;
    f.store_is("is Ready", is_ready).await;
    f.ready_lock("a", |spec| (spec.permits, spec.lease_duration_seconds) = (2, 1)).await;
    for name in ["stays", "ends"] {
        f.pods().gated(name, "a", &[GATE], json!({})).await;
        runs(&f, name).await;
    }
    let next = f.pods().gated("next", "a", &[GATE], json!({})).await;
    queues(&f, &next).await;
    network.refuse(true).await;
    network.cut();
    f.pods().report("ends", json!({"phase": "Succeeded"})).await;
    f.pods().gated("last", "a", &[GATE], json!({})).await;
    // Longer than their leases.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(waits(&f, "next").await && waits(&f, "last").await, "nobody can tell them");
    let record = f.workload().inspect(&f.key("a")).await.expect("an answer").expect("a record");
    assert_eq!(record.holds.len(), 2, "nobody has told that one has ended");
    network.refuse(false).await;
    let_go(&f, "next").await;
    a_while().await;
    assert!(waits(&f, "last").await, "one of the first two holds on");
    f.pods().report("stays", json!({"phase": "Succeeded"})).await;
    let_go(&f, "last").await;
}

/// One pod holds on a node that is then unreachable, and another waits. The first one, and its token.
async fn strand(f: &Fixture, policy: NodeUnreachablePolicy) -> (Pod, i64) {
    f.ready_lock("a", |spec| spec.node_unreachable_policy = policy).await;
    f.pods().node(f.test.name(), true).await;
    let pod = f.pods().gated("p", "a", &[GATE], json!({})).await;
    let token = runs(f, "p").await;
    let next = f.pods().gated("next", "a", &[GATE], json!({})).await;
    queues(f, &next).await;
    f.pods().node_is_ready(f.test.name(), "Unknown").await;
    (pod, token)
}

#[tokio::test]
async fn a_pod_on_an_unreachable_node_holds_on() {
    let f = Fixture::new().await;
    let (pod, token) = strand(&f, NodeUnreachablePolicy::Keep).await;
    let claim = f.claim_reason(&claim_of(&pod), types::HELD, reasons::HOLDER_UNREACHABLE).await;
    assert!(claim_condition(&claim, types::HELD));
    a_while().await;
    assert!(waits(&f, "next").await);
    f.pods().node_is_ready(f.test.name(), "True").await;
    f.claim_reason(&claim_of(&pod), types::HELD, reasons::HELD).await;
    f.pods().report("p", json!({"phase": "Succeeded"})).await;
    assert!(let_go(&f, "next").await > token);
}

#[tokio::test]
async fn under_release_a_pod_loses_its_hold_with_its_node() {
    let f = Fixture::new().await;
    let (pod, token) = strand(&f, NodeUnreachablePolicy::Release).await;
    assert!(let_go(&f, "next").await > token);
    f.claim_reason(&claim_of(&pod), types::FINISHED, reasons::HOLDER_UNREACHABLE).await;
    f.pods().api().get("p").await.expect("nobody has deleted it");
}

#[tokio::test]
async fn an_evicted_pod_holds_until_it_has_ended() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 1).await;
    let pod = bare_pod(&f, "p", json!({})).await;
    let token = runs(&f, "p").await;
    let next = bare_pod(&f, "next", json!({})).await;
    queues(&f, &next).await;
    evict(&f, "p").await.expect("nothing forbids it");
    let leaves = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    f.test.until::<Pod>("p", "is being deleted", LIMIT, leaves).await;
    // Longer than its lease, and than the time that it has to end.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(waits(&f, "next").await, "its kubelet hasn't told that it has ended");
    let claim = f.claim_is(&claim_of(&pod), "is there", |_| true).await;
    assert!(claim_condition(&claim, types::HELD));
    is_stopped(&f, "p").await;
    assert!(let_go(&f, "next").await > token);
}

#[tokio::test]
async fn a_namespace_goes_with_those_that_wait_and_not_before_those_that_hold_have_ended() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let holder = bare_pod(&f, "holds", json!({})).await;
    runs(&f, "holds").await;
    for number in 0..3 {
        let waits = bare_pod(&f, &format!("waits-{number}"), json!({})).await;
        queues(&f, &waits).await;
    }
    it_stays(&f, 3, 1).await;
    f.test.delete().await;
    for number in 0..3 {
        f.test.gone::<Pod>(&format!("waits-{number}"), LIMIT).await;
    }
    there_are(&f, 0, 0).await;
    a_while().await;
    let claim = f.claim_is(&claim_of(&holder), "is there", |_| true).await;
    assert!(claim_condition(&claim, types::HELD), "its pod hasn't ended");
    let lock = f.lock_is("a", "is there", |_| true).await;
    assert_eq!(lock.status.expect("a status").holder.as_deref(), Some("pod/holds"));
    is_stopped(&f, "holds").await;
    f.test.gone::<LockClaim>(&claim_of(&holder), LIMIT).await;
    f.test.gone::<DistributedLock>("a", LIMIT).await;
    let namespaces: Api<Namespace> = Api::all(f.test.client());
    let gone = async || namespaces.get_opt(f.test.name()).await.ok()?.is_none().then_some(());
    wait_for("the namespace is gone", LIMIT, gone).await;
}
