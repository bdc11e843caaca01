//! What a controller that starts creates: the `LockStore` it was configured with, and the password of its Redis.
//!
//! Only what isn't there: what others have set is never overwritten, and a password that was made once stays.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::info;

use super::writes::{FIELD_MANAGER, is_conflict};
use super::{Error, Settings};
use crate::api::{LockStore, LockStoreSpec};
use crate::failpoint::{Failpoint, around};

/// Bytes of a password that is made: as many bits as a key of AES-256.
const PASSWORD_BYTES: usize = 32;

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
        let texts = [("username", "default".to_owned()), ("password", password()?)];
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
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    match around(place, api.create(&params, &object()?)).await {
        Ok(_) => info!(name, kind = %K::kind(&()), "created"),
        Err(error) if is_conflict(&error) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn password() -> Result<String, Error> {
    let mut bytes = [0; PASSWORD_BYTES];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut bytes).map_err(|_| Error::NoRandomness)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_long_and_its_own() {
        let (one, other) = (password().unwrap(), password().unwrap());
        assert_eq!(one.len(), 2 * PASSWORD_BYTES);
        assert_ne!(one, other);
    }
}
