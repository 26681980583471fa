//! WebSocket frames (RFC 6455 §5), made as either side makes them and taken apart again, wrong ones included.

use bytes::BytesMut;

/// The first octet of a text in one frame.
pub const TEXT: u8 = 0x81;
/// The first octet of a binary message in one frame.
pub const BINARY: u8 = 0x82;
/// The first octet of a close frame.
pub const CLOSE: u8 = 0x88;
/// The first octet of a ping.
pub const PING: u8 = 0x89;
/// The first octet of a pong.
pub const PONG: u8 = 0x8A;
/// Taken away from a first octet, this says that more frames of the message follow.
pub const FINAL: u8 = 0x80;

/// The mask of frames where it does not matter.
pub(crate) const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A frame as a server sends it.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(length as u8),
        length @ 126..=0xFFFF => {
            frame.push(126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// A frame as a client sends it, with this mask.
pub fn masked(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut frame = frame(first, payload);
    let head = frame.len() - payload.len();
    mask(&mut frame[head..], key);
    frame[1] |= 0x80;
    drop(frame.splice(head..head, key));
    frame
}

/// The payload of a close frame.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_bytes()].concat()
}

fn mask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let whole = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ whole).to_ne_bytes();
    }
    for (octet, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *octet ^= key;
    }
}

/// A frame as it was received, its mask undone.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its first octet: last of a message or not, and the opcode.
    pub first: u8,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The payload as text, for messages and searches.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    /// Code and reason of a close frame; code 1005 for one without.
    ///
    /// # Panics
    /// When the reason is no text.
    pub fn close(&self) -> Option<(u16, String)> {
        if self.first != CLOSE {
            return None;
        }
        let Some((code, reason)) = self.payload.split_first_chunk::<2>() else { return Some((1005, String::new())) };
        Some((u16::from_be_bytes(*code), String::from_utf8(reason.to_vec()).expect("a reason is UTF-8")))
    }

    /// Takes a whole frame off the front, whatever there is behind it.
    pub(crate) fn take(buffer: &mut BytesMut) -> Option<Self> {
        let (&first, &second) = (buffer.first()?, buffer.get(1)?);
        let length_bytes = match second & 0x7F {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let key_bytes = if second & 0x80 == 0 { 0 } else { 4 };
        let head = 2 + length_bytes + key_bytes;
        if buffer.len() < head {
            return None;
        }
        let length = match &buffer[2..2 + length_bytes] {
            [] => usize::from(second & 0x7F),
            octets => octets.iter().fold(0, |length, octet| (length << 8) | usize::from(*octet)),
        };
        if buffer.len() < head + length {
            return None;
        }
        let frame = buffer.split_to(head + length);
        let mut payload = frame[head..].to_vec();
        if let Ok(key) = <[u8; 4]>::try_from(&frame[2 + length_bytes..head]) {
            mask(&mut payload, key);
        }
        Some(Self { first, payload })
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = &self.payload[..self.payload.len().min(100)];
        write!(formatter, "{:02x} {} bytes: {}", self.first, self.payload.len(), start.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_as_they_were_made() {
        for length in [0, 1, 9, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|at: u32| at.to_be_bytes()[3]).collect();
            for wire in [frame(BINARY, &payload), masked(BINARY, &payload, KEY)] {
                let mut buffer = BytesMut::from(&wire[..wire.len() - 1]);
                assert!(Frame::take(&mut buffer).is_none(), "{length}");
                buffer.extend_from_slice(&wire[wire.len() - 1..]);
                buffer.extend_from_slice(b"rest");
                let taken = Frame::take(&mut buffer).unwrap();
                assert_eq!((taken.first, &taken.payload, &buffer[..]), (BINARY, &payload, &b"rest"[..]), "{length}");
            }
        }
        let close = Frame { first: CLOSE, payload: close_payload(4001, "bye") };
        assert_eq!(close.close(), Some((4001, "bye".to_owned())));
        assert_eq!(Frame { first: CLOSE, payload: Vec::new() }.close(), Some((1005, String::new())));
        assert_eq!(Frame { first: TEXT, payload: Vec::new() }.close(), None);
    }
}
