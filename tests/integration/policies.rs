//! The admission policies of `charts/leasehold/policies`, on the real API server: who is let through, and who isn't.

mod agent;
mod bystanders;
mod claims;
mod election;
mod force_release;
mod gated;
mod templates;

use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource};
use leasehold::api::DistributedLock;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::{LIMIT, TestNamespace, wait_for};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/leasehold/policies");
/// What the verbs `ungate` and `forcerelease` are asked on.
const LOCK_RESOURCE: &str = "distributedlocks.leasehold.dev";
const WRITES_PODS: [(&str, &str); 2] = [("get,create,update,patch", "pods"), ("get,update,patch", "pods/status")];

/// Applies a file of policies with kubectl, under names of this test and bound to its namespace, for the API server is
/// shared.
pub(crate) async fn apply(test: &TestNamespace, file: &str) {
    apply_some(test, file, |_| true).await;
}

async fn apply_some(test: &TestNamespace, file: &str, chosen: impl Fn(&str) -> bool) {
    let manifest = std::fs::read_to_string(format!("{FOLDER}/{file}")).expect("the file is there");
    let everywhere = "namespaceSelector: {}";
    let here = format!("namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {}}}}}", test.name());
    assert!(manifest.contains(everywhere), "the bindings of {file} are not as expected");
    let manifest = manifest.replace(everywhere, &here);
    let manifest = manifest.replace("ame: leasehold-", &format!("ame: {}-", test.name()));
    let documents: Vec<_> = manifest.split("\n---\n").filter(|document| chosen(document)).collect();
    test.kubectl_apply(&documents.join("\n---\n")).await.expect("the policies are accepted");
}

#[tokio::test]
async fn the_policies_are_accepted_as_they_stand() {
    let test = TestNamespace::new().await;
    let accepted = test.kubectl(&format!("apply --dry-run=server -f {FOLDER}")).await.expect("they are accepted");
    assert_eq!(accepted.lines().count(), 26, "thirteen policies, each with its binding:\n{accepted}");
}

/// Applies the policies on force-release, and waits until they are in force.
pub(crate) async fn apply_force_release(test: &TestNamespace) {
    apply(test, "force-release.yaml").await;
    force_release_is_guarded(test).await;
    let locks: Api<DistributedLock> = test.api();
    let filled = json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "DistributedLock",
        "metadata": {"name": "probe", "annotations": {
            "leasehold.dev/force-release": "1", "leasehold.dev/force-release-reason": "a probe"}}});
    let fills = async || dry_run(&locks, "probe", &filled).await.ok();
    wait_for("force-release-by is filled in", LIMIT, fills).await;
}

/// As [`apply_force_release`], without what Kubernetes below 1.36 doesn't know, as the chart does it there.
pub(crate) async fn apply_refusing_force_release(test: &TestNamespace) {
    apply_some(test, "force-release.yaml", |document| !document.contains("kind: Mutating")).await;
    force_release_is_guarded(test).await;
}

async fn force_release_is_guarded(test: &TestNamespace) {
    let locks: Api<DistributedLock> = test.api();
    let refused = json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "DistributedLock",
        "metadata": {"name": "probe", "annotations": {"leasehold.dev/force-release": "none"}}});
    in_force(&locks, "probe", &refused).await;
}

/// Applies the policies on gated pods, and waits until they are in force.
pub(crate) async fn apply_gated(test: &TestNamespace) {
    apply(test, "gated.yaml").await;
    gated::is_in_force(test).await;
}

