//! Pods that wait for locks by a label and a gate. The test plays scheduler and kubelet.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use leasehold::api::condition::{reasons, types};
use leasehold::api::gated::LOCKS;
use leasehold::api::{DistributedLock, LockClaim};
use leasehold::lease::HolderId;
use rstest::rstest;
use serde_json::{Value, json};

use super::fixture::{Fixture, Site, a_while, claim_condition, is_ready};
use crate::policies::{of_somebody_else, requests};
use crate::support::{
    ApiProxy, AuditEntry, LIMIT, RedisServer, TestNamespace, containers_running, containers_terminated,
    containers_waiting, wait_for,
};

pub(crate) const GATE: &str = "leasehold.dev/lock";
const TOKEN: &str = "leasehold.dev/fencing-token";
const OTHER_GATE: &str = "example.com/other";
/// A pod that holds may take 30 s to start before it is said that it blocks others.
const SLOW_START: Duration = Duration::from_secs(30);

fn gates(pod: &Pod) -> Vec<&str> {
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_deref()).unwrap_or_default();
    gates.iter().map(|gate| gate.name.as_str()).collect()
}

pub(crate) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

pub(crate) fn claim_of(pod: &Pod) -> String {
    format!("pod-{}", pod.uid().expect("a UID"))
}

/// Waits until the pod has been let go, and returns its token.
pub(crate) async fn let_go(f: &Site, name: &str) -> i64 {
    let pod = f.test.until::<Pod>(name, "is let go", LIMIT, |pod| gates(pod).is_empty()).await;
    let token = pod.annotations().get(TOKEN).expect("it has its token in the same write");
    token.parse().expect("a number")
}

pub(crate) async fn is_gated(f: &Site, name: &str) -> bool {
    let pod = f.pods().api().get(name).await.expect("it is there");
    gates(&pod).contains(&GATE) && !pod.annotations().contains_key(TOKEN)
}

/// Waits until the claim of a pod stands in the queue.
pub(crate) async fn queues(f: &Site, pod: &Pod) {
    let claim = claim_of(pod);
    wait_for("its claim is made", LIMIT, async || f.test.api::<LockClaim>().get_opt(&claim).await.ok().flatten()).await;
    f.claim_reason(&claim, types::HELD, reasons::WAITING).await;
}

pub(crate) async fn says(f: &Site, name: &str, reason: &str) -> PodCondition {
    says_within(f, name, reason, LIMIT).await
}

async fn says_within(f: &Site, name: &str, reason: &str, limit: Duration) -> PodCondition {
    let is = |pod: &Pod| condition(pod, types::LOCK_HELD).is_some_and(|said| said.reason.as_deref() == Some(reason));
    let pod = f.test.until::<Pod>(name, reason, limit, is).await;
    condition(&pod, types::LOCK_HELD).expect("it says so").clone()
}

pub(crate) async fn fails(f: &Site, name: &str) -> Pod {
    let failed = |pod: &Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Failed"));
    f.test.until::<Pod>(name, "has failed", LIMIT, failed).await
}

/// Waits until so many wait for a lock.
async fn waiters(f: &Site, lock: &str, count: i32) {
    let so_many = |lock: &DistributedLock| lock.status.as_ref().is_some_and(|s| s.waiters == count);
    f.lock_is(lock, &format!("has {count} waiters"), so_many).await;
}

pub(crate) async fn merge(f: &Site, name: &str, patch: Value) {
    f.pods().api().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("patched");
}

#[tokio::test]
async fn gated_pods_take_turns_and_each_gets_its_token() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.pods().gated("one", "a", &[GATE], json!({})).await;
    let first = let_go(&f, "one").await;
    let one = f.pods().start("one", f.test.name()).await;
    assert_eq!(one.annotations()["fencing-token.leasehold.dev/a"], first.to_string());
    let two = f.pods().gated("two", "a", &[GATE], json!({})).await;
    queues(&f, &two).await;
    let lock =
        f.lock_is("a", "names its holder", |lock| lock.status.as_ref().is_some_and(|s| s.holder.is_some())).await;
    assert_eq!(lock.status.unwrap().holder.as_deref(), Some("pod/one"));
    a_while().await;
    assert!(is_gated(&f, "two").await, "one holds while it runs");

    f.pods().report("one", json!({"phase": "Succeeded"})).await;
    assert!(let_go(&f, "two").await > first);
    let gone = f.test.api::<LockClaim>().get_opt(&claim_of(&one)).await.expect("an answer").is_none();
    assert!(gone, "its own claim goes before another pod gets the lock");
    let note = f.event("two", "LockAcquired").await;
    assert!(note.contains("holds a with token"), "{note}");
}

