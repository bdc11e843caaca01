//! redis-server processes.

use std::path::Path;
use std::time::Duration;

use redis::FromRedisValue;

use super::{LIMIT, Process, Scratch, eventually, free_port};

/// How setpriv ends when there is no such program.
const NOT_FOUND: i32 = 127;
const INSTALL: &str = "on Debian and Ubuntu: apt-get install redis-server";

/// One redis-server, and its port for as long as this lives.
pub(crate) struct RedisServer {
    program: String,
    port: u16,
    options: Vec<String>,
    password: Option<String>,
    process: Option<Process>,
    scratch: Scratch,
}

impl RedisServer {
    /// A server without persistence.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server with more options, such as `--maxmemory-policy allkeys-lru`.
    pub(crate) async fn with(options: &[&str]) -> Self {
        let mut server = Self::not_started(options);
        server.restart().await;
        server
    }

    /// Another version than the system's.
    pub(crate) async fn of(program: &str) -> Self {
        let mut server = Self { program: program.to_owned(), ..Self::not_started(&[]) };
        server.restart().await;
        server
    }

    /// A replica of the server on this port, which may be a proxy's; it has what that one has.
    pub(crate) async fn replica_of(port: u16) -> Self {
        let server = Self::start().await;
        server.follow(port).await;
        server
    }

    /// A port where a server will be.
    pub(crate) fn not_started(options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let password = options.iter().skip_while(|option| *option != "--requirepass").nth(1).cloned();
        Self {
            program: "redis-server".to_owned(),
            port: free_port(),
            options,
            password,
            process: None,
            scratch: Scratch::new("redis"),
        }
    }

    /// Starts it (again) on its port: empty, unless the options keep data.
    pub(crate) async fn restart(&mut self) {
        self.process = None;
        let mut args = vec!["--port".to_owned(), self.port.to_string()];
        let folder = self.scratch.path().display().to_string();
        args.extend(["--bind", "127.0.0.1", "--save", "", "--dir", &folder].map(ToOwned::to_owned));
        // A replica is not to wait for others that might come.
        args.extend(["--repl-diskless-sync-delay", "0"].map(ToOwned::to_owned));
        args.extend(self.options.clone());
        self.process = Some(spawn(&self.program, &self.scratch, &args));
        let up = eventually(LIMIT, async || {
            if let Some(status) = self.process.as_mut().and_then(Process::exit_status) {
                assert_ne!(status.code(), Some(NOT_FOUND), "redis-server is missing; {INSTALL}");
                self.process = Some(spawn(&self.program, &self.scratch, &args));
            }
            self.try_send::<String>("PING").await.ok()
        });
        assert!(up.await.is_some(), "redis-server doesn't answer:\n{}", self.log());
    }

    /// Makes it a replica of the server on this port, and waits until it has what that one has.
    pub(crate) async fn follow(&self, port: u16) {
        self.send::<()>(&format!("REPLICAOF 127.0.0.1 {port}")).await;
        let linked = async || (self.replication("master_link_status").await? == "up").then_some(());
        assert!(eventually(LIMIT, linked).await.is_some(), "the replica has no link:\n{}", self.log());
    }

    /// Makes it a master.
    pub(crate) async fn promote(&self) {
        self.send::<()>("REPLICAOF NO ONE").await;
    }

    /// Waits until a replica has everything that this server has done.
    pub(crate) async fn wait_for_replica(&self, replica: &Self) {
        let caught_up = async || {
            let (done, has) =
                (self.replication("master_repl_offset").await?, replica.replication("slave_repl_offset").await?);
            (done == has).then_some(())
        };
        assert!(eventually(LIMIT, caught_up).await.is_some(), "the replica lags behind:\n{}", replica.log());
    }

    /// A field of `INFO replication`.
    pub(crate) async fn replication(&self, field: &str) -> Option<String> {
        let info: String = self.try_send("INFO replication").await.ok()?;
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned())
    }

    /// Ends it at once, and forgets what it has on disk.
    pub(crate) fn kill_and_wipe(&mut self) {
        self.process = None;
        for entry in std::fs::read_dir(self.scratch.path()).expect("its folder").flatten() {
            std::fs::remove_dir_all(entry.path()).or_else(|_| std::fs::remove_file(entry.path())).expect("removed");
        }
    }

    /// Everything that it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default()
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    pub(crate) fn process(&self) -> &Process {
        self.process.as_ref().expect("it runs")
    }

    /// Where everything that it writes is.
    pub(crate) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn endpoint(&self) -> leasehold::store::Endpoint {
        let mut endpoint = leasehold::store::Endpoint::plain("127.0.0.1", self.port);
        endpoint.password = self.password.as_ref().map(leasehold::store::Password::new);
        endpoint
    }

    /// Sends a command as one types it, words separated by spaces.
    pub(crate) async fn try_send<T: FromRedisValue>(&self, words: &str) -> redis::RedisResult<T> {
        let settings = redis::RedisConnectionInfo::default();
        let settings = match &self.password {
            Some(password) => settings.set_password(password),
            None => settings,
        };
        let info = redis::IntoConnectionInfo::into_connection_info(("127.0.0.1", self.port))?;
        let client = redis::Client::open(info.set_redis_settings(settings))?;
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(2)));
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut words = words.split_whitespace();
        let mut cmd = redis::cmd(words.next().unwrap_or_default());
        for word in words {
            cmd.arg(word);
        }
        cmd.query_async(&mut connection).await
    }

    pub(crate) async fn send<T: FromRedisValue>(&self, words: &str) -> T {
        self.try_send(words).await.unwrap_or_else(|error| panic!("{words}: {error}"))
    }
}

fn spawn(program: &str, scratch: &Scratch, args: &[String]) -> Process {
    let (output, errors) = (scratch.append("log"), scratch.append("log"));
    Process::start(program, args, |command| {
        command.stdin(scratch.lifeline()).stdout(output).stderr(errors);
    })
}
