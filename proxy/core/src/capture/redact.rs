//! Replaces secrets and personal data in text by what kind of thing stood there: `[email]`, `[phone]`, `[card]`,
//! `[iban]`, `[ip]`, `[secret]`.
//!
//! A scanner of our own, for three reasons. What can be found by shape alone is also what order numbers, dates and
//! hashes look like, so most finds need arithmetic (check digits, remainders) and a look at what stands on both sides,
//! which patterns without look-around cannot say. It reads each byte a bounded number of times, whatever the text. And
//! redacting twice is redacting once: what is written for a find can begin no other.
//!
//! It knows what a program can know by shape. Names, addresses of houses, dates of birth stay; who must not keep them
//! keeps `metadata`.

mod addresses;
mod numbers;
mod secrets;

use super::json::{Node, Object};

const EMAIL: &str = "[email]";
const PHONE: &str = "[phone]";
const CARD: &str = "[card]";
const IBAN: &str = "[iban]";
const IP: &str = "[ip]";
const SECRET: &str = "[secret]";
/// What stands for a text that was said again in its tokens.
const TOKENS: &str = "[tokens]";

/// A replacement changes what stands on its sides, and that may be what kept something else from being found. So a text
/// that was changed is looked through again; more often than this only for texts made for it.
const MAX_ROUNDS: usize = 8;

/// Longest word that is dropped from the end of a text that broke off, in bytes.
const MAX_LAST_WORD_BYTES: usize = 64;

/// Redacts every string of a value, each as a whole, but no names of members.
///
/// The strings in which protocols name things are left, as ids are digits too: `id`, `model`, `role`, `type` and their
/// like. Not so inside what a caller or a model filled in freely (`arguments`, `input`, `metadata` …), where an `id`
/// may be anybody's; numbers that are cards go there as well. What says a text again in pieces, in which nothing would be
/// found, is left out.
pub(super) fn value(node: &mut Node<'_>) {
    visit(node, false);
}

/// The text without what must not be kept; `None` if nothing was found.
pub(super) fn text(text: &str) -> Option<String> {
    let mut clean = once(text)?;
    for _ in 1..MAX_ROUNDS {
        match once(&clean) {
            Some(cleaner) => clean = cleaner,
            None => break,
        }
    }
    Some(clean)
}

/// Drops the last word of what was being written when an answer broke off: it may be half of what is to be replaced.
/// Which of its texts that was is not asked; a few words more are no loss in half an answer.
pub(super) fn drop_last_words(node: &mut Node<'_>) {
    match node {
        Node::Bare(_) | Node::Text(_) => {}
        Node::List(items) => items.iter_mut().for_each(drop_last_words),
        Node::Object(Object { members }) => {
            for (name, value) in members {
                match value {
                    Node::Text(text) if is_written(name) || text.ends_with('…') => {
                        let kept = text.get(..last_word(text)).filter(|kept| kept.len() < text.len());
                        if let Some(shorter) = kept.map(|kept| format!("{kept}…")) {
                            *text = shorter.into();
                        }
                    }
                    value => drop_last_words(value),
                }
            }
        }
    }
}

/// Members that a model writes piece by piece.
fn is_written(name: &str) -> bool {
    matches!(
        name,
        "content"
            | "text"
            | "reasoning"
            | "reasoning_content"
            | "refusal"
            | "thinking"
            | "arguments"
            | "input"
            | "code"
            | "transcript"
    )
}

/// Where the last word begins, or its last 64 bytes.
fn last_word(text: &str) -> usize {
    let near = text.floor_char_boundary(text.len().saturating_sub(MAX_LAST_WORD_BYTES));
    let tail = text.get(near..).unwrap_or_default();
    near.saturating_add(tail.rfind(char::is_whitespace).unwrap_or_default())
}

fn visit(node: &mut Node<'_>, is_free: bool) {
    match node {
        Node::Bare(word) => {
            if is_free && let Some(clean) = text(word) {
                *node = Node::Text(clean.into()); // what stands for a card's number is no number
            }
        }
        Node::Text(found) => {
            if let Some(clean) = text(found) {
                *found = clean.into();
            }
        }
        Node::List(items) => items.iter_mut().for_each(|item| visit(item, is_free)),
        Node::Object(Object { members }) => {
            for (name, value) in members {
                if is_said_again(name, value) {
                    *value = Node::Text(TOKENS.into());
                } else if is_free || !(is_protocol(name) && value.as_text().is_some()) {
                    visit(value, is_free || is_free_form(name));
                }
            }
        }
    }
}

