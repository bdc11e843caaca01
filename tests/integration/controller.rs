//! The controller against a real API server and a real Redis.

mod claims;
mod commands;
pub(crate) mod credentials;
mod deletion;
pub(crate) mod direct;
pub(crate) mod elections;
pub(crate) mod fixture;
mod force_release;
pub(crate) mod gated;
mod incarnations;
mod locks;
mod pair;
mod pods;
pub(crate) mod recovery;
mod replicas;
mod restores;
mod scopes;
pub(crate) mod several;
mod stores;
mod unreachable;
