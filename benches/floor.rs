//! The least that Redis can do for a lock: no queue, no fencing, no memory of what has ended.

use anyhow::{Result, ensure};
use redis::Script;
use redis::aio::ConnectionManager;

use crate::server::Server;
use crate::{Side, fresh_id};

const COMPARE_AND_DELETE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end";

#[derive(Clone)]
pub(crate) struct Floor {
    connection: ConnectionManager,
    sha: String,
}

fn key(lock: usize) -> String {
    format!("floor:{{bench/lock-{lock}}}:lock")
}

impl Floor {
    pub(crate) async fn set_up(server: &Server<'_>) -> Result<Self> {
        let mut connection = server.manager()?;
        let sha = Script::new(COMPARE_AND_DELETE).prepare_invoke().load_async(&mut connection).await?;
        Ok(Self { connection, sha })
    }

    pub(crate) async fn acquire(&self, lock: usize, id: &str) -> Result<()> {
        let mut cmd = redis::cmd("SET");
        cmd.arg(key(lock)).arg(id).arg("NX").arg("PX").arg(15_000);
        let set: bool = cmd.query_async(&mut self.connection.clone()).await?;
        ensure!(set, "lock {lock} was not free");
        Ok(())
    }

    pub(crate) async fn release(&self, lock: usize, id: &str) -> Result<()> {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&self.sha).arg(1).arg(key(lock)).arg(id);
        let deleted: bool = cmd.query_async(&mut self.connection.clone()).await?;
        ensure!(deleted, "lock {lock} was not held");
        Ok(())
    }
}

impl Side for Floor {
    async fn pair(&self, lock: usize) -> Result<()> {
        let id = fresh_id();
        self.acquire(lock, &id).await?;
        self.release(lock, &id).await
    }
}
