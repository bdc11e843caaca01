//! A redis-server of one's own, and commands to it that have no typed function.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use leasehold::store::{Endpoint, Store};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult};

/// The prefix of every test.
pub(crate) const PREFIX: &str = "test";

/// A server without data on a free port; killed when dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
    connection: MultiplexedConnection,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// Starts a server and returns when it accepts connections; `None` if another took the port meanwhile.
fn spawn(port: u16, options: &[&str]) -> Option<Child> {
    let mut child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--enable-debug-command", "yes", "--dir", env!("CARGO_TARGET_TMPDIR")])
        .args(options)
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-server starts; is it installed?");
    let output = child.stdout.take().expect("its output is piped");
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    if lines.any(|line| line.contains("Ready to accept connections")) {
        std::thread::spawn(move || lines.for_each(drop));
        return Some(child);
    }
    child.wait().expect("it has ended");
    None
}

impl Server {
    pub(crate) async fn start(options: &[&str]) -> Self {
        for _ in 0..10 {
            let port = free_port();
            if let Some(child) = spawn(port, options) {
                let client = redis::Client::open(("127.0.0.1", port)).expect("an address");
                let connection = client.get_multiplexed_async_connection().await.expect("it accepts connections");
                return Self { child, port, connection };
            }
        }
        panic!("no free port for redis-server");
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::plain("127.0.0.1", self.port)
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

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
