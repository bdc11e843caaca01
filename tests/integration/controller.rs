//! The controller against a real API server and a real Redis.

mod claims;
mod deletion;
mod elections;
mod fixture;
mod incarnations;
mod locks;
mod pods;
mod recovery;
mod replicas;
mod stores;
