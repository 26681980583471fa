//! Before a connection speaks: where it comes from.
//!
//! Behind a load balancer that passes connections on, the peer is the balancer. It may say who its client is in a header
//! of the PROXY protocol, the first bytes of the connection, before TLS and before HTTP. Whether there is one is not to
//! be guessed: with `PROXY_PROTOCOL` on, a connection begins with a header and comes from a trusted proxy, or it is closed
//! without a word. One rule for all leaves nothing that a client could do by going round the balancer.
//!
//! Balancers look whether somebody listens by connecting and leaving. That is no event, whoever does it: a stranger is
//! one only when it speaks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use llm_proxy_core::network::cidr::{Network, any_contains};
use llm_proxy_core::network::proxy_protocol::{Header, InvalidHeader, Reading, read};
use pingora_core::protocols::Stream;
use pingora_core::protocols::l4::stream::Stream as TcpStream;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::downstream::{AddressRules, Caller};
use crate::seldom::Seldom;
use crate::settings::RecordClientAddress;

/// Room for a header as balancers write them, and what a client sends with it.
const FIRST_READ: usize = 1024;

/// What is found out about each connection.
pub struct Entrance {
    trusted: Arc<[Network]>,
    /// How long a PROXY protocol header may take; `None` where there is none.
    header_within: Option<Duration>,
    /// `None` where no address is recorded.
    rules: Option<Arc<AddressRules>>,
    strangers: Seldom,
    headers: Seldom,
}

impl Entrance {
    /// `header_within`: every connection begins with a PROXY protocol header, which may take so long. `None` where
    /// nothing has to be found out.
    pub fn new(trusted: Vec<Network>, header_within: Option<Duration>, recorded: RecordClientAddress) -> Option<Self> {
        let trusted: Arc<[Network]> = trusted.into();
        let truncates = match recorded {
            RecordClientAddress::None => None,
            RecordClientAddress::Truncated => Some(true),
            RecordClientAddress::Full => Some(false),
        };
        let rules = truncates.map(|truncates| Arc::new(AddressRules { trusted: Arc::clone(&trusted), truncates }));
        (header_within.is_some() || rules.is_some()).then(|| Self {
            trusted,
            header_within,
            rules,
            strangers: Seldom::default(),
            headers: Seldom::default(),
        })
    }

    /// The connection from what its client says on, and who calls where that is recorded. `None`: it is closed.
    pub async fn enter(&self, stream: Stream) -> Option<(Stream, Option<Caller>)> {
        let peer = peer(&stream);
        let (stream, from) = match self.header_within {
            None => (stream, peer),
            Some(within) => {
                let (stream, from) = self.behind_header(stream, peer?, within).await?;
                (stream, Some(from))
            }
        };
        let caller = self.rules.as_ref().zip(from).map(|(rules, from)| Caller::new(from, Arc::clone(rules)));
        Some((stream, caller))
    }

    /// Takes the header off, and tells whom it names.
    async fn behind_header(&self, stream: Stream, peer: IpAddr, within: Duration) -> Option<(Stream, IpAddr)> {
        // What Pingora's listener makes of every connection; it alone takes bytes back.
        let mut stream: Box<TcpStream> = stream.into_any().downcast().ok()?;
        let is_trusted = any_contains(&self.trusted, peer);
        let taken = timeout(within, take_header(&mut stream, is_trusted)).await;
        match taken.unwrap_or(Err(NoHeader::Slow)) {
            Ok((header, behind)) => {
                stream.rewind(&behind);
                let stream: Stream = stream;
                Some((stream, header.source.map_or(peer, |source| source.ip())))
            }
            Err(reason) => {
                self.tell(peer, &reason);
                None
            }
        }
    }

