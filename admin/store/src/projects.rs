//! Projects: a name, a switch, and the provider keys that their tokens stand for.

use llm_proxy_core::secret::Secret;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};
use uuid::Uuid;

use crate::changes::{self, ChangeKind};
use crate::content::{ContentChange, ContentPolicy};
use crate::database::WRITE;
use crate::error::{StoreError, is_taken};
use crate::outbox::Mutation;
use crate::page::{Page, Paged};
use crate::provider_keys::{self, ProjectKey, ProviderKeyInfo};
use crate::store::{Store, now_us, to_its_end};

/// A project as the management side sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// UUIDv7.
    pub id: String,
    /// Unique among projects.
    pub name: String,
    /// Whether its tokens are served.
    pub is_active: bool,
    /// What it lets be kept of bodies.
    pub content: ContentPolicy,
    /// One per API that has a key, by API name.
    pub provider_keys: Vec<ProviderKeyInfo>,
    /// Microseconds since the epoch.
    pub created_at_us: i64,
    /// Microseconds since the epoch.
    pub updated_at_us: i64,
}

/// A project to make.
#[derive(Debug)]
pub struct NewProject {
    /// Unique among projects.
    pub name: String,
    /// Whether its tokens are served.
    pub is_active: bool,
    /// What it lets be kept of bodies.
    pub content: ContentPolicy,
    /// API name and key.
    pub provider_keys: Vec<(String, Secret)>,
}

/// What to change of a project; the default changes nothing.
#[derive(Debug, Default)]
pub struct ProjectChange {
    /// A new name.
    pub name: Option<String>,
    /// On or off.
    pub is_active: Option<bool>,
    /// What it lets be kept of bodies.
    pub content: ContentChange,
    /// API name and key, added or replaced.
    pub set_keys: Vec<(String, Secret)>,
    /// API names whose keys are forgotten, before `set_keys` are set.
    pub remove_keys: Vec<String>,
}

const NAME: &str = "the project name";

impl Store {
    /// Makes a project.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the name is taken.
    pub async fn create_project(&self, new: NewProject) -> Result<Project, StoreError> {
        let store = self.clone();
        to_its_end(async move { create(&store, &new).await }).await
    }

    /// The project with this id.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`].
    pub async fn project(&self, id: &str) -> Result<Option<Project>, StoreError> {
        let mut reader = self.database().reader().await?;
        read(&mut reader, id).await
    }

    /// A page of all projects, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a cursor that no page gave.
    pub async fn projects(&self, page: Page) -> Result<Paged<Project>, StoreError> {
        let mut reader = self.database().reader().await?;
        let select = "SELECT id, name, is_active, content_capture, content_max_bytes, content_retention_days, \
            created_at_us, updated_at_us FROM projects WHERE id > ? ORDER BY id LIMIT ?";
        let rows = sqlx::query(select).bind(page.after()?).bind(page.rows_to_read()).fetch_all(&mut *reader).await?;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return Ok(Paged { data: Vec::new(), next_cursor: None });
        };
        let (first, last): (&str, &str) = (first.try_get("id")?, last.try_get("id")?);
        let keys = provider_keys::infos(&mut reader, first, last).await?;
        let projects = rows.iter().map(|row| project(row, &keys)).collect::<Result<Vec<_>, _>>()?;
        Ok(page.cut(projects, |project| project.id.as_str()))
    }

    /// How many days each project keeps bodies that were kept, by project id; without those that set no limit.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn retentions(&self) -> Result<Vec<(String, u32)>, StoreError> {
        let select = "SELECT id, content_retention_days FROM projects \
            WHERE content_retention_days IS NOT NULL ORDER BY id";
        Ok(sqlx::query_as(select).fetch_all(self.database().readers()).await?)
    }

    /// Changes a project and tells the feed, even if only its name changed. `None`: there is no such project.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the new name is taken; then nothing has changed.
    pub async fn update_project(&self, id: &str, change: ProjectChange) -> Result<Option<Project>, StoreError> {
        let (store, id) = (self.clone(), id.to_owned());
        to_its_end(async move { update(&store, &id, &change).await }).await
    }
}

