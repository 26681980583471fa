//! What passes through is the other side's, byte for byte; what must not pass, does not.

use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use flate2::read::{MultiGzDecoder, ZlibDecoder};
use llm_proxy_tests::{Answer, Ask, Fixture, Provider, Raw, Refused, World, eventually, fixture, fixtures};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Recordings asked for at once.
const AT_ONCE: usize = 8;

/// A world that also serves the two providers whose dialects the proxy does not know.
async fn world() -> World {
    let world = World::with(|options| {
        options
            .api("cohere", "dialect: openai\nallowed_endpoints: ['/v2/**']")
            .api("bedrock", "dialect: openai\nallowed_endpoints: ['/model/**']")
    })
    .await;
    world.set_keys(["cohere", "bedrock"].map(|api| (api.to_owned(), Provider::OpenAi.key()))).await;
    world
}

/// Asks for every recording, steered in this way, and returns them with their answers.
async fn relay_all(world: &World, how: &[(&str, &str)]) -> Vec<(Fixture, Answer)> {
    let addr = world.product.data_addr();
    let mut waiting: Vec<_> = fixtures()
        .into_iter()
        .map(|fixture| {
            let ask = how.iter().fold(fixture.ask(&world.token.secret), |ask, (name, value)| ask.with(name, value));
            (fixture, ask)
        })
        .collect();
    let mut running = JoinSet::new();
    let mut relayed = Vec::new();
    loop {
        while running.len() < AT_ONCE
            && let Some((fixture, ask)) = waiting.pop()
        {
            running.spawn(async move { (fixture, Raw::ask(addr, &ask).await) });
        }
        match running.join_next().await {
            Some(done) => relayed.push(done.unwrap()),
            None => return relayed,
        }
    }
}

/// The body as the provider meant it.
fn decoded(answer: &Answer) -> Vec<u8> {
    let mut plain = Vec::new();
    match answer.header("content-encoding") {
        None => plain.clone_from(&answer.body),
        Some("gzip") => _ = MultiGzDecoder::new(&answer.body[..]).read_to_end(&mut plain).unwrap(),
        Some("deflate") => _ = ZlibDecoder::new(&answer.body[..]).read_to_end(&mut plain).unwrap(),
        Some("br") => _ = brotli::Decompressor::new(&answer.body[..], 4096).read_to_end(&mut plain).unwrap(),
        Some("zstd") => plain = zstd::decode_all(&answer.body[..]).unwrap(),
        Some(other) => panic!("{other}"),
    }
    plain
}

/// Relays every recording in this way, and checks bytes and records.
async fn every_recording_passes(world: &World, how: &[(&str, &str)]) {
    let relayed = relay_all(world, how).await;
    assert!(relayed.len() >= 50);
    for (fixture, answer) in &relayed {
        let case = format!("{} {how:?}", fixture.name);
        assert_eq!(Some(u64::from(answer.status)), fixture.listed["status"].as_u64(), "{case}: {}", answer.text());
        assert!(answer.complete, "{case}: {:?}", answer.ended);
        assert!(decoded(answer) == fixture.body, "{case}: other bytes:\n{}", answer.text());
    }
    let records = eventually(Duration::from_secs(5), "every record is there", async || {
        let records: HashMap<String, Value> =
            world.product.events().into_iter().map(|event| (event["id"].as_str().unwrap().to_owned(), event)).collect();
        relayed.iter().all(|(_, answer)| records.contains_key(&answer.id())).then_some(records)
    });
    let records = records.await;
    for (fixture, answer) in &relayed {
        check_record(fixture, answer, &records[&answer.id()], &format!("{} {how:?}", fixture.name));
    }
}

