//! Pods that nothing would keep from starting: refused, with words.

use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use super::{APP, template, with, workload};
use crate::policies::apply_gated;
use crate::support::{LIMIT, PodActor, TestNamespace, wait_for};

fn pod(annotations: Value) -> String {
    let metadata = json!({"name": "p", "labels": {"leasehold.dev/lock": "a"}, "annotations": annotations});
    let spec = json!({"nodeName": "n", "containers": [{"name": "main", "image": "none"}]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}).to_string()
}

/// The kubelet starts a static pod without asking, and then makes a mirror of it, bound to its node from the beginning.
#[tokio::test]
async fn a_pod_that_names_its_node_is_refused_and_the_mirror_of_a_static_one() {
    let test = TestNamespace::new().await;
    apply_gated(&test).await;
    for annotations in
        [json!({}), json!({"kubernetes.io/config.mirror": "hash", "kubernetes.io/config.source": "file"})]
    {
        let refusal = test.kubectl_apply(&pod(annotations)).await.expect_err("it is refused");
        assert!(refusal.contains("can't name its node: nothing would keep it from starting"), "{refusal}");
    }
}

/// All that `docs/pods.md` names, and the Job for which the limit is.
#[tokio::test]
async fn a_wait_limit_is_refused_in_pods_that_would_be_followed_by_others() {
    let test = TestNamespace::new().await;
    apply_gated(&test).await;
    PodActor::new(test.client(), test.name()).node(test.name(), true).await;
    test.kubectl(&format!("label node {0} test={0}", test.name())).await.expect("a label");
    let limited = |spec: Value| {
        let mut template = template(spec);
        template["metadata"]["annotations"] = json!({"leasehold.dev/wait-timeout-seconds": "60"});
        template
    };
    let here = json!({"nodeSelector": {"test": test.name()}, "tolerations": [{"operator": "Exists"}]});
    for (kind, owner, spec) in [
        ("Deployment", "ReplicaSet", json!({"template": limited(json!({}))})),
        ("StatefulSet", "StatefulSet", json!({"serviceName": APP, "template": limited(json!({}))})),
        ("DaemonSet", "DaemonSet", json!({"template": limited(here)})),
    ] {
        test.kubectl_apply(&workload(kind, spec).to_string()).await.expect("it is a warning at most");
        let events = format!(
            "get events --field-selector reason=FailedCreate,involvedObject.kind={owner} -o jsonpath={{.items[*].message}}"
        );
        let refused = async || test.kubectl(&events).await.ok().filter(|said| !said.is_empty());
        let said = wait_for(&format!("a pod of a {owner} is refused"), LIMIT, refused).await;
        assert!(said.contains("is for Jobs and bare pods"), "{owner}: {said}");
    }
    let spec = json!({"template": limited(json!({"restartPolicy": "Never"}))});
    let job =
        with(json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}}), json!({ "spec": spec }));
    test.kubectl_apply(&job.to_string()).await.expect("it is accepted");
    let made = |job: &Job| job.status.as_ref().is_some_and(|status| status.active == Some(1));
    test.until::<Job>("j", "has its pod", LIMIT, made).await;
}
