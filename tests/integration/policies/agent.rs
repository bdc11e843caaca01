//! Pods whose containers ask an agent who holds a lock: it is injected by the policies.

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::Api;
use serde_json::{Value, json};

use super::templates::warnings;
use super::{Account, WRITES_PODS, apply, dry_run, in_force, of_somebody_else, requests};
use crate::support::{LIMIT, Scratch, TestNamespace, wait_for};

const LABEL: &str = "leasehold.dev/agent";
const MODE: &str = "leasehold.dev/agent-mode";
const NAME: &str = "leasehold-agent";

fn pod(labels: Value, annotations: Value, spec: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "labels": labels, "annotations": annotations},
        "spec": {"automountServiceAccountToken": false, "containers": [{"name": "main", "image": "none"}]}});
    for (key, value) in spec.as_object().expect("an object") {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn labelled(annotations: Value, spec: Value) -> Value {
    pod(json!({ LABEL: "report" }), annotations, spec)
}

fn gate() -> Value {
    json!({ MODE: "gate" })
}

/// What mode gate needs of the kubelet.
fn rules() -> Value {
    json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "NotIn", "values": [0, 125]}}])
}

fn probe() -> Value {
    json!({"exec": {"command": ["/leasehold", "probe"]}})
}

/// An agent that somebody writes, which is as good as the one that is added.
fn own(words: &[&str], more: Value) -> Value {
    let mut agent = json!({"name": NAME, "image": "mirror/leasehold", "args": words, "restartPolicy": "Always"});
    for (key, value) in more.as_object().expect("an object") {
        agent[key] = value.clone();
    }
    json!({ "initContainers": [agent] })
}

async fn with_policies() -> (TestNamespace, Api<Pod>) {
    let test = TestNamespace::new().await;
    let pods = injects(&test).await;
    (test, pods)
}

async fn injects(test: &TestNamespace) -> Api<Pod> {
    apply(test, "agent.yaml").await;
    let pods: Api<Pod> = test.api();
    in_force(&pods, "p", &labelled(json!({ MODE: "none" }), json!({}))).await;
    let injected =
        async || Some(dry_run(&pods, "p", &labelled(json!({}), json!({}))).await.ok()?.spec?.init_containers);
    wait_for("labelled pods get an agent", LIMIT, injected).await;
    Account::new(test, "dev", &[WRITES_PODS[0]]).await.api().await
}

fn init_containers(pod: &Pod) -> Vec<Container> {
    pod.spec.as_ref().and_then(|spec| spec.init_containers.clone()).unwrap_or_default()
}

async fn assert_refused(pods: &Api<Pod>, what: &str, wanted: &Value, says: &str) {
    let refusal = dry_run(pods, "p", wanted).await.expect_err(what).to_string();
    assert!(refusal.contains(says), "{what}: {refusal}");
}

#[tokio::test]
async fn a_labelled_pod_gets_an_agent_before_all_others() {
    let (test, pods) = with_policies().await;
    let spec =
        json!({"initContainers": [{"name": "first", "image": "none"}], "volumes": [{"name": "data", "emptyDir": {}}]});
    let made = dry_run(&pods, "p", &labelled(json!({}), spec)).await.expect("it is accepted");
    let names: Vec<String> = init_containers(&made).into_iter().map(|container| container.name).collect();
    assert_eq!(names, [NAME, "first"]);
    let agent = serde_json::to_value(&init_containers(&made)[0]).unwrap();
    assert_eq!(agent["image"], concat!("ghcr.io/leasehold/leasehold:", env!("CARGO_PKG_VERSION")));
    assert_eq!(agent["args"], json!(["agent", "--lock=report", "--mode=elect"]));
    assert_eq!(agent["restartPolicy"], "Always");
    let fields: Vec<(&str, &str)> = agent["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|env| (env["name"].as_str().unwrap(), env["valueFrom"]["fieldRef"]["fieldPath"].as_str().unwrap()))
        .collect();
    assert_eq!(
        fields,
        [
            ("LEASEHOLD_POD_NAME", "metadata.name"),
            ("LEASEHOLD_POD_UID", "metadata.uid"),
            ("LEASEHOLD_NAMESPACE", "metadata.namespace"),
        ]
    );
    assert_eq!(
        agent["volumeMounts"],
        json!([{"name": "leasehold-connection", "mountPath": "/etc/leasehold/connection", "readOnly": true}])
    );
    let volumes = serde_json::to_value(made.spec.unwrap().volumes).unwrap();
    let secret = json!({"secretName": "leasehold-connection", "defaultMode": 420});
    assert!(
        volumes.as_array().unwrap().contains(&json!({"name": "leasehold-connection", "secret": secret})),
        "{volumes}"
    );
    assert_eq!((volumes.as_array().unwrap().len(), &agent["startupProbe"]), (2, &Value::Null));
    drop(test);
}

#[tokio::test]
async fn the_agent_passes_pod_security_restricted() {
    let (test, pods) = with_policies().await;
    test.kubectl(&format!("label namespace {} pod-security.kubernetes.io/enforce=restricted", test.name()))
        .await
        .unwrap();
    let security = json!({"allowPrivilegeEscalation": false, "runAsNonRoot": true,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}});
    let wanted = |security: Value| {
        labelled(gate(), json!({"containers": [{"name": "main", "image": "none", "securityContext": security}]}))
    };
    in_force(&pods, "p", &wanted(json!({}))).await;
    dry_run(&pods, "p", &wanted(security)).await.expect("it is accepted");
}

