//! Leasehold: Kubernetes-native leases. **Redis for speed, etcd for memory.**
//!
//! # Layout
//! Imports point down only.
//!
//! | Module | What happens there |
//! |---|---|
//! | [`api`] | the three kinds, as users write and read them |
//! | [`cli`] | what the command line offers |
//! | [`controller`] | one loop a kind; plans are pure |
//! | [`lease`] | the domain: names, tokens, outcomes; pure |
//! | [`store`] | Redis: the function library, its typed calls, a reference model |
//! | [`admin`], [`metrics`], [`telemetry`], [`shutdown`] | leaves: probes, numbers, logs, the end |
//! | [`failpoint`] | a leaf: where a test may stop or kill the controller |

pub mod admin;
pub mod api;
pub mod cli;
pub mod controller;
pub mod failpoint;
pub mod lease;
pub mod metrics;
pub mod shutdown;
pub mod store;
pub mod telemetry;
