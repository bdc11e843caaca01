//! The marks of elected pods are the controller's alone.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use leasehold::api::election::{ELECTED_BY, FENCING_TOKEN, LEADER, RELEASED_TOKEN, ROLE_LABEL, STANDBY, TERM};
use serde_json::{Value, json};

use super::{Account, LOCK_RESOURCE, WRITES_PODS, apply, assert_refused, dry_run, in_force};
use crate::support::{LIMIT, Scratch, TestNamespace, wait_for};

const DENIED: &str = "may not change leasehold.dev/role";
const BORN: &str = "take them out of the pod or its template";

fn pod(name: &str, metadata: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"automountServiceAccountToken": false, "containers": [{"name": "main", "image": "none"}]}});
    pod["metadata"]["name"] = json!(name);
    pod
}

fn marked() -> Value {
    json!({"labels": {ROLE_LABEL: LEADER}})
}

/// A pod `elected` that the administrator, who has every verb, has marked; the account may write pods.
async fn with_policies() -> (TestNamespace, Account) {
    let test = TestNamespace::new().await;
    apply(&test, "election.yaml").await;
    let pods: Api<Pod> = test.api();
    in_force(&pods, "probe", &pod("probe", marked())).await;
    for name in ["elected", "other"] {
        test.kubectl_apply(&pod(name, json!({})).to_string()).await.expect("a pod without marks is accepted");
    }
    test.kubectl(&format!("label pod elected {ROLE_LABEL}={STANDBY}")).await.expect("the label is accepted");
    let dev = Account::new(&test, "dev", &WRITES_PODS).await;
    // Its change is refused as soon as the second policy is in force.
    let change = format!("label pod elected {ROLE_LABEL}=x --overwrite --dry-run=server");
    let refused = async || dev.kubectl(&change).await.err().filter(|error| error.contains(DENIED));
    wait_for("the policy on changes is in force", LIMIT, refused).await;
    (test, dev)
}

#[tokio::test]
async fn no_pod_is_born_with_a_mark() {
    let (_test, dev) = with_policies().await;
    let pods: Api<Pod> = dev.api().await;
    let refused = dry_run(&pods, "born", &pod("born", marked())).await.expect_err("it is accepted").to_string();
    assert!(refused.contains(BORN), "{refused}");
    for key in [ELECTED_BY, TERM, FENCING_TOKEN, RELEASED_TOKEN] {
        let refused = dry_run(&pods, "born", &pod("born", json!({"annotations": {key: "1"}}))).await;
        assert!(refused.is_err_and(|error| error.to_string().contains(BORN)), "{key} is accepted at birth");
    }
    let others = json!({"labels": {"app": "report", "role": LEADER}, "annotations": {"leasehold.dev/lock": "a"}});
    dry_run(&pods, "born", &pod("born", others)).await.expect("other labels and annotations are accepted");
}

#[tokio::test]
async fn no_binding_brings_a_mark() {
    let (test, dev) = with_policies().await;
    dev.may(&test, &[("create", "pods/binding"), ("create", "bindings")]).await;
    let binding = |annotations: Value| {
        json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "other", "annotations": annotations},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "n"}})
    };
    let file = Scratch::new("manifest");
    let path = file.write("binding.json", &binding(json!({FENCING_TOKEN: "7"})).to_string()).display().to_string();
    for resource in ["pods/other/binding", "bindings"] {
        let bind = format!("create --raw /api/v1/namespaces/{}/{resource} -f {path}", test.name());
        assert_refused(dev.kubectl(&bind).await, BORN);
    }
}

#[tokio::test]
async fn a_mark_is_changed_by_those_alone_who_have_the_verb() {
    let (test, dev) = with_policies().await;
    let denied = [
        format!("label pod elected {ROLE_LABEL}={LEADER} --overwrite"),
        format!("label pod elected {ROLE_LABEL}-"),
        format!("label pod other {ROLE_LABEL}={LEADER}"),
        format!("annotate pod elected {FENCING_TOKEN}=7"),
        format!("annotate pod elected {RELEASED_TOKEN}=7"),
        format!("annotate pod elected {ELECTED_BY}=me"),
        format!("annotate pod elected {TERM}=9"),
    ];
    for words in &denied {
        assert_refused(dev.kubectl(words).await, &format!("{} {DENIED}", dev.user()));
    }
    let merge = json!({"metadata": {"labels": {ROLE_LABEL: LEADER}}}).to_string().replace(' ', "");
    let by_status = format!("patch pod elected --subresource=status --type=merge -p {merge}");
    assert_refused(dev.kubectl(&by_status).await, DENIED);
    for words in ["label pod elected app=report", "annotate pod elected note=1", "label pod other app=report"] {
        dev.kubectl(words).await.expect("other labels and annotations are free");
    }
    let elector = Account::new(&test, "elector", &[WRITES_PODS[0], ("ungate", LOCK_RESOURCE)]).await;
    for words in &denied {
        elector.kubectl(words).await.expect("the verb ungate is enough");
    }
}

#[tokio::test]
async fn the_verb_counts_in_the_namespace_of_the_pod_only() {
    let ((_test, dev), elsewhere) = (with_policies().await, TestNamespace::new().await);
    dev.may(&elsewhere, &[("ungate", LOCK_RESOURCE)]).await;
    let refused = dev.kubectl(&format!("label pod elected {ROLE_LABEL}={LEADER} --overwrite")).await;
    assert_refused(refused, DENIED);
}
