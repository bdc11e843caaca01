//! The steps of a claim's walk: each does one thing in Redis or etcd, and says what is next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, EvictParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::info;

use super::super::events::Events;
use super::super::fate::Fate;
use super::super::renewals::Kept;
use super::super::writes::{
    api_of, delete_as_read, is_conflict, is_not_found, patch_metadata, replace_status, set_finalizer,
};
use super::super::{Error, SOON, lock_ref};
use super::arrivals::Standing;
use super::plan::{self, Stage, Step};
use super::{Asked, Look, request, successor};
use crate::api::condition::{self, reasons, types};
use crate::api::gated::{WITHDRAWN, is_gated};
use crate::api::{ClaimedLock, FINALIZER, LOCK_LABEL, LockClaim, LockClaimStatus, time};
use crate::failpoint::{Failpoint, around};
use crate::lease::{Acquired, Grant, HolderId, Renewed};
use crate::store::Refusal;

/// What is said to a claim that waits.
const WAITS: &str = "it waits for its turn";

/// What one step leaves to do.
pub(super) enum Next {
    /// Decide again, from what was written.
    Again(Arc<LockClaim>),
    /// Look again after so long, or when something changes.
    Rest(Option<Duration>),
}

impl Look {
    /// Takes the step.
    pub(super) async fn apply(&self, step: Step) -> Result<Next, Error> {
        match step {
            Step::AddFinalizer => {
                let mut finalizers = self.claim.finalizers().to_vec();
                finalizers.push(FINALIZER.to_owned());
                let names = self.asked.iter().map(|one| format!("{LOCK_LABEL}{}", one.key.name()));
                let labels: serde_json::Map<_, _> = names.map(|label| (label, json!(""))).collect();
                let metadata = json!({ "finalizers": finalizers, "labels": labels });
                let written = patch_metadata(Failpoint::ClaimFinalizer, &self.api(), &*self.claim, metadata).await?;
                Ok(self.written(written))
            }
            Step::Contend => self.contend().await,
            Step::Pin => self.pin().await,
            Step::NextAttempt => self.next_attempt().await,
            Step::Withhold => self.withhold().await,
            Step::Release(reason, message) => self.release(reason, &message).await,
            Step::Free => self.free().await,
            Step::Vanish(message) => self.vanish(&message).await,
            Step::Finish(reason, message) => self.give_up(reason, &message).await,
            Step::Withdraw => {
                let next = self.let_go().await?;
                self.free_all(None).await;
                Ok(next)
            }
            Step::RemoveFinalizer => self.let_go().await,
            Step::Delete => self.delete().await,
            Step::EvictPod => self.evict().await,
            Step::Keep(within, note) => self.keep(within, note).await,
            Step::Wait(reason, message) => self.wait_empty_handed(reason, &message, None).await,
            Step::Rest(wait) => Ok(Next::Rest(wait)),
        }
    }

    /// The name of a write for its first lock; those for the next ones have their own.
    fn point(&self, one: &Asked, first: Failpoint) -> Failpoint {
        match first {
            _ if self.asked.first().is_some_and(|first| first.key == one.key) => first,
            Failpoint::ClaimAsk => Failpoint::SeveralAsk,
            Failpoint::ClaimPin => Failpoint::SeveralPin,
            Failpoint::ClaimFree => Failpoint::SeveralFree,
            Failpoint::ClaimWithdraw => Failpoint::SeveralWithdraw,
            other => other,
        }
    }

    /// Where people look for what becomes of it; `None`: at the gated pod, of which its own loop tells.
    fn events(&self) -> Option<&Events> {
        (!plan::is_of_gated_pod(&self.claim)).then_some(&self.ctx.events)
    }

    fn namespace(&self) -> String {
        self.claim.namespace().unwrap_or_default()
    }

    fn api(&self) -> Api<LockClaim> {
        api_of(&self.ctx.client, &*self.claim)
    }

