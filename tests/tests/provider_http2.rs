//! HTTP/2 to providers: chosen by ALPN, many exchanges on a connection, and each of them as it is over HTTP/1.1.

mod common;
#[path = "provider_http2/faults.rs"]
mod faults;
#[allow(dead_code, reason = "its clients are another scenario's")]
#[path = "http2/peer.rs"]
mod peer;
#[path = "provider_http2/pressure.rs"]
mod pressure;
#[path = "provider_http2/provider.rs"]
mod provider;

use std::collections::{BTreeSet, HashMap};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::wire::{Piece, Wire};
use h2::server::Builder;
use http::HeaderMap;
use http::request::Parts;
use llm_proxy_load::mock::{Mock, MockOptions};
use llm_proxy_tests::tls::{Authority, VALID};
use llm_proxy_tests::ws::{Handshake, RawSocket};
use llm_proxy_tests::{Answer, Ask, PATIENCE, Raw, World, eventually, fixture};
use provider::{Asked, BOTH, HTTP_1_1, HTTP_2, Provider, head, talk};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, Notify};
use tokio::task::JoinSet;
use tokio::time::timeout;

const KEY: &str = "sk-mock-openai";
const CHAT: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#;
const PATH: &str = "/h2/v1/chat/completions";
/// The promise of a revocation, in one process.
const PROMPTLY: Duration = Duration::from_millis(250);

/// A product whose API `h2` is at this provider, with more lines of YAML.
async fn world_with(yaml: &str, more: &str) -> World {
    let world = World::with(|options| options.api("h2", &format!("{yaml}{more}"))).await;
    world.set_keys([("h2".to_owned(), KEY)]).await;
    world
}

async fn world(provider: &Provider) -> World {
    world_with(&provider.yaml(), "").await
}

fn chat(world: &World) -> Ask {
    Ask::post(PATH, &world.token.secret, CHAT)
}

