//! One request to a server of this machine, as a browser makes it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Code and body of the answer; `None`: no answer.
pub(crate) async fn ask(method: &str, address: &str, path: &str) -> Option<(u16, String)> {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let address = address.to_owned();
    let answer = tokio::task::spawn_blocking(move || exchange(&address, &request)).await.ok()??;
    let code = answer.split(' ').nth(1)?.parse().ok()?;
    Some((code, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

fn exchange(address: &str, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
