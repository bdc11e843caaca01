//! TLS for a redis-server.

use std::path::PathBuf;

use super::{RedisServer, Scratch, free_port};

/// An authority (`ca.crt`) and two certificates of it, for `server` and `client`; made with openssl.
pub(crate) struct Certificates(Scratch);

impl Certificates {
    pub(crate) fn new() -> Self {
        let script = r#"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.crt
for who in server client; do
  openssl req -newkey rsa:2048 -nodes -subj /CN=$who -keyout $who.key -out $who.csr
  printf 'subjectAltName=DNS:localhost' > san
  openssl x509 -req -days 2 -in $who.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile san -out $who.crt
done"#;
        let folder = Scratch::new("certificates");
        let made = std::process::Command::new("sh").args(["-ec", script]).current_dir(folder.path()).output();
        let made = made.expect("sh runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(folder)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).expect("a file")
    }

    /// A server that speaks TLS beside, and on which port. Unless `more` says otherwise it wants certificates of clients.
    pub(crate) async fn server(&self, more: &[&str]) -> (RedisServer, u16) {
        let port = free_port();
        let file = |name| self.file(name).display().to_string();
        let (told, ca, crt, key) = (port.to_string(), file("ca.crt"), file("server.crt"), file("server.key"));
        let tls = ["--tls-port", &told, "--tls-ca-cert-file", &ca, "--tls-cert-file", &crt, "--tls-key-file", &key];
        (RedisServer::with(&[&tls[..], more].concat()).await, port)
    }
}
