//! Which API a request belongs to, which endpoint of it, and under which path it goes out.
//!
//! A request names its API by a path prefix, or, under the bare host, by what only that API's clients send. The rest
//! of the path is forwarded byte for byte; judgements read its decoded segments.

use std::borrow::Cow;

use crate::dialect::Dialect;
use crate::policy::{EndpointPattern, Glob};
use crate::target::{BadPath, Segments, Target, segments};

/// One configured API, as far as routing and admission need it.
#[derive(Clone, Debug)]
pub struct Api {
    /// Its name: the URL prefix, the key of provider keys, the `api` of records.
    pub name: Box<str>,
    /// How it speaks.
    pub dialect: Dialect,
    /// The path of its base URL, without a trailing slash. Empty when there is none.
    pub base_path: Box<str>,
    /// `None`: every path under the dialect's roots.
    pub allowed_endpoints: Option<Vec<EndpointPattern>>,
    /// `None`: all methods.
    pub allowed_methods: Option<Vec<Box<str>>>,
    /// Field → globs.
    pub param_whitelist: Vec<(Box<str>, Vec<Glob>)>,
    /// `None`: any origin.
    pub allowed_origins: Option<Vec<Box<str>>>,
    /// Lower-case names.
    pub required_headers: Vec<Box<str>>,
    /// Streams are asked for their usage in the client's place.
    pub inject_usage: bool,
}

impl Api {
    /// Whether the path, its prefix cut, is one this API serves.
    fn serves(&self, path: &[Cow<'_, str>]) -> bool {
        let first = path.first().map_or("", |segment| segment.as_ref());
        path.len() > 1
            && match self.dialect {
                Dialect::OpenAi | Dialect::Anthropic => first == "v1",
                Dialect::Gemini => matches!(first, "v1" | "v1beta" | "upload" | "ws"),
                Dialect::Azure => first == "openai",
            }
    }
}

/// What a request shows of itself that tells its API under the bare host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints {
    /// It carries `x-goog-api-key`.
    pub has_goog_api_key: bool,
    /// It carries `anthropic-version`.
    pub has_anthropic_version: bool,
    /// Its method is POST.
    pub is_post: bool,
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// Index into the configured APIs.
    pub api: usize,
    /// The path for the provider: base path and the received rest, joined.
    pub upstream_path: String,
    /// What is asked for.
    pub endpoint: Endpoint,
    /// The model, where the path names it (Gemini, Azure).
    pub path_model: Option<String>,
    /// Whether policy lets the path through: `allowed_endpoints`, or the dialect's roots.
    pub verdict: Verdict,
}

/// What the endpoint list says of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Served.
    Allowed,
    /// Served, and named by an `allowed_endpoints` list: not by a wildcard at its root.
    Named,
    /// Outside a configured list: 403.
    NotListed,
    /// Outside the dialect's roots: 404.
    NotServed,
}

/// An endpoint: its template, with ids replaced, and where its model stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// For records and metrics. A closed set: `other` where no template fits.
    pub template: &'static str,
    /// Where the request names its model.
    pub model: ModelPlace,
}

/// Where a request names the model it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelPlace {
    /// In the JSON body.
    Body,
    /// In the path.
    Path,
    /// In a multipart field.
    Form,
    /// In the query or the messages of a WebSocket; an ordinary request to it shows none.
    Socket,
    /// It takes models but shows none (batches, fine-tuning).
    Hidden,
    /// It takes no model.
    None,
}

const OTHER: Endpoint = Endpoint { template: "other", model: ModelPlace::Hidden };

