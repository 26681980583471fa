//! The token stands where it should not: in another dialect's query, a cookie, a field that somebody made up, the path.
//! Wherever it is written in plain, the provider never sees it.

mod common;

use common::setup::{Api, Setup};
use common::upstream::Upstream;
use common::wire::Ask;

/// A provider that answers with the head it got.
async fn mirror() -> Upstream {
    Upstream::start(|mut wire, _| async move {
        while let Some(head) = wire.try_head().await {
            wire.rest().await;
            let fields: Vec<String> = head.fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            let seen = format!("{}\n{}", head.line, fields.join("\n"));
            wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{seen}", seen.len())).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_goes_nowhere_however_often_it_stands_in_the_head() {
    let provider = mirror().await;
    let dialects = [("oai", "openai"), ("anth", "anthropic"), ("gem", "gemini"), ("azu", "azure")];
    let apis = dialects.map(|(name, dialect)| Api::speaking(dialect, name, provider.addr));
    let setup = Setup::with(&apis, &[]).await;
    let token = setup.token.text.as_str();
    for (target, field) in [
        ("/oai/v1/models?key=T&a=1", None),
        ("/oai/v1/models?api-key=T&a=1", None),
        ("/oai/v1/models?a=1&access_token=Bearer%20T", None),
        ("/anth/v1/models?key=T&a=1", None),
        ("/gem/v1beta/models?api-key=T&a=1", None),
        ("/gem/v1beta/models?key=T&a=1&x=T", None),
        ("/azu/openai/models?a=1&key=T", None),
        ("/azu/openai/models?a=1&API-KEY=T", None),
        ("/oai/v1/models?a=1", Some(("cookie", "one=1; session=T"))),
        ("/oai/v1/models?a=1", Some(("x_api_key", "T"))),
        ("/oai/v1/models?a=1", Some(("ocp-apim-subscription-key", "T"))),
        ("/anth/v1/models?a=1", Some(("referer", "https://app/?key=T"))),
    ] {
        let mut ask = Ask::get(&target.replace('T', token)).bearer(token).with("x-kept", "yes");
        if let Some((name, value)) = field {
            ask = ask.with(name, value.replace('T', token));
        }
        let answer = setup.wire().await.ask(ask.head()).await;
        let seen = answer.text();
        assert_eq!(answer.head.status, 200, "{target} {field:?}: {seen}");
        assert!(!seen.contains(token), "{target} {field:?}: {seen}");
        assert!(seen.contains("?a=1 HTTP/1.1") && seen.contains("x-kept: yes"), "the rest goes on: {seen}");
    }

    let connections = provider.connections();
    let answer = setup.wire().await.ask(Ask::get(&format!("/oai/v1/models/{token}")).bearer(token).head()).await;
    assert_eq!((answer.head.status, answer.code().as_str()), (400, "invalid_request"), "{}", answer.text());
    assert!(answer.text().contains("holds the llm-proxy token") && !answer.text().contains(token));
    assert_eq!(provider.connections(), connections);
}