/// What it costs to serve a cluster doesn't depend on its other pods.
#[tokio::test]
async fn of_all_pods_those_with_the_label_are_watched() {
    let test = TestNamespace::new().await;
    let proxy = ApiProxy::start(&test.plane().kubeconfig("controller"));
    let kubeconfig = proxy.kubeconfig(proxy.port());
    let f = Fixture::on(test, RedisServer::start().await, |options| options.kubeconfig = kubeconfig).await;
    f.ready_lock("a", |_| {}).await;
    f.pods().gated("p", "a", &[GATE], json!({})).await;
    let_go(&f, "p").await;
    let watched = proxy.watched();
    let mut pods = watched.iter().filter_map(|watch| watch.split_once("/pods?")).map(|(_, query)| query).peekable();
    assert!(pods.peek().is_some(), "{watched:?}");
    assert!(pods.all(|query| query.contains("labelSelector=leasehold.dev%2Flock&")), "{watched:?}");
}

#[tokio::test]
async fn a_claim_is_made_once_ours_is_the_last_gate() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let pod = f.pods().gated("p", "a", &["quota", GATE], json!({})).await;
    a_while().await;
    assert!(f.test.api::<LockClaim>().get_opt(&claim_of(&pod)).await.expect("an answer").is_none());
    merge(&f, "p", json!({"spec": {"schedulingGates": [{ "name": GATE }]}})).await;
    let_go(&f, "p").await;
}

#[tokio::test]
async fn label_and_list_may_change_while_the_gate_is_there() {
    let f = Fixture::new().await;
    for lock in ["a", "b", "c"] {
        f.ready_lock(lock, |_| {}).await;
    }
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let pod = f.pods().gated("p", "a", &[GATE], json!({})).await;
    queues(&f, &pod).await;
    merge(&f, "p", json!({"metadata": {"annotations": {"leasehold.dev/locks": "a,c"}}})).await;
    f.claim_is(&claim_of(&pod), "asks for both", |claim| claim.lock_names() == "a,c").await;
    queues(&f, &pod).await;
    merge(&f, "p", json!({"metadata": {"labels": { GATE: "b" }, "annotations": {"leasehold.dev/locks": null}}})).await;
    let token = let_go(&f, "p").await;
    let claim = f.claim_is(&claim_of(&pod), "holds", |claim| claim_condition(claim, types::HELD)).await;
    assert_eq!((claim.lock_names(), claim.status.unwrap().fencing_token), ("b".into(), Some(token)));
    waiters(&f, "a", 0).await;
}

#[tokio::test]
async fn one_that_asks_for_something_else_waits_anew_at_the_end() {
    let f = Fixture::new().await;
    for lock in ["a", "c"] {
        f.ready_lock(lock, |_| {}).await;
    }
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let first = f.pods().gated("first", "a", &[GATE], json!({})).await;
    queues(&f, &first).await;
    let second = f.pods().gated("second", "a", &[GATE], json!({})).await;
    queues(&f, &second).await;
    merge(&f, "first", json!({"metadata": {"annotations": {"leasehold.dev/locks": "a,c"}}})).await;
    f.claim_is(&claim_of(&first), "asks for both", |claim| claim.lock_names() == "a,c").await;
    queues(&f, &first).await;
    f.delete::<LockClaim>("mine").await;
    let token = let_go(&f, "second").await;
    assert!(is_gated(&f, "first").await, "it stood before, with another list");
    f.pods().report("second", json!({"phase": "Succeeded"})).await;
    assert!(let_go(&f, "first").await > token);
}

