//! Jobs of several pods, and CronJobs whose runs wait.

use std::time::Duration;

use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::{apply, it_stays, over, pods, runs, template, with};
use crate::controller::fixture::Fixture;
use crate::support::{LIMIT, wait_for};

/// In which two runs of a CronJob of every minute begin, and a bit.
const TWO_RUNS: Duration = Duration::from_secs(150);

/// The spec of a Job whose pods have these annotations.
fn job(spec: Value, annotations: Value) -> Value {
    let mut template = template(json!({"restartPolicy": "Never"}));
    template["metadata"]["annotations"] = annotations;
    with(json!({ "template": template }), spec)
}

#[tokio::test]
async fn the_pods_of_a_parallel_job_run_one_after_the_other_with_one_permit() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let spec = job(json!({"parallelism": 2, "completions": 3}), json!({}));
    apply(&f, &json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": spec})).await;
    let mut last = 0;
    // One more of those that were let go has ended each time.
    for (waiting, let_go) in [(1, 1), (1, 2), (0, 3)] {
        let free = it_stays(&f, waiting, let_go).await;
        let running: Vec<String> = free.iter().filter(|pod| !over(pod)).map(ResourceExt::name_any).collect();
        assert_eq!(running.len(), 1, "never two: {running:?}");
        let token = runs(&f, &running[0]).await;
        assert!(token > last, "{token} after {last}");
        last = token;
        f.pods().report(&running[0], json!({"phase": "Succeeded"})).await;
    }
    let complete = |job: &Job| job.status.as_ref().is_some_and(|status| status.succeeded == Some(3));
    f.test.until::<Job>("j", "is complete", LIMIT, complete).await;
}

/// A CronJob of every minute, whose runs fail when their pod gives up, and are kept.
fn cron_job(name: &str, policy: &str, annotations: Value) -> Value {
    let gave_up = json!({"action": "FailJob", "onPodConditions": [{"type": "LockNotAcquired"}]});
    let spec = job(json!({"podFailurePolicy": {"rules": [gave_up]}}), annotations);
    let spec = json!({"schedule": "* * * * *", "concurrencyPolicy": policy, "failedJobsHistoryLimit": 5, "jobTemplate": {"spec": spec}});
    json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": spec})
}

/// The Jobs that a CronJob has made, oldest first.
async fn runs_of(f: &Fixture, cron_job: &str) -> Vec<Job> {
    let jobs: Api<Job> = f.test.api();
    let mut jobs = jobs.list(&ListParams::default()).await.expect("a list").items;
    jobs.retain(|job| job.owner_references().iter().any(|owner| owner.name == cron_job));
    jobs.sort_by_key(ResourceExt::name_any);
    jobs
}

fn gave_up(job: &Job) -> bool {
    let conditions = job.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let failed = conditions.filter(|condition| condition.type_ == "Failed" && condition.status == "True");
    failed.filter_map(|condition| condition.message.as_deref()).any(|message| message.contains("LockNotAcquired"))
}

/// The three begin their runs together, so that the test has to wait for two of them only.
#[tokio::test]
async fn runs_of_a_cronjob_pile_up_unless_forbidden_and_a_wait_limit_makes_room_for_the_next() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let limit = json!({"leasehold.dev/wait-timeout-seconds": "2"});
    for (name, policy, annotations) in
        [("allows", "Allow", json!({})), ("forbids", "Forbid", json!({})), ("gives-up", "Forbid", limit)]
    {
        apply(&f, &cron_job(name, policy, annotations)).await;
    }
    let skipped = async || f.events("forbids", "JobAlreadyActive").await.pop();
    wait_for("a run is left out", TWO_RUNS, skipped).await;
    assert_eq!(runs_of(&f, "forbids").await.len(), 1, "the first one still waits");
    let active = |cron_job: &CronJob| cron_job.status.as_ref().and_then(|status| status.active.as_ref()).map(Vec::len);
    f.test.until::<CronJob>("forbids", "has one active run", LIMIT, |cron_job| active(cron_job) == Some(1)).await;
    f.test.until::<CronJob>("allows", "has two runs that wait", LIMIT, |cron_job| active(cron_job) == Some(2)).await;
    let next = async || Some(runs_of(&f, "gives-up").await).filter(|runs| runs.len() == 2);
    let runs = wait_for("the next run has come", LIMIT, next).await;
    assert!(gave_up(&runs[0]), "{:?}", runs[0].status);
    let ran = pods(&f).await.iter().filter(|pod| pod.annotations().contains_key("leasehold.dev/fencing-token")).count();
    assert_eq!(ran, 0, "the lock is held by somebody else all the time");
}
