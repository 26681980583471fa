//! Provider keys at rest. Each project has its own random data-encryption key, sealed under the installation's
//! key-encryption key, and its provider keys are sealed under that: a new root key re-wraps one row per project.
//!
//! A provider key goes in and never comes out through the management side, which sees [`ProviderKeyInfo`].

use llm_proxy_core::secret::Secret;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use crate::error::StoreError;
use crate::seal::{self, Place, SealingKey};

/// What people may see of a provider key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderKeyInfo {
    /// Name of the API it belongs to.
    pub api: String,
    /// Its last four characters, to tell keys apart; empty for short ones.
    pub last4: String,
    /// When it was last set, microseconds since the epoch.
    pub updated_at_us: i64,
}

/// The key that seals a project's provider keys, with its row's id.
pub(crate) struct ProjectKey {
    row_id: String,
    key: SealingKey,
}

impl ProjectKey {
    /// Makes and saves one. The project's row must be there.
    pub(crate) async fn make(
        connection: &mut SqliteConnection,
        key_encryption_key: &SealingKey,
        project_id: &str,
        now_us: i64,
    ) -> Result<Self, StoreError> {
        let id = Uuid::now_v7();
        let row_id = id.to_string();
        let octets = seal::random::<32>()?;
        let sealed = key_encryption_key.seal(&project_key_place(&row_id, project_id), octets.as_slice())?;
        sqlx::query("INSERT INTO project_keys (id, project_id, sealed, created_at_us) VALUES (?, ?, ?, ?)")
            .bind(row_id.as_str())
            .bind(project_id)
            .bind(sealed)
            .bind(now_us)
            .execute(&mut *connection)
            .await?;
        Ok(Self { row_id, key: SealingKey::new(id.into_bytes(), &octets)? })
    }

    /// The newest one of the project.
    pub(crate) async fn newest(
        connection: &mut SqliteConnection,
        key_encryption_key: &SealingKey,
        project_id: &str,
    ) -> Result<Self, StoreError> {
        let select = "SELECT id, sealed FROM project_keys WHERE project_id = ? ORDER BY id DESC LIMIT 1";
        let row = sqlx::query(select).bind(project_id).fetch_optional(&mut *connection).await?;
        let row = row.ok_or_else(|| StoreError::Corrupt("a project has no key of its own".to_owned()))?;
        Self::open(key_encryption_key, row.try_get("id")?, project_id, &row.try_get::<Vec<u8>, _>("sealed")?)
    }

    fn open(
        key_encryption_key: &SealingKey,
        row_id: String,
        project_id: &str,
        sealed: &[u8],
    ) -> Result<Self, StoreError> {
        let octets = key_encryption_key.open(&project_key_place(&row_id, project_id), sealed)?;
        let octets = <&[u8; 32]>::try_from(octets.as_slice())
            .map_err(|_| StoreError::Corrupt("a project's key has a wrong length".to_owned()))?;
        let id = Uuid::parse_str(&row_id)
            .map_err(|_| StoreError::Corrupt("the id of a project's key is no UUID".to_owned()))?;
        let key = SealingKey::new(id.into_bytes(), octets)?;
        Ok(Self { row_id, key })
    }
}

/// Seals and saves the key of one API, in place of an earlier one.
pub(crate) async fn set(
    connection: &mut SqliteConnection,
    project_key: &ProjectKey,
    project_id: &str,
    (api, secret): (&str, &Secret),
    now_us: i64,
) -> Result<(), StoreError> {
    let select = "SELECT id, version FROM provider_keys WHERE project_id = ? AND api = ?";
    let kept: Option<(String, i64)> =
        sqlx::query_as(select).bind(project_id).bind(api).fetch_optional(&mut *connection).await?;
    let (row_id, version, statement) = match kept {
        Some((row_id, version)) => (row_id, version.saturating_add(1), UPDATE),
        None => (Uuid::now_v7().to_string(), 1, INSERT),
    };
    let sealed = project_key.key.seal(&provider_key_place(&row_id, project_id, version), secret.expose().as_bytes())?;
    sqlx::query(statement)
        .bind(project_key.row_id.as_str())
        .bind(sealed)
        .bind(version)
        .bind(secret.last4())
        .bind(now_us)
        .bind(project_id)
        .bind(api)
        .bind(row_id)
        .execute(&mut *connection)
        .await?;
    Ok(())
}

// Both bind the same values in the same order.
const UPDATE: &str = "UPDATE provider_keys SET project_key_id = ?, sealed = ?, version = ?, last4 = ?, updated_at_us = ? \
    WHERE project_id = ? AND api = ? AND id = ?";
const INSERT: &str = "INSERT INTO provider_keys \
    (project_key_id, sealed, version, last4, updated_at_us, project_id, api, id) VALUES (?, ?, ?, ?, ?, ?, ?, ?)";

/// Forgets the key of one API. None there is fine.
pub(crate) async fn remove(connection: &mut SqliteConnection, project_id: &str, api: &str) -> Result<(), StoreError> {
    let delete = "DELETE FROM provider_keys WHERE project_id = ? AND api = ?";
    sqlx::query(delete).bind(project_id).bind(api).execute(&mut *connection).await?;
    Ok(())
}

/// What may be seen of the keys of all projects from one id to another, both included, with the project's id before
/// each: one statement for a whole page of projects.
pub(crate) async fn infos(
    connection: &mut SqliteConnection,
    first_project_id: &str,
    last_project_id: &str,
) -> Result<Vec<(String, ProviderKeyInfo)>, StoreError> {
    let select = "SELECT project_id, api, last4, updated_at_us FROM provider_keys \
        WHERE project_id >= ? AND project_id <= ? ORDER BY project_id, api";
    let rows = sqlx::query(select).bind(first_project_id).bind(last_project_id).fetch_all(&mut *connection).await?;
    rows.iter().map(info).collect()
}