/// A policy of somebody else, on requests to the test's namespace: `Mutating` or `Validating`.
pub(crate) async fn of_somebody_else(test: &TestNamespace, name: &str, kind: &str, spec: Value) {
    let (kind, name) = (format!("{kind}AdmissionPolicy"), format!("{name}-{}", test.name()));
    let object = |kind: &str, spec: Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": { "name": name }, "spec": spec});
    let here = json!({"matchLabels": {"kubernetes.io/metadata.name": test.name()}});
    let mut binding = json!({"policyName": name, "matchResources": { "namespaceSelector": here }});
    if kind.starts_with("Validating") {
        binding["validationActions"] = json!(["Deny"]);
    }
    let binding = object(&format!("{kind}Binding"), binding);
    test.kubectl_apply(&format!("{}\n---\n{binding}", object(&kind, spec))).await.expect("another policy");
}

/// These requests of a group.
pub(crate) fn requests(group: &str, operation: &str, resource: &str) -> Value {
    json!({"resourceRules": [{"apiGroups": [group], "apiVersions": ["*"], "operations": [operation], "resources": [resource]}]})
}

/// Waits until this would be refused.
async fn in_force<K>(api: &Api<K>, name: &str, object: &Value)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let refused = async || dry_run(api, name, object).await.err();
    wait_for("the policy is in force", LIMIT, refused).await;
}

async fn dry_run<K>(api: &Api<K>, name: &str, object: &Value) -> kube::Result<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let params = PatchParams { dry_run: true, ..PatchParams::apply("probe") };
    api.patch(name, &params, &Patch::Apply(object)).await
}

/// Lets a user do these things in the namespace: `verb resource`, as RBAC has them.
pub(crate) async fn allow(test: &TestNamespace, user: &str, rights: &[(&str, &str)]) {
    grant(test, user, &format!("--user={user}"), rights).await;
}

async fn grant(test: &TestNamespace, name: &str, subject: &str, rights: &[(&str, &str)]) {
    for (verbs, resource) in rights {
        let role = format!("{name}-{verbs}-{resource}").replace([',', '/'], "-");
        test.kubectl(&format!("create role {role} --verb={verbs} --resource={resource}")).await.expect("a role");
        test.kubectl(&format!("create rolebinding {role} --role={role} {subject}")).await.expect("a binding");
    }
}

/// A service account of a test's namespace, with a token of its own.
struct Account {
    test: TestNamespace,
    name: String,
    token: String,
}

impl Account {
    /// One that may do these things there, as in [`allow`].
    async fn new(test: &TestNamespace, name: &str, rights: &[(&str, &str)]) -> Self {
        test.kubectl(&format!("create serviceaccount {name}")).await.expect("an account");
        let token = test.kubectl(&format!("create token {name}")).await.expect("a token").trim().to_owned();
        let account = Self { test: test.clone(), name: name.to_owned(), token };
        account.may(test, rights).await;
        account
    }

    /// It may do these things in that namespace, too; the API server has heard of it.
    async fn may(&self, there: &TestNamespace, rights: &[(&str, &str)]) {
        let subject = format!("--serviceaccount={}:{}", self.test.name(), self.name);
        grant(there, &self.name, &subject, rights).await;
        for (verbs, resource) in rights {
            let verb = verbs.split(',').next().unwrap_or_default();
            let resource = resource.replace('/', " --subresource=");
            let asks = format!("--token={} auth can-i {verb} {resource}", self.token);
            let may = async || there.kubectl(&asks).await.ok();
            wait_for(&format!("{} may {verb} {resource}", self.name), LIMIT, may).await;
        }
    }

    /// What the API server calls it.
    fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.test.name(), self.name)
    }

    /// The API of a kind in the namespace of the test, asked with its token.
    async fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.test.plane().client_of(&self.token).await, self.test.name())
    }

    /// Runs kubectl with its token.
    async fn kubectl(&self, words: &str) -> Result<String, String> {
        self.test.kubectl(&format!("--token={} {words}", self.token)).await
    }
}

/// A refusal says what is wrong, by one of these texts.
fn assert_refused(answer: Result<String, String>, text: &str) {
    let refusal = answer.expect_err("it is accepted");
    assert!(refusal.contains(text), "{text:?} is not in: {refusal}");
}
