//! The `sinks:` of the configuration file: which sinks there are, and what each of them gets.
//!
//! Like `apis:` a map from a name to settings, of which `type` defaults to the name: `lunary:` is a sink of that type,
//! and two webhooks are two names. What all sinks know (batches, retries, filters) is read here, the rest by the sink
//! itself. Reading is pure: the file as a tree and the variables come in, checked settings go out, or one problem with
//! the path to its place.
//!
//! In the tree each single value is the text that it is written as, or a number or truth that is taken as such; a key
//! with nothing behind it is `null`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use llm_proxy_core::policy::Glob;
use llm_proxy_core::secret::Secret;
use rustls::ClientConfig;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::file::FileSettings;
use super::values::{Bytes, Count, FromText, Span, Text, Variable, Word, described, judge, one_of, quoted};
use super::{KINDS, Kind, Target};
use crate::dispatcher::{Filter, Job, Match, Policy, Sample};
use crate::event::{EventType, Outcome};

/// The value of an environment variable; `None` where there is none.
pub type Environment<'a> = dyn Fn(&str) -> Option<Secret> + 'a;

/// The keys that every sink but the file has.
const COMMON: [&str; 6] = ["batch", "retry", "max_attempts", "only", "except", "sample"];
/// The type of a sink that the dispatcher does not serve.
const FILE: &str = "file";

/// All sinks of a configuration.
#[derive(Clone, Debug)]
pub struct SinksSettings {
    /// Where `events.jsonl` goes, and how it is rotated. `None`: it is not written.
    pub file: Option<FileSettings>,
    /// The sinks that the dispatcher serves. Names are unique.
    pub dispatched: Vec<SinkSettings>,
    /// Names of sinks that the dispatcher serves, of which nothing else was read: only from [`read_names`].
    pub only_named: Vec<String>,
}

impl Default for SinksSettings {
    /// Without any configuration: the file, as ever.
    fn default() -> Self {
        Self { file: Some(FileSettings::default()), dispatched: Vec::new(), only_named: Vec::new() }
    }
}

/// One sink that the dispatcher serves, checked.
#[derive(Clone, Debug)]
pub struct SinkSettings {
    /// Its key in the file: 1 to 32 lower-case letters, digits, `-` and `_`.
    pub name: String,
    /// Its type.
    pub kind: &'static str,
    /// How it is served.
    pub policy: Policy,
    target: Arc<dyn Target>,
}

impl SinkSettings {
    /// The sink itself, ready to be served. `tls` says which certificate authorities are believed.
    pub fn job(&self, tls: &Arc<ClientConfig>) -> Job {
        Job { name: self.name.clone(), sink: self.target.sink(tls), policy: self.policy.clone() }
    }
}

/// What is wrong with a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The keys that lead to the place, from below `sinks:`. The last of them may be one that is missing.
    pub path: Vec<String>,
    /// What was found, and what is expected. Holds no secret.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.iter().try_for_each(|key| write!(formatter, "{key}: "))?;
        formatter.write_str(&self.text)
    }
}

impl Problem {
    /// A problem at one key.
    pub(super) fn at(key: &str, text: impl Into<String>) -> Self {
        Self { path: vec![key.to_owned()], text: text.into() }
    }

    /// The same problem, seen from one key further up.
    fn below(mut self, key: &str) -> Self {
        self.path.insert(0, key.to_owned());
        self
    }
}

/// Reads what stands under `sinks:`.
///
/// # Errors
/// The first problem found.
pub fn read(tree: &Value, environment: &Environment<'_>) -> Result<SinksSettings, Problem> {
    read_all(tree, Some(environment))
}

/// Reads which sinks stand under `sinks:`, for who serves none of them: credentials are not looked for, since they need
/// not be where somebody only looks. Of sinks that the dispatcher serves, names and types are judged, and nothing else.
///
/// # Errors
/// The first problem found.
pub fn read_names(tree: &Value) -> Result<SinksSettings, Problem> {
    read_all(tree, None)
}

