//! Elections: who of the pods of a lock holds it. Part of the lock's loop.
//!
//! # The walk
//! Grant: Redis → etcd → pod. Release: pod → etcd → Redis. The memory is `DistributedLock.status.election`.
//!
//! 1. every candidate is marked as standby, with the term of this reign: a mark that an older reign has on its way
//!    conflicts, since each write carries the pod's `resourceVersion`;
//! 2. `claim` in Redis, under an id of the lock, the pod and the number of the choice;
//! 3. the leader in etcd;
//! 4. `pin` in Redis: time no longer takes it. It fails if the hold was lost: the choice is forgotten;
//! 5. the pod is marked as leader, with its token in the same patch: told.
//! 6. The pod is marked as standby, with the token that it led with: untold. It is always written, also where the pod
//!    looks untold, so that a mark of 5 that is still on its way conflicts;
//! 7. `releasing` in etcd;
//! 8. `free` in Redis;
//! 9. the leader goes from etcd.
//!
//! A crash after 2: the hold ends with its lease, or the next look finds that nobody records it and frees it. After 3
//! or 4: the next look goes on with `pin`. After 6: the pod's own mark says that this lead is over, it is never marked
//! again with this token. After 7 or 8: `free` is idempotent. What etcd has and isn't releasing is put back with its
//! token when Redis has lost everything. So two pods never carry the leader's label of a lock with one permit.

mod candidate;
mod plan;
mod watched;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tracing::{debug, info};

use super::fate::Fate;
use super::pods::{Follower, Holder};
use super::renewals::Kept;
use super::stores::OpenStore;
use super::writes::{api_of, is_conflict, is_not_found, patch_metadata, replace_status};
use super::{Context, Error, SOON};
use crate::api::condition::reasons;
use crate::api::election::{ELECTED_BY, FENCING_TOKEN, LEADER, RELEASED_TOKEN, ROLE_LABEL, STANDBY, TERM};
use crate::api::{DistributedLock, ElectedLeader, ElectionStatus, HolderKind, HolderRef};
use crate::failpoint::{Failpoint, around};
use crate::lease::{Acquired, FencingToken, HolderId, LockKey, Mode, Renewed, Request, Wait};
use crate::store::{Refusal, Remembered};
use candidate::Candidate;
use plan::{Facts, Leader, Step, plan};

pub(super) use watched::Electorates;

/// After a conflict: what was read is being read again.
const AT_ONCE: Duration = Duration::from_millis(20);
/// Steps taken in one look: with 20 leaders, each is unmarked, released, freed, chosen and marked, and some to spare.
const STEPS: usize = 200;

/// What an election leaves to the lock's loop.
pub(super) struct Elected {
    /// The lock as it stands in etcd now.
    pub(super) lock: DistributedLock,
    /// The pod and the other lock that has marked it, because of which nobody is chosen.
    pub(super) conflict: Option<(String, String)>,
    /// When to look again, at the latest.
    pub(super) within: Option<Duration>,
}

/// The id of a choice: another pod or another choice is another holder.
fn holder_id(lock: &DistributedLock, pod_uid: &str, attempt: i64) -> Option<HolderId> {
    HolderId::new(format!("{}.{pod_uid}.{attempt}", lock.uid()?)).ok()
}

/// Whether an id was made by an election of this lock.
pub(super) fn is_choice(lock: &DistributedLock, id: &HolderId) -> bool {
    let uid = lock.metadata.uid.as_deref();
    uid.and_then(|uid| id.as_str().strip_prefix(uid)).is_some_and(|rest| rest.starts_with('.'))
}

/// Whether the lock records this id as a leader's.
pub(super) fn records(lock: &DistributedLock, id: &HolderId) -> bool {
    lock.leaders().iter().any(|leader| holder_id(lock, &leader.pod_uid, leader.attempt).as_ref() == Some(id))
}

/// Whether this is a choice that the lock doesn't record: nobody was told of it, or it is over.
pub(super) fn is_stray(lock: &DistributedLock, id: &HolderId) -> bool {
    is_choice(lock, id) && !records(lock, id)
}

