//! Metrics of the controller, in the OpenMetrics format.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    error: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreName {
    store: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RenewalResult {
    result: &'static str,
}

/// Renewals of delegated holds, by result.
#[derive(Debug)]
pub struct RenewalCounters {
    /// Renewed.
    pub renewed: Counter,
    /// The record lacked the hold.
    pub missing: Counter,
    /// No answer.
    pub failed: Counter,
}

/// Everything that the controller counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    leads: Gauge<i64, AtomicI64>,
    reconciles: Family<Kind, Histogram>,
    failures: Family<Failure, Counter>,
    stores: Family<StoreName, Gauge<i64, AtomicI64>>,
    /// Writes of a status.
    pub status_writes: Counter,
    /// Renewals of delegated holds.
    pub renewals: RenewalCounters,
    /// Pods that hold and can't be asked whether they still run.
    pub holders_unreachable: Gauge<i64, AtomicI64>,
    /// Pods that have the label and run without their lock.
    pub pods_ungated: Counter,
}

impl Metrics {
    /// Registers all of them under `leasehold_`, but for those with a name that everybody knows.
    pub fn new() -> Arc<Self> {
        let mut root = Registry::default();
        let leads = Gauge::default();
        root.register("leader_election_master_status", "1 while this replica leads", leads.clone());
        let registry = root.sub_registry_with_prefix("leasehold");
        let reconciles: Family<Kind, Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 14)));
        let failures = Family::<Failure, Counter>::default();
        let stores = Family::<StoreName, Gauge<i64, AtomicI64>>::default();
        let status_writes = Counter::default();
        let renewals = Family::<RenewalResult, Counter>::default();
        registry.register("reconcile_duration_seconds", "Time of one look at an object", reconciles.clone());
        registry.register("reconcile_failures", "Looks that failed, by cause", failures.clone());
        registry.register("store_ready", "1 while the gate of a LockStore is open for this controller", stores.clone());
        registry.register("status_writes", "Statuses written to the API server", status_writes.clone());
        registry.register("renewals", "Renewals of delegated holds, by result", renewals.clone());
        let holders_unreachable = Gauge::default();
        let help = "Pods that hold a lock on a node that can't be asked whether they still run";
        registry.register("holders_unreachable", help, holders_unreachable.clone());
        let pods_ungated = Counter::default();
        let help = "Pods with the label leasehold.dev/lock that were seen to run without their lock";
        registry.register("pods_ungated", help, pods_ungated.clone());
        let counter = |result| renewals.get_or_create(&RenewalResult { result }).clone();
        let renewals =
            RenewalCounters { renewed: counter("renewed"), missing: counter("missing"), failed: counter("failed") };
        Arc::new(Self {
            registry: root,
            leads,
            reconciles,
            failures,
            stores,
            status_writes,
            renewals,
            holders_unreachable,
            pods_ungated,
        })
    }

    /// This replica leads, or stands by.
    pub fn leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }

    /// Observes the time from now until the guard is dropped.
    pub fn reconcile(&self, kind: &'static str) -> impl Drop + use<> {
        Timer { histogram: self.reconciles.get_or_create(&Kind { kind }).clone(), start: Instant::now() }
    }

    /// A look has failed.
    pub fn reconcile_failed(&self, error: &'static str) {
        self.failures.get_or_create(&Failure { error }).inc();
    }

    /// A store's gate is open for this controller, or not.
    pub fn store_ready(&self, store: &str, ready: bool) {
        self.stores.get_or_create(&StoreName { store: store.to_owned() }).set(i64::from(ready));
    }

    /// A store is gone.
    pub fn store_gone(&self, store: &str) {
        self.stores.remove(&StoreName { store: store.to_owned() });
    }

    /// All of them as text.
    ///
    /// # Errors
    /// [`std::fmt::Error`] if a metric can't be written.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

struct Timer {
    histogram: Histogram,
    start: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.histogram.observe(self.start.elapsed().as_secs_f64());
    }
}
