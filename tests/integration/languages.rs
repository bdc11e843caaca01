//! The programs in `docs/examples/languages`, with the real runtimes: they work while they hold, with their token, and no
//! longer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rstest::rstest;

use crate::agent::Agent;
use crate::run::fixture::{SOON, Scene};
use crate::support::{Process, Scratch, wait_for};

const LEASE: Duration = Duration::from_secs(3);
/// Longer than a unit of work.
const A_WHILE: Duration = Duration::from_secs(1);

type Writes = Arc<Mutex<Vec<(Instant, i64)>>>;

/// What the programs write to by HTTP: it notes when, and with which token.
struct Resource {
    url: String,
    writes: Writes,
}

impl Resource {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/report", listener.local_addr().expect("an address"));
        let writes = Writes::default();
        let noted = writes.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let noted = noted.clone();
                std::thread::spawn(move || serve(stream, &noted));
            }
        });
        Self { url, writes }
    }

    fn writes(&self) -> Vec<(Instant, i64)> {
        self.writes.lock().expect("no thread has failed").clone()
    }

    /// Waits until there are so many.
    async fn has(&self, count: usize, program: &str) -> Vec<(Instant, i64)> {
        let many = async || Some(self.writes()).filter(|writes| writes.len() >= count);
        wait_for(&format!("{program} works"), 2 * SOON, many).await
    }

    /// All that was written came before that moment.
    fn is_idle_since(&self, moment: Instant, program: &str) {
        let (last, _) = *self.writes().last().expect("it has worked");
        assert!(last < moment, "{program} worked {:?} beside the next holder", last - moment);
        println!("{program}: its last write was {:?} before the next grant", moment - last);
    }
}

/// One request.
fn serve(stream: TcpStream, noted: &Writes) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut token, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("fencing-token", value)) => token = value.parse().ok(),
            Some(("content-length", value)) => length = value.parse().ok()?,
            Some(_) => {}
            None if line.trim_end().is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    assert_eq!(body, b"worked");
    noted.lock().expect("no thread has failed").push((Instant::now(), token?));
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    reader.into_inner().write_all(answer).ok()
}

/// The words that start a program; `None`, which is said, where its runtime isn't there.
fn command(runtime: &str, file: &str) -> Option<[String; 2]> {
    let asked = Command::new(runtime).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !asked.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {runtime} isn't here, which {file} needs");
        return None;
    }
    let path = format!("{}/docs/examples/languages/{file}", env!("CARGO_MANIFEST_DIR"));
    Some([runtime.to_owned(), path])
}

#[rstest]
#[case::python("python3", "python/elect.py")]
#[case::node("node", "node/elect.mjs")]
#[case::java("java", "java/Elect.java")]
#[tokio::test]
async fn a_program_works_while_its_agent_holds(#[case] runtime: &str, #[case] file: &str) {
    let Some([runtime, path]) = command(runtime, file) else { return };
    let (scene, resource, scratch) = (Scene::with_lease(LEASE).await, Resource::start(), Scratch::new("language"));
    let other = scene.hold().await;
    let agent = Agent::start(&scene, "a", "");
    scene.is_queued().await;
    let _program = Process::start(&runtime, &[path, resource.url.clone()], |start| {
        start.env("LEASEHOLD_AGENT", format!("http://{}", agent.address)).stderr(scratch.append("err"));
    });
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(resource.writes().len(), 0, "another holds it");
    let before = other.token().get();
    other.release().await.unwrap();
    let writes = resource.has(3, file).await;
    let token = agent.hold().await.unwrap()["fencingToken"].as_i64().unwrap();
    assert!(token > before && writes.iter().all(|(_, sent)| *sent == token), "{token}: {writes:?}");

    scene.proxy.hold_replies(true);
    let next = scene.next(SOON).await;
    let granted = Instant::now();
    tokio::time::sleep(A_WHILE).await;
    resource.is_idle_since(granted, file);
    scene.proxy.hold_replies(false);
    let (done, newest) = (resource.writes().len(), next.token().get());
    next.release().await.unwrap();
    let writes = resource.has(done + 2, file).await;
    assert!(writes[done..].iter().all(|(_, sent)| *sent > newest), "{newest}: {writes:?}");
    let errors = std::fs::read_to_string(scratch.path().join("err")).unwrap();
    assert_eq!(errors, "");
}

#[rstest]
#[case::python("python3", "python/run.py")]
#[case::node("node", "node/run.mjs")]
#[case::java("java", "java/Run.java")]
#[tokio::test]
async fn a_program_works_under_run_until_it_is_done_or_stopped(#[case] runtime: &str, #[case] file: &str) {
    let Some([runtime, path]) = command(runtime, file) else { return };
    let (scene, resource) = (Scene::with_lease(LEASE).await, Resource::start());
    let start = |count: &str| scene.run_command("", &[&runtime, &path, &resource.url, count]);
    let mut run = start("3");
    assert_eq!(run.status(2 * SOON).await.code(), Some(0), "{}", run.errors());
    let writes = resource.writes();
    let token = writes[0].1;
    assert!(writes.len() == 3 && writes.iter().all(|(_, sent)| *sent == token), "{writes:?}");

    let mut run = start("1000000");
    let writes = resource.has(6, file).await;
    assert!(writes[3..].iter().all(|(_, sent)| *sent > token), "{token}: {writes:?}");
    scene.proxy.hold_replies(true);
    let next = scene.next(SOON).await;
    let granted = Instant::now();
    assert_eq!(run.code().await, Some(120), "{}", run.errors());
    resource.is_idle_since(granted, file);
    assert!(next.token().get() > resource.writes().last().unwrap().1);
}