/// Members that hold the tokens of a text, or its words with their times.
fn is_said_again(name: &str, value: &Node<'_>) -> bool {
    let (first, is_filled) = match value {
        Node::List(items) => (items.first(), !items.is_empty()),
        Node::Object(Object { members }) => (None, !members.is_empty()),
        _ => return false,
    };
    match name {
        "logprobs" | "top_logprobs" | "logprobsResult" | "logprobs_result" => is_filled,
        "tokens" => matches!(first, Some(Node::Bare(_))),
        "words" => first.and_then(Node::as_object).is_some_and(|word| word.get("word").is_some()),
        _ => false,
    }
}

/// Members whose strings name things of the protocol.
fn is_protocol(name: &str) -> bool {
    matches!(
        name,
        "id" | "model"
            | "role"
            | "type"
            | "object"
            | "status"
            | "finish_reason"
            | "finishReason"
            | "stop_reason"
            | "system_fingerprint"
            | "service_tier"
            | "modelVersion"
            | "responseId"
            | "call_id"
            | "tool_call_id"
            | "tool_use_id"
            | "item_id"
            | "previous_response_id"
    )
}

/// Members whose content has no form that the protocol gives it.
fn is_free_form(name: &str) -> bool {
    matches!(name, "arguments" | "args" | "input" | "metadata" | "output" | "response" | "parameters")
}

/// One pass over a text.
struct Pass<'t> {
    text: &'t str,
    out: String,
    /// So much of the text is in `out`, or was replaced there.
    copied: usize,
}

/// What stands from one place to another, and what is written for it.
struct Found {
    start: usize,
    end: usize,
    label: &'static str,
}

fn once(text: &str) -> Option<String> {
    let mut pass = Pass { text, out: String::new(), copied: 0 };
    let mut place = 0usize;
    while let Some(byte) = text.as_bytes().get(place) {
        place = match pass.look(place, *byte) {
            Some(found) => {
                pass.replace(&found);
                found.end
            }
            None => place.saturating_add(1),
        };
    }
    pass.finish()
}

