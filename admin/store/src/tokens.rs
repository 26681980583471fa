//! Tokens at rest: a digest, an expiry, limits. The token itself is in no row; it leaves the store once, when made.

use llm_proxy_core::token::ProxyToken;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};
use uuid::Uuid;

use crate::changes::{self, ChangeKind};
use crate::database::WRITE;
use crate::error::StoreError;
use crate::outbox::Mutation;
use crate::page::{Page, Paged};
use crate::seal;
use crate::store::{Store, now_us, to_its_end};

/// A token as the management side sees it. Times are microseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// UUIDv7. Public, and no part of the secret.
    pub id: String,
    /// The project whose provider keys it stands for.
    pub project_id: String,
    /// False once revoked.
    pub is_active: bool,
    /// From this moment on it is refused.
    pub expires_at_us: i64,
    /// Requests over its whole life; `None` is no limit.
    pub max_requests: Option<u64>,
    /// Requests whose first byte went to a provider, as far as the journals are counted.
    pub request_count: u64,
    /// `None` is no limit.
    pub requests_per_minute: Option<u32>,
    /// `None` is every model; an empty list is none.
    pub allowed_models: Option<Vec<String>>,
    /// When it was made.
    pub created_at_us: i64,
    /// The last counted request.
    pub last_used_at_us: Option<i64>,
}

/// A token to make.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// An existing project.
    pub project_id: String,
    /// Microseconds since the epoch.
    pub expires_at_us: i64,
    /// `None` is no limit. At most 2^63 - 1.
    pub max_requests: Option<u64>,
    /// `None` is no limit.
    pub requests_per_minute: Option<u32>,
    /// `None` is every model.
    pub allowed_models: Option<Vec<String>>,
}

/// What to change of a token. The outer `None` keeps what is there, the inner one lifts the limit.
#[derive(Debug, Clone, Default)]
pub struct TokenChange {
    /// False revokes.
    pub is_active: Option<bool>,
    /// A limit below what was already granted stops further grants; what was granted stays granted.
    pub max_requests: Option<Option<u64>>,
    /// Requests per minute.
    pub requests_per_minute: Option<Option<u32>>,
    /// Model names.
    pub allowed_models: Option<Option<Vec<String>>>,
}

/// What revoking all tokens of a project did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revoked {
    /// Tokens revoked now.
    pub revoked_count: u64,
    /// Tokens that were revoked before.
    pub already_revoked_count: u64,
    /// Both together.
    pub total_tokens: u64,
}

impl Store {
    /// Makes a token of 160 random bits. The clear token leaves the store only here.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such project, [`StoreError::Invalid`] for a limit past 2^63 - 1.
    pub async fn create_token(&self, new: NewToken) -> Result<(Token, ProxyToken), StoreError> {
        let store = self.clone();
        to_its_end(async move { create(&store, new).await }).await
    }

    /// The token with this id.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`].
    pub async fn token(&self, id: &str) -> Result<Option<Token>, StoreError> {
        let row = sqlx::query(SELECT_ONE).bind(id).fetch_optional(self.database().readers()).await?;
        row.as_ref().map(token).transpose()
    }

    /// A page of the tokens of one project, or of all, oldest first. An unknown project has none.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a cursor that no page gave.
    pub async fn tokens(&self, project_id: Option<&str>, page: Page) -> Result<Paged<Token>, StoreError> {
        let query = match project_id {
            Some(project_id) => sqlx::query(SELECT_OF_PROJECT).bind(project_id),
            None => sqlx::query(SELECT_ALL),
        };
        let query = query.bind(page.after()?).bind(page.rows_to_read());
        let rows = query.fetch_all(self.database().readers()).await?;
        let tokens = rows.iter().map(token).collect::<Result<Vec<_>, _>>()?;
        Ok(page.cut(tokens, |token| token.id.as_str()))
    }

    /// Changes a token and tells the feed. `None`: there is no such token.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a limit past 2^63 - 1.
    pub async fn update_token(&self, id: &str, change: TokenChange) -> Result<Option<Token>, StoreError> {
        let (store, id) = (self.clone(), id.to_owned());
        to_its_end(async move { update(&store, &id, change).await }).await
    }

    /// Revokes a token; its row stays. Tells whether there is such a token. Revoking again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: it may still be active.
    pub async fn revoke_token(&self, id: &str) -> Result<bool, StoreError> {
        let (store, id) = (self.clone(), id.to_owned());
        to_its_end(async move { revoke(&store, &id).await }).await
    }

    /// Revokes every token of a project. The feed hears of it as one change. `None`: no such project.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: they may still be active.
    pub async fn revoke_project_tokens(&self, project_id: &str) -> Result<Option<Revoked>, StoreError> {
        let (store, project_id) = (self.clone(), project_id.to_owned());
        to_its_end(async move { revoke_all(&store, &project_id).await }).await
    }
}

