//! What all resources share: pages of lists, and the answer that shows a new resource.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use llm_proxy_store::Page;
use serde::Serialize;

use crate::problem::Problem;

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 200;

/// One page of a list. `next_cursor` is null on the last.
#[derive(Serialize)]
pub(crate) struct List<T> {
    pub(crate) data: Vec<T>,
    pub(crate) next_cursor: Option<String>,
}

/// The page that a query asks for: 50 items from the start, if it does not say.
pub(crate) fn page(cursor: Option<String>, limit: Option<String>) -> Result<Page, Problem> {
    let limit = match limit {
        None => DEFAULT_LIMIT,
        Some(text) => match text.parse() {
            Ok(limit @ 1..=MAX_LIMIT) => limit,
            _ => return Err(Problem::query(format!("`limit` must be a whole number from 1 to {MAX_LIMIT}"))),
        },
    };
    // Scripts start with `cursor=` and then fill it in.
    Ok(Page { cursor: cursor.filter(|text| !text.is_empty()), limit })
}

/// A resource that was just made: 201 with its place.
pub(crate) struct Created<T> {
    /// The path of the new resource.
    pub(crate) location: String,
    pub(crate) body: T,
}

impl<T: Serialize> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        (StatusCode::CREATED, [(header::LOCATION, self.location)], Json(self.body)).into_response()
    }
}
