//! Every row of the table of refusals, in every dialect in which it can occur, with its record.

use std::time::Duration;

use futures::future::join_all;
use llm_proxy_tests::{
    Answer, Ask, Ended, FullListener, Provider, Raw, Refused, Token, World, eventually, fixture, metric,
};
use serde_json::{Value, json};

/// The same path under another API of the same dialect.
fn under(path: &str, provider: Provider, api: &str) -> String {
    let rest = path.strip_prefix('/').unwrap().strip_prefix(provider.name()).unwrap();
    format!("/{api}{rest}")
}

/// A request for text under another API of the same dialect.
fn ask_under(provider: Provider, api: &str, token: &str) -> Ask {
    provider.ask(token).to(&under(provider.path(), provider, api))
}

/// A world with one more API for each provider, called `NAME-PROVIDER`, and keys for them.
async fn world_with(name: &str, yaml: &str) -> World {
    let world = World::with(|mut options| {
        for provider in Provider::ALL {
            let dialect = format!("dialect: {}\n{yaml}", provider.name());
            options = options.api(&format!("{name}-{}", provider.name()), &dialect);
        }
        options
    })
    .await;
    world.set_keys(Provider::ALL.map(|provider| (format!("{name}-{}", provider.name()), provider.key()))).await;
    world
}

/// Asks, checks the refusal and its record, and that the provider heard nothing.
async fn refused(world: &World, case: &str, provider: Provider, ask: &Ask, refused: Refused) -> Answer {
    let before = world.upstream_count();
    let answer = world.ask(ask).await;
    refused.check(case, provider, &answer);
    let record = world.check_record(case, &answer, "refused", Some(refused.code)).await;
    assert_eq!(world.upstream_count(), before, "{case}: the provider was asked");
    assert_eq!(record["dialect"], provider.name(), "{case}: {record}");
    assert!(record["token_id"].is_string() && record["project_id"].is_string(), "{case}: {record}");
    assert_eq!((&record["type"], &record["schema"], &record["count"]), (&json!("exchange"), &json!(1), &json!(1)));
    answer
}

#[tokio::test]
async fn a_request_whose_framing_is_ambiguous_gets_400_and_the_connection_ends() {
    let world = World::new().await;
    let token = &world.token.secret;
    let heads = [
        (
            "two Hosts",
            format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\nauthorization: Bearer {token}\r\n\r\n"),
        ),
        ("no Host", format!("GET /v1/models HTTP/1.1\r\nauthorization: Bearer {token}\r\n\r\n")),
        (
            "two lengths",
            format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\
                 content-length: 2\r\ncontent-length: 2\r\n\r\n{{}}"
            ),
        ),
        (
            "length and chunks",
            format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\
                 content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{{}}"
            ),
        ),
    ];
    for (case, head) in &heads {
        let mut raw = world.connect().await;
        raw.write(head.as_bytes()).await;
        let answer = raw.read_answer(false).await;
        Refused::INVALID.check(case, Provider::OpenAi, &answer);
        assert!(answer.says_close(), "{case}");
        assert_eq!(raw.read_to_end().await, (Vec::new(), Ended::Fin), "{case}");
        let record = world.check_record(case, &answer, "refused", Some("invalid_request")).await;
        assert_eq!((&record["token_id"], &record["api"]), (&Value::Null, &Value::Null), "{case}: {record}");
    }
    let counted = metric(&world.product.metrics().await, "llm_proxy_refusals_total", &[("code", "invalid_request")]);
    assert_eq!(counted, heads.len() as f64);
    assert_eq!(world.upstream_count(), 0);
}

#[tokio::test]
async fn a_path_that_two_readers_could_read_differently_gets_400_in_the_dialect_of_its_route() {
    let world = World::new().await;
    for provider in Provider::ALL {
        for odd in ["/v1//x", "/v1/../x", "/v1/%2e%2E/x", "/v1/..%2Fx", "/v1/a;b", "/v1/a%5Cb", "/v1/a%00b", "/v1/%C3"]
        {
            let ask = provider.ask(&world.token.secret).to(&format!("/{}{odd}", provider.name()));
            refused(&world, odd, provider, &ask, Refused::INVALID).await;
        }
    }
}

