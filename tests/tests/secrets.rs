//! Secrets planted in everything a client, an admin or a provider sends, and then looked for in everything the product
//! writes: log, answers of its own, records, journal, database, metrics.

mod common;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use common::setup::{Api, Keys, Setup};
use common::upstream::Upstream;
use common::wire::{Ask, Wire};
use llm_proxy_tests::{metric, run_binary};
use rand::Rng;
use serde_json::json;

/// The promise's number.
const AT_LEAST: usize = 40;

const CHAT: &str = r#"{"model":"gpt-4o-mini","messages":[]}"#;

/// The planted secrets, each with the place where it was planted.
#[derive(Default)]
struct Planted(Vec<(String, String)>);

impl Planted {
    /// A new secret. It looks like none of the product's own, so that nothing recognises it by its form.
    fn plant(&mut self, place: &str) -> String {
        let secret = format!("canary{:032x}", rand::rng().random::<u128>());
        self.add(place, &secret);
        secret
    }

    fn add(&mut self, place: &str, secret: &str) {
        self.0.push((place.to_owned(), secret.to_owned()));
    }

    fn search(&self) -> Search {
        let mut search = Search::default();
        for (place, secret) in &self.0 {
            for (form, needle) in forms(secret) {
                let start = needle.as_bytes()[..START].try_into().unwrap();
                search.by_start.entry(start).or_default().push((format!("{place}, {form}"), needle));
            }
        }
        search
    }
}

/// As many bytes as every needle has at least.
const START: usize = 8;

/// All needles at once, by how they start: there are hundreds of them, and a database to look through.
#[derive(Default)]
struct Search {
    by_start: HashMap<[u8; START], Vec<(String, String)>>,
}

impl Search {
    /// Every secret that `text` holds in any form, as place and form.
    fn found_in(&self, text: &[u8]) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        for (at, start) in text.windows(START).enumerate() {
            for (name, needle) in self.by_start.get(start).into_iter().flatten() {
                if text[at..].starts_with(needle.as_bytes()) {
                    found.insert(name.as_str());
                }
            }
        }
        found
    }
}

/// The forms in which a secret may have leaked.
fn forms(secret: &str) -> Vec<(String, String)> {
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let all_encoded: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut needed_encoded = String::new();
    for byte in secret.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            needed_encoded.push(char::from(byte));
        } else {
            write!(needed_encoded, "%{byte:02X}").unwrap();
        }
    }
    let mut forms = vec![
        ("plain".to_owned(), secret.to_owned()),
        ("URL-encoded throughout".to_owned(), all_encoded.clone()),
        ("URL-encoded throughout, lower case".to_owned(), all_encoded.to_ascii_lowercase()),
        ("URL-encoded".to_owned(), needed_encoded),
        ("hex".to_owned(), hex.clone()),
        ("upper-case hex".to_owned(), hex.to_ascii_uppercase()),
    ];
    for shift in 0..3 {
        let mut bytes = vec![0; shift];
        bytes.extend_from_slice(secret.as_bytes());
        // What the neighbours have a part in is cut off: it differs with them.
        let first = [0, 2, 3][shift];
        let last = usize::from(bytes.len() % 3 != 0);
        for (name, encoded) in
            [("base64", STANDARD_NO_PAD.encode(&bytes)), ("URL-safe base64", URL_SAFE_NO_PAD.encode(&bytes))]
        {
            forms.push((format!("{name} at {shift}"), encoded[first..encoded.len() - last].to_owned()));
        }
    }
    forms
}

/// Sends what may be anything but a request, and keeps what comes back.
async fn provoke(at: std::net::SocketAddr, request: impl AsRef<[u8]>, answers: &mut Vec<u8>) -> u16 {
    let mut wire = Wire::open(at).await;
    let _ = wire.try_send(request).await;
    let Some(answer) = wire.try_answer().await else { return 0 };
    answers.extend_from_slice(format!("{:?}\n", answer.head).as_bytes());
    answers.extend_from_slice(&answer.body);
    answers.push(b'\n');
    answer.head.status
}

/// Every file below a folder, with its bytes.
fn files(folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if let Ok(bytes) = std::fs::read(&path) {
            found.push((path.display().to_string(), bytes));
        }
    }
}