#[tokio::test]
async fn one_that_waits_for_several_locks_gets_the_token_of_each() {
    let f = Fixture::new().await;
    for lock in ["a", "b", "c"] {
        f.ready_lock(lock, |spec| spec.permits = 2).await;
    }
    f.claim("mine", "b", |spec| spec.locks[0].permits = Some(1)).await;
    f.token_of("mine").await;
    let pod = f.pods().gated("p", "c", &[GATE], json!({"leasehold.dev/locks": "c,a:shared,b=2"})).await;
    queues(&f, &pod).await;
    a_while().await;
    assert!(is_gated(&f, "p").await, "one permit of b is missing");
    f.delete::<LockClaim>("mine").await;
    let token = let_go(&f, "p").await;
    let pod = f.pods().api().get("p").await.expect("it is there");
    let of = |lock: &str| {
        pod.annotations()[&format!("fencing-token.leasehold.dev/{lock}")].parse::<i64>().expect("a number")
    };
    assert_eq!(of("c"), token);
    let claim = f.claim_is(&claim_of(&pod), "holds", |claim| claim_condition(claim, types::HELD)).await;
    for claimed in claim.status.expect("a status").locks {
        assert_eq!(of(&claimed.name), claimed.fencing_token, "{}", claimed.name);
    }
}

#[tokio::test]
async fn one_that_is_deleted_while_it_waits_leaves_the_queue() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let gone = f.pods().gated("gone", "a", &[GATE], json!({})).await;
    queues(&f, &gone).await;
    let next = f.pods().gated("next", "a", &[GATE], json!({})).await;
    queues(&f, &next).await;
    waiters(&f, "a", 2).await;
    f.pods().delete_by_force(&gone).await;
    // It was never granted: the lock is still held.
    f.test.gone::<LockClaim>(&claim_of(&gone), LIMIT).await;
    waiters(&f, "a", 1).await;
    f.delete::<LockClaim>("mine").await;
    let_go(&f, "next").await;
}

#[tokio::test]
async fn a_lock_that_is_missing_is_said_until_it_is_there() {
    let f = Fixture::new().await;
    f.pods().gated("p", "later", &[GATE], json!({})).await;
    let said = says(&f, "p", reasons::LOCK_NOT_FOUND).await;
    assert!(said.status == "False" && said.message.unwrap().contains("create it"));
    let note = f.event("p", reasons::LOCK_NOT_FOUND).await;
    assert!(note.contains("later"), "{note}");
    f.ready_lock("later", |_| {}).await;
    let_go(&f, "p").await;
    assert_eq!(says(&f, "p", reasons::HELD).await.status, "True");
}

#[tokio::test]
async fn bad_annotations_are_said_and_mended_in_place() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.pods().gated("p", "a", &[GATE], json!({"leasehold.dev/locks": "a=0"})).await;
    let said = says(&f, "p", reasons::INVALID_LOCKS).await;
    assert!(said.message.unwrap().contains("no number of permits"));
    merge(&f, "p", json!({"metadata": {"annotations": {"leasehold.dev/locks": null}}})).await;
    let_go(&f, "p").await;
}

#[tokio::test]
async fn one_whose_annotation_turns_bad_while_it_waits_is_not_granted_what_it_asked_for() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("first", "a", |_| {}).await;
    f.token_of("first").await;
    let odd = f.pods().gated("odd", "a", &[GATE], json!({})).await;
    queues(&f, &odd).await;
    f.pods().gated("next", "a", &[GATE], json!({})).await;
    merge(&f, "odd", json!({"metadata": {"annotations": { (LOCKS): "a=0" }}})).await;
    says(&f, "odd", reasons::INVALID_LOCKS).await;
    f.test.gone::<LockClaim>(&claim_of(&odd), LIMIT).await;
    f.delete::<LockClaim>("first").await;
    let_go(&f, "next").await;
    assert!(is_gated(&f, "odd").await);
}

