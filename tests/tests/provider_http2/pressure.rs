//! Slow and impatient sides: bodies of any size at a memory that does not grow, answers that come early, clients that
//! leave.

use std::collections::HashMap;
use std::future::{pending, poll_fn};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::Builder;
use h2::{Reason, SendStream};
use llm_proxy_tests::{Ask, PATIENCE, World, eventually};
use serde_json::json;

use crate::common::setup::now_ms;
use crate::common::wire::Wire;
use crate::provider::{Asked, Provider, left};
use crate::{CHAT, PATH, chat, world};

const MIB: usize = 1 << 20;
/// How much the process may grow while bodies of any size pass.
const MOST_GROWTH: u64 = 32 << 20;
/// The promise between a client's leaving and the provider's knowing.
const AT_ONCE_MS: u64 = 100;

/// By how much the process has grown at most since it held `base` bytes.
fn growth(world: &World, base: u64) -> u64 {
    world.product.memory_bytes().1.saturating_sub(base)
}

/// The head of an upload of this length.
fn upload(world: &World, length: usize, kind: &str) -> Vec<u8> {
    let ask = Ask::new("POST", "/h2/v1/files").with("authorization", &format!("Bearer {}", world.token.secret));
    ask.with("x-kind", kind).with("content-length", &length.to_string()).head()
}

