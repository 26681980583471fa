//! What the policies read of a body, they read as the provider will: what a provider could read in another way is
//! refused, and the provider hears nothing of it.

use llm_proxy_tests::{Ask, Provider, Refused, World};
use serde_json::json;

use Provider::{Anthropic, Azure, Gemini, OpenAi};

/// What becomes of a request: `None`, it arrives byte for byte; else the refusal, and nothing arrives.
async fn check(world: &World, case: &str, provider: Provider, ask: &Ask, body: &str, expected: Option<Refused>) {
    let before = world.upstream_count();
    // The provider answers this whatever the body says.
    let ask = ask.clone().with("x-mock-recording", "openai-chat-basic").json(body);
    let answer = world.ask(&ask).await;
    match expected {
        None => {
            assert_eq!(answer.status, 200, "{case}: {}", answer.text());
            assert_eq!(world.last_upstream().body.as_deref(), Some(body.as_bytes()), "{case}");
        }
        Some(refused) => {
            refused.check(case, provider, &answer);
            assert_eq!(world.upstream_count(), before, "{case}: the provider was asked");
        }
    }
}

const NO: Option<Refused> = Some(Refused::PARAM);
const UNCLEAR: Option<Refused> = Some(Refused::INVALID);
const NOT_THIS_MODEL: Option<Refused> = Some(Refused::MODEL);