const SELECT_ONE: &str = "SELECT id, name, is_active, content_capture, content_max_bytes, content_retention_days, \
    created_at_us, updated_at_us FROM projects WHERE id = ?";

async fn create(store: &Store, new: &NewProject) -> Result<Project, StoreError> {
    let (id, now_us) = (Uuid::now_v7().to_string(), now_us());
    let mut connection = store.database().writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    let insert = "INSERT INTO projects (id, name, is_active, content_capture, content_max_bytes, \
        content_retention_days, created_at_us, updated_at_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    sqlx::query(insert)
        .bind(id.as_str())
        .bind(new.name.as_str())
        .bind(new.is_active)
        .bind(new.content.capture.name())
        .bind(new.content.max_bytes)
        .bind(new.content.retention_days)
        .bind(now_us)
        .bind(now_us)
        .execute(&mut *transaction)
        .await
        .map_err(name_taken)?;
    let key = ProjectKey::make(&mut transaction, store.key_encryption_key(), &id, now_us).await?;
    for (api, secret) in &new.provider_keys {
        provider_keys::set(&mut transaction, &key, &id, (api.as_str(), secret), now_us).await?;
    }
    let made = read(&mut transaction, &id).await?.ok_or(StoreError::NotFound { what: "the project" })?;
    let kind = ChangeKind::Project { id, is_active: made.is_active };
    let change = changes::record(&mut transaction, kind, now_us).await?;
    store.record(&mut transaction, Mutation::Project { before: None, after: &made }).await?;
    transaction.commit().await?;
    store.announce(change);
    Ok(made)
}

async fn update(store: &Store, id: &str, change: &ProjectChange) -> Result<Option<Project>, StoreError> {
    let now_us = now_us();
    let mut connection = store.database().writer().await?;
    let mut transaction = connection.begin_with(WRITE).await?;
    let Some(kept) = read(&mut transaction, id).await? else { return Ok(None) };
    let is_active = change.is_active.unwrap_or(kept.is_active);
    let content = kept.content.with(change.content);
    let update = "UPDATE projects SET name = ?, is_active = ?, content_capture = ?, content_max_bytes = ?, \
        content_retention_days = ?, updated_at_us = ? WHERE id = ?";
    sqlx::query(update)
        .bind(change.name.as_deref().unwrap_or(&kept.name))
        .bind(is_active)
        .bind(content.capture.name())
        .bind(content.max_bytes)
        .bind(content.retention_days)
        .bind(now_us)
        .bind(id)
        .execute(&mut *transaction)
        .await
        .map_err(name_taken)?;
    for api in &change.remove_keys {
        provider_keys::remove(&mut transaction, id, api).await?;
    }
    if !change.set_keys.is_empty() {
        let key = ProjectKey::newest(&mut transaction, store.key_encryption_key(), id).await?;
        for (api, secret) in &change.set_keys {
            provider_keys::set(&mut transaction, &key, id, (api.as_str(), secret), now_us).await?;
        }
    }
    let changed = read(&mut transaction, id).await?.ok_or(StoreError::NotFound { what: "the project" })?;
    // A key that was set is a new one, whatever can be seen of it; when it was changed last is no change by itself.
    let is_same = change.set_keys.is_empty() && Project { updated_at_us: now_us, ..kept.clone() } == changed;
    if !is_same {
        store.record(&mut transaction, Mutation::Project { before: Some(&kept), after: &changed }).await?;
    }
    let kind = ChangeKind::Project { id: id.to_owned(), is_active };
    let change = changes::record(&mut transaction, kind, now_us).await?;
    transaction.commit().await?;
    store.announce(change);
    Ok(Some(changed))
}

async fn read(connection: &mut SqliteConnection, id: &str) -> Result<Option<Project>, StoreError> {
    let Some(row) = sqlx::query(SELECT_ONE).bind(id).fetch_optional(&mut *connection).await? else { return Ok(None) };
    let keys = provider_keys::infos(&mut *connection, id, id).await?;
    Ok(Some(project(&row, &keys)?))
}

