//! The reference side of the machine: the model, and what a controller would remember.

use std::sync::Arc;
use std::time::Duration;

use leasehold::lease::{Epoch, FencingToken, HolderId, Mode, Renewed};
use leasehold::store::model::{Model, Reign};
use leasehold::store::{HoldState, Inspection, Opening, Provision, Refusal, Remembered};

use super::answers::{Answer, STORE, Step, process};
use super::invariants::{Checker, Seen};

/// Processes there are for one sequence.
pub(crate) const PROCESSES: usize = 4;

/// When sequences begin, in milliseconds since 1970.
const START: i64 = 1_764_000_000_000;

/// How a sequence begins.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The first epoch.
    pub(crate) epoch: Epoch,
    /// So many tokens are left of it; `None`: all.
    pub(crate) tokens_left: Option<i64>,
    /// Whether it begins with heartbeat, open and provision.
    pub(crate) guided: bool,
    pub(crate) permits: u32,
    pub(crate) lease: Duration,
}

/// The state after some steps.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) model: Model,
    /// What the model answered to the last step.
    pub(crate) answer: Answer,
    pub(crate) steps: usize,
    pub(crate) next_id: usize,
    pub(crate) restarts: usize,
    promotions: usize,
    pub(crate) term: i64,
    /// The highest epoch of any opening, successful or not.
    pub(crate) epoch: Epoch,
    pub(crate) generation: i64,
    /// The delegated holds that etcd remembers.
    pub(crate) remembered: Arc<Vec<Remembered>>,
    pub(crate) checker: Checker,
    /// The last controller's call found another install.
    pub(crate) taken: bool,
}

