//! Frames (RFC 6455 §5), followed while their bytes pass, and the close frames that we write ourselves.
//!
//! The proxy never cuts or builds frames of others. It must know where they end, so that a close frame of ours stands
//! between two of them; what the messages say, for usage and the model policy; and that both sides read the same frames.
//! So everything is refused that two readers could read differently: reserved bits and opcodes, lengths in a longer form
//! than they need, masks on the wrong side, data behind a close. What only the receiver has to judge (UTF-8 in texts, the
//! meaning of close codes) is left to it.
//!
//! Memory: a message that arrives unmasked in one piece is shown where it lies. Others are gathered, up to a cap; of a
//! longer one its first bytes are shown and the rest is passed over.

/// A good cap for [`Follower::new`], in bytes: far above what the realtime APIs send in a message.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// The longest payload of a control frame, in bytes (RFC 6455 §5.5).
const MAX_CONTROL_BYTES: u64 = 125;
/// The longest reason of a close frame, in bytes: what its code leaves of the payload.
const MAX_REASON_BYTES: usize = 123;
/// A buffer of up to so many bytes stays for the next message.
const KEPT_BYTES: usize = 4096;

/// Set in the first octet of a message's last frame.
const FINAL: u8 = 0x80;
/// Set in the second octet of a masked frame.
const MASKED: u8 = 0x80;
/// The opcode of a close frame.
const CLOSE: u8 = 0x8;

/// Who sends the frames: clients mask them, servers must not (RFC 6455 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Frames on their way to the provider, masked.
    Client,
    /// Frames on their way to the client, not masked.
    Server,
}

/// What a message says it is. Gemini sends its JSON as binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8, if the sender keeps its word.
    Text,
    /// Anything.
    Binary,
}

/// What has just passed.
pub enum Event<'a> {
    /// A whole message: its fragments joined, its mask undone.
    Message {
        /// Text or binary.
        kind: Kind,
        /// What it says.
        payload: &'a [u8],
    },
    /// A message has become longer than the cap. Told once; the rest of it is passed over.
    LongMessage {
        /// Text or binary.
        kind: Kind,
        /// Its first bytes, exactly as many as the cap.
        start: &'a [u8],
    },
    /// A close frame. After it only pings and pongs may follow.
    Close {
        /// Why, as the sender says (RFC 6455 §7.4).
        code: Option<u16>,
    },
}

/// The bytes are no frames that everybody would read alike. Close code 1002 says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("illegal WebSocket frame: {0}")]
pub struct BadFrame(pub &'static str);

/// Follows the frames of one direction. It has no `Debug`, because it holds what people say.
pub struct Follower {
    sender: Sender,
    cap: usize,
    at: At,
    frame: Frame,
    /// The message whose last frame has not begun yet.
    open: Option<Kind>,
    /// What has come of a message, unmasked.
    held: Vec<u8>,
    /// The message is longer than the cap.
    is_long: bool,
    /// `held` was shown by the last event, and is to be forgotten.
    is_shown: bool,
    is_closing: bool,
    frames: u64,
    bytes: u64,
}

/// Where in a frame the next byte stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    First,
    Second,
    /// So many octets of a length are left, which must be at least `least`.
    Length {
        left: u8,
        least: u64,
    },
    /// So many octets of the masking key are left.
    Key {
        left: u8,
    },
    Payload,
}

#[derive(Clone, Copy)]
struct Frame {
    carries: Carries,
    is_final: bool,
    /// Bytes of payload to come.
    left: u64,
    /// The masking key, turned so that its first octet is for the next byte.
    key: [u8; 4],
    /// The first octets of a close frame's payload.
    code: Code,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Carries {
    Message(Kind),
    Close,
    PingOrPong,
}

impl Follower {
    /// Begins behind the handshake. Messages of up to `cap` bytes are shown whole.
    pub fn new(sender: Sender, cap: usize) -> Self {
        Self {
            sender,
            cap,
            at: At::First,
            frame: Frame::new(Carries::PingOrPong, true),
            open: None,
            held: Vec::new(),
            is_long: false,
            is_shown: false,
            is_closing: false,
            frames: 0,
            bytes: 0,
        }
    }

