//! A client that leaves, in each phase and in each way: its provider is told at once, and one record says so.

mod common;

use common::setup::{Api, Setup, eventually, now_ms};
use common::wire::{Ask, Wire};
use llm_proxy_load::mock::Ended;
use llm_proxy_tests::{FullListener, PATIENCE, metric};
use serde_json::Value;

/// The promise, by the clocks of client and provider, which are one here.
const AT_ONCE_MS: u64 = 100;
/// Of each phase and way. With all of them together, one of a hundred may be later: the promise is a p99.
const ROUNDS: usize = 9;

const STREAM: &str = r#"{"model":"gpt-4o-mini","messages":[],"stream":true}"#;

#[derive(Clone, Copy, Debug)]
enum Way {
    Close,
    Reset,
    HalfClose,
    /// Behind the bytes of a next request, which hide the close from who reads no further.
    CloseBehindPipelined,
}

impl Way {
    const ALL: [Self; 4] = [Self::Close, Self::Reset, Self::HalfClose, Self::CloseBehindPipelined];

    /// Leaves; what is returned must be kept until the end is seen.
    async fn leave(self, mut wire: Wire) -> Option<Wire> {
        match self {
            Self::Close => {
                // Unread bytes would make it a reset: those are another way.
                wire.half_close().await;
                None
            }
            Self::Reset => {
                wire.reset();
                None
            }
            Self::HalfClose => {
                wire.half_close().await;
                Some(wire)
            }
            Self::CloseBehindPipelined => {
                wire.send("GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\nGET /v1/mo").await;
                wire.half_close().await;
                None
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    BeforeTheHead,
    SilentBody,
    MidBody,
}

impl Phase {
    const ALL: [Self; 3] = [Self::BeforeTheHead, Self::SilentBody, Self::MidBody];

    fn steer(self, ask: Ask) -> Ask {
        match self {
            Self::BeforeTheHead => ask.fault("hang-head"),
            Self::SilentBody => ask.fault("hang-body:100"),
            Self::MidBody => ask.with("x-mock-pace-ms", 20).with("x-mock-recording", "groq-chat-stream"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_any_phase_and_any_way_closes_its_upstream_within_100_ms_and_leaves_one_record() {
    let setup = Setup::new().await;
    let mut delays = Vec::new();
    let mut names = Vec::new();
    for round in 0..ROUNDS {
        for phase in Phase::ALL {
            for way in Way::ALL {
                let name = format!("{phase:?}-{way:?}-{round}");
                let mut wire = setup.wire().await;
                wire.send(phase.steer(setup.chat().with("x-request-id", &name)).body(STREAM)).await;
                match phase {
                    Phase::BeforeTheHead => {
                        eventually("the provider has the request", || {
                            setup.seen(&name).is_some_and(|request| request.body_done_ms.is_some())
                        })
                        .await;
                    }
                    Phase::SilentBody | Phase::MidBody => {
                        assert_eq!(wire.head().await.status, 200, "{name}");
                        wire.until_body_has("data:").await;
                    }
                }
                let left_at = now_ms();
                let kept = way.leave(wire).await;
                eventually("the provider is told", || setup.seen(&name).is_some_and(|request| request.ended.is_some()))
                    .await;
                let request = setup.seen(&name).unwrap();
                assert_eq!(request.ended, Some(Ended::ClientClosed), "{name}");
                delays.push((request.client_closed_at_ms.unwrap().saturating_sub(left_at), name.clone()));
                drop(kept);
                names.push(name);
            }
        }
    }
    delays.sort_unstable();
    let late: Vec<_> = delays.iter().filter(|(delay, _)| *delay > AT_ONCE_MS).collect();
    assert!(late.len() <= delays.len() / 100, "later than {AT_ONCE_MS} ms: {late:?}");

    for name in &names {
        let record = setup.only_record_of_client(name).await;
        assert_eq!(record["outcome"], "client_gone", "{name}: {record}");
    }
    assert_eq!(setup.mock.stats().in_flight, 0);
}

/// How a client leaves in the middle of its body.
#[derive(Clone, Copy, Debug)]
enum Sending {
    Length,
    Chunks,
    /// It has been asked for its body, and never sends it.
    Asked,
}

impl Sending {
    const ALL: [Self; 3] = [Self::Length, Self::Chunks, Self::Asked];

    /// Sends the request, but for the end of its body.
    async fn begin(self, wire: &mut Wire, ask: Ask) {
        let half = vec![b'x'; 40_000];
        match self {
            Self::Length => wire.send([ask.with("content-length", 100_000).head(), half].concat()).await,
            Self::Chunks => {
                let head = ask.with("transfer-encoding", "chunked").head();
                wire.send([head, format!("{:x}\r\n", 100_000).into(), half].concat()).await;
            }
            Self::Asked => {
                wire.send(ask.with("expect", "100-continue").with("content-length", 100_000).head()).await;
                assert_eq!(wire.head().await.status, 100);
            }
        }
    }
}

/// What is pipelined behind half a body is the body's rest: that is no way to leave.
const WAYS: [Way; 3] = [Way::Close, Way::Reset, Way::HalfClose];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_the_middle_of_its_body_closes_its_upstream_within_100_ms_and_leaves_one_record() {
    let setup = Setup::new().await;
    let mut delays = Vec::new();
    // Of these, too, one of a hundred may be late.
    for round in 0..12 {
        for sending in Sending::ALL {
            for way in WAYS {
                let name = format!("{sending:?}-{way:?}-{round}");
                let mut wire = setup.wire().await;
                sending.begin(&mut wire, setup.echo().with("x-request-id", &name)).await;
                eventually("the provider has the head", || setup.seen(&name).is_some()).await;
                let left_at = now_ms();
                let kept = way.leave(wire).await;
                eventually("the provider is told", || setup.seen(&name).is_some_and(|request| request.ended.is_some()))
                    .await;
                let request = setup.seen(&name).unwrap();
                assert_eq!(request.ended, Some(Ended::ClientClosed), "{name}");
                assert_eq!(request.body_done_ms, None, "{name}: half a body was passed off as whole");
                delays.push((request.client_closed_at_ms.unwrap().saturating_sub(left_at), name.clone()));
                drop(kept);

                let record = setup.only_record_of_client(&name).await;
                assert_eq!(record["outcome"], "client_gone", "{name}: {record}");
                assert_eq!(record["status"], Value::Null, "{name}: it saw nothing: {record}");
                // A reset may overtake what it was sent behind.
                assert!(record["request_bytes"].as_u64() <= Some(40_000), "{name}: {record}");
                assert!(record["times"]["forwarded_ms"].is_number(), "{name}: {record}");
            }
        }
    }
    delays.sort_unstable();
    let late: Vec<_> = delays.iter().filter(|(delay, _)| *delay > AT_ONCE_MS).collect();
    assert!(late.len() <= delays.len() / 100, "later than {AT_ONCE_MS} ms: {late:?}");
    assert_eq!(setup.mock.stats().in_flight, 0);
    setup.wait_in_flight(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_while_its_body_is_held_gives_its_memory_back_and_no_provider_hears_of_it() {
    let setup = Setup::new().await;
    let held = async || metric(&setup.product.metrics().await, "llm_proxy_held_bytes", &[]);
    for sending in Sending::ALL {
        for way in WAYS {
            let name = format!("held-{sending:?}-{way:?}");
            let mut wire = setup.wire().await;
            sending.begin(&mut wire, setup.held().with("x-request-id", &name)).await;
            setup.wait_in_flight(1).await;
            if !matches!(sending, Sending::Asked) {
                let what = format!("{name}: the body is held");
                llm_proxy_tests::eventually(PATIENCE, &what, async || (held().await > 30_000.0).then_some(())).await;
            }
            let kept = way.leave(wire).await;
            setup.wait_in_flight(0).await;
            drop(kept);
            assert_eq!(held().await, 0.0, "{name}: the budget is given back");
            let record = setup.only_record_of_client(&name).await;
            assert_eq!(record["outcome"], "client_gone", "{name}: {record}");
            assert_eq!((&record["request_bytes"], &record["times"]["forwarded_ms"]), (&0.into(), &Value::Null));
        }
    }
    assert_eq!(setup.mock.stats().requests, 0, "half a body was sent on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_while_the_upstream_is_being_connected_ends_the_exchange_before_the_connect_clock() {
    let full = FullListener::start().await;
    let setup = Setup::with(&[Api::at("full", full.addr(), "timeouts: {connect: 300s}")], &[]).await;
    for way in Way::ALL {
        let name = format!("connecting-{way:?}");
        let mut wire = setup.wire().await;
        wire.send(setup.ask("POST", "/full/v1/chat/completions").with("x-request-id", &name).body(STREAM)).await;
        setup.wait_in_flight(1).await;
        let kept = way.leave(wire).await;
        // The waits here end long before the connect clock does.
        setup.wait_in_flight(0).await;
        drop(kept);
        let record = setup.only_record_of_client(&name).await;
        assert_eq!(record["outcome"], "client_gone", "{name}: {record}");
        assert_eq!(record["times"]["forwarded_ms"], Value::Null, "{name}: nothing was sent: {record}");
    }
    for way in WAYS {
        let name = format!("connecting-{way:?}-unfinished");
        let mut wire = setup.wire().await;
        let ask = setup.ask("POST", "/full/v1/files").with("x-request-id", &name);
        Sending::Length.begin(&mut wire, ask).await;
        setup.wait_in_flight(1).await;
        let kept = way.leave(wire).await;
        setup.wait_in_flight(0).await;
        drop(kept);
        let record = setup.only_record_of_client(&name).await;
        assert_eq!(record["outcome"], "client_gone", "{name}: {record}");
        assert_eq!(record["times"]["forwarded_ms"], Value::Null, "{name}: nothing was sent: {record}");
    }
}
