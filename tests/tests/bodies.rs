//! Request bodies of every size and framing: what arrives is what was sent, at a memory that does not grow with it.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::setup::{Api, Setup};
use common::upstream::Upstream;
use common::wire::{Piece, Wire, crc32};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// How much the process may grow while bodies of any size pass.
const MOST_GROWTH: u64 = 32 * MIB as u64;

/// Bytes that no mistake repeats.
fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(length as u64).fill_bytes(&mut bytes);
    bytes
}

/// JSON of exactly this length, with content that no mistake repeats.
fn json(length: usize) -> Vec<u8> {
    let mut body = br#"{"pad":""#.to_vec();
    let pad = length - body.len() - 2;
    body.extend(random(pad).iter().map(|byte| b'a' + byte % 26));
    body.extend_from_slice(br#""}"#);
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_every_size_arrive_equal_with_a_length_and_chunked_streamed_and_held() {
    let setup = Setup::new().await;
    let sizes = [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 4 * MIB, 32 * MIB];
    for size in sizes {
        for is_chunked in [false, true] {
            for is_held in [false, true] {
                // The least that a policy can read is some JSON.
                let body = if is_held { json(size.max(16)) } else { random(size) };
                let case = format!("{} bytes, chunked {is_chunked}, held {is_held}", body.len());
                let ask = if is_held { setup.held() } else { setup.echo() };
                let request =
                    if is_chunked { ask.chunks(&body, &[1, 7, 4096, 65_536, 999_999]) } else { ask.body(&body) };
                let mut wire = setup.wire().await;
                let answer = wire.ask(&request).await;
                assert_eq!(answer.head.status, 200, "{case}: {}", answer.text());
                let echoed = answer.json();
                assert_eq!(echoed["body_len"], body.len(), "{case}");
                assert_eq!(echoed["body_crc32"], crc32(&body), "{case}");
                let headers = echoed["headers"].as_array().unwrap();
                let count = |name: &str| {
                    headers
                        .iter()
                        .filter(|field| field[0].as_str().is_some_and(|found| found.eq_ignore_ascii_case(name)))
                        .count()
                };
                let expected = if is_chunked && !is_held { (0, 1) } else { (1, 0) };
                assert_eq!((count("content-length"), count("transfer-encoding")), expected, "{case}: one framing");
                let record = setup.only_record(&answer.head.id()).await;
                assert_eq!(record["request_bytes"], body.len(), "{case}");
                assert_eq!(wire.ask(setup.models().head()).await.head.status, 200, "{case}: the connection lives on");
            }
        }
    }

    // Extensions and trailers are the hop's: gone, and nothing else with them.
    let mut wire = setup.wire().await;
    let framed =
        "5;name=value;other=\"quoted; text\"\r\nhello\r\n6;x\r\n world\r\n0;last\r\nx-trailer: 1\r\nx-other:\r\n\r\n";
    let answer = wire.ask([setup.echo().with("transfer-encoding", "chunked").head(), framed.into()].concat()).await;
    let echoed = answer.json();
    assert_eq!((&echoed["body_len"], &echoed["body_crc32"]), (&11.into(), &crc32(b"hello world").into()));
    assert!(!echoed["headers"].to_string().contains("railer"), "{echoed}");
    assert_eq!(wire.ask(setup.models().head()).await.head.status, 200, "the connection lives on");
}

/// The largest resident size of the product while this is watched, in bytes.
struct Memory {
    base: u64,
    most: Arc<AtomicU64>,
    watching: tokio::task::JoinHandle<()>,
}

impl Memory {
    fn watch(setup: &Arc<Setup>) -> Self {
        let (base, _) = setup.product.memory_bytes();
        let most = Arc::new(AtomicU64::new(base));
        let (seen, watched) = (Arc::clone(&most), Arc::clone(setup));
        let watching = tokio::spawn(async move {
            loop {
                seen.fetch_max(watched.product.memory_bytes().0, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { base, most, watching }
    }

    fn growth(&self) -> u64 {
        self.most.load(Ordering::Relaxed) - self.base
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// Uploads `total` bytes and returns the echo.
async fn upload(setup: &Setup, total: usize, is_chunked: bool) -> serde_json::Value {
    let piece = random(MIB);
    let mut wire = setup.wire().await;
    let ask = setup.echo();
    let ask = if is_chunked { ask.with("transfer-encoding", "chunked") } else { ask.with("content-length", total) };
    wire.send(ask.head()).await;
    let mut left = total;
    while left > 0 {
        let now = &piece[..left.min(piece.len())];
        if is_chunked {
            wire.send(format!("{:x}\r\n", now.len())).await;
        }
        wire.send(now).await;
        if is_chunked {
            wire.send("\r\n").await;
        }
        left -= now.len();
    }
    if is_chunked {
        wire.send("0\r\n\r\n").await;
    }
    let answer = wire.answer().await;
    assert_eq!(answer.head.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_passes_at_constant_memory_and_a_slow_side_holds_the_other_back() {
    let flood = Upstream::start(|mut wire, _| async move {
        // Reads the head only, then nothing until the test says so by closing, or floods whoever asks for it.
        let Some(head) = wire.try_head().await else { return };
        if head.field("x-flood").is_some() {
            wire.send(
                "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 900000000000\r\n\r\n",
            )
            .await;
            while wire.try_send_unhurried(&vec![b'y'; MIB]).await.is_ok() {}
        }
        std::future::pending().await
    })
    .await;
    let setup = Arc::new(Setup::with(&[Api::at("flood", flood.addr, "")], &[]).await);
    // Buffers and pools have their size after this.
    upload(&setup, 32 * MIB, true).await;

    let mut expected = flate2::Crc::new();
    let (piece, total) = (random(MIB), 1_000_000_000);
    let mut left = total;
    while left > 0 {
        expected.update(&piece[..left.min(MIB)]);
        left -= left.min(MIB);
    }
    for is_chunked in [false, true] {
        let memory = Memory::watch(&setup);
        let echoed = upload(&setup, total, is_chunked).await;
        assert_eq!((&echoed["body_len"], &echoed["body_crc32"]), (&total.into(), &expected.sum().into()));
        assert!(memory.growth() <= MOST_GROWTH, "chunked {is_chunked}: grew by {} bytes", memory.growth());
    }

    // A provider that does not read: the client can send what kernels buffer, and no more.
    let memory = Memory::watch(&setup);
    let mut wire = setup.wire().await;
    wire.send(setup.ask("POST", "/flood/v1/files").with("content-length", total).head()).await;
    let taken = wire.send_until_held_back(&random(MIB), 512 * MIB).await;
    assert!(taken < 256 * MIB, "{taken} bytes went to a provider that reads nothing");
    drop(wire);

    // A client that does not read: the provider is held back alike.
    let mut wire = Wire::open_narrow(setup.proxy()).await;
    wire.send(setup.ask("POST", "/flood/v1/files").with("x-flood", 1).body("x")).await;
    assert_eq!(wire.head().await.status, 200);
    let mut before = 0;
    loop {
        // Nothing is awaited but the flood's own stand-still: two looks at what the process holds, equal.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = memory.growth();
        assert!(now <= MOST_GROWTH, "grew by {now} bytes for a client that does not read");
        if now == before {
            break;
        }
        before = now;
    }
    let Piece::Data(first) = wire.piece().await else { panic!("the stream ended") };
    assert!(first.iter().all(|byte| *byte == b'y'));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_streams_at_once_are_never_mixed() {
    const STREAMS: usize = 50;
    const EVENTS: usize = 40;
    let all_there = Arc::new(Barrier::new(STREAMS));
    let upstream = Upstream::start(move |mut wire, _| {
        let all_there = Arc::clone(&all_there);
        async move {
            while let Some((head, body)) = wire.request().await {
                let tag = head.field("x-tag").unwrap_or_default().to_owned();
                assert_eq!(body, tag.as_bytes(), "request and body belong together");
                all_there.wait().await;
                wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
                    .await;
                for event in 0..EVENTS {
                    let data = format!("data: {{\"tag\":\"{tag}\",\"event\":{event}}}\n\n");
                    wire.send(format!("{:x}\r\n{data}\r\n", data.len())).await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                wire.send("0\r\n\r\n").await;
            }
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("tagging", upstream.addr, "")], &[]).await;
    let mut clients = JoinSet::new();
    for client in 0..STREAMS {
        let tag = format!("client-{client}-{:x}", client * 7919);
        let request = setup.ask("POST", "/tagging/v1/files").with("x-tag", &tag).body(&tag);
        let mut wire = setup.wire().await;
        clients.spawn(async move {
            // Three times on the same connection, so that pooled connections change hands in between.
            for _ in 0..3 {
                let answer = wire.ask(&request).await;
                assert!(answer.whole);
                let expected: String =
                    (0..EVENTS).map(|event| format!("data: {{\"tag\":\"{tag}\",\"event\":{event}}}\n\n")).collect();
                assert_eq!(answer.text(), expected, "{tag}");
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_chunk_grammar_is_400_and_closes_and_nothing_of_it_is_served_as_a_request() {
    let setup = Setup::new().await;
    let smuggled = String::from_utf8(setup.models().head()).unwrap();
    for broken in [
        "\r\nhello\r\n0\r\n\r\n",
        ";x\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "-1\r\nhello\r\n0\r\n\r\n",
        "1111111111111111\r\nhello\r\n0\r\n\r\n",
        "5;a\0b\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nno colon\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: a\nb\r\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "zz\r\n",
    ] {
        for (case, ask) in [("streamed", setup.echo()), ("held", setup.held())] {
            for is_apart in [false, true] {
                let before = setup.mock.stats();
                let case = format!("{case}, apart {is_apart}: {broken:?}");
                let head = ask.clone().with("transfer-encoding", "chunked").head();
                let mut wire = setup.wire().await;
                if is_apart {
                    // A good chunk first, so that the fault is met in the middle of the exchange.
                    wire.send([head, b"3\r\n{  \r\n".to_vec()].concat()).await;
                    let _ = wire.try_send([broken, &smuggled].concat()).await;
                } else {
                    wire.send([head, broken.into(), smuggled.clone().into()].concat()).await;
                }
                let answer = wire.try_answer().await.unwrap_or_else(|| panic!("{case}: no answer"));
                assert_eq!(answer.head.status, 400, "{case}: {}", answer.text());
                assert!(answer.whole && answer.head.says_close(), "{case}: {:?}", answer.head);
                assert_eq!(wire.closed().await, b"", "{case}: nothing follows");
                let after = setup.mock.stats();
                assert_eq!(after.by_path.get("/v1/models"), before.by_path.get("/v1/models"), "{case}: smuggled");
                assert_eq!(after.finished, before.finished, "{case}: the provider took it for whole");
            }
        }
    }
    assert_eq!(setup.wire().await.ask(setup.models().head()).await.head.status, 200, "everybody else is served");
}