    /// Takes bytes from the front of `input` up to the next event. `None` when all of them are taken.
    ///
    /// # Errors
    /// [`BadFrame`]; the state is then of no further use. However the bytes are split, the events before it are the same.
    pub fn next_event<'a, 'c: 'a>(&'a mut self, input: &mut &'c [u8]) -> Result<Option<Event<'a>>, BadFrame> {
        self.forget_shown();
        loop {
            let bytes: &'c [u8] = input;
            if self.at != At::Payload {
                let Some((octet, rest)) = bytes.split_first() else { return Ok(None) };
                *input = rest;
                self.bytes = self.bytes.saturating_add(1);
                self.at = self.head(*octet)?;
                continue;
            }
            if bytes.is_empty() && self.frame.left > 0 {
                return Ok(None);
            }
            let taken = usize::try_from(self.frame.left).unwrap_or(usize::MAX).min(bytes.len());
            let (payload, rest) = bytes.split_at_checked(taken).unwrap_or((bytes, &[]));
            *input = rest;
            self.bytes = self.bytes.saturating_add(length(payload));
            self.frame.left = self.frame.left.saturating_sub(length(payload));
            let is_ended = self.frame.left == 0;
            if is_ended {
                self.frames = self.frames.saturating_add(1);
                self.at = At::First;
            }
            match self.frame.carries {
                Carries::PingOrPong => {}
                Carries::Close => {
                    self.take_code(payload);
                    if is_ended {
                        self.is_closing = true;
                        return Ok(Some(Event::Close { code: self.frame.code.whole() }));
                    }
                }
                Carries::Message(kind) => {
                    let is_whole = is_ended && self.frame.is_final;
                    if self.is_long {
                        self.is_long = !is_whole;
                    } else if is_whole && self.lies_bare(payload) {
                        return Ok(Some(Event::Message { kind, payload }));
                    } else if !self.hold(payload) {
                        self.is_long = !is_whole;
                        self.is_shown = true;
                        return Ok(Some(Event::LongMessage { kind, start: &self.held }));
                    } else if is_whole {
                        self.is_shown = true;
                        return Ok(Some(Event::Message { kind, payload: &self.held }));
                    }
                }
            }
        }
    }

    /// Whether the last byte taken ended a frame, or none was taken: a frame of ours could stand here.
    pub fn is_at_boundary(&self) -> bool {
        self.at == At::First
    }

    /// Whether a close frame has passed. Another one must not follow it.
    pub fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// Frames that have passed whole.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Bytes taken, frame heads among them.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One octet of a frame's head (RFC 6455 §5.2).
    fn head(&mut self, octet: u8) -> Result<At, BadFrame> {
        match self.at {
            At::First => self.first_octet(octet),
            At::Second => self.second_octet(octet),
            At::Length { left: 8, .. } if octet & 0x80 != 0 => Err(BadFrame("its length has more than 63 bits")),
            At::Length { left, least } => {
                self.frame.left = (self.frame.left << 8) | u64::from(octet);
                match left.saturating_sub(1) {
                    0 if self.frame.left < least => Err(BadFrame("its length is in a longer form than it needs")),
                    0 => Ok(self.behind_length()),
                    left => Ok(At::Length { left, least }),
                }
            }
            At::Key { left } => {
                let [_, first, second, third] = self.frame.key;
                self.frame.key = [first, second, third, octet];
                Ok(match left.saturating_sub(1) {
                    0 => At::Payload,
                    left => At::Key { left },
                })
            }
            At::Payload => Ok(At::Payload),
        }
    }

    /// Final or not, three reserved bits, the opcode.
    fn first_octet(&mut self, octet: u8) -> Result<At, BadFrame> {
        if octet & 0x70 != 0 {
            return Err(BadFrame("a reserved bit is set, and no extension was agreed on"));
        }
        let is_final = octet & FINAL != 0;
        let carries = match (octet & 0x0F, self.open) {
            (0x0, None) => return Err(BadFrame("it continues no message")),
            (0x0, Some(kind)) => Carries::Message(kind),
            (0x1 | 0x2, Some(_)) => return Err(BadFrame("it begins a message inside another")),
            (0x1, None) => Carries::Message(Kind::Text),
            (0x2, None) => Carries::Message(Kind::Binary),
            (CLOSE, _) => Carries::Close,
            (0x9 | 0xA, _) => Carries::PingOrPong,
            _ => return Err(BadFrame("its opcode is reserved")),
        };
        match carries {
            Carries::Close | Carries::PingOrPong if !is_final => return Err(BadFrame("a control frame is fragmented")),
            Carries::Close | Carries::Message(_) if self.is_closing => {
                return Err(BadFrame("it follows a close frame"));
            }
            Carries::Message(kind) => self.open = (!is_final).then_some(kind),
            Carries::Close | Carries::PingOrPong => {}
        }
        self.frame = Frame::new(carries, is_final);
        Ok(At::Second)
    }