const SELECT_ONE: &str = "SELECT id, project_id, digest, is_active, expires_at_us, max_requests, request_count, \
    requests_per_minute, allowed_models, created_at_us, last_used_at_us FROM tokens WHERE id = ?";
const SELECT_OF_PROJECT: &str = "SELECT id, project_id, is_active, expires_at_us, max_requests, request_count, \
    requests_per_minute, allowed_models, created_at_us, last_used_at_us FROM tokens \
    WHERE project_id = ? AND id > ? ORDER BY id LIMIT ?";
const SELECT_ALL: &str = "SELECT id, project_id, is_active, expires_at_us, max_requests, request_count, \
    requests_per_minute, allowed_models, created_at_us, last_used_at_us FROM tokens \
    WHERE id > ? ORDER BY id LIMIT ?";

async fn create(store: &Store, new: NewToken) -> Result<(Token, ProxyToken), StoreError> {
    let secret = ProxyToken::from_random(*seal::random::<20>()?);
    let digest = store.pepper().digest(&secret);
    let made = Token {
        id: Uuid::now_v7().to_string(),
        project_id: new.project_id,
        is_active: true,
        expires_at_us: new.expires_at_us,
        max_requests: new.max_requests,
        request_count: 0,
        requests_per_minute: new.requests_per_minute,
        allowed_models: new.allowed_models,
        created_at_us: now_us(),
        last_used_at_us: None,
    };
    let mut connection = store.database().writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    if !project_exists(&mut transaction, &made.project_id).await? {
        return Err(StoreError::NotFound { what: "the project" });
    }
    let insert = "INSERT INTO tokens (id, project_id, digest, is_active, expires_at_us, max_requests, granted, \
        request_count, requests_per_minute, allowed_models, created_at_us) VALUES (?, ?, ?, ?, ?, ?, 0, 0, ?, ?, ?)";
    sqlx::query(insert)
        .bind(made.id.as_str())
        .bind(made.project_id.as_str())
        .bind(digest.as_bytes().as_slice())
        .bind(made.is_active)
        .bind(made.expires_at_us)
        .bind(limit(made.max_requests)?)
        .bind(made.requests_per_minute)
        .bind(models(made.allowed_models.as_deref())?)
        .bind(made.created_at_us)
        .execute(&mut *transaction)
        .await?;
    let kind = ChangeKind::Token { id: made.id.clone(), digest, is_active: made.is_active };
    let change = changes::record(&mut transaction, kind, made.created_at_us).await?;
    store.record(&mut transaction, Mutation::Token { before: None, after: &made }).await?;
    transaction.commit().await?;
    store.announce(change);
    Ok((made, secret))
}

async fn update(store: &Store, id: &str, change: TokenChange) -> Result<Option<Token>, StoreError> {
    let mut connection = store.database().writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    let row = sqlx::query(SELECT_ONE).bind(id).fetch_optional(&mut *transaction).await?;
    let Some(row) = row else { return Ok(None) };
    let kept = token(&row)?;
    let changed = Token {
        is_active: change.is_active.unwrap_or(kept.is_active),
        max_requests: change.max_requests.unwrap_or(kept.max_requests),
        requests_per_minute: change.requests_per_minute.unwrap_or(kept.requests_per_minute),
        allowed_models: change.allowed_models.unwrap_or_else(|| kept.allowed_models.clone()),
        ..kept.clone()
    };
    let update = "UPDATE tokens SET is_active = ?, max_requests = ?, requests_per_minute = ?, allowed_models = ? \
        WHERE id = ?";
    sqlx::query(update)
        .bind(changed.is_active)
        .bind(limit(changed.max_requests)?)
        .bind(changed.requests_per_minute)
        .bind(models(changed.allowed_models.as_deref())?)
        .bind(id)
        .execute(&mut *transaction)
        .await?;
    if changed != kept {
        store.record(&mut transaction, Mutation::Token { before: Some(&kept), after: &changed }).await?;
    }
    let kind = ChangeKind::Token { id: id.to_owned(), digest: changes::digest(&row)?, is_active: changed.is_active };
    let change = changes::record(&mut transaction, kind, now_us()).await?;
    transaction.commit().await?;
    store.announce(change);
    Ok(Some(changed))
}