/// The holds of leaders that etcd remembers and isn't taking back.
pub(super) fn remembered(lock: &DistributedLock) -> Vec<Remembered> {
    let leaders = lock.leaders().iter().filter(|leader| !leader.releasing);
    let remembered = leaders.filter_map(|leader| {
        Some(Remembered {
            id: holder_id(lock, &leader.pod_uid, leader.attempt)?,
            token: FencingToken::new(leader.fencing_token)?,
            mode: Mode::Counted(1),
            identity: format!("pod/{}", leader.pod_name),
            pod_uid: Some(leader.pod_uid.clone()),
        })
    });
    remembered.collect()
}

/// Whether there is anything to elect, or to take back.
pub(super) fn concerns(lock: &DistributedLock) -> bool {
    lock.spec.election.is_some() || !lock.leaders().is_empty()
}

/// Takes the steps that are due.
pub(super) async fn elect(
    ctx: &Context,
    lock: &DistributedLock,
    key: &LockKey,
    open: &OpenStore,
) -> Result<Elected, Error> {
    let mut election = Election::new(ctx, lock, key, open);
    let mut elected = Elected { lock: lock.clone(), conflict: None, within: None };
    if !election.is_listed {
        return Ok(elected);
    }
    for _ in 0..STEPS {
        let step = plan(&election.facts().await?);
        debug!(%key, ?step, "decided");
        let next = election.apply(&step).await;
        elected.lock.clone_from(&election.lock);
        match next {
            Ok(Next::Again) => {}
            Ok(Next::Rest(within)) => {
                elected.within = within;
                if let Step::Conflict { pod, other } = step {
                    elected.conflict = Some((pod, other));
                }
                return Ok(elected);
            }
            // What was read is no longer so; its change is on its way to us.
            Err(Error::Kube(error)) if is_conflict(&error) || is_not_found(&error) => {
                elected.within = Some(AT_ONCE);
                return Ok(elected);
            }
            Err(error) => return Err(error),
        }
    }
    elected.within = Some(AT_ONCE);
    Ok(elected)
}

enum Next {
    Again,
    Rest(Option<Duration>),
}

/// One look: the lock and its pods as they were last read or written.
struct Election<'a> {
    ctx: &'a Context,
    key: &'a LockKey,
    open: &'a OpenStore,
    me: ObjectRef<DistributedLock>,
    lock: DistributedLock,
    pods: HashMap<String, Arc<Pod>>,
    is_listed: bool,
    /// Pods that this look would have chosen, but for their nodes.
    unreachable: HashSet<String>,
}

impl<'a> Election<'a> {
    fn new(ctx: &'a Context, lock: &DistributedLock, key: &'a LockKey, open: &'a OpenStore) -> Self {
        let listed = match lock.spec.election.as_ref().filter(|_| seats(lock) > 0) {
            Some(election) => ctx.electorates.of(key, &election.selector),
            None => Some(Vec::new()),
        };
        let is_listed = listed.is_some();
        let pods = listed.unwrap_or_default().into_iter().map(|pod| (pod.uid().unwrap_or_default(), pod)).collect();
        let me = ObjectRef::from_obj(lock);
        let unreachable = HashSet::new();
        let this = Self { ctx, key, open, me, lock: lock.clone(), pods, is_listed, unreachable };
        for leader in this.lock.leaders().iter().filter(|leader| !leader.releasing) {
            this.keep(&leader.pod_uid, leader.attempt);
        }
        this
    }

    fn keep(&self, pod_uid: &str, attempt: i64) {
        let Some(id) = holder_id(&self.lock, pod_uid, attempt) else { return };
        let (lock, store) = (self.key.clone(), self.lock.store_name().to_owned());
        self.ctx.renewals.keep(id, Kept { claim: None, lock, store, lease: Some(self.lock.lease_duration()) });
    }

