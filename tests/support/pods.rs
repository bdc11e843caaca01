//! Pods without a kubelet: the test plays its part by patching their status.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

/// Makes pods of one namespace, and lets them live and end.
pub(crate) struct PodActor {
    api: Api<Pod>,
    nodes: Api<Node>,
}

/// The status that a kubelet reports when the container has ended.
pub(crate) fn containers_terminated(exit_code: i32) -> Value {
    let state = json!({"terminated": {"exitCode": exit_code, "reason": "Error"}});
    json!({"phase": "Running", "containerStatuses": [container(&state)]})
}

/// The status of one that has a node and waits there for something, such as its image.
pub(crate) fn containers_waiting(reason: &str, message: &str) -> Value {
    let state = json!({"waiting": {"reason": reason, "message": message}});
    json!({"phase": "Pending", "containerStatuses": [container(&state)]})
}

/// The status that a kubelet reports when the container has started.
pub(crate) fn containers_running() -> Value {
    json!({"phase": "Running", "containerStatuses": [container(&json!({"running": {}}))]})
}

/// The status of a pod that runs, Ready or not; another `life` is another container.
pub(crate) fn serving(life: u32, ready: bool) -> Value {
    let mut container = container(&json!({"running": {}}));
    (container["ready"], container["containerID"]) = (json!(ready), json!(format!("containerd://{life}")));
    let status = if ready { "True" } else { "False" };
    json!({"phase": "Running", "containerStatuses": [container], "conditions": [{"type": "Ready", "status": status}]})
}

fn container(state: &Value) -> Value {
    json!({"name": "main", "image": "none", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

impl PodActor {
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client.clone(), namespace), nodes: Api::all(client) }
    }

    pub(crate) fn api(&self) -> &Api<Pod> {
        &self.api
    }

    /// A pod that is bound to `node`, if one is given, and runs there.
    pub(crate) async fn run(&self, name: &str, restart_policy: &str, node: Option<&str>) -> Pod {
        let mut spec = json!({
            "restartPolicy": restart_policy, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": "none"}],
        });
        if let Some(node) = node {
            spec["nodeName"] = json!(node);
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let pod = self.api.create(&PostParams::default(), &pod).await.expect("the pod is accepted");
        if node.is_none() {
            return pod;
        }
        self.report(name, containers_running()).await
    }

    /// A pod with a label `app` that runs on `node` and is Ready.
    pub(crate) async fn serve(&self, name: &str, app: &str, node: &str) -> Pod {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}},
            "spec": {
                "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0, "nodeName": node,
                "containers": [{"name": "main", "image": "none"}],
            },
        });
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        self.api.create(&PostParams::default(), &pod).await.expect("the pod is accepted");
        self.report(name, serving(1, true)).await
    }

    /// A pod that waits for locks: the lock of its label, behind these gates.
    pub(crate) async fn gated(&self, name: &str, lock: &str, gates: &[&str], annotations: Value) -> Pod {
        self.gated_with_grace(name, lock, gates, annotations, 0).await
    }

    /// As `gated`; one with a node that is deleted is there for so many seconds, or until its kubelet has ended it.
    pub(crate) async fn gated_with_grace(
        &self,
        name: &str,
        lock: &str,
        gates: &[&str],
        annotations: Value,
        seconds: i64,
    ) -> Pod {
        let gates: Vec<Value> = gates.iter().map(|name| json!({ "name": name })).collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"leasehold.dev/lock": lock}, "annotations": annotations},
            "spec": {
                "automountServiceAccountToken": false, "terminationGracePeriodSeconds": seconds, "restartPolicy": "Never",
                "schedulingGates": gates, "containers": [{"name": "main", "image": "none"}],
            },
        });
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        self.api.create(&PostParams::default(), &pod).await.expect("the pod is accepted")
    }

    /// What the scheduler and the kubelet do: it is bound to a node and runs there.
    pub(crate) async fn start(&self, name: &str, node: &str) -> Pod {
        self.bind(name, node).await;
        self.report(name, containers_running()).await
    }

    /// What the scheduler does: it is bound to a node.
    pub(crate) async fn bind(&self, name: &str, node: &str) {
        let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": node}});
        let params = PostParams::default();
        self.api.create_subresource::<Value, Value>("binding", name, &params, &binding).await.expect("it is bound");
    }

    /// What a kubelet does: reports a status.
    pub(crate) async fn report(&self, name: &str, status: Value) -> Pod {
        let patch = Patch::Merge(json!({"status": status}));
        self.api.patch_status(name, &PatchParams::default(), &patch).await.expect("the status is accepted")
    }

    /// Deletes it by force: gone at once, without a word about its containers.
    pub(crate) async fn delete_by_force(&self, pod: &Pod) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.api.delete(&pod.name_any(), &now).await.expect("deleted");
    }

    /// A node, Ready or not. Nodes are not namespaced: give them the namespace's name.
    pub(crate) async fn node(&self, name: &str, ready: bool) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        let node: Node = serde_json::from_value(node).expect("a node");
        self.nodes.create(&PostParams::default(), &node).await.expect("the node is accepted");
        self.node_is_ready(name, if ready { "True" } else { "Unknown" }).await;
    }

    /// What the node controller or the kubelet says of a node: True, False, or Unknown when it doesn't report.
    pub(crate) async fn node_is_ready(&self, name: &str, status: &str) {
        let condition = json!({"type": "Ready", "status": status, "reason": "Test", "message": ""});
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        self.nodes.patch_status(name, &PatchParams::default(), &patch).await.expect("its status is accepted");
    }

    /// What people do who have made sure that a node is off.
    pub(crate) async fn node_is_out_of_service(&self, name: &str) {
        let taint = json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"});
        let patch = Patch::Strategic(json!({"spec": {"taints": [taint]}}));
        self.nodes.patch(name, &PatchParams::default(), &patch).await.expect("the taint is accepted");
    }

    /// A node is no more.
    pub(crate) async fn delete_node(&self, name: &str) {
        self.nodes.delete(name, &DeleteParams::default()).await.expect("deleted");
    }

    /// Deletes it as people do: it is terminating until a kubelet says that it has ended.
    pub(crate) async fn delete_gently(&self, name: &str) {
        let params = DeleteParams { grace_period_seconds: Some(30), ..DeleteParams::default() };
        self.api.delete(name, &params).await.expect("deleted");
    }
}
