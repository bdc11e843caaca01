//! How long after a release its next holder knows that it holds. Two clients with connections of their own; a waiter
//! of ours believes the offer in its inbox, counted from when it was queued, and renews it (not in the time measured).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leasehold::lease::{Grant, HolderId, Reading};
use leasehold::store::Inbox;
use redis::aio::ConnectionManager;

use crate::ours::{Ours, PREFIX, holder};
use crate::pairs::{Rounds, Sample};
use crate::server::Server;
use crate::{HANDOVERS, ROUNDS};

const LIMIT: Duration = Duration::from_secs(5);
const LOCK: usize = 0;

/// Alternating rounds, after one of each that isn't counted.
pub(crate) async fn compare(server: &Server<'_>) -> Result<Rounds> {
    let (mut leases, mut list) = (Leases::connect(server).await?, List::connect(server)?);
    leases.round(server).await?;
    list.round(server).await?;
    let mut rounds = Rounds::default();
    for _ in 0..ROUNDS {
        rounds.ours.push(leases.round(server).await?);
        rounds.floor.push(list.round(server).await?);
    }
    Ok(rounds)
}

fn sample(times: Vec<Duration>) -> Sample {
    let whole = times.iter().sum();
    Sample::new(times, whole, Duration::ZERO)
}

/// A holder, and a waiter with an inbox.
struct Leases {
    holder: Ours,
    waiter: Ours,
    inbox: Option<Inbox>,
}

impl Leases {
    async fn connect(server: &Server<'_>) -> Result<Self> {
        let inbox = Some(Inbox::connect(&server.endpoint(), PREFIX).await?);
        Ok(Self { holder: Ours::connect(server)?, waiter: Ours::connect(server)?, inbox })
    }

    async fn round(&mut self, server: &Server<'_>) -> Result<Sample> {
        let mut times = Vec::with_capacity(HANDOVERS);
        for _ in 0..HANDOVERS {
            times.push(self.hand_over(server).await?);
        }
        Ok(sample(times))
    }

    async fn hand_over(&mut self, server: &Server<'_>) -> Result<Duration> {
        let (first, second) = (holder()?, holder()?);
        let mut inbox = self.inbox.take().context("the inbox is gone")?;
        inbox.subscribe(self.waiter.key(LOCK), &second).await?;
        self.holder.acquire(LOCK, &first).await?;
        let reading = self.waiter.queue(LOCK, &second).await?;
        let waiting = tokio::spawn(wait(inbox, second.clone(), reading));
        ensure!(server.blocked_clients().await? == 0, "nobody should block");
        let start = Instant::now();
        self.holder.release(LOCK, &first).await?;
        let (held, grant, mut inbox) = tokio::time::timeout(LIMIT, waiting).await???;
        ensure!(self.waiter.renew(LOCK, &second).await?.token == grant.token, "another token than the offer's");
        self.waiter.release(LOCK, &second).await?;
        inbox.unsubscribe(self.waiter.key(LOCK), &second).await?;
        self.inbox = Some(inbox);
        Ok(held - start)
    }
}

async fn wait(mut inbox: Inbox, id: HolderId, reading: Reading) -> Result<(Instant, Grant, Inbox)> {
    let (offered, offer) = inbox.next().await.context("the inbox closed")?;
    ensure!(offered == id, "an offer to somebody else");
    let grant = offer.granted_since(reading).context("an offer that may not be believed")?;
    Ok((Instant::now(), grant, inbox))
}

/// The floor: one pushes to a list, another waits in BLPOP.
struct List {
    holder: ConnectionManager,
    waiter: ConnectionManager,
}

impl List {
    const KEY: &str = "floor:list";

    fn connect(server: &Server<'_>) -> Result<Self> {
        Ok(Self { holder: server.manager()?, waiter: server.manager()? })
    }

    async fn round(&mut self, server: &Server<'_>) -> Result<Sample> {
        let mut times = Vec::with_capacity(HANDOVERS);
        for _ in 0..HANDOVERS {
            times.push(self.hand_over(server).await?);
        }
        Ok(sample(times))
    }

    async fn hand_over(&mut self, server: &Server<'_>) -> Result<Duration> {
        let waiting = tokio::spawn(pop(self.waiter.clone()));
        let asked = Instant::now();
        while server.blocked_clients().await? == 0 {
            ensure!(asked.elapsed() < LIMIT, "BLPOP doesn't block");
        }
        let start = Instant::now();
        let _: i64 = redis::cmd("LPUSH").arg(Self::KEY).arg("1").query_async(&mut self.holder).await?;
        let popped = tokio::time::timeout(LIMIT, waiting).await???;
        Ok(popped - start)
    }
}

async fn pop(mut waiter: ConnectionManager) -> Result<Instant> {
    let _: (String, String) = redis::cmd("BLPOP").arg(List::KEY).arg(1).query_async(&mut waiter).await?;
    Ok(Instant::now())
}