/// They are looked at side by side, in the order of their names where they were listed.
#[rstest]
#[case::while_the_controller_works(false, 20)]
#[case::while_it_is_away(true, 3)]
#[tokio::test]
async fn pods_queue_in_the_order_of_their_creation(#[case] is_away: bool, #[case] count: usize) {
    let mut f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("first", "a", |_| {}).await;
    f.token_of("first").await;
    if is_away {
        f.controller.stop();
    }
    let mut expected = Vec::new();
    for number in (0..count).rev() {
        let pod = f.pods().gated(&format!("p-{number:02}"), "a", &[GATE], json!({})).await;
        expected.push(format!("{}.1", claim_of(&pod)));
        let created = pod.creation_timestamp().expect("a time").0;
        // Creation times have whole seconds.
        let later = async || (!is_away || Timestamp::now().as_second() > created.as_second()).then_some(());
        wait_for("the next second", LIMIT, later).await;
    }
    if is_away {
        f.controller.restart().await;
    }
    let waiting = async || {
        let record = f.workload().inspect(&f.key("a")).await.ok()??;
        (record.waiters.len() == count).then_some(record.waiters)
    };
    let waiting = wait_for("all wait", LIMIT, waiting).await;
    let claims: Api<LockClaim> = f.test.api();
    let claims = claims.list(&ListParams::default()).await.expect("a list").items;
    let claim = |id: &HolderId| {
        let uid = id.as_str().rsplit_once('.').map(|(uid, _)| uid.to_owned());
        let claim = claims.iter().find(|claim| claim.uid() == uid).expect("its claim");
        format!("{}.1", claim.name_any())
    };
    let queue: Vec<_> = waiting.iter().map(|(id, _)| claim(id)).collect();
    assert_eq!(queue, expected);
}

#[tokio::test]
async fn one_that_waited_for_too_long_fails_and_a_podfailurepolicy_can_tell() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let pods = [("at-once", "0", reasons::BUSY), ("soon", "1", reasons::WAIT_TIMEOUT)];
    for (name, limit, reason) in pods {
        f.pods().gated(name, "a", &[GATE], json!({"leasehold.dev/wait-timeout-seconds": limit})).await;
        let pod = fails(&f, name).await;
        assert_eq!(pod.status.as_ref().unwrap().reason.as_deref(), Some(types::LOCK_NOT_ACQUIRED));
        let condition = condition(&pod, types::LOCK_NOT_ACQUIRED).expect("a condition");
        assert_eq!((condition.status.as_str(), condition.reason.as_deref()), ("True", Some(reason)));
        assert_eq!(gates(&pod), [GATE], "it never left the gate");
        f.test.gone::<LockClaim>(&claim_of(&pod), LIMIT).await;
        f.event(name, types::LOCK_NOT_ACQUIRED).await;
    }
    a_while().await;
    assert_eq!(pods.map(|(name, ..)| f.status_writes(name)), [1, 1], "it is told by one write alone");
}

#[tokio::test]
async fn one_that_holds_and_does_not_start_is_deleted_when_it_says_so() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.pods().gated("stuck", "a", &[GATE], json!({"leasehold.dev/start-timeout-seconds": "1"})).await;
    merge(&f, "stuck", json!({"metadata": {"finalizers": ["test/kept"]}})).await;
    let first = let_go(&f, "stuck").await;
    f.pods().gated("next", "a", &[GATE], json!({})).await;
    let failed = fails(&f, "stuck").await;
    let said = condition(&failed, reasons::HOLDER_NOT_STARTED).expect("it says so");
    assert_eq!((said.status.as_str(), said.reason.as_deref()), ("True", Some(reasons::START_TIMEOUT)));
    merge(&f, "stuck", json!({"metadata": {"finalizers": []}})).await;
    f.test.gone::<Pod>("stuck", LIMIT).await;
    assert!(let_go(&f, "next").await > first);
    let note = f.event("stuck", reasons::HOLDER_NOT_STARTED).await;
    assert!(note.contains("within 1 s"), "{note}");
}

