//! What a project lets be kept of the bodies of its exchanges, how much of one, and for how long.
//!
//! The data plane reads it with the token ([`Holder`](crate::Holder)), and a change of it is a change of the project: the
//! feed tells every data plane to read again.

use llm_proxy_core::capture::Policy;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::error::StoreError;

/// The rule of one project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentPolicy {
    /// What of an exchange is kept.
    pub capture: Policy,
    /// The most bytes of one body.
    pub max_bytes: u32,
    /// After so many days what was kept of a body is erased. `None`: never by its age.
    pub retention_days: Option<u32>,
}

impl Default for ContentPolicy {
    /// Numbers and tags, no bodies. As the schema says for projects that were made before there was a choice.
    fn default() -> Self {
        Self { capture: Policy::Metadata, max_bytes: 64 * 1024, retention_days: None }
    }
}

/// What to change of a [`ContentPolicy`]; the default changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct ContentChange {
    /// What is kept.
    pub capture: Option<Policy>,
    /// The most bytes of one body.
    pub max_bytes: Option<u32>,
    /// The inner `None` lifts the limit.
    pub retention_days: Option<Option<u32>>,
}

impl ContentPolicy {
    /// This one, changed.
    #[must_use]
    pub fn with(self, change: ContentChange) -> Self {
        Self {
            capture: change.capture.unwrap_or(self.capture),
            max_bytes: change.max_bytes.unwrap_or(self.max_bytes),
            retention_days: change.retention_days.unwrap_or(self.retention_days),
        }
    }

    /// The columns `content_…` of this row.
    pub(crate) fn of_row(row: &SqliteRow) -> Result<Self, StoreError> {
        let capture = Policy::from_name(row.try_get("content_capture")?)
            .ok_or_else(|| StoreError::Corrupt("a project's content policy has an unknown name".to_owned()))?;
        Ok(Self {
            capture,
            max_bytes: row.try_get("content_max_bytes")?,
            retention_days: row.try_get("content_retention_days")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;
    use crate::{NewProject, ProjectChange};

    const ALL: ContentPolicy = ContentPolicy { capture: Policy::Full, max_bytes: 1_024, retention_days: Some(30) };

    #[test]
    fn a_change_touches_what_it_names_only() {
        for (change, expected) in [
            (ContentChange::default(), ALL),
            (
                ContentChange { capture: Some(Policy::None), ..Default::default() },
                ContentPolicy { capture: Policy::None, ..ALL },
            ),
            (ContentChange { max_bytes: Some(7), ..Default::default() }, ContentPolicy { max_bytes: 7, ..ALL }),
            (
                ContentChange { retention_days: Some(None), ..Default::default() },
                ContentPolicy { retention_days: None, ..ALL },
            ),
        ] {
            assert_eq!(ALL.with(change), expected, "{change:?}");
        }
    }

    #[tokio::test]
    async fn every_policy_is_kept_with_its_project_and_read_with_its_tokens() {
        let fixture = Fixture::new().await;
        let (default, secret) = fixture.token().await;
        assert_eq!(default.content, ContentPolicy::default());
        let digest = fixture.store.pepper().digest(&secret);
        for capture in [Policy::None, Policy::Metadata, Policy::Redacted, Policy::Full] {
            let content = ContentPolicy { capture, ..ALL };
            let new = NewProject { content, ..Fixture::new_project(capture.name()) };
            let made = fixture.store.create_project(new).await.unwrap();
            assert_eq!(made.content, content);
            assert_eq!(fixture.store.project(&made.id).await.unwrap().unwrap(), made);

            let change = ContentChange { capture: Some(capture), ..Default::default() };
            let change = ProjectChange { content: change, ..Default::default() };
            let before = fixture.store.change_position().await.unwrap();
            let changed = fixture.store.update_project(&default.id, change).await.unwrap().unwrap();
            assert_eq!(changed.content, ContentPolicy { capture, ..ContentPolicy::default() });
            assert_eq!(fixture.store.change_position().await.unwrap(), before + 1, "the feed tells of it");
            let holder = fixture.store.holder(&digest).await.unwrap().unwrap();
            assert_eq!(holder.content, changed.content);
        }
    }

    #[tokio::test]
    async fn retentions_are_those_of_projects_that_have_one() {
        let fixture = Fixture::new().await;
        fixture.project("for ever").await;
        let mut expected = Vec::new();
        for (name, days) in [("a", 1), ("b", 3_650)] {
            let content = ContentPolicy { retention_days: Some(days), ..ContentPolicy::default() };
            let new = NewProject { content, ..Fixture::new_project(name) };
            expected.push((fixture.store.create_project(new).await.unwrap().id, days));
        }
        assert_eq!(fixture.store.retentions().await.unwrap(), expected);
    }

    #[tokio::test]
    async fn a_policy_that_nobody_knows_is_damage_and_not_a_guess() {
        let fixture = Fixture::new().await;
        let (project, secret) = fixture.token().await;
        fixture.sql("UPDATE projects SET content_capture = 'everything'").await;
        assert!(matches!(fixture.store.project(&project.id).await, Err(StoreError::Corrupt(_))));
        let holder = fixture.store.holder(&fixture.store.pepper().digest(&secret)).await;
        assert!(matches!(holder.err(), Some(StoreError::Corrupt(_))));
    }
}
