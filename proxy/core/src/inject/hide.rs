//! Takes the extra event out of a stream while its bytes pass.
//!
//! An event is held back only while it can still be the extra one ([`Look`]), and never beyond [`MAX_HELD_BYTES`]: a
//! chunk with a piece of the answer goes on as soon as its `choices` show their first element, `[DONE]` at its first
//! byte. So a stream that comes in whole events is not delayed at all. Comments and empty lines between events pass at
//! once: they keep connections alive, and belong to no event. An event begins with its first other line, and what
//! stands in it goes or stays with it.
//!
//! Lines and events end as in WHATWG HTML, "Server-sent events": LF, CR or CRLF, then an empty line. An event that ends
//! in CR is decided there; an LF that follows shares its fate.

use memchr::memchr2;

use super::look::Look;
use super::members::{is_empty, members};

/// The longest event held back. The extra one has some hundred bytes.
const MAX_HELD_BYTES: usize = 64 * 1024;

const DATA: &[u8] = b"data:";

/// Filters the body of one event stream, in any split, with the same result.
///
/// Removed is an event whose data is one JSON object with `choices` that are an empty array, `usage` that is an object,
/// and no `error`; read by a parser, and none of the three twice. Everything else passes byte for byte.
///
/// The body must be a stream (`text/event-stream`) without a coding: that is the caller's to know. So is the length,
/// which an announced `content-length` gets wrong once an event is gone. Where [`crate::usage::Meter`] finds the stream
/// between two events, nothing is held back. Memory between events: none beyond the value itself.
#[derive(Debug, Default)]
pub struct Hider {
    event: Event,
    line: Line,
    /// The last byte was a CR: an LF right after it belongs to it.
    is_after_cr: bool,
    /// What has come of an undecided event.
    held: Vec<u8>,
    look: Look,
}

/// What happens to the bytes at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Event {
    /// There is no event: empty lines and comments pass.
    #[default]
    None,
    /// They are held.
    Undecided,
    /// They pass.
    Passing,
    /// The extra event has just ended.
    Hidden,
}

/// Where in its line the stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Start,
    /// So many bytes of `data:` have come.
    Name(usize),
    Data,
    Other,
}

/// What a byte of an undecided event makes of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    LineEnd,
    EventEnd,
    Decided,
}

impl Hider {
    /// Takes the next piece of the body, and adds to `out` whatever may go on.
    pub fn feed(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let mut rest = piece;
        while let Some((first, after)) = rest.split_first() {
            if std::mem::take(&mut self.is_after_cr) && *first == b'\n' {
                match self.event {
                    Event::None | Event::Passing => out.push(b'\n'),
                    Event::Undecided => self.held.push(b'\n'),
                    Event::Hidden => {}
                }
                rest = after;
                continue;
            }
            if self.event == Event::Hidden {
                self.event = Event::None;
            }
            let is_field = self.line == Line::Start && !matches!(first, b':' | b'\n' | b'\r');
            if self.event == Event::None && is_field {
                self.event = Event::Undecided;
                self.look = Look::default();
            }
            rest = if self.event == Event::Undecided { self.weigh(rest, out) } else { self.pass(rest, out) };
        }
    }

    /// Adds what is still held back to `out`: a stream that ends within an event was cut.
    pub fn finish(mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }

