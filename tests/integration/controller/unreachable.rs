//! Pods that hold, on nodes that can't be asked whether those still run.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use leasehold::api::condition::{self, reasons, types};
use leasehold::api::{Condition, DistributedLock, DistributedLockSpec, LockClaim, NodeUnreachablePolicy};
use serde_json::json;

use super::elections::{Stage, among};
use super::fixture::{Fixture, a_while, claim_condition, holder, lock_condition, lock_reason};
use crate::support::{LIMIT, serving, wait_for};

/// Far less than the time after which a pod that is gone is believed to have ended.
const SOON: Duration = Duration::from_secs(10);
const METRIC: &str = "\nleasehold_holders_unreachable ";

/// The lock `a`, held by the claim `worker` for a pod on the node of the test's name, and waited for by `next`.
struct Held {
    f: Fixture,
    pod: Pod,
    token: i64,
}

impl Held {
    async fn new(policy: NodeUnreachablePolicy) -> Self {
        let f = Fixture::new().await;
        f.ready_lock("a", |spec| spec.node_unreachable_policy = policy).await;
        f.pods().node(f.test.name(), true).await;
        let pod = f.pods().run("worker", "Always", Some(f.test.name())).await;
        f.claim("worker", "a", |spec| spec.holder_ref = Some(holder(&pod))).await;
        let token = f.token_of("worker").await;
        f.claim("next", "a", |_| {}).await;
        f.has_its_place("next").await;
        Self { f, pod, token }
    }

    async fn node_is_ready(&self, status: &str) {
        self.f.pods().node_is_ready(self.f.test.name(), status).await;
    }

    /// Waits until the lock says that its holder can't be asked, or that it can.
    async fn is_unreachable(&self, is: bool) -> Condition {
        unreachable(&self.f, "a", is).await
    }

    async fn still_holds(&self) {
        let (held, waiting) = (reasons::HOLDER_UNREACHABLE, reasons::WAITING);
        let worker = self.f.claim_reason("worker", types::HELD, held).await;
        assert!(claim_condition(&worker, types::HELD), "it holds on");
        self.f.claim_reason("next", types::HELD, waiting).await;
    }

    /// Waits until `worker` has ended and `next` holds.
    async fn is_handed_over(&self) -> LockClaim {
        let ended = |claim: &LockClaim| claim_condition(claim, types::FINISHED);
        let worker = self.f.test.until::<LockClaim>("worker", "has ended", SOON, ended).await;
        assert!(self.f.token_of("next").await > self.token);
        worker
    }
}

async fn unreachable(f: &Fixture, lock: &str, is: bool) -> Condition {
    let reason = if is { reasons::HOLDER_UNREACHABLE } else { reasons::HOLDERS_REACHABLE };
    let says = |lock: &DistributedLock| {
        let agrees = lock_condition(lock, types::HOLDER_UNREACHABLE) == is;
        agrees && lock_reason(lock, types::HOLDER_UNREACHABLE, reason)
    };
    let lock = f.lock_is(lock, &format!("has the reason {reason}"), says).await;
    condition::get(&lock.status.unwrap().conditions, types::HOLDER_UNREACHABLE).unwrap().clone()
}

async fn counted(f: &Fixture, count: i64) {
    let line = format!("{METRIC}{count}\n");
    let shown = async || f.controller.get("/metrics").await.filter(|(_, text)| text.contains(&line));
    wait_for(&format!("the metric is {count}"), LIMIT, shown).await;
}

