//! A server-sent stream read a second time (WHATWG HTML, "Server-sent events"): first into lines, then into events.

/// The data of every event that has any, in order. The end of the stream ends its last event, as SDKs read it.
pub fn read(stream: &[u8]) -> Vec<Vec<u8>> {
    let stream = stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream);
    let mut events = Vec::new();
    let mut data: Vec<&[u8]> = Vec::new();
    for line in lines(stream).into_iter().chain([&b""[..]]) {
        if line.is_empty() {
            events.push(data.join(&b'\n'));
            data.clear();
            continue;
        }
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(line.len()));
        if name == b"data" {
            let value = value.strip_prefix(b":").unwrap_or(value);
            data.push(value.strip_prefix(b" ").unwrap_or(value));
        }
    }
    events.retain(|data| !data.is_empty());
    events
}

/// The lines of a text whose lines end in LF, CR or CRLF; the last one need not end.
fn lines(mut text: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    while let Some(end) = text.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        lines.push(&text[..end]);
        let width = if text[end..].starts_with(b"\r\n") { 2 } else { 1 };
        text = &text[end + width..];
    }
    lines.push(text);
    lines
}

/// Follows a stream byte by byte and says whether something of our own could stand here.
#[derive(Default)]
pub struct Boundary {
    /// Bytes of the line at hand.
    length: usize,
    /// The last line that ended had bytes.
    is_inside: bool,
    is_after_cr: bool,
    has_seen_lf: bool,
}

impl Boundary {
    /// Takes the next byte.
    pub fn pass(&mut self, byte: u8) {
        self.has_seen_lf |= byte == b'\n';
        let is_second_half = byte == b'\n' && self.is_after_cr;
        self.is_after_cr = byte == b'\r';
        if is_second_half {
            return;
        }
        if matches!(byte, b'\r' | b'\n') {
            self.is_inside = self.length > 0;
            self.length = 0;
        } else {
            self.length += 1;
        }
    }

    /// Whether the last event has ended, and nothing of its line end is still to come: a stream that sent LF before
    /// may send one after this CR.
    pub fn is_here(&self) -> bool {
        !self.is_inside && self.length == 0 && !(self.is_after_cr && self.has_seen_lf)
    }
}
