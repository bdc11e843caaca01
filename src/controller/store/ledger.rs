//! What etcd remembers of a store: `LockStore.status`, changed by compare-and-swap only.

use std::sync::Arc;

use kube::{Api, Client};
use tracing::info;

use super::super::leadership::random;
use super::super::writes::{is_conflict, replace_status};
use super::doubt;
use super::trouble::Trouble;
use crate::api::condition::reasons;
use crate::api::{LockStore, LockStoreStatus};
use crate::failpoint::Failpoint;

/// How often a conflicting status write is decided again.
const TRIES: u32 = 5;

/// The status of one store, in one reign.
pub(super) struct Ledger {
    client: Client,
    name: Arc<str>,
    term: Option<i64>,
    /// Tells this reign from another that had the same term before etcd was put back.
    reign: Arc<str>,
    known: LockStoreStatus,
}

impl Ledger {
    /// Before the reign has begun.
    pub(super) fn new(client: Client, name: &str) -> Self {
        let reign = format!("{:016x}", random()).into();
        Self { client, name: name.into(), term: None, reign, known: LockStoreStatus::default() }
    }

    /// The term of this reign, which begins here if it hasn't.
    pub(super) async fn reign(&mut self) -> Result<i64, Trouble> {
        match self.term {
            Some(term) => Ok(term),
            None => self.raise_term(0).await,
        }
    }

    pub(super) fn api(&self) -> Api<LockStore> {
        Api::all(self.client.clone())
    }

    /// The name of this reign in Redis.
    pub(super) fn name_of_reign(&self) -> &str {
        &self.reign
    }

    /// The status as this reign has last written or read it: newer than a cache, and nobody else writes the epoch, the mark
    /// or whether etcd has gone back.
    pub(super) fn known(&self) -> &LockStoreStatus {
        &self.known
    }

    /// Begins a reign: a term above etcd's and Redis's. Another reign that began since ours ends it instead. Where ours
    /// stands in etcd and Redis knows one that is higher, etcd has gone back.
    pub(super) async fn raise_term(&mut self, highest: i64) -> Result<i64, Trouble> {
        let own = self.term;
        let api = self.api();
        for _ in 0..TRIES {
            let mut object = api.get(&self.name).await?;
            let status = object.status.get_or_insert_default();
            let stands = status.term.unwrap_or(0);
            if own.is_some_and(|own| own != stands) {
                return Err(Trouble::superseded(stands));
            }
            let term = stands.max(highest) + 1;
            status.term = Some(term);
            if own.is_some() {
                let why =
                    format!("Redis knows another reign with the term {highest}, etcd has {stands} free for this one");
                doubt::note(&self.name, status, &why, 0, jiff::Timestamp::now());
            }
            match replace_status(Failpoint::StoreTerm, &api, &object).await {
                Ok(written) => {
                    info!(store = &*self.name, term, "reigns");
                    (self.term, self.known) = (Some(term), written.status.unwrap_or_default());
                    return Ok(term);
                }
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Trouble::new(reasons::OPENING, "the status is being written by somebody else"))
    }

    /// Changes the status by compare-and-swap, while the term is still ours; then what stands is known.
    pub(super) async fn update(
        &mut self,
        point: Failpoint,
        change: impl Fn(&mut LockStoreStatus),
    ) -> Result<(), Trouble> {
        let api = self.api();
        for _ in 0..TRIES {
            let mut object = api.get(&self.name).await?;
            let before = object.status.clone();
            let status = object.status.get_or_insert_default();
            if let (Some(own), Some(stands)) = (self.term, status.term)
                && stands != own
            {
                return Err(Trouble::superseded(stands));
            }
            change(status);
            let stands = if object.status == before {
                object.status
            } else {
                match replace_status(point, &api, &object).await {
                    Ok(written) => written.status,
                    Err(error) if is_conflict(&error) => continue,
                    Err(error) => return Err(error.into()),
                }
            };
            self.known = stands.unwrap_or_default();
            return Ok(());
        }
        Err(Trouble::new(reasons::OPENING, "the status is being written by somebody else"))
    }
}
