//! The webhook sink against a receiver that verifies everything.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::stand_in::{Fault, StandIn, reserve};
use common::webhook::{Receiver, SECRET};
use common::{Bench, PATIENCE, brisk, client_tls, finished, job, job_with, now_us, stats, texts, wait_for, wait_until};
use futures::FutureExt;
use futures::future::BoxFuture;
use llm_proxy_plugins::dispatcher::{Event, Health, Job, Outcome, Policy, Sink};
use llm_proxy_plugins::event::{AdminAction, Body, CapturePolicy, Content, Exchange, Message};
use llm_proxy_plugins::journal::Kind;
use parking_lot::Mutex;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

fn hook(receiver: &StandIn<Receiver>) -> Job {
    job("webhook", brisk(json!({"url": receiver.url("/hook?from=us"), "secret": SECRET})))
}

#[test]
fn every_record_arrives_once_and_in_order() {
    let bench = Bench::new();
    let receiver = StandIn::start(Receiver::default());
    let before = bench.append(150);
    let dispatcher = bench.serve(vec![hook(&receiver)]);
    let during = bench.append(150);
    let drained = dispatcher.drain(PATIENCE);
    assert_eq!((drained[0].sink.as_str(), drained[0].remaining), ("webhook", 0));
    let ids: Vec<_> = [before, during].concat().iter().map(ToString::to_string).collect();
    receiver.service(|receiver| assert_eq!(receiver.order, ids));
    // At most 20 in a batch, and not one call each.
    assert!((15..100).contains(&receiver.calls().len()), "{} calls", receiver.calls().len());
    assert!(bench.dead("webhook").is_empty());

    // The next run has nothing to do.
    let dispatcher = bench.serve(vec![hook(&receiver)]);
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    receiver.service(|receiver| assert_eq!(receiver.order.len(), 300));
}

#[test]
fn whatever_goes_wrong_on_the_way_every_record_arrives() {
    let bench = Bench::new();
    let receiver = StandIn::start(Receiver::default());
    let mut hook = json!({"url": receiver.url("/"), "secret": SECRET, "timeout": "300ms"});
    hook["max_attempts"] = json!("50");
    receiver.fail([
        Fault::Status(500),
        Fault::Reset,
        Fault::Status(503),
        Fault::Status(404),
        Fault::HalfAnswer,
        Fault::TakenThenReset,
        Fault::Slow(Duration::from_secs(1)),
        Fault::Status(401),
        Fault::Status(302),
    ]);
    let dispatcher = bench.serve(vec![job("webhook", brisk(hook))]);
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.extend(bench.append(10));
        std::thread::yield_now();
    }
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 200 && receiver.faults_left() == 0);
    assert_eq!((stats.dead, stats.waiting, stats.taken), (0, 0, 200));
    assert!(stats.retried > 0);
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    receiver.service(|receiver| {
        assert_eq!(receiver.ids(), texts(&ids));
        // Three answers were lost, so at most three batches came twice.
        let repeated: usize = receiver.records.values().map(|times| times - 1).sum();
        assert!(repeated <= 3 * 20, "{repeated} records came more than once");
    });
}

#[test]
fn a_receiver_that_wants_to_be_left_alone_is() {
    let bench = Bench::new();
    let receiver = StandIn::start(Receiver::default());
    receiver.fail([Fault::TooMany { retry_after: 1 }]);
    bench.append(5);
    let dispatcher = bench.serve(vec![hook(&receiver)]);
    wait_for(&dispatcher, |stats| stats.delivered == 5);
    let calls = receiver.calls();
    let waited = calls[1].duration_since(calls[0]);
    assert!(waited >= Duration::from_secs(1), "called again after {waited:?}");
}

