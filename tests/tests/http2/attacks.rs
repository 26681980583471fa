//! What a client can do to a server of HTTP/2 that means it no good: its connection ends, or costs no more than it may;
//! everybody else is served meanwhile.

use std::future::pending;
use std::time::{Duration, Instant};

use super::peer::{END_HEADERS, END_STREAM, Frames, Peer, ask, frame, kind, remembered, request, setting};
use crate::common::setup::{Api, Setup, eventually};
use crate::common::upstream::Upstream;
use crate::common::wire::Wire;

/// What one connection may cost.
const MOST_MEMORY: u64 = 64 << 20;
/// Error codes (RFC 9113 §7).
const NO_ERROR: u32 = 0x0;
const REFUSED_STREAM: u32 = 0x7;
const ENHANCE_YOUR_CALM: u32 = 0xB;
const INITIAL_WINDOW_SIZE: u16 = 0x4;

/// Runs an attack while others are served, and looks at what it costs.
async fn attacked(setup: &Setup, case: &str, attack: impl Future<Output = ()>) {
    let (before, _) = setup.product.memory_bytes();
    let others = async {
        for _ in 0..10 {
            let answer = setup.wire().await.ask(setup.models().head()).await;
            assert_eq!(answer.head.status, 200, "{case}: {}", answer.text());
            let answer = Peer::connect(setup.proxy()).await.ask(ask("GET", "/health"), "").await;
            assert_eq!(answer.status, 200, "{case}");
        }
    };
    tokio::join!(attack, others);
    let (_, peak) = setup.product.memory_bytes();
    let grown = peak.saturating_sub(before);
    assert!(grown <= MOST_MEMORY, "{case}: {} MiB", grown >> 20);
}

/// Writes `batch` again and again, until the server has had enough or the kernel holds all of it; the server ends it.
async fn flood(setup: &Setup, case: &str, begin: &[u8], batch: &[u8], most: usize) {
    let mut frames = Frames::open(setup.proxy(), &[]).await;
    frames.write(begin).await;
    let mut written = 0;
    while written < most && !frames.is_over() && frames.try_write(batch).await {
        written += 1;
    }
    assert_ne!(frames.ended().await.goaway, Some(NO_ERROR), "{case}");
}

