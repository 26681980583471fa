//! An address that neither takes a connection nor refuses one.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// How long a connect that hangs may take until it counts as hanging.
const HANGS: Duration = Duration::from_millis(500);
/// A queue that takes more than these never fills.
const MOST: usize = 100;

/// A listener whose accept queue is full: the kernel drops what comes.
pub struct FullListener {
    addr: SocketAddr,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl FullListener {
    /// Listens, and connects until nothing fits any more.
    ///
    /// # Panics
    /// When the queue does not fill.
    pub async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(connected) = timeout(HANGS, TcpStream::connect(addr)).await {
            waiting.push(connected.unwrap());
            assert!(waiting.len() < MOST, "the accept queue does not fill");
        }
        Self { addr, _listener: listener, _waiting: waiting }
    }

    /// Where connecting hangs.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}
