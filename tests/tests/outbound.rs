//! The ways out to providers: through the network's proxy, which reads names and nothing of what is said; around it where
//! it is told so; and to a host with several addresses. With what TLS is made on these ways is told in `outbound/trust.rs`.

mod common;
#[path = "outbound/network_proxy.rs"]
mod network_proxy;
#[path = "outbound/trust.rs"]
mod trust;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::wire::Wire;
use llm_proxy_load::mock::{Mock, MockOptions};
use llm_proxy_tests::tls::{Authority, Front, TLS13, VALID};
use llm_proxy_tests::{Ask, Provider, Refused, World, fixture, run_binary};
use network_proxy::{Manner, NetworkProxy};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

/// The authority whose certificate the proxy is given.
const TRUSTED: &str = "An authority that is trusted";
/// What nobody but the provider may read of the request below.
const CONTENT: &str = "between me and the provider";
const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"between me and the provider"}]}"#;
/// The content type of TLS handshake records, RFC 8446 §5.1.
const HANDSHAKE: u8 = 22;

/// The settings of an API at this host and port, behind TLS.
fn at(host: &str) -> String {
    format!("dialect: openai\nbase_url: https://{host}\n")
}

fn ask(api: &str, token: &str) -> Ask {
    Ask::post(&format!("/{api}/v1/chat/completions"), token, BODY)
}

