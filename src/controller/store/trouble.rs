//! Why a store can't be used, in words for its condition.

use crate::api::condition::reasons;
use crate::store::{Refusal, StoreError};

/// Why a store can't be used now: reason and message of its `Ready` condition.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// User name or password were refused.
    pub(super) credentials: bool,
    /// Another controller reigns: the process has to end.
    pub(super) superseded: bool,
}

impl Trouble {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), credentials: false, superseded: false }
    }

    pub(super) fn superseded(term: i64) -> Self {
        let message = format!("a controller with the higher term {term} reigns");
        Self { superseded: true, ..Self::new(reasons::SUPERSEDED, message) }
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let credentials = error.is_refused_credentials();
        Self { credentials, ..Self::new(error.label(), format!("{error}{cause}")) }
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::StoreInUse(uid) => Self::new(
                reasons::STORE_IN_USE,
                format!(
                    "another LockStore (UID {uid}) uses this Redis and keyPrefix; choose another keyPrefix, or, if that \
                     store is gone for good, delete the field uid of the hash KEYPREFIX:store in Redis"
                ),
            ),
            Refusal::StaleTerm(term) => Self::superseded(term),
            other => Self::new(reasons::OPENING, other.to_string()),
        }
    }
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        Self::new(reasons::API_SERVER_UNREACHABLE, error.to_string())
    }
}
