//! A chunked body read a second time (RFC 9112 §7.1), by descent through its grammar instead of a state per byte.

/// How the bytes of a body end.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The body is whole, and so many bytes long.
    Whole(usize),
    /// More is to come.
    Open,
    /// The grammar is broken.
    Broken,
}

/// A body as far as it goes.
#[derive(Debug)]
pub struct Body {
    /// What the chunks carry.
    pub data: Vec<u8>,
    /// Of each whole size line: where it begins, where what follows it begins, and the size.
    pub sizes: Vec<(usize, usize, u64)>,
    /// How it ends.
    pub end: End,
}

/// The limits that the product's documentation of the grammar gives.
const MOST_SIZE_DIGITS: usize = 15;
const LONGEST_EXTENSION: usize = 1024;
const LONGEST_TRAILERS: usize = 4096;

/// Reads a body from its first byte on.
pub fn read(bytes: &[u8]) -> Body {
    let mut body = Body { data: Vec::new(), sizes: Vec::new(), end: End::Open };
    let mut cursor = Cursor { bytes, at: 0 };
    body.end = match cursor.body(&mut body.data, &mut body.sizes) {
        Ok(()) => End::Whole(cursor.at),
        Err(end) => end,
    };
    body
}

struct Cursor<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Cursor<'_> {
    fn body(&mut self, data: &mut Vec<u8>, sizes: &mut Vec<(usize, usize, u64)>) -> Result<(), End> {
        loop {
            let begin = self.at;
            let size = self.size_line()?;
            sizes.push((begin, self.at, size));
            if size == 0 {
                return self.trailers();
            }
            let here = self.bytes.len() - self.at;
            let taken = usize::try_from(size).map_or(here, |size| size.min(here));
            data.extend_from_slice(&self.bytes[self.at..self.at + taken]);
            self.at += taken;
            self.expect(b'\r')?;
            self.expect(b'\n')?;
        }
    }

    fn size_line(&mut self) -> Result<u64, End> {
        let mut digits = String::new();
        let mut next = self.take()?;
        while next.is_ascii_hexdigit() {
            digits.push(char::from(next));
            if digits.len() > MOST_SIZE_DIGITS {
                return Err(End::Broken);
            }
            next = self.take()?;
        }
        let size = u64::from_str_radix(&digits, 16).map_err(|_| End::Broken)?;
        if next == b';' {
            self.text(LONGEST_EXTENSION)?;
        } else if next != b'\r' {
            return Err(End::Broken);
        }
        self.expect(b'\n')?;
        Ok(size)
    }

    fn trailers(&mut self) -> Result<(), End> {
        let mut left = LONGEST_TRAILERS;
        loop {
            let mut next = self.take()?;
            if next == b'\r' {
                return self.expect(b'\n');
            }
            let mut is_first = true;
            while is_first || next != b':' {
                if !is_token_octet(next) {
                    return Err(End::Broken);
                }
                left = left.checked_sub(1).ok_or(End::Broken)?;
                is_first = false;
                next = self.take()?;
            }
            left = left.checked_sub(1).ok_or(End::Broken)?;
            left -= self.text(left)?;
            self.expect(b'\n')?;
        }
    }

    /// Passes text of at most so many bytes and the CR behind it; gives its length.
    fn text(&mut self, most: usize) -> Result<usize, End> {
        let begin = self.at;
        loop {
            let next = self.take()?;
            let length = self.at - begin - 1;
            match next {
                b'\r' => return Ok(length),
                b'\t' | b' '..=b'~' | 0x80.. if length < most => {}
                _ => return Err(End::Broken),
            }
        }
    }

    fn expect(&mut self, wanted: u8) -> Result<(), End> {
        if self.take()? == wanted { Ok(()) } else { Err(End::Broken) }
    }

    fn take(&mut self) -> Result<u8, End> {
        let next = self.bytes.get(self.at).copied().ok_or(End::Open)?;
        self.at += 1;
        Ok(next)
    }
}

/// RFC 9110 §5.6.2.
fn is_token_octet(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&octet)
}
