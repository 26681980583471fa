//! What the tests of the management API share: an admin plane over a real store, without a socket.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "each test uses its own part, and may be blunt"
)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, StatusCode, header};
use llm_proxy_admin::{AdminOptions, EraseRequest, Erased, Health, SinkStatus, router};
use llm_proxy_core::secret::Secret;
use llm_proxy_plugins::event::{AdminAction, Exchange, Message};
use llm_proxy_store::{RootKey, Store};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

pub const CREDENTIAL: &str = "management-token-of-this-test";
pub const PROVIDER_KEY: &str = "sk-live-provider-key-4711";
pub const NO_SUCH_ID: &str = "01932f5e-0000-7000-8000-000000000000";
/// What every erasure that succeeds says.
pub const ERASED: Erased = Erased { records: 12, files: 3 };

/// Brings counts up to date.
pub type CatchUp = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// An admin plane with a store of its own, one project that has a provider key, and one token.
pub struct Plane {
    pub router: Router,
    pub store: Store,
    pub project: String,
    pub token: String,
    pub shown_once: String,
    pub process: Process,
    pub folder: TempDir,
}

/// What the plane is told about its process, and asks of it.
#[derive(Clone, Default)]
pub struct Process {
    pub is_draining: Arc<AtomicBool>,
    pub catch_ups: Arc<AtomicU32>,
    /// Erasures fail.
    pub keeps_content: Arc<AtomicBool>,
    /// What was to be erased.
    pub erasures: Arc<Mutex<Vec<EraseRequest>>>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    pub fn code(&self) -> String {
        self.json().get("code").and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    pub fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// A store in a folder of its own.
pub async fn opened() -> (Store, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("store.sqlite").display());
    (Store::open(&url, &RootKey::generate().unwrap()).await.unwrap(), folder)
}

/// The state of one sink, with every figure another one.
pub fn sink() -> SinkStatus {
    SinkStatus {
        name: "team".to_owned(),
        kind: "webhook".to_owned(),
        health: "retrying".to_owned(),
        delivered: 1,
        duplicates: 2,
        dead: 3,
        dropped: 4,
        retried: 5,
        pending_records: 6,
        lag_seconds: 7.5,
        last_error: Some("503".to_owned()),
    }
}

impl Process {
    fn options(&self, catch_up: CatchUp) -> AdminOptions {
        let (asked, erasing) = (self.clone(), self.clone());
        AdminOptions {
            management_token: Secret::new(CREDENTIAL),
            known_apis: vec!["openai".to_owned(), "anthropic".to_owned()],
            default_api: "openai".to_owned(),
            render_metrics: Arc::new(|| "requests_total 1\n".to_owned()),
            health: Arc::new(move || {
                let is_draining = asked.is_draining.load(Ordering::Relaxed);
                let health = if is_draining { Health::NotReady("draining".to_owned()) } else { Health::Ready };
                async move { health }.boxed()
            }),
            applied: Arc::new(|| async {}.boxed()),
            catch_up,
            client_address: Arc::new(|address| Some(format!("<{address}>"))),
            erase: Arc::new(move |request| {
                erasing.erasures.lock().unwrap().push(request);
                let keeps_content = erasing.keeps_content.load(Ordering::Relaxed);
                async move { if keeps_content { Err("the disk is full".to_owned()) } else { Ok(ERASED) } }.boxed()
            }),
            sinks: Arc::new(|| vec![sink()]),
        }
    }

    fn count_catch_ups(&self) -> CatchUp {
        let counted = Arc::clone(&self.catch_ups);
        Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            async {}.boxed()
        })
    }
}

impl Plane {
    pub async fn new() -> Self {
        let (store, folder) = opened().await;
        let process = Process::default();
        let catch_up = process.count_catch_ups();
        Self::start(store, folder, process, catch_up).await
    }

    /// One whose counts come from somewhere.
    pub async fn counting(store: Store, folder: TempDir, catch_up: CatchUp) -> Self {
        Self::start(store, folder, Process::default(), catch_up).await
    }

    async fn start(store: Store, folder: TempDir, process: Process, catch_up: CatchUp) -> Self {
        let router = router(store.clone(), process.options(catch_up));
        let (project, token, shown_once) = (String::new(), String::new(), String::new());
        let mut plane = Self { router, store, project, token, shown_once, process, folder };
        let project =
            plane.send("POST", "/manage/projects", &json!({ "name": "first", "api_key": PROVIDER_KEY })).await;
        assert_eq!(project.status, StatusCode::CREATED, "{}", project.text);
        plane.project = project.json()["id"].as_str().unwrap().to_owned();
        let body = json!({ "project_id": plane.project, "duration_minutes": 60 });
        let token = plane.send("POST", "/manage/tokens", &body).await;
        assert_eq!(token.status, StatusCode::CREATED, "{}", token.text);
        plane.token = token.json()["id"].as_str().unwrap().to_owned();
        plane.shown_once = token.json()["token"].as_str().unwrap().to_owned();
        plane
    }

    pub async fn answer(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        Answer { status: head.status, headers: head.headers, text: String::from_utf8(body.to_vec()).unwrap() }
    }

    /// A request with the right credential and this body, as JSON unless it is empty.
    pub async fn raw(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(header::AUTHORIZATION, format!("Bearer {CREDENTIAL}"));
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        self.answer(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    pub async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.raw(method, path, &body.to_string()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.raw("GET", path, "").await
    }

    /// The text with the ids of this plane put in.
    pub fn fill(&self, text: &str) -> String {
        text.replace("{project}", &self.project).replace("{token}", &self.token).replace("{none}", NO_SUCH_ID)
    }

    /// The events in the outbox, which is empty then. No secret that this plane has seen may be in one.
    pub async fn take_events(&self) -> Vec<(Exchange, AdminAction)> {
        let entries = self.store.outbox(1_000).await.unwrap();
        let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        self.store.clear_outbox(&ids).await.unwrap();
        let decode = |entry: &llm_proxy_store::AuditEntry| {
            for secret in [PROVIDER_KEY, CREDENTIAL, self.shown_once.as_str()] {
                let is_there = entry.payload.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!is_there, "{secret} in {}", String::from_utf8_lossy(&entry.payload));
            }
            let mut event = Exchange::decode(entry.payload.as_slice()).unwrap();
            assert_eq!(event.id, entry.id.to_string());
            let action = event.admin.take().unwrap();
            (event, action)
        };
        entries.iter().map(decode).collect()
    }
}
