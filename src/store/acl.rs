//! The Redis users of namespaces whose processes hold locks by themselves: one a namespace, that reaches the keys of its
//! own locks alone.
//!
//! ACLs are a server's own: they are neither replicated nor, without an `aclfile`, there after a restart.

use std::collections::{BTreeMap, BTreeSet};

use super::{Store, StoreError};

/// What a workload may call.
const FUNCTIONS: [&str; 6] = ["acquire", "renew", "release", "cancel", "inspect", "version"];
/// Those of them that change nothing, so that they may be called by `FCALL_RO`, too.
const READERS: [&str; 2] = ["inspect", "version"];
/// What these run in the server, which checks it against their caller.
const INNER: [&str; 11] =
    ["time", "info", "hget", "hmget", "hset", "hgetall", "hdel", "zadd", "zrem", "zrange", "publish"];
/// What a client sends by itself.
const CLIENT: [&str; 8] = ["hello", "auth", "ping", "quit", "client|id", "client|setname", "subscribe", "unsubscribe"];
/// The same, of servers from 7.2 on: older ones know no such command, also not to allow it.
const CLIENT_SINCE_7_2: &str = "client|setinfo";

/// The users of one store. A password is known here by its hash: SHA-256 in lower hexadecimal digits.
#[derive(Clone)]
pub struct DirectUsers {
    store: Store,
    database: i64,
}

impl DirectUsers {
    /// Those of the store.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone(), database: store.endpoint().database }
    }

    /// The name of a namespace's user. Users are the whole server's, so it tells prefix and database, too.
    pub fn name(&self, namespace: &str) -> String {
        format!("{}{namespace}", self.head())
    }

    fn head(&self) -> String {
        match self.database {
            0 => format!("{}.direct.", self.store.prefix),
            database => format!("{}.direct{database}.", self.store.prefix),
        }
    }

    /// The namespaces that have a user, each with the passwords that it may log in with.
    ///
    /// # Errors
    /// [`StoreError`]: no answer, or our own user may not run `ACL LIST`.
    pub async fn list(&self) -> Result<BTreeMap<String, BTreeSet<String>>, StoreError> {
        const FUNCTION: &str = "ACL LIST";
        let answer = self.store.call(FUNCTION, redis::cmd("ACL").arg("LIST")).await?;
        let lines: Vec<String> = redis::from_redis_value(answer)
            .map_err(|error| StoreError::Reply { function: FUNCTION, answer: error.to_string() })?;
        let head = self.head();
        Ok(lines.iter().filter_map(|line| user(&head, line)).collect())
    }

    /// Makes the user, or makes it what it is to be. Who is logged in stays so.
    ///
    /// # Errors
    /// [`StoreError`]: no answer, or our own user may not run `ACL SETUSER`.
    pub async fn set(&self, namespace: &str, passwords: &BTreeSet<String>) -> Result<(), StoreError> {
        let mut rules = self.rules(namespace, passwords);
        rules.push(format!("+{CLIENT_SINCE_7_2}"));
        match self.set_rules(namespace, &rules).await {
            Err(StoreError::Call { source, .. }) if source.to_string().contains("Unknown command") => {
                rules.pop();
                self.set_rules(namespace, &rules).await
            }
            done => done,
        }
    }

    async fn set_rules(&self, namespace: &str, rules: &[String]) -> Result<(), StoreError> {
        let mut cmd = redis::cmd("ACL");
        cmd.arg("SETUSER").arg(self.name(namespace)).arg(rules);
        self.store.call("ACL SETUSER", &cmd).await.map(drop)
    }

    fn rules(&self, namespace: &str, passwords: &BTreeSet<String>) -> Vec<String> {
        let locks = format!("{}:{{{namespace}/*", self.store.prefix);
        // A new user has all channels where `acl-pubsub-default` says so.
        let mut rules: Vec<String> = ["reset", "resetchannels", "on", "-@all"].map(ToOwned::to_owned).into();
        rules.push(format!("~{locks}"));
        rules.push(format!("&{locks}}}:inbox:*"));
        rules.extend(passwords.iter().map(|hash| format!("#{hash}")));
        rules.extend(FUNCTIONS.map(|name| format!("+fcall|leasehold1_{name}")));
        rules.extend(READERS.map(|name| format!("+fcall_ro|leasehold1_{name}")));
        rules.extend(INNER.iter().chain(&CLIENT).map(|command| format!("+{command}")));
        rules.extend((self.database != 0).then(|| "+select".to_owned()));
        rules
    }

    /// Deletes the user and ends its connections. One that isn't there is no error.
    ///
    /// # Errors
    /// [`StoreError`]: no answer, or our own user may not run `ACL DELUSER`.
    pub async fn delete(&self, namespace: &str) -> Result<(), StoreError> {
        let mut cmd = redis::cmd("ACL");
        cmd.arg("DELUSER").arg(self.name(namespace));
        self.store.call("ACL DELUSER", &cmd).await.map(drop)
    }
}

/// Namespace and passwords in a line of `ACL LIST`, if it is a user of ours. One that is switched off, or that needs no
/// password, has none.
fn user(head: &str, line: &str) -> Option<(String, BTreeSet<String>)> {
    let mut words = line.strip_prefix("user ")?.split(' ');
    let namespace = words.next()?.strip_prefix(head)?;
    // A namespace has no dot: what has one is of another store, whose prefix begins as ours does.
    if namespace.contains('.') {
        return None;
    }
    let rules: Vec<&str> = words.collect();
    let usable = rules.contains(&"on") && !rules.contains(&"nopass");
    let hashes = rules.iter().filter_map(|rule| rule.strip_prefix('#')).filter(|_| usable);
    Some((namespace.to_owned(), hashes.map(ToOwned::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::super::LIBRARY_SOURCE;
    use super::*;

    /// What the library runs in functions that only the controller calls.
    const OF_THE_CONTROLLER: [&str; 2] = ["zcard", "del"];

    #[test]
    fn every_command_of_the_library_is_allowed_or_the_controllers() {
        let calls = LIBRARY_SOURCE.split("redis.call('").chain(LIBRARY_SOURCE.split("redis.pcall('"));
        let commands: BTreeSet<String> = calls
            .filter_map(|rest| rest.split_once('\''))
            .map(|(command, _)| command.to_lowercase())
            .filter(|command| !command.is_empty() && command.chars().all(|c| c.is_ascii_lowercase()))
            .collect();
        let known: BTreeSet<String> = INNER.iter().chain(&OF_THE_CONTROLLER).map(ToString::to_string).collect();
        assert_eq!(commands, known);
    }

    #[test]
    fn users_are_told_from_those_of_others() {
        let line = |name: &str, rules: &str| format!("user {name} {rules} -@all +ping");
        let one = user("p.direct.", &line("p.direct.shop", "on #aa #bb ~p:{shop/*")).unwrap();
        assert_eq!(one, ("shop".to_owned(), ["aa", "bb"].map(str::to_owned).into()));
        for rules in ["off #aa", "on nopass"] {
            assert_eq!(user("p.direct.", &line("p.direct.shop", rules)).unwrap().1, BTreeSet::new());
        }
        for name in ["default", "p.direct3.shop", "p.direct.q.direct.shop", "other.direct.shop"] {
            assert_eq!(user("p.direct.", &line(name, "on #aa")), None, "{name}");
        }
    }
}
