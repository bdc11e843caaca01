//! Why a store can't be used, in words for its condition.

use crate::api::LockStoreSpec;
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
        // The process ends: no condition says so.
        Self { superseded: true, ..Self::new("Superseded", message) }
    }

    /// Adds what to do about it, where that is in the spec.
    pub(super) fn with_advice(mut self, spec: &LockStoreSpec) -> Self {
        let advice = match (&spec.auth, &spec.standalone) {
            (Some(auth), _) if self.credentials => {
                format!("; correct the keys username and password in the Secret {}", auth.secret_ref.name)
            }
            (None, _) if self.credentials => "; name a Secret with the key password in spec.auth.secretRef".to_owned(),
            (_, Some(standalone)) if self.reason == reasons::UNREACHABLE => {
                format!("; does Redis run, and is spec.standalone.address, {}, right?", standalone.address)
            }
            _ => return self,
        };
        self.message.push_str(&advice);
        self
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{AuthSpec, SecretRef, Standalone};

    #[test]
    fn advice_names_the_secret_and_the_address_of_the_spec() {
        let standalone = Some(Standalone { address: "redis.shop:6379".to_owned(), database: 0 });
        let mut spec = LockStoreSpec { standalone, ..LockStoreSpec::default() };
        let advice = |trouble: Trouble, spec: &LockStoreSpec| trouble.with_advice(spec).message;
        let refused = || Trouble { credentials: true, ..Trouble::new("AuthenticationFailed", "refused") };
        assert!(advice(refused(), &spec).contains("in spec.auth.secretRef"));
        spec.auth = Some(AuthSpec { secret_ref: SecretRef { name: "redis-auth".to_owned() } });
        assert!(advice(refused(), &spec).ends_with("in the Secret redis-auth"));
        assert!(advice(Trouble::new(reasons::UNREACHABLE, "no answer"), &spec).contains("redis.shop:6379"));
        assert_eq!(advice(Trouble::new(reasons::OPENING, "opening"), &spec), "opening");
    }
}
