//! What a client says about its request in headers of ours: tags for the record, and that less of it be kept.
//!
//! `x-llm-proxy-*` are ours. `Helicone-*` are what applications send that were made for that service, and mean the same
//! here. Ours go to no provider; the others do, as it may be a gateway that wants them.

use std::collections::BTreeMap;

use super::Policy;

/// Most tags of one request. The first count, in the order of their headers.
pub const MAX_TAGS: usize = 32;
/// Longest name of a tag in bytes; longer ones are dropped.
pub const MAX_NAME_BYTES: usize = 64;
/// Longest value of a tag in bytes; longer ones are cut.
pub const MAX_VALUE_BYTES: usize = 256;

const OURS: &str = "x-llm-proxy-";
const HELICONE: &str = "helicone-";

/// The tags that headers ask for: `user_id`, `session_id`, `session_name`, `session_path`, `prompt_id`, and what the
/// client calls others (`x-llm-proxy-tag-<name>`, `Helicone-Property-<Name>`, in lower case). Names have `[a-z0-9_.-]`.
///
/// A value is text without control characters; what is not UTF-8, or empty, is dropped. Where both kinds of headers
/// name a tag, ours counts, and of one kind the first. Under [`Policy::None`] there are none.
pub fn tags<'h>(policy: Policy, headers: impl Iterator<Item = (&'h str, &'h [u8])>) -> BTreeMap<String, String> {
    let mut tags: BTreeMap<String, Tag> = BTreeMap::new();
    if policy == Policy::None {
        return BTreeMap::new();
    }
    for (name, value) in headers {
        let Some(header) = Header::of(name) else { continue };
        let Some((name, value)) = header.tag_name().zip(cleaned(value)) else { continue };
        let is_ours = header.is_ours;
        let is_full = tags.len() >= MAX_TAGS;
        match tags.get_mut(&name) {
            Some(tag) if is_ours && !tag.is_ours => *tag = Tag { value, is_ours },
            Some(_) => {}
            None if is_full => {}
            None => {
                tags.insert(name, Tag { value, is_ours });
            }
        }
    }
    tags.into_iter().map(|(name, tag)| (name, tag.value)).collect()
}

/// Which bodies a client wants left out of the record, whatever the policy would keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Omit {
    /// `x-llm-proxy-omit-request: true` or `Helicone-Omit-Request: true`.
    pub request: bool,
    /// `x-llm-proxy-omit-response: true` or `Helicone-Omit-Response: true`.
    pub response: bool,
}

/// Reads what a client wants left out. A client can ask for less than the policy keeps, never for more.
pub fn omit<'h>(headers: impl Iterator<Item = (&'h str, &'h [u8])>) -> Omit {
    let mut omit = Omit::default();
    for (name, value) in headers {
        let Some(header) = Header::of(name) else { continue };
        if value.trim_ascii().eq_ignore_ascii_case(b"true") {
            omit.request |= header.rest.eq_ignore_ascii_case("omit-request");
            omit.response |= header.rest.eq_ignore_ascii_case("omit-response");
        }
    }
    omit
}

struct Tag {
    value: String,
    is_ours: bool,
}

/// A header's name, by whom it was invented.
struct Header<'n> {
    is_ours: bool,
    rest: &'n str,
}

impl<'n> Header<'n> {
    fn of(name: &'n str) -> Option<Self> {
        let (prefix, is_ours) = match name.as_bytes().first()? {
            b'x' | b'X' => (OURS, true),
            b'h' | b'H' => (HELICONE, false),
            _ => return None,
        };
        let (head, rest) = name.split_at_checked(prefix.len())?;
        head.eq_ignore_ascii_case(prefix).then_some(Self { is_ours, rest })
    }

    fn tag_name(&self) -> Option<String> {
        let rest = self.rest.to_ascii_lowercase();
        let known = match &*rest {
            "user-id" => Some("user_id"),
            "session-id" => Some("session_id"),
            "session-name" => Some("session_name"),
            "session-path" => Some("session_path"),
            "prompt-id" => Some("prompt_id"),
            _ => None,
        };
        if let Some(known) = known {
            return Some(known.to_owned());
        }
        let name = rest.strip_prefix(if self.is_ours { "tag-" } else { "property-" })?;
        let is_part =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'.' | b'-');
        ((1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_part)).then(|| name.to_owned())
    }
}

