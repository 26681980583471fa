//! Cuts a server-sent event stream into events, wherever the bytes are split.
//!
//! WHATWG HTML, "Server-sent events": lines end in LF, CR or CRLF, an empty line ends an event, `data` lines of one event
//! are joined with LF. Names, ids and comments are not needed here: every provider repeats the event's type in its JSON.
//! The search for the event's end remembers only how the last line stands, so no byte is searched twice.

use std::borrow::Cow;

use memchr::memchr2;

use super::MAX_HELD_BYTES;
use super::tally::Tally;

/// A buffer that grew beyond this for one split event is given back after it.
const KEPT_CAPACITY_BYTES: usize = 4096;

/// The stream so far.
#[derive(Debug, Default)]
pub(super) struct Events {
    lines: Lines,
    /// The beginning of an event whose end is not here yet.
    held: Vec<u8>,
    is_inside: bool,
    /// The event at hand is too large: its bytes are passed over.
    is_too_large: bool,
    is_past_first: bool,
    with_data: u64,
}

impl Events {
    /// Reads the next decoded bytes; every event they complete goes to `tally`.
    pub(super) fn take(&mut self, mut bytes: &[u8], tally: &mut Tally) {
        loop {
            if !self.is_inside {
                bytes = self.lines.without_pending_lf(bytes);
            }
            if bytes.is_empty() {
                return;
            }
            let Some((event, rest)) = self.lines.event_end(bytes).and_then(|end| bytes.split_at_checked(end)) else {
                self.hold(bytes, tally);
                self.is_inside = true;
                return;
            };
            if self.is_inside {
                self.hold(event, tally);
                self.read_held(tally);
            } else {
                self.read(event, tally);
            }
            bytes = rest;
        }
    }

    /// Reads an event that the end of the body left without its empty line. SDKs do so too.
    pub(super) fn flush(&mut self, tally: &mut Tally) {
        if self.is_inside {
            self.read_held(tally);
        }
    }

    pub(super) fn is_at_boundary(&self) -> bool {
        // After `\r\n\r` the second half of the line end may be on its way; a stream that never sent LF has none.
        !(self.is_inside || self.lines.is_after_cr && self.lines.has_seen_lf)
    }

    pub(super) fn with_data(&self) -> u64 {
        self.with_data
    }

    fn hold(&mut self, bytes: &[u8], tally: &mut Tally) {
        if self.is_too_large {
            return;
        }
        if self.held.len().saturating_add(bytes.len()) > MAX_HELD_BYTES {
            self.is_too_large = true;
            self.held = Vec::new();
            self.with_data = self.with_data.saturating_add(1);
            tally.lose();
        } else {
            self.held.extend_from_slice(bytes);
        }
    }

    fn read_held(&mut self, tally: &mut Tally) {
        if !self.is_too_large {
            let mut held = std::mem::take(&mut self.held);
            self.read(&held, tally);
            if held.capacity() <= KEPT_CAPACITY_BYTES {
                held.clear();
                self.held = held;
            }
        }
        self.is_inside = false;
        self.is_too_large = false;
    }

    fn read(&mut self, event: &[u8], tally: &mut Tally) {
        let event = match event.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) if !self.is_past_first => rest, // a byte order mark may open the stream
            _ => event,
        };
        self.is_past_first = true;
        if event.len() > MAX_HELD_BYTES {
            self.with_data = self.with_data.saturating_add(1);
            tally.lose();
            return;
        }
        if let Some(data) = data_of(event).filter(|data| !data.is_empty()) {
            self.with_data = self.with_data.saturating_add(1);
            tally.message(&data);
        }
    }
}

/// Where we stand in the lines of the stream.
#[derive(Debug, Default)]
struct Lines {
    /// The line at hand has bytes already.
    is_started: bool,
    /// The last byte was a CR: an LF right after it belongs to it.
    is_after_cr: bool,
    has_seen_lf: bool,
}

