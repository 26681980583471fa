//! Request heads that come slowly, too large, broken or not at all, on a new connection and on one in use.

mod common;

use std::time::{Duration, Instant};

use common::setup::Setup;
use common::wire::{Head, Wire};
use tokio::task::JoinSet;

/// `HEAD_TIMEOUT` of every product here.
const DEADLINE: Duration = Duration::from_secs(1);
/// No head answered later than this was answered at the deadline: a busy machine included.
const LATEST: Duration = Duration::from_secs(4);

async fn setup() -> Setup {
    Setup::with(&[], &[("HEAD_TIMEOUT", "1s")]).await
}

/// A connection as the next head finds it: new, or one that has carried a request already.
async fn connection(setup: &Setup, is_used: bool) -> Wire {
    let mut wire = setup.wire().await;
    if is_used {
        assert_eq!(wire.ask(setup.models().head()).await.head.status, 200);
    }
    wire
}

/// Sends `start`, then a byte whenever `drip` has passed, until an answer comes.
async fn drip(wire: &mut Wire, start: &str, drip: Option<Duration>) -> Head {
    wire.send(start).await;
    let Some(pause) = drip else { return wire.head().await };
    loop {
        tokio::select! {
            biased;
            head = wire.head() => return head,
            () = tokio::time::sleep(pause) => {}
        }
        if wire.try_send("x").await.is_err() {
            return wire.head().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dripped_or_stalled_head_is_answered_408_at_the_deadline_on_the_first_and_the_second_request() {
    let setup = setup().await;
    let mut idle = setup.wire().await;
    let mut cases = JoinSet::new();
    for (is_used, pause, start) in [
        (false, None, "P"),
        (false, None, "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"),
        (false, None, "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n\r"),
        (false, Some(Duration::from_millis(20)), "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-drip: "),
        (true, None, "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"),
        (true, Some(Duration::from_millis(20)), "GET /v1/models HTTP/1.1\r\nhost: a\r\nx-drip: "),
    ] {
        let mut wire = connection(&setup, is_used).await;
        cases.spawn(async move {
            let case = format!("used {is_used}, pause {pause:?}, {start:?}");
            let began = Instant::now();
            let head = drip(&mut wire, start, pause).await;
            let took = began.elapsed();
            assert_eq!(head.status, 408, "{case}");
            assert!(head.says_close(), "{case}: {head:?}");
            assert_eq!(head.field("x-should-retry"), Some("false"), "{case}");
            assert!(took >= DEADLINE - Duration::from_millis(20) && took < LATEST, "{case}: after {took:?}");
            let (body, whole) = wire.rest().await;
            assert!(whole && serde_json::from_slice::<serde_json::Value>(&body).is_ok(), "{case}");
            assert_eq!(wire.closed().await, b"", "{case}");
        });
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
    // The deadline is for a head that has begun: who said nothing for longer than it is still served.
    assert_eq!(idle.ask(setup.models().head()).await.head.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_head_is_431_a_lone_line_end_400_at_once_and_half_a_head_is_nobody() {
    let setup = setup().await;
    for is_used in [false, true] {
        // 31 KiB pass, 33 KiB do not.
        let mut wire = connection(&setup, is_used).await;
        let answer = wire.ask(setup.models().with("x-large", "a".repeat(31 * 1024)).head()).await;
        assert_eq!(answer.head.status, 200, "31 KiB, used {is_used}");
        let answer = wire.ask(setup.models().with("x-large", "a".repeat(33 * 1024)).head()).await;
        assert_eq!(answer.head.status, 431, "33 KiB, used {is_used}");
        assert!(answer.whole && answer.head.says_close());
        assert_eq!(wire.closed().await, b"");
    }

    let before = setup.mock.stats().requests;
    for is_used in [false, true] {
        for start in [
            "GET /v1/models HTTP/1.1\n",
            "GET /v1/models HTTP/1.1\rX",
            "GET /v1/models HTTP/1.1\r\nhost: a\n",
            "GET /v1/models HTTP/1.1\r\nhost: a\r\nx-field: a\rb",
            "GET /v1/models HTTP/1.1\r\nhost: a\r\n\n",
            "\n",
            "\r\n",
        ] {
            let mut wire = connection(&setup, is_used).await;
            // None of these is whole: an answer other than the 408 at the deadline was given at once.
            let answer = wire.ask(start).await;
            assert_eq!(answer.head.status, 400, "{start:?}, used {is_used}");
            assert_eq!(answer.code(), "invalid_request", "{start:?}");
            assert!(answer.whole && answer.head.says_close(), "{start:?}");
            assert_eq!(wire.closed().await, b"", "{start:?}");
        }
    }
    assert_eq!(setup.mock.stats().requests - before, 7, "only the requests that used the connections before");

    for is_used in [false, true] {
        let mut wire = connection(&setup, is_used).await;
        wire.send("POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthoriz").await;
        wire.half_close().await;
        assert_eq!(wire.closed().await, b"", "nobody is there to be answered, used {is_used}");
        let mut wire = connection(&setup, is_used).await;
        wire.send("POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthoriz").await;
        wire.reset();
    }
    let mut wire = connection(&setup, false).await;
    assert_eq!(wire.ask(setup.models().head()).await.head.status, 200, "everybody else is served");
}
