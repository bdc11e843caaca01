//! Pods that wait for locks: gated by the policies, and let go by the controller alone.

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::{allow, apply, apply_gated, assert_refused, dry_run, in_force};
use crate::support::{LIMIT, Scratch, TestNamespace, wait_for};

const LOCK: &str = "leasehold.dev/lock";
const LOCKS: &str = "leasehold.dev/locks";
const TOKEN: &str = "leasehold.dev/fencing-token";
const TOKEN_OF_A: &str = "fencing-token.leasehold.dev/a";
const DENIED: &str = "may not let a pod go";

fn pod(name: &str, metadata: Value, spec: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"automountServiceAccountToken": false, "containers": [{"name": "main", "image": "none"}]}});
    pod["metadata"]["name"] = json!(name);
    for (key, value) in spec.as_object().expect("an object") {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn gate() -> Value {
    json!({"schedulingGates": [{ "name": LOCK }]})
}

fn labelled(name: &str) -> Value {
    pod(name, json!({"labels": { LOCK: "a" }}), json!({}))
}

/// All policies on gated pods, in force; `dev` may write pods and their statuses.
async fn with_policies() -> TestNamespace {
    let test = TestNamespace::new().await;
    apply_gated(&test).await;
    allow(&test, "dev", &[("get,create,update,patch", "pods"), ("get,update,patch", "pods/status")]).await;
    test
}

pub(super) async fn is_in_force(test: &TestNamespace) {
    let pods: Api<Pod> = test.api();
    in_force(&pods, "probe", &pod("probe", json!({}), gate())).await;
    let gated = async || dry_run(&pods, "probe", &labelled("probe")).await.ok().filter(has_gate);
    wait_for("labelled pods are gated", LIMIT, gated).await;
    create(test, &labelled("probe")).await.expect("a probe");
    let change = format!("--as=nobody label pod probe {LOCK}- --dry-run=server");
    allow(test, "nobody", &[("get,patch", "pods")]).await;
    let refused = async || test.kubectl(&change).await.err().filter(|error| error.contains("leasehold.dev/lock"));
    wait_for("the policy on changes is in force", LIMIT, refused).await;
    test.kubectl("delete pod probe --force --grace-period=0").await.expect("the probe goes");
}

fn has_gate(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_deref()).unwrap_or_default();
    gates.iter().filter(|gate| gate.name == LOCK).count() == 1
}

async fn create(test: &TestNamespace, pod: &Value) -> Result<String, String> {
    test.kubectl_apply(&pod.to_string()).await
}

async fn get(test: &TestNamespace, name: &str) -> Pod {
    test.api::<Pod>().get(name).await.expect("it is there")
}

fn variables(pod: &Pod, init: bool) -> Vec<(String, Option<String>)> {
    let spec = pod.spec.as_ref().expect("a spec");
    let containers =
        if init { spec.init_containers.as_deref().unwrap_or_default() } else { spec.containers.as_slice() };
    let all = containers.iter().flat_map(|container| container.env.iter().flatten());
    let path = |env: &k8s_openapi::api::core::v1::EnvVar| {
        Some(env.value_from.as_ref()?.field_ref.as_ref()?.field_path.clone())
    };
    all.map(|env| (env.name.clone(), env.value.clone().or(path(env)))).collect()
}

#[tokio::test]
async fn a_labelled_pod_gets_its_gate_and_the_variable_and_loses_what_it_carries() {
    let test = with_policies().await;
    let carried = json!({"labels": { LOCK: "a" },
        "annotations": {TOKEN: "7", TOKEN_OF_A: "7", "leasehold.dev/withdrawn": "x", "note": "kept"}});
    let own = json!([{"name": "main", "image": "none"},
        {"name": "other", "image": "none", "env": [{"name": "LEASEHOLD_TOKEN", "value": "mine"}]}]);
    let spec = json!({"containers": own, "initContainers": [{"name": "first", "image": "none"}],
        "schedulingGates": [{"name": "quota"}]});
    create(&test, &pod("p", carried, spec)).await.expect("it is accepted");
    let made = get(&test, "p").await;
    assert!(has_gate(&made) && made.spec.as_ref().unwrap().scheduling_gates.as_ref().unwrap().len() == 2);
    let path = Some("metadata.annotations['leasehold.dev/fencing-token']".to_owned());
    let token = |value: Option<String>| ("LEASEHOLD_TOKEN".to_owned(), value);
    assert_eq!(variables(&made, false), [token(path.clone()), token(Some("mine".into()))]);
    assert_eq!(variables(&made, true), [token(path)]);
    let ours: Vec<_> = made.annotations().keys().filter(|key| key.contains("leasehold.dev")).collect();
    assert!(ours.is_empty() && made.annotations()["note"] == "kept", "{ours:?}");

    create(&test, &pod("plain", json!({"labels": {"app": "x"}}), json!({}))).await.expect("another pod");
    let plain = get(&test, "plain").await;
    assert!(!has_gate(&plain) && variables(&plain, false).is_empty());
    create(&test, &pod("bare", json!({"labels": { LOCK: "a" }}), gate())).await.expect("a gate of one's own");
    assert!(has_gate(&get(&test, "bare").await));
}

