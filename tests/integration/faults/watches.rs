//! Those who watch: what the API server tells of locks, claims and pods, and what the records in Redis say.

use std::collections::HashMap;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::core::NamespaceResourceScope;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use leasehold::api::condition::{self, reasons, types};
use leasehold::api::election::{ELECTED_BY, FENCING_TOKEN, LEADER, ROLE_LABEL};
use leasehold::api::{DistributedLock, LockClaim};
use leasehold::lease::LockKey;
use leasehold::store::Store;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::arena::ELECTED;
use crate::support::TestNamespace;
use crate::support::history::{
    Event, Micros, Recorder, Remembered, Shown, Stage, Version, boottime, from_wall_clock, public_id,
};

/// How often the records are read.
const POLL: Duration = Duration::from_millis(150);

/// A claim as the watch told it last.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) stage: Stage,
    pub(super) id: String,
    /// By lock.
    pub(super) tokens: HashMap<String, i64>,
}

/// A pod that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leader {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) token: i64,
}

/// What the holders hear of the watches.
#[derive(Clone)]
pub(super) struct Seen {
    /// By name.
    pub(super) claims: watch::Receiver<HashMap<String, Claim>>,
    /// By the name of the pod.
    pub(super) leaders: watch::Receiver<HashMap<String, Leader>>,
}

/// The watches of one run. They end with it.
pub(super) struct Watches {
    test: TestNamespace,
    store: Store,
    recorder: Recorder,
    /// Those whose records are read.
    pub(super) locks: Vec<&'static str>,
    claims: watch::Sender<HashMap<String, Claim>>,
    leaders: watch::Sender<HashMap<String, Leader>>,
    tasks: JoinSet<()>,
}

impl Watches {
    /// Begins to watch everything in the test's namespace, and the records of these locks.
    pub(super) fn start(test: &TestNamespace, store: Store, recorder: &Recorder, locks: Vec<&'static str>) -> Self {
        let (claims, leaders) = (watch::channel(HashMap::new()).0, watch::channel(HashMap::new()).0);
        let (test, recorder) = (test.clone(), recorder.clone());
        let mut watches = Self { test, store, recorder, locks, claims, leaders, tasks: JoinSet::new() };
        watches.restart();
        watches
    }

    /// Begins anew, as one has to where etcd has gone back: a watch would wait for what it has seen already.
    pub(super) fn restart(&mut self) {
        let Self { test, store, recorder, locks, claims, leaders, .. } = self;
        let mut tasks = JoinSet::new();
        let mut versions: HashMap<String, Version> = HashMap::new();
        claims.send_modify(HashMap::clear);
        leaders.send_modify(HashMap::clear);
        let note = recorder.clone();
        tasks.spawn(follow(test.api::<DistributedLock>(), recorder.clone(), move |lock, gone| {
            if !gone {
                note.note(published(lock));
            }
        }));
        let (note, claims) = (recorder.clone(), claims.clone());
        tasks.spawn(follow(test.api::<LockClaim>(), recorder.clone(), move |claim, gone| {
            see_claim(&note, &claims, claim, gone);
        }));
        let (note, leaders) = (recorder.clone(), leaders.clone());
        tasks.spawn(follow(test.api::<Pod>(), recorder.clone(), move |pod, gone| {
            see_pod(&note, &leaders, &mut versions, pod, gone);
        }));
        tasks.spawn(poll(store.clone(), test.name().to_owned(), recorder.clone(), locks.clone()));
        self.tasks = tasks;
    }

    pub(super) fn seen(&self) -> Seen {
        Seen { claims: self.claims.subscribe(), leaders: self.leaders.subscribe() }
    }
}

/// Shows each object that is told; one that has gone unseen while the watch was away, as it was last.
async fn follow<K>(api: Api<K>, recorder: Recorder, mut see: impl FnMut(&K, bool))
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let (mut known, mut listed): (HashMap<String, K>, HashMap<String, K>) = Default::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                recorder.note(Event::Listed { kind: K::kind(&()).into_owned() });
                listed.clear();
            }
            Ok(watcher::Event::InitApply(object)) => {
                see(&object, false);
                listed.insert(object.uid().unwrap_or_default(), object);
            }
            Ok(watcher::Event::InitDone) => {
                let gone = known.iter().filter(|(uid, _)| !listed.contains_key(*uid));
                gone.for_each(|(_, object)| see(object, true));
                known = std::mem::take(&mut listed);
            }
            Ok(watcher::Event::Apply(object)) => {
                see(&object, false);
                known.insert(object.uid().unwrap_or_default(), object);
            }
            Ok(watcher::Event::Delete(object)) => {
                see(&object, true);
                known.remove(&object.uid().unwrap_or_default());
            }
            Err(error) => drop(error),
        }
    }
}

