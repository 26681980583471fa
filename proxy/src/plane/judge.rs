//! Admission: what the configuration and the token say of a request, before anything of it leaves.
//!
//! Pure decisions on facts that the exchange has gathered; the order is that of the refusals a caller should see first.

use llm_proxy_core::answer::Refusal;
use llm_proxy_core::body::{BadBody, Fields, param_allowed};
use llm_proxy_core::policy::model_allowed;
use llm_proxy_core::routing::{Api, ModelPlace, Route, Verdict};
use serde_json::Value;

use super::tokens::{Known, ProviderKey};
use crate::call::{Call, Framing, Name};

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
    known.keys.get(&api.name).ok_or_else(|| Refusal::ProviderKeyMissing(api.name.to_string()))
}

/// What must be known of the body before it may leave.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyRule {
    /// Nothing: it streams through.
    Pass,
    /// These top-level fields: it is read whole.
    Read,
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
            ModelPlace::Form => {
                return Err(Refusal::UnsupportedBody(
                    "this token is limited to certain models, which are not read from multipart bodies",
                ));
            }
            ModelPlace::Hidden if route.verdict == Verdict::Named => {}
            ModelPlace::Hidden => return Err(Refusal::ModelNotAllowed(None)),
        }
    }
    if !must_read || call.framing == Framing::None {
        // A body that is not there cannot name a model either.
        return match (
            must_read && route.endpoint.model == ModelPlace::Body && call.method() == "POST",
            &known.allowed_models,
        ) {
            (true, Some(_)) => Err(Refusal::ModelNotAllowed(None)),
            _ => Ok(BodyRule::Pass),
        };
    }
    if call.all(Name::ContentEncoding).any(|field| !call.value(field).eq_ignore_ascii_case(b"identity")) {
        return Err(Refusal::UnsupportedBody("send it without Content-Encoding"));
    }
    let mut types = call.all(Name::ContentType);
    match (types.next(), types.next()) {
        (Some(field), None) if is_json(call.value(field)) => Ok(BodyRule::Read),
        _ => Err(Refusal::UnsupportedBody("send it as application/json")),
    }
}

fn is_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or(&[]).trim_ascii();
    essence.eq_ignore_ascii_case(b"application/json")
}

fn whitelisted_model(api: &Api, model: &str) -> Result<(), Refusal> {
    match api.param_whitelist.iter().find(|(field, _)| &**field == "model") {
        Some((_, globs)) if !param_allowed(&Value::from(model), globs) => Err(Refusal::ParamNotAllowed("model".into())),
        _ => Ok(()),
    }
}

/// The fields that policy reads of a body.
pub fn wanted(api: &Api) -> Vec<&str> {
    let mut wanted: Vec<&str> = api.param_whitelist.iter().map(|(field, _)| &**field).collect();
    if !wanted.contains(&"model") {
        wanted.push("model");
    }
    wanted
}

/// Judges the fields of a body.
///
/// # Errors
/// A field outside its whitelist, a model outside the token's list, or none where the token is limited.
pub fn fields(fields: &Fields, api: &Api, known: &Known, route: &Route) -> Result<(), Refusal> {
    for (name, globs) in &api.param_whitelist {
        if fields.get(name).is_some_and(|value| !param_allowed(value, globs)) {
            return Err(Refusal::ParamNotAllowed(name.to_string()));
        }
    }
    let Some(allowed) = &known.allowed_models else { return Ok(()) };
    if route.endpoint.model != ModelPlace::Body {
        return Ok(());
    }
    match fields.model() {
        Some(model) if model_allowed(allowed, model) => Ok(()),
        model => Err(Refusal::ModelNotAllowed(model.map(|model| super::clean::text(model, 128)))),
    }
}

/// What a body that cannot be judged is answered with.
pub fn bad_body(bad: &BadBody) -> Refusal {
    Refusal::InvalidRequest(bad.to_string().into())
}