    /// Changes the status, with the generation in every condition.
    async fn write(&self, point: Failpoint, change: impl FnOnce(&mut LockClaimStatus)) -> Result<Next, Error> {
        let mut wanted = (*self.claim).clone();
        let generation = self.claim.metadata.generation;
        let status = wanted.status.get_or_insert_default();
        status.observed_generation = generation;
        status.lock_names = Some(self.claim.lock_names());
        status.attempt.get_or_insert(1);
        status.start_time.get_or_insert_with(|| time::seconds(self.facts.now));
        let active = "it waits or holds";
        condition::set(
            &mut status.conditions,
            types::FINISHED,
            false,
            reasons::ACTIVE,
            active,
            generation,
            self.facts.now,
        );
        change(status);
        if wanted.status == self.claim.status {
            return Ok(Next::Rest(None));
        }
        let written = replace_status(point, &self.api(), &wanted).await?;
        self.ctx.metrics.status_writes.inc();
        Ok(self.written(written))
    }

    /// A later look begins with it, though the watch may not have told of it yet.
    fn written(&self, claim: LockClaim) -> Next {
        let claim = Arc::new(claim);
        self.ctx.latest.written(&claim);
        Next::Again(claim)
    }

    fn held(&self, status: &mut LockClaimStatus, held: bool, reason: &str, message: &str) {
        let (generation, now) = (self.claim.metadata.generation, self.facts.now);
        condition::set(&mut status.conditions, types::HELD, held, reason, message, generation, now);
    }

    /// Each of its locks is held, or waited for.
    fn keep_in_mind(&self) {
        for one in &self.asked {
            self.keep_one_in_mind(one, true);
        }
    }

    fn keep_one_in_mind(&self, one: &Asked, held: bool) {
        let Some(lock) = &one.lock else { return };
        let kept = Kept {
            claim: Some(self.me.clone()),
            lock: one.key.clone(),
            store: lock.store_name().to_owned(),
            lease: held.then(|| lock.lease_duration()),
        };
        self.ctx.renewals.keep(self.id.clone(), kept);
    }

    /// Asks for each lock once those before it are granted.
    async fn contend(&self) -> Result<Next, Error> {
        if !self.ctx.arrivals.may_enter(&self.claim, Instant::now()) {
            return Ok(Next::Rest(Some(SOON)));
        }
        if let Some(message) = self.lacks_permits().filter(|_| plan::waits_for_permits(&self.claim)) {
            return self.wait_empty_handed(reasons::UNSATISFIABLE, &message, None).await;
        }
        let mut grants = Vec::with_capacity(self.asked.len());
        for (at, one) in self.asked.iter().enumerate() {
            let (Some(open), Some(request)) = (&one.open, request(&self.claim, &one.request, self.facts.now)) else {
                return Ok(Next::Rest(Some(SOON)));
            };
            if !self.ctx.renewals.keeps(&self.id, &one.key) {
                self.keep_one_in_mind(one, false);
            }
            let answer =
                match around(self.point(one, Failpoint::ClaimAsk), open.control.claim(&one.key, &request)).await? {
                    Ok(answer) => answer,
                    Err(refusal) => {
                        self.ctx.heed_place(&self.claim, Standing::WaitsWithAll);
                        return self.refused(&refusal);
                    }
                };
            let closed = matches!(answer, Acquired::GateClosed | Acquired::Unprovisioned | Acquired::EpochExhausted);
            let standing = if closed || answer == Acquired::Sealed { Standing::WaitsWithAll } else { Standing::Leaves };
            self.ctx.heed_place(&self.claim, standing);
            let Acquired::Granted(grant) = answer else {
                let queued = matches!(answer, Acquired::Queued { .. });
                if queued && !self.keeps_its_places(&self.asked[at + 1..]).await? {
                    return self.next_attempt().await;
                }
                return self.not_granted(one, answer).await;
            };
            // While it waits for the next ones, this one is renewed.
            if self.asked.len() > 1 {
                self.keep_one_in_mind(one, true);
            }
            grants.push(grant);
        }
        self.granted(&grants).await
    }

    /// Who waits for one lock again had those of higher names before a record was lost. It keeps its places there, reserved;
    /// `false`: it has a hold there that leaves no place, or has lost one for good.
    async fn keeps_its_places(&self, next: &[Asked]) -> Result<bool, Error> {
        for one in next.iter().filter(|one| self.has(one)) {
            let (Some(open), Some(request)) = (&one.open, request(&self.claim, &one.request, self.facts.now)) else {
                continue;
            };
            match around(Failpoint::SeveralReserve, open.control.reserve(&one.key, &request)).await? {
                Ok(Acquired::Granted(_) | Acquired::Lost) => return Ok(false),
                Ok(_) => self.keep_one_in_mind(one, false),
                Err(refusal) => info!(claim = %self.me, %refusal, "its place isn't reserved now"),
            }
        }
        Ok(true)
    }

