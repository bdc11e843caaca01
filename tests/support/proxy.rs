//! A TCP proxy before one server, with faults. What it does can be counted, so that a test can prove that its fault struck.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener as Listener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{LIMIT, free_port, listen_on};

/// Requests and answers longer than this come in parts.
const PART: usize = 64 * 1024;

/// What is wrong now. A connection belongs to the generation in which it was accepted.
#[derive(Debug, Clone, Default)]
struct Faults {
    target: u16,
    generation: u64,
    refuse: bool,
    hold: bool,
    keep: bool,
    delay: Duration,
}

/// How many bytes and connections. What was read from the server and is neither delivered nor dropped is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Passed {
    /// Connections accepted.
    pub(crate) accepted: u64,
    /// Connections that the proxy has ended.
    pub(crate) cut: u64,
    /// Bytes of clients, passed to the server.
    pub(crate) to_server: u64,
    /// Bytes that the server has answered.
    pub(crate) from_server: u64,
    /// Those of them that clients were given.
    pub(crate) to_client: u64,
    /// Those of them that were swallowed.
    pub(crate) dropped: u64,
}

#[derive(Default)]
struct Counters {
    accepted: AtomicU64,
    cut: AtomicU64,
    to_server: AtomicU64,
    from_server: AtomicU64,
    to_client: AtomicU64,
    dropped: AtomicU64,
}

fn add(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::SeqCst);
}

struct Shared {
    faults: watch::Sender<Faults>,
    listening: watch::Sender<bool>,
    counters: Counters,
    drops: AtomicU64,
    aim: Mutex<Aim>,
}

/// Which requests are meant.
#[derive(Default)]
struct Aim {
    number: u64,
    word: Vec<u8>,
    last: Option<Vec<u8>>,
}

/// In a connection that has not asked what is aimed at.
const NEVER: u64 = u64::MAX;

