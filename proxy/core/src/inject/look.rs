//! Whether data that is still coming can be that of the extra event.
//!
//! A chunk that carries a piece of the answer shows it early: the first element of `choices` stands before the text in
//! it. So does `error`, or a `usage` that is no object. This reader follows JSON only as far as it must to find these
//! places. It is exact on correct JSON. Of anything else it may think what it likes: what it rules out no parser would
//! have accepted, and what it leaves open is judged by a parser at its end.

/// The members that tell are `choices`, `usage` and `error`.
const LONGEST_NAME: usize = 7;

/// Reads the data of one event, byte by byte. Line ends between data lines may be left out.
#[derive(Debug, Default)]
pub(super) struct Look {
    at: At,
    /// Brackets open in the value at hand.
    depth: usize,
    /// The member at hand, as it stands between its quotes.
    name: [u8; LONGEST_NAME],
    /// Its length. More than there is room for: none that tells.
    name_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum At {
    /// Before the chunk's opening brace.
    #[default]
    Start,
    /// Among the chunk's members, before a name.
    Member,
    Name,
    NameEscape,
    Colon,
    Value,
    /// Behind the bracket that opens `choices`.
    FirstChoice,
    /// In a value, outside its strings.
    Inside,
    Text,
    TextEscape,
}

impl Look {
    /// Reads the next byte. False once the data cannot be that of the extra event.
    pub(super) fn take(&mut self, byte: u8) -> bool {
        match (self.at, byte) {
            (At::Start | At::Value | At::FirstChoice, _) if byte.is_ascii_whitespace() => {}
            (At::Start, b'{') => self.at = At::Member,
            (At::Start, _) => return false,
            (At::Member, b'"') => {
                self.at = At::Name;
                self.name_bytes = 0;
            }
            (At::Name, b'"') => self.at = At::Colon,
            (At::Name, b'\\') => {
                // What the escapes say is left to the parser.
                self.name_bytes = usize::MAX;
                self.at = At::NameEscape;
            }
            (At::Name, _) => {
                if let Some(place) = self.name.get_mut(self.name_bytes) {
                    *place = byte;
                }
                self.name_bytes = self.name_bytes.saturating_add(1);
            }
            (At::NameEscape, _) => self.at = At::Name,
            (At::Colon, b':') => self.at = At::Value,
            (At::Value, _) => return self.begin_value(byte),
            (At::FirstChoice, b']') => self.at = At::Member,
            (At::FirstChoice, _) => return false,
            (At::Inside, _) => self.inside(byte),
            (At::Text, b'"') => self.at = if self.depth == 0 { At::Member } else { At::Inside },
            (At::Text, b'\\') => self.at = At::TextEscape,
            (At::TextEscape, _) => self.at = At::Text,
            (At::Member | At::Colon | At::Text, _) => {}
        }
        true
    }

    fn begin_value(&mut self, byte: u8) -> bool {
        match (self.name.get(..self.name_bytes), byte) {
            (Some(b"choices"), b'[') => {
                self.at = At::FirstChoice;
                return true;
            }
            // An object, and null: `error` may stand there and say that there is none.
            (Some(b"usage"), b'{') | (Some(b"error"), b'n') => {}
            (Some(b"choices" | b"usage" | b"error"), _) => return false,
            _ => {}
        }
        self.at = At::Inside;
        self.depth = 0;
        self.inside(byte);
        true
    }

    fn inside(&mut self, byte: u8) {
        match byte {
            b'"' => self.at = At::Text,
            b'{' | b'[' => self.depth = self.depth.saturating_add(1),
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    self.at = At::Member;
                }
            }
            b',' if self.depth == 0 => self.at = At::Member,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes of the data had to be read until it was known not to be the extra event's.
    fn bytes_until_known(data: &str) -> Option<usize> {
        let mut look = Look::default();
        data.bytes().position(|byte| !look.take(byte)).map(|at| at + 1)
    }

    #[test]
    fn data_is_known_at_the_byte_marked() {
        for marked in [
            "[^DONE]",
            " \t\"^text\"",
            r#"{"id":"chatcmpl-1","created":1,"choices":[{^"index":0}]}"#,
            r#"{"choices" : [ 0^ ]}"#,
            r#"{"choices":n^ull}"#,
            r#"{"choices":[],"usage":n^ull}"#,
            r#"{"usage":4^}"#,
            r#"{"error":{^"message":"x"}}"#,
            r#"{"choices":[],"usage":{},"error":"^x"}"#,
            r#"{"a":"\"\\","b":{"c":"}","usage":1},"usage":1^}"#,
            r#"{"a":[[]],"b":-1.5,"c":true,"usage":[^]}"#,
            r#"{"a":[],"b":{},"":0,"usage":"^"}"#,
            r#"{"choices":[],"choices":[{^}]}"#,
        ] {
            let expected = marked.find('^').unwrap();
            assert_eq!(bytes_until_known(&marked.replacen('^', "", 1)), Some(expected), "{marked}");
        }
    }

    #[test]
    fn data_that_may_be_the_extra_event_is_left_open() {
        for data in [
            "",
            " ",
            r#"{"id":"x","choices":[],"usage":{"prompt_tokens":1,"choices":[1],"usage":null,"error":{}},"x":[{}]}"#,
            r#"{"choices":[ ] ,"error":null,"usage" : { } } "#,
            r#"{"x":{"choices":[1],"usage":null,"error":1}}"#,
            r#"{"x":"\"choices\":[1],\"usage\":null"#,
            r#"{"a_longer_usage":1,"usag":1,"usages":1,"\u0075sage":1,"choice":1}"#,
            r#"{"choices":["#,
            r#"{"choices":[]}"#,
            "{}",
        ] {
            assert_eq!(bytes_until_known(data), None, "{data}");
        }
    }
}
