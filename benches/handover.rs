//! How long after a release its next holder knows that it holds. Two clients with connections of their own;
//! a waiter of ours listens on its inbox and asks when told, since only an answer is believed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use leasehold::lease::HolderId;
use redis::aio::{ConnectionManager, PubSubSink, PubSubStream};

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
    subscribe: PubSubSink,
    inbox: Option<PubSubStream>,
}

impl Leases {
    async fn connect(server: &Server<'_>) -> Result<Self> {
        let (subscribe, inbox) = server.client()?.get_async_pubsub().await?.split();
        Ok(Self { holder: Ours::connect(server)?, waiter: Ours::connect(server)?, subscribe, inbox: Some(inbox) })
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
        let channel = format!("{PREFIX}:{{{}}}:inbox:{}", self.waiter.key(LOCK), second.as_str());
        self.subscribe.subscribe(&channel).await?;
        self.holder.acquire(LOCK, &first).await?;
        self.waiter.queue(LOCK, &second).await?;
        let inbox = self.inbox.take().context("the inbox is gone")?;
        let waiting = tokio::spawn(wait(self.waiter.clone(), inbox, second.clone()));
        ensure!(server.blocked_clients().await? == 0, "nobody should block");
        let start = Instant::now();
        self.holder.release(LOCK, &first).await?;
        let (held, inbox) = tokio::time::timeout(LIMIT, waiting).await???;
        self.inbox = Some(inbox);
        self.waiter.release(LOCK, &second).await?;
        self.subscribe.unsubscribe(&channel).await?;
        Ok(held - start)
    }
}

async fn wait(waiter: Ours, mut inbox: PubSubStream, id: HolderId) -> Result<(Instant, PubSubStream)> {
    inbox.next().await.context("the inbox closed")?;
    waiter.acquire(LOCK, &id).await?;
    Ok((Instant::now(), inbox))
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
