//! Projects: a name, whether it may be used, what it lets be kept of bodies, and the provider keys behind its tokens. Keys
//! go in and never come out.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use llm_proxy_core::secret::Secret;
use llm_proxy_store::{ContentChange, ContentPolicy, NewProject, Paged, Project, ProjectChange, Revoked};
use serde::{Deserialize, Serialize};

use crate::Admin;
use crate::audit::{Caller, Deed};
use crate::extract::{Bare, Id, Listing, Object, Sent, present};
use crate::fields::{self, SentSecret};
use crate::listing::{self, Created, List};
use crate::problem::Problem;

#[derive(Serialize)]
pub(crate) struct ProjectView {
    id: String,
    name: String,
    is_active: bool,
    content: ContentView,
    provider_keys: Vec<ProviderKeyView>,
    created_at: String,
    updated_at: String,
}

#[derive(Serialize)]
struct ContentView {
    capture: &'static str,
    max_bytes: u32,
    retention_days: Option<u32>,
}

#[derive(Serialize)]
struct ProviderKeyView {
    api: String,
    last4: String,
    updated_at: String,
}

impl From<Project> for ProjectView {
    fn from(project: Project) -> Self {
        let provider_keys = project.provider_keys.into_iter().map(|key| ProviderKeyView {
            api: key.api,
            last4: key.last4,
            updated_at: fields::timestamp(key.updated_at_us),
        });
        Self {
            id: project.id,
            name: project.name,
            is_active: project.is_active,
            content: project.content.into(),
            provider_keys: provider_keys.collect(),
            created_at: fields::timestamp(project.created_at_us),
            updated_at: fields::timestamp(project.updated_at_us),
        }
    }
}

impl From<ContentPolicy> for ContentView {
    fn from(content: ContentPolicy) -> Self {
        let ContentPolicy { capture, max_bytes, retention_days } = content;
        Self { capture: capture.name(), max_bytes, retention_days }
    }
}

#[derive(Serialize)]
pub(crate) struct RevokedView {
    revoked_count: u64,
    already_revoked_count: u64,
    total_tokens: u64,
}

