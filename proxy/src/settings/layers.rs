//! Flag > environment > `.env` > YAML file > default, and the word of every layer is judged.
//!
//! A bad value stops the start even where a higher layer hides it: the day that layer goes, a process that always
//! started would not.

use std::collections::HashMap;
use std::ffi::OsString;

use llm_proxy_core::secret::Secret;

use super::error::{Place, SettingsError, shown};
use super::values::{Found, Rule};
use super::yaml::{Content, Fields};
use super::{NAMES, SECRETS, dotenv, near_miss};

/// A setting's value, and where it was found.
pub(super) struct Chosen<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// What flags, environment and `.env` say. The text of any of them may be a secret, so all are kept as such.
#[derive(Default)]
pub(super) struct Layers {
    /// Lowest layer first.
    given: Vec<Given>,
    /// Every variable that is not empty, whoever it is for: `sinks:` may name any of them.
    variables: HashMap<String, Secret>,
}

struct Given {
    name: &'static str,
    text: Secret,
    place: Place,
}

impl Layers {
    /// Adds the `.env` file. An unknown name is another program's, unless it looks like ours.
    pub(super) fn add_dotenv(&mut self, text: &str, warnings: &mut Vec<String>) -> Result<(), SettingsError> {
        let mut first_lines: Vec<(&'static str, usize)> = Vec::new();
        for entry in dotenv::parse(text)? {
            let place = Place::dotenv(entry.line).of(&entry.key);
            self.note_variable(&entry.key, &entry.value);
            let Some(name) = known(&entry.key) else {
                warn_of(&entry.key, Some(entry.line), warnings);
                continue;
            };
            if let Some((_, line)) = first_lines.iter().find(|(seen, _)| *seen == name) {
                return Err(place.error(format!("found it a second time, expected it once: line {line} has it too")));
            }
            first_lines.push((name, entry.line));
            self.add_variable(name, &entry.value, place);
        }
        Ok(())
    }

    /// Adds the process environment.
    pub(super) fn add_environment(
        &mut self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        warnings: &mut Vec<String>,
    ) -> Result<(), SettingsError> {
        for (variable, value) in environment {
            let Ok(variable) = variable.into_string() else { continue };
            let value = value.into_string();
            if let Ok(text) = &value {
                self.note_variable(&variable, text);
            }
            let Some(name) = known(&variable) else {
                warn_of(&variable, None, warnings);
                continue;
            };
            let place = Place::variable(name);
            let value = value.map_err(|_| place.error("found text that is not UTF-8, expected UTF-8"))?;
            self.add_variable(name, &value, place);
        }
        Ok(())
    }

    fn note_variable(&mut self, variable: &str, text: &str) {
        if !text.is_empty() {
            self.variables.insert(variable.to_owned(), Secret::new(text));
        }
    }

    /// The value of any variable, of the environment or else of `.env`.
    pub(super) fn variable(&self, name: &str) -> Option<Secret> {
        self.variables.get(name).cloned()
    }

    /// An empty variable counts as unset, as compose files and CI systems pass it on. An empty secret does not: it was
    /// meant to be set, and a generated one in its place would lock its owner out.
    fn add_variable(&mut self, name: &'static str, text: &str, place: Place) {
        if !text.is_empty() || SECRETS.contains(&name) {
            self.given.push(Given { name, text: Secret::new(text), place });
        }
    }

    /// Adds the flags, by the names of their settings.
    pub(super) fn add_flags(&mut self, flags: Vec<(&'static str, Secret)>) {
        let given = flags.into_iter().map(|(name, text)| Given { name, text, place: Place::flag(name) });
        self.given.extend(given);
    }

    /// Judges every word on this setting and takes the highest layer's. `file` is the layer below all others.
    pub(super) fn choose<T>(
        &self,
        name: &str,
        rule: &Rule<T>,
        file: Option<&Fields<'_>>,
    ) -> Result<Option<Chosen<T>>, SettingsError> {
        let key = name.to_ascii_lowercase();
        let below = match file.and_then(|fields| fields.get(&key)) {
            Some(node) => Some(Chosen { value: node.read(&key, rule)?, place: node.place.of(&key) }),
            None => None,
        };
        self.outrank(below, name, rule)
    }

    /// The same for a list, which may be one in the file. In the other layers, and in one line of the file, `rule` says
    /// what stands between its items.
    pub(super) fn choose_list<T>(
        &self,
        name: &str,
        rule: &Rule<Vec<T>>,
        item: &Rule<T>,
        file: Option<&Fields<'_>>,
    ) -> Result<Option<Chosen<Vec<T>>>, SettingsError> {
        let key = name.to_ascii_lowercase();
        let list = file.and_then(|fields| fields.get(&key)).filter(|node| matches!(node.content, Content::List(_)));
        let Some(node) = list else { return self.choose(name, rule, file) };
        let (value, place) = (node.read_list(&key, item)?, node.place.of(&key));
        if value.is_empty() {
            return Err(place.error("found an empty list, expected at least one item, or no such key"));
        }
        self.outrank(Some(Chosen { value, place }), name, rule)
    }

    /// Judges the word of every layer above the file.
    fn outrank<T>(
        &self,
        mut chosen: Option<Chosen<T>>,
        name: &str,
        rule: &Rule<T>,
    ) -> Result<Option<Chosen<T>>, SettingsError> {
        for given in self.given.iter().filter(|given| given.name == name) {
            let value = rule.judge(Found::Text(given.text.expose())).map_err(|problem| given.place.error(problem))?;
            chosen = Some(Chosen { value, place: given.place.clone() });
        }
        Ok(chosen)
    }
}

fn known(variable: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|name| *name == variable)
}

fn warn_of(variable: &str, dotenv_line: Option<usize>, warnings: &mut Vec<String>) {
    if let Some(meant) = near_miss::meant(variable) {
        let place = dotenv_line.map_or(String::new(), |line| format!(".env:{line}: "));
        warnings.push(format!("{place}{} is not a setting: did you mean {meant}?", shown(variable)));
    }
}