#[tokio::test]
async fn a_holder_on_an_unreachable_node_keeps_its_hold_and_the_lock_says_so_while_it_is_so() {
    let held = Held::new(NodeUnreachablePolicy::Keep).await;
    let f = &held.f;
    held.is_unreachable(false).await;
    counted(f, 0).await;
    held.node_is_ready("Unknown").await;
    let condition = held.is_unreachable(true).await;
    let node = format!("its node {} does not report", f.test.name());
    for part in ["pod/worker", &node, "out-of-service", &format!("force-release={}", held.token)] {
        assert!(condition.message.contains(part), "{part} is not in: {}", condition.message);
    }
    held.still_holds().await;
    counted(f, 1).await;
    held.node_is_ready("False").await;
    let worse = |lock: &DistributedLock| {
        let conditions = lock.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        condition::get(conditions, types::HOLDER_UNREACHABLE).is_some_and(|c| c.message.contains("is not Ready"))
    };
    f.lock_is("a", "says that the node is not Ready", worse).await;
    held.node_is_ready("True").await;
    held.is_unreachable(false).await;
    f.claim_reason("worker", types::HELD, reasons::HELD).await;
    counted(f, 0).await;
    f.event("a", reasons::HOLDER_UNREACHABLE).await;
    a_while().await;
    assert_eq!(f.events("a", reasons::HOLDER_UNREACHABLE).await.len(), 1, "one Event when it became so");
    f.pods().delete_node(f.test.name()).await;
    let gone = held.is_unreachable(true).await;
    assert!(gone.message.contains("is gone"), "{}", gone.message);
    f.pods().report("worker", json!({"phase": "Failed"})).await;
    held.is_handed_over().await;
    held.is_unreachable(false).await;
    counted(f, 0).await;
}

#[tokio::test]
async fn a_restart_of_the_controller_neither_forgets_nor_repeats_that_a_holder_is_unreachable() {
    let mut held = Held::new(NodeUnreachablePolicy::Keep).await;
    held.node_is_ready("Unknown").await;
    let before = held.is_unreachable(true).await;
    held.f.event("a", reasons::HOLDER_UNREACHABLE).await;
    held.f.controller.kill();
    held.f.controller.restart().await;
    counted(&held.f, 1).await;
    held.still_holds().await;
    assert_eq!(held.is_unreachable(true).await.last_transition_time, before.last_transition_time);
    assert_eq!(held.f.events("a", reasons::HOLDER_UNREACHABLE).await.len(), 1);
    held.f.controller.kill();
    held.f.pods().delete_by_force(&held.pod).await;
    held.f.controller.restart().await;
    a_while().await;
    held.still_holds().await;
    held.f.pods().node_is_out_of_service(held.f.test.name()).await;
    held.is_handed_over().await;
}

#[tokio::test]
async fn under_release_a_holder_loses_its_hold_with_its_node() {
    let held = Held::new(NodeUnreachablePolicy::Release).await;
    held.node_is_ready("Unknown").await;
    let worker = held.is_handed_over().await;
    let finished = condition::get(&worker.status.unwrap().conditions, types::FINISHED).unwrap().clone();
    assert_eq!(finished.reason, reasons::HOLDER_UNREACHABLE);
    let note = held.f.event("worker", reasons::HOLDER_UNREACHABLE).await;
    assert!(note.contains("does not report") && note.contains("nodeUnreachablePolicy is Release"), "{note}");
}

#[tokio::test]
async fn a_node_out_of_service_ends_its_terminating_pods_and_no_others() {
    let held = Held::new(NodeUnreachablePolicy::Keep).await;
    held.f.pods().node_is_out_of_service(held.f.test.name()).await;
    a_while().await;
    held.f.claim_reason("worker", types::HELD, reasons::HELD).await;
    held.node_is_ready("Unknown").await;
    let condition = held.is_unreachable(true).await;
    assert!(condition.message.contains("is out of service"), "a pod that tolerates that: {}", condition.message);
    held.still_holds().await;
    held.f.pods().delete_gently("worker").await;
    held.is_handed_over().await;
}

#[tokio::test]
async fn a_terminating_pod_on_an_unreachable_node_holds_until_the_node_is_out_of_service() {
    let held = Held::new(NodeUnreachablePolicy::Keep).await;
    held.node_is_ready("Unknown").await;
    held.f.pods().delete_gently("worker").await;
    held.is_unreachable(true).await;
    a_while().await;
    held.still_holds().await;
    held.f.pods().node_is_out_of_service(held.f.test.name()).await;
    held.is_handed_over().await;
}

