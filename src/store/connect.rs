//! Connections: one for calls, that reconnects by itself, and one for messages.

use std::fmt;
use std::time::Duration;

use futures::{Stream, StreamExt};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisConnectionInfo, TlsCertificates,
};

use super::StoreError;
use crate::lease::{HolderId, LockKey};

/// How long one call may take, connecting included.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// What is not itself in a pattern of channels.
const GLOB: &str = r"*?[]\";

/// A password that no log shows.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Password(String);

impl Password {
    /// Takes the password as it is in the Secret.
    pub fn new(password: impl Into<String>) -> Self {
        Self(password.into())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// PEM files of a TLS connection.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// The authority that signed the server's certificate; the system's own where absent.
    pub ca: Option<Vec<u8>>,
    /// Certificate and key that the server asks its clients for.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("ca", &self.ca.is_some()).field("client", &self.client.is_some()).finish()
    }
}

/// Where one Redis is and how to enter it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The logical database.
    pub database: i64,
    /// The ACL user; the default user where absent.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Password>,
    /// Plain text where absent.
    pub tls: Option<Tls>,
}

impl Endpoint {
    /// A server without a password, in plain text.
    pub fn plain(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port, ..Self::default() }
    }

    /// Reads `redis://[user[:password]@]host[:port][/database]`, or `rediss://…` for TLS with the system's authorities.
    ///
    /// # Errors
    /// [`StoreError::Settings`] if it is none, or asks for what isn't offered (sockets, TLS without verification).
    pub fn from_url(url: &str) -> Result<Self, StoreError> {
        let unusable = |what| StoreError::Settings((ErrorKind::InvalidClientConfig, what).into());
        let info = url.into_connection_info().map_err(StoreError::Settings)?;
        let settings = info.redis_settings();
        let (host, port, tls) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => (host.clone(), *port, None),
            ConnectionAddr::TcpTls { host, port, insecure: false, .. } => (host.clone(), *port, Some(Tls::default())),
            ConnectionAddr::TcpTls { .. } => return Err(unusable("TLS without verification is not offered")),
            _ => return Err(unusable("only redis:// and rediss:// are offered")),
        };
        let (database, username) = (settings.db(), settings.username().map(str::to_owned));
        Ok(Self { host, port, database, username, password: settings.password().map(Password::new), tls })
    }

    fn client(&self) -> Result<Client, StoreError> {
        let Self { host, port, database, username, password, tls } = self;
        let mut settings = RedisConnectionInfo::default().set_db(*database);
        if let Some(username) = username {
            settings = settings.set_username(username);
        }
        if let Some(Password(password)) = password {
            settings = settings.set_password(password);
        }
        let addr = match tls {
            None => ConnectionAddr::Tcp(host.clone(), *port),
            Some(_) => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
        };
        let info = addr
            .into_connection_info()
            .map_err(StoreError::Settings)?
            .set_redis_settings(settings)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        match tls {
            None => Client::open(info),
            Some(Tls { ca, client }) => Client::build_with_tls(
                info,
                TlsCertificates {
                    client_tls: client
                        .clone()
                        .map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
                    root_cert: ca.clone(),
                },
            ),
        }
        .map_err(StoreError::Settings)
    }

    /// A connection for calls. Nothing is sent yet: the first call connects.
    pub(super) fn manager(&self) -> Result<ConnectionManager, StoreError> {
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(20))
            .set_max_delay(Duration::from_millis(200))
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        ConnectionManager::new_lazy_with_config(self.client()?, config).map_err(StoreError::Settings)
    }

    pub(super) async fn pubsub(&self) -> Result<redis::aio::PubSub, StoreError> {
        const FUNCTION: &str = "pub/sub";
        let client = self.client()?;
        tokio::time::timeout(CONNECT_TIMEOUT, client.get_async_pubsub())
            .await
            .map_err(|_| StoreError::Timeout { function: FUNCTION, limit: CONNECT_TIMEOUT })?
            .map_err(|source| StoreError::Call { function: FUNCTION, source })
    }

    /// Listens to the offers to waiters of all locks under a prefix. The stream ends with the connection.
    ///
    /// # Errors
    /// [`StoreError`] if the server can't be reached or refuses the subscription.
    pub async fn offers(&self, prefix: &str) -> Result<impl Stream<Item = Offered> + Send + use<>, StoreError> {
        let mut pubsub = self.pubsub().await?;
        // No more than must be: an ACL has to have this very pattern.
        let glob: String =
            prefix.chars().flat_map(|c| GLOB.contains(c).then_some('\\').into_iter().chain([c])).collect();
        pubsub
            .psubscribe(format!("{glob}:{{*}}:inbox:*"))
            .await
            .map_err(|source| StoreError::Call { function: "PSUBSCRIBE", source })?;
        let start = prefix.len() + 2;
        Ok(pubsub.into_on_message().filter_map(move |message| {
            let offered = Offered::parse(&message, start);
            async move { offered }
        }))
    }
}

/// A hint that a waiter was promoted. It may be late or lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// The lock.
    pub lock: LockKey,
    /// The waiter.
    pub id: HolderId,
}

impl Offered {
    fn parse(message: &redis::Msg, start: usize) -> Option<Self> {
        let (name, id) = message.get_channel_name().get(start..)?.split_once("}:inbox:")?;
        Some(Self { lock: lock_of(name)?, id: HolderId::new(id).ok()? })
    }
}

/// Reads what stands between the braces of a lock's keys and channels.
pub(super) fn lock_of(name: &str) -> Option<LockKey> {
    let (namespace, name) = name.split_once('/')?;
    LockKey::new(namespace, name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_as_whom() {
        let endpoint = Endpoint::from_url("rediss://shop:p%40ss@redis.example:6380/2").unwrap();
        let expected = Endpoint {
            host: "redis.example".into(),
            port: 6380,
            database: 2,
            username: Some("shop".into()),
            password: Some(Password::new("p@ss")),
            tls: Some(Tls::default()),
        };
        assert_eq!(endpoint, expected);
        assert_eq!(Endpoint::from_url("redis://10.0.0.1").unwrap(), Endpoint::plain("10.0.0.1", 6379));
        for bad in ["http://redis", "redis", "", "redis://", "rediss://a/#insecure", "unix:///run/redis.sock"] {
            assert!(matches!(Endpoint::from_url(bad), Err(StoreError::Settings(_))), "{bad}");
        }
    }
}