/// Runs the server with files in its folder and variables. It must not start; what it says is one line.
async fn refused_start(case: &str, files: &[(&str, &str)], variables: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let ports = [("LISTEN_ADDR", "127.0.0.1:0"), ("ADMIN_LISTEN_ADDR", "127.0.0.1:0")];
    let finished = run_binary(folder.path(), &["server"], &[&ports[..], variables].concat()).await;
    assert!(finished.code.is_some_and(|code| code != 0), "{case}: {finished:?}");
    let line = finished.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{case}: {finished:?}"));
    assert!(line.starts_with("llm-proxy: ") && !line.contains('\n'), "{case}: one line is expected: {finished:?}");
    line.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_networks_proxy_reads_a_providers_name_and_its_own_credentials_and_carries_the_rest_sealed() {
    let authority = Authority::new(TRUSTED);
    let provider = Mock::start(MockOptions::default()).await.unwrap();
    let front = Front::tls(authority.certify("provider.test", VALID), provider.addr(), &TLS13).await;
    let to = front.addr();
    let network = NetworkProxy::start(move |_| Manner::Open(to)).await;
    let world = World::with(|options| {
        options
            .api("far", &at("provider.test:8443"))
            .set("SSL_CERT_FILE", authority.file().display())
            .set("HTTPS_PROXY", format!("http://team%20a:p%40ss%3Aw0rd@{}", network.addr()))
    })
    .await;
    let key = Provider::OpenAi.key();
    world.set_keys([("far".to_owned(), key)]).await;
    let token = world.token.secret.as_str();

    // One connection of the client, so that each exchange begins when the one before has given its own back.
    let mut wire = Wire::open(world.product.data_addr()).await;
    for recorded in [fixture("openai-chat-basic"), fixture("openai-chat-stream-usage")] {
        let answer = wire.ask(recorded.ask(token).to("/far/v1/chat/completions").bytes()).await;
        assert_eq!((answer.head.status, answer.whole), (200, true), "{}: {}", recorded.name, answer.text());
        assert_eq!(answer.body, recorded.body, "{}", recorded.name);
        assert!(!format!("{:?}", answer.head).contains(key), "{}: {:?}", recorded.name, answer.head);
    }
    let answer = wire.ask(ask("far", token).bytes()).await;
    assert_eq!(answer.head.status, 200, "{}", answer.text());
    let last = provider.requests().pop().unwrap();
    assert_eq!(last.header("host"), Some(&b"provider.test:8443"[..]));

    let basic = STANDARD.encode("team a:p@ss:w0rd");
    let visits = network.visits();
    assert_eq!(visits.len(), 1, "three exchanges share a tunnel: {visits:?}");
    assert_eq!(
        String::from_utf8_lossy(&visits[0].head),
        format!(
            "CONNECT provider.test:8443 HTTP/1.1\r\nhost: provider.test:8443\r\nproxy-authorization: Basic {basic}\r\n\r\n"
        )
    );
    assert_eq!(visits[0].behind.first(), Some(&HANDSHAKE), "the proxy spoke something else than TLS");
    for secret in [key, token, CONTENT, "chat/completions", "gpt-4o-mini"] {
        assert!(!visits[0].has(secret), "{secret:?} went out in the clear");
    }

    let seen = front.seen();
    assert_eq!((seen.connections, seen.handshakes), (1, 1));
    assert!([key, CONTENT, "chat/completions"].iter().all(|told| seen.inside_has(told)), "the fronts note nothing");
    for foreign in ["proxy-authorization", "team a", &basic, token] {
        assert!(!seen.inside_has(foreign), "{foreign:?} went to the provider");
    }
    let log = world.product.log();
    assert!(log.contains(&format!("far is reached through the proxy at {}", network.addr())), "{log}");
    for secret in ["p@ss", "p%40ss", &basic] {
        assert!(!log.contains(secret), "{secret:?} is in the log: {log}");
    }
}

/// A tunnel that does not come about, and how the product says so.
struct Case {
    name: &'static str,
    /// Host and port of its provider.
    host: String,
    manner: Manner,
    /// More settings of its API.
    yaml: &'static str,
    /// Whether the network's proxy says that it has opened one.
    opens: bool,
    refused: Refused,
    outcome: &'static str,
    reason: &'static str,
    logged: &'static str,
}

impl Case {
    /// The connection fails: 502.
    fn fails(name: &'static str, manner: Manner, logged: &'static str) -> Self {
        let code = Refused::UNREACHABLE.code;
        let host = format!("{name}.test:8443");
        let (refused, outcome, reason) = (Refused::UNREACHABLE, code, code);
        Self { name, host, manner, yaml: "", opens: false, refused, outcome, reason, logged }
    }

    /// The connect clock runs out: 504.
    fn hangs(name: &'static str, manner: Manner) -> Self {
        Self {
            yaml: "timeouts: {connect: 1s}",
            refused: Refused::TIMEOUT,
            outcome: "timeout",
            reason: "connect",
            ..Self::fails(name, manner, "took longer than 1s")
        }
    }

    fn opens(self) -> Self {
        Self { opens: true, ..self }
    }
}

/// Longer than any head.
static ENDLESS: [u8; 20 * 1024] = [b'a'; 20 * 1024];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_does_not_come_about_is_a_502_or_504_with_its_reason_in_the_log_and_nothing_goes_out() {
    let authority = Authority::new(TRUSTED);
    let provider = Mock::start(MockOptions::default()).await.unwrap();
    let near = Front::tls(authority.certify("localhost", VALID), provider.addr(), &TLS13).await;
    let plain = Front::saying(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let stranger = Authority::new("An authority that nobody knows").certify("reads-along.test", VALID);
    let between = Front::tls(stranger, provider.addr(), &TLS13).await;
    let right = Front::tls(authority.certify("right.test", VALID), provider.addr(), &TLS13).await;

    let asks_for_password = b"HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\n\r\nwho?";
    let cases = [
        Case::fails("asks-for-password", Manner::Say(asks_for_password), "answered CONNECT with 407"),
        Case::fails("forbids", Manner::Say(b"HTTP/1.1 403 Forbidden\r\n\r\n"), "answered CONNECT with 403"),
        Case::fails("fails", Manner::Say(b"HTTP/1.0 502 Bad Gateway\r\n\r\n"), "answered CONNECT with 502"),
        Case::fails(
            "sends-elsewhere",
            Manner::Say(b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n"),
            "answered CONNECT with 302",
        ),
        Case {
            // It is there, and no reason to go around the proxy.
            host: near.host(),
            ..Case::fails("near", Manner::Say(b"HTTP/1.1 403 Forbidden\r\n\r\n"), "answered CONNECT with 403")
        },
        Case::fails("leaves", Manner::Leave, "no proper answer to CONNECT"),
        Case::fails("is-no-proxy", Manner::Say(b"220 mail.test ESMTP\r\n\r\n"), "no proper answer to CONNECT"),
        Case::fails("never-ends", Manner::Say(&ENDLESS), "no proper answer to CONNECT"),
        Case::fails("says-more", Manner::Say(b"HTTP/1.1 200 OK\r\n\r\n<html>"), "no proper answer to CONNECT"),
        Case::fails("answers-itself", Manner::Open(plain.addr()), "InvalidContentType").opens(),
        Case::fails("reads-along", Manner::Open(between.addr()), "UnknownIssuer").opens(),
        Case::hangs("mute", Manner::Say(b"")),
        Case::hangs("half-mute", Manner::Say(b"HTTP/1.1 200 Connection establ")),
        Case::hangs("opens-nothing", Manner::Say(b"HTTP/1.1 200 OK\r\n\r\n")).opens(),
    ];
    let mut manners: HashMap<String, Manner> = cases.iter().map(|case| (case.host.clone(), case.manner)).collect();
    manners.insert("right.test:8443".to_owned(), Manner::Open(right.addr()));
    let network = NetworkProxy::start(move |authority| manners.get(authority).copied().unwrap_or(Manner::Leave)).await;
    let world = World::with(|mut options| {
        for case in &cases {
            options = options.api(case.name, &(at(&case.host) + case.yaml));
        }
        options
            .api("right", &at("right.test:8443"))
            .api("late", &at("late.test:8443"))
            .set("SSL_CERT_FILE", authority.file().display())
            .set("HTTPS_PROXY", format!("http://{}", network.addr()))
    })
    .await;
    let key = Provider::OpenAi.key();
    let apis = cases.iter().map(|case| case.name).chain(["right", "late"]);
    world.set_keys(apis.map(|api| (api.to_owned(), key))).await;
    let token = world.token.secret.as_str();

    for case in &cases {
        let name = case.name;
        let logged_before = world.product.log().len();
        let answer = world.ask(&ask(name, token)).await;
        case.refused.check(name, Provider::OpenAi, &answer);
        let record = world.check_record(name, &answer, case.outcome, Some(case.reason)).await;
        assert_eq!((&record["request_bytes"], &record["times"]["forwarded_ms"]), (&json!(0), &Value::Null), "{name}");

        let log = world.product.log();
        let log = &log[logged_before..];
        let (host, _) = case.host.rsplit_once(':').unwrap();
        let is_told = log.lines().any(|line| line.contains(host) && line.contains(case.logged));
        assert!(is_told, "{name}: {:?} is not in the log: {log}", case.logged);

        let visit = network.ended(&case.host).await;
        assert_eq!(visit.behind.first(), case.opens.then_some(&HANDSHAKE), "{name}: {visit:?}");
        for secret in [key, token, CONTENT, "chat/completions"] {
            assert!(!visit.has(secret), "{name}: {secret:?} went out in the clear");
        }
    }
    assert_eq!(near.seen().connections, 0, "it went around the network's proxy");
    assert_eq!((between.seen().handshakes, provider.stats().requests), (0, 0));

    let answer = world.ask(&ask("right", token)).await;
    assert_eq!((answer.status, provider.stats().requests), (200, 1), "{}", answer.text());
    network.stop().await;
    let answer = world.ask(&ask("late", token)).await;
    Refused::UNREACHABLE.check("no proxy at all", Provider::OpenAi, &answer);
    let log = world.product.log();
    let is_told = log.lines().any(|line| line.contains("late.test") && line.contains("the proxy at 127.0.0.1"));
    assert!(is_told, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn providers_in_no_proxy_are_reached_directly_and_all_others_through_the_networks_proxy() {
    let authority = Authority::new(TRUSTED);
    let provider = Mock::start(MockOptions::default()).await.unwrap();
    let front = async |host: &str| Front::tls(authority.certify(host, VALID), provider.addr(), &TLS13).await;
    let (named, inside, outside) = (front("localhost").await, front("127.0.0.1").await, front("127.0.0.9").await);
    let to = outside.addr();
    let network = NetworkProxy::start(move |_| Manner::Open(to)).await;
    let world = World::with(|options| {
        options
            .api("named", &at(&named.host()))
            .api("inside", &at(&inside.addr().to_string()))
            .api("outside", &at("127.0.0.9:8443"))
            .set("SSL_CERT_FILE", authority.file().display())
            .set("https_proxy", format!("http://{}", network.addr()))
            .set("NO_PROXY", "LocalHost, 127.0.0.0/29")
    })
    .await;
    let apis = ["named", "inside", "outside"];
    world.set_keys(apis.map(|api| (api.to_owned(), Provider::OpenAi.key()))).await;
    for api in apis {
        let answer = world.ask(&ask(api, &world.token.secret)).await;
        assert_eq!(answer.status, 200, "{api}: {}", answer.text());
    }

    let heads: Vec<String> =
        network.visits().iter().map(|visit| String::from_utf8_lossy(&visit.head).into_owned()).collect();
    assert_eq!(heads, ["CONNECT 127.0.0.9:8443 HTTP/1.1\r\nhost: 127.0.0.9:8443\r\n\r\n"]);
    assert_eq!([named, inside, outside].map(|front| front.seen().handshakes), [1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_at_an_http_address_goes_through_the_proxy_of_the_lower_case_variable_only() {
    let wrong = NetworkProxy::start(|_| Manner::Leave).await;
    let mut world = World::with(|options| {
        let wrong = format!("http://{}", wrong.addr());
        options.set("HTTP_PROXY", &wrong).set("HTTPS_PROXY", &wrong)
    })
    .await;
    let recorded = fixture("openai-chat-stream-usage");
    let ask = recorded.ask(&world.token.secret);
    let answer = world.ask(&ask).await;
    assert_eq!((answer.status, &answer.body), (200, &recorded.body), "{}", answer.text());

    let to = world.mock.addr();
    let network = NetworkProxy::start(move |_| Manner::Open(to)).await;
    world.product.reconfigure(|options| options.set("http_proxy", format!("http://{}", network.addr())));
    world.product.restart().await;
    let answer = world.ask(&ask).await;
    assert_eq!((answer.status, &answer.body), (200, &recorded.body), "{}", answer.text());
    let visits = network.visits();
    assert_eq!(visits.len(), 1, "{visits:?}");
    assert_eq!(String::from_utf8_lossy(&visits[0].head), format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n"));
    assert!(visits[0].behind.starts_with(b"POST /v1/chat/completions HTTP/1.1\r\n"), "{visits:?}");
    assert!(visits[0].has(Provider::OpenAi.key()) && !visits[0].has(&world.token.secret));

    assert_eq!(wrong.visits().len(), 0, "a proxy was asked that is another's");
}

#[tokio::test]
async fn a_proxy_that_cannot_be_meant_stops_the_start_with_one_line_that_names_the_variable_and_no_secret() {
    for (variable, value, found) in [
        ("HTTPS_PROXY", "socks5://user:hunter2@proxy.test:1080", "found a SOCKS proxy"),
        ("https_proxy", "http://user:hunter2@proxy.test", "found no port"),
        ("https_proxy", "http://user:hunter2@proxy.test:hunter2", "found a malformed host or port"),
        ("HTTPS_PROXY", "http://user:hunter2@@proxy.test:3128", "found a malformed user or password"),
        ("all_proxy", "https://user:hunter2@proxy.test:3128", "itself reached by https"),
        ("ALL_PROXY", "http://user:hunter2@proxy.test:3128/hunter2", "found a path"),
    ] {
        let line = refused_start(value, &[], &[(variable, value)]).await;
        for word in [found, "expected http://host:port", &format!("{variable}: ")] {
            assert!(line.contains(word), "{variable}={value}: {word:?} is missing: {line}");
        }
        assert!(!line.contains("hunter2") && !line.contains("proxy.test"), "{variable}={value}: {line}");
    }
    let sound = ("HTTPS_PROXY", "http://user:hunter2@proxy.test:3128");
    let line = refused_start("an exemption", &[], &[sound, ("NO_PROXY", "intern.test, http://api.test")]).await;
    assert!(line.contains("NO_PROXY: found \"http://api.test\" in the list, expected a host name"), "{line}");
    assert!(!line.contains("hunter2"), "{line}");
}

/// Lets nobody in at this address and tells nobody so, like a host behind a dead route.
async fn silent_at(address: SocketAddr) -> (TcpListener, Vec<TcpStream>) {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
    socket.bind(address).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut waiting = Vec::new();
    // The system answers for a listener that accepts nobody until its queue is full.
    while let Ok(connected) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        waiting.push(connected.unwrap());
        assert!(waiting.len() < 64, "{address} still answers");
    }
    (listener, waiting)
}

/// Which addresses `localhost` has is this machine's matter. One of them makes no race, and is a provider all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_served_from_whichever_of_its_addresses_answers_also_where_the_others_are_silent() {
    let found = lookup_host(("localhost", 0)).await.unwrap();
    // A family that is switched off has an address here and there nevertheless.
    let can_listen = |address: &IpAddr| std::net::TcpListener::bind((*address, 0)).is_ok();
    let addresses: BTreeSet<IpAddr> = found.map(|address| address.ip()).filter(can_listen).collect();
    let mut providers = Vec::new();
    let mut silent = Vec::new();
    for address in &addresses {
        for others_are_silent in [false, true] {
            let listen = SocketAddr::new(*address, 0);
            let provider = Mock::start(MockOptions { listen, ..MockOptions::default() }).await.unwrap();
            let port = provider.addr().port();
            for other in addresses.iter().filter(|other| others_are_silent && *other != address) {
                silent.push(silent_at(SocketAddr::new(*other, port)).await);
            }
            providers.push((format!("near-{}", providers.len()), provider));
        }
    }
    let world = World::with(|mut options| {
        for (api, provider) in &providers {
            let port = provider.addr().port();
            // Less than a connection to a silent address takes to fail, more than the next one is held back.
            let yaml = format!("dialect: openai\nbase_url: http://localhost:{port}\ntimeouts: {{connect: 2s}}");
            options = options.api(api, &yaml);
        }
        options
    })
    .await;
    world.set_keys(providers.iter().map(|(api, _)| (api.clone(), Provider::OpenAi.key()))).await;
    for (api, provider) in &providers {
        let answer = world.ask(&ask(api, &world.token.secret)).await;
        assert_eq!(answer.status, 200, "{api} at {}: {}", provider.addr(), answer.text());
        assert_eq!(provider.stats().requests, 1, "{api} at {}", provider.addr());
    }
}
