//! `activeDeadlineSeconds`: of a Job it counts the waiting, of a pod it doesn't.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use leasehold::api::LockClaim;
use serde_json::{Value, json};

use super::{apply, pods, template, with};
use crate::controller::fixture::{Fixture, a_while};
use crate::controller::gated::{claim_of, let_go, queues};
use crate::support::{LIMIT, wait_for};

/// In seconds.
const DEADLINE: i32 = 2;

fn job(name: &str, spec: Value, pod: Value) -> Value {
    let own = json!({"backoffLimit": 0, "template": template(with(json!({"restartPolicy": "Never"}), pod))});
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": with(own, spec)})
}

async fn pod_of(f: &Fixture, job: &str) -> Pod {
    let made = async || pods(f).await.into_iter().find(|pod| pod.labels().get("job-name") == Some(&job.to_owned()));
    wait_for("the Job has made its pod", LIMIT, made).await
}

#[tokio::test]
async fn the_deadline_of_a_job_counts_the_time_that_its_pod_waits_and_that_of_a_pod_does_not() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let deadline = json!({"activeDeadlineSeconds": DEADLINE});
    apply(&f, &job("of-the-pod", json!({}), deadline.clone())).await;
    let waits = pod_of(&f, "of-the-pod").await;
    queues(&f, &waits).await;
    apply(&f, &job("of-the-job", deadline, json!({}))).await;
    let fails = pod_of(&f, "of-the-job").await;
    queues(&f, &fails).await;
    let failed = |job: &Job| {
        let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
        let failed = conditions.into_iter().flatten().find(|condition| condition.type_ == "Failed");
        failed.is_some_and(|condition| condition.reason.as_deref() == Some("DeadlineExceeded"))
    };
    f.test.until::<Job>("of-the-job", "is over its deadline", LIMIT, failed).await;
    f.test.gone::<LockClaim>(&claim_of(&fails), LIMIT).await;
    a_while().await;
    let status = f.test.api::<Pod>().get(&waits.name_any()).await.expect("it is there").status.expect("a status");
    assert_eq!(
        (status.phase.as_deref(), status.start_time),
        (Some("Pending"), None),
        "its kubelet has begun to count nothing"
    );
    f.delete::<LockClaim>("mine").await;
    let_go(&f, &waits.name_any()).await;
}
