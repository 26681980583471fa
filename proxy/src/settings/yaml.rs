//! The YAML file as a tree in which every value knows its line and column.
//!
//! A tree rather than derived structs, because every mistake in this file must become one line of our own that names
//! the place, what was found and what is expected; because `allowed_endpoints:` with nothing behind it must not read
//! as "absent", which would be the laxer meaning; and because no message may show the value of a secret.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, MessageFormatter, Spanned, UserMessageFormatter};

use super::error::{Place, SettingsError, shown};
use super::near_miss::nearest;
use super::values::{Found, Rule};

/// One value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) content: Content,
}

/// What a value is. Numbers and booleans are the text they are written as: which they are meant to be is for the
/// reader of the key to say.
#[derive(Debug)]
pub(super) enum Content {
    Nothing,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map and where it stands.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) place: Place,
}

impl Node {
    /// The value as a rule judges it.
    pub(super) fn found(&self) -> Found<'_> {
        match &self.content {
            Content::Nothing => Found::Other("nothing"),
            Content::Text(text) => Found::Text(text),
            Content::List(_) => Found::Other("a list"),
            Content::Map(_) => Found::Other("a map"),
        }
    }

    /// Reads a single value. `path` is its key, for the message.
    pub(super) fn read<T>(&self, path: &str, rule: &Rule<T>) -> Result<T, SettingsError> {
        rule.judge(self.found()).map_err(|problem| self.place.of(path).error(problem))
    }

    /// Reads a list of single values. An empty one is returned as such.
    pub(super) fn read_list<T>(&self, path: &str, rule: &Rule<T>) -> Result<Vec<T>, SettingsError> {
        let Content::List(items) = &self.content else {
            let problem = format!("found {}, expected a list, each item {}", self.found().described(), rule.expected);
            return Err(self.place.of(path).error(problem));
        };
        items.iter().map(|item| item.read(path, rule)).collect()
    }

    /// The entries of a map, whatever their keys.
    pub(super) fn entries(&self, path: &str, expected: &str) -> Result<&[(Key, Node)], SettingsError> {
        match &self.content {
            Content::Map(entries) => Ok(entries),
            _ => {
                let problem = format!("found {}, expected {expected}", self.found().described());
                Err(self.place.of(path).error(problem))
            }
        }
    }
}

/// A map whose keys are a closed set: having one means that no other key is in it.
pub(super) struct Fields<'a> {
    path: String,
    entries: &'a [(Key, Node)],
}

impl<'a> Fields<'a> {
    /// Checks every key against the known ones.
    pub(super) fn new(path: String, entries: &'a [(Key, Node)], known: &[&str]) -> Result<Self, SettingsError> {
        for (key, _) in entries {
            if !known.contains(&key.text.as_str()) {
                return Err(key.place.error(unknown_key(&key.text, known)));
            }
        }
        Ok(Self { path, entries })
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|(found, _)| found.text == key).map(|(_, node)| node)
    }

    /// The full name of a key, such as `apis.openai.dialect`.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Reads a single value, `None` when the key is absent.
    pub(super) fn read<T>(&self, key: &str, rule: &Rule<T>) -> Result<Option<T>, SettingsError> {
        self.get(key).map(|node| node.read(&self.name(key), rule)).transpose()
    }

    /// Reads a list, `None` when the key is absent.
    pub(super) fn read_list<T>(&self, key: &str, rule: &Rule<T>) -> Result<Option<Vec<T>>, SettingsError> {
        self.get(key).map(|node| node.read_list(&self.name(key), rule)).transpose()
    }
}

fn unknown_key(found: &str, known: &[&str]) -> String {
    let list: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
    let hint = nearest(found, known).map_or(String::new(), |name| format!(" (did you mean `{name}`?)"));
    format!("unknown key `{}`, expected one of {}{hint}", shown(found), list.join(", "))
}

/// Reads the text of a file. `path` is only for messages. An empty file is [`Content::Nothing`].
pub(super) fn parse(path: &str, text: &str) -> Result<Node, SettingsError> {
    let raw: Spanned<Raw> = serde_saphyr::from_str(text).map_err(|error| explained(path, &error))?;
    located(raw, path, text)
}

/// What the parser refuses, in one line. Its own rendering would add a snippet, which could show a secret.
fn explained(path: &str, error: &serde_saphyr::Error) -> SettingsError {
    let place = error
        .location()
        .map_or_else(|| Place::whole_file(path), |location| Place::in_file(path, location.line(), location.column()));
    let mut cause = error.without_snippet();
    while let serde_saphyr::Error::AliasError { error, .. } = cause {
        cause = error.without_snippet();
    }
    match cause {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            place.error(format!("key `{}` stands here for the second time, expected it once", shown(key)))
        }
        serde_saphyr::Error::NonFiniteFloat { .. } => {
            place.error("found a number out of range, expected text in quotes")
        }
        cause => place.error(format!("found text that is no YAML: {}", UserMessageFormatter.format_message(cause))),
    }
}

