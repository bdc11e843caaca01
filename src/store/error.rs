//! Why no answer was had from a store.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// No answer: the command may or may not have been executed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The address, TLS files or credentials can't be used as given.
    #[error("the connection settings can't be used")]
    Settings(#[source] RedisError),
    /// A call failed.
    #[error("calling {function} failed")]
    Call {
        /// The function or command.
        function: &'static str,
        /// What the client or the server said.
        #[source]
        source: RedisError,
    },
    /// The server answered something that this version can't read.
    #[error("{function} answered {answer}, which this version can't read")]
    Reply {
        /// The function or command.
        function: &'static str,
        /// The answer, shortened.
        answer: String,
    },
    /// Nothing answered within the limit.
    #[error("{function} was not answered within {limit:?}")]
    Timeout {
        /// The function or command.
        function: &'static str,
        /// How long was waited.
        limit: std::time::Duration,
    },
}

impl StoreError {
    /// A short constant for metrics and condition reasons.
    pub fn label(&self) -> &'static str {
        match self {
            StoreError::Settings(_) => "InvalidSettings",
            StoreError::Reply { .. } => "UnreadableReply",
            StoreError::Timeout { .. } => "Unreachable",
            StoreError::Call { source, .. } => label(source),
        }
    }

    /// Whether the server doesn't let us run the command, or has none of that name.
    pub fn is_refused_command(&self) -> bool {
        matches!(self.label(), "PermissionDenied" | "ServerError")
    }

    /// Whether user name or password were refused, so that reading the Secret again may help.
    pub fn is_refused_credentials(&self) -> bool {
        self.label() == "AuthenticationFailed"
    }

    /// Whether what stands at the keys of a lock is none of our records, or of another release.
    pub fn is_unreadable_record(&self) -> bool {
        self.says("WRONGTYPE") || self.says("record has layout")
    }

    /// Whether the library is not loaded in the server.
    pub fn is_missing_library(&self) -> bool {
        self.says("Function not found")
    }

    /// Whether the server has answered so.
    fn says(&self, text: &str) -> bool {
        matches!(self, StoreError::Call { source, .. } if source.to_string().contains(text))
    }
}

fn label(error: &RedisError) -> &'static str {
    match error.kind() {
        ErrorKind::AuthenticationFailed => "AuthenticationFailed",
        ErrorKind::Server(ServerErrorKind::NoPerm) => "PermissionDenied",
        ErrorKind::Server(ServerErrorKind::ReadOnly) => "NotMaster",
        ErrorKind::Server(ServerErrorKind::BusyLoading) => "Loading",
        _ => match error.code() {
            Some("NOAUTH" | "WRONGPASS") => "AuthenticationFailed",
            Some("OOM") => "OutOfMemory",
            Some("NOREPLICAS") => "NotEnoughReplicas",
            Some("MISCONF") => "PersistenceFailed",
            Some(_) => "ServerError",
            None => "Unreachable",
        },
    }
}