async fn revoke(store: &Store, id: &str) -> Result<bool, StoreError> {
    let mut connection = store.database().writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    let row = sqlx::query(SELECT_ONE).bind(id).fetch_optional(&mut *transaction).await?;
    let Some(row) = row else { return Ok(false) };
    let kept = token(&row)?;
    if !kept.is_active {
        return Ok(true);
    }
    sqlx::query("UPDATE tokens SET is_active = ? WHERE id = ?").bind(false).bind(id).execute(&mut *transaction).await?;
    let revoked = Token { is_active: false, ..kept.clone() };
    store.record(&mut transaction, Mutation::Token { before: Some(&kept), after: &revoked }).await?;
    let kind = ChangeKind::Token { id: id.to_owned(), digest: changes::digest(&row)?, is_active: false };
    let change = changes::record(&mut transaction, kind, now_us()).await?;
    transaction.commit().await?;
    store.announce(change);
    Ok(true)
}

async fn revoke_all(store: &Store, project_id: &str) -> Result<Option<Revoked>, StoreError> {
    let mut connection = store.database().writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    if !project_exists(&mut transaction, project_id).await? {
        return Ok(None);
    }
    let total_tokens: u64 = sqlx::query_scalar("SELECT COUNT(*) FROM tokens WHERE project_id = ?")
        .bind(project_id)
        .fetch_one(&mut *transaction)
        .await?;
    let revoked_count = sqlx::query("UPDATE tokens SET is_active = ? WHERE project_id = ? AND is_active = ?")
        .bind(false)
        .bind(project_id)
        .bind(true)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
    let already_revoked_count = total_tokens.saturating_sub(revoked_count);
    let revoked = Revoked { revoked_count, already_revoked_count, total_tokens };
    if revoked_count > 0 {
        store.record(&mut transaction, Mutation::TokensRevoked { project_id, revoked: &revoked }).await?;
        let kind = ChangeKind::TokensRevoked { project_id: project_id.to_owned() };
        let change = changes::record(&mut transaction, kind, now_us()).await?;
        transaction.commit().await?;
        store.announce(change);
    }
    Ok(Some(revoked))
}

async fn project_exists(connection: &mut SqliteConnection, project_id: &str) -> Result<bool, StoreError> {
    let select = "SELECT COUNT(*) FROM projects WHERE id = ?";
    let found: i64 = sqlx::query_scalar(select).bind(project_id).fetch_one(&mut *connection).await?;
    Ok(found > 0)
}

fn token(row: &SqliteRow) -> Result<Token, StoreError> {
    Ok(Token {
        id: row.try_get("id")?,
        project_id: row.try_get("project_id")?,
        is_active: row.try_get("is_active")?,
        expires_at_us: row.try_get("expires_at_us")?,
        max_requests: row.try_get("max_requests")?,
        request_count: row.try_get("request_count")?,
        requests_per_minute: row.try_get("requests_per_minute")?,
        allowed_models: allowed_models(row)?,
        created_at_us: row.try_get("created_at_us")?,
        last_used_at_us: row.try_get("last_used_at_us")?,
    })
}

/// The column `allowed_models` of this row.
pub(crate) fn allowed_models(row: &SqliteRow) -> Result<Option<Vec<String>>, StoreError> {
    let json: Option<String> = row.try_get("allowed_models")?;
    json.map(|json| serde_json::from_str(&json))
        .transpose()
        .map_err(|_| StoreError::Corrupt("the model list of a token is no list of texts".to_owned()))
}

fn models(models: Option<&[String]>) -> Result<Option<String>, StoreError> {
    models
        .map(serde_json::to_string)
        .transpose()
        .map_err(|error| StoreError::Invalid(format!("the model list cannot be stored: {error}")))
}

