//! Whether the kinds are installed, and are those of this binary.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::Value;

use super::super::cluster::{Cluster, in_time};
use super::super::error::{INSTALL, is_forbidden};
use super::finding::Finding;
use crate::api::{DistributedLock, VERSION, crds};

pub(super) async fn look(cluster: &Cluster) -> Vec<Finding> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut findings = Vec::new();
    for ours in crds() {
        findings.push(match in_time(api.get_opt(&ours.name_any())).await {
            Ok(theirs) => judge(&ours, theirs.as_ref()),
            // Whoever may not read definitions sees at least whether the kinds are served.
            Err(error) if is_forbidden(&error) => return vec![are_served(cluster).await],
            Err(error) => Finding::not_checked(&ours.name_any(), error),
        });
    }
    findings
}

async fn are_served(cluster: &Cluster) -> Finding {
    match cluster.list::<DistributedLock>(false, &ListParams::default().limit(1)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => missing("the kinds"),
        Err(error) => Finding::not_checked("the definitions of the kinds", error),
        Ok(_) => Finding::note(
            "the definitions of the kinds: there, and not compared, since you may not read them",
            "ask for get on customresourcedefinitions, or trust that they are right",
        ),
    }
}

fn missing(what: &str) -> Finding {
    Finding::wrong(format!("{what} of leasehold.dev: not installed"), INSTALL)
}

fn judge(ours: &CustomResourceDefinition, theirs: Option<&CustomResourceDefinition>) -> Finding {
    let name = ours.name_any();
    let Some(theirs) = theirs else { return missing(&name) };
    let conditions = theirs.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let not_established = conditions.iter().find(|c| c.type_ == "Established" && c.status != "True");
    let (known, installed) = (fields(ours), fields(theirs));
    let first = |one: &BTreeSet<String>, other: &BTreeSet<String>| one.difference(other).next().cloned();
    if let Some(condition) = not_established {
        let why = condition.message.clone().unwrap_or_default();
        Finding::wrong(format!("{name} isn't served: {why}"), "kubectl describe crd says more")
    } else if let Some(field) = first(&known, &installed) {
        let what = format!("{name} is older than this binary: it lacks {field}");
        Finding::wrong(what, "upgrade Leasehold, or use the binary of its version")
    } else if let Some(field) = first(&installed, &known) {
        let what = format!("{name} is newer than this binary: it has {field}");
        Finding::note(what, "use the binary of that version, or it shows less than there is")
    } else {
        Finding::ok(format!("{name} is that of this version"))
    }
}

/// The paths of all fields of the version that we use.
fn fields(crd: &CustomResourceDefinition) -> BTreeSet<String> {
    let version = crd.spec.versions.iter().find(|version| version.name == VERSION && version.served);
    let schema = version.and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
    let mut found = BTreeSet::new();
    collect("", &serde_json::to_value(schema).unwrap_or_default(), &mut found);
    found
}

fn collect(path: &str, schema: &Value, found: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        collect(&path, field, found);
        collect(&path, &field["items"], found);
        found.insert(path);
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn without(crd: &CustomResourceDefinition, field: &str) -> CustomResourceDefinition {
        let mut value = serde_json::to_value(crd).unwrap();
        let root = &mut value["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        root["spec"]["properties"].as_object_mut().unwrap().remove(field).expect("the field");
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn definitions_are_compared_by_their_fields() {
        let lock = &crds()[1];
        let older = without(lock, "election");
        assert!(fields(lock).contains("spec.election.selector.matchLabels"));
        assert!(fields(lock).contains("status.holders.fencingToken"), "fields in lists, too");
        assert_eq!(judge(lock, Some(lock)).level, Level::Ok);
        assert_eq!(judge(lock, None).level, Level::Wrong);
        let found = judge(lock, Some(&older));
        assert!(found.level == Level::Wrong && found.what.ends_with("it lacks spec.election"), "{found:?}");
        assert_eq!(judge(&older, Some(lock)).level, Level::Note);
    }
}
