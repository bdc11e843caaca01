//! Pods that wait for no lock, lead nothing and have no agent: no policy has a say about them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use leasehold::api::election::{LEADER, ROLE_LABEL};
use serde_json::{Value, json};

use super::{apply, apply_gated, in_force};
use crate::support::{LIMIT, Scratch, TestNamespace, wait_for};

/// What these refuse may carry no label; their conditions choose.
const WITHOUT_SELECTOR: [&str; 3] = ["election-create", "gated-binding", "gated-create"];

fn pod(name: &str, labels: Value) -> Value {
    let spec = json!({"automountServiceAccountToken": false, "schedulingGates": [{"name": "quota"}],
        "containers": [{"name": "main", "image": "none"}]});
    let metadata = json!({"name": name, "labels": labels, "annotations": {"note": "x"}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

async fn with_policies() -> TestNamespace {
    let test = TestNamespace::new().await;
    for file in ["election.yaml", "agent.yaml"] {
        apply(&test, file).await;
    }
    apply_gated(&test).await;
    for labels in [json!({ ROLE_LABEL: LEADER }), json!({"leasehold.dev/agent": "?"})] {
        in_force::<Pod>(&test.api(), "probe", &pod("probe", labels)).await;
    }
    test
}

/// How often each of the policies has decided, as the API server counts.
async fn decisions(test: &TestNamespace) -> BTreeMap<String, String> {
    let metrics = test.kubectl("get --raw /metrics").await.expect("the API server's metrics");
    let ours = format!("policy=\"{}-", test.name());
    let counts = metrics.lines().filter(|line| line.contains("_admission_policy_check_total{") && line.contains(&ours));
    let counts = counts.filter_map(|line| line.rsplit_once(' '));
    counts.map(|(policy, count)| (policy.to_owned(), count.to_owned())).collect()
}

#[tokio::test]
async fn no_policy_decides_about_other_pods() {
    let (test, file) = (with_policies().await, Scratch::new("manifest"));
    let before = decisions(&test).await;
    assert!(before.len() >= 5, "{before:#?}");
    for name in ["one", "two"] {
        test.kubectl_apply(&pod(name, json!({"app": "x", "role": LEADER})).to_string()).await.expect("a pod");
        let ungated = json!({"spec": {"schedulingGates": []}}).to_string().replace(' ', "");
        let failed = json!({"status": {"phase": "Failed"}}).to_string().replace(' ', "");
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
            "target": {"apiVersion": "v1", "kind": "Node", "name": "n"}});
        let path = file.write("binding.json", &binding.to_string()).display().to_string();
        for words in [
            format!("label pod {name} app=y --overwrite"),
            format!("annotate pod {name} note=y --overwrite"),
            format!("patch pod {name} --type=merge -p {ungated}"),
            format!("create --raw /api/v1/namespaces/{}/pods/{name}/binding -f {path}", test.name()),
            format!("patch pod {name} --subresource=status --type=merge -p {failed}"),
            format!("delete pod {name} --force --grace-period=0"),
        ] {
            test.kubectl(&words).await.expect("nobody minds");
        }
    }
    assert_eq!(decisions(&test).await, before);
    test.kubectl_apply(&pod("three", json!({"leasehold.dev/lock": "a"})).to_string()).await.expect("a pod that waits");
    let counted = async || Some(decisions(&test).await).filter(|now| *now != before);
    wait_for("a pod that waits is counted", LIMIT, counted).await;
}

#[tokio::test]
async fn those_on_labelled_pods_select_them_and_no_other_policy_looks_at_changes() {
    let test = with_policies().await;
    let kinds = "validatingadmissionpolicies,mutatingadmissionpolicies";
    let list = test.kubectl(&format!("get {kinds} -o json")).await.expect("the policies");
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let (prefix, mut without) = (format!("{}-", test.name()), Vec::new());
    for policy in list["items"].as_array().expect("a list") {
        let name = policy["metadata"]["name"].as_str().and_then(|name| name.strip_prefix(&prefix));
        let Some(name) = name.filter(|name| !name.ends_with("-templates")) else { continue };
        let matches = &policy["spec"]["matchConstraints"];
        if matches["objectSelector"]["matchExpressions"][0]["operator"] == "Exists" {
            continue;
        }
        assert_eq!(matches["resourceRules"][0]["operations"], json!(["CREATE"]), "{name}");
        assert!(policy["spec"]["matchConditions"].is_array(), "{name}");
        without.push(name);
    }
    without.sort_unstable();
    assert_eq!(without, WITHOUT_SELECTOR);
}
