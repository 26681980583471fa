//! A panic in the middle of an exchange: it gets its 500, or an abnormal end where its answer has begun, and one record.
//! Nobody else notices, and nothing that the panic had in its hands gets into the log.
//!
//! The product has no switch for faults. What panics is a dependency of it: the process under test runs the product's own
//! code over a TLS library with a brittle cipher, which panics at certain words of a provider, and says what it has read.

mod common;
#[allow(dead_code, reason = "other scenarios use more of it")]
#[path = "http2/peer.rs"]
mod peer;

use std::sync::Arc;
use std::time::Duration;

use common::upstream::Upstream;
use common::wire::Wire;
use llm_proxy::server;
use llm_proxy::settings::{Loaded, Settings};
use llm_proxy_tests::tls::{Authority, Front, TLS13, VALID};
use llm_proxy_tests::{Ask, PATIENCE, Provider, Refused, World, eventually, metric};
use peer::{Peer, post};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_rustls::rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter, Tls13AeadAlgorithm,
    UnsupportedOperationError,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::{
    CipherSuiteCommon, ConnectionTrafficSecrets, Error, SupportedCipherSuite, Tls13CipherSuite,
};

/// Tells a process of this program that it is the product.
const IS_PRODUCT: &str = "IS_THE_PRODUCT_UNDER_TEST";
/// What the cipher does not survive.
const LAST_WORDS: &str = "these are my last words";
/// What nobody but the provider may read.
const PROMPT: &str = "between me and the provider";

/// The process that the scenario starts in place of the binary. Among the tests it has nothing to do.
#[test]
fn product() {
    if std::env::var_os(IS_PRODUCT).is_none() {
        return;
    }
    brittle().install_default().unwrap();
    let folder = std::env::current_dir().unwrap();
    let Loaded { settings, warnings } = Settings::load(Vec::new(), std::env::vars_os(), &folder).unwrap();
    server::run(settings, &warnings, None).unwrap();
}

/// The usual cryptography, but that a panic is in what decrypts.
fn brittle() -> CryptoProvider {
    let mut provider = ring::default_provider();
    for suite in &mut provider.cipher_suites {
        let Some(real) = suite.tls13() else { continue };
        let Tls13CipherSuite { common, hkdf_provider, aead_alg, .. } = real;
        let brittle = Tls13CipherSuite {
            common: CipherSuiteCommon {
                suite: common.suite,
                hash_provider: common.hash_provider,
                confidentiality_limit: common.confidentiality_limit,
            },
            hkdf_provider: *hkdf_provider,
            aead_alg: Box::leak(Box::new(Brittle(*aead_alg))),
            quic: None,
        };
        *suite = SupportedCipherSuite::Tls13(Box::leak(Box::new(brittle)));
    }
    provider
}

struct Brittle(&'static dyn Tls13AeadAlgorithm);

impl Tls13AeadAlgorithm for Brittle {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        self.0.encrypter(key, iv)
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(BrittleDecrypter(self.0.decrypter(key, iv)))
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    fn extract_keys(&self, key: AeadKey, iv: Iv) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.extract_keys(key, iv)
    }
}

struct BrittleDecrypter(Box<dyn MessageDecrypter>);

impl MessageDecrypter for BrittleDecrypter {
    fn decrypt<'a>(&mut self, message: InboundOpaqueMessage<'a>, seq: u64) -> Result<InboundPlainMessage<'a>, Error> {
        let plain = self.0.decrypt(message, seq)?;
        let read = String::from_utf8_lossy(plain.payload);
        assert!(!read.contains(LAST_WORDS), "panicking with all that was read: {read}");
        Ok(plain)
    }
}

/// How many streams of a provider may go on, and how.
struct GoesOn {
    with_last_words: Semaphore,
    to_the_end: Semaphore,
}

