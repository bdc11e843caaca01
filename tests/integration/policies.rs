//! The admission policies of `charts/leasehold/policies`, on the real API server: who is let through, and who isn't.

mod claims;
mod election;
mod force_release;
mod gated;
mod templates;

use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::{LIMIT, TestNamespace, wait_for};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/leasehold/policies");

/// Applies a file of policies with kubectl, under names of this test and bound to its namespace, for the API server is
/// shared.
async fn apply(test: &TestNamespace, file: &str) {
    let manifest = std::fs::read_to_string(format!("{FOLDER}/{file}")).expect("the file is there");
    let everywhere = "namespaceSelector: {}";
    let here = format!("namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {}}}}}", test.name());
    assert!(manifest.contains(everywhere), "the bindings of {file} are not as expected");
    let manifest = manifest.replace(everywhere, &here);
    let manifest = manifest.replace("ame: leasehold-", &format!("ame: {}-", test.name()));
    test.kubectl_apply(&manifest).await.expect("the policies are accepted");
}

#[tokio::test]
async fn the_policies_are_accepted_as_they_stand() {
    let test = TestNamespace::new().await;
    let accepted = test.kubectl(&format!("apply --dry-run=server -f {FOLDER}")).await.expect("they are accepted");
    assert_eq!(accepted.lines().count(), 20, "ten policies, each with its binding:\n{accepted}");
}

/// Applies the policies on force-release, and waits until they are in force.
pub(crate) async fn apply_force_release(test: &TestNamespace) {
    apply(test, "force-release.yaml").await;
    let locks: Api<leasehold::api::DistributedLock> = test.api();
    let refused = json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "DistributedLock",
        "metadata": {"name": "probe", "annotations": {"leasehold.dev/force-release": "none"}}});
    let filled = json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "DistributedLock",
        "metadata": {"name": "probe", "annotations": {
            "leasehold.dev/force-release": "1", "leasehold.dev/force-release-reason": "a probe"}}});
    in_force(&locks, "probe", &refused).await;
    let fills = async || dry_run(&locks, "probe", &filled).await.ok();
    wait_for("force-release-by is filled in", LIMIT, fills).await;
}

/// Applies the policies on gated pods, and waits until they are in force.
pub(crate) async fn apply_gated(test: &TestNamespace) {
    apply(test, "gated.yaml").await;
    gated::is_in_force(test).await;
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
    for (number, (verbs, resource)) in rights.iter().enumerate() {
        let role = format!("{user}-{number}");
        test.kubectl(&format!("create role {role} --verb={verbs} --resource={resource}")).await.expect("a role");
        test.kubectl(&format!("create rolebinding {role} --role={role} --user={user}")).await.expect("a binding");
    }
}

/// A refusal says what is wrong, by one of these texts.
fn assert_refused(answer: Result<String, String>, text: &str) {
    let refusal = answer.expect_err("it is accepted");
    assert!(refusal.contains(text), "{text:?} is not in: {refusal}");
}
