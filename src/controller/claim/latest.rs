//! Claims as this process has written them, until the watch tells of it.
//!
//! What is remembered here only saves writes that would end in a conflict: a claim that somebody else has written since
//! is told by the watch with a higher `resourceVersion`, and then counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;

use crate::api::LockClaim;

/// By UID; `None`: it was deleted.
#[derive(Default)]
pub(in crate::controller) struct Latest(Mutex<HashMap<String, Option<Arc<LockClaim>>>>);

/// Later states of one object have higher numbers.
fn number(claim: &LockClaim) -> Option<u64> {
    claim.metadata.resource_version.as_ref()?.parse().ok()
}

impl Latest {
    fn claims(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<LockClaim>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The later one of the claim as the cache has it and as it was written; `None`: it was deleted.
    pub(super) fn of(&self, cached: Arc<LockClaim>) -> Option<Arc<LockClaim>> {
        let (mut claims, uid) = (self.claims(), cached.uid().unwrap_or_default());
        match claims.get(&uid) {
            None => Some(cached),
            Some(None) => None,
            Some(Some(written)) if number(written) > number(&cached) => Some(written.clone()),
            Some(Some(_)) => {
                claims.remove(&uid);
                Some(cached)
            }
        }
    }

    /// This process has written it.
    pub(super) fn written(&self, claim: &Arc<LockClaim>) {
        self.claims().insert(claim.uid().unwrap_or_default(), Some(claim.clone()));
    }

    /// This process is deleting it: it is looked at no more, unless that fails.
    pub(super) fn deletion<'a>(&'a self, claim: &'a LockClaim) -> Deletion<'a> {
        self.claims().insert(claim.uid().unwrap_or_default(), None);
        Deletion { latest: self, claim, done: false }
    }

    /// Only these are there.
    pub(super) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.claims().retain(|uid, _| is_there(uid));
    }

    /// It is gone.
    pub(super) fn forget(&self, claim: &LockClaim) {
        self.claims().remove(claim.metadata.uid.as_deref().unwrap_or_default());
    }
}

/// A deletion that is under way. Dropped before it is done, it has failed.
pub(super) struct Deletion<'a> {
    latest: &'a Latest,
    claim: &'a LockClaim,
    done: bool,
}

impl Deletion<'_> {
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Deletion<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.latest.forget(self.claim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::LockClaimSpec;

    fn claim(version: u64) -> Arc<LockClaim> {
        let mut claim = LockClaim::new("c", LockClaimSpec::for_lock("a"));
        (claim.metadata.uid, claim.metadata.resource_version) = (Some("u".into()), Some(version.to_string()));
        Arc::new(claim)
    }

    fn version(latest: &Latest, cached: u64) -> Option<u64> {
        number(&*latest.of(claim(cached))?)
    }

    #[test]
    fn what_was_written_counts_until_the_watch_has_caught_up() {
        let latest = Latest::default();
        assert_eq!(version(&latest, 9), Some(9));
        latest.written(&claim(10));
        assert_eq!(version(&latest, 9), Some(10));
        assert_eq!(version(&latest, 11), Some(11));
        assert_eq!(version(&latest, 9), Some(9), "forgotten");
    }

    #[test]
    fn one_that_is_being_deleted_is_looked_at_no_more() {
        let (latest, gone) = (Latest::default(), claim(10));
        let deletion = latest.deletion(&gone);
        assert_eq!(version(&latest, 11), None);
        drop(deletion);
        assert_eq!(version(&latest, 11), Some(11), "it has failed");
        latest.deletion(&gone).done();
        assert_eq!(version(&latest, 11), None);
        latest.forget(&gone);
        assert_eq!(version(&latest, 11), Some(11));
    }
}