impl Lines {
    /// The place after the empty line that ends the event `bytes` begin in or go on with.
    fn event_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut place = 0usize;
        loop {
            if self.is_after_cr {
                let next = bytes.get(place)?;
                if *next == b'\n' {
                    self.has_seen_lf = true;
                    place = place.saturating_add(1);
                }
                self.is_after_cr = false;
            }
            let rest = bytes.get(place..)?;
            let Some(length) = memchr2(b'\n', b'\r', rest) else {
                self.is_started |= !rest.is_empty();
                return None;
            };
            let is_empty = length == 0 && !self.is_started;
            self.is_started = false;
            self.is_after_cr = rest.get(length) == Some(&b'\r');
            self.has_seen_lf |= !self.is_after_cr;
            place = place.saturating_add(length).saturating_add(1);
            if is_empty {
                return Some(place);
            }
        }
    }

    /// Drops the LF that completes the line end of an event already read.
    fn without_pending_lf<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        match bytes.split_first() {
            Some((b'\n', rest)) if self.is_after_cr => {
                self.is_after_cr = false;
                self.has_seen_lf = true;
                rest
            }
            Some(_) => {
                self.is_after_cr = false;
                bytes
            }
            None => bytes,
        }
    }
}

/// The event's data: borrowed if it is one line, joined if it is several, `None` if it has none.
fn data_of(mut event: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut data: Option<Cow<'_, [u8]>> = None;
    while !event.is_empty() {
        let length = memchr2(b'\n', b'\r', event).unwrap_or(event.len());
        let line = event.get(..length).unwrap_or_default();
        // CRLF leaves an empty line between its halves, which is no field.
        event = event.get(length.saturating_add(1)..).unwrap_or_default();
        let Some(value) = field_value(line) else { continue };
        match &mut data {
            None => data = Some(Cow::Borrowed(value)),
            Some(joined) => {
                let joined = joined.to_mut();
                joined.push(b'\n');
                joined.extend_from_slice(value);
            }
        }
    }
    data
}

fn field_value(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"data")?;
    if rest.is_empty() {
        return Some(rest);
    }
    let value = rest.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_what_the_data_lines_say() {
        for (event, expected) in [
            (&b"data: {}\n\n"[..], Some(&b"{}"[..])),
            (b"data:{}\r\n\r\n", Some(b"{}")),
            (b"data:  {}\r\r", Some(b" {}")),
            (b"event: x\nid: 7\ndata: {\ndata: }\nretry: 1\n\n", Some(b"{\n}")),
            (b": comment\n\n", None),
            (b"data\n\n", Some(b"")),
            (b"database: 1\n\n", None),
            (b"data: cut", Some(b"cut")),
            (b"\n", None),
        ] {
            assert_eq!(data_of(event).as_deref(), expected, "{}", event.escape_ascii());
        }
    }

    #[test]
    fn an_event_ends_at_its_empty_line_whatever_the_line_ends() {
        for stream in [
            "data: 1\n\ndata: 2\n\n",
            "data: 1\r\n\r\ndata: 2\r\n\r\n",
            "data: 1\r\rdata: 2\r\r",
            "data: 1\n\r\ndata: 2\r\n\n",
        ] {
            for split in 0..stream.len() {
                let mut tally = Tally::new(crate::dialect::Dialect::OpenAi, true);
                let mut events = Events::default();
                let (head, tail) = stream.as_bytes().split_at(split);
                events.take(head, &mut tally);
                events.take(tail, &mut tally);
                assert_eq!(events.with_data(), 2, "{stream:?} at {split}");
                assert!(events.is_at_boundary(), "{stream:?} at {split}");
            }
        }
    }

    #[test]
    fn a_boundary_is_only_where_nothing_is_half_sent() {
        for (bytes, expected) in [
            ("", true),
            ("data: 1", false),
            ("data: 1\n", false),
            ("data: 1\n\n", true),
            ("data: 1\r\n\r", false),
            ("data: 1\r\n\r\n", true),
            ("data: 1\r\r", true),
            (": comment\n\n", true),
            ("data: 1\n\ndata", false),
        ] {
            let mut tally = Tally::new(crate::dialect::Dialect::OpenAi, true);
            let mut events = Events::default();
            events.take(bytes.as_bytes(), &mut tally);
            assert_eq!(events.is_at_boundary(), expected, "{bytes:?}");
        }
    }
}