/// The tree as it comes out of the parser.
enum Raw {
    Nothing,
    /// A number or a boolean. Its text is read from the source, so that `0.50` and long digits stay what they are.
    Bare,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("text, a number, true, false, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Nothing)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Bare)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Bare)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Bare)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Bare)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Raw, E> {
        Ok(Raw::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key()? {
            map.push((key, entries.next_value()?));
        }
        Ok(Raw::Map(map))
    }
}

/// Turns spans into places. Recursion is as deep as the parser lets a file nest (64).
fn located(raw: Spanned<Raw>, path: &str, source: &str) -> Result<Node, SettingsError> {
    let place = place_of(path, raw.referenced, raw.defined);
    let content = match raw.value {
        Raw::Nothing => Content::Nothing,
        Raw::Text(text) => Content::Text(text),
        Raw::Bare => Content::Text(
            written(source, raw.defined)
                .ok_or_else(|| place.error("found a bare value that cannot be read, expected it in quotes"))?,
        ),
        Raw::List(items) => {
            Content::List(items.into_iter().map(|item| located(item, path, source)).collect::<Result<_, _>>()?)
        }
        Raw::Map(entries) => {
            let mut map = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                let key = Key { text: key.value, place: place_of(path, key.referenced, key.defined) };
                let mut node = located(value, path, source)?;
                if matches!(node.content, Content::Nothing) {
                    // Nothing stands nowhere; its key does.
                    node.place = key.place.clone();
                }
                map.push((key, node));
            }
            Content::Map(map)
        }
    };
    Ok(Node { place, content })
}

/// Where the reader of the file should look: at the use of an alias, not at its anchor.
fn place_of(path: &str, referenced: Location, defined: Location) -> Place {
    let location = if referenced == Location::UNKNOWN { defined } else { referenced };
    Place::in_file(path, location.line(), location.column())
}

/// The source text of a number or boolean.
fn written(source: &str, location: Location) -> Option<String> {
    let span = location.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let end = start.checked_add(usize::try_from(span.byte_len()?).ok()?)?;
    let text = source.get(start..end)?.trim();
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_');
    (!text.is_empty() && text.bytes().all(is_bare)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(node: &Node) -> Vec<String> {
        match &node.content {
            Content::Nothing => vec![format!("{} -", node.place)],
            Content::Text(text) => vec![format!("{} {text}", node.place)],
            Content::List(items) => items.iter().flat_map(texts).collect(),
            Content::Map(entries) => entries
                .iter()
                .flat_map(|(key, node)| [vec![format!("{} {}:", key.place, key.text)], texts(node)].concat())
                .collect(),
        }
    }

    #[test]
    fn every_value_keeps_its_text_and_its_place() {
        let node = parse("f", "a: 0.50\nb: [12345678901234567890123, true, \"x\", 0x1F]\nc:\n  d: plain text\n  e:\n")
            .unwrap();
        assert_eq!(
            texts(&node),
            [
                "f:1:1 a:",
                "f:1:4 0.50",
                "f:2:1 b:",
                "f:2:5 12345678901234567890123",
                "f:2:30 true",
                "f:2:36 x",
                "f:2:41 0x1F",
                "f:3:1 c:",
                "f:4:3 d:",
                "f:4:6 plain text",
                "f:5:3 e:",
                "f:5:3 -",
            ]
        );
    }

    #[test]
    fn an_empty_file_is_nothing() {
        for text in ["", "\n", "# only a comment\n", "---\n"] {
            assert!(matches!(parse("f", text).unwrap().content, Content::Nothing), "{text:?}");
        }
    }

    #[test]
    fn an_alias_repeats_its_anchor() {
        let node = parse("f", "a: &one 5\nb: *one\n").unwrap();
        assert_eq!(texts(&node), ["f:1:1 a:", "f:1:9 5", "f:2:1 b:", "f:2:4 5"]);
    }

    #[test]
    fn what_is_no_yaml_is_one_line_with_a_place_and_without_the_text() {
        for text in [
            "a: [hunter2",
            "a: 'hunter2",
            "a: hunter2: b",
            "a: *hunter2\n",
            "a: hunter2\na: x",
            "a: 1\n---\nb: 2\n",
            "? [a]\n: hunter2\n",
            "\thunter2: [\n",
        ] {
            let error = parse("f.yaml", text).unwrap_err().to_string();
            assert!(error.starts_with("f.yaml:"), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_key_given_twice_is_named() {
        let error = parse("f", "abc: 1\nabc: 2\n").unwrap_err().to_string();
        assert_eq!(error, "f:2:1: key `abc` stands here for the second time, expected it once");
    }
}
