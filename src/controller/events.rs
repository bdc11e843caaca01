//! Kubernetes Events: one per change, never per renewal.

use std::sync::Arc;

use k8s_openapi::Resource as _;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tracing::warn;

use crate::api::{LockClaim, LockStore};
use crate::failpoint::{Failpoint, around};

/// The longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// Publishes Events; a failure is logged, for nothing depends on one.
#[derive(Clone)]
pub(super) struct Events(Arc<Recorder>);

impl Events {
    /// Reports as this controller.
    pub(super) fn new(client: Client, controller: &str, instance: &str) -> Self {
        let reporter = Reporter { controller: controller.into(), instance: Some(instance.into()) };
        Self(Arc::new(Recorder::new(client, reporter)))
    }

    /// Something changed as wanted.
    pub(super) async fn normal<K: Resource<DynamicType = ()>>(&self, on: &K, reason: &str, action: &str, note: String) {
        self.publish(EventType::Normal, &reference(on), reason, action, note).await;
    }

    /// Something needs a look.
    pub(super) async fn warning<K: Resource<DynamicType = ()>>(
        &self,
        on: &K,
        reason: &str,
        action: &str,
        note: String,
    ) {
        self.publish(EventType::Warning, &reference(on), reason, action, note).await;
    }

    async fn publish(&self, type_: EventType, on: &ObjectReference, reason: &str, action: &str, mut note: String) {
        while note.len() > MAX_NOTE {
            note.pop();
        }
        let event = Event { type_, reason: reason.into(), note: Some(note), action: action.into(), secondary: None };
        if let Err(error) = around(point(on), self.0.publish(&event, on)).await {
            warn!(reason, %error, "an Event was not recorded");
        }
    }
}

/// Those about a namespace are kept in it.
fn reference<K: Resource<DynamicType = ()>>(on: &K) -> ObjectReference {
    let mut reference = on.object_ref(&());
    if K::kind(&()) == Namespace::KIND {
        reference.namespace = reference.name.clone();
    }
    reference
}

fn point(on: &ObjectReference) -> Failpoint {
    match on.kind.as_deref() {
        Some(kind) if kind == LockStore::kind(&()) => Failpoint::StoreEvent,
        Some(kind) if kind == LockClaim::kind(&()) => Failpoint::ClaimEvent,
        Some(Namespace::KIND) => Failpoint::CredentialsEvent,
        Some("Pod") => Failpoint::GatedEvent,
        _ => Failpoint::LockEvent,
    }
}
