//! Direct holders that say in which pod they are.

use std::time::{Duration, Instant};

use leasehold::api::condition::{reasons, types};
use leasehold::api::{DistributedLock, DistributedLockStatus};
use leasehold::lease::{Acquired, HolderId, Mode, Request, Wait};
use serde_json::json;

use super::fixture::{Fixture, Site, a_while, lock_condition};
use crate::support::{LIMIT, eventually};

/// Asks for the lock `a` as a process in this pod does.
pub(crate) async fn acquire(site: &Site, pod: &str, uid: &str) -> Acquired {
    let request = Request {
        id: HolderId::new(format!("direct-{uid}")).expect("an id"),
        mode: Mode::Counted(1),
        priority: 0,
        wait: Wait::No,
        identity: format!("pod/{pod}"),
        pod_uid: Some(uid.to_owned()),
    };
    site.workload().acquire(&site.key("a"), &request).await.expect("an answer")
}

async fn status(f: &Fixture) -> DistributedLockStatus {
    let lock: DistributedLock = f.test.api().get("a").await.expect("the lock");
    lock.status.unwrap_or_default()
}

/// The lease ends in no test.
async fn scene() -> Fixture {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 600).await;
    f
}

#[tokio::test]
async fn a_direct_holder_is_shown_as_its_pod_within_a_second_and_freed_when_that_has_ended() {
    let f = scene().await;
    let pod = f.pods().run("worker", "Never", Some("node")).await;
    let uid = pod.metadata.uid.expect("a UID");
    // The status is written once a second at most.
    a_while().await;
    assert!(matches!(acquire(&f, "worker", &uid).await, Acquired::Granted(_)));
    let begun = Instant::now();
    let shown = async || Some(status(&f).await).filter(|status| status.holder.as_deref() == Some("pod/worker"));
    let shown = eventually(LIMIT, shown).await.expect("it is shown");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(shown.holders[0].pod_uid.as_ref(), Some(&uid));

    f.pods().report("worker", json!({"phase": "Succeeded"})).await;
    let begun = Instant::now();
    f.lock_is("a", "is free", |lock| !lock_condition(lock, types::HELD)).await;
    println!("free in the status {} ms after the pod's end was written", begun.elapsed().as_millis());
    assert!(begun.elapsed() < Duration::from_secs(5), "long before its lease ends");
    let note = f.event("a", reasons::HOLDER_ENDED).await;
    assert!(note.contains("pod/worker has ended (its phase is Succeeded)"), "{note}");
}

#[tokio::test]
async fn without_evidence_the_lease_decides() {
    let f = scene().await;
    let pod = f.pods().run("worker", "Always", Some("node")).await;
    assert!(matches!(acquire(&f, "worker", pod.metadata.uid.as_ref().expect("a UID")).await, Acquired::Granted(_)));
    f.lock_is("a", "is held", |lock| lock_condition(lock, types::HELD)).await;
    f.pods().delete_by_force(&pod).await;
    a_while().await;
    assert!(matches!(acquire(&f, "other", "another-uid").await, Acquired::Busy { .. }), "gone is not ended");
}

#[tokio::test]
async fn another_pod_of_the_name_is_not_its_pod() {
    let f = scene().await;
    f.pods().run("worker", "Never", Some("node")).await;
    assert!(matches!(acquire(&f, "worker", "an-earlier-uid").await, Acquired::Granted(_)));
    f.pods().report("worker", json!({"phase": "Succeeded"})).await;
    a_while().await;
    assert!(matches!(acquire(&f, "other", "another-uid").await, Acquired::Busy { .. }));
}
