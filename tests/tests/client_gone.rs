//! A client that leaves, in each phase and in each way: its provider is told at once, and one record says so.

mod common;

use std::time::Duration;

use common::setup::{Api, Setup, eventually, now_ms};
use common::wire::{Ask, Wire};
use llm_proxy_load::mock::Ended;
use tokio::net::{TcpSocket, TcpStream};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_while_the_upstream_is_being_connected_ends_the_exchange_before_the_connect_clock() {
    // A listener whose accept queue is full: the kernel drops what comes, and a connect neither succeeds nor fails.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let full = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(full)).await {
        filling.push(stream);
        assert!(filling.len() < 100, "the accept queue does not fill");
    }
    let setup = Setup::with(&[Api::at("full", full, "timeouts: {connect: 300s}")], &[]).await;
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
        assert_eq!(record["times"]["forwarded_ms"], serde_json::Value::Null, "{name}: nothing was sent: {record}");
    }
}
