//! Claims that go, whoever has let them: nothing is kept for them.

use std::collections::HashSet;
use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::Event;

use super::super::pods::{Follower, Pods};
use super::super::renewals::Renewals;
use super::Latest;
use crate::api::LockClaim;

/// What is kept for claims.
pub(in crate::controller) struct Departures {
    pub(in crate::controller) latest: Arc<Latest>,
    pub(in crate::controller) pods: Pods,
    pub(in crate::controller) renewals: Arc<Renewals>,
}

impl Departures {
    /// Hears what the watch tells, once the cache has it. One that was missing when all were listed again has gone, too.
    pub(in crate::controller) fn note(&self, event: &Event<LockClaim>, claims: &reflector::Store<LockClaim>) {
        match event {
            Event::Delete(claim) => {
                let claim_ref = ObjectRef::from_obj(claim);
                self.latest.forget(claim);
                self.renewals.forget_claim(&claim_ref);
                self.pods.forget(&Follower::Claim(claim_ref));
            }
            Event::InitDone => {
                let uids: HashSet<String> = claims.state().iter().filter_map(|claim| claim.uid()).collect();
                let is_there = |claim: &ObjectRef<LockClaim>| claims.get(claim).is_some();
                self.latest.retain(|uid| uids.contains(uid));
                self.renewals.retain_claims(is_there);
                self.pods.retain(|follower| match follower {
                    Follower::Claim(claim) => is_there(claim),
                    Follower::Lock(_) => true,
                });
            }
            Event::Init | Event::InitApply(_) | Event::Apply(_) => {}
        }
    }
}
