//! The loop of pods that wait for locks: they have the label, and the scheduling gate, `leasehold.dev/lock`.
//!
//! # Sequence
//! 1. Once ours is the only gate left, a claim `pod-<uid>` is made for the pod, and owned by it.
//! 2. The claim takes its walk, to `Held=True` in etcd.
//! 3. The pod is written once: its tokens come and the gate goes. The write carries UID and `resourceVersion`, so that it
//!    reaches this pod alone, as it was seen: with this gate, this list and no other gate.
//! 4. The claim holds while the pod lives, and is deleted when it has ended.
//!
//! A crash after 1 or 2: the claim is found by its name. After 3: the pod runs, and its claim holds. Neither ever holds for
//! less time than the pod runs: the pod is let go after etcd has the hold, and a hold of a pod that wasn't let go is given
//! back only after the pod was written (`leasehold.dev/withdrawn`), so that whoever decided step 3 before conflicts.
//!
//! One that holds and doesn't start within its limit frees its lock: if it is not bound to a node its status becomes
//! `Failed`, which is evidence for the claim, and it is deleted when the claim is gone; if it is bound, it is deleted, and
//! its kubelet tells when it has ended.
//!
//! Only pods with the label are watched. One that has none of our gates, and no token, runs without its lock: nobody has
//! added the gate, and all that is left is to say so.

mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::Patch;
use kube::runtime::controller::Action;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::Event;
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};
use tracing::debug;

use super::claim::is_of_gated_pod;
use super::writes::{
    api_of, as_read, delete_as_read, is_conflict, is_not_found, patch_as_read, patch_params, post_params,
};
use super::{Context, Error, SOON};
use crate::api::condition::{reasons, types};
use crate::api::gated::LOCK;
use crate::api::{FINALIZER, LOCK_LABEL, LockClaim, LockClaimSpec, time};
use crate::failpoint::{Failpoint, around};
pub(super) use plan::stands_at;
use plan::{Said, Step};

/// A pod is looked at so often even if nothing seems to happen.
const SLOW_LOOK: Duration = Duration::from_secs(30);

/// What this process remembers of the pods.
#[derive(Default)]
pub(super) struct Gated {
    /// Since when each has been seen to hold without having started.
    stalled: Mutex<HashMap<String, Instant>>,
    /// Those of which it was said that they run without their lock.
    ungated: Mutex<HashSet<String>>,
}

impl Gated {
    fn stalled_since(&self, pod: &Pod, uid: &str) -> Option<Instant> {
        let mut stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        if plan::is_stalled(pod) {
            Some(*stalled.entry(uid.to_owned()).or_insert_with(Instant::now))
        } else {
            stalled.remove(uid);
            None
        }
    }

    fn is_news(&self, uid: &str) -> bool {
        self.ungated.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned())
    }

    /// Hears of the pods that go.
    pub(super) fn note(&self, event: &Event<Pod>, labelled: &reflector::Store<Pod>) {
        match event {
            Event::Delete(pod) => self.retain(|uid| pod.metadata.uid.as_deref() != Some(uid)),
            Event::InitDone => {
                let there: HashSet<String> = labelled.state().iter().filter_map(|pod| pod.uid()).collect();
                self.retain(|uid| there.contains(uid));
            }
            Event::Init | Event::InitApply(_) | Event::Apply(_) => {}
        }
    }

    fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| keep(uid));
        self.ungated.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid| keep(uid));
    }
}

/// Leaves of a pod what is looked at, since thousands are kept in memory.
pub(super) fn slim(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    if let Some(spec) = pod.spec.take() {
        let named = |container: Container| Container { name: container.name, ..Container::default() };
        pod.spec = Some(PodSpec {
            containers: spec.containers.into_iter().map(named).collect(),
            scheduling_gates: spec.scheduling_gates,
            node_name: spec.node_name,
            restart_policy: spec.restart_policy,
            termination_grace_period_seconds: spec.termination_grace_period_seconds,
            ..PodSpec::default()
        });
    }
}

/// The pod whose claim this is.
pub(super) fn pod_of(claim: &LockClaim) -> Option<ObjectRef<Pod>> {
    let holder = claim.spec.holder_ref.as_ref().filter(|_| is_of_gated_pod(claim))?;
    Some(ObjectRef::new(&holder.name).within(&claim.namespace()?))
}

/// One look at a pod.
pub(super) async fn reconcile(pod: Arc<Pod>, ctx: Arc<Context>) -> Result<Action, Error> {
    let _timer = ctx.metrics.reconcile("Pod");
    // A claim that isn't listed yet is not one that isn't there. An error: the process ends.
    let _ = ctx.claims.is_filled().await;
    if is_theirs(&pod, &ctx).await? {
        return Ok(Action::await_change());
    }
    let claim = ctx.claims.get(&ObjectRef::new(&plan::claim_name(&pod)).within(&pod.namespace().unwrap_or_default()));
    let uid = pod.uid().unwrap_or_default();
    let stalled = ctx.gated.stalled_since(&pod, &uid).map(|since| since.elapsed()).unwrap_or_default();
    let step = plan::plan(&pod, claim.as_deref(), stalled);
    debug!(pod = %ObjectRef::from_obj(&*pod), ?step, "decided");
    let look = Look { ctx: &ctx, pods: api_of(&ctx.client, &*pod), pod: &pod, claim: claim.as_deref() };
    match look.apply(step).await {
        Ok(action) => Ok(action),
        // Somebody has written it since, so that it is seen again at once; the requeue is a net.
        Err(Error::Kube(error)) if is_conflict(&error) => Ok(Action::requeue(SOON)),
        Err(Error::Kube(error)) if is_not_found(&error) => Ok(Action::await_change()),
        Err(error) => Err(error),
    }
}