    /// Passes bytes up to the end of their line, and gives the others.
    fn pass<'p>(&mut self, bytes: &'p [u8], out: &mut Vec<u8>) -> &'p [u8] {
        let line = memchr2(b'\n', b'\r', bytes).and_then(|length| bytes.split_at_checked(length.saturating_add(1)));
        let Some((line, after)) = line else {
            out.extend_from_slice(bytes);
            self.line = Line::Other;
            return &[];
        };
        out.extend_from_slice(line);
        if line.len() == 1 && self.line == Line::Start {
            self.event = Event::None;
        }
        self.line = Line::Start;
        self.is_after_cr = line.ends_with(b"\r");
        after
    }

    /// Holds bytes of an undecided event up to the end of their line, or until it is decided, and gives the others.
    fn weigh<'p>(&mut self, bytes: &'p [u8], out: &mut Vec<u8>) -> &'p [u8] {
        for (at, byte) in bytes.iter().enumerate() {
            let step = self.read(*byte);
            let is_too_long = self.held.len().saturating_add(at) >= MAX_HELD_BYTES;
            if step == Step::Open && !is_too_long {
                continue;
            }
            let Some((now, after)) = bytes.split_at_checked(at.saturating_add(1)) else { break };
            match step {
                Step::LineEnd if !is_too_long => self.held.extend_from_slice(now),
                Step::EventEnd => {
                    let mut event = std::mem::take(&mut self.held);
                    event.extend_from_slice(now);
                    if is_extra(&event) {
                        self.event = Event::Hidden;
                    } else {
                        self.event = Event::None;
                        out.append(&mut event);
                    }
                }
                _ => {
                    self.event = Event::Passing;
                    out.append(&mut std::mem::take(&mut self.held));
                    out.extend_from_slice(now);
                }
            }
            return after;
        }
        self.held.extend_from_slice(bytes);
        &[]
    }

    /// Reads a byte of an undecided event.
    fn read(&mut self, byte: u8) -> Step {
        if matches!(byte, b'\n' | b'\r') {
            self.is_after_cr = byte == b'\r';
            let line = std::mem::take(&mut self.line);
            return if line == Line::Start { Step::EventEnd } else { Step::LineEnd };
        }
        let named = match self.line {
            Line::Start => 0,
            Line::Name(named) => named,
            Line::Data => return if self.look.take(byte) { Step::Open } else { Step::Decided },
            Line::Other => return Step::Open,
        };
        let named_now = named.saturating_add(1);
        self.line = match DATA.get(named) {
            Some(expected) if *expected == byte && named_now == DATA.len() => Line::Data,
            Some(expected) if *expected == byte => Line::Name(named_now),
            _ => Line::Other,
        };
        Step::Open
    }
}

