//! Errors as the caller sees them: Problem Details, RFC 9457, with a `code` for programs.
//!
//! `type` is always `about:blank`, so `title` is the status phrase (RFC 9457 §4.2.1) and `code` tells apart what the
//! status does not. A detail says what to do about it, names the field, and never repeats a value that was sent: the
//! value may be a provider key that stood in the wrong place.

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use llm_proxy_store::StoreError;
use serde::Serialize;

/// One refusal or failure, ready to be answered.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
}

/// Seconds a caller should wait when the store is busy. Its locks are held for milliseconds.
const RETRY_AFTER: &str = "1";

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, detail: detail.into() }
    }

    /// A field of the body is missing, unknown, of the wrong type or out of its range.
    pub(crate) fn field(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_field", detail)
    }

    /// The query string is not understood.
    pub(crate) fn query(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_query", detail)
    }

    pub(crate) fn project_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "project_not_found", "no project has this id; GET /manage/projects lists them")
    }

    pub(crate) fn token_not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "token_not_found",
            "no token has this id (the id, not the token itself); GET /manage/tokens lists them",
        )
    }

    /// A fault of ours. What happened is logged, the caller learns that it did.
    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the server failed to do this; its log has the reason. Read the resource back before trying again",
        )
    }

    pub(crate) fn store_unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "store_unavailable",
            "the store is busy or does not answer; try again",
        )
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { what } => {
                Self::new(StatusCode::CONFLICT, "conflict", format!("{what} is already taken; choose another"))
            }
            StoreError::NotFound { what: "the project" } => Self::project_not_found(),
            StoreError::NotFound { what } => {
                Self::new(StatusCode::NOT_FOUND, "not_found", format!("{what} does not exist"))
            }
            StoreError::Invalid(reason) => Self::new(StatusCode::BAD_REQUEST, "invalid_request", reason),
            StoreError::Unavailable(_) => {
                tracing::warn!(%error, "The management API could not use the store");
                Self::store_unavailable()
            }
            StoreError::Corrupt(_) | StoreError::Schema(_) | StoreError::WrongRootKey { .. } => {
                tracing::error!(%error, "The management API found the store unusable");
                Self::internal()
            }
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'static str,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
        };
        let text = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (self.status, text).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
            }
            _ => {}
        }
        response
    }
}
