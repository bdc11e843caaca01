//! How a workload's commands reach Redis.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::api::direct::keys;
use crate::store::{Endpoint, Password, Store, Tls};

/// Where the Secret `leasehold-connection` is looked for.
const CONNECTION: &str = "/etc/leasehold/connection";

/// Which Redis, and as whom. A flag wins over its variable, and both over the mounted Secret.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct RedisArgs {
    /// Folder with the files of the Secret leasehold-connection: url, username, password, prefix, ca.crt.
    #[arg(long, value_name = "FOLDER", env = "LEASEHOLD_CONNECTION")]
    connection: Option<PathBuf>,
    /// redis://HOST[:PORT][/DATABASE], or rediss:// for TLS.
    #[arg(long, value_name = "URL", env = "LEASEHOLD_REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// The ACL user.
    #[arg(long, value_name = "NAME", env = "LEASEHOLD_REDIS_USERNAME")]
    redis_username: Option<String>,
    /// File with its password; or the password itself in $LEASEHOLD_REDIS_PASSWORD.
    #[arg(long, value_name = "FILE", env = "LEASEHOLD_REDIS_PASSWORD_FILE")]
    redis_password_file: Option<PathBuf>,
    /// Certificate of the authority that signed the server's; default: the system's.
    #[arg(long, value_name = "FILE", env = "LEASEHOLD_REDIS_CA_FILE")]
    redis_ca_file: Option<PathBuf>,
    /// The store's spec.keyPrefix; default: leasehold.
    #[arg(long, value_name = "PREFIX", env = "LEASEHOLD_KEY_PREFIX")]
    key_prefix: Option<String>,
}

impl RedisArgs {
    /// The store; its credentials are read again when they are refused. Inside a runtime.
    pub(super) fn store(self) -> anyhow::Result<Store> {
        let (endpoint, prefix) = self.endpoint()?;
        Ok(Store::connect_by(&endpoint, &prefix, move || Some(self.endpoint().ok()?.0))?)
    }

    /// The namespace of the mounted Secret.
    pub(super) fn namespace(&self) -> anyhow::Result<Option<String>> {
        self.mounted(keys::NAMESPACE)
    }

    /// A file of the mounted Secret, where there is one.
    fn mounted(&self, name: &str) -> anyhow::Result<Option<String>> {
        let usual = || Some(PathBuf::from(CONNECTION)).filter(|path| path.is_dir());
        self.connection.clone().or_else(usual).map_or(Ok(None), |folder| read_if_there(&folder.join(name)))
    }

    /// Where and as whom, and the key prefix.
    fn endpoint(&self) -> anyhow::Result<(Endpoint, String)> {
        let mounted = |name| self.mounted(name);
        let Some(url) = self.redis_url.clone().map_or_else(|| mounted(keys::URL), |url| Ok(Some(url)))? else {
            bail!(
                "no Redis is named: give --redis-url or LEASEHOLD_REDIS_URL, or mount the Secret leasehold-connection at \
                 {CONNECTION}"
            );
        };
        let mut endpoint = Endpoint::from_url(url.trim())
            .context("the URL of Redis: write redis://HOST:PORT, or rediss://HOST:PORT where it speaks TLS")?;
        if let Some(username) =
            self.redis_username.clone().map_or_else(|| mounted(keys::USERNAME), |name| Ok(Some(name)))?
        {
            endpoint.username = Some(username);
        }
        let password = match (&self.redis_password_file, std::env::var("LEASEHOLD_REDIS_PASSWORD")) {
            (Some(file), _) => Some(read(file)?),
            (None, Ok(password)) => Some(password),
            (None, Err(_)) => mounted(keys::PASSWORD)?,
        };
        if let Some(password) = password {
            endpoint.password = Some(Password::new(password));
        }
        let ca = match &self.redis_ca_file {
            Some(file) => Some(read(file)?),
            None => mounted(keys::CA)?,
        };
        match (&mut endpoint.tls, ca) {
            (Some(tls), Some(ca)) => *tls = Tls { ca: Some(ca.into_bytes()), ..Tls::default() },
            (None, Some(_)) => bail!(
                "there is a certificate of an authority, but the URL is not rediss://: write rediss://, or leave the \
                 certificate out"
            ),
            (_, None) => {}
        }
        let prefix = self.key_prefix.clone().map_or_else(|| mounted(keys::PREFIX), |prefix| Ok(Some(prefix)))?;
        Ok((endpoint, prefix.unwrap_or_else(|| "leasehold".into())))
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn read_if_there(path: &Path) -> anyhow::Result<Option<String>> {
    if path.exists() { read(path).map(Some) } else { Ok(None) }
}
