//! Job controller and garbage collector write on pods with the label, too: the policies let that pass.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::json;

use super::{APP, apply, runs, template, there_are};
use crate::controller::fixture::Fixture;
use crate::policies::apply_gated;
use crate::support::{LIMIT, wait_for};

/// Where a Job of the lock `a` has so many pods, of which one runs. Its name.
async fn with_a_job(pods: usize) -> (Fixture, String) {
    let f = Fixture::new().await;
    apply_gated(&f.test).await;
    f.ready_lock("a", |_| {}).await;
    let spec =
        json!({"parallelism": pods, "completions": pods, "template": template(json!({"restartPolicy": "Never"}))});
    apply(&f, &json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": APP}, "spec": spec})).await;
    let pod = there_are(&f, pods - 1, 1).await.remove(0).name_any();
    runs(&f, &pod).await;
    (f, pod)
}

fn is_counted(pod: &Pod) -> bool {
    !pod.finalizers().iter().any(|finalizer| finalizer == "batch.kubernetes.io/job-tracking")
}

/// Waits until this controller of Kubernetes, with its own rights, has written the pod.
async fn is_written_by(f: &Fixture, pod: &str, account: &str) {
    let user = format!("system:serviceaccount:kube-system:{account}");
    let written = async || {
        let mut writes = f.test.plane().writes().into_iter();
        writes.find(|write| write.user == user && write.namespace == f.test.name() && write.name == pod)
    };
    let write = wait_for(&format!("{account} writes {pod}"), LIMIT, written).await;
    assert_eq!((write.resource.as_str(), write.code), ("pods", 200));
}

#[tokio::test]
async fn a_job_is_complete_when_its_pod_that_held_has_succeeded() {
    let (f, name) = with_a_job(1).await;
    let pod = f.pods().report(&name, json!({"phase": "Succeeded"})).await;
    assert!(!is_counted(&pod));
    let complete = |job: &Job| {
        let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| condition.type_ == "Complete" && condition.status == "True")
    };
    f.test.until::<Job>(APP, "is Complete", LIMIT, complete).await;
    f.test.until::<Pod>(&name, "is counted", LIMIT, is_counted).await;
    is_written_by(&f, &name, "job-controller").await;
}

#[tokio::test]
async fn pods_stay_without_an_owner_when_their_job_is_deleted_alone() {
    let (f, _) = with_a_job(2).await;
    let waits_and_runs = f.pods().api().list(&Default::default()).await.expect("a list").items;
    assert!(waits_and_runs.iter().all(|pod| pod.owner_references().len() == 1), "{waits_and_runs:?}");
    f.test.kubectl(&format!("delete job {APP} --cascade=orphan")).await.expect("the Job goes");
    for pod in waits_and_runs {
        let name = pod.name_any();
        let orphaned = |pod: &Pod| pod.owner_references().is_empty() && is_counted(pod);
        let now = f.test.until::<Pod>(&name, "has no owner", LIMIT, orphaned).await;
        assert_eq!((now.uid(), now.spec.unwrap().scheduling_gates), (pod.uid(), pod.spec.unwrap().scheduling_gates));
        is_written_by(&f, &name, "generic-garbage-collector").await;
    }
}
