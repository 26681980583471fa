//! How a socket ends: whoever takes the right away, leaves, breaks or falls silent, both sides are told at once, as far
//! as a frame can still be said.

use std::time::{Duration, Instant};

use llm_proxy_tests::Ended;
use llm_proxy_tests::ws::{CLOSE, FINAL, Frame, Handshake, PING, RawSocket, TEXT, close_payload, frame, masked};
use llm_proxy_tests::ws_provider::SocketProvider;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::common::setup::{Api, Setup, Token, now_ms};
use crate::{INTERNAL, POLICY, PROMPTLY, check_prompt, check_record, openai, over, steered};

const GOING_AWAY: u16 = 1001;
/// The promise for clients that leave.
const AT_ONCE_MS: u64 = 100;

/// A token of a project of its own.
async fn newcomer(setup: &Setup, name: &str) -> (String, Token) {
    let project = setup.project(name).await;
    let token = setup.token_of(&project, json!({})).await;
    (project, token)
}

/// Takes the right away, and says from when on.
async fn revoke(setup: &Setup, project: &str, token: &Token, by_project: bool) -> Instant {
    let (path, fields) = match by_project {
        true => (format!("/manage/projects/{project}"), json!({"is_active": false})),
        false => (format!("/manage/tokens/{}", token.id), json!({"is_active": false})),
    };
    let (status, answer) = setup.manage("PATCH", &path, fields).await;
    assert_eq!(status, 200, "{answer}");
    Instant::now()
}

