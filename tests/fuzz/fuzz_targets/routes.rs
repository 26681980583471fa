//! Is what policy judges of a path what the provider serves?
//!
//! Segments and query values are read a second time, and so are the patterns of policies. Beyond that, whatever route is
//! found has to hold for the path that goes out: asked for directly, the provider's path must be the same endpoint with
//! the same model and the same verdict; its template must fit it; and a provider that decodes twice, collapses slashes
//! and follows dots must still be at the segments that were judged.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::policy::{EndpointPattern, Glob};
use llm_proxy_core::routing::{Api, Hints, ModelPlace, Route, Routes, Verdict};
use llm_proxy_core::target::{Target, decode, segments};

/// Name, dialect, path of the base URL, `allowed_endpoints`.
type Row = (&'static str, Dialect, &'static str, Option<&'static [&'static str]>);

static APIS: [Row; 7] = [
    ("openai", Dialect::OpenAi, "", None),
    ("anthropic", Dialect::Anthropic, "", None),
    ("gemini", Dialect::Gemini, "", None),
    ("groq", Dialect::OpenAi, "/openai/v1", None),
    ("narrow", Dialect::OpenAi, "/v1", Some(&["/v1/chat/completions", "/v1/models/*", "/v1/files/**", "/*/audio/**"])),
    ("tuned", Dialect::Gemini, "/gateway", Some(&["/v1beta/tunedModels/*", "/v1beta/models/**"])),
    ("azure", Dialect::Azure, "", None),
];

/// All APIs; all but the last; and each alone, without a base path, under the name `twin`.
static ROUTES: LazyLock<(Routes, Routes, Vec<Routes>)> = LazyLock::new(|| {
    let all: Vec<Api> = APIS.iter().map(|(name, dialect, base, list)| api(name, *dialect, base, *list)).collect();
    let without_azure = all[..APIS.len() - 1].to_vec();
    let twins = APIS.iter().map(|(_, dialect, _, list)| Routes::new(vec![api("twin", *dialect, "", *list)]));
    (Routes::new(all), Routes::new(without_azure), twins.collect())
});

