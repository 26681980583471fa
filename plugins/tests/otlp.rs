//! The OTLP sink against a strict collector, over HTTP and over gRPC.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::otlp::{Collector, GrpcCollector, GrpcFault, attribute};
use common::stand_in::{Fault, StandIn, reserve};
use common::{Bench, PATIENCE, brisk, client_tls, finished, job, job_with, stats, wait_for, wait_until};
use llm_proxy_plugins::dispatcher::{Health, Job};
use llm_proxy_plugins::event::{Body, Content, EventType, Exchange, Outcome};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

fn over_http(collector: &StandIn<Collector>) -> Job {
    job("otlp", brisk(json!({"endpoint": collector.url("")})))
}

fn over_grpc(collector: &GrpcCollector) -> Job {
    job("otlp", brisk(json!({"endpoint": collector.url(), "protocol": "grpc"})))
}

fn traces(ids: &[Uuid]) -> BTreeSet<Vec<u8>> {
    ids.iter().map(|id| id.as_bytes().to_vec()).collect()
}

#[test]
fn every_exchange_is_a_span_under_its_own_id() {
    let bench = Bench::new();
    let collector = StandIn::start(Collector::default());
    let mut ids = bench.append(30);
    ids.push(bench.append_one(&Exchange {
        outcome: Outcome::Timeout.into(),
        reason: Some("first_byte".to_owned()),
        status: Some(504),
        usage: None,
        ..finished()
    }));
    bench.append_one(&Exchange { r#type: EventType::Admin.into(), ..Exchange::default() });
    let dispatcher = bench.serve(vec![over_http(&collector)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 31);
    assert_eq!((stats.left_out, stats.dead, stats.retried), (1, 0, 0));
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    collector.service(|collector| {
        assert_eq!(collector.ids(), traces(&ids));
        assert!(collector.times.values().all(|times| *times == 1));
        assert_eq!((collector.plain, collector.services.clone()), (0, BTreeSet::from(["llm-proxy".to_owned()])));
        for ((trace_id, span_id), span) in &collector.spans {
            assert_eq!(span_id[..], trace_id[8..]);
            assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 1_420_000_000);
            assert_eq!(span.name, "chat gpt-4o-mini");
        }
        let failed = ids[30].as_bytes();
        let failed = &collector.spans[&(failed.to_vec(), failed[8..].to_vec())];
        assert_eq!(failed.status.as_ref().unwrap().message, "timeout: first_byte");
        assert_eq!(attribute(failed, "error.type"), Some(json!("timeout")));
    });
}

#[test]
fn a_chat_is_told_alike_in_every_dialect() {
    let bench = Bench::new();
    let collector = StandIn::start(Collector::default());
    let openai = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9});
    let openai_answer =
        json!({"choices": [{"message": {"role": "assistant", "content": "ho"}, "finish_reason": "stop"}]});
    let anthropic_answer =
        json!({"role": "assistant", "content": [{"type": "text", "text": "ho"}], "stop_reason": "stop"});
    let gemini = json!({
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 9},
    });
    let gemini_answer = json!({"candidates": [{"content": {"parts": [{"text": "ho"}]}, "finishReason": "stop"}]});
    let rows = [
        ("openai", "/v1/chat/completions", &openai, &openai_answer, "chat m", "openai"),
        ("anthropic", "/v1/messages", &openai, &anthropic_answer, "chat m", "anthropic"),
        (
            "gemini",
            "/v1beta/models/{model}:generateContent",
            &gemini,
            &gemini_answer,
            "generate_content m",
            "gcp.gemini",
        ),
        (
            "azure",
            "/openai/deployments/{deployment}/chat/completions",
            &openai,
            &openai_answer,
            "chat m",
            "azure.ai.openai",
        ),
    ];
    let body = |json: &Value| Some(Body { json: Some(json.to_string().into_bytes()), ..Body::default() });
    let ids = rows.map(|(dialect, endpoint, request, response, _, _)| {
        let content = Content { request: body(request), response: body(response), ..Content::default() };
        bench.append_one(&Exchange {
            dialect: Some(dialect.to_owned()),
            api: Some(dialect.to_owned()),
            endpoint: Some(endpoint.to_owned()),
            model_requested: Some("m".to_owned()),
            content: Some(content),
            ..finished()
        })
    });
    let sink = brisk(json!({"endpoint": collector.url(""), "content": "true", "legacy_names": "true"}));
    let dispatcher = bench.serve(vec![job("otlp", sink)]);
    wait_for(&dispatcher, |stats| stats.delivered == 4);
    collector.service(|collector| {
        for ((dialect, _, _, _, name, provider), id) in rows.into_iter().zip(ids) {
            let id = id.as_bytes();
            let span = &collector.spans[&(id.to_vec(), id[8..].to_vec())];
            assert_eq!(span.name, name);
            let text = |name: &str| attribute(span, name).unwrap_or_else(|| panic!("{dialect}: no {name}"));
            let parsed = |name: &str| serde_json::from_str::<Value>(text(name).as_str().unwrap()).unwrap();
            let parts = |text: &str| json!([{"type": "text", "content": text}]);
            assert_eq!((text("gen_ai.provider.name"), text("gen_ai.system")), (json!(provider), json!(provider)));
            assert_eq!((text("gen_ai.request.max_tokens"), text("gen_ai.usage.input_tokens")), (json!(9), json!(9)));
            assert_eq!(parsed("gen_ai.input.messages"), json!([{"role": "user", "parts": parts("hi")}]));
            let said = json!([{"role": "assistant", "parts": parts("ho"), "finish_reason": "stop"}]);
            assert_eq!(parsed("gen_ai.output.messages"), said, "{dialect}");
        }
    });
}