    async fn facts(&self) -> Result<Facts, Error> {
        let mut leaders = Vec::new();
        for record in self.lock.leaders() {
            leaders.push(self.leader(record).await?);
        }
        let seats = seats(&self.lock);
        let others = self.ctx.locks().into_iter().filter(|other| {
            let elects = other.spec.election.is_some() && other.metadata.deletion_timestamp.is_none();
            elects && other.namespace() == self.lock.namespace() && other.name_any() != self.lock.name_any()
        });
        Ok(Facts {
            lock: self.lock.name_any(),
            seats,
            term: self.open.control.term(),
            failover_after: self.failover_after(),
            policy: self.lock.spec.node_unreachable_policy,
            leaders,
            candidates: self.pods.values().map(|pod| self.candidate(pod)).collect(),
            forced: self.ctx.with_memory(self.key, |memory| memory.forced.clone()),
            others: others.map(|other| other.name_any()).collect(),
        })
    }

    fn candidate(&self, pod: &Pod) -> Candidate {
        let candidate = Candidate::of(pod);
        Candidate { unreachable: self.unreachable.contains(&candidate.uid), ..candidate }
    }

    fn failover_after(&self) -> Duration {
        self.lock.spec.election.as_ref().map_or(Duration::ZERO, |election| election.failover_after())
    }

    async fn leader(&self, record: &ElectedLeader) -> Result<Leader, Error> {
        let (holder, follower) = (holder_of(record), Follower::Lock(self.me.clone()));
        let known = self.ctx.pods.holder(self.key, &holder, record.node_name.as_deref(), follower).await?;
        let Holder { fate, node, reach } = known;
        let listed = self.pods.get(&record.pod_uid);
        let gone = matches!(fate, Fate::Vanished { .. });
        let pod = match listed {
            Some(pod) => Some(Candidate::of(pod)).filter(|_| !gone),
            None => self.unselected(record).await?.map(|pod| Candidate::of(&pod)),
        };
        let not_ready_for = self.not_ready_for(record, pod.as_ref());
        Ok(Leader { record: record.clone(), pod, fate, selected: listed.is_some(), not_ready_for, node, reach })
    }

    /// A leader that isn't among the pods that are elected, or is gone.
    async fn unselected(&self, record: &ElectedLeader) -> Result<Option<Pod>, Error> {
        let pod = self.pod_api().get_opt(&record.pod_name).await?;
        Ok(pod.filter(|pod| pod.uid().as_ref() == Some(&record.pod_uid)))
    }

    fn not_ready_for(&self, record: &ElectedLeader, pod: Option<&Candidate>) -> Option<Duration> {
        let not_ready = pod.is_some_and(|pod| !pod.ready);
        self.ctx.with_memory(self.key, |memory| {
            if not_ready {
                let since = memory.not_ready.entry(record.pod_uid.clone()).or_insert_with(Instant::now);
                return Some(since.elapsed());
            }
            memory.not_ready.remove(&record.pod_uid);
            None
        })
    }

    async fn apply(&mut self, step: &Step) -> Result<Next, Error> {
        match step {
            Step::Conflict { .. } => Ok(Next::Rest(Some(Duration::from_secs(2)))),
            Step::Rest(within) => Ok(Next::Rest(*within)),
            Step::Stamp { pod } => {
                self.mark(Failpoint::ElectionStamp, pod, STANDBY, json!({ FENCING_TOKEN: null })).await
            }
            Step::Untell { pod, reason, message } => {
                let token = self.record(pod).map(|leader| leader.fencing_token.to_string());
                let annotations = json!({ FENCING_TOKEN: null, RELEASED_TOKEN: token });
                let next = self.mark(Failpoint::ElectionUntell, pod, STANDBY, annotations).await?;
                // Of a force-release the lock has its Event already.
                if *reason != reasons::FORCE_RELEASED {
                    self.ctx.events.normal(&self.lock, reason, "Release", message.clone()).await;
                }
                Ok(next)
            }
            Step::Release { pod, message } => {
                info!(key = %self.key, pod, message, "a lead is taken back");
                self.remember(Failpoint::ElectionReleasing, |election| {
                    election.leaders.iter_mut().filter(|l| l.pod_uid == *pod).for_each(|l| l.releasing = true)
                })
                .await
            }
            Step::Free { pod } => self.free(pod).await,
            Step::Tell { pod } => self.tell(pod).await,
            Step::Grant { pod } => self.grant(pod).await,
        }
    }

    fn record(&self, pod_uid: &str) -> Option<ElectedLeader> {
        self.lock.leaders().iter().find(|leader| leader.pod_uid == pod_uid).cloned()
    }

