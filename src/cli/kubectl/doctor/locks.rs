//! Locks that can't be used, and pods that wait for what isn't there.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::ListParams;

use super::super::advice::advice;
use super::super::cluster::Cluster;
use super::super::status::conditions;
use super::finding::{Finding, words};
use crate::api::condition::{reasons, types};
use crate::api::gated::{self, LOCK, LOCKS, is_gated};
use crate::api::{Condition, ConditionStatus, DistributedLock};

pub(super) async fn look(cluster: &Cluster, everywhere: bool) -> Vec<Finding> {
    let place = if everywhere { "all namespaces".to_owned() } else { format!("the namespace {}", cluster.namespace) };
    let all = ListParams::default();
    let locks: Vec<DistributedLock> = match cluster.list(everywhere, &all).await {
        Ok(locks) => locks,
        Err(error) => return vec![Finding::not_checked(&format!("the locks of {place}"), error)],
    };
    let mut findings = of_locks(&place, &locks);
    match cluster.list::<Pod>(everywhere, &all.labels(LOCK)).await {
        Ok(pods) => findings.extend(of_pods(&locks, &pods)),
        Err(error) => findings.push(Finding::not_checked(&format!("the pods of {place} that wait"), error)),
    }
    findings
}

/// What is wrong with locks; the same thing is one line for all of them.
fn of_locks(place: &str, locks: &[DistributedLock]) -> Vec<Finding> {
    let mut bad = BTreeMap::<_, (Vec<String>, &Condition)>::new();
    for (lock, condition) in locks.iter().flat_map(|lock| conditions(lock).iter().map(move |one| (lock, one))) {
        if is_bad(condition) {
            let name = format!("{}/{}", lock.namespace().unwrap_or_default(), lock.name_any());
            let same = (&condition.type_, &condition.reason, &condition.message);
            bad.entry(same).or_insert_with(|| (Vec::new(), condition)).0.push(name);
        }
    }
    if bad.is_empty() {
        return vec![Finding::ok(format!("locks in {place}: all {} are Ready", locks.len()))];
    }
    let found = bad.into_values().map(|(names, condition)| {
        let advice = advice("DistributedLock", &condition.type_, &condition.reason).unwrap_or_default();
        Finding::wrong(format!("lock {}: {}", names.join(", "), words(condition)), advice)
    });
    found.collect()
}

fn is_bad(condition: &Condition) -> bool {
    match condition.type_.as_str() {
        types::READY => condition.status != ConditionStatus::True,
        types::HOLDER_UNREACHABLE => condition.status == ConditionStatus::True,
        _ => false,
    }
}

/// What gated pods wait for in vain: a line for each lock that is missing, and for each pod with something else.
fn of_pods(locks: &[DistributedLock], pods: &[Pod]) -> Vec<Finding> {
    let there: BTreeSet<_> = locks.iter().map(|lock| (lock.namespace(), lock.name_any())).collect();
    let (mut missing, mut findings) = (BTreeMap::<_, Vec<String>>::new(), Vec::new());
    for pod in pods.iter().filter(|pod| is_gated(pod)) {
        let label = pod.labels().get(LOCK).map(String::as_str).unwrap_or_default();
        let asked = gated::locks(label, pod.annotations().get(LOCKS).map(String::as_str)).unwrap_or_default();
        let keys = asked.into_iter().map(|lock| (pod.namespace(), lock.name));
        let gone: Vec<_> = keys.filter(|key| !there.contains(key)).collect();
        if gone.is_empty() {
            findings.extend(said(pod));
        }
        for key in gone {
            missing.entry(key).or_default().push(pod.name_any());
        }
    }
    let absent = missing.into_iter().map(|((namespace, lock), pods)| {
        let namespace = namespace.unwrap_or_default();
        let what = format!("pods in {namespace} wait for the lock {lock}, which isn't there: {}", pods.join(", "));
        Finding::wrong(what, format!("create the DistributedLock {lock} in {namespace}, or delete the pods"))
    });
    absent.chain(findings).collect()
}

/// What the controller says of a pod that waits, if it isn't just its turn.
fn said(pod: &Pod) -> Option<Finding> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let held = conditions.iter().find(|condition| condition.type_ == types::LOCK_HELD)?;
    let reason = held.reason.as_deref().filter(|reason| ![reasons::WAITING, reasons::HELD].contains(reason))?;
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let what = format!("pod {namespace}/{name}: {reason}: {}", held.message.as_deref().unwrap_or_default());
    Some(Finding::wrong(what, advice("Pod", types::LOCK_HELD, reason).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::status::tests::held;
    use super::super::finding::Level;
    use super::*;

    fn pod(name: &str, lock: &str, conditions: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "labels": {LOCK: lock}},
            "spec": {"schedulingGates": [{"name": LOCK}], "containers": []},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    #[test]
    fn a_lock_that_cant_be_used_is_found() {
        assert_eq!(of_locks("shop", &[held(&[])])[0].level, Level::Ok);
        let mut lock = held(&[]);
        lock.status.as_mut().unwrap().conditions[0].status = false.into();
        lock.status.as_mut().unwrap().conditions[0].reason = "StoreNotFound".into();
        let mut other = lock.clone();
        other.metadata.name = Some("b".into());
        let found = of_locks("shop", &[lock, held(&[]), other]);
        assert_eq!(found.len(), 1);
        assert!(found[0].what.starts_with("lock shop/a, shop/b: Ready is False (StoreNotFound"), "{found:?}");
        assert!(found[0].advice.contains("Create it"), "{found:?}");
    }

    #[test]
    fn pods_that_wait_for_a_missing_lock_are_one_line() {
        let nothing = || json!([]);
        let pods = [pod("p", "gone", nothing()), pod("q", "gone", nothing()), pod("r", "a", nothing())];
        let found = of_pods(&[held(&[])], &pods);
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("the lock gone, which isn't there: p, q"), "{found:?}");
        let mut runs = pod("p", "gone", nothing());
        runs.spec.as_mut().unwrap().scheduling_gates = None;
        assert!(of_pods(&[], &[runs]).is_empty());
    }

    #[test]
    fn what_the_controller_says_of_a_pod_is_passed_on() {
        let says =
            |reason: &str| json!([{"type": types::LOCK_HELD, "status": "False", "reason": reason, "message": "m"}]);
        let found = of_pods(&[held(&[])], &[pod("p", "a", says("ClaimNameTaken"))]);
        assert!(found[0].what.ends_with("ClaimNameTaken: m") && found[0].advice.contains("delete it"), "{found:?}");
        assert!(of_pods(&[held(&[])], &[pod("p", "a", says("Waiting"))]).is_empty());
    }
}
