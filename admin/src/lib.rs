//! The admin plane: the management API under `/manage`, health, and metrics.
//!
//! It owns the store's admin side and knows nothing of the data plane: what it needs of the running process
//! (metrics, whether it drains, counts that are not yet in the store) comes in through [`AdminOptions`]. The store
//! announces a change with its commit, and its success is answered when the data plane acts on it: where that cannot be
//! confirmed, the answer is an error that says so.
//!
//! What the data plane has done comes by way of its journal: [`UsageCounter`] brings it to the store. What administrators
//! do goes there: [`Courier`] brings it from the store.
//!
//! Its one credential is the management token. It is not valid on the data plane, nor a proxy token here.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a test may be blunt"))]

mod audit;
mod content;
mod counter;
mod courier;
mod credential;
mod extract;
mod fields;
mod listing;
mod middleware;
mod observe;
mod problem;
mod projects;
mod router;
mod seldom;
mod serve;
mod sinks;
mod tokens;
mod usage;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::StatusCode;
use llm_proxy_core::secret::Secret;
use llm_proxy_store::Store;

use crate::credential::Credential;
use crate::problem::Problem;

pub use crate::content::{EraseRequest, Erased};
pub use crate::counter::{Asker, CounterError, UsageCounter};
pub use crate::courier::Courier;
pub use crate::router::router;
pub use crate::serve::serve;
pub use crate::sinks::SinkStatus;

/// The longest wait for the data plane to act on a change. It takes milliseconds.
const APPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// What the admin plane must be told about the process that it runs in.
pub struct AdminOptions {
    /// The bearer credential of `/manage` and `/metrics`. An empty one admits nobody.
    pub management_token: Secret,
    /// The names of the configured APIs; provider keys can be set for these.
    pub known_apis: Vec<String>,
    /// The API that a bare `api_key` belongs to; one of `known_apis`.
    pub default_api: String,
    /// The metrics of the process in the Prometheus text format.
    pub render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Whether the process takes work, the store apart (which is asked here).
    pub health: Arc<dyn Fn() -> BoxFuture<'static, Health> + Send + Sync>,
    /// Brings `request_count`, `last_used_at` and usage in the store up to date ([`Asker::catch_up`]). Called before
    /// tokens or usage are read, and given up on after a second: a stale count is better than no answer.
    pub catch_up: Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
    /// Waits until the data plane of this process acts on every change made so far, for ever where that cannot be
    /// known. Called after each change and before its answer: who reads "revoked" can rely on it. Given up on after a
    /// second.
    pub applied: Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
    /// What records may have of an administrator's address, `None` where they have none: the same as of a client's.
    pub client_address: Arc<dyn Fn(IpAddr) -> Option<String> + Send + Sync>,
    /// Erases what is kept of bodies, everywhere in reach of this process. The error is for the log: some of it may
    /// still be there, and the same request may be made again.
    pub erase: Erase,
    /// The sinks that this process serves, in the order of the settings.
    pub sinks: Arc<dyn Fn() -> Vec<SinkStatus> + Send + Sync>,
}

/// Erases content: [`AdminOptions::erase`].
pub type Erase = Arc<dyn Fn(EraseRequest) -> BoxFuture<'static, Result<Erased, String>> + Send + Sync>;

/// Whether the process takes work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Ready,
    /// It does not, for this reason (one short sentence; anybody who reaches the listener can read it).
    NotReady(String),
}

/// What the handlers share.
pub(crate) struct Admin {
    store: Store,
    credential: Credential,
    known_apis: Vec<String>,
    default_api: String,
    render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    health: Arc<dyn Fn() -> BoxFuture<'static, Health> + Send + Sync>,
    applied: Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
    catch_up: Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
    client_address: Arc<dyn Fn(IpAddr) -> Option<String> + Send + Sync>,
    erase: Erase,
    sinks: Arc<dyn Fn() -> Vec<SinkStatus> + Send + Sync>,
}

impl Admin {
    fn new(store: Store, options: AdminOptions) -> Self {
        Self {
            store,
            credential: Credential::new(&options.management_token),
            known_apis: options.known_apis,
            default_api: options.default_api,
            render_metrics: options.render_metrics,
            health: options.health,
            catch_up: options.catch_up,
            applied: options.applied,
            client_address: options.client_address,
            erase: options.erase,
            sinks: options.sinks,
        }
    }

