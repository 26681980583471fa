//! Admission: what the configuration and the token say of a request, before anything of it leaves.
//!
//! Pure decisions on facts that the exchange has gathered; the order is that of the refusals a caller should see first.

use llm_proxy_core::answer::Refusal;
use llm_proxy_core::body::{BadBody, Fields, is_json, read};
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::http1::call::{Call, Framing, Name};
use llm_proxy_core::multipart;
use llm_proxy_core::policy::{Glob, Naming, model_allowed};
use llm_proxy_core::routing::{Api, ModelPlace, Route, Verdict};
use llm_proxy_core::target::{Target, decode};
use llm_proxy_core::websocket::models;

use super::clean;
use super::tokens::{Known, ProviderKey};

/// Whether the token lives and its project is on.
///
/// # Errors
/// The refusal that the holder of a real token may learn.
pub fn liveness(known: &Known, now_us: i64) -> Result<(), Refusal> {
    let holder = &known.holder;
    if !holder.token_active {
        return Err(Refusal::TokenRevoked);
    }
    if holder.expires_at_us <= now_us {
        return Err(Refusal::TokenExpired);
    }
    if !holder.project_active {
        return Err(Refusal::ProjectInactive);
    }
    Ok(())
}

/// Whether this API serves the request's path and method, and has what it requires.
///
/// # Errors
/// The first rule broken.
pub fn shape(call: &Call, api: &Api, route: &Route) -> Result<(), Refusal> {
    match route.verdict {
        Verdict::Allowed | Verdict::Named => {}
        Verdict::NotListed => return Err(Refusal::EndpointNotAllowed),
        Verdict::NotServed => return Err(Refusal::UnknownRoute),
    }
    // TRACE shows a request again, the provider's key with it; CONNECT makes a tunnel (RFC 9110 §9.3.6, §9.3.8).
    if matches!(call.method(), "TRACE" | "CONNECT") {
        return Err(Refusal::MethodNotAllowed("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".into()));
    }
    if let Some(methods) = &api.allowed_methods
        && !methods.iter().any(|method| &**method == call.method())
    {
        return Err(Refusal::MethodNotAllowed(methods.join(", ")));
    }
    match api.required_headers.iter().find(|name| call.header(name).is_none()) {
        Some(name) => Err(Refusal::HeaderRequired(name.to_string())),
        None => Ok(()),
    }
}

/// The project's key for this API.
///
/// # Errors
/// When it has none.
pub fn provider_key<'k>(known: &'k Known, api: &Api) -> Result<&'k ProviderKey, Refusal> {
    known
        .keys
        .iter()
        .find(|(name, _)| *name == api.name)
        .map(|(_, key)| key)
        .ok_or_else(|| Refusal::ProviderKeyMissing(api.name.to_string()))
}

/// What must be known of the body before it may leave.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyRule {
    /// Nothing: it streams through.
    Pass,
    /// Top-level fields of JSON: it is read whole.
    ReadJson,
    /// Fields of a form with this boundary: it is read whole.
    ReadForm(String),
}

