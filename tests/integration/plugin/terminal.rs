//! Where the plugin is called: a kubeconfig whose context names the test's namespace, and who is logged in there.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::support::{LIMIT, Process, Scratch, TestNamespace};

/// What a call has come to.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: Option<i32>,
    pub(super) out: String,
    pub(super) err: String,
}

impl Answer {
    /// What it has printed, if all went well.
    pub(super) fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// It has failed with one line that says this.
    pub(super) fn fails(self, says: &str) {
        assert_eq!((self.code, self.out.as_str()), (Some(1), ""), "{self:?}");
        assert!(self.err.starts_with("error: ") && self.err.lines().count() == 1, "{self:?}");
        assert!(self.err.contains(says), "{says:?} is not in {self:?}");
    }

    /// The cells of its table, by lines without the headings.
    pub(super) fn cells(self) -> Vec<Vec<String>> {
        let out = self.good();
        let cells =
            |line: &str| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).map(Into::into).collect();
        out.lines().skip(1).map(cells).collect()
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Links to the binary, for kubectl to find it as a plugin where the folder is in the path.
pub(crate) fn link(folder: &Scratch) {
    for name in ["kubectl-leasehold", "kubectl_complete-leasehold"] {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_leasehold"), folder.path().join(name)).expect("a link");
    }
}

/// A terminal of somebody.
pub(super) struct Terminal {
    folder: Scratch,
    pub(super) kubeconfig: PathBuf,
}

impl Terminal {
    /// Of the administrator.
    pub(super) fn new(test: &TestNamespace) -> Self {
        Self::with(test, |config| config)
    }

    /// Of another user, by impersonation.
    pub(super) fn of(test: &TestNamespace, user: &str) -> Self {
        Self::with(test, |config| config.replace(r#""admin-token""#, &format!(r#""admin-token", "as": "{user}""#)))
    }

    /// With another kubeconfig.
    pub(super) fn with(test: &TestNamespace, change: impl FnOnce(String) -> String) -> Self {
        let config = std::fs::read_to_string(test.plane().kubeconfig("admin")).expect("a kubeconfig");
        let context = r#""user": "test"}}]"#;
        assert!(config.contains(context), "{config}");
        let named = format!(r#""user": "test", "namespace": "{}"}}}}]"#, test.name());
        Self::over(&change(config.replace(context, &named)))
    }

    /// With this kubeconfig.
    pub(super) fn over(config: &str) -> Self {
        let folder = Scratch::new("plugin");
        let kubeconfig = folder.write("kubeconfig", config);
        link(&folder);
        Self { folder, kubeconfig }
    }

    /// The binary, by its name as a plugin.
    pub(super) fn link(&self) -> String {
        self.folder.path().join("kubectl-leasehold").display().to_string()
    }

    /// Where that is, before everything else.
    pub(super) fn path(&self) -> String {
        format!("{}:{}", self.folder.path().display(), std::env::var("PATH").unwrap_or_default())
    }

    /// Calls the plugin.
    pub(super) async fn run(&self, words: &str) -> Answer {
        self.call(&words.split_whitespace().collect::<Vec<_>>()).await
    }

    pub(super) async fn call(&self, words: &[&str]) -> Answer {
        let mut command = Command::new("timeout");
        command.args(["60", &self.link()]).args(words).env("KUBECONFIG", &self.kubeconfig);
        tokio::task::spawn_blocking(move || command.output().expect("it runs").into()).await.expect("it ends")
    }

    /// Starts it, so that it can be interrupted; what it prints goes into files.
    pub(super) fn start(&self, words: &str) -> Started {
        let args: Vec<String> = words.split_whitespace().map(ToOwned::to_owned).collect();
        let (out, err) = (self.folder.append("out"), self.folder.append("err"));
        let process = Process::start(&self.link(), &args, |command| {
            command.env("KUBECONFIG", &self.kubeconfig).stdout(out).stderr(err);
        });
        Started { process, folder: self.folder.path().to_owned() }
    }
}

/// A call that goes on.
pub(super) struct Started {
    pub(super) process: Process,
    folder: PathBuf,
}

impl Started {
    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// Waits until it has said this.
    pub(super) async fn says(&self, words: &str) {
        crate::support::wait_for(words, LIMIT, async || self.text("err").contains(words).then_some(())).await;
    }

    /// Waits until it has ended.
    pub(super) async fn answer(mut self) -> Answer {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.exit_status() {
                return Answer { code: status.code(), out: self.text("out"), err: self.text("err") };
            }
            assert!(start.elapsed() < LIMIT, "it doesn't end: {}", self.text("err"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
