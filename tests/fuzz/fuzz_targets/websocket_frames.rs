//! Are a WebSocket's frames followed as a second reader takes them apart, in every split, and does our close frame say
//! what it should?
//!
//! An input begins with four bytes: whether client or server sends, the cap of a message, and two for the plan of the
//! pieces; then the stream. The second reader cuts it into frames and tells each event with the byte that brings it; fed
//! byte by byte, ours must tell it then. The whole frames, written again for the other side (masked or not, every length
//! in its shortest form), must tell the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_proxy_core::websocket::frames::{Event, Follower, Kind, Sender, close_frame};
use llm_proxy_fuzz::{BYTE_BY_BYTE, WHOLE, pieces};

fuzz_target!(|input: &[u8]| {
    let Some(([side, cap, plan @ ..], stream)) = input.split_first_chunk::<4>() else { return };
    let (sender, other) =
        if side & 1 == 0 { (Sender::Server, Sender::Client) } else { (Sender::Client, Sender::Server) };
    let cap = usize::from(*cap);
    let expected = take_apart(stream, sender, cap);
    let events: Vec<&Seen> = expected.told.iter().map(|(_, seen)| seen).collect();
    for plan in [WHOLE, BYTE_BY_BYTE, plan] {
        let mut follower = Follower::new(sender, cap);
        let followed = follow(&mut follower, &pieces(stream, plan));
        assert_eq!(followed.told.iter().map(|(_, seen)| seen).collect::<Vec<_>>(), events, "in pieces of {plan:?}");
        assert_eq!(followed.broken.is_some(), expected.broken.is_some(), "in pieces of {plan:?}");
        if plan == BYTE_BY_BYTE {
            assert_eq!((&followed.told, followed.broken), (&expected.told, expected.broken));
        }
        if expected.broken.is_none() {
            assert_eq!(follower.bytes(), stream.len() as u64);
            assert_eq!(follower.frames(), expected.frames.len() as u64);
            assert_eq!(follower.is_at_boundary(), expected.is_at_boundary);
            assert_eq!(follower.is_closing(), expected.is_closing);
        }
    }

    let key = [plan[0], plan[1], *side, cap as u8];
    let again: Vec<u8> = expected.frames.iter().flat_map(|frame| written(frame, other, key)).collect();
    let mut follower = Follower::new(other, cap);
    let followed = follow(&mut follower, &[&again]);
    assert_eq!(followed.broken, None, "frames that passed from one side pass from the other");
    assert_eq!(followed.told.iter().map(|(_, seen)| seen).collect::<Vec<_>>(), events[..expected.told_by_whole]);

    let code = u16::from_be_bytes([plan[0], plan[1]]);
    closes(code, &String::from_utf8_lossy(stream), key);
});

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Message(Kind, Vec<u8>),
    Long(Kind, Vec<u8>),
    Close(Option<u16>),
}

/// What ours tells of the pieces, each with how many bytes it has been given by then.
struct Followed {
    told: Vec<(usize, Seen)>,
    broken: Option<usize>,
}

fn follow(follower: &mut Follower, pieces: &[&[u8]]) -> Followed {
    let mut followed = Followed { told: Vec::new(), broken: None };
    let mut given = 0;
    for piece in pieces {
        let mut rest = *piece;
        given += piece.len();
        loop {
            let seen = match follower.next_event(&mut rest) {
                Ok(None) => break,
                Ok(Some(Event::Message { kind, payload })) => Seen::Message(kind, payload.to_vec()),
                Ok(Some(Event::LongMessage { kind, start })) => Seen::Long(kind, start.to_vec()),
                Ok(Some(Event::Close { code })) => Seen::Close(code),
                Err(_) => {
                    followed.broken = Some(given);
                    return followed;
                }
            };
            followed.told.push((given, seen));
        }
        assert!(rest.is_empty(), "all of a piece is taken");
    }
    followed
}

/// A stream taken apart.
#[derive(Default)]
struct Parts {
    /// Events, each with the number of bytes that bring it.
    told: Vec<(usize, Seen)>,
    /// How many of them the whole frames bring.
    told_by_whole: usize,
    /// The whole frames: first octet, and payload without its mask.
    frames: Vec<(u8, Vec<u8>)>,
    /// With so many bytes it is certain that nobody should read on.
    broken: Option<usize>,
    is_at_boundary: bool,
    is_closing: bool,
}

/// A message of which some frames have come.
struct Unfinished {
    kind: Kind,
    content: Vec<u8>,
    is_told: bool,
}

