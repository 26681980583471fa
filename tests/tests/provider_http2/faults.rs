//! Providers that refuse, leave, break or lie: said again is only what they have not looked at, and nothing that is odd
//! touches another exchange.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use h2::Reason;
use h2::server::Builder;
use llm_proxy_tests::{Answer, Ask, World};
use serde_json::json;
use tokio::sync::Notify;

use crate::common::wire::Wire;
use crate::provider::{Asked, Frames, Provider};
use crate::{CHAT, KEY, chat, world};

/// A product with an API at each of these providers.
async fn at_all(providers: &[(&str, &Provider)]) -> World {
    let world = World::with(|options| {
        providers.iter().fold(options, |options, (name, provider)| options.api(name, &provider.yaml()))
    })
    .await;
    world.set_keys(providers.iter().map(|(name, _)| ((*name).to_owned(), KEY))).await;
    world
}

fn path(api: &str) -> String {
    format!("/{api}/v1/chat/completions")
}

async fn check_answered(world: &World, case: &str, answer: &Answer, attempt: u32, request_bytes: usize) {
    assert!(answer.status == 200 && answer.complete, "{case}: {}", answer.text());
    let record = world.check_record(case, answer, "finished", None).await;
    assert_eq!((&record["attempt"], &record["request_bytes"]), (&json!(attempt), &json!(request_bytes)), "{case}");
}

async fn check_unreachable(world: &World, case: &str, answer: &Answer, attempt: u32) {
    assert_eq!(answer.status, 502, "{case}: {}", answer.text());
    let told = Some("upstream_unreachable");
    let record = world.check_record(case, answer, "upstream_unreachable", told).await;
    assert_eq!(record["attempt"], json!(attempt), "{case}: {record}");
}

/// Reads until the proxy closes.
async fn listen(mut frames: Frames) {
    while frames.next().await.is_some() {}
}

/// A stream, with the whole of this body.
async fn whole(frames: &mut Frames, body: usize) -> Option<u32> {
    part_of(frames, body, 1 << 24).await
}

/// A stream, with so much of its body, and room for little more than `window`.
async fn part_of(frames: &mut Frames, part: usize, window: u32) -> Option<u32> {
    let stream = frames.request().await?;
    frames.open_window(stream, window).await;
    frames.body(part).await.then_some(stream)
}

/// The first connection has not looked at its first request, once so much of its body is there; others answer it.
async fn looks_at_nothing_first(part: usize, body: usize) -> Provider {
    Provider::raw(move |mut frames, connection| async move {
        if connection == 1 {
            // Room for a part only: what has been sent whole is not kept.
            if part_of(&mut frames, part, 1 << 17).await.is_some() {
                frames.goaway(0, Reason::NO_ERROR).await;
            }
            return listen(frames).await;
        }
        while let Some(stream) = whole(&mut frames, body).await {
            frames.answer(stream, b"{}").await;
        }
    })
    .await
}

