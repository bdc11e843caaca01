//! From asking to holding.
//!
//! One request that doesn't wait takes what is free, in one round trip. Only then the inbox is subscribed, and the queue
//! joined: a promotion between the two would be heard. What a crash leaves after each step: a place in the queue or an
//! offer, which the server gives up by itself. What an error leaves: perhaps a place, an offer or a hold, all under one
//! id: asked for again with it, or cancelled.

use std::time::Duration;

use tokio::time::timeout;

use super::{AcquireError, Lock, Options, Progress};
use crate::clock::{boottime, since};
use crate::lease::{Acquired, Grant, HolderId, Reading, Request, Tenure, Wait};
use crate::random::{self, NoRandomness};
use crate::store::{Inbox, StoreError};

/// How long a store that has never answered, or has no record of the lock, is asked again; and by one that doesn't wait, a
/// store that answers too late.
const FIRST_CONTACT: Duration = Duration::from_secs(5);
/// An answer that takes so long doesn't come.
const SILENCE: Duration = Duration::from_millis(500);
/// After an answer that nothing can be granted now.
const AGAIN: Duration = Duration::from_millis(250);

/// One acquisition on its way.
pub(super) struct Contender<'a> {
    lock: &'a Lock,
    options: &'a Options,
    begun: Duration,
    /// The id under which something may be held or queued.
    id: HolderId,
    inbox: Option<Inbox>,
    /// The store has answered.
    answered: bool,
    /// There was a record of the lock.
    known: bool,
    /// Why nothing could be granted when it was asked last.
    why: Option<AcquireError>,
    /// When it was asked what is not answered yet.
    asked: Option<Duration>,
}

enum Next {
    Won(Tenure),
    Queue,
    Hear { reading: Reading, retry: Duration },
    Again(Duration),
}

/// What is left of a wait that has begun then.
pub(super) fn wait_left(wait: Wait, begun: Duration) -> Result<Wait, AcquireError> {
    match wait {
        Wait::For(limit) => {
            let left = limit.checked_sub(since(begun)).filter(|left| !left.is_zero());
            left.map(Wait::For).ok_or(AcquireError::TimedOut(limit))
        }
        wait => Ok(wait),
    }
}

fn new_id() -> Result<HolderId, NoRandomness> {
    HolderId::new(random::secret()?).map_err(|_| NoRandomness)
}

impl<'a> Contender<'a> {
    pub(super) fn new(lock: &'a Lock, options: &'a Options) -> Result<Self, NoRandomness> {
        let (id, begun) = (new_id()?, boottime());
        Ok(Self { lock, options, begun, id, inbox: None, answered: false, known: false, why: None, asked: None })
    }

    /// Under which id the lock is held, or must be cancelled.
    pub(super) fn id(&self) -> &HolderId {
        &self.id
    }

    /// What is told of an end: where the time is over, what has kept it from being granted, if it wasn't its turn alone.
    pub(super) fn cause_of(&mut self, error: AcquireError) -> AcquireError {
        if !matches!(error, AcquireError::TimedOut(_)) {
            return error;
        }
        let silent = self.asked.map(since).filter(|silent| *silent >= SILENCE);
        let silent = silent.map(|limit| StoreError::Timeout { function: "leasehold1_acquire", limit });
        self.why.take().or(silent.map(AcquireError::Unreachable)).unwrap_or(error)
    }

    /// Waits until the lock is held; whoever has a limit ends it by that.
    pub(super) async fn win(&mut self) -> Result<Tenure, AcquireError> {
        self.tell(Progress::Asking);
        self.check_lease().await?;
        let mut queues = false;
        loop {
            let wait = if queues { wait_left(self.options.wait, self.begun)? } else { Wait::No };
            let sent = boottime();
            match self.ask(sent, wait).await? {
                Next::Won(tenure) => return Ok(tenure),
                Next::Queue => {
                    queues = true;
                    self.listen().await;
                }
                Next::Hear { reading, retry } => {
                    self.tell(Progress::Queued);
                    if let Some(tenure) = self.hear(sent, reading, retry).await {
                        return Ok(tenure);
                    }
                }
                Next::Again(pause) => tokio::time::sleep(pause).await,
            }
            if queues && self.inbox.is_none() {
                self.listen().await;
            }
        }
    }

    /// A lease that leaves no time to stop is refused before anyone waits for it.
    async fn check_lease(&mut self) -> Result<(), AcquireError> {
        let rules = self.options.rules;
        while !rules.least_stop.is_zero() {
            self.asked = Some(boottime());
            let record = self.lock.store.inspect(&self.lock.key).await;
            self.asked = None;
            match record {
                Ok(Some(record)) => {
                    (self.answered, self.known) = (true, true);
                    return Ok(rules.check(record.lease_duration())?);
                }
                // What that means is said where it is asked for.
                Ok(None) => break,
                Err(error) => tokio::time::sleep(self.trouble(error)?).await,
            }
        }
        Ok(())
    }

