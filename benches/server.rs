//! What a redis-server tells of itself, and connections to it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use leasehold::store::Endpoint;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{Client, IntoConnectionInfo};

use crate::support::RedisServer;

/// A server seen from one runtime.
pub(crate) struct Server<'a> {
    redis: &'a RedisServer,
    look: MultiplexedConnection,
}

/// Calls and microseconds of one command, since the server's start.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CommandStat {
    pub(crate) calls: f64,
    pub(crate) micros: f64,
}

impl<'a> Server<'a> {
    pub(crate) async fn of(redis: &'a RedisServer) -> Result<Self> {
        Ok(Self { redis, look: client(redis)?.get_multiplexed_async_connection().await? })
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.redis.endpoint()
    }

    pub(crate) fn client(&self) -> Result<Client> {
        client(self.redis)
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

    /// How often functions were called.
    pub(crate) async fn calls(&self) -> Result<u32> {
        let calls = self.command_stats().await?.into_iter().find(|(name, _)| name == "fcall");
        Ok(calls.map_or(0.0, |(_, stat)| stat.calls) as u32)
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

fn client(redis: &RedisServer) -> Result<Client> {
    let info = ("127.0.0.1", redis.port()).into_connection_info()?;
    Ok(Client::open(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)))?)
}

fn command_stat(line: &str) -> Option<(String, CommandStat)> {
    let (name, values) = line.strip_prefix("cmdstat_")?.split_once(':')?;
    let value = |key: &str| values.split(',').find_map(|pair| pair.strip_prefix(key)?.parse().ok());
    Some((name.to_owned(), CommandStat { calls: value("calls=")?, micros: value("usec=")? }))
}
