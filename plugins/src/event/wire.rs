//! The wire format of protobuf, as far as reading a few fields of a message needs it: a field is a key, which holds its
//! number and how long its value is, and the value (Protocol Buffers, "Encoding").

/// A field's value. What its number means, the reader knows.
pub(super) enum Value<'a> {
    /// A number, a truth, an enum.
    Varint(u64),
    /// A text, bytes, a message.
    Bytes(&'a [u8]),
    /// Four or eight bytes, which our schemas do not have.
    Fixed,
}

/// Takes a field off the start of `bytes`: its number and its value. `None` if there is none.
pub(super) fn take_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = take_varint(bytes)?;
    // A key is 32 bits; number 0 is none.
    let number = Some(key >> 3).filter(|number| *number > 0 && key <= u64::from(u32::MAX))?;
    let value = match key & 7 {
        0 => Value::Varint(take_varint(bytes)?),
        1 => take(bytes, 8).map(|_| Value::Fixed)?,
        2 => {
            let length = take_varint(bytes)?;
            Value::Bytes(take(bytes, usize::try_from(length).ok()?)?)
        }
        5 => take(bytes, 4).map(|_| Value::Fixed)?,
        // Groups, which our schemas never had.
        _ => return None,
    };
    Some((number, value))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

/// Seven bits a byte, lowest first; the high bit says that more follow. At most 64 bits.
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte holds the last bit.
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}
