//! Every route of the admin plane.

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use http::{Method, StatusCode, Uri};
use llm_proxy_store::Store;

use crate::problem::Problem;
use crate::{Admin, AdminOptions, content, middleware, observe, projects, sinks, tokens, usage};

/// The admin plane as a service. Whatever is not one of `middleware::OPEN_PATHS` needs the management token, routes
/// that do not exist too.
pub fn router(store: Store, options: AdminOptions) -> Router {
    let admin = Arc::new(Admin::new(store, options));
    let routes = Router::new()
        .route("/health", get(observe::ready))
        .route("/health/live", get(observe::live))
        .route("/health/ready", get(observe::ready))
        .route("/metrics", get(observe::metrics))
        .route("/manage/projects", get(projects::list).post(projects::create))
        .route("/manage/projects/{id}", get(projects::read).patch(projects::update))
        .route("/manage/projects/{id}/tokens/revoke", post(projects::revoke_tokens))
        .route("/manage/tokens", get(tokens::list).post(tokens::create))
        .route("/manage/tokens/{id}", get(tokens::read).patch(tokens::update).delete(tokens::revoke))
        .route("/manage/usage", get(usage::list))
        .route("/manage/content/erase", post(content::erase))
        .route("/manage/sinks", get(sinks::list))
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed);
    middleware::wrap(routes, &admin).with_state(admin)
}

async fn unknown_route(uri: Uri) -> Problem {
    let detail = format!("there is no {}; the management API stands under /manage", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "unknown_route", detail)
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{method} is not for {}; the allow header lists what is", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}
