//! A redis-server of its own on a free port, and what it tells of itself.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leasehold::store::Endpoint;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{Client, IntoConnectionInfo};

const START_LIMIT: Duration = Duration::from_secs(10);

/// The server and a connection for looking at it. Ends with the value.
pub(crate) struct Server {
    child: Child,
    port: u16,
    look: MultiplexedConnection,
}

/// Calls and microseconds of one command, since the server's start.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CommandStat {
    pub(crate) calls: f64,
    pub(crate) micros: f64,
}

impl Server {
    pub(crate) async fn start() -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let port_arg = port.to_string();
        let mut child = Command::new("redis-server")
            .args(["--port", port_arg.as_str(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .context("redis-server (7.0 or newer) must be installed")?;
        match ready(port).await {
            Ok(look) => Ok(Self { child, port, look }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::plain("127.0.0.1", self.port)
    }

    pub(crate) fn client(&self) -> Result<Client> {
        client(self.port)
    }

    /// The kind of connection that `Store` uses, with its settings.
    pub(crate) fn manager(&self) -> Result<ConnectionManager> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(Duration::from_secs(2)));
        Ok(ConnectionManager::new_lazy_with_config(self.client()?, config)?)
    }

    async fn info(&self, section: &str) -> Result<String> {
        Ok(redis::cmd("INFO").arg(section).query_async(&mut self.look.clone()).await?)
    }

    async fn field(&self, section: &str, name: &str) -> Result<String> {
        let info = self.info(section).await?;
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned()).with_context(|| format!("INFO {section} has no {name}"))
    }

    pub(crate) async fn version(&self) -> Result<String> {
        self.field("server", "redis_version").await
    }

    /// CPU time that the server has used, user and system.
    pub(crate) async fn cpu(&self) -> Result<Duration> {
        let user: f64 = self.field("cpu", "used_cpu_user").await?.parse()?;
        let system: f64 = self.field("cpu", "used_cpu_sys").await?.parse()?;
        Ok(Duration::from_secs_f64(user + system))
    }

    /// Clients that wait in a blocking command.
    pub(crate) async fn blocked_clients(&self) -> Result<u64> {
        Ok(self.field("clients", "blocked_clients").await?.parse()?)
    }

    pub(crate) async fn reset_stats(&self) -> Result<()> {
        Ok(redis::cmd("CONFIG").arg("RESETSTAT").query_async(&mut self.look.clone()).await?)
    }

    /// What each command has cost since the last reset, that reset left out.
    pub(crate) async fn command_stats(&self) -> Result<BTreeMap<String, CommandStat>> {
        let info = self.info("commandstats").await?;
        let stats = info.lines().filter_map(command_stat);
        Ok(stats.filter(|(name, _)| name != "config|resetstat").collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            eprintln!("redis-server {} was not ended: {error}", self.child.id());
        }
    }
}

fn client(port: u16) -> Result<Client> {
    let info = ("127.0.0.1", port).into_connection_info()?;
    Ok(Client::open(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)))?)
}

async fn ready(port: u16) -> Result<MultiplexedConnection> {
    let started = Instant::now();
    loop {
        match client(port)?.get_multiplexed_async_connection().await {
            Ok(connection) => return Ok(connection),
            Err(error) => ensure!(started.elapsed() < START_LIMIT, "redis-server doesn't answer: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn command_stat(line: &str) -> Option<(String, CommandStat)> {
    let (name, values) = line.strip_prefix("cmdstat_")?.split_once(':')?;
    let value = |key: &str| values.split(',').find_map(|pair| pair.strip_prefix(key)?.parse().ok());
    Some((name.to_owned(), CommandStat { calls: value("calls=")?, micros: value("usec=")? }))
}
