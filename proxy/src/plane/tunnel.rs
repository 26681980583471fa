//! Connections to providers through a proxy of the network's: a tunnel by CONNECT (RFC 9110 §9.3.6).
//!
//! Pingora's own support for this reaches proxies over a Unix socket only. It lets a peer bring its own way to connect,
//! though; TLS to the provider is then made inside the tunnel as on any connection, so the proxy sees names and sizes.

use async_trait::async_trait;
use llm_proxy_core::network::outbound_proxy::OutboundProxy;
use llm_proxy_core::secret::Secret;
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::{Error, ErrorType, OrErr, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The largest head of a proxy's answer, in bytes.
const LARGEST_HEAD: usize = 16 * 1024;

/// Asks a proxy for a tunnel to one provider.
#[derive(Debug)]
pub struct Tunnel {
    /// `host:port` of the provider.
    authority: String,
    authorization: Option<Secret>,
}

impl Tunnel {
    /// To this provider, with the proxy's credentials where it wants some.
    pub fn new(authority: String, proxy: &OutboundProxy) -> Self {
        Self { authority, authorization: proxy.authorization() }
    }

    fn request(&self) -> Vec<u8> {
        let authority = &self.authority;
        let mut request = format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n");
        if let Some(authorization) = &self.authorization {
            request.push_str("proxy-authorization: ");
            request.push_str(authorization.expose());
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request.into_bytes()
    }
}

#[async_trait]
impl L4Connect for Tunnel {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::InternalError, "a proxy has an IP address");
        };
        let mut tcp = TcpStream::connect(address)
            .await
            .or_err_with(ErrorType::ConnectError, || format!("the proxy at {address}"))?;
        let failed = || format!("asking the proxy at {address} for a tunnel");
        tcp.write_all(&self.request()).await.or_err_with(ErrorType::ConnectProxyFailure, failed)?;
        let mut head = Vec::with_capacity(1024);
        loop {
            // Byte by byte would be slow, and anything more than the head cannot be put back: a provider says nothing
            // before it is spoken to, so what stands behind the head is no tunnel.
            let read = tcp.read_buf(&mut head).await.or_err_with(ErrorType::ConnectProxyFailure, failed)?;
            match verdict(&head) {
                Verdict::More if read > 0 && head.len() <= LARGEST_HEAD => {}
                Verdict::Open => return Ok(Stream::from(tcp)),
                Verdict::Refused(status) => {
                    let told = format!("the proxy at {address} answered CONNECT with {status}");
                    return Error::e_explain(ErrorType::ConnectProxyFailure, told);
                }
                Verdict::More | Verdict::Broken => {
                    let told = format!("the proxy at {address} gave no proper answer to CONNECT");
                    return Error::e_explain(ErrorType::ConnectProxyFailure, told);
                }
            }
        }
    }
}

/// What the bytes of a proxy's answer say.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The head is not whole yet.
    More,
    /// 2xx, and nothing behind it.
    Open,
    /// Another final status.
    Refused(u16),
    /// No HTTP/1 answer, or bytes behind the head of a 2xx.
    Broken,
}

fn verdict(answer: &[u8]) -> Verdict {
    let mut rest = answer;
    loop {
        let Some(end) = memchr::memmem::find(rest, b"\r\n\r\n") else { return Verdict::More };
        let behind = rest.get(end.saturating_add(4)..).unwrap_or(&[]);
        let status = match rest {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', status @ ..] => status,
            _ => return Verdict::Broken,
        };
        let digits = status.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit));
        let Some(status) = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok()) else {
            return Verdict::Broken;
        };
        match status {
            100..=199 => rest = behind,
            // Lengths and codings of a 2xx mean nothing (RFC 9110 §9.3.6).
            200..=299 if behind.is_empty() => return Verdict::Open,
            200..=299 => return Verdict::Broken,
            _ => return Verdict::Refused(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_2xx_opens_a_tunnel() {
        for (answer, expected) in [
            (&b""[..], Verdict::More),
            (b"HTTP/1.1 200 OK\r\nx: y\r\n", Verdict::More),
            (b"HTTP/1.1 200 Connection established\r\n\r\n", Verdict::Open),
            (b"HTTP/1.0 200\r\ncontent-length: 5\r\n\r\n", Verdict::Open),
            (b"HTTP/1.1 100 Continue\r\n\r\n", Verdict::More),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 Fine\r\n\r\n", Verdict::Open),
            (b"HTTP/1.1 200 OK\r\n\r\nearly", Verdict::Broken),
            (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\nbody", Verdict::Refused(407)),
            (b"HTTP/1.1 302 Found\r\n\r\n", Verdict::Refused(302)),
            (b"HTTP/2 200\r\n\r\n", Verdict::Broken),
            (b"SSH-2.0\r\n\r\n", Verdict::Broken),
            (b"HTTP/1.1 +20 OK\r\n\r\n", Verdict::Broken),
        ] {
            assert_eq!(verdict(answer), expected, "{}", answer.escape_ascii());
        }
    }
}