/// Judges everything about models that the head tells, and says whether the body must be read.
///
/// # Errors
/// A model outside the token's list, a request that hides its model, or a body that no policy could read.
pub fn body_rule(call: &Call, api: &Api, known: &Known, route: &Route) -> Result<BodyRule, Refusal> {
    let mut must_read = !api.param_whitelist.is_empty();
    if let Some(model) = &route.path_model {
        whitelisted_model(api, model)?;
    }
    if let Some(allowed) = &known.allowed_models {
        match route.endpoint.model {
            ModelPlace::None => {}
            ModelPlace::Body => must_read = true,
            ModelPlace::Path => match &route.path_model {
                Some(model) if model_allowed(allowed, model) => {}
                model => return Err(Refusal::ModelNotAllowed(model.clone())),
            },
            ModelPlace::Form => must_read = true,
            ModelPlace::Hidden | ModelPlace::Socket if route.verdict == Verdict::Named => {}
            ModelPlace::Hidden | ModelPlace::Socket => return Err(Refusal::ModelNotAllowed(None)),
        }
    }
    if !must_read || call.framing == Framing::None {
        // A body that is not there cannot name a model either.
        let names_model = matches!(route.endpoint.model, ModelPlace::Body | ModelPlace::Form);
        let hides_model = must_read && names_model && call.method() == "POST" && known.allowed_models.is_some();
        return if hides_model { Err(Refusal::ModelNotAllowed(None)) } else { Ok(BodyRule::Pass) };
    }
    if call.all(Name::ContentEncoding).any(|field| !call.value(field).eq_ignore_ascii_case(b"identity")) {
        return Err(Refusal::UnsupportedBody("send it without Content-Encoding"));
    }
    let mut types = call.all(Name::ContentType);
    let (Some(field), None) = (types.next(), types.next()) else {
        return Err(Refusal::UnsupportedBody("send it with one Content-Type"));
    };
    let content_type = call.value(field);
    // Gemini takes no forms, and has two names for a field, of which a form would show one.
    let takes_forms = route.endpoint.model != ModelPlace::Body && api.dialect != Dialect::Gemini;
    match multipart::boundary(content_type) {
        Some(boundary) if takes_forms => Ok(BodyRule::ReadForm(boundary)),
        _ if is_json(content_type) => Ok(BodyRule::ReadJson),
        _ if route.endpoint.model == ModelPlace::Form => {
            Err(Refusal::UnsupportedBody("send it as multipart/form-data"))
        }
        _ => Err(Refusal::UnsupportedBody("send it as application/json, in UTF-8")),
    }
}

/// Judges everything about models that a WebSocket's handshake tells. `Ok` holds the model that it names.
///
/// # Errors
/// An endpoint without sockets, a model outside the token's list or the whitelist, or none where the token is limited
/// and the dialect names it in the query.
pub fn socket(target: &Target<'_>, api: &Api, known: &Known, route: &Route) -> Result<Option<String>, Refusal> {
    // Of what is said on a socket only models are judged: another rule could not be kept.
    if let Some((field, _)) = api.param_whitelist.iter().find(|(field, _)| &**field != "model") {
        return Err(Refusal::ParamNotAllowed(field.to_string()));
    }
    let fields = models::query_fields(api.dialect);
    let mut named = None;
    for value in fields.iter().flat_map(|field| target.query_values(field)) {
        let model = decode(value.value)
            .ok_or_else(|| Refusal::InvalidRequest("the model in the query is not UTF-8 text".into()))?;
        socket_model(&model, api, known)?;
        if named.is_some() {
            return Err(Refusal::InvalidRequest("the query names the model twice".into()));
        }
        named = Some(clean::text(&model, 256));
    }
    let must_name = match (api.dialect, route.endpoint.model) {
        // Its first message names it, which is judged there.
        (Dialect::Gemini, ModelPlace::Socket) => false,
        // So does each message of a Responses socket.
        (_, ModelPlace::Body) => false,
        _ => known.allowed_models.is_some() && route.verdict != Verdict::Named,
    };
    if must_name && named.is_none() {
        return Err(Refusal::ModelNotAllowed(None));
    }
    Ok(named)
}

/// Judges one model that a WebSocket's query or message names.
///
/// # Errors
/// A model outside the token's list or the whitelist.
pub fn socket_model(model: &str, api: &Api, known: &Known) -> Result<(), Refusal> {
    listed_model(model, api, known.allowed_models.as_deref())
}

fn listed_model(model: &str, api: &Api, allowed: Option<&[Glob]>) -> Result<(), Refusal> {
    whitelisted_model(api, model)?;
    match allowed {
        Some(allowed) if !model_allowed(allowed, model) => Err(Refusal::ModelNotAllowed(Some(clean::text(model, 256)))),
        _ => Ok(()),
    }
}