#[test]
fn a_service_with_a_path_a_key_and_fields_of_its_own_gets_what_it_asks_for() {
    let bench = Bench::new();
    let fields = vec![
        ("authorization", "Basic cGstbGYtMTpzay1sZi0x".to_owned()),
        ("x-langfuse-ingestion-version", "4".to_owned()),
    ];
    let path = "/api/public/otel/v1/traces".to_owned();
    let collector = StandIn::start(Collector { path, fields, answers_json: true, ..Collector::default() });
    bench.append(5);
    let sink = json!({
        "endpoint": collector.url("/api/public/otel"), "compression": "none", "service_name": "edge",
        "headers": {"authorization": "Basic cGstbGYtMTpzay1sZi0x", "x-langfuse-ingestion-version": "4"},
    });
    let dispatcher = bench.serve(vec![job("otlp", brisk(sink))]);
    wait_for(&dispatcher, |stats| stats.delivered == 5);
    collector.service(|collector| {
        assert_eq!((collector.gzipped, collector.services.clone()), (0, BTreeSet::from(["edge".to_owned()])));
    });
}

#[test]
fn a_wrong_key_costs_no_record_and_is_shown_nowhere() {
    let bench = Bench::new();
    let fields = vec![("authorization", "Bearer another-key".to_owned())];
    let http = StandIn::start(Collector { fields: fields.clone(), ..Collector::default() });
    let grpc = GrpcCollector::start(Collector { fields, ..Collector::default() });
    bench.append(5);
    let headers = json!({"authorization": "Bearer hunter22-key"});
    for (sink, error) in [
        (json!({"endpoint": http.url(""), "headers": headers}), "HTTP 401: unauthenticated: [secret]"),
        (
            json!({"endpoint": grpc.url(), "protocol": "grpc", "headers": headers}),
            "gRPC UNAUTHENTICATED: unauthenticated: [secret]",
        ),
    ] {
        let dispatcher = bench.serve(vec![job("otlp", brisk(sink))]);
        let stats = wait_for(&dispatcher, |stats| stats.health == Health::Down);
        assert_eq!((stats.delivered, stats.dead), (0, 0));
        assert_eq!(dispatcher.books()[0].last_error().as_deref(), Some(error));
    }
}

