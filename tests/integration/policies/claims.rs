//! A pod claims for itself, by the token that a kubelet mounts into it.

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use leasehold::api::LockClaim;
use serde_json::{Value, json};

use super::{Account, apply, assert_refused};
use crate::support::{LIMIT, Scratch, TestNamespace, wait_for};

const CLAIMS: &str = "lockclaims.leasehold.dev";
const DENIED: &str = "claims for itself only";

fn claim(name: &str, holder: Option<&Pod>) -> Value {
    let mut claim = json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "LockClaim", "metadata": { "name": name },
        "spec": {"locks": [{"name": "a"}]}});
    if let Some(pod) = holder {
        claim["spec"]["holderRef"] = json!({"kind": "Pod", "name": pod.name_any(), "uid": pod.uid()});
    }
    claim
}

/// Two pods of the account `app`, that may make claims.
struct Scene {
    test: TestNamespace,
    account: Account,
    file: Scratch,
    mine: Pod,
    other: Pod,
}

impl Scene {
    async fn new() -> Self {
        let test = TestNamespace::new().await;
        apply(&test, "claims.yaml").await;
        let account = Account::new(&test, "app", &[("create,get", CLAIMS)]).await;
        for name in ["mine", "other"] {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
                "spec": {"serviceAccountName": "app", "containers": [{"name": "main", "image": "none"}]}});
            test.kubectl_apply(&pod.to_string()).await.expect("a pod");
        }
        let pods: Api<Pod> = test.api();
        let (mine, other) = (pods.get("mine").await.expect("it"), pods.get("other").await.expect("it"));
        let scene = Self { test, account, file: Scratch::new("manifest"), mine, other };
        let token = scene.bound_token().await;
        let refused = async || scene.create(&token, &claim("probe", None), "--dry-run=server").await.err();
        wait_for("the policy is in force", LIMIT, refused).await;
        scene
    }

    /// As the kubelet has it made for the pod `mine`.
    async fn bound_token(&self) -> String {
        let uid = self.mine.uid().expect("a UID");
        let words =
            format!("create token app --bound-object-kind=Pod --bound-object-name=mine --bound-object-uid={uid}");
        self.test.kubectl(&words).await.expect("a token").trim().to_owned()
    }

    async fn create(&self, token: &str, claim: &Value, more: &str) -> Result<String, String> {
        let path = self.file.write("claim.json", &claim.to_string()).display().to_string();
        self.test.kubectl(&format!("--token={token} create {more} -f {path}")).await
    }
}

#[tokio::test]
async fn a_pod_claims_for_itself_and_for_nobody_else() {
    let scene = Scene::new().await;
    let token = scene.bound_token().await;
    scene.create(&token, &claim("own", Some(&scene.mine)), "").await.expect("for itself");
    assert_refused(scene.create(&token, &claim("other", Some(&scene.other)), "").await, DENIED);
    assert_refused(scene.create(&token, &claim("nobody", None), "").await, DENIED);
    let mut reborn = claim("reborn", Some(&scene.mine));
    reborn["spec"]["holderRef"]["uid"] = json!("another");
    assert_refused(scene.create(&token, &reborn, "").await, DENIED);
    let mut renamed = claim("renamed", Some(&scene.mine));
    renamed["spec"]["holderRef"]["name"] = json!("another");
    assert_refused(scene.create(&token, &renamed, "").await, DENIED);
    let made = scene.test.api::<LockClaim>().list(&Default::default()).await.expect("a list");
    assert_eq!(made.items.len(), 1);
}

#[tokio::test]
async fn a_pod_of_another_namespace_claims_for_nobody_here_though_it_names_itself() {
    let (scene, here) = (Scene::new().await, TestNamespace::new().await);
    apply(&here, "claims.yaml").await;
    scene.account.may(&here, &[("create,get", CLAIMS)]).await;
    let token = scene.bound_token().await;
    let create = async |claim: Value| {
        let path = scene.file.write("claim.json", &claim.to_string()).display().to_string();
        here.kubectl(&format!("--token={token} create --dry-run=server -f {path}")).await
    };
    wait_for("the policy is in force", LIMIT, async || create(claim("probe", None)).await.err()).await;
    assert_refused(create(claim("own", Some(&scene.mine))).await, DENIED);
}

#[tokio::test]
async fn an_operator_claims_for_others_by_a_verb() {
    let scene = Scene::new().await;
    let token = scene.bound_token().await;
    scene.account.may(&TestNamespace::new().await, &[("claimforothers", CLAIMS)]).await;
    assert_refused(scene.create(&token, &claim("other", Some(&scene.other)), "").await, DENIED);
    scene.account.may(&scene.test, &[("claimforothers", CLAIMS)]).await;
    let allowed = async || scene.create(&token, &claim("other", Some(&scene.other)), "").await.ok();
    wait_for("the verb is enough", LIMIT, allowed).await;
    scene.create(&token, &claim("nobody", None), "").await.expect("for no holder, too");
}

#[tokio::test]
async fn the_name_of_a_pods_own_claim_is_for_that_pod_alone() {
    let scene = Scene::new().await;
    let create = async |claim: Value| scene.create(&scene.account.token, &claim, "").await;
    let (mine, other) = (format!("pod-{}", scene.mine.uid().unwrap()), format!("pod-{}", scene.other.uid().unwrap()));
    assert_refused(create(claim(&mine, None)).await, "is the name of the claim of the pod");
    assert_refused(create(claim(&mine, Some(&scene.other))).await, "is the name of the claim of the pod");
    create(claim(&other, Some(&scene.other))).await.expect("for that pod");
    create(claim("pod-deploy", None)).await.expect("a name like any other");
}

#[tokio::test]
async fn who_is_no_pod_is_not_asked() {
    let scene = Scene::new().await;
    scene.create(&scene.account.token, &claim("by-a-person", None), "").await.expect("a token that no pod has");
}