    fn pod_api(&self) -> Api<Pod> {
        Api::namespaced(self.ctx.client.clone(), self.key.namespace())
    }

    /// Writes a pod's role, and why, if the pod still is as it was read.
    async fn mark(
        &mut self,
        point: Failpoint,
        pod_uid: &str,
        role: &str,
        mut annotations: Value,
    ) -> Result<Next, Error> {
        let pod = match (self.pods.get(pod_uid), self.record(pod_uid)) {
            (Some(pod), _) => pod.clone(),
            (None, Some(record)) => match self.unselected(&record).await? {
                Some(pod) => Arc::new(pod),
                None => return Ok(Next::Rest(Some(AT_ONCE))),
            },
            (None, None) => return Ok(Next::Rest(Some(AT_ONCE))),
        };
        annotations[ELECTED_BY] = json!(self.key.name());
        annotations[TERM] = json!(self.open.control.term().to_string());
        let metadata = json!({ "labels": { ROLE_LABEL: role }, "annotations": annotations });
        let written = patch_metadata(point, &self.pod_api(), &*pod, metadata).await?;
        if self.pods.contains_key(pod_uid) {
            self.pods.insert(pod_uid.to_owned(), Arc::new(written));
        }
        Ok(Next::Again)
    }

    /// Changes what etcd remembers, if the lock still is as it was read.
    async fn remember(&mut self, point: Failpoint, change: impl FnOnce(&mut ElectionStatus)) -> Result<Next, Error> {
        let mut wanted = self.lock.clone();
        change(wanted.status.get_or_insert_default().election.get_or_insert_default());
        self.lock = replace_status(point, &api_of(&self.ctx.client, &wanted), &wanted).await?;
        self.ctx.metrics.status_writes.inc();
        Ok(Next::Again)
    }

    async fn free(&mut self, pod_uid: &str) -> Result<Next, Error> {
        let Some(record) = self.record(pod_uid) else { return Ok(Next::Again) };
        if let Some(id) = holder_id(&self.lock, pod_uid, record.attempt) {
            match around(Failpoint::ElectionFree, self.open.control.free(self.key, &id, None)).await? {
                Ok(()) | Err(Refusal::Unprovisioned) => self.ctx.renewals.forget(&id),
                Err(refusal) => return Ok(self.refused(&refusal)),
            }
        }
        let follower = Follower::Lock(self.me.clone());
        self.ctx.pods.forget_one(self.key.namespace(), &holder_of(&record), &follower);
        self.forget(pod_uid).await
    }

    async fn forget(&mut self, pod_uid: &str) -> Result<Next, Error> {
        let forget = |election: &mut ElectionStatus| election.leaders.retain(|leader| leader.pod_uid != pod_uid);
        self.remember(Failpoint::ElectionForget, forget).await
    }

    async fn tell(&mut self, pod_uid: &str) -> Result<Next, Error> {
        let Some(record) = self.record(pod_uid) else { return Ok(Next::Again) };
        let Some(id) = holder_id(&self.lock, pod_uid, record.attempt) else { return Ok(Next::Rest(None)) };
        match around(Failpoint::ElectionPin, self.open.control.pin(self.key, &id, self.open.epoch)).await? {
            Ok(Renewed::Held(_)) => {}
            // Nobody was told of it.
            Ok(Renewed::Lost | Renewed::NotHeld) => {
                self.ctx.renewals.forget(&id);
                return self.forget(pod_uid).await;
            }
            // The record was lost: its recovery puts this hold back, since etcd has it.
            Ok(Renewed::Unprovisioned) => return Ok(Next::Rest(Some(SOON))),
            Err(refusal) => return Ok(self.refused(&refusal)),
        }
        let token = record.fencing_token.to_string();
        let next = self.mark(Failpoint::ElectionTell, pod_uid, LEADER, json!({ FENCING_TOKEN: token })).await?;
        let note = format!("{} leads with token {token}", record.pod_name);
        self.ctx.events.normal(&self.lock, reasons::ELECTED, "Elect", note).await;
        Ok(next)
    }

