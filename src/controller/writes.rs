//! Writing to Kubernetes: every write carries the `resourceVersion` it was decided on, so that two
//! controllers, or a stale cache, end in a conflict and not in an overwrite.

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::FINALIZER;
use crate::failpoint::{Failpoint, around};

/// The field manager of everything that the controller writes.
const FIELD_MANAGER: &str = "leasehold-controller";

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

/// What the metadata of a patch begins with, so that it reaches this object alone, as it was read.
pub(super) fn as_read<K: Written>(object: &K) -> Value {
    json!({ "uid": object.uid(), "resourceVersion": object.resource_version() })
}

/// Deletes an object that is still as it was read; `Some`: its finalizers keep it.
///
/// # Errors
/// What the API server or the connection says; a conflict if the object has changed.
pub(super) async fn delete_as_read<K: Written>(point: Failpoint, api: &Api<K>, object: &K) -> kube::Result<Option<K>> {
    let (uid, resource_version) = (object.uid(), object.resource_version());
    let preconditions = Some(Preconditions { uid, resource_version });
    let params = DeleteParams { preconditions, ..DeleteParams::default() };
    around(point, api.delete(&object.name_any(), &params)).await.map(|deleted| deleted.left())
}

/// Replaces the status; fails with a conflict if the object has changed since it was read.
///
/// # Errors
/// What the API server or the connection says.
pub(super) async fn replace_status<K: Written>(point: Failpoint, api: &Api<K>, object: &K) -> kube::Result<K> {
    around(point, api.replace_status(&object.name_any(), &post_params(), object)).await
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
    metadata: Value,
) -> kube::Result<K> {
    patch_as_read(point, api, object, json!({ "metadata": metadata })).await
}

/// Merges into an object; fails with a conflict if it has changed since it was read.
///
/// # Errors
/// What the API server or the connection says.
pub(super) async fn patch_as_read<K: Written>(
    point: Failpoint,
    api: &Api<K>,
    object: &K,
    mut change: Value,
) -> kube::Result<K> {
    for (key, value) in as_read(object).as_object().into_iter().flatten() {
        change["metadata"][key] = value.clone();
    }
    around(point, api.patch(&object.name_any(), &patch_params(), &Patch::Merge(change))).await
}

/// As our field manager.
pub(super) fn patch_params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

/// As our field manager.
pub(super) fn post_params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
}

/// Whether an error means that the object is not as it was read: read again and decide again.
pub(super) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether the object is gone.
pub(super) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
