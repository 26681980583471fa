//! The admin plane: the management API under `/manage`, health, and metrics.
//!
//! It owns the store's admin side and knows nothing of the data plane: what it needs of the running process
//! (metrics, whether it drains, counts that are not yet in the store) comes in through [`AdminOptions`]. A change is
//! visible to every data plane as soon as its answer is sent, since the store announces it with the commit.
//!
//! Its one credential is the management token. It is not valid on the data plane, nor a proxy token here.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a test may be blunt"))]

mod credential;
mod extract;
mod fields;
mod listing;
mod middleware;
mod observe;
mod problem;
mod projects;
mod router;
mod serve;
mod tokens;

use std::sync::Arc;

use futures::future::BoxFuture;
use llm_proxy_core::secret::Secret;
use llm_proxy_store::Store;

use crate::credential::Credential;

pub use crate::router::router;
pub use crate::serve::serve;

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
    /// Brings `request_count` and `last_used_at` in the store up to date. Called before tokens are read, and given up
    /// on after a second: a stale count is better than no answer.
    pub catch_up: Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
    /// Waits until the data plane of this process acts on every change made so far. Called after each change and
    /// before its answer, and given up on after a second: who reads "revoked" can rely on it.
    pub applied: Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
}

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
        }
    }
}
