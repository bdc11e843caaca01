//! The loop of namespaces whose processes hold locks by themselves: each gets a user in Redis, and the Secret with which
//! they log in. One look is at all of them: observe, plan, apply, report.
//!
//! The password is in the Secret alone, which is written first; Redis has its hash, and is given it again whenever it
//! doesn't have it: after a restart, a failover, or the doings of a controller that was overtaken.

mod plan;
mod secret;
mod servers;
mod watches;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Api, ResourceExt};
use tracing::{info, warn};

use super::writes::{delete_as_read, is_conflict, patch_as_read, post_params};
use super::{Context, Error, SOON};
use crate::api::condition::reasons;
use crate::api::direct::CONNECTION;
use crate::failpoint::{Failpoint, around};
use crate::random;
use plan::{Step, Unserved, choose, plan};
use secret::{Connection, is_ours, made_for, old_passwords, valid_hashes, wish};
use servers::{Server, Servers, refusal};
use watches::Watches;

/// How often all is looked at, even if nothing seems to happen.
const SLOW_LOOK: Duration = Duration::from_secs(10);
/// When a look that has failed is made again.
const RETRY: Duration = Duration::from_secs(2);
/// What changes together is looked at together.
const TOGETHER: Duration = Duration::from_millis(50);
/// What is still wrong is said again.
const SAY_AGAIN: Duration = Duration::from_secs(1800);

/// Looks after all namespaces until a watch ends.
pub(super) async fn run(ctx: Arc<Context>) -> Result<(), Error> {
    let Some(overlap) = ctx.settings.direct else {
        return std::future::pending().await;
    };
    let overlap = SignedDuration::try_from(overlap).unwrap_or(SignedDuration::MAX);
    let mut watches = Watches::new(&ctx);
    let (servers, told) = (Servers::default(), HashMap::new());
    let mut credentials = Credentials { ctx: ctx.clone(), overlap, servers, told };
    let mut due = tokio::time::Instant::now();
    loop {
        tokio::select! {
            changed = watches.changed() => changed?,
            () = ctx.triggers.credentials.notified() => {}
            () = tokio::time::sleep_until(due), if watches.are_complete() => {
                let next = credentials.look(&watches).await;
                due = tokio::time::Instant::now() + next;
                continue;
            }
        }
        due = due.min(tokio::time::Instant::now() + TOGETHER);
    }
}

struct Credentials {
    ctx: Arc<Context>,
    /// How long an old password works after another was made.
    overlap: SignedDuration,
    servers: Servers,
    /// What was last said about a namespace, and when.
    told: HashMap<String, (Unserved, Instant)>,
}

impl Credentials {
    /// One look; returns when the next one is due.
    async fn look(&mut self, watches: &Watches) -> Duration {
        let ctx = self.ctx.clone();
        let _timer = ctx.metrics.reconcile("Namespace");
        self.look_at_all(watches).await.unwrap_or_else(|error| self.failed("namespaces", &error))
    }

    /// What failed is tried again; returns when.
    fn failed(&self, what: &str, error: &Error) -> Duration {
        self.ctx.metrics.reconcile_failed(error.label());
        if matches!(error, Error::Kube(error) if is_conflict(error)) {
            return SOON;
        }
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        warn!(what, %error, cause, "a look at credentials failed; it is tried again");
        RETRY
    }

    async fn look_at_all(&mut self, watches: &Watches) -> Result<Duration, Error> {
        let namespaces = watches.namespaces(&self.ctx).await?;
        let (secrets, stores) = (watches.secrets(), watches.stores());
        let mut served: BTreeMap<String, (String, &Namespace)> = BTreeMap::new();
        let mut leaving = BTreeSet::new();
        for namespace in &namespaces {
            let name = namespace.name_any();
            if namespace.metadata.deletion_timestamp.is_some() {
                // What runs there is to give its locks back. Its Secret goes with it, its user after it.
                leaving.insert(name);
                continue;
            }
            match choose(namespace, secrets.get(&name).and_then(|secret| made_for(secret)), &stores) {
                Ok(store) if store.spec.controller_name == self.ctx.settings.controller_name => {
                    served.insert(name, (store.name_any(), namespace));
                }
                Ok(_) => {}
                Err(unserved) => self.tell(namespace, unserved).await,
            }
        }
        let wanted: BTreeSet<&str> = served.values().map(|(store, _)| store.as_str()).collect();
        let mut servers = self.servers.look(&self.ctx, &stores, &wanted).await;
        let mut next = SLOW_LOOK;
        for (name, (store, namespace)) in &served {
            let Some(server) = servers.get_mut(store) else {
                self.wait_for_store(namespace, store, secrets.contains_key(name)).await;
                continue;
            };
            let look = self.serve(namespace, secrets.get(name).map(AsRef::as_ref), store, server).await;
            next = next.min(look.unwrap_or_else(|error| self.failed(name, &error)));
        }
        for server in servers.values() {
            next = next.min(self.delete_others(server, &leaving).await);
        }
        for (name, secret) in &secrets {
            let stays = served.contains_key(name) || leaving.contains(name);
            if !stays && is_ours(secret, &self.ctx.settings.controller_name) {
                let removed = self.remove(secret).await;
                next = next.min(removed.map_or_else(|error| self.failed(name, &error), |()| SLOW_LOOK));
            }
        }
        let names: BTreeSet<String> = namespaces.iter().map(|namespace| namespace.name_any()).collect();
        self.told.retain(|name, _| names.contains(name));
        Ok(next)
    }