#[tokio::test]
async fn in_mode_gate_it_lets_the_others_start_and_restarts_them() {
    let (_test, pods) = with_policies().await;
    let made = dry_run(&pods, "p", &labelled(gate(), json!({}))).await.expect("it is accepted");
    let agent = serde_json::to_value(&init_containers(&made)[0]).unwrap();
    assert_eq!(agent["args"], json!(["agent", "--lock=report", "--mode=gate", "--grace=4"]));
    assert_eq!(agent["startupProbe"]["exec"]["command"], json!(["/leasehold", "probe"]));
    assert_eq!(
        (&agent["startupProbe"]["periodSeconds"], &agent["startupProbe"]["failureThreshold"]),
        (&json!(1), &json!(i32::MAX))
    );
    assert_eq!(agent["livenessProbe"], json!(null), "its failure would ask the agent to end while the others run");
    assert_eq!(agent["restartPolicyRules"], rules());
}

#[tokio::test]
async fn it_is_injected_once() {
    let (test, pods) = with_policies().await;
    // Other policies, before and after ours, change the pod: ours is asked again.
    for name in ["aa", "zz"] {
        let label = format!("Object{{metadata: Object.metadata{{labels: {{'{name}': 'x'}}}}}}");
        let policy = json!({"reinvocationPolicy": "IfNeeded", "failurePolicy": "Fail",
            "matchConstraints": requests("", "CREATE", "pods"),
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": { "expression": label }}]});
        of_somebody_else(&test, name, "Mutating", policy).await;
    }
    let wanted = labelled(json!({}), json!({}));
    let changed = async || {
        let made = dry_run(&pods, "p", &wanted).await.ok()?;
        let labels = made.metadata.labels.as_ref()?;
        (labels.contains_key("aa") && labels.contains_key("zz")).then_some(made)
    };
    let made = wait_for("the other policies are in force", LIMIT, changed).await;
    assert_eq!(init_containers(&made).len(), 1);
    let copy = json!({"initContainers": init_containers(&made), "volumes": made.spec.unwrap().volumes});
    let again = dry_run(&pods, "p", &labelled(json!({}), copy)).await.expect("a copy is accepted");
    assert_eq!((init_containers(&again).len(), again.spec.unwrap().volumes.unwrap().len()), (1, 1));
}

#[tokio::test]
async fn a_pod_without_the_label_is_left_alone() {
    let (_test, pods) = with_policies().await;
    let made = dry_run(&pods, "p", &pod(json!({"app": "x"}), gate(), json!({"hostNetwork": true}))).await.unwrap();
    assert!(init_containers(&made).is_empty() && made.spec.unwrap().volumes.is_none());
}

#[tokio::test]
async fn what_cannot_work_is_refused_with_words() {
    let (_test, pods) = with_policies().await;
    let none = || json!({});
    for (what, wanted, says) in [
        ("a mode", labelled(json!({ MODE: "Gate" }), none()), "is elect (the app starts at once and asks) or gate"),
        ("no lock", pod(json!({ LABEL: "" }), none(), none()), "is the name of a DistributedLock"),
        ("capitals", pod(json!({ LABEL: "Report" }), none(), none()), "\"Report\" can't be one"),
        ("the node's network", labelled(none(), json!({"hostNetwork": true})), "can't have hostNetwork"),
        ("a gated pod", pod(json!({ LABEL: "a", "leasehold.dev/lock": "a" }), none(), none()), "wait for its own pod"),
        (
            "an app of its name",
            labelled(none(), json!({"containers": [{"name": NAME, "image": "none"}]})),
            "give that container another name",
        ),
        ("another program", labelled(none(), own(&["serve"], none())), "args: [agent, --lock=report, --mode=elect]"),
        ("no program", labelled(none(), own(&[], none())), "args: [agent, --lock=report, --mode=elect]"),
        ("another lock", labelled(none(), own(&["agent", "--lock=b"], none())), "args: [agent, --lock=report"),
        ("another mode", labelled(gate(), own(&["agent", "--lock=report"], none())), "--mode=gate]"),
    ] {
        assert_refused(&pods, what, &wanted, says).await;
    }
}

#[tokio::test]
async fn an_agent_of_ones_own_is_left_as_it_is_where_it_does_the_same() {
    let (_test, pods) = with_policies().await;
    let words = ["agent", "--lock=report", "--grace=2"];
    let made = dry_run(&pods, "p", &labelled(json!({}), own(&words, json!({})))).await.expect("it is accepted");
    let agents = init_containers(&made);
    assert_eq!((agents.len(), agents[0].image.as_deref()), (1, Some("mirror/leasehold")));

    let words = ["agent", "--lock=report", "--mode=gate"];
    let (rules, probe) = (rules(), probe());
    let all = own(&words, json!({"restartPolicyRules": rules, "startupProbe": probe}));
    dry_run(&pods, "p", &labelled(gate(), all)).await.expect("it is accepted");
    // As on a cluster that drops the field.
    let without = own(&words, json!({ "startupProbe": probe }));
    assert_refused(&pods, "no rules", &labelled(gate(), without), "needs restartPolicyRules with RestartAllContainers")
        .await;
    let without = own(&words, json!({ "restartPolicyRules": rules }));
    assert_refused(&pods, "no probe", &labelled(gate(), without), "and a startupProbe").await;
    let checked = own(&words, json!({"restartPolicyRules": rules, "startupProbe": probe, "livenessProbe": probe}));
    assert_refused(&pods, "a liveness probe", &labelled(gate(), checked), "can't have a livenessProbe").await;
}

/// The kubelet stops them one after the other.
#[tokio::test]
async fn in_mode_gate_it_ends_so_much_earlier_as_there_are_more_containers() {
    let (_test, pods) = with_policies().await;
    let container = |name: &str| json!({"name": name, "image": "none"});
    let mut mesh = container("mesh");
    mesh["restartPolicy"] = json!("Always");
    let beside =
        json!({"containers": [container("app"), container("logs")], "initContainers": [mesh, container("setup")]});
    let made = dry_run(&pods, "p", &labelled(gate(), beside)).await.expect("it is accepted");
    let agent = serde_json::to_value(&init_containers(&made)[0]).unwrap();
    assert_eq!(agent["args"][3], "--grace=8", "two containers and a native sidecar");

    let (one, two) = (json!([container("app")]), json!([container("app"), container("logs")]));
    for (containers, word, needs) in [
        (&two, "--grace=6", None),
        (&two, "--grace=4", Some("--grace=6")),
        (&two, "--priority=1", Some("--grace=6")),
        (&one, "--grace=4", None),
        (&one, "--grace=3", Some("--grace=4")),
        (&one, "--priority=1", None),
    ] {
        let words = ["agent", "--lock=report", "--mode=gate", word];
        let mut pod = own(&words, json!({"restartPolicyRules": rules(), "startupProbe": probe()}));
        pod["containers"] = containers.clone();
        let pod = labelled(gate(), pod);
        match needs {
            None => drop(dry_run(&pods, "p", &pod).await.expect("it is accepted")),
            Some(grace) => assert_refused(&pods, word, &pod, &format!("the agent needs {grace}")).await,
        }
    }
}

#[tokio::test]
async fn a_cluster_that_can_t_restart_all_containers_has_no_mode_gate() {
    let test = TestNamespace::without("RestartAllContainersOnContainerExits").await;
    let pods = injects(&test).await;
    dry_run(&pods, "p", &labelled(json!({}), json!({}))).await.expect("mode elect needs none of it");
    let says = "restartPolicyRules are not allowed for init containers";
    assert_refused(&pods, "gate", &labelled(gate(), json!({})), says).await;
}

#[tokio::test]
async fn without_the_policy_that_adds_it_a_labelled_pod_is_refused() {
    let (test, pods) = with_policies().await;
    // As on a cluster without mutation.
    test.kubectl(&format!("delete mutatingadmissionpolicybinding {}-agent", test.name())).await.expect("deleted");
    in_force(&pods, "p", &labelled(json!({}), json!({}))).await;
    assert_refused(&pods, "no agent", &labelled(json!({}), json!({})), "needs its agent, which").await;
}

#[tokio::test]
async fn a_rolling_update_behind_a_gate_is_warned_of() {
    let (test, _pods) = with_policies().await;
    let file = Scratch::new("manifest");
    let deployment = |mode: &str, replicas: u32, strategy: Value| {
        let metadata = json!({"labels": {"app": "x", LABEL: "report"}, "annotations": { MODE: mode }});
        let template = json!({"metadata": metadata, "spec": {"containers": [{"name": "main", "image": "none"}]}});
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": {"replicas": replicas,
            "selector": {"matchLabels": {"app": "x"}}, "strategy": strategy, "template": template}})
    };
    let rolling = deployment("gate", 2, json!({}));
    let warned = async || Some(warnings(&test, &file, &rolling).await).filter(|text| !text.is_empty());
    let said = wait_for("the policy is in force", LIMIT, warned).await;
    assert!(said.contains("set strategy.type to Recreate"), "{said}");
    let none = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}});
    assert!(warnings(&test, &file, &deployment("gate", 2, none.clone())).await.contains("Recreate"));
    for (mode, replicas, strategy) in
        [("gate", 1, none), ("gate", 2, json!({"type": "Recreate"})), ("elect", 2, json!({}))]
    {
        assert_eq!(warnings(&test, &file, &deployment(mode, replicas, strategy)).await, "");
    }
}