/// Its kubelet ends it, and until then it may yet start.
#[tokio::test]
async fn one_with_a_node_that_does_not_start_is_deleted_and_holds_until_it_has_ended() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.pods().node(f.test.name(), true).await;
    let limit = json!({"leasehold.dev/start-timeout-seconds": "5"});
    f.pods().gated_with_grace("stuck", "a", &[GATE], limit, 600).await;
    let first = let_go(&f, "stuck").await;
    f.pods().bind("stuck", f.test.name()).await;
    f.pods().report("stuck", containers_waiting("ImagePullBackOff", "no such image")).await;
    let next = f.pods().gated("next", "a", &[GATE], json!({})).await;
    queues(&f, &next).await;
    let leaves = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    f.test.until::<Pod>("stuck", "is being deleted", LIMIT, leaves).await;
    let note = f.event("stuck", reasons::HOLDER_NOT_STARTED).await;
    assert!(note.contains("within 5 s: ImagePullBackOff: no such image"), "{note}");
    a_while().await;
    assert!(is_gated(&f, "next").await, "nothing tells that it has ended");
    f.pods().report("stuck", containers_terminated(137)).await;
    assert!(let_go(&f, "next").await > first);
}

/// Nobody waits for them: it is said all the same, since whoever comes next would.
#[tokio::test]
async fn those_that_hold_and_do_not_start_say_why() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.permits = 3).await;
    let stalled = [
        ("without-a-node", "Unschedulable: 0/3 nodes are available"),
        ("without-its-image", "ImagePullBackOff: no such image"),
        ("unseen", "nothing is known of it yet"),
    ];
    for (name, _) in stalled {
        f.pods().gated(name, "a", &[GATE], json!({})).await;
        let_go(&f, name).await;
    }
    let unscheduled = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/3 nodes are available"});
    f.pods().report("without-a-node", json!({ "conditions": [unscheduled] })).await;
    f.pods().bind("without-its-image", f.test.name()).await;
    f.pods().report("without-its-image", containers_waiting("ImagePullBackOff", "no such image")).await;
    for (name, words) in stalled {
        let said = says_within(&f, name, reasons::HOLDER_NOT_STARTED, SLOW_START + LIMIT).await;
        let message = format!("it holds and has not started for 30 s, while others may wait: {words}");
        assert_eq!((said.status.as_str(), said.message.as_deref()), ("True", Some(message.as_str())), "{name}");
        assert_eq!(f.event(name, reasons::HOLDER_NOT_STARTED).await, message, "{name}");
    }
    f.pods().start("without-a-node", f.test.name()).await;
    f.pods().report("without-its-image", containers_running()).await;
    for name in ["without-a-node", "without-its-image"] {
        assert_eq!(says(&f, name, reasons::HELD).await.status, "True");
    }
}

/// A controller that has decided to let a pod `p` go that waits for `a`, and has not written it yet; and that pod.
async fn about_to_let_go(f: &mut Fixture) -> Pod {
    f.controller.kill();
    f.controller.spawn_with(Some("stop before gated.let-go".into()));
    let pod = f.pods().gated("p", "a", &[GATE], json!({})).await;
    wait_for("the controller stops", LIMIT, async || f.controller.process().is_stopped().then_some(())).await;
    pod
}

/// It goes on. Waits until what it is late with was refused, since the pod isn't as it was read.
async fn conflicts(f: &mut Fixture) {
    f.controller.process().resume();
    let answer = async || {
        let mut writes = f.test.plane().controller_writes().into_iter();
        let of =
            |entry: &AuditEntry| entry.namespace == f.test.name() && (entry.name == "p" && entry.resource == "pods");
        Some(writes.find(|entry| of(entry) && entry.subresource.is_empty())?.code)
    };
    assert_eq!(wait_for("it has written the pod", LIMIT, answer).await, 409);
}

#[tokio::test]
async fn one_that_has_the_name_of_one_that_was_to_be_let_go_keeps_its_gates() {
    let mut f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let first = about_to_let_go(&mut f).await;
    f.pods().delete_by_force(&first).await;
    let second = f.pods().gated("p", "a", &[OTHER_GATE, GATE], json!({})).await;
    assert_ne!(first.uid(), second.uid());
    conflicts(&mut f).await;
    a_while().await;
    let second = f.pods().api().get("p").await.expect("it is there");
    assert_eq!((gates(&second), second.annotations().get(TOKEN)), (vec![OTHER_GATE, GATE], None));
    merge(&f, "p", json!({"spec": {"schedulingGates": [{ "name": GATE }]}})).await;
    let_go(&f, "p").await;
}