/// The `n`th id of a sequence.
pub(crate) fn id(n: usize) -> HolderId {
    HolderId::new(format!("{n:04}")).expect("digits are an id")
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            model: Model::new(START, process(0, 0)),
            answer: Answer::None,
            steps: 0,
            next_id: 0,
            restarts: 0,
            promotions: 0,
            term: 1,
            epoch: plan.epoch,
            generation: 1,
            remembered: Arc::default(),
            checker: Checker::default(),
            taken: false,
            plan,
        }
    }

    pub(crate) fn reign(&self) -> Reign {
        Reign { uid: STORE.to_owned(), term: self.term }
    }

    /// An opening of the process that runs.
    pub(crate) fn opening(&self, epoch: Epoch) -> Opening {
        let (run_id, replid) = self.model.process.clone();
        Opening { run_id, replid, epoch }
    }

    pub(crate) fn token_floor(&self) -> i64 {
        match self.plan.tokens_left {
            Some(left) if self.checker.highest() == 0 => self.plan.epoch.ceiling() - 1 - left,
            _ => self.checker.highest(),
        }
    }

    /// What a sequence begins with.
    pub(crate) fn beginning(&self) -> Option<Step> {
        match self.steps {
            _ if !self.plan.guided => None,
            0 => Some(Step::Heartbeat(self.reign(), 0)),
            1 => Some(Step::Open(self.reign(), self.opening(self.plan.epoch))),
            2 => Some(Step::Provision(self.reign(), self.first_provision())),
            _ => None,
        }
    }

    fn first_provision(&self) -> Provision {
        Provision { token_floor: self.token_floor(), ..Provision::new("lock-1", self.plan.permits, self.plan.lease) }
    }

    /// Takes a step on the model, and notes what the real store must answer and show.
    pub(crate) fn take(mut self, step: &Step) -> Self {
        let before = self.model.inspect();
        self.note(step);
        self.answer = step.on(&mut self.model, self.restarts, self.promotions);
        let after = self.model.inspect();
        self.remember(step);
        let (before, after, now) = (before.as_ref(), after.as_ref(), self.model.now);
        self.checker.observe(&Seen { step, answer: &self.answer, before, after, now });
        self
    }

    fn note(&mut self, step: &Step) {
        self.steps += 1;
        match step {
            Step::Restart => (self.restarts, self.promotions) = (self.restarts + 1, 0),
            Step::Promoted => self.promotions += 1,
            Step::Acquire(request) | Step::Claim(_, request) | Step::Reserve(_, request) => self.used(&request.id),
            Step::Cancel(id) | Step::Release(id) | Step::Free(_, _, Some(id)) => self.used(id),
            Step::CancelMany(ids) => ids.iter().for_each(|id| self.used(id)),
            Step::Heartbeat(reign, _) if reign.uid == STORE => self.term = self.term.max(reign.term),
            Step::Open(reign, opening) if reign.uid == STORE => {
                self.term = self.term.max(reign.term);
                self.epoch = self.epoch.max(opening.epoch);
            }
            Step::Provision(_, provision) | Step::Restore(_, provision, _) => {
                self.generation = self.generation.max(provision.generation);
                provision.holds.iter().for_each(|hold| self.used(&hold.id));
                provision.waiters.iter().for_each(|place| self.used(&place.request.id));
            }
            _ => {}
        }
    }

    fn used(&mut self, id: &HolderId) {
        let number: usize = id.as_str().parse().expect("ids are numbers");
        self.next_id = self.next_id.max(number + 1);
    }

    /// What etcd would be told of this step.
    fn remember(&mut self, step: &Step) {
        match (step, &self.answer) {
            (Step::Pin(_, id, _), Answer::Pinned(Ok(Renewed::Held(_)))) => self.write_down(id),
            (Step::Free(_, id, _), Answer::Freed(Ok(()))) => {
                Arc::make_mut(&mut self.remembered).retain(|known| known.id != *id);
            }
            (Step::Provision(_, p), Answer::Provisioned(Ok(_))) | (Step::Restore(_, p, _), Answer::Restored(Ok(_))) => {
                p.holds.iter().for_each(|hold| self.write_down(&hold.id));
            }
            _ => {}
        }
        let refusal = match &self.answer {
            Answer::Heartbeat(Err(refusal)) | Answer::Opened(Err(refusal)) | Answer::Claimed(Err(refusal)) => refusal,
            Answer::Heartbeat(Ok(_)) => return self.taken = false,
            _ => return,
        };
        self.taken = matches!(refusal, Refusal::StoreInUse(owner) if owner != STORE);
    }

    fn write_down(&mut self, id: &HolderId) {
        let record = self.model.inspect();
        let Some(hold) = record.and_then(|record| record.holds.into_iter().find(|hold| hold.id == *id)) else { return };
        let remembered = Arc::make_mut(&mut self.remembered);
        remembered.retain(|known| known.id != *id);
        let (id, token, mode) = (hold.id, hold.token, hold.mode);
        remembered.push(Remembered { id, token, mode, identity: hold.identity, pod_uid: hold.pod_uid });
    }

    /// A delegated hold with a token of its own, that no record has seen.
    pub(crate) fn invented(&self) -> Option<Remembered> {
        let token = (self.epoch.get() << 32) + (1 << 20) + i64::try_from(self.next_id).expect("few ids");
        let token = FencingToken::new(token)?;
        let (id, identity) = (id(self.next_id), "lost".to_owned());
        Some(Remembered { id, token, mode: Mode::Counted(1), identity, pod_uid: None })
    }

    /// Ids that mean something now, and one that doesn't, each with a weight and the mode it holds in.
    pub(crate) fn known_ids(&self, record: Option<&Inspection>) -> Vec<(u32, (HolderId, Mode))> {
        let holds = record.iter().flat_map(|record| &record.holds);
        let held =
            holds.map(|hold| (if hold.state == HoldState::Pinned { 3 } else { 5 }, (hold.id.clone(), hold.mode)));
        let waiting = self.model.waiting().into_iter().map(|request| (2, (request.id, request.mode)));
        let recent = self.model.finished(4).into_iter().map(|id| (2, (id, Mode::Counted(1))));
        held.chain(waiting).chain(recent).chain([(1, (id(self.next_id), Mode::Counted(1)))]).collect()
    }
}
