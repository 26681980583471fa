//! The model for the record, found while a body streams past that nobody judges.

/// Finds the first top-level `"model": "…"` of a JSON object while its bytes stream past, in any split.
///
/// Holds at most [`LONGEST_MODEL`] bytes and looks at most at the first [`FARTHEST`] of the body. An escaped name or a
/// longer one is not reported: the record then says unknown.
#[derive(Debug, Default)]
pub struct ModelScan {
    state: Scan,
    depth: u32,
    /// The string being read, while it can still matter.
    text: Vec<u8>,
    /// Whether the string being read is a key of the top-level object.
    is_key: bool,
    /// The last key was `model`, and its value comes next.
    at_model: bool,
    seen: usize,
}

/// The longest model name taken down, in bytes.
pub const LONGEST_MODEL: usize = 256;
/// How far into a body the scan looks, in bytes.
pub const FARTHEST: usize = 1 << 20;

#[derive(Debug, Default, PartialEq, Eq)]
enum Scan {
    #[default]
    Between,
    InString,
    Escaped,
    Done,
}

impl ModelScan {
    /// Takes the next piece of the body. Cheap once the model is found.
    pub fn feed(&mut self, piece: &[u8]) {
        if self.state == Scan::Done {
            return;
        }
        let mut rest = piece.get(..FARTHEST.saturating_sub(self.seen)).unwrap_or(piece);
        self.seen = self.seen.saturating_add(piece.len());
        while !rest.is_empty() && self.state != Scan::Done {
            rest = match self.state {
                Scan::InString => self.string(rest),
                Scan::Escaped => {
                    self.state = Scan::InString;
                    rest.get(1..).unwrap_or(&[])
                }
                _ => self.between(rest),
            };
        }
        if self.seen >= FARTHEST && self.state != Scan::Done {
            self.stop(false);
        }
    }

    /// The model's name, if it was found and is UTF-8.
    pub fn model(&self) -> Option<&str> {
        (self.state == Scan::Done && !self.text.is_empty()).then(|| std::str::from_utf8(&self.text).ok()).flatten()
    }

    fn stop(&mut self, found: bool) {
        self.state = Scan::Done;
        if !found {
            self.text = Vec::new();
        }
    }

    fn matters(&self) -> bool {
        self.depth == 1
    }

    fn string<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        let end = memchr::memchr2(b'"', b'\\', rest);
        let text = rest.get(..end.unwrap_or(rest.len())).unwrap_or(&[]);
        if self.matters() && self.text.len() <= LONGEST_MODEL {
            let room = LONGEST_MODEL.saturating_add(1).saturating_sub(self.text.len());
            self.text.extend_from_slice(text.get(..text.len().min(room)).unwrap_or(&[]));
        }
        let Some(end) = end else { return &[] };
        if rest.get(end) == Some(&b'\\') {
            // An escape makes the raw bytes differ from the text: spoil it.
            if self.matters() && self.text.len() <= LONGEST_MODEL {
                self.text.push(b'\\');
            }
            self.state = Scan::Escaped;
        } else {
            self.state = Scan::Between;
            if self.matters() {
                if self.is_key {
                    self.at_model = self.text == b"model";
                } else if self.at_model {
                    let plain = self.text.len() <= LONGEST_MODEL && !self.text.contains(&b'\\');
                    self.stop(plain);
                }
            }
        }
        rest.get(end.saturating_add(1)..).unwrap_or(&[])
    }

    fn between<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        for (at, byte) in rest.iter().enumerate() {
            match byte {
                b'"' => {
                    if self.matters() {
                        self.text.clear();
                    }
                    self.state = Scan::InString;
                    return rest.get(at.saturating_add(1)..).unwrap_or(&[]);
                }
                b'{' | b'[' => {
                    if self.depth == 0 && *byte == b'[' {
                        self.stop(false);
                        return &[];
                    }
                    self.depth = self.depth.saturating_add(1);
                    self.is_key = self.depth == 1;
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        self.stop(false);
                        return &[];
                    }
                }
                b':' if self.matters() => self.is_key = false,
                b',' if self.matters() => {
                    self.is_key = true;
                    self.at_model = false;
                }
                _ => {}
            }
        }
        &[]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model_of(pieces: &[&[u8]]) -> Option<String> {
        let mut scan = ModelScan::default();
        for piece in pieces {
            scan.feed(piece);
        }
        scan.model().map(str::to_owned)
    }

    #[test]
    fn the_scan_takes_the_top_level_model_only() {
        for (body, expected) in [
            (&br#"{"model":"gpt-4o"}"#[..], Some("gpt-4o")),
            (
                br#"{"messages":[{"role":"user","content":"\"model\":\"x\"","model":"y"}], "model" : "gpt-4o" }"#,
                Some("gpt-4o"),
            ),
            (br#"{"a":{"model":"x"}}"#, None),
            (br#"{"model":5,"b":"x"}"#, None),
            (br#"{"model":{"model":"x"},"b":"x"}"#, None),
            (br#"{"model":"a\u0062"}"#, None),
            (br#"[{"model":"x"}]"#, None),
            (b"", None),
            (b"not json", None),
        ] {
            assert_eq!(model_of(&[body]).as_deref(), expected, "{}", body.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_split_finds_the_same_model(cuts in proptest::collection::vec(0usize..80, 0..8)) {
            let body = br#"{"messages":[{"content":"say \"hi\" \\"}],"stream":true,"model":"gpt-4o-mini","n":1}"#;
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut scan = ModelScan::default();
            let mut at = 0;
            for cut in cuts.into_iter().chain([body.len()]) {
                scan.feed(&body[at..cut.max(at)]);
                at = cut.max(at);
            }
            prop_assert_eq!(scan.model(), Some("gpt-4o-mini"));
        }

        #[test]
        fn no_bytes_upset_the_scan(body: Vec<u8>) {
            let mut scan = ModelScan::default();
            scan.feed(&body);
            let _ = scan.model();
        }
    }
}