    /// What it asks for in vain, as far as is known here: the record decides.
    fn lacks_permits(&self) -> Option<String> {
        self.asked.iter().find_map(|one| {
            let permits = one.lock.as_ref()?.spec.permits.unsigned_abs();
            (plan::mode(&one.request).counted() > permits).then(|| too_few(one, permits))
        })
    }

    /// Whether it has a hold or a place of this lock, as etcd or this process knows.
    fn has(&self, one: &Asked) -> bool {
        plan::has_stood_at(&self.claim, one.key.name()) || self.ctx.renewals.keeps(&self.id, &one.key)
    }

    /// It can't have one of its locks before somebody does something: it keeps none of them from anybody. They are freed
    /// after etcd has the next attempt; its places go only where no turn would bring it the lock. Where a store can't be asked
    /// nobody is kept from anything.
    async fn wait_empty_handed(
        &self,
        reason: &'static str,
        message: &str,
        within: Option<Duration>,
    ) -> Result<Next, Error> {
        if self.asked.iter().any(|one| one.open.is_some() && self.has(one)) {
            return self.begin_anew(None, reason, message).await;
        }
        self.wait(reason, message, within).await
    }

    /// A lock that isn't even waited for.
    async fn is_refused(
        &self,
        one: &Asked,
        reason: &'static str,
        message: &str,
        within: Option<Duration>,
    ) -> Result<Next, Error> {
        self.ctx.renewals.forget_one(&self.id, &one.key);
        self.wait_empty_handed(reason, message, within).await
    }

    async fn not_granted(&self, one: &Asked, answer: Acquired) -> Result<Next, Error> {
        match answer {
            Acquired::Granted(_) => Ok(Next::Rest(Some(SOON))),
            Acquired::Queued { .. } => {
                self.keep_one_in_mind(one, false);
                self.write(Failpoint::ClaimWait, |status| {
                    if !plan::has_reached(&self.claim, one.key.name()) {
                        status.reached = Some(one.key.name().to_owned());
                    }
                    self.held(status, false, reasons::WAITING, &self.waits_at(one));
                })
                .await?;
                Ok(Next::Rest(plan::wait_left(&self.claim, self.facts.now)))
            }
            Acquired::Busy { .. } => {
                let at_once = self.claim.wait_timeout() == Some(Duration::ZERO);
                let (reason, message) = if at_once {
                    (reasons::BUSY, "the lock is held, and the claim doesn't wait")
                } else {
                    (reasons::WAIT_TIMEOUT, "it was not granted within waitTimeoutSeconds")
                };
                self.give_up(reason, message).await
            }
            Acquired::Lost => self.next_attempt().await,
            Acquired::Unsatisfiable { permits } => {
                let message = too_few(one, permits);
                if plan::waits_for_permits(&self.claim) {
                    return self.is_refused(one, reasons::UNSATISFIABLE, &message, None).await;
                }
                self.give_up(reasons::UNSATISFIABLE, &message).await
            }
            Acquired::LockIsElected => {
                self.is_refused(one, reasons::LOCK_IS_ELECTED, "the lock elects its holders", None).await
            }
            Acquired::Sealed => {
                self.is_refused(one, reasons::LOCK_NOT_FOUND, "the lock is being deleted", Some(SOON)).await
            }
            Acquired::GateClosed | Acquired::Unprovisioned | Acquired::EpochExhausted => {
                self.ctx.triggers.lock(lock_ref(&one.key));
                let message = "the lock's record in Redis is being made";
                self.wait(reasons::STORE_NOT_READY, message, Some(SOON)).await
            }
        }
    }

    fn waits_at(&self, one: &Asked) -> String {
        match self.asked.len() {
            1 => WAITS.to_owned(),
            _ => format!("{WAITS} at {}", one.key.name()),
        }
    }

    /// Ends without having held all of its locks, and leaves the queues.
    async fn give_up(&self, reason: &'static str, message: &str) -> Result<Next, Error> {
        let next = self.end(reason, message).await?;
        if let Some(events) = self.events() {
            events.warning(&*self.claim, reason, "Finish", message.to_owned()).await;
        }
        self.free_all(None).await;
        Ok(next)
    }

