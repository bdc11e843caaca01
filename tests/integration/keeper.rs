//! The keeper as a library: what it promises of waiting, holding and losing, on a real Redis behind a proxy.

mod holding;
mod several;
mod waiting;

use std::time::Duration;

use leasehold::keeper::{Lock, Options, Wait};
use leasehold::store::{Endpoint, Store};

use crate::protocol::server::PREFIX;
use crate::run::fixture::Scene;
use crate::support::wait_for;

const LEASE: Duration = Duration::from_secs(3);
/// Sooner than a server gives up a waiter or a hold by itself.
const AT_ONCE: Duration = Duration::from_secs(3);

/// The store, through the proxy.
fn store(scene: &Scene) -> Store {
    Store::connect(&Endpoint::plain("127.0.0.1", scene.proxy.port()), PREFIX).expect("the endpoint can be used")
}

fn lock(scene: &Scene) -> Lock {
    store(scene).lock(scene.declared.lock.clone())
}

fn options(wait: Wait) -> Options {
    Options { wait, ..Options::named("me") }
}

/// Nobody holds the lock or waits for it, long before a lease of a minute ends.
async fn nobody_is_left(scene: &Scene) {
    let nobody = async || (scene.holders().await + scene.waiters().await == 0).then_some(());
    wait_for("nobody holds or waits", AT_ONCE, nobody).await;
}
