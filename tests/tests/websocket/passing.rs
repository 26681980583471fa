//! Frames on their way: byte for byte as they came, in both directions, however they are cut.

use std::sync::Arc;

use llm_proxy_tests::ws::{BINARY, CLOSE, FINAL, Handshake, PING, PONG, RawSocket, TEXT, close_payload, frame, masked};
use llm_proxy_tests::ws_plain::{Message, Plain};
use llm_proxy_tests::ws_provider::SocketProvider;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::sync::mpsc;

use crate::common::setup::{Api, Setup};
use crate::{GEMINI, INTERNAL, check_record, openai, over, steered};

const SCRIPTED: &str = "/scripted/v1/realtime?model=gpt-realtime";

/// Bytes that no mistake repeats.
fn random(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Frames of every kind, as one side sends them: whole and fragmented messages, control frames between the fragments,
/// lengths in each of their forms. `wrap` makes a frame of a first octet and a payload.
fn frames(mut wrap: impl FnMut(u8, &[u8]) -> Vec<u8>, large: usize) -> Vec<u8> {
    let (text, more, binary) = (TEXT - FINAL, 0, BINARY - FINAL);
    [
        wrap(TEXT, br#"{"type":"unknown"}"#),
        wrap(TEXT, b""),
        wrap(PONG, b"nobody asked"),
        wrap(text, "{\"type\":\"h\u{e9}".as_bytes()),
        wrap(PING, &[0x70; 125]),
        // A character cut in two, and a fragment of nothing.
        wrap(more, b"\xC3"),
        wrap(more, b""),
        wrap(PONG, b""),
        wrap(FINAL, b"\xA9\"}"),
        wrap(BINARY, &random(125, 1)),
        wrap(BINARY, &random(126, 2)),
        wrap(BINARY, &random(large.min(65_535), 3)),
        wrap(binary, &random(large.min(65_536), 4)),
        wrap(FINAL, &random(large, 5)),
        wrap(TEXT, b"{}"),
    ]
    .concat()
}

fn of_provider(large: usize) -> Vec<u8> {
    frames(frame, large)
}

fn of_client(large: usize) -> Vec<u8> {
    let mut dice = StdRng::seed_from_u64(7);
    // One of the masks changes nothing.
    let mut is_first = true;
    let wrap = |first: u8, payload: &[u8]| {
        let key = if std::mem::take(&mut is_first) { [0; 4] } else { dice.random() };
        masked(first, payload, key)
    };
    frames(wrap, large)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_every_kind_and_size_pass_byte_equal_both_ways_however_they_are_split() {
    let large = 3_000_000;
    let sizes = [(large, usize::MAX), (large, 4096), (10, 1), (10, 7)];
    let (report, mut reported) = mpsc::unbounded_channel();
    let sessions = std::sync::Mutex::new(sizes.into_iter());
    let sessions = Arc::new(sessions);
    let provider = SocketProvider::start(move |mut socket: RawSocket| {
        let (large, piece) = sessions.lock().unwrap().next().expect("as many sessions as there are sizes");
        let report = report.clone();
        async move {
            socket.switch(b"").await;
            let got = socket.exchange(&of_provider(large), piece, of_client(large).len()).await;
            report.send(got).unwrap();
            let close = socket.frame().await;
            socket.say(CLOSE, &close.payload).await;
            report.send(close.payload).unwrap();
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("scripted", provider.addr, "")], &[]).await;
    for (large, piece) in sizes {
        let case = format!("{large} bytes in pieces of {piece}");
        let handshake = Handshake::new(SCRIPTED).bearer(&setup.token.text);
        let mut socket = RawSocket::open(setup.proxy(), &handshake).await;
        let (up, down) = (of_client(large), of_provider(large));
        let got = socket.exchange(&up, piece, down.len()).await;
        assert!(got == down, "{case}: the provider's frames changed");
        assert!(reported.recv().await.unwrap() == up, "{case}: the client's frames changed");
        socket.say(CLOSE, close_payload(4001, "done: \u{2713}")).await;
        assert_eq!(socket.closed().await, (4001, "done: \u{2713}".to_owned()), "{case}");
        assert_eq!(reported.recv().await.unwrap(), close_payload(4001, "done: \u{2713}"), "{case}");
        let record = check_record(&setup, &case, &socket.id(), "finished", None).await;
        let close_bytes = masked(CLOSE, &close_payload(4001, "done: \u{2713}"), [0; 4]).len();
        assert_eq!(record["request_bytes"], up.len() + close_bytes, "{case}");
        assert_eq!(record["response_bytes"], down.len() + close_bytes - 4, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_somebody_else_wrote_gets_its_messages_pongs_and_close_codes() {
    let setup = Setup::new().await;
    let mut socket = Plain::open(setup.proxy(), &steered(&setup.token.text, "plain", "echo")).await;
    let large = random(3_000_000, 11);
    for message in
        [Message::text("h\u{e9}llo"), Message::text(""), Message::binary(large), Message::binary(vec![0; 70_000])]
    {
        socket.send(message.clone()).await;
        let back = socket.message().await;
        assert!(back == message, "a message of {} bytes changed", message.len());
    }
    socket.send(Message::Ping("still there?".into())).await;
    assert_eq!(socket.message().await, Message::Pong("still there?".into()));
    assert_eq!(socket.close(4001, "enough").await, Some((4001, "enough".to_owned())));
    let seen = over(&setup, "plain").await.socket.unwrap();
    assert_eq!((seen.counts.pings, seen.counts.messages), (1, 4), "the provider answers pings, not the proxy");
    assert_eq!((seen.close_code, seen.close_reason.as_deref()), (Some(4001), Some("enough")));

    for (talk, expected) in [
        ("close:4002:come: again", (4002, "come: again")),
        ("close:1000", (1000, "")),
        ("close:1013:later", (1013, "later")),
    ] {
        let mut socket = Plain::open(setup.proxy(), &steered(&setup.token.text, talk, talk)).await;
        let (code, reason) = socket.closed().await.unwrap();
        assert_eq!((code, reason.as_str()), expected);
        let seen = over(&setup, talk).await.socket.unwrap();
        assert_eq!(seen.close_code, Some(expected.0), "{talk}: the client's answer comes back");
        check_record(&setup, talk, &socket.id(), "finished", None).await;
    }

    let mut socket = Plain::open(setup.proxy(), &steered(&setup.token.text, "big", "big:3000000")).await;
    let Message::Binary(big) = socket.message().await else { panic!("no binary message") };
    let expected: Vec<u8> = (0..3_000_000_u32).map(|at| at.wrapping_mul(31).to_be_bytes()[3]).collect();
    assert!(big == expected, "a message of 3 MB changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_sent_in_one_packet_with_the_handshake_or_its_answer_are_not_lost() {
    let (report, mut reported) = mpsc::unbounded_channel();
    let early = [frame(TEXT, b"early"), frame(PING, b"bird"), frame(BINARY - FINAL, b"half a mess")].concat();
    let behind = early.clone();
    let provider = SocketProvider::start(move |mut socket: RawSocket| {
        let (behind, report) = (behind.clone(), report.clone());
        async move {
            socket.switch(&behind).await;
            report.send(socket.exchange(&frame(FINAL, b"age"), 100, 16).await).unwrap();
            socket.bytes_to_end().await;
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("scripted", provider.addr, "")], &[]).await;
    for _ in 0..10 {
        let sent = masked(TEXT, b"0123456789", [1, 2, 3, 4]);
        let handshake = Handshake::new(SCRIPTED).bearer(&setup.token.text);
        let mut socket = RawSocket::open_with(setup.proxy(), &handshake, &sent).await;
        let expected = [&early[..], &frame(FINAL, b"age")].concat();
        assert_eq!(socket.exchange(b"", 1, expected.len()).await, expected);
        assert_eq!(reported.recv().await.unwrap(), sent);
    }

    // And as the provider's own endpoints answer: the first event with the 101, the first question with the handshake.
    let create = masked(TEXT, br#"{"type":"response.create"}"#, [9; 4]);
    let handshake = openai(&setup.token.text).with("x-mock-opening", "early");
    let mut socket = RawSocket::open_with(setup.proxy(), &handshake, &create).await;
    assert!(socket.frame().await.text().contains("session.created"));
    socket.until("response.done").await;

    let setup_message = masked(TEXT, br#"{"setup":{"model":"models/gemini-2.5-flash-live"}}"#, [9; 4]);
    let handshake = Handshake::new(&format!("{GEMINI}?key={}", setup.token.text));
    let mut socket = RawSocket::open_with(setup.proxy(), &handshake, &setup_message).await;
    socket.until("setupComplete").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_frame_goes_no_further_and_ends_the_socket() {
    let setup = Setup::new().await;
    for (case, wrong) in [
        ("no mask", frame(TEXT, b"{}")),
        ("a reserved bit", masked(TEXT | 0x40, b"{}", [1; 4])),
        ("a reserved opcode", masked(0x83, b"{}", [1; 4])),
        ("a continuation of nothing", masked(FINAL, b"{}", [1; 4])),
        ("a long ping", masked(PING, &[0; 126], [1; 4])),
        ("half a ping", masked(PING - FINAL, b"", [1; 4])),
        ("a longer length than it needs", vec![TEXT, 0xFE, 0, 2, 0, 0, 0, 0, b'{', b'}']),
    ] {
        let name = case.replace(' ', "-");
        let mut socket = RawSocket::open(setup.proxy(), &steered(&setup.token.text, &name, "silent")).await;
        socket.send(&wrong).await;
        let (code, _) = socket.closed().await;
        assert_eq!(code, 1002, "{case}");
        let seen = over(&setup, &name).await.socket.unwrap();
        assert_eq!((seen.bad_frame, seen.counts.messages), (None, 0), "{case}: it reached the provider");
        check_record(&setup, case, &socket.id(), "refused", Some("invalid_request")).await;
    }

    let mut socket = RawSocket::open(setup.proxy(), &steered(&setup.token.text, "masked", "bad-frame")).await;
    let (frames, end) = socket.rest().await;
    assert_eq!(frames.len(), 2, "the first words, and the close frame: {frames:?}");
    assert_eq!(frames[1].close().map(|(code, _)| code), Some(INTERNAL), "{frames:?}");
    assert!(end.half.is_empty(), "{end:?}");
    check_record(&setup, "masked", &socket.id(), "upstream_cut", Some("upstream_invalid")).await;
    over(&setup, "masked").await;
}
