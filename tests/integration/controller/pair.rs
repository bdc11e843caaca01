//! A primary behind a proxy, and a replica whose link can be cut.

use std::time::Instant;

use super::fixture::{Fixture, is_ready};
use crate::support::{Proxy, RedisServer};

pub(super) struct Pair {
    pub(super) front: Proxy,
    link: Proxy,
    pub(super) replica: RedisServer,
}

impl Pair {
    pub(super) async fn of(primary: &RedisServer) -> Self {
        let (front, link) = (Proxy::start(primary.port()), Proxy::start(primary.port()));
        let replica = RedisServer::replica_of(link.port()).await;
        Self { front, link, replica }
    }

    /// A controller that reaches the primary by the proxy.
    pub(super) async fn fixture(&self, primary: RedisServer) -> Fixture {
        let f = Fixture::with(primary, |options| options.redis_address = Some(self.front.address())).await;
        f.store_is("is Ready", is_ready).await;
        f
    }

    /// From now on the replica knows nothing more.
    pub(super) async fn cut(&self) {
        self.link.refuse(true).await;
        self.link.cut();
    }

    /// The replica takes the place of the primary. When it has.
    pub(super) async fn promote(&self) -> Instant {
        self.replica.promote().await;
        self.front.point_at(self.replica.port());
        Instant::now()
    }
}
