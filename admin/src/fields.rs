//! Rules of single fields, shared by projects and tokens. A refusal names the field and the rule, never the value.

use std::ops::RangeInclusive;
use std::time::{SystemTime, UNIX_EPOCH};

use llm_proxy_core::capture::Policy;
use llm_proxy_core::secret::Secret;
use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::problem::Problem;

/// Longest project name, in characters after trimming.
const MAX_NAME_CHARS: usize = 128;

/// Longest provider key, in bytes. The longest in use are Google's service tokens, of about two thousand.
const MAX_KEY_BYTES: usize = 4096;

/// Most models in a token's list, and the longest name in it, in bytes.
const MAX_MODELS: usize = 100;
const MAX_MODEL_BYTES: usize = 128;

/// Largest `max_requests`: the largest whole number that every JSON reader keeps exact (RFC 8259 §6).
pub(crate) const MAX_REQUESTS: u64 = (1 << 53) - 1;

/// Largest `requests_per_minute`.
pub(crate) const MAX_REQUESTS_PER_MINUTE: u64 = 1_000_000;

/// Longest life of a token in minutes: a year of 365 days.
pub(crate) const MAX_DURATION_MINUTES: u64 = 525_600;

/// The policies for content, in the order of how much they keep.
const CAPTURES: [Policy; 4] = [Policy::None, Policy::Metadata, Policy::Redacted, Policy::Full];

/// How much of one body may be kept, in bytes. More would not fit into a record beside everything else.
const CAPTURE_BYTES: RangeInclusive<u64> = 1024..=512 * 1024;

/// For how long content may be kept, in days.
const RETENTION_DAYS: RangeInclusive<u64> = 1..=3_650;

const TIMESTAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// A provider key as it stands in a body, a secret from the moment it is parsed.
pub(crate) struct SentSecret(pub(crate) Secret);

impl<'de> Deserialize<'de> for SentSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Secret::new(text)))
    }
}

/// A project's name: trimmed, then 1 to 128 characters that can be seen.
pub(crate) fn project_name(sent: &str) -> Result<String, Problem> {
    let name = sent.trim();
    let count = name.chars().count();
    if !(1..=MAX_NAME_CHARS).contains(&count) || name.chars().any(is_unprintable) {
        return Err(Problem::field(format!(
            "`name` must have 1 to {MAX_NAME_CHARS} printable characters (blanks at its ends do not count)"
        )));
    }
    Ok(name.to_owned())
}

/// Line and paragraph separators, and what reorders or hides the text around it. The joiners U+200C and U+200D are not
/// here: some scripts need them.
const HIDDEN: [RangeInclusive<char>; 10] = [
    '\u{ad}'..='\u{ad}',
    '\u{61c}'..='\u{61c}',
    '\u{180e}'..='\u{180e}',
    '\u{200b}'..='\u{200b}',
    '\u{200e}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{feff}'..='\u{feff}',
    '\u{fff9}'..='\u{fffb}',
    '\u{e0000}'..='\u{e007f}',
];

fn is_unprintable(character: char) -> bool {
    character.is_control() || HIDDEN.iter().any(|range| range.contains(&character))
}

/// A provider key: it goes into a header field, so it is 1 to 4,096 visible ASCII characters.
pub(crate) fn provider_key(field: &str, SentSecret(key): SentSecret) -> Result<Secret, Problem> {
    let text = key.expose();
    if (1..=MAX_KEY_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(key);
    }
    Err(Problem::field(format!(
        "`{field}` must have 1 to {MAX_KEY_BYTES} visible ASCII characters, without blanks or line ends"
    )))
}

/// A token's model list. Entries are names or globs, in which `*` stands for any run of characters.
pub(crate) fn allowed_models(models: Vec<String>) -> Result<Vec<String>, Problem> {
    if !(1..=MAX_MODELS).contains(&models.len()) {
        return Err(Problem::field(format!(
            "`allowed_models` must have 1 to {MAX_MODELS} entries; leave it out, or send null, to allow every model"
        )));
    }
    for (place, model) in models.iter().enumerate() {
        if !(1..=MAX_MODEL_BYTES).contains(&model.len()) || !model.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Problem::field(format!(
                "`allowed_models[{place}]` must have 1 to {MAX_MODEL_BYTES} visible ASCII characters"
            )));
        }
    }
    Ok(models)
}

