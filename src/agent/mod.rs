//! A sidecar that holds a lock for the other containers of its pod, and tells them so on localhost.
//!
//! It contends, renews and gives back; whoever asks is answered by its own clock, never by what was true a moment ago. In
//! mode `elect` it contends again after a loss, in mode `gate` it ends. It needs no Kubernetes permission.
//!
//! # What is served
//! | | |
//! |---|---|
//! | `GET /` | `{"name": "…"}`: the pod that leads, as the retired leader-elector had it; empty where nobody is known to |
//! | `GET /v1/hold` | whether this pod holds, its token, and how long it may be believed |
//! | `GET /v1/events` | server-sent events: `waiting`, `acquired`, `jeopardy`, `safe`, `lost` |
//! | `POST /v1/release` | gives the lock back |
//! | `GET /started` | 200 while it is held, else 503 |
//! | `GET /healthz` | 200 while the agent works |

mod ask;
mod contend;
mod events;
mod health;
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;

pub use server::probe;

use crate::keeper::{AcquireError, Lock, Options};

/// What becomes of the agent when its lock is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It contends again.
    Elect,
    /// It ends, and the pod's containers are started again.
    Gate,
}

/// As what the agent runs, which decides what SIGTERM means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A native sidecar: SIGTERM comes after the app has ended, and the lock is given back.
    Sidecar,
    /// A container like any other: SIGTERM comes to all at once, and it goes on renewing until it is killed.
    Container,
}

/// Who says that the app is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthSource {
    /// It is while this answers 2xx.
    Url(http::Uri),
    /// It is while this file is there.
    File(PathBuf),
}

/// When the lock is given up for the app's sake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Who says that it is well.
    pub source: HealthSource,
    /// It may be unwell for so long.
    pub limit: Duration,
}

/// What the agent does.
#[derive(Clone)]
pub struct Settings {
    /// The lock.
    pub lock: Lock,
    /// How it is asked for, without a limit.
    pub options: Options,
    /// What becomes of the agent when the lock is lost.
    pub mode: Mode,
    /// What SIGTERM means.
    pub place: Place,
    /// Where it serves.
    pub listen: SocketAddr,
    /// When the lock is given up for the app's sake.
    pub health: Option<Health>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Asked to, and nothing is held any more.
    Asked,
    /// In mode `gate`: the lock was lost or given up.
    Lost,
}

/// Why it could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The address can't be listened on.
    #[error("can't serve on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// Serving failed.
    #[error("serving failed")]
    Serve(#[source] std::io::Error),
    /// Signals can't be handled.
    #[error("signals can't be handled")]
    Signals(#[source] std::io::Error),
    /// The lock can't be had, however long it is waited for.
    #[error(transparent)]
    Refused(#[from] AcquireError),
}

/// Contends and serves until asked to end.
///
/// # Errors
/// [`AgentError`]: why it could not go on; nothing is held any more.
pub async fn run(settings: Settings) -> Result<Ended, AgentError> {
    let address = settings.listen;
    let listener = TcpListener::bind(address).await.map_err(|error| AgentError::Listen(address, error))?;
    let (contender, told) = contend::new();
    tokio::select! {
        ended = contender.run(&settings) => ended,
        result = server::serve(listener, settings.lock.clone(), settings.options.identity.clone(), told) => match result {
            Ok(()) => Ok(Ended::Asked),
            Err(error) => Err(AgentError::Serve(error)),
        },
    }
}
