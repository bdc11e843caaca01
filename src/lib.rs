//! Leasehold: Kubernetes-native leases. **Redis for speed, etcd for memory.**
//!
//! # Layout
//! Imports point down only.
//!
//! | Module | What happens there |
//! |---|---|
//! | [`agent`] | a sidecar that holds a lock for its pod, and says so on localhost |
//! | [`api`] | the three kinds, as users write and read them |
//! | [`cli`] | what the command line offers |
//! | [`controller`] | one loop a kind; plans are pure |
//! | [`keeper`] | holding a lock from this process: waiting for it, renewing it, knowing when it is lost |
//! | [`lease`] | the domain: names, tokens, outcomes; pure |
//! | [`run`] | a command under locks: wrapper, guardian, process tree |
//! | [`store`] | Redis: the function library, its typed calls, a reference model |
//! | [`admin`], [`metrics`], [`telemetry`], [`shutdown`] | leaves: probes, numbers, logs, the end |
//! | [`clock`], [`random`] | leaves: our own clock, and secrets |
//! | [`failpoint`] | a leaf: where a test may stop or kill the controller |

pub mod admin;
pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod controller;
pub mod failpoint;
pub mod keeper;
pub mod lease;
pub mod metrics;
pub mod random;
pub mod run;
pub mod shutdown;
pub mod store;
pub mod telemetry;
