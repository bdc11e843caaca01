//! What a waiter may believe of a message.

use std::time::Duration;

use super::{Epoch, FencingToken, Grant};

/// The server's reading of a request that it queued: the anchor of what its inbox may tell later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The server's clock, in milliseconds since 1970.
    pub at: i64,
    /// The epoch of its open gate: of this process and no other.
    pub epoch: Epoch,
}

/// A promotion, as the inbox of its waiter tells it: held until it ends, and longer once it is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The token of the hold.
    pub token: FencingToken,
    /// When the offer ends, on the server's clock in milliseconds since 1970.
    pub expires: i64,
}

impl Offer {
    /// The offer as if the request of that reading had been answered with it: what remains is counted from before
    /// *that request* was sent, so that a hand-over takes one way and not three.
    ///
    /// # Guarantee
    /// The remaining time is never too long, however late the message is. Both times are of one process's clock (an
    /// epoch belongs to one process, and the token carries it), the request was sent before it was read, and only
    /// durations are compared with ours. So the holder's deadline lies before the offer's end, as with an answer.
    ///
    /// `None`: of another process, or of before the reading. Nothing may be believed; ask.
    pub fn granted_since(self, reading: Reading) -> Option<Grant> {
        let remaining = u64::try_from(self.expires - reading.at).ok().filter(|ms| *ms > 0)?;
        let same_process = self.token.epoch() == reading.epoch;
        same_process.then_some(Grant { token: self.token, remaining: Duration::from_millis(remaining) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(epoch: i64, expires: i64) -> Offer {
        Offer { token: FencingToken::new((epoch << 32) + 7).unwrap(), expires }
    }

    fn reading(epoch: i64, at: i64) -> Reading {
        Reading { at, epoch: Epoch::new(epoch).unwrap() }
    }

    #[test]
    fn an_offer_counts_from_the_request_that_was_queued() {
        let grant = offer(3, 20_000).granted_since(reading(3, 12_000)).unwrap();
        assert_eq!((grant.token, grant.remaining), (offer(3, 0).token, Duration::from_secs(8)));
    }

    #[test]
    fn an_offer_of_another_process_is_not_believed() {
        assert_eq!(offer(4, 20_000).granted_since(reading(3, 12_000)), None);
        assert_eq!(offer(3, 20_000).granted_since(reading(4, 12_000)), None);
    }

    #[test]
    fn an_offer_from_before_the_reading_is_not_believed() {
        assert_eq!(offer(3, 12_000).granted_since(reading(3, 12_000)), None);
        assert_eq!(offer(3, 11_000).granted_since(reading(3, 12_000)), None);
    }
}