/// The API server lets no gate come to a pod, and if it did: what was decided before is refused after any change.
#[tokio::test]
async fn one_that_is_changed_when_it_was_to_be_let_go_gets_what_it_asks_for_now() {
    let mut f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.ready_lock("b", |_| {}).await;
    about_to_let_go(&mut f).await;
    let another = Patch::Merge(json!({"spec": {"schedulingGates": [{ "name": GATE }, { "name": OTHER_GATE }]}}));
    let refused = f.pods().api().patch("p", &PatchParams::default(), &another).await.expect_err("gates only go");
    assert!(refused.to_string().contains("only deletion is allowed"), "{refused}");
    merge(&f, "p", json!({"metadata": {"labels": { GATE: "b" }}})).await;
    conflicts(&mut f).await;
    let token = let_go(&f, "p").await;
    let pod = f.pods().api().get("p").await.expect("it is there");
    let of = |lock: &str| pod.annotations().get(&format!("fencing-token.leasehold.dev/{lock}")).cloned();
    assert_eq!((of("a"), of("b")), (None, Some(token.to_string())));
}

#[tokio::test]
async fn a_labelled_pod_that_nobody_has_gated_is_told_of() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.pods().gated("free", "a", &[], json!({})).await;
    let note = f.event("free", reasons::UNGATED).await;
    assert!(note.contains("runs without its lock"), "{note}");
    let counted = async || {
        f.controller.get("/metrics").await.filter(|(_, text)| text.contains("\nleasehold_pods_ungated_total 1\n"))
    };
    wait_for("the metric counts it", LIMIT, counted).await;
    f.test
        .until::<DistributedLock>("a", "is free", LIMIT, |lock| {
            lock.status.as_ref().is_some_and(|s| s.holder.is_none())
        })
        .await;
}

#[tokio::test]
async fn a_claim_that_somebody_deletes_is_made_again() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let pod = f.pods().gated("p", "a", &[GATE], json!({})).await;
    queues(&f, &pod).await;
    let before = f.test.api::<LockClaim>().get(&claim_of(&pod)).await.expect("it is there").uid();
    f.delete::<LockClaim>(&claim_of(&pod)).await;
    let another = async || {
        let claim = f.test.api::<LockClaim>().get_opt(&claim_of(&pod)).await.ok()??;
        (claim.uid() != before).then_some(claim)
    };
    wait_for("another claim is made", LIMIT, another).await;
    f.delete::<LockClaim>("mine").await;
    let token = let_go(&f, "p").await;
    f.lock_is("a", "is held with the pod's token", |lock| {
        lock.status.as_ref().is_some_and(|s| s.fencing_token == Some(token))
    })
    .await;
}

#[tokio::test]
async fn one_that_asks_for_too_many_permits_goes_on_when_they_are_raised() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.ready_lock("b", |_| {}).await;
    f.pods().gated("p", "a", &[GATE], json!({"leasehold.dev/locks": "a,b=3"})).await;
    let said = says(&f, "p", reasons::UNSATISFIABLE).await;
    assert!(said.message.unwrap().contains("more than the 1 permits that b has"));
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    f.delete::<LockClaim>("mine").await;
    f.change::<DistributedLock>("b", json!({"permits": 3})).await;
    let_go(&f, "p").await;
    assert_eq!(says(&f, "p", reasons::HELD).await.status, "True");
}

#[tokio::test]
async fn the_name_of_its_claim_may_be_taken_and_it_says_so() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let pod = f.pods().gated("p", "a", &["other", GATE], json!({})).await;
    f.claim(&claim_of(&pod), "a", |_| {}).await;
    merge(&f, "p", json!({"spec": {"schedulingGates": [{ "name": GATE }]}})).await;
    let said = says(&f, "p", reasons::CLAIM_NAME_TAKEN).await;
    assert!(said.message.unwrap().contains("delete it"));
    f.delete::<LockClaim>(&claim_of(&pod)).await;
    f.delete::<LockClaim>("mine").await;
    let_go(&f, "p").await;
}

