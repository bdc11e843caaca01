//! What is broken in a row of the campaign: each strikes, proves that it did, and heals.

mod api;
mod controllers;
mod holders;
mod network;
mod redis;

use std::path::Path;

use super::claims::For;
use super::contention::Load;
use super::dice::Dice;
use super::direct::Habits;
use super::stage::{Set, Stage};

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    RedisKilled,
    RedisKilledWithAof,
    RedisStopped,
    Flushall,
    LaggingReplicaPromoted,
    AofLosesItsLastSecond,
    RepliesDropped,
    RepliesDelayed,
    ConnectionsCut,
    LateDuplicateOfAnAcquire,
    LostReplyAndLateResend,
    OpenRetriedOnAFreshProcess,
    PromotionsNotHeard,
    ControllerKilled,
    ControllerStopped,
    ApiServerAway,
    WritesConflict,
    TooManyRequests,
    WatchEventsDropped,
    HolderPaused,
    ContainerRestarted,
    PodDeletedByForce,
    ClaimDeletedWhenGranted,
    LockRecreated,
    PermitsLowered,
    LeaseShortened,
    EtcdPutBack,
}

impl Fault {
    /// All of them, in the order of the table.
    pub(super) const ALL: [Self; 27] = [
        Self::RedisKilled,
        Self::RedisKilledWithAof,
        Self::RedisStopped,
        Self::Flushall,
        Self::LaggingReplicaPromoted,
        Self::AofLosesItsLastSecond,
        Self::RepliesDropped,
        Self::RepliesDelayed,
        Self::ConnectionsCut,
        Self::LateDuplicateOfAnAcquire,
        Self::LostReplyAndLateResend,
        Self::OpenRetriedOnAFreshProcess,
        Self::PromotionsNotHeard,
        Self::ControllerKilled,
        Self::ControllerStopped,
        Self::ApiServerAway,
        Self::WritesConflict,
        Self::TooManyRequests,
        Self::WatchEventsDropped,
        Self::HolderPaused,
        Self::ContainerRestarted,
        Self::PodDeletedByForce,
        Self::ClaimDeletedWhenGranted,
        Self::LockRecreated,
        Self::PermitsLowered,
        Self::LeaseShortened,
        Self::EtcdPutBack,
    ];

    /// On what it strikes.
    pub(super) fn set(self) -> Set {
        match self {
            Self::RedisKilledWithAof => {
                Set { redis: vec!["--appendonly", "yes", "--appendfsync", "always"], ..Set::default() }
            }
            Self::AofLosesItsLastSecond => {
                Set { redis: vec!["--appendonly", "yes", "--appendfsync", "everysec"], ..Set::default() }
            }
            Self::ApiServerAway | Self::WritesConflict | Self::TooManyRequests | Self::WatchEventsDropped => {
                Set { api_proxy: true, ..Set::default() }
            }
            Self::EtcdPutBack => Set { alone: true, ..Set::default() },
            _ => Set::default(),
        }
    }

    /// Who contends meanwhile.
    pub(super) fn load(self) -> Load {
        let load = Load::default();
        match self {
            Self::HolderPaused => Load { habits: Habits { pauses: 2, ..load.habits }, ..load },
            Self::ContainerRestarted => Load { claims: vec![For::Itself, For::RestartingPod], ..load },
            Self::PodDeletedByForce => Load { claims: vec![For::Itself, For::VanishingPod], ..load },
            // Pods that etcd forgets, and others that it has again, are a matter of their kubelets.
            Self::EtcdPutBack => {
                let several = load.several.iter().map(|(wanted, _)| (*wanted, For::Itself)).collect();
                let claims = vec![For::Itself, For::Itself];
                Load { claims, several, elections: false, long: 12_000..15_000, ..load }
            }
            _ => load,
        }
    }

    /// Strikes, heals, and says what proves it.
    pub(super) async fn strike(self, stage: &mut Stage, dice: &mut Dice) -> String {
        match self {
            Self::RedisKilled => redis::killed(stage, dice).await,
            Self::RedisKilledWithAof => redis::killed_with_aof(stage, dice).await,
            Self::RedisStopped => redis::stopped(stage).await,
            Self::Flushall => redis::flushed(stage).await,
            Self::LaggingReplicaPromoted => redis::lagging_replica_promoted(stage).await,
            Self::AofLosesItsLastSecond => redis::loses_its_last_second(stage).await,
            Self::RepliesDropped => network::replies_dropped(stage, dice).await,
            Self::RepliesDelayed => network::replies_delayed(stage, dice).await,
            Self::ConnectionsCut => network::connections_cut(stage, dice).await,
            Self::LateDuplicateOfAnAcquire => network::late_duplicates(stage).await,
            Self::LostReplyAndLateResend => network::lost_reply_and_late_resend(stage).await,
            Self::OpenRetriedOnAFreshProcess => network::open_retried_on_a_fresh_process(stage).await,
            Self::PromotionsNotHeard => network::promotions_not_heard(stage, dice).await,
            Self::ControllerKilled => controllers::killed(stage).await,
            Self::ControllerStopped => controllers::stopped(stage).await,
            Self::ApiServerAway => api::away(stage).await,
            Self::WritesConflict => api::writes_refused(stage, 409).await,
            Self::TooManyRequests => api::writes_refused(stage, 429).await,
            Self::WatchEventsDropped => api::watch_events_dropped(stage).await,
            Self::HolderPaused => holders::paused(stage).await,
            Self::ContainerRestarted => holders::container_restarted(stage).await,
            Self::PodDeletedByForce => holders::pod_deleted_by_force(stage).await,
            Self::ClaimDeletedWhenGranted => holders::claim_deleted_when_granted(stage).await,
            Self::LockRecreated => holders::lock_recreated(stage).await,
            Self::PermitsLowered => holders::permits_lowered(stage).await,
            Self::LeaseShortened => holders::lease_shortened(stage).await,
            Self::EtcdPutBack => api::etcd_put_back(stage).await,
        }
    }
}

/// Whether there is no such process any more.
fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}
