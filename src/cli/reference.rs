//! The reference of the kinds, in Markdown, from the same definitions that are applied.

use std::fmt::Write;

use serde_json::Value;

const HEAD: &str = "# API reference

<!-- Generated: change the code in src/api/, then `make crds`. -->

What `kubectl explain` says, on one page. What the conditions mean, and what to do about each, is in
[troubleshooting](troubleshooting.md).
";

/// The page about these definitions.
pub(super) fn page(crds: &[Value]) -> String {
    let mut page = HEAD.to_owned();
    let mut conditions = String::new();
    for crd in crds {
        kind(&mut page, crd);
        let items = &schema(crd)["properties"]["status"]["properties"]["conditions"]["items"];
        conditions = table(&rows("conditions[]", items));
    }
    // All kinds have the same.
    let _ = write!(page, "\n## Conditions\n\nEach entry of `status.conditions` has\n\n{conditions}");
    page
}

fn version(crd: &Value) -> &Value {
    &crd["spec"]["versions"][0]
}

fn schema(crd: &Value) -> &Value {
    &version(crd)["schema"]["openAPIV3Schema"]
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn kind(page: &mut String, crd: &Value) {
    let (spec, names, root) = (&crd["spec"], &crd["spec"]["names"], schema(crd));
    let (kind, short) = (text(names, "kind"), list(names, "shortNames"));
    let short: Vec<String> = short.iter().filter_map(Value::as_str).map(code).collect();
    let _ = write!(
        page,
        "\n## {kind}\n\n`{}/{}`, {}, short {}. {}\n",
        text(spec, "group"),
        text(version(crd), "name"),
        if spec["scope"] == "Namespaced" { "namespaced" } else { "cluster-scoped" },
        short.join(", "),
        text(root, "description")
    );
    for part in ["spec", "status"] {
        let schema = &root["properties"][part];
        let _ = write!(page, "\n### {kind}: {part}\n\n{}\n\n", text(schema, "description"));
        page.push_str(&table(&rows(part, schema)));
        let mut rules = Vec::new();
        collect_rules(part, schema, &mut rules);
        if !rules.is_empty() {
            let _ = write!(page, "\nRules:\n\n{}", rules.concat());
        }
    }
    let _ = write!(page, "\n### {kind}: columns\n\n| Column | `-o wide` only | |\n|---|---|---|\n");
    for column in list(version(crd), "additionalPrinterColumns") {
        let wide = if column["priority"].as_i64().unwrap_or(0) > 0 { "yes" } else { "" };
        let meaning =
            Some(text(column, "description")).filter(|text| !text.is_empty()).unwrap_or("Since it was created");
        let _ = writeln!(page, "| {} | {wide} | {} |", text(column, "name").to_uppercase(), cell(meaning));
    }
    let fields = list(version(crd), "selectableFields").iter();
    let fields: Vec<String> = fields.map(|field| code(text(field, "jsonPath").trim_start_matches('.'))).collect();
    let _ = write!(page, "\n`kubectl get --field-selector` knows {}.\n", fields.join(", "));
}

/// A row for each field of an object and all within it, but for the fields of conditions, which all kinds share.
fn rows(path: &str, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (name, field) in object["properties"].as_object().into_iter().flatten() {
        let (path, required) = (format!("{path}.{name}"), list(object, "required").iter().any(|key| key == name));
        found.push(row(&path, field, required));
        if path != "status.conditions" {
            let inner = if field["type"] == "array" { &field["items"] } else { field };
            let suffix = if field["type"] == "array" { "[]" } else { "" };
            found.extend(rows(&format!("{path}{suffix}"), inner));
        }
    }
    found
}

fn table(rows: &[String]) -> String {
    format!("| Field | Type | Default | Allowed | |\n|---|---|---|---|---|\n{}", rows.concat())
}

fn row(path: &str, field: &Value, required: bool) -> String {
    let default = match &field["default"] {
        // Of what is written by the controller, and of objects whose fields say theirs.
        Value::Null | Value::Object(_) if required => "required".to_owned(),
        Value::Null | Value::Object(_) => String::new(),
        other => code(&other.to_string()),
    };
    let mut meaning = cell(text(field, "description"));
    if path == "status.conditions" {
        meaning += " See [Conditions](#conditions).";
    }
    format!("| {} | {} | {default} | {} | {meaning} |\n", code(path), type_of(field), cell(&allowed(field)))
}

fn type_of(field: &Value) -> String {
    match text(field, "type") {
        "array" => format!("list of {}s", type_of(&field["items"])),
        "object" if field.get("additionalProperties").is_some() => "map".into(),
        "string" if field["format"] == "date-time" => "time".into(),
        other => other.to_owned(),
    }
}

/// What bounds a field, in the words of its type.
fn allowed(field: &Value) -> String {
    if !list(field, "enum").is_empty() {
        let values = list(field, "enum").iter().filter_map(Value::as_str);
        return values.map(|value| code(if value.is_empty() { "\"\"" } else { value })).collect::<Vec<_>>().join(", ");
    }
    let range = |least: &str, most: &str| match (field[least].as_i64(), field[most].as_i64()) {
        (Some(least), Some(most)) if least == most => Some(format!("exactly {least}")),
        (Some(least), Some(most)) => Some(format!("{least} to {most}")),
        (None, Some(most)) => Some(format!("at most {most}")),
        _ => None,
    };
    let bounds = match text(field, "type") {
        "integer" => range("minimum", "maximum"),
        "array" => range("minItems", "maxItems").map(|range| format!("entries: {range}")),
        "object" => range("minProperties", "maxProperties").map(|range| format!("entries: {range}")),
        "string" if field["format"] != "date-time" => {
            range("minLength", "maxLength").map(|range| range + " characters")
        }
        _ => None,
    };
    let pattern = Some(text(field, "pattern")).filter(|pattern| !pattern.is_empty()).map(code);
    bounds.into_iter().chain(pattern).collect::<Vec<_>>().join(", ")
}

/// The rules of an object and all within it, as messages at the paths that they speak of.
fn collect_rules(path: &str, schema: &Value, found: &mut Vec<String>) {
    for rule in list(schema, "x-kubernetes-validations") {
        let at = format!("{path}{}", text(rule, "fieldPath"));
        found.push(format!("- {}: {}\n", code(&at), text(rule, "message")));
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        collect_rules(&format!("{path}.{name}"), field, found);
    }
    if let Some(items) = schema.get("items") {
        collect_rules(&format!("{path}[]"), items, found);
    }
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

/// Text that ends no cell and no row of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace("\n\n", " ").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_is_told_with_type_default_bounds_and_rules() {
        let lists = json!({"type": "array", "minItems": 1, "maxItems": 8, "description": "The locks.",
            "items": {"type": "object", "required": ["name"],
                "x-kubernetes-validations": [{"message": "not both"}],
                "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 63, "pattern": "^(a|b)$"}}}});
        let number =
            json!({"type": "integer", "default": 15, "minimum": 1, "maximum": 3600, "description": "Seconds."});
        let spec = json!({"type": "object", "properties": {"locks": lists, "lease": number},
            "x-kubernetes-validations": [{"fieldPath": ".locks", "message": "locks is immutable"}]});
        assert_eq!(
            rows("spec", &spec),
            [
                "| `spec.lease` | integer | `15` | 1 to 3600 | Seconds. |\n",
                "| `spec.locks` | list of objects |  | entries: 1 to 8 | The locks. |\n",
                "| `spec.locks[].name` | string | required | 1 to 63 characters, `^(a\\|b)$` |  |\n",
            ]
        );
        let mut rules = Vec::new();
        collect_rules("spec", &spec, &mut rules);
        assert_eq!(rules, ["- `spec.locks`: locks is immutable\n", "- `spec.locks[]`: not both\n"]);
    }
}