    async fn wait_for_store(&mut self, namespace: &Namespace, store: &str, has_secret: bool) {
        let refused = self.servers.refused(store);
        if refused.is_some() || !has_secret {
            let message = format!("the LockStore {store} is not Ready: see its conditions");
            let why = refused.unwrap_or_else(|| Unserved::new(reasons::STORE_NOT_READY, message));
            self.tell(namespace, why).await;
        }
    }

    /// Sees to the Secret and then to the user of one namespace.
    async fn serve(
        &mut self,
        namespace: &Namespace,
        secret: Option<&Secret>,
        store: &str,
        server: &mut Server,
    ) -> Result<Duration, Error> {
        let (name, now) = (namespace.name_any(), Timestamp::now());
        if secret.is_some_and(|secret| !is_ours(secret, &self.ctx.settings.controller_name)) {
            let message =
                format!("the Secret {CONNECTION} here is not ours, and is left alone: delete it, and it is made anew");
            self.tell(namespace, Unserved::new(reasons::SECRET_NOT_OURS, message)).await;
            return Ok(SLOW_LOOK);
        }
        // Whatever becomes of this look, the user isn't one that nobody wants.
        server.wanted.insert(name.clone());
        let connection = server.connection(&name, store, &self.ctx.settings.controller_name);
        let step = plan(&connection, secret, server.known.get(&name), now, self.overlap);
        let secret = self.write(&connection, secret, &step).await?;
        let hashes = valid_hashes(&secret, now);
        if !server.has(&name, &hashes) {
            match around(Failpoint::CredentialsGrant, server.users.set(&name, &hashes)).await {
                Err(error) if error.is_refused_command() => {
                    self.tell(namespace, refusal(store, &error)).await;
                    return Ok(SLOW_LOOK);
                }
                done => done?,
            }
            self.servers.note_set(store, &name);
            info!(namespace = name, store, "the Redis user was made");
        }
        self.told.remove(&name);
        match step {
            Step::Make(_) => {
                let note = format!("the Secret {CONNECTION} has the address and a user of the LockStore {store}");
                self.ctx.events.normal(namespace, reasons::CREDENTIALS_MADE, "MakeCredentials", note).await;
            }
            Step::Rotate(_) => {
                let note = format!("the Secret {CONNECTION} has a new password; the old one works for a while");
                self.ctx.events.normal(namespace, reasons::CREDENTIALS_ROTATED, "RotateCredentials", note).await;
            }
            Step::Change(_) | Step::Keep => {}
        }
        let ends = old_passwords(&secret).into_iter().map(|old| old.until.duration_since(now));
        let ends = ends.filter_map(|left| Duration::try_from(left).ok()).min();
        Ok(ends.map_or(SLOW_LOOK, |left| left.min(SLOW_LOOK)))
    }

    /// The Secret as it is after the step.
    async fn write(&self, connection: &Connection, secret: Option<&Secret>, step: &Step) -> Result<Secret, Error> {
        let api = self.secrets(&connection.namespace);
        let point = Failpoint::CredentialsChange;
        Ok(match (step, secret) {
            (Step::Make(old), _) => {
                let secret = connection.secret(&random::secret()?, old);
                around(Failpoint::CredentialsMake, api.create(&post_params(), &secret)).await?
            }
            (Step::Rotate(old), Some(secret)) => {
                let patch = connection.patch(Some(&random::secret()?), old, wish(secret));
                patch_as_read(point, &api, secret, patch).await?
            }
            (Step::Change(old), Some(secret)) => {
                patch_as_read(point, &api, secret, connection.patch(None, old, wish(secret))).await?
            }
            (_, secret) => secret.cloned().unwrap_or_default(),
        })
    }

    /// Deletes the users that no namespace wants any more, also those of namespaces that went while nobody looked.
    async fn delete_others(&self, server: &Server, leaving: &BTreeSet<String>) -> Duration {
        for name in server.known.keys().filter(|name| !server.wanted.contains(*name) && !leaving.contains(*name)) {
            if let Err(error) = around(Failpoint::CredentialsRevoke, server.users.delete(name)).await {
                return self.failed(name, &error.into());
            }
            info!(namespace = name, "the Redis user was deleted");
        }
        SLOW_LOOK
    }

    async fn remove(&self, secret: &Secret) -> Result<(), Error> {
        let namespace = secret.namespace().unwrap_or_default();
        delete_as_read(Failpoint::CredentialsRemove, &self.secrets(&namespace), secret).await?;
        info!(namespace, "the Secret {CONNECTION} was deleted");
        Ok(())
    }

    fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.ctx.client.clone(), namespace)
    }

    /// Says why a namespace has no credentials, once, and again after a while.
    async fn tell(&mut self, namespace: &Namespace, why: Unserved) {
        let name = namespace.name_any();
        if self.told.get(&name).is_some_and(|(said, at)| *said == why && at.elapsed() < SAY_AGAIN) {
            return;
        }
        warn!(namespace = name, reason = why.reason, why.message, "no credentials are given");
        self.ctx.events.warning(namespace, why.reason, "MakeCredentials", why.message.clone()).await;
        self.told.insert(name, (why, Instant::now()));
    }
}
