//! The Secret with which processes of a namespace connect to Redis. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::api::direct::{
    CONNECTION, CONTROLLER, DIRECT_STORE, LEASEHOLD, MANAGED_BY, OLD_PASSWORDS, ROTATE, ROTATED, keys,
};
use crate::store::Endpoint;

/// What a Secret says, but for the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Connection {
    /// The name of the `LockStore`.
    pub(super) store: String,
    pub(super) url: String,
    pub(super) username: String,
    pub(super) prefix: String,
    pub(super) namespace: String,
    pub(super) ca: Option<Vec<u8>>,
    /// Whose the Secret is.
    pub(super) controller: String,
}

/// A password of before that still works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OldPassword {
    /// Its SHA-256, in lower hexadecimal digits.
    pub(super) hash: String,
    /// When it stops.
    pub(super) until: jiff::Timestamp,
}

impl OldPassword {
    fn parse(text: &str) -> Option<Self> {
        let (hash, until) = text.split_once('=')?;
        let is_hash = hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        Some(Self { hash: is_hash.then(|| hash.to_owned())?, until: until.parse().ok()? })
    }
}

/// `redis://` or, with TLS, `rediss://`.
pub(super) fn url(endpoint: &Endpoint) -> String {
    let Endpoint { host, port, database, tls, .. } = endpoint;
    let scheme = if tls.is_some() { "rediss" } else { "redis" };
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let database = if *database == 0 { String::new() } else { format!("/{database}") };
    format!("{scheme}://{host}:{port}{database}")
}

impl Connection {
    fn data(&self) -> [(&'static str, Option<&[u8]>); 5] {
        [
            (keys::URL, Some(self.url.as_bytes())),
            (keys::USERNAME, Some(self.username.as_bytes())),
            (keys::PREFIX, Some(self.prefix.as_bytes())),
            (keys::NAMESPACE, Some(self.namespace.as_bytes())),
            (keys::CA, self.ca.as_deref()),
        ]
    }

    fn annotations(&self, old: &[OldPassword], heeded: Option<&str>) -> [(&'static str, Option<String>); 4] {
        let old: Vec<String> = old.iter().map(|OldPassword { hash, until }| format!("{hash}={until}")).collect();
        [
            (CONTROLLER, Some(self.controller.clone())),
            (DIRECT_STORE, Some(self.store.clone())),
            (ROTATED, heeded.map(ToOwned::to_owned)),
            (OLD_PASSWORDS, (!old.is_empty()).then(|| old.join(","))),
        ]
    }

    /// Whether a Secret says this, whatever its password.
    pub(super) fn is_said_by(&self, secret: &Secret) -> bool {
        self.data().into_iter().all(|(key, value)| get(secret, key) == value)
            && made_for(secret) == Some(self.store.as_str())
    }

    /// What changes a Secret: a merge patch. Without a new password it keeps its own.
    pub(super) fn patch(&self, password: Option<&str>, old: &[OldPassword], heeded: Option<&str>) -> Value {
        let password = password.map(|password| (keys::PASSWORD, Some(password.as_bytes())));
        let data: BTreeMap<_, _> =
            self.data().into_iter().chain(password).map(|(key, value)| (key, value.map(bytes))).collect();
        let annotations = BTreeMap::from(self.annotations(old, heeded));
        json!({ "metadata": { "annotations": annotations }, "data": data })
    }

    /// A new Secret.
    pub(super) fn secret(&self, password: &str, old: &[OldPassword]) -> Secret {
        let password = (keys::PASSWORD, Some(password.as_bytes()));
        let data = self.data().into_iter().chain([password]);
        let mut secret = Secret { type_: Some("Opaque".into()), ..Secret::default() };
        secret.data = Some(data.filter_map(|(key, value)| Some((key.to_owned(), bytes(value?)))).collect());
        secret.metadata.name = Some(CONNECTION.into());
        secret.labels_mut().insert(MANAGED_BY.into(), LEASEHOLD.into());
        for (key, value) in self.annotations(old, None) {
            secret.annotations_mut().extend(value.map(|value| (key.to_owned(), value)));
        }
        secret
    }
}

fn bytes(value: &[u8]) -> ByteString {
    ByteString(value.to_vec())
}

fn get<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    secret.data.as_ref()?.get(key).map(|bytes| bytes.0.as_slice())
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    secret.annotations().get(key).map(String::as_str)
}

/// The store that a Secret leads to.
pub(super) fn made_for(secret: &Secret) -> Option<&str> {
    annotation(secret, DIRECT_STORE)
}

/// Whether this controller may change or delete it.
pub(super) fn is_ours(secret: &Secret, controller: &str) -> bool {
    secret.labels().get(MANAGED_BY).is_some_and(|by| by == LEASEHOLD)
        && annotation(secret, CONTROLLER) == Some(controller)
}

/// Whether there is no new wish for another password.
pub(super) fn is_heeded(secret: &Secret) -> bool {
    let wish = wish(secret);
    wish.is_none() || wish == annotation(secret, ROTATED)
}

/// The last wish for another password.
pub(super) fn wish(secret: &Secret) -> Option<&str> {
    annotation(secret, ROTATE)
}

/// The hash of its password, if it has one.
pub(super) fn password_hash(secret: &Secret) -> Option<String> {
    let password = get(secret, keys::PASSWORD).filter(|password| !password.is_empty())?;
    Some(Sha256::digest(password).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The passwords of before that it has.
pub(super) fn old_passwords(secret: &Secret) -> Vec<OldPassword> {
    let text = annotation(secret, OLD_PASSWORDS).unwrap_or_default();
    text.split(',').filter_map(OldPassword::parse).collect()
}

/// The hashes of all passwords with which one may log in now.
pub(super) fn valid_hashes(secret: &Secret, now: jiff::Timestamp) -> BTreeSet<String> {
    let old = old_passwords(secret).into_iter().filter(|old| old.until > now).map(|old| old.hash);
    old.chain(password_hash(secret)).collect()
}
