//! The clock of the whole exchange and the one between bytes, where the request's body is not finished: each names
//! itself or who it waited for, and neither holds up what makes progress.

use std::time::{Duration, Instant};

use futures::future::join_all;
use llm_proxy_load::mock::Ended;
use llm_proxy_tests::{Answer, Ask, FullListener, Provider, Raw, Refused, World, eventually, fixture};
use serde_json::Value;

/// The clock that runs out here.
const CLOCK: Duration = Duration::from_secs(1);
/// No clock's answer later than this was given by it: a busy machine included.
const LATEST: Duration = Duration::from_secs(10);

/// Sends all of a request but its last bytes, and waits for the answer: how long that took, and the connection.
async fn ask_without_end(world: &World, ask: &Ask, missing: usize) -> (Answer, Duration, Raw) {
    let bytes = ask.bytes();
    let mut raw = world.connect().await;
    let began = Instant::now();
    raw.write(&bytes[..bytes.len() - missing]).await;
    (raw.read_answer(false).await, began.elapsed(), raw)
}

/// That it took as long as the clock, and not much longer.
fn check_time(case: &str, took: Duration) {
    assert!(took >= CLOCK - Duration::from_millis(20) && took < LATEST, "{case}: after {took:?}");
}

#[tokio::test]
async fn the_clock_of_the_whole_exchange_ends_it_while_it_connects_holds_sends_and_streams() {
    let full = FullListener::start().await;
    let total = "dialect: openai\ntimeouts: {total: 1s}";
    let world = World::with(|options| {
        options.api("total", total).api("held", &format!("{total}\nparam_whitelist: {{user: ['*']}}")).api(
            "full",
            &format!("dialect: openai\nbase_url: http://{}\ntimeouts: {{connect: 300s, total: 1s}}", full.addr()),
        )
    })
    .await;
    world.set_keys(["total", "held", "full"].map(|api| (api.to_owned(), Provider::OpenAi.key()))).await;
    let post = |api: &str| Ask::post(&format!("/{api}/v1/files"), &world.token.secret, "");
    let body = "x".repeat(1000);
    let before = world.upstream_count();
    for (case, ask, missing, was_sent) in [
        ("connecting", post("full").body(&*body), 0, false),
        ("connecting, half a body", post("full").body(&*body), 500, false),
        ("held", post("held").body(&*body), 500, false),
        ("held, chunked", post("held").chunked([&*body]), 5, false),
        ("sending", post("total").body(&*body), 500, true),
        ("sending, chunked", post("total").chunked([&*body]), 5, true),
    ] {
        let (answer, took, mut raw) = ask_without_end(&world, &ask, missing).await;
        check_time(case, took);
        Refused::TIMEOUT.check(case, Provider::OpenAi, &answer);
        assert!(answer.text().contains("total"), "{case}: {}", answer.text());
        if missing > 0 {
            assert!(answer.says_close(), "{case}: nobody waits for the rest");
            assert_eq!(raw.read_to_end().await.0, b"", "{case}");
        }
        let record = world.check_record(case, &answer, "timeout", Some("total")).await;
        assert_eq!(record["times"]["forwarded_ms"].is_number(), was_sent, "{case}: {record}");
    }
    assert_eq!(world.upstream_count() - before, 2, "those that were sent");
    unfinished(&world, 2).await;

    // An answer that makes progress all the while.
    let stream = fixture("openai-chat-stream-usage");
    let ask = stream.ask(&world.token.secret).to("/total/v1/chat/completions").with("x-mock-pace-ms", "300");
    let began = Instant::now();
    let answer = world.ask(&ask).await;
    check_time("streaming", began.elapsed());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.complete, "a clean end");
    let (relayed, event) = answer.body.split_at(answer.text().rfind("data: ").unwrap());
    assert!(stream.body.starts_with(relayed) && stream.event_ends().contains(&relayed.len()), "{}", answer.text());
    let event = String::from_utf8_lossy(event).into_owned();
    let data: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
    Refused::TIMEOUT.check_body("streaming", Provider::OpenAi, &data, &answer.id());
    assert!(event.contains("total"), "{event}");
    world.check_record("streaming", &answer, "timeout", Some("total")).await;
}

