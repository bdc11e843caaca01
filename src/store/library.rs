//! The function library in the server, and what the server is.
//!
//! Function names are global in a server and carry the layout version, so that two layouts live side by
//! side. Within a layout the newer code replaces the older, never the reverse.

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
        let mut cmd = redis::cmd("INFO");
        cmd.arg("server");
        let info: String = redis::from_redis_value(self.call("INFO server", &cmd).await?)
            .map_err(|error| StoreError::Reply { function: "INFO server", answer: error.to_string() })?;
        let mut config = redis::cmd("CONFIG");
        config.arg("GET").arg("maxmemory-policy");
        let eviction = self.call("CONFIG GET", &config).await.ok();
        let eviction = eviction.and_then(|value| redis::from_redis_value::<Vec<String>>(value).ok());
        let (version, supported) = version(&info);
        Ok(ServerFacts { version, supported, eviction: eviction.and_then(|pair| pair.into_iter().nth(1)) })
    }
}

fn version(info: &str) -> (String, bool) {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let at_least = |version: &str, want: (u32, u32)| {
        let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= want
    };
    match (field("valkey_version:"), field("redis_version:")) {
        (Some(valkey), _) => (format!("valkey {valkey}"), at_least(valkey, (7, 2))),
        (None, Some(redis)) => (redis.to_owned(), at_least(redis, (7, 0))),
        (None, None) => ("unknown".to_owned(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
