//! The function library in the server, and what the server is.
//!
//! Function names are global in a server and carry the layout version, so that two layouts live side by
//! side. Within a layout the newer code replaces the older, never the reverse.

use std::time::Duration;

use redis::Value;

use super::{Store, StoreError};

/// The library's source, as it is loaded into the server.
pub const LIBRARY_SOURCE: &str = include_str!("leasehold.lua");

/// The server has this version or a newer one of the same layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LibraryState {
    /// Loaded, this version.
    Current,
    /// Loaded by a newer controller; it reads the same records, and stays.
    Newer,
    /// None, or an older version.
    Missing,
}

/// What the controller must know of a server before it uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// Such as `7.0.15`.
    pub version: String,
    /// Whether it speaks functions well enough: Redis ≥ 7.0 or Valkey ≥ 7.2.
    pub supported: bool,
    /// `maxmemory-policy`; `None` where the user may not read it.
    pub eviction: Option<String>,
    /// Replicas that are connected.
    pub replicas: u32,
    /// How a master without its replicas is stopped; `None` where the user may not read it.
    pub isolation: Option<Isolation>,
    /// Whether it writes snapshots or a log; `None` where the user may not read it.
    pub persists: Option<bool>,
}

/// When a master that is cut off from its replicas takes no more writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Isolation {
    /// `min-replicas-to-write`; 0: never.
    pub min_replicas: u32,
    /// `min-replicas-max-lag`: how long after they were last heard.
    pub max_lag: Duration,
}

impl Isolation {
    /// How long a master that is cut off goes on before it stops by itself; 0 where it never does, for then no wait is
    /// long enough.
    pub fn goes_on_for(self) -> Duration {
        if self.min_replicas > 0 { self.max_lag } else { Duration::ZERO }
    }
}

impl ServerFacts {
    /// How long a master that was replaced may go on granting; `None`: nothing bounds it.
    pub fn isolated_for(&self) -> Option<Duration> {
        let Isolation { min_replicas, max_lag } = self.isolation.unwrap_or_default();
        match self.replicas {
            0 => Some(Duration::ZERO),
            replicas => (min_replicas >= replicas).then_some(max_lag),
        }
    }
}

fn source_version(source: &str) -> i64 {
    let line = source.lines().find_map(|line| line.strip_prefix("local VERSION = "));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl Store {
    /// Whether the library is there, and which.
    ///
    /// # Errors
    /// [`StoreError`]: no answer.
    pub async fn library(&self) -> Result<LibraryState, StoreError> {
        const FUNCTION: &str = "leasehold1_version";
        let mut cmd = redis::cmd("FCALL_RO");
        cmd.arg(FUNCTION).arg(0);
        let found = match self.call(FUNCTION, &cmd).await {
            Ok(Value::Int(version)) => version,
            Ok(other) => return Err(super::reply::unreadable(FUNCTION, &other)),
            Err(error) if error.is_missing_library() => return Ok(LibraryState::Missing),
            Err(error) => return Err(error),
        };
        let ours = source_version(LIBRARY_SOURCE);
        Ok(match found.cmp(&ours) {
            std::cmp::Ordering::Less => LibraryState::Missing,
            std::cmp::Ordering::Equal => LibraryState::Current,
            std::cmp::Ordering::Greater => LibraryState::Newer,
        })
    }

    /// Loads a library, replacing one of the same name: this empties its memory, so every gate closes.
    ///
    /// # Errors
    /// [`StoreError`]: no answer, or functions of these names belong to another library.
    pub async fn load_library(&self, source: &str) -> Result<(), StoreError> {
        let mut cmd = redis::cmd("FUNCTION");
        cmd.arg("LOAD").arg("REPLACE").arg(source);
        self.call("FUNCTION LOAD", &cmd).await.map(drop)
    }

    /// Version and memory policy of the server.
    ///
    /// # Errors
    /// [`StoreError`]: no answer.
    pub async fn server(&self) -> Result<ServerFacts, StoreError> {
        let (server, replication) = (self.info("server").await?, self.info("replication").await?);
        let (version, supported) = version(&server);
        let replicas = field(&replication, "connected_slaves:").and_then(|count| count.parse().ok()).unwrap_or(0);
        let min_replicas = self.config("min-replicas-to-write").await.and_then(|count| count.parse().ok());
        let max_lag = self.config("min-replicas-max-lag").await.and_then(|seconds| seconds.parse().ok());
        let isolation = min_replicas.zip(max_lag);
        let isolation =
            isolation.map(|(min_replicas, seconds)| Isolation { min_replicas, max_lag: Duration::from_secs(seconds) });
        let snapshots = self.config("save").await;
        let log = self.config("appendonly").await;
        let persists = snapshots.zip(log).map(|(snapshots, log)| !snapshots.is_empty() || log != "no");
        let eviction = self.config("maxmemory-policy").await;
        Ok(ServerFacts { version, supported, eviction, replicas, isolation, persists })
    }

    async fn info(&self, section: &str) -> Result<String, StoreError> {
        let mut cmd = redis::cmd("INFO");
        cmd.arg(section);
        redis::from_redis_value(self.call("INFO", &cmd).await?)
            .map_err(|error| StoreError::Reply { function: "INFO", answer: error.to_string() })
    }

    /// A setting of the server, where the user may read it.
    async fn config(&self, name: &str) -> Option<String> {
        let mut cmd = redis::cmd("CONFIG");
        cmd.arg("GET").arg(name);
        let pair = self.call("CONFIG GET", &cmd).await.ok()?;
        redis::from_redis_value::<Vec<String>>(pair).ok()?.into_iter().nth(1)
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn version(info: &str) -> (String, bool) {
    let at_least = |version: &str, want: (u32, u32)| {
        let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= want
    };
    match (field(info, "valkey_version:"), field(info, "redis_version:")) {
        (Some(valkey), _) => (format!("valkey {valkey}"), at_least(valkey, (7, 2))),
        (None, Some(redis)) => (redis.to_owned(), at_least(redis, (7, 0))),
        (None, None) => ("unknown".to_owned(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_is_bounded_without_replicas_or_with_all_of_them_required() {
        let facts = |replicas, min_replicas| ServerFacts {
            version: String::new(),
            supported: true,
            eviction: None,
            replicas,
            isolation: Some(Isolation { min_replicas, max_lag: Duration::from_secs(10) }),
            persists: None,
        };
        assert_eq!(facts(0, 0).isolated_for(), Some(Duration::ZERO));
        assert_eq!(facts(2, 1).isolated_for(), None);
        assert_eq!(facts(2, 2).isolated_for(), Some(Duration::from_secs(10)));
    }

    #[test]
    fn the_source_tells_its_version() {
        assert!(source_version(LIBRARY_SOURCE) >= 1);
        assert_eq!(source_version("local VERSION = 12   -- of this code"), 12);
    }

    #[test]
    fn versions_too_old_for_functions_are_told_apart() {
        assert_eq!(version("redis_version:6.2.14\r\n"), ("6.2.14".into(), false));
        assert_eq!(version("redis_version:7.0.15\r\n"), ("7.0.15".into(), true));
        assert_eq!(version("redis_version:7.2.4\r\nvalkey_version:8.1.0\r\n"), ("valkey 8.1.0".into(), true));
    }
}
