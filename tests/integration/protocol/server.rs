//! A redis-server of one's own, with a connection for commands that have no typed function.

use leasehold::store::{Endpoint, Store};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult};

use crate::support::RedisServer;

/// The prefix of every test.
pub(crate) const PREFIX: &str = "test";

/// A server without data on a free port, which ends with this.
pub(crate) struct Server {
    redis: RedisServer,
    connection: MultiplexedConnection,
}

async fn connect(redis: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(("127.0.0.1", redis.port())).expect("an address");
    client.get_multiplexed_async_connection().await.expect("it accepts connections")
}

impl Server {
    pub(crate) async fn start() -> Self {
        let redis = RedisServer::with(&["--enable-debug-command", "yes"]).await;
        let connection = connect(&redis).await;
        Self { redis, connection }
    }

    pub(crate) fn process(&self) -> &crate::support::Process {
        self.redis.process()
    }

    pub(crate) fn kill(&mut self) {
        self.redis.kill();
    }

    /// The process ends and another starts on the same port, without data.
    pub(crate) async fn restart(&mut self) {
        self.redis.restart().await;
        self.connection = connect(&self.redis).await;
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.redis.endpoint()
    }

    pub(crate) fn store(&self) -> Store {
        Store::connect(&self.endpoint(), PREFIX).expect("the endpoint can be used")
    }

    /// Sends a command as one types it, words separated by spaces.
    pub(crate) async fn try_send<T: FromRedisValue>(&self, words: &str) -> RedisResult<T> {
        let mut cmd = redis::Cmd::new();
        for word in words.split(' ') {
            cmd.arg(word);
        }
        self.query(&cmd).await
    }

    pub(crate) async fn query<T: FromRedisValue>(&self, cmd: &redis::Cmd) -> RedisResult<T> {
        cmd.query_async(&mut self.connection.clone()).await
    }

    pub(crate) async fn send<T: FromRedisValue>(&self, words: &str) -> T {
        self.try_send(words).await.unwrap_or_else(|error| panic!("{words}: {error}"))
    }

    /// One field of INFO.
    pub(crate) async fn info(&self, field: &str) -> String {
        let info: String = self.send("INFO").await;
        let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("INFO has {field}")).trim().to_owned()
    }
}
