//! The `sinks:` of the YAML file.
//!
//! What stands there is for the sinks to judge, which `plugins` has. Here the file becomes the tree that they read, and
//! what they say of a mistake gets the line and column that every other mistake has.

use llm_proxy_core::secret::Secret;
use llm_proxy_plugins::sinks::{self, Problem, SinksSettings};
use serde_json::Value;

use super::error::SettingsError;
use super::yaml::{Content, Node};

/// The key of the file.
pub(super) const KEY: &str = "sinks";

/// Reads the value of [`KEY`]. `variable` tells the variables that credentials may stand in.
pub(super) fn read(node: &Node, variable: impl Fn(&str) -> Option<Secret>) -> Result<SinksSettings, SettingsError> {
    sinks::read(&tree(node), &variable).map_err(|problem| placed(node, &problem))
}

/// The same for who serves none of the sinks: which there are, without their credentials.
pub(super) fn read_names(node: &Node) -> Result<SinksSettings, SettingsError> {
    sinks::read_names(&tree(node)).map_err(|problem| placed(node, &problem))
}

/// Single values stay the texts that they are written as: which of them are numbers, the sinks know.
fn tree(node: &Node) -> Value {
    match &node.content {
        Content::Nothing => Value::Null,
        Content::Text(text) => Value::String(text.clone()),
        Content::List(items) => items.iter().map(tree).collect(),
        Content::Map(entries) => entries.iter().map(|(key, value)| (key.text.clone(), tree(value))).collect(),
    }
}

/// The problem at its place in the file. Where the last key is one that is missing, that is the key above it.
fn placed(root: &Node, problem: &Problem) -> SettingsError {
    let mut name = KEY.to_owned();
    let mut node = Some(root);
    let mut above = &root.place;
    for key in &problem.path {
        if let Some(Content::List(items)) = node.map(|node| &node.content) {
            // An item has no name but its list's.
            node = key.parse::<usize>().ok().and_then(|index| items.get(index));
            continue;
        }
        name = format!("{name}.{key}");
        let entry = match node.map(|node| &node.content) {
            Some(Content::Map(entries)) => entries.iter().find(|(found, _)| found.text == *key),
            _ => None,
        };
        if let Some((found, _)) = entry {
            above = &found.place;
        }
        node = entry.map(|(_, value)| value);
    }
    if problem.text.starts_with("unknown key") {
        return above.error(&problem.text);
    }
    let place = match node {
        Some(Node { place, content: Content::Text(_) | Content::List(_) }) => place,
        _ => above,
    };
    place.of(&name).error(&problem.text)
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn sinks(text: &str) -> Result<SinksSettings, String> {
        let node = yaml::parse("f", text).unwrap();
        read(&node, |name| (name == "HOOK_SECRET").then(|| Secret::new(SECRET))).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_what_the_sinks_read() {
        let text = "\
file: none
hook:
  type: webhook
  url: https://a.example/hook
  secret_env: HOOK_SECRET
  batch: {events: 20, age: 200ms}
  max_attempts: 3
  sample: 0.5
  only: {outcomes: [finished, timeout]}
";
        let sinks = sinks(text).unwrap();
        assert!(sinks.file.is_none());
        let [hook] = sinks.dispatched.as_slice() else { panic!("{sinks:?}") };
        assert_eq!((&*hook.name, hook.kind), ("hook", "webhook"));
        assert_eq!((hook.policy.limits.events, hook.policy.max_attempts), (20, 3));
        assert_eq!(hook.policy.filter.only.as_ref().unwrap().outcomes.len(), 2);
    }

    #[test]
    fn every_mistake_has_its_line_and_column() {
        let hook = |more: &str| format!("webhook:\n  url: https://a.example\n  secret_env: HOOK_SECRET\n{more}");
        for (text, expected) in [
            ("~".to_owned(), "f:1:1: sinks: found nothing, expected a map from the name of a sink"),
            ("[a]".to_owned(), "f:1:1: sinks: found a list, expected a map from the name of a sink"),
            ("file: none\nsplunk: {}\n".to_owned(), "f:2:1: sinks.splunk: found the type \"splunk\", expected one of"),
            ("x:\n  type: s3\n".to_owned(), "f:1:1: sinks.x: found the type \"s3\", expected one of"),
            ("x:\n  type: [s3]\n".to_owned(), "f:2:9: sinks.x.type: found a list, expected a text"),
            ("webhook: none\n".to_owned(), "f:1:10: sinks.webhook: found none, expected the sink's settings"),
            ("webhook:\n".to_owned(), "f:1:1: sinks.webhook.url: found nothing, expected a URL"),
            ("a: {type: file}\nb: {type: file}\n".to_owned(), "f:2:1: sinks.b: found a second file, expected one"),
            (hook("  urll: x\n"), "f:4:3: unknown key `urll`, expected one of `url`"),
            (hook("  batch:\n    size: 1\n"), "f:5:5: unknown key `size`, expected one of `events`"),
            (hook("  batch:\n    events: many\n"), "f:5:13: sinks.webhook.batch.events: found \"many\", expected a"),
            (hook("  sample: 2\n"), "f:4:11: sinks.webhook.sample: found \"2\", expected a share"),
            (hook("  only: {}\n"), "f:4:3: sinks.webhook.only: found nothing in it, expected types"),
            (
                hook("  only: {outcomes: [finished, done]}\n"),
                "f:4:31: sinks.webhook.only.outcomes: found \"done\", expected one of finished",
            ),
            (
                "webhook:\n  url: https://a.example\n  secret_env: NOT_THERE\n".to_owned(),
                "f:3:15: sinks.webhook.secret_env: found no variable NOT_THERE, expected whsec_",
            ),
        ] {
            let error = sinks(&text).unwrap_err();
            assert!(error.starts_with(expected), "{text}\n{error}\n{expected}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
