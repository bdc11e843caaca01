//! `LockStore`: where the leases are.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CONTROLLER_NAME, Condition, LabelSelector, MAX_SAFE};

/// What a LockStore should be.
#[derive(Debug, Clone, PartialEq, Eq, CustomResource, KubeSchema, Serialize, Deserialize)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "LockStore",
    doc = "One Redis (7.0 or newer) or Valkey (7.2 or newer) deployment in which locks keep their leases. \
           Locks name it by spec.storeName; the store named default serves those that name none.",
    status = "LockStoreStatus",
    shortname = "lstore",
    category = "leasehold",
    derive = "PartialEq",
    derive = "Default",
    selectable = ".spec.controllerName",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether locks of this store can be granted"
    ),
    printcolumn(
        name = "Address",
        type_ = "string",
        json_path = ".spec.standalone.address",
        description = "Where its Redis is"
    ),
    printcolumn(
        name = "Server",
        type_ = "string",
        json_path = ".status.serverVersion",
        description = "The server's version"
    ),
    printcolumn(
        name = "Epoch",
        type_ = "integer",
        json_path = ".status.epoch",
        description = "The upper bits of the fencing tokens it grants"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Prefix",
        type_ = "string",
        json_path = ".spec.keyPrefix",
        priority = 1,
        description = "What its keys in Redis begin with"
    ),
    printcolumn(
        name = "Controller",
        type_ = "string",
        json_path = ".spec.controllerName",
        priority = 1,
        description = "The controller that serves it"
    ),
    printcolumn(
        name = "Term",
        type_ = "integer",
        json_path = ".status.term",
        priority = 1,
        description = "How often the controller has started its reign"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1,
        description = "Why it is Ready or not"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.standalone)].filter(set, set).size() == 1")
        .message("exactly one kind of Redis deployment must be set: standalone")
        .reason(Reason::FieldValueRequired),
    validation = Rule::new("self.controllerName == oldSelf.controllerName")
        .message("controllerName is immutable").field_path(".controllerName"),
    validation = Rule::new("self.keyPrefix == oldSelf.keyPrefix")
        .message("keyPrefix is immutable: locks under the old prefix would be forgotten").field_path(".keyPrefix"),
)]
pub struct LockStoreSpec {
    /// The controller that serves this store; every other leaves it alone. Immutable. Default:
    /// leasehold.dev/controller.
    #[serde(default = "default_controller")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9./]*[A-Za-z0-9])?$"))]
    pub controller_name: String,
    /// What all keys of this store in Redis begin with. Two stores on one Redis need different prefixes. Immutable.
    /// Default: leasehold.
    #[serde(default = "default_prefix")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9._:]*[A-Za-z0-9])?$"))]
    pub key_prefix: String,
    /// A single Redis master. It must never run twice at once: a StatefulSet of one replica, not a Deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standalone: Option<Standalone>,
    /// How to log in. Absent: without a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthSpec>,
    /// Encrypts the connection. Absent: plain TCP. Empty: TLS, the server checked against the public authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// The namespaces whose locks may use this store. Default: all.
    #[serde(default)]
    pub allowed_namespaces: AllowedNamespaces,
    /// A floor for the epoch of fencing tokens, for a person to raise after tokens were lost from both etcd and
    /// Redis: the next epoch is at least this. At most 2097151.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_097_151))]
    pub minimum_epoch: Option<i64>,
}

/// A single Redis master.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Standalone {
    /// Host and port, such as redis.leasehold-system:6379. An IPv6 address stands in brackets.
    #[schemars(length(min = 3, max = 260))]
    #[x_kube(validation = Rule::new(
        r"self.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?|\\[[0-9A-Fa-f:.]+\\]):[1-9][0-9]{0,4}$')"
    ).message("address must be a host and a port, such as redis.leasehold-system:6379"))]
    pub address: String,
    /// The number of the database in it. Default: 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65_535))]
    pub database: i32,
}

/// How to log in to Redis.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthSpec {
    /// A Secret with the key password and, unless the user is Redis's default one, the key username.
    pub secret_ref: SecretRef,
}

/// How the connection to Redis is encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    /// A Secret whose key ca.crt has the authorities, in PEM, against which the server is checked. Absent: the
    /// public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretRef>,
    /// A Secret of type kubernetes.io/tls (keys tls.crt and tls.key) with which the controller shows who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_ref: Option<SecretRef>,
}

/// A Secret in the controller's own namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// The name of a Secret in the controller's own namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The namespaces whose locks may use a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.from == 'Selector') == has(self.selector)")
    .message("selector must be set if, and only if, from is Selector"))]