fn limit(max_requests: Option<u64>) -> Result<Option<i64>, StoreError> {
    max_requests
        .map(i64::try_from)
        .transpose()
        .map_err(|_| StoreError::Invalid(format!("max_requests is above {}", i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;

    #[tokio::test]
    async fn a_made_token_is_found_again_and_its_secret_is_nowhere() {
        let fixture = Fixture::new().await;
        let project = fixture.project("one").await;
        let new = NewToken {
            max_requests: Some(10),
            requests_per_minute: Some(u32::MAX),
            allowed_models: Some(vec!["gpt-4o\" ü".to_owned()]),
            ..Fixture::new_token(&project.id)
        };
        let (made, secret) = fixture.store.create_token(new).await.unwrap();
        assert_eq!(fixture.store.token(&made.id).await.unwrap().unwrap(), made);
        assert!(fixture.store.token("nobody").await.unwrap().is_none());
        for file in std::fs::read_dir(fixture.folder.path()).unwrap() {
            let octets = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!octets.windows(39).any(|window| window == secret.expose().as_bytes()));
        }
    }

    #[tokio::test]
    async fn a_token_needs_a_project_and_a_limit_that_fits() {
        let fixture = Fixture::new().await;
        let made = fixture.store.create_token(Fixture::new_token("nobody")).await;
        assert!(matches!(made.err(), Some(StoreError::NotFound { .. })));
        let project = fixture.project("one").await;
        let new = NewToken { max_requests: Some(u64::MAX), ..Fixture::new_token(&project.id) };
        assert!(matches!(fixture.store.create_token(new).await.err(), Some(StoreError::Invalid(_))));
    }

    #[tokio::test]
    async fn a_change_touches_what_it_names_only() {
        let fixture = Fixture::new().await;
        let project = fixture.project("one").await;
        let new = NewToken { max_requests: Some(10), ..Fixture::new_token(&project.id) };
        let (made, _) = fixture.store.create_token(new).await.unwrap();
        let models = Some(Vec::new());
        for (change, expected) in [
            (TokenChange::default(), made.clone()),
            (
                TokenChange { requests_per_minute: Some(Some(5)), ..Default::default() },
                Token { requests_per_minute: Some(5), ..made.clone() },
            ),
            (
                TokenChange { allowed_models: Some(models.clone()), max_requests: Some(None), ..Default::default() },
                Token {
                    requests_per_minute: Some(5),
                    allowed_models: models.clone(),
                    max_requests: None,
                    ..made.clone()
                },
            ),
            (
                TokenChange {
                    is_active: Some(false),
                    requests_per_minute: Some(None),
                    allowed_models: Some(None),
                    ..Default::default()
                },
                Token { is_active: false, max_requests: None, ..made.clone() },
            ),
        ] {
            let changed = fixture.store.update_token(&made.id, change).await.unwrap().unwrap();
            assert_eq!(changed, expected);
            assert_eq!(fixture.store.token(&made.id).await.unwrap().unwrap(), expected);
        }
        assert!(fixture.store.update_token("nobody", TokenChange::default()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn revoking_is_idempotent_and_keeps_the_row() {
        let fixture = Fixture::new().await;
        let project = fixture.project("one").await;
        let (made, _) = fixture.store.create_token(Fixture::new_token(&project.id)).await.unwrap();
        for _ in 0..2 {
            assert!(fixture.store.revoke_token(&made.id).await.unwrap());
            assert!(!fixture.store.token(&made.id).await.unwrap().unwrap().is_active);
        }
        assert!(!fixture.store.revoke_token("nobody").await.unwrap());
        assert_eq!(fixture.store.change_position().await.unwrap(), 3, "revoking again is no change");
    }

    #[tokio::test]
    async fn revoking_a_project_leaves_other_projects_alone() {
        let fixture = Fixture::new().await;
        let (one, two) = (fixture.project("one").await, fixture.project("two").await);
        let mut ids = Vec::new();
        for project in [&one, &one, &one, &two] {
            ids.push(fixture.store.create_token(Fixture::new_token(&project.id)).await.unwrap().0.id);
        }
        fixture.store.revoke_token(&ids[0]).await.unwrap();
        let mut heard = fixture.store.subscribe();
        for (revoked_count, already_revoked_count) in [(2, 1), (0, 3)] {
            let revoked = fixture.store.revoke_project_tokens(&one.id).await.unwrap().unwrap();
            assert_eq!(revoked, Revoked { revoked_count, already_revoked_count, total_tokens: 3 });
        }
        assert_eq!(heard.recv().await.unwrap().kind, ChangeKind::TokensRevoked { project_id: one.id });
        assert!(heard.try_recv().is_err());
        assert!(fixture.store.token(&ids[3]).await.unwrap().unwrap().is_active);
        assert!(fixture.store.revoke_project_tokens("nobody").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn pages_hold_every_token_of_the_project_once() {
        let fixture = Fixture::new().await;
        let (one, two) = (fixture.project("one").await, fixture.project("two").await);
        let mut made = Vec::new();
        for project in [&one, &two, &one, &one, &two] {
            made.push(fixture.store.create_token(Fixture::new_token(&project.id)).await.unwrap().0);
        }
        for (project_id, expected) in [(Some(one.id.as_str()), 3), (Some(two.id.as_str()), 2), (None, 5), (Some(""), 0)]
        {
            let mut page = Page { cursor: None, limit: 2 };
            let mut found = Vec::new();
            loop {
                let paged = fixture.store.tokens(project_id, page.clone()).await.unwrap();
                found.extend(paged.data);
                page.cursor = paged.next_cursor;
                if page.cursor.is_none() {
                    break;
                }
            }
            let of_project = |token: &&Token| project_id.is_none_or(|id| token.project_id == id);
            assert_eq!(found.len(), expected);
            assert!(found.iter().eq(made.iter().filter(of_project)));
        }
    }
}