fn version<K: Resource>(object: &K) -> Version {
    object.meta().resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

fn published(lock: &DistributedLock) -> Event {
    let status = lock.status.clone().unwrap_or_default();
    let shown = status.holders.into_iter().map(|holder| Shown {
        id: holder.id,
        token: holder.fencing_token,
        expires: from_wall_clock(holder.expire_time.0),
    });
    let lock_uid = lock.uid().unwrap_or_default();
    let leaders = lock.leaders().iter().map(|leader| Remembered {
        id: public_id(&format!("{lock_uid}.{}.{}", leader.pod_uid, leader.attempt)),
        pod_uid: leader.pod_uid.clone(),
        token: leader.fencing_token,
        releasing: leader.releasing,
    });
    Event::Published {
        lock: lock.name_any(),
        version: version(lock),
        holders: shown.collect(),
        expires: status.expire_time.map(|at| from_wall_clock(at.0)),
        leaders: leaders.collect(),
    }
}

/// How far a claim is, and if its status says that it waits: the lock at which it does. Those of lower names it has then.
fn stage(claim: &LockClaim) -> (Stage, Option<String>) {
    let conditions = claim.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let held = condition::get(conditions, types::HELD);
    let reason = held.map(|held| held.reason.as_str()).unwrap_or_default();
    let stage = match reason {
        _ if condition::is_true(conditions, types::FINISHED) => Stage::Finished,
        _ if condition::is_true(conditions, types::HELD) => Stage::Told,
        reasons::GRANTED => Stage::Granted,
        reasons::RELEASING => Stage::Releasing,
        _ => Stage::Waiting,
    };
    let said = held.and_then(|held| held.message.rsplit_once(" at ")).map(|(_, lock)| lock.to_owned());
    let waits_at =
        said.or_else(|| claim.spec.locks.first().filter(|_| claim.spec.locks.len() == 1).map(|lock| lock.name.clone()));
    (stage, waits_at.filter(|_| reason == reasons::WAITING))
}

fn see_claim(recorder: &Recorder, seen: &watch::Sender<HashMap<String, Claim>>, claim: &LockClaim, gone: bool) {
    if gone {
        seen.send_modify(|claims| drop(claims.remove(&claim.name_any())));
        return;
    }
    let status = claim.status.clone().unwrap_or_default();
    let (uid, attempt) = (claim.uid().unwrap_or_default(), status.attempt.unwrap_or(1));
    let id = public_id(&status.holder_id.unwrap_or_else(|| format!("{uid}.{attempt}")));
    let (stage, waits_at) = stage(claim);
    let tokens: HashMap<_, _> = status.locks.into_iter().map(|lock| (lock.name, lock.fencing_token)).collect();
    let (name, version) = (claim.name_any(), version(claim));
    for lock in claim.spec.locks.iter().map(|lock| &lock.name) {
        // Another attempt says that it waits before it has a place.
        if attempt == 1 && waits_at.as_ref().is_some_and(|at| lock <= at) {
            recorder.note(Event::Queued { lock: lock.clone(), id: id.clone() });
        }
        let (lock, claim, token) = (lock.clone(), name.clone(), tokens.get(lock).copied());
        recorder.note(Event::Claimed { lock, claim, version, id: id.clone(), stage, token });
    }
    seen.send_modify(|claims| drop(claims.insert(name, Claim { stage, id, tokens })));
}

fn see_pod(
    recorder: &Recorder,
    seen: &watch::Sender<HashMap<String, Leader>>,
    versions: &mut HashMap<String, Version>,
    pod: &Pod,
    gone: bool,
) {
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    let leads = !gone && pod.labels().get(ROLE_LABEL).is_some_and(|role| role == LEADER);
    let token = pod.annotations().get(FENCING_TOKEN).and_then(|token| token.parse().ok()).filter(|_| leads);
    let lock = pod.annotations().get(ELECTED_BY).cloned().unwrap_or_else(|| ELECTED.to_owned());
    let last = versions.get(&uid).copied().unwrap_or_default();
    // One that was seen to be gone by a list alone has another version than it had last.
    let version = if gone { version(pod).max(last + 1) } else { version(pod) };
    versions.insert(uid.clone(), version);
    recorder.note(Event::Marked { lock, pod_uid: uid.clone(), version, leads, token });
    seen.send_modify(|leaders| {
        match token {
            Some(token) => drop(leaders.insert(name.clone(), Leader { name, uid, token })),
            None if leaders.get(&name).is_some_and(|leader| leader.uid == uid) => drop(leaders.remove(&name)),
            None => {}
        };
    });
}

/// Reads the records again and again.
async fn poll(store: Store, namespace: String, recorder: Recorder, locks: Vec<&'static str>) {
    loop {
        for lock in &locks {
            let key = LockKey::new(&namespace, lock).expect("a name");
            let sent = boottime();
            if let Ok(Some(record)) = store.inspect(&key).await {
                let holds = record.holds.iter().map(|hold| Shown {
                    id: public_id(hold.id.as_str()),
                    token: hold.token.get(),
                    expires: from_server(hold.expires),
                });
                let (lock, holds) = ((*lock).to_owned(), holds.collect());
                recorder.note(Event::Record { lock, sent, open: record.gate_open, holds });
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A time of Redis, which runs on this machine.
fn from_server(millis: i64) -> Micros {
    from_wall_clock(Timestamp::from_millisecond(millis).unwrap_or_default())
}
