//! The secrets of the whole installation: a check value, which finds a wrong root key at the start, and the pepper.
//!
//! Both are made with the database. Half of them, or none beside projects, means that rows were lost: then nothing new
//! is made up, because a new pepper would silently disown every token.

use llm_proxy_core::token::Pepper;
use sqlx::SqliteConnection;

use crate::error::StoreError;
use crate::root_key::RootKey;
use crate::seal::{self, Place, SealError, SealingKey};

const CHECK: &str = "root_key_check";
const PEPPER: &str = "token_pepper";
/// What is sealed as the check value. That it opens is the check; what it says does not matter.
const CHECK_TEXT: &[u8] = b"the root key fits";

/// What the root key opened.
pub(crate) struct Secrets {
    pub key_encryption_key: SealingKey,
    pub pepper: Pepper,
}

/// Opens the secrets, or makes them in a new database, whose root key is in its file before that. The caller holds the
/// write transaction.
pub(crate) async fn open_or_make(
    connection: &mut SqliteConnection,
    root_key: &RootKey,
    now_us: i64,
) -> Result<Secrets, StoreError> {
    let is_new = is_new(connection).await?;
    match (sealed(connection, CHECK).await?, sealed(connection, PEPPER).await?) {
        (Some(check), Some(pepper)) => {
            let key = fitting(root_key, &check)?;
            let octets = key.open(&place(PEPPER), &pepper)?;
            let octets = <&[u8; 32]>::try_from(octets.as_slice())
                .map_err(|_| StoreError::Corrupt("the token pepper has a wrong length".to_owned()))?;
            Ok(Secrets { key_encryption_key: key, pepper: Pepper::new(octets) })
        }
        (None, None) if is_new => {
            let key = root_key.kept()?.key_encryption_key()?;
            let octets = seal::random::<32>()?;
            save(connection, &key, CHECK, CHECK_TEXT, now_us).await?;
            save(connection, &key, PEPPER, octets.as_slice(), now_us).await?;
            Ok(Secrets { key_encryption_key: key, pepper: Pepper::new(&octets) })
        }
        _ => Err(StoreError::Corrupt("rows of sealed_secrets are missing. Restore it from a backup".to_owned())),
    }
}

/// The key-encryption key, if the check value was sealed with it.
fn fitting(root_key: &RootKey, check: &[u8]) -> Result<SealingKey, StoreError> {
    let root_key = root_key.reread()?;
    let key = root_key.key_encryption_key()?;
    match (key.open(&place(CHECK), check), root_key.unwritten()) {
        (Ok(_), _) => Ok(key),
        (Err(SealError::OtherKey { sealed_by }), None) => Err(StoreError::WrongRootKey {
            sealed_by: seal::fingerprint(&sealed_by),
            given: seal::fingerprint(key.id()),
        }),
        // A key that was made for want of one.
        (Err(SealError::OtherKey { sealed_by }), Some(path)) => Err(StoreError::Invalid(format!(
            "this database was sealed with the root key {}, which is missing: it is expected in {}, or as ROOT_KEY. Put \
             it back, since a backup of one is of no use without the other; no new one was made",
            seal::fingerprint(&sealed_by),
            path.display()
        ))),
        (Err(error), _) => Err(error.into()),
    }
}

async fn is_new(connection: &mut SqliteConnection) -> Result<bool, StoreError> {
    let projects: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM projects").fetch_one(&mut *connection).await?;
    Ok(projects == 0)
}

async fn sealed(connection: &mut SqliteConnection, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let select = "SELECT sealed FROM sealed_secrets WHERE name = ?";
    Ok(sqlx::query_scalar(select).bind(name).fetch_optional(&mut *connection).await?)
}

async fn save(
    connection: &mut SqliteConnection,
    key: &SealingKey,
    name: &str,
    plain: &[u8],
    now_us: i64,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO sealed_secrets (name, sealed, created_at_us) VALUES (?, ?, ?)")
        .bind(name)
        .bind(key.seal(&place(name), plain)?)
        .bind(now_us)
        .execute(&mut *connection)
        .await?;
    Ok(())
}

const fn place(name: &str) -> Place<'_> {
    Place { label: "llm-proxy sealed secret", row_id: name, project_id: "", version: 1 }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Store;
    use crate::testing::{Fixture, root_key, url};

    #[tokio::test]
    async fn a_wrong_root_key_is_found_at_the_start_and_named() {
        let fixture = Fixture::new().await;
        fixture.store.close().await;
        let error = Store::open(&url(&fixture.folder), &root_key(9)).await.err().unwrap();
        assert!(matches!(error, StoreError::WrongRootKey { .. }), "{error}");
        assert!(error.to_string().contains("Start with the ROOT_KEY"));
        assert!(Store::open(&url(&fixture.folder), &root_key(1)).await.is_ok());
    }

    #[tokio::test]
    async fn a_missing_root_key_is_told_with_its_place_and_never_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, away) = (folder.path().join("root_key"), folder.path().join("away"));
        let open = async || Store::open(&url(&folder), &RootKey::load_or_generate(&path).unwrap()).await;
        open().await.unwrap().close().await;
        fs::rename(&path, &away).unwrap();
        let error = open().await.err().unwrap().to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains("ROOT_KEY"), "{error}");
        assert!(!path.exists());
        fs::rename(&away, &path).unwrap();
        assert!(open().await.is_ok());
    }

    #[tokio::test]
    async fn two_first_starts_at_once_have_one_root_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root_key");
        let keys = [(); 2].map(|()| RootKey::load_or_generate(&path).unwrap());
        let first = Store::open(&url(&folder), &keys[0]).await.unwrap();
        let second = Store::open(&url(&folder), &keys[1]).await.unwrap();
        let token = llm_proxy_core::token::ProxyToken::from_random([1; 20]);
        assert_eq!(first.pepper().digest(&token), second.pepper().digest(&token));
    }

    #[tokio::test]
    async fn a_lost_pepper_is_damage_and_never_replaced() {
        let fixture = Fixture::new().await;
        fixture.sql("DELETE FROM sealed_secrets WHERE name = 'token_pepper'").await;
        let reopened = Store::open(&url(&fixture.folder), &root_key(1)).await;
        assert!(matches!(reopened.err(), Some(StoreError::Corrupt(_))));
    }

    #[tokio::test]
    async fn secrets_are_never_made_anew_beside_projects() {
        let fixture = Fixture::new().await;
        fixture.project("one").await;
        fixture.sql("DELETE FROM sealed_secrets").await;
        let reopened = Store::open(&url(&fixture.folder), &root_key(1)).await;
        assert!(matches!(reopened.err(), Some(StoreError::Corrupt(_))));
    }
}