#[tokio::test]
async fn a_label_that_another_policy_adds_brings_the_gate_too() {
    let test = with_policies().await;
    let other = format!(
        r#"{{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": {{"name": "zz-{0}"}},
        "spec": {{"reinvocationPolicy": "Never", "failurePolicy": "Fail", "matchConstraints": {{"resourceRules": [
          {{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}}]}},
        "matchConditions": [{{"name": "team", "expression": "object.metadata.?labels['team'].orValue('') == 'x'"}}],
        "mutations": [{{"patchType": "ApplyConfiguration", "applyConfiguration": {{"expression":
          "Object{{metadata: Object.metadata{{labels: {{'leasehold.dev/lock': 'a'}}}}}}"}}}}]}}}}
---
{{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding", "metadata": {{"name": "zz-{0}"}},
  "spec": {{"policyName": "zz-{0}", "matchResources": {{"namespaceSelector":
    {{"matchLabels": {{"kubernetes.io/metadata.name": "{0}"}}}}}}}}}}"#,
        test.name()
    );
    test.kubectl_apply(&other).await.expect("another policy");
    let pods: Api<Pod> = test.api();
    let wanted = pod("later", json!({"labels": {"team": "x"}}), json!({}));
    // It is gated, or refused: it never gets in without.
    let either = async || match dry_run(&pods, "later", &wanted).await {
        Ok(pod) if pod.labels().contains_key(LOCK) => Some(Ok(has_gate(&pod))),
        Ok(_) => None,
        Err(error) => Some(Err(error.to_string())),
    };
    match wait_for("the other policy is in force", LIMIT, either).await {
        Ok(gated) => assert!(gated, "it has the label and no gate"),
        Err(refusal) => assert!(refusal.contains("needs its gate"), "{refusal}"),
    }
}

