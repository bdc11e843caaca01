//! Pods that wait for locks: gated by the policies, and let go by the controller alone.

use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use leasehold::api::gated::is_gated;
use serde_json::{Value, json};

use super::{
    Account, LOCK_RESOURCE, WRITES_PODS, apply, apply_gated, assert_refused, dry_run, in_force, of_somebody_else,
    requests,
};
use crate::controller::fixture::Fixture;
use crate::controller::gated::queues;
use crate::support::{LIMIT, PodActor, Scratch, TestNamespace, wait_for};

const LOCK: &str = "leasehold.dev/lock";
const LOCKS: &str = "leasehold.dev/locks";
const TOKEN: &str = "leasehold.dev/fencing-token";
const TOKEN_OF_A: &str = "fencing-token.leasehold.dev/a";
const DENIED: &str = "may not let a pod go";
const BORN: &str = "isn't created with a token";

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

/// All policies on gated pods, in force; the account may write pods and their statuses.
async fn with_policies() -> (TestNamespace, Account) {
    let test = TestNamespace::new().await;
    apply_gated(&test).await;
    let dev = Account::new(&test, "dev", &WRITES_PODS).await;
    (test, dev)
}

pub(super) async fn is_in_force(test: &TestNamespace) {
    let pods: Api<Pod> = test.api();
    in_force(&pods, "probe", &pod("probe", json!({}), gate())).await;
    let gated = async || dry_run(&pods, "probe", &labelled("probe")).await.ok().filter(has_gate);
    wait_for("labelled pods are gated", LIMIT, gated).await;
    test.kubectl_apply(&labelled("probe").to_string()).await.expect("a probe");
    let change = format!("label pod probe {LOCK}- --dry-run=server");
    let nobody = Account::new(test, "nobody", &[WRITES_PODS[0]]).await;
    let refused = async || nobody.kubectl(&change).await.err().filter(|error| error.contains("leasehold.dev/lock"));
    wait_for("the policy on changes is in force", LIMIT, refused).await;
    test.kubectl("delete pod probe --force --grace-period=0").await.expect("the probe goes");
}

/// Whoever makes another pod for one that ends.
fn owner(kind: &str) -> Value {
    json!([{"apiVersion": "apps/v1", "kind": kind, "name": "r", "uid": "r", "controller": true}])
}

fn has_gate(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_deref()).unwrap_or_default();
    gates.iter().filter(|gate| gate.name == LOCK).count() == 1
}

async fn create(account: &Account, pod: &Value) -> kube::Result<Pod> {
    let pod = serde_json::from_value(pod.clone()).expect("a pod");
    account.api().await.create(&PostParams::default(), &pod).await
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
    let (test, dev) = with_policies().await;
    let carried = json!({"labels": { LOCK: "a" },
        "annotations": {TOKEN: "7", TOKEN_OF_A: "7", "leasehold.dev/withdrawn": "x", "note": "kept"}});
    let own = json!([{"name": "main", "image": "none"},
        {"name": "other", "image": "none", "env": [{"name": "LEASEHOLD_TOKEN", "value": "mine"}]}]);
    let init = json!([{"name": "first", "image": "none"},
        {"name": "second", "image": "none", "env": [{"name": "X", "value": "y"}]}]);
    let spec = json!({"containers": own, "initContainers": init, "schedulingGates": [{"name": "quota"}]});
    create(&dev, &pod("p", carried, spec)).await.expect("it is accepted");
    let made = get(&test, "p").await;
    assert!(has_gate(&made) && made.spec.as_ref().unwrap().scheduling_gates.as_ref().unwrap().len() == 2);
    let path = Some("metadata.annotations['leasehold.dev/fencing-token']".to_owned());
    let token = |value: Option<String>| ("LEASEHOLD_TOKEN".to_owned(), value);
    assert_eq!(variables(&made, false), [token(path.clone()), token(Some("mine".into()))]);
    assert_eq!(variables(&made, true), [token(path.clone()), ("X".into(), Some("y".into())), token(path)]);
    let ours: Vec<_> = made.annotations().keys().filter(|key| key.contains("leasehold.dev")).collect();
    assert!(ours.is_empty() && made.annotations()["note"] == "kept", "{ours:?}");

    create(&dev, &pod("plain", json!({"labels": {"app": "x"}}), json!({}))).await.expect("another pod");
    let plain = get(&test, "plain").await;
    assert!(!has_gate(&plain) && variables(&plain, false).is_empty());
    create(&dev, &pod("bare", json!({"labels": { LOCK: "a" }}), gate())).await.expect("a gate of one's own");
    assert!(has_gate(&get(&test, "bare").await));
}

