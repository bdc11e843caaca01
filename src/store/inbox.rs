//! The inbox of waiters: one connection, on which each of them hears of its promotion.

use futures::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};

use super::connect::RESPONSE_TIMEOUT;
use super::{Endpoint, StoreError};
use crate::lease::{FencingToken, HolderId, LockKey, Offer};

/// Hears of offers. A message may be late or lost: a waiter asks in time even if it hears nothing.
pub struct Inbox {
    prefix: String,
    subscriptions: PubSubSink,
    messages: PubSubStream,
}

impl Inbox {
    /// Connects; nothing is heard yet.
    ///
    /// # Errors
    /// [`StoreError`] if the server can't be reached.
    pub async fn connect(endpoint: &Endpoint, prefix: &str) -> Result<Self, StoreError> {
        let (subscriptions, messages) = endpoint.pubsub().await?.split();
        Ok(Self { prefix: prefix.to_owned(), subscriptions, messages })
    }

    fn channel(&self, lock: &LockKey, id: &HolderId) -> String {
        format!("{}:{{{lock}}}:inbox:{}", self.prefix, id.as_str())
    }

    /// Hears for this waiter from now on: to be called before it queues.
    ///
    /// # Errors
    /// [`StoreError`] if the connection is gone or the subscription is refused.
    pub async fn subscribe(&mut self, lock: &LockKey, id: &HolderId) -> Result<(), StoreError> {
        let channel = self.channel(lock, id);
        in_time("SUBSCRIBE", self.subscriptions.subscribe(channel)).await
    }

    /// Hears for this waiter no more.
    ///
    /// # Errors
    /// [`StoreError`] if the connection is gone.
    pub async fn unsubscribe(&mut self, lock: &LockKey, id: &HolderId) -> Result<(), StoreError> {
        let channel = self.channel(lock, id);
        in_time("UNSUBSCRIBE", self.subscriptions.unsubscribe(channel)).await
    }

    /// The next offer and whose it is; `None` when the connection has ended. Messages that can't be read are skipped.
    pub async fn next(&mut self) -> Option<(HolderId, Offer)> {
        loop {
            let message = self.messages.next().await?;
            if let Some(offer) = offer_of(&message) {
                return Some(offer);
            }
        }
    }
}

/// These connections have no limit of their own.
async fn in_time(function: &'static str, call: impl Future<Output = redis::RedisResult<()>>) -> Result<(), StoreError> {
    let answer = tokio::time::timeout(RESPONSE_TIMEOUT, call).await;
    let answer = answer.map_err(|_| StoreError::Timeout { function, limit: RESPONSE_TIMEOUT })?;
    answer.map_err(|source| StoreError::Call { function, source })
}

fn offer_of(message: &redis::Msg) -> Option<(HolderId, Offer)> {
    let (_, id) = message.get_channel_name().split_once("}:inbox:")?;
    let text = std::str::from_utf8(message.get_payload_bytes()).ok()?;
    let (token, expires) = text.strip_prefix("offer ")?.split_once(' ')?;
    let token = FencingToken::new(token.parse().ok()?)?;
    Some((HolderId::new(id).ok()?, Offer { token, expires: expires.parse().ok()? }))
}
