//! Which replica of the controller leads: one `Lease` in the controller's namespace, with client-go's semantics.
//!
//! Leading is a courtesy that saves work. Safety is the term's: a leader that has lost its Lease and doesn't know it
//! yet is refused by Redis, and by the `resourceVersion` of everything it writes.

mod plan;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{Api, Client};
use tracing::{debug, info, warn};

use super::writes::{is_conflict, post_params};
use super::{Error, Settings};
use crate::api::{lease_name, time};
use crate::clock::{boottime, since};
use crate::failpoint::{Failpoint, around};
use plan::{Record, Turn, turn};

/// The times of an election among replicas; `lease > renew_deadline > retry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Election {
    /// How long the others wait after they have last seen the Lease change.
    pub lease: Duration,
    /// A leader that could not renew for so long leads no more.
    pub renew_deadline: Duration,
    /// How often the Lease is renewed, or asked for.
    pub retry: Duration,
}

impl Default for Election {
    /// client-go's: 15, 10 and 2 seconds.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { lease: seconds(15), renew_deadline: seconds(10), retry: seconds(2) }
    }
}

/// A number that differs from process to process.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// One replica's part in the election.
pub(super) struct Leadership {
    api: Api<Lease>,
    name: String,
    me: String,
    election: Election,
    /// The Lease as last seen, and when it was seen to change.
    seen: Option<(Lease, Duration)>,
    /// When the renewal that succeeded last was sent.
    renewed: Duration,
    /// etcd was put back to an older copy. Watches that began before may miss what happens until it is as far again.
    etcd_went_back: bool,
}

impl Leadership {
    /// Nothing is asked yet. Installs with another `controllerName` have another Lease.
    pub(super) fn new(client: Client, settings: &Settings, election: Election) -> Self {
        Self {
            api: Api::namespaced(client, &settings.namespace),
            name: lease_name(&settings.controller_name),
            me: format!("{}_{:016x}", settings.instance, random()),
            election,
            seen: None,
            renewed: Duration::ZERO,
            etcd_went_back: false,
        }
    }

    /// Waits until this replica leads.
    pub(super) async fn acquire(&mut self) {
        info!(lease = self.name, me = self.me, "stands by");
        loop {
            match tokio::time::timeout(self.election.renew_deadline, self.round()).await {
                Ok(Ok(true)) => return info!(lease = self.name, me = self.me, "leads"),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => warn!(%error, "the Lease of the leader can't be had"),
                Err(_) => warn!("the API server doesn't answer"),
            }
            // client-go's jitter: up to 1.2 periods more, so that replicas don't ask together.
            let jitter = (random() % 1000) as f64 / 1000.0 * 1.2;
            tokio::time::sleep(self.election.retry.mul_f64(1.0 + jitter)).await;
        }
    }

    /// Renews, and returns why this replica leads no more.
    pub(super) async fn keep(&mut self) -> Error {
        loop {
            tokio::time::sleep(self.election.retry).await;
            let left = self.election.renew_deadline.saturating_sub(since(self.renewed));
            if left.is_zero() {
                return Error::LeadershipLost("its Lease was not renewed in time");
            }
            let round = tokio::time::timeout(left, self.round()).await;
            if self.etcd_went_back {
                return Error::LeadershipLost("etcd was put back to an older copy: all that was read is read anew");
            }
            match round {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Error::LeadershipLost("another replica leads"),
                Ok(Err(error)) => debug!(%error, "the Lease was not renewed; it is tried again"),
                Err(_) => debug!("the API server doesn't answer"),
            }
        }
    }

    /// Lets the others lead at once.
    pub(super) async fn release(mut self) {
        let limit = self.election.retry;
        match tokio::time::timeout(limit, self.give_up()).await {
            Ok(Ok(())) => info!(lease = self.name, "leads no more"),
            Ok(Err(error)) => warn!(%error, "the Lease was not released; it runs out"),
            Err(_) => warn!("the Lease was not released; it runs out"),
        }
    }

