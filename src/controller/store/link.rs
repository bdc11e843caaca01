//! The connection of one store: from its spec and Secrets to a server that may be used.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tracing::{info, warn};

use super::super::stores::StoreState;
use super::super::{Context, lock_ref};
use super::missing;
use super::trouble::Trouble;
use crate::api::LockStore;
use crate::api::condition::reasons;
use crate::failpoint::{Failpoint, around};
use crate::store::{Changes, Endpoint, LIBRARY_SOURCE, LibraryState, Offered, Password, ServerFacts, Store, Tls};

/// How often Redis is asked which locks have changed: how late a direct hold is seen.
const CHANGES_EVERY: Duration = Duration::from_millis(200);
/// How often it is looked whether a record has gone: a lock that nobody asks for tells nothing by itself.
const RECORDS_EVERY: Duration = Duration::from_secs(1);
/// How often version and memory policy are looked at again.
const FACTS_EVERY: Duration = Duration::from_secs(30);

const PASSWORD: &str = "password";

/// A connection and what is known of the server behind it.
pub(super) struct Link {
    pub(super) prefix: String,
    pub(super) store: Store,
    facts: Option<(ServerFacts, Instant)>,
}

impl Link {
    /// Prepares a connection as the spec and its Secrets say.
    pub(super) async fn new(ctx: &Context, object: &LockStore) -> Result<Self, Trouble> {
        let prefix = object.spec.key_prefix.clone();
        let store = Store::connect(&endpoint(ctx, object).await?, &prefix)?;
        Ok(Self { prefix, store, facts: None })
    }

    /// What the server is, refused if it can't be used.
    pub(super) async fn facts(&mut self) -> Result<&ServerFacts, Trouble> {
        let fresh = self.facts.as_ref().is_some_and(|(_, read)| read.elapsed() < FACTS_EVERY);
        if !fresh {
            self.facts = Some((self.store.server().await?, Instant::now()));
        }
        let Some((facts, _)) = &self.facts else {
            return Err(Trouble::new(reasons::UNREACHABLE, ""));
        };
        let ServerFacts { version, supported, eviction, .. } = facts;
        if !supported {
            let message = format!("the server is {version}; Redis 7.0 or Valkey 7.2 or newer is needed");
            return Err(Trouble::new(reasons::UNSUPPORTED_SERVER, message));
        }
        if let Some(policy) = eviction.as_deref().filter(|policy| policy.starts_with("allkeys-")) {
            let message =
                format!("maxmemory-policy {policy} lets Redis evict locks; set maxmemory-policy to noeviction");
            return Err(Trouble::new(reasons::EVICTING_MEMORY_POLICY, message));
        }
        Ok(facts)
    }

    /// What was last read of the server.
    pub(super) fn known_facts(&self) -> Option<ServerFacts> {
        self.facts.as_ref().map(|(facts, _)| facts.clone())
    }

    /// Forgets what is known of the server, since another process may answer now.
    pub(super) fn forget_facts(&mut self) {
        self.facts = None;
    }

    /// Listens to offers, asks for changes, and turns them into triggers, until the connection ends.
    pub(super) fn listen(&self, ctx: Arc<Context>, name: &str) -> impl Future<Output = ()> + Send + use<> {
        let (endpoint, prefix, name) = (self.store.endpoint(), self.prefix.clone(), name.to_owned());
        async move {
            let offers = match endpoint.offers(&prefix).await {
                Ok(offers) => offers,
                Err(error) => return warn!(store = name, %error, "can't listen to offers; the slow look goes on"),
            };
            // What changed before is looked at now.
            ctx.triggers.all_of_store(&ctx, &name);
            let mut offers = pin!(offers);
            let mut tick = tokio::time::interval(CHANGES_EVERY);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut records = tokio::time::interval(RECORDS_EVERY);
            records.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut told = 0;
            loop {
                tokio::select! {
                    offered = offers.next() => match offered {
                        Some(Offered { id, .. }) => ctx.renewals.claim_of(&id).into_iter().for_each(|claim| ctx.triggers.claim(claim)),
                        None => return,
                    },
                    _ = tick.tick() => told = look_at_changes(&ctx, &name, told).await,
                    _ = records.tick() => missing::look(&ctx, &name).await,
                }
            }
        }
    }

