//! What the caller may do here, as the API server says it.

use futures::future::join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

use super::super::cluster::{Cluster, in_time};
use super::finding::Finding;
use crate::api::GROUP;

/// What each command needs: verb, group, resource, what for, and whether nothing works without it.
const NEEDS: [(&str, &str, &str, &str, bool); 10] = [
    ("get", GROUP, "distributedlocks", "every command", true),
    ("list", GROUP, "distributedlocks", "status", true),
    ("list", GROUP, "lockclaims", "holders and waiters", true),
    ("create", GROUP, "lockclaims", "acquire", false),
    ("watch", GROUP, "lockclaims", "acquire and release", false),
    ("delete", GROUP, "lockclaims", "release, and acquire when it is interrupted", false),
    ("patch", GROUP, "distributedlocks", "force-release", false),
    ("forcerelease", GROUP, "distributedlocks", "force-release", false),
    ("list", "", "events", "force-release, to say why it is refused", false),
    ("get", "", "pods", "acquire --for", false),
];

pub(super) async fn look(cluster: &Cluster) -> Vec<Finding> {
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let ask = async |(verb, group, resource): (&str, &str, &str)| {
        let review = review(&cluster.namespace, verb, group, resource);
        let answer = in_time(api.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    };
    let answers = join_all(NEEDS.iter().map(|(verb, group, resource, ..)| ask((verb, group, resource)))).await;
    match answers.into_iter().collect::<kube::Result<Vec<bool>>>() {
        Ok(allowed) => judge(&cluster.namespace, &allowed),
        Err(error) => vec![Finding::not_checked("your rights", error)],
    }
}

fn review(namespace: &str, verb: &str, group: &str, resource: &str) -> SelfSubjectAccessReview {
    let resource_attributes = Some(ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        verb: Some(verb.to_owned()),
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        ..ResourceAttributes::default()
    });
    let spec = SelfSubjectAccessReviewSpec { resource_attributes, ..SelfSubjectAccessReviewSpec::default() };
    SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
}

fn judge(namespace: &str, allowed: &[bool]) -> Vec<Finding> {
    let denied = NEEDS.iter().zip(allowed).filter(|(_, allowed)| !**allowed);
    let findings = denied.map(|((verb, _, resource, what_for, is_vital), _)| {
        let what = format!("you may not {verb} {resource} in the namespace {namespace}: needed for {what_for}");
        let advice = "ask for the right; docs/security.md lists the roles";
        if *is_vital { Finding::wrong(what, advice) } else { Finding::note(what, advice) }
    });
    let findings: Vec<_> = findings.collect();
    if findings.is_empty() {
        return vec![Finding::ok(format!("you may use all commands in the namespace {namespace}"))];
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn a_right_that_is_missing_is_named_with_its_use() {
        assert_eq!(judge("shop", &[true; NEEDS.len()])[0].level, Level::Ok);
        let found = judge("shop", &NEEDS.map(|(verb, ..)| !["forcerelease", "list"].contains(&verb)));
        let level = |says: &str| found.iter().find(|found| found.what.contains(says)).expect(says).level;
        assert_eq!(level("list distributedlocks"), Level::Wrong);
        assert_eq!(level("forcerelease distributedlocks in the namespace shop"), Level::Note);
    }
}