/// So many of the same request at once, each on a connection of its own; `change` makes each of them its own.
async fn at_once(world: &World, count: usize, change: impl Fn(usize, Ask) -> Ask) -> Vec<Answer> {
    let addr = world.product.data_addr();
    let mut asking = JoinSet::new();
    for number in 0..count {
        let ask = change(number, chat(world));
        asking.spawn(async move { (number, Raw::ask(addr, &ask).await) });
    }
    let mut answers: Vec<_> = timeout(PATIENCE, asking.join_all()).await.expect("all are answered");
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_and_streams_are_the_providers_bytes_as_they_come_and_metered() {
    let (whole, stream) = (fixture("openai-chat-basic"), fixture("openai-chat-stream-usage"));
    let (gate, seen) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::<(Parts, Vec<u8>)>::new())));
    let provider = {
        let (whole, stream, gate, seen) = (whole.clone(), stream.clone(), Arc::clone(&gate), Arc::clone(&seen));
        Provider::start(Builder::new(), move |mut asked: Asked| {
            let (whole, stream, gate, seen) = (whole.clone(), stream.clone(), Arc::clone(&gate), Arc::clone(&seen));
            async move {
                let body = asked.whole().await;
                seen.lock().unwrap().push((asked.head.clone(), body));
                if asked.field("x-kind") == Some("stream") {
                    let first = stream.event_ends()[0];
                    let mut out = asked.begin(200, &[("content-type", "text/event-stream")]);
                    out.send_data(stream.body[..first].to_vec().into(), false).unwrap();
                    gate.notified().await;
                    out.send_data(stream.body[first..].to_vec().into(), true).unwrap();
                } else {
                    asked.answer(200, &[("content-type", "application/json"), ("x-request-id", "req_1")], whole.body);
                }
            }
        })
        .await
    };
    let world = world(&provider).await;
    let mut wire = Wire::open(world.product.data_addr()).await;
    let ask =
        chat(&world).with("connection", "x-mine").with("x-mine", "1").with("te", "trailers").with("X-Kept", "a b");
    for _ in 0..2 {
        let answer = wire.ask(ask.bytes()).await;
        assert_eq!((answer.head.status, &answer.body, answer.whole), (200, &whole.body, true));
        assert_eq!(answer.head.field("x-request-id"), Some("req_1"));
        let record = world.product.wait_event(&answer.head.id()).await;
        assert_eq!((&record["outcome"], &record["attempt"]), (&json!("finished"), &json!(1)), "{record}");
        assert_eq!((&record["usage"]["input_tokens"], &record["usage"]["output_tokens"]), (&json!(12), &json!(5)));
        assert_eq!(record["request_bytes"], json!(CHAT.len()), "{record}");
    }
    wire.send(ask.with("x-kind", "stream").bytes()).await;
    let head = wire.head().await;
    assert_eq!((head.status, head.field("content-type")), (200, Some("text/event-stream")));
    let Piece::Data(first) = wire.piece().await else { panic!("no first piece") };
    assert!(stream.body.starts_with(&first), "the first piece came only with the last");
    gate.notify_one();
    let (rest, is_whole) = wire.rest().await;
    assert!(is_whole);
    assert_eq!([first, rest].concat(), stream.body);
    let record = world.product.wait_event(&head.id()).await;
    assert_eq!((&record["usage"]["input_tokens"], &record["stream"]), (&json!(12), &json!(true)), "{record}");

    for (head, body) in seen.lock().unwrap().iter() {
        assert_eq!((head.method.as_str(), body.as_slice()), ("POST", CHAT.as_bytes()));
        assert_eq!(head.uri.to_string(), format!("https://{}/v1/chat/completions", provider.host()));
        let field = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(field("authorization"), Some(&*format!("Bearer {KEY}")));
        assert_eq!((field("content-length"), field("x-kept")), (Some(&*CHAT.len().to_string()), Some("a b")));
        for gone in ["host", "connection", "x-mine", "te", "transfer-encoding"] {
            assert_eq!(field(gone), None, "{gone}");
        }
        assert!(!format!("{head:?}").contains(&world.token.secret));
    }
    assert_eq!(provider.chosen(), [HTTP_2], "three exchanges, one connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_exchanges_at_once_share_the_first_connection_and_are_never_mixed() {
    const COUNT: usize = 50;
    let all = Arc::new(Barrier::new(COUNT));
    let provider = Provider::start(Builder::new(), move |mut asked: Asked| {
        let all = Arc::clone(&all);
        async move {
            let body = asked.whole().await;
            let name = asked.field("x-name").unwrap().to_owned();
            // None is answered before all have asked.
            all.wait().await;
            let mut out = asked.begin(200, &[("x-name", &name)]);
            for piece in body.chunks(700) {
                out.send_data(piece.to_vec().into(), false).unwrap();
                tokio::task::yield_now().await;
            }
            out.send_data(name.into(), true).unwrap();
        }
    })
    .await;
    let world = world(&provider).await;
    let body = |number: usize| format!("{{\"n\":\"{}\"}}", number.to_string().repeat(1000 + number));
    let answers =
        at_once(&world, COUNT, |number, ask| ask.with("x-name", &number.to_string()).json(&body(number))).await;
    let mut ids = BTreeSet::new();
    for (number, answer) in answers.iter().enumerate() {
        assert!(answer.status == 200 && answer.complete, "{number}: {answer:?}");
        assert_eq!(answer.header("x-name"), Some(&*number.to_string()));
        assert_eq!(answer.text(), format!("{}{number}", body(number)));
        assert!(ids.insert(answer.id()), "two exchanges have one id");
    }
    assert_eq!(provider.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_takes_four_streams_never_has_more_on_a_connection() {
    const COUNT: usize = 20;
    let (all, running) = (Arc::new(Barrier::new(COUNT)), Arc::new(Mutex::new(HashMap::<usize, usize>::new())));
    let most = Arc::new(AtomicUsize::new(0));
    let provider = {
        let most = Arc::clone(&most);
        let mut builder = Builder::new();
        builder.max_concurrent_streams(4);
        Provider::start(builder, move |asked: Asked| {
            let (all, running, most) = (Arc::clone(&all), Arc::clone(&running), Arc::clone(&most));
            async move {
                let now = {
                    let mut running = running.lock().unwrap();
                    let now = running.entry(asked.connection).or_default();
                    *now += 1;
                    *now
                };
                most.fetch_max(now, Ordering::SeqCst);
                all.wait().await;
                *running.lock().unwrap().get_mut(&asked.connection).unwrap() -= 1;
                asked.answer(200, &[], "{}");
            }
        })
        .await
    };
    let world = world(&provider).await;
    for round in 1..=2 {
        let answers = at_once(&world, COUNT, |_, ask| ask).await;
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.text() == "{}"), "{answers:?}");
        assert_eq!(most.load(Ordering::SeqCst), 4, "round {round}");
        assert!(provider.connections() <= 8, "round {round}: {} connections", provider.connections());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_interim_ones_and_trailers_pass_as_over_http_1_1() {
    let provider = Provider::start(Builder::new(), |mut asked: Asked| async move {
        let kind = asked.field("x-kind").unwrap().to_owned();
        match kind.as_str() {
            "head" => asked.answer(200, &[("content-length", "5"), ("x-a", "1")], ""),
            "204" => asked.answer(204, &[("x-a", "1")], ""),
            "304" => asked.answer(304, &[("etag", "\"a\""), ("content-length", "5")], ""),
            "empty" => asked.answer(200, &[], ""),
            "interim" => {
                asked.respond.send_informational(head(103, &[("link", "</a>"), ("x-secret", "1")])).unwrap();
                asked.answer(200, &[], "hello");
            }
            _ => {
                let mut out = asked.begin(200, &[("trailer", "x-sum")]);
                out.send_data("hello".into(), false).unwrap();
                out.send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())])).unwrap();
            }
        }
    })
    .await;
    let world = world(&provider).await;
    for (kind, method, status, length, body) in [
        ("head", "HEAD", 200, Some("5"), ""),
        ("204", "DELETE", 204, None, ""),
        ("304", "GET", 304, Some("5"), ""),
        ("empty", "POST", 200, None, ""),
        ("interim", "GET", 200, None, "hello"),
        ("trailers", "GET", 200, None, "hello"),
    ] {
        let ask = Ask::get("/h2/v1/files/a", &world.token.secret).method(method).with("x-kind", kind);
        let mut raw = world.connect().await;
        raw.write(&ask.bytes()).await;
        if kind == "interim" {
            let interim = raw.read_head().await;
            assert_eq!((interim.status, interim.header("link")), (103, Some("</a>")), "{interim:?}");
            assert_eq!(interim.header("x-secret"), None);
        }
        let answer = raw.read_answer(ask.is_head()).await;
        assert_eq!((answer.status, answer.header("content-length")), (status, length), "{kind}");
        assert!(answer.complete && answer.text() == body, "{kind}: {answer:?}");
        assert_eq!((answer.header("trailer"), answer.header("x-sum")), (None, None), "{kind}");
        assert_eq!(world.record(&answer).await["outcome"], "finished", "{kind}");
        // The client's connection lives on, and the provider's.
        let again = raw.exchange(&Ask::get("/h2/v1/models", &world.token.secret).with("x-kind", "empty")).await;
        assert_eq!(again.status, 200, "{kind}");
    }
    assert_eq!(provider.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_goes_over_http_1_1_and_so_does_everything_where_http_2_is_forbidden_or_not_offered() {
    let mock = Mock::start(MockOptions::default()).await.unwrap();
    // Both versions at one port: HTTP/2 is answered here, HTTP/1.1 by the mock.
    let addr = mock.addr();
    let both = move |mut tls: provider::Tls, connection| async move {
        if tls.get_ref().1.alpn_protocol() == Some(HTTP_2) {
            let script = Arc::new(|asked: Asked| async move { asked.answer(200, &[], "over HTTP/2") });
            talk(tls, connection, Builder::new(), script, Arc::default()).await;
        } else if let Ok(mut mock) = TcpStream::connect(addr).await {
            let _ = copy_bidirectional(&mut tls, &mut mock).await;
        }
    };
    let provider = Provider::serving(BOTH, both).await;
    let world = world(&provider).await;
    assert_eq!(world.ask(&chat(&world)).await.text(), "over HTTP/2");
    let handshake = Handshake::new("/h2/v1/realtime?model=gpt-realtime").bearer(&world.token.secret);
    let socket = RawSocket::open(world.product.data_addr(), &handshake).await;
    assert_eq!(socket.head.status, 101);
    drop(socket);
    assert_eq!(world.ask(&chat(&world)).await.text(), "over HTTP/2");
    assert_eq!(provider.chosen(), [HTTP_2, HTTP_1_1]);

    // One connection is enough to learn it, and then nobody waits for anybody.
    for (provider, more) in [
        (Provider::serving(BOTH, both).await, "http2: false\n"),
        (Provider::serving(&[HTTP_1_1], both).await, ""),
        (Provider::serving(&[], both).await, ""),
    ] {
        let world = world_with(&provider.yaml(), more).await;
        let whole = fixture("openai-chat-basic");
        let answers = at_once(&world, 20, |_, ask| ask.with("x-mock-recording", &whole.name)).await;
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == whole.body), "{more}: {answers:?}");
        assert!(provider.chosen().iter().all(|chosen| chosen != HTTP_2), "{more}: {:?}", provider.chosen());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_says_goodbye_ends_what_runs_whole_and_the_next_request_goes_elsewhere() {
    let gate = Arc::new(Notify::new());
    let provider = {
        let gate = Arc::clone(&gate);
        Provider::start(Builder::new(), move |mut asked: Asked| {
            let gate = Arc::clone(&gate);
            async move {
                if asked.number > 1 {
                    let on = format!("on {}", asked.connection);
                    return asked.answer(200, &[], on);
                }
                let mut out = asked.begin(200, &[("content-type", "text/event-stream")]);
                out.send_data("data: 1\n\n".into(), false).unwrap();
                asked.say_goodbye();
                gate.notified().await;
                out.send_data("data: [DONE]\n\n".into(), true).unwrap();
            }
        })
        .await
    };
    let world = world(&provider).await;
    let mut wire = Wire::open(world.product.data_addr()).await;
    wire.send(chat(&world).bytes()).await;
    assert_eq!(wire.head().await.status, 200);
    let first = wire.until_body_has("data: 1").await;
    // As soon as the goodbye is read, another connection is made.
    eventually(PATIENCE, "the next request goes elsewhere", async || {
        let answer = world.ask(&chat(&world)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        (answer.text() == "on 2").then_some(())
    })
    .await;
    gate.notify_one();
    let (rest, is_whole) = wire.rest().await;
    assert!(is_whole && [first, rest].concat() == b"data: 1\n\ndata: [DONE]\n\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_implementation_is_understood() {
    const SERVER: &str = "const http2 = require('http2'), fs = require('fs');\n\
        const server = http2.createSecureServer({ cert: fs.readFileSync(process.argv[1]), key: fs.readFileSync(process.argv[2]) });\n\
        server.on('stream', (stream, headers) => {\n\
          let body = '';\n\
          stream.on('data', (piece) => { body += piece; });\n\
          stream.on('end', () => {\n\
            stream.respond({ ':status': 200, 'content-type': 'application/json' });\n\
            stream.end(JSON.stringify({ headers, length: body.length }));\n\
          });\n\
        });\n\
        server.listen(0, '127.0.0.1', () => console.log(server.address().port));\n";
    let authority = Authority::new("An authority that is trusted");
    let identity = authority.certify("localhost", VALID);
    let mut node = tokio::process::Command::new("node")
        .args(["-e", SERVER])
        .args([identity.certificate_file(), identity.key_file()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node is there");
    let mut said = BufReader::new(node.stdout.take().unwrap()).lines();
    let port = timeout(PATIENCE, said.next_line()).await.expect("it listens").unwrap().expect("it says where");
    let ca_file = authority.file();
    let yaml = format!("dialect: openai\nbase_url: https://localhost:{port}\nca_file: {}\n", ca_file.display());
    let world = world_with(&yaml, "").await;
    for size in [0, 1, 100_000, 1_000_000] {
        let body = "x".repeat(size);
        let answer = world.ask(&chat(&world).body(body)).await;
        assert_eq!(answer.status, 200, "{size}: {}", answer.text());
        let told: Value = answer.json();
        assert_eq!(told["length"], size);
        assert_eq!(told["headers"][":authority"], json!(format!("localhost:{port}")));
        assert_eq!(told["headers"]["content-length"], json!(size.to_string()));
    }
    let answers = at_once(&world, 40, |number, ask| ask.body("x".repeat(number * 1000))).await;
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.json()["length"], json!(number * 1000), "{}", answer.text());
    }
    node.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_cuts_a_stream_within_250_ms_and_nobody_elses_on_the_same_connection() {
    let resets = Arc::new(Mutex::new(Vec::new()));
    let provider = {
        let resets = Arc::clone(&resets);
        Provider::start(Builder::new(), move |mut asked: Asked| {
            let resets = Arc::clone(&resets);
            async move {
                let mut out = asked.begin(200, &[("content-type", "text/event-stream")]);
                out.send_data("data: {}\n\n".into(), false).unwrap();
                let left = provider::left(&mut out).await;
                resets.lock().unwrap().push((asked.field("x-name").unwrap().to_owned(), left));
            }
        })
        .await
    };
    let world = world(&provider).await;
    let revoked = world.token_with(json!({})).await;
    let mut wires = Vec::new();
    for (name, token) in [("other", &world.token.secret), ("revoked", &revoked.secret)] {
        let mut wire = Wire::open(world.product.data_addr()).await;
        wire.send(Ask::post(PATH, token, CHAT).with("x-name", name).bytes()).await;
        assert_eq!(wire.head().await.status, 200);
        wire.until_body_has("data: {}\n\n").await;
        wires.push(wire);
    }
    world.revoke(&revoked.id).await;
    let said = std::time::Instant::now();
    let (added, is_whole) = wires[1].rest().await;
    let took = said.elapsed();
    assert!(took <= PROMPTLY, "{took:?}");
    let added = String::from_utf8(added).unwrap();
    assert!(!is_whole && added.starts_with("data: {\"error\"") && added.contains("token_revoked"), "{added:?}");
    eventually(PATIENCE, "the provider is told", async || (!resets.lock().unwrap().is_empty()).then_some(())).await;
    assert_eq!(*resets.lock().unwrap(), [("revoked".to_owned(), Some(h2::Reason::CANCEL))]);
    let silence = timeout(Duration::from_millis(1), wires[0].piece()).await;
    assert!(silence.is_err(), "the other stream said {silence:?}");
    assert_eq!(provider.connections(), 1);
}
