//! The life of a WebSocket at the mock: the 101, the first words, and then a turn for every message that comes.
//! Everything that arrives is counted before it is answered.

use bytes::Bytes;

use super::answer::Tokens;
use super::books::{Ended, MAX_KEPT_BODY_BYTES, ReceivedBody, SocketCounts};
use super::connection::{Connection, PeerGone};
use super::exchange::State;
use super::frames::{self, BadFrame, Frame, Opcode, close_payload};
use super::opening::Upgrade;
use super::realtime::{Said, Speaker};
use super::routes::Route;
use super::send::{BEFORE_RESET, Sent, Sizes};
use super::steering::{Fault, Opening, Steering, Talk};

/// The size of a flood's messages.
const FLOOD_MESSAGE_BYTES: usize = 64 * 1024;
/// How much a slow reader reads between two pauses.
const SLOW_READ_BYTES: u64 = 64 * 1024;
/// Longest message that is held.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// The code that stands for a close frame without one (RFC 6455 §7.1.5).
const NO_CODE: u16 = 1005;

/// A request that gets a WebSocket.
pub(super) struct Opened<'a> {
    pub(super) id: u64,
    pub(super) key: Option<&'a str>,
    pub(super) route: &'a Route<'a>,
    pub(super) upgrade: Upgrade,
    pub(super) steering: &'a Steering,
}

/// Answers with 101 and carries the socket to its end.
pub(super) async fn serve(connection: &mut Connection, state: &State, opened: Opened<'_>) -> Sent {
    let mut socket = Socket {
        speaker: Speaker::new(opened.route.provider, opened.route.model),
        sizes: opened.steering.split.map(Sizes::of),
        message: None,
        received_bytes: 0,
        crc32: crc32fast::Hasher::new(),
        kept: Vec::new(),
        next_pause: 0,
        sent_bytes: 0,
        is_first: true,
        connection,
        state,
        opened,
    };
    state.books.opened(socket.opened.id, socket.opened.upgrade.protocol(socket.opened.steering.opening));
    let ended = socket.carry().await.unwrap_or(Ended::ClientClosed);
    let (received, id) = (socket.conclude(), socket.opened.id);
    state.books.received(id, &received, true);
    state.books.closed();
    Sent { ended, body_bytes: socket.sent_bytes, keep_alive: false }
}

struct Socket<'a> {
    connection: &'a mut Connection,
    state: &'a State,
    opened: Opened<'a>,
    speaker: Speaker,
    /// Sizes of the frames that a message is sent in; `None`: one.
    sizes: Option<Sizes>,
    /// A message of which not all frames have come.
    message: Option<(Opcode, Vec<u8>)>,
    received_bytes: u64,
    crc32: crc32fast::Hasher,
    kept: Vec<u8>,
    next_pause: u64,
    sent_bytes: u64,
    /// Nothing has been said yet.
    is_first: bool,
}

