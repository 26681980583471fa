//! Patterns that policies are written in: endpoint lists, parameter globs, model lists, origins. And when two names are
//! one field to them.

use crate::dialect::Dialect;

/// A glob in which `*` matches any run of characters, `/` too. Everything else stands for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Box<str>);

impl Glob {
    /// Takes the pattern as written.
    pub fn new(pattern: &str) -> Self {
        Self(pattern.into())
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the whole text matches. Time is linear in text × stars: no pattern can make it explode.
    pub fn matches(&self, text: &str) -> bool {
        let mut pieces = self.0.split('*');
        let Some(mut rest) = pieces.next().and_then(|first| text.strip_prefix(first)) else { return false };
        let Some(last) = pieces.next_back() else { return rest.is_empty() };
        for piece in pieces {
            match rest.find(piece) {
                Some(at) => rest = rest.get(at.saturating_add(piece.len())..).unwrap_or(""),
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

/// When two names in a JSON body are one field to the provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// When they are equal. Some readers forgive the letter case.
    #[default]
    Exact,
    /// Also `generationConfig` and `generation_config`: readers of Protocol Buffers' JSON take a field by either name
    /// (Protocol Buffers documentation, "ProtoJSON Format").
    Proto,
}

impl Naming {
    /// How the APIs of a dialect read names.
    pub const fn of(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Gemini => Self::Proto,
            Dialect::OpenAi | Dialect::Anthropic | Dialect::Azure => Self::Exact,
        }
    }

    /// Whether `found` is a name of the field that `wanted` names.
    pub fn is_spelling(self, wanted: &str, found: &str) -> bool {
        match self {
            Self::Exact => wanted == found,
            Self::Proto => wanted == found || camel(wanted).eq(camel(found)),
        }
    }

    /// Whether some reader could take `found` for a name of that field.
    pub fn resembles(self, wanted: &str, found: &str) -> bool {
        match self {
            Self::Exact => {
                wanted.eq_ignore_ascii_case(found) || (!found.is_ascii() && self.folded(wanted).eq(self.folded(found)))
            }
            Self::Proto => self.folded(wanted).eq(self.folded(found)),
        }
    }

    /// What is equal of names that [resemble](Self::resembles) each other. Two letters beyond ASCII have a small one within
    /// it (Unicode, CaseFolding): the Kelvin sign and the long s, which readers in Go take for `k` and `s`.
    pub fn folded(self, name: &str) -> impl Iterator<Item = char> {
        name.chars().filter(move |letter| self == Self::Exact || *letter != '_').map(|letter| match letter {
            '\u{212A}' => 'k',
            '\u{17F}' => 's',
            letter => letter.to_ascii_lowercase(),
        })
    }
}

/// The name in lowerCamelCase, as Protocol Buffers makes it of a name with underscores.
fn camel(name: &str) -> impl Iterator<Item = u8> {
    let mut begins_word = false;
    name.bytes().filter_map(move |byte| {
        let is_first = std::mem::replace(&mut begins_word, byte == b'_');
        let letter = if is_first { byte.to_ascii_uppercase() } else { byte };
        (byte != b'_').then_some(letter)
    })
}

/// An entry of `allowed_endpoints`: `*` is one segment, a final `**` the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPattern {
    segments: Vec<Option<Box<str>>>,
    open_ended: bool,
}

impl EndpointPattern {
    /// Reads a pattern such as `/v1/models/*` or `/v1/files/**`.
    pub fn new(pattern: &str) -> Self {
        let mut segments: Vec<_> = pattern.split('/').filter(|segment| !segment.is_empty()).collect();
        let open_ended = segments.last() == Some(&"**");
        if open_ended {
            segments.pop();
        }
        let segments = segments.into_iter().map(|segment| (segment != "*").then(|| segment.into())).collect();
        Self { segments, open_ended }
    }

    /// Whether these segments are covered by a pattern that speaks of them: its first two segments are literal
    /// (`/v1/batches/**`, not `/v1/**`), and no segment hides another behind a `%2F`.
    pub fn names<S: AsRef<str>>(&self, path: &[S]) -> bool {
        let is_literal = self.segments.len() > 1 && self.segments.iter().take(2).all(Option::is_some);
        is_literal && path.iter().all(|segment| !segment.as_ref().contains('/')) && self.matches(path)
    }

    /// Whether these decoded segments are covered. `/v1/files/**` covers what is below `/v1/files`, not itself.
    pub fn matches<S: AsRef<str>>(&self, path: &[S]) -> bool {
        let length_fits =
            if self.open_ended { path.len() > self.segments.len() } else { path.len() == self.segments.len() };
        length_fits
            && self
                .segments
                .iter()
                .zip(path)
                .all(|(wanted, found)| wanted.as_deref().is_none_or(|wanted| wanted == found.as_ref()))
    }
}

/// Whether a token's model list allows this model. Entries are globs, so `gpt-4o*` covers the dated names.
pub fn model_allowed(allowed: &[Glob], model: &str) -> bool {
    allowed.iter().any(|glob| glob.matches(model))
}

/// Whether an origin may call: origins compare as the browser serializes them (RFC 6454 §6.2), ASCII case apart.
pub fn origin_allowed(allowed: &[Box<str>], origin: &str) -> bool {
    allowed.iter().any(|entry| &**entry == "*" || entry.eq_ignore_ascii_case(origin))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_matches_any_run() {
        for (pattern, text, expected) in [
            ("gpt-4o", "gpt-4o", true),
            ("gpt-4o", "gpt-4o-mini", false),
            ("gpt-4o*", "gpt-4o", true),
            ("gpt-4o*", "gpt-4o-mini", true),
            ("gpt-4o-*", "gpt-4o", false),
            ("*", "", true),
            ("*", "a/b", true),
            ("", "", true),
            ("", "a", false),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("ab*ba", "aba", false),
            ("*mini*", "gpt-4o-mini-2024", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern} on {text}");
        }
    }

    proptest! {
        #[test]
        fn a_glob_agrees_with_the_simplest_matcher(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            fn simple(pattern: &[u8], text: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|cut| simple(rest, &text[cut..])),
                    Some((first, rest)) => text.first() == Some(first) && simple(rest, &text[1..]),
                }
            }
            prop_assert_eq!(Glob::new(&pattern).matches(&text), simple(pattern.as_bytes(), text.as_bytes()));
        }
    }