impl Pass<'_> {
    /// What is found at a place: beginning there, or for a mailbox around it.
    fn look(&self, place: usize, byte: u8) -> Option<Found> {
        if byte == b'@' {
            return self.mailbox(place);
        }
        if !(byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'(' | b'-' | b':')) {
            return None;
        }
        let rest = self.text.as_bytes().get(place..).unwrap_or_default();
        let found = |length: usize, label| Found { start: place, end: place.saturating_add(length), label };
        if byte == b'-' {
            return secrets::private_key(rest).map(|length| found(length, SECRET));
        }
        if !self.begins_word(place) {
            return None;
        }
        if byte.is_ascii_alphabetic() {
            if let Some((start, end)) = secrets::bearer(rest) {
                return Some(Found {
                    start: place.saturating_add(start),
                    end: place.saturating_add(end),
                    label: SECRET,
                });
            }
            if self.begins_key(place)
                && let Some(length) = secrets::key(rest)
            {
                return Some(found(length, SECRET));
            }
        }
        if !self.begins_number(place) {
            return None;
        }
        if matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' | b':')
            && self.before(place, 1) != Some(b':')
            && let Some(length) = addresses::ipv6(rest)
        {
            return Some(found(length, IP));
        }
        match byte {
            b'A'..=b'Z' => numbers::iban(rest).map(|length| found(length, IBAN)),
            b'0'..=b'9' => {
                let ip = addresses::ipv4(rest).filter(|_| !self.is_version(place)).map(|length| found(length, IP));
                ip.or_else(|| numbers::card(rest).map(|length| found(length, CARD)))
                    .or_else(|| numbers::phone(rest).map(|length| found(length, PHONE)))
            }
            b'+' | b'(' => numbers::phone(rest).map(|length| found(length, PHONE)),
            _ => None,
        }
    }

    fn mailbox(&self, at: usize) -> Option<Found> {
        // What was replaced is no part of it.
        let before = self.text.get(self.copied..at)?;
        let after = self.text.get(at.saturating_add(1)..)?;
        let (local, domain) = addresses::mailbox(before, after)?;
        Some(Found { start: at.saturating_sub(local), end: at.saturating_add(1).saturating_add(domain), label: EMAIL })
    }

    /// The byte so far before a place, in the text as it is written.
    fn before(&self, place: usize, distance: usize) -> Option<u8> {
        let since = place.saturating_sub(self.copied);
        match distance.checked_sub(since) {
            None | Some(0) => self.text.as_bytes().get(place.checked_sub(distance)?).copied(),
            Some(in_out) => self.out.as_bytes().get(self.out.len().checked_sub(in_out)?).copied(),
        }
    }

    /// No letter or digit stands before, but for those of an escape: `\n` and `\u0022`, in JSON that is inside a string, or
    /// `%20`, in a URL.
    fn begins_word(&self, place: usize) -> bool {
        let Some(before) = self.before(place, 1) else { return true };
        let follows_escape = || self.before(place, 2) == Some(b'\\') && is_escape(before);
        !before.is_ascii_alphanumeric() || follows_escape() || self.follows_code(place)
    }

    fn follows_code(&self, place: usize) -> bool {
        let is_before = |distance: usize, byte: u8| self.before(place, distance) == Some(byte);
        let is_hex = |digits: usize| {
            (1..=digits).all(|distance| self.before(place, distance).is_some_and(|byte| byte.is_ascii_hexdigit()))
        };
        is_hex(2) && (is_before(3, b'%') || is_hex(4) && is_before(5, b'u') && is_before(6, b'\\'))
    }

    /// A key begins with its run of letters, so that a run is read once.
    fn begins_key(&self, place: usize) -> bool {
        !self.before(place, 1).is_some_and(|before| matches!(before, b'-' | b'_'))
    }

    /// Not the rest of a name with digits in it, nor of a longer number.
    fn begins_number(&self, place: usize) -> bool {
        match self.before(place, 1) {
            Some(b'_') => false,
            Some(b'+' | b'.' | b'-') => !self.before(place, 2).is_some_and(|byte| byte.is_ascii_digit()),
            _ => true,
        }
    }

    /// Whether the four numbers at a place are a version: `version 1.2.3.4`, `Chrome/120.0.0.0`.
    fn is_version(&self, place: usize) -> bool {
        if self.before(place, 1) == Some(b'/') {
            return self.before(place, 2).is_some_and(|byte| byte.is_ascii_alphanumeric());
        }
        let written = self.text.as_bytes().get(self.copied..place).unwrap_or_default();
        let near = written.get(written.len().saturating_sub(16)..).unwrap_or_default();
        let word = near.rsplit(|byte| !byte.is_ascii_alphabetic()).find(|word| !word.is_empty()).unwrap_or_default();
        ["version", "release", "build", "ver"].iter().any(|known| word.eq_ignore_ascii_case(known.as_bytes()))
    }

    fn replace(&mut self, found: &Found) {
        self.out.push_str(self.text.get(self.copied..found.start).unwrap_or_default());
        self.out.push_str(found.label);
        self.copied = found.end;
    }

    /// `None` if nothing was replaced.
    fn finish(mut self) -> Option<String> {
        if self.copied == 0 {
            return None;
        }
        self.out.push_str(self.text.get(self.copied..).unwrap_or_default());
        Some(self.out)
    }
}

/// Whether the byte before `end` is the letter of an escape like `\n`.
fn is_escape_letter(bytes: &[u8], end: usize) -> bool {
    let two = end.checked_sub(2).and_then(|start| bytes.get(start..end));
    matches!(two, Some([b'\\', letter]) if is_escape(*letter))
}

fn is_escape(letter: u8) -> bool {
    matches!(letter, b'n' | b'r' | b't' | b'b' | b'f')
}

