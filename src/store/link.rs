//! The connection that all clones of a store share, and how it gets other credentials.

use std::sync::{Arc, PoisonError, RwLock};

use redis::aio::ConnectionManager;

use super::{Endpoint, StoreError};

type Source = Box<dyn Fn() -> Option<Endpoint> + Send + Sync>;

/// A connection, and where and as whom it was made.
#[derive(Clone)]
pub(super) struct Connected {
    endpoint: Arc<Endpoint>,
    pub(super) connection: ConnectionManager,
}

impl Connected {
    fn new(endpoint: Endpoint) -> Result<Self, StoreError> {
        Ok(Self { connection: endpoint.manager()?, endpoint: Arc::new(endpoint) })
    }
}

pub(super) struct Link {
    now: RwLock<Connected>,
    source: Option<Source>,
}

impl Link {
    pub(super) fn new(endpoint: Endpoint) -> Result<Self, StoreError> {
        Ok(Self { now: RwLock::new(Connected::new(endpoint)?), source: None })
    }

    pub(super) fn with(self, source: impl Fn() -> Option<Endpoint> + Send + Sync + 'static) -> Self {
        Self { source: Some(Box::new(source)), ..self }
    }

    pub(super) fn now(&self) -> Connected {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn endpoint(&self) -> Arc<Endpoint> {
        self.now().endpoint
    }

    /// What to try in the place of one that was refused; `None`: there is nothing else now. A manager keeps a refusal for
    /// ever, so the next call connects anew with the same credentials, too: after a restart of Redis its users come back.
    pub(super) fn instead_of(&self, refused: &Connected) -> Result<Option<Connected>, StoreError> {
        let source = self.source.as_ref().and_then(|source| source());
        let other = source.filter(|endpoint| *endpoint != *refused.endpoint);
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        // Another that was refused at the same time may have been here before.
        if !Arc::ptr_eq(&now.endpoint, &refused.endpoint) {
            return Ok(Some(now.clone()));
        }
        let is_other = other.is_some();
        *now = Connected::new(other.unwrap_or_else(|| Endpoint::clone(&refused.endpoint)))?;
        Ok(is_other.then(|| now.clone()))
    }
}
