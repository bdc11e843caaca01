//! The real side of the machine: typed calls to a redis-server whose clock is the test's.

use std::cell::RefCell;
use std::collections::HashMap;

use leasehold::lease::{HolderId, LockKey, Mode, Released, Request};
use leasehold::store::model::Reign;
use leasehold::store::{Control, Inspection, LIBRARY_SOURCE, Opening, Store, StoreError, Waiter};
use proptest::strategy::BoxedStrategy;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use tokio::runtime::Runtime;

use super::answers::{Answer, Step, Tally, process, same};
use super::server::{PREFIX, Server};
use super::strategy;
use super::world::World;

const CLOCK: &str = "
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
";
const TEST_CLOCK: &str = "
local test_now = 0
local function now_ms() return test_now end
redis.register_function{function_name = 'leasehold1_test_clock', flags = {'no-writes'},
  callback = function(_, args) test_now = tonumber(args[1]) end}
";

/// `source` with one piece of it replaced; it must be there exactly once.
pub(crate) fn patched(source: &str, piece: &str, by: &str) -> String {
    assert_eq!(source.matches(piece).count(), 1, "the library has once {piece}");
    source.replace(piece, by)
}

/// The library with its clock in the test's hand: no key is used for it, so that FLUSHALL leaves it alone.
pub(crate) fn library_with_test_clock() -> String {
    patched(LIBRARY_SOURCE, CLOCK, TEST_CLOCK)
}

struct Process {
    server: Server,
    store: Store,
    run_id: String,
}

/// The servers of a test, its library, and what was counted; one for each test's thread.
pub(crate) struct Rig {
    runtime: Runtime,
    source: String,
    processes: Vec<Process>,
    pub(crate) tally: Tally,
    pub(crate) sequences: u64,
    pub(crate) recoveries: u64,
}