/// Whether this request may be a stream that we ask for its usage. No policy: what we cannot read passes as it is.
pub fn asks_usage(call: &Call, api: &Api, route: &Route, max_held_bytes: u64) -> bool {
    let has_streams = matches!(
        route.endpoint.template,
        "/v1/chat/completions"
            | "/v1/completions"
            | "/openai/deployments/{deployment}/chat/completions"
            | "/openai/deployments/{deployment}/completions"
    );
    // What may turn out too large to be held must not be refused for it.
    let fits = matches!(call.framing, Framing::Length(length) if length <= max_held_bytes);
    let mut types = call.all(Name::ContentType);
    let is_json = matches!((types.next(), types.next()), (Some(field), None) if is_json(call.value(field)));
    let is_plain = call.all(Name::ContentEncoding).all(|field| call.value(field).eq_ignore_ascii_case(b"identity"));
    api.inject_usage && has_streams && call.method() == "POST" && fits && is_json && is_plain
}

/// What the whitelist has for models.
fn model_globs(api: &Api) -> Option<&[Glob]> {
    api.param_whitelist.iter().find(|(field, _)| &**field == "model").map(|(_, globs)| &**globs)
}

fn whitelisted_model(api: &Api, model: &str) -> Result<(), Refusal> {
    match model_globs(api) {
        Some(globs) if !model_allowed(globs, model) => Err(Refusal::ParamNotAllowed("model".into())),
        _ => Ok(()),
    }
}

/// The fields that policy reads of a body, where `others` says that models count which stand elsewhere than in `model`.
fn wanted<'a>(api: &'a Api, rule: &BodyRule, others: bool) -> Vec<&'a str> {
    let mut wanted: Vec<&str> = api.param_whitelist.iter().map(|(field, _)| &**field).collect();
    let models: &[&str] = match (others, rule) {
        (false, _) => &["model"],
        // No form has tools.
        (true, BodyRule::ReadForm(_)) => &["model", "models", "fallbacks"],
        (true, _) => &["model", "models", "fallbacks", "tools"],
    };
    for &field in models {
        if !wanted.contains(&field) {
            wanted.push(field);
        }
    }
    wanted
}

/// Judges a whole body.
///
/// # Errors
/// A body that two parsers could read differently, a field outside its whitelist, a model outside the token's list or
/// the whitelist wherever it stands, or none where the token is limited. `Ok` holds the model that it names.
pub fn body(rule: &BodyRule, body: &[u8], api: &Api, known: &Known, route: &Route) -> Result<Option<String>, Refusal> {
    let names_model = matches!(route.endpoint.model, ModelPlace::Body | ModelPlace::Form);
    let allowed = known.allowed_models.as_deref().filter(|_| names_model);
    // Fallbacks, and tools with models of their own. Gemini has neither: its model stands in the path.
    let others = api.dialect != Dialect::Gemini && (allowed.is_some() || model_globs(api).is_some());
    let invalid = |bad: BadBody| Refusal::InvalidRequest(bad.to_string().into());
    let wanted = wanted(api, rule, others);
    let fields = match rule {
        BodyRule::Pass => return Ok(None),
        BodyRule::ReadJson => read(body, &wanted, Naming::of(api.dialect)).map_err(invalid)?,
        BodyRule::ReadForm(boundary) => {
            let found = multipart::read(body, boundary, &wanted)
                .map_err(|bad| Refusal::InvalidRequest(bad.to_string().into()))?;
            Fields::from_texts(found)
        }
    };
    for (name, globs) in &api.param_whitelist {
        if !fields.allows(name, globs).map_err(invalid)? {
            return Err(Refusal::ParamNotAllowed(name.to_string()));
        }
    }
    let model = fields.model().map(|model| clean::text(model, 256));
    if let Some(allowed) = allowed
        && !fields.model().is_some_and(|asked| model_allowed(allowed, asked))
    {
        return Err(Refusal::ModelNotAllowed(model));
    }
    if others {
        let mut judged: Result<(), Refusal> = Ok(());
        let judge = |other: &str| {
            if judged.is_ok() {
                judged = listed_model(other, api, allowed);
            }
        };
        fields.other_models(judge).map_err(invalid)?;
        judged?;
    }
    Ok(model)
}
