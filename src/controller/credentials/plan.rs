//! Which store a namespace's Secret leads to, and what is to be done about the Secret. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::ResourceExt;

use super::secret::{Connection, OldPassword, is_heeded, old_passwords, password_hash};
use crate::api::condition::reasons;
use crate::api::direct::DIRECT_STORE;
use crate::api::{DEFAULT_STORE, LockStore};

/// Why a namespace gets no credentials, in words for its Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unserved {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Unserved {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The store of a namespace: the one that its annotation names; else the one that its Secret was made for, as long as
/// that allows the namespace, so that a store that comes later moves nobody; else `default`; else the only one. The stores
/// of all controllers count, so that each of them chooses the same.
pub(super) fn choose<'a>(
    namespace: &Namespace,
    made_for: Option<&str>,
    stores: &'a [Arc<LockStore>],
) -> Result<&'a LockStore, Unserved> {
    let labels = namespace.metadata.labels.clone().unwrap_or_default();
    let allowing: BTreeMap<String, &LockStore> = stores
        .iter()
        .filter(|store| store.allows_namespace(&labels) || is_puzzling(store, made_for))
        .map(|store| (store.name_any(), store.as_ref()))
        .collect();
    if let Some(name) = namespace.annotations().get(DIRECT_STORE) {
        return allowing.get(name).copied().ok_or_else(|| not_allowed(name, stores));
    }
    let known = [made_for, Some(DEFAULT_STORE)].into_iter().flatten().find_map(|name| allowing.get(name));
    if let Some(store) = known {
        return Ok(store);
    }
    let names = allowing.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let mut all = allowing.into_values();
    match (all.next(), all.next()) {
        (Some(store), None) => Ok(store),
        (None, _) => Err(Unserved::new(reasons::NAMESPACE_NOT_ALLOWED, "no LockStore allows this namespace")),
        (Some(_), Some(_)) => {
            let message = format!(
                "several LockStores allow this namespace: {names}; name one of them in its annotation {DIRECT_STORE}"
            );
            Err(Unserved::new(reasons::STORE_AMBIGUOUS, message))
        }
    }
}

/// Whether a store has a rule that this release doesn't know: what was given by a newer one stays.
fn is_puzzling(store: &LockStore, made_for: Option<&str>) -> bool {
    made_for.is_some() && made_for == store.metadata.name.as_deref() && store.unsupported_value().is_some()
}

fn not_allowed(name: &str, stores: &[Arc<LockStore>]) -> Unserved {
    if stores.iter().any(|store| store.name_any() == name) {
        let message = format!("the LockStore {name} doesn't allow this namespace; see its allowedNamespaces");
        return Unserved::new(reasons::NAMESPACE_NOT_ALLOWED, message);
    }
    let message = format!("there is no LockStore {name}; create it, or name another in the annotation {DIRECT_STORE}");
    Unserved::new(reasons::STORE_NOT_FOUND, message)
}

/// What is to be done about a namespace's Secret, with the passwords of before that go on working.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// It is made, with a new password.
    Make(Vec<OldPassword>),
    /// It gets a new password.
    Rotate(Vec<OldPassword>),
    /// It keeps its password, and says something else.
    Change(Vec<OldPassword>),
    /// It is as it is to be.
    Keep,
}

