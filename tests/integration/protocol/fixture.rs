//! A declared lock on a server of its own, with the library as it is.

use std::time::Duration;

use leasehold::lease::{Acquired, Epoch, Grant, HolderId, LockKey, Mode, Request, Wait};
use leasehold::store::{Control, LIBRARY_SOURCE, Opening, Provision, Store};

use super::server::Server;

/// The lock of these tests, provisioned and with an open gate.
pub(crate) struct Declared {
    pub(crate) server: Server,
    pub(crate) store: Store,
    pub(crate) control: Control,
    pub(crate) lock: LockKey,
}

pub(crate) fn id(text: &str) -> HolderId {
    HolderId::new(text).expect("an id")
}

pub(crate) fn request(text: &str, wait: Wait) -> Request {
    let identity = format!("test/{text}");
    Request { id: id(text), mode: Mode::Counted(1), priority: 0, wait, identity, pod_uid: None }
}

pub(crate) fn provision(permits: u32, lease: Duration) -> Provision {
    Provision::new("uid", permits, lease)
}

impl Declared {
    /// A mutex with a lease that doesn't end during a test.
    pub(crate) async fn mutex() -> Self {
        Self::with(&provision(1, Duration::from_secs(600))).await
    }

    pub(crate) async fn with(provision: &Provision) -> Self {
        let server = Server::start().await;
        let store = server.store();
        store.load_library(LIBRARY_SOURCE).await.unwrap();
        let control = Control::new(store.clone(), "store", 1);
        let lock = LockKey::new("shop", "report").unwrap();
        let declared = Self { server, store, control, lock };
        declared.open(Epoch::new(1).unwrap()).await;
        declared.provision(provision).await;
        declared
    }

    /// The process that answers, for an epoch.
    pub(crate) async fn opening(&self, epoch: Epoch) -> Opening {
        let beat = self.control.heartbeat("test", 0).await.unwrap().unwrap();
        Opening { run_id: beat.run_id, replid: beat.replid, epoch }
    }

    pub(crate) async fn open(&self, epoch: Epoch) {
        let opening = self.opening(epoch).await;
        self.control.open(&opening).await.unwrap().unwrap();
    }

    pub(crate) async fn provision(&self, provision: &Provision) {
        self.control.provision(&self.lock, provision).await.unwrap().unwrap();
    }

    pub(crate) async fn acquire(&self, text: &str, wait: Wait) -> Acquired {
        self.store.acquire(&self.lock, &request(text, wait)).await.unwrap()
    }

    pub(crate) async fn granted(&self, text: &str) -> Grant {
        match self.acquire(text, Wait::No).await {
            Acquired::Granted(grant) => grant,
            other => panic!("{text} was answered {other:?}"),
        }
    }

    /// How many fields or members a key of the lock has.
    pub(crate) async fn size(&self, command: &str, part: &str) -> usize {
        self.server.send(&format!("{command} {}:{{{}}}:{part}", super::server::PREFIX, self.lock)).await
    }
}
