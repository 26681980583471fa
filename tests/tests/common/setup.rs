//! The product between a mock provider and the scenarios' own clients: more APIs than the usual world has, each for
//! one kind of fault.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use llm_proxy_load::mock::{Key, Mock, MockOptions, Provider, RequestRecord};
use llm_proxy_tests::{PATIENCE, Product, ProductOptions, metric};
use serde_json::{Value, json};

use super::wire::{Ask, Wire};

/// How long a process may take to its end where the test does not say.
const END: Duration = Duration::from_secs(60);

/// One more API of the product's configuration.
#[derive(Clone, Debug)]
pub struct Api {
    name: String,
    yaml: String,
}

impl Api {
    /// An OpenAI-dialect API at this address; `more` is a further line of YAML, or nothing.
    pub fn at(name: &str, addr: SocketAddr, more: &str) -> Self {
        Self::below(name, addr, "", more)
    }

    /// An API of this dialect at this address.
    pub fn speaking(dialect: &str, name: &str, addr: SocketAddr) -> Self {
        Self { name: name.to_owned(), yaml: format!("dialect: {dialect}\nbase_url: http://{addr}\n") }
    }

    fn below(name: &str, addr: SocketAddr, path: &str, more: &str) -> Self {
        Self { name: name.to_owned(), yaml: format!("dialect: openai\nbase_url: http://{addr}{path}\n{more}") }
    }
}

/// The keys that the mock takes and the projects hold.
#[derive(Clone, Debug)]
pub struct Keys {
    pub openai: String,
    pub anthropic: String,
    pub gemini: String,
    pub azure: String,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            openai: "sk-mock-openai".to_owned(),
            anthropic: "sk-mock-anthropic".to_owned(),
            gemini: "mock-gemini".to_owned(),
            azure: "mock-azure".to_owned(),
        }
    }
}

impl Keys {
    fn of(&self, api: &str) -> &str {
        match api {
            "anthropic" => &self.anthropic,
            "gemini" => &self.gemini,
            "azure" => &self.azure,
            _ => &self.openai,
        }
    }
}

/// A proxy token and its public id.
#[derive(Clone, Debug)]
pub struct Token {
    pub id: String,
    pub text: String,
}

/// A running product and what surrounds it.
pub struct Setup {
    pub mock: Mock,
    pub product: Product,
    /// A token without limits, of a project with keys for every API.
    pub token: Token,
    /// The project of [`Setup::token`].
    pub project: String,
    keys: Keys,
    apis: Vec<String>,
}

impl Setup {
    pub async fn new() -> Self {
        Self::with(&[], &[]).await
    }

    /// With more APIs and settings.
    pub async fn with(apis: &[Api], settings: &[(&str, &str)]) -> Self {
        Self::with_keys(apis, settings, Keys::default()).await
    }

    /// With other provider keys than the mock's usual ones.
    ///
    /// Besides the four dialects there are `echo` (what arrives comes back), `held` (the same, but a policy reads the
    /// body), `hasty` (clocks of a second) and `small` (bodies up to 1 MiB)
    /// and `asking` (streams are asked for their usage).
    pub async fn with_keys(apis: &[Api], settings: &[(&str, &str)], keys: Keys) -> Self {
        let mock_keys = [
            (Provider::OpenAi, &keys.openai),
            (Provider::Anthropic, &keys.anthropic),
            (Provider::Gemini, &keys.gemini),
            (Provider::Azure, &keys.azure),
        ];
        let mock_keys = mock_keys.map(|(provider, value)| Key { provider, value: value.clone() });
        let mock = Mock::start(MockOptions { keys: mock_keys.into(), ..MockOptions::default() }).await.unwrap();
        let echo = "/__mock/echo";
        let mut more = vec![
            Api::below("echo", mock.addr(), echo, ""),
            Api::below("held", mock.addr(), echo, "param_whitelist: {kind: [plain]}"),
            Api::below("hasty", mock.addr(), "", "timeouts: {connect: 1s, first_byte: 1s, idle: 1s}"),
            Api::below("small", mock.addr(), echo, "max_request_bytes: 1MiB"),
            Api::below("asking", mock.addr(), "", "inject_usage: true"),
        ];
        more.extend_from_slice(apis);
        let mut options = ProductOptions::new(mock.addr());
        for api in &more {
            options = options.api(&api.name, &api.yaml);
        }
        for (name, value) in settings {
            options = options.set(name, value);
        }
        let product = Product::start(options).await;
        let names = ["openai", "anthropic", "gemini", "azure"].into_iter().map(str::to_owned);
        let apis = names.chain(more.into_iter().map(|api| api.name)).collect();
        let nobody = Token { id: String::new(), text: String::new() };
        let mut setup = Self { mock, product, token: nobody, project: String::new(), keys, apis };
        setup.project = setup.project("main").await;
        setup.token = setup.token_of(&setup.project, json!({})).await;
        setup
    }

    /// Ends the process by SIGKILL.
    pub fn kill9(&mut self) {
        self.product.kill9();
    }

    /// Asks the process to stop.
    pub fn sigterm(&self) {
        self.product.signal("TERM");
    }

