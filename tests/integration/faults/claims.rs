//! Claims: for themselves until they are deleted, or for a pod until that has ended.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use leasehold::api::{HolderKind, HolderRef, LockClaim, LockClaimSpec, LockMode, LockRequest};
use serde_json::json;

use super::arena::Arena;
use super::dice::Dice;
use super::watches::Claim;
use crate::support::history::{Event, Kind, Share, Stage, Why, boottime, public_id};
use crate::support::{containers_terminated, serving};

/// After an answer of the API server that says nothing.
const AGAIN: Duration = Duration::from_millis(100);

/// For whom a claim holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// Itself: it is deleted when it has held, and sometimes before.
    Itself,
    /// A pod, that ends.
    Pod,
    /// A pod whose container restarts in place before it ends.
    RestartingPod,
    /// As that, but it is deleted by force: no word of its end.
    VanishingPod,
}

/// Which locks a claim asks for, in any order.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    /// All of these.
    All(&'static [&'static str]),
    /// One to so many of these, chosen each time.
    Some(&'static [&'static str], u64),
}

impl Wanted {
    fn choose(self, dice: &mut Dice) -> Vec<&'static str> {
        let (mut from, count) = match self {
            Self::All(locks) => (locks.to_vec(), locks.len()),
            Self::Some(locks, most) => (locks.to_vec(), usize::try_from(dice.among(1..most + 1)).expect("a few")),
        };
        let mut one = || from.remove(usize::try_from(dice.among(0..from.len() as u64)).expect("a few"));
        (0..count).map(|_| one()).collect()
    }
}

/// One claim after the other.
pub(super) struct Claimant {
    arena: Arc<Arena>,
    wanted: Wanted,
    /// Those of its last claim.
    locks: Vec<&'static str>,
    name: String,
    whom: For,
    /// `None`: one permit of each.
    mode: Option<LockMode>,
    /// For how long, in milliseconds.
    holds: Range<u64>,
    dice: Dice,
}

impl Claimant {
    pub(super) fn new(arena: &Arc<Arena>, wanted: Wanted, name: &str, whom: For, dice: Dice) -> Self {
        let (arena, name, locks) = (arena.clone(), name.to_owned(), Vec::new());
        Self { arena, wanted, locks, name, whom, mode: None, holds: 20..250, dice }
    }

    /// One that holds for so long.
    pub(super) fn for_long(self, holds: Range<u64>) -> Self {
        Self { holds, ..self }
    }

    /// One that holds in this mode.
    pub(super) fn in_mode(self, mode: LockMode) -> Self {
        Self { mode: Some(mode), ..self }
    }

    fn share(&self) -> Share {
        match self.mode {
            Some(LockMode::Shared) => Share::Shared,
            Some(LockMode::Exclusive) => Share::Exclusive,
            Some(LockMode::Unknown) | None => Share::Permits(1),
        }
    }

    /// Claims and holds, again and again.
    pub(super) async fn run(mut self) {
        let mut number = 0;
        while !self.arena.is_over() {
            number += 1;
            self.claim(&format!("{}-{number}", self.name)).await;
            tokio::time::sleep(self.dice.millis(0..50)).await;
        }
    }

    async fn claim(&mut self, name: &str) {
        self.arena.stand_behind(&self.name, name);
        self.locks = self.wanted.choose(&mut self.dice);
        let pod = match self.whom {
            For::Itself => None,
            For::Pod | For::RestartingPod | For::VanishingPod => Some(self.start_pod(name).await),
        };
        let request = |lock: &&str| LockRequest { mode: self.mode, ..LockRequest::new(*lock) };
        let locks = self.locks.iter().map(request).collect();
        let mut spec = LockClaimSpec { locks, ..LockClaimSpec::default() };
        spec.holder_ref = pod.as_ref().map(|pod| HolderRef {
            api_group: String::new(),
            kind: HolderKind::Pod,
            name: pod.name_any(),
            uid: pod.uid().expect("a UID"),
        });
        let asked = boottime();
        let claim = self.create(LockClaim::new(name, spec)).await;
        let first = public_id(&format!("{}.1", claim.uid().expect("a UID")));
        self.note_asks(asked, &first, name);
        let hasty = self.whom == For::Itself && self.dice.percent(10);
        match self.told(name, hasty).await {
            Some(told) => {
                if told.id != first {
                    self.note_asks(asked, &told.id, name);
                }
                self.hold(name, &told, pod.as_ref()).await;
            }
            None => self.note_each(|lock| Event::GaveUp { lock, id: first.clone() }),
        }
        self.clean_up(name, pod).await;
    }

    fn note_asks(&self, asked: i64, id: &str, name: &str) {
        for lock in &self.locks {
            let (lock, id, name) = ((*lock).to_owned(), id.to_owned(), format!("claim/{name}"));
            let asks = Event::Asks { lock, id, kind: Kind::Delegated, name, priority: 0 };
            self.arena.recorder.note_since(asked, asks);
        }
    }

