//! A declared lock, and commands that run under it.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use leasehold::keeper::{Hold, Options, Wait};
use leasehold::lease::{Epoch, LockKey};
use leasehold::store::{Endpoint, LIBRARY_SOURCE, Store};
use tokio::task::JoinHandle;

use crate::protocol::fixture::{Declared, provision};
use crate::protocol::server::PREFIX;
use crate::support::{Process, Proxy, Scratch, eventually, wait_for};

/// Where no control group can be made: the guardian has to do all by itself.
const NO_CGROUP: &str = "/proc/none";
/// For what comes by itself.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A lock with this lease, and a proxy before its Redis.
pub(crate) struct Scene {
    pub(crate) declared: Declared,
    pub(crate) proxy: Proxy,
}

impl Scene {
    pub(crate) async fn with_lease(lease: Duration) -> Self {
        let declared = Declared::with(&provision(1, lease)).await;
        let proxy = Proxy::start(declared.server.endpoint().port);
        Self { declared, proxy }
    }

    /// A lock whose lease ends in no test.
    pub(crate) async fn new() -> Self {
        Self::with_lease(Duration::from_secs(60)).await
    }

    pub(crate) fn store(&self) -> Store {
        self.declared.server.store()
    }

    pub(crate) async fn declare(&self, name: &str) {
        let (lock, lease) = (LockKey::new("shop", name).unwrap(), Duration::from_secs(60));
        self.declared.control.provision(&lock, &provision(1, lease)).await.unwrap().unwrap();
    }

    /// Runs a shell script under the lock.
    pub(crate) fn run(&self, flags: &str, script: &str) -> Run {
        self.run_command(flags, &["sh", "-c", script])
    }

    pub(crate) fn run_command(&self, flags: &str, command: &[&str]) -> Run {
        let flags = format!("--cgroup={NO_CGROUP} {flags}");
        Run::start(&self.proxy.address(), &flags, command)
    }

    /// Holds the lock from this process.
    pub(crate) async fn hold(&self) -> Hold {
        self.next(SOON).await
    }

    /// The next hold of the lock, by a holder that waits for it.
    pub(crate) async fn next(&self, limit: Duration) -> Hold {
        let lock = self.store().lock(self.declared.lock.clone());
        lock.acquire(Options { wait: Wait::For(limit), ..Options::named("next") }).await.expect("it is granted")
    }

    /// As [`Scene::next`], by one that waits from now on; and when it was granted.
    pub(crate) async fn waiting(&self) -> JoinHandle<(Hold, Instant)> {
        let lock = self.store().lock(self.declared.lock.clone());
        let next = tokio::spawn(async move {
            let options = Options { wait: Wait::For(2 * SOON), ..Options::named("next") };
            let hold = lock.acquire(options).await.expect("it is granted");
            (hold, Instant::now())
        });
        self.is_queued().await;
        next
    }

    /// What a controller does for a process that has started empty, after the locks' longest lease.
    pub(crate) async fn open_again(&self, lease: Duration) {
        tokio::time::sleep(lease).await;
        self.store().load_library(LIBRARY_SOURCE).await.unwrap();
        let connected = async || self.declared.store.inspect(&self.declared.lock).await.ok();
        wait_for("the connection is made anew", SOON, connected).await;
        self.declared.open(Epoch::new(2).unwrap()).await;
        self.declared.provision(&provision(1, lease)).await;
    }

    pub(crate) async fn waiters(&self) -> usize {
        self.declared.store.inspect(&self.declared.lock).await.unwrap().unwrap().waiters.len()
    }

    pub(crate) async fn holders(&self) -> usize {
        self.declared.store.inspect(&self.declared.lock).await.unwrap().unwrap().holds.len()
    }

    pub(crate) async fn is_queued(&self) {
        wait_for("it waits", SOON, async || (self.waiters().await == 1).then_some(())).await;
    }
}

/// A running `leasehold run`. Its command finds the folder for its files in `$T`.
pub(crate) struct Run {
    pub(crate) process: Process,
    scratch: Scratch,
}

impl Run {
    pub(crate) fn start(redis: &str, flags: &str, command: &[&str]) -> Self {
        Self::start_with(&format!("--redis-url=redis://{redis}"), flags, command)
    }