thread_local! {
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

/// Makes ready for a run of the machine with this library on this thread.
pub(crate) fn set_up(source: String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (processes, tally) = (Vec::new(), Tally::default());
    RIG.set(Some(Rig { runtime, source, processes, tally, sequences: 0, recoveries: 0 }));
}

/// Ends the servers of this thread and gives what was counted.
pub(crate) fn tear_down() -> Rig {
    let mut rig = RIG.take().expect("it was set up");
    rig.processes.clear();
    rig
}

fn with<T>(act: impl FnOnce(&mut Rig) -> T) -> T {
    RIG.with_borrow_mut(|rig| act(rig.as_mut().expect("the rig was set up on this thread")))
}

impl Rig {
    /// Makes the `index`th process one that has just started, without data.
    fn start(&mut self, index: usize, now: i64) -> String {
        self.runtime.block_on(async {
            if index == self.processes.len() {
                let server = Server::start().await;
                let (store, run_id) = (server.store(), server.info("run_id").await);
                self.processes.push(Process { server, store, run_id });
            }
            let process = &self.processes[index];
            let () = process.server.send("FLUSHALL").await;
            process.load(&self.source, now).await;
            process.server.info("master_replid").await
        })
    }
}

impl Process {
    async fn load(&self, source: &str, now: i64) {
        self.store.load_library(source).await.expect("the library loads");
        self.set_clock(now).await;
    }

    async fn set_clock(&self, now: i64) {
        let () = self.server.send(&format!("FCALL leasehold1_test_clock 0 {now}")).await;
    }
}

/// One sequence on the real store.
pub(crate) struct Machine {
    index: usize,
    /// What the model's names of data sets stand for.
    replids: HashMap<String, String>,
    lock: LockKey,
    seen: Option<Inspection>,
    waiters: Vec<Waiter>,
}

impl Machine {
    fn opening(&self, rig: &Rig, opening: &Opening) -> Opening {
        let name = |process: &str| process.strip_prefix("run-").and_then(|index| index.parse::<usize>().ok());
        let run_id = name(&opening.run_id).and_then(|index| rig.processes.get(index));
        let run_id = run_id.map_or_else(|| opening.run_id.clone(), |process| process.run_id.clone());
        let replid = self.replids.get(&opening.replid).unwrap_or(&opening.replid).clone();
        Opening { run_id, replid, epoch: opening.epoch }
    }

    /// The answer with the names of processes that the real store uses.
    fn translated(&self, rig: &Rig, answer: &Answer) -> Answer {
        match answer {
            Answer::Heartbeat(Ok(beat)) => {
                let (run_id, replid) = (beat.run_id.clone(), beat.replid.clone());
                let Opening { run_id, replid, .. } = self.opening(rig, &Opening { run_id, replid, epoch: beat.epoch });
                Answer::Heartbeat(Ok(leasehold::store::Heartbeat { run_id, replid, ..beat.clone() }))
            }
            other => other.clone(),
        }
    }

    async fn renew(&self, store: &Store, ids: &[HolderId]) -> Result<Answer, StoreError> {
        let mut holds: Vec<(LockKey, HolderId)> = ids.iter().map(|id| (self.lock.clone(), id.clone())).collect();
        if let [_, .., last] = ids {
            let undeclared = LockKey::new("shop", "undeclared").expect("a name");
            holds.push((undeclared, last.clone()));
        }
        store.renew(&holds).await.map(Answer::Renewed)
    }

    async fn call(&self, rig: &Rig, step: &Step) -> Result<Answer, StoreError> {
        let (store, lock) = (&rig.processes[self.index].store, &self.lock);
        let control = |reign: &Reign| Control::new(store.clone(), reign.uid.clone(), reign.term);
        Ok(match step {
            Step::Acquire(request) => Answer::Acquired(store.acquire(lock, request).await?),
            Step::Renew(ids) => self.renew(store, ids).await?,
            Step::Release(id) => Answer::Released(store.release(lock, id).await?),
            Step::Cancel(id) => Answer::Cancelled(vec![store.cancel(lock, id).await?]),
            Step::CancelMany(ids) => {
                let all = futures::future::join_all(ids.iter().map(|id| store.cancel(lock, id))).await;
                Answer::Cancelled(all.into_iter().collect::<Result<Vec<Released>, _>>()?)
            }
            Step::Claim(reign, request) => Answer::Claimed(control(reign).claim(lock, request).await?),
            Step::Reserve(reign, request) => Answer::Reserved(control(reign).reserve(lock, request).await?),
            Step::Pin(reign, id, epoch) => Answer::Pinned(control(reign).pin(lock, id, *epoch).await?),
            Step::Free(reign, id, next) => Answer::Freed(control(reign).free(lock, id, next.as_ref()).await?),
            Step::Expire(reign) => Answer::Expired(control(reign).expire(std::slice::from_ref(lock)).await?),
            Step::Heartbeat(reign, name) => {
                Answer::Heartbeat(control(reign).heartbeat(&name.to_string(), reign.term).await?)
            }
            Step::Open(reign, to) => Answer::Opened(control(reign).open(&self.opening(rig, to)).await?),
            Step::Close(reign) => Answer::Closed(control(reign).close().await?),
            Step::Leave(reign) => Answer::Left(control(reign).leave().await?),
            Step::Provision(reign, provision) => Answer::Provisioned(control(reign).provision(lock, provision).await?),
            Step::Restore(reign, provision, to) => {
                Answer::Restored(control(reign).restore(lock, provision, &self.opening(rig, to)).await?)
            }
            Step::Seal(reign, uid) => Answer::Sealed(control(reign).seal(lock, uid).await?),
            Step::Purge(reign, uid) => Answer::Purged(control(reign).purge(lock, uid).await?),
            _ => Answer::None,
        })
    }

    /// What happens to the server; nothing for a call.
    fn happen(&mut self, rig: &mut Rig, step: &Step, world: &World) {
        let now = world.model.now;
        if matches!(step, Step::Restart) {
            self.index = world.restarts;
            let replid = rig.start(self.index, now);
            self.replids.insert(world.model.process.1.clone(), replid);
        }
        let process = &rig.processes[self.index];
        rig.runtime.block_on(async {
            match step {
                Step::Pass(_) => process.set_clock(now).await,
                Step::FlushAll => process.server.send("FLUSHALL").await,
                Step::LoseRecord => process.server.send(&format!("DEL {PREFIX}:{{{}}}:lock", self.lock)).await,
                Step::ReloadLibrary => process.load(&rig.source, now).await,
                Step::Promoted => {
                    let () = process.server.send("DEBUG CHANGE-REPL-ID").await;
                    process.set_clock(now).await;
                    let replid = process.server.info("master_replid").await;
                    self.replids.insert(world.model.process.1.clone(), replid);
                }
                _ => {}
            }
        });
    }

    fn step(&mut self, rig: &mut Rig, world: &World, step: &Step) {
        self.happen(rig, step, world);
        let store = rig.processes[self.index].store.clone();
        let (answer, seen, full) = rig.runtime.block_on(async {
            tokio::join!(self.call(rig, step), store.inspect(&self.lock), store.inspect_in_full(&self.lock))
        });
        let answer = answer.unwrap_or_else(|error| panic!("{step:?}: {error:?}"));
        let expected = self.translated(rig, &world.answer);
        assert!(same(&expected, &answer), "{step:?} answered {answer:?}, the model {expected:?}");
        rig.tally.count(step, &answer);
        self.seen = seen.unwrap_or_else(|error| panic!("inspection after {step:?}: {error:?}"));
        let full = full.unwrap_or_else(|error| panic!("full inspection after {step:?}: {error:?}"));
        assert_eq!(full.as_ref().map(|(seen, _)| seen), self.seen.as_ref());
        self.waiters = full.map(|(_, waiters)| waiters).unwrap_or_default();
    }
}

/// Equal tokens, where a store is driven against its rules, are shown in no order.
fn ordered(inspection: Option<Inspection>) -> Option<Inspection> {
    inspection.map(|mut inspection| {
        inspection.holds.sort_by(|a, b| (a.token, &a.id).cmp(&(b.token, &b.id)));
        inspection
    })
}

type Asked<'a> = (&'a HolderId, Mode, i32, &'a str);

fn asked(waiter: &Waiter) -> Asked<'_> {
    (&waiter.id, waiter.mode, waiter.priority, &waiter.identity)
}