#[test]
fn a_secret_is_found_in_each_form_and_nothing_else_is() {
    let mut planted = Planted::default();
    let secret = planted.plant("here");
    for (form, text) in [
        ("plain", format!("x{secret}y")),
        ("hex", format!("..{}..", secret.bytes().map(|byte| format!("{byte:02x}")).collect::<String>())),
        ("base64 at 0", STANDARD.encode(format!("{secret}{{\"a\":1}}"))),
        ("base64 at 1", STANDARD.encode(format!("k{secret}tail"))),
        ("base64 at 2", STANDARD.encode(format!("ab{secret}"))),
        ("base64 at 1", STANDARD.encode(format!("abcd{secret}t"))),
    ] {
        assert!(planted.search().found_in(text.as_bytes()).contains(&*format!("here, {form}")), "{form}: {text}");
    }
    assert!(planted.search().found_in(&secret.as_bytes()[1..]).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_planted_secret_is_in_any_log_error_record_journal_database_or_metric() {
    for level in ["info", "debug"] {
        search(level).await;
    }
}

async fn search(level: &str) {
    let mut planted = Planted::default();
    let mut answers = Vec::new();

    let keys = Keys {
        openai: planted.plant("provider key of openai"),
        anthropic: planted.plant("provider key of anthropic"),
        gemini: planted.plant("provider key of gemini"),
        azure: planted.plant("provider key of azure"),
    };
    let management = planted.plant("management token");
    let root_octets: [u8; 32] = rand::rng().random();
    let root_key = STANDARD.encode(root_octets);
    planted.add("root key", &root_key);
    planted
        .add("the octets of the root key", &root_octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>());
    let in_garbage = planted.plant("garbage of a provider");
    let garbage = in_garbage.clone();
    let rude = Upstream::start(move |mut wire, _| {
        let garbage = garbage.clone();
        async move {
            // Throws the request back, the key in it included, as no answer at all.
            if let Some((head, _)) = wire.request().await {
                let _ = wire.try_send(format!("HTTP/1.1 2x0 {garbage}\r\n{:?}\r\n\r\n", head.fields)).await;
            }
        }
    })
    .await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let apis = [
        Api::at("rude", rude.addr, ""),
        Api::at("closed", closed, ""),
        Api::at("web", closed, "allowed_origins: [\"https://app.example.com\"]"),
    ];
    let settings = [
        ("LOG_LEVEL", level),
        ("MANAGEMENT_TOKEN", management.as_str()),
        ("ROOT_KEY", root_key.as_str()),
        ("HEAD_TIMEOUT", "1s"),
    ];
    let setup = Setup::with_keys(&apis, &settings, keys).await;
    let proxy = setup.proxy();

    // Real tokens, in every form that a client has. The answers are the provider's: they show that the keys went out.
    let gemini = "/v1beta/models/gemini-2.5-flash:generateContent";
    let azure = "/openai/deployments/gpt/chat/completions?api-version=2024-10-21";
    let messages = r#"{"model":"claude-sonnet-4-5","max_tokens":9,"messages":[]}"#;
    for (form, target, field, body) in [
        ("authorization", "/v1/chat/completions".to_owned(), "authorization", CHAT),
        ("x-api-key", "/v1/messages".to_owned(), "x-api-key", messages),
        ("api-key", azure.to_owned(), "api-key", CHAT),
        ("x-goog-api-key", gemini.to_owned(), "x-goog-api-key", "{\"contents\":[]}"),
        ("?key=", gemini.to_owned(), "", "{\"contents\":[]}"),
    ] {
        let token = setup.token_with(json!({})).await.text;
        planted.add(&format!("token in {form}"), &token);
        let ask = match field {
            "" => Ask::post(&format!("{target}?key={token}")),
            "authorization" => Ask::post(&target).bearer(&token),
            _ => Ask::post(&target).with(field, &token),
        };
        let status = setup.wire().await.ask(ask.json_type().body(body)).await.head.status;
        assert_eq!(status, 200, "the token in {form} works");
        // And a token that nobody knows, in the same place.
        let unknown = planted.plant(&format!("unknown token in {form}"));
        let ask = match field {
            "" => Ask::post(&format!("{target}?key={unknown}")),
            "authorization" => Ask::post(&target).bearer(&unknown),
            _ => Ask::post(&target).with(field, &unknown),
        };
        assert_eq!(provoke(proxy, ask.json_type().body(body), &mut answers).await, 401, "an unknown token in {form}");
    }
    planted.add("usual token", &setup.token.text);

    // Credentials that are none of ours, beside a token and instead of one.
    for (place, ask) in [
        ("Basic", Ask::get("/v1/models")),
        ("two tokens", setup.models()),
        ("authorization without a scheme", Ask::get("/v1/models")),
    ] {
        let secret = planted.plant(place);
        let ask = match place {
            "Basic" => ask.with("authorization", format_args!("Basic {}", STANDARD.encode(format!("user:{secret}")))),
            "two tokens" => ask.with("x-api-key", &secret),
            _ => ask.with("authorization", &secret),
        };
        assert_eq!(provoke(proxy, ask.head(), &mut answers).await, 401, "{place}");
    }
    for field in
        ["cookie", "x-forwarded-for", "proxy-authorization", "helicone-auth", "x-anything", "user-agent", "referer"]
    {
        let secret = planted.plant(field);
        setup.wire().await.ask(setup.chat().with(field, &secret).body(CHAT)).await;
    }

    // Targets.
    for place in [
        "/v1/files/{}",
        "/v1/nothing/{}/at/all",
        "/nowhere/{}",
        "/v1/chat/completions?secret={}",
        "/v1/chat/completions?key={}",
        "/v1/chat/completions?api-key={}&Authorization={}",
        "/openai/realtime?api-key={}",
        "/v1/../{}",
        "/v1//{}",
        "/v1/%zz{}",
    ] {
        let secret = planted.plant(place);
        let target = place.replace("{}", &secret);
        provoke(proxy, setup.ask("GET", &target).head(), &mut answers).await;
        provoke(proxy, Ask::get(&target).head(), &mut answers).await;
    }

    // Heads that are none.
    for head in [
        "GET /v1/{} HTTP/1.1\nhost: a\n\n",
        "GET /v1/{} HTTP/3.0\r\nhost: a\r\n\r\n",
        "{} /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "{}@ /v1/models HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: user:{}@a\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: a\r\n{}\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization : Bearer {}\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\0\r\n\r\n",
        "POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
        "POST /v1/files HTTP/1.1\r\nhost: a\r\ntransfer-encoding: {}\r\n\r\n",
        "POST /v1/files HTTP/1.1\r\nhost: a\r\nexpect: {}\r\ncontent-length: 1\r\n\r\nx",
        "GET http://{}/v1/models HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        let secret = planted.plant(head);
        let status = provoke(proxy, head.replace("{}", &secret), &mut answers).await;
        assert!((400..=431).contains(&status), "{status}: {head:?}");
    }
    let large = planted.plant("a head that is too large");
    let head = format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nx-large: {large}{}\r\n\r\n", "a".repeat(33_000));
    assert_eq!(provoke(proxy, head, &mut answers).await, 431);
    let slow = planted.plant("a head that never ends");
    let head = format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {slow}");
    assert_eq!(provoke(proxy, head, &mut answers).await, 408);

    // Bodies.
    for (body, status) in [
        ("{\"key\":\"{}\"", 400),
        ("{} is no JSON", 400),
        ("{\"kind\":\"plain\",\"kind\":\"{}\"}", 400),
        ("{\"kind\":\"{}\"}", 403),
        ("{\"{}\":1}{}", 400),
    ] {
        let secret = planted.plant(body);
        let request = setup.held().body(body.replace("{}", &secret));
        assert_eq!(provoke(proxy, request, &mut answers).await, status, "{body}");
    }
    let secret = planted.plant("a body that is not UTF-8");
    let request = setup.held().body([secret.as_bytes(), b"\xff"].concat());
    assert_eq!(provoke(proxy, request, &mut answers).await, 400);
    let secret = planted.plant("a prompt");
    let body = format!("{{\"model\":\"gpt-4o-mini\",\"messages\":[{{\"role\":\"user\",\"content\":\"{secret}\"}}]}}");
    assert_eq!(setup.wire().await.ask(setup.chat().body(body)).await.head.status, 200);
    let secret = planted.plant("a broken chunk");
    let request = [setup.echo().with("transfer-encoding", "chunked").head(), format!("{secret}\r\n").into()].concat();
    assert_eq!(provoke(proxy, request, &mut answers).await, 400);
    let secret = planted.plant("an origin");
    let ask = setup.ask("POST", "/web/v1/files").with("origin", format_args!("https://{secret}.example"));
    assert_eq!(provoke(proxy, ask.body("x"), &mut answers).await, 403);

    // Providers.
    for target in ["/rude/v1/files", "/closed/v1/files"] {
        assert_eq!(provoke(proxy, setup.ask("POST", target).body("x"), &mut answers).await, 502, "{target}");
    }

    // Admins.
    let admin = setup.product.admin_addr();
    let stranger = planted.plant("a wrong management token");
    assert_eq!(provoke(admin, Ask::get("/manage/projects").bearer(&stranger).head(), &mut answers).await, 401);
    for body in [
        "{\"name\":\"a\",\"api_key\":\"{}\",\"unknown\":1}",
        "{\"name\":\"a\",\"api_key\":[\"{}\"]}",
        "{\"name\":\"a\",\"api_key\":\"{}",
        "{\"name\":\"a\",\"api_key\":\"{}\\n\"}",
        "{\"name\":\"a\",\"provider_keys\":[{\"api\":\"nobody\",\"key\":\"{}\"}]}",
        "{\"name\":\"a\",\"provider_keys\":[{\"api\":\"openai\",\"key\":{\"value\":\"{}\"}}]}",
        "{\"name\":\"a\",\"provider_keys\":\"{}\"}",
        "{\"name\":\"main\",\"api_key\":\"{}\"}",
    ] {
        let secret = planted.plant(body);
        let request = Ask::post("/manage/projects").bearer(&management).json_type().body(body.replace("{}", &secret));
        let status = provoke(admin, request, &mut answers).await;
        assert!((400..=422).contains(&status), "{status}: {body}");
    }
    let secret = planted.plant("a management query");
    let target = format!("/manage/tokens?secret={secret}");
    assert_eq!(provoke(admin, Ask::get(&target).bearer(&management).head(), &mut answers).await, 400);
    for target in ["/manage/projects", "/manage/tokens"] {
        assert_eq!(provoke(admin, Ask::get(target).bearer(&management).head(), &mut answers).await, 200);
    }

    // Starts that must fail: what is wrong is said, what it was is not.
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("ROOT_KEY", "{}"),
        ("MANAGEMENT_TOKEN", "{} with spaces"),
        ("DATABASE_URL", "oracle://user:{}@db.example/llm"),
        ("REDIS_URL", "http://:{}@cache.example"),
    ] {
        let value = value.replace("{}", &planted.plant(name));
        let ended = run_binary(folder.path(), &["server"], &[(name, &value)]).await;
        assert_ne!(ended.code, Some(0), "{name}={value} was taken");
        answers.extend_from_slice(ended.stdout.as_bytes());
        answers.extend_from_slice(ended.stderr.as_bytes());
    }

    assert!(planted.0.len() >= AT_LEAST, "only {} secrets planted", planted.0.len());
    // The last record is in its file: then all are.
    let last = setup.wire().await.ask(setup.models().head()).await.head.id();
    setup.only_record(&last).await;
    let metrics = setup.product.metrics().await;
    assert_eq!(metric(&metrics, "llm_proxy_panics_total", &[]), 0.0, "nothing of this is worth a panic");
    let log = setup.product.log();
    assert!(!log.is_empty(), "a log that is empty hides nothing");
    let mut places = vec![
        ("the answers".to_owned(), answers),
        ("the log".to_owned(), log.into_bytes()),
        ("the metrics".to_owned(), metrics.into_bytes()),
    ];
    files(&setup.data_dir(), &mut places);
    assert!(places.iter().any(|(place, _)| place.contains("journal")), "the journal was searched");
    let search = planted.search();
    for (place, bytes) in &places {
        let found = search.found_in(bytes);
        assert!(found.is_empty(), "LOG_LEVEL={level}: in {place}: {found:#?}");
    }
}