#[tokio::test]
async fn what_would_run_without_its_lock_is_refused_with_the_line_to_add() {
    let test = TestNamespace::new().await;
    apply(&test, "gated.yaml").await;
    // As on a cluster without mutation.
    test.kubectl(&format!("delete mutatingadmissionpolicybinding {}-gated", test.name())).await.expect("deleted");
    let pods: Api<Pod> = test.api();
    in_force(&pods, "probe", &labelled("probe")).await;
    let of = |annotations: Value| json!({"labels": { LOCK: "a" }, "annotations": annotations});
    let mut owned = of(json!({"leasehold.dev/wait-timeout-seconds": "5"}));
    owned["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
    let mut fixed = gate();
    fixed["nodeName"] = json!("n");
    for (what, wanted, says) in [
        ("no gate", labelled("p"), "add \"schedulingGates: [{name: leasehold.dev/lock}]\""),
        ("no label", pod("p", json!({}), gate()), "need the label leasehold.dev/lock"),
        (
            "a list alone",
            pod("p", json!({"annotations": { LOCKS: "a" }}), json!({})),
            "need the label leasehold.dev/lock",
        ),
        ("a node", pod("p", of(json!({})), fixed), "nodeName"),
        ("no list", pod("p", of(json!({ LOCKS: "a=" })), gate()), "can't read"),
        ("no permits", pod("p", of(json!({ LOCKS: "a=10001" })), gate()), "can't read"),
        ("no mode", pod("p", of(json!({ LOCKS: "a:x" })), gate()), "can't read"),
        ("nine", pod("p", of(json!({ LOCKS: "a,b,c,d,e,f,g,h,i" })), gate()), "one to eight"),
        ("twice", pod("p", of(json!({ LOCKS: "a,a:shared" })), gate()), "twice"),
        ("another", pod("p", of(json!({ LOCKS: "b" })), gate()), "must be in it"),
        ("no number", pod("p", of(json!({"leasehold.dev/wait-timeout-seconds": "5m"})), gate()), "whole numbers"),
        ("one that is replaced", pod("p", owned, gate()), "Jobs and bare pods"),
    ] {
        let refusal = dry_run(&pods, "p", &wanted).await.expect_err(what).to_string();
        assert!(refusal.contains(says), "{what}: {refusal}");
    }
    let good = of(json!({ LOCKS: "a, b=3,c:shared , d:exclusive", "leasehold.dev/wait-timeout-seconds": "0" }));
    dry_run(&pods, "p", &pod("p", good, gate())).await.expect("it is accepted");
}

#[tokio::test]
async fn a_pod_that_waits_is_changed_and_not_let_go() {
    let test = with_policies().await;
    create(&test, &labelled("p")).await.expect("a pod");
    let dev = |words: &str| format!("--as=dev {words}");
    let both = json!({"metadata": {"labels": { LOCK: null }}, "spec": {"schedulingGates": null}}).to_string();
    let gone = json!({"spec": {"schedulingGates": null}}).to_string();
    for patch in [&both, &gone] {
        assert_refused(
            test.kubectl(&dev(&format!("patch pod p --type=merge -p {}", patch.replace(' ', "")))).await,
            DENIED,
        );
    }
    assert_refused(test.kubectl(&dev(&format!("label pod p {LOCK}-"))).await, "name another lock, or delete the pod");
    assert_refused(test.kubectl(&dev(&format!("annotate pod p {TOKEN}=7"))).await, DENIED);
    assert_refused(test.kubectl(&dev(&format!("annotate pod p {TOKEN_OF_A}=7"))).await, DENIED);
    assert_refused(test.kubectl(&dev("annotate pod p leasehold.dev/withdrawn=7")).await, DENIED);
    assert_refused(test.kubectl(&dev(&format!("annotate pod p {LOCKS}=b"))).await, "must be in it");
    for words in [
        format!("label pod p {LOCK}=b --overwrite"),
        format!("annotate pod p {LOCKS}=b,c=2"),
        "label pod p app=x".into(),
    ] {
        test.kubectl(&dev(&words)).await.expect("it may ask for something else while it waits");
    }
}

#[tokio::test]
async fn what_a_pod_holds_is_changed_by_those_alone_who_have_the_verb() {
    let test = with_policies().await;
    create(&test, &labelled("p")).await.expect("a pod");
    allow(&test, "controller", &[("get,patch", "pods"), ("ungate", "distributedlocks.leasehold.dev")]).await;
    let patch = json!({"metadata": {"annotations": {TOKEN: "7", TOKEN_OF_A: "7"}}, "spec": {"schedulingGates": null}});
    let let_go = format!("--as=controller patch pod p --type=merge -p {}", patch.to_string().replace(' ', ""));
    test.kubectl(&let_go).await.expect("the verb ungate is enough");
    let by_status = json!({"metadata": {"annotations": { TOKEN: "9" }}}).to_string().replace(' ', "");
    let denied = [
        format!("label pod p {LOCK}=b --overwrite"),
        format!("label pod p {LOCK}-"),
        format!("annotate pod p {LOCKS}=a,b"),
        format!("annotate pod p {TOKEN}=8 --overwrite"),
        format!("annotate pod p {TOKEN_OF_A}-"),
        format!("patch pod p --subresource=status --type=merge -p {by_status}"),
    ];
    for words in &denied {
        assert_refused(test.kubectl(&format!("--as=dev {words}")).await, DENIED);
    }
    // What kubelet, garbage collector and Job controller write.
    let running = json!({"status": {"phase": "Running", "containerStatuses": []}}).to_string().replace(' ', "");
    let finalizer = json!({"metadata": {"finalizers": ["example.com/x"]}}).to_string().replace(' ', "");
    for words in [
        format!("patch pod p --subresource=status --type=merge -p {running}"),
        format!("patch pod p --type=merge -p {finalizer}"),
        "label pod p app=x".to_owned(),
    ] {
        test.kubectl(&format!("--as=dev {words}")).await.expect("other writes pass");
    }
}

#[tokio::test]
async fn no_binding_brings_a_label_or_a_token() {
    let test = with_policies().await;
    create(&test, &pod("plain", json!({}), json!({}))).await.expect("a pod");
    let file = Scratch::new("manifest");
    for metadata in [json!({"labels": { LOCK: "a" }}), json!({"annotations": { TOKEN_OF_A: "7" }})] {
        let mut binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": metadata,
            "target": {"apiVersion": "v1", "kind": "Node", "name": "n"}});
        binding["metadata"]["name"] = json!("plain");
        let path = file.write("binding.json", &binding.to_string()).display().to_string();
        for resource in ["pods/plain/binding", "bindings"] {
            let bind = format!("create --raw /api/v1/namespaces/{}/{resource} -f {path}", test.name());
            assert_refused(test.kubectl(&bind).await, "a binding brings no labels");
        }
    }
}