/// A provider that says its last words where `x-words` wants them, and with them the whole request. Its streams wait after
/// the first event.
async fn provider(goes_on: Arc<GoesOn>) -> Upstream {
    Upstream::start(move |mut wire, _| {
        let goes_on = Arc::clone(&goes_on);
        async move {
            let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
            while let Some((head, body)) = wire.request().await {
                let words = format!("{LAST_WORDS}: {:?} {}", head.fields, String::from_utf8_lossy(&body));
                let place = head.field("x-words").unwrap_or("nowhere");
                if place == "head" {
                    wire.send(format!("HTTP/1.1 200 OK\r\nx-words: {words}\r\ncontent-length: 2\r\n\r\n{{}}")).await;
                    continue;
                }
                let fields = "content-type: text/event-stream\r\ntransfer-encoding: chunked";
                wire.send(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{}", chunk("data: first\n\n"))).await;
                if place == "stream" {
                    goes_on.with_last_words.acquire().await.unwrap().forget();
                    wire.send(chunk(&format!("data: {words}\n\n"))).await;
                    continue;
                }
                goes_on.to_the_end.acquire().await.unwrap().forget();
                wire.send(chunk("data: last\n\n") + "0\r\n\r\n").await;
            }
        }
    })
    .await
}

/// The provider's key for an API, which the proxy alone may know.
fn key(provider: Provider) -> String {
    format!("planted-key-for-{}-Xc9LrW4nKd8BsYh3", provider.name())
}

/// The path of the provider's request for text, under its brittle API.
fn path(provider: Provider) -> String {
    let rest = provider.path().strip_prefix(&format!("/{}", provider.name())).unwrap();
    format!("/brittle-{}{rest}", provider.name())
}

fn body(provider: Provider) -> String {
    provider.body().replace("hi", PROMPT)
}

fn ask(world: &World, provider: Provider, words: &str) -> Ask {
    provider.ask(&world.token.secret).to(&path(provider)).body(body(provider)).with("x-words", words)
}

/// The product over the brittle library, with an API for each dialect.
async fn world(front: &Front, authority: &Authority) -> World {
    let world = World::with(|mut options| {
        for provider in Provider::ALL {
            let yaml = format!("dialect: {}\nbase_url: https://{}", provider.name(), front.host());
            options = options.api(&format!("brittle-{}", provider.name()), &yaml);
        }
        let this = std::env::current_exe().unwrap();
        let options = options.run_by(this, &["--exact", "product", "--nocapture", "--test-threads=1"]);
        options.set(IS_PRODUCT, 1).set("SSL_CERT_FILE", authority.file().display()).set("LOG_LEVEL", "debug")
    })
    .await;
    let keys = Provider::ALL.map(|provider| (format!("brittle-{}", provider.name()), key(provider)));
    world.set_keys(keys.iter().map(|(api, key)| (api.clone(), key.as_str()))).await;
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_ends_its_own_exchange_with_500_or_a_break_and_one_record_and_shows_nothing_of_it() {
    let goes_on = Arc::new(GoesOn { with_last_words: Semaphore::new(0), to_the_end: Semaphore::new(0) });
    let upstream = provider(Arc::clone(&goes_on)).await;
    let authority = Authority::new("An authority that is trusted");
    let front = Front::tls(authority.certify("localhost", VALID), upstream.addr, &TLS13).await;
    let mut world = world(&front, &authority).await;

    // Two that have nothing to do with it, over the same library, one of them on a connection with streams that panic.
    let mut alone = Wire::open(world.product.data_addr()).await;
    alone.send(ask(&world, Provider::OpenAi, "nowhere").bytes()).await;
    let alone_id = alone.head().await.id();
    alone.until_body_has("data: first\n\n").await;
    let mut peer = Peer::connect(world.product.data_addr()).await;
    let post = |words: &str| post(&path(Provider::OpenAi), &world.token.secret).header("x-words", words);
    let beside = peer.send(post("nowhere"), body(Provider::OpenAi)).await;
    let (beside_head, mut beside, _upload) = beside.head().await.unwrap();
    peer::until_body_has(&mut beside, "data: first\n\n").await;

    let mut panicked = Vec::new();
    for provider in Provider::ALL {
        let case = format!("before the head, {provider:?}");
        let mut raw = world.connect().await;
        let answer = raw.exchange(&ask(&world, provider, "head")).await;
        Refused::INTERNAL.check(&case, provider, &answer);
        assert!(answer.says_close(), "{case}");
        assert_eq!(raw.read_to_end().await.0, b"", "{case}: the connection ends");
        let record = world.check_record(&case, &answer, "unknown", Some("panic")).await;
        assert_eq!(record["token_id"], world.token.id.as_str(), "{case}: {record}");
        assert_eq!(record["response_bytes"], 0, "{case}: {record}");
        panicked.push(answer.id());
    }
    for provider in Provider::ALL {
        let case = format!("behind the head, {provider:?}");
        let mut wire = Wire::open(world.product.data_addr()).await;
        wire.send(ask(&world, provider, "stream").bytes()).await;
        let head = wire.head().await;
        assert_eq!(head.status, 200, "{case}");
        assert_eq!(wire.until_body_has("first").await, b"data: first\n\n", "{case}");
        goes_on.with_last_words.add_permits(1);
        assert_eq!(wire.rest().await, (Vec::new(), false), "{case}: a clean end, or more than the provider said");
        assert_eq!(wire.closed().await, b"", "{case}");
        let record = world.product.wait_event(&head.id()).await;
        let ended = (&record["outcome"], &record["reason"], &record["status"], &record["response_bytes"]);
        assert_eq!(ended, (&json!("unknown"), &json!("panic"), &json!(200), &json!(13)), "{case}: {record}");
        panicked.push(head.id());
    }
    let answer = peer.ask(post("head"), body(Provider::OpenAi)).await;
    assert_eq!((answer.status, answer.reset), (500, None), "on a stream: {}", answer.text());
    Refused::INTERNAL.check_body("on a stream", Provider::OpenAi, &answer.json(), &answer.id());
    panicked.push(answer.id());
    let answer = peer.send(post("stream"), body(Provider::OpenAi)).await;
    let (head, mut broken, _upload) = answer.head().await.unwrap();
    peer::until_body_has(&mut broken, "data: first\n\n").await;
    goes_on.with_last_words.add_permits(1);
    let (rest, reset) = peer::rest(&mut broken).await;
    assert!(rest.is_empty() && reset.is_some(), "on a stream: a clean end");
    panicked.push(head.id());

    goes_on.to_the_end.add_permits(2);
    let (rest, whole) = alone.rest().await;
    assert_eq!((rest, whole), (b"data: last\n\n".to_vec(), true), "another connection");
    let (rest, reset) = peer::rest(&mut beside).await;
    assert_eq!((rest, reset), (b"data: last\n\n".to_vec(), None), "another stream of the connection");
    for id in [&alone_id, &beside_head.id()] {
        let record = world.product.wait_event(id).await;
        assert_eq!((&record["outcome"], &record["reason"]), (&json!("finished"), &Value::Null), "{record}");
    }

    let metrics = eventually(PATIENCE, "nothing runs any more", async || {
        let metrics = world.product.metrics().await;
        (metric(&metrics, "llm_proxy_in_flight", &[]) == 0.0).then_some(metrics)
    })
    .await;
    assert_eq!(metric(&metrics, "llm_proxy_panics_total", &[]), panicked.len() as f64);
    let unknown = metric(&metrics, "llm_proxy_requests_total", &[("outcome", "unknown")]);
    assert_eq!(unknown, panicked.len() as f64);

    let log = world.product.log();
    let told: Vec<Value> = log
        .lines()
        .filter(|line| line.contains("a panic was caught"))
        .map(|line| serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap())
        .collect();
    assert_eq!(told.len(), panicked.len(), "{log}");
    for line in &told {
        let fields = line["fields"].as_object().unwrap();
        assert_eq!((&line["level"], fields.len()), (&json!("ERROR"), 2), "message and place: {line}");
        assert!(fields["place"].as_str().unwrap().contains("panic.rs:"), "{line}");
    }
    assert!(!log.contains("panicked at"), "beside the log's own form: {log}");
    let written = [log, metrics, std::fs::read_to_string(world.product.data_dir().join("events.jsonl")).unwrap()];
    let keys = Provider::ALL.map(key);
    let secrets = keys.iter().map(String::as_str).chain([PROMPT, LAST_WORDS, world.token.secret.as_str()]);
    for secret in secrets {
        assert!(written.iter().all(|text| !text.contains(secret)), "{secret:?} was written: {written:#?}");
    }

    // Each has ended: the next start finds nothing to make good.
    assert!(world.product.sigterm(Duration::from_secs(10)).await.success());
    world.product.restart().await;
    let next = world.ask(&Provider::OpenAi.ask(&world.token.secret)).await;
    assert_eq!(next.status, 200, "{}", next.text());
    let _ = world.record(&next).await;
    let records = world.product.events();
    for id in &panicked {
        assert_eq!(records.iter().filter(|record| record["id"] == id.as_str()).count(), 1, "{id}");
    }
}
