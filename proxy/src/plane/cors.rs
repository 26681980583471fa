//! Cross-origin calls (WHATWG Fetch, "CORS protocol"): preflights are ours, and every answer names at most one origin.

use std::borrow::Cow;

use llm_proxy_core::http1::call::{Call, Name};
use llm_proxy_core::policy::origin_allowed;
use llm_proxy_core::routing::Api;

/// What scripts of another origin may read beside the safelisted response fields.
const EXPOSED: &str = "x-llm-proxy-request-id, x-request-id, request-id, retry-after, retry-after-ms, \
    x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
    x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, openai-processing-ms";

/// Whether the call is a CORS preflight: such a call carries no token, so it is answered before authentication.
pub fn is_preflight(call: &Call) -> bool {
    call.method() == "OPTIONS"
        && call.value_of(Name::Origin).is_some()
        && call.value_of(Name::AccessControlRequestMethod).is_some()
}

/// The origin of a cross-origin call, when this API lets it in. `Ok(None)`: no cross-origin call.
///
/// # Errors
/// When the API has an origin list without it, there are two, or the field is no text.
pub fn origin<'a>(call: &'a Call, api: &Api) -> Result<Option<&'a str>, OriginRefused> {
    let mut origins = call.all(Name::Origin);
    let Some(field) = origins.next() else { return Ok(None) };
    // Browsers send one. Of two, each reader takes another, and an answer can name only one.
    if origins.next().is_some() {
        return Err(OriginRefused);
    }
    let origin = std::str::from_utf8(call.value(field)).ok().filter(|origin| origin.is_ascii()).ok_or(OriginRefused)?;
    match &api.allowed_origins {
        Some(allowed) if !origin_allowed(allowed, origin) => Err(OriginRefused),
        _ => Ok(Some(origin)),
    }
}

/// The origin may not call this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginRefused;

/// The fields that let a script of this origin read an answer.
pub fn fields(origin: &str) -> [(&'static str, Cow<'static, str>); 3] {
    [
        ("access-control-allow-origin", origin.to_owned().into()),
        ("access-control-expose-headers", EXPOSED.into()),
        ("vary", "origin".into()),
    ]
}

/// The answer to a preflight: the origin, the method and the headers asked for are granted as the API's policy stands.
pub fn preflight_fields<'a>(
    call: &'a Call,
    api: &Api,
    origin: &'a str,
    request_id: &'a str,
) -> Vec<(&'static str, Cow<'a, str>)> {
    let methods = api
        .allowed_methods
        .as_ref()
        .map_or_else(|| "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS".to_owned(), |methods| methods.join(", "));
    let mut fields =
        vec![("access-control-allow-origin", origin.into()), ("access-control-allow-methods", methods.into())];
    let asked = call.value_of(Name::AccessControlRequestHeaders).and_then(|asked| std::str::from_utf8(asked).ok());
    if let Some(asked) = asked {
        fields.push(("access-control-allow-headers", asked.into()));
    }
    fields.extend([
        ("access-control-max-age", "600".into()),
        ("vary", "origin, access-control-request-method, access-control-request-headers".into()),
        ("x-llm-proxy-request-id", request_id.into()),
    ]);
    fields
}

#[cfg(test)]
mod tests {
    use llm_proxy_core::dialect::Dialect;
    use llm_proxy_core::http1::request_head;

    use super::*;

    fn api(allowed: Option<&[&str]>) -> Api {
        Api {
            name: "openai".into(),
            dialect: Dialect::OpenAi,
            base_path: "".into(),
            allowed_endpoints: None,
            allowed_methods: None,
            param_whitelist: Vec::new(),
            allowed_origins: allowed.map(|origins| origins.iter().map(|origin| (*origin).into()).collect()),
            required_headers: Vec::new(),
            inject_usage: false,
        }
    }

    fn call(origins: &[&str]) -> Call {
        let fields: String = origins.iter().map(|origin| format!("origin: {origin}\r\n")).collect();
        request_head::parse(format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n").into()).unwrap()
    }

    #[test]
    fn one_origin_is_let_in_or_not_and_two_never_are() {
        const APP: &str = "https://app.example";
        const EVIL: &str = "https://evil.example";
        for (origins, anybody, listed) in [
            (&[APP][..], Ok(Some(APP)), Ok(Some(APP))),
            (&[], Ok(None), Ok(None)),
            (&[EVIL], Ok(Some(EVIL)), Err(OriginRefused)),
            (&[APP, EVIL], Err(OriginRefused), Err(OriginRefused)),
            (&[EVIL, APP], Err(OriginRefused), Err(OriginRefused)),
            (&[APP, APP], Err(OriginRefused), Err(OriginRefused)),
            (
                &["https://app.example, https://evil.example"],
                Ok(Some("https://app.example, https://evil.example")),
                Err(OriginRefused),
            ),
            (&["https://\u{e4}.example"], Err(OriginRefused), Err(OriginRefused)),
        ] {
            let call = call(origins);
            assert_eq!(origin(&call, &api(None)), anybody, "{origins:?}");
            assert_eq!(origin(&call, &api(Some(&["*"]))), anybody, "{origins:?}");
            assert_eq!(origin(&call, &api(Some(&[APP]))), listed, "{origins:?}");
        }
    }
}