    /// Waits until the data plane acts on what the caller has changed in the store.
    ///
    /// # Errors
    /// When that is not confirmed within a second: a success would be believed. The same request, sent again, changes
    /// nothing more and is answered when what it says holds.
    pub(crate) async fn in_force(&self) -> Result<(), Problem> {
        tokio::time::timeout(APPLY_TIMEOUT, (self.applied)()).await.map_err(|_| {
            tracing::warn!("The data plane has not taken note of a change within {APPLY_TIMEOUT:?}");
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not_yet_in_force",
                "the change is stored and will stay, but the data plane did not confirm in time that it acts on it; it \
                 will as soon as it can. Send the request again to learn when",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::Router;
    use axum::body::{Body, to_bytes};
    use futures::FutureExt;
    use http::{Request, header};
    use llm_proxy_store::{ContentPolicy, NewProject, NewToken, RootKey};
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    const CREDENTIAL: &str = "management-token-of-this-test";

    /// The answer's status, whether it says when to try again, and its body.
    async fn send(router: &Router, method: &str, path: &str, body: &str) -> (u16, bool, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {CREDENTIAL}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_owned()))
            .unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let retry_after = response.headers().contains_key(header::RETRY_AFTER);
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, retry_after, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn a_change_that_is_not_confirmed_to_be_in_force_is_kept_and_not_called_a_success() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("store.db").display());
        let store = Store::open(&url, &RootKey::generate().unwrap()).await.unwrap();
        let is_following = Arc::new(AtomicBool::new(false));
        let following = Arc::clone(&is_following);
        let router = router(
            store.clone(),
            AdminOptions {
                management_token: Secret::new(CREDENTIAL),
                known_apis: Vec::new(),
                default_api: String::new(),
                render_metrics: Arc::new(String::new),
                health: Arc::new(|| std::future::ready(Health::Ready).boxed()),
                catch_up: Arc::new(|| std::future::ready(()).boxed()),
                applied: Arc::new(move || {
                    let is_following = following.load(Ordering::Relaxed);
                    async move {
                        if !is_following {
                            std::future::pending().await
                        }
                    }
                    .boxed()
                }),
                client_address: Arc::new(|_| None),
                erase: Arc::new(|_| std::future::ready(Ok(Erased::default())).boxed()),
                sinks: Arc::new(Vec::new),
            },
        );
        let new = NewProject {
            name: "one".to_owned(),
            is_active: true,
            content: ContentPolicy::default(),
            provider_keys: Vec::new(),
        };
        let project = store.create_project(new).await.unwrap().id;
        let mut tokens = Vec::new();
        for _ in 0..3 {
            let new = NewToken {
                project_id: project.clone(),
                expires_at_us: i64::MAX,
                max_requests: None,
                requests_per_minute: None,
                allowed_models: None,
            };
            tokens.push(store.create_token(new).await.unwrap().0.id);
        }
        let changes = [
            ("DELETE", format!("/manage/tokens/{}", tokens[0]), "", 204),
            ("PATCH", format!("/manage/tokens/{}", tokens[1]), r#"{"is_active":false}"#, 200),
            ("PATCH", format!("/manage/projects/{project}"), r#"{"name":"two"}"#, 200),
            ("POST", format!("/manage/projects/{project}/tokens/revoke"), "", 200),
        ];
        let new_token = format!(r#"{{"project_id":"{project}","duration_minutes":1}}"#);
        let unconfirmed = changes.iter().map(|(method, path, body, _)| send(&router, method, path, body));
        let (unconfirmed, made) =
            tokio::join!(futures::future::join_all(unconfirmed), send(&router, "POST", "/manage/tokens", &new_token),);
        for ((method, path, ..), (status, retry_after, problem)) in changes.iter().zip(unconfirmed) {
            assert_eq!((status, retry_after), (503, true), "{method} {path}: {problem}");
            assert_eq!(problem["code"], "not_yet_in_force", "{method} {path}: {problem}");
        }
        assert_eq!(store.project(&project).await.unwrap().unwrap().name, "two");
        for id in &tokens {
            assert!(!store.token(id).await.unwrap().unwrap().is_active);
        }
        assert_eq!(made.0, 201, "a token is shown this once: {}", made.2);

        is_following.store(true, Ordering::Relaxed);
        for (method, path, body, expected) in &changes {
            let (status, _, told) = send(&router, method, path, body).await;
            assert_eq!(status, *expected, "{method} {path}, again: {told}");
        }
    }
}