fn project(row: &SqliteRow, keys: &[(String, ProviderKeyInfo)]) -> Result<Project, StoreError> {
    let id: String = row.try_get("id")?;
    let provider_keys = keys.iter().filter(|(owner, _)| *owner == id).map(|(_, key)| key.clone()).collect();
    Ok(Project {
        id,
        name: row.try_get("name")?,
        is_active: row.try_get("is_active")?,
        content: ContentPolicy::of_row(row)?,
        provider_keys,
        created_at_us: row.try_get("created_at_us")?,
        updated_at_us: row.try_get("updated_at_us")?,
    })
}

fn name_taken(error: sqlx::Error) -> StoreError {
    if is_taken(&error) { StoreError::Conflict { what: NAME } } else { error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;

    fn apis(project: &Project) -> Vec<(&str, &str)> {
        project.provider_keys.iter().map(|key| (key.api.as_str(), key.last4.as_str())).collect()
    }

    #[tokio::test]
    async fn a_made_project_is_found_again() {
        let fixture = Fixture::new().await;
        let made = fixture.project("one").await;
        assert_eq!(apis(&made), [("openai", "6789")]);
        assert!(made.is_active && made.created_at_us > 0 && made.created_at_us == made.updated_at_us);
        assert_eq!(fixture.store.project(&made.id).await.unwrap().unwrap(), made);
        assert!(fixture.store.project("nobody").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_taken_name_is_a_conflict_and_changes_nothing() {
        let fixture = Fixture::new().await;
        fixture.project("one").await;
        let two = fixture.project("two").await;
        let made = fixture.store.create_project(Fixture::new_project("one")).await;
        assert!(matches!(made.err(), Some(StoreError::Conflict { what: "the project name" })));
        let change = ProjectChange {
            name: Some("one".to_owned()),
            is_active: Some(false),
            remove_keys: vec!["openai".to_owned()],
            ..Default::default()
        };
        let renamed = fixture.store.update_project(&two.id, change).await;
        assert!(matches!(renamed.err(), Some(StoreError::Conflict { .. })));
        assert_eq!(fixture.store.project(&two.id).await.unwrap().unwrap(), two);
    }

    #[tokio::test]
    async fn a_change_touches_what_it_names_only() {
        let fixture = Fixture::new().await;
        let made = fixture.project("one").await;
        let change = ProjectChange {
            set_keys: vec![("anthropic".to_owned(), Secret::new("sk-ant-0123456abcd"))],
            ..Default::default()
        };
        let changed = fixture.store.update_project(&made.id, change).await.unwrap().unwrap();
        assert_eq!(apis(&changed), [("anthropic", "abcd"), ("openai", "6789")]);
        assert_eq!((changed.name.as_str(), changed.is_active), ("one", true));

        let change = ProjectChange {
            name: Some("uno".to_owned()),
            is_active: Some(false),
            remove_keys: vec!["openai".to_owned(), "never there".to_owned()],
            ..Default::default()
        };
        let changed = fixture.store.update_project(&made.id, change).await.unwrap().unwrap();
        assert_eq!(apis(&changed), [("anthropic", "abcd")]);
        assert_eq!((changed.name.as_str(), changed.is_active), ("uno", false));
        assert_eq!(fixture.store.project(&made.id).await.unwrap().unwrap(), changed);
        assert!(fixture.store.update_project("nobody", ProjectChange::default()).await.unwrap().is_none());
        assert_eq!(fixture.store.change_position().await.unwrap(), 3);
    }

    #[tokio::test]
    async fn pages_hold_every_project_once() {
        let fixture = Fixture::new().await;
        let mut page = Page { cursor: None, limit: 2 };
        assert_eq!(fixture.store.projects(page.clone()).await.unwrap().data.len(), 0);
        for name in ["c", "a", "e", "b", "d"] {
            fixture.project(name).await;
        }
        let mut names = Vec::new();
        loop {
            let paged = fixture.store.projects(page.clone()).await.unwrap();
            assert!(paged.data.len() <= 2 && paged.data.iter().all(|project| apis(project) == [("openai", "6789")]));
            names.extend(paged.data.into_iter().map(|project| project.name));
            if paged.next_cursor.is_none() {
                break;
            }
            page.cursor = paged.next_cursor;
        }
        assert_eq!(names, ["c", "a", "e", "b", "d"], "in the order they were made");
    }
}