fn check_record(fixture: &Fixture, answer: &Answer, record: &Value, case: &str) {
    assert_eq!(record["outcome"], "finished", "{case}: {record}");
    assert_eq!(record["response_bytes"], answer.body.len(), "{case}: {record}");
    assert_eq!(record["stream"], fixture.is_event_stream(), "{case}: {record}");
    if fixture.is_event_stream() {
        assert_eq!(record["chunks"], fixture.listed["events"], "{case}: {record}");
    }
    let usage = &record["usage"];
    if fixture.is_foreign() || answer.status >= 400 {
        assert_eq!(usage["source"], "unknown", "{case}: {usage}");
    }
    if !fixture.states_usage() {
        assert_ne!(usage["source"], "reported", "{case}: {usage}");
        assert_eq!(usage["provider"], Value::Null, "{case}: {usage}");
        return;
    }
    assert_eq!(usage["source"], "reported", "{case}: {usage}");
    assert_eq!(usage["sources"], Value::Null, "{case}: {usage}");
    for (number, told) in [
        ("input_tokens", "prompt_tokens"),
        ("output_tokens", "completion_tokens"),
        ("cache_read_input_tokens", "cached_tokens"),
        ("cache_creation_input_tokens", "cache_creation_tokens"),
        ("reasoning_output_tokens", "reasoning_tokens"),
        ("audio_input_tokens", "audio_prompt_tokens"),
        ("audio_output_tokens", "audio_completion_tokens"),
    ] {
        assert_eq!(usage[number].as_u64(), fixture.expected(told), "{number} of {case}: {usage}");
    }
    assert_eq!(usage["provider"], fixture.listed["usage_as_recorded"], "{case}");
    assert_eq!(record["model"], fixture.listed["model"], "{case}: {record}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recording_passes_whole_and_in_every_framing() {
    let world = world().await;
    for framing in ["length", "chunked", "close"] {
        every_recording_passes(&world, &[("x-mock-framing", framing)]).await;
    }
    every_recording_passes(&world, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recording_passes_at_random_splits() {
    let world = world().await;
    for (seed, framing) in [("random:1", "chunked"), ("random:2", "length")] {
        every_recording_passes(&world, &[("x-mock-split", seed), ("x-mock-framing", framing)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recording_passes_byte_by_byte() {
    let world = world().await;
    every_recording_passes(&world, &[("x-mock-split", "1"), ("x-mock-framing", "chunked")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recording_passes_encoded_and_is_metered_all_the_same() {
    let world = world().await;
    for encoding in ["gzip", "gzip-members", "deflate", "br", "zstd", "zstd-frames"] {
        every_recording_passes(&world, &[("x-mock-encoding", encoding)]).await;
        every_recording_passes(&world, &[("x-mock-encoding", encoding), ("x-mock-split", "random:3")]).await;
    }
}

#[tokio::test]
async fn a_request_body_arrives_as_it_was_sent() {
    let world = World::new().await;
    let bodies: [&[u8]; 9] = [
        b"",
        b"{}",
        b" \r\n\t{ \"model\" :\t\"gpt-4o-mini\" , \"messages\":[ ]\n}\n\n",
        br#"{"model":"a","model":"b","n":1,"n":2}"#,
        br#"{"mod\u0065l":"gpt\u002d4o","x":1.0e+2,"y":-0.0,"z":1e400,"w":12345678901234567890123}"#,
        "{\"a\":\"\u{1F600} \u{301}\",\"b\":\"\\ud83d\\ude00\"}".as_bytes(),
        b"\xef\xbb\xbf{}",
        b"{ not json at all \xff\xfe\x00",
        b"{}{}",
    ];
    for provider in Provider::ALL {
        for body in bodies {
            let case = format!("{provider:?} {:?}", String::from_utf8_lossy(body));
            let ask = provider.ask(&world.token.secret).with("x-mock-recording", "openai-chat-basic");
            for (how, ask) in [
                ("with its length", ask.clone().body(body)),
                ("in chunks", ask.clone().chunked(body.chunks(7))),
                ("in small chunks", ask.clone().chunked(body.chunks(1))),
            ] {
                let answer = world.ask(&ask).await;
                assert_eq!(answer.status, 200, "{case} {how}: {}", answer.text());
                let seen = world.last_upstream();
                assert_eq!(seen.body.as_deref(), Some(body), "{case} {how}");
                let framing = if how == "with its length" { "content-length" } else { "transfer-encoding" };
                assert!(seen.header(framing).is_some(), "{case} {how}: the framing changed");
            }
        }
    }
}

/// The request line's target as the provider saw it.
fn target(world: &World) -> String {
    let head = String::from_utf8(world.last_upstream().head.to_vec()).unwrap();
    head.split(' ').nth(1).unwrap().to_owned()
}

/// The fields as the provider saw them, names in lower case.
fn fields(world: &World) -> Vec<(String, String)> {
    let head = String::from_utf8(world.last_upstream().head.to_vec()).unwrap();
    let lines = head.trim_end().split("\r\n").skip(1);
    lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect()
}

#[tokio::test]
async fn a_path_and_a_query_go_out_as_they_came() {
    let world = World::new().await;
    for (sent, arrives) in [
        ("/openai/v1/models/ft%3Agpt-4o%3aorg", "/v1/models/ft%3Agpt-4o%3aorg"),
        ("/openai/v1/models/org%2Fmodel", "/v1/models/org%2Fmodel"),
        ("/openai/v1/models/caf%C3%a9", "/v1/models/caf%C3%a9"),
        ("/openai/v1/models/~a.b_c-d!$&'()*+,=:@", "/v1/models/~a.b_c-d!$&'()*+,=:@"),
        ("/openai/v1/models/x?a=%20+b&&c&d=%e2%82%ac&=&a=2", "/v1/models/x?a=%20+b&&c&d=%e2%82%ac&=&a=2"),
        ("/openai/v1/models?", "/v1/models?"),
        ("/openai/v1/models/", "/v1/models/"),
        ("/openai/v1/models?next=/a/../b//c?d", "/v1/models?next=/a/../b//c?d"),
        ("/v1/models/bare%3Ahost?x=1", "/v1/models/bare%3Ahost?x=1"),
        ("http://llm-proxy.test/openai/v1/models?a=b", "/v1/models?a=b"),
    ] {
        let ask = Ask::get(sent, &world.token.secret).with("x-mock-recording", "openai-chat-basic");
        let answer = world.ask(&ask).await;
        assert_eq!(answer.status, 200, "{sent}: {}", answer.text());
        assert_eq!(target(&world), arrives, "{sent}");
    }
}

#[tokio::test]
async fn fields_that_are_the_callers_arrive_in_their_order_and_the_others_do_not() {
    let world = World::new().await;
    let kept = [
        ("User-Agent", "OpenAI/Python 1.2.3"),
        ("Accept", "*/*"),
        ("x-stainless-lang", "python"),
        ("X-Odd", "a,  b;c=\"d\"\te"),
        ("openai-organization", "org-1"),
        ("accept-encoding", "gzip, br"),
        ("cookie", "a=b"),
        ("x-request-id", "mine"),
        ("via", "1.1 somewhere"),
        ("x-latin", "caf\u{e9}"),
    ];
    let dropped = [
        ("Forwarded", "for=1.2.3.4"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Anything", "x"),
        ("X-Real-IP", "1.2.3.4"),
        ("X-HTTP-Method-Override", "DELETE"),
        ("Connection", "keep-alive, X-Nominated"),
        ("X-Nominated", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic eA=="),
        ("TE", "trailers"),
        ("Trailer", "x-sum"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
    ];
    let mut ask = Provider::OpenAi.ask(&world.token.secret);
    for (kept, dropped) in kept.iter().zip(&dropped) {
        ask = ask.with(kept.0, kept.1).with(dropped.0, dropped.1);
    }
    for (name, value) in dropped.iter().skip(kept.len()) {
        ask = ask.with(name, value);
    }
    let answer = world.ask(&ask).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = fields(&world);
    for (name, _) in dropped {
        assert!(!seen.iter().any(|(found, _)| found.eq_ignore_ascii_case(name)), "{name} arrived: {seen:?}");
    }
    let arrived: Vec<_> = seen
        .iter()
        .filter(|(name, _)| kept.iter().any(|(kept, _)| kept.eq_ignore_ascii_case(name)))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let sent: Vec<_> = kept.iter().map(|(name, value)| (name.to_ascii_lowercase(), *value)).collect();
    let sent: Vec<_> = sent.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert_eq!(arrived, sent);
    let host = seen.iter().filter(|(name, _)| name == "host").collect::<Vec<_>>();
    assert_eq!(host, [&("host".to_owned(), world.mock.addr().to_string())]);

    // What the connection names cannot take framing or credentials away.
    let tricky = Provider::OpenAi.ask(&world.token.secret).with("connection", "content-length, authorization, host");
    assert_eq!(world.ask(&tricky).await.status, 200);
}

/// A provider that answers every request on a connection with these bytes.
async fn canned(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0, "half a request");
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    addr
}

#[tokio::test]
async fn fields_of_an_answer_that_are_for_one_connection_stay_on_it() {
    let odd = canned(
        "HTTP/1.1 200 OK\r\nX-Kept: 1\r\nConnection: X-Nominated, keep-alive\r\nX-Nominated: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nTrailer: x-sum\r\nUpgrade: h2c\r\n\
         X-LLM-Proxy-Request-Id: forged\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\n\r\n{}",
    )
    .await;
    let world = World::with(|options| options.api("odd", &format!("dialect: openai\nbase_url: http://{odd}"))).await;
    world.set_keys([("odd".to_owned(), "k-0123456789")]).await;
    let answer = world.ask(&Ask::get("/odd/v1/models", &world.token.secret)).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "{}"), "{}", answer.text());
    assert_eq!(answer.header("x-kept"), Some("1"));
    for name in ["x-nominated", "keep-alive", "proxy-authenticate", "trailer", "upgrade"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    assert_eq!(answer.count("set-cookie"), 2);
    assert_eq!(answer.count("x-llm-proxy-request-id"), 1);
    assert_ne!(answer.id(), "forged");
}

#[tokio::test]
async fn the_head_of_an_answer_is_the_providers_and_our_id() {
    let world = World::new().await;
    let ours = |name: &str| {
        ["date", "connection", "content-length", "transfer-encoding", "x-llm-proxy-request-id"].contains(&name)
    };
    for name in ["openai-chat-basic", "anthropic-messages-stream-basic", "gemini-stream-basic", "azure-chat-stream"] {
        let fixture = fixture(name);
        let relayed = world.ask(&fixture.ask(&world.token.secret)).await;
        let path = fixture.path().strip_prefix(&format!("/{}", fixture.provider().name())).unwrap();
        let direct = Raw::ask(world.mock.addr(), &fixture.ask(fixture.provider().key()).to(path)).await;
        let of = |answer: &Answer| -> Vec<(String, String)> {
            let mut fields = answer.headers.clone();
            fields.retain(|(name, _)| !ours(name));
            fields.sort();
            fields
        };
        assert_eq!(of(&relayed), of(&direct), "{name}");
        assert_eq!(relayed.header("content-length"), direct.header("content-length"), "{name}");
        assert_eq!(relayed.body, direct.body, "{name}");
        let record = world.record(&relayed).await;
        let ids = ["x-request-id", "request-id", "apim-request-id"];
        let provider_id = record["provider_request_id"].as_str();
        assert!(ids.iter().any(|id| relayed.header(id) == provider_id), "{name}: {provider_id:?}");
    }
}

/// The forms in which any dialect's request may carry the token.
const FORMS: [&str; 4] = ["authorization", "x-api-key", "api-key", "x-goog-api-key"];

fn carrying(ask: Ask, form: &str, token: &str) -> Ask {
    let value = if form.eq_ignore_ascii_case("authorization") { format!("Bearer {token}") } else { token.to_owned() };
    ask.with(form, &value)
}

/// Checks that the provider got its key and nothing of the token, and the client nothing of the key.
fn swapped(world: &World, case: &str, provider: Provider, answer: &Answer) {
    assert_eq!(answer.status, 200, "{case}: {}", answer.text());
    let seen = world.last_upstream();
    let head = String::from_utf8_lossy(&seen.head).into_owned();
    assert_eq!(seen.key.as_deref(), Some(provider.key()), "{case}: {head}");
    let secret = world.token.secret.trim_start_matches("sk-lp-");
    assert!(!head.contains(secret), "{case}: the token arrived: {head}");
    assert_eq!(head.matches(provider.key()).count(), 1, "{case}: {head}");
    let answered = String::from_utf8_lossy(&answer.raw_head).into_owned() + &answer.text();
    assert!(!answered.contains(provider.key()), "{case}: the key came back: {answered}");
}

#[tokio::test]
async fn the_token_stops_at_the_proxy_and_the_key_never_leaves_it_in_every_form_and_dialect() {
    let world = World::new().await;
    let token = &world.token.secret;
    for provider in Provider::ALL {
        let (own, _) = provider.credential("");
        let bare = provider.ask("").without(own);
        for form in FORMS {
            let case = format!("{form}, {provider:?}");
            swapped(&world, &case, provider, &world.ask(&carrying(bare.clone(), form, token)).await);
            // In any letter case, and in several forms at once.
            let loud = carrying(bare.clone(), &form.to_ascii_uppercase(), token);
            swapped(&world, &case, provider, &world.ask(&loud).await);
            let doubled = FORMS.iter().fold(bare.clone(), |ask, form| carrying(ask, form, token));
            swapped(&world, &case, provider, &world.ask(&doubled).await);
        }
    }
    let gemini = Provider::Gemini;
    let bare = gemini.ask("").without("x-goog-api-key");
    let path = gemini.path();
    for (query, form, arrives) in [
        (format!("key={token}"), None, ""),
        (format!("a=1&key={token}&b=%20"), None, "?a=1&b=%20"),
        (format!("%6bey={}", token.replace('-', "%2D")), None, ""),
        (format!("a=1&key={token}&b=2"), Some("x-goog-api-key"), "?a=1&b=2"),
        (format!("key={token}"), Some("x-goog-api-key"), ""),
    ] {
        let mut ask = bare.clone().to(&format!("{path}?{query}"));
        if let Some(form) = form {
            ask = carrying(ask, form, token);
        }
        swapped(&world, &query, gemini, &world.ask(&ask).await);
        let seen = target(&world);
        assert_eq!(seen.split_once('?').map_or(String::new(), |(_, query)| format!("?{query}")), arrives, "{query}");
    }
}

#[tokio::test]
async fn a_credential_that_could_be_read_in_two_ways_is_none() {
    let world = World::new().await;
    let other = world.token_with(json!({})).await;
    let (token, other) = (&world.token.secret, &other.secret);
    for provider in Provider::ALL {
        let (own, _) = provider.credential("");
        let bare = provider.ask("").without(own);
        for (at, form) in FORMS.iter().enumerate() {
            let twice = carrying(carrying(bare.clone(), form, token), form, token);
            Refused::NO_TOKEN.check(&format!("{form} twice"), provider, &world.ask(&twice).await);
            let second = FORMS[(at + 1) % FORMS.len()];
            let differing = carrying(carrying(bare.clone(), form, token), second, other);
            Refused::NO_TOKEN.check(&format!("{form} and {second}"), provider, &world.ask(&differing).await);
        }
        let basic = bare.clone().with("authorization", &format!("Basic {token}"));
        Refused::NO_TOKEN.check("another scheme", provider, &world.ask(&basic).await);
    }
    let gemini = Provider::Gemini;
    let bare = gemini.ask("").without("x-goog-api-key");
    let path = gemini.path();
    for (query, form) in [(format!("key={token}&key={token}"), None), (format!("key={token}"), Some("x-goog-api-key"))]
    {
        let mut ask = bare.clone().to(&format!("{path}?{query}"));
        if let Some(form) = form {
            ask = carrying(ask, form, other);
        }
        Refused::NO_TOKEN.check(&query, gemini, &world.ask(&ask).await);
    }
    assert_eq!(world.upstream_count(), 0);
}
