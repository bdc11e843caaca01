//! Leasehold: Kubernetes-native leases. **Redis for speed, etcd for memory.**
//!
//! # Layout
//! Imports point down only.
//!
//! | Module | What happens there |
//! |---|---|
//! | [`api`] | the three kinds, as users write and read them |
//! | [`lease`] | the domain: names, tokens, outcomes; pure |
//! | [`store`] | Redis: the function library, its typed calls, a reference model |

pub mod lease;
pub mod store;
