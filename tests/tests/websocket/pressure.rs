//! A slow side slows the other one down, at a memory that does not grow, and nothing is lost.

use std::time::{Duration, Instant};

use llm_proxy_tests::ws::{BINARY, CLOSE, RawSocket, close_payload, masked};
use serde_json::{Value, json};

use crate::common::setup::Setup;
use crate::{POLICY, check_prompt, check_record, openai, over, steered};

const KIB: usize = 1024;
/// What is offered, in messages of 64 KiB.
const OFFERED: usize = 200_000_000;
/// How much the process may grow meanwhile.
const MOST_GROWTH: u64 = 16 * 1024 * 1024;

/// The product's resident memory, looked at again and again.
struct Memory {
    base: u64,
    most: u64,
}

impl Memory {
    fn of(setup: &Setup) -> Self {
        let (now, _) = setup.product.memory_bytes();
        Self { base: now, most: now }
    }

    fn look(&mut self, setup: &Setup) {
        self.most = self.most.max(setup.product.memory_bytes().0);
    }

    fn check(&self, case: &str) {
        let growth = self.most - self.base;
        assert!(growth <= MOST_GROWTH, "{case}: grew by {growth} bytes");
    }
}

/// A small session, after which pools and buffers have their size.
async fn warm_up(setup: &Setup) {
    let mut socket = RawSocket::open(setup.proxy(), &steered(&setup.token.text, "warm", "echo")).await;
    let message = vec![7; 64 * KIB];
    for _ in 0..20 {
        socket.say(BINARY, &message).await;
        assert!(socket.frame().await.payload == message);
    }
    socket.say(CLOSE, close_payload(1000, "")).await;
    socket.closed().await;
    over(setup, "warm").await;
    setup.mock.reset();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_holds_its_provider_back_and_gets_everything() {
    let setup = Setup::new().await;
    warm_up(&setup).await;
    let mut memory = Memory::of(&setup);
    let flood = steered(&setup.token.text, "flood", &format!("flood:{OFFERED}"));
    let mut socket = RawSocket::open(setup.proxy(), &flood).await;
    let sent = || setup.seen("flood").and_then(|seen| seen.socket).map_or(0, |socket| socket.counts.sent_bytes);
    // Nothing is read until nothing more is sent.
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        memory.look(&setup);
        let now = sent();
        if now > 0 && now == before {
            break;
        }
        before = now;
    }
    assert!(before < OFFERED as u64 / 2, "{before} bytes went to a client that reads nothing");
    memory.check("not reading");

    let (mut got, mut number) = (0, 0_u8);
    while got < OFFERED {
        let length = (64 * KIB).min(OFFERED - got);
        let frame = socket.frame().await;
        assert_eq!((frame.first, frame.payload.len()), (BINARY, length), "message {number} after {got} bytes");
        let period: Vec<u8> = (0..=u8::MAX).map(|at| at.wrapping_mul(31).wrapping_add(number)).collect();
        let is_right = frame.payload.chunks(period.len()).all(|chunk| *chunk == period[..chunk.len()]);
        assert!(is_right, "message {number} after {got} bytes changed");
        got += length;
        number = number.wrapping_add(1);
        if number == 0 {
            // In bursts, with pauses in which the other side fills what it can.
            tokio::time::sleep(Duration::from_millis(20)).await;
            memory.look(&setup);
        }
    }
    memory.look(&setup);
    memory.check("reading slowly");
    socket.say(CLOSE, close_payload(1000, "")).await;
    socket.closed().await;
    over(&setup, "flood").await;
    let record = check_record(&setup, "flood", &socket.id(), "finished", None).await;
    assert_eq!(record["response_bytes"], setup.mock.stats().answer_bytes, "{record}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_reads_slowly_holds_its_client_back_and_gets_everything() {
    let setup = Setup::new().await;
    warm_up(&setup).await;
    let mut memory = Memory::of(&setup);
    let handshake = openai(&setup.token.text)
        .with("x-request-id", "slow")
        .with("x-mock-socket", "silent")
        .with("x-mock-fault", "slow-read:1");
    let mut socket = RawSocket::open(setup.proxy(), &handshake).await;
    let payload: Vec<u8> = (0..64 * KIB).map(|at| (at % 251) as u8).collect();
    let message = masked(BINARY, &payload, [0xA5, 0x5A, 0x3C, 0xC3]);
    let count = OFFERED / payload.len();
    for number in 0..count {
        socket.send(&message).await;
        if number % 50 == 0 {
            memory.look(&setup);
        }
    }
    let close = masked(CLOSE, &close_payload(1000, ""), [0; 4]);
    socket.send(&close).await;
    memory.look(&setup);
    memory.check("written to");
    assert_eq!(socket.closed().await, (1000, String::new()));
    let seen = over(&setup, "slow").await;
    let counts = seen.socket.unwrap().counts;
    assert_eq!((counts.messages, counts.message_bytes), (count as u64, (count * payload.len()) as u64));
    let mut everything = flate2::Crc::new();
    (0..count).for_each(|_| everything.update(&message));
    everything.update(&close);
    assert_eq!(seen.body_len, (count * message.len() + close.len()) as u64);
    assert_eq!(seen.body_crc32, everything.sum());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_reads_nothing_holds_its_client_back_and_keeps_nobody_from_ending_the_socket() {
    let setup = Setup::new().await;
    warm_up(&setup).await;
    let mut memory = Memory::of(&setup);
    let token = setup.token_with(json!({})).await;
    let handshake = openai(&token.text)
        .with("x-request-id", "deaf")
        .with("x-mock-socket", "silent")
        .with("x-mock-fault", "slow-read:3600000");
    let mut socket = RawSocket::open(setup.proxy(), &handshake).await;
    let taken = socket.send_until_held_back(&masked(BINARY, &[7; 64 * KIB], [1, 2, 3, 4]), OFFERED).await;
    assert!(taken < OFFERED / 2, "{taken} bytes went to a provider that reads nothing");
    memory.look(&setup);
    memory.check("not read");

    assert_eq!(setup.manage("DELETE", &format!("/manage/tokens/{}", token.id), Value::Null).await.0, 204);
    let revoked = Instant::now();
    assert_eq!(socket.closed().await, (POLICY, "token_revoked".to_owned()));
    check_prompt("not read", revoked);
    check_record(&setup, "not read", &socket.id(), "revoked", Some("token_revoked")).await;
}
