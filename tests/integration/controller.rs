//! The controller against a real API server and a real Redis.

mod claims;
mod elections;
mod fixture;
mod force_release;
mod locks;
mod pods;
mod recovery;
mod replicas;
mod stores;
mod unreachable;
