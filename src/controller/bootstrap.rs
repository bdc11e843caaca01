//! What a controller that starts creates: the `LockStore` it was configured with, and the password of its Redis.
//!
//! Only what isn't there: what others have set is never overwritten, and a password that was made once stays.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::info;

use super::writes::{is_conflict, post_params};
use super::{Error, Settings};
use crate::api::{LockStore, LockStoreSpec};
use crate::failpoint::{Failpoint, around};
use crate::random;

/// What to create at the start if it isn't there.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// The name of the store.
    pub store: String,
    /// What it is to be.
    pub spec: LockStoreSpec,
    /// Whether the Secret that the spec names is made, with a password that nobody knows.
    pub make_password: bool,
}

pub(super) async fn create(client: &Client, settings: &Settings) -> Result<(), Error> {
    let Some(bootstrap) = &settings.bootstrap else {
        return Ok(());
    };
    if let Some(auth) = bootstrap.spec.auth.as_ref().filter(|_| bootstrap.make_password) {
        make_password(client, &settings.namespace, &auth.secret_ref.name).await?;
    }
    let spec = LockStoreSpec { controller_name: settings.controller_name.clone(), ..bootstrap.spec.clone() };
    let store = LockStore::new(&bootstrap.store, spec);
    create_if_absent(Failpoint::StoreCreate, &Api::all(client.clone()), &bootstrap.store, || Ok(store)).await
}

async fn make_password(client: &Client, namespace: &str, name: &str) -> Result<(), Error> {
    let secret = || {
        let mut secret = Secret { immutable: Some(true), ..Secret::default() };
        secret.metadata.name = Some(name.to_owned());
        let texts = [("username", "default".to_owned()), ("password", random::secret()?)];
        secret.string_data = Some(texts.map(|(key, text)| (key.to_owned(), text)).into());
        Ok(secret)
    };
    create_if_absent(Failpoint::StorePassword, &Api::namespaced(client.clone(), namespace), name, secret).await
}

/// Whoever is first makes it; all others find it.
async fn create_if_absent<K>(
    place: Failpoint,
    api: &Api<K>,
    name: &str,
    object: impl FnOnce() -> Result<K, Error>,
) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Debug,
{
    if api.get_opt(name).await?.is_some() {
        return Ok(());
    }
    match around(place, api.create(&post_params(), &object()?)).await {
        Ok(_) => info!(name, kind = %K::kind(&()), "created"),
        Err(error) if is_conflict(&error) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
