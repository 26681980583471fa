//! What a request asks of the mock by its `x-mock-*` headers. Headers, because every client can send them and every
//! proxy forwards them: the same request steers the provider with and without a proxy between.

use std::time::Duration;

use super::head::Head;

/// Sizes of the pieces a body is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    Fixed(usize),
    /// 1 to 64 bytes each, the same for the same seed.
    Random(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    /// Two members for each piece of the body.
    GzipMembers,
    /// The zlib format, as RFC 9110 §8.4.1.2 means it.
    Deflate,
    Brotli,
    Zstd,
    /// Two frames for each piece of the body.
    ZstdFrames,
}

impl Encoding {
    fn parse(value: &str) -> Option<Self> {
        Some(match value {
            "gzip" => Self::Gzip,
            "gzip-members" => Self::GzipMembers,
            "deflate" => Self::Deflate,
            "br" => Self::Brotli,
            "zstd" => Self::Zstd,
            "zstd-frames" => Self::ZstdFrames,
            _ => return None,
        })
    }

    /// The `content-encoding` field's value.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Gzip | Self::GzipMembers => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd | Self::ZstdFrames => "zstd",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerFraming {
    Chunked,
    Length,
    Close,
}

/// Answers that no client should take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Garbage {
    NotHttp,
    TwoLengths,
    LengthAndChunked,
    GzipTransfer,
    BadChunk,
    BareLf,
    BadStatus,
    SwitchingProtocols,
}

/// How the answer goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    HangHead,
    HangBody(u64),
    ResetHead,
    Reset(u64),
    Cut(u64),
    Garbage(Garbage),
    Early(u16),
    EarlyClose(u16),
    ExtraBytes,
    SlowRead(Duration),
    EarlyHints,
    Drip(Duration),
}

/// How the opening of a WebSocket goes wrong, or otherwise than usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// `sec-websocket-accept` answers another key.
    WrongAccept,
    /// Agrees on an extension that nobody asked for.
    Extension,
    /// Chooses a subprotocol that nobody offered.
    ForeignProtocol,
    /// Chooses the subprotocol that is the credential.
    EchoCredential,
    /// The first words in one segment with the 101.
    Early,
}

impl Opening {
    fn parse(value: &str) -> Option<Self> {
        Some(match value {
            "wrong-accept" => Self::WrongAccept,
            "extension" => Self::Extension,
            "foreign-protocol" => Self::ForeignProtocol,
            "echo-credential" => Self::EchoCredential,
            "early" => Self::Early,
            _ => return None,
        })
    }
}

/// What is said on a WebSocket in place of the API's own words. Pings and close frames are answered in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Talk {
    /// Nothing.
    Silent,
    /// Every message, back to who sent it.
    Echo,
    /// One binary message of so many bytes.
    Big(usize),
    /// Binary messages of 64 KiB until so many bytes have gone out.
    Flood(u64),
    /// After the first words, a close frame with this code and reason.
    Close(u16, String),
    /// After the first words, the end of the connection, between two frames.
    Cut,
    /// The same in the middle of a frame.
    CutFrame,
    /// After the first words, a TCP reset.
    Reset,
    /// After the first words, a frame that no server may send: a masked one.
    BadFrame,
}

impl Talk {
    fn parse(value: &str) -> Option<Self> {
        let (kind, argument) = value.split_once(':').unwrap_or((value, ""));
        Some(match (kind, argument) {
            ("silent", "") => Self::Silent,
            ("echo", "") => Self::Echo,
            ("big", bytes) => Self::Big(bytes.parse().ok()?),
            ("flood", bytes) => Self::Flood(bytes.parse().ok()?),
            ("close", why) => {
                let (code, reason) = why.split_once(':').unwrap_or((why, ""));
                Self::Close(code.parse().ok()?, reason.to_owned())
            }
            ("cut", "") => Self::Cut,
            ("cut-frame", "") => Self::CutFrame,
            ("reset", "") => Self::Reset,
            ("bad-frame", "") => Self::BadFrame,
            _ => return None,
        })
    }
}

/// Everything a request asked for; the default asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Steering {
    pub(super) recording: Option<String>,
    pub(super) status: Option<u16>,
    pub(super) delay: Option<Duration>,
    pub(super) pace: Option<Duration>,
    pub(super) split: Option<Split>,
    pub(super) encoding: Option<Encoding>,
    pub(super) framing: Option<AnswerFraming>,
    pub(super) fault: Option<Fault>,
    pub(super) opening: Option<Opening>,
    pub(super) talk: Option<Talk>,
}

impl Steering {
    /// Reads the `x-mock-*` headers. An unknown name or value is an error: a test that misspells one must not pass.
    pub(super) fn parse(head: &Head) -> Result<Self, String> {
        let mut steering = Self::default();
        for (name, value) in &head.headers {
            let Some((prefix, name)) = name.split_at_checked(7) else { continue };
            if !prefix.eq_ignore_ascii_case(b"x-mock-") {
                continue;
            }
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            let value = String::from_utf8_lossy(value);
            steering.set(&name, &value).ok_or_else(|| format!("x-mock-{name}: {value} is not understood"))?;
        }
        Ok(steering)
    }

    /// Whether the answer goes out in one write, exactly as prepared.
    pub(super) fn is_plain(&self) -> bool {
        self.pace.is_none()
            && self.split.is_none()
            && self.encoding.is_none()
            && self.framing.is_none()
            && self.fault.is_none()
    }

    /// Whether a handshake is refused with an ordinary answer.
    pub(super) fn refuses_socket(&self) -> bool {
        self.status.is_some() || self.recording.is_some()
    }