#[tokio::test]
async fn a_body_that_a_policy_cannot_judge_is_refused_in_every_dialect() {
    let world = world_with("strict", "param_whitelist:\n  temperature: [0, 0.5]\n  user: ['team-*']").await;
    let token = &world.token.secret;
    for provider in Provider::ALL {
        let api = format!("strict-{}", provider.name());
        let ask = ask_under(provider, &api, token);
        for (case, body) in [
            ("no JSON", b"{\"temperature\":".to_vec()),
            ("trailing data", b"{} {}".to_vec()),
            ("a policy field twice", br#"{"temperature":0,"temperature":2}"#.to_vec()),
            ("a policy field twice, once escaped", br#"{"temperature":0,"\u0074emperature":2}"#.to_vec()),
            ("bad UTF-8", b"{\"user\":\"\xff\"}".to_vec()),
        ] {
            refused(&world, case, provider, &ask.clone().body(body.clone()), Refused::INVALID).await;
            refused(&world, case, provider, &ask.clone().chunked([body]), Refused::INVALID).await;
        }
        for (case, body) in [
            ("a number", r#"{"temperature":1}"#),
            ("a text", r#"{"user":"me"}"#),
            ("a list", r#"{"user":["team-a","b"]}"#),
        ] {
            refused(&world, case, provider, &ask.clone().body(body), Refused::PARAM).await;
        }
        for (case, ask) in [
            ("another type", ask.clone().without("content-type").with("content-type", "text/plain")),
            ("no type", ask.clone().without("content-type")),
            ("encoded", ask.clone().with("content-encoding", "gzip")),
        ] {
            refused(&world, case, provider, &ask, Refused::UNSUPPORTED).await;
        }
        let body = provider.body().replacen('{', r#"{"temperature":0.5,"user":"team-a","n":1,"n":1,"#, 1);
        let answer = world.ask(&ask.body(body.clone())).await;
        assert_eq!(answer.status, 200, "{provider:?}: {}", answer.text());
        assert_eq!(world.last_upstream().body.as_deref(), Some(body.as_bytes()), "the bytes judged are the bytes sent");
    }
}

#[tokio::test]
async fn missing_malformed_and_unknown_tokens_get_one_and_the_same_answer() {
    let world = World::new().await;
    // A token whose row is gone before the proxy ever saw it: well-formed, and unknown.
    let gone = world.token_with(json!({})).await;
    world.product.sql(&format!("DELETE FROM tokens WHERE id = '{}'", gone.id)).await;
    let mut mistyped = world.token.secret.clone();
    let last = mistyped.pop().unwrap();
    mistyped.push(if last == 'a' { 'b' } else { 'a' });
    let mut asked = 0.0;
    for provider in Provider::ALL {
        let (field, _) = provider.credential("");
        let mut bodies = Vec::new();
        for (case, ask) in [
            ("missing", provider.ask("x").without(field)),
            ("malformed", provider.ask("x")),
            ("empty", provider.ask("")),
            ("a provider's key", provider.ask(provider.key())),
            ("mistyped", provider.ask(&mistyped)),
            ("unknown", provider.ask(&gone.secret)),
        ] {
            let answer = world.ask(&ask).await;
            Refused::NO_TOKEN.check(case, provider, &answer);
            bodies.push(answer.text().replace(&answer.id(), "ID"));
            asked += 1.0;
        }
        assert!(bodies.iter().all(|body| *body == bodies[0]), "{provider:?}: {bodies:#?}");
    }
    let counted = metric(&world.product.metrics().await, "llm_proxy_refusals_total", &[("code", "invalid_api_key")]);
    assert_eq!(counted, asked);
    assert_eq!(world.upstream_count(), 0);
    // Sampled: never more than ten a second, each with the number it stands for; nobody's tokens.
    let events = world.product.wait_events("a sampled record", |events| (!events.is_empty()).then(|| events.to_vec()));
    for event in events.await {
        assert_eq!((event["reason"].as_str(), &event["token_id"]), (Some("invalid_api_key"), &Value::Null), "{event}");
        assert!(event["count"].as_u64() >= Some(1), "{event}");
    }
}

#[tokio::test]
async fn the_holder_of_a_real_token_is_told_why_it_is_refused() {
    let world = World::new().await;
    let expired = world.token_with(json!({"duration_minutes": 1})).await;
    world.product.sql(&format!("UPDATE tokens SET expires_at_us = 1 WHERE id = '{}'", expired.id)).await;
    // A change tells the proxy to read the row again.
    world.patch_token(&expired.id, &json!({"requests_per_minute": 1000})).await;
    let revoked = world.token_with(json!({})).await;
    world.revoke(&revoked.id).await;
    let paused = world.project_with(&json!({"name": "paused", "is_active": false})).await;
    let paused = world.token_of(&paused, json!({})).await;
    let keyless = world.project_with(&json!({"name": "keyless"})).await;
    let keyless = world.token_of(&keyless, json!({})).await;
    for provider in Provider::ALL {
        for (case, token, expected) in [
            ("expired", &expired, Refused::EXPIRED),
            ("revoked", &revoked, Refused::REVOKED),
            ("inactive project", &paused, Refused::PROJECT),
            ("no provider key", &keyless, Refused::KEY),
        ] {
            refused(&world, case, provider, &provider.ask(&token.secret), expected).await;
        }
    }
}

#[tokio::test]
async fn what_an_api_does_not_serve_is_refused_in_its_dialect() {
    let world = World::with(|mut options| {
        for provider in Provider::ALL {
            let name = provider.name();
            let path = under(provider.path(), provider, "x");
            let path = path.strip_prefix("/x").unwrap().split('?').next().unwrap();
            for (api, yaml) in [
                ("listed", format!("allowed_endpoints: [/v1/nothing-else, '{path}']")),
                ("closed", "allowed_endpoints: [/v1/nothing-else]".to_owned()),
                ("posting", "allowed_methods: [POST, PUT]".to_owned()),
                ("strict", "required_headers: [X-Team]".to_owned()),
                ("web", "allowed_origins: ['https://app.example.com']".to_owned()),
            ] {
                options = options.api(&format!("{api}-{name}"), &format!("dialect: {name}\n{yaml}"));
            }
        }
        options
    })
    .await;
    let apis = ["listed", "closed", "posting", "strict", "web"];
    let keys = apis
        .iter()
        .flat_map(|api| Provider::ALL.map(|provider| (format!("{api}-{}", provider.name()), provider.key())));
    world.set_keys(keys).await;
    let token = &world.token.secret;
    for provider in Provider::ALL {
        let of = |api: &str| ask_under(provider, &format!("{api}-{}", provider.name()), token);
        refused(&world, "another endpoint", provider, &of("closed"), Refused::ENDPOINT).await;
        let outside = provider.ask(token).to(&format!("/{}/nowhere/x", provider.name()));
        refused(&world, "outside the roots", provider, &outside, Refused::ROUTE).await;
        let getting =
            provider.at("GET", &under(provider.path(), provider, &format!("posting-{}", provider.name())), token);
        let answer = refused(&world, "another method", provider, &getting, Refused::METHOD).await;
        assert_eq!(answer.header("allow"), Some("POST, PUT"));
        let foreign = of("web").with("origin", "https://evil.example.com");
        refused(&world, "another origin", provider, &foreign, Refused::ORIGIN).await;
        let answer = world.ask(&of("strict")).await;
        assert_eq!(answer.status, 403, "a missing header, {provider:?}: {}", answer.text());
        assert!(answer.text().to_ascii_lowercase().contains("x-team"), "{}", answer.text());

        for (case, ask) in [
            ("listed", of("listed")),
            ("its method", of("posting")),
            ("its header", of("strict").with("x-team", "a")),
            ("its origin", of("web").with("origin", "https://app.example.com")),
            ("no origin", of("web")),
        ] {
            let answer = world.ask(&ask).await;
            assert_eq!(answer.status, 200, "{case}, {provider:?}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn a_body_that_its_length_gives_away_as_too_large_gets_413_before_the_provider_is_asked() {
    let world = world_with("small", "max_request_bytes: 1000").await;
    for provider in Provider::ALL {
        let ask = ask_under(provider, &format!("small-{}", provider.name()), &world.token.secret);
        let fields = provider.body().len();
        let fitting = provider.body().to_owned() + &" ".repeat(1000 - fields);
        let answer = world.ask(&ask.clone().body(fitting.clone())).await;
        assert_eq!(answer.status, 200, "{provider:?}, 1000 bytes: {}", answer.text());
        refused(&world, "1001 bytes", provider, &ask.body(fitting + " "), Refused::TOO_LARGE).await;
    }
}

#[tokio::test]
async fn a_rate_tells_its_limit_and_when_it_resets_and_a_spent_quota_that_it_does_not() {
    let world = World::new().await;
    for provider in Provider::ALL {
        let token = world.token_with(json!({"requests_per_minute": 2})).await;
        for _ in 0..2 {
            let answer = world.ask(&provider.ask(&token.secret)).await;
            assert_eq!(answer.status, 200, "{provider:?}: {}", answer.text());
        }
        let answer = refused(&world, "rate", provider, &provider.ask(&token.secret), Refused::RATE).await;
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("2"));
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some("0"));
        assert!(answer.header("x-ratelimit-reset-requests").is_some_and(|reset| !reset.is_empty()));
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
        assert!(answer.text().contains("requests_per_minute"), "names the limit: {}", answer.text());

        let token = world.token_with(json!({"max_requests": 1})).await;
        assert_eq!(world.ask(&provider.ask(&token.secret)).await.status, 200);
        let answer = refused(&world, "quota", provider, &provider.ask(&token.secret), Refused::QUOTA).await;
        assert!(answer.text().contains("max_requests"), "names the limit: {}", answer.text());
    }
}

#[tokio::test]
async fn a_token_with_a_model_list_gets_no_other_model_in_any_dialect() {
    let world = World::new().await;
    let token = world.token_with(json!({"allowed_models": ["other-*"]})).await;
    for provider in Provider::ALL {
        let answer = refused(&world, "model", provider, &provider.ask(&token.secret), Refused::MODEL).await;
        assert!(answer.text().contains(provider.model()), "names the model: {}", answer.text());
    }
}

#[tokio::test]
async fn a_provider_that_is_not_there_or_speaks_no_http_is_a_502() {
    let world = World::with(|mut options| {
        for provider in Provider::ALL {
            let yaml = format!("dialect: {}\nbase_url: http://127.0.0.1:9", provider.name());
            options = options.api(&format!("dead-{}", provider.name()), &yaml);
        }
        options
    })
    .await;
    world.set_keys(Provider::ALL.map(|provider| (format!("dead-{}", provider.name()), provider.key()))).await;
    for provider in Provider::ALL {
        let answer = world.ask(&ask_under(provider, &format!("dead-{}", provider.name()), &world.token.secret)).await;
        Refused::UNREACHABLE.check("refused", provider, &answer);
        world.check_record("refused", &answer, "upstream_unreachable", Some("upstream_unreachable")).await;
        for fault in ["garbage", "garbage:cl-te", "garbage:te-gzip", "garbage:101"] {
            let answer = world.ask(&provider.ask(&world.token.secret).with("x-mock-fault", fault)).await;
            Refused::UPSTREAM_INVALID.check(fault, provider, &answer);
            world.check_record(fault, &answer, "upstream_unreachable", Some("upstream_invalid")).await;
        }
    }
}

#[tokio::test]
async fn a_body_that_there_is_no_memory_for_gets_503_and_comes_back_later() {
    let world = World::with(|mut options| {
        for provider in Provider::ALL {
            let yaml = format!("dialect: {}\nparam_whitelist: {{user: ['*']}}", provider.name());
            options = options.api(&format!("held-{}", provider.name()), &yaml);
        }
        options.set("MAX_HELD_BYTES_TOTAL", "4096")
    })
    .await;
    world.set_keys(Provider::ALL.map(|provider| (format!("held-{}", provider.name()), provider.key()))).await;
    let token = &world.token.secret;
    for provider in Provider::ALL {
        let padded = |bytes: usize| provider.body().to_owned() + &" ".repeat(bytes - provider.body().len());
        let ask = ask_under(provider, &format!("held-{}", provider.name()), token);
        let before = world.upstream_count();
        // A body that is on its way holds its share of the budget.
        let bytes = ask.clone().body(padded(4000)).bytes();
        let (first, last) = bytes.split_at(bytes.len() - 1);
        let mut holder = Raw::connect(world.product.data_addr()).await;
        holder.write(first).await;
        eventually(Duration::from_secs(5), "the budget to be held", async || {
            (metric(&world.product.metrics().await, "llm_proxy_held_bytes", &[]) > 0.0).then_some(())
        })
        .await;
        for (case, ask) in [
            ("no memory, a length", ask.clone().body(padded(1024))),
            ("no memory, chunks", ask.clone().chunked([padded(1024)])),
        ] {
            let answer = world.ask(&ask).await;
            Refused::OVERLOADED.check(case, provider, &answer);
            world.check_record(case, &answer, "shed", Some("overloaded")).await;
        }
        assert_eq!(world.upstream_count(), before, "{provider:?}: the provider was asked");
        let unread = world.ask(&provider.ask(token).body(padded(1024))).await;
        assert_eq!(unread.status, 200, "{provider:?}: a body that nobody must read needs none: {}", unread.text());
        holder.write(last).await;
        assert_eq!(holder.read_answer(false).await.status, 200);
        assert_eq!(world.ask(&ask.body(padded(1024))).await.status, 200, "{provider:?}: the budget is given back");
    }
}

/// A token for each provider, with these fields.
async fn tokens(world: &World, fields: Value) -> Vec<(Provider, Token)> {
    let mut tokens = Vec::new();
    for provider in Provider::ALL {
        tokens.push((provider, world.token_with(fields.clone()).await));
    }
    tokens
}

#[tokio::test]
async fn a_quota_that_the_store_cannot_lease_from_now_gets_503_in_every_dialect() {
    let world = World::new().await;
    let tokens = tokens(&world, json!({"max_requests": 1000})).await;
    // Another program holds the database's write lock: no lease can be taken.
    let script = "import sqlite3, sys, time\n\
        db = sqlite3.connect(sys.argv[1], timeout=10, isolation_level=None)\n\
        db.execute('BEGIN IMMEDIATE')\n\
        print('locked', flush=True)\n\
        sys.stdin.read()\n\
        db.execute('ROLLBACK')\n";
    let mut locker = tokio::process::Command::new("python3")
        .args(["-c", script])
        .arg(world.product.data_dir().join("llm-proxy.db"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut told = [0; 6];
    tokio::io::AsyncReadExt::read_exact(locker.stdout.as_mut().unwrap(), &mut told).await.unwrap();
    // At once: each waits for the store's patience.
    let asks: Vec<Ask> = tokens.iter().map(|(provider, token)| provider.ask(&token.secret)).collect();
    let answers = join_all(asks.iter().map(|ask| world.ask(ask))).await;
    for ((provider, token), answer) in tokens.iter().zip(&answers) {
        Refused::STORE.check("locked", *provider, answer);
        let record = world.check_record("locked", answer, "refused", Some("store_unavailable")).await;
        assert_eq!(record["token_id"], token.id.as_str(), "{provider:?}: {record}");
    }
    assert_eq!(world.upstream_count(), 0);
    drop(locker.stdin.take());
    locker.wait().await.unwrap();
    for (provider, token) in &tokens {
        let answer = world.ask(&provider.ask(&token.secret)).await;
        assert_eq!(answer.status, 200, "{provider:?}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_token_that_the_store_cannot_look_up_now_gets_503_not_401_and_those_in_memory_are_served() {
    let world = World::new().await;
    let tokens = tokens(&world, json!({})).await;
    let known = &world.token;
    assert_eq!(world.ask(&Provider::OpenAi.ask(&known.secret)).await.status, 200);
    world.product.sql("ALTER TABLE tokens RENAME TO tokens_elsewhere").await;
    for (provider, token) in &tokens {
        let answer = world.ask(&provider.ask(&token.secret)).await;
        Refused::STORE.check("not found", *provider, &answer);
        let record = world.check_record("not found", &answer, "refused", Some("store_unavailable")).await;
        assert_eq!(record["token_id"], Value::Null, "{provider:?}: nobody could tell whose it is: {record}");
        let answer = world.ask(&provider.ask(&known.secret)).await;
        assert_eq!(answer.status, 200, "{provider:?}: {}", answer.text());
    }
    assert_eq!(world.upstream_count(), 5, "of the token in memory");
    world.product.sql("ALTER TABLE tokens_elsewhere RENAME TO tokens").await;
    for (provider, token) in &tokens {
        let answer = world.ask(&provider.ask(&token.secret)).await;
        assert_eq!(answer.status, 200, "{provider:?}: {}", answer.text());
    }
    // What could not be counted meanwhile is made good.
    eventually(Duration::from_secs(5), "the requests to be counted", async || {
        (world.token_state(&known.id).await["request_count"] == 5).then_some(())
    })
    .await;
}

#[tokio::test]
async fn each_clock_that_runs_out_before_the_answer_is_a_504_and_the_record_names_it() {
    let full = FullListener::start().await;
    let world = World::with(|mut options| {
        for provider in Provider::ALL {
            let name = provider.name();
            options = options
                .api(
                    &format!("full-{name}"),
                    &format!("dialect: {name}\nbase_url: http://{}\ntimeouts: {{connect: 300ms}}", full.addr()),
                )
                .api(&format!("slow-{name}"), &format!("dialect: {name}\ntimeouts: {{first_byte: 300ms}}"))
                .api(&format!("total-{name}"), &format!("dialect: {name}\ntimeouts: {{total: 300ms}}"));
        }
        options
    })
    .await;
    let keys = ["full", "slow", "total"]
        .iter()
        .flat_map(|api| Provider::ALL.map(|provider| (format!("{api}-{}", provider.name()), provider.key())));
    world.set_keys(keys).await;
    for provider in Provider::ALL {
        for (api, clock) in [("full", "connect"), ("slow", "first_byte"), ("total", "total")] {
            let ask = ask_under(provider, &format!("{api}-{}", provider.name()), &world.token.secret);
            let answer = world.ask(&ask.with("x-mock-fault", "hang-head")).await;
            Refused::TIMEOUT.check(clock, provider, &answer);
            assert!(answer.text().contains(clock), "{clock}: {}", answer.text());
            world.check_record(clock, &answer, "timeout", Some(clock)).await;
        }
    }
}

/// The streams of each provider that these tests break.
const STREAMS: [(Provider, &str); 4] = [
    (Provider::OpenAi, "openai-chat-stream-usage"),
    (Provider::Anthropic, "anthropic-messages-stream-basic"),
    (Provider::Gemini, "gemini-stream-basic"),
    (Provider::Azure, "azure-chat-stream"),
];

/// The JSON of an error event in the provider's own form.
fn event_data(provider: Provider, event: &str) -> Value {
    let data = match provider {
        Provider::Anthropic => event.strip_prefix("event: error\ndata: ").and_then(|rest| rest.strip_suffix("\n\n")),
        Provider::Gemini => event.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\r\n\r\n")),
        Provider::OpenAi | Provider::Azure => event.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\n\n")),
    };
    let data = data.unwrap_or_else(|| panic!("{provider:?}: no error event: {event:?}"));
    assert!(!data.contains(['\n', '\r']), "{provider:?}: more than one event: {event:?}");
    serde_json::from_str(data).unwrap()
}

#[tokio::test]
async fn a_stream_that_fails_between_events_ends_with_an_error_event_and_abnormally() {
    let world = World::with(|mut options| {
        for provider in Provider::ALL {
            options = options.api(provider.name(), "timeouts: {idle: 300ms}");
        }
        options
    })
    .await;
    for (provider, name) in STREAMS {
        let recording = fixture(name);
        let end = recording.event_ends()[0];
        for (fault, expected, outcome, reason) in [
            ("cut", Refused::UPSTREAM_INVALID, "upstream_cut", "upstream_invalid"),
            ("reset", Refused::UPSTREAM_INVALID, "upstream_cut", "upstream_invalid"),
            ("hang-body", Refused::TIMEOUT, "timeout", "idle"),
        ] {
            let case = format!("{fault}, {provider:?}");
            let ask = recording.ask(&world.token.secret).to(provider.stream_path());
            let answer = world.ask(&ask.with("x-mock-fault", &format!("{fault}:{end}"))).await;
            assert_eq!(answer.status, 200, "{case}: {}", answer.text());
            assert!(!answer.complete, "{case}: a clean end");
            let (relayed, event) = answer.body.split_at(end.min(answer.body.len()));
            assert_eq!(relayed, &recording.body[..end], "{case}");
            let data = event_data(provider, &String::from_utf8_lossy(event));
            expected.check_body(&case, provider, &data, &answer.id());
            world.check_record(&case, &answer, outcome, Some(reason)).await;
        }
    }
    // The Responses API names its events, and repeats the name in the data.
    let recording = fixture("openai-responses-stream-basic");
    let end = recording.event_ends()[0];
    let ask = recording.ask(&world.token.secret).with("x-mock-fault", &format!("cut:{end}"));
    let answer = world.ask(&ask).await;
    let event = String::from_utf8_lossy(&answer.body[end..]).into_owned();
    let data = event.strip_prefix("event: error\ndata: ").unwrap_or_else(|| panic!("{event:?}"));
    let data: Value = serde_json::from_str(data.trim_end()).unwrap();
    assert_eq!((&data["type"], &data["code"]), (&json!("error"), &json!("upstream_invalid")), "{data}");
    assert!(!answer.complete);
}

#[tokio::test]
async fn a_stream_that_fails_within_an_event_only_ends_abnormally() {
    let world = World::new().await;
    for (provider, name) in STREAMS {
        let recording = fixture(name);
        for (fault, encoding) in [("cut", None), ("reset", None), ("cut", Some("gzip"))] {
            let within = if encoding.is_some() { 60 } else { recording.event_ends()[0] + 5 };
            let case = format!("{fault} {encoding:?}, {provider:?}");
            let mut ask = recording.ask(&world.token.secret).with("x-mock-fault", &format!("{fault}:{within}"));
            if let Some(encoding) = encoding {
                ask = ask.with("x-mock-encoding", encoding);
            }
            let answer = world.ask(&ask).await;
            assert_eq!(answer.status, 200, "{case}: {}", answer.text());
            assert!(!answer.complete, "{case}: a clean end");
            match encoding {
                // Text behind half a compressed stream would be garbage.
                Some(_) => assert!(answer.body.len() <= within, "{case}: {} bytes", answer.body.len()),
                None => assert_eq!(answer.body, recording.body[..within], "{case}"),
            }
            world.check_record(&case, &answer, "upstream_cut", Some("upstream_invalid")).await;
        }
    }
}

#[tokio::test]
async fn a_json_answer_that_fails_only_ends_abnormally() {
    let world = World::new().await;
    for (name, framing) in [
        ("openai-chat-basic", "length"),
        ("openai-chat-basic", "chunked"),
        ("anthropic-messages-basic", "length"),
        ("anthropic-messages-basic", "chunked"),
        ("gemini-generate-thinking", "length"),
        ("gemini-generate-thinking", "chunked"),
    ] {
        let recording = fixture(name);
        for fault in ["cut", "reset"] {
            let case = format!("{name} {framing} {fault}");
            let ask = recording.ask(&world.token.secret).with("x-mock-framing", framing);
            let mut raw = Raw::connect(world.product.data_addr()).await;
            let answer = raw.exchange(&ask.with("x-mock-fault", &format!("{fault}:40"))).await;
            assert_eq!(answer.status, 200, "{case}: {}", answer.text());
            assert!(!answer.complete, "{case}: a clean end");
            assert_eq!(answer.body, recording.body[..40], "{case}");
            world.check_record(&case, &answer, "upstream_cut", Some("upstream_invalid")).await;
        }
    }
}