    #[test]
    fn names_are_one_field_to_whom_they_are() {
        // Wanted, found, whether it is the field and whether it resembles it: exactly, and to Proto.
        for (wanted, found, exact, proto) in [
            ("model", "model", (true, true), (true, true)),
            ("model", "Model", (false, true), (false, true)),
            ("model", "models", (false, false), (false, false)),
            ("generationConfig", "generation_config", (false, false), (true, true)),
            ("generation_config", "generationConfig", (false, false), (true, true)),
            ("generationConfig", "GenerationConfig", (false, true), (false, true)),
            ("generationConfig", "generationconfig", (false, true), (false, true)),
            ("generationConfig", "generation__config", (false, false), (true, true)),
            ("generationConfig", "_generation_config", (false, false), (false, true)),
            ("top_k", "topK", (false, false), (true, true)),
            ("a_1", "a1", (false, false), (true, true)),
            ("max_tokens", "max_to\u{212a}en\u{17f}", (false, true), (false, true)),
            ("max_tokens", "max_to\u{fc}ens", (false, false), (false, false)),
            ("", "_", (false, false), (true, true)),
            ("\u{e4}_\u{f6}", "\u{e4}\u{f6}", (false, false), (true, true)),
        ] {
            for (naming, expected) in [(Naming::Exact, exact), (Naming::Proto, proto)] {
                let told = (naming.is_spelling(wanted, found), naming.resembles(wanted, found));
                assert_eq!(told, expected, "{found} for {wanted}, {naming:?}");
                assert_eq!(
                    naming.folded(wanted).eq(naming.folded(found)),
                    expected.1,
                    "{found} for {wanted}, {naming:?}"
                );
            }
        }
    }

    #[test]
    fn endpoint_patterns_count_segments() {
        for (pattern, path, expected) in [
            ("/v1/models", "v1/models", true),
            ("/v1/models", "v1/models/x", false),
            ("/v1/models/*", "v1/models/x", true),
            ("/v1/models/*", "v1/models", false),
            ("/v1/models/*", "v1/models/x/y", false),
            ("/v1/files/**", "v1/files/x/content", true),
            ("/v1/files/**", "v1/files", false),
            ("/**", "anything", true),
        ] {
            let path: Vec<_> = path.split('/').collect();
            assert_eq!(EndpointPattern::new(pattern).matches(&path), expected, "{pattern} on {path:?}");
        }
    }

    #[test]
    fn origins_compare_whole() {
        let allowed = ["https://app.example".into()];
        assert!(origin_allowed(&allowed, "https://app.example"));
        assert!(origin_allowed(&allowed, "https://APP.example"));
        assert!(!origin_allowed(&allowed, "https://app.example.evil"));
        assert!(!origin_allowed(&allowed, "null"));
        assert!(origin_allowed(&["*".into()], "null"));
    }
}