/// A leader on a node that doesn't report any more, as Kubernetes shows it: it is not Ready either.
async fn strand(stage: &Stage, policy: NodeUnreachablePolicy) -> (String, i64) {
    let spec = |spec: &mut DistributedLockSpec| {
        among("app")(spec);
        spec.node_unreachable_policy = policy;
    };
    stage.f.ready_lock("l", spec).await;
    let (leader, token) = stage.leader(0).await;
    stage.holder_is("l", &leader, token).await;
    stage.f.pods().node_is_ready(&stage.node_of(&leader), "Unknown").await;
    stage.f.pods().report(&leader, serving(1, false)).await;
    (leader, token)
}

#[tokio::test]
async fn a_leader_on_an_unreachable_node_leads_on() {
    let stage = Stage::apart().await;
    let (leader, token) = strand(&stage, NodeUnreachablePolicy::Keep).await;
    let condition = unreachable(&stage.f, "l", true).await;
    assert!(condition.message.contains(&stage.node_of(&leader)), "{}", condition.message);
    counted(&stage.f, 1).await;
    // Longer than failoverAfterSeconds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.leading().await, [(leader.clone(), token)]);
    stage.f.pods().node_is_ready(&stage.node_of(&leader), "True").await;
    unreachable(&stage.f, "l", false).await;
    assert_ne!(stage.leader(token).await.0, leader, "it can be asked, and is not Ready");
}

#[tokio::test]
async fn under_release_a_leader_hands_over_with_its_node() {
    let stage = Stage::apart().await;
    let (leader, token) = strand(&stage, NodeUnreachablePolicy::Release).await;
    let (next, higher) = stage.leader(token).await;
    assert_ne!(next, leader);
    stage.holder_is("l", &next, higher).await;
    let note = stage.f.event("l", reasons::HOLDER_UNREACHABLE).await;
    assert!(note.contains(&stage.node_of(&leader)), "{note}");
}

#[tokio::test]
async fn under_release_nobody_is_chosen_on_a_node_that_is_lost_too() {
    let stage = Stage::apart().await;
    stage
        .f
        .ready_lock("l", |spec| {
            among("app")(spec);
            spec.node_unreachable_policy = NodeUnreachablePolicy::Release;
        })
        .await;
    let (_, token) = stage.leader(0).await;
    // All nodes at once, before anybody has marked the pods as not Ready.
    for pod in ["a", "b", "c"] {
        stage.f.pods().node_is_ready(&stage.node_of(pod), "Unknown").await;
    }
    let nobody = async || stage.leading().await.is_empty().then_some(());
    wait_for("nobody leads", LIMIT, nobody).await;
    let choices = async || {
        let lock = stage.f.lock_is("l", "is there", |_| true).await;
        lock.status.and_then(|status| status.election).expect("it has elected").attempts
    };
    let before = choices().await;
    a_while().await;
    assert_eq!((stage.leading().await, choices().await), (vec![], before));
    stage.f.pods().node_is_ready(&stage.node_of("b"), "True").await;
    assert_eq!(stage.leader(token).await.0, "b");
}

/// Kubernetes writes that it has failed, and deletes it: nobody has seen that on the node.
#[tokio::test]
async fn a_pod_that_is_collected_since_its_node_is_gone_holds_on() {
    let held = Held::new(NodeUnreachablePolicy::Keep).await;
    let f = &held.f;
    f.pods().delete_node(f.test.name()).await;
    held.is_unreachable(true).await;
    let disrupted = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"});
    f.pods().report("worker", json!({"phase": "Failed", "conditions": [disrupted]})).await;
    f.pods().delete_by_force(&held.pod).await;
    a_while().await;
    held.still_holds().await;
}

#[tokio::test]
async fn a_leader_that_is_gone_is_followed_once_its_node_is_out_of_service() {
    let mut stage = Stage::apart().await;
    let (leader, token) = strand(&stage, NodeUnreachablePolicy::Keep).await;
    unreachable(&stage.f, "l", true).await;
    stage.f.controller.kill();
    let pod = stage.f.pods().api().get(&leader).await.unwrap();
    stage.f.pods().delete_by_force(&pod).await;
    stage.f.controller.restart().await;
    a_while().await;
    assert_eq!(stage.leading().await, [], "its pod is gone, and nobody follows it");
    stage.f.pods().node_is_out_of_service(&stage.node_of(&leader)).await;
    assert_ne!(stage.leader(token).await.0, leader);
}
