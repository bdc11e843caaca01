//! All that a process has started, and its children, and theirs.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, getpid, kill_process};
use tokio::signal::unix::Signal as Signals;
use tokio::time::timeout;

use super::{LOOK, reap};

/// The processes below this one. It is a subreaper, so that none of them can leave.
pub(super) struct Tree {
    cgroup: Option<Leaf>,
}

/// A control group of the command alone. Its `cgroup.kill` reaches also those that fork meanwhile.
pub(super) struct Leaf(PathBuf);

impl Leaf {
    /// Makes one below this group, or below the one that this process is in. `None` where that is not possible.
    pub(super) fn make(parent: Option<&Path>, name: &str) -> Option<Self> {
        let parent = parent.map(Path::to_owned).or_else(own_cgroup)?;
        let folder = parent.join(format!("leasehold-{name}"));
        std::fs::create_dir(&folder).ok()?;
        let leaf = Self(folder);
        // Without it (before Linux 5.14) the leaf is of no use.
        leaf.0.join("cgroup.kill").exists().then_some(leaf)
    }

    /// One that was made before.
    pub(super) fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Moves this process into it.
    pub(super) fn join(folder: &Path) -> io::Result<()> {
        std::fs::write(folder.join("cgroup.procs"), "0")
    }

    fn kill(&self) {
        // What it doesn't reach is killed one by one.
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        // It is empty then, or somebody else still looks after it.
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Where the kernel shows the control group of this process, if it is of version 2.
fn own_cgroup() -> Option<PathBuf> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let fields: Vec<&str> = mount.split(' ').collect();
        let (root, point) = (fields.get(3)?, fields.get(4)?);
        let below = own.strip_prefix(root.trim_end_matches('/'))?;
        kind.starts_with("cgroup2 ").then(|| Path::new(point).join(below.trim_start_matches('/')))
    })
}

impl Tree {
    pub(super) fn new(cgroup: Option<Leaf>) -> Self {
        Self { cgroup }
    }

    /// Asks all of them to end; those that are stopped are woken to hear it.
    pub(super) fn terminate(&self) {
        for pid in descendants() {
            for signal in [Signal::TERM, Signal::CONT] {
                // It may have ended by now.
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// Kills until no child is left, and calls `see` with each and how it ended.
    pub(super) async fn kill_all(&self, children: &mut Signals, mut see: impl FnMut(Pid, u8)) {
        loop {
            self.kill();
            if !reap(&mut see) {
                return;
            }
            // A child's end wakes it; what forks meanwhile is found by the next look.
            let _ = timeout(LOOK, children.recv()).await;
        }
    }

    /// Kills all that are there now.
    fn kill(&self) {
        if let Some(leaf) = &self.cgroup {
            leaf.kill();
        }
        for pid in descendants() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// All processes below this one.
fn descendants() -> Vec<Pid> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let Some((pid, stat)) = pid.zip(std::fs::read_to_string(entry.path().join("stat")).ok()) else { continue };
        if let Some(parent) = parent(&stat) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![getpid().as_raw_nonzero().get()];
    while let Some(parent) = next.pop() {
        let below = children.remove(&parent).unwrap_or_default();
        found.extend(below.iter().copied().filter_map(Pid::from_raw));
        next.extend(below);
    }
    found
}

/// The parent, from `pid (name) state parent …`.
fn parent(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use rustix::process::kill_process_group;

    use super::*;

    #[test]
    fn a_parent_is_read_also_of_a_name_with_brackets() {
        assert_eq!(parent("12 (a) b) c) S 7 12 12 0"), Some(7));
        assert_eq!(parent("nonsense"), None);
    }

    #[test]
    fn a_child_and_its_child_are_found() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & wait"]).process_group(0).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while descendants().len() < 2 {
            assert!(Instant::now() < until, "{:?}", descendants());
            std::thread::yield_now();
        }
        kill_process_group(Pid::from_child(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
    }
}
