//! Watches what the API server tells, in its order: each state that it passes through was true at one time.

use std::collections::BTreeSet;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use leasehold::api::LockClaim;
use leasehold::api::condition::types;
use leasehold::api::election::{LEADER, ROLE_LABEL};
use leasehold::api::gated::{LOCK, is_gated};
use serde::de::DeserializeOwned;

use crate::controller::fixture::claim_condition;

/// Returns when two pods lead at the same time, or two pods or claims hold the same lock, which has one permit.
pub(crate) async fn never_two(pods: Api<Pod>, claims: Api<LockClaim>) -> String {
    let leads = |pod: &Pod| pod.labels().get(ROLE_LABEL).is_some_and(|role| role == LEADER).then(|| "lead".to_owned());
    let runs = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let lock =
            pod.labels().get(LOCK).filter(|_| !is_gated(pod) && !matches!(phase, Some("Succeeded" | "Failed")))?;
        Some(format!("hold {lock}"))
    };
    let does = |pod: &Pod| leads(pod).or_else(|| runs(pod)).into_iter().collect();
    let holds = |claim: &LockClaim| {
        let locks = claim.spec.locks.iter().filter(|_| claim_condition(claim, types::HELD));
        locks.map(|lock| format!("hold {}", lock.name)).collect()
    };
    tokio::select! {
        why = never_two_of(pods, does) => why,
        why = never_two_of(claims, holds) => why,
    }
}

async fn never_two_of<K>(api: Api<K>, does: impl Fn(&K) -> Vec<String>) -> String
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let mut events = watcher(api, watcher::Config::default()).boxed();
    let mut doing = BTreeSet::new();
    loop {
        let (name, now) = match events.next().await {
            Some(Ok(Event::Init)) => {
                doing.clear();
                continue;
            }
            Some(Ok(Event::InitApply(object) | Event::Apply(object))) => (object.name_any(), does(&object)),
            Some(Ok(Event::Delete(object))) => (object.name_any(), Vec::new()),
            Some(Ok(Event::InitDone) | Err(_)) => continue,
            None => return "the watch has ended".to_owned(),
        };
        doing.retain(|(_, other)| *other != name);
        doing.extend(now.into_iter().map(|what| (what, name.clone())));
        let all: Vec<_> = doing.iter().collect();
        if let Some(two) = all.windows(2).find(|two| two[0].0 == two[1].0) {
            return format!("at the same time {} and {} {}", two[0].1, two[1].1, two[0].0);
        }
    }
}