    async fn ask(&mut self, sent: Duration, wait: Wait) -> Result<Next, AcquireError> {
        let Options { mode, priority, identity, pod_uid, rules, .. } = self.options;
        let request = Request {
            id: self.id.clone(),
            mode: *mode,
            priority: *priority,
            wait,
            identity: identity.clone(),
            pod_uid: pod_uid.clone(),
        };
        self.asked = Some(sent);
        let answer = self.lock.store.acquire(&self.lock.key, &request).await;
        self.asked = None;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Ok(Next::Again(self.trouble(error)?)),
        };
        (self.answered, self.why) = (true, None);
        self.known |= !matches!(answer, Acquired::Unprovisioned);
        let patient = self.options.wait != Wait::No;
        match answer {
            Acquired::Granted(grant) => {
                let tenure = Tenure::begin(*rules, sent, grant);
                self.usable(sent, tenure, grant).await
            }
            Acquired::Queued { reading, retry } => Ok(Next::Hear { reading, retry }),
            Acquired::Busy { .. } if patient => Ok(Next::Queue),
            Acquired::Busy { .. } => Err(AcquireError::Busy),
            // The id has ended: an offer that came too late. Another one begins anew.
            Acquired::Lost => self.anew().map(|()| Next::Queue),
            Acquired::Sealed => Err(AcquireError::Deleted),
            Acquired::Unsatisfiable { permits } => Err(AcquireError::Unsatisfiable { permits }),
            Acquired::LockIsElected => Err(AcquireError::LockIsElected),
            Acquired::Unprovisioned if patient && (self.known || since(self.begun) < FIRST_CONTACT) => {
                // Of an emptied store the controller makes it again.
                Ok(self.unavailable(if self.known { AcquireError::GateClosed } else { AcquireError::NoSuchLock }))
            }
            Acquired::Unprovisioned => Err(AcquireError::NoSuchLock),
            Acquired::GateClosed | Acquired::EpochExhausted if patient => {
                Ok(self.unavailable(AcquireError::GateClosed))
            }
            Acquired::GateClosed | Acquired::EpochExhausted => Err(AcquireError::GateClosed),
        }
    }

    /// A grant of which too little is left is given back: where the answer was late, the next one may be in time.
    async fn usable(&mut self, sent: Duration, tenure: Tenure, grant: Grant) -> Result<Next, AcquireError> {
        if tenure.stop_at > boottime() {
            return Ok(Next::Won(tenure));
        }
        // Whatever becomes of this: the id is not used again, and its hold ends by itself.
        let _ = self.lock.store.cancel(&self.lock.key, &self.id).await;
        self.options.rules.check(grant.remaining)?;
        if self.options.wait == Wait::No && since(self.begun) >= FIRST_CONTACT {
            let limit = tenure.stop_at.saturating_sub(sent);
            return Err(AcquireError::Unreachable(StoreError::Timeout { function: "leasehold1_acquire", limit }));
        }
        self.anew().map(|()| Next::Again(AGAIN))
    }

    fn anew(&mut self) -> Result<(), AcquireError> {
        (self.id, self.inbox) = (new_id()?, None);
        Ok(())
    }

    /// Whether asking again may help, and when.
    fn trouble(&mut self, error: StoreError) -> Result<Duration, AcquireError> {
        let refused =
            matches!(error.label(), "AuthenticationFailed" | "PermissionDenied") || error.is_missing_library();
        let unusable = error.label() == "InvalidSettings" || matches!(error, StoreError::Reply { .. });
        // A server that has restarted empty gets its users and its library from the controller, in a moment.
        let may_pass = self.answered && self.options.wait != Wait::No;
        if unusable || (refused && !may_pass) {
            return Err(AcquireError::Refused(error));
        }
        let hopeless = !self.answered || self.options.wait == Wait::No;
        if hopeless && since(self.begun) >= FIRST_CONTACT {
            return Err(AcquireError::Unreachable(error));
        }
        self.is_kept_by(AcquireError::Unreachable(error));
        Ok(AGAIN)
    }

    fn unavailable(&mut self, why: AcquireError) -> Next {
        self.is_kept_by(why);
        Next::Again(AGAIN)
    }

    fn is_kept_by(&mut self, why: AcquireError) {
        self.tell(Progress::Unavailable(why.to_string()));
        self.why = Some(why);
    }

    /// Without an inbox it asks in time.
    async fn listen(&mut self) {
        let inbox = async {
            let mut inbox = self.lock.store.inbox().await?;
            inbox.subscribe(&self.lock.key, &self.id).await?;
            Ok::<_, StoreError>(inbox)
        };
        self.inbox = inbox.await.inspect_err(|error| tracing::debug!(%error, "no inbox")).ok();
    }

    /// Waits for the inbox, or until it is time to ask again.
    async fn hear(&mut self, sent: Duration, reading: Reading, retry: Duration) -> Option<Tenure> {
        let Some(inbox) = &mut self.inbox else {
            tokio::time::sleep(retry).await;
            return None;
        };
        match timeout(retry, inbox.next()).await {
            Ok(Some((id, offer))) if id == self.id => {
                let grant = offer.granted_since(reading)?;
                let tenure = Tenure::begin_offered(self.options.rules, sent, grant);
                // Of a late one too little may be left: asking accepts it.
                (tenure.stop_at > boottime()).then_some(tenure)
            }
            Ok(None) => {
                self.inbox = None;
                None
            }
            Ok(Some(_)) | Err(_) => None,
        }
    }

    fn tell(&self, progress: Progress) {
        if let Some(sender) = &self.options.progress {
            sender.send_if_modified(|now| {
                let other = *now != progress;
                *now = progress;
                other
            });
        }
    }
}