/// Whether a word ends at a place.
fn ends_word(rest: &[u8], end: usize) -> bool {
    !rest.get(end).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

/// Whether a number ends at a place, and not only a part of it.
fn ends_number(rest: &[u8], end: usize) -> bool {
    let goes_on = matches!(rest.get(end..), Some([b'.' | b'-', b'0'..=b'9', ..]));
    ends_word(rest, end) && !goes_on
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::json::parse;
    use super::*;

    const KEY: &str = "sk-lp-0aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV";
    const TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P";

    fn redacted(words: &str) -> String {
        text(words).unwrap_or_else(|| words.to_owned())
    }

    #[test]
    fn what_must_not_be_kept_is_replaced_by_its_kind() {
        let [key, token] = [KEY, TOKEN];
        for (words, expected) in [
            ("Write to anna@example.com, please.", "Write to [email], please."),
            ("a@b.de,c@d.org;e@f.net", "[email],[email];[email]"),
            ("call +1 (415) 555-2671 or 415-555-2671", "call [phone] or [phone]"),
            ("tel:+4930123456", "tel:[phone]"),
            ("电话：+8613812345678。", "电话：[phone]。"),
            ("卡号4111111111111111", "卡号[card]"),
            ("4111 1111 1111 1111 12/26", "[card] 12/26"),
            ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN [iban]."),
            ("from 10.1.2.3:443 to [2001:db8::1]:443", "from [ip]:443 to [[ip]]:443"),
            ("http://10.1.2.3/x", "http://[ip]/x"),
            (&*format!("OPENAI_API_KEY={key}\n"), "OPENAI_API_KEY=[secret]\n"),
            (&*format!("authorization: Bearer {key}"), "authorization: Bearer [secret]"),
            (&*format!("cookie={token}; a=1"), "cookie=[secret]; a=1"),
            (&*format!("(\\n{key}\\nanna@example.com)"), "(\\n[secret]\\n[email])"),
            (&*format!("{{\\u0022key\\u0022:\\u0022{key}\\u0022}}"), "{\\u0022key\\u0022:\\u0022[secret]\\u0022}"),
            (&*format!("?key=Bearer%20{key}&n=1"), "?key=Bearer%20[secret]&n=1"),
            ("allow 10.0.0.1-10.0.0.9, deny 10.0.1.0/24", "allow [ip]-[ip], deny [ip]/24"),
            ("call (030) 12345678 or 06 12 34 56 78", "call [phone] or [phone]"),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nand a@b.com",
                "[secret]\nand [email]",
            ),
            (r#"{\"to\":\"anna@example.com\",\"card\":4111111111111111}"#, r#"{\"to\":\"[email]\",\"card\":[card]}"#),
        ] {
            assert_eq!(redacted(words), expected, "{words}");
            assert_eq!(text(expected), None, "{expected}");
        }
    }

    #[test]
    fn what_only_looks_like_it_stays() {
        for words in [
            "",
            "Order 114-3941689-8772232, invoice 2024-000123, parcel 00340434161094042557",
            "4111111111111112 is no card, and neither is 1234567812345670",
            "at 2024-11-21T09:30:00.123Z, 1731234567898 or 12:30:45",
            "550e8400-e29b-41d4-a716-446655440000 and 12345678-4242-4242-4242-424242424242",
            "d41d8cd98f00b204e9800998ecf8427e da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "sha256 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            "v1.2.3.4, version 1.2.3.4, Chrome/120.0.0.0 on Windows 10.0.19045.3803",
            "gpt-4o-2024-08-06, claude-3-5-sonnet-20241022, chatcmpl-C1KMEUDb1vVwsROQUCZTgG6A6vtWo",
            "layers of 512 768 1024, 3.14159265358979, -0.4111111111111111, 1,234,567.89",
            "std::fmt::Display, a::b, mask 12:30, C++ 17, x@y, npm@10.2.3, @someone",
            "978-3-16-148410-0, 52.520008, 13.404954, +1 234, (2024) 11",
            "sk-learn-contributions-to-the-project, bearer of authentication",
            "DE89370400440532013001, GB82 TEST 1234",
            "-----BEGIN PUBLIC KEY-----, -----",
            "id_4111111111111111, x4111111111111111",
        ] {
            assert_eq!(text(words), None, "{words}");
        }
    }

    #[test]
    fn names_and_what_the_protocol_says_stay_in_json() {
        let json = r#"{"id":"4111111111111111","model":"a@b.com","a@b.com":["a@b.com",{"role":"a@b.com"}],"n":4111111111111111,
            "input":{"id":"4111111111111111","n":4111111111111111,"x":1.5,"o":{"type":"a@b.com"}},"type":["a@b.com"]}"#;
        let mut node = parse(json, false).unwrap().node;
        value(&mut node);
        assert_eq!(
            node.write(),
            r#"{"id":"4111111111111111","model":"a@b.com","a@b.com":["[email]",{"role":"a@b.com"}],"n":4111111111111111,"input":{"id":"[card]","n":"[card]","x":1.5,"o":{"type":"[email]"}},"type":["[email]"]}"#
        );
    }

    #[test]
    fn what_says_a_text_again_in_pieces_is_left_out() {
        let json = r#"{"logprobs":true,"choices":[{"logprobs":{"content":[{"token":"a@b"},{"token":".com"}]}}],
            "output":[{"logprobs":[]},{"logprobs":[{"token":"a"}]}],"candidates":[{"logprobsResult":{"topCandidates":[]}}],
            "segments":[{"tokens":[50364,257]}],"words":[{"word":"4242"},{"word":"4242"}],"input":{"tokens":["a"],"words":["b"]}}"#;
        let mut node = parse(json, false).unwrap().node;
        value(&mut node);
        assert_eq!(
            node.write(),
            r#"{"logprobs":true,"choices":[{"logprobs":"[tokens]"}],"output":[{"logprobs":[]},{"logprobs":"[tokens]"}],"candidates":[{"logprobsResult":"[tokens]"}],"segments":[{"tokens":"[tokens]"}],"words":"[tokens]","input":{"tokens":["a"],"words":["b"]}}"#
        );
    }

    #[test]
    fn what_broke_off_loses_its_last_word() {
        let long = "x".repeat(100);
        let json = format!(
            r#"{{"content":"write to anna@exam","role":"a b","parts":[{{"text":"one"}},{{"text":""}}],"input":{{"to":"a b…","cc":"a b"}},"code":"{long}"}}"#
        );
        let mut node = parse(&json, false).unwrap().node;
        drop_last_words(&mut node);
        let kept = "x".repeat(36);
        assert_eq!(
            node.write(),
            format!(
                r#"{{"content":"write to…","role":"a b","parts":[{{"text":"…"}},{{"text":""}}],"input":{{"to":"a…","cc":"a b"}},"code":"{kept}…"}}"#
            )
        );
    }

    #[test]
    fn texts_made_to_be_slow_are_not() {
        // Each would take minutes if a place could be read from every place before it.
        for piece in [
            "sk-", "eyJ.", "eyJa", "a@", "@a.", "1", "1 ", "1-", "1234 ", "12:", "::", "+1", "Bearer ", "bearer/",
            "DE89 ", "%20", "\\u0022", "(030)", "1.1.1.1-", "01 ", "030 123-",
        ] {
            let words = piece.repeat(300_000 / piece.len());
            assert!(redacted(&words).len() <= words.len(), "{piece}");
        }
        let words = "-----BEGIN PRIVATE KEY-----;".repeat(10_000);
        assert_eq!(redacted(&words).matches("[secret]").count(), 10_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn redacting_twice_is_redacting_once(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "4111111111111111", "4111 1111", " 1111 1111", "415-555-2671", "(415) 555-", "+14155552671", "+", "(", ")", "1",
                    "a@b.com", "@", "b.com", "DE89 3704 0044 0532 0130 00", "10.0.0.1", ".1", "2001:db8::1", ":", "::", "-", ".", "_",
                    " ", "\n", "\\n", "n", "é", "版", "Bearer ", KEY, "sk-", TOKEN, "-----BEGIN PRIVATE KEY-----", "-----END ",
                    "-----", "version ", "/", "0171 ", "2345678", "00", "49 ", "xyz", "[email]", "\"",
                ]),
                0..14,
            ),
        ) {
            let words = pieces.concat();
            let once = redacted(&words);
            prop_assert_eq!(text(&once), None, "{} from {}", once, words);
        }

        #[test]
        fn any_text_can_be_redacted(words in any::<String>()) {
            prop_assert_eq!(text(&redacted(&words)), None);
        }
    }
}
