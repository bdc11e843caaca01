//! The inbox of waiters: one connection, on which each of them hears of its promotion.

use futures::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};

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
        let subscribed = self.subscriptions.subscribe(channel).await;
        subscribed.map_err(|source| StoreError::Call { function: "SUBSCRIBE", source })
    }

    /// Hears for this waiter no more.
    ///
    /// # Errors
    /// [`StoreError`] if the connection is gone.
    pub async fn unsubscribe(&mut self, lock: &LockKey, id: &HolderId) -> Result<(), StoreError> {
        let channel = self.channel(lock, id);
        let unsubscribed = self.subscriptions.unsubscribe(channel).await;
        unsubscribed.map_err(|source| StoreError::Call { function: "UNSUBSCRIBE", source })
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

fn offer_of(message: &redis::Msg) -> Option<(HolderId, Offer)> {
    let (_, id) = message.get_channel_name().split_once("}:inbox:")?;
    let text = std::str::from_utf8(message.get_payload_bytes()).ok()?;
    let (token, expires) = text.strip_prefix("offer ")?.split_once(' ')?;
    let token = FencingToken::new(token.parse().ok()?)?;
    Some((HolderId::new(id).ok()?, Offer { token, expires: expires.parse().ok()? }))
}