/// A proxy, and its port for as long as this lives. It runs on a thread of its own: a test that blocks stops no bytes.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Before the server on this port.
    pub(crate) fn start(target: u16) -> Self {
        let port = free_port();
        let (faults, seen) = watch::channel(Faults { target, ..Faults::default() });
        let shared = Arc::new(Shared {
            faults,
            listening: watch::channel(true).0,
            counters: Counters::default(),
            drops: AtomicU64::default(),
            aim: Mutex::default(),
        });
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        runtime.spawn(listen(shared.clone(), seen, port, listen_on(port)));
        Self { shared, port, runtime: Some(runtime) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// New connections go to this port; those that are there are cut.
    pub(crate) fn point_at(&self, target: u16) {
        self.shared.faults.send_modify(|faults| (faults.target, faults.generation) = (target, faults.generation + 1));
    }

    /// Ends all connections, whatever is on its way in them. New ones are accepted.
    pub(crate) fn cut(&self) {
        self.shared.faults.send_modify(|faults| faults.generation += 1);
    }

    /// Refuses new connections, or accepts them again; when it returns, it does.
    pub(crate) async fn refuse(&self, refuse: bool) {
        self.shared.faults.send_modify(|faults| faults.refuse = refuse);
        let mut listening = self.shared.listening.subscribe();
        let heeded = listening.wait_for(|listening| *listening != refuse);
        tokio::time::timeout(LIMIT, heeded).await.expect("it listens or not").expect("it runs");
    }

    /// Keeps the server's answers back, or delivers them, in their order.
    pub(crate) fn hold_replies(&self, hold: bool) {
        self.shared.faults.send_modify(|faults| faults.hold = hold);
    }

    /// Keeps back what clients send, too, or passes it on: as a network that drops all packets.
    pub(crate) fn silence(&self, silent: bool) {
        self.shared.faults.send_modify(|faults| (faults.hold, faults.keep) = (silent, silent));
    }

    /// Delivers each answer so much later.
    pub(crate) fn delay_replies(&self, delay: Duration) {
        self.shared.faults.send_modify(|faults| faults.delay = delay);
    }

    /// Swallows the next so many answers, each with all that follows in its connection, which is cut. The server has
    /// done what it was asked.
    pub(crate) fn drop_replies(&self, count: u64) {
        self.shared.drops.store(count, Ordering::SeqCst);
    }

    /// Only answers in connections that have asked with this word since are dropped, and only such a request is
    /// repeated. Empty: all.
    pub(crate) fn aim_at(&self, word: &str) {
        let mut aim = self.shared.aim();
        *aim = Aim { number: aim.number + 1, word: word.as_bytes().to_vec(), last: None };
    }

    /// Sends the last request that was passed on to the server once more, in a connection of its own, as a network may
    /// do that delivers late; with all that was sent together with it. What the server answers.
    pub(crate) async fn repeat_request(&self) -> Vec<u8> {
        let request = self.shared.aim().last.clone().expect("such a request was passed on");
        let target = self.shared.faults.borrow().target;
        let asking = async {
            let mut server = TcpStream::connect(("127.0.0.1", target)).await?;
            server.write_all(&request).await?;
            let mut answer = vec![0; PART];
            let length = server.read(&mut answer).await?;
            answer.truncate(length);
            Ok::<_, std::io::Error>(answer)
        };
        tokio::time::timeout(LIMIT, asking).await.expect("an answer in time").expect("an answer")
    }

    /// What has passed so far.
    pub(crate) fn passed(&self) -> Passed {
        let Counters { accepted, cut, to_server, from_server, to_client, dropped } = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Passed {
            accepted: read(accepted),
            cut: read(cut),
            to_server: read(to_server),
            from_server: read(from_server),
            to_client: read(to_client),
            dropped: read(dropped),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Accepts while nothing is refused. A port without a listener refuses.
async fn listen(shared: Arc<Shared>, mut faults: watch::Receiver<Faults>, port: u16, first: TcpListener) {
    let mut listener = Some(first);
    loop {
        let bound = Listener::from_std(listener.take().unwrap_or_else(|| listen_on(port))).expect("a listener");
        shared.listening.send_replace(true);
        let mut refuses = faults.clone();
        tokio::select! {
            () = accept(&shared, &faults, &bound) => {}
            refuses = refuses.wait_for(|faults| faults.refuse) => if refuses.is_err() { return },
        }
        drop(bound);
        shared.listening.send_replace(false);
        if faults.wait_for(|faults| !faults.refuse).await.is_err() {
            return;
        }
    }
}

async fn accept(shared: &Arc<Shared>, faults: &watch::Receiver<Faults>, listener: &Listener) {
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        add(&shared.counters.accepted, 1);
        let Faults { target, generation, .. } = faults.borrow().clone();
        let (shared, mut ends) = (shared.clone(), faults.clone());
        tokio::spawn(async move {
            // Counted before the client can know.
            let cut = async {
                ends.wait_for(|faults| faults.generation != generation).await.ok();
                add(&shared.counters.cut, 1);
            };
            tokio::select! {
                () = connection(&shared, client, target) => {}
                () = cut => {}
            }
        });
    }
}

/// Passes bytes both ways until either side ends, or a fault.
async fn connection(shared: &Shared, client: TcpStream, target: u16) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (answers, read) = mpsc::unbounded_channel();
    let asked = AtomicU64::new(NEVER);
    tokio::select! {
        () = pass_requests(shared, from_client, to_server, &asked) => {}
        () = read_answers(shared, from_server, answers) => {}
        () = deliver(shared, read, to_client, &asked) => {}
    }
}

async fn part(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut bytes = vec![0; PART];
    let length = from.read(&mut bytes).await.ok().filter(|length| *length > 0)?;
    bytes.truncate(length);
    Some(bytes)
}

async fn pass_requests(shared: &Shared, mut client: OwnedReadHalf, mut server: OwnedWriteHalf, asked: &AtomicU64) {
    let mut faults = shared.faults.subscribe();
    while let Some(request) = part(&mut client).await {
        if faults.wait_for(|faults| !faults.keep).await.is_err() {
            return;
        }
        shared.note(&request, asked);
        add(&shared.counters.to_server, request.len());
        if server.write_all(&request).await.is_err() {
            return;
        }
    }
}

/// A server that ends its connection is followed once what it has answered is delivered: never while answers are kept.
async fn read_answers(shared: &Shared, mut server: OwnedReadHalf, answers: mpsc::UnboundedSender<(Instant, Vec<u8>)>) {
    while let Some(answer) = part(&mut server).await {
        add(&shared.counters.from_server, answer.len());
        if answers.send((Instant::now(), answer)).is_err() {
            return;
        }
    }
    drop(answers);
    std::future::pending().await
}

async fn deliver(
    shared: &Shared,
    mut answers: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>,
    mut client: OwnedWriteHalf,
    asked: &AtomicU64,
) {
    let mut faults = shared.faults.subscribe();
    while let Some((at, answer)) = answers.recv().await {
        let delay = faults.borrow().delay;
        tokio::time::sleep_until(at + delay).await;
        if faults.wait_for(|faults| !faults.hold).await.is_err() {
            return;
        }
        if shared.drops(asked) {
            add(&shared.counters.dropped, answer.len());
            add(&shared.counters.cut, 1);
            return;
        }
        add(&shared.counters.to_client, answer.len());
        if client.write_all(&answer).await.is_err() {
            return;
        }
    }
}

impl Shared {
    fn aim(&self) -> MutexGuard<'_, Aim> {
        self.aim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request of a connection, if it is one that is aimed at.
    fn note(&self, request: &[u8], asked: &AtomicU64) {
        let mut aim = self.aim();
        if aim.word.is_empty() || request.windows(aim.word.len()).any(|part| part == aim.word) {
            aim.last = Some(request.to_vec());
            asked.store(aim.number, Ordering::SeqCst);
        }
    }

    /// Takes one of the answers that are to be dropped, for a connection that has asked what is aimed at.
    fn drops(&self, asked: &AtomicU64) -> bool {
        let aimed_at = asked.load(Ordering::SeqCst) == self.aim().number;
        let take = |drops: u64| drops.checked_sub(1);
        aimed_at && self.drops.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }
}
