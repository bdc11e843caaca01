//! The client for the API server. It asks once: whoever asks decides again, from what is so then, what to do about a refusal.
//! Where failpoints are armed, it lets no write pass that has none.

use kube::{Client, Config};

/// A client of the controller's.
///
/// # Errors
/// What is wrong with the configuration.
pub fn client(mut config: Config) -> kube::Result<Client> {
    // It would go on for minutes: also with an eviction that a budget forbids, deaf to the end of the pod meanwhile.
    config.default_retry = false;
    #[cfg(debug_assertions)]
    return Ok(kube::client::ClientBuilder::try_from(config)?.with_layer(&guard::MustBeNamed).build());
    #[cfg(not(debug_assertions))]
    Client::try_from(config)
}

#[cfg(debug_assertions)]
mod guard {
    use std::task::{Context, Poll};

    use futures::FutureExt;
    use futures::future::BoxFuture;
    use http::{Method, Request};
    use tower::{Layer, Service};

    use crate::failpoint::must_be_named;

    #[derive(Clone)]
    pub(super) struct MustBeNamed;

    impl<S> Layer<S> for MustBeNamed {
        type Service = Guarded<S>;

        fn layer(&self, inner: S) -> Guarded<S> {
            Guarded(inner)
        }
    }

    #[derive(Clone)]
    pub(super) struct Guarded<S>(S);

    impl<B, S> Service<Request<B>> for Guarded<S>
    where
        S: Service<Request<B>>,
        S::Future: Send + 'static,
    {
        type Response = S::Response;
        type Error = S::Error;
        type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
            self.0.poll_ready(cx)
        }

        /// The answer is waited for in the task that writes, and only there it is known by what name.
        fn call(&mut self, request: Request<B>) -> Self::Future {
            let is_dry = request.uri().query().is_some_and(|query| query.contains("dryRun=All"));
            let writes = request.method() != Method::GET && !is_dry;
            let write = writes.then(|| format!("{} {}", request.method(), request.uri().path()));
            let answer = self.0.call(request);
            async move {
                if let Some(write) = write {
                    must_be_named(|| write);
                }
                answer.await
            }
            .boxed()
        }
    }
}