    /// Masked or not, and the length's first form.
    fn second_octet(&mut self, octet: u8) -> Result<At, BadFrame> {
        match (self.sender, octet & MASKED != 0) {
            (Sender::Client, false) => return Err(BadFrame("a client sent it without a mask")),
            (Sender::Server, true) => return Err(BadFrame("a server sent it with a mask")),
            (Sender::Client, true) | (Sender::Server, false) => {}
        }
        let length = u64::from(octet & 0x7F);
        let is_control = !matches!(self.frame.carries, Carries::Message(_));
        if is_control && length > MAX_CONTROL_BYTES {
            return Err(BadFrame("a control frame has more than 125 bytes"));
        }
        if self.frame.carries == Carries::Close && length == 1 {
            return Err(BadFrame("a close frame has half a code"));
        }
        Ok(match length {
            126 => At::Length { left: 2, least: 126 },
            127 => At::Length { left: 8, least: 1 << 16 },
            _ => {
                self.frame.left = length;
                self.behind_length()
            }
        })
    }

    fn behind_length(&self) -> At {
        match self.sender {
            Sender::Client => At::Key { left: 4 },
            Sender::Server => At::Payload,
        }
    }

    fn take_code(&mut self, payload: &[u8]) {
        for octet in payload {
            let octet = octet ^ self.frame.key.first().copied().unwrap_or(0);
            self.frame.key.rotate_left(1);
            self.frame.code.take(octet);
        }
    }

    /// Whether these bytes, the last ones of a message, are all of it and can be shown where they lie.
    fn lies_bare(&self, payload: &[u8]) -> bool {
        self.sender == Sender::Server && self.held.is_empty() && payload.len() <= self.cap
    }

    /// Adds to the message. False when it thereby became longer than the cap; then its first bytes are held.
    fn hold(&mut self, payload: &[u8]) -> bool {
        let room = self.cap.saturating_sub(self.held.len());
        let fitting = payload.get(..room).unwrap_or(payload);
        let begin = self.held.len();
        self.held.extend_from_slice(fitting);
        if self.sender == Sender::Client {
            mask(self.held.get_mut(begin..).unwrap_or_default(), self.frame.key);
            self.frame.key.rotate_left(fitting.len() % 4);
        }
        payload.len() <= room
    }

    fn forget_shown(&mut self) {
        if !std::mem::take(&mut self.is_shown) {
            return;
        }
        if self.held.capacity() > KEPT_BYTES {
            self.held = Vec::new(); // one large message must not be paid for as long as the connection lives
        } else {
            self.held.clear();
        }
    }
}

impl Frame {
    fn new(carries: Carries, is_final: bool) -> Self {
        Self { carries, is_final, left: 0, key: [0; 4], code: Code::None }
    }
}

/// A close frame's code, as far as it has come.
#[derive(Clone, Copy)]
enum Code {
    None,
    Half(u8),
    Whole(u16),
}

impl Code {
    fn take(&mut self, octet: u8) {
        *self = match *self {
            Self::None => Self::Half(octet),
            Self::Half(first) => Self::Whole(u16::from_be_bytes([first, octet])),
            Self::Whole(code) => Self::Whole(code),
        };
    }

