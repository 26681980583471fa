//! JSON read a second time: the grammar of RFC 8259 and nothing else, without recursion and without making values.

/// What a text is at its top.
#[derive(Debug)]
pub enum Top<'t> {
    /// An object with these members.
    Object(Vec<Member<'t>>),
    /// An array.
    Array,
    /// A string, a number, or a word.
    Scalar,
}

/// One member of an object.
#[derive(Debug)]
pub struct Member<'t> {
    /// The name as written, with its quotes.
    pub name: &'t [u8],
    /// The value as written.
    pub value: &'t [u8],
    /// How deep arrays and objects nest in the value.
    pub depth: usize,
}

/// Reads exactly one JSON text; `None` where the grammar is broken.
pub fn read(text: &[u8]) -> Option<Top<'_>> {
    let mut cursor = Cursor { text, at: 0 };
    cursor.space();
    let top = match cursor.peek()? {
        b'{' => Top::Object(cursor.members()?),
        b'[' => cursor.value().map(|_| Top::Array)?,
        _ => cursor.value().map(|_| Top::Scalar)?,
    };
    cursor.space();
    (cursor.at == text.len()).then_some(top)
}

struct Cursor<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Cursor<'t> {
    fn members(&mut self) -> Option<Vec<Member<'t>>> {
        let mut members = Vec::new();
        self.expect(b'{')?;
        self.space();
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(members);
        }
        loop {
            self.space();
            let begin = self.at;
            self.string()?;
            let name = &self.text[begin..self.at];
            self.space();
            self.expect(b':')?;
            self.space();
            let begin = self.at;
            let depth = self.value()?;
            members.push(Member { name, value: &self.text[begin..self.at], depth });
            self.space();
            match self.take()? {
                b',' => {}
                b'}' => return Some(members),
                _ => return None,
            }
        }
    }

    /// Passes a value; gives how deep it nests.
    fn value(&mut self) -> Option<usize> {
        let mut open: Vec<u8> = Vec::new();
        let mut deepest = 0;
        loop {
            self.space();
            match self.peek()? {
                kind @ (b'{' | b'[') => {
                    self.at += 1;
                    open.push(if kind == b'{' { b'}' } else { b']' });
                    deepest = deepest.max(open.len());
                    self.space();
                    if Some(&self.peek()?) != open.last() {
                        self.begin_item(&open)?;
                        continue;
                    }
                }
                b'"' => self.string()?,
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                _ => self.number()?,
            }
            // A value has ended, or an array or object that holds none is about to: what is open goes on or ends.
            loop {
                let Some(&close) = open.last() else { return Some(deepest) };
                self.space();
                match self.take()? {
                    b',' => {
                        self.begin_item(&open)?;
                        break;
                    }
                    found if found == close => {
                        open.pop();
                    }
                    _ => return None,
                }
            }
        }
    }

    /// Passes the name of a member, where what is open is an object.
    fn begin_item(&mut self, open: &[u8]) -> Option<()> {
        if open.last() == Some(&b'}') {
            self.space();
            self.string()?;
            self.space();
            self.expect(b':')?;
        }
        Some(())
    }

    fn string(&mut self) -> Option<()> {
        self.expect(b'"')?;
        loop {
            match self.take()? {
                b'"' => return Some(()),
                b'\\' => match self.take()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        let digits = self.text.get(self.at..self.at + 4)?;
                        digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                        self.at += 4;
                    }
                    _ => return None,
                },
                0..=0x1F => return None,
                _ => {}
            }
        }
    }

    fn number(&mut self) -> Option<()> {
        if self.peek()? == b'-' {
            self.at += 1;
        }
        if self.peek()? == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let count = self.text[self.at..].iter().take_while(|digit| digit.is_ascii_digit()).count();
        self.at += count;
        (count > 0).then_some(())
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.text[self.at..].starts_with(word).then_some(())?;
        self.at += word.len();
        Some(())
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self) -> Option<u8> {
        let next = self.peek()?;
        self.at += 1;
        Some(next)
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        (self.take()? == wanted).then_some(())
    }
}
