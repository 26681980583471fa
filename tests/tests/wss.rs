//! WebSockets under TLS, towards clients and towards providers: the same frames, the same words at the end, and nothing of
//! them to be read on the way.

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::setup::{Api, Setup, eventually, now_ms};
use llm_proxy_load::mock::{Mock, MockOptions, RequestRecord};
use llm_proxy_tests::foreign::Listener;
use llm_proxy_tests::tls::{Authority, Front, TLS12, TLS13, VALID};
use llm_proxy_tests::ws::{BINARY, FINAL, Handshake, PING, PONG, RawSocket, TEXT, frame, masked};
use llm_proxy_tests::ws_plain::{Message, Plain};
use llm_proxy_tests::ws_provider::SocketProvider;
use llm_proxy_tests::{Provider, World};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;

const OPENAI: &str = "/v1/realtime?model=gpt-realtime";
const HTTP11: &[u8] = b"http/1.1";
/// The promises for revocations in one process, and for clients that leave.
const PROMPTLY: Duration = Duration::from_millis(250);
const AT_ONCE_MS: u64 = 100;

/// What an app sends to OpenAI, to a provider that behaves so (`x-mock-socket`), called so in all books.
fn steered(token: &str, name: &str, talk: &str) -> Handshake {
    Handshake::new(OPENAI).bearer(token).with("x-request-id", name).with("x-mock-socket", talk)
}

async fn open(listener: &Listener, setup: &Setup, handshake: &Handshake) -> Plain<TlsStream<TcpStream>> {
    Plain::open_on(listener.connect(setup.proxy(), &[HTTP11]).await, handshake).await
}

/// What the provider saw of a socket that is over.
async fn over(setup: &Setup, name: &str) -> RequestRecord {
    eventually("the provider's side is over", || setup.seen(name).is_some_and(|seen| seen.ended.is_some())).await;
    setup.seen(name).unwrap()
}

async fn check_record(setup: &Setup, id: &str, outcome: &str, reason: Option<&str>) {
    let record = setup.only_record(id).await;
    let told = (record["outcome"].as_str(), record["reason"].as_str(), record["status"].as_u64());
    assert_eq!(told, (Some(outcome), reason, Some(101)), "{record}");
}

