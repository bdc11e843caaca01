//! What `kubectl apply` says of templates whose pods wait for locks.

use serde_json::{Value, json};

use super::apply;
use crate::support::{LIMIT, Scratch, TestNamespace, wait_for};

fn template(annotations: Value, spec: Value) -> Value {
    let labels = json!({"app": "x", "leasehold.dev/lock": "a"});
    let mut all = json!({"restartPolicy": "Always", "containers": [{"name": "main", "image": "none"}]});
    for (key, value) in spec.as_object().expect("an object") {
        all[key] = value.clone();
    }
    json!({"metadata": {"labels": labels, "annotations": annotations}, "spec": all})
}

fn of_kind(kind: &str, spec: Value) -> Value {
    let group = if ["Job", "CronJob"].contains(&kind) { "batch/v1" } else { "apps/v1" };
    json!({"apiVersion": group, "kind": kind, "metadata": {"name": kind.to_lowercase()}, "spec": spec})
}

fn deployment(strategy: Value) -> Value {
    let spec = json!({"selector": {"matchLabels": {"app": "x"}}, "strategy": strategy, "template": template(json!({}), json!({}))});
    of_kind("Deployment", spec)
}

fn never() -> Value {
    json!({"restartPolicy": "Never"})
}

/// Of a Job, when a pod has given up.
fn fails_at_once() -> Value {
    json!({"rules": [{"action": "FailJob", "onPodConditions": [{"type": "LockNotAcquired", "status": "True"}]}]})
}

fn cron(policy: &str, annotations: Value) -> Value {
    let job = json!({"spec": {"podFailurePolicy": fails_at_once(), "template": template(annotations, never())}});
    of_kind("CronJob", json!({"schedule": "* * * * *", "concurrencyPolicy": policy, "jobTemplate": job}))
}

/// What `kubectl` prints besides its answer.
pub(super) async fn warnings(test: &TestNamespace, file: &Scratch, object: &Value) -> String {
    warnings_at(test, file, "create", object).await
}

async fn warnings_at(test: &TestNamespace, file: &Scratch, verb: &str, object: &Value) -> String {
    let path = file.write("object.json", &object.to_string()).display().to_string();
    // Warnings as errors are the only way to see them in an exit code: then the answer is the text.
    match test.kubectl(&format!("{verb} --dry-run=server --warnings-as-errors -f {path}")).await {
        Ok(_) => String::new(),
        Err(text) => text,
    }
}

#[tokio::test]
async fn known_traps_are_said_and_nothing_is_refused() {
    let (test, file) = (TestNamespace::new().await, Scratch::new("manifest"));
    apply(&test, "templates.yaml").await;
    let rolling = deployment(json!({}));
    let warned = async || Some(warnings(&test, &file, &rolling).await).filter(|text| !text.is_empty());
    let said = wait_for("the policy is in force", LIMIT, warned).await;
    assert!(said.contains("Recreate"), "{said}");
    let limit = json!({"leasehold.dev/wait-timeout-seconds": "60"});
    let stateful = json!({"selector": {"matchLabels": {"app": "x"}}, "serviceName": "x", "template": template(limit.clone(), json!({}))});
    let set = |replicas: i32, policy: &str| {
        let spec = json!({"selector": {"matchLabels": {"app": "x"}}, "serviceName": "x", "replicas": replicas,
            "podManagementPolicy": policy, "template": template(json!({}), json!({}))});
        of_kind("StatefulSet", spec)
    };
    let daemon =
        json!({"selector": {"matchLabels": {"app": "x"}}, "template": template(json!({}), json!({"nodeName": "n"}))});
    let surging = |pods: i32| {
        let strategy = json!({"rollingUpdate": {"maxSurge": pods, "maxUnavailable": i32::from(pods == 0)}});
        let spec = json!({"selector": {"matchLabels": {"app": "x"}}, "updateStrategy": strategy,
            "template": template(json!({}), json!({}))});
        of_kind("DaemonSet", spec)
    };
    let mut hasty = cron("Forbid", limit.clone());
    hasty["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] = json!(60);
    for (object, says) in [
        (deployment(json!({"rollingUpdate": {"maxSurge": 1}})), "maxSurge to 0"),
        (
            of_kind("Job", json!({"activeDeadlineSeconds": 60, "template": template(json!({}), never())})),
            "activeDeadlineSeconds",
        ),
        (hasty, "activeDeadlineSeconds"),
        (cron("Allow", json!({})), "concurrencyPolicy to Forbid"),
        (cron("Allow", json!({})), "may wait for ever"),
        (cron("Allow", limit.clone()), "concurrencyPolicy to Forbid"),
        (cron("Forbid", json!({})), "may wait for ever"),
        (of_kind("StatefulSet", stateful), "Jobs and bare pods"),
        (of_kind("DaemonSet", daemon), "nodeName"),
        (surging(1), "maxSurge to 0"),
        (of_kind("Job", json!({"template": template(limit.clone(), never())})), "is followed by another"),
        (set(2, "OrderedReady"), "podManagementPolicy to Parallel"),
    ] {
        let said = warnings(&test, &file, &object).await;
        assert!(said.contains(says), "{says} is not in: {said}");
        let path = file.write("again.json", &object.to_string()).display().to_string();
        test.kubectl(&format!("create --dry-run=server -f {path}")).await.expect("it is only a warning");
    }
    for object in [
        deployment(json!({"type": "Recreate"})),
        deployment(json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}})),
        of_kind(
            "Job",
            json!({"podFailurePolicy": fails_at_once(),
                "template": template(limit.clone(), json!({"restartPolicy": "Never", "activeDeadlineSeconds": 60}))}),
        ),
        of_kind("Job", json!({"backoffLimit": 0, "template": template(limit.clone(), never())})),
        set(1, "OrderedReady"),
        set(2, "Parallel"),
        surging(0),
        cron("Forbid", limit),
    ] {
        let said = warnings(&test, &file, &object).await;
        assert!(!said.contains("leasehold.dev"), "{said}");
    }
}

#[tokio::test]
async fn a_template_that_becomes_a_trap_is_said_when_it_is_applied() {
    let (test, file) = (TestNamespace::new().await, Scratch::new("manifest"));
    apply(&test, "templates.yaml").await;
    let [good, trap] = ["Recreate", "RollingUpdate"].map(|type_| {
        let mut deployment = deployment(json!({ "type": type_ }));
        deployment["spec"]["replicas"] = json!(0);
        deployment
    });
    test.kubectl_apply(&good.to_string()).await.expect("a Deployment");
    let warned = async || Some(warnings_at(&test, &file, "apply", &trap).await).filter(|text| !text.is_empty());
    let said = wait_for("the policy is in force", LIMIT, warned).await;
    assert!(said.contains("Recreate"), "{said}");
    let said = warnings_at(&test, &file, "apply", &good).await;
    assert!(!said.contains("leasehold.dev"), "{said}");
}