/// Sends as much as the proxy takes.
async fn flood(out: &mut SendStream<Bytes>, sent: &AtomicU64) {
    loop {
        out.reserve_capacity(65_536);
        match poll_fn(|cx| out.poll_capacity(cx)).await {
            Some(Ok(room)) => {
                if out.send_data(vec![b'y'; room].into(), false).is_err() {
                    return;
                }
                sent.fetch_add(u64::try_from(room).unwrap(), Ordering::SeqCst);
            }
            _ => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_pass_at_constant_memory_and_a_slow_side_holds_the_other_back_and_nobody_else() {
    const TOTAL: usize = 128 * MIB;
    let flooded = Arc::new(AtomicU64::new(0));
    let provider = {
        let flooded = Arc::clone(&flooded);
        Provider::start(Builder::new(), move |mut asked: Asked| {
            let flooded = Arc::clone(&flooded);
            async move {
                let kind = asked.field("x-kind").unwrap_or_default().to_owned();
                match kind.as_str() {
                    "read" => {
                        let mut length = 0;
                        while let Some(Ok(piece)) = asked.body.data().await {
                            asked.body.flow_control().release_capacity(piece.len()).unwrap();
                            assert!(piece.iter().all(|byte| *byte == b'x'));
                            length += piece.len();
                        }
                        asked.answer(200, &[], length.to_string());
                    }
                    "ignore" => pending().await,
                    "flood" => {
                        let mut out = asked.begin(200, &[]);
                        flood(&mut out, &flooded).await;
                    }
                    _ => asked.answer(200, &[], "{}"),
                }
            }
        })
        .await
    };
    let world = world(&provider).await;
    let piece = vec![b'x'; MIB];
    let mut base = 0;
    for total in [32 * MIB, TOTAL] {
        let mut wire = Wire::open(world.product.data_addr()).await;
        wire.send(upload(&world, total, "read")).await;
        for _ in 0..total / MIB {
            wire.send(&piece).await;
        }
        let answer = wire.answer().await;
        assert_eq!((answer.head.status, answer.text()), (200, total.to_string()));
        if base > 0 {
            assert!(growth(&world, base) <= MOST_GROWTH, "grew by {} bytes", growth(&world, base));
        }
        // Buffers and pools have their size after the first.
        base = world.product.memory_bytes().0;
    }

    // A provider that opens no window gets what it has room for; the client can send what kernels buffer beside.
    let mut held_back = Wire::open(world.product.data_addr()).await;
    held_back.send(upload(&world, TOTAL, "ignore")).await;
    let taken = held_back.send_until_held_back(&piece, TOTAL).await;
    assert!(taken < 64 * MIB, "{taken} bytes went to a provider that reads nothing");

    // A client that does not read: its provider stands still.
    let mut deaf = Wire::open_narrow(world.product.data_addr()).await;
    deaf.send(chat(&world).with("x-kind", "flood").bytes()).await;
    assert_eq!(deaf.head().await.status, 200);
    loop {
        let before = flooded.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
        if before > 0 && flooded.load(Ordering::SeqCst) == before {
            break;
        }
    }
    let sent = flooded.load(Ordering::SeqCst);
    assert!(sent < 32 << 20, "{sent} bytes came for a client that reads nothing");
    assert!(growth(&world, base) <= MOST_GROWTH, "grew by {} bytes", growth(&world, base));
    for _ in 0..5 {
        assert_eq!(world.ask(&chat(&world)).await.status, 200, "others are served meanwhile");
    }
    assert_eq!(provider.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_while_the_body_is_still_being_sent_is_read() {
    let provider = Provider::start(Builder::new(), |mut asked: Asked| async move {
        let kind = asked.field("x-kind").unwrap_or_default().to_owned();
        match kind.as_str() {
            // The stream is reset behind the answer, for no error (RFC 9113 §8.1).
            "resets" => asked.answer(413, &[("content-type", "application/json")], "{\"no\":1}"),
            // Or stays as it is, without a window, until the proxy has had enough of it.
            "stands" => {
                let mut out = asked.begin(413, &[("content-type", "application/json")]);
                out.send_data("{\"no\":1}".into(), true).unwrap();
                left(&mut out).await;
            }
            _ => asked.answer(200, &[], "{}"),
        }
    })
    .await;
    let world = world(&provider).await;
    for kind in ["resets", "stands"] {
        for _ in 0..5 {
            let mut wire = Wire::open(world.product.data_addr()).await;
            wire.send(upload(&world, 8 * MIB, kind)).await;
            wire.send_until_answered(&vec![b'x'; 8 * MIB]).await;
            let answer = wire.answer().await;
            assert_eq!((answer.head.status, answer.text().as_str()), (413, "{\"no\":1}"), "{kind}");
            assert!(answer.whole, "{kind}");
            let record = world.product.wait_event(&answer.head.id()).await;
            assert_eq!((&record["outcome"], &record["status"]), (&json!("finished"), &json!(413)), "{record}");
            assert_eq!(world.ask(&chat(&world)).await.status, 200, "behind {kind}");
        }
    }
    assert_eq!(provider.connections(), 1);
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    BeforeTheHead,
    SilentBody,
    Upload,
}

impl Phase {
    const ALL: [Self; 3] = [Self::BeforeTheHead, Self::SilentBody, Self::Upload];
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_resets_its_stream_within_100_ms_and_no_other() {
    const ROUNDS: usize = 12;
    let told = Arc::new(Mutex::new(HashMap::<String, (Option<Reason>, u64)>::new()));
    let begun = Arc::new(Mutex::new(Vec::<String>::new()));
    let provider = {
        let (told, begun) = (Arc::clone(&told), Arc::clone(&begun));
        Provider::start(Builder::new(), move |mut asked: Asked| {
            let (told, begun) = (Arc::clone(&told), Arc::clone(&begun));
            async move {
                let Some(name) = asked.field("x-request-id").map(str::to_owned) else {
                    return asked.answer(200, &[], "{}");
                };
                begun.lock().unwrap().push(name.clone());
                let reason = if name.starts_with("SilentBody") {
                    let mut out = asked.begin(200, &[("content-type", "text/event-stream")]);
                    out.send_data("data: {}\n\n".into(), false).unwrap();
                    left(&mut out).await
                } else if name == "neighbour" {
                    return pending().await;
                } else {
                    asked.left().await
                };
                told.lock().unwrap().insert(name, (reason, now_ms()));
            }
        })
        .await
    };
    let world = world(&provider).await;
    let mut neighbour = Wire::open(world.product.data_addr()).await;
    neighbour.send(chat(&world).with("x-request-id", "neighbour").bytes()).await;
    let mut delays = Vec::new();
    for round in 0..ROUNDS {
        for phase in Phase::ALL {
            let name = format!("{phase:?}-{round}");
            let mut wire = Wire::open(world.product.data_addr()).await;
            let ask = Ask::post(PATH, &world.token.secret, CHAT).with("x-request-id", &name);
            match phase {
                Phase::BeforeTheHead => wire.send(ask.bytes()).await,
                Phase::SilentBody => {
                    wire.send(ask.bytes()).await;
                    assert_eq!(wire.head().await.status, 200, "{name}");
                    wire.until_body_has("data:").await;
                }
                // Half of a body, which waits for the client.
                Phase::Upload => wire.send(&ask.bytes()[..ask.bytes().len() - 10]).await,
            }
            let has_begun = async || begun.lock().unwrap().contains(&name).then_some(());
            eventually(PATIENCE, "the provider has the request", has_begun).await;
            let left_at = now_ms();
            drop(wire);
            let is_told = async || told.lock().unwrap().get(&name).copied();
            let (reason, at) = eventually(PATIENCE, "the provider is told", is_told).await;
            assert_eq!(reason, Some(Reason::CANCEL), "{name}");
            delays.push((at.saturating_sub(left_at), name));
        }
    }
    // The promise is a p99: of so many, one may be later.
    let late: Vec<_> = delays.iter().filter(|(delay, _)| *delay > AT_ONCE_MS).collect();
    assert!(late.len() <= 1, "later than {AT_ONCE_MS} ms: {late:?}");
    for (_, name) in &delays {
        let found = |events: &[serde_json::Value]| {
            events.iter().find(|event| event["client_request_id"] == name.as_str()).cloned()
        };
        let record = world.product.wait_events(name, found).await;
        assert_eq!(record["outcome"], "client_gone", "{name}: {record}");
    }
    let silence = tokio::time::timeout(Duration::from_millis(1), neighbour.try_head()).await;
    assert!(silence.is_err(), "a neighbour was answered: {silence:?}");
    assert_eq!(world.ask(&chat(&world)).await.status, 200, "the connection lives");
    assert_eq!(provider.connections(), 1);
}
