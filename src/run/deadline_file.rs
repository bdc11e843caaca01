//! The file that tells the command until when it holds.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::keeper::Standing;

/// One line, `SECONDS STANDING`: the deadline as the first number of `/proc/uptime` shows it, and `held`, `jeopardy` or
/// `lost`. It is replaced as a whole at each change, and removed at the end.
pub(super) struct DeadlineFile {
    folder: PathBuf,
}

impl DeadlineFile {
    /// Makes one that only this user can read, in the first folder of these that takes it.
    pub(super) fn make(name: &str) -> io::Result<Self> {
        let temp = std::env::temp_dir();
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let mut refused = io::Error::from(io::ErrorKind::NotFound);
        for parent in [runtime.as_deref(), Some(temp.as_path()), Some(Path::new("/dev/shm"))].into_iter().flatten() {
            let folder = parent.join(format!("leasehold-{name}"));
            match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => return Ok(Self { folder }),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("deadline")
    }

    pub(super) fn write(&self, deadline: Duration, standing: Standing) -> io::Result<()> {
        let standing = match standing {
            Standing::Held => "held",
            Standing::Jeopardy => "jeopardy",
            Standing::Lost => "lost",
        };
        let new = self.folder.join("new");
        std::fs::write(&new, format!("{}.{:03} {standing}\n", deadline.as_secs(), deadline.subsec_millis()))?;
        std::fs::rename(new, self.path())
    }
}

impl Drop for DeadlineFile {
    fn drop(&mut self) {
        // Left behind where it can't be removed: it says nothing that is a secret.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