impl Socket<'_> {
    async fn carry(&mut self) -> Result<Ended, PeerGone> {
        let steering = self.opened.steering;
        let head = self.opened.upgrade.answer(self.opened.route.provider, steering.opening).into_bytes();
        let first = match steering.talk {
            Some(Talk::Silent | Talk::Echo | Talk::Big(_) | Talk::Flood(_)) => Vec::new(),
            _ => self.speaker.first_words(),
        };
        if steering.opening == Some(Opening::Early) {
            self.say(first, head).await?;
        } else {
            self.connection.write(&head).await?;
            self.say(first, Vec::new()).await?;
        }
        match &steering.talk {
            Some(Talk::Big(bytes)) => self.say(vec![pattern(0, *bytes)], Vec::new()).await?,
            Some(Talk::Flood(bytes)) => self.flood(*bytes).await?,
            Some(Talk::Close(code, reason)) => {
                self.put(true, Opcode::Close, &close_payload(*code, reason)).await?;
                return self.until_close().await;
            }
            Some(Talk::Cut) => {
                self.connection.finish().await;
                return Ok(Ended::Fault);
            }
            Some(Talk::CutFrame) => {
                // The head of a text of 100 bytes, and 10 of them.
                self.connection.write(b"\x81\x64half of it").await?;
                self.connection.finish().await;
                return Ok(Ended::Fault);
            }
            Some(Talk::Reset) => {
                self.connection.pause(BEFORE_RESET).await?;
                self.connection.reset_on_drop();
                return Ok(Ended::Fault);
            }
            Some(Talk::BadFrame) => {
                self.connection.pause(BEFORE_RESET).await?;
                let key = [1, 2, 3, 4];
                let mut frame = [&[0x81, 0x82][..], &key, b"hi"].concat();
                frames::mask(frame.get_mut(6..).unwrap_or_default(), key);
                self.connection.write(&frame).await?;
            }
            Some(Talk::Silent | Talk::Echo) | None => {}
        }
        loop {
            match self.next_frame().await? {
                Err(bad) => return self.refuse(bad).await,
                Ok(frame) => {
                    if let Some(ended) = self.hear(frame).await? {
                        return Ok(ended);
                    }
                }
            }
        }
    }

    /// Takes a frame in and does what follows from it. `Some`: the socket is over.
    async fn hear(&mut self, frame: Frame) -> Result<Option<Ended>, PeerGone> {
        let Frame { is_final, opcode, payload, .. } = frame;
        match opcode {
            Opcode::Ping => {
                self.count(SocketCounts { pings: 1, ..SocketCounts::default() });
                self.put(true, Opcode::Pong, &payload).await?;
                return Ok(None);
            }
            Opcode::Pong => {
                self.count(SocketCounts { pongs: 1, ..SocketCounts::default() });
                return Ok(None);
            }
            Opcode::Close => {
                self.note_close(&payload);
                // The code comes back, as it should (RFC 6455 §5.5.1), and the reason with it.
                self.put(true, Opcode::Close, &payload).await?;
                self.connection.finish().await;
                return Ok(Some(Ended::Finished));
            }
            Opcode::Text | Opcode::Binary | Opcode::Continuation => {}
        }
        let whole = match (self.message.take(), opcode) {
            (None, Opcode::Continuation) => return self.refuse(BadFrame("it continues no message")).await.map(Some),
            (Some((kind, mut so_far)), Opcode::Continuation) => {
                so_far.extend_from_slice(&payload);
                (kind, so_far)
            }
            (None, kind) => (kind, payload),
            (Some(_), _) => return self.refuse(BadFrame("it begins a message inside another")).await.map(Some),
        };
        if whole.1.len() > MAX_MESSAGE_BYTES {
            return self.refuse(BadFrame("the message is too large")).await.map(Some);
        }
        if !is_final {
            self.message = Some(whole);
            return Ok(None);
        }
        let (opcode, message) = whole;
        self.count(SocketCounts { messages: 1, message_bytes: message.len() as u64, ..SocketCounts::default() });
        match self.opened.steering.talk {
            Some(Talk::Echo) => self.say(vec![Said { opcode, payload: message, tokens: None }], Vec::new()).await?,
            Some(Talk::Silent | Talk::Big(_) | Talk::Flood(_)) => {}
            _ => {
                let reply = self.speaker.answer(&message);
                self.say(reply.said, Vec::new()).await?;
                if let Some((code, reason)) = reply.close {
                    self.put(true, Opcode::Close, &close_payload(code, reason)).await?;
                    return self.until_close().await.map(Some);
                }
            }
        }
        Ok(None)
    }

    /// Waits for the answer to a close frame of ours; what comes before it is counted as it comes.
    async fn until_close(&mut self) -> Result<Ended, PeerGone> {
        loop {
            match self.next_frame().await? {
                Err(bad) => return self.refuse(bad).await,
                Ok(frame) if frame.opcode == Opcode::Close => {
                    self.note_close(&frame.payload);
                    self.connection.finish().await;
                    return Ok(Ended::Finished);
                }
                Ok(_) => {}
            }
        }
    }

    /// The next frame, or what is wrong with it.
    async fn next_frame(&mut self) -> Result<Result<Frame, BadFrame>, PeerGone> {
        loop {
            match frames::take(&mut self.connection.buffer) {
                Ok(Some(frame)) => {
                    self.receive(&frame.raw);
                    return Ok(Ok(frame));
                }
                Ok(None) => {}
                Err(bad) => return Ok(Err(bad)),
            }
            let read = self.received_bytes.saturating_add(self.connection.buffer.len() as u64);
            if let Some(Fault::SlowRead(pause)) = self.opened.steering.fault
                && read >= self.next_pause
            {
                self.next_pause = read.saturating_add(SLOW_READ_BYTES);
                // Not watched: watching a socket takes its bytes, and then nobody would be slow.
                tokio::time::sleep(pause).await;
            }
            self.connection.fill().await?;
        }
    }

    async fn refuse(&mut self, bad: BadFrame) -> Result<Ended, PeerGone> {
        self.state.books.bad_frame(self.opened.id, bad.0);
        self.put(true, Opcode::Close, &close_payload(1002, bad.0)).await?;
        self.connection.finish().await;
        Ok(Ended::Fault)
    }

    async fn flood(&mut self, bytes: u64) -> Result<(), PeerGone> {
        let (mut left, mut number) = (bytes, 0_u8);
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(FLOOD_MESSAGE_BYTES);
            self.say(vec![pattern(number, length)], Vec::new()).await?;
            left = left.saturating_sub(length as u64);
            number = number.wrapping_add(1);
        }
        Ok(())
    }

    /// Says messages at the pace asked for; `before` goes out in one write with the first of them.
    async fn say(&mut self, said: Vec<Said>, before: Vec<u8>) -> Result<(), PeerGone> {
        let mut out = before;
        for Said { opcode, payload, tokens } in said {
            if let Some(pace) = self.opened.steering.pace.filter(|_| !self.is_first) {
                self.connection.pause(pace).await?;
            }
            self.is_first = false;
            let counts = SocketCounts { sent_messages: 1, sent_bytes: payload.len() as u64, ..SocketCounts::default() };
            self.put_message(&mut out, opcode, payload).await?;
            self.count(counts);
            if let Some(tokens) = tokens {
                self.spend(tokens);
            }
        }
        self.connection.write(&out).await
    }

    /// Writes a message in the frames asked for, one write each. Without a split it is one frame, and one write.
    async fn put_message(&mut self, out: &mut Vec<u8>, opcode: Opcode, payload: Vec<u8>) -> Result<(), PeerGone> {
        let mut parts = match &mut self.sizes {
            Some(sizes) if !payload.is_empty() => sizes.cut(Bytes::from(payload)),
            _ => vec![Bytes::from(payload)],
        }
        .into_iter()
        .peekable();
        let mut opcode = opcode;
        while let Some(part) = parts.next() {
            let before = out.len();
            frames::put(out, parts.peek().is_none(), opcode, &part);
            self.sent_bytes = self.sent_bytes.saturating_add(out.len().saturating_sub(before) as u64);
            self.connection.write(out).await?;
            out.clear();
            opcode = Opcode::Continuation;
            // Gives the reader its turn, so that single writes arrive as single reads.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Writes one frame.
    async fn put(&mut self, is_final: bool, opcode: Opcode, payload: &[u8]) -> Result<(), PeerGone> {
        let mut out = Vec::new();
        frames::put(&mut out, is_final, opcode, payload);
        self.sent_bytes = self.sent_bytes.saturating_add(out.len() as u64);
        self.connection.write(&out).await
    }

    fn count(&self, more: SocketCounts) {
        self.state.books.passed(self.opened.id, more);
    }

    fn spend(&self, tokens: Tokens) {
        self.state.books.spent(self.opened.key, tokens);
    }

    fn note_close(&self, payload: &[u8]) {
        let (code, reason) = match payload.split_first_chunk::<2>() {
            Some((code, reason)) => (u16::from_be_bytes(*code), String::from_utf8_lossy(reason).into_owned()),
            None => (NO_CODE, String::new()),
        };
        self.state.books.said_close(self.opened.id, code, reason);
    }

    fn receive(&mut self, raw: &[u8]) {
        self.crc32.update(raw);
        self.received_bytes = self.received_bytes.saturating_add(raw.len() as u64);
        let room = MAX_KEPT_BODY_BYTES.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(raw.get(..room).unwrap_or(raw));
    }

    /// All that came behind the handshake, half a frame at its end included.
    fn conclude(&mut self) -> ReceivedBody {
        let rest = self.connection.buffer.split();
        self.receive(&rest);
        ReceivedBody {
            bytes: self.received_bytes,
            crc32: self.crc32.clone().finalize(),
            kept: Bytes::from(std::mem::take(&mut self.kept)),
        }
    }
}

/// A binary message of this length, another one for each number: bytes of every value, which nothing on the way may
/// take for text. Its octet at `n` is `31 n + number`, modulo 256.
fn pattern(number: u8, length: usize) -> Said {
    let period: Vec<u8> = (0..=u8::MAX).map(|at| at.wrapping_mul(31).wrapping_add(number)).collect();
    let mut payload = period.repeat(length.div_ceil(period.len()));
    payload.truncate(length);
    Said { opcode: Opcode::Binary, payload, tokens: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{Mock, MockOptions, RequestRecord};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A client that has sent its handshake and these bytes behind it, in one write.
    async fn opened(mock: &Mock, target: &str, fields: &str, behind: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(mock.addr()).await.unwrap();
        let head = format!(
            "GET {target} HTTP/1.1\r\nhost: mock\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
        );
        stream.write_all(&[head.as_bytes(), behind].concat()).await.unwrap();
        stream
    }

    async fn openai(mock: &Mock, fields: &str, behind: &[u8]) -> TcpStream {
        let fields = format!("authorization: Bearer sk-mock-openai\r\n{fields}");
        opened(mock, "/v1/realtime?model=gpt-realtime", &fields, behind).await
    }

    /// A client's frame, masked with zeros: its payload reads as it stands.
    fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        frames::put(&mut frame, true, opcode, payload);
        let head = frame.len() - payload.len();
        frame[1] |= 0x80;
        drop(frame.splice(head..head, [0; 4]));
        frame
    }

    async fn rest(mut stream: TcpStream) -> (String, Vec<u8>) {
        let mut all = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.unwrap().unwrap();
        let end = memchr::memmem::find(&all, b"\r\n\r\n").unwrap() + 4;
        let frames = all.split_off(end);
        (String::from_utf8(all).unwrap(), frames)
    }

    async fn record(mock: &Mock) -> RequestRecord {
        let ended = async {
            loop {
                match mock.requests().pop() {
                    Some(record) if record.ended.is_some() => return record,
                    _ => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.unwrap()
    }

    async fn mock() -> Mock {
        Mock::start(MockOptions::default()).await.unwrap()
    }

    #[tokio::test]
    async fn a_session_is_answered_and_counted_from_its_handshake_to_its_close() {
        let mock = mock().await;
        let create = frame(Opcode::Text, br#"{"type":"response.create"}"#);
        let close = frame(Opcode::Close, &close_payload(4001, "bye"));
        let sent = [create, frame(Opcode::Ping, b"still?"), close].concat();
        let (head, frames) = rest(openai(&mock, "", &sent).await).await;
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        let text = String::from_utf8_lossy(&frames);
        let at = |wanted: &str| text.find(wanted).unwrap_or_else(|| panic!("no {wanted} in {text}"));
        assert!(at("session.created") < at("response.created") && at("response.done") < at("still?"), "{text}");
        assert!(frames.ends_with(b"\x88\x05\x0f\xa1bye"));

        let record = record(&mock).await;
        assert_eq!((record.status, record.ended), (Some(101), Some(Ended::Finished)));
        assert_eq!(record.body.as_deref(), Some(&sent[..]));
        let socket = record.socket.unwrap();
        assert_eq!((socket.counts.messages, socket.counts.pings, socket.close_code), (1, 1, Some(4001)));
        let stats = mock.stats();
        assert_eq!((stats.sockets.opened, stats.sockets.open, stats.sockets.closes[&4001]), (1, 0, 1));
        assert_eq!(stats.tokens, Tokens { input: 20, output: 9 });
        assert_eq!(stats.answer_bytes, frames.len() as u64);
    }

    #[tokio::test]
    async fn messages_come_back_in_the_frames_asked_for() {
        let mock = mock().await;
        let sent = [frame(Opcode::Binary, b"hello world"), frame(Opcode::Close, b"")].concat();
        let (_, frames) = rest(openai(&mock, "x-mock-socket: echo\r\nx-mock-split: 4\r\n", &sent).await).await;
        assert_eq!(frames, b"\x02\x04hell\x00\x04o wo\x80\x03rld\x88\x00");
        assert_eq!(record(&mock).await.socket.unwrap().close_code, Some(NO_CODE));
    }

    #[tokio::test]
    async fn a_socket_breaks_as_asked() {
        let mock = mock().await;
        for (talk, end, expected) in [
            ("cut", &b"}"[..], Ended::Fault),
            ("cut-frame", b"\x81\x64half of it", Ended::Fault),
            ("close:1013:later", b"\x88\x07\x03\xf5later", Ended::Finished),
        ] {
            let stream = openai(&mock, &format!("x-mock-socket: {talk}\r\n"), &frame(Opcode::Close, b"")).await;
            let (_, frames) = rest(stream).await;
            assert!(frames.ends_with(end), "{talk}: {}", String::from_utf8_lossy(&frames));
            assert_eq!(record(&mock).await.ended, Some(expected), "{talk}");
            mock.reset();
        }
        let (_, frames) = rest(openai(&mock, "", b"\x81\x02hi").await).await;
        assert!(frames.ends_with(b"\x88\x19\x03\xeathe frame is not masked"), "{}", String::from_utf8_lossy(&frames));
        assert_eq!(record(&mock).await.socket.unwrap().bad_frame, Some("the frame is not masked"));
    }

    #[tokio::test]
    async fn gemini_speaks_only_when_it_is_set_up() {
        let mock = mock().await;
        let target = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent?key=mock-gemini";
        let setup = frame(Opcode::Text, br#"{"setup":{"model":"models/gemini-live"}}"#);
        let turn = frame(Opcode::Text, br#"{"clientContent":{"turnComplete":true}}"#);
        let sent = [setup, turn, frame(Opcode::Close, b"")].concat();
        let (_, frames) = rest(opened(&mock, target, "", &sent).await).await;
        let text = String::from_utf8_lossy(&frames);
        assert!(text.contains("setupComplete") && text.contains("usageMetadata"), "{text}");
        assert_eq!(mock.stats().tokens, Tokens { input: 10, output: 10 });
        let sent = [frame(Opcode::Text, b"{}"), frame(Opcode::Close, b"")].concat();
        let (_, frames) = rest(opened(&mock, target, "", &sent).await).await;
        assert!(frames.starts_with(b"\x88"), "{}", String::from_utf8_lossy(&frames));
    }

    #[tokio::test]
    async fn what_is_no_handshake_gets_an_ordinary_answer() {
        let mock = mock().await;
        let authorization = "authorization: Bearer sk-mock-openai\r\n";
        let both = format!("{authorization}sec-websocket-protocol: openai-insecure-api-key.sk-mock-openai\r\n");
        for (fields, status) in [
            ("", "401"),
            (both.as_str(), "400"),
            (&*format!("{authorization}x-mock-status: 403\r\n"), "403"),
            (&*format!("{authorization}x-mock-framing: close\r\n"), "400"),
        ] {
            let mut stream = opened(&mock, "/v1/realtime?model=m", fields, b"").await;
            let mut start = [0; 12];
            stream.read_exact(&mut start).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&start[9..]), status, "{fields}");
        }
    }
}