pub struct AllowedNamespaces {
    /// All, or Selector: those whose labels match the selector. Default: All.
    #[serde(default)]
    pub from: NamespacesFrom,
    /// Selects namespaces by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub selector: Option<LabelSelector>,
}

/// How namespaces are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NamespacesFrom {
    /// Every namespace.
    #[default]
    All,
    /// Those whose labels match the selector.
    Selector,
    /// A value of a newer release.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What the controller knows of a LockStore. Written by the controller alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LockStoreStatus {
    /// The metadata.generation that the controller has acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub observed_generation: Option<i64>,
    /// The upper bits of fencing tokens. Rises each time that Redis starts again, loses data or is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_097_151))]
    pub epoch: Option<i64>,
    /// Which reign of the controller this is. Redis refuses commands of an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub term: Option<i64>,
    /// The life of the Redis master that was last allowed to grant: its run_id and master_replid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub incarnation: Option<String>,
    /// The server and its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub server_version: Option<String>,
    /// The highest fencing token of a lock that was deleted. A new lock's tokens start above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub token_floor: Option<i64>,
    /// Rises while claims are told of grants. Redis keeps the highest that it was told: a lower one here shows that etcd
    /// was put back to an older copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub mark: Option<i64>,
    /// Ready: its locks can be granted. Recovering: Redis lost data or was replaced, and grants wait until no lease of
    /// before can still be believed. Ephemeral: Redis keeps nothing on disk. EtcdRestored: etcd was put back to an older
    /// copy, and a person is to confirm that nothing runs that it has forgotten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

impl Default for LockStoreSpec {
    fn default() -> Self {
        Self {
            controller_name: default_controller(),
            key_prefix: default_prefix(),
            standalone: None,
            auth: None,
            tls: None,
            allowed_namespaces: AllowedNamespaces::default(),
            minimum_epoch: None,
        }
    }
}

fn default_controller() -> String {
    CONTROLLER_NAME.to_owned()
}

fn default_prefix() -> String {
    "leasehold".to_owned()
}

impl LockStore {
    /// Whether locks of a namespace with these labels may use the store. A rule that this release doesn't know
    /// allows none.
    pub fn allows_namespace(&self, labels: &BTreeMap<String, String>) -> bool {
        let AllowedNamespaces { from, selector } = &self.spec.allowed_namespaces;
        match from {
            NamespacesFrom::All => true,
            NamespacesFrom::Selector => selector.as_ref().is_some_and(|selector| selector.matches(labels)),
            NamespacesFrom::Unknown => false,
        }
    }

    /// The field whose value this release doesn't know, if there is one.
    pub fn unsupported_value(&self) -> Option<&'static str> {
        let AllowedNamespaces { from, selector } = &self.spec.allowed_namespaces;
        if self.spec.standalone.is_none() {
            Some("spec: no deployment that this release knows")
        } else if *from == NamespacesFrom::Unknown {
            Some("spec.allowedNamespaces.from")
        } else if selector.as_ref().is_some_and(LabelSelector::has_unknown) {
            Some("spec.allowedNamespaces.selector.matchExpressions.operator")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn store(spec: serde_json::Value) -> LockStore {
        LockStore::new("default", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_spec_with_a_deployment_alone_has_the_defaults() {
        let store = store(json!({"standalone": {"address": "redis:6379"}}));
        let standalone = Some(Standalone { address: "redis:6379".to_owned(), database: 0 });
        assert_eq!(store.spec, LockStoreSpec { standalone, ..Default::default() });
        assert!(store.allows_namespace(&BTreeMap::new()));
        assert_eq!(store.unsupported_value(), None);
    }

    #[test]
    fn only_selected_namespaces_are_allowed() {
        let allowed = json!({"from": "Selector", "selector": {"matchLabels": {"team": "shop"}}});
        let store = store(json!({"standalone": {"address": "redis:6379"}, "allowedNamespaces": allowed}));
        assert!(store.allows_namespace(&BTreeMap::from([("team".to_owned(), "shop".to_owned())])));
        assert!(!store.allows_namespace(&BTreeMap::new()));
    }

    #[test]
    fn values_of_a_newer_release_are_read_and_reported() {
        let newer = store(json!({"quorum": {}}));
        assert!(newer.unsupported_value().is_some());
        let newer = store(json!({"standalone": {"address": "r:1"}, "allowedNamespaces": {"from": "Same"}}));
        assert_eq!(newer.unsupported_value(), Some("spec.allowedNamespaces.from"));
        assert!(!newer.allows_namespace(&BTreeMap::new()));
    }
}
