//! Beside the scheduler, the autoscaler that reads what it says, and Kueue, which has a gate too.

use k8s_openapi::api::core::v1::Pod;
use leasehold::api::LockClaim;
use serde_json::json;

use super::bare_pod;
use crate::controller::fixture::{Fixture, a_while};
use crate::controller::gated::{GATE, claim_of, condition, let_go, merge, queues};
use crate::policies::apply_gated;
use crate::support::LIMIT;

const KUEUE: &str = "kueue.x-k8s.io/admission";

/// An autoscaler makes room for pods with `PodScheduled=False` of the reason `Unschedulable`, and for no others.
fn asks_for_room(pod: &Pod) -> bool {
    reason(pod) == Some("Unschedulable")
}

fn reason(pod: &Pod) -> Option<&str> {
    condition(pod, "PodScheduled")?.reason.as_deref()
}

#[tokio::test]
async fn an_autoscaler_is_asked_for_room_only_once_the_pod_is_let_go() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let _scheduler = f.test.plane().start_scheduler(f.test.name());
    let spec = json!({"schedulerName": f.test.name(), "nodeSelector": {"nobody": "has-this"}});
    let waits = bare_pod(&f, "p", spec).await;
    queues(&f, &waits).await;
    a_while().await;
    let waits = f.pods().api().get("p").await.expect("it is there");
    assert_eq!(reason(&waits), Some("SchedulingGated"));
    f.delete::<LockClaim>("mine").await;
    let_go(&f, "p").await;
    f.test.until::<Pod>("p", "asks for room", LIMIT, asks_for_room).await;
}

#[tokio::test]
async fn a_pod_of_kueue_holds_nothing_until_it_has_its_quota() {
    let f = Fixture::new().await;
    apply_gated(&f.test).await;
    f.ready_lock("a", |_| {}).await;
    // The policy adds our gate to that of Kueue.
    let pod = f.pods().gated("p", "a", &[KUEUE], json!({})).await;
    let names = |pod: &Pod| -> Vec<String> {
        let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.clone()).unwrap_or_default();
        gates.into_iter().map(|gate| gate.name).collect()
    };
    assert_eq!(names(&pod), [KUEUE, GATE]);
    a_while().await;
    assert!(f.test.api::<LockClaim>().get_opt(&claim_of(&pod)).await.expect("an answer").is_none());
    merge(&f, "p", json!({"spec": {"schedulingGates": [{ "name": GATE }]}})).await;
    let_go(&f, "p").await;
}