    /// Waits for the end of the process and tells its exit code.
    pub async fn exited(&mut self) -> Option<i32> {
        self.product.ended(END).await.code()
    }

    /// Starts the process again, in the same directory and at the same addresses, and waits until it is ready.
    pub async fn restart(&mut self) {
        self.product.restart().await;
    }

    pub fn data_dir(&self) -> PathBuf {
        self.product.data_dir()
    }

    /// The data plane's address.
    pub fn proxy(&self) -> SocketAddr {
        self.product.data_addr()
    }

    /// A new connection to the data plane.
    pub async fn wire(&self) -> Wire {
        Wire::open(self.proxy()).await
    }

    /// A request with the usual token.
    pub fn ask(&self, method: &str, target: &str) -> Ask {
        Ask::new(method, target).bearer(&self.token.text)
    }

    pub fn chat(&self) -> Ask {
        self.ask("POST", "/v1/chat/completions").json_type()
    }

    pub fn models(&self) -> Ask {
        self.ask("GET", "/v1/models")
    }

    /// An upload that the provider describes.
    pub fn echo(&self) -> Ask {
        self.ask("POST", "/echo/v1/files")
    }

    /// The same, with a body that a policy reads.
    pub fn held(&self) -> Ask {
        self.ask("POST", "/held/v1/files").json_type()
    }

    /// A management request; `Null` is no body. The answer's JSON, `Null` where there is none.
    pub async fn manage(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let ask = Ask::new(method, path).bearer(self.product.management_token());
        let request = if body.is_null() { ask.head() } else { ask.json_type().body(body.to_string()) };
        let answer = Wire::open(self.product.admin_addr()).await.ask(request).await;
        (answer.head.status, serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
    }

    /// Makes a project that has keys for every API.
    pub async fn project(&self, name: &str) -> String {
        let keys: Vec<Value> = self.apis.iter().map(|api| json!({"api": api, "key": self.keys.of(api)})).collect();
        let (status, made) =
            self.manage("POST", "/manage/projects", json!({"name": name, "provider_keys": keys})).await;
        assert_eq!(status, 201, "{made}");
        made["id"].as_str().unwrap().to_owned()
    }

    /// Makes a token of the usual project.
    pub async fn token_with(&self, limits: Value) -> Token {
        self.token_of(&self.project, limits).await
    }

    /// Makes a token, with these limits.
    pub async fn token_of(&self, project: &str, mut limits: Value) -> Token {
        limits["project_id"] = project.into();
        limits["duration_minutes"] = 60.into();
        let (status, made) = self.manage("POST", "/manage/tokens", limits).await;
        assert_eq!(status, 201, "{made}");
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        Token { id: text("id"), text: text("token") }
    }

    /// The status of the admin plane's readiness; 0 when nobody answers.
    pub async fn readiness(&self) -> u16 {
        let Ok(stream) = tokio::net::TcpStream::connect(self.product.admin_addr()).await else { return 0 };
        let mut wire = Wire::of(stream);
        if wire.try_send(Ask::get("/health/ready").head()).await.is_err() {
            return 0;
        }
        wire.try_answer().await.map_or(0, |answer| answer.head.status)
    }

    /// Waits until exactly so many exchanges run.
    pub async fn wait_in_flight(&self, count: u32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let metrics = self.product.metrics().await;
            if metric(&metrics, "llm_proxy_in_flight", &[]) == f64::from(count) {
                return;
            }
            assert!(Instant::now() < deadline, "never {count} exchanges at once: {metrics}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Every record in the file, oldest first.
    pub fn records(&self) -> Vec<Value> {
        self.product.events()
    }

    /// The record of an exchange, and that there is one.
    pub async fn only_record(&self, id: &str) -> Value {
        self.only("id", id).await
    }

    /// The record of the exchange that its client called so, and that there is one.
    pub async fn only_record_of_client(&self, name: &str) -> Value {
        self.only("client_request_id", name).await
    }

    async fn only(&self, field: &str, value: &str) -> Value {
        let of_it = |events: &[Value]| {
            let found: Vec<Value> = events.iter().filter(|event| event[field] == value).cloned().collect();
            (!found.is_empty()).then_some(found)
        };
        let mut found = self.product.wait_events(&format!("a record with {field} {value}"), of_it).await;
        assert_eq!(found.len(), 1, "records with {field} {value}: {found:?}");
        found.remove(0)
    }

    /// What the provider has seen of the request that its client called so.
    pub fn seen(&self, name: &str) -> Option<RequestRecord> {
        self.mock.requests().into_iter().find(|request| request.header("x-request-id") == Some(name.as_bytes()))
    }
}

/// Waits until something is so, and fails if it never is.
pub async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    llm_proxy_tests::eventually(PATIENCE, what, async || is_so().then_some(())).await;
}

/// The wall clock, as the mock reads it.
pub fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A recorded answer of a provider, by its file's name.
pub fn recorded(file: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/provider").join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Where the first event of a stream ends.
pub fn first_event_end(stream: &[u8]) -> usize {
    let ends = |mark: &[u8]| stream.windows(mark.len()).position(|window| window == mark).map(|at| at + mark.len());
    ends(b"\n\n").into_iter().chain(ends(b"\r\n\r\n")).min().expect("a stream has events")
}