    fn note_each(&self, event: impl Fn(String) -> Event) {
        for lock in &self.locks {
            self.arena.note(event((*lock).to_owned()));
        }
    }

    async fn start_pod(&self, name: &str) -> Pod {
        let policy = if self.whom == For::Pod { "Never" } else { "Always" };
        self.arena.pods().run(name, policy, Some(self.arena.test.name())).await
    }

    /// Until it is accepted: the API server may be away.
    async fn create(&self, claim: LockClaim) -> LockClaim {
        let api = self.arena.api::<LockClaim>();
        loop {
            match api.create(&PostParams::default(), &claim).await {
                Ok(created) => return created,
                // The answer to an earlier try was lost.
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    if let Ok(created) = api.get(&claim.name_any()).await {
                        return created;
                    }
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Waits until the claim holds; in vain, if it is gone. A hasty one is given up somewhere between.
    async fn told(&mut self, name: &str, hasty: bool) -> Option<Claim> {
        let mut claims = self.arena.seen.claims.clone();
        let patience = if hasty { self.dice.millis(0..150) } else { Duration::MAX };
        let mut seen = false;
        let told = claims.wait_for(|claims| {
            let claim = claims.get(name);
            let gone = seen && claim.is_none();
            seen |= claim.is_some();
            gone || claim.is_some_and(|claim| claim.stage == Stage::Told)
        });
        tokio::select! {
            told = told => told.ok()?.get(name).cloned(),
            () = tokio::time::sleep(patience) => None,
            () = self.arena.over() => None,
        }
    }

    async fn hold(&mut self, name: &str, told: &Claim, pod: Option<&Pod>) {
        let (kind, share) = (Kind::Delegated, self.share());
        self.note_each(|lock| {
            let (id, token) = (told.id.clone(), told.tokens.get(&lock).copied().unwrap_or_default());
            Event::Holds { lock, id, kind, token, share, until: None, lease_end: None }
        });
        let ends = tokio::time::Instant::now() + self.dice.millis(self.holds.clone());
        while tokio::time::Instant::now() < ends {
            self.work(told).await;
        }
        match (self.whom, pod) {
            (For::Itself, _) | (_, None) => self.stops(&told.id, Why::Released),
            (For::Pod, Some(_)) => self.end(name, told).await,
            (For::RestartingPod, Some(_)) => {
                self.restart(name, told).await;
                self.end(name, told).await;
            }
            (For::VanishingPod, Some(pod)) => {
                self.restart(name, told).await;
                self.vanish(told, pod).await;
            }
        }
    }

    async fn work(&mut self, told: &Claim) {
        for lock in &self.locks {
            let busy = self.dice.millis(1..5);
            match (self.arena.counters(lock), told.tokens.get(*lock)) {
                (Some(counters), Some(token)) => counters.update(&told.id, *token, busy).await,
                _ => tokio::time::sleep(busy).await,
            }
        }
        tokio::time::sleep(self.dice.millis(5..20)).await;
    }

    fn stops(&self, id: &str, why: Why) {
        self.note_each(|lock| Event::Stopped { lock, id: id.to_owned(), why });
    }

    async fn end(&self, name: &str, told: &Claim) {
        self.stops(&told.id, Why::PodEnded);
        self.arena.pods().report(name, json!({"phase": "Succeeded"})).await;
    }

    /// Its container restarts in place, and it works on.
    async fn restart(&mut self, name: &str, told: &Claim) {
        let pods = self.arena.pods();
        pods.report(name, containers_terminated(1)).await;
        self.work(told).await;
        pods.report(name, serving(2, true)).await;
        let works = tokio::time::Instant::now() + Duration::from_millis(500);
        while tokio::time::Instant::now() < works {
            self.work(told).await;
        }
    }

    /// It goes from the API server, and works on for as long as a kubelet may take.
    async fn vanish(&mut self, told: &Claim, pod: &Pod) {
        self.arena.pods().delete_by_force(pod).await;
        let stops = tokio::time::Instant::now() + Duration::from_secs(20);
        while tokio::time::Instant::now() < stops && !self.arena.is_over() {
            self.work(told).await;
        }
        self.stops(&told.id, Why::PodVanished);
    }

    /// The claim goes, and its pod.
    async fn clean_up(&self, name: &str, pod: Option<Pod>) {
        let claims = self.arena.api::<LockClaim>();
        let pods = self.arena.pods();
        if pod.is_some() && self.whom != For::VanishingPod {
            let over = json!({"phase": "Succeeded"});
            let patch = Patch::Merge(json!({ "status": over }));
            pods.api().patch_status(name, &PatchParams::default(), &patch).await.ok();
        }
        loop {
            match claims.delete(name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => break,
                Ok(_) => break,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
        if let Some(pod) = pod {
            let mut claims = self.arena.seen.claims.clone();
            let gone = claims.wait_for(|claims| !claims.contains_key(name));
            tokio::select! {
                _ = gone => {}
                () = self.arena.over() => {}
            }
            pods.api().delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await.ok();
        }
    }
}