/// Known endpoints: dialects' common roots, a `{}` for any one segment.
///
/// Sources: OpenAI, Anthropic, Gemini and Azure OpenAI API references. A path under `{..}` continues at will.
const OPENAI: &[Endpoint] = &[
    row("/v1/chat/completions", ModelPlace::Body),
    row("/v1/chat/completions/{id}", ModelPlace::None),
    row("/v1/chat/completions/{id}/messages", ModelPlace::None),
    row("/v1/responses", ModelPlace::Body),
    row("/v1/responses/compact", ModelPlace::Body),
    row("/v1/responses/input_tokens", ModelPlace::Body),
    row("/v1/responses/{id}", ModelPlace::None),
    row("/v1/responses/{id}/cancel", ModelPlace::None),
    row("/v1/responses/{id}/input_items", ModelPlace::None),
    row("/v1/completions", ModelPlace::Body),
    row("/v1/embeddings", ModelPlace::Body),
    row("/v1/moderations", ModelPlace::Body),
    row("/v1/images/generations", ModelPlace::Body),
    row("/v1/images/edits", ModelPlace::Form),
    row("/v1/images/variations", ModelPlace::Form),
    row("/v1/audio/speech", ModelPlace::Body),
    row("/v1/audio/transcriptions", ModelPlace::Form),
    row("/v1/audio/translations", ModelPlace::Form),
    row("/v1/realtime/client_secrets", ModelPlace::Hidden),
    row("/v1/realtime/calls", ModelPlace::Hidden),
    row("/v1/realtime", ModelPlace::Socket),
    row("/v1/models", ModelPlace::None),
    row("/v1/models/{model}", ModelPlace::None),
    row("/v1/files", ModelPlace::None),
    row("/v1/files/{id}", ModelPlace::None),
    row("/v1/files/{id}/content", ModelPlace::None),
    row("/v1/uploads", ModelPlace::None),
    row("/v1/uploads/{id}/{..}", ModelPlace::None),
    row("/v1/vector_stores", ModelPlace::None),
    row("/v1/vector_stores/{..}", ModelPlace::None),
    row("/v1/containers/{..}", ModelPlace::None),
    row("/v1/containers", ModelPlace::None),
    row("/v1/conversations", ModelPlace::None),
    row("/v1/conversations/{..}", ModelPlace::None),
    row("/v1/batches", ModelPlace::Hidden),
    row("/v1/batches/{..}", ModelPlace::Hidden),
    row("/v1/fine_tuning/{..}", ModelPlace::Hidden),
    row("/v1/videos", ModelPlace::Hidden),
    row("/v1/videos/{..}", ModelPlace::Hidden),
];

const ANTHROPIC: &[Endpoint] = &[
    row("/v1/messages", ModelPlace::Body),
    row("/v1/messages/count_tokens", ModelPlace::Body),
    row("/v1/messages/batches", ModelPlace::Hidden),
    row("/v1/messages/batches/{..}", ModelPlace::Hidden),
    row("/v1/complete", ModelPlace::Body),
    row("/v1/models", ModelPlace::None),
    row("/v1/models/{model}", ModelPlace::None),
    row("/v1/files", ModelPlace::None),
    row("/v1/files/{..}", ModelPlace::None),
];

/// Azure's deployments; the newer `/openai/v1/...` form is matched against [`OPENAI`].
const AZURE: &[Endpoint] = &[
    row("/openai/deployments/{deployment}/chat/completions", ModelPlace::Path),
    row("/openai/deployments/{deployment}/completions", ModelPlace::Path),
    row("/openai/deployments/{deployment}/embeddings", ModelPlace::Path),
    row("/openai/deployments/{deployment}/images/generations", ModelPlace::Path),
    row("/openai/deployments/{deployment}/images/edits", ModelPlace::Path),
    row("/openai/deployments/{deployment}/audio/transcriptions", ModelPlace::Path),
    row("/openai/deployments/{deployment}/audio/translations", ModelPlace::Path),
    row("/openai/deployments/{deployment}/audio/speech", ModelPlace::Path),
    row("/openai/responses", ModelPlace::Body),
    row("/openai/responses/{id}", ModelPlace::None),
    row("/openai/models", ModelPlace::None),
    row("/openai/models/{model}", ModelPlace::None),
    row("/openai/files", ModelPlace::None),
    row("/openai/files/{..}", ModelPlace::None),
    row("/openai/realtime", ModelPlace::Socket),
];

/// Gemini's verbs on a model: the verb, its template under `/v1/` and under `/v1beta/`.
const GEMINI_VERBS: &[(&str, &str, &str)] = &[
    ("generateContent", "/v1/models/{model}:generateContent", "/v1beta/models/{model}:generateContent"),
    (
        "streamGenerateContent",
        "/v1/models/{model}:streamGenerateContent",
        "/v1beta/models/{model}:streamGenerateContent",
    ),
    ("embedContent", "/v1/models/{model}:embedContent", "/v1beta/models/{model}:embedContent"),
    ("batchEmbedContents", "/v1/models/{model}:batchEmbedContents", "/v1beta/models/{model}:batchEmbedContents"),
    ("countTokens", "/v1/models/{model}:countTokens", "/v1beta/models/{model}:countTokens"),
    ("predict", "/v1/models/{model}:predict", "/v1beta/models/{model}:predict"),
    ("predictLongRunning", "/v1/models/{model}:predictLongRunning", "/v1beta/models/{model}:predictLongRunning"),
];