/// A provider that says a word every few milliseconds until its connection ends, and then reports when that was.
async fn chatterbox() -> (SocketProvider, mpsc::UnboundedReceiver<Instant>) {
    let (report, reported) = mpsc::unbounded_channel();
    let provider = SocketProvider::start(move |mut socket: RawSocket| {
        let report = report.clone();
        async move {
            socket.switch(b"").await;
            while socket.try_send(&frame(TEXT, br#"{"type":"word"}"#)).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            let _ = report.send(Instant::now());
        }
    })
    .await;
    (provider, reported)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_and_a_project_switched_off_end_silent_and_busy_sockets_with_the_reason_and_nobody_elses() {
    let (chatterbox, mut left) = chatterbox().await;
    let setup = Setup::with(&[Api::at("busy", chatterbox.addr, "")], &[]).await;
    let mut other = RawSocket::open(setup.proxy(), &steered(&setup.token.text, "other", "echo")).await;
    for by_project in [false, true] {
        let reason = if by_project { "project_inactive" } else { "token_revoked" };
        let (project, token) = newcomer(&setup, reason).await;
        let silent = steered(&token.text, &format!("silent-{reason}"), "silent");
        let mut silent = RawSocket::open(setup.proxy(), &silent).await;
        let mut busy = Handshake::new("/busy/v1/realtime?model=gpt-realtime").bearer(&token.text);
        busy = busy.with("x-request-id", &format!("busy-{reason}"));
        let mut busy = RawSocket::open(setup.proxy(), &busy).await;
        busy.until("word").await;
        // This one reads nothing, so that the proxy is in the middle of a write, for as long as it takes.
        let deaf = steered(&token.text, &format!("deaf-{reason}"), "flood:1000000000");
        let deaf = RawSocket::open_narrow(setup.proxy(), &deaf).await;
        let deaf_id = deaf.id();
        stand_still(&setup, &format!("deaf-{reason}")).await;

        let revoked = revoke(&setup, &project, &token, by_project).await;
        assert_eq!(silent.closed().await, (POLICY, reason.to_owned()));
        check_prompt("silent", revoked);
        assert_eq!(busy.closed().await, (POLICY, reason.to_owned()));
        check_prompt("busy", revoked);
        left.recv().await.unwrap();
        check_prompt("busy, the provider's side", revoked);
        for kind in ["silent", "deaf"] {
            over(&setup, &format!("{kind}-{reason}")).await;
            check_prompt(&format!("{kind}, the provider's side"), revoked);
        }
        for id in [silent.id(), busy.id(), deaf_id] {
            check_record(&setup, reason, &id, "revoked", Some(reason)).await;
        }
        drop(deaf);
    }
    // Everybody else goes on.
    other.say(TEXT, "still here").await;
    assert_eq!(other.frame().await.text(), "still here");
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
async fn a_socket_cut_in_the_middle_of_a_frame_ends_without_a_word() {
    let whole = frame(TEXT, &[b'x'; 1000]);
    let half = &whole[..500];
    let sent = half.to_vec();
    let provider = SocketProvider::start(move |mut socket: RawSocket| {
        let half = sent.clone();
        async move {
            socket.switch(&half).await;
            socket.bytes_to_end().await;
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("torn", provider.addr, "")], &[]).await;
    let (project, token) = newcomer(&setup, "torn").await;
    let handshake = Handshake::new("/torn/v1/realtime?model=gpt-realtime").bearer(&token.text);
    let mut socket = RawSocket::open(setup.proxy(), &handshake).await;
    assert_eq!(socket.exchange(b"", 1, half.len()).await, half);
    let revoked = revoke(&setup, &project, &token, false).await;
    assert_eq!(socket.bytes_to_end().await, b"", "a word in the middle of a frame would be a part of it");
    check_prompt("torn", revoked);
    check_record(&setup, "torn", &socket.id(), "revoked", Some("token_revoked")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_frame_of_the_clients_keeps_nobody_from_telling_it_why_its_socket_ends() {
    let half = masked(TEXT, &[b'x'; 1000], [3; 4])[..500].to_vec();
    let length = half.len();
    let (report, mut reported) = mpsc::unbounded_channel();
    let provider = SocketProvider::start(move |mut socket: RawSocket| {
        let report = report.clone();
        async move {
            socket.switch(b"").await;
            report.send(socket.exchange(b"", 1, length).await).unwrap();
            report.send(socket.bytes_to_end().await).unwrap();
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("half", provider.addr, "")], &[]).await;
    let (project, token) = newcomer(&setup, "half said").await;
    let handshake = Handshake::new("/half/v1/realtime?model=gpt-realtime").bearer(&token.text);
    let mut socket = RawSocket::open(setup.proxy(), &handshake).await;
    socket.send(&half).await;
    assert_eq!(reported.recv().await.unwrap(), half);
    let revoked = revoke(&setup, &project, &token, false).await;
    assert_eq!(socket.closed().await, (POLICY, "token_revoked".to_owned()));
    assert_eq!(reported.recv().await.unwrap(), b"", "a word to the provider would be a part of that frame");
    check_prompt("half said", revoked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_expires_takes_its_sockets_with_it() {
    const LIFE: Duration = Duration::from_secs(3);
    let setup = Setup::new().await;
    let token = setup.token_with(json!({})).await;
    let expires_at_us = (now_ms() + u64::try_from(LIFE.as_millis()).unwrap()) * 1000;
    let expires = Instant::now() + LIFE;
    setup.product.sql(&format!("UPDATE tokens SET expires_at_us = {expires_at_us} WHERE id = '{}'", token.id)).await;
    let mut socket = RawSocket::open(setup.proxy(), &steered(&token.text, "expiring", "echo")).await;
    socket.say(TEXT, "in time").await;
    assert_eq!(socket.frame().await.text(), "in time");
    assert_eq!(socket.closed().await, (POLICY, "token_expired".to_owned()));
    assert!(Instant::now() + Duration::from_millis(50) >= expires, "closed before its time");
    check_prompt("expired", expires);
    over(&setup, "expiring").await;
    check_record(&setup, "expired", &socket.id(), "revoked", Some("token_expired")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_lets_sockets_finish_and_then_says_goodbye() {
    let mut setup = Setup::with(&[], &[("DRAIN_TIMEOUT", "2s")]).await;
    let mut short = RawSocket::open(setup.proxy(), &openai(&setup.token.text)).await;
    short.until("session.created").await;
    let mut long = RawSocket::open(setup.proxy(), &steered(&setup.token.text, "long", "echo")).await;
    let began = Instant::now();
    setup.sigterm();
    short.say(TEXT, r#"{"type":"response.create"}"#).await;
    short.until("response.done").await;
    short.say(CLOSE, close_payload(1000, "")).await;
    assert_eq!(short.closed().await, (1000, String::new()));
    long.say(TEXT, "not yet").await;
    assert_eq!(long.frame().await.text(), "not yet");
    assert_eq!(long.closed().await, (GOING_AWAY, "shutdown".to_owned()));
    assert!(began.elapsed() >= Duration::from_millis(1950), "cut after {:?}, before its time", began.elapsed());
    assert_eq!(setup.exited().await, Some(0));
    over(&setup, "long").await;
    let records = setup.records();
    for (id, outcome, reason) in
        [(short.id(), "finished", Value::Null), (long.id(), "shed", Value::String("shutdown".to_owned()))]
    {
        let found: Vec<_> = records.iter().filter(|record| record["id"] == id.as_str()).collect();
        assert_eq!(found.len(), 1, "{id}");
        assert_eq!((&found[0]["outcome"], &found[0]["reason"]), (&outcome.into(), &reason), "{}", found[0]);
    }
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Close,
    Reset,
    HalfClose,
    InTheMiddleOfAFrame,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_any_way_closes_the_providers_side_within_100_ms() {
    const ROUNDS: usize = 25;
    let setup = Setup::new().await;
    let mut delays = Vec::new();
    let mut left = Vec::new();
    for round in 0..ROUNDS {
        for way in [Way::Close, Way::Reset, Way::HalfClose, Way::InTheMiddleOfAFrame] {
            let name = format!("{way:?}-{round}");
            let handshake = openai(&setup.token.text).with("x-request-id", &name);
            let mut socket = RawSocket::open(setup.proxy(), &handshake).await;
            socket.until("session.created").await;
            left.push((name.clone(), socket.id()));
            if let Way::InTheMiddleOfAFrame = way {
                socket.send(&masked(TEXT, &[b'x'; 1000], [3; 4])[..500]).await;
            }
            let left_at = now_ms();
            let kept = match way {
                Way::Close => {
                    drop(socket);
                    None
                }
                Way::Reset => {
                    socket.reset();
                    None
                }
                Way::HalfClose | Way::InTheMiddleOfAFrame => {
                    socket.half_close().await;
                    Some(socket)
                }
            };
            let ended_at = over(&setup, &name).await.finished_ms.unwrap();
            delays.push((ended_at.saturating_sub(left_at), name));
            drop(kept);
        }
    }
    delays.sort_unstable();
    let late: Vec<_> = delays.iter().filter(|(delay, _)| *delay > AT_ONCE_MS).collect();
    assert!(late.len() <= delays.len() / 100, "later than {AT_ONCE_MS} ms: {late:?}");
    for (name, id) in left {
        check_record(&setup, &name, &id, "client_gone", None).await;
    }
    assert_eq!((setup.mock.stats().in_flight, setup.mock.stats().sockets.open), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_leaves_without_a_word_looks_like_a_failure() {
    let setup = Setup::new().await;
    for (talk, half) in [("cut", &b""[..]), ("reset", b""), ("cut-frame", b"\x81\x64half of it")] {
        let mut socket = RawSocket::open(setup.proxy(), &steered(&setup.token.text, talk, talk)).await;
        let (frames, end) = socket.rest().await;
        assert!(frames[0].text().contains("session.created"), "{talk}: {frames:?}");
        assert_eq!(end.half, half, "{talk}");
        let told: Vec<_> = frames[1..].iter().map(Frame::close).collect();
        // In the middle of a frame nothing can be said.
        let expected = if half.is_empty() { vec![Some((INTERNAL, "upstream_cut".to_owned()))] } else { Vec::new() };
        assert_eq!(told, expected, "{talk}");
        check_record(&setup, talk, &socket.id(), "upstream_cut", Some("upstream_cut")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_idle_clock_ends_a_socket_on_which_nobody_says_anything() {
    let setup = Setup::new().await;
    let handshake = Handshake::new("/hasty/v1/realtime?model=gpt-realtime")
        .bearer(&setup.token.text)
        .with("x-request-id", "idle")
        .with("x-mock-socket", "silent");
    let mut socket = RawSocket::open(setup.proxy(), &handshake).await;
    // Twice the clock, and never silent for all of it.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        socket.say(PING, "still here").await;
        assert_eq!(socket.frame().await.text(), "still here");
    }
    let last_word = Instant::now();
    assert_eq!(socket.closed().await, (INTERNAL, "idle".to_owned()));
    let silence = last_word.elapsed();
    assert!(silence >= Duration::from_millis(950), "ended after {silence:?} of silence");
    assert!(silence <= Duration::from_secs(1) + PROMPTLY, "ended only after {silence:?} of silence");
    over(&setup, "idle").await;
    check_record(&setup, "idle", &socket.id(), "timeout", Some("idle")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_of_the_client_waits_for_its_answer() {
    let (report, mut reported) = mpsc::unbounded_channel();
    let provider = SocketProvider::start(move |mut socket: RawSocket| {
        let report = report.clone();
        async move {
            socket.switch(b"").await;
            let close = socket.frame().await;
            // There is something left to say before the answer (RFC 6455 §5.5.1 allows that).
            socket.say(TEXT, "one more thing").await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            socket.say(TEXT - FINAL, "in two ").await;
            socket.say(FINAL, "parts").await;
            socket.say(CLOSE, &close.payload).await;
            report.send(close.close()).unwrap();
            socket.bytes_to_end().await;
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("slow", provider.addr, "")], &[]).await;
    let handshake = Handshake::new("/slow/v1/realtime?model=gpt-realtime").bearer(&setup.token.text);
    let mut socket = RawSocket::open(setup.proxy(), &handshake).await;
    socket.say(CLOSE, close_payload(4001, "bye")).await;
    let mut texts = Vec::new();
    let close = loop {
        let frame = socket.frame().await;
        match frame.close() {
            Some(close) => break close,
            None => texts.push(frame.text()),
        }
    };
    assert_eq!(texts, ["one more thing", "in two ", "parts"]);
    assert_eq!(close, (4001, "bye".to_owned()));
    assert_eq!(reported.recv().await.unwrap(), Some((4001, "bye".to_owned())));
    socket.half_close().await;
    let (frames, end) = socket.rest().await;
    assert!(frames.is_empty() && end.half.is_empty() && end.how == Ended::Fin, "{frames:?} {end:?}");
    check_record(&setup, "slow", &socket.id(), "finished", None).await;
}
