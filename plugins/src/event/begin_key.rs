//! What counting requests needs of a [`super::Begin`], without decoding the rest of it.
//!
//! The counter comes by every exchange and wants two of eleven fields. Decoding the message would allocate and check
//! nine strings for each, only to drop them.

use super::wire::{Value, take_field};

/// Whose request a begin is, and when it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BeginKey<'a> {
    /// [`super::Begin::token_id`]; empty where that is.
    pub token_id: &'a str,
    /// [`super::Begin::received_us`]: microseconds since the Unix epoch, 0 where that is.
    pub received_us: i64,
}

const TOKEN_ID: u64 = 3;
const RECEIVED_US: u64 = 9;

impl<'a> BeginKey<'a> {
    /// Reads the payload of a [`crate::journal::Kind::Begin`] record. `None` if it is no such message; other fields are
    /// passed over, known or not, and of their values only the length is looked at.
    pub fn read(payload: &'a [u8]) -> Option<Self> {
        let mut key = Self::default();
        let mut rest = payload;
        while !rest.is_empty() {
            // A field that comes twice counts as it came last.
            match take_field(&mut rest)? {
                (TOKEN_ID, Value::Bytes(text)) => key.token_id = std::str::from_utf8(text).ok()?,
                (RECEIVED_US, Value::Varint(number)) => key.received_us = number.cast_signed(),
                _ => {}
            }
        }
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::{Begin, Message};
    use super::*;

    fn begin() -> impl Strategy<Value = Begin> {
        let ids = (".{0,40}", ".{0,40}", ".{0,300}").prop_map(|(id, project_id, token_id)| Begin {
            id,
            project_id,
            token_id,
            ..Begin::default()
        });
        let texts = (".{0,20}", ".{0,60}", any::<Option<String>>(), any::<Option<String>>());
        (ids, texts, any::<i64>(), any::<u32>()).prop_map(|(ids, texts, received_us, attempt)| {
            let (api, endpoint, model_requested, client_address) = texts;
            Begin { api, endpoint, model_requested, received_us, attempt, client_address, ..ids }
        })
    }

    #[test]
    fn fields_of_later_versions_are_passed_over_and_what_is_no_message_is_refused() {
        for (bytes, expected) in [
            (&b""[..], Some(("", 0))),
            (b"\x1a\x01t\x48\x07", Some(("t", 7))),
            (b"\x48\x07\x1a\x01t\x48\x08\x1a\x01u", Some(("u", 8))),
            // Fields 100 to 103: a varint, eight bytes, a length and three bytes, four bytes.
            (b"\xa0\x06\xff\x01\xa9\x0612345678\xb2\x06\x03abc\xbd\x061234\x1a\x01t", Some(("t", 0))),
            (b"\x48\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Some(("", -1))),
            (b"\x48\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", None), // more than 64 bits
            (b"\x48\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", None), // more than ten bytes
            (b"\x48", None),
            (b"\x1a\x02t", None),
            (b"\x1a\x01\xff", None),     // no UTF-8
            (b"\x02\x00", None),         // field 0
            (b"\xa3\x06\xa4\x06", None), // a group
            (b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", None),
        ] {
            let expected = expected.map(|(token_id, received_us)| BeginKey { token_id, received_us });
            assert_eq!(BeginKey::read(bytes), expected, "{bytes:02x?}");
        }
    }

    proptest! {
        #[test]
        fn the_key_is_what_decoding_the_whole_message_gives(begin in begin(), at in any::<prop::sample::Index>()) {
            let bytes = begin.encode_to_vec();
            let key = BeginKey { token_id: &begin.token_id, received_us: begin.received_us };
            prop_assert_eq!(BeginKey::read(&bytes), Some(key));
            let cut = &bytes[..at.index(bytes.len() + 1)];
            if let Ok(begin) = Begin::decode(cut) {
                let key = BeginKey { token_id: &begin.token_id, received_us: begin.received_us };
                prop_assert_eq!(BeginKey::read(cut), Some(key));
            }
        }

        #[test]
        fn no_bytes_at_all_crash_the_reader(bytes in vec(any::<u8>(), 0..100)) {
            if let (Some(key), Ok(begin)) = (BeginKey::read(&bytes), Begin::decode(bytes.as_slice())) {
                prop_assert_eq!((key.token_id, key.received_us), (begin.token_id.as_str(), begin.received_us));
            }
        }
    }
}