/// Without an environment, only what [`read_names`] says.
fn read_all(tree: &Value, environment: Option<&Environment<'_>>) -> Result<SinksSettings, Problem> {
    const EXPECTED: &str = "a map from the name of a sink to its settings";
    let mut settings = SinksSettings::default();
    let Value::Object(entries) = tree else {
        return Err(Problem { path: Vec::new(), text: format!("found {}, expected {EXPECTED}", described(tree)) });
    };
    let mut has_file = false;
    for (name, tree) in entries {
        let at_name = |problem: Problem| problem.below(name);
        let (kind, entries) = head(name, tree)?;
        if kind == FILE {
            if has_file {
                return Err(Problem::at(name, "found a second file, expected one sink of the type `file`"));
            }
            has_file = true;
            settings.file = match entries {
                None => None,
                Some(entries) => Some(FileSettings::read(Value::Object(entries)).map_err(at_name)?),
            };
            continue;
        }
        if name == FILE {
            return Err(Problem::at(
                name,
                format!("found the type {}, expected {FILE}, whose name this is", quoted(&kind)),
            ));
        }
        let Some(kind) = KINDS.iter().find(|known| known.name == kind) else {
            let known: Vec<_> = KINDS.iter().map(|known| known.name).chain([FILE]).collect();
            let text = format!("found the type {}, expected one of {}", quoted(&kind), known.join(", "));
            return Err(Problem::at(name, text));
        };
        let Some(entries) = entries else {
            return Err(Problem::at(name, "found none, expected the sink's settings, or no such key"));
        };
        match environment {
            Some(environment) => {
                settings.dispatched.push(read_sink(name, kind, entries, environment).map_err(at_name)?);
            }
            None => settings.only_named.push(name.clone()),
        }
    }
    Ok(settings)
}

/// The type of a sink, and its other keys; `None` instead of these where it is switched off.
fn head(name: &str, tree: &Value) -> Result<(String, Option<Map<String, Value>>), Problem> {
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    if !(1..=32).contains(&name.len()) || !name.bytes().all(is_name) {
        let text = format!("found {}, expected 1 to 32 lower-case letters, digits, - and _", quoted(name));
        return Err(Problem::at(name, text));
    }
    let mut entries = match tree {
        Value::Object(entries) => entries.clone(),
        // `lunary:` with nothing behind it has every default.
        Value::Null => Map::new(),
        Value::String(text) if text == "none" => return Ok((name.to_owned(), None)),
        _ => {
            let text = format!("found {}, expected a map of the sink's settings", described(tree));
            return Err(Problem::at(name, text));
        }
    };
    let kind = match entries.remove("type") {
        None => name.to_owned(),
        Some(found) => judge::<Word>(&found).map_err(|text| Problem::at("type", text).below(name))?.0,
    };
    nothing_empty(&entries).map_err(|problem| problem.below(name))?;
    Ok((kind, Some(entries)))
}

