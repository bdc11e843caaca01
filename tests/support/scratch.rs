//! Folders that go with the process that made them.

use std::fs::{File, OpenOptions};
use std::io::{PipeWriter, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// `$0` is the folder. Reading ends when nobody is left who could write.
const KEEPER: &str = r#"mkdir -m 700 "$0" && echo made; exec >&-; read -r _; until rm -rf "$0"; do sleep 0.1; done"#;

/// A folder of one's own, removed when dropped.
///
/// A shell removes it when its standard input is closed: by this process, which may be killed, and by every process
/// that has [`Self::lifeline`] and could still write into the folder.
pub(crate) struct Scratch {
    path: PathBuf,
    lifeline: Option<PipeWriter>,
    keeper: Child,
}

impl Scratch {
    pub(crate) fn new(what: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("leasehold-{what}-{}-{number}", std::process::id()));
        let (input, lifeline) = std::io::pipe().expect("a pipe");
        let mut command = Command::new("sh");
        // In a group of its own, so that Ctrl-C at a terminal doesn't reach it.
        command.args(["-c", KEEPER]).arg(&path).stdin(input).stdout(Stdio::piped()).process_group(0);
        let mut keeper = command.spawn().expect("sh runs");
        let mut made = String::new();
        keeper.stdout.take().expect("it is piped").read_to_string(&mut made).expect("sh writes");
        assert_eq!(made.trim(), "made", "{} can't be made", path.display());
        Self { path, lifeline: Some(lifeline), keeper }
    }

    /// For the standard input of a process that writes into the folder: it stays as long as that lives.
    pub(crate) fn lifeline(&self) -> Stdio {
        self.lifeline.as_ref().expect("only a drop takes it").try_clone().expect("a pipe").into()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file in it to write at its end.
    pub(crate) fn append(&self, name: &str) -> File {
        let mut options = OpenOptions::new();
        options.create(true).append(true).open(self.path.join(name)).expect("a file in a temporary folder")
    }

    /// Writes a file in it.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::write(&path, text).expect("a file in a temporary folder");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        self.keeper.wait().ok();
    }
}