fn bearer(setup: &Setup) -> String {
    format!("Bearer {}", setup.token.text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_that_ask_for_nothing_end_their_connection() {
    const MOST: usize = 2_000;
    let setup = Setup::new().await;
    let bearer = bearer(&setup);
    let upload = request("POST", "/echo/v1/files", &[("authorization", &*bearer)]);
    let open = frame(kind::HEADERS, END_HEADERS, 1, &upload);
    let models = request("GET", "/v1/models", &[("authorization", &*bearer)]);
    let half = frame(kind::HEADERS, END_STREAM, 1, &models);
    let none = Vec::new();
    for (case, begin, one) in [
        ("pings", &none, frame(kind::PING, 0, 0, &[0; 8])),
        ("answers to pings", &none, frame(kind::PING, 1, 0, &[0; 8])),
        ("settings", &none, frame(kind::SETTINGS, 0, 0, &setting(INITIAL_WINDOW_SIZE, 65_535))),
        ("unknown frames", &none, frame(0xEE, 0, 0, &[0; 4])),
        ("empty data", &open, frame(kind::DATA, 0, 1, &[])),
        ("continuations", &half, frame(kind::CONTINUATION, 0, 1, &[0])),
        ("resets of one stream", &open, frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8])),
    ] {
        attacked(&setup, case, flood(&setup, case, begin, &one.repeat(100), MOST)).await;
    }
    eventually("all upstreams are let go", || setup.mock.stats().in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_reset_as_soon_as_they_are_there_end_their_connection() {
    let setup = Setup::new().await;
    let bearer = bearer(&setup);
    let models = request("GET", "/v1/models", &[("authorization", &*bearer)]);
    let at_once = async {
        let mut frames = Frames::open(setup.proxy(), &[]).await;
        let mut stream = 1u32;
        while stream < 200_000 && !frames.is_over() {
            let mut batch = Vec::new();
            for _ in 0..50 {
                batch.extend(frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &models));
                batch.extend(frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]));
                stream += 2;
            }
            if !frames.try_write(&batch).await {
                break;
            }
        }
        assert!(stream < 200_000, "it may go on for ever");
        let end = frames.ended().await;
        assert!(matches!(end.goaway, None | Some(ENHANCE_YOUR_CALM)), "{end:?}");
    };
    attacked(&setup, "at once", at_once).await;
    eventually("all upstreams are let go", || setup.mock.stats().in_flight == 0).await;

    let hang = request("GET", "/v1/models", &[("authorization", &*bearer), ("x-mock-fault", "hang-head")]);
    let once_they_run = async {
        let mut frames = Frames::open(setup.proxy(), &[]).await;
        let mut stream = 1u32;
        while !frames.is_over() {
            let batch: Vec<u32> = (0..50).map(|number| stream + 2 * number).collect();
            stream += 100;
            for stream in &batch {
                let head = frame(kind::HEADERS, END_HEADERS | END_STREAM, *stream, &hang);
                let _ = frames.try_write(&head).await;
            }
            eventually("they run", || frames.is_over() || setup.mock.stats().in_flight >= 50).await;
            for stream in &batch {
                let _ = frames.try_write(&frame(kind::RST_STREAM, 0, *stream, &[0, 0, 0, 8])).await;
            }
            eventually("they are let go", || frames.is_over() || setup.mock.stats().in_flight < 50).await;
            assert!(stream < 5_000, "it may go on for ever");
        }
        frames.ended().await;
    };
    // Nobody else asks the provider meanwhile: what runs there is counted.
    once_they_run.await;
    eventually("all upstreams are let go", || setup.mock.stats().in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_header_block_that_unfolds_to_a_large_one_ends_its_connection() {
    let setup = Setup::new().await;
    let bomb = async {
        let mut frames = Frames::open(setup.proxy(), &[]).await;
        let fuse = [request("GET", "/health", &[]), remembered("x-bomb", &"a".repeat(4000))].concat();
        frames.write(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &fuse)).await;
        // The first entry of the dynamic table, 16,000 times.
        let bomb = [request("GET", "/health", &[]), vec![0xBE; 16_000]].concat();
        frames.write(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 3, &bomb)).await;
        let end = frames.ended().await;
        assert!(matches!(end.goaway, None | Some(ENHANCE_YOUR_CALM)), "{end:?}");
    };
    attacked(&setup, "header bomb", bomb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_does_not_end_ends_its_connection_at_the_deadline() {
    let setup = Setup::with(&[], &[("HEAD_TIMEOUT", "1s")]).await;
    let models = request("GET", "/v1/models", &[]);
    let unfinished = frame(kind::HEADERS, END_STREAM, 1, &models);
    let whole = frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &models);
    for (case, begun) in [("a block that goes on", &unfinished[..]), ("a frame that is cut", &whole[..20])] {
        let mut frames = Frames::open(setup.proxy(), &[]).await;
        let began = Instant::now();
        frames.write(begun).await;
        let end = frames.ended().await;
        assert_eq!(end.goaway, Some(ENHANCE_YOUR_CALM), "{case}");
        assert!(began.elapsed() >= Duration::from_millis(900), "{case}: {:?}", began.elapsed());
    }
    let mut wire = setup.wire().await;
    wire.send("PRI * HTTP/2.0\r\n\r\nSM").await;
    wire.closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_the_limit_are_refused_and_the_others_run() {
    let setup = Setup::new().await;
    let bearer = bearer(&setup);
    let head = request("GET", "/v1/models", &[("authorization", &*bearer), ("x-mock-fault", "hang-head")]);
    let mut frames = Frames::open(setup.proxy(), &[]).await;
    for number in 0..101 {
        frames.write(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &head)).await;
    }
    eventually("the last is refused", || !frames.resets().is_empty()).await;
    eventually("the others run", || setup.mock.stats().in_flight == 100).await;
    assert_eq!(frames.resets(), [(201, REFUSED_STREAM)]);
    // One that ends makes room.
    frames.write(&frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8])).await;
    eventually("it ends", || setup.mock.stats().in_flight == 99).await;
    frames.write(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 203, &head)).await;
    eventually("another runs", || setup.mock.stats().in_flight == 100).await;
    drop(frames);
    eventually("all upstreams are let go", || setup.mock.stats().in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_or_gives_nothing_costs_no_more_than_it_may() {
    let flood = Upstream::start(|mut wire: Wire, _| async move {
        if wire.request().await.is_some() {
            wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 900000000000\r\n\r\n")
                .await;
            while wire.try_send_unhurried(&[b'y'; 65_536]).await.is_ok() {}
        }
    })
    .await;
    let deaf = Upstream::start(|wire: Wire, _| async move {
        pending::<()>().await;
        drop(wire);
    })
    .await;
    let setup = Setup::with(&[Api::at("flood", flood.addr, ""), Api::at("deaf", deaf.addr, "")], &[]).await;
    let bearer = bearer(&setup);
    let streams = |head: &[u8], flags: u8| -> Vec<u8> {
        (0..100).flat_map(|number| frame(kind::HEADERS, END_HEADERS | flags, 2 * number + 1, head)).collect()
    };
    let flooded = streams(&request("GET", "/flood/v1/models", &[("authorization", &*bearer)]), END_STREAM);

    let no_window = async {
        let mut frames = Frames::open(setup.proxy(), &setting(INITIAL_WINDOW_SIZE, 0)).await;
        frames.write(&flooded).await;
        all_run(&setup).await;
        frames
    };
    held(&setup, "no window", no_window).await;

    let not_reading = async {
        let mut wire = Wire::open_narrow(setup.proxy()).await;
        wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        wire.send(frame(kind::SETTINGS, 0, 0, &setting(INITIAL_WINDOW_SIZE, 0x7FFF_FFFF))).await;
        wire.send(frame(kind::WINDOW_UPDATE, 0, 0, &0x7FFF_0000u32.to_be_bytes())).await;
        wire.send(&flooded).await;
        all_run(&setup).await;
        wire
    };
    held(&setup, "not reading", not_reading).await;

    let one_sided = async {
        let mut frames = Frames::open(setup.proxy(), &[]).await;
        let head = request("POST", "/deaf/v1/files", &[("authorization", &*bearer)]);
        frames.write(&streams(&head, 0)).await;
        all_run(&setup).await;
        // As much as the windows of 32 streams have, and of the connection: nothing of it is consumed for long.
        for number in 0..32 {
            for _ in 0..8 {
                frames.write_while_read(&frame(kind::DATA, 0, 2 * number + 1, &[b'x'; 16_000])).await;
            }
        }
        frames
    };
    held(&setup, "bodies that nobody reads", one_sided).await;
}

/// Sets an attack up and holds it for a while, others served; then its end must end everything it had.
async fn held<T>(setup: &Setup, case: &str, attack: impl Future<Output = T>) {
    let holding = async {
        let attacker = attack.await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(attacker);
    };
    attacked(setup, case, holding).await;
    setup.wait_in_flight(0).await;
}

/// Waits until the hundred streams run: others may run beside them.
async fn all_run(setup: &Setup) {
    let deadline = Instant::now() + llm_proxy_tests::PATIENCE;
    loop {
        let metrics = setup.product.metrics().await;
        if llm_proxy_tests::metric(&metrics, "llm_proxy_in_flight", &[]) >= 100.0 {
            return;
        }
        assert!(Instant::now() < deadline, "never a hundred at once");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
