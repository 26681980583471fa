//! One line of JSON on its way: values of every kind that a record has, each after the text that leads up to it.

use time::UtcDateTime;

/// Microseconds below this are at most fifteen digits, and a double gives these back as they were.
const FIFTEEN_DIGITS: u64 = 1_000_000_000_000_000;

/// The end of a buffer to which a line is being written. `before` is the JSON between two values: comma, name, colon.
pub(super) struct Line<'a> {
    json: &'a mut Vec<u8>,
}

impl<'a> Line<'a> {
    pub fn at_end_of(json: &'a mut Vec<u8>) -> Self {
        Self { json }
    }

    /// JSON as it stands.
    pub fn raw(&mut self, json: &str) {
        self.json.extend_from_slice(json.as_bytes());
    }

    pub fn text(&mut self, before: &str, text: Option<&str>) {
        self.raw(before);
        let Some(text) = text else { return self.raw("null") };
        // Looks at all bytes: without a way out in the middle, the compiler makes vector instructions of it.
        let is_plain = !text.bytes().fold(false, |found, byte| found | needs_escape(byte));
        if is_plain {
            self.json.push(b'"');
            self.json.extend_from_slice(text.as_bytes());
            self.json.push(b'"');
        } else {
            // Writing to memory cannot fail.
            let _ = serde_json::to_writer(&mut *self.json, text);
        }
    }

    /// One of our own names, in which nothing needs an escape.
    pub fn name(&mut self, before: &str, name: &'static str) {
        self.raw(before);
        self.json.push(b'"');
        self.raw(name);
        self.json.push(b'"');
    }

    pub fn number(&mut self, before: &str, number: Option<u64>) {
        self.raw(before);
        match number {
            Some(number) => self.raw(itoa::Buffer::new().format(number)),
            None => self.raw("null"),
        }
    }

    pub fn truth(&mut self, before: &str, truth: Option<bool>) {
        self.raw(before);
        self.raw(match truth {
            Some(true) => "true",
            Some(false) => "false",
            None => "null",
        });
    }

    /// `null` where there are none.
    pub fn list(&mut self, before: &str, texts: &[String]) {
        self.raw(before);
        let mut separator = "[";
        for text in texts {
            self.text(separator, Some(text));
            separator = ",";
        }
        self.raw(if texts.is_empty() { "null" } else { "]" });
    }

    pub fn map<'t>(&mut self, before: &str, entries: Option<impl Iterator<Item = (&'t str, &'t str)>>) {
        self.raw(before);
        let Some(entries) = entries else { return self.raw("null") };
        self.raw("{");
        let mut separator = "";
        for (name, value) in entries {
            self.text(separator, Some(name));
            self.text(":", Some(value));
            separator = ",";
        }
        self.raw("}");
    }

    /// A JSON value as it came, but for line breaks: JSON allows them only between tokens, where a space means the same.
    pub fn json(&mut self, before: &str, value: Option<&[u8]>) {
        self.raw(before);
        let Some(value) = value else { return self.raw("null") };
        let from = self.json.len();
        self.json.extend_from_slice(value);
        for byte in self.json.get_mut(from..).unwrap_or_default() {
            *byte = if matches!(*byte, b'\n' | b'\r') { b' ' } else { *byte };
        }
    }

    /// Microseconds as milliseconds, in the fewest decimals that say it, one at least.
    pub fn milliseconds(&mut self, before: &str, microseconds: Option<u64>) {
        self.raw(before);
        let Some(microseconds) = microseconds else { return self.raw("null") };
        if microseconds >= FIFTEEN_DIGITS {
            // Writing to memory cannot fail.
            let _ = serde_json::to_writer(&mut *self.json, &(microseconds as f64 / 1_000.0));
            return;
        }
        self.raw(itoa::Buffer::new().format(microseconds / 1_000));
        self.raw(".");
        let fraction = (microseconds % 1_000) as u32;
        match (fraction % 100, fraction % 10) {
            (0, _) => self.digits::<1>(fraction / 100),
            (_, 0) => self.digits::<2>(fraction / 10),
            _ => self.digits::<3>(fraction),
        }
    }

    /// Microseconds since the Unix epoch in RFC 3339, in UTC with six decimals; `null` outside the years 0 to 9999,
    /// which the format cannot express.
    pub fn moment(&mut self, before: &str, microseconds: Option<i64>) {
        self.raw(before);
        let at = |microseconds: i64| {
            let at = UtcDateTime::from_unix_timestamp(microseconds.div_euclid(1_000_000)).ok()?;
            let (year, month, day) = at.to_calendar_date();
            Some((u32::try_from(year).ok()?, u8::from(month), day, at.as_hms(), microseconds.rem_euclid(1_000_000)))
        };
        let Some((year, month, day, (hour, minute, second), micros)) = microseconds.and_then(at) else {
            return self.raw("null");
        };
        self.raw("\"");
        self.digits::<4>(year);
        self.raw("-");
        self.digits::<2>(month.into());
        self.raw("-");
        self.digits::<2>(day.into());
        self.raw("T");
        self.digits::<2>(hour.into());
        self.raw(":");
        self.digits::<2>(minute.into());
        self.raw(":");
        self.digits::<2>(second.into());
        self.raw(".");
        self.digits::<6>(micros as u32);
        self.raw("Z\"");
    }

    /// The last `WIDTH` decimal digits of `number`, zeros in front.
    fn digits<const WIDTH: usize>(&mut self, mut number: u32) {
        let mut digits = [b'0'; WIDTH];
        for digit in digits.iter_mut().rev() {
            *digit = b'0' | (number % 10) as u8;
            number /= 10;
        }
        self.json.extend_from_slice(&digits);
    }
}

/// RFC 8259, section 7.
fn needs_escape(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}
