//! Providers behind TLS: one that proves its name is served as any other, and nothing of a request, neither key nor
//! body, gets out to one that does not. Why not stands in the log.

mod common;

use common::wire::{Piece, Wire};
use llm_proxy_load::mock::{self, Key, Mock, MockOptions};
use llm_proxy_tests::tls::{Authority, Front, TLS12, TLS13, VALID};
use llm_proxy_tests::{Ask, Fixture, Provider, Refused, World, fixture};
use serde_json::{Value, json};

/// The authority whose certificate the proxy is given.
const TRUSTED: &str = "An authority that is trusted";
/// What nobody but the provider may read of the request below.
const CONTENT: &str = "between me and the provider";
const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"between me and the provider"}]}"#;
/// The content type of TLS handshake records, RFC 8446 §5.1.
const HANDSHAKE: u8 = 22;

/// The settings of an API behind this front.
fn behind(scheme: &str, front: &Front) -> String {
    format!("dialect: openai\nbase_url: {scheme}://{}\n", front.host())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_behind_tls_is_served_as_any_other_and_its_key_goes_nowhere_else() {
    let authority = Authority::new(TRUSTED);
    let apis = [("tls13", "sk-mock-for-tls13", &TLS13), ("tls12", "sk-mock-for-tls12", &TLS12)];
    let keys = apis.map(|(_, key, _)| Key { provider: mock::Provider::OpenAi, value: key.to_owned() });
    let provider = Mock::start(MockOptions { keys: keys.into(), ..MockOptions::default() }).await.unwrap();
    let mut fronts = Vec::new();
    for (api, key, version) in apis {
        let identity = authority.certify("localhost", VALID);
        fronts.push((api, key, Front::tls(identity, provider.addr(), version).await));
    }
    let world = World::with(|mut options| {
        for (api, _, front) in &fronts {
            options = options.api(api, &behind("https", front));
        }
        options.set("SSL_CERT_FILE", authority.file().display())
    })
    .await;
    world.set_keys(apis.map(|(api, key, _)| (api.to_owned(), key))).await;

    let (whole, stream) = (fixture("openai-chat-basic"), fixture("openai-chat-stream-usage"));
    for (api, key, front) in &fronts {
        let path = format!("/{api}/v1/chat/completions");
        let ask = |recorded: &Fixture| recorded.ask(&world.token.secret).to(&path);
        // One connection of the client, so that each exchange begins when the one before has given its own back.
        let mut wire = Wire::open(world.product.data_addr()).await;

        let answer = wire.ask(ask(&whole).bytes()).await;
        assert_eq!(answer.head.status, 200, "{api}: {}", answer.text());
        assert_eq!(answer.body, whole.body, "{api}");
        let last = provider.requests().pop().unwrap();
        assert_eq!(last.key.as_deref(), Some(*key), "{api}");
        assert_eq!(last.header("host"), Some(front.host().as_bytes()), "{api}");

        wire.send(ask(&stream).with("x-mock-pace-ms", "100").bytes()).await;
        assert_eq!(wire.head().await.status, 200, "{api}");
        let Piece::Data(first) = wire.piece().await else { panic!("{api}: no first piece") };
        let last = provider.requests().pop().unwrap();
        assert_eq!(last.ended, None, "{api}: the first piece came only with the last");
        let (rest, is_whole) = wire.rest().await;
        assert!(is_whole, "{api}");
        assert_eq!([first, rest].concat(), stream.body, "{api}");

        let answer = wire.ask(ask(&whole).bytes()).await;
        assert_eq!((answer.head.status, &answer.body), (200, &whole.body), "{api}: behind a stream");
        assert!(!format!("{:?}", answer.head).contains(key), "{api}: {:?}", answer.head);

        let seen = front.seen();
        assert_eq!((seen.connections, seen.handshakes), (1, 1), "{api}: three exchanges share a TLS connection");
        assert!(seen.inside_has(key) && !seen.wire_has(key), "{api}: the key goes inside TLS only");
        assert!(!seen.inside_has(&world.token.secret) && !seen.wire_has(&world.token.secret), "{api}");
    }
    for (api, key, front) in &fronts {
        assert_eq!(provider.stats().by_key[*key].requests, 3, "{api}");
        for (other, foreign, _) in fronts.iter().filter(|(other, ..)| other != api) {
            assert!(!front.seen().inside_has(foreign), "{api} got the key of {other}");
        }
    }

    assert_eq!(world.upstream_count(), 0, "another provider was asked");
    assert_eq!(world.ask(&Provider::OpenAi.ask(&world.token.secret)).await.status, 200);
    let elsewhere = String::from_utf8_lossy(&world.last_upstream().head).into_owned();
    let log = world.product.log();
    for (api, key, _) in &fronts {
        assert!(!elsewhere.contains(key), "the key of {api} went elsewhere: {elsewhere}");
        assert!(!log.contains(key), "the key of {api} is in the log");
    }
}

/// A provider that must get nothing, and how the proxy says so.
struct Case {
    name: &'static str,
    front: Front,
    /// More settings of its API.
    yaml: &'static str,
    refused: Refused,
    outcome: &'static str,
    reason: &'static str,
    logged: &'static str,
}

impl Case {
    /// The connection fails: 502.
    fn fails(name: &'static str, front: Front, logged: &'static str) -> Self {
        let code = Refused::UNREACHABLE.code;
        Self { name, front, yaml: "", refused: Refused::UNREACHABLE, outcome: code, reason: code, logged }
    }

    /// The connect clock runs out: 504.
    fn hangs(name: &'static str, front: Front) -> Self {
        Self {
            name,
            front,
            yaml: "timeouts: {connect: 1s}",
            refused: Refused::TIMEOUT,
            outcome: "timeout",
            reason: "connect",
            logged: "took longer than 1s",
        }
    }
}

/// Asks each of them and checks answer, record and log, and that nothing of the request got out. What the fronts note
/// is put to the test at the end, by one that the proxy must trust, in the same process.
async fn gets_nothing(authority: &Authority, cases: &[Case]) {
    let provider = Mock::start(MockOptions::default()).await.unwrap();
    let right = Front::tls(authority.certify("localhost", VALID), provider.addr(), &TLS13).await;
    let world = World::with(|mut options| {
        for case in cases {
            options = options.api(case.name, &(behind("https", &case.front) + case.yaml));
        }
        options.api("right", &behind("https", &right)).set("SSL_CERT_FILE", authority.file().display())
    })
    .await;
    let key = Provider::OpenAi.key();
    let apis = cases.iter().map(|case| case.name).chain(["right"]);
    world.set_keys(apis.map(|api| (api.to_owned(), key))).await;
    let token = world.token.secret.as_str();
    let ask = |api: &str| Ask::post(&format!("/{api}/v1/chat/completions"), token, BODY);

    for case in cases {
        let name = case.name;
        let logged_before = world.product.log().len();
        let answer = world.ask(&ask(name)).await;
        case.refused.check(name, Provider::OpenAi, &answer);
        let record = world.check_record(name, &answer, case.outcome, Some(case.reason)).await;
        assert_eq!((&record["request_bytes"], &record["times"]["forwarded_ms"]), (&json!(0), &Value::Null), "{name}");

        let log = world.product.log();
        let log = &log[logged_before..];
        let is_told = log.lines().any(|line| line.contains("localhost") && line.contains(case.logged));
        assert!(is_told, "{name}: {:?} is not in the log: {log}", case.logged);

        let seen = case.front.ended().await;
        assert_eq!((seen.handshakes, seen.inside.len()), (0, 0), "{name}: the proxy trusted it");
        assert_eq!(seen.wire.first(), Some(&HANDSHAKE), "{name}: the proxy spoke something else than TLS");
        for secret in [key, token, CONTENT, "chat/completions"] {
            assert!(!seen.wire_has(secret), "{name}: {secret:?} went out in the clear");
        }
    }

    assert_eq!(provider.stats().requests, 0);
    let answer = world.ask(&ask("right")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = right.seen();
    assert!([key, CONTENT, "chat/completions"].iter().all(|told| seen.inside_has(told)), "the fronts note nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_whose_certificate_does_not_prove_its_name_gets_nothing_and_the_log_says_what_is_wrong() {
    let trusted = Authority::new(TRUSTED);
    let stranger = Authority::new("An authority that nobody knows");
    let impostor = Authority::new(TRUSTED);
    let provider = Mock::start(MockOptions::default()).await.unwrap();
    let mut cases = Vec::new();
    for (name, identity, logged) in [
        ("stranger", stranger.certify("localhost", VALID), "UnknownIssuer"),
        ("impostor", impostor.certify("localhost", VALID), "BadSignature"),
        ("other-name", trusted.certify("provider.test", VALID), "certificate not valid for name"),
        ("expired", trusted.certify("localhost", 2000..2001), "certificate expired"),
        ("too-early", trusted.certify("localhost", 2099..2100), "certificate not valid yet"),
    ] {
        cases.push(Case::fails(name, Front::tls(identity, provider.addr(), &TLS13).await, logged));
    }
    gets_nothing(&trusted, &cases).await;
    assert_eq!(provider.stats().requests, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_speaks_no_tls_or_never_ends_its_handshake_gets_nothing_either() {
    let bad_request = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    // A record of 64 bytes with a ServerHello, of which no more comes than its length.
    let half_a_hello = &[HANDSHAKE, 3, 3, 0, 64, 2, 0, 0, 60];
    let cases = [
        Case::fails("plain", Front::saying(bad_request).await, "InvalidContentType"),
        Case::hangs("mute", Front::saying(b"").await),
        Case::hangs("half-mute", Front::saying(half_a_hello).await),
    ];
    gets_nothing(&Authority::new(TRUSTED), &cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_at_an_http_address_is_spoken_to_in_the_clear() {
    let provider = Mock::start(MockOptions::default()).await.unwrap();
    let front = Front::plain(provider.addr()).await;
    let world = World::with(|options| options.api("plain", &behind("http", &front))).await;
    world.set_keys([("plain".to_owned(), Provider::OpenAi.key())]).await;

    let recorded = fixture("openai-chat-basic");
    let answer = world.ask(&recorded.ask(&world.token.secret).to("/plain/v1/chat/completions")).await;
    assert_eq!((answer.status, &answer.body), (200, &recorded.body), "{}", answer.text());
    let seen = front.seen();
    assert!(seen.wire.starts_with(b"POST /v1/chat/completions HTTP/1.1\r\n"), "{:?}", seen.wire);
    assert!(seen.wire_has(Provider::OpenAi.key()) && !seen.wire_has(&world.token.secret));
}