#[tokio::test]
async fn one_that_goes_before_it_has_a_node_frees_its_lock() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let pod = f.pods().gated("p", "a", &[GATE], json!({})).await;
    let first = let_go(&f, "p").await;
    f.pods().gated("next", "a", &[GATE], json!({})).await;
    f.pods().delete_by_force(&pod).await;
    assert!(let_go(&f, "next").await > first);
}

#[tokio::test]
async fn a_reader_that_comes_later_waits_behind_a_writer() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.permits = 3).await;
    let pod = async |name: &str, mode: &str| {
        f.pods().gated(name, "a", &[GATE], json!({ (LOCKS): format!("a:{mode}") })).await
    };
    let ends = async |name: &str| {
        f.pods().start(name, f.test.name()).await;
        f.pods().report(name, json!({"phase": "Succeeded"})).await;
    };
    pod("early", "shared").await;
    let early = let_go(&f, "early").await;
    let (writer, later) = (pod("writer", "exclusive").await, pod("later", "shared").await);
    queues(&f, &writer).await;
    queues(&f, &later).await;
    a_while().await;
    assert!(is_gated(&f, "later").await, "there is room for it beside the first reader");
    ends("early").await;
    let written = let_go(&f, "writer").await;
    assert!(is_gated(&f, "later").await && written > early);
    ends("writer").await;
    assert!(let_go(&f, "later").await > written);
}

/// Its claim stays, and the next pod doesn't wait for that.
#[tokio::test]
async fn one_that_has_ended_frees_its_lock_where_claims_can_t_be_deleted() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let pod = f.pods().gated("p", "a", &[GATE], json!({})).await;
    let first = let_go(&f, "p").await;
    f.pods().start("p", f.test.name()).await;
    forbid_deletion(&f.test, &claim_of(&pod)).await;
    f.pods().gated("next", "a", &[GATE], json!({})).await;
    f.pods().report("p", json!({"phase": "Succeeded"})).await;
    assert!(let_go(&f, "next").await > first);
    f.claim_is(&claim_of(&pod), "is let go", |claim| !claim_condition(claim, types::HELD)).await;
}

/// A policy of somebody else that keeps claims from being deleted.
async fn forbid_deletion(test: &TestNamespace, claim: &str) {
    let deletions = requests("leasehold.dev", "DELETE", "lockclaims");
    let policy = json!({"matchConstraints": deletions, "validations": [{"expression": "false"}]});
    of_somebody_else(test, "keeper", "Validating", policy).await;
    let refused = async || test.kubectl(&format!("delete lclaim {claim} --dry-run=server")).await.err();
    wait_for("the policy is in force", LIMIT, refused).await;
}

/// As it was seen last it had no node; it got one while no watch told of it.
#[tokio::test]
async fn one_that_went_unseen_may_have_run_and_keeps_its_lock() {
    let test = TestNamespace::new().await;
    let proxy = ApiProxy::start(&test.plane().kubeconfig("controller"));
    let kubeconfig = proxy.kubeconfig(proxy.port());
    let f = Fixture::on(test, RedisServer::start().await, |options| options.kubeconfig = kubeconfig).await;
    f.store_is("is Ready", is_ready).await;
    f.ready_lock("a", |_| {}).await;
    let pod = f.pods().gated("p", "a", &[GATE], json!({})).await;
    let_go(&f, "p").await;
    // What is written because the pod was seen without its gate.
    f.claim_is(&claim_of(&pod), "holds", |claim| claim_condition(claim, types::HELD)).await;
    proxy.drop_watch_events(true);
    let bound = f.pods().start("p", f.test.name()).await;
    f.pods().delete_by_force(&bound).await;
    wait_for("events are missed", LIMIT, async || (proxy.dropped_events() > 0).then_some(())).await;
    proxy.drop_watch_events(false);
    f.claim_reason(&claim_of(&pod), types::HELD, reasons::HOLDER_UNREACHABLE).await;
}
