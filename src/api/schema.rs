//! What every CRD's schema has in common and a derive can't say.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};
use serde_json::{Map, Value, json};

use super::condition::reasons;

/// Long enough for every RFC 3339 time.
const MAX_TIME_LENGTH: u64 = 64;

/// How a kind differs from the others.
pub(super) struct Shape {
    /// `spec` may be left out; the API server then fills in its defaults.
    pub(super) optional_spec: bool,
    /// The types of conditions that stand as `Unknown` until a controller has looked.
    pub(super) conditions: &'static [&'static str],
}

impl Shape {
    /// The definition as it is installed.
    pub(super) fn finish(&self, mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
        for version in &mut crd.spec.versions {
            let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
            if let Some(root) = schema {
                *root = self.rewrite(root);
            }
        }
        crd
    }

    fn rewrite(&self, root: &JSONSchemaProps) -> JSONSchemaProps {
        let mut root = serde_json::to_value(root).expect("a schema is JSON");
        tidy(&mut root);
        root["properties"]["spec"] = self.spec(root["properties"]["spec"].take());
        root["properties"]["status"] = self.status(root["properties"]["status"].take());
        if let (true, Some(root)) = (self.optional_spec, root.as_object_mut()) {
            root.remove("required");
        }
        serde_json::from_value(root).expect("a tidied schema is a schema")
    }

    fn spec(&self, mut spec: Value) -> Value {
        if self.optional_spec {
            spec["default"] = json!({});
        }
        spec
    }

    /// A default in a status would say what nobody has seen; only conditions have one, and it says `Unknown`.
    fn status(&self, mut status: Value) -> Value {
        if let Some(properties) = status["properties"].as_object_mut() {
            for property in properties.values_mut().filter_map(Value::as_object_mut) {
                property.remove("default");
            }
        }
        let conditions: Vec<Value> = self.conditions.iter().copied().map(unknown).collect();
        status["default"] = json!({"conditions": conditions});
        status
    }
}

fn unknown(type_: &str) -> Value {
    json!({
        "type": type_,
        "status": "Unknown",
        "reason": reasons::PENDING,
        "message": "Waiting for controller",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    })
}

/// Applies to a schema and all within it: nothing is `nullable` (a null would not survive an apply), times are
/// bounded, and descriptions are not broken into the lines of the source.
fn tidy(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else {
        return;
    };
    schema.remove("nullable");
    if schema.get("format").is_some_and(|format| format == "date-time") {
        schema.insert("maxLength".to_owned(), MAX_TIME_LENGTH.into());
    }
    if let Some(description) = schema.get("description").and_then(Value::as_str) {
        let joined = description.split("\n\n").map(|p| p.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
        schema.insert("description".to_owned(), joined.into());
    }
    for value in children(schema) {
        tidy(value);
    }
}

/// The schemas directly within a schema.
fn children(schema: &mut Map<String, Value>) -> impl Iterator<Item = &mut Value> {
    schema.iter_mut().flat_map(|(key, value)| match (key.as_str(), value) {
        ("properties", Value::Object(properties)) => properties.values_mut().collect(),
        ("items" | "additionalProperties", value) => vec![value],
        _ => Vec::new(),
    })
}
