//! Asks for usage in a request that did not.
//!
//! The body is edited in one place and stays otherwise as it came. Parsing and writing it again would lose what a
//! parser does not keep (order, white space, long numbers, a member that stands there twice), and with it the promise
//! that the provider gets what the client sent.

use std::ops::Range;

use super::members::{is_empty, members};

/// What a request says of usage, and the body that asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It does not ask for a stream, and its answer has usage anyway.
    NotAStream,
    /// A stream that asks by itself: the client waits for the event.
    AsksAlready,
    /// A stream that did not ask, with the body that does.
    Changed(Vec<u8>),
    /// A body that is no JSON object, or in which `stream`, `stream_options` or `include_usage` has no meaning or more
    /// than one. It goes out as it came, and what the provider makes of it the client sees.
    Untouched,
}

/// Reads a whole JSON body of `/v1/chat/completions` or `/v1/completions`, and asks for usage where it is a stream that
/// does not.
///
/// The change is one of these: `stream_options` put in as the first member; `include_usage` put in as the first member
/// of an existing `stream_options`; the value of `stream_options` or `include_usage` replaced where it is `null`, or
/// `false` for the latter. Safe on any bytes; reads them once.
///
/// OpenAI API reference, chat completions, `stream_options`.
pub fn ask(body: &[u8]) -> Asked {
    std::str::from_utf8(body).ok().and_then(read).unwrap_or(Asked::Untouched)
}

