//! What the data plane must know of a token to serve it: its limits, its project, and the real keys behind it.

use llm_proxy_core::secret::Secret;
use llm_proxy_core::token::TokenDigest;
use sqlx::Row;

use crate::content::ContentPolicy;
use crate::error::StoreError;
use crate::provider_keys;
use crate::store::Store;
use crate::tokens::allowed_models;

/// A token with everything that one request needs. Holds provider keys in the clear: it cannot be serialized, and the
/// keys do not show in its `Debug`.
#[derive(Debug, Clone)]
pub struct Holder {
    /// Public id of the token.
    pub token_id: String,
    /// Its project.
    pub project_id: String,
    /// False once revoked.
    pub token_active: bool,
    /// False while the project is switched off.
    pub project_active: bool,
    /// Microseconds since the epoch.
    pub expires_at_us: i64,
    /// `None` is no limit; with one, each request needs a part of a [`Lease`](crate::Lease).
    pub max_requests: Option<u64>,
    /// `None` is no limit.
    pub requests_per_minute: Option<u32>,
    /// `None` is every model.
    pub allowed_models: Option<Vec<String>>,
    /// What the project lets be kept of bodies.
    pub content: ContentPolicy,
    /// API name and key, by API name.
    pub provider_keys: Vec<(String, Secret)>,
}

/// One statement, so that token, project and keys are of one moment.
const SELECT: &str = "SELECT t.id AS token_id, t.project_id AS project_id, t.is_active AS token_active, \
    p.is_active AS project_active, t.expires_at_us AS expires_at_us, t.max_requests AS max_requests, \
    t.requests_per_minute AS requests_per_minute, t.allowed_models AS allowed_models, \
    p.content_capture AS content_capture, p.content_max_bytes AS content_max_bytes, \
    p.content_retention_days AS content_retention_days, \
    k.id AS key_id, k.api AS api, k.version AS key_version, k.sealed AS key_sealed, \
    d.id AS project_key_id, d.sealed AS project_key_sealed \
    FROM tokens t JOIN projects p ON p.id = t.project_id \
    LEFT JOIN provider_keys k ON k.project_id = p.id \
    LEFT JOIN project_keys d ON d.id = k.project_key_id \
    WHERE t.digest = ? ORDER BY k.api";

impl Store {
    /// The holder of the token with this digest, revoked and expired ones too: what to answer is the caller's decision.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; [`StoreError::Corrupt`] when a provider key of the project does not open.
    pub async fn holder(&self, digest: &TokenDigest) -> Result<Option<Holder>, StoreError> {
        let rows = sqlx::query(SELECT).bind(digest.as_bytes().as_slice()).fetch_all(self.database().readers()).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let project_id: String = row.try_get("project_id")?;
        let keys = rows.iter().map(|row| provider_keys::opened(row, self.key_encryption_key(), &project_id));
        // A project without keys is one row without a key.
        let provider_keys = keys.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(Holder {
            token_id: row.try_get("token_id")?,
            token_active: row.try_get("token_active")?,
            project_active: row.try_get("project_active")?,
            expires_at_us: row.try_get("expires_at_us")?,
            max_requests: row.try_get("max_requests")?,
            requests_per_minute: row.try_get("requests_per_minute")?,
            allowed_models: allowed_models(row)?,
            content: ContentPolicy::of_row(row)?,
            project_id,
            provider_keys,
        }))
    }
}

#[cfg(test)]
mod tests {
    use llm_proxy_core::token::ProxyToken;

    use super::*;
    use crate::testing::Fixture;
    use crate::{NewToken, ProjectChange};

    #[tokio::test]
    async fn a_holder_has_the_real_keys_and_shows_none() {
        let fixture = Fixture::new().await;
        let project = fixture.project("one").await;
        let new = NewToken {
            max_requests: Some(7),
            requests_per_minute: Some(60),
            allowed_models: Some(vec!["gpt-4o".to_owned()]),
            ..Fixture::new_token(&project.id)
        };
        let (made, secret) = fixture.store.create_token(new).await.unwrap();
        let set_keys = vec![("anthropic".to_owned(), Secret::new("sk-ant-0123456789"))];
        fixture.store.update_project(&project.id, ProjectChange { set_keys, ..Default::default() }).await.unwrap();

        let digest = fixture.store.pepper().digest(&secret);
        let holder = fixture.store.holder(&digest).await.unwrap().unwrap();
        assert_eq!((&holder.token_id, &holder.project_id), (&made.id, &project.id));
        assert!(holder.token_active && holder.project_active);
        assert_eq!(holder.expires_at_us, made.expires_at_us);
        assert_eq!((holder.max_requests, holder.requests_per_minute), (Some(7), Some(60)));
        assert_eq!(holder.allowed_models, made.allowed_models);
        let keys: Vec<_> = holder.provider_keys.iter().map(|(api, key)| (api.as_str(), key.expose())).collect();
        assert_eq!(keys, [("anthropic", "sk-ant-0123456789"), ("openai", "sk-live-0123456789")]);
        assert!(!format!("{holder:?}").contains("0123456789"));
    }

    #[tokio::test]
    async fn revoked_and_switched_off_holders_are_told_apart_from_unknown_ones() {
        let fixture = Fixture::new().await;
        let (project, secret) = fixture.token().await;
        let digest = fixture.store.pepper().digest(&secret);
        fixture.store.revoke_project_tokens(&project.id).await.unwrap();
        let change =
            ProjectChange { is_active: Some(false), remove_keys: vec!["openai".to_owned()], ..Default::default() };
        fixture.store.update_project(&project.id, change).await.unwrap();
        let holder = fixture.store.holder(&digest).await.unwrap().unwrap();
        assert!(!holder.token_active && !holder.project_active && holder.provider_keys.is_empty());

        let unknown = fixture.store.pepper().digest(&ProxyToken::from_random([1; 20]));
        assert!(fixture.store.holder(&unknown).await.unwrap().is_none());
    }
}
