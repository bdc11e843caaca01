//! `kubectl leasehold`, the real binary, against a real API server, controller and Redis.

mod doctor;
mod errors;
mod force;
mod reading;
mod taking;
pub(crate) mod terminal;