const GEMINI: &[Endpoint] = &[
    row("/v1beta/models", ModelPlace::None),
    row("/v1/models", ModelPlace::None),
    row("/v1beta/models/{model}", ModelPlace::None),
    row("/v1/models/{model}", ModelPlace::None),
    row("/v1beta/files", ModelPlace::None),
    row("/v1beta/files/{id}", ModelPlace::None),
    row("/upload/v1beta/files", ModelPlace::None),
    row("/ws/google.ai.generativelanguage.v1.GenerativeService.BidiGenerateContent", ModelPlace::Socket),
    row("/ws/google.ai.generativelanguage.v1alpha.GenerativeService.BidiGenerateContent", ModelPlace::Socket),
    row(
        "/ws/google.ai.generativelanguage.v1alpha.GenerativeService.BidiGenerateContentConstrained",
        ModelPlace::Socket,
    ),
    row("/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent", ModelPlace::Socket),
    row("/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContentConstrained", ModelPlace::Socket),
];

const fn row(template: &'static str, model: ModelPlace) -> Endpoint {
    Endpoint { template, model }
}

/// The APIs served, in configured order.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    apis: Vec<Api>,
}

impl Routes {
    /// Takes the APIs in the order of the file.
    pub fn new(apis: Vec<Api>) -> Self {
        Self { apis }
    }

    /// The APIs, by index.
    pub fn apis(&self) -> &[Api] {
        &self.apis
    }

    /// The API of this dialect's own name, else the first that speaks it.
    fn of_dialect(&self, dialect: Dialect) -> Option<usize> {
        let speaks = |api: &Api| api.dialect == dialect;
        self.apis
            .iter()
            .position(|api| speaks(api) && &*api.name == dialect.name())
            .or_else(|| self.apis.iter().position(speaks))
    }

    /// Which dialect a refusal should speak when no route was found.
    pub fn likely_dialect(&self, target: &Target<'_>, hints: Hints) -> Dialect {
        self.choose(target.path, target, hints)
            .and_then(|(api, _)| self.apis.get(api))
            .map_or_else(|| bare_dialect(target.path, target, hints), |api| api.dialect)
    }

    /// Finds where the request goes. `Ok(None)`: no API serves such a path.
    ///
    /// # Errors
    /// [`BadPath`] when the path is ambiguous or malformed.
    pub fn route(&self, target: &Target<'_>, hints: Hints) -> Result<Option<Route>, BadPath> {
        let all = segments(target.path)?;
        let Some((index, rest)) = self.choose(target.path, target, hints) else { return Ok(None) };
        let Some(api) = self.apis.get(index) else { return Ok(None) };
        let mut judged: Segments<'_> = all;
        if rest.len() < target.path.len() {
            judged.remove(0); // the prefix
        }
        let base_has_v1 = api.base_path.ends_with("/v1");
        let rest_has_v1 = rest == "/v1" || rest.starts_with("/v1/");
        let kept = if base_has_v1 && rest_has_v1 { rest.get(3..).unwrap_or("") } else { rest };
        if base_has_v1 && !rest_has_v1 {
            judged.insert(0, Cow::Borrowed("v1")); // the base URL already carries it
        }
        let mut upstream_path = String::with_capacity(api.base_path.len().saturating_add(kept.len()).max(1));
        upstream_path.push_str(&api.base_path);
        upstream_path.push_str(kept);
        if upstream_path.is_empty() {
            upstream_path.push('/');
        }
        let (endpoint, path_model) = endpoint_of(api.dialect, &judged);
        let verdict = match &api.allowed_endpoints {
            Some(list) if list.iter().any(|pattern| pattern.names(&judged)) => Verdict::Named,
            Some(list) if list.iter().any(|pattern| pattern.matches(&judged)) => Verdict::Allowed,
            Some(_) => Verdict::NotListed,
            None if api.serves(&judged) => Verdict::Allowed,
            None => Verdict::NotServed,
        };
        Ok(Some(Route { api: index, upstream_path, endpoint, path_model, verdict }))
    }

    /// The API and the path with its prefix cut.
    fn choose<'a>(&self, path: &'a str, target: &Target<'_>, hints: Hints) -> Option<(usize, &'a str)> {
        let azure_shape = path.starts_with("/openai/deployments/")
            || path == "/openai/realtime"
            || path.starts_with("/openai/realtime/");
        if azure_shape && let Some(azure) = self.of_dialect(Dialect::Azure) {
            return Some((azure, path));
        }
        let first = path.strip_prefix('/')?.split('/').next().unwrap_or("");
        if let Some(index) = self.apis.iter().position(|api| &*api.name == first) {
            return Some((index, path.get(first.len().saturating_add(1)..).unwrap_or("")));
        }
        self.of_dialect(bare_dialect(path, target, hints)).map(|index| (index, path))
    }
}

