//! Where leases live: Redis ≥ 7.0 or Valkey ≥ 7.2, through one function library.
//!
//! [`Store`] has what a workload calls, [`Control`] what the leading controller calls. Each function is one
//! round trip and is decided on the server, by its clock; see `leasehold.lua` for the protocol.
//!
//! # Guarantees
//! Every function is idempotent for its holder id or its arguments, so that after an error (the command may
//! have been executed) the same call may be sent again.
//!
//! # Errors
//! [`StoreError`] means that no answer was had. It says nothing about the lock: unknown is not lost.

mod acl;
mod connect;
mod control;
mod error;
mod inbox;
mod library;
mod link;
mod reply;
mod workload;

pub mod model;

pub use acl::DirectUsers;
pub use connect::{Endpoint, Offered, Password, Tls};
pub use control::{
    Changes, Control, Due, Heartbeat, Opening, Place, Provision, Provisioned, Refusal, Remembered, Sealed,
};
pub use error::StoreError;
pub use inbox::Inbox;
pub use library::{Isolation, LIBRARY_SOURCE, LibraryState, ServerFacts};
pub use workload::{Hold, HoldState, Inspection, Store, Waiter, permits_counted};

use crate::lease::LockKey;

/// The three keys of a lock, all in one hash slot.
fn lock_keys(prefix: &str, lock: &LockKey) -> [String; 3] {
    let base = [prefix, ":{", lock.namespace(), "/", lock.name(), "}:"].concat();
    ["lock", "queue", "waiters"].map(|part| [&base, part].concat())
}

fn store_key(prefix: &str) -> String {
    format!("{prefix}:store")
}