    /// An operator has to learn of a balancer that is not in the list, or sends no header. Anybody can connect, so it is
    /// told seldom.
    fn tell(&self, peer: IpAddr, reason: &NoHeader) {
        let seldom = match reason {
            NoHeader::Gone | NoHeader::Slow => return,
            NoHeader::Stranger => &self.strangers,
            NoHeader::Absent | NoHeader::Invalid(_) => &self.headers,
        };
        if let Some(count) = seldom.due(Instant::now()) {
            tracing::warn!(%peer, %reason, count, "PROXY_PROTOCOL is on: a connection was closed");
        }
    }
}

/// Who opened the connection.
fn peer(stream: &Stream) -> Option<IpAddr> {
    stream.get_socket_digest()?.peer_addr()?.as_inet().map(|address| address.ip().to_canonical())
}

/// Why a connection brings no header that counts.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum NoHeader {
    #[error("it ended before its header did")]
    Gone,
    #[error("its header did not come in time")]
    Slow,
    #[error("its peer is not in TRUSTED_PROXIES")]
    Stranger,
    #[error("it began without a header")]
    Absent,
    #[error("its header cannot be read: {0}")]
    Invalid(InvalidHeader),
}

/// Reads the header at the start of a connection. With it comes what was read behind it.
async fn take_header(stream: &mut (impl AsyncRead + Unpin), is_trusted: bool) -> Result<(Header, BytesMut), NoHeader> {
    let mut bytes = BytesMut::with_capacity(FIRST_READ);
    loop {
        if !matches!(stream.read_buf(&mut bytes).await, Ok(length) if length > 0) {
            return Err(NoHeader::Gone);
        }
        if !is_trusted {
            return Err(NoHeader::Stranger);
        }
        match read(&bytes) {
            // It will be whole, or wrong, within a few kilobytes.
            Reading::NeedMore => {}
            Reading::Header(header) => {
                let behind = bytes.split_off(header.length.min(bytes.len()));
                return Ok((header, behind));
            }
            Reading::NotProxied => return Err(NoHeader::Absent),
            Reading::Invalid(found) => return Err(NoHeader::Invalid(found)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use pingora_core::protocols::{GetSocketDigest, SocketDigest};
    use tokio::io::AsyncWriteExt;

    use super::*;

    const LINE: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n";
    /// Behind a header may stand anything: HTTP, TLS, another header.
    const BEHIND: &[u8] = b"PROXY GET / HTTP/1.1\r\n\r\n\0\r\nQUIT\n";

    fn block() -> Vec<u8> {
        let addresses: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xDC, 4, 1, 0xBB];
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0F"[..], &addresses, b"\x04\0\0"].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_is_taken_off_to_the_byte_in_every_split() {
        for header in [LINE, &block()] {
            let sent = [header, BEHIND].concat();
            for cut in 0..=sent.len() {
                let (mut ours, mut theirs) = tokio::io::duplex(4096);
                let (first, second) = (sent[..cut].to_vec(), sent[cut..].to_vec());
                let sending = tokio::spawn(async move {
                    for piece in [first, second] {
                        theirs.write_all(&piece).await.unwrap();
                        // Nothing else has to be done by then: the reader has taken it.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                });
                let (taken, mut all) = take_header(&mut ours, true).await.unwrap();
                assert_eq!((taken.source, taken.length), (Some("192.0.2.1:56324".parse().unwrap()), header.len()));
                sending.await.unwrap();
                while ours.read_buf(&mut all).await.unwrap() > 0 {}
                assert_eq!(all, BEHIND, "cut at {cut}: {}", header.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn without_a_header_that_counts_the_reason_is_told() {
        let cut = &block()[..20];
        for (case, sent, is_trusted, expected) in [
            ("nobody", &b""[..], true, NoHeader::Gone),
            ("nobody, a stranger", b"", false, NoHeader::Gone),
            ("half a line", &LINE[..30], true, NoHeader::Gone),
            ("half a block", cut, true, NoHeader::Gone),
            ("a stranger", LINE, false, NoHeader::Stranger),
            ("a stranger's first byte", b"P", false, NoHeader::Stranger),
            ("HTTP", b"GET / HTTP/1.1\r\n", true, NoHeader::Absent),
            ("TLS", b"\x16\x03\x01", true, NoHeader::Absent),
        ] {
            let (mut ours, mut theirs) = tokio::io::duplex(4096);
            theirs.write_all(sent).await.unwrap();
            drop(theirs);
            assert_eq!(take_header(&mut ours, is_trusted).await.err(), Some(expected), "{case}");
        }
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(b"PROXY TCP4 x\r\n").await.unwrap();
        assert!(matches!(take_header(&mut ours, true).await, Err(NoHeader::Invalid(_))));
    }

    /// A connection as the listener makes it, its peer, and the other side of it.
    async fn connected() -> (Stream, IpAddr, tokio::net::TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (ours, peer) = listener.accept().await.unwrap();
        let mut ours = TcpStream::from(ours);
        ours.set_socket_digest(SocketDigest::from_raw_fd(ours.as_raw_fd()));
        (Box::new(ours), peer.ip(), theirs)
    }

    fn entrance(trusted: &str, has_header: bool, recorded: RecordClientAddress) -> Entrance {
        let within = has_header.then_some(Duration::from_millis(200));
        Entrance::new(vec![trusted.parse().unwrap()], within, recorded).unwrap()
    }

    #[test]
    fn nothing_is_looked_at_unless_something_is_asked() {
        let trusted = || vec!["127.0.0.1".parse().unwrap()];
        assert!(Entrance::new(trusted(), None, RecordClientAddress::None).is_none());
        assert!(Entrance::new(trusted(), Some(Duration::from_secs(10)), RecordClientAddress::None).is_some());
        assert!(Entrance::new(Vec::new(), None, RecordClientAddress::Full).is_some());
    }

    #[tokio::test]
    async fn a_connection_goes_on_behind_its_header_and_is_its_clients() {
        use RecordClientAddress::{Full, None, Truncated};
        for (header, recorded, expected) in [
            (LINE, Full, Some("192.0.2.1")),
            (LINE, Truncated, Some("192.0.2.0/24")),
            (LINE, None, Option::None),
            (&block(), Full, Some("192.0.2.1")),
            (b"PROXY UNKNOWN\r\n", Full, Some("127.0.0.1")),
            (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", Full, Some("127.0.0.1")),
        ] {
            let (ours, _, mut theirs) = connected().await;
            theirs.write_all(&[header, BEHIND].concat()).await.unwrap();
            theirs.shutdown().await.unwrap();
            let (mut stream, caller) = entrance("127.0.0.0/8", true, recorded).enter(ours).await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, BEHIND, "{}", header.escape_ascii());
            assert_eq!(caller.map(|caller| caller.of_connection()).as_deref(), expected, "{}", header.escape_ascii());
        }
    }

    #[tokio::test]
    async fn a_connection_that_needs_no_header_is_its_peers() {
        let (ours, peer, mut theirs) = connected().await;
        theirs.write_all(LINE).await.unwrap();
        theirs.shutdown().await.unwrap();
        let entrance = entrance("127.0.0.1", false, RecordClientAddress::Full);
        let (mut stream, caller) = entrance.enter(ours).await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, LINE);
        assert_eq!(caller.map(|caller| caller.of_connection()), Some(peer.to_string()));
    }

    #[tokio::test]
    async fn strangers_and_slow_headers_are_closed() {
        for (trusted, sent) in [("192.0.2.1", LINE), ("127.0.0.1", &LINE[..20]), ("127.0.0.1", b"")] {
            let (ours, _, mut theirs) = connected().await;
            theirs.write_all(sent).await.unwrap();
            let entrance = entrance(trusted, true, RecordClientAddress::Full);
            assert!(entrance.enter(ours).await.is_none(), "{trusted} {}", sent.escape_ascii());
        }
    }
}