/// Whether a whole event is the extra one.
fn is_extra(event: &[u8]) -> bool {
    // The space that may follow the colon is one to JSON too, and so is the LF that joins lines. CRLF leaves an empty
    // line between its halves, which has no data.
    let lines = event.split(|byte| matches!(byte, b'\n' | b'\r'));
    let data = lines.filter_map(|line| line.strip_prefix(DATA)).collect::<Vec<_>>().join(&b"\n"[..]);
    let chunk = std::str::from_utf8(&data).ok().and_then(|data| members(data, ["choices", "usage", "error"]));
    let Some([Some(choices), Some(usage), error]) = chunk else { return false };
    choices.starts_with('[') && is_empty(choices) && usage.starts_with('{') && error.is_none_or(|error| error == "null")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const EXTRA: &str = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":12,"prompt_tokens_details":{"cached_tokens":0}}}"#;

    fn fed<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (Hider, Vec<u8>) {
        let mut hider = Hider::default();
        let mut out = Vec::new();
        for piece in pieces {
            hider.feed(piece, &mut out);
        }
        (hider, out)
    }

    /// The stream without its extra events.
    fn filtered<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Vec<u8> {
        let (hider, mut out) = fed(pieces);
        hider.finish(&mut out);
        out
    }

    /// The same, from a stream in one piece, which every split must repeat.
    #[track_caller]
    fn filtered_at_every_split(stream: &str) -> String {
        let whole = filtered([stream.as_bytes()]);
        for split in 0..stream.len() {
            let (head, tail) = stream.as_bytes().split_at(split);
            assert_eq!(filtered([head, tail]), whole, "{stream:?} at {split}");
        }
        assert_eq!(filtered(stream.as_bytes().chunks(1)), whole, "{stream:?} byte by byte");
        String::from_utf8(whole).unwrap()
    }

    #[test]
    fn the_extra_event_is_hidden_in_every_form() {
        for event in [
            format!("data: {EXTRA}\n\n"),
            format!("data:{EXTRA}\r\n\r\n"),
            format!("data: {EXTRA}\r\r"),
            format!("data: {EXTRA}\n\r\n"),
            format!("data: {EXTRA}\r\n\n"),
            format!("event: message\nid: 7\ndata: {EXTRA}\nretry: 1\n: comment\n\n"),
            format!("data: {}\n\n", EXTRA.replace(',', ",\ndata:")),
            format!("data\ndata: {}\r\n\r\n", EXTRA.replace('{', "\r\ndata:{ ")),
            "data: \t{ \"usage\" : { } , \"error\":null,\"choices\":[ ]} \n\n".to_owned(),
            "data: {\"ch\\u006fices\":[],\"usage\":{},\"x\":\"\\\"usage\\\":null\"}\n\n".to_owned(),
        ] {
            let stream = format!("data: 1\n\n{event}data: [DONE]\n\n");
            assert_eq!(filtered_at_every_split(&stream), "data: 1\n\ndata: [DONE]\n\n", "{event}");
            assert_eq!(filtered_at_every_split(&event), "", "{event}");
            let stream = format!(": ping\n{event}{event}: pong\r\n\r\n{event}");
            assert_eq!(filtered_at_every_split(&stream), ": ping\n: pong\r\n\r\n", "{event}");
        }
    }

    #[test]
    fn everything_else_passes() {
        for stream in [
            "",
            "\n\n\r\r\n\r\n",
            ": comment\n\n",
            "data: [DONE]\n\n",
            "data:\n\ndata\n\n",
            "event: error\ndata: {\"error\":{\"message\":\"x\"}}\n\n",
            // Azure opens with its verdict on the prompt.
            "data: {\"choices\":[],\"prompt_filter_results\":[{}]}\n\n",
            "data: {\"choices\":[],\"usage\":null}\n\n",
            "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":1}}\n\n",
            "data: {\"usage\":{\"prompt_tokens\":1},\"choices\":[{\"delta\":{}}]}\n\n",
            "data: {\"choices\":[],\"usage\":{},\"error\":{\"code\":400}}\n\n",
            "data: {\"choices\":null,\"usage\":{}}\n\n",
            "data: {\"choices\":{},\"usage\":{}}\n\n",
            "data: {\"choices\":[],\"usage\":[]}\n\n",
            "data: {\"usage\":{}}\n\n",
            "data: {\"x\":{\"choices\":[],\"usage\":{}}}\n\n",
            "data: [{\"choices\":[],\"usage\":{}}]\n\n",
            // Two parsers could read these in two ways.
            "data: {\"choices\":[],\"usage\":{},\"usage\":{}}\n\n",
            "data: {\"choices\":[],\"usage\":{},\"ch\\u006fices\":[1]}\n\n",
            "data: {\"choices\":[],\"usage\":{}} {}\n\n",
            "data: {\"choices\":[],\"usage\":{},}\n\n",
            "data: {\"choices\":[],\"usage\":{}\n\n",
            // Not data.
            "date: {\"choices\":[],\"usage\":{}}\n\n",
            " data: {\"choices\":[],\"usage\":{}}\n\n",
            "datadata: {\"choices\":[],\"usage\":{}}\n\n",
            ":data: {\"choices\":[],\"usage\":{}}\n\n",
            "\u{feff}data: {\"choices\":[],\"usage\":{}}\n\n",
            // Cut streams.
            "data: {\"choices\":[],\"usage\":{}}\n",
            "data: {\"choices\":[],\"usage\":{}}\r\n",
            "data: {\"choices\":[],\"us",
            "dat",
        ] {
            assert_eq!(filtered_at_every_split(stream), stream);
        }
        let not_utf8 = b"data: {\"choices\":[],\"usage\":{},\"x\":\"\xff\"}\n\n";
        assert_eq!(filtered([&not_utf8[..]]), not_utf8);
    }

    #[test]
    fn nothing_is_held_back_once_it_is_known() {
        let chunk = r#"data: {"id":"chatcmpl-1","choices":["#;
        for (stream, held) in [
            (": comm".to_owned(), 0),
            ("data: 1\n\n".to_owned(), 0),
            ("dat".to_owned(), 3),
            ("data: ".to_owned(), 6),
            ("data: [".to_owned(), 0),
            ("event: message\r\n".to_owned(), 16),
            (chunk.to_owned(), chunk.len()),
            (format!("{chunk} "), chunk.len() + 1),
            (format!("{chunk}{{"), 0),
            (format!("{chunk}{{\"delta\":{{\"content\":\"Hi"), 0),
            (format!("{chunk}],\"usage\":"), chunk.len() + 10),
            (format!("{chunk}],\"usage\":n"), 0),
            (format!("data: {EXTRA}\n"), EXTRA.len() + 7),
            ("data: {\"error\":{".to_owned(), 0),
            (format!("data: 1\n\n{chunk}"), chunk.len()),
        ] {
            for (hider, out) in [fed([stream.as_bytes()]), fed(stream.as_bytes().chunks(1))] {
                assert_eq!(out.len(), stream.len() - held, "{stream:?}");
                assert_eq!(hider.held.len(), held, "{stream:?}");
            }
        }
    }

    #[test]
    fn an_event_that_ends_in_cr_is_decided_there() {
        for (event, expected) in [(format!("data: {EXTRA}\r\n\r"), 0), ("data: {}\r\n\r".to_owned(), 11)] {
            assert_eq!(fed([event.as_bytes()]).1.len(), expected, "{event:?}");
        }
    }

    #[test]
    fn an_event_too_long_to_be_held_passes() {
        let (before, after) = (r#"data: {"x":""#, "\",\"choices\":[],\"usage\":{}}\n\n");
        for (padding, is_hidden) in
            [(0, true), (MAX_HELD_BYTES - 100, true), (MAX_HELD_BYTES, false), (3 * MAX_HELD_BYTES, false)]
        {
            let stream = [before, &"x".repeat(padding), after, "data: [DONE]\n\n"].concat();
            let expected = if is_hidden { "data: [DONE]\n\n" } else { &*stream };
            for size in [1, 1000, stream.len()] {
                assert!(filtered(stream.as_bytes().chunks(size)) == expected.as_bytes(), "{padding} by {size}");
            }
        }
        let endless = vec![b'x'; MAX_HELD_BYTES + 1];
        let (hider, out) = fed([before.as_bytes(), &endless]);
        assert_eq!((hider.held.len(), out.len()), (0, before.len() + endless.len()));
    }

    #[test]
    fn every_fixture_loses_its_extra_event_and_nothing_else() {
        let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/provider"));
        let mut with_extra = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "sse") {
                continue;
            }
            let stream = std::fs::read_to_string(&path).unwrap();
            let is_kept = |event: &&str| {
                let Some(json) = event.strip_prefix("data: ") else { return true };
                let Ok(chunk) = serde_json::from_str::<Value>(json) else { return true };
                chunk["choices"] != Value::Array(Vec::new()) || !chunk["usage"].is_object()
            };
            let expected: String = stream.split_inclusive("\n\n").filter(is_kept).collect();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            for size in [1, 7, 100, 1400, stream.len()] {
                assert!(filtered(stream.as_bytes().chunks(size)) == expected.as_bytes(), "{name} by {size}");
            }
            if expected != stream {
                with_extra.push(name);
            }
        }
        with_extra.sort_unstable();
        assert_eq!(
            with_extra,
            [
                "openai-chat-stream-n-choices",
                "openai-chat-stream-tool-calls",
                "openai-chat-stream-usage",
                "synthetic-chat-stream-multilingual",
            ]
        );
    }

    /// An event, and whether it is the extra one.
    fn event() -> impl Strategy<Value = (String, bool)> {
        let choose = |from: &[&'static str]| prop::sample::select(from.to_vec());
        let choices =
            choose(&["", "\"choices\":[]", "\"choices\" : [ ]", "\"choices\":[{\"delta\":{}}]", "\"choices\":null"]);
        let usage = choose(&["", "\"usage\":{\"usage\":null,\"choices\":[1]}", "\"usage\":{ }", "\"usage\":null"]);
        let error = choose(&["", "", "", "\"error\":null", "\"error\":{\"message\":\"x\"}"]);
        let other = choose(&["\"id\":\"a\\\"{[\"", "\"x\":[[\"]\"],{}]", "\"n\":-1.5e3", "\"text\":\"\\\\\""]);
        let members = (choices, usage, error, other).prop_map(|members| {
            let members: [&str; 4] = members.into();
            members.into_iter().filter(|member| !member.is_empty()).collect::<Vec<_>>()
        });
        let before = choose(&["", "event: message\n", "id: 1\r\n", "data\n"]);
        let after = choose(&["\n\n", "\r\n\r\n", "\r\r", "\n: comment\n\n"]);
        let join = choose(&[",", " , ", ",\ndata: ", ",\r\ndata:", ",\rdata: \t"]);
        (members.prop_shuffle(), before, join, after).prop_map(|(members, before, join, after)| {
            let chunk: Value = serde_json::from_str(&format!("{{{}}}", members.join(","))).unwrap();
            let is_extra =
                chunk["choices"] == Value::Array(Vec::new()) && chunk["usage"].is_object() && chunk["error"].is_null();
            (format!("{before}data: {{{}}}{after}", members.join(join)), is_extra)
        })
    }

    /// A stream, and what must be left of it.
    fn stream() -> impl Strategy<Value = (String, String)> {
        let between = prop::sample::select(vec!["", "", ": ping\n", ":\r\r", ": data: {}\r\n\r\n", "data: [DONE]\n\n"]);
        vec((between, event()), 0..6).prop_map(|events| {
            let whole: String = events.iter().map(|(between, (event, _))| format!("{between}{event}")).collect();
            let kept = |(between, (event, is_extra)): &(&str, (String, bool))| {
                if *is_extra { (*between).to_owned() } else { format!("{between}{event}") }
            };
            (whole, events.iter().map(kept).collect::<String>())
        })
    }

    /// Pieces of these lengths, and the rest.
    fn cut(mut bytes: &[u8], lengths: Vec<usize>) -> Vec<&[u8]> {
        let mut pieces = Vec::new();
        for length in lengths {
            let (piece, rest) = bytes.split_at(length.min(bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces.push(bytes);
        pieces
    }

    proptest! {
        #[test]
        fn any_stream_in_any_split_loses_its_extra_events(
            (stream, expected) in stream(),
            lengths in vec(0usize..60, 0..40),
        ) {
            let pieces = cut(stream.as_bytes(), lengths);
            prop_assert_eq!(String::from_utf8(filtered(pieces)).unwrap(), expected, "{:?}", stream);
        }

        #[test]
        fn any_bytes_in_any_split_give_the_same(
            tokens in vec(prop::sample::select(vec![
                "data: ", "data:", "da", ":", " ", "\n", "\r", "\r\n", "\n\n", "{", "}", "[", "]", "\"", "\\", ",",
                "\"choices\":[]", "\"usage\":{}", "{\"choices\":[],\"usage\":{}}\n", "\"x\"", "null", "é",
            ]), 0..40),
            lengths in vec(0usize..12, 0..40),
        ) {
            let stream = tokens.concat();
            let whole = filtered([stream.as_bytes()]);
            prop_assert_eq!(&filtered(cut(stream.as_bytes(), lengths)), &whole, "{:?}", stream);
            prop_assert_eq!(&filtered(stream.as_bytes().chunks(1)), &whole, "{:?}", stream);
        }
    }
}