#[tokio::test]
async fn a_field_is_compared_as_it_stands_in_the_body() {
    let whitelist = "param_whitelist:\n  response_format: ['{\"type\":\"json_object\"}']\n  \
                     temperature: ['0', '0.5', '1']\n  stop: [END, '2']\n  store: ['false', 'null']";
    let world = World::with(|mut options| {
        for provider in Provider::ALL {
            let yaml = format!("dialect: {}\n{whitelist}", provider.name());
            options = options.api(&format!("strict-{}", provider.name()), &yaml);
        }
        options
    })
    .await;
    world.set_keys(Provider::ALL.map(|provider| (format!("strict-{}", provider.name()), provider.key()))).await;
    for provider in Provider::ALL {
        let path = provider.path().replacen('/', "/strict-", 1);
        let ask = provider.at("POST", &path, &world.token.secret);
        for (field, expected) in [
            (r#""response_format":{"type":"json_object"}"#, None),
            ("\"response_format\" : {\n \"type\" :\t\"json_object\" }", None),
            (r#""response_format":[{"type":"json_object"}]"#, None),
            (r#""response_format":{"type":"text"}"#, NO),
            (r#""response_format":{"type":"json_object","strict":true}"#, NO),
            (r#""response_format":{"type":"json\u005fobject"}"#, NO),
            (r#""response_format":"json_object""#, NO),
            (r#""response_format":{"type":"text","type":"json_object"}"#, UNCLEAR),
            (r#""response_format":{"type":"json_object","type":"text"}"#, UNCLEAR),
            (r#""response_format":{"type":"text","typ\u0065":"json_object"}"#, UNCLEAR),
            (r#""response_format":{"type":"json_object","Type":"text"}"#, UNCLEAR),
            (r#""response_format":[1,{"a":[{"b":1,"b":2}]}]"#, UNCLEAR),
            (r#""temperature":0.5"#, None),
            (r#""temperature": 1 "#, None),
            (r#""temperature":"1""#, None),
            (r#""temperature":[0,[0.5]]"#, None),
            (r#""temperature":0.50"#, NO),
            (r#""temperature":5e-1"#, NO),
            (r#""temperature":1.0"#, NO),
            (r#""temperature":-0"#, NO),
            (r#""temperature":[0,2]"#, NO),
            (r#""temperature":1e999"#, NO),
            (r#""store":false"#, None),
            (r#""store":null"#, None),
            (r#""store":true"#, NO),
            (r#""stop":"\u0045ND""#, None),
            (r#""stop":[]"#, None),
            (r#""stop":["END","2",2]"#, None),
            (r#""stop":["END","3"]"#, NO),
            (r#""stop":["\ud800"]"#, UNCLEAR),
            (r#""Temperature":0"#, UNCLEAR),
        ] {
            let body = provider.body().replacen('{', &format!("{{{field},"), 1);
            check(&world, &format!("{provider:?}, {field}"), provider, &ask, &body, expected).await;
        }
    }
}

#[tokio::test]
async fn json_is_taken_in_utf_8_only_where_a_policy_reads_it() {
    let world = World::with(|options| options.api("held", "dialect: openai\nparam_whitelist: {user: ['*']}")).await;
    world.set_keys([("held".to_owned(), OpenAi.key())]).await;
    let token = &world.token.secret;
    for (content_type, passes) in [
        ("application/json", true),
        ("application/json; charset=utf-8", true),
        ("application/json;charset=\"UTF-8\"", true),
        ("application/json; profile=x", true),
        ("application/json; charset=utf-16", false),
        ("application/json; charset=\"utf-7\"", false),
        ("application/json; CHARSET=ISO-8859-1", false),
        ("application/json; charset=utf-8; charset=utf-16", false),
    ] {
        for (path, is_read) in [("/held/v1/chat/completions", true), ("/openai/v1/chat/completions", false)] {
            let ask = OpenAi.at("POST", path, token).with("content-type", content_type);
            let expected = (is_read && !passes).then_some(Refused::UNSUPPORTED);
            check(&world, &format!("{content_type} at {path}"), OpenAi, &ask, OpenAi.body(), expected).await;
        }
    }
}

#[tokio::test]
async fn gemini_gets_no_field_by_the_name_that_a_whitelist_did_not_use() {
    let globs = r#"['{"temperature":0}']"#;
    let world = World::with(|options| {
        options
            .api("camel", &format!("dialect: gemini\nparam_whitelist: {{generationConfig: {globs}}}"))
            .api("snake", &format!("dialect: gemini\nparam_whitelist: {{generation_config: {globs}}}"))
            .api("other", &format!("dialect: anthropic\nparam_whitelist: {{generationConfig: {globs}}}"))
    })
    .await;
    let keys = [("camel", Gemini), ("snake", Gemini), ("other", Anthropic)];
    world.set_keys(keys.map(|(api, provider)| (api.to_owned(), provider.key()))).await;
    let token = &world.token.secret;
    let (zero, one) = (r#"{"temperature":0}"#, r#"{"temperature":1}"#);
    for api in ["camel", "snake"] {
        let ask = Gemini.at("POST", &format!("/{api}/v1beta/models/gemini-2.0-flash:generateContent"), token);
        for (body, expected) in [
            (format!(r#"{{"generationConfig":{zero}}}"#), None),
            (format!(r#"{{"generation_config":{zero}}}"#), None),
            (format!(r#"{{"generationConfig":{one}}}"#), NO),
            (format!(r#"{{"generation_config":{one}}}"#), NO),
            (format!(r#"{{"generation\u005fconfig":{one}}}"#), NO),
            (format!(r#"{{"generationConfig":{zero},"generation_config":{one}}}"#), UNCLEAR),
            (format!(r#"{{"generation_config":{zero},"generationConfig":{zero}}}"#), UNCLEAR),
            (format!(r#"{{"GenerationConfig":{zero}}}"#), UNCLEAR),
            (r#"{"generation_config":{"topK":1,"top_k":40}}"#.to_owned(), UNCLEAR),
            (r#"{"contents":[],"safety_settings":1,"safetySettings":2}"#.to_owned(), None),
        ] {
            check(&world, &format!("{api}, {body}"), Gemini, &ask, &body, expected).await;
        }
        let form = ask.with("content-type", "multipart/form-data; boundary=b");
        let body = "--b\r\nContent-Disposition: form-data; name=\"generation_config\"\r\n\r\n1\r\n--b--\r\n";
        check(&world, &format!("{api}, a form"), Gemini, &form, body, Some(Refused::UNSUPPORTED)).await;
    }
    let ask = Anthropic.at("POST", "/other/v1/messages", token);
    let body = format!(r#"{{"generation_config":{one}}}"#);
    check(&world, "two names to everybody else", Anthropic, &ask, &body, None).await;
}

#[tokio::test]
async fn a_model_is_judged_wherever_a_request_names_one() {
    let world = World::with(|options| {
        options.api("models", "dialect: openai\nparam_whitelist: {model: ['gpt-5*', gpt-image-1]}")
    })
    .await;
    world.set_keys([("models".to_owned(), OpenAi.key())]).await;
    let limited = world.token_with(json!({"allowed_models": ["gpt-5*", "gpt-image-1"]})).await;
    let free = &world.token;
    for (members, expected) in [
        (r#""models":["gpt-5-mini","gpt-5"]"#, None),
        (r#""models":[]"#, None),
        (r#""models":["gpt-5","o3"]"#, NOT_THIS_MODEL),
        (r#""models":["gpt-5","\u006f3"]"#, NOT_THIS_MODEL),
        (r#""models":"gpt-5""#, UNCLEAR),
        (r#""models":null"#, UNCLEAR),
        (r#""models":{"0":"gpt-5"}"#, UNCLEAR),
        (r#""models":["gpt-5",["o3"]]"#, UNCLEAR),
        (r#""models":[{"model":"gpt-5"}]"#, UNCLEAR),
        (r#""models":["gpt-5"],"models":["o3"]"#, UNCLEAR),
        (r#""Models":["o3"]"#, UNCLEAR),
        (r#""tools":[{"type":"web_search"},{"type":"image_generation","model":"gpt-image-1"}]"#, None),
        (r#""tools":[{"type":"function","parameters":{"model":"o3","model":"o3"}}]"#, None),
        (r#""tools":[{"type":"image_generation","model":null}]"#, None),
        (r#""tools":null"#, None),
        (r#""tools":[{"type":"image_generation","model":"gpt-image-1.5"}]"#, NOT_THIS_MODEL),
        (r#""tools":[{"type":"image_generation","mod\u0065l":"dall-e-3"}]"#, NOT_THIS_MODEL),
        (r#""tools":[{"model":"gpt-image-1","model":"dall-e-3"}]"#, UNCLEAR),
        (r#""tools":[{"Model":"dall-e-3"}]"#, UNCLEAR),
        (r#""tools":[{"model":["dall-e-3"]}]"#, UNCLEAR),
        (r#""tools":{"model":"dall-e-3"}"#, UNCLEAR),
    ] {
        for endpoint in ["responses", "chat/completions"] {
            let body = format!(r#"{{"model":"gpt-5",{members},"input":"hi"}}"#);
            let is_model = |refused: &Refused| refused.code == Refused::MODEL.code;
            let whitelisted = if expected.as_ref().is_some_and(is_model) { NO } else { expected };
            for (api, token, expected) in
                [("openai", &limited, expected), ("models", free, whitelisted), ("openai", free, None)]
            {
                let path = format!("/{api}/v1/{endpoint}");
                let ask = OpenAi.at("POST", &path, &token.secret);
                let is_limited = token.id == limited.id;
                let case = format!("{members} at {path}, limited token: {is_limited}");
                check(&world, &case, OpenAi, &ask, &body, expected).await;
            }
        }
    }
    let azure = Azure.at("POST", "/azure/openai/v1/responses", &limited.secret);
    let body = r#"{"model":"gpt-5","tools":[{"type":"image_generation","model":"dall-e-3"}]}"#;
    check(&world, "azure", Azure, &azure, body, NOT_THIS_MODEL).await;
    let claude = world.token_with(json!({"allowed_models": ["claude-*"]})).await;
    let anthropic = Anthropic.at("POST", "/anthropic/v1/messages", &claude.secret);
    for (members, expected) in [
        (r#""tools":[{"type":"advisor","model":"claude-y"}],"fallbacks":[{"model":"claude-z"},"claude-0"]"#, None),
        (r#""tools":[{"type":"advisor","model":"theirs"}]"#, NOT_THIS_MODEL),
        (r#""fallbacks":[{"model":"theirs"}]"#, NOT_THIS_MODEL),
        (r#""fallbacks":["theirs"]"#, NOT_THIS_MODEL),
        (r#""fallbacks":"theirs""#, UNCLEAR),
    ] {
        let body = format!(r#"{{"model":"claude-x",{members}}}"#);
        check(&world, "another dialect", Anthropic, &anthropic, &body, expected).await;
    }
    let form = Ask::new("POST", "/openai/v1/audio/transcriptions")
        .with("authorization", &format!("Bearer {}", limited.secret))
        .with("content-type", "multipart/form-data; boundary=b");
    let part =
        |name: &str, value: &str| format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    for name in ["models", "models[]"] {
        let body = [part("model", "gpt-5"), part(name, "o3"), "--b--\r\n".to_owned()].concat();
        check(&world, &format!("{name} in a form"), OpenAi, &form, &body, UNCLEAR).await;
    }
}

#[tokio::test]
async fn two_origins_are_none() {
    const APP: &str = "https://app.example.com";
    const EVIL: &str = "https://evil.example.com";
    let world =
        World::with(|options| options.api("web", &format!("dialect: openai\nallowed_origins: ['{APP}']"))).await;
    world.set_keys([("web".to_owned(), OpenAi.key())]).await;
    for path in ["/web/v1/chat/completions", "/openai/v1/chat/completions"] {
        for origins in [[APP, EVIL], [EVIL, APP], [APP, APP]] {
            let case = format!("{origins:?} at {path}");
            let with_origins = |ask: Ask| origins.iter().fold(ask, |ask, origin| ask.with("origin", origin));
            let before = world.upstream_count();
            let preflight = Ask::new("OPTIONS", path).with("access-control-request-method", "POST");
            for ask in [OpenAi.ask(&world.token.secret).to(path), preflight] {
                let answer = world.ask(&with_origins(ask)).await;
                Refused::ORIGIN.check(&case, OpenAi, &answer);
                assert_eq!(answer.count("access-control-allow-origin"), 0, "{case}: {:?}", answer.headers);
            }
            assert_eq!(world.upstream_count(), before, "{case}: the provider was asked");
        }
    }
}
