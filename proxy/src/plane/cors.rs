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
/// When the API has an origin list without it, or the field is no text.
pub fn origin<'a>(call: &'a Call, api: &Api) -> Result<Option<&'a str>, OriginRefused> {
    let Some(origin) = call.value_of(Name::Origin) else { return Ok(None) };
    let origin = std::str::from_utf8(origin).ok().filter(|origin| origin.is_ascii()).ok_or(OriginRefused)?;
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
