//! The definitions of the kinds, looked at without a server.

use std::collections::BTreeSet;
use std::path::Path;

use leasehold::api;
use leasehold::cli::crd::{documents, reference};
use serde_json::Value;

const KINDS: [&str; 3] = ["LockStore", "DistributedLock", "LockClaim"];

/// The definition of a kind.
fn crd(kind: &str) -> Value {
    let crd = api::crds().into_iter().find(|crd| crd.spec.names.kind == kind).expect("a kind of ours");
    serde_json::to_value(crd).unwrap()
}

fn root_schema(crd: &Value) -> &Value {
    &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// Calls `visit` with the path and the schema of everything in `spec` and `status`.
fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), property, visit);
    }
    for (within, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(inner) = schema.get(within) {
            walk(&format!("{path}{suffix}"), inner, visit);
        }
    }
}

/// Fails with every path, in any kind, of which `wrong` has something to say.
fn assert_nowhere(wrong: impl Fn(&str, &Value) -> Option<&'static str>) {
    let mut found = Vec::new();
    for kind in KINDS {
        walk(kind, root_schema(&crd(kind)), &mut |path, schema| {
            found.extend(wrong(path, schema).map(|what| format!("{path} {what}")));
        });
    }
    assert_eq!(found, Vec::<String>::new());
}

/// What is not bounded about a schema.
fn unbounded(_: &str, schema: &Value) -> Option<&'static str> {
    let has = |key: &str| schema.get(key).is_some();
    match schema["type"].as_str() {
        Some("string") => (!has("maxLength") && !has("enum")).then_some("has no maxLength"),
        Some("array") if !has("x-kubernetes-list-type") => Some("has no list type"),
        Some("array") => (!has("maxItems")).then_some("has no maxItems"),
        Some("integer") => (!has("minimum") || !has("maximum")).then_some("has no minimum or no maximum"),
        Some("object") if has("additionalProperties") => (!has("maxProperties")).then_some("has no maxProperties"),
        Some("object" | "boolean") => None,
        _ => Some("has a type that no rule bounds"),
    }
}

#[test]
fn the_committed_definitions_are_the_generated_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    let mut generated = BTreeSet::new();
    for document in documents().unwrap() {
        let committed = std::fs::read_to_string(folder.join(&document.file_name)).unwrap_or_default();
        assert!(committed == document.yaml, "crds/{} is out of date: run `make crds`", document.file_name);
        generated.insert(document.file_name);
    }
    let files = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    assert_eq!(files.collect::<BTreeSet<_>>(), generated);
}

#[test]
fn the_committed_reference_is_the_generated_one() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md");
    let committed = std::fs::read_to_string(file).unwrap_or_default();
    assert!(committed == reference().unwrap(), "docs/api.md is out of date: run `make crds`");
}

#[test]
fn everything_is_bounded() {
    assert_nowhere(unbounded);
}

#[test]
fn nothing_is_nullable() {
    for kind in KINDS {
        assert!(!crd(kind).to_string().contains("nullable"), "{kind}");
    }
}

#[test]
fn everything_is_described() {
    assert_nowhere(|path, schema| {
        let is_property = !path.ends_with(['}', ']']);
        let description = schema["description"].as_str().unwrap_or_default();
        (is_property && !description.ends_with('.')).then_some("has no description in sentences")
    });
}

#[test]
fn a_value_that_stands_for_newer_releases_is_not_offered() {
    assert_nowhere(|path, schema| {
        let values = schema["enum"].as_array();
        let unknown = values.is_some_and(|values| values.contains(&"Unknown".into()));
        (unknown && !path.ends_with(".conditions[].status")).then_some("offers Unknown")
    });
}

#[test]
fn the_checks_find_what_they_look_for() {
    for schema in [
        serde_json::json!({"type": "string"}),
        serde_json::json!({"type": "integer", "minimum": 0}),
        serde_json::json!({"type": "array", "maxItems": 3}),
        serde_json::json!({"type": "object", "additionalProperties": {"type": "string"}}),
        serde_json::json!({"type": "number"}),
    ] {
        assert!(unbounded("", &schema).is_some(), "{schema}");
    }
    let crd = crd("DistributedLock");
    assert!(resolve(&crd, ".status.nothing").is_err());
    assert!(resolve(&crd, ".status.conditions[?(@.type==\"Nothing\")].status").is_err());
}

/// The schema at a JSON path of our columns and selectable fields.
fn resolve<'a>(crd: &'a Value, path: &str) -> Result<&'a Value, String> {
    let mut schema = root_schema(crd);
    let mut rest = path.strip_prefix('.').ok_or("no leading dot")?;
    loop {
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        schema = schema["properties"].get(&rest[..end]).ok_or_else(|| format!("{path}: no {}", &rest[..end]))?;
        rest = &rest[end..];
        if let Some(filter) = rest.strip_prefix("[?(@.type==\"") {
            let (type_, after) = filter.split_once("\")]").ok_or_else(|| format!("{path}: odd filter"))?;
            is_a_condition(crd, type_)?;
            (schema, rest) = (&schema["items"], after);
        }
        match rest.strip_prefix('.') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(schema),
            None => return Err(format!("{path}: cannot follow {rest}")),
        }
    }
}

fn is_a_condition(crd: &Value, type_: &str) -> Result<(), String> {
    let default = &root_schema(crd)["properties"]["status"]["default"]["conditions"];
    let known = default.as_array().is_some_and(|list| list.iter().any(|condition| condition["type"] == type_));
    known.then_some(()).ok_or_else(|| format!("no condition {type_}"))
}

#[test]
fn columns_and_selectable_fields_lead_somewhere() {
    for crd in KINDS.map(crd) {
        let version = &crd["spec"]["versions"][0];
        for column in version["additionalPrinterColumns"].as_array().unwrap() {
            let path = column["jsonPath"].as_str().unwrap();
            if path != ".metadata.creationTimestamp" {
                assert_eq!(resolve(&crd, path).unwrap()["type"], column["type"], "{path}");
            }
        }
        for field in version["selectableFields"].as_array().unwrap() {
            let path = field["jsonPath"].as_str().unwrap();
            assert!(!path.contains('['), "{path} selects within a list");
            assert_eq!(resolve(&crd, path).unwrap()["type"], "string", "{path}");
        }
    }
}

#[test]
fn all_kinds_share_group_version_category_and_a_status() {
    for kind in KINDS {
        let crd = crd(kind);
        let spec = &crd["spec"];
        assert_eq!(spec["group"], api::GROUP);
        assert_eq!(spec["names"]["categories"], serde_json::json!(["leasehold"]));
        assert_eq!(spec["versions"][0]["name"], api::VERSION);
        assert_eq!(spec["versions"][0]["subresources"], serde_json::json!({"status": {}}));
    }
}