/// A policy of somebody else that makes this change to new pods with the label `team` of its name.
async fn another_policy(test: &TestNamespace, team: &str, change: &str) {
    let of_the_team = format!("object.metadata.?labels['team'].orValue('') == '{team}'");
    let policy = json!({"reinvocationPolicy": "Never", "failurePolicy": "Fail",
        "matchConstraints": requests("", "CREATE", "pods"),
        "matchConditions": [{ "name": "team", "expression": of_the_team }],
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": { "expression": change }}]});
    of_somebody_else(test, team, "Mutating", policy).await;
}

/// Names before and after that of ours, which begins with `test`: no order may be relied on.
const TEAMS: [&str; 2] = ["aa", "zz"];

/// Kubernetes chooses the policies of a request by their selectors before any of them changes it, whatever their names.
#[tokio::test]
async fn a_label_that_another_policy_adds_brings_no_gate_and_the_pod_is_refused() {
    let (test, dev) = with_policies().await;
    let pods: Api<Pod> = dev.api().await;
    for team in TEAMS {
        another_policy(&test, team, "Object{metadata: Object.metadata{labels: {'leasehold.dev/lock': 'a'}}}").await;
        let wanted = pod("later", json!({"labels": {"team": team}}), json!({}));
        let answer = async || match dry_run(&pods, "later", &wanted).await {
            Ok(pod) if !pod.labels().contains_key(LOCK) => None,
            answer => Some(answer),
        };
        let answer = wait_for("the other policy is in force", LIMIT, answer).await;
        let refusal = answer.expect_err("it is accepted").to_string();
        assert!(refusal.contains("needs its gate: add \"schedulingGates"), "{team}: {refusal}");
    }
}

#[tokio::test]
async fn a_container_that_another_policy_adds_gets_the_variable_too() {
    let (test, dev) = with_policies().await;
    let pods: Api<Pod> = dev.api().await;
    for team in TEAMS {
        let change = "Object{spec: Object.spec{containers: [Object.spec.containers{name: 'added', image: 'none'}]}}";
        another_policy(&test, team, change).await;
        let wanted = pod("p", json!({"labels": {"team": team, LOCK: "a"}}), json!({}));
        let changed = async || {
            let pod = dry_run(&pods, "p", &wanted).await.expect("it is accepted");
            (pod.spec.as_ref()?.containers.len() == 2).then_some(pod)
        };
        let made = wait_for("the other policy is in force", LIMIT, changed).await;
        let names: Vec<_> = variables(&made, false).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["LEASEHOLD_TOKEN", "LEASEHOLD_TOKEN"], "{team}");
        assert!(has_gate(&made));
    }
}

#[tokio::test]
async fn what_would_run_without_its_lock_is_refused_with_the_line_to_add() {
    let test = TestNamespace::new().await;
    apply(&test, "gated.yaml").await;
    // As on a cluster without mutation.
    test.kubectl(&format!("delete mutatingadmissionpolicybinding {}-gated", test.name())).await.expect("deleted");
    let dev = Account::new(&test, "dev", &WRITES_PODS).await;
    in_force::<Pod>(&test.api(), "probe", &labelled("probe")).await;
    let pods: Api<Pod> = dev.api().await;
    let of = |annotations: Value| json!({"labels": { LOCK: "a" }, "annotations": annotations});
    let fixed = json!({"nodeName": "n"});
    for (what, wanted, says) in [
        ("no gate", labelled("p"), "add \"schedulingGates: [{name: leasehold.dev/lock}]\""),
        ("no label", pod("p", json!({}), gate()), "need the label leasehold.dev/lock"),
        (
            "a list alone",
            pod("p", json!({"annotations": { LOCKS: "a" }}), json!({})),
            "need the label leasehold.dev/lock",
        ),
        ("a node", pod("p", of(json!({})), fixed), "can't name its node"),
        ("no list", pod("p", of(json!({ LOCKS: "a=" })), gate()), "can't read"),
        ("no permits", pod("p", of(json!({ LOCKS: "a=10001" })), gate()), "can't read"),
        ("no mode", pod("p", of(json!({ LOCKS: "a:x" })), gate()), "can't read"),
        ("nine", pod("p", of(json!({ LOCKS: "a,b,c,d,e,f,g,h,i" })), gate()), "one to eight"),
        ("twice", pod("p", of(json!({ LOCKS: "a,a:shared" })), gate()), "twice"),
        ("another", pod("p", of(json!({ LOCKS: "b" })), gate()), "must be in it"),
        ("no number", pod("p", of(json!({"leasehold.dev/wait-timeout-seconds": "5m"})), gate()), "whole numbers"),
        ("no number", pod("p", of(json!({"leasehold.dev/start-timeout-seconds": "soon"})), gate()), "whole numbers"),
        ("a token", pod("p", of(json!({ TOKEN: "7" })), gate()), BORN),
        ("a token of a lock", pod("p", of(json!({ TOKEN_OF_A: "7" })), gate()), BORN),
        ("one taken back", pod("p", of(json!({"leasehold.dev/withdrawn": "x"})), gate()), BORN),
        ("a token alone", pod("p", json!({"annotations": { TOKEN: "7" }}), json!({})), BORN),
        ("a token of a lock alone", pod("p", json!({"annotations": { TOKEN_OF_A: "7" }}), json!({})), BORN),
        ("a mark alone", pod("p", json!({"annotations": {"leasehold.dev/withdrawn": "x"}}), json!({})), BORN),
    ] {
        let refusal = dry_run(&pods, "p", &wanted).await.expect_err(what).to_string();
        assert!(refusal.contains(says), "{what}: {refusal}");
    }
    for kind in ["ReplicaSet", "StatefulSet", "DaemonSet", "ReplicationController"] {
        let mut owned = of(json!({"leasehold.dev/wait-timeout-seconds": "5"}));
        owned["ownerReferences"] = owner(kind);
        let refusal = dry_run(&pods, "p", &pod("p", owned, gate())).await.expect_err(kind).to_string();
        assert!(refusal.contains("Jobs and bare pods"), "{kind}: {refusal}");
    }
    let good = of(json!({ LOCKS: "a, b=3,c:shared , d:exclusive", "leasehold.dev/wait-timeout-seconds": "0" }));
    dry_run(&pods, "p", &pod("p", good, gate())).await.expect("it is accepted");
    let others = json!({"annotations": {"fencing-token.example.com/a": "7", "note": "x"}});
    dry_run(&pods, "p", &pod("p", others, json!({}))).await.expect("other annotations are free");
}

#[tokio::test]
async fn a_pod_that_waits_is_changed_and_not_let_go() {
    let (_test, dev) = with_policies().await;
    create(&dev, &labelled("p")).await.expect("a pod");
    let both = json!({"metadata": {"labels": { LOCK: null }}, "spec": {"schedulingGates": null}}).to_string();
    let gone = json!({"spec": {"schedulingGates": null}}).to_string();
    for patch in [&both, &gone] {
        let patch = format!("patch pod p --type=merge -p {}", patch.replace(' ', ""));
        assert_refused(dev.kubectl(&patch).await, &format!("{} {DENIED}", dev.user()));
    }
    assert_refused(dev.kubectl(&format!("label pod p {LOCK}-")).await, "name another lock, or delete the pod");
    assert_refused(dev.kubectl(&format!("annotate pod p {TOKEN}=7")).await, DENIED);
    assert_refused(dev.kubectl(&format!("annotate pod p {TOKEN_OF_A}=7")).await, DENIED);
    assert_refused(dev.kubectl("annotate pod p leasehold.dev/withdrawn=7").await, DENIED);
    assert_refused(dev.kubectl(&format!("annotate pod p {LOCKS}=b")).await, "must be in it");
    for (list, says) in
        [("a=0", "can't read"), ("a:x", "can't read"), ("a,b,c,d,e,f,g,h,i", "one to eight"), ("a,b,b", "twice")]
    {
        assert_refused(dev.kubectl(&format!("annotate pod p {LOCKS}={list}")).await, says);
    }
    for limit in ["wait-timeout-seconds", "start-timeout-seconds"] {
        assert_refused(dev.kubectl(&format!("annotate pod p leasehold.dev/{limit}=soon")).await, "whole numbers");
    }
    let replaced = json!({"metadata": {"ownerReferences": owner("ReplicaSet"),
        "annotations": {"leasehold.dev/wait-timeout-seconds": "5"}}});
    let replaced = format!("patch pod p --type=merge --dry-run=server -p {}", replaced.to_string().replace(' ', ""));
    assert_refused(dev.kubectl(&replaced).await, "Jobs and bare pods");
    for words in [
        "annotate pod p leasehold.dev/wait-timeout-seconds=600".into(),
        format!("label pod p {LOCK}=b --overwrite"),
        format!("annotate pod p {LOCKS}=b,c=2"),
        "label pod p app=x".into(),
    ] {
        dev.kubectl(&words).await.expect("it may ask for something else while it waits");
    }
}

/// As after an uninstall where the policies are still in force, by the patch of `docs/uninstall.md`.
#[tokio::test]
async fn a_pod_that_no_controller_serves_any_more_is_let_go_by_who_has_the_verb() {
    let mut f = Fixture::new().await;
    apply_gated(&f.test).await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let dev = Account::new(&f.test, "dev", &WRITES_PODS).await;
    create(&dev, &labelled("p")).await.expect("a pod");
    queues(&f, &get(&f.test, "p").await).await;
    f.controller.stop();
    let gate_away = json!({"spec": {"schedulingGates": [{"$patch": "delete", "name": LOCK}]}}).to_string();
    let let_go = format!("patch pod p -p {}", gate_away.replace(' ', ""));
    assert_refused(dev.kubectl(&let_go).await, &format!("{} {DENIED}", dev.user()));
    assert!(has_gate(&get(&f.test, "p").await));
    dev.may(&f.test, &[("ungate", LOCK_RESOURCE)]).await;
    let allowed = async || dev.kubectl(&let_go).await.ok();
    wait_for("the verb is enough", LIMIT, allowed).await;
    let pod = get(&f.test, "p").await;
    assert!(!is_gated(&pod) && !pod.annotations().contains_key(TOKEN), "it runs, and holds nothing");
}

#[tokio::test]
async fn what_a_pod_holds_is_changed_by_those_alone_who_have_the_verb() {
    let (test, dev) = with_policies().await;
    create(&dev, &labelled("p")).await.expect("a pod");
    PodActor::new(test.client(), test.name()).run("running", "Never", Some("n")).await;
    let [pods, statuses] = WRITES_PODS;
    let controller = Account::new(&test, "controller", &[pods, statuses, ("ungate", LOCK_RESOURCE)]).await;
    let patch = json!({"metadata": {"annotations": {TOKEN: "7", TOKEN_OF_A: "7"}}, "spec": {"schedulingGates": null}});
    let let_go = format!("patch pod p --type=merge -p {}", patch.to_string().replace(' ', ""));
    controller.kubectl(&let_go).await.expect("the verb ungate is enough");
    let by_status = |metadata: Value| {
        let patch = json!({ "metadata": metadata }).to_string().replace(' ', "");
        format!("patch pod p --subresource=status --type=merge -p {patch}")
    };
    let denied = [
        format!("label pod p {LOCK}=b --overwrite"),
        format!("label pod p {LOCK}-"),
        format!("annotate pod p {LOCKS}=a,b"),
        format!("annotate pod p {TOKEN}=8 --overwrite"),
        format!("annotate pod p {TOKEN_OF_A}-"),
        format!("label pod running {LOCK}=a"),
        by_status(json!({"annotations": { TOKEN: "9" }})),
        by_status(json!({"labels": { LOCK: null }})),
    ];
    for words in &denied {
        assert_refused(dev.kubectl(words).await, DENIED);
    }
    let elsewhere = TestNamespace::new().await;
    dev.may(&elsewhere, &[("ungate", LOCK_RESOURCE)]).await;
    for words in &denied {
        assert_refused(dev.kubectl(words).await, DENIED);
    }
    // What kubelet, garbage collector and Job controller write.
    let running = json!({"status": {"phase": "Running", "containerStatuses": []}}).to_string().replace(' ', "");
    let finalizer = json!({"metadata": {"finalizers": ["example.com/x"]}}).to_string().replace(' ', "");
    for words in [
        format!("patch pod p --subresource=status --type=merge -p {running}"),
        format!("patch pod p --type=merge -p {finalizer}"),
        "label pod p app=x".to_owned(),
    ] {
        dev.kubectl(&words).await.expect("other writes pass");
    }
    for words in &denied {
        controller.kubectl(&format!("{words} --dry-run=server")).await.expect("the verb is enough for each");
    }
}

#[tokio::test]
async fn no_binding_brings_a_label_or_a_token() {
    let (test, dev) = with_policies().await;
    dev.may(&test, &[("create", "pods/binding"), ("create", "bindings")]).await;
    create(&dev, &pod("plain", json!({}), json!({}))).await.expect("a pod");
    let file = Scratch::new("manifest");
    let annotated = [TOKEN_OF_A, LOCKS, "leasehold.dev/withdrawn"].map(|key| json!({"annotations": { key: "a" }}));
    for metadata in annotated.into_iter().chain([json!({"labels": { LOCK: "a" }})]) {
        let mut binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": metadata,
            "target": {"apiVersion": "v1", "kind": "Node", "name": "n"}});
        binding["metadata"]["name"] = json!("plain");
        let path = file.write("binding.json", &binding.to_string()).display().to_string();
        for resource in ["pods/plain/binding", "bindings"] {
            let bind = format!("create --raw /api/v1/namespaces/{}/{resource} -f {path}", test.name());
            assert_refused(dev.kubectl(&bind).await, "a binding brings no labels");
        }
    }
    let plain = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "plain"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n"}});
    let path = file.write("binding.json", &plain.to_string()).display().to_string();
    let bind = format!("create --raw /api/v1/namespaces/{}/pods/plain/binding -f {path}", test.name());
    dev.kubectl(&bind).await.expect("as a scheduler binds");
}
