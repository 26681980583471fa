//! Tokens: what they may do and for how long. The token itself is shown once, in the answer that makes it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use llm_proxy_store::{NewToken, Paged, Token, TokenChange};
use serde::{Deserialize, Serialize};

use crate::Admin;
use crate::audit::{Caller, Deed};
use crate::extract::{Bare, Id, Listing, Sent, present};
use crate::fields::{self, MAX_DURATION_MINUTES, MAX_REQUESTS, MAX_REQUESTS_PER_MINUTE};
use crate::listing::{self, Created, List};
use crate::problem::Problem;

/// Counts that did not reach the store by then are shown as they were.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Serialize)]
pub(crate) struct TokenView {
    id: String,
    project_id: String,
    is_active: bool,
    expires_at: String,
    max_requests: Option<u64>,
    request_count: u64,
    requests_per_minute: Option<u32>,
    allowed_models: Option<Vec<String>>,
    created_at: String,
    last_used_at: Option<String>,
}

impl From<Token> for TokenView {
    fn from(token: Token) -> Self {
        Self {
            id: token.id,
            project_id: token.project_id,
            is_active: token.is_active,
            expires_at: fields::timestamp(token.expires_at_us),
            max_requests: token.max_requests,
            request_count: token.request_count,
            requests_per_minute: token.requests_per_minute,
            allowed_models: token.allowed_models,
            created_at: fields::timestamp(token.created_at_us),
            last_used_at: token.last_used_at_us.map(fields::timestamp),
        }
    }
}

/// The 201 of POST: the only place where a token is ever shown.
#[derive(Serialize)]
pub(crate) struct CreatedView {
    token: String,
    #[serde(flatten)]
    view: TokenView,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    project_id: Option<String>,
    cursor: Option<String>,
    limit: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateBody {
    project_id: String,
    duration_minutes: u64,
    max_requests: Option<u64>,
    requests_per_minute: Option<u64>,
    allowed_models: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateBody {
    #[serde(default, deserialize_with = "present")]
    is_active: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    max_requests: Option<Option<u64>>,
    #[serde(default, deserialize_with = "present")]
    requests_per_minute: Option<Option<u64>>,
    #[serde(default, deserialize_with = "present")]
    allowed_models: Option<Option<Vec<String>>>,
}

pub(crate) async fn list(
    State(admin): State<Arc<Admin>>,
    Listing(query): Listing<ListQuery>,
) -> Result<Json<List<TokenView>>, Problem> {
    let page = listing::page(query.cursor, query.limit)?;
    let project_id = query.project_id.as_deref();
    if let Some(id) = project_id {
        // An empty list would say that a mistyped project has no tokens.
        admin.store.project(id).await?.ok_or_else(Problem::project_not_found)?;
    }
    catch_up(&admin).await;
    let Paged { data, next_cursor } = admin.store.tokens(project_id, page).await?;
    Ok(Json(List { data: data.into_iter().map(TokenView::from).collect(), next_cursor }))
}

/// Makes a token. Its project may be inactive: the token then works as soon as the project is active.
///
/// It is answered whether or not the data plane has taken note: the token would be lost with an error, and a new one
/// takes nothing from anybody.
pub(crate) async fn create(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Sent(body): Sent<CreateBody>,
) -> Result<Created<CreatedView>, Problem> {
    let minutes = fields::within("duration_minutes", body.duration_minutes, 1..=MAX_DURATION_MINUTES)?;
    let new = NewToken {
        project_id: body.project_id,
        expires_at_us: from_now(minutes),
        max_requests: body.max_requests.map(max_requests).transpose()?,
        requests_per_minute: body.requests_per_minute.map(requests_per_minute).transpose()?,
        allowed_models: body.allowed_models.map(fields::allowed_models).transpose()?,
    };
    let store = admin.audited(caller, Deed("token.create", StatusCode::CREATED));
    let (token, shown_once) = store.create_token(new).await?;
    let location = format!("/manage/tokens/{}", token.id);
    Ok(Created { location, body: CreatedView { token: shown_once.expose().to_owned(), view: token.into() } })
}

pub(crate) async fn read(State(admin): State<Arc<Admin>>, Id(id): Id, _: Bare) -> Result<Json<TokenView>, Problem> {
    catch_up(&admin).await;
    let token = admin.store.token(&id).await?.ok_or_else(Problem::token_not_found)?;
    Ok(Json(token.into()))
}

/// Fields that are absent stay as they are. A limit that is null is lifted.
pub(crate) async fn update(
    State(admin): State<Arc<Admin>>,
    Id(id): Id,
    caller: Caller,
    Sent(body): Sent<UpdateBody>,
) -> Result<Json<TokenView>, Problem> {
    let change = TokenChange {
        is_active: body.is_active,
        max_requests: body.max_requests.map(|limit| limit.map(max_requests).transpose()).transpose()?,
        requests_per_minute: body
            .requests_per_minute
            .map(|limit| limit.map(requests_per_minute).transpose())
            .transpose()?,
        allowed_models: body.allowed_models.map(|list| list.map(fields::allowed_models).transpose()).transpose()?,
    };
    catch_up(&admin).await;
    let store = admin.audited(caller, Deed("token.update", StatusCode::OK));
    let updated = store.update_token(&id, change).await?.ok_or_else(Problem::token_not_found)?;
    admin.in_force().await?;
    Ok(Json(updated.into()))
}

/// Revokes a token for good measure as often as asked: 204 for every token that exists, revoked before or not, and
/// 404 for an id that never was one. The row stays, with its counts.
pub(crate) async fn revoke(
    State(admin): State<Arc<Admin>>,
    Id(id): Id,
    caller: Caller,
    _: Bare,
) -> Result<StatusCode, Problem> {
    let store = admin.audited(caller, Deed("token.revoke", StatusCode::NO_CONTENT));
    if !store.revoke_token(&id).await? {
        return Err(Problem::token_not_found());
    }
    admin.in_force().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The moment so many minutes ahead, in microseconds since the epoch.
fn from_now(minutes: u64) -> i64 {
    let minutes = i64::try_from(minutes).unwrap_or(i64::MAX);
    fields::now_us().saturating_add(minutes.saturating_mul(60_000_000))
}

/// Brings the counts in the store up to date.
pub(crate) async fn catch_up(admin: &Admin) {
    if tokio::time::timeout(CATCH_UP_TIMEOUT, (admin.catch_up)()).await.is_err() {
        tracing::warn!("Request counts are shown as they were: the newest did not reach the store in time");
    }
}

fn max_requests(number: u64) -> Result<u64, Problem> {
    fields::within("max_requests", number, 1..=MAX_REQUESTS)
}

fn requests_per_minute(number: u64) -> Result<u32, Problem> {
    fields::within("requests_per_minute", number, 1..=MAX_REQUESTS_PER_MINUTE).map(fields::fits)
}
