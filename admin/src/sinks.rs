//! Where events go, and how far behind each receiver is. What a sink is, is not known here: its state comes in through
//! [`AdminOptions`](crate::AdminOptions).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::Admin;
use crate::extract::Bare;
use crate::listing::List;

/// The state of one sink. Its figures count events since the process began.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SinkStatus {
    /// Its name in the settings.
    pub name: String,
    /// What it speaks: `file`, `webhook` and so on.
    pub kind: String,
    /// How it fares, in a word of the metrics.
    pub health: String,
    /// Acknowledged by the receiver.
    pub delivered: u64,
    /// Those that the receiver had already.
    pub duplicates: u64,
    /// Given up, and kept in the dead-letter file.
    pub dead: u64,
    /// Lost before they were read.
    pub dropped: u64,
    /// Attempts that failed and were made again.
    pub retried: u64,
    /// Records of the journal that the sink has not come to; an exchange has two.
    pub pending_records: u64,
    /// Age of the oldest of them; 0 without any.
    pub lag_seconds: f64,
    /// Why the last call failed, until one gets through. No secrets.
    pub last_error: Option<String>,
}

/// All of them, in the order of the settings.
pub(crate) async fn list(State(admin): State<Arc<Admin>>, _: Bare) -> Json<List<SinkStatus>> {
    Json(List { data: (admin.sinks)(), next_cursor: None })
}