    /// Loads the library where it is missing or older; a newer one stays.
    pub(super) async fn ensure_library(&self) -> Result<(), Trouble> {
        if self.store.library().await? == LibraryState::Missing {
            around(Failpoint::StoreLibrary, self.store.load_library(LIBRARY_SOURCE)).await.map_err(|error| {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let message = format!("the function library could not be loaded: {cause}");
                Trouble::new(reasons::LIBRARY_NOT_LOADED, message)
            })?;
            info!("loaded the function library");
        }
        Ok(())
    }
}

/// Looks at every lock that has changed in Redis since the last time, however often it has. What can't be asked now
/// is told the next time.
async fn look_at_changes(ctx: &Context, store: &str, told: i64) -> i64 {
    let Some(StoreState::Ready(open)) = ctx.stores.state(store) else { return told };
    let changes = around(Failpoint::StoreChanges, open.control.changes(told)).await;
    let Ok(Ok(Changes { batch, locks })) = changes else { return told };
    for lock in locks {
        ctx.triggers.lock(lock_ref(&lock));
    }
    batch
}

async fn endpoint(ctx: &Context, object: &LockStore) -> Result<Endpoint, Trouble> {
    let Some(standalone) = &object.spec.standalone else {
        return Err(Trouble::new(reasons::UNSUPPORTED_VALUE, "this version supports spec.standalone only"));
    };
    let (host, port) = host_and_port(&standalone.address).ok_or_else(|| {
        let message = format!("standalone.address {:?} must be host:port", standalone.address);
        Trouble::new(reasons::INVALID_ADDRESS, message)
    })?;
    let mut endpoint = Endpoint::plain(host, port);
    endpoint.database = i64::from(standalone.database);
    if let Some(auth) = &object.spec.auth {
        let name = &auth.secret_ref.name;
        let secret = secret(ctx, name, PASSWORD).await?;
        endpoint.username = text(&secret, "username").filter(|name| !name.is_empty());
        let password = text(&secret, PASSWORD).ok_or_else(|| incomplete(name, PASSWORD))?;
        endpoint.password = Some(Password::new(password));
    }
    if let Some(tls) = &object.spec.tls {
        endpoint.tls = Some(Tls {
            ca: match &tls.ca_secret_ref {
                Some(reference) => Some(file(ctx, &reference.name, "ca.crt").await?),
                None => None,
            },
            client: match &tls.client_secret_ref {
                Some(reference) => {
                    Some((file(ctx, &reference.name, "tls.crt").await?, file(ctx, &reference.name, "tls.key").await?))
                }
                None => None,
            },
        });
    }
    Ok(endpoint)
}

fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
    Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

/// Reads one Secret of the controller's namespace, for a key in it, by `get`; it never lists or watches them.
async fn secret(ctx: &Context, name: &str, key: &str) -> Result<Secret, Trouble> {
    let namespace = &ctx.settings.namespace;
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), namespace);
    match api.get_opt(name).await {
        Ok(Some(secret)) => Ok(secret),
        Ok(None) => {
            let message =
                format!("there is no Secret {name} in the namespace {namespace}: make it, with the key {key}");
            Err(Trouble::new(reasons::SECRET_NOT_FOUND, message))
        }
        Err(kube::Error::Api(answer)) if answer.code == 403 => {
            let message = format!(
                "the controller may not read the Secret {name}: add it to secretNames in the chart's values, and upgrade"
            );
            Err(Trouble::new(reasons::SECRET_UNREADABLE, message))
        }
        Err(error) => Err(Trouble::new(reasons::SECRET_UNREADABLE, format!("the Secret {name}: {error}"))),
    }
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    Some(String::from_utf8_lossy(&bytes.0).trim_end_matches('\n').to_owned())
}

async fn file(ctx: &Context, name: &str, key: &str) -> Result<Vec<u8>, Trouble> {
    let secret = secret(ctx, name, key).await?;
    let bytes = secret.data.and_then(|mut data| data.remove(key)).map(|bytes| bytes.0);
    bytes.ok_or_else(|| incomplete(name, key))
}

fn incomplete(name: &str, key: &str) -> Trouble {
    Trouble::new(reasons::SECRET_INCOMPLETE, format!("the Secret {name} has no key {key}: add it"))
}

#[cfg(test)]
mod tests {
    use super::host_and_port;

    #[test]
    fn addresses_are_host_and_port() {
        assert_eq!(host_and_port("redis.shop:6379"), Some(("redis.shop", 6379)));
        assert_eq!(host_and_port("[::1]:6379"), Some(("::1", 6379)));
        assert_eq!(host_and_port("redis"), None);
        assert_eq!(host_and_port(":6379"), None);
        assert_eq!(host_and_port("redis:port"), None);
    }
}