    /// Whether a pod that is Ready can be chosen: when its node is lost, it stands as Ready for a while yet.
    async fn reachable(&mut self, pod: &Candidate) -> Result<bool, Error> {
        let Some(node) = &pod.node else { return Ok(true) };
        let reachable = self.ctx.pods.ask_node(node).await?.unreachable().is_none();
        if !reachable {
            self.unreachable.insert(pod.uid.clone());
        }
        Ok(reachable)
    }

    async fn grant(&mut self, pod_uid: &str) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(pod_uid).cloned() else { return Ok(Next::Again) };
        let candidate = Candidate::of(&pod);
        if !self.reachable(&candidate).await? {
            return Ok(Next::Again);
        }
        let attempt = self.attempts() + 1;
        let Some(id) = holder_id(&self.lock, pod_uid, attempt) else { return Ok(Next::Rest(None)) };
        let request = Request {
            id,
            mode: Mode::Counted(1),
            priority: 0,
            wait: Wait::No,
            identity: format!("pod/{}", pod.name_any()),
            pod_uid: Some(pod_uid.to_owned()),
        };
        let grant = match around(Failpoint::ElectionAsk, self.open.control.claim(self.key, &request)).await? {
            Ok(Acquired::Granted(grant)) => grant,
            Ok(Acquired::Busy { retry }) => {
                self.free_strays().await?;
                return Ok(Next::Rest(Some(retry.min(Duration::from_secs(2)))));
            }
            // A choice of before that etcd never heard of: the number is used up.
            Ok(Acquired::Lost) => return self.choose(attempt, None).await,
            Ok(answer) => {
                debug!(key = %self.key, ?answer, "nobody can be chosen now");
                return Ok(Next::Rest(Some(SOON)));
            }
            Err(refusal) => return Ok(self.refused(&refusal)),
        };
        self.keep(pod_uid, attempt);
        let leader = ElectedLeader {
            pod_name: pod.name_any(),
            pod_uid: pod_uid.to_owned(),
            attempt,
            fencing_token: grant.token.get(),
            node_name: candidate.node,
            containers: candidate.containers,
            releasing: false,
        };
        self.choose(attempt, Some(leader)).await
    }

    fn attempts(&self) -> i64 {
        self.lock.status.as_ref().and_then(|status| status.election.as_ref()).map_or(0, |election| election.attempts)
    }

    async fn choose(&mut self, attempt: i64, leader: Option<ElectedLeader>) -> Result<Next, Error> {
        self.remember(Failpoint::ElectionChosen, |election| {
            election.attempts = attempt;
            election.leaders.extend(leader);
        })
        .await
    }

    /// A choice that etcd never heard of keeps its permit until its lease ends: a crash came between. Freed, but only
    /// after a quorum has shown that nobody records it.
    async fn free_strays(&self) -> Result<(), Error> {
        let Some(record) = self.open.control.store().inspect(self.key).await? else { return Ok(()) };
        let unknown: Vec<&HolderId> =
            record.holds.iter().map(|hold| &hold.id).filter(|id| is_stray(&self.lock, id)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let api: Api<DistributedLock> = api_of(&self.ctx.client, &self.lock);
        let Some(lock) = api.get_opt(&self.lock.name_any()).await? else { return Ok(()) };
        for id in unknown.into_iter().filter(|id| !records(&lock, id)) {
            info!(key = %self.key, ?id, "freeing a choice that nobody records");
            let _ = around(Failpoint::ElectionFreeStray, self.open.control.free(self.key, id, None)).await?;
            self.ctx.renewals.forget(id);
        }
        Ok(())
    }

    fn refused(&self, refusal: &Refusal) -> Next {
        info!(key = %self.key, %refusal, "not asked now");
        Next::Rest(Some(SOON))
    }
}

/// How many leaders there should be.
fn seats(lock: &DistributedLock) -> usize {
    let elects = lock.spec.election.is_some() && lock.metadata.deletion_timestamp.is_none();
    if elects { usize::try_from(lock.permits()).unwrap_or(usize::MAX) } else { 0 }
}

fn holder_of(record: &ElectedLeader) -> HolderRef {
    let (name, uid) = (record.pod_name.clone(), record.pod_uid.clone());
    HolderRef { api_group: String::new(), kind: HolderKind::Pod, name, uid }
}
