//! Every layer of the admin plane, outermost first: the headers of every answer, then the credential.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};

use crate::Admin;

/// The paths that need no credential. Everything else does: a new route is closed until it is listed here.
pub(crate) const OPEN_PATHS: [&str; 3] = ["/health", "/health/live", "/health/ready"];

/// Puts the layers around all routes, known and unknown.
pub(crate) fn wrap(routes: Router<Arc<Admin>>, admin: &Arc<Admin>) -> Router<Arc<Admin>> {
    // axum runs the layer that was added last first.
    routes.layer(from_fn_with_state(Arc::clone(admin), authenticate)).layer(from_fn(standard_headers))
}

async fn standard_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    // Answers show projects, tokens and counts as they are now: no cache may keep them.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn authenticate(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let is_open = OPEN_PATHS.contains(&request.uri().path());
    if !is_open && let Err(problem) = admin.credential.judge(request.headers()) {
        return problem.into_response();
    }
    next.run(request).await
}