fn api(name: &str, dialect: Dialect, base_path: &str, list: Option<&[&str]>) -> Api {
    Api {
        name: name.into(),
        dialect,
        base_path: base_path.into(),
        allowed_endpoints: list.map(|list| list.iter().map(|pattern| EndpointPattern::new(pattern)).collect()),
        allowed_methods: None,
        param_whitelist: Vec::new(),
        allowed_origins: None,
        required_headers: Vec::new(),
        inject_usage: false,
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((how, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (target, pattern) = text.split_once('\n').unwrap_or((text, "*"));
    let target = Target::new(target);
    let hints = Hints { has_goog_api_key: how & 1 != 0, has_anthropic_version: how & 2 != 0, is_post: how & 4 != 0 };
    let (all, without_azure, twins) = &*ROUTES;

    let read = segments(target.path);
    assert_eq!(read.as_ref().ok(), expected_segments(target.path).as_ref(), "{}", target.path);
    query_values(&target);
    patterns(pattern, target.path, read.as_deref().unwrap_or(&[]));

    let routes = if how & 8 == 0 { all } else { without_azure };
    match routes.route(&target, hints) {
        Err(_) => assert!(read.is_err(), "an unambiguous path is refused"),
        Ok(None) => assert!(read.is_ok(), "an ambiguous path is taken"),
        Ok(Some(route)) => {
            assert!(read.is_ok(), "an ambiguous path is taken");
            let api = &routes.apis()[route.api];
            assert_eq!(routes.likely_dialect(&target, hints), api.dialect);
            let served = served(&route, api, target.path);
            holds_for_the_provider(&route, &served, &twins[route.api], hints);
            judged(&route, &served, &APIS[route.api]);
        }
    }
});

/// The path without the base URL's own, a `/v1` of that apart: what the provider's reference calls the path.
fn served(route: &Route, api: &Api, received: &str) -> String {
    let rest = route.upstream_path.strip_prefix(&*api.base_path).expect("the base path stands in front");
    assert!(received.ends_with(rest) || rest == "/", "{rest} was not received");
    if api.base_path.ends_with("/v1") { format!("/v1{rest}") } else { rest.to_owned() }
}

fn holds_for_the_provider(route: &Route, served: &str, twin: &Routes, hints: Hints) {
    let asked = format!("/twin{served}");
    let direct = twin.route(&Target { path: &asked, query: None }, hints);
    let direct = direct.expect("it is unambiguous still").expect("it names its API");
    assert_eq!(
        (direct.endpoint, &direct.path_model, direct.verdict),
        (route.endpoint, &route.path_model, route.verdict),
        "{served}"
    );
}

fn judged(route: &Route, served: &str, (_, dialect, _, list): &Row) {
    let path = if served.is_empty() { Vec::new() } else { segments(served).expect("it is unambiguous still") };
    let path: Vec<&str> = path.iter().map(|segment| &**segment).collect();
    assert_eq!(
        normalized(served),
        path.iter().flat_map(|segment| segment.split('/')).filter(|piece| !piece.is_empty()).collect::<Vec<_>>(),
        "{served}"
    );

    let verdict = match list {
        Some(list) if list.iter().any(|pattern| matches(pattern, &path) && speaks_of(pattern, &path)) => Verdict::Named,
        Some(list) if list.iter().any(|pattern| matches(pattern, &path)) => Verdict::Allowed,
        Some(_) => Verdict::NotListed,
        None => {
            let roots: &[&str] = match dialect {
                Dialect::OpenAi | Dialect::Anthropic => &["v1"],
                Dialect::Gemini => &["v1", "v1beta", "upload", "ws"],
                Dialect::Azure => &["openai"],
            };
            let is_served = path.len() > 1 && roots.contains(&path[0]);
            if is_served { Verdict::Allowed } else { Verdict::NotServed }
        }
    };
    assert_eq!(route.verdict, verdict, "{served}");

    let template = route.endpoint.template;
    // Azure serves OpenAI's own paths below its root.
    let own = match (&path[..], dialect) {
        (["openai", "v1", ..], Dialect::Azure) => &path[1..],
        (path, _) => path,
    };
    assert!(template == "other" || fits(template, own), "{template} for {served}");
    let is_named_in_path = route.endpoint.model == ModelPlace::Path;
    assert_eq!(route.path_model.as_deref(), model(&path, *dialect, is_named_in_path).as_deref(), "{served}");
}

/// The model where a template says that the path names it.
fn model(path: &[&str], dialect: Dialect, is_named_in_path: bool) -> Option<String> {
    let last = path.last().filter(|_| is_named_in_path)?;
    if dialect == Dialect::Azure {
        return Some(path[2].to_owned());
    }
    let (model, _) = last.rsplit_once(':')?;
    Some(if path[1] == "tunedModels" { format!("tunedModels/{model}") } else { model.to_owned() })
}

fn fits(template: &str, path: &[&str]) -> bool {
    let wanted: Vec<&str> = template.split('/').skip(1).collect();
    if let Some(verb) = wanted.last().and_then(|last| last.strip_prefix("{model}:")) {
        let [_, kind, last] = path else { return false };
        let is_verb = last.rsplit_once(':').is_some_and(|(_, found)| found == verb || verb == "{verb}");
        return is_verb && ["models", "tunedModels"].contains(kind) && matches!(path[0], "v1" | "v1beta");
    }
    let is_open = wanted.last() == Some(&"{..}");
    let wanted = if is_open { &wanted[..wanted.len() - 1] } else { &wanted[..] };
    let length_fits = if is_open { path.len() >= wanted.len() } else { path.len() == wanted.len() };
    length_fits && wanted.iter().zip(path).all(|(wanted, found)| wanted.starts_with('{') || wanted == found)
}

/// Where a provider arrives that decodes twice, takes `\` for `/`, cuts at `;`, collapses slashes and follows dots.
fn normalized(path: &str) -> Vec<String> {
    let twice = octets(&String::from_utf8_lossy(&octets(path).unwrap_or_default())).unwrap_or_default();
    let mut arrived: Vec<String> = Vec::new();
    for piece in String::from_utf8_lossy(&twice).split(['/', '\\']) {
        match piece.split(';').next().unwrap_or("") {
            "" | "." => {}
            ".." => drop(arrived.pop()),
            piece => arrived.push(piece.to_owned()),
        }
    }
    arrived
}

fn expected_segments(path: &str) -> Option<Vec<std::borrow::Cow<'static, str>>> {
    let mut parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    if parts.last() == Some(&"") {
        parts.pop();
    }
    parts.into_iter().map(|part| expected_segment(part).map(Into::into)).collect()
}

fn expected_segment(part: &str) -> Option<String> {
    let segment = String::from_utf8(octets(part)?).ok()?;
    let is_plain = !segment.bytes().any(|octet| octet.is_ascii_control() || b"\\;?#%".contains(&octet));
    let has_dots = segment.split('/').any(|piece| piece == "." || piece == "..");
    (!part.is_empty() && is_plain && !has_dots).then_some(segment)
}

/// Percent-decodes; `None` for an escape that is none.
fn octets(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut octets = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        octets.push(u8::from_str_radix(digits, 16).ok()?);
        octets.extend_from_slice(&part.as_bytes()[2..]);
    }
    Some(octets)
}