/// Decides by what is there: our Secret, and the passwords that Redis knows.
pub(super) fn plan(
    connection: &Connection,
    secret: Option<&Secret>,
    known: Option<&BTreeSet<String>>,
    now: jiff::Timestamp,
    overlap: jiff::SignedDuration,
) -> Step {
    let outdated = |hash: String| OldPassword { hash, until: now.saturating_add(overlap).unwrap_or(now) };
    let Some(secret) = secret else {
        // It was deleted: what it had is known to Redis alone.
        return Step::Make(known.into_iter().flatten().cloned().map(outdated).collect());
    };
    let written = old_passwords(secret);
    let mut old: Vec<_> = written.iter().filter(|old| old.until > now).cloned().collect();
    match password_hash(secret) {
        Some(hash) if !is_heeded(secret) => {
            old.retain(|other| other.hash != hash);
            old.push(outdated(hash));
            Step::Rotate(old)
        }
        None => Step::Rotate(old),
        Some(_) if written != old || !connection.is_said_by(secret) => Step::Change(old),
        Some(_) => Step::Keep,
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use serde_json::json;

    use super::*;
    use crate::api::direct::{ROTATE, ROTATED};

    const OVERLAP: SignedDuration = SignedDuration::from_secs(60);

    fn namespace(annotations: serde_json::Value) -> Namespace {
        let metadata = json!({"name": "shop", "labels": {"team": "shop"}, "annotations": annotations});
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    fn store(name: &str, team: Option<&str>) -> Arc<LockStore> {
        let allowed = team.map(|team| json!({"from": "Selector", "selector": {"matchLabels": {"team": team}}}));
        let spec = json!({"standalone": {"address": "redis:6379"}, "allowedNamespaces": allowed.unwrap_or(json!({}))});
        Arc::new(LockStore::new(name, serde_json::from_value(spec).unwrap()))
    }

    fn chosen(annotations: serde_json::Value, made_for: Option<&str>, stores: &[Arc<LockStore>]) -> String {
        match choose(&namespace(annotations), made_for, stores) {
            Ok(store) => store.name_any(),
            Err(unserved) => unserved.reason.to_owned(),
        }
    }

    #[test]
    fn the_store_is_the_named_one_then_the_one_of_before_then_the_default_then_the_only_one() {
        let all = [store("a", None), store("default", None), store("theirs", Some("other"))];
        assert_eq!(chosen(json!({}), None, &all), "default");
        assert_eq!(chosen(json!({}), Some("a"), &all), "a");
        assert_eq!(chosen(json!({}), Some("theirs"), &all), "default");
        assert_eq!(chosen(json!({ (DIRECT_STORE): "a" }), Some("default"), &all), "a");
        assert_eq!(chosen(json!({ (DIRECT_STORE): "theirs" }), None, &all), reasons::NAMESPACE_NOT_ALLOWED);
        assert_eq!(chosen(json!({ (DIRECT_STORE): "b" }), None, &all), reasons::STORE_NOT_FOUND);
        assert_eq!(chosen(json!({}), None, &[store("a", Some("shop")), store("b", Some("other"))]), "a");
        assert_eq!(chosen(json!({}), None, &[store("a", None), store("b", None)]), reasons::STORE_AMBIGUOUS);
        assert_eq!(chosen(json!({}), None, &[store("b", Some("other"))]), reasons::NAMESPACE_NOT_ALLOWED);
    }

    #[test]
    fn a_rule_of_a_newer_release_takes_nothing_away() {
        let spec = json!({"standalone": {"address": "redis:6379"}, "allowedNamespaces": {"from": "Same"}});
        let all = [Arc::new(LockStore::new("a", serde_json::from_value(spec).unwrap()))];
        assert_eq!(chosen(json!({}), Some("a"), &all), "a");
        assert_eq!(chosen(json!({}), None, &all), reasons::NAMESPACE_NOT_ALLOWED);
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn connection() -> Connection {
        Connection {
            store: "default".into(),
            url: "redis://redis:6379".into(),
            username: "p.direct.shop".into(),
            prefix: "p".into(),
            namespace: "shop".into(),
            ca: None,
            controller: "c".into(),
        }
    }

    fn secret(old: &[OldPassword]) -> Secret {
        connection().secret("secret", old)
    }

    fn old(hash: char, second: i64) -> OldPassword {
        OldPassword { hash: hash.to_string().repeat(64), until: at(second) }
    }

    fn step(secret: Option<&Secret>, known: Option<&BTreeSet<String>>, second: i64) -> Step {
        plan(&connection(), secret, known, at(second), OVERLAP)
    }

    #[test]
    fn a_secret_is_made_once_and_what_redis_knew_works_for_a_while() {
        assert_eq!(step(None, None, 0), Step::Make(vec![]));
        assert_eq!(step(Some(&secret(&[])), None, 0), Step::Keep);
        let known = BTreeSet::from(["a".repeat(64)]);
        assert_eq!(step(None, Some(&known), 10), Step::Make(vec![old('a', 70)]));
    }

    #[test]
    fn a_new_password_is_made_when_it_is_asked_for_and_the_old_one_works_for_a_while() {
        let mut asked = secret(&[old('a', 20)]);
        let of_before = password_hash(&asked).unwrap();
        asked.annotations_mut().insert(ROTATE.into(), "1".into());
        let until = OldPassword { hash: of_before, until: at(70) };
        assert_eq!(step(Some(&asked), None, 10), Step::Rotate(vec![old('a', 20), until.clone()]));
        assert_eq!(step(Some(&asked), None, 20), Step::Rotate(vec![OldPassword { until: at(80), ..until }]));
        asked.annotations_mut().insert(ROTATED.into(), "1".into());
        assert_eq!(step(Some(&asked), None, 10), Step::Keep);
        asked.annotations_mut().remove(ROTATE);
        assert_eq!(step(Some(&asked), None, 10), Step::Keep);
        asked.data.as_mut().unwrap().remove("password");
        assert_eq!(step(Some(&asked), None, 10), Step::Rotate(vec![old('a', 20)]));
    }

    #[test]
    fn a_password_that_is_over_is_forgotten_and_another_address_is_told() {
        assert_eq!(step(Some(&secret(&[old('a', 20)])), None, 19), Step::Keep);
        assert_eq!(step(Some(&secret(&[old('a', 20)])), None, 20), Step::Change(vec![]));
        let elsewhere = Connection { url: "rediss://other:6380".into(), ca: Some(b"ca".into()), ..connection() };
        assert_eq!(plan(&elsewhere, Some(&secret(&[])), None, at(0), OVERLAP), Step::Change(vec![]));
    }
}