/// The name of a content policy.
pub(crate) fn capture(sent: &str) -> Result<Policy, Problem> {
    CAPTURES.into_iter().find(|policy| policy.name() == sent).ok_or_else(|| {
        let names = CAPTURES.map(|policy| policy.name()).join(", ");
        Problem::field(format!("`content.capture` must be one of: {names}"))
    })
}

/// The most bytes of a body that are kept.
pub(crate) fn capture_bytes(number: u64) -> Result<u32, Problem> {
    within("content.max_bytes", number, CAPTURE_BYTES).map(fits)
}

/// Days for which content is kept.
pub(crate) fn retention_days(number: u64) -> Result<u32, Problem> {
    within("content.retention_days", number, RETENTION_DAYS).map(fits)
}

/// Whether a whole number lies in a range that begins above zero.
pub(crate) fn within(field: &str, number: u64, range: RangeInclusive<u64>) -> Result<u64, Problem> {
    if range.contains(&number) {
        return Ok(number);
    }
    Err(Problem::field(format!("`{field}` must be a whole number from {} to {}", range.start(), range.end())))
}

/// A number that a range has kept small.
pub(crate) fn fits(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// This moment, in microseconds since the epoch.
pub(crate) fn now_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}

/// RFC 3339 in UTC, always with six decimals, so that times compare as texts.
pub(crate) fn timestamp(microseconds: i64) -> String {
    let nanoseconds = i128::from(microseconds).saturating_mul(1_000);
    // Beyond the year 9999 there is no RFC 3339; no time of ours gets there.
    let moment = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    moment.format(TIMESTAMP).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_trimmed_and_can_be_seen() {
        let longest = "ä".repeat(128);
        for (sent, expected) in [
            ("demo", Some("demo")),
            ("  two words \n", Some("two words")),
            ("日本語 🚀", Some("日本語 🚀")),
            (&longest, Some(longest.as_str())),
            (&"x".repeat(129), None),
            ("", None),
            (" \t", None),
            ("a\nb", None),
            ("a\u{0}b", None),
            ("a\u{202e}b", None),
            ("a\u{200b}b", None),
        ] {
            assert_eq!(project_name(sent).ok().as_deref(), expected, "{sent:?}");
        }
    }

    #[test]
    fn a_key_fits_into_a_header() {
        for (sent, accepted) in [
            ("k", true),
            ("sk-proj-AZaz09_-./=+", true),
            (&"k".repeat(4096), true),
            (&"k".repeat(4097), false),
            ("", false),
            ("with blank", false),
            ("line\n", false),
            ("schlüssel", false),
        ] {
            let key = provider_key("api_key", SentSecret(Secret::new(sent)));
            assert_eq!(key.is_ok(), accepted, "{} bytes", sent.len());
            assert!(sent.is_empty() || sent == "k" || !format!("{key:?}").contains(sent));
        }
    }

    #[test]
    fn every_content_policy_has_its_name_and_nothing_else_is_one() {
        for (sent, expected) in [
            ("none", Some(Policy::None)),
            ("metadata", Some(Policy::Metadata)),
            ("redacted", Some(Policy::Redacted)),
            ("full", Some(Policy::Full)),
            ("Full", None),
            ("", None),
        ] {
            assert_eq!(capture(sent).ok(), expected, "{sent:?}");
        }
    }

    #[test]
    fn ranges_of_content_hold_at_both_ends() {
        for (number, is_size, is_age) in [
            (0, false, false),
            (1, false, true),
            (1_023, false, true),
            (1_024, true, true),
            (3_650, true, true),
            (3_651, true, false),
            (524_288, true, false),
            (524_289, false, false),
            (u64::MAX, false, false),
        ] {
            assert_eq!((capture_bytes(number).is_ok(), retention_days(number).is_ok()), (is_size, is_age), "{number}");
        }
    }

    #[test]
    fn times_are_utc_with_six_decimals() {
        for (microseconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1_700_000_000_000_001, "2023-11-14T22:13:20.000001Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(timestamp(microseconds), expected);
        }
    }
}
