//! A client for requests that may be no requests: whatever comes back, or does not, is a finding and no panic.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::PATIENCE;

/// Room for one read.
const READ: usize = 16 * 1024;

/// An answer, interim ones included.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The status.
    pub status: u16,
    /// `connection: close` stands there.
    pub says_close: bool,
    /// The body, which has a length or is none.
    pub body: Vec<u8>,
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(addr: SocketAddr) -> Result<Self, String> {
        let connecting = timeout(PATIENCE, TcpStream::connect(addr)).await;
        let stream = connecting.map_err(|_| "no connection".to_owned())?.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends, as far as the other side lets us: it may have closed, and what it has answered tells.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = timeout(PATIENCE, self.stream.write_all(bytes)).await;
    }

    /// Closes the sending side.
    pub async fn shut(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The next answer. `None`: the connection has ended before another one.
    ///
    /// # Errors
    /// When nothing comes for too long, or no whole answer.
    pub async fn answer(&mut self, to_head: bool) -> Result<Option<Answered>, String> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill().await? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(self.garbled("half a head")) };
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
        let status =
            head.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3)).and_then(|text| text.parse::<u16>().ok());
        let Some(status) = status else { return Err(self.garbled("no status line")) };
        let field = |name: &str| {
            let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
            fields.filter(|(found, _)| *found == name).map(|(_, value)| value.trim()).next()
        };
        let length = match status {
            100..=199 | 204 | 304 => 0,
            _ if to_head => 0,
            _ => match field("content-length").and_then(|length| length.parse::<usize>().ok()) {
                Some(length) => length,
                None => return Err(self.garbled("no length")),
            },
        };
        while self.buffer.len() < end + length {
            if !self.fill().await? {
                return Err(self.garbled("half a body"));
            }
        }
        let says_close = field("connection") == Some("close");
        let body = self.buffer[end..end + length].to_vec();
        self.buffer.drain(..end + length);
        Ok(Some(Answered { status, says_close, body }))
    }

    /// Reads away what comes, until nothing has come for so long (`false`) or the connection has ended (`true`).
    pub async fn drained(&mut self, quiet: Duration) -> bool {
        loop {
            self.buffer.clear();
            self.buffer.reserve(READ);
            match timeout(quiet, self.stream.read_buf(&mut self.buffer)).await {
                Err(_) => return false,
                Ok(Ok(read)) if read > 0 => {}
                Ok(_) => return true,
            }
        }
    }

    /// Reads once. `false`: the connection has ended, by a reset or in order.
    async fn fill(&mut self) -> Result<bool, String> {
        self.buffer.reserve(READ);
        match timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await {
            Err(_) => Err(self.garbled("nothing more")),
            Ok(read) => Ok(read.is_ok_and(|read| read > 0)),
        }
    }

    fn garbled(&self, what: &str) -> String {
        let shown = &self.buffer[..self.buffer.len().min(400)];
        format!("{what} came, after \"{}\"", shown.escape_ascii())
    }
}
