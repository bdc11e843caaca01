//! Asking a server whether something is so.

use std::time::Duration;

use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);

/// Who asks; the connection is kept for the next question.
pub(super) struct Asker(Client<HttpConnector, Empty<&'static [u8]>>);

impl Asker {
    pub(super) fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    /// Whether this address answers 2xx in time.
    pub(super) async fn says_yes(&self, uri: http::Uri) -> bool {
        let answer = tokio::time::timeout(ANSWER, self.0.get(uri)).await;
        answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status().is_success()))
    }
}