    /// The first thing asked for that a WebSocket, or what is none, knows nothing of: a test must not ask for nothing.
    pub(super) fn misplaced(&self, is_socket: bool) -> Option<&'static str> {
        let fault_fits = matches!(
            self.fault,
            None | Some(
                Fault::HangHead | Fault::ResetHead | Fault::Garbage(_) | Fault::EarlyHints | Fault::SlowRead(_)
            )
        );
        match is_socket {
            true if self.encoding.is_some() => Some("x-mock-encoding"),
            true if self.framing.is_some() => Some("x-mock-framing"),
            true if !fault_fits => Some("x-mock-fault"),
            false if self.opening.is_some() => Some("x-mock-opening"),
            false if self.talk.is_some() => Some("x-mock-socket"),
            _ => None,
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "recording" => self.recording = Some(value.to_owned()),
            "status" => self.status = Some(status(value)?),
            "delay-ms" => self.delay = Some(millis(value)?),
            "pace-ms" => self.pace = Some(millis(value)?),
            "split" => self.split = Some(split(value)?),
            "encoding" => self.encoding = Some(Encoding::parse(value)?),
            "framing" => {
                self.framing = Some(match value {
                    "chunked" => AnswerFraming::Chunked,
                    "length" => AnswerFraming::Length,
                    "close" => AnswerFraming::Close,
                    _ => return None,
                });
            }
            "fault" => self.fault = Some(fault(value)?),
            "opening" => self.opening = Some(Opening::parse(value)?),
            "socket" => self.talk = Some(Talk::parse(value)?),
            _ => return None,
        }
        Some(())
    }
}

fn millis(value: &str) -> Option<Duration> {
    value.parse().ok().map(Duration::from_millis)
}

fn status(value: &str) -> Option<u16> {
    value.parse::<u16>().ok().filter(|status| (200_u16..=599).contains(status))
}

fn split(value: &str) -> Option<Split> {
    match value.strip_prefix("random:") {
        Some(seed) => seed.parse().ok().map(Split::Random),
        None => value.parse().ok().filter(|size| *size > 0).map(Split::Fixed),
    }
}

fn fault(value: &str) -> Option<Fault> {
    let (kind, argument) = value.split_once(':').unwrap_or((value, ""));
    Some(match kind {
        "hang-body" => Fault::HangBody(argument.parse().ok()?),
        "reset" => Fault::Reset(argument.parse().ok()?),
        "cut" => Fault::Cut(argument.parse().ok()?),
        "early" => Fault::Early(status(argument)?),
        "early-close" => Fault::EarlyClose(status(argument)?),
        "slow-read" => Fault::SlowRead(millis(argument)?),
        "drip" => Fault::Drip(millis(argument)?),
        "garbage" => Fault::Garbage(match argument {
            "" => Garbage::NotHttp,
            "two-cl" => Garbage::TwoLengths,
            "cl-te" => Garbage::LengthAndChunked,
            "te-gzip" => Garbage::GzipTransfer,
            "bad-chunk" => Garbage::BadChunk,
            "bare-lf" => Garbage::BareLf,
            "bad-status" => Garbage::BadStatus,
            "101" => Garbage::SwitchingProtocols,
            _ => return None,
        }),
        "hang-head" if argument.is_empty() => Fault::HangHead,
        "reset-head" if argument.is_empty() => Fault::ResetHead,
        "extra-bytes" if argument.is_empty() => Fault::ExtraBytes,
        "continue-103" if argument.is_empty() => Fault::EarlyHints,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    fn steer(fields: &str) -> Result<Steering, String> {
        let text = format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        Steering::parse(&Head::take(&mut BytesMut::from(text.as_str())).unwrap().unwrap())
    }

    #[test]
    fn headers_steer_and_misspelled_ones_are_refused() {
        assert_eq!(steer("x-other: 1\r\n").unwrap(), Steering::default());
        let steering = steer("X-Mock-Fault: reset:10\r\nx-mock-split: random:7\r\nx-mock-pace-ms: 5\r\n").unwrap();
        assert_eq!(steering.fault, Some(Fault::Reset(10)));
        assert_eq!(steering.split, Some(Split::Random(7)));
        assert_eq!(steering.pace, Some(Duration::from_millis(5)));
        for wrong in [
            "x-mock-fault: rest:1\r\n",
            "x-mock-split: 0\r\n",
            "x-mock-pace: 5\r\n",
            "x-mock-status: 99\r\n",
            "x-mock-encoding: brotli\r\n",
            "x-mock-socket: silence\r\n",
            "x-mock-socket: big\r\n",
            "x-mock-socket: cut:10\r\n",
            "x-mock-opening: late\r\n",
        ] {
            assert!(steer(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sockets_are_steered_too_and_nothing_else_is_by_their_headers() {
        for (value, expected) in [
            ("echo", Talk::Echo),
            ("big:3000000", Talk::Big(3_000_000)),
            ("close:4001", Talk::Close(4001, String::new())),
            ("close:4001:in a: word", Talk::Close(4001, "in a: word".to_owned())),
        ] {
            assert_eq!(steer(&format!("x-mock-socket: {value}\r\n")).unwrap().talk, Some(expected));
        }
        for (fields, is_socket, misplaced) in [
            ("x-mock-socket: echo\r\nx-mock-opening: early\r\nx-mock-split: 3\r\n", true, None),
            ("x-mock-socket: echo\r\n", false, Some("x-mock-socket")),
            ("x-mock-opening: early\r\n", false, Some("x-mock-opening")),
            ("x-mock-fault: slow-read:5\r\n", true, None),
            ("x-mock-fault: cut:5\r\n", true, Some("x-mock-fault")),
            ("x-mock-encoding: gzip\r\n", true, Some("x-mock-encoding")),
        ] {
            assert_eq!(steer(fields).unwrap().misplaced(is_socket), misplaced, "{fields}");
        }
    }
}