    fn whole(self) -> Option<u16> {
        match self {
            Self::Whole(code) => Some(code),
            Self::None | Self::Half(_) => None,
        }
    }
}

/// A close frame of our own (RFC 6455 §5.5.1): to a client without a key, to a server masked with one, which the caller
/// draws from the system's generator. Of the reason goes what fits: 123 bytes, and no character in part.
pub fn close_frame(code: u16, reason: &str, key: Option<[u8; 4]>) -> Vec<u8> {
    let longest = reason.len().min(MAX_REASON_BYTES);
    let reason = (0..=longest).rev().find_map(|end| reason.get(..end)).unwrap_or("");
    let length = u8::try_from(reason.len().saturating_add(2)).unwrap_or(0x7D);
    let mut frame: Vec<u8> = Vec::with_capacity(131);
    frame.extend([FINAL | CLOSE, if key.is_some() { MASKED | length } else { length }]);
    frame.extend(key.into_iter().flatten());
    let begin = frame.len();
    frame.extend(code.to_be_bytes());
    frame.extend(reason.as_bytes());
    if let Some(key) = key {
        mask(frame.get_mut(begin..).unwrap_or_default(), key);
    }
    frame
}

/// Puts a mask on, or takes it off (RFC 6455 §5.3).
fn mask(payload: &mut [u8], key: [u8; 4]) {
    let whole = u32::from_ne_bytes(key);
    let (words, rest) = payload.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ whole).to_ne_bytes();
    }
    for (octet, key) in rest.iter_mut().zip(key) {
        *octet ^= key;
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    const CAP: usize = 300;

    #[derive(Clone, Debug, PartialEq)]
    enum Seen {
        Message(Kind, Vec<u8>),
        Long(Kind, Vec<u8>),
        Close(Option<u16>),
    }

    fn text(payload: &str) -> Seen {
        Seen::Message(Kind::Text, payload.into())
    }

    /// What is seen of the pieces, up to the first bad frame.
    fn follow(follower: &mut Follower, pieces: &[&[u8]]) -> (Vec<Seen>, Option<BadFrame>) {
        let mut seen = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            loop {
                seen.push(match follower.next_event(&mut rest) {
                    Ok(None) => break,
                    Ok(Some(Event::Message { kind, payload })) => Seen::Message(kind, payload.to_vec()),
                    Ok(Some(Event::LongMessage { kind, start })) => Seen::Long(kind, start.to_vec()),
                    Ok(Some(Event::Close { code })) => Seen::Close(code),
                    Err(bad) => return (seen, Some(bad)),
                });
            }
            assert!(rest.is_empty(), "no event, and yet bytes are left");
        }
        (seen, None)
    }

    fn followed(sender: Sender, bytes: &[u8]) -> (Vec<Seen>, Option<BadFrame>) {
        let mut follower = Follower::new(sender, CAP);
        let whole = follow(&mut follower, &[bytes]);
        let octets: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(follow(&mut Follower::new(sender, CAP), &octets), whole, "octet by octet");
        whole
    }

    /// A frame with the shortest form of its length.
    fn frame(first: u8, payload: &[u8], key: Option<[u8; 4]>) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..=125 => frame.push(length as u8),
            length @ 126..=0xFFFF => {
                frame.push(126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        if let Some(key) = key {
            frame[1] |= MASKED;
            frame.extend(key);
        }
        let key = key.unwrap_or_default();
        frame.extend(payload.iter().enumerate().map(|(at, octet)| octet ^ key[at % 4]));
        frame
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        for (sender, bytes, expected) in [
            (Sender::Server, &b"\x81\x05Hello"[..], vec![text("Hello")]),
            (Sender::Client, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", vec![text("Hello")]),
            (Sender::Server, b"\x01\x03Hel\x80\x02lo", vec![text("Hello")]),
            (Sender::Server, b"\x89\x05Hello", vec![]),
            (Sender::Client, b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", vec![]),
        ] {
            assert_eq!(followed(sender, bytes), (expected, None), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn messages_come_whole_and_long_ones_with_their_beginning() {
        let exact = "x".repeat(CAP);
        let long = "y".repeat(CAP + 1);
        for key in [None, Some(KEY)] {
            let sender = if key.is_some() { Sender::Client } else { Sender::Server };
            let make = |first: u8, payload: &str| frame(first, payload.as_bytes(), key);
            for (frames, expected) in [
                (vec![make(0x81, "")], vec![text("")]),
                (vec![make(0x82, "ab")], vec![Seen::Message(Kind::Binary, b"ab".into())]),
                (vec![make(0x01, ""), make(0x00, ""), make(0x80, "a")], vec![text("a")]),
                (
                    vec![make(0x01, "a"), make(0x89, "ping"), make(0x00, "b"), make(0x8A, ""), make(0x80, "c")],
                    vec![text("abc")],
                ),
                (vec![make(0x81, &exact), make(0x81, "z")], vec![text(&exact), text("z")]),
                (
                    vec![make(0x81, &long), make(0x81, "z")],
                    vec![Seen::Long(Kind::Text, long.as_bytes()[..CAP].into()), text("z")],
                ),
                (
                    vec![make(0x02, &exact), make(0x00, "1"), make(0x80, &long), make(0x81, "z")],
                    vec![Seen::Long(Kind::Binary, exact.clone().into_bytes()), text("z")],
                ),
                (vec![make(0x01, "a"), make(0x88, "\u{3}\u{78}why")], vec![Seen::Close(Some(0x378))]),
                (vec![make(0x88, ""), make(0x8A, "late")], vec![Seen::Close(None)]),
            ] {
                assert_eq!(followed(sender, &frames.concat()), (expected.clone(), None), "{expected:?}");
            }
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        use Sender::{Client, Server};
        for (sender, bytes, why) in [
            (Server, &b"\xc1\x00"[..], "reserved bit"),
            (Server, b"\xa1\x00", "reserved bit"),
            (Server, b"\x91\x00", "reserved bit"),
            (Server, b"\x83\x00", "opcode"),
            (Server, b"\x87\x00", "opcode"),
            (Server, b"\x8b\x00", "opcode"),
            (Server, b"\x8f\x00", "opcode"),
            (Server, b"\x80\x00", "continues no message"),
            (Server, b"\x81\x00\x80\x00", "continues no message"),
            (Server, b"\x01\x00\x81\x00", "inside another"),
            (Server, b"\x02\x00\x01\x00", "inside another"),
            (Server, b"\x09\x00", "fragmented"),
            (Server, b"\x08\x00", "fragmented"),
            (Server, b"\x89\x7e\x00\x7e", "more than 125"),
            (Server, b"\x88\x7f", "more than 125"),
            (Server, b"\x88\x01\x03", "half a code"),
            (Server, b"\x81\x80", "with a mask"),
            (Client, b"\x81\x00", "without a mask"),
            (Client, b"\x88\x00", "without a mask"),
            (Server, b"\x81\x7e\x00\x7d", "longer form"),
            (Server, b"\x81\x7f\x00\x00\x00\x00\x00\x00\xff\xff", "longer form"),
            (Client, b"\x81\xfe\x00\x00", "longer form"),
            (Server, b"\x81\x7f\x80", "63 bits"),
            (Server, b"\x88\x00\x81\x00", "follows a close"),
            (Server, b"\x88\x00\x88\x00", "follows a close"),
            (Server, b"\x01\x00\x88\x00\x80\x00", "follows a close"),
        ] {
            let (_, bad) = followed(sender, bytes);
            let BadFrame(told) = bad.unwrap_or_else(|| panic!("passed: {}", bytes.escape_ascii()));
            assert!(told.contains(why), "{}: {told}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_long_frame_is_believed_only_as_far_as_it_comes() {
        let mut follower = Follower::new(Sender::Server, MAX_MESSAGE_BYTES);
        let largest = b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xffabc";
        assert_eq!(follow(&mut follower, &[largest]), (vec![], None));
        assert!(follower.held.capacity() < 64, "{}", follower.held.capacity());
        assert_eq!((follower.frames(), follower.bytes(), follower.is_at_boundary()), (0, 13, false));
    }

    #[test]
    fn it_tells_where_it_stands_and_what_has_passed() {
        let bytes = [frame(0x01, b"ab", Some(KEY)), frame(0x88, b"\x03\xe8bye", Some(KEY))].concat();
        let mut follower = Follower::new(Sender::Client, CAP);
        assert!(follower.is_at_boundary());
        for (at, octet) in bytes.chunks(1).enumerate() {
            follow(&mut follower, &[octet]);
            let taken = at + 1;
            assert_eq!(follower.is_at_boundary(), taken == 8 || taken == bytes.len(), "after {taken}");
            assert_eq!(follower.is_closing(), taken == bytes.len(), "after {taken}");
            assert_eq!(follower.bytes(), taken as u64);
        }
        assert_eq!(follower.frames(), 2);
    }

    #[test]
    fn a_large_message_leaves_no_memory_behind() {
        let mut follower = Follower::new(Sender::Client, MAX_MESSAGE_BYTES);
        let large = frame(0x82, &vec![7; 100_000], Some(KEY));
        let (seen, _) = follow(&mut follower, &[&large]);
        assert_eq!(seen, [Seen::Message(Kind::Binary, vec![7; 100_000])]);
        assert_eq!(follower.held.capacity(), 0);
    }

    #[test]
    fn close_frames_say_why_in_the_room_they_have() {
        let plain = "a".repeat(200);
        let umlauts = "ü".repeat(80); // 123 is in the middle of one
        for (reason, expected) in
            [("", ""), ("revoked", "revoked"), (&plain[..], &plain[..123]), (&umlauts[..], &umlauts[..122])]
        {
            for (key, sender) in [(None, Sender::Server), (Some(KEY), Sender::Client)] {
                let bytes = close_frame(1008, reason, key);
                let payload = [&1008u16.to_be_bytes()[..], expected.as_bytes()].concat();
                assert_eq!(bytes, frame(0x88, &payload, key), "{reason}");
                assert_eq!(followed(sender, &bytes), (vec![Seen::Close(Some(1008))], None), "{reason}");
            }
        }
    }

    /// Frames of some legal messages, with pings between the fragments, and what is to be seen of them.
    fn conversation(key: Option<[u8; 4]>) -> impl Strategy<Value = (Vec<u8>, Vec<Seen>)> {
        let fragment = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..20),
            prop::collection::vec(any::<u8>(), 100..160),
            prop::collection::vec(any::<u8>(), CAP - 2..CAP + 3),
        ];
        let message = (any::<bool>(), prop::collection::vec((fragment, any::<bool>()), 1..4));
        prop::collection::vec(message, 0..5).prop_map(move |messages| {
            let (mut bytes, mut seen) = (Vec::new(), Vec::new());
            for (is_text, fragments) in messages {
                let (kind, opcode) = if is_text { (Kind::Text, 0x1) } else { (Kind::Binary, 0x2) };
                let mut whole = Vec::new();
                let last = fragments.len() - 1;
                for (place, (payload, has_ping)) in fragments.into_iter().enumerate() {
                    let opcode = if place == 0 { opcode } else { 0x0 };
                    bytes.extend(frame(if place == last { FINAL | opcode } else { opcode }, &payload, key));
                    if has_ping {
                        bytes.extend(frame(0x89, b"here?", key));
                    }
                    whole.extend(payload);
                }
                seen.push(if whole.len() > CAP {
                    Seen::Long(kind, whole[..CAP].to_vec())
                } else {
                    Seen::Message(kind, whole)
                });
            }
            (bytes, seen)
        })
    }

    fn split<'b>(bytes: &'b [u8], cuts: &[prop::sample::Index]) -> Vec<&'b [u8]> {
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        places.sort_unstable();
        let starts = std::iter::once(0).chain(places.iter().copied());
        let ends = places.iter().copied().chain([bytes.len()]);
        starts.zip(ends).map(|(start, end)| &bytes[start..end]).collect()
    }

    fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
        prop::collection::vec(any::<prop::sample::Index>(), 0..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_split_shows_the_messages_as_they_were_sent(
            (bytes, expected) in conversation(None),
            (masked, masked_expected) in conversation(Some(KEY)),
            cuts in cuts(),
        ) {
            for (sender, bytes, expected) in
                [(Sender::Server, bytes, expected), (Sender::Client, masked, masked_expected)]
            {
                let mut follower = Follower::new(sender, CAP);
                let seen = follow(&mut follower, &split(&bytes, &cuts));
                prop_assert_eq!(seen, (expected, None));
                prop_assert!(follower.is_at_boundary());
                prop_assert_eq!(follower.bytes(), bytes.len() as u64);
            }
        }

        #[test]
        fn any_split_of_any_bytes_is_judged_alike(
            begin in prop::sample::select(vec![&b""[..], b"\x81\x02ab", b"\x01\x81\x00\x00\x00\x00a", b"\x88\x02\x03\xe8"]),
            bytes in prop::collection::vec(any::<u8>(), 0..60),
            cuts in cuts(),
        ) {
            let bytes = [begin, &bytes].concat();
            for sender in [Sender::Client, Sender::Server] {
                let whole = follow(&mut Follower::new(sender, 8), &[&bytes]);
                let parts = follow(&mut Follower::new(sender, 8), &split(&bytes, &cuts));
                prop_assert_eq!(whole, parts);
            }
        }
    }
}