/// Whether another controller serves the lock of its label. One that isn't known is anybody's: what is written then is the
/// same, whoever writes it.
async fn is_theirs(pod: &Pod, ctx: &Context) -> Result<bool, Error> {
    let lock = pod.labels().get(LOCK).map(|name| ObjectRef::new(name).within(&pod.namespace().unwrap_or_default()));
    let Some(lock) = lock.and_then(|lock| ctx.locks.get(&lock)) else { return Ok(false) };
    Ok(ctx.whose_store(lock.store_name()).await?.is_theirs())
}

struct Look<'a> {
    ctx: &'a Context,
    pods: Api<Pod>,
    pod: &'a Pod,
    claim: Option<&'a LockClaim>,
}

impl Look<'_> {
    async fn apply(&self, step: Step) -> Result<Action, Error> {
        match step {
            Step::Rest(wait) => return Ok(Action::requeue(wait.unwrap_or(SLOW_LOOK).min(SLOW_LOOK))),
            Step::Claim(spec) => self.claim(*spec).await?,
            Step::Drop => self.drop_claim().await?,
            Step::LetGo(tokens) => self.let_go(&tokens).await?,
            Step::Fail(now, reason, message) => self.fail(now, reason, &message).await?,
            Step::Say(said) => self.say(&said).await?,
            Step::Delete(message) => self.delete(message).await?,
            Step::SayUngated if self.ctx.gated.is_news(&self.pod.uid().unwrap_or_default()) => {
                self.ctx.metrics.pods_ungated.inc();
                let note = "it has the label leasehold.dev/lock and no gate of this name: it runs without its lock. Install \
                            the chart's policies, or write the gate into its template";
                self.ctx.events.warning(self.pod, reasons::UNGATED, "Gate", note.to_owned()).await;
            }
            Step::SayUngated => {}
        }
        Ok(Action::requeue(SLOW_LOOK))
    }

    async fn claim(&self, spec: LockClaimSpec) -> Result<(), Error> {
        let labels = spec.locks.iter().map(|lock| (format!("{LOCK_LABEL}{}", lock.name), String::new())).collect();
        let mut claim = LockClaim::new(&plan::claim_name(self.pod), spec);
        claim.metadata.labels = Some(labels);
        claim.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        claim.metadata.owner_references = Some(vec![OwnerReference {
            api_version: Pod::api_version(&()).into_owned(),
            kind: Pod::kind(&()).into_owned(),
            name: self.pod.name_any(),
            uid: self.pod.uid().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: None,
        }]);
        let api: Api<LockClaim> = Api::namespaced(self.ctx.client.clone(), &self.pod.namespace().unwrap_or_default());
        around(Failpoint::GatedClaim, api.create(&post_params(), &claim)).await?;
        Ok(())
    }

    async fn drop_claim(&self) -> Result<(), Error> {
        let Some(claim) = self.claim else { return Ok(()) };
        delete_as_read(Failpoint::GatedDrop, &api_of(&self.ctx.client, claim), claim).await?;
        Ok(())
    }

    async fn let_go(&self, tokens: &[(String, String)]) -> Result<(), Error> {
        let annotations: Value = tokens.iter().cloned().map(|(key, token)| (key, json!(token))).collect();
        let change = json!({ "metadata": { "annotations": annotations }, "spec": { "schedulingGates": null } });
        patch_as_read(Failpoint::GatedLetGo, &self.pods, self.pod, change).await?;
        let names = self.claim.map(LockClaim::lock_names).unwrap_or_default();
        let token = tokens.first().map(|(_, token)| token.as_str()).unwrap_or_default();
        self.ctx
            .events
            .normal(self.pod, reasons::LOCK_ACQUIRED, "Grant", format!("holds {names} with token {token}"))
            .await;
        Ok(())
    }

    async fn fail(&self, now: &str, reason: &str, message: &str) -> Result<(), Error> {
        let mut status = json!({ "phase": "Failed", "reason": now, "message": message });
        status["conditions"] = json!([condition(now, "True", reason, message)]);
        self.write_status(Failpoint::GatedFail, status).await?;
        self.ctx.events.warning(self.pod, now, "Fail", message.to_owned()).await;
        Ok(())
    }

    async fn say(&self, said: &Said) -> Result<(), Error> {
        let status = if said.holds { "True" } else { "False" };
        let said_so = condition(types::LOCK_HELD, status, said.reason, &said.message);
        self.write_status(Failpoint::GatedCondition, json!({ "conditions": [said_so] })).await?;
        if !said.is_normal() {
            self.ctx.events.warning(self.pod, said.reason, "Gate", said.message.clone()).await;
        }
        Ok(())
    }

    async fn write_status(&self, point: Failpoint, status: Value) -> Result<(), Error> {
        let patch = Patch::Strategic(json!({ "metadata": as_read(self.pod), "status": status }));
        around(point, self.pods.patch_status(&self.pod.name_any(), &patch_params(), &patch)).await?;
        Ok(())
    }

    async fn delete(&self, message: Option<String>) -> Result<(), Error> {
        delete_as_read(Failpoint::GatedDelete, &self.pods, self.pod).await?;
        if let Some(message) = message {
            self.ctx.events.warning(self.pod, reasons::HOLDER_NOT_STARTED, "Delete", message).await;
        }
        Ok(())
    }
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    let now = time::seconds(Timestamp::now());
    json!({ "type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": now })
}