    /// Writes that nobody leads, if this replica does. A renewal that was given up on its way may have changed the Lease.
    async fn give_up(&mut self) -> kube::Result<()> {
        match self.empty().await {
            Err(error) if is_conflict(&error) => {
                self.look().await?;
                self.empty().await
            }
            done => done,
        }
    }

    async fn empty(&self) -> kube::Result<()> {
        let Some((lease, _)) = self.seen.as_ref().filter(|_| self.seems_ours()) else { return Ok(()) };
        let write = self.write(lease.clone(), "", Duration::from_secs(1), record(lease).transitions);
        around(Failpoint::ReplicaRelease, write).await.map(drop)
    }

    /// Asks once, and says whether this replica leads. A leader whose Lease is as it has left it needs one call.
    async fn round(&mut self) -> kube::Result<bool> {
        let sent = boottime();
        if !self.seems_ours() {
            self.look().await?;
        }
        let (lease, transitions) = match &self.seen {
            None => (Lease::default(), 0),
            Some((lease, changed)) => match turn(&self.me, &record(lease), sent.saturating_sub(*changed)) {
                Turn::Renew => (lease.clone(), record(lease).transitions),
                Turn::Take(transitions) => (lease.clone(), transitions),
                Turn::Wait(left) => {
                    debug!(leader = record(lease).holder, ?left, "another replica leads");
                    return Ok(false);
                }
            },
        };
        let write = self.write(lease, &self.me, self.election.lease, transitions);
        match around(Failpoint::ReplicaLease, write).await {
            Ok(written) => {
                self.seen = Some((written, sent));
                self.renewed = sent;
                Ok(true)
            }
            Err(error) if is_conflict(&error) => {
                self.look().await?;
                Ok(self.seems_ours())
            }
            Err(error) => Err(error),
        }
    }

    fn seems_ours(&self) -> bool {
        self.seen.as_ref().is_some_and(|(lease, _)| record(lease).holder == self.me)
    }

    /// Reads the Lease, and notes when it was seen to change.
    async fn look(&mut self) -> kube::Result<()> {
        let lease = self.api.get_opt(&self.name).await?;
        let before = self.seen.take();
        let revisions = (before.as_ref().and_then(|(known, _)| revision(known)), lease.as_ref().and_then(revision));
        self.etcd_went_back |= matches!(revisions, (Some(before), Some(now)) if now < before);
        self.seen = lease.map(|lease| match before {
            Some((known, changed)) if record(&known) == record(&lease) => (lease, changed),
            _ => (lease, boottime()),
        });
        Ok(())
    }

    /// Writes the Lease, if it still is as it was read.
    async fn write(&self, mut lease: Lease, holder: &str, length: Duration, transitions: i32) -> kube::Result<Lease> {
        let now = Some(time::micros(Timestamp::now()));
        let spec: &mut LeaseSpec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(holder) {
            spec.acquire_time = now.clone();
        }
        spec.holder_identity = Some(holder.to_owned());
        spec.lease_duration_seconds = Some(i32::try_from(length.as_secs().max(1)).unwrap_or(i32::MAX));
        spec.renew_time = now;
        spec.lease_transitions = Some(transitions);
        let params = post_params();
        if lease.metadata.resource_version.is_some() {
            return self.api.replace(&self.name, &params, &lease).await;
        }
        lease.metadata.name = Some(self.name.clone());
        self.api.create(&params, &lease).await
    }
}

/// A number that rises with each change, since Kubernetes 1.35 by its own word, and in etcd always; `None`: no number.
fn revision(lease: &Lease) -> Option<u64> {
    lease.metadata.resource_version.as_ref()?.parse().ok()
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        lease: Duration::from_secs(seconds),
        renewed: spec.renew_time.map(|at| at.0),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}