fn query_values(target: &Target<'_>) {
    let query = target.query.unwrap_or("");
    for name in ["key", "api-key", "a"] {
        let found: Vec<&str> = target.query_values(name).map(|found| found.value).collect();
        let is_named = |key: &str| octets(key).is_some_and(|octets| octets == name.as_bytes());
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let expected: Vec<&str> = pairs.filter(|(key, _)| is_named(key)).map(|(_, value)| value).collect();
        assert_eq!(found, expected, "{name} in {query}");
        for found in target.query_values(name) {
            assert_eq!(query.get(found.start..found.end), Some(found.value));
            let key = query[..found.start].strip_suffix('=').and_then(|before| before.rsplit('&').next());
            assert_eq!(key.and_then(decode).as_deref(), Some(name), "the value stands behind its name");
        }
    }
}

fn patterns(pattern: &str, text: &str, path: &[std::borrow::Cow<'_, str>]) {
    let (pattern, text) = (first_letters(pattern, 48), first_letters(text, 192));
    assert_eq!(Glob::new(pattern).matches(text), glob(pattern.as_bytes(), text.as_bytes()), "{pattern} on {text}");
    let path: Vec<&str> = path.iter().map(|segment| &**segment).collect();
    let endpoint = EndpointPattern::new(pattern);
    assert_eq!(endpoint.matches(&path), matches(pattern, &path), "{pattern} on {path:?}");
    assert_eq!(endpoint.names(&path), matches(pattern, &path) && speaks_of(pattern, &path), "{pattern} on {path:?}");
}

fn first_letters(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).map_or(text, |(end, _)| &text[..end])
}

/// Keeps, for each letter of the pattern, which beginnings of the text are matched so far.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for wanted in pattern {
        let mut is_any = false;
        let next = |at: usize| {
            is_any |= reached[at];
            if *wanted == b'*' { is_any } else { at > 0 && reached[at - 1] && text[at - 1] == *wanted }
        };
        reached = (0..=text.len()).map(next).collect();
    }
    reached[text.len()]
}

fn matches(pattern: &str, path: &[&str]) -> bool {
    let wanted: Vec<&str> = pattern.split('/').filter(|segment| !segment.is_empty()).collect();
    match wanted.split_last() {
        Some((&"**", above)) => path.len() > above.len() && all_match(above, &path[..above.len()]),
        _ => path.len() == wanted.len() && all_match(&wanted, path),
    }
}

fn all_match(wanted: &[&str], path: &[&str]) -> bool {
    wanted.iter().zip(path).all(|(wanted, found)| *wanted == "*" || wanted == found)
}

/// Whether a pattern is about this path rather than about everything, and no segment hides another.
fn speaks_of(pattern: &str, path: &[&str]) -> bool {
    let mut wanted: Vec<&str> = pattern.split('/').filter(|segment| !segment.is_empty()).collect();
    wanted.pop_if(|last| *last == "**");
    wanted.len() > 1 && !wanted[..2].contains(&"*") && !path.iter().any(|segment| segment.contains('/'))
}