    pub(crate) fn start_with(connection: &str, flags: &str, command: &[&str]) -> Self {
        let scratch = Scratch::new("run");
        std::fs::write(scratch.path().join("input"), "from stdin\n").unwrap();
        let locks = if flags.contains("--lock") { "" } else { "--lock=report" };
        let own = format!("run {connection} --namespace=shop --key-prefix={PREFIX} {locks} {flags} --");
        let args: Vec<String> =
            own.split_whitespace().map(str::to_owned).chain(command.iter().map(|word| (*word).to_owned())).collect();
        let process = Process::start(env!("CARGO_BIN_EXE_leasehold"), &args, |start| {
            start.env("T", scratch.path()).stdin(std::fs::File::open(scratch.path().join("input")).unwrap());
            start.stdout(scratch.append("out")).stderr(scratch.append("err"));
            for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LEASEHOLD_")) {
                start.env_remove(name);
            }
        });
        Self { process, scratch }
    }

    pub(crate) fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.scratch.path().join(name)).ok().filter(|text| !text.is_empty())
    }

    /// Tells the command something, by a file.
    pub(crate) fn create(&self, name: &str) {
        self.scratch.write(name, "\n");
    }

    pub(crate) fn errors(&self) -> String {
        self.read("err").unwrap_or_default()
    }

    /// Waits until the command has written that file: its text.
    pub(crate) async fn says(&self, name: &str) -> String {
        let said = eventually(SOON, async || self.read(name).filter(|text| text.ends_with('\n'))).await;
        said.unwrap_or_else(|| panic!("no {name}: {}", self.errors())).trim().to_owned()
    }

    pub(crate) async fn pid(&self, name: &str) -> Watched {
        Watched(self.says(name).await.parse().expect("a pid"))
    }

    pub(crate) async fn status(&mut self, limit: Duration) -> ExitStatus {
        let ended = eventually(limit, async || self.process.exit_status()).await;
        ended.unwrap_or_else(|| panic!("it goes on: {}", self.errors()))
    }

    pub(crate) async fn code(&mut self) -> Option<i32> {
        let status = self.status(SOON).await;
        assert_eq!(status.signal(), None, "{}", self.errors());
        status.code()
    }

    /// The process between it and its command.
    pub(crate) async fn guardian(&self) -> Watched {
        let find = async || children(self.process.pid()).first().copied();
        Watched(wait_for("the guardian", SOON, find).await)
    }

    /// The same, without a pause between two looks: it has hardly begun.
    pub(crate) fn new_guardian(&self) -> Watched {
        let begun = Instant::now();
        loop {
            if let Some(pid) = children(self.process.pid()).first() {
                return Watched(*pid);
            }
            assert!(begun.elapsed() < SOON, "no guardian: {}", self.errors());
        }
    }
}

/// The processes that this one has started and not reaped.
pub(crate) fn children(of: u32) -> Vec<u32> {
    let path = format!("/proc/{of}/task/{of}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// A process that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watched(pub(crate) u32);

impl Watched {
    /// One that is a zombie does nothing any more.
    pub(crate) fn is_alive(self) -> bool {
        self.alive().is_some()
    }

    /// Name, state, parent and so on of one that is.
    fn alive(self) -> Option<String> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        let alive = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']));
        alive.then_some(stat)
    }

    pub(crate) fn signal(self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.0).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).expect("it is there");
    }

    pub(crate) async fn ends(self, limit: Duration) {
        let gone = eventually(limit, async || (!self.is_alive()).then_some(())).await;
        assert!(gone.is_some(), "{self:?} lives on");
    }
}

/// Notes when processes are seen alive, by asking the kernel each millisecond. Who asks late says less, and nothing wrong.
pub(crate) struct Deaths(std::thread::JoinHandle<BTreeMap<u32, (Instant, String)>>);

impl Deaths {
    pub(crate) fn of(processes: &[Watched]) -> Self {
        // Not in the thread, which may begin late.
        let (processes, begun) = (processes.to_vec(), Instant::now());
        Self(std::thread::spawn(move || {
            let mut seen: BTreeMap<_, _> =
                processes.iter().map(|process| (process.0, (begun, String::new()))).collect();
            loop {
                let asked = Instant::now();
                let alive: Vec<_> = processes.iter().filter_map(|p| Some((p.0, (asked, p.alive()?)))).collect();
                if alive.is_empty() {
                    return seen;
                }
                assert!(begun.elapsed() < Duration::from_secs(60), "some live on: {alive:?}");
                seen.extend(alive);
                std::thread::sleep(Duration::from_millis(1));
            }
        }))
    }

    /// Each of so many has ended before that moment. How long before, in milliseconds.
    pub(crate) fn all_before(self, granted: Instant, count: usize) -> u128 {
        let seen = self.0.join().unwrap();
        assert_eq!(seen.len(), count);
        let (last, what) = seen.into_values().max().unwrap();
        assert!(last < granted, "one of the old tree lived {:?} beside the next holder: {what}", last - granted);
        (granted - last).as_millis()
    }
}

/// An endpoint where nobody listens.
pub(crate) fn nobody() -> Endpoint {
    Endpoint::plain("127.0.0.1", crate::support::free_port())
}