/// JSON of this length that asks for a model.
fn long(length: usize) -> String {
    let pad = "x".repeat(length - CHAT.len() - 9);
    CHAT.replacen('{', &format!("{{\"pad\":\"{pad}\","), 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_goaway_says_was_not_looked_at_is_said_once_more_and_nothing_else_is() {
    let long = long(1 << 20);
    let once = looks_at_nothing_first(CHAT.len(), CHAT.len()).await;
    let held = looks_at_nothing_first(100_000, long.len()).await;
    let streamed = looks_at_nothing_first(100_000, long.len()).await;
    let never = Provider::raw(|mut frames, _| async move {
        if whole(&mut frames, CHAT.len()).await.is_some() {
            frames.goaway(0, Reason::ENHANCE_YOUR_CALM).await;
        }
        listen(frames).await;
    })
    .await;
    let looked = Provider::raw(|mut frames, _| async move {
        if let Some(stream) = whole(&mut frames, CHAT.len()).await {
            frames.goaway(stream, Reason::NO_ERROR).await;
        }
    })
    .await;
    let mute = Provider::raw(|mut frames, _| async move {
        let _ = whole(&mut frames, CHAT.len()).await;
    })
    .await;
    let world = at_all(&[
        ("once", &once),
        ("held", &held),
        ("streamed", &streamed),
        ("never", &never),
        ("looked", &looked),
        ("mute", &mute),
    ])
    .await;
    let token = &world.token.secret;
    let ask = |api: &str| Ask::post(&path(api), token, CHAT);

    for attempt in [2, 1] {
        check_answered(&world, "once", &world.ask(&ask("once")).await, attempt, CHAT.len()).await;
    }
    assert_eq!(once.connections(), 2);

    // A policy holds the body, so it is there to be said again however long it is.
    let limited = world.token_with(json!({"allowed_models": ["gpt-4o-mini"]})).await;
    let answer = world.ask(&Ask::post(&path("held"), &limited.secret, &long)).await;
    check_answered(&world, "held", &answer, 2, long.len()).await;
    let answer = world.ask(&Ask::post(&path("streamed"), token, &long)).await;
    check_unreachable(&world, "streamed", &answer, 1).await;
    assert_eq!((held.connections(), streamed.connections()), (2, 1));

    check_unreachable(&world, "never", &world.ask(&ask("never")).await, 2).await;
    check_unreachable(&world, "looked", &world.ask(&ask("looked")).await, 1).await;
    check_unreachable(&world, "mute", &world.ask(&ask("mute")).await, 1).await;
    assert_eq!((never.connections(), looked.connections(), mute.connections()), (2, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_refused_is_asked_for_once_more_on_another_connection_and_no_other_reset_is() {
    let (asked, refuses) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let provider = {
        let (asked, refuses) = (Arc::clone(&asked), Arc::clone(&refuses));
        Provider::start(Builder::new(), move |mut asking: Asked| {
            let (asked, refuses) = (Arc::clone(&asked), Arc::clone(&refuses));
            async move {
                asking.whole().await;
                asked.fetch_add(1, Ordering::SeqCst);
                let refuse = |left: usize| left.checked_sub(1);
                if refuses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, refuse).is_ok() {
                    return asking.reset(Reason::REFUSED_STREAM);
                }
                match asking.field("x-reset").map(|reason| reason.parse::<u32>().unwrap()) {
                    Some(reason) => asking.reset(Reason::from(reason)),
                    None => asking.answer(200, &[], "{}"),
                }
            }
        })
        .await
    };
    let world = world(&provider).await;
    refuses.store(1, Ordering::SeqCst);
    check_answered(&world, "refused once", &world.ask(&chat(&world)).await, 2, CHAT.len()).await;
    assert_eq!((asked.load(Ordering::SeqCst), provider.connections()), (2, 2));
    refuses.store(2, Ordering::SeqCst);
    check_unreachable(&world, "refused twice", &world.ask(&chat(&world)).await, 2).await;
    assert_eq!((asked.load(Ordering::SeqCst), provider.connections()), (4, 2));
    for reason in [Reason::NO_ERROR, Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::ENHANCE_YOUR_CALM] {
        let before = asked.load(Ordering::SeqCst);
        let ask = chat(&world).with("x-reset", &u32::from(reason).to_string());
        check_unreachable(&world, &format!("{reason:?}"), &world.ask(&ask).await, 1).await;
        assert_eq!(asked.load(Ordering::SeqCst), before + 1, "{reason:?} was said again");
    }
    check_answered(&world, "afterwards", &world.ask(&chat(&world)).await, 1, CHAT.len()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_reset_never_looks_whole() {
    const EVENT: &str = "data: {\"a\":1}\n\n";
    let gate = Arc::new(Notify::new());
    let provider = {
        let gate = Arc::clone(&gate);
        Provider::start(Builder::new(), move |mut asking: Asked| {
            let gate = Arc::clone(&gate);
            async move {
                let length = (EVENT.len() + 2).to_string();
                let Some(reason) = asking.field("x-reset").map(|reason| reason.parse::<u32>().unwrap()) else {
                    return asking.answer(200, &[], "{}");
                };
                let field = match asking.field("x-kind") {
                    Some("events") => ("content-type", "text/event-stream"),
                    _ => ("content-length", length.as_str()),
                };
                let mut out = asking.begin(200, &[field]);
                out.send_data(EVENT.into(), false).unwrap();
                // A reset would take away what is still queued.
                gate.notified().await;
                out.send_reset(Reason::from(reason));
            }
        })
        .await
    };
    let world = world(&provider).await;
    for reason in [Reason::NO_ERROR, Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::REFUSED_STREAM] {
        for kind in ["events", "length"] {
            let mut wire = Wire::open(world.product.data_addr()).await;
            let ask = chat(&world).with("x-kind", kind).with("x-reset", &u32::from(reason).to_string());
            wire.send(ask.bytes()).await;
            let head = wire.head().await;
            assert_eq!(head.status, 200, "{reason:?} {kind}");
            wire.until_body_has(EVENT).await;
            gate.notify_one();
            let (added, is_whole) = wire.rest().await;
            assert!(!is_whole, "{reason:?} {kind}: {added:?}");
            assert_eq!(added.starts_with(b"data: {\"error\""), kind == "events", "{reason:?} {kind}: {added:?}");
            let record = world.product.wait_event(&head.id()).await;
            assert_eq!((&record["outcome"], &record["attempt"]), (&json!("upstream_cut"), &json!(1)), "{record}");
        }
    }
    check_answered(&world, "afterwards", &world.ask(&chat(&world)).await, 1, CHAT.len()).await;
    assert_eq!(provider.connections(), 1, "a reset is its stream's alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_closes_without_a_word_costs_no_request_that_may_be_repeated() {
    let provider = Provider::raw(|mut frames, _| async move {
        if let Some(stream) = frames.request().await {
            frames.answer(stream, b"{}").await;
        }
    })
    .await;
    let world = world(&provider).await;
    for round in 0..10 {
        let answer = world.ask(&Ask::get("/h2/v1/models", &world.token.secret)).await;
        assert!(answer.status == 200 && answer.complete, "{round}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_no_proper_one_is_a_502_and_poisons_nothing() {
    const OK: (&str, &str) = (":status", "200");
    let large = "x".repeat(70_000);
    let many = [vec![OK], vec![("x-a", "1"); 257]].concat();
    let cases: Vec<(&'static str, Vec<(String, String)>)> = [
        ("connection", &[OK, ("connection", "close")][..]),
        ("keep-alive", &[OK, ("keep-alive", "1")]),
        ("transfer-encoding", &[OK, ("transfer-encoding", "chunked")]),
        ("upgrade", &[OK, ("upgrade", "h2c")]),
        ("one length twice", &[OK, ("content-length", "2"), ("content-length", "2")]),
        ("two lengths", &[OK, ("content-length", "2"), ("content-length", "3")]),
        ("a length that is none", &[OK, ("content-length", "+2")]),
        ("lengths in a list", &[OK, ("content-length", "2, 2")]),
        ("no status", &[("x-a", "1")]),
        ("a status that is none", &[(":status", "2x0")]),
        ("two statuses", &[OK, OK]),
        ("a switch", &[(":status", "101")]),
        ("a status behind a field", &[("x-a", "1"), OK]),
        ("capitals", &[OK, ("X-A", "1")]),
        ("a name that is none", &[OK, ("x a", "1")]),
        ("a line in a value", &[OK, ("x-a", "1\r\nx-b: 2")]),
        ("many fields", &many),
        ("a large field", &[OK, ("x-a", &large)]),
    ]
    .into_iter()
    .map(|(case, fields)| {
        (case, fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    })
    .collect();
    let names: Vec<&str> = cases.iter().map(|(case, _)| *case).collect();
    let (cases, next) = (Arc::new(cases), Arc::new(AtomicUsize::new(0)));
    let provider = {
        let (cases, next) = (Arc::clone(&cases), Arc::clone(&next));
        Provider::raw(move |mut frames, _| {
            let (cases, next) = (Arc::clone(&cases), Arc::clone(&next));
            async move {
                while let Some(stream) = frames.request().await {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    match cases.get(number / 2).filter(|_| number % 2 == 0) {
                        Some((_, fields)) => {
                            let fields: Vec<_> =
                                fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                            frames.head(stream, &fields, false).await;
                            frames.data(stream, b"{}", true).await;
                        }
                        None => frames.answer(stream, b"fine").await,
                    }
                }
            }
        })
        .await
    };
    let world = world(&provider).await;
    for case in names {
        let answer = world.ask(&chat(&world)).await;
        assert_eq!(answer.status, 502, "{case}: {}", answer.text());
        assert_eq!(answer.json()["error"]["code"], json!("upstream_invalid"), "{case}");
        world.check_record(case, &answer, "upstream_unreachable", Some("upstream_invalid")).await;
        let answer = world.ask(&chat(&world)).await;
        assert!(answer.status == 200 && answer.complete && answer.text() == "fine", "behind {case}: {answer:?}");
    }
    assert_eq!(next.load(Ordering::SeqCst), 2 * cases.len(), "something was said again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_that_is_not_kept_is_no_whole_answer() {
    let next = Arc::new(AtomicUsize::new(0));
    let provider = {
        let next = Arc::clone(&next);
        Provider::raw(move |mut frames, _| {
            let next = Arc::clone(&next);
            async move {
                while let Some(stream) = frames.request().await {
                    let length = match next.fetch_add(1, Ordering::SeqCst) {
                        0 => "5",
                        1 => "1",
                        _ => "2",
                    };
                    frames.head(stream, &[(":status", "200"), ("content-length", length)], false).await;
                    frames.data(stream, b"{}", true).await;
                }
            }
        })
        .await
    };
    let world = world(&provider).await;
    for case in ["more is told", "less is told"] {
        let answer = world.ask(&chat(&world)).await;
        assert!(answer.status == 502 || !answer.complete, "{case}: {answer:?}");
    }
    let answer = world.ask(&chat(&world)).await;
    assert!(answer.status == 200 && answer.complete && answer.text() == "{}", "{answer:?}");
}