/// RFC 6455, section 5, and what the product's documentation adds to it.
fn take_apart(stream: &[u8], sender: Sender, cap: usize) -> Parts {
    let mut parts = Parts::default();
    let mut message: Option<Unfinished> = None;
    let mut at = 0;
    while let Some(first) = stream.get(at) {
        let (is_final, opcode) = (first >> 7 == 1, first & 0xF);
        let is_legal = match opcode {
            0 => message.is_some() && !parts.is_closing,
            1 | 2 => message.is_none() && !parts.is_closing,
            8 => is_final && !parts.is_closing,
            9 | 10 => is_final,
            _ => false,
        };
        if !is_legal || first & 0x70 != 0 {
            parts.broken = Some(at + 1);
            return parts;
        }
        let head = match head(&stream[at..], sender, opcode) {
            Head::Whole(head) => head,
            Head::Open => return parts,
            Head::Broken(bytes) => {
                parts.broken = Some(at + bytes);
                return parts;
            }
        };
        let begin = at + head.bytes;
        let here = usize::try_from(head.length).map_or(stream.len() - begin, |length| length.min(stream.len() - begin));
        let is_whole = here as u64 == head.length;
        let masked = stream[begin..begin + here].iter().zip(head.key.iter().cycle());
        let payload: Vec<u8> = masked.map(|(octet, key)| octet ^ key).collect();
        match opcode {
            8 if is_whole => {
                let code = payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                parts.told.push((begin + here, Seen::Close(code)));
                parts.is_closing = true;
            }
            0..=2 => {
                let kind = if opcode == 1 { Kind::Text } else { Kind::Binary };
                let open = message.get_or_insert_with(|| Unfinished { kind, content: Vec::new(), is_told: false });
                let room = cap.saturating_sub(open.content.len());
                open.content.extend_from_slice(&payload);
                if open.content.len() > cap && !open.is_told {
                    parts.told.push((begin + room + 1, Seen::Long(open.kind, open.content[..cap].to_vec())));
                    open.is_told = true;
                }
                if is_whole
                    && is_final
                    && let Some(whole) = message.take()
                    && !whole.is_told
                {
                    parts.told.push((begin + here, Seen::Message(whole.kind, whole.content)));
                }
            }
            _ => {}
        }
        if !is_whole {
            return parts;
        }
        parts.told_by_whole = parts.told.len();
        parts.frames.push((*first, payload));
        at = begin + here;
    }
    parts.is_at_boundary = true;
    parts
}

enum Head {
    Whole(WholeHead),
    Open,
    /// With so many of its bytes.
    Broken(usize),
}

struct WholeHead {
    bytes: usize,
    length: u64,
    /// Zeros where there is none.
    key: [u8; 4],
}

fn head(frame: &[u8], sender: Sender, opcode: u8) -> Head {
    let Some(second) = frame.get(1) else { return Head::Open };
    let (is_masked, short) = (second >> 7 == 1, second & 0x7F);
    if is_masked != (sender == Sender::Client) || (opcode >= 8 && short > 125) || (opcode == 8 && short == 1) {
        return Head::Broken(2);
    }
    let (octets, least) = match short {
        126 => (2, 126),
        127 => (8, 65_536),
        _ => (0, 0),
    };
    if octets == 8 && frame.get(2).is_some_and(|octet| *octet > 0x7F) {
        return Head::Broken(3);
    }
    let Some(long) = frame.get(2..2 + octets) else { return Head::Open };
    let length = match octets {
        0 => u64::from(short),
        _ => long.iter().fold(0, |length, octet| length * 256 + u64::from(*octet)),
    };
    if length < least {
        return Head::Broken(2 + octets);
    }
    if !is_masked {
        return Head::Whole(WholeHead { bytes: 2 + octets, length, key: [0; 4] });
    }
    match frame[2 + octets..].first_chunk::<4>() {
        Some(key) => Head::Whole(WholeHead { bytes: 6 + octets, length, key: *key }),
        None => Head::Open,
    }
}

/// A frame as this side sends it.
fn written((first, payload): &(u8, Vec<u8>), sender: Sender, key: [u8; 4]) -> Vec<u8> {
    let mask = if sender == Sender::Client { 0x80 } else { 0 };
    let mut frame = vec![*first];
    match payload.len() {
        length @ 0..=125 => frame.push(mask | length as u8),
        length @ 126..=65_535 => {
            frame.push(mask | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(mask | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    if sender == Sender::Client {
        frame.extend(key);
        frame.extend(payload.iter().zip(key.iter().cycle()).map(|(octet, key)| octet ^ key));
    } else {
        frame.extend(payload);
    }
    frame
}

/// A close frame of ours carries the code and as many whole characters of the reason as fit.
fn closes(code: u16, reason: &str, key: [u8; 4]) {
    let mut payload = code.to_be_bytes().to_vec();
    for letter in reason.chars() {
        if payload.len() + letter.len_utf8() > 125 {
            break;
        }
        payload.extend(letter.encode_utf8(&mut [0; 4]).bytes());
    }
    for (sender, key) in [(Sender::Server, None), (Sender::Client, Some(key))] {
        let frame = close_frame(code, reason, key);
        assert_eq!(frame, written(&(0x88, payload.clone()), sender, key.unwrap_or_default()));
        let mut follower = Follower::new(sender, 0);
        let followed = follow(&mut follower, &[&frame]);
        assert_eq!((followed.told, followed.broken), (vec![(frame.len(), Seen::Close(Some(code)))], None));
    }
}
