//! What the loops know of each store at this moment, and how they ask for more.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kube::{Api, Client};
use tokio::sync::watch;

use crate::api::LockStore;
use crate::api::condition::reasons;
use crate::lease::Epoch;
use crate::store::Control;

/// A store whose gate this controller has opened.
#[derive(Clone)]
pub(super) struct OpenStore {
    /// The calls of this reign.
    pub(super) control: Control,
    /// The epoch in force.
    pub(super) epoch: Epoch,
    /// The `LockStore`, as it was when the gate was last looked at.
    pub(super) object: Arc<LockStore>,
}

/// Whether a store can be used now.
#[derive(Clone)]
pub(super) enum StoreState {
    /// Open.
    Ready(OpenStore),
    /// Not now; reason and message as in its `Ready` condition.
    NotReady {
        /// CamelCase, as in the condition.
        reason: &'static str,
        /// What to do.
        message: String,
    },
}

/// Whose a store is.
pub(super) enum Whose {
    /// This controller's.
    Ours(StoreState),
    /// Another controller's: no word of ours about it, its locks or their claims.
    Theirs,
    /// There is no such store.
    Nobodys,
}

impl Whose {
    /// Whether another controller serves it.
    pub(super) fn is_theirs(&self) -> bool {
        matches!(self, Self::Theirs)
    }
}

impl StoreState {
    /// Not open yet, but soon: nothing says that it can't be reached.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self, StoreState::NotReady { reason: reasons::STARTING | reasons::OPENING, .. })
    }

    fn starting() -> Self {
        StoreState::NotReady { reason: reasons::STARTING, message: "the controller starts".into() }
    }
}

/// One store's place in [`Stores`], kept by its loop.
pub(super) struct Seat {
    pub(super) state: watch::Sender<StoreState>,
    /// Records are missing that this epoch may have granted: one above it is wanted.
    pub(super) outgrown: watch::Receiver<Epoch>,
}

struct Handle {
    state: watch::Receiver<StoreState>,
    token_floor: i64,
    /// On our own clock.
    quarantined_until: Duration,
    outgrown: watch::Sender<Epoch>,
    /// etcd may have forgotten what Redis holds.
    in_doubt: bool,
    /// Claims were told of grants since the mark was last raised.
    told: bool,
}

/// All stores of this controller, by name.
#[derive(Default)]
pub(super) struct Stores(RwLock<HashMap<String, Handle>>);

impl Stores {
    /// Takes the seat of a store, before its loop starts.
    pub(super) fn seat(&self, name: &str, token_floor: i64) -> Seat {
        let (state, seen) = watch::channel(StoreState::starting());
        let (wanted, outgrown) = watch::channel(Epoch::default());
        let handle = Handle {
            state: seen,
            token_floor,
            quarantined_until: Duration::ZERO,
            outgrown: wanted,
            in_doubt: false,
            told: false,
        };
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), handle);
        Seat { state, outgrown }
    }

    /// Forgets a store that is gone.
    pub(super) fn leave(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The state of a store; `None` if there is none of this name.
    pub(super) fn state(&self, name: &str) -> Option<StoreState> {
        let stores = self.0.read().unwrap_or_else(PoisonError::into_inner);
        stores.get(name).map(|handle| handle.state.borrow().clone())
    }

    /// Whose a store is. One that isn't known here is asked for, for it may only not have been seen yet.
    pub(super) async fn whose(&self, client: &Client, controller: &str, name: &str) -> kube::Result<Whose> {
        if let Some(state) = self.state(name) {
            return Ok(Whose::Ours(state));
        }
        let stores: Api<LockStore> = Api::all(client.clone());
        Ok(match stores.get_opt(name).await? {
            Some(store) if store.spec.controller_name != controller => Whose::Theirs,
            Some(_) => Whose::Ours(StoreState::starting()),
            None => Whose::Nobodys,
        })
    }

    /// New records of this store start above it. As etcd had it when the loop began, or raised since.
    pub(super) fn token_floor(&self, name: &str) -> i64 {
        let stores = self.0.read().unwrap_or_else(PoisonError::into_inner);
        stores.get(name).map_or(0, |handle| handle.token_floor)
    }

    /// The floor in etcd was raised.
    pub(super) fn raise_token_floor(&self, name: &str, floor: i64) {
        let mut stores = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = stores.get_mut(name) {
            handle.token_floor = handle.token_floor.max(floor);
        }
    }

    /// A lock of this store grants nothing until then, on our own clock.
    pub(super) fn quarantine(&self, name: &str, until: Duration) {
        let mut stores = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = stores.get_mut(name) {
            handle.quarantined_until = handle.quarantined_until.max(until);
        }
    }

    /// Until when locks of this store grant nothing, on our own clock.
    pub(super) fn quarantined_until(&self, name: &str) -> Duration {
        let stores = self.0.read().unwrap_or_else(PoisonError::into_inner);
        stores.get(name).map_or(Duration::ZERO, |handle| handle.quarantined_until)
    }

    /// Whether etcd may have forgotten what Redis holds.
    pub(super) fn in_doubt(&self, name: &str) -> bool {
        let stores = self.0.read().unwrap_or_else(PoisonError::into_inner);
        stores.get(name).is_some_and(|handle| handle.in_doubt)
    }

    /// Says whether it may have.
    pub(super) fn set_in_doubt(&self, name: &str, in_doubt: bool) {
        let mut stores = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = stores.get_mut(name) {
            handle.in_doubt = in_doubt;
        }
    }

    /// A claim was told of a grant.
    pub(super) fn note_told(&self, name: &str) {
        let mut stores = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = stores.get_mut(name) {
            handle.told = true;
        }
    }

    /// Whether claims were told of grants since this was last asked.
    pub(super) fn take_told(&self, name: &str) -> bool {
        let mut stores = self.0.write().unwrap_or_else(PoisonError::into_inner);
        stores.get_mut(name).is_some_and(|handle| std::mem::take(&mut handle.told))
    }

    /// Asks for an epoch above `epoch`. Asking again costs nothing.
    pub(super) fn outgrow(&self, name: &str, epoch: Epoch) {
        let stores = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = stores.get(name) {
            handle.outgrown.send_if_modified(|wanted| {
                let more = epoch > *wanted;
                *wanted = epoch.max(*wanted);
                more
            });
        }
    }
}

/// Shared by the loops.
pub(super) type SharedStores = Arc<Stores>;
