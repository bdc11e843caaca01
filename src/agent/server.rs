//! What the containers of the pod may ask.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::{Stream, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot};

use super::ask::Asker;
use super::contend::Told;
use super::events::{Story, What};
use crate::clock::boottime;
use crate::keeper::{Lock, Standing};

/// How long it is remembered who leads, where it isn't this pod.
const REMEMBERED: Duration = Duration::from_secs(1);
/// How long the store may take to say who leads.
const ANSWER: Duration = Duration::from_millis(500);

#[derive(Clone)]
struct Shared {
    lock: Lock,
    /// The identity of this pod.
    own: String,
    told: Told,
    /// Distinguishes the events of this process from those of one before.
    life: u64,
    leader: Arc<Mutex<Option<(Instant, String)>>>,
}

/// Serves until the listener fails.
pub(super) async fn serve(listener: TcpListener, lock: Lock, own: String, told: Told) -> std::io::Result<()> {
    let life = u64::try_from(boottime().as_micros()).unwrap_or_default();
    let routes = Router::new()
        .route("/", get(name))
        .route("/v1/hold", get(hold))
        .route("/v1/events", get(events))
        .route("/v1/release", post(release))
        .route("/started", get(started))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(Shared { lock, own, told, life, leader: Arc::default() });
    axum::serve(listener, routes).await
}

/// Asks an agent on this machine: whether that answers 2xx.
pub async fn probe(address: SocketAddr, path: &str) -> bool {
    match format!("http://{address}{path}").parse() {
        Ok(uri) => Asker::new().says_yes(uri).await,
        Err(_) => false,
    }
}

fn json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

impl Shared {
    fn story(&self) -> Story {
        self.told.story.borrow().clone()
    }

    /// Who leads: this pod, or the first holder as the store has it. A pod by its bare name; nobody where it isn't known.
    async fn leader(&self) -> String {
        if self.story().held(boottime()).is_some() {
            return bare(&self.own);
        }
        let mut known = self.leader.lock().await;
        if let Some((_, name)) = known.as_ref().filter(|(asked, _)| asked.elapsed() < REMEMBERED) {
            return name.clone();
        }
        let holders = tokio::time::timeout(ANSWER, self.lock.holders()).await;
        let first = holders.ok().and_then(Result::ok).and_then(|holders| holders.into_iter().next());
        // This pod's own hold that isn't believed any more, or not yet, is nobody's.
        let name = first.filter(|name| *name != self.own).map(|name| bare(&name)).unwrap_or_default();
        *known = Some((Instant::now(), name.clone()));
        name
    }
}

fn bare(identity: &str) -> String {
    identity.strip_prefix("pod/").unwrap_or(identity).to_owned()
}

async fn name(State(shared): State<Shared>) -> Response {
    json(&json!({ "name": shared.leader().await }))
}

async fn hold(State(shared): State<Shared>) -> Response {
    let leader = shared.leader().await;
    // After that: it may have asked the store, and taken its time.
    let now = boottime();
    let tenure = shared.story().held(now);
    let milliseconds = |left: Duration| u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    json(&json!({
        "lock": shared.lock.key().to_string(),
        "held": tenure.is_some(),
        "jeopardy": tenure.is_some_and(|tenure| tenure.standing == Standing::Jeopardy),
        "fencingToken": tenure.map(|tenure| tenure.token.get()),
        "remainingMilliseconds": milliseconds(tenure.map(|tenure| tenure.remaining(now)).unwrap_or_default()),
        "stopInMilliseconds": milliseconds(tenure.map(|t| t.stop_at.saturating_sub(now)).unwrap_or_default()),
        "holder": if tenure.is_some() { bare(&shared.own) } else { leader },
    }))
}

async fn started(State(shared): State<Shared>) -> Response {
    if shared.story().held(boottime()).is_some() {
        "held".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not held").into_response()
    }
}

async fn release(State(shared): State<Shared>) -> Response {
    let (whom, released) = oneshot::channel();
    let held = shared.story().held(boottime()).is_some();
    let asked = held && shared.told.release.send(whom).is_ok();
    json(&json!({ "released": asked && released.await.unwrap_or(false) }))
}

async fn events(
    State(shared): State<Shared>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).and_then(|id| {
        let (life, number) = id.split_once('-')?;
        (life.parse() == Ok(shared.life)).then(|| number.parse().ok()).flatten()
    });
    let (life, lock) = (shared.life, shared.lock.key().to_string());
    let mut story = shared.told.story;
    let first: Vec<(u64, What)> = story.borrow_and_update().after(last).collect();
    let listening = (story, last, first.into_iter());
    let told = stream::unfold(listening, move |(mut story, mut last, mut next)| {
        let lock = lock.clone();
        async move {
            loop {
                if let Some((number, what)) = next.next() {
                    last = Some(number);
                    if story.borrow().is_over((number, what), boottime()) {
                        continue;
                    }
                    let data = json!({ "lock": lock, "fencingToken": what.token().map(|token| token.get()) });
                    let event =
                        Event::default().id(format!("{life}-{number}")).event(what.name()).data(data.to_string());
                    return Some((Ok(event), (story, last, next)));
                }
                // The contender is gone, and the process ends.
                story.changed().await.ok()?;
                let more: Vec<(u64, What)> = story.borrow_and_update().after(last).collect();
                last = more.last().map(|(number, _)| *number).or(last);
                next = more.into_iter();
            }
        }
    });
    Sse::new(told).keep_alive(KeepAlive::default())
}
