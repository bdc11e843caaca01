//! The Redis of each store that is open now, and the users that it has.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use kube::ResourceExt;
use tracing::warn;

use super::super::Context;
use super::super::stores::StoreState;
use super::plan::Unserved;
use super::secret::{Connection, url};
use crate::api::LockStore;
use crate::store::{DirectUsers, Endpoint, StoreError};

/// One of them, in one look.
pub(super) struct Server {
    pub(super) users: DirectUsers,
    endpoint: Arc<Endpoint>,
    prefix: String,
    /// The users that there are: namespace -> hashes of passwords.
    pub(super) known: BTreeMap<String, BTreeSet<String>>,
    /// The namespaces whose users are to be there.
    pub(super) wanted: BTreeSet<String>,
    /// Those whose users this process has made.
    set: HashSet<String>,
}

impl Server {
    /// What the Secret of a namespace is to say.
    pub(super) fn connection(&self, namespace: &str, store: &str, controller: &str) -> Connection {
        Connection {
            store: store.to_owned(),
            url: url(&self.endpoint),
            username: self.users.name(namespace),
            prefix: self.prefix.clone(),
            namespace: namespace.to_owned(),
            ca: self.endpoint.tls.as_ref().and_then(|tls| tls.ca.clone()),
            controller: controller.to_owned(),
        }
    }

    /// Whether the user is as it is to be. One that a controller before this one has made may have other rights.
    pub(super) fn has(&self, namespace: &str, hashes: &BTreeSet<String>) -> bool {
        self.set.contains(namespace) && self.known.get(namespace) == Some(hashes)
    }
}

/// What is kept of them between two looks.
#[derive(Default)]
pub(super) struct Servers {
    /// The namespaces whose users this process has made, by store.
    set: HashMap<String, HashSet<String>>,
    /// Why users can't be looked after there, by store.
    refused: BTreeMap<String, Unserved>,
}

impl Servers {
    /// Asks every open store for its users. One that refuses, and that no namespace wants, is not asked again.
    pub(super) async fn look(
        &mut self,
        ctx: &Context,
        stores: &[Arc<LockStore>],
        wanted: &BTreeSet<&str>,
    ) -> BTreeMap<String, Server> {
        let mut servers = BTreeMap::new();
        for store in stores {
            let name = store.name_any();
            let Some(StoreState::Ready(open)) = ctx.stores.state(&name) else { continue };
            if self.refused.contains_key(&name) && !wanted.contains(name.as_str()) {
                continue;
            }
            let (users, endpoint) = (DirectUsers::new(open.control.store()), open.control.store().endpoint());
            match users.list().await {
                Ok(known) => {
                    self.refused.remove(&name);
                    let set = self.set.get(&name).cloned().unwrap_or_default();
                    let (prefix, wanted) = (store.spec.key_prefix.clone(), BTreeSet::new());
                    servers.insert(name, Server { users, endpoint, prefix, known, wanted, set });
                }
                Err(error) if error.is_refused_command() => {
                    self.refused.insert(name.clone(), refusal(&name, &error));
                }
                Err(error) => warn!(store = name, %error, "the users of namespaces can't be looked at"),
            }
        }
        servers
    }

    /// Why a store's users can't be looked after.
    pub(super) fn refused(&self, store: &str) -> Option<Unserved> {
        self.refused.get(store).cloned()
    }

    /// A user was made by this process.
    pub(super) fn note_set(&mut self, store: &str, namespace: &str) {
        self.set.entry(store.to_owned()).or_default().insert(namespace.to_owned());
    }
}

/// What to do about a command that is refused.
pub(super) fn refusal(store: &str, error: &StoreError) -> Unserved {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let message = format!(
        "the Redis of the LockStore {store} doesn't let its user make users: grant it +acl|list +acl|setuser \
         +acl|deluser ({cause})"
    );
    Unserved::new(error.label(), message)
}
