//! Which of the chart's policies are in force here: each is asked, in a dry run, for what it refuses or adds.

use http::header::{CONTENT_TYPE, WARNING};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use kube::client::Body;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::super::cluster::{Cluster, in_time};
use super::finding::Finding;
use crate::api::election::{LEADER, ROLE_LABEL};
use crate::api::force_release::{FORCE_RELEASE, REFUSAL};
use crate::api::gated::{LOCK, is_gated};
use crate::api::{DistributedLock, DistributedLockSpec, LockClaim, LockClaimSpec};

/// The name of what is never made.
const PROBE: &str = "leasehold-doctor-probe";
/// That of the claim of a pod that has never been.
const CLAIM_OF_NO_POD: &str = "pod-00000000-0000-0000-0000-000000000000";
const AGENT_LABEL: &str = "leasehold.dev/agent";
const AGENT: &str = "leasehold-agent";
/// How the files of `charts/leasehold/policies/` refuse.
const BORN: &str = "isn't created with the label leasehold.dev/role";
const UNGATED: &str = "needs its gate: add";
const NAMED: &str = "is the name of the claim of the pod with this UID";
const WITHOUT_AGENT: &str = "needs its agent, which";
/// How `templates.yaml` warns.
const WARNED: &str = "leasehold.dev/lock: a rolling update waits for ever";
const APPLY: &str = "set policies.enabled of the chart, or apply charts/leasehold/policies/ (those that add \
                     something need Kubernetes 1.36 or newer)";

pub(super) async fn look(cluster: &Cluster) -> Vec<Finding> {
    let mut lock = DistributedLock::new(PROBE, DistributedLockSpec::default());
    lock.metadata.annotations = Some([(FORCE_RELEASE.to_owned(), "probe".to_owned())].into());
    let locks = dry_run(&cluster.api::<DistributedLock>(), &lock).await;
    let claim = LockClaim::new(CLAIM_OF_NO_POD, LockClaimSpec::for_lock(PROBE));
    let claims = dry_run(&cluster.api::<LockClaim>(), &claim).await;
    let pods = cluster.api::<Pod>();
    let (gated, led) = (dry_run(&pods, &pod(LOCK, PROBE)).await, dry_run(&pods, &pod(ROLE_LABEL, LEADER)).await);
    let has_agent = adds(dry_run(&pods, &pod(AGENT_LABEL, PROBE)).await, has_agent, WITHOUT_AGENT);
    vec![
        judge("force-release.yaml", "nobody's force-release is heeded", refuses(locks, REFUSAL)),
        judge("gated.yaml", "pods wait for a lock only if their template has the gate", adds(gated, is_gated, UNGATED)),
        judge("claims.yaml", "a pod can claim for another one", refuses(claims, NAMED)),
        judge("agent.yaml", "pods have an agent only if it is in their template", has_agent),
        judge("templates.yaml", "nobody is warned of templates whose pods would wait for ever", warns(cluster).await),
        judge("election.yaml", "who may change a pod's labels can make it look like a leader", refuses(led, BORN)),
    ]
}

async fn dry_run<K>(api: &Api<K>, object: &K) -> kube::Result<K>
where
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    in_time(api.create(&PostParams { dry_run: true, ..PostParams::default() }, object)).await
}

/// One that every admission lets pass.
fn pod(label: &str, value: &str) -> Pod {
    let security = json!({"allowPrivilegeEscalation": false, "runAsNonRoot": true,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}});
    let container = json!({"name": "main", "image": "none", "securityContext": security});
    let pod = json!({"metadata": {"name": PROBE, "labels": {label: value}},
        "spec": {"automountServiceAccountToken": false, "containers": [container]}});
    serde_json::from_value(pod).unwrap_or_default()
}

/// Whether what the policy refuses was refused by it; an error that is another one tells nothing.
fn refuses<K>(answer: kube::Result<K>, refusal: &str) -> kube::Result<bool> {
    match answer {
        Ok(_) => Ok(false),
        Err(kube::Error::Api(status)) if status.message.contains(refusal) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether the policy has added what this looks for. Without the one that adds it, another one refuses the pod.
fn adds(answer: kube::Result<Pod>, has: impl Fn(&Pod) -> bool, refusal: &str) -> kube::Result<bool> {
    match answer {
        Err(kube::Error::Api(status)) if status.message.contains(refusal) => Ok(false),
        answer => answer.map(|pod| has(&pod)),
    }
}

fn has_agent(pod: &Pod) -> bool {
    let containers = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    containers.iter().any(|container| container.name == AGENT)
}

/// Whether the policy warns of a template; a warning stands beside the answer.
async fn warns(cluster: &Cluster) -> kube::Result<bool> {
    let api = cluster.api::<Deployment>();
    let deployment = deployment();
    let request = http::Request::post(format!("{}?dryRun=All", api.resource_url()))
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(serde_json::to_vec(&deployment).map_err(kube::Error::SerdeError)?))
        .map_err(kube::Error::HttpError)?;
    let answer = in_time(cluster.client.send(request)).await?;
    let mut warnings = answer.headers().get_all(WARNING).iter().filter_map(|warning| warning.to_str().ok());
    if warnings.any(|warning| warning.contains(WARNED)) {
        return Ok(true);
    }
    // Not warned of, or refused by somebody else: who says why.
    dry_run(&api, &deployment).await.map(|_| false)
}

/// One whose pods would wait for each other.
fn deployment() -> Deployment {
    let Pod { metadata, spec, .. } = pod(LOCK, PROBE);
    let template = json!({"metadata": {"labels": metadata.labels}, "spec": spec});
    let spec = json!({"selector": {"matchLabels": { (LOCK): PROBE }}, "template": template});
    serde_json::from_value(json!({"metadata": {"name": PROBE}, "spec": spec})).unwrap_or_default()
}

fn judge(file: &str, without: &str, answer: kube::Result<bool>) -> Finding {
    match answer {
        Ok(true) => Finding::ok(format!("the policy {file} is in force")),
        Ok(false) => Finding::note(format!("the policy {file} isn't in force here: {without}"), APPLY),
        Err(error) => Finding::not_checked(&format!("the policy {file}"), error),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::super::finding::Level;
    use super::*;

    fn refusal(message: &str) -> kube::Error {
        kube::Error::Api(Status { code: 422, message: message.into(), ..Status::default() }.boxed())
    }

    #[test]
    fn only_the_policys_own_words_show_that_it_is_in_force() {
        assert_eq!(pod(LOCK, "a").metadata.name.as_deref(), Some(PROBE));
        let level = |answer| judge("x.yaml", "bad", refuses::<()>(answer, REFUSAL)).level;
        assert_eq!(level(Err(refusal(&format!("denied: {REFUSAL}, that of the hold")))), Level::Ok);
        assert_eq!(level(Ok(())), Level::Note);
        let other = judge("x.yaml", "bad", refuses::<()>(Err(refusal("quota")), REFUSAL));
        assert!(other.what.ends_with("not checked"), "{other:?}");
        let added = |answer| adds(answer, is_gated, UNGATED);
        assert!(!added(Ok(Pod::default())).unwrap() && added(Err(refusal("quota"))).is_err());
        assert!(!added(Err(refusal("denied: a pod needs its gate: add \"schedulingGates"))).unwrap(), "another file's");
        assert!(!has_agent(&pod(LOCK, "a")) && deployment().spec.template.spec.is_some());
    }
}