impl From<Revoked> for RevokedView {
    fn from(revoked: Revoked) -> Self {
        let Revoked { revoked_count, already_revoked_count, total_tokens } = revoked;
        Self { revoked_count, already_revoked_count, total_tokens }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    cursor: Option<String>,
    limit: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateBody {
    name: String,
    #[serde(default, deserialize_with = "present")]
    is_active: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    content: Option<Object<ContentBody>>,
    api_key: Option<SentSecret>,
    #[serde(default)]
    provider_keys: Vec<Object<ProviderKeyBody>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateBody {
    #[serde(default, deserialize_with = "present")]
    name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    is_active: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    content: Option<Object<ContentBody>>,
    #[serde(default, deserialize_with = "present")]
    api_key: Option<Option<SentSecret>>,
    #[serde(default)]
    provider_keys: Vec<Object<ProviderKeyBody>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ContentBody {
    #[serde(default, deserialize_with = "present")]
    capture: Option<String>,
    #[serde(default, deserialize_with = "present")]
    max_bytes: Option<u64>,
    #[serde(default, deserialize_with = "present")]
    retention_days: Option<Option<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderKeyBody {
    api: String,
    #[serde(default, deserialize_with = "present")]
    key: Option<Option<SentSecret>>,
}

pub(crate) async fn list(
    State(admin): State<Arc<Admin>>,
    Listing(query): Listing<ListQuery>,
) -> Result<Json<List<ProjectView>>, Problem> {
    let page = listing::page(query.cursor, query.limit)?;
    let Paged { data, next_cursor } = admin.store.projects(page).await?;
    Ok(Json(List { data: data.into_iter().map(ProjectView::from).collect(), next_cursor }))
}

pub(crate) async fn create(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Sent(body): Sent<CreateBody>,
) -> Result<Created<ProjectView>, Problem> {
    let name = fields::project_name(&body.name)?;
    let keys = key_changes(&admin, body.api_key.map(Some), body.provider_keys)?;
    if let Some(api) = keys.removed.first() {
        return Err(Problem::field(format!("`provider_keys`: a new project has no key of {api} to remove")));
    }
    let content = ContentPolicy::default().with(content_change(body.content)?);
    let new = NewProject { name, is_active: body.is_active.unwrap_or(true), content, provider_keys: keys.set };
    let project = admin.audited(caller, Deed("project.create", StatusCode::CREATED)).create_project(new).await?;
    Ok(Created { location: format!("/manage/projects/{}", project.id), body: project.into() })
}

pub(crate) async fn read(State(admin): State<Arc<Admin>>, Id(id): Id, _: Bare) -> Result<Json<ProjectView>, Problem> {
    let project = admin.store.project(&id).await?.ok_or_else(Problem::project_not_found)?;
    Ok(Json(project.into()))
}

/// Fields that are absent stay as they are. A key that is null is removed.
pub(crate) async fn update(
    State(admin): State<Arc<Admin>>,
    Id(id): Id,
    caller: Caller,
    Sent(body): Sent<UpdateBody>,
) -> Result<Json<ProjectView>, Problem> {
    let name = body.name.as_deref().map(fields::project_name).transpose()?;
    let keys = key_changes(&admin, body.api_key, body.provider_keys)?;
    let content = content_change(body.content)?;
    let change =
        ProjectChange { name, is_active: body.is_active, content, set_keys: keys.set, remove_keys: keys.removed };
    let store = admin.audited(caller, Deed("project.update", StatusCode::OK));
    let updated = store.update_project(&id, change).await?.ok_or_else(Problem::project_not_found)?;
    admin.in_force().await?;
    Ok(Json(updated.into()))
}

/// Revokes every token of the project. Tokens that were revoked before are counted apart.
pub(crate) async fn revoke_tokens(
    State(admin): State<Arc<Admin>>,
    Id(id): Id,
    caller: Caller,
    _: Bare,
) -> Result<Json<RevokedView>, Problem> {
    let store = admin.audited(caller, Deed("project.revoke_tokens", StatusCode::OK));
    let revoked = store.revoke_project_tokens(&id).await?.ok_or_else(Problem::project_not_found)?;
    admin.in_force().await?;
    Ok(Json(revoked.into()))
}

/// What a body says about content. What it does not say stays.
fn content_change(content: Option<Object<ContentBody>>) -> Result<ContentChange, Problem> {
    let Some(Object(ContentBody { capture, max_bytes, retention_days })) = content else {
        return Ok(ContentChange::default());
    };
    Ok(ContentChange {
        capture: capture.as_deref().map(fields::capture).transpose()?,
        max_bytes: max_bytes.map(fields::capture_bytes).transpose()?,
        retention_days: retention_days.map(|days| days.map(fields::retention_days).transpose()).transpose()?,
    })
}

/// What a body says about provider keys: each API at most once, and known.
#[derive(Default)]
struct KeyChanges {
    set: Vec<(String, Secret)>,
    removed: Vec<String>,
}

impl KeyChanges {
    fn names(&self, api: &str) -> bool {
        self.set.iter().any(|(named, _)| named == api) || self.removed.iter().any(|named| named == api)
    }

    fn push(&mut self, api: String, field: &str, key: Option<SentSecret>) -> Result<(), Problem> {
        match key {
            Some(key) => self.set.push((api, fields::provider_key(field, key)?)),
            None => self.removed.push(api),
        }
        Ok(())
    }
}

/// `api_key`, which is the default API's, and `provider_keys` together.
fn key_changes(
    admin: &Admin,
    api_key: Option<Option<SentSecret>>,
    provider_keys: Vec<Object<ProviderKeyBody>>,
) -> Result<KeyChanges, Problem> {
    let mut changes = KeyChanges::default();
    if let Some(key) = api_key {
        changes.push(admin.default_api.clone(), "api_key", key)?;
    }
    for (place, Object(ProviderKeyBody { api, key })) in provider_keys.into_iter().enumerate() {
        if !admin.known_apis.contains(&api) {
            let known = admin.known_apis.join(", ");
            return Err(Problem::field(format!("`provider_keys[{place}].api` must be one of: {known}")));
        }
        if changes.names(&api) {
            return Err(Problem::field(format!(
                "`provider_keys[{place}]` names {api} a second time (`api_key` is the key of {})",
                admin.default_api
            )));
        }
        let Some(key) = key else {
            return Err(Problem::field(format!(
                "`provider_keys[{place}].key` is missing: a key, or null to remove it"
            )));
        };
        changes.push(api, &format!("provider_keys[{place}].key"), key)?;
    }
    Ok(changes)
}
