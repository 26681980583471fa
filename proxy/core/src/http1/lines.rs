//! Lines of a head, of requests and answers alike (RFC 9112 §2, RFC 9110 §5): where they end, and what stands where in a field line.

use std::ops::Range;

use super::octets::{has_control, token_length};

/// Where a line that begins at `from` ends: its first CR, if an LF follows.
pub(super) fn end(text: &[u8], from: usize) -> Option<usize> {
    let found = memchr::memchr(b'\r', text.get(from..)?)?.saturating_add(from);
    (text.get(found.saturating_add(1)) == Some(&b'\n')).then_some(found)
}

/// What a field line is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadLine {
    /// It does not begin with a token and its colon.
    Name,
    /// Its value has a control octet.
    Value,
}

/// Where name and value of a field line stand in the text; the value without white space around it.
pub(super) fn field(text: &[u8], start: usize, end: usize) -> Result<(Range<usize>, Range<usize>), BadLine> {
    let line = text.get(start..end).unwrap_or(&[]);
    let colon = token_length(line);
    if colon == 0 || line.get(colon) != Some(&b':') {
        return Err(BadLine::Name);
    }
    let value = line.get(colon.saturating_add(1)..).unwrap_or(&[]);
    if has_control(value) {
        return Err(BadLine::Value);
    }
    let lead = value.len().saturating_sub(value.trim_ascii_start().len());
    let value_start = start.saturating_add(colon).saturating_add(1).saturating_add(lead);
    let value_end = value_start.saturating_add(value.trim_ascii().len());
    Ok((start..start.saturating_add(colon), value_start..value_end))
}

/// A Content-Length: 1 to 15 digits.
pub(super) fn digits(value: &[u8]) -> Option<u64> {
    let is_one = !value.is_empty() && value.len() <= 15 && value.iter().all(u8::is_ascii_digit);
    let digit = |digit: &u8| u64::from(digit.saturating_sub(b'0'));
    is_one.then(|| value.iter().fold(0u64, |sum, next| sum.saturating_mul(10).saturating_add(digit(next))))
}

/// A position in a head. A head is at most 64 KiB: positions always fit.
pub(super) fn narrow(range: &Range<usize>) -> Range<u32> {
    u32::try_from(range.start).unwrap_or(u32::MAX)..u32::try_from(range.end).unwrap_or(u32::MAX)
}