/// The dialect that a path under the bare host speaks.
fn bare_dialect(path: &str, target: &Target<'_>, hints: Hints) -> Dialect {
    let below = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let last = path.rsplit('/').next().unwrap_or("");
    let verb = hints.is_post
        && (last.contains(':') || last.contains("%3A") || last.contains("%3a"))
        && (path.contains("/models/") || path.contains("/tunedModels/"));
    let is_live = path.starts_with("/ws/google.ai.generativelanguage.");
    if hints.has_goog_api_key || below("/v1beta") || is_live || verb || target.query_values("key").next().is_some() {
        Dialect::Gemini
    } else if hints.has_anthropic_version || below("/v1/messages") {
        Dialect::Anthropic
    } else if path.starts_with("/openai/deployments/") {
        Dialect::Azure
    } else {
        Dialect::OpenAi
    }
}

fn endpoint_of(dialect: Dialect, path: &[Cow<'_, str>]) -> (Endpoint, Option<String>) {
    match dialect {
        Dialect::OpenAi => (find(OPENAI, path), None),
        Dialect::Anthropic => (find(ANTHROPIC, path), None),
        Dialect::Azure => {
            let endpoint = match path.split_first() {
                Some((first, rest)) if first == "openai" && rest.first().is_some_and(|second| second == "v1") => {
                    find(OPENAI, rest)
                }
                _ => find(AZURE, path),
            };
            let deployment = match path {
                [openai, deployments, deployment, ..] if openai == "openai" && deployments == "deployments" => {
                    Some(deployment.clone().into_owned())
                }
                _ => None,
            };
            // A deployment names the model on every path below it, known or not.
            let endpoint = if deployment.is_some() && endpoint == OTHER {
                row("/openai/deployments/{deployment}/{..}", ModelPlace::Path)
            } else {
                endpoint
            };
            (endpoint, deployment)
        }
        Dialect::Gemini => gemini(path).unwrap_or_else(|| (find(GEMINI, path), None)),
    }
}

/// `…/models/{model}:verb` and `…/tunedModels/{id}:verb`.
fn gemini(path: &[Cow<'_, str>]) -> Option<(Endpoint, Option<String>)> {
    let [version, kind, last] = path else { return None };
    let (model, verb) = last.rsplit_once(':')?;
    let is_beta = match version.as_ref() {
        "v1" => false,
        "v1beta" => true,
        _ => return None,
    };
    let model = match kind.as_ref() {
        "models" => model.to_owned(),
        "tunedModels" => format!("tunedModels/{model}"),
        _ => return None,
    };
    let template = GEMINI_VERBS
        .iter()
        .find(|(name, ..)| *name == verb)
        .map_or("/{version}/models/{model}:{verb}", |(_, v1, beta)| if is_beta { beta } else { v1 });
    Some((row(template, ModelPlace::Path), Some(model)))
}

fn find(table: &[Endpoint], path: &[Cow<'_, str>]) -> Endpoint {
    table.iter().find(|endpoint| fits(endpoint.template, path)).copied().unwrap_or(OTHER)
}

fn fits(template: &str, path: &[Cow<'_, str>]) -> bool {
    let mut found = path.iter();
    for wanted in template.split('/').skip(1) {
        match (wanted, found.next()) {
            ("{..}", Some(_)) => return true,
            (_, Some(segment)) if wanted.starts_with('{') || wanted == segment => {}
            _ => return false,
        }
    }
    found.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(name: &str, dialect: Dialect, base_path: &str) -> Api {
        Api {
            name: name.into(),
            dialect,
            base_path: base_path.into(),
            allowed_endpoints: None,
            allowed_methods: None,
            param_whitelist: Vec::new(),
            allowed_origins: None,
            required_headers: Vec::new(),
            inject_usage: false,
        }
    }

    fn routes() -> Routes {
        Routes::new(vec![
            api("openai", Dialect::OpenAi, ""),
            api("anthropic", Dialect::Anthropic, ""),
            api("gemini", Dialect::Gemini, ""),
            api("groq", Dialect::OpenAi, "/openai/v1"),
            api("azure", Dialect::Azure, ""),
        ])
    }

    fn routed(target: &str, hints: Hints) -> (String, String, &'static str, Option<String>, Verdict) {
        let routes = routes();
        let route = routes.route(&Target::new(target), hints).unwrap().unwrap();
        let name = routes.apis()[route.api].name.to_string();
        (name, route.upstream_path, route.endpoint.template, route.path_model, route.verdict)
    }

    #[test]
    fn prefixes_are_cut_and_a_double_v1_kept_once() {
        for (target, api, path, template) in [
            ("/openai/v1/chat/completions", "openai", "/v1/chat/completions", "/v1/chat/completions"),
            ("/groq/v1/chat/completions", "groq", "/openai/v1/chat/completions", "/v1/chat/completions"),
            ("/groq/chat/completions", "groq", "/openai/v1/chat/completions", "/v1/chat/completions"),
            ("/anthropic/v1/messages", "anthropic", "/v1/messages", "/v1/messages"),
            (
                "/gemini/v1beta/models/g:countTokens",
                "gemini",
                "/v1beta/models/g:countTokens",
                "/v1beta/models/{model}:countTokens",
            ),
            ("/azure/openai/v1/responses", "azure", "/openai/v1/responses", "/v1/responses"),
            ("/openai/v1/models/ft%3Agpt", "openai", "/v1/models/ft%3Agpt", "/v1/models/{model}"),
            ("/openai/v1/files/f/content?x=1", "openai", "/v1/files/f/content", "/v1/files/{id}/content"),
        ] {
            let found = routed(target, Hints { is_post: true, ..Hints::default() });
            assert_eq!((found.0.as_str(), found.1.as_str(), found.2), (api, path, template), "{target}");
            assert_eq!(found.4, Verdict::Allowed, "{target}");
        }
    }

    #[test]
    fn the_bare_host_goes_by_what_only_that_client_sends() {
        let post = Hints { is_post: true, ..Hints::default() };
        let goog = Hints { has_goog_api_key: true, ..Hints::default() };
        let claude = Hints { has_anthropic_version: true, ..Hints::default() };
        for (target, hints, api, model) in [
            ("/v1/chat/completions", post, "openai", None),
            ("/v1/models", Hints::default(), "openai", None),
            ("/v1/models", goog, "gemini", None),
            ("/v1/models?key=x", Hints::default(), "gemini", None),
            ("/v1/models", claude, "anthropic", None),
            ("/v1/messages", post, "anthropic", None),
            ("/v1/messages/count_tokens", post, "anthropic", None),
            ("/v1/messages_x", post, "openai", None),
            ("/v1beta/models/gemini-2.5-pro:generateContent", post, "gemini", Some("gemini-2.5-pro")),
            ("/v1/models/gemini-2.5-pro:generateContent", post, "gemini", Some("gemini-2.5-pro")),
            ("/v1/models/gemini-2.5-pro%3AgenerateContent", post, "gemini", Some("gemini-2.5-pro")),
            ("/v1beta/tunedModels/mine:generateContent", post, "gemini", Some("tunedModels/mine")),
            ("/v1/models/ft:gpt-4o:org", Hints::default(), "openai", None),
            ("/openai/deployments/gpt4/chat/completions", post, "azure", Some("gpt4")),
            ("/openai/deployments/gpt4/something/new", post, "azure", Some("gpt4")),
        ] {
            let found = routed(target, hints);
            assert_eq!((found.0.as_str(), found.3.as_deref()), (api, model), "{target}");
        }
    }

    #[test]
    fn paths_outside_the_roots_are_not_served_and_lists_narrow() {
        assert_eq!(routed("/dashboard", Hints::default()).4, Verdict::NotServed);
        assert_eq!(routed("/openai/v2/x", Hints::default()).4, Verdict::NotServed);
        assert_eq!(routed("/openai", Hints::default()).4, Verdict::NotServed);
        let mut only_chat = api("openai", Dialect::OpenAi, "");
        only_chat.allowed_endpoints = Some(vec![EndpointPattern::new("/v1/chat/completions")]);
        let routes = Routes::new(vec![only_chat]);
        let verdict = |target| routes.route(&Target::new(target), Hints::default()).unwrap().unwrap().verdict;
        assert_eq!(verdict("/v1/chat/completions"), Verdict::Named);
        assert_eq!(verdict("/v1/chat%2Fcompletions"), Verdict::NotListed);
        assert_eq!(verdict("/v1/embeddings"), Verdict::NotListed);
        assert!(routes.route(&Target::new("/v1/../x"), Hints::default()).is_err());
        assert_eq!(Routes::default().route(&Target::new("/v1/x"), Hints::default()), Ok(None));
    }
}