fn read_sink(
    name: &str,
    kind: &'static Kind,
    entries: Map<String, Value>,
    environment: &Environment<'_>,
) -> Result<SinkSettings, Problem> {
    let (mut common, mut own) = (Map::new(), Map::new());
    for (key, value) in entries {
        if COMMON.contains(&key.as_str()) {
            common.insert(key, value)
        } else {
            own.insert(key, value)
        };
    }
    let policy = parsed::<CommonFile>(Value::Object(common))?.policy((kind.policy)())?;
    let target = (kind.read)(Value::Object(own), environment).map_err(|mut problem| {
        if problem.text.starts_with(UNKNOWN) {
            problem.text.push_str(&format!("; or one that every sink has: type, {}", COMMON.join(", ")));
        }
        problem
    })?;
    Ok(SinkSettings { name: name.to_owned(), kind: kind.name, policy, target })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a map")]
struct CommonFile {
    batch: Option<BatchFile>,
    retry: Option<RetryFile>,
    max_attempts: Option<Text<Count>>,
    only: Option<MatchFile>,
    except: Option<MatchFile>,
    sample: Option<Text<Sample>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a map with events, bytes or age")]
struct BatchFile {
    events: Option<Text<Count>>,
    bytes: Option<Text<Bytes>>,
    age: Option<Text<Duration>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a map with first or longest")]
struct RetryFile {
    first: Option<Text<Span>>,
    longest: Option<Text<Span>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a map with types, projects, apis, models or outcomes")]
struct MatchFile {
    types: Option<Vec<Text<EventType>>>,
    projects: Option<Vec<Text<Word>>>,
    apis: Option<Vec<Text<Word>>>,
    models: Option<Vec<Text<Word>>>,
    outcomes: Option<Vec<Text<Outcome>>>,
}

impl CommonFile {
    /// These settings over the type's own defaults.
    fn policy(self, defaults: Policy) -> Result<Policy, Problem> {
        let mut policy = defaults;
        let batch = self.batch.unwrap_or_default();
        if let Some(events) = batch.events {
            policy.limits.events = usize::try_from(events.0.0).unwrap_or(usize::MAX);
        }
        if let Some(bytes) = batch.bytes {
            const MOST: u64 = 64 << 20;
            if bytes.0.0 > MOST {
                let text = format!("found {} bytes, expected at most 64MiB: a batch is held in memory", bytes.0.0);
                return Err(Problem::at("bytes", text).below("batch"));
            }
            policy.limits.bytes = usize::try_from(bytes.0.0).unwrap_or(usize::MAX);
        }
        policy.limits.age = batch.age.map_or(policy.limits.age, |age| age.0);
        let retry = self.retry.unwrap_or_default();
        policy.backoff.first = retry.first.map_or(policy.backoff.first, |first| first.0.0);
        policy.backoff.longest = match retry.longest {
            Some(longest) if longest.0.0 < policy.backoff.first => {
                let text = format!("found {:?}, expected no less than `first`", longest.0.0);
                return Err(Problem::at("longest", text).below("retry"));
            }
            Some(longest) => longest.0.0,
            None => policy.backoff.longest.max(policy.backoff.first),
        };
        policy.max_attempts = self.max_attempts.map_or(policy.max_attempts, |attempts| attempts.0.0);
        let only = match (filled(self.only, "only")?, policy.filter.only) {
            // A filter of one's own is no wish for events that the type knows nothing of.
            (Some(given), Some(default)) if given.types.is_empty() => Some(Match { types: default.types, ..given }),
            (given, default) => given.or(default),
        };
        policy.filter = Filter {
            only,
            except: filled(self.except, "except")?.or(policy.filter.except),
            sample: self.sample.map_or(policy.filter.sample, |sample| sample.0),
        };
        Ok(policy)
    }
}

/// Refuses a description that says nothing, or a list in it that does: it was meant to say something.
fn filled(file: Option<MatchFile>, key: &str) -> Result<Option<Match>, Problem> {
    let Some(file) = file else { return Ok(None) };
    fn each<T>(list: Option<Vec<Text<T>>>, name: &str) -> Result<Vec<T>, Problem> {
        match list {
            Some(list) if list.is_empty() => {
                Err(Problem::at(name, "found an empty list, expected at least one item, or no such key"))
            }
            list => Ok(list.unwrap_or_default().into_iter().map(|item| item.0).collect()),
        }
    }
    fn words(list: Option<Vec<Text<Word>>>, name: &str) -> Result<Vec<String>, Problem> {
        Ok(each(list, name)?.into_iter().map(|word| word.0).collect())
    }
    let read = || -> Result<Match, Problem> {
        Ok(Match {
            types: each(file.types, "types")?,
            projects: words(file.projects, "projects")?,
            apis: words(file.apis, "apis")?,
            models: words(file.models, "models")?.iter().map(|glob| Glob::new(glob)).collect(),
            outcomes: each(file.outcomes, "outcomes")?,
        })
    };
    let found = read().map_err(|problem| problem.below(key))?;
    if found == Match::default() {
        return Err(Problem::at(key, "found nothing in it, expected types, projects, apis, models or outcomes"));
    }
    Ok(Some(found))
}

impl FromText for EventType {
    const EXPECTED: &'static str = "one of exchange, admin";

    fn from_text(text: &str) -> Option<Self> {
        let both = [Self::Exchange, Self::Admin];
        one_of(text, &both.map(|kind| (kind.name(), kind)))
    }
}

impl FromText for Outcome {
    const EXPECTED: &'static str = "one of finished, refused, client_gone, upstream_unreachable, upstream_cut, \
        timeout, revoked, over_budget, shed, unknown";

    fn from_text(text: &str) -> Option<Self> {
        one_of(text, &Self::ALL.map(|outcome| (outcome.name(), outcome)))
    }
}

/// How a problem with a key begins that nobody knows.
const UNKNOWN: &str = "unknown key";

/// Fills a struct from a tree. A problem has the path to its place.
pub(super) fn parsed<T: DeserializeOwned>(tree: Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(tree).map_err(|error| {
        let keys = error.path().iter().map(|segment| match segment {
            Segment::Map { key } | Segment::Enum { variant: key } => key.clone(),
            Segment::Seq { index } => index.to_string(),
            Segment::Unknown => "?".to_owned(),
        });
        let path = keys.collect();
        Problem { path, text: in_our_words(&error.into_inner().to_string()) }
    })
}

/// What serde says of keys and of things that are no map or list. A text is not shown: it may be a secret that belongs
/// further down.
fn in_our_words(text: &str) -> String {
    match (text.strip_prefix("unknown field"), text.strip_prefix("invalid type:")) {
        (Some(rest), _) => format!("{UNKNOWN}{rest}"),
        (_, Some(rest)) => {
            let rest = match rest.rsplit_once(", expected ") {
                Some((found, expected)) if found.starts_with(" string ") => format!(" a text, expected {expected}"),
                _ => rest.to_owned(),
            };
            format!("found{}", rest.replace("expected a sequence", "expected a list"))
        }
        _ => text.to_owned(),
    }
}

/// Refuses a key with nothing behind it: taken as absent it would be the laxer setting.
fn nothing_empty(entries: &Map<String, Value>) -> Result<(), Problem> {
    entries.iter().try_for_each(|(key, value)| match value {
        Value::Null => Err(Problem::at(key, "found nothing, expected a value, or no such key")),
        Value::Object(entries) => nothing_empty(entries).map_err(|problem| problem.below(key)),
        _ => Ok(()),
    })
}

/// The value of a key that must be there.
pub(super) fn required<T: FromText>(given: Option<Text<T>>, key: &str) -> Result<T, Problem> {
    given.map(|given| given.0).ok_or_else(|| Problem::at(key, format!("found nothing, expected {}", T::EXPECTED)))
}

/// A secret that must be there: under `key` itself, or in the variable that `key_env` names, so that it need not
/// stand in the file.
pub(super) fn secret<T: FromText>(
    given: Option<Text<T>>,
    variable: Option<Text<Variable>>,
    key: &str,
    environment: &Environment<'_>,
) -> Result<T, Problem> {
    let key_env = format!("{key}_env");
    match (given, variable) {
        (Some(given), None) => Ok(given.0),
        (Some(_), Some(_)) => Err(Problem::at(&key_env, format!("found it beside `{key}`, expected one of them"))),
        (None, None) => {
            let expected = T::EXPECTED;
            Err(Problem::at(
                key,
                format!("found nothing, expected {expected}; or the name of a variable in `{key_env}`"),
            ))
        }
        (None, Some(Text(Variable(name)))) => {
            let found = environment(&name).filter(|found| !found.expose().is_empty());
            let found = found.ok_or_else(|| format!("found no variable {name}, expected {} in it", T::EXPECTED));
            let value = found.and_then(|found| {
                let text = found.expose();
                let refused =
                    || format!("found a value in {name} that is not shown here, expected {}", T::expected(text));
                T::from_text(text).ok_or_else(refused)
            });
            value.map_err(|text| Problem::at(&key_env, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dispatcher::{Backoff, Limits};

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn sinks(tree: Value) -> Result<SinksSettings, String> {
        let environment = |name: &str| match name {
            "HOOK_SECRET" => Some(Secret::new(SECRET)),
            "BAD_SECRET" => Some(Secret::new("hunter2")),
            "EMPTY" => Some(Secret::new("")),
            _ => None,
        };
        read(&tree, &environment).map_err(|problem| problem.to_string())
    }

    fn hook(more: Value) -> Value {
        let mut hook = json!({"url": "https://a.example/hook", "secret": SECRET});
        let (Value::Object(hook_entries), Value::Object(more)) = (&mut hook, more) else { panic!("no maps") };
        hook_entries.extend(more);
        json!({"webhook": hook})
    }

    #[test]
    fn a_name_is_a_type_unless_it_says_otherwise_and_the_file_is_there_unless_it_is_none() {
        let none = sinks(json!({})).unwrap();
        assert_eq!((none.file.is_some(), none.dispatched.len()), (true, 0));
        let tree = json!({
            "file": "none",
            "webhook": {"url": "https://a.example/hook", "secret": SECRET},
            "second-hook": {"type": "webhook", "url": "https://b.example/hook", "secret_env": "HOOK_SECRET"},
        });
        let some = sinks(tree).unwrap();
        assert!(some.file.is_none());
        let mut names: Vec<_> = some.dispatched.iter().map(|sink| (&*sink.name, sink.kind)).collect();
        names.sort_unstable();
        assert_eq!(names, [("second-hook", "webhook"), ("webhook", "webhook")]);
        let moved = sinks(json!({"records": {"type": "file", "rotate_bytes": "1GiB"}})).unwrap();
        assert!(moved.file.is_some());
    }

    #[test]
    fn what_every_sink_knows_is_read_over_the_types_defaults() {
        let plain = sinks(hook(json!({}))).unwrap();
        assert_eq!(plain.dispatched[0].policy, Policy::default());
        let full = hook(json!({
            "batch": {"events": "20", "bytes": "64KiB", "age": "200ms"},
            "retry": {"first": "100ms", "longest": "2s"},
            "max_attempts": 3,
            "only": {"projects": ["p"], "outcomes": ["finished", "timeout"], "types": ["exchange"]},
            "except": {"models": ["gpt-3*"], "apis": ["azure"]},
            "sample": "25%",
        }));
        let ms = Duration::from_millis;
        let expected = Policy {
            limits: Limits { events: 20, bytes: 64 << 10, age: ms(200) },
            backoff: Backoff { first: ms(100), longest: ms(2_000) },
            max_attempts: 3,
            pause: Duration::ZERO,
            filter: Filter {
                only: Some(Match {
                    projects: vec!["p".to_owned()],
                    outcomes: vec![Outcome::Finished, Outcome::Timeout],
                    types: vec![EventType::Exchange],
                    ..Match::default()
                }),
                except: Some(Match {
                    models: vec![Glob::new("gpt-3*")],
                    apis: vec!["azure".to_owned()],
                    ..Match::default()
                }),
                sample: Sample::new(0.25).unwrap(),
            },
        };
        assert_eq!(sinks(full).unwrap().dispatched[0].policy, expected);
    }

    #[test]
    fn a_type_that_knows_no_admin_actions_gets_none_unless_they_are_asked_for() {
        for (only, expected) in [
            (json!({"projects": ["p"]}), vec![EventType::Exchange]),
            (json!({"types": ["admin"]}), vec![EventType::Admin]),
        ] {
            let lunary = json!({"api_key": "0d0c5a0e-6a58-4d0b-9d59-1f6f0f6f7b11", "only": only});
            let read = sinks(json!({"lunary": lunary})).unwrap();
            assert_eq!(read.dispatched[0].policy.filter.only.as_ref().unwrap().types, expected);
        }
    }

    #[test]
    fn every_mistake_is_one_line_that_names_its_place() {
        let hooks = |tree: Value| json!({"webhook": tree});
        for (tree, expected) in [
            (json!([]), "found a list, expected a map from the name of a sink to its settings"),
            (
                json!({"Web Hook": {}}),
                "Web Hook: found \"Web Hook\", expected 1 to 32 lower-case letters, digits, - and _",
            ),
            (
                json!({"splunk": {}}),
                "splunk: found the type \"splunk\", expected one of helicone, lunary, otlp, redis, webhook, file",
            ),
            (
                json!({"x": {"type": "s3"}}),
                "x: found the type \"s3\", expected one of helicone, lunary, otlp, redis, webhook, file",
            ),
            (json!({"x": {"type": ["s3"]}}), "x: type: found a list, expected a text that is not empty"),
            (
                json!({"file": {"type": "webhook"}}),
                "file: found the type \"webhook\", expected file, whose name this is",
            ),
            (json!({"webhook": "none"}), "webhook: found none, expected the sink's settings, or no such key"),
            (json!({"webhook": "on"}), "webhook: found a single value, expected a map of the sink's settings"),
            (
                json!({"file": {}, "b": {"type": "file"}}),
                "file: found a second file, expected one sink of the type `file`",
            ),
            (json!({"file": {"batch": {}}}), "file: batch: unknown key `batch`, expected one of"),
            (hooks(Value::Null), "webhook: url: found nothing, expected a URL such as"),
            (hooks(json!({"url": "https://a.example"})), "webhook: secret: found nothing, expected whsec_"),
            (hook(json!({"secret_env": "HOOK_SECRET"})), "webhook: secret_env: found it beside `secret`, expected one"),
            (hook(json!({"urll": "x"})), "webhook: urll: unknown key `urll`, expected one of `url`, `secret`"),
            (hook(json!({"batch": "x"})), "webhook: batch: found a text, expected a map with events, bytes or age"),
            (hook(json!({"only": null})), "webhook: only: found nothing, expected a value, or no such key"),
            (hook(json!({"only": {"apis": "a"}})), "webhook: only: apis: found a text, expected a list"),
            (
                hook(json!({"batch": {"size": "1"}})),
                "webhook: batch: size: unknown key `size`, expected one of `events`",
            ),
            (hook(json!({"batch": {"events": "0"}})), "webhook: batch: events: found \"0\", expected a whole number"),
            (hook(json!({"batch": {"bytes": "1GiB"}})), "webhook: batch: bytes: found 1073741824 bytes, expected at"),
            (hook(json!({"retry": {"longest": "1ms"}})), "webhook: retry: longest: found 1ms, expected no less than"),
            (hook(json!({"sample": "2"})), "webhook: sample: found \"2\", expected a share"),
            (hook(json!({"only": {}})), "webhook: only: found nothing in it, expected types"),
            (hook(json!({"only": {"apis": []}})), "webhook: only: apis: found an empty list, expected"),
            (
                hook(json!({"except": {"outcomes": ["done"]}})),
                "webhook: except: outcomes: 0: found \"done\", expected one",
            ),
        ] {
            let problem = sinks(tree.clone()).unwrap_err();
            assert!(problem.starts_with(expected), "{tree}\n{problem}\n{expected}");
            assert!(!problem.contains('\n'));
        }
    }

    #[test]
    fn who_serves_no_sink_needs_no_credential() {
        let hook = json!({"type": "webhook", "url": "https://a.example", "secret_env": "NOT_THERE"});
        let named = read_names(&json!({"file": "none", "hook": hook, "lunary": null, "redis": {}})).unwrap();
        assert!(named.file.is_none() && named.dispatched.is_empty());
        assert_eq!(named.only_named, ["hook", "lunary", "redis"]);
        for (tree, expected) in [
            (json!({"hook": {"type": "hook"}}), "hook: found the type \"hook\", expected one of "),
            (json!({"Hook": hook}), "Hook: found \"Hook\", expected 1 to 32 lower-case letters"),
            (json!({"file": {"keep": "many"}}), "file: keep: found \"many\", expected "),
        ] {
            let problem = read_names(&tree).unwrap_err().to_string();
            assert!(problem.starts_with(expected), "{problem}");
        }
    }

    #[test]
    fn a_secret_comes_from_the_file_or_from_a_variable_and_is_shown_in_no_message() {
        let of = |variable: &str| sinks(json!({"webhook": {"url": "https://a.example", "secret_env": variable}}));
        assert!(of("HOOK_SECRET").is_ok());
        for (variable, expected) in [
            ("NOT_THERE", "webhook: secret_env: found no variable NOT_THERE, expected whsec_"),
            ("EMPTY", "webhook: secret_env: found no variable EMPTY, expected whsec_"),
            ("BAD_SECRET", "webhook: secret_env: found a value in BAD_SECRET that is not shown here, expected whsec_"),
            ("no name", "webhook: secret_env: found \"no name\", expected the name of an environment variable"),
        ] {
            let problem = of(variable).unwrap_err();
            assert!(problem.starts_with(expected) && !problem.contains("hunter2"), "{problem}");
        }
        let shown = format!("{:?}", sinks(hook(json!({}))).unwrap());
        assert!(!shown.contains("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "{shown}");
    }
}
