//! An HTTP proxy before the API server, with the faults that are not of the network: refused writes, watch events that
//! are not told. It speaks plain HTTP, and for its clients it is the user of one kubeconfig.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use futures::{Stream, StreamExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use super::{Scratch, free_port, listen_on};

/// The largest request.
const MAX_REQUEST: usize = 8 << 20;

/// What it does wrong, and how often it has.
#[derive(Default)]
struct Faults {
    /// Writes are answered with this, in turns with passing them on; 0: none.
    refuse_with: AtomicU16,
    writes: AtomicU64,
    refused: AtomicU64,
    drop_events: AtomicBool,
    dropped: AtomicU64,
    /// The generation of watches: an older one ends, and goes on only by a list.
    watches: AtomicU64,
}

struct Shared {
    client: Client,
    faults: Faults,
    /// What was watched, as path and query.
    watched: Mutex<Vec<String>>,
}

/// A proxy, for as long as this lives.
pub(crate) struct ApiProxy {
    shared: Arc<Shared>,
    scratch: Scratch,
    port: u16,
    runtime: Option<Runtime>,
}

impl ApiProxy {
    /// Before the API server of this kubeconfig.
    pub(crate) fn start(kubeconfig: &Path) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let file = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
        let (port, answer) = (free_port(), std::sync::mpsc::channel());
        let started = answer.0;
        runtime.spawn(async move {
            rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
            let mut config =
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a config");
            // Clients have limits of their own, and a watch lasts.
            config.read_timeout = None;
            let client = Client::try_from(config).expect("a client");
            let shared = Arc::new(Shared { client, faults: Faults::default(), watched: Mutex::default() });
            let listener = tokio::net::TcpListener::from_std(listen_on(port)).expect("a listener");
            started.send(shared.clone()).expect("somebody waits for it");
            axum::serve(listener, Router::new().fallback(pass).with_state(shared)).await.ok();
        });
        let shared = answer.1.recv().expect("it starts");
        Self { shared, scratch: Scratch::new("api-proxy"), port, runtime: Some(runtime) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A kubeconfig by way of this port, which may be that of a proxy before this one.
    pub(crate) fn kubeconfig(&self, port: u16) -> PathBuf {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        self.scratch.write("kubeconfig", &config.to_string())
    }

    /// Answers every second write with this code instead of passing it on; `None`: no more.
    pub(crate) fn refuse_writes(&self, code: Option<u16>) {
        self.shared.faults.refuse_with.store(code.unwrap_or(0), Ordering::SeqCst);
    }

    /// Writes that were not passed on.
    pub(crate) fn refused(&self) -> u64 {
        self.shared.faults.refused.load(Ordering::SeqCst)
    }

    /// Swallows what watches tell. When it no longer does, all watches end as those of an API server that has not kept
    /// what they missed: the clients have to list.
    pub(crate) fn drop_watch_events(&self, drop: bool) {
        let Faults { drop_events, watches, .. } = &self.shared.faults;
        drop_events.store(drop, Ordering::SeqCst);
        if !drop {
            watches.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Everything that was watched until now, as path and query.
    pub(crate) fn watched(&self) -> Vec<String> {
        self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Watch events that were swallowed.
    pub(crate) fn dropped_events(&self) -> u64 {
        self.shared.faults.dropped.load(Ordering::SeqCst)
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    if let Some(code) = shared.faults.refusal(request.method()) {
        return refusal(code);
    }
    let watches = request.uri().query().is_some_and(|query| query.split('&').any(|part| part.starts_with("watch=")));
    if watches {
        shared.watched.lock().unwrap_or_else(PoisonError::into_inner).push(request.uri().to_string());
    }
    match forward(&shared.client, request).await {
        Ok(answer) if watches && answer.status().is_success() => watch(shared, answer),
        Ok(answer) => answer,
        Err(error) => answer(StatusCode::BAD_GATEWAY, "BadGateway", &error.to_string()),
    }
}

async fn forward(client: &Client, request: Request) -> Result<Response<Body>, Box<dyn std::error::Error>> {
    let (mut parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, MAX_REQUEST).await?;
    for name in [header::HOST, header::AUTHORIZATION, header::CONTENT_LENGTH, header::CONNECTION] {
        parts.headers.remove(name);
    }
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    parts.uri = path.parse()?;
    let answer = client.send(axum::http::Request::from_parts(parts, kube::client::Body::from(body))).await?;
    let (mut parts, body) = answer.into_parts();
    for name in [header::TRANSFER_ENCODING, header::CONNECTION] {
        parts.headers.remove(name);
    }
    Ok(Response::from_parts(parts, Body::new(body)))
}

impl Faults {
    fn refusal(&self, method: &Method) -> Option<StatusCode> {
        let code = StatusCode::from_u16(self.refuse_with.load(Ordering::SeqCst)).ok()?;
        let writes = [Method::PUT, Method::PATCH, Method::POST].contains(method);
        let turn = writes && self.writes.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        turn.then(|| {
            self.refused.fetch_add(1, Ordering::SeqCst);
            code
        })
    }
}

fn refusal(code: StatusCode) -> Response<Body> {
    let reason = if code == StatusCode::CONFLICT { "Conflict" } else { "TooManyRequests" };
    let mut answer = answer(code, reason, "the test says so");
    if code == StatusCode::TOO_MANY_REQUESTS {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

/// A Status, as the API server answers.
fn answer(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    let mut answer = Response::new(Body::from(status.to_string()));
    *answer.status_mut() = code;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn watch(shared: Arc<Shared>, answer: Response<Body>) -> Response<Body> {
    let (parts, body) = answer.into_parts();
    let generation = shared.faults.watches.load(Ordering::SeqCst);
    let told = Told { shared, generation, missed: false, events: body.into_data_stream(), part: Vec::new() };
    Response::from_parts(parts, Body::from_stream(told.stream()))
}

/// The events of one watch, line by line.
struct Told {
    shared: Arc<Shared>,
    generation: u64,
    /// An event was swallowed.
    missed: bool,
    events: BodyDataStream,
    part: Vec<u8>,
}

impl Told {
    fn stream(self) -> impl Stream<Item = Result<Bytes, axum::Error>> {
        futures::stream::unfold((self, VecDeque::new(), false), |(mut told, mut lines, mut over)| async move {
            loop {
                if let Some(line) = lines.pop_front() {
                    return Some((Ok(line), (told, lines, over)));
                }
                if over {
                    return None;
                }
                over = !told.next(&mut lines).await;
            }
        })
    }

    /// Whether there may be more.
    async fn next(&mut self, lines: &mut VecDeque<Bytes>) -> bool {
        let ends = async {
            while self.shared.faults.watches.load(Ordering::SeqCst) == self.generation {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let more = tokio::select! {
            more = self.events.next() => more,
            () = ends => {
                // What an API server says that no longer has the events that were missed.
                lines.extend(self.missed.then(expired));
                return false;
            }
        };
        let Some(Ok(bytes)) = more else { return false };
        self.part.extend_from_slice(&bytes);
        while let Some(end) = self.part.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.part.drain(..=end).collect();
            let faults = &self.shared.faults;
            if faults.drop_events.load(Ordering::SeqCst) {
                faults.dropped.fetch_add(1, Ordering::SeqCst);
                self.missed = true;
            } else {
                lines.push_back(line.into());
            }
        }
        true
    }
}

fn expired() -> Bytes {
    let object = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version", "reason": "Expired", "code": 410,
    });
    format!("{}\n", json!({"type": "ERROR", "object": object})).into()
}