fn request(request: &Request) -> Asked<'_> {
    (&request.id, request.mode, request.priority, &request.identity)
}

/// The reference side: pure.
#[derive(Debug)]
pub(crate) struct Reference;

impl ReferenceStateMachine for Reference {
    type State = World;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<World> {
        use proptest::strategy::Strategy;
        strategy::plan().prop_map(World::new).boxed()
    }

    fn transitions(world: &World) -> BoxedStrategy<Step> {
        strategy::steps(world)
    }

    fn apply(world: World, step: &Step) -> World {
        world.take(step)
    }

    fn preconditions(world: &World, step: &Step) -> bool {
        strategy::possible(world, step)
    }
}

impl StateMachineTest for Machine {
    type SystemUnderTest = Machine;
    type Reference = Reference;

    fn init_test(world: &World) -> Machine {
        let (_, data) = process(0, 0);
        let replid = with(|rig| rig.start(0, world.model.now));
        let lock = LockKey::new("shop", "report").expect("a name");
        Machine { index: 0, replids: HashMap::from([(data, replid)]), lock, seen: None, waiters: Vec::new() }
    }

    fn apply(mut machine: Machine, world: &World, step: Step) -> Machine {
        with(|rig| machine.step(rig, world, &step));
        machine
    }

    fn check_invariants(machine: &Machine, world: &World) {
        assert_eq!(ordered(machine.seen.clone()), ordered(world.model.inspect()), "the record and the model's");
        // Without a record nothing is said of those that wait.
        let waiting = machine.seen.as_ref().map(|_| world.model.waiting()).unwrap_or_default();
        assert!(
            machine.waiters.iter().map(asked).eq(waiting.iter().map(request)),
            "{:?} and {waiting:?}",
            machine.waiters
        );
        assert!(world.checker.violations.is_empty(), "{:#?}", world.checker.violations);
    }

    fn teardown(_: Machine, world: World) {
        with(|rig| {
            rig.sequences += 1;
            rig.recoveries += world.checker.recoveries;
        });
    }
}