fn read(body: &str) -> Option<Asked> {
    let [stream, options] = members(body, ["stream", "stream_options"])?;
    if stream != Some("true") {
        return Some(Asked::NotAStream);
    }
    // A stream has at least one member, so whatever is put before it needs a comma.
    let (place, text) = match options {
        None => (behind_brace(body, body)?, r#""stream_options":{"include_usage":true},"#),
        Some(null @ "null") => (place_of(body, null)?, r#"{"include_usage":true}"#),
        Some(options) => match members(options, ["include_usage"])? {
            [Some("true")] => return Some(Asked::AsksAlready),
            [Some(other @ ("false" | "null"))] => (place_of(body, other)?, "true"),
            [Some(_)] => return None,
            [None] if is_empty(options) => (behind_brace(body, options)?, r#""include_usage":true"#),
            [None] => (behind_brace(body, options)?, r#""include_usage":true,"#),
        },
    };
    let (before, after) = (body.get(..place.start)?, body.get(place.end..)?);
    Some(Asked::Changed([before, text, after].concat().into_bytes()))
}

/// Where a part of the body lies in it.
fn place_of(body: &str, part: &str) -> Option<Range<usize>> {
    let begin = part.as_ptr().addr().checked_sub(body.as_ptr().addr())?;
    Some(begin..begin.checked_add(part.len())?)
}

/// The place behind the opening brace of an object, which is a part of the body.
fn behind_brace(body: &str, object: &str) -> Option<Range<usize>> {
    let brace = place_of(body, object)?.start.checked_add(object.find('{')?)?;
    let place = brace.checked_add(1)?;
    Some(place..place)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn changed(body: &str) -> Asked {
        Asked::Changed(body.into())
    }

    #[test]
    fn a_stream_that_does_not_ask_is_changed_in_one_place() {
        for (body, expected) in [
            (r#"{"stream":true}"#, r#"{"stream_options":{"include_usage":true},"stream":true}"#),
            (
                "\r\n { \"model\" : \"gpt-4o\" , \"temperature\": 1.0e0 ,\n\t\"stream\" : true } \n",
                "\r\n {\"stream_options\":{\"include_usage\":true}, \"model\" : \"gpt-4o\" , \"temperature\": 1.0e0 ,\n\t\"stream\" : true } \n",
            ),
            (
                r#"{"stream":true,"messages":[{"stream_options":{"include_usage":true}}],"x":"stream_options"}"#,
                r#"{"stream_options":{"include_usage":true},"stream":true,"messages":[{"stream_options":{"include_usage":true}}],"x":"stream_options"}"#,
            ),
            (
                r#"{"x":1,"x":2,"str\u0065am":true,"x":"é\ud83d\ude00"}"#,
                r#"{"stream_options":{"include_usage":true},"x":1,"x":2,"str\u0065am":true,"x":"é\ud83d\ude00"}"#,
            ),
            (
                r#"{"stream_options": null ,"stream":true}"#,
                r#"{"stream_options": {"include_usage":true} ,"stream":true}"#,
            ),
            (
                r#"{"stream_options": { } ,"stream":true}"#,
                r#"{"stream_options": {"include_usage":true } ,"stream":true}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{ "include_obfuscation" : false}}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true, "include_obfuscation" : false}}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{"a":{"include_usage":1} , "include_usage" :  false }}"#,
                r#"{"stream":true,"stream_options":{"a":{"include_usage":1} , "include_usage" :  true }}"#,
            ),
            (
                r#"{"stream":true,"stream\u005foptions":{"includ\u0065_usage":null}}"#,
                r#"{"stream":true,"stream\u005foptions":{"includ\u0065_usage":true}}"#,
            ),
        ] {
            assert_eq!(ask(body.as_bytes()), changed(expected), "{body}");
        }
    }

    #[test]
    fn every_other_body_stays_as_it_came() {
        for (body, expected) in [
            (&br#"{"model":"gpt-4o"}"#[..], Asked::NotAStream),
            (b"{}", Asked::NotAStream),
            (br#"{"stream":false}"#, Asked::NotAStream),
            (br#"{"stream":null,"stream_options":{"include_usage":false}}"#, Asked::NotAStream),
            (br#"{"stream":"true"}"#, Asked::NotAStream),
            (br#"{"messages":[{"stream":true}]}"#, Asked::NotAStream),
            (br#"{"stream":true,"stream_options":{"include_usage":true}}"#, Asked::AsksAlready),
            (br#"{"stream_options":{"x":1, "include_usage" : true },"stream":true}"#, Asked::AsksAlready),
            // Which of two is meant is the provider's to say.
            (br#"{"stream":true,"stream":false}"#, Asked::Untouched),
            (br#"{"stream":true,"str\u0065am":true}"#, Asked::Untouched),
            (br#"{"stream":true,"Stream":true}"#, Asked::Untouched),
            (br#"{"stream":true,"stream_options":null,"stream_options":{}}"#, Asked::Untouched),
            (br#"{"stream":true,"STREAM_OPTIONS":null}"#, Asked::Untouched),
            (br#"{"stream":true,"stream_options":{"include_usage":false,"include_usage":false}}"#, Asked::Untouched),
            (br#"{"stream":true,"stream_options":{"Include_Usage":false}}"#, Asked::Untouched),
            // What the provider will refuse, it shall refuse as it was sent.
            (br#"{"stream":true,"stream_options":{"include_usage":"no"}}"#, Asked::Untouched),
            (br#"{"stream":true,"stream_options":{"include_usage":0}}"#, Asked::Untouched),
            (br#"{"stream":true,"stream_options":[]}"#, Asked::Untouched),
            (br#"{"stream":true,"stream_options":"x"}"#, Asked::Untouched),
            (br#"{"stream":true,"stream_options":true}"#, Asked::Untouched),
            (br#"[{"stream":true}]"#, Asked::Untouched),
            (b"true", Asked::Untouched),
            (b"", Asked::Untouched),
            (br#"{"stream":true"#, Asked::Untouched),
            (br#"{"stream":true,}"#, Asked::Untouched),
            (br#"{"stream":true} {}"#, Asked::Untouched),
            (b"\xef\xbb\xbf{\"stream\":true}", Asked::Untouched),
            (b"{\"stream\":true,\"x\":\"\xff\"}", Asked::Untouched),
        ] {
            assert_eq!(ask(body), expected, "{}", body.escape_ascii());
        }
    }

    const OTHERS: [&str; 7] = [
        r#""model":"gpt-4o""#,
        r#""n" : 1e2"#,
        r#""messages":[{"role":"user","content":"\"stream\":false }{"}]"#,
        r#""x":{"stream":false,"stream_options":null}"#,
        r#""big":12345678901234567890123.50"#,
        r#""\u00e9\\":"\\""#,
        r#""empty":{ }"#,
    ];
    const STREAMS: [&str; 4] = [r#""stream":true"#, r#""str\u0065am" : true"#, r#""stream":false"#, ""];
    const OPTIONS: [&str; 8] = [
        "",
        r#""stream_options":null"#,
        r#""stream_options" : { }"#,
        r#""stream_options":{"include_obfuscation":false}"#,
        r#""stream_options":{"include_usage":false}"#,
        r#""stream_options":{"x":{"include_usage":false}, "include_usage" : null }"#,
        r#""stream_options":{"include_usage":true}"#,
        r#""stream_\u006fptions":{"include_usage" :true, "x":[]}"#,
    ];
    const BLANKS: [&str; 4] = ["", " ", "\n\t", "\r\n"];
    /// What can be put into a body, and what stood there before.
    const EDITS: [(&str, &str); 6] = [
        (r#""stream_options":{"include_usage":true},"#, ""),
        (r#""include_usage":true,"#, ""),
        (r#""include_usage":true"#, ""),
        (r#"{"include_usage":true}"#, "null"),
        ("true", "false"),
        ("true", "null"),
    ];

    /// Request bodies with the members above in any order.
    fn request() -> impl Strategy<Value = String> {
        let choose = |from: &[&'static str]| prop::sample::select(from.to_vec());
        let members = (vec(choose(&OTHERS), 0..5), choose(&STREAMS), choose(&OPTIONS)).prop_map(
            |(mut members, stream, options)| {
                members.extend([stream, options].into_iter().filter(|member| !member.is_empty()));
                members
            },
        );
        (members.prop_shuffle(), choose(&BLANKS)).prop_map(|(members, blank)| {
            let inner = members.join(&format!("{blank},{blank}"));
            format!("{blank}{{{blank}{inner}{blank}}}{blank}")
        })
    }

    /// Whether `old` is `new` with one edit taken back.
    fn is_one_edit(old: &str, new: &str) -> bool {
        EDITS.iter().any(|&(put, before)| {
            let undone = |at: usize| [&new[..at], before, &new[at + put.len()..]].concat();
            new.match_indices(put).any(|(at, _)| undone(at) == old)
        })
    }

    proptest! {
        #[test]
        fn the_new_body_reads_as_the_old_with_usage_asked_for(old in request()) {
            let mut expected: Value = serde_json::from_str(&old).unwrap();
            let is_stream = expected.get("stream") == Some(&json!(true));
            let asks = expected.pointer("/stream_options/include_usage") == Some(&json!(true));
            match ask(old.as_bytes()) {
                Asked::NotAStream => prop_assert!(!is_stream),
                Asked::AsksAlready => prop_assert!(is_stream && asks),
                Asked::Changed(new) => {
                    prop_assert!(is_stream && !asks);
                    let new = String::from_utf8(new).unwrap();
                    match &mut expected["stream_options"] {
                        Value::Object(options) => drop(options.insert("include_usage".into(), json!(true))),
                        other => *other = json!({"include_usage": true}),
                    }
                    prop_assert_eq!(serde_json::from_str::<Value>(&new).unwrap(), expected);
                    prop_assert!(is_one_edit(&old, &new), "{}\n{}", old, new);
                    prop_assert_eq!(ask(new.as_bytes()), Asked::AsksAlready);
                }
                Asked::Untouched => return Err(TestCaseError::fail("nothing in it can be read in two ways")),
            }
        }

        #[test]
        fn a_body_that_is_no_json_is_never_changed(
            request in request(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut body = request.into_bytes();
            let at = at.index(body.len());
            body[at] = byte;
            let is_changed = matches!(ask(&body), Asked::Changed(_));
            prop_assert!(!is_changed || serde_json::from_slice::<Value>(&body).is_ok(), "{}", body.escape_ascii());
        }

        #[test]
        fn no_bytes_upset_it(body: Vec<u8>) {
            prop_assert!(!matches!(ask(&body), Asked::Changed(_)));
        }
    }
}
