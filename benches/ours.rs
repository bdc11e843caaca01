//! Leasehold's side: provisioned locks behind an open gate, as a controller leaves them.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use leasehold::lease::{Acquired, Epoch, Grant, HolderId, LockKey, Mode, Reading, Released, Renewed, Request, Wait};
use leasehold::store::{Control, LIBRARY_SOURCE, Opening, Provision, Store};

use crate::server::Server;
use crate::{LOCKS, Side, fresh_id};

pub(crate) const PREFIX: &str = "leasehold";

#[derive(Clone)]
pub(crate) struct Ours {
    store: Store,
    locks: Vec<LockKey>,
}

fn request(id: &HolderId, wait: Wait) -> Request {
    let identity = "pod/report-7c9d8b6f5d-x2k8z".to_owned();
    Request { id: id.clone(), mode: Mode::Counted(1), priority: 0, wait, identity, pod_uid: None }
}

fn provision(number: usize, lease: Duration) -> Provision {
    Provision::new(format!("{number:036x}"), 1, lease)
}

/// A holder id never used before.
pub(crate) fn holder() -> Result<HolderId> {
    Ok(HolderId::new(fresh_id())?)
}

impl Ours {
    /// Loads the library, opens the gate and provisions all locks, with leases of this length.
    pub(crate) async fn set_up(server: &Server<'_>, lease: Duration) -> Result<Self> {
        let ours = Self::connect(server)?;
        ours.store.load_library(LIBRARY_SOURCE).await?;
        let control = Control::new(ours.store.clone(), format!("{:036x}", 1), 1);
        let seen = control.heartbeat("test", 0).await??;
        let epoch = seen.epoch.next().context("no epoch is left")?.max(Epoch::at_least_since_2026(0));
        control.open(&Opening { run_id: seen.run_id, replid: seen.replid, epoch }).await??;
        for (number, lock) in ours.locks.iter().enumerate() {
            control.provision(lock, &provision(number, lease)).await??;
        }
        Ok(ours)
    }

    /// One more client of a server that is set up.
    pub(crate) fn connect(server: &Server<'_>) -> Result<Self> {
        let store = Store::connect(&server.endpoint(), PREFIX)?;
        let locks = (0..LOCKS).map(|number| LockKey::new("bench", &format!("lock-{number}")));
        Ok(Self { store, locks: locks.collect::<Result<_, _>>()? })
    }

    pub(crate) fn key(&self, lock: usize) -> &LockKey {
        &self.locks[lock]
    }

    pub(crate) async fn acquire(&self, lock: usize, id: &HolderId) -> Result<()> {
        match self.store.acquire(self.key(lock), &request(id, Wait::No)).await? {
            Acquired::Granted(_) => Ok(()),
            other => bail!("lock {lock} was not granted: {other:?}"),
        }
    }

    pub(crate) async fn queue(&self, lock: usize, id: &HolderId) -> Result<Reading> {
        match self.store.acquire(self.key(lock), &request(id, Wait::Forever)).await? {
            Acquired::Queued { reading, .. } => Ok(reading),
            other => bail!("lock {lock} did not queue: {other:?}"),
        }
    }

    pub(crate) async fn renew(&self, lock: usize, id: &HolderId) -> Result<Grant> {
        let answers = self.store.renew(&[(self.key(lock).clone(), id.clone())]).await?;
        match answers[..] {
            [Renewed::Held(grant)] => Ok(grant),
            _ => bail!("lock {lock} was not renewed: {answers:?}"),
        }
    }

    pub(crate) async fn release(&self, lock: usize, id: &HolderId) -> Result<()> {
        let answer = self.store.release(self.key(lock), id).await?;
        ensure!(answer == Released::Released, "lock {lock} was not released: {answer:?}");
        Ok(())
    }
}

impl Side for Ours {
    async fn pair(&self, lock: usize) -> Result<()> {
        let id = holder()?;
        self.acquire(lock, &id).await?;
        self.release(lock, &id).await
    }
}
