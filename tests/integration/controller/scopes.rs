//! A controller that serves some namespaces only, with the rights that the chart gives it then, and no others.

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use leasehold::api::condition::{self, reasons, types};
use leasehold::api::direct::CONNECTION;
use leasehold::api::{DistributedLock, DistributedLockSpec, LockClaim};

use super::credentials::{disable, enable, secret_is, works_soon};
use super::fixture::{Fixture, Site, claim_condition, holder, is_ready, lock_condition, lock_reason, options};
use crate::support::{Controller, ControllerOptions, LIMIT, RedisServer, Scratch, TestNamespace, wait_for};

const RBAC: &str = include_str!("../../../charts/leasehold/templates/rbac.yaml");

/// A namespace, and the options of a controller that may serve nothing else.
struct Limited {
    site: Site,
    options: ControllerOptions,
    /// Has its kubeconfig.
    _scratch: Scratch,
}

impl Limited {
    async fn new() -> Self {
        let site = Site { test: TestNamespace::new().await, redis: RedisServer::start().await };
        let scratch = Scratch::new("limited");
        site.test.kubectl_apply(&account(site.test.name())).await.expect("the roles of the chart");
        let token = site.test.kubectl("create token controller").await.expect("a token");
        let config = std::fs::read_to_string(site.test.plane().kubeconfig("controller")).expect("a kubeconfig");
        let mut options = options(&site.test, &site.redis);
        options.namespaces = vec![site.test.name().to_owned()];
        options.kubeconfig = scratch.write("kubeconfig", &config.replace("controller-token", token.trim()));
        Self { site, options, _scratch: scratch }
    }
}

/// The service account `controller` with the chart's Role in this namespace and its ClusterRole for LockStores.
fn account(namespace: &str) -> String {
    let between = |from: &str, to: &str| {
        let (_, rules) = RBAC.split_once(from).expect("the chart has it");
        rules.split_once(to).expect("and its end").0.to_owned()
    };
    let served = between("{{- define \"leasehold.servedRules\" -}}", "{{- end }}");
    let direct = between("{{- define \"leasehold.directRules\" -}}", "{{- end }}");
    let served = format!("{served}{direct}");
    let stores = between("\nrules:", "{{- if not .Values.namespaces }}");
    let own = "\n- {apiGroups: [\"\"], resources: [configmaps], verbs: [create, get, patch]}";
    let role = |kind: &str, name: &str, rules: &str| {
        format!(
            "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nrules:{rules}\n\
             ---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\nmetadata: {{name: {name}}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: {name}}}\n\
             subjects: [{{kind: ServiceAccount, name: controller, namespace: {namespace}}}]\n"
        )
    };
    let account = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: controller}\n".to_owned();
    [account, role("Role", "served", &served), role("Role", "own", own), role("ClusterRole", namespace, &stores)]
        .concat()
}

#[tokio::test]
async fn only_the_namespaces_that_are_named_are_served_and_a_role_there_is_enough() {
    let Limited { site, options, _scratch } = Limited::new().await;
    let elsewhere: Api<DistributedLock> = TestNamespace::new().await.api();
    let spec = DistributedLockSpec { store_name: site.store_name(), ..DistributedLockSpec::default() };
    elsewhere.create(&PostParams::default(), &DistributedLock::new("other", spec)).await.expect("a lock");

    let f = Fixture::of(site, Controller::start(options).await);
    f.store_is("is Ready", is_ready).await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.claim_is("mine", "is held", |claim| claim_condition(claim, types::HELD)).await;
    let pod = f.pods().run("p", "Always", Some(f.test.name())).await;
    f.claim("of-a-pod", "a", |claim| claim.holder_ref = Some(holder(&pod))).await;
    f.has_its_place("of-a-pod").await;
    f.delete::<LockClaim>("mine").await;
    f.claim_is("of-a-pod", "is held", |claim| claim_condition(claim, types::HELD)).await;
    f.event("of-a-pod", "Acquired").await;
    let reachable = |lock: &DistributedLock| lock_reason(lock, types::HOLDER_UNREACHABLE, reasons::HOLDERS_REACHABLE);
    f.lock_is("a", "takes its holder for one that can be asked", reachable).await;

    // Nobody may look at the node: a pod that is gone can't be asked, and keeps its hold.
    f.pods().delete_by_force(&pod).await;
    f.lock_is("a", "can't ask its holder", |lock| lock_condition(lock, types::HOLDER_UNREACHABLE)).await;
    let says_why = |claim: &LockClaim| {
        let conditions = claim.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let held = condition::get(conditions, types::HELD);
        held.is_some_and(|held| held.status == true.into() && held.message.contains("may not be read"))
    };
    f.claim_is("of-a-pod", "still holds, and says why", says_why).await;

    enable(&f).await;
    works_soon(&secret_is(&f, "is made", |_| true).await).await;
    disable(&f).await;
    f.test.gone::<Secret>(CONNECTION, LIMIT).await;

    let other = elsewhere.get("other").await.expect("it is there");
    assert_eq!(other.status.and_then(|status| status.observed_generation), None, "nobody serves it");
    // Events about the store go to the namespace default, where the chart has a Role for that alone.
    let logs = f.controller.logs();
    let forbidden = |line: &&str| line.contains("forbidden") && !line.contains("in the namespace \\\"default\\\"");
    assert_eq!(logs.lines().find(forbidden), None, "it asks for what it may not");
}

#[tokio::test]
async fn a_namespace_that_may_not_be_read_ends_the_controller_with_words() {
    let Limited { site, mut options, _scratch } = Limited::new().await;
    options.namespaces.push("of-others".to_owned());
    let mut controller = Controller::not_started(options);
    controller.spawn_with(None);
    let refused = async || Some(controller.logs()).filter(|logs| logs.contains("\"of-others\" can't be served"));
    let logs = wait_for("it says why it ends", LIMIT, refused).await;
    assert!(logs.contains("take it out of --namespaces"), "{logs}");
    assert!(site.stores().get_opt(&site.store_name()).await.expect("an answer").is_none(), "nothing was done");
}
