//! Reading what functions answer: an array whose first element names the outcome.

use std::time::Duration;

use redis::{ErrorKind, FromRedisValue, RedisError, Value};

use super::StoreError;
use crate::lease::{Epoch, FencingToken, Grant};

/// One answer, taken apart from the front.
pub(super) struct Reply {
    function: &'static str,
    parts: std::vec::IntoIter<Value>,
    outcome: String,
}

impl Reply {
    /// An answer whose first part names its outcome.
    pub(super) fn read(function: &'static str, value: Value) -> Result<Self, StoreError> {
        let mut reply = Self::parts(function, value)?;
        reply.outcome = reply.take()?;
        Ok(reply)
    }

    /// A bare list of parts.
    fn parts(function: &'static str, value: Value) -> Result<Self, StoreError> {
        match value {
            Value::Array(parts) => Ok(Self { function, parts: parts.into_iter(), outcome: String::new() }),
            Value::ServerError(error) => Err(StoreError::Call { function, source: RedisError::from(error) }),
            other => Err(unreadable(function, &other)),
        }
    }

    /// The next part.
    pub(super) fn take<T: FromRedisValue>(&mut self) -> Result<T, StoreError> {
        let part = self.parts.next().unwrap_or(Value::Nil);
        T::from_redis_value(part).map_err(|error| StoreError::Call {
            function: self.function,
            source: RedisError::from((ErrorKind::UnexpectedReturnType, "unreadable answer", error.to_string())),
        })
    }

    /// Whether there is no further part.
    pub(super) fn is_over(&self) -> bool {
        self.parts.as_slice().is_empty()
    }

    /// The name of the outcome.
    pub(super) fn outcome(&self) -> String {
        self.outcome.clone()
    }

    pub(super) fn unknown(&self) -> StoreError {
        StoreError::Reply { function: self.function, answer: self.outcome.clone() }
    }

    pub(super) fn millis(&mut self) -> Result<Duration, StoreError> {
        Ok(Duration::from_millis(self.take::<i64>()?.max(0).unsigned_abs()))
    }

    pub(super) fn token(&mut self) -> Result<FencingToken, StoreError> {
        let value: i64 = self.take()?;
        FencingToken::new(value).ok_or_else(|| unreadable(self.function, &Value::Int(value)))
    }

    pub(super) fn epoch(&mut self) -> Result<Epoch, StoreError> {
        let value: i64 = self.take()?;
        Epoch::new(value).ok_or_else(|| unreadable(self.function, &Value::Int(value)))
    }

    pub(super) fn grant(&mut self) -> Result<Grant, StoreError> {
        Ok(Grant { token: self.token()?, remaining: self.millis()? })
    }

    /// A nested array.
    pub(super) fn list(&mut self) -> Result<Vec<Reply>, StoreError> {
        let parts: Vec<Value> = self.take()?;
        parts.into_iter().map(|part| Reply::parts(self.function, part)).collect()
    }

    /// All parts that are left.
    pub(super) fn rest(self) -> impl Iterator<Item = Value> {
        self.parts
    }
}

pub(super) fn unreadable(function: &'static str, value: &Value) -> StoreError {
    StoreError::Reply { function, answer: format!("{value:.80?}") }
}