    fn refused(&self, refusal: &Refusal) -> Result<Next, Error> {
        info!(claim = %self.me, %refusal, "not asked now");
        Ok(Next::Rest(Some(SOON)))
    }

    async fn granted(&self, grants: &[Grant]) -> Result<Next, Error> {
        let token_of = |name: &str| {
            let at = self.asked.iter().position(|one| one.key.name() == name)?;
            Some(grants.get(at)?.token.get())
        };
        let acquire_time = time::micros(self.facts.now);
        let claimed = |name: &String| {
            let (fencing_token, acquire_time) = (token_of(name)?, acquire_time.clone());
            Some(ClaimedLock { name: name.clone(), fencing_token, acquire_time, expire_time: None })
        };
        // As the claim writes them.
        let locks: Vec<ClaimedLock> = self.claim.spec.locks.iter().filter_map(|one| claimed(&one.name)).collect();
        self.write(Failpoint::ClaimGranted, |status| {
            status.holder_id = Some(self.id.as_str().to_owned());
            status.fencing_token = locks.first().map(|first| first.fencing_token);
            status.locks = locks;
            status.reached = None;
            self.held(status, false, reasons::GRANTED, "it was granted and is being recorded");
        })
        .await
    }

    /// The attempt has ended before it was told: the next one stands where this one stood. What is held is freed after etcd
    /// has let it go.
    async fn next_attempt(&self) -> Result<Next, Error> {
        self.begin_anew(plan::reached_by_next(&self.claim), reasons::WAITING, WAITS).await
    }

    /// `reached`: up to which lock the next attempt surely stands where this one stood.
    async fn begin_anew(&self, reached: Option<String>, reason: &str, message: &str) -> Result<Next, Error> {
        self.ctx.renewals.forget(&self.id);
        let next = self
            .write(Failpoint::ClaimRetry, |status| {
                status.attempt = Some(plan::attempt(&self.claim).saturating_add(1));
                status.holder_id = None;
                status.fencing_token = None;
                status.locks.clear();
                status.reached = reached;
                self.held(status, false, reason, message);
            })
            .await?;
        if let Next::Again(written) = &next {
            self.free_all(successor(written, &self.id).as_ref()).await;
        }
        Ok(next)
    }

    async fn pin(&self) -> Result<Next, Error> {
        for one in &self.asked {
            let Some(open) = &one.open else {
                return Ok(Next::Rest(Some(SOON)));
            };
            match around(self.point(one, Failpoint::ClaimPin), open.control.pin(&one.key, &self.id, open.epoch)).await?
            {
                Err(refusal) => return self.refused(&refusal),
                // The record was lost: its recovery puts this hold back, since etcd has it.
                Ok(Renewed::Unprovisioned) => {
                    self.ctx.triggers.lock(lock_ref(&one.key));
                    return Ok(Next::Rest(Some(SOON)));
                }
                Ok(Renewed::Lost | Renewed::NotHeld) => return self.next_attempt().await,
                // Another grant than the one that etcd knows: it was lost in between, and given again.
                Ok(Renewed::Held(grant)) if plan::recorded_token(&self.claim, one.key.name()) != Some(grant.token) => {
                    return self.next_attempt().await;
                }
                Ok(Renewed::Held(_)) => {}
            }
        }
        self.tell().await
    }

    /// For people: its token, or that of each of its locks.
    fn tokens(&self) -> String {
        let token =
            |name: &str| plan::recorded_token(&self.claim, name).map(|token| token.to_string()).unwrap_or_default();
        match self.claim.spec.locks.as_slice() {
            [one] => format!("token {}", token(&one.name)),
            all => {
                let each: Vec<_> = all.iter().map(|one| format!("{} of {}", token(&one.name), one.name)).collect();
                format!("the tokens {}", each.join(", "))
            }
        }
    }

    async fn tell(&self) -> Result<Next, Error> {
        self.keep_in_mind();
        let message = format!("it holds with {}", self.tokens());
        let next = self
            .write(Failpoint::ClaimTold, |status| {
                status.node_name = self.node().or(status.node_name.take());
                self.held(status, true, reasons::HELD, &message);
            })
            .await?;
        for lock in self.asked.iter().filter_map(|one| one.lock.as_ref()) {
            self.ctx.stores.note_told(lock.store_name());
        }
        if let Some(events) = self.events() {
            let note = format!("holds {} with {}", self.claim.lock_names(), self.tokens());
            events.normal(&*self.claim, reasons::ACQUIRED, "Grant", note).await;
        }
        Ok(next)
    }