#[test]
fn what_may_be_repeated_is_and_a_wait_that_is_asked_for_is_kept() {
    let bench = Bench::new();
    let collector = StandIn::start(Collector::default());
    let again = [429, 502, 503, 504].map(Fault::Status);
    collector.fail([Fault::TooMany { retry_after: 1 }].into_iter().chain(again));
    let ids = bench.append(10);
    let dispatcher = bench.serve(vec![over_http(&collector)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 10);
    assert_eq!((stats.dead, collector.faults_left()), (0, 0));
    let calls = collector.calls();
    let waited = calls[1].duration_since(calls[0]);
    assert!(waited >= Duration::from_secs(1), "called again after {waited:?}");
    collector.service(|collector| assert_eq!(collector.ids(), traces(&ids)));
}

#[test]
fn a_span_that_is_sent_again_is_the_same_span() {
    let bench = Bench::new();
    let collector = StandIn::start(Collector::default());
    collector.fail([Fault::Reset, Fault::HalfAnswer, Fault::TakenThenReset]);
    let ids = bench.append(10);
    let dispatcher = bench.serve(vec![over_http(&collector)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 10);
    assert_eq!(stats.dead, 0);
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    // As if nothing had ever been delivered.
    fs::remove_file(bench.file("otlp.cursor")).unwrap();
    let dispatcher = bench.serve(vec![over_http(&collector)]);
    wait_for(&dispatcher, |stats| stats.delivered == 10);
    collector.service(|collector| {
        // Keyed by both ids: as many spans as exchanges.
        assert_eq!((collector.spans.len(), collector.ids()), (10, traces(&ids)));
        assert!(collector.times.values().all(|times| *times >= 2), "{:?}", collector.times);
    });
}

#[test]
fn a_batch_that_is_taken_in_part_is_not_repeated_and_one_that_is_not_taken_is_put_aside() {
    let bench = Bench::new();
    let rejects = Some((2, "too old".to_owned()));
    let http = StandIn::start(Collector { rejects: rejects.clone(), ..Collector::default() });
    let grpc = GrpcCollector::start(Collector { rejects, ..Collector::default() });
    let ids = bench.append(20);
    let batch = json!({"events": "20", "age": "5s"});
    let sink = |endpoint: String, protocol: &str| {
        job("otlp", brisk(json!({"endpoint": endpoint, "protocol": protocol, "batch": batch})))
    };
    let deliver = |sink: Job| {
        let dispatcher = bench.serve(vec![sink]);
        let stats = wait_for(&dispatcher, |stats| stats.delivered == 20);
        assert_eq!((stats.dead, stats.retried), (0, 0));
        assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
        fs::remove_file(bench.file("otlp.cursor")).unwrap();
    };
    deliver(sink(http.url(""), "http/protobuf"));
    deliver(sink(grpc.url(), "grpc"));
    assert_eq!((http.calls().len(), grpc.calls().len()), (1, 1));
    assert_eq!(http.service(|collector| collector.spans.len()), 18);

    // All of them: then each is known.
    http.service(|collector| collector.rejects = Some((20, "no hunter22".to_owned())));
    let dispatcher = bench.serve(vec![sink(http.url(""), "http/protobuf")]);
    let stats = wait_for(&dispatcher, |stats| stats.dead == 20);
    assert_eq!((stats.delivered, stats.retried), (0, 0));
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    let dead = bench.dead("otlp");
    assert_eq!((dead.len(), &dead[0]["id"], &dead[0]["reason"]), (20, &json!(ids[0]), &json!("rejected: no hunter22")));
}

#[test]
fn a_span_that_is_refused_is_found_and_put_aside_over_either_protocol() {
    let bench = Bench::new();
    let ids = bench.append(30);
    let bad = [ids[0], ids[17]];
    let refusing = || Collector { refuses: traces(&bad), ..Collector::default() };
    let (http, grpc) = (StandIn::start(refusing()), GrpcCollector::start(refusing()));
    for (sink, reason) in [
        (over_http(&http), "HTTP 400: a span that is not taken"),
        (over_grpc(&grpc), "gRPC INVALID_ARGUMENT: a span that is not taken"),
    ] {
        let dispatcher = bench.serve(vec![sink]);
        let stats = wait_for(&dispatcher, |stats| stats.delivered + stats.dead == 30);
        assert_eq!((stats.delivered, stats.dead), (28, 2));
        assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
        let dead = bench.dead("otlp");
        let found: Vec<_> = dead.iter().map(|letter| (&letter["id"], &letter["reason"])).collect();
        assert_eq!(found, [(&json!(bad[0]), &json!(reason)), (&json!(bad[1]), &json!(reason))]);
        for file in ["otlp.cursor", "otlp.dead.jsonl"] {
            fs::remove_file(bench.file(file)).unwrap();
        }
    }
    let kept = &traces(&ids) - &traces(&bad);
    assert_eq!(http.service(|collector| collector.ids()), kept);
    assert_eq!(grpc.service(|collector| collector.ids()), kept);
}

#[test]
fn no_call_is_larger_than_what_receivers_take() {
    let bench = Bench::new();
    let collector = GrpcCollector::start(Collector::default());
    let large = Exchange { reason: Some("x".repeat(900_000)), ..finished() };
    let ids: Vec<_> = (0..7).map(|_| bench.append_one(&large)).collect();
    let batch = json!({"events": "100", "bytes": "32MiB", "age": "1s"});
    let sink = json!({"endpoint": collector.url(), "protocol": "grpc", "batch": batch});
    let dispatcher = bench.serve(vec![job("otlp", brisk(sink))]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 7);
    // The collector refuses what is larger, and then it is sent again.
    assert_eq!((stats.retried, stats.dead), (0, 0));
    assert!(collector.calls().len() < 7, "one call each");
    collector.service(|collector| assert_eq!(collector.ids(), traces(&ids)));
}

#[test]
fn over_grpc_every_exchange_arrives_whatever_goes_wrong_on_the_way() {
    let bench = Bench::new();
    let collector = GrpcCollector::start(Collector::default());
    let codes = [14, 13, 1, 4, 10, 11, 15, 2, 16, 12].map(GrpcFault::Status);
    let others = [
        GrpcFault::TakenThenReset,
        GrpcFault::Http(503),
        GrpcFault::Http(404),
        GrpcFault::Http(200),
        GrpcFault::Http(415),
    ];
    collector.fail(codes.into_iter().chain(others));
    let ids = bench.append(25);
    let mut sink = json!({"endpoint": collector.url(), "protocol": "grpc"});
    sink["max_attempts"] = json!("50");
    let dispatcher = bench.serve(vec![job("otlp", brisk(sink))]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 25);
    assert_eq!((stats.dead, stats.waiting), (0, 0));
    collector.service(|collector| {
        assert_eq!((collector.spans.len(), collector.ids()), (25, traces(&ids)));
        assert_eq!(collector.plain, 0);
    });
}

#[test]
fn over_grpc_a_wait_that_is_asked_for_is_kept() {
    let bench = Bench::new();
    let collector = GrpcCollector::start(Collector::default());
    collector.fail([GrpcFault::Limited { retry_after_ms: 700 }]);
    bench.append(3);
    let dispatcher = bench.serve(vec![over_grpc(&collector)]);
    wait_for(&dispatcher, |stats| stats.delivered == 3);
    let calls = collector.calls();
    let waited = calls[1].duration_since(calls[0]);
    assert!(waited >= Duration::from_millis(700), "called again after {waited:?}");
}

#[test]
fn over_grpc_a_connection_that_ends_is_followed_by_another() {
    let bench = Bench::new();
    let collector = GrpcCollector::start(Collector::default());
    let addr = collector.addr;
    let dispatcher = bench.serve(vec![over_grpc(&collector)]);
    bench.append(5);
    wait_for(&dispatcher, |stats| stats.delivered == 5);
    drop(collector);
    let later = bench.append(5);
    wait_for(&dispatcher, |stats| stats.health != Health::Delivering);
    // The collector that has gone lets its port go when its runtime has ended.
    let bound = || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(addr).map(|()| socket)
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let socket = loop {
        match bound() {
            Ok(socket) => break socket,
            Err(error) if Instant::now() < deadline => {
                assert_eq!(error.kind(), ErrorKind::AddrInUse);
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) => panic!("{addr} stays taken: {error}"),
        }
    };
    let collector = GrpcCollector::start_on(socket, Collector::default(), None);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 10);
    assert_eq!(stats.dead, 0);
    collector.service(|collector| assert_eq!(collector.ids(), traces(&later)));
}

#[test]
fn over_tls_grpc_needs_a_receiver_that_is_who_it_says_and_speaks_http_2() {
    let bench = Bench::new();
    let ids = bench.append(5);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let acceptor = |protocols: &[&str]| {
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let server = server.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into());
        let mut server = server.unwrap();
        server.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(server))
    };
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let trusting = Arc::new(client_tls(roots));
    let settings = |port: u16| brisk(json!({"endpoint": format!("https://localhost:{port}"), "protocol": "grpc"}));

    let old = StandIn::start_on(reserve().1, Collector::default(), Some(acceptor(&[])));
    let dispatcher = bench.serve(vec![job_with("otlp", settings(old.addr.port()), &trusting)]);
    wait_for(&dispatcher, |stats| stats.health == Health::Down);
    let error = wait_until(|| dispatcher.books()[0].last_error());
    assert!(error.starts_with("cannot connect to localhost:") && error.ends_with("does not speak HTTP/2"), "{error}");
    drop(dispatcher);

    let collector = GrpcCollector::start_on(reserve().1, Collector::default(), Some(acceptor(&["h2"])));
    let distrustful = bench.serve(vec![job("otlp", settings(collector.addr.port()))]);
    wait_for(&distrustful, |stats| stats.health == Health::Down);
    drop(distrustful);
    assert!(collector.calls().is_empty());

    let dispatcher = bench.serve(vec![job_with("otlp", settings(collector.addr.port()), &trusting)]);
    wait_for(&dispatcher, |stats| stats.delivered == 5);
    assert_eq!(stats(&dispatcher).dead, 0);
    collector.service(|collector| assert_eq!(collector.ids(), traces(&ids)));
}

#[test]
fn a_web_page_has_taken_no_spans() {
    struct Website;
    impl common::stand_in::Service for Website {
        fn answer(&mut self, _: &http::request::Parts, _: &[u8]) -> http::Response<String> {
            let page = http::Response::builder().header("content-type", "text/html; charset=utf-8");
            page.body("<!doctype html>".to_owned()).unwrap()
        }
    }
    let bench = Bench::new();
    let website = StandIn::start(Website);
    bench.append(3);
    let dispatcher = bench.serve(vec![job("otlp", brisk(json!({"endpoint": website.url("")})))]);
    let stats = wait_for(&dispatcher, |stats| stats.health == Health::Down);
    assert_eq!((stats.delivered, stats.dead), (0, 0));
}
