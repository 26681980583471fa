//! What the tests of this crate share: a store in a folder of its own.

use llm_proxy_core::secret::Secret;
use llm_proxy_core::token::ProxyToken;
use tempfile::TempDir;

use crate::{ContentPolicy, NewProject, NewToken, Project, RootKey, Store};

pub(crate) struct Fixture {
    pub folder: TempDir,
    pub store: Store,
}

pub(crate) fn url(folder: &TempDir) -> String {
    format!("sqlite:{}", folder.path().join("store.db").display())
}

/// The root key whose octets are all this one.
pub(crate) fn root_key(octet: u8) -> RootKey {
    use base64::Engine;
    RootKey::from_base64(&base64::engine::general_purpose::STANDARD.encode([octet; 32])).unwrap()
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&url(&folder), &root_key(1)).await.unwrap();
        Self { folder, store }
    }

    pub(crate) fn new_project(name: &str) -> NewProject {
        let provider_keys = vec![("openai".to_owned(), Secret::new("sk-live-0123456789"))];
        NewProject { name: name.to_owned(), is_active: true, content: ContentPolicy::default(), provider_keys }
    }

    /// Without limits, and expired long ago: the store does not judge.
    pub(crate) fn new_token(project_id: &str) -> NewToken {
        NewToken {
            project_id: project_id.to_owned(),
            expires_at_us: 1_000_000,
            max_requests: None,
            requests_per_minute: None,
            allowed_models: None,
        }
    }

    pub(crate) async fn project(&self, name: &str) -> Project {
        self.store.create_project(Self::new_project(name)).await.unwrap()
    }

    /// A project and a token of it.
    pub(crate) async fn token(&self) -> (Project, ProxyToken) {
        let project = self.project("one").await;
        let (_, secret) = self.store.create_token(Self::new_token(&project.id)).await.unwrap();
        (project, secret)
    }

    /// What somebody with access to the file could do.
    pub(crate) async fn sql(&self, sql: &'static str) {
        let mut writer = self.store.database().writer().await.unwrap();
        sqlx::query(sql).execute(&mut *writer).await.unwrap();
    }
}
