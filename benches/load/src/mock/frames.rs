//! WebSocket frames (RFC 6455 §5) as a server reads and writes them. Read strictly, as heads are: a provider that
//! guesses hides a proxy's mistakes. Written as asked, so that wrong ones can be made too.

use bytes::{Bytes, BytesMut};

/// Longest payload that is read.
const MAX_PAYLOAD_BYTES: u64 = 64 * 1024 * 1024;
/// The longest payload of a control frame (RFC 6455 §5.5).
const MAX_CONTROL_BYTES: u8 = 125;

/// Set in the first octet of a message's last frame.
const FINAL: u8 = 0x80;
/// Set in the second octet of a masked frame.
const MASKED: u8 = 0x80;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn of(octet: u8) -> Option<Self> {
        Some(match octet {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    fn octet(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// A frame of a client.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) is_final: bool,
    pub(super) opcode: Opcode,
    /// Its mask undone.
    pub(super) payload: Vec<u8>,
    /// The frame as received.
    pub(super) raw: Bytes,
}

/// No client may send this; close code 1002 says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadFrame(pub(super) &'static str);

/// Takes the next frame out of `buffer`, or leaves it there until it is whole.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, BadFrame> {
    let mut octets = buffer.iter().copied();
    let (Some(first), Some(second)) = (octets.next(), octets.next()) else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(BadFrame("a reserved bit is set"));
    }
    let opcode = Opcode::of(first & 0x0F).ok_or(BadFrame("the opcode is reserved"))?;
    let is_final = first & FINAL != 0;
    if second & MASKED == 0 {
        return Err(BadFrame("the frame is not masked"));
    }
    let short = second & !MASKED;
    if opcode.is_control() && !is_final {
        return Err(BadFrame("a control frame is fragmented"));
    }
    if opcode.is_control() && short > MAX_CONTROL_BYTES {
        return Err(BadFrame("a control frame is too long"));
    }
    let (head_bytes, least): (usize, u64) = match short {
        126 => (8, 126),
        127 => (14, 0x1_0000),
        _ => (6, 0),
    };
    let Some(head) = buffer.get(..head_bytes) else { return Ok(None) };
    let (head, key) = head.split_last_chunk::<4>().unwrap_or((head, &[0; 4]));
    let key = *key;
    let length = match head.get(2..).unwrap_or_default() {
        [] => u64::from(short),
        octets => octets.iter().fold(0, |length: u64, octet| (length << 8) | u64::from(*octet)),
    };
    if length < least {
        return Err(BadFrame("the length is in a longer form than it needs"));
    }
    if length > MAX_PAYLOAD_BYTES {
        return Err(BadFrame("the frame is too large"));
    }
    let frame_bytes = head_bytes.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
    if buffer.len() < frame_bytes {
        return Ok(None);
    }
    let raw = buffer.split_to(frame_bytes).freeze();
    let mut payload = raw.get(head_bytes..).unwrap_or_default().to_vec();
    mask(&mut payload, key);
    Ok(Some(Frame { is_final, opcode, payload, raw }))
}

/// Appends a frame of a server.
pub(super) fn put(out: &mut Vec<u8>, is_final: bool, opcode: Opcode, payload: &[u8]) {
    out.push(if is_final { FINAL | opcode.octet() } else { opcode.octet() });
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length), _) if length <= 125 => out.push(length),
        (_, Ok(length)) => {
            out.push(126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// The payload of a close frame (RFC 6455 §5.5.1).
pub(super) fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    payload.truncate(MAX_CONTROL_BYTES.into());
    payload
}

/// Puts a mask on, or takes it off (RFC 6455 §5.3). Eight octets at a time: megabytes pass here in unoptimised builds.
pub(super) fn mask(payload: &mut [u8], key: [u8; 4]) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

    /// A client's frame: what a server would write, masked.
    fn masked(is_final: bool, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        put(&mut frame, is_final, opcode, payload);
        let head = frame.len() - payload.len();
        mask(&mut frame[head..], KEY);
        frame[1] |= MASKED;
        drop(frame.splice(head..head, KEY));
        frame
    }

    #[test]
    fn a_frame_is_taken_when_it_is_whole_and_not_before() {
        for length in [0, 1, 7, 8, 9, 125, 126, 127, 65_535, 65_536, 100_000] {
            let payload: Vec<u8> = (0..length).map(|at: u32| at.to_be_bytes()[3]).collect();
            let wire = masked(true, Opcode::Binary, &payload);
            let mut buffer = BytesMut::new();
            for cut in [0, 1, 2, 5, wire.len() / 2, wire.len() - 1] {
                buffer = BytesMut::from(&wire[..cut.min(wire.len() - 1)]);
                assert!(take(&mut buffer).unwrap().is_none(), "{length} at {cut}");
            }
            buffer.clear();
            buffer.extend_from_slice(&wire);
            buffer.extend_from_slice(b"rest");
            let frame = take(&mut buffer).unwrap().unwrap();
            assert_eq!((frame.is_final, frame.opcode, frame.payload), (true, Opcode::Binary, payload), "{length}");
            assert_eq!((&frame.raw[..], &buffer[..]), (&wire[..], &b"rest"[..]), "{length}");
        }
    }

    #[test]
    fn what_no_client_may_send_is_refused() {
        for wire in [
            &[0xC1, 0x80, 0, 0, 0, 0][..],                         // a reserved bit
            &[0x83, 0x80, 0, 0, 0, 0],                             // a reserved opcode
            &[0x81, 0x00],                                         // no mask
            &[0x09, 0x80, 0, 0, 0, 0],                             // half a ping
            &[0x89, 0xFE, 0, 126, 0, 0, 0, 0],                     // a long ping
            &[0x82, 0xFE, 0, 125, 0, 0, 0, 0],                     // a length in two octets that fits into one
            &[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 0], // and in eight that fits into two
            &[0x82, 0xFF, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(take(&mut BytesMut::from(wire)).is_err(), "{wire:x?}");
        }
        assert!(take(&mut BytesMut::from(&masked(false, Opcode::Continuation, b"part")[..])).unwrap().is_some());
    }

    #[test]
    fn a_close_says_why_in_what_room_there_is() {
        assert_eq!(close_payload(4001, "bye"), b"\x0f\xa1bye");
        assert_eq!(close_payload(1000, &"x".repeat(200)).len(), 125);
    }
}
