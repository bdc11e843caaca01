//! What the API server makes of the kinds: defaults, bounds, rules, and what kubectl shows of them.

mod claim;
mod kubectl;
mod lock;
mod status;
mod store;

use kube::CustomResourceExt;
use kube::api::{Api, DynamicObject, Patch, PatchParams, ValidationDirective};
use leasehold::api::{DistributedLock, GROUP, LockStore, VERSION};
use serde_json::{Value, json};

use crate::support::TestNamespace;

/// One kind in one namespace of the API server (of a cluster-scoped kind, its names begin with the namespace's).
struct Kind {
    api: Api<DynamicObject>,
    kind: String,
    prefix: String,
}

impl Kind {
    fn namespaced<K: CustomResourceExt>(test: &TestNamespace) -> Self {
        let resource = K::api_resource();
        let api = Api::namespaced_with(test.client(), test.name(), &resource);
        Self { api, kind: resource.kind, prefix: String::new() }
    }

    fn cluster<K: CustomResourceExt>(test: &TestNamespace) -> Self {
        let resource = K::api_resource();
        let prefix = format!("{}-", test.name());
        Self { api: Api::all_with(test.client(), &resource), kind: resource.kind, prefix }
    }

    /// The API server's answer to an apply: the object, or the message of its refusal.
    async fn apply(&self, name: &str, body: Value, dry_run: bool) -> Result<Value, String> {
        let name = format!("{}{name}", self.prefix);
        let mut object =
            json!({"apiVersion": format!("{GROUP}/{VERSION}"), "kind": self.kind, "metadata": {"name": name}});
        object.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let mut params = PatchParams::apply("test");
        params.dry_run = dry_run;
        params.field_validation = Some(ValidationDirective::Strict);
        answer(self.api.patch(&name, &params, &Patch::Apply(object)).await)
    }

    async fn create(&self, name: &str, body: Value) -> Value {
        self.apply(name, body, false).await.unwrap_or_else(|refusal| panic!("{name} is refused: {refusal}"))
    }

    /// Whether a merge of the spec would be accepted.
    async fn would_merge(&self, name: &str, spec: &Value) -> Result<Value, String> {
        let params = PatchParams { dry_run: true, ..PatchParams::default() };
        let patch = Patch::Merge(json!({"spec": spec}));
        answer(self.api.patch(&format!("{}{name}", self.prefix), &params, &patch).await)
    }

    async fn merge_status(&self, name: &str, status: Value) -> Result<Value, String> {
        let patch = Patch::Merge(json!({"status": status}));
        let name = format!("{}{name}", self.prefix);
        answer(self.api.patch_status(&name, &PatchParams::default(), &patch).await)
    }

    /// Each of these specs can be created.
    async fn accepts(&self, specs: &[Value]) {
        let mut surprises = Vec::new();
        for spec in specs {
            let result = self.apply("accepted", json!({"spec": spec}), true).await;
            surprises.extend(surprise(spec, result, None));
        }
        assert_eq!(surprises, Vec::<String>::new());
    }

    /// Each of these specs is refused with a message that contains the text beside it.
    async fn refuses(&self, cases: &[(Value, &str)]) {
        let mut surprises = Vec::new();
        for (spec, expected) in cases {
            let result = self.apply("refused", json!({"spec": spec}), true).await;
            surprises.extend(surprise(spec, result, Some(expected)));
        }
        assert_eq!(surprises, Vec::<String>::new());
    }

    /// Each of these merges into an existing object is accepted.
    async fn can_change(&self, name: &str, specs: &[Value]) {
        let mut surprises = Vec::new();
        for spec in specs {
            surprises.extend(surprise(spec, self.would_merge(name, spec).await, None));
        }
        assert_eq!(surprises, Vec::<String>::new());
    }

    /// Each of these merges into an existing object is refused with the text beside it.
    async fn cannot_change(&self, name: &str, cases: &[(Value, &str)]) {
        let mut surprises = Vec::new();
        for (spec, expected) in cases {
            surprises.extend(surprise(spec, self.would_merge(name, spec).await, Some(expected)));
        }
        assert_eq!(surprises, Vec::<String>::new());
    }
}

/// A new lock of a store that no controller of ours serves, so that none writes to it or to its claims.
async fn create_lock_that_nobody_serves(test: &TestNamespace, name: &str) -> String {
    let store = Kind::cluster::<LockStore>(test);
    let spec = json!({"controllerName": "example.com/nobody", "standalone": {"address": "redis:6379"}});
    store.create("nobody", json!({"spec": spec})).await;
    let store_name = format!("{}nobody", store.prefix);
    Kind::namespaced::<DistributedLock>(test).create(name, json!({"spec": {"storeName": store_name}})).await;
    store_name
}

fn answer(result: kube::Result<DynamicObject>) -> Result<Value, String> {
    match result {
        Ok(object) => Ok(serde_json::to_value(object).unwrap()),
        Err(kube::Error::Api(refusal)) => Err(refusal.message.clone()),
        Err(other) => panic!("no answer: {other}"),
    }
}

/// What is unexpected about an answer, where a refusal must contain the expected text.
fn surprise(sent: &Value, result: Result<Value, String>, refusal: Option<&str>) -> Option<String> {
    match (result, refusal) {
        (Ok(_), None) => None,
        (Ok(_), Some(expected)) => Some(format!("{sent} is accepted, not refused with {expected:?}")),
        (Err(message), Some(expected)) if message.contains(expected) => None,
        (Err(message), _) => Some(format!("{sent} is refused: {message} (expected: {refusal:?})")),
    }
}
