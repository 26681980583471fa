//! Chunked bodies that turn out too large: 413 in the dialect, a provider that never sees the end of one, and a
//! connection that lives on where the rest was small.

use std::time::{Duration, Instant};

use llm_proxy_load::mock::Ended;
use llm_proxy_tests::{Answer, Ask, PATIENCE, Provider, Refused, Token, World, eventually};
use serde_json::{Value, json};

/// The largest body, streamed and held.
const LIMIT: usize = 100_000;
/// What is read away of a body that is refused, at most, so that the connection can be kept.
const SMALL_REST: usize = 20_000;
const LARGE_REST: usize = 1 << 20;
/// How long a client that sends no more may have to wait for its answer.
const LATEST: Duration = Duration::from_secs(10);

/// Whether a policy reads the body.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Streamed,
    Held,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Streamed, Self::Held];

    fn api(self, provider: Provider) -> String {
        format!("{self:?}-{}", provider.name()).to_ascii_lowercase()
    }

    fn yaml(self) -> String {
        match self {
            Self::Streamed => format!("max_request_bytes: {LIMIT}"),
            Self::Held => format!("max_held_bytes: {LIMIT}\nparam_whitelist: {{user: ['*']}}"),
        }
    }

    /// The provider's own request with a chunked body of so many bytes.
    fn ask(self, provider: Provider, token: &Token, bytes: usize) -> Ask {
        let rest = provider.path().strip_prefix(&format!("/{}", provider.name())).unwrap();
        let padded = provider.body().to_owned() + &" ".repeat(bytes - provider.body().len());
        let ask = provider.ask(&token.secret).to(&format!("/{}{rest}", self.api(provider)));
        ask.chunked(padded.as_bytes().chunks(1000))
    }
}

async fn world() -> World {
    let apis = || Provider::ALL.into_iter().flat_map(|provider| Kind::ALL.map(|kind| (provider, kind)));
    let world = World::with(|mut options| {
        for (provider, kind) in apis() {
            options = options.api(&kind.api(provider), &format!("dialect: {}\n{}", provider.name(), kind.yaml()));
        }
        options
    })
    .await;
    world.set_keys(apis().map(|(provider, kind)| (kind.api(provider), provider.key()))).await;
    world
}

/// Checks the answer, its record, and that the provider was left with an unfinished request, or none at all.
async fn refused(world: &World, case: &str, provider: Provider, kind: Kind, answer: &Answer, before: u64) {
    Refused::TOO_LARGE.check(case, provider, answer);
    assert!(answer.text().contains("100000"), "{case}: the limit is named: {}", answer.text());
    let record = world.check_record(case, answer, "refused", Some("request_too_large")).await;
    assert_eq!(record["dialect"], provider.name(), "{case}: {record}");
    let sent = record["request_bytes"].as_u64().unwrap();
    if kind == Kind::Held {
        assert_eq!(world.upstream_count(), before, "{case}: what is held is not sent on");
        assert_eq!((sent, &record["times"]["forwarded_ms"]), (0, &Value::Null), "{case}: {record}");
        return;
    }
    assert_eq!(world.upstream_count(), before + 1, "{case}");
    let request = eventually(PATIENCE, "the provider's connection ends", async || {
        let request = world.last_upstream();
        request.ended.is_some().then_some(request)
    })
    .await;
    assert_eq!((request.ended, request.body_done_ms), (Some(Ended::ClientClosed), None), "{case}: a whole request");
    assert!(request.body_len <= LIMIT as u64 && sent <= LIMIT as u64, "{case}: {} arrived, {record}", request.body_len);
    assert!(record["times"]["forwarded_ms"].is_number(), "{case}: {record}");
    assert_eq!(record["times"]["first_byte_ms"], Value::Null, "{case}: the provider has not answered: {record}");
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_is_413_and_the_connection_lives_on_only_behind_a_small_rest() {
    let world = world().await;
    for provider in Provider::ALL {
        for kind in Kind::ALL {
            let token = world.token_with(json!({})).await;
            let fits = world.ask(&kind.ask(provider, &token, LIMIT)).await;
            assert_eq!(fits.status, 200, "{kind:?}, {provider:?}, at the limit: {}", fits.text());
            assert_eq!(world.last_upstream().body_len, LIMIT as u64);

            for (rest, lives) in [(1, true), (SMALL_REST, true), (LARGE_REST, false)] {
                let case = format!("{kind:?}, {rest} bytes over, {provider:?}");
                let before = world.upstream_count();
                let ask = kind.ask(provider, &token, LIMIT + rest);
                let mut raw = world.connect().await;
                // The body comes when the provider has the head, so that it is in the middle of the exchange.
                raw.write(&ask.head()).await;
                if kind == Kind::Streamed {
                    eventually(PATIENCE, "the provider has the head", async || {
                        (world.upstream_count() > before).then_some(())
                    })
                    .await;
                }
                // The server may answer and close before it has read everything.
                let _ = raw.try_write(&ask.wire_body()).await;
                let answer = raw.read_answer(false).await;
                assert_eq!(answer.says_close(), !lives, "{case}: {answer:?}");
                refused(&world, &case, provider, kind, &answer, before).await;
                if lives {
                    let next = raw.exchange(&kind.ask(provider, &token, 1000)).await;
                    assert_eq!(next.status, 200, "{case}, the next request: {}", next.text());
                } else {
                    assert_eq!(raw.read_to_end().await.0, b"", "{case}: nothing follows");
                }
            }
            // What was forwarded counts: three whole requests, and each that was sent on and never finished.
            let unfinished = if kind == Kind::Streamed { 3 } else { 0 };
            let state = world.token_state(&token.id).await;
            assert_eq!(state["request_count"], 3 + unfinished, "{kind:?}, {provider:?}: {state}");
        }
    }
}

#[tokio::test]
async fn a_client_that_stops_sending_beyond_the_limit_is_answered_all_the_same() {
    let world = world().await;
    let provider = Provider::OpenAi;
    for kind in Kind::ALL {
        let case = format!("{kind:?}, no end");
        let before = world.upstream_count();
        let bytes = kind.ask(provider, &world.token, LIMIT + 1000).bytes();
        let mut raw = world.connect().await;
        let began = Instant::now();
        raw.write(&bytes[..bytes.len() - 5]).await;
        let answer = raw.read_answer(false).await;
        assert!(began.elapsed() < LATEST, "{case}: after {:?}", began.elapsed());
        assert!(answer.says_close(), "{case}: whether the end still comes nobody knows");
        refused(&world, &case, provider, kind, &answer, before).await;
        assert_eq!(raw.read_to_end().await.0, b"", "{case}: nothing follows");
    }
}