#[test]
fn a_record_that_is_refused_is_found_and_put_aside_with_the_reason() {
    let bench = Bench::new();
    let ids = bench.append(60);
    let bad = [ids[0], ids[31], ids[32], ids[59]];
    let receiver = StandIn::start(Receiver { refuses: texts(&bad), ..Receiver::default() });
    let dispatcher = bench.serve(vec![hook(&receiver)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered + stats.dead == 60);
    assert_eq!((stats.delivered, stats.dead, stats.health), (56, 4, Health::Delivering));
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    receiver.service(|receiver| {
        assert!(receiver.records.values().all(|times| *times == 1));
        assert_eq!(receiver.records.len(), 56);
    });
    let dead = bench.dead("webhook");
    let dead_ids: Vec<_> = dead.iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(dead_ids, bad.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(dead[0]["reason"], "HTTP 400: a record that is not taken");
    assert_eq!(dead[0]["record"]["project_id"], "p1");
}

#[test]
fn a_record_that_breaks_the_receiver_is_put_aside_and_the_others_pass_it_quickly() {
    let bench = Bench::new();
    let ids = bench.append(40);
    let receiver = StandIn::start(Receiver { breaks_at: texts(&ids[5..6]), ..Receiver::default() });
    let dispatcher = bench.serve(vec![hook(&receiver)]);
    wait_for(&dispatcher, |stats| stats.delivered >= 19);
    // What shows that it is up.
    bench.append(1);
    let stats = wait_for(&dispatcher, |stats| stats.dead == 1 && stats.delivered == 40);
    assert_eq!(stats.waiting, 0);
    let dead = bench.dead("webhook");
    assert_eq!(dead[0]["id"], ids[5].to_string());
    let reason = dead[0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("failed 10 times alone while others got through: HTTP 500"), "{reason}");
}

#[test]
fn batches_that_are_too_large_are_halved_until_they_fit() {
    let bench = Bench::new();
    let ids = bench.append(64);
    let receiver = StandIn::start(Receiver { max_body_bytes: Some(4_000), ..Receiver::default() });
    let dispatcher = bench.serve(vec![hook(&receiver)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered + stats.dead == 64);
    assert_eq!((stats.delivered, stats.dead), (64, 0));
    receiver.service(|receiver| assert_eq!(receiver.ids(), texts(&ids)));
}

#[test]
fn a_wrong_secret_costs_no_record() {
    let bench = Bench::new();
    let ids = bench.append(30);
    let other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let receiver = StandIn::start(Receiver { secret: Some(other.to_owned()), ..Receiver::default() });
    let dispatcher = bench.serve(vec![hook(&receiver)]);
    let failed = wait_for(&dispatcher, |stats| stats.health == Health::Down);
    assert_eq!((failed.dead, failed.delivered), (0, 0));
    let books = dispatcher.books();
    assert_eq!(books[0].last_error().as_deref(), Some("HTTP 401: wrong signature"));
    assert_eq!(books[0].cursor(), 0);
    // What cannot be delivered does not hold up the end.
    let drained = dispatcher.drain(Duration::from_millis(100));
    // The begin of the first exchange is nothing to deliver.
    assert_eq!(drained[0].remaining, 59);

    let right = job("webhook", brisk(json!({"url": receiver.url("/"), "secret": other})));
    assert_eq!(bench.serve(vec![right]).drain(PATIENCE)[0].remaining, 0);
    receiver.service(|receiver| assert_eq!(receiver.ids(), texts(&ids)));
}

#[test]
fn records_wait_for_a_receiver_that_is_away_and_it_is_met_with_one_event() {
    let bench = Bench::new();
    let (addr, socket) = reserve();
    let url = format!("http://{addr}/");
    let dispatcher = bench.serve(vec![job("webhook", brisk(json!({"url": url, "secret": SECRET})))]);
    let ids = bench.append(100);
    let failed = wait_for(&dispatcher, |stats| stats.health == Health::Down && stats.lag_records == 199);
    // No more is held than a batch and one, however much waits.
    assert!(failed.waiting <= 21 && failed.lag > Duration::ZERO, "{failed:?}");
    let receiver = StandIn::start_on(socket, Receiver::default(), None);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 100);
    assert_eq!((stats.dead, stats.health), (0, Health::Delivering));
    assert_eq!(wait_for(&dispatcher, |stats| stats.lag_records == 0).lag, Duration::ZERO);
    receiver.service(|receiver| assert_eq!(receiver.ids(), texts(&ids)));
}

#[test]
fn a_receiver_that_tells_what_it_has_already_gets_it_counted_as_such() {
    let bench = Bench::new();
    let receiver = StandIn::start(Receiver { tells_duplicates: true, ..Receiver::default() });
    receiver.fail([Fault::TakenThenReset]);
    bench.append(10);
    let dispatcher = bench.serve(vec![hook(&receiver)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered + stats.duplicates == 10);
    assert!(stats.duplicates > 0 && stats.dead == 0, "{stats:?}");
    receiver.service(|receiver| assert!(receiver.records.values().all(|times| *times == 1)));
}

#[test]
fn only_what_the_filter_lets_through_is_sent() {
    let bench = Bench::new();
    let receiver = StandIn::start(Receiver::default());
    let other = |project: &str| Exchange { project_id: Some(project.to_owned()), ..finished() };
    let kept: Vec<_> = (0..10).map(|_| bench.append_one(&other("kept"))).collect();
    for _ in 0..10 {
        bench.append_one(&other("left"));
    }
    let hook = json!({"url": receiver.url("/"), "secret": SECRET, "only": {"projects": ["kept"]}});
    let dispatcher = bench.serve(vec![job("webhook", brisk(hook))]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 10 && stats.left_out == 10);
    assert_eq!((stats.taken, stats.dropped, stats.unreadable), (10, 0, 0));
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    receiver.service(|receiver| assert_eq!(receiver.ids(), texts(&kept)));
}

#[test]
fn bodies_and_what_administrators_did_are_in_the_records() {
    let bench = Bench::new();
    let receiver = StandIn::start(Receiver::default());
    let some = |text: &str| Some(text.to_owned());
    let json = |json: &[u8]| Body { bytes: 2, json: Some(json.to_vec()), ..Body::default() };
    let content = Content {
        policy: CapturePolicy::Redacted.into(),
        request: Some(Body { content_type: some("application/json"), ..json(b"{\"a\":\n1.50}") }),
        response: Some(json(b"{\"broken\":")),
    };
    let captured = bench.append_one(&Exchange { content: Some(content), ..finished() });
    let action = AdminAction {
        action: "project.update".to_owned(),
        actor: "management_token".to_owned(),
        resource: "project".to_owned(),
        resource_id: some("p1"),
        before_json: Some(br#"{"is_active":true}"#.to_vec()),
        after_json: Some(br#"{"is_active":false}"#.to_vec()),
    };
    let (id, at_us) = (Uuid::now_v7(), now_us());
    let event = Exchange::of_admin(id, at_us, action, some("p1"), None, None, 200, "PATCH", "/manage/projects/{id}");
    let did = bench.append_one(&event);
    let dispatcher = bench.serve(vec![hook(&receiver)]);
    wait_for(&dispatcher, |stats| stats.delivered == 2);
    receiver.service(|receiver| {
        let record = &receiver.lines[&captured.to_string()];
        assert_eq!((&record["type"], &record["admin"]), (&json!("exchange"), &json!(null)));
        let body = |body: serde_json::Value, kind: serde_json::Value| {
            json!({
                "content_type": kind, "bytes": 2, "truncated": false, "body": body, "sha256": null, "omitted": null,
            })
        };
        let expected = json!({
            "policy": "redacted",
            "request": body(json!({"a": 1.5}), json!("application/json")),
            "response": body(json!("{\"broken\":"), json!(null)),
        });
        assert_eq!(record["content"], expected);
        let record = &receiver.lines[&did.to_string()];
        assert_eq!((&record["type"], &record["outcome"]), (&json!("admin"), &json!("finished")));
        assert_eq!((&record["content"], &record["api"], &record["status"]), (&json!(null), &json!(null), &json!(200)));
        let expected = json!({
            "action": "project.update", "actor": "management_token", "resource": "project", "resource_id": "p1",
            "before": {"is_active": true}, "after": {"is_active": false},
        });
        assert_eq!(record["admin"], expected);
    });
}

/// A sink that carries events on as the bytes they are.
#[derive(Clone, Default)]
struct Carrier(Arc<Mutex<BTreeMap<Uuid, Box<[u8]>>>>);

impl Sink for Carrier {
    fn deliver<'a>(&'a self, batch: &'a [&'a Event]) -> BoxFuture<'a, Vec<Outcome>> {
        let deliver = |event: &&Event| {
            self.0.lock().insert(event.id, event.payload.clone());
            Outcome::Delivered
        };
        let outcomes: Vec<_> = batch.iter().map(deliver).collect();
        async move { outcomes }.boxed()
    }
}

#[test]
fn an_event_of_a_later_version_is_delivered_and_carried_on_whole() {
    let bench = Bench::new();
    let receiver = StandIn::start(Receiver::default());
    let (id, at_us) = (Uuid::now_v7(), now_us());
    let known = Exchange { id: id.to_string(), ..finished() };
    // Field 900, a text.
    let payload = [known.encode_to_vec().as_slice(), b"\xa2\x38\x03new"].concat();
    bench.journal.append(Kind::Begin, id, at_us, b"").unwrap();
    bench.journal.append(Kind::End, id, at_us, &payload).unwrap();
    let carrier = Carrier::default();
    let job = Job { name: "carrier".to_owned(), sink: Box::new(carrier.clone()), policy: Policy::default() };
    let dispatcher = bench.serve(vec![hook(&receiver), job]);
    assert!(dispatcher.drain(PATIENCE).iter().all(|drained| drained.remaining == 0));
    receiver.service(|receiver| assert_eq!(receiver.lines[&id.to_string()]["project_id"], "p1"));
    assert_eq!(*carrier.0.lock(), BTreeMap::from([(id, payload.into_boxed_slice())]));
}

#[test]
fn over_tls_the_receiver_must_be_who_it_says() {
    let bench = Bench::new();
    let ids = bench.append(5);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let server = server.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let receiver = StandIn::start_on(reserve().1, Receiver::default(), Some(acceptor));
    let settings = || brisk(json!({"url": format!("https://localhost:{}/", receiver.addr.port()), "secret": SECRET}));

    let distrustful = bench.serve(vec![job("webhook", settings())]);
    wait_for(&distrustful, |stats| stats.health == Health::Down);
    let error = wait_until(|| distrustful.books()[0].last_error());
    assert!(error.starts_with("cannot connect to localhost:"), "{error}");
    drop(distrustful);
    assert!(receiver.calls().is_empty());

    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let trusting = job_with("webhook", settings(), &Arc::new(client_tls(roots)));
    let dispatcher = bench.serve(vec![trusting]);
    wait_for(&dispatcher, |stats| stats.delivered == 5);
    assert_eq!(stats(&dispatcher).dead, 0);
    receiver.service(|receiver| assert_eq!(receiver.ids(), texts(&ids)));
}