    fn node(&self) -> Option<String> {
        match &self.facts.pod {
            Some(Fate::Alive { node }) => node.clone(),
            _ => None,
        }
    }

    async fn keep(&self, within: Option<Duration>, note: Option<(&'static str, String)>) -> Result<Next, Error> {
        self.keep_in_mind();
        let (reason, message) = note.unwrap_or_else(|| (reasons::HELD, format!("it holds with {}", self.tokens())));
        self.write(Failpoint::ClaimKeep, |status| {
            status.node_name = self.node().or(status.node_name.take());
            self.held(status, true, reason, &message);
        })
        .await?;
        Ok(Next::Rest(within))
    }

    async fn release(&self, reason: &'static str, message: &str) -> Result<Next, Error> {
        let next = self
            .write(Failpoint::ClaimReleasing, |status| {
                let (generation, now) = (self.claim.metadata.generation, self.facts.now);
                self.held(status, false, reasons::RELEASING, message);
                if plan::is_taken(reason) {
                    condition::set(&mut status.conditions, types::FINISHED, false, reason, message, generation, now);
                }
            })
            .await?;
        if let Some(events) = self.events() {
            events.normal(&*self.claim, reason, "Release", message.to_owned()).await;
        }
        Ok(next)
    }

    /// Without the store the claim need not wait: etcd has let it go, and a pinned hold that etcd doesn't have is
    /// freed when the store is back.
    async fn free(&self) -> Result<Next, Error> {
        for one in &self.asked {
            match self.free_one(one, None).await? {
                Some(Ok(()) | Err(Refusal::Unprovisioned)) => {}
                Some(Err(refusal)) => return self.refused(&refusal),
                None if one.lock.is_some() && self.claim.metadata.deletion_timestamp.is_none() => {
                    return Ok(Next::Rest(Some(SOON)));
                }
                None => {}
            }
        }
        self.ctx.renewals.forget(&self.id);
        if self.claim.metadata.deletion_timestamp.is_some() {
            return self.let_go().await;
        }
        if plan::is_of_gated_pod(&self.claim) && matches!(self.facts.pod, Some(Fate::Ended(_))) {
            self.remove().await?;
            return Ok(Next::Rest(None));
        }
        let conditions = self.claim.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let message = condition::get(conditions, types::HELD).map(|held| held.message.as_str()).unwrap_or_default();
        let why = condition::get(conditions, types::FINISHED).map(|finished| finished.reason.as_str());
        self.end(why.filter(|why| plan::is_taken(why)).unwrap_or(reasons::RELEASED), message).await
    }

    /// Frees what it holds and where it waits, under an id that etcd has just let go: never before, since what is seen here
    /// may be old, and the id that of a hold that was told. What isn't done then, or isn't known to be, is done by the locks'
    /// own looks, as after a crash between the two. `successor`: the id of its next attempt, which stands there then.
    async fn free_all(&self, successor: Option<&HolderId>) {
        let freed = join_all(self.asked.iter().map(|one| self.free_one(one, successor))).await;
        for (one, freed) in self.asked.iter().zip(freed) {
            if !matches!(freed, Ok(Some(Ok(())))) {
                info!(claim = %self.me, lock = %one.key, ?freed, "left to the lock's own look");
                self.ctx.triggers.lock(lock_ref(&one.key));
            }
        }
    }

    /// What it holds or waits for of one lock; `None`: its store can't be asked.
    async fn free_one(&self, one: &Asked, successor: Option<&HolderId>) -> Result<Option<Result<(), Refusal>>, Error> {
        let Some(open) = &one.open else { return Ok(None) };
        let point =
            if plan::stage(&self.claim) == Stage::Waiting { Failpoint::ClaimWithdraw } else { Failpoint::ClaimFree };
        Ok(Some(around(self.point(one, point), open.control.free(&one.key, &self.id, successor)).await?))
    }

    async fn end(&self, reason: &str, message: &str) -> Result<Next, Error> {
        self.ctx.renewals.forget(&self.id);
        self.write(Failpoint::ClaimFinished, |status| {
            let (generation, now) = (self.claim.metadata.generation, self.facts.now);
            self.held(status, false, reason, message);
            condition::set(&mut status.conditions, types::FINISHED, true, reason, message, generation, now);
            status.finish_time = Some(time::seconds(now));
            status.reached = None;
        })
        .await
    }

    async fn wait(&self, reason: &'static str, message: &str, within: Option<Duration>) -> Result<Next, Error> {
        self.write(Failpoint::ClaimWait, |status| self.held(status, false, reason, message)).await?;
        Ok(Next::Rest(within))
    }

    async fn let_go(&self) -> Result<Next, Error> {
        self.ctx.forget_claim(&self.me);
        set_finalizer(Failpoint::ClaimLetGo, &self.api(), &*self.claim, false).await?;
        Ok(Next::Rest(None))
    }

    /// By its deletion etcd lets it go.
    async fn vanish(&self, message: &str) -> Result<Next, Error> {
        match self.remove().await {
            Ok(()) => {
                self.free_all(None).await;
                Ok(Next::Rest(None))
            }
            Err(error) if is_conflict(&error) => Err(error.into()),
            Err(error) => {
                self.asked.iter().for_each(|one| self.ctx.triggers.lock(lock_ref(&one.key)));
                match error {
                    // Whoever refuses that, the next one doesn't wait for it.
                    kube::Error::Api(_) => self.release(reasons::HOLDER_ENDED, message).await,
                    error => Err(error.into()),
                }
            }
        }
    }

    /// Nobody looks at the claim of a gated pod that has ended: it is deleted, and then goes with our finalizer. Garbage
    /// collection may be before us.
    async fn remove(&self) -> kube::Result<()> {
        let deletion = self.ctx.latest.deletion(&self.claim);
        let removed = match delete_as_read(Failpoint::ClaimDelete, &self.api(), &*self.claim).await {
            Ok(Some(deleted)) => set_finalizer(Failpoint::ClaimLetGo, &self.api(), &deleted, false).await.map(drop),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        removed.or_else(|error| if is_not_found(&error) { Ok(()) } else { Err(error) })?;
        deletion.done();
        self.ctx.forget_claim(&self.me);
        Ok(())
    }

    /// From this write on, one that was decided before conflicts, and one that is decided after it sees the annotation.
    async fn withhold(&self) -> Result<Next, Error> {
        let Some(holder) = &self.claim.spec.holder_ref else { return Ok(Next::Rest(None)) };
        let pods: Api<Pod> = Api::namespaced(self.ctx.client.clone(), &self.namespace());
        let pod = pods.get_opt(&holder.name).await?.filter(|pod| pod.uid().as_ref() == Some(&holder.uid));
        if let Some(pod) = pod.filter(is_gated) {
            let annotations = json!({ "annotations": { (WITHDRAWN): self.id.as_str() } });
            patch_metadata(Failpoint::GatedWithdraw, &pods, &pod, annotations).await?;
        }
        Ok(Next::Rest(Some(SOON)))
    }

    async fn delete(&self) -> Result<Next, Error> {
        delete_as_read(Failpoint::ClaimDelete, &self.api(), &*self.claim).await?;
        Ok(Next::Rest(None))
    }

    /// The hold goes when the pod has ended. A budget that forbids the eviction is said, and asked again.
    async fn evict(&self) -> Result<Next, Error> {
        let Some(holder) = &self.claim.spec.holder_ref else {
            return Ok(Next::Rest(None));
        };
        self.keep_in_mind();
        let pods: Api<Pod> = Api::namespaced(self.ctx.client.clone(), &self.namespace());
        let preconditions = Some(Preconditions { uid: Some(holder.uid.clone()), resource_version: None });
        let delete_options = Some(DeleteParams { preconditions, ..DeleteParams::default() });
        let params = EvictParams { delete_options, ..EvictParams::default() };
        let message = match around(Failpoint::ClaimEvict, pods.evict(&holder.name, &params)).await {
            Ok(_) => "it has held for maxHoldSeconds: its pod is being evicted".to_owned(),
            Err(error) => {
                format!("it has held for maxHoldSeconds, but its pod can't be evicted: {error}")
            }
        };
        let point = Failpoint::ClaimKeep;
        self.write(point, |status| self.held(status, true, reasons::MAX_HOLD_EXCEEDED, &message)).await?;
        Ok(Next::Rest(Some(Duration::from_secs(10))))
    }
}

fn too_few(one: &Asked, permits: u32) -> String {
    format!("it asks for more than the {permits} permits that {} has", one.key.name())
}