fn info(row: &SqliteRow) -> Result<(String, ProviderKeyInfo), StoreError> {
    let info = ProviderKeyInfo {
        api: row.try_get("api")?,
        last4: row.try_get("last4")?,
        updated_at_us: row.try_get("updated_at_us")?,
    };
    Ok((row.try_get("project_id")?, info))
}

/// Opens the provider key in a row with the columns `key_id`, `api`, `key_version`, `key_sealed`, `project_key_id` and
/// `project_key_sealed`. `None` where a left join found none.
pub(crate) fn opened(
    row: &SqliteRow,
    key_encryption_key: &SealingKey,
    project_id: &str,
) -> Result<Option<(String, Secret)>, StoreError> {
    let Some(row_id) = row.try_get::<Option<String>, _>("key_id")? else { return Ok(None) };
    let project_key_sealed: Vec<u8> = row.try_get("project_key_sealed")?;
    let project_key =
        ProjectKey::open(key_encryption_key, row.try_get("project_key_id")?, project_id, &project_key_sealed)?;
    let place = provider_key_place(&row_id, project_id, row.try_get("key_version")?);
    let plain = project_key.key.open(&place, &row.try_get::<Vec<u8>, _>("key_sealed")?)?;
    let plain =
        std::str::from_utf8(&plain).map_err(|_| StoreError::Corrupt("a provider key is not text".to_owned()))?;
    Ok(Some((row.try_get("api")?, Secret::new(plain))))
}

const fn project_key_place<'a>(row_id: &'a str, project_id: &'a str) -> Place<'a> {
    Place { label: "llm-proxy project key", row_id, project_id, version: 1 }
}

const fn provider_key_place<'a>(row_id: &'a str, project_id: &'a str, version: i64) -> Place<'a> {
    Place { label: "llm-proxy provider key", row_id, project_id, version }
}

#[cfg(test)]
mod tests {
    use crate::testing::Fixture;
    use crate::{NewProject, ProjectChange, StoreError};
    use llm_proxy_core::secret::Secret;

    fn keys(pairs: &[(&str, &str)]) -> Vec<(String, Secret)> {
        pairs.iter().map(|(api, key)| ((*api).to_owned(), Secret::new(*key))).collect()
    }

    #[tokio::test]
    async fn a_provider_key_is_nowhere_in_the_files() {
        let fixture = Fixture::new().await;
        let provider_keys = keys(&[("openai", "sk-canary-0123456789")]);
        let new = NewProject { provider_keys, ..Fixture::new_project("one") };
        fixture.store.create_project(new).await.unwrap();
        for file in std::fs::read_dir(fixture.folder.path()).unwrap() {
            let octets = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!octets.windows(9).any(|window| window == b"sk-canary"));
        }
    }

    #[tokio::test]
    async fn a_key_moved_to_another_row_does_not_open() {
        for (from, to) in [("openai", "anthropic"), ("openai", "elsewhere")] {
            let fixture = Fixture::new().await;
            for (name, apis) in [
                ("one", keys(&[("openai", "sk-one-0123456789"), ("anthropic", "sk-ant-0123456789")])),
                ("two", keys(&[("elsewhere", "sk-two-0123456789")])),
            ] {
                let new = NewProject { provider_keys: apis, ..Fixture::new_project(name) };
                let project = fixture.store.create_project(new).await.unwrap();
                let (_, token) = fixture.store.create_token(Fixture::new_token(&project.id)).await.unwrap();
                let digest = fixture.store.pepper().digest(&token);
                assert!(fixture.store.holder(&digest).await.is_ok());
                if project.provider_keys.iter().any(|key| key.api == to) {
                    let sql = "UPDATE provider_keys SET version = 1, \
                        sealed = (SELECT sealed FROM provider_keys WHERE api = ?), \
                        project_key_id = (SELECT project_key_id FROM provider_keys WHERE api = ?) WHERE api = ?";
                    let mut writer = fixture.store.database().writer().await.unwrap();
                    sqlx::query(sql).bind(from).bind(from).bind(to).execute(&mut *writer).await.unwrap();
                    drop(writer);
                    let holder = fixture.store.holder(&digest).await;
                    assert!(matches!(holder.err(), Some(StoreError::Corrupt(_))), "{from} to {to}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_key_in_plain_text_is_refused() {
        let fixture = Fixture::new().await;
        let (_, token) = fixture.token().await;
        fixture.sql("UPDATE provider_keys SET sealed = CAST('sk-in-plain-text' AS BLOB)").await;
        let holder = fixture.store.holder(&fixture.store.pepper().digest(&token)).await;
        assert!(matches!(holder.err(), Some(StoreError::Corrupt(_))));
    }

    #[tokio::test]
    async fn a_key_set_again_replaces_the_earlier_one() {
        let fixture = Fixture::new().await;
        let (project, token) = fixture.token().await;
        for key in ["sk-second-0123456789", "sk-third-9876543210"] {
            let set_keys = keys(&[("openai", key)]);
            fixture.store.update_project(&project.id, ProjectChange { set_keys, ..Default::default() }).await.unwrap();
            let holder = fixture.store.holder(&fixture.store.pepper().digest(&token)).await.unwrap().unwrap();
            assert_eq!(holder.provider_keys, keys(&[("openai", key)]));
        }
    }
}
