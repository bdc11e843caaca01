//! Force-release: a person takes a hold, by annotations on its `DistributedLock`.

use kube::ResourceExt;

use super::DistributedLock;

/// The fencing token of the hold to take. It names one hold for ever: repeated, or late, it takes no other.
pub const FORCE_RELEASE: &str = "leasehold.dev/force-release";
/// Why, for the record.
pub const FORCE_RELEASE_REASON: &str = "leasehold.dev/force-release-reason";
/// Who; an admission policy lets pass no other than the caller. Another fills it in, on Kubernetes 1.36 or newer.
pub const FORCE_RELEASE_BY: &str = "leasehold.dev/force-release-by";

/// How the policy refuses a token that can't be one. `charts/leasehold/policies/force-release.yaml` says the same.
pub const REFUSAL: &str = "leasehold.dev/force-release must be a fencing token";

/// What to do where that policy isn't in force.
pub const INSTALL_POLICY: &str =
    "set policies.enabled of the chart, or apply charts/leasehold/policies/force-release.yaml, then ask again";

/// What the annotations of a lock ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForceRelease {
    /// The fencing token, as it was written.
    pub token: String,
    /// Why.
    pub reason: String,
    /// Who; to be believed only where the policy is in force.
    pub by: String,
}

impl ForceRelease {
    /// The fencing token; `None`: it is no number.
    pub fn fencing_token(&self) -> Option<i64> {
        self.token.parse().ok()
    }
}

impl DistributedLock {
    /// What somebody asks to take by force, if somebody does.
    pub fn force_release(&self) -> Option<ForceRelease> {
        let text = |key: &str| self.annotations().get(key).cloned().unwrap_or_default();
        let token = self.annotations().get(FORCE_RELEASE)?.clone();
        Some(ForceRelease { token, reason: text(FORCE_RELEASE_REASON), by: text(FORCE_RELEASE_BY) })
    }
}
