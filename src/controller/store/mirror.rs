//! The epochs of all stores once more, in a ConfigMap that is not ours to delete: a `LockStore` that is deleted and
//! created again goes on from there.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::Patch;
use serde_json::json;

use super::super::Context;
use super::super::writes::{is_conflict, patch_params, post_params};
use crate::failpoint::{Failpoint, around};
use crate::lease::Epoch;

const NAME: &str = "leasehold-epochs";

fn api(ctx: &Context) -> Api<ConfigMap> {
    Api::namespaced(ctx.client.clone(), &ctx.settings.namespace)
}

/// The last epoch of a store; 0 if it never had one.
pub(super) async fn read(ctx: &Context, store: &str) -> kube::Result<i64> {
    let data = api(ctx).get_opt(NAME).await?.and_then(|map| map.data);
    Ok(data.and_then(|data| data.get(store)?.parse().ok()).unwrap_or(0))
}

/// Notes an epoch, before Redis hears of it. Other stores' entries stay.
pub(super) async fn write(ctx: &Context, store: &str, epoch: Epoch) -> kube::Result<()> {
    let data = BTreeMap::from([(store.to_owned(), epoch.get().to_string())]);
    let mut map = ConfigMap { data: Some(data.clone()), ..ConfigMap::default() };
    map.metadata.name = Some(NAME.to_owned());
    let params = post_params();
    match around(Failpoint::StoreMirror, api(ctx).create(&params, &map)).await {
        Err(error) if is_conflict(&error) => {
            let patch = Patch::Merge(json!({ "data": data }));
            let params = patch_params();
            around(Failpoint::StoreMirror, api(ctx).patch(NAME, &params, &patch)).await.map(drop)
        }
        created => created.map(drop),
    }
}
