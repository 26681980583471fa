//! Health and metrics.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::{StatusCode, header};
use llm_proxy_store::Store;
use serde::Serialize;

use crate::problem::Problem;
use crate::{Admin, Health};

/// A store that needs longer than this to answer does not serve requests either.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// The content type of the Prometheus text format.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Serialize)]
pub(crate) struct Status {
    status: &'static str,
}

/// The process runs. Says nothing about the store, so that a supervisor does not restart a healthy process for it.
pub(crate) async fn live() -> Json<Status> {
    Json(Status { status: "live" })
}

/// The process takes work: the store can be read and written, and nothing drains.
pub(crate) async fn ready(State(admin): State<Arc<Admin>>) -> Result<Json<Status>, Problem> {
    if let Health::NotReady(reason) = (admin.health)().await {
        return Err(not_ready(reason));
    }
    match tokio::time::timeout(PING_TIMEOUT, ask(&admin.store)).await {
        Ok(Ok(())) => Ok(Json(Status { status: "ready" })),
        Ok(Err(reason)) => Err(not_ready(reason.to_owned())),
        Err(_) => Err(not_ready(format!("the store did not answer within {} seconds", PING_TIMEOUT.as_secs()))),
    }
}

/// Reads and writes. What the store says of a failure goes to the log: anybody who reaches the listener reads the answer.
async fn ask(store: &Store) -> Result<(), &'static str> {
    store.ping().await.map_err(|error| {
        tracing::warn!(%error, "Not ready: the store refused a ping");
        "the store does not answer"
    })?;
    store.try_write().await.map_err(|error| {
        tracing::warn!(%error, "Not ready: the store cannot be written");
        "the store cannot be written: its disk may be full, the log has the reason"
    })
}

pub(crate) async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], (admin.render_metrics)())
}

fn not_ready(reason: String) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", reason)
}