fn cleaned(value: &[u8]) -> Option<String> {
    let value = std::str::from_utf8(value).ok()?;
    let clean: String = value.chars().filter(|character| !character.is_control()).collect();
    let clean = clean.trim();
    let kept = clean.get(..clean.floor_char_boundary(MAX_VALUE_BYTES))?.trim_end();
    (!kept.is_empty()).then(|| kept.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(headers: &[(&str, &str)]) -> Vec<(String, String)> {
        let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
        tags(Policy::Metadata, headers).into_iter().collect()
    }

    fn told_as(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn headers_become_tags() {
        for (headers, expected) in [
            (
                &[("Helicone-User-Id", "u"), ("content-type", "x"), ("host", "h"), ("x", "y")][..],
                &[("user_id", "u")][..],
            ),
            (
                &[("helicone-session-id", "1"), ("Helicone-Session-Name", "n"), ("HELICONE-SESSION-PATH", "/a")],
                &[("session_id", "1"), ("session_name", "n"), ("session_path", "/a")],
            ),
            (
                &[("Helicone-Prompt-Id", "p"), ("Helicone-Property-Team.X", "a b")],
                &[("prompt_id", "p"), ("team.x", "a b")],
            ),
            (
                &[("X-LLM-Proxy-User-Id", "u"), ("x-llm-proxy-session-id", "1"), ("x-llm-proxy-session-name", "2")],
                &[("session_id", "1"), ("session_name", "2"), ("user_id", "u")],
            ),
            (
                &[("x-llm-proxy-session-path", "1"), ("x-llm-proxy-prompt-id", "2"), ("x-llm-proxy-tag-Env", "3")],
                &[("env", "3"), ("prompt_id", "2"), ("session_path", "1")],
            ),
            // Ours count, whatever comes first; then the first.
            (
                &[("helicone-user-id", "theirs"), ("x-llm-proxy-user-id", "ours"), ("x-llm-proxy-user-id", "second")],
                &[("user_id", "ours")],
            ),
            (&[("x-llm-proxy-tag-a", "ours"), ("helicone-property-a", "theirs")], &[("a", "ours")]),
            // What is no tag, or no name, or no value.
            (
                &[
                    ("helicone-auth", "Bearer x"),
                    ("helicone-tag-a", "1"),
                    ("x-llm-proxy-property-a", "1"),
                    ("x-llm-proxy-", "1"),
                    ("helicone", "1"),
                ],
                &[],
            ),
            (
                &[
                    ("x-llm-proxy-tag-", "1"),
                    ("x-llm-proxy-tag-a b", "1"),
                    ("x-llm-proxy-tag-é", "1"),
                    ("x-llm-proxy-tag-a/b", "1"),
                ],
                &[],
            ),
            (
                &[("x-llm-proxy-tag-a", ""), ("x-llm-proxy-tag-b", " \t "), ("x-llm-proxy-tag-c", " c\u{7}\u{9b}d ")],
                &[("c", "cd")],
            ),
        ] {
            assert_eq!(told(headers), told_as(expected), "{headers:?}");
        }
        assert!(tags(Policy::None, [("helicone-user-id", &b"u"[..])].into_iter()).is_empty());
        assert!(tags(Policy::Full, [("helicone-user-id", &b"\xff"[..])].into_iter()).is_empty());
    }

    #[test]
    fn tags_have_bounds() {
        let names: Vec<String> = (0..40).map(|n| format!("x-llm-proxy-tag-{n:02}")).collect();
        let headers: Vec<_> = names.iter().map(|name| (&**name, "v")).chain([("helicone-property-00", "w")]).collect();
        let found = told(&headers);
        assert_eq!(found.len(), MAX_TAGS);
        assert_eq!(found.last().unwrap().0, "31", "the first count");

        for (length, is_taken) in [(MAX_NAME_BYTES, true), (MAX_NAME_BYTES + 1, false)] {
            let name = format!("helicone-property-{}", "n".repeat(length));
            assert_eq!(!told(&[(&name, "v")]).is_empty(), is_taken, "{length}");
        }
        let value = format!("a{}", "é".repeat(200));
        assert_eq!(told(&[("helicone-user-id", &value)])[0].1, format!("a{}", "é".repeat(127)));
    }

    #[test]
    fn a_client_can_ask_for_less() {
        let omitted = |headers: &[(&str, &str)]| {
            let omit = omit(headers.iter().map(|(name, value)| (*name, value.as_bytes())));
            (omit.request, omit.response)
        };
        for (headers, expected) in [
            (&[][..], (false, false)),
            (&[("Helicone-Omit-Request", "true")], (true, false)),
            (&[("x-llm-proxy-omit-response", " True ")], (false, true)),
            (&[("x-llm-proxy-omit-request", "true"), ("helicone-omit-response", "true")], (true, true)),
            (
                &[("helicone-omit-request", "false"), ("x-llm-proxy-omit-response", "1"), ("omit-request", "true")],
                (false, false),
            ),
            (&[("helicone-omit-request", "true"), ("x-llm-proxy-omit-request", "false")], (true, false)),
        ] {
            assert_eq!(omitted(headers), expected, "{headers:?}");
        }
    }
}
