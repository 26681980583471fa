//! Browsers: preflights without a token, one allowed origin an answer, refusals that a script can read.

use llm_proxy_tests::{Answer, Ask, Provider, Refused, World, fixture};
use serde_json::json;

const APP: &str = "https://app.example.com";
const EVIL: &str = "https://evil.example.com";

/// A world whose `web` API lets one origin in.
async fn world() -> World {
    let world =
        World::with(|options| options.api("web", &format!("dialect: openai\nallowed_origins: ['{APP}']"))).await;
    world.set_keys([("web".to_owned(), Provider::OpenAi.key())]).await;
    world
}

fn preflight(path: &str, origin: &str) -> Ask {
    Ask::new("OPTIONS", path)
        .with("origin", origin)
        .with("access-control-request-method", "POST")
        .with("access-control-request-headers", "authorization, content-type, x-stainless-lang")
}

fn listed(answer: &Answer, name: &str) -> Vec<String> {
    let value = answer.header(name).unwrap_or_default();
    value.split(',').map(|item| item.trim().to_ascii_lowercase()).collect()
}

/// The answer names this origin and no other.
fn readable(case: &str, answer: &Answer, origin: &str) {
    assert_eq!(answer.count("access-control-allow-origin"), 1, "{case}: {:?}", answer.headers);
    let allowed = answer.header("access-control-allow-origin");
    assert!(allowed == Some(origin) || allowed == Some("*"), "{case}: {allowed:?}");
}

#[tokio::test]
async fn a_preflight_is_answered_without_a_token_and_leaves_no_record() {
    let world = world().await;
    let cases = Provider::ALL.map(Provider::path).map(|path| (path, EVIL));
    for (path, origin) in cases.into_iter().chain([("/web/v1/chat/completions", APP), ("/v1/models", APP)]) {
        let answer = world.ask(&preflight(path, origin)).await;
        assert!(matches!(answer.status, 200 | 204), "{path}: {} {}", answer.status, answer.text());
        readable(path, &answer, origin);
        assert!(listed(&answer, "access-control-allow-methods").contains(&"post".to_owned()), "{path}");
        let headers = listed(&answer, "access-control-allow-headers");
        for header in ["authorization", "content-type", "x-stainless-lang"] {
            assert!(headers.iter().any(|found| found == header), "{path}: {headers:?}");
        }
    }
    // A request behind them shows that their records would have been there by now.
    let answer = world.ask(&Provider::OpenAi.ask(&world.token.secret)).await;
    world.record(&answer).await;
    assert_eq!(world.product.events().len(), 1);
    assert_eq!(world.upstream_count(), 1);
}

#[tokio::test]
async fn a_preflight_from_elsewhere_is_refused_and_lets_nobody_in() {
    let world = world().await;
    for origin in [EVIL, "null", "https://app.example.com.evil.example", "http://app.example.com"] {
        let answer = world.ask(&preflight("/web/v1/chat/completions", origin)).await;
        Refused::ORIGIN.check(origin, Provider::OpenAi, &answer);
        assert_eq!(answer.count("access-control-allow-origin"), 0, "{origin}");
    }
    assert_eq!(world.upstream_count(), 0);
}

#[tokio::test]
async fn an_answer_names_exactly_one_origin_also_where_the_provider_names_one() {
    let world = world().await;
    let theirs = fixture("openrouter-stream-error");
    let ours = fixture("openai-chat-basic");
    for (fixture, path) in [
        (&theirs, "/openai/v1/chat/completions"),
        (&theirs, "/web/v1/chat/completions"),
        (&ours, "/openai/v1/chat/completions"),
        (&ours, "/web/v1/chat/completions"),
    ] {
        let case = format!("{} at {path}", fixture.name);
        let answer = world.ask(&fixture.ask(&world.token.secret).to(path).with("origin", APP)).await;
        assert_eq!(answer.status, 200, "{case}: {}", answer.text());
        readable(&case, &answer, APP);
        if path.starts_with("/web/") {
            assert_eq!(answer.header("access-control-allow-origin"), Some(APP), "{case}");
        }
        let exposed = listed(&answer, "access-control-expose-headers");
        assert!(exposed.contains(&"x-llm-proxy-request-id".to_owned()), "{case}: {exposed:?}");
        assert_eq!(answer.body, fixture.body, "{case}");
        // Whoever caches it must know that it depends on the origin.
        assert!(
            answer.headers.iter().any(|(name, value)| name == "vary" && value.to_ascii_lowercase().contains("origin"))
        );
    }
    let outside = world.ask(&theirs.ask(&world.token.secret)).await;
    assert_eq!(outside.count("access-control-allow-origin"), 1, "no browser: the provider's own");
    let evil = world.ask(&theirs.ask(&world.token.secret).to("/web/v1/chat/completions").with("origin", EVIL)).await;
    Refused::ORIGIN.check("another origin", Provider::OpenAi, &evil);
    assert_eq!(evil.count("access-control-allow-origin"), 0);
}

#[tokio::test]
async fn a_refusal_can_be_read_by_the_origin_that_caused_it() {
    let world = world().await;
    let slow = world.token_with(json!({"requests_per_minute": 1})).await;
    assert_eq!(world.ask(&Provider::OpenAi.ask(&slow.secret)).await.status, 200);
    for path in ["/openai/v1/chat/completions", "/web/v1/chat/completions"] {
        for (case, token, refused) in
            [("no token", "nonsense", Refused::NO_TOKEN), ("too fast", slow.secret.as_str(), Refused::RATE)]
        {
            let case = format!("{case} at {path}");
            let answer = world.ask(&Provider::OpenAi.ask(token).to(path).with("origin", APP)).await;
            refused.check(&case, Provider::OpenAi, &answer);
            readable(&case, &answer, APP);
            let exposed = listed(&answer, "access-control-expose-headers");
            for header in ["x-llm-proxy-request-id", "retry-after"] {
                assert!(exposed.iter().any(|found| found == header), "{case}: {exposed:?}");
            }
        }
    }
}