/// Bytes that no mistake repeats.
fn random(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_under_tls_gets_its_messages_pongs_and_close_codes() {
    let listener = Listener::sealed();
    let setup = Setup::with(&[], &listener.settings()).await;
    let mut socket = open(&listener, &setup, &steered(&setup.token.text, "echo", "echo")).await;
    for message in [Message::text("h\u{e9}llo"), Message::text(""), Message::binary(random(3_000_000, 1))] {
        socket.send(message.clone()).await;
        let back = socket.message().await;
        assert!(back == message, "a message of {} bytes changed", message.len());
    }
    socket.send(Message::Ping("still there?".into())).await;
    assert_eq!(socket.message().await, Message::Pong("still there?".into()));
    let id = socket.id();
    assert_eq!(socket.close(4001, "enough").await, Some((4001, "enough".to_owned())));
    let seen = over(&setup, "echo").await.socket.unwrap();
    assert_eq!((seen.counts.messages, seen.counts.pings, seen.close_code), (3, 1, Some(4001)));
    check_record(&setup, &id, "finished", None).await;

    for (talk, expected) in [("close:4002:come: again", (4002, "come: again")), ("close:1000", (1000, ""))] {
        let mut socket = open(&listener, &setup, &steered(&setup.token.text, talk, talk)).await;
        let (code, reason) = socket.closed().await.unwrap();
        assert_eq!((code, reason.as_str()), expected);
        check_record(&setup, &socket.id(), "finished", None).await;
    }
    let mut socket = open(&listener, &setup, &steered(&setup.token.text, "cut", "cut")).await;
    assert_eq!(socket.closed().await, Some((1011, "upstream_cut".to_owned())), "the provider left without a word");
    check_record(&setup, &socket.id(), "upstream_cut", Some("upstream_cut")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_pass_byte_equal_whatever_records_they_come_in() {
    let down = |large: usize| {
        let text = TEXT - FINAL;
        [frame(text, b"{\"a\":"), frame(PING, b"x"), frame(FINAL, b"1}"), frame(BINARY, &random(large, 2))].concat()
    };
    let up = |large: usize| {
        let binary = masked(BINARY - FINAL, &random(large, 3), [1, 2, 3, 4]);
        [masked(TEXT, b"{}", [9; 4]), binary, masked(PONG, b"", [7; 4]), masked(FINAL, b"end", [0; 4])].concat()
    };
    let sizes = [(2_000_000, usize::MAX), (200_000, 1_000), (10, 1)];
    let sessions = std::sync::Mutex::new(sizes.into_iter());
    let (report, mut reported) = mpsc::unbounded_channel();
    let provider = SocketProvider::start(move |mut socket: RawSocket| {
        let (large, piece) = sessions.lock().unwrap().next().expect("as many sessions as there are sizes");
        let report = report.clone();
        async move {
            // The first of it with the 101.
            let frames = down(large);
            socket.switch(&frames[..5]).await;
            report.send(socket.exchange(&frames[5..], piece, up(large).len()).await).unwrap();
            socket.bytes_to_end().await;
        }
    })
    .await;
    let listener = Listener::sealed();
    let setup = Setup::with(&[Api::at("scripted", provider.addr, "")], &listener.settings()).await;
    for (large, piece) in sizes {
        let handshake = Handshake::new("/scripted/v1/realtime?model=gpt-realtime").bearer(&setup.token.text);
        let (frames, expected) = (up(large), down(large));
        let tls = listener.connect(setup.proxy(), &[]).await;
        // And of ours with the handshake.
        let mut socket = RawSocket::open_on(tls, &handshake, &frames[..3]).await;
        let got = socket.exchange(&frames[3..], piece, expected.len()).await;
        assert!(got == expected, "{large} bytes in pieces of {piece}: the provider's frames changed");
        let got = reported.recv().await.unwrap();
        assert!(got == frames, "{large} bytes in pieces of {piece}: the client's frames changed");
    }
}

/// Waits until the provider gets no further with what it has to say.
async fn stand_still(setup: &Setup, name: &str) {
    let sent = || setup.seen(name).and_then(|seen| seen.socket).map_or(0, |socket| socket.counts.sent_bytes);
    loop {
        let before = sent();
        tokio::time::sleep(Duration::from_millis(100)).await;
        if before > 0 && sent() == before {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_ends_sockets_under_tls_with_the_reason_within_250_ms_and_nobody_elses() {
    let listener = Listener::sealed();
    let setup = Setup::with(&[], &listener.settings()).await;
    let mut other = open(&listener, &setup, &steered(&setup.token.text, "other", "echo")).await;
    let token = setup.token_with(json!({})).await;
    let mut silent = open(&listener, &setup, &steered(&token.text, "silent", "silent")).await;
    let mut talking = open(&listener, &setup, &steered(&token.text, "talking", "echo")).await;
    talking.send(Message::text("here")).await;
    assert_eq!(talking.message().await, Message::text("here"));
    // This one reads nothing, so that the proxy is in the middle of a record, for as long as it takes.
    let deaf = open(&listener, &setup, &steered(&token.text, "deaf", "flood:1000000000")).await;
    stand_still(&setup, "deaf").await;

    let (status, answer) = setup.manage("DELETE", &format!("/manage/tokens/{}", token.id), Value::Null).await;
    let revoked = Instant::now();
    assert_eq!(status, 204, "{answer}");
    for (name, socket) in [("silent", &mut silent), ("talking", &mut talking)] {
        // The end of TLS is said as well: without it this would be an error.
        assert_eq!(socket.closed().await, Some((1008, "token_revoked".to_owned())), "{name}");
        assert!(revoked.elapsed() <= PROMPTLY, "{name}: only after {:?}", revoked.elapsed());
    }
    for name in ["silent", "talking", "deaf"] {
        over(&setup, name).await;
        assert!(revoked.elapsed() <= PROMPTLY, "{name}, the provider's side: only after {:?}", revoked.elapsed());
    }
    for id in [silent.id(), talking.id(), deaf.id()] {
        check_record(&setup, &id, "revoked", Some("token_revoked")).await;
    }
    other.send(Message::text("still here")).await;
    assert_eq!(other.message().await, Message::text("still here"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_with_or_without_a_word_of_tls_closes_the_providers_side_within_100_ms() {
    const ROUNDS: usize = 15;
    let listener = Listener::sealed();
    let setup = Setup::with(&[], &listener.settings()).await;
    let mut delays = Vec::new();
    let mut left = Vec::new();
    for round in 0..ROUNDS {
        for says_goodbye in [false, true] {
            let name = format!("{says_goodbye}-{round}");
            let handshake = Handshake::new(OPENAI).bearer(&setup.token.text).with("x-request-id", &name);
            let tls = listener.connect(setup.proxy(), &[HTTP11]).await;
            let mut socket = RawSocket::open_on(tls, &handshake, b"").await;
            socket.until("session.created").await;
            left.push(socket.id());
            let left_at = now_ms();
            if says_goodbye {
                socket.half_close().await;
            }
            drop(socket);
            let ended_at = over(&setup, &name).await.finished_ms.unwrap();
            delays.push((ended_at.saturating_sub(left_at), name));
        }
    }
    // The promise is a p99: of so many, one may be later.
    let late: Vec<_> = delays.iter().filter(|(delay, _)| *delay > AT_ONCE_MS).collect();
    assert!(late.len() <= 1, "later than {AT_ONCE_MS} ms: {late:?}");
    for id in left {
        check_record(&setup, &id, "client_gone", None).await;
    }
}

/// A connection of a client, whatever is below it.
trait Connection: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection for S {}

async fn connect(listener: &Listener, to: SocketAddr) -> Box<dyn Connection> {
    match listener.is_sealed() {
        true => Box::new(listener.connect(to, &[HTTP11]).await),
        false => Box::new(TcpStream::connect(to).await.unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_under_tls_is_spoken_to_inside_it_and_its_sockets_are_metered_and_cut_like_any() {
    let authority = Authority::new("An authority that is trusted");
    let provider = Mock::start(MockOptions::default()).await.unwrap();
    let key = Provider::OpenAi.key();
    let target = "/sealed/v1/realtime?model=gpt-realtime";
    for version in [&TLS13, &TLS12] {
        for listener in Listener::both() {
            let case = format!("{version:?}, to a listener under TLS: {}", listener.is_sealed());
            let front = Front::tls(authority.certify("localhost", VALID), provider.addr(), version).await;
            let world = World::with(|options| {
                let api = format!("dialect: openai\nbase_url: https://{}", front.host());
                let options = options.api("sealed", &api).set("SSL_CERT_FILE", authority.file().display());
                listener.settings().into_iter().fold(options, |options, (name, value)| options.set(name, value))
            })
            .await;
            world.set_keys([("sealed".to_owned(), key)]).await;
            let (to, token) = (world.product.data_addr(), world.token.secret.as_str());
            let offer = format!("realtime, openai-insecure-api-key.{token}");
            let offered = Handshake::new(target).with("sec-websocket-protocol", &offer);
            for handshake in [Handshake::new(target).bearer(token), offered] {
                let mut socket = Plain::open_on(connect(&listener, to).await, &handshake).await;
                assert_eq!(socket.event("session.created").await["session"]["model"], "gpt-realtime", "{case}");
                socket.say(&json!({"type": "response.create"})).await;
                socket.event("response.done").await;
                let id = socket.id();
                assert_eq!(socket.close(1000, "done").await, Some((1000, "done".to_owned())), "{case}");
                let record = world.product.wait_event(&id).await;
                let told = (&record["outcome"], &record["usage"]["source"], &record["usage"]["input_tokens"]);
                assert_eq!(told, (&json!("finished"), &json!("reported"), &json!(20)), "{case}: {record}");
            }
            let seen = front.ended().await;
            assert_eq!(seen.handshakes, 2, "{case}: a socket's connection carries nothing else");
            assert!(seen.inside_has(key) && !seen.wire_has(key), "{case}: the key goes inside TLS only");
            assert!(!seen.inside_has(token) && !seen.wire_has(token), "{case}: the token went out");
            assert!(!seen.wire_has("realtime"), "{case}: what is said went out in the clear");

            let handshake = Handshake::new(target).bearer(token);
            let mut socket = Plain::open_on(connect(&listener, to).await, &handshake).await;
            socket.event("session.created").await;
            world.revoke(&world.token.id).await;
            let revoked = Instant::now();
            assert_eq!(socket.closed().await, Some((1008, "token_revoked".to_owned())), "{case}");
            front.ended().await;
            assert!(revoked.elapsed() <= PROMPTLY, "{case}: only after {:?}", revoked.elapsed());
        }
    }
}
