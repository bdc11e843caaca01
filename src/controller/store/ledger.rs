//! What etcd remembers of a store: `LockStore.status`, changed by compare-and-swap only.

use std::sync::Arc;

use kube::{Api, Client};
use tracing::info;

use super::super::leadership::random;
use super::super::writes::{is_conflict, replace_status};
use super::doubt::{self, Doubt};
use super::trouble::Trouble;
use crate::api::condition::reasons;
use crate::api::{LockStore, LockStoreStatus};
use crate::failpoint::Failpoint;

/// How often a conflicting status write is decided again.
const TRIES: u32 = 5;

/// The status of one store, in one reign.
#[derive(Clone)]
pub(super) struct Ledger {
    client: Client,
    name: Arc<str>,
    term: Option<i64>,
    /// Tells this reign from another that had the same term before etcd was put back.
    reign: Arc<str>,
    /// As high as it was last written, or read.
    mark: i64,
    /// Whether etcd had gone back when the term was raised.
    doubt: Option<Doubt>,
}

impl Ledger {
    /// Before the reign has begun.
    pub(super) fn new(client: Client, name: &str) -> Self {
        Self { client, name: name.into(), term: None, reign: format!("{:016x}", random()).into(), mark: 0, doubt: None }
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

    /// Whether the reign has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.term.is_some()
    }

    /// Whether etcd had gone back when the reign began: what a cache has may be older.
    pub(super) fn doubt(&self) -> Option<Doubt> {
        self.doubt
    }

    /// The mark that Redis is to know.
    pub(super) fn mark(&self) -> i64 {
        self.mark
    }

    /// Raises it, since claims were told of grants.
    pub(super) async fn raise_mark(&mut self) -> Result<(), Trouble> {
        let written = self
            .update(Failpoint::StoreMark, |status| {
                status.mark = Some(status.mark.unwrap_or(0) + 1);
            })
            .await?;
        self.mark = written.mark.unwrap_or(0);
        Ok(())
    }

    /// etcd was put back to an older copy.
    pub(super) async fn note_doubt(&mut self, why: &str, mark: i64) -> Result<(), Trouble> {
        let now = jiff::Timestamp::now();
        let written =
            self.update(Failpoint::StoreDoubt, |status| doubt::note(&self.name, status, why, mark, now)).await?;
        self.mark = written.mark.unwrap_or(0);
        Ok(())
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
            (self.mark, self.doubt) = (status.mark.unwrap_or(0), Doubt::of(status));
            match replace_status(Failpoint::StoreTerm, &api, &object).await {
                Ok(_) => {
                    info!(store = &*self.name, term, "reigns");
                    self.term = Some(term);
                    return Ok(term);
                }
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Trouble::new(reasons::OPENING, "the status is being written by somebody else"))
    }

    /// Changes the status by compare-and-swap, while the term is still ours. Returns what stands.
    pub(super) async fn update(
        &self,
        point: Failpoint,
        change: impl Fn(&mut LockStoreStatus),
    ) -> Result<LockStoreStatus, Trouble> {
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
            if object.status == before {
                return Ok(object.status.unwrap_or_default());
            }
            match replace_status(point, &api, &object).await {
                Ok(written) => return Ok(written.status.unwrap_or_default()),
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Trouble::new(reasons::OPENING, "the status is being written by somebody else"))
    }
}