/// That the provider was left with the last so many requests unfinished.
async fn unfinished(world: &World, count: usize) {
    let requests = eventually(Duration::from_secs(5), "the provider is told", async || {
        let requests = world.mock.requests();
        let last = &requests[requests.len() - count..];
        last.iter().all(|request| request.ended.is_some()).then(|| last.to_vec())
    })
    .await;
    for request in requests {
        assert_eq!((request.ended, request.body_done_ms), (Some(Ended::ClientClosed), None), "{request:?}");
    }
}

#[tokio::test]
async fn a_client_that_stops_in_the_middle_of_its_body_is_told_so_in_its_dialect() {
    let world = World::with(|mut options| {
        for provider in Provider::ALL {
            let name = provider.name();
            options = options.api(name, "timeouts: {idle: 1s}").api(
                &format!("held-{name}"),
                &format!("dialect: {name}\ntimeouts: {{idle: 1s}}\nparam_whitelist: {{user: ['*']}}"),
            );
        }
        options
    })
    .await;
    world.set_keys(Provider::ALL.map(|provider| (format!("held-{}", provider.name()), provider.key()))).await;
    let mut cases = Vec::new();
    for provider in Provider::ALL {
        let streamed = provider.ask(&world.token.secret);
        let rest = provider.path().strip_prefix(&format!("/{}", provider.name())).unwrap();
        let held = streamed.clone().to(&format!("/held-{}{rest}", provider.name()));
        // The last chunk is five bytes.
        for (kind, ask) in [("streamed", streamed), ("held", held)] {
            let chunked = ask.clone().chunked([provider.body()]);
            cases.push((format!("{kind}, with a length, {provider:?}"), provider, ask, 10));
            cases.push((format!("{kind}, chunked, {provider:?}"), provider, chunked, 5));
        }
    }
    let told = join_all(cases.iter().map(|(_, _, ask, missing)| {
        let world = &world;
        async move {
            let (answer, took, mut raw) = ask_without_end(world, ask, *missing).await;
            (answer, took, raw.read_to_end().await.0)
        }
    }))
    .await;
    for ((case, provider, ..), (answer, took, behind)) in cases.iter().zip(&told) {
        check_time(case, *took);
        Refused::INVALID.check(case, *provider, answer);
        assert!(answer.text().contains("the body stopped coming"), "{case}: {}", answer.text());
        assert!(answer.says_close() && behind.is_empty(), "{case}");
        let record = world.check_record(case, answer, "refused", Some("invalid_request")).await;
        let was_sent = case.starts_with("streamed");
        assert_eq!(record["times"]["forwarded_ms"].is_number(), was_sent, "{case}: {record}");
    }
    assert_eq!(world.upstream_count(), 8, "what is held is not sent on");
    unfinished(&world, 8).await;
}

/// Sends a request in so many pieces with pauses, for longer than the clock.
async fn drip(world: &World, api: &str, clock: Duration) -> Answer {
    const PAUSE: Duration = Duration::from_millis(400);
    const PIECES: usize = 7;
    let ask = Provider::OpenAi.ask(&world.token.secret).to(&format!("/{api}/v1/chat/completions"));
    let body = ask.wire_body();
    let mut raw = world.connect().await;
    raw.write(&ask.head()).await;
    let began = Instant::now();
    for piece in body.chunks(body.len().div_ceil(PIECES)) {
        tokio::time::sleep(PAUSE).await;
        raw.write(piece).await;
    }
    assert!(began.elapsed() > clock, "it was meant to take longer");
    raw.read_answer(false).await
}

#[tokio::test]
async fn a_body_that_keeps_coming_may_take_longer_than_the_clock_between_bytes() {
    let world = World::with(|options| {
        let idle = "timeouts: {first_byte: 2s, idle: 2s}";
        options.api("openai", idle).api("held", &format!("dialect: openai\n{idle}\nparam_whitelist: {{user: ['*']}}"))
    })
    .await;
    world.set_keys([("held".to_owned(), Provider::OpenAi.key())]).await;
    let apis = ["openai", "held"];
    let answers = join_all(apis.map(|api| drip(&world, api, Duration::from_secs(2)))).await;
    for (api, answer) in apis.iter().zip(&answers) {
        assert_eq!(answer.status, 200, "{api}: {}", answer.text());
        assert_eq!(world.record(answer).await["outcome"], "finished", "{api}");
    }
}
