//! What most scenarios begin with: a provider, a product before it, a project with its keys, and a token.

use llm_proxy_load::mock::{Mock, MockOptions, RequestRecord};
use serde_json::{Value, json};

use crate::{Admin, Answer, Ask, Product, ProductOptions, Provider, Raw};

/// A proxy token as its POST showed it.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its public id.
    pub id: String,
    /// The token itself.
    pub secret: String,
}

/// All of it, running.
pub struct World {
    /// The provider.
    pub mock: Mock,
    /// The product.
    pub product: Product,
    /// Its management API.
    pub admin: Admin,
    /// The id of a project that holds the four provider keys of the mock.
    pub project: String,
    /// A token of that project without limits.
    pub token: Token,
}

impl World {
    /// The usual one.
    pub async fn new() -> Self {
        Self::with(|options| options).await
    }

    /// One with other settings.
    pub async fn with(change: impl FnOnce(ProductOptions) -> ProductOptions) -> Self {
        let mock = Mock::start(MockOptions::default()).await.unwrap();
        let product = Product::start(change(ProductOptions::new(mock.addr()))).await;
        let admin = product.admin();
        let keys: Vec<Value> =
            Provider::ALL.iter().map(|provider| json!({"api": provider.name(), "key": provider.key()})).collect();
        let project = make_project(&admin, &json!({"name": "scenario", "provider_keys": keys})).await;
        let token = make_token(&admin, &project, json!({})).await;
        Self { mock, product, admin, project, token }
    }

    /// The id of a further project.
    pub async fn project_with(&self, fields: &Value) -> String {
        make_project(&self.admin, fields).await
    }

    /// A further token of the project, with these fields (`max_requests` and so on).
    pub async fn token_with(&self, fields: Value) -> Token {
        make_token(&self.admin, &self.project, fields).await
    }

    /// A further token of another project.
    pub async fn token_of(&self, project: &str, fields: Value) -> Token {
        make_token(&self.admin, project, fields).await
    }

    /// Gives the project further provider keys: API and key.
    pub async fn set_keys<'key>(&self, keys: impl IntoIterator<Item = (String, &'key str)>) {
        let keys: Vec<Value> = keys.into_iter().map(|(api, key)| json!({"api": api, "key": key})).collect();
        let path = format!("/manage/projects/{}", self.project);
        let _ = self.admin.patch(&path, &json!({"provider_keys": keys})).await.expect(200);
    }

    /// What the management API says about a token.
    pub async fn token_state(&self, id: &str) -> Value {
        self.admin.get(&format!("/manage/tokens/{id}")).await.expect(200)
    }

    /// Changes a token.
    pub async fn patch_token(&self, id: &str, fields: &Value) -> Value {
        self.admin.patch(&format!("/manage/tokens/{id}"), fields).await.expect(200)
    }

    /// Revokes a token.
    pub async fn revoke(&self, id: &str) {
        let _ = self.admin.delete(&format!("/manage/tokens/{id}")).await.expect(204);
    }

    /// A new connection to the data plane.
    pub async fn connect(&self) -> Raw {
        Raw::connect(self.product.data_addr()).await
    }

    /// One request on its own connection.
    pub async fn ask(&self, ask: &Ask) -> Answer {
        Raw::ask(self.product.data_addr(), ask).await
    }

    /// The answer's record.
    pub async fn record(&self, answer: &Answer) -> Value {
        self.product.wait_event(&answer.id()).await
    }

    /// Checks how the answer's record says that the exchange ended, and returns it.
    ///
    /// # Panics
    /// When it says something else.
    pub async fn check_record(&self, case: &str, answer: &Answer, outcome: &str, reason: Option<&str>) -> Value {
        let record = self.record(answer).await;
        assert_eq!(
            (record["outcome"].as_str(), record["reason"].as_str(), record["status"].as_u64()),
            (Some(outcome), reason, Some(u64::from(answer.status))),
            "{case}: {record}"
        );
        record
    }

    /// The request that the provider saw last.
    ///
    /// # Panics
    /// When it saw none.
    pub fn last_upstream(&self) -> RequestRecord {
        self.mock.requests().pop().expect("the provider saw no request")
    }

    /// How many requests the provider saw.
    pub fn upstream_count(&self) -> u64 {
        self.mock.stats().requests
    }
}

async fn make_project(admin: &Admin, fields: &Value) -> String {
    let project = admin.post("/manage/projects", fields).await.expect(201);
    project["id"].as_str().unwrap().to_owned()
}

async fn make_token(admin: &Admin, project: &str, fields: Value) -> Token {
    let mut body = json!({"project_id": project, "duration_minutes": 60});
    for (name, value) in fields.as_object().expect("fields of a token") {
        body[name] = value.clone();
    }
    let token = admin.post("/manage/tokens", &body).await.expect(201);
    let text = |name: &str| token[name].as_str().unwrap().to_owned();
    Token { id: text("id"), secret: text("token") }
}
