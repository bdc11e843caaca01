//! Writing to Kubernetes: every write carries the `resourceVersion` it was decided on, so that two
//! controllers, or a stale cache, end in a conflict and not in an overwrite.

use kube::api::{Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::FINALIZER;
use crate::failpoint::{Failpoint, around};

/// The field manager of everything that the controller writes.
pub(super) const FIELD_MANAGER: &str = "leasehold-controller";

/// A kind that the controller writes.
pub(super) trait Written:
    Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned
{
}
impl<K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned> Written for K {}

/// The API of an object's own namespace.
pub(super) fn api_of<K>(client: &Client, object: &K) -> Api<K>
where
    K: Written + Resource<Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), &object.namespace().unwrap_or_default())
}

/// Replaces the status; fails with a conflict if the object has changed since it was read.
///
/// # Errors
/// What the API server or the connection says.
pub(super) async fn replace_status<K: Written>(point: Failpoint, api: &Api<K>, object: &K) -> kube::Result<K> {
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    around(point, api.replace_status(&object.name_any(), &params, object)).await
}

/// Adds our finalizer, or takes it off.
///
/// # Errors
/// What the API server or the connection says; a conflict if the object has changed.
pub(super) async fn set_finalizer<K: Written>(
    point: Failpoint,
    api: &Api<K>,
    object: &K,
    present: bool,
) -> kube::Result<K> {
    let mut finalizers: Vec<String> = object.finalizers().iter().filter(|f| *f != FINALIZER).cloned().collect();
    if present {
        finalizers.push(FINALIZER.to_owned());
    }
    patch_metadata(point, api, object, json!({ "finalizers": finalizers })).await
}

/// Merges into the metadata; fails with a conflict if the object has changed since it was read.
///
/// # Errors
/// What the API server or the connection says.
pub(super) async fn patch_metadata<K: Written>(
    point: Failpoint,
    api: &Api<K>,
    object: &K,
    mut metadata: Value,
) -> kube::Result<K> {
    metadata["resourceVersion"] = json!(object.resource_version());
    metadata["uid"] = json!(object.uid());
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    around(point, api.patch(&object.name_any(), &params, &patch)).await
}

/// Whether an error means that the object is not as it was read: read again and decide again.
pub(super) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether the object is gone.
pub(super) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
