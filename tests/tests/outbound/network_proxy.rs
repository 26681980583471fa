//! A proxy of the network's, between the product and its providers. It takes CONNECT (RFC 9110 §9.3.6), well or badly,
//! and notes every byte that the product shows it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use llm_proxy_tests::{PATIENCE, eventually};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// What it does once it is asked for a tunnel.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// Opens it, and not to the name, which is nobody's here, but to this address.
    Open(SocketAddr),
    /// Says these bytes, which may be none, and then only listens.
    Say(&'static [u8]),
    /// Closes without a word.
    Leave,
}

/// One connection to it.
#[derive(Clone, Debug, Default)]
pub struct Visit {
    /// The head of the request for a tunnel.
    pub head: Vec<u8>,
    /// What the product sent behind it.
    pub behind: Vec<u8>,
    /// Whether the connection has ended.
    pub is_over: bool,
}

impl Visit {
    /// Host and port of the tunnel asked for; nothing where none was.
    pub fn authority(&self) -> String {
        let head = String::from_utf8_lossy(&self.head);
        let rest = head.strip_prefix("CONNECT ").unwrap_or_default();
        rest.split(' ').next().unwrap_or_default().to_owned()
    }

    /// Whether the product showed this text.
    pub fn has(&self, text: &str) -> bool {
        [&self.head, &self.behind].iter().any(|bytes| bytes.windows(text.len()).any(|some| some == text.as_bytes()))
    }
}

/// A running one. It ends with the test.
pub struct NetworkProxy {
    addr: SocketAddr,
    visits: Arc<Mutex<Vec<Visit>>>,
    task: JoinHandle<()>,
}

impl NetworkProxy {
    /// One that treats each request for a tunnel as `manner` says of its host and port.
    pub async fn start(manner: impl Fn(&str) -> Manner + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let visits = Arc::new(Mutex::new(Vec::new()));
        let (all, manner) = (Arc::clone(&visits), Arc::new(manner));
        let task = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let notes = Notes::of_next(&all);
                let manner = Arc::clone(&manner);
                serving.spawn(async move {
                    serve(stream, &*manner, &notes).await;
                    notes.enter(|visit| visit.is_over = true);
                });
            }
        });
        Self { addr, visits, task }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Every connection so far, oldest first.
    pub fn visits(&self) -> Vec<Visit> {
        self.visits.lock().unwrap().clone()
    }

    /// The only request for a tunnel to this host and port, once its connection has ended.
    pub async fn ended(&self, authority: &str) -> Visit {
        let what = format!("the connection for {authority} ends");
        let visit = eventually(PATIENCE, &what, async || {
            self.visits().into_iter().find(|visit| visit.authority() == authority && visit.is_over)
        })
        .await;
        let asked = self.visits().iter().filter(|visit| visit.authority() == authority).count();
        assert_eq!(asked, 1, "{authority}: a tunnel was asked for again");
        visit
    }

    /// Ends it and every connection to it.
    pub async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for NetworkProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where one connection is noted.
struct Notes {
    visits: Arc<Mutex<Vec<Visit>>>,
    number: usize,
}

impl Notes {
    fn of_next(visits: &Arc<Mutex<Vec<Visit>>>) -> Self {
        let mut all = visits.lock().unwrap();
        all.push(Visit::default());
        Self { visits: Arc::clone(visits), number: all.len() - 1 }
    }

    fn enter<T>(&self, change: impl FnOnce(&mut Visit) -> T) -> T {
        change(&mut self.visits.lock().unwrap()[self.number])
    }
}

async fn serve(mut stream: TcpStream, manner: &(impl Fn(&str) -> Manner + Sync), notes: &Notes) {
    // Byte by byte, so that nothing from behind the head is taken for a part of it.
    while !notes.enter(|visit| visit.head.ends_with(b"\r\n\r\n")) {
        let Ok(byte) = stream.read_u8().await else { return };
        notes.enter(|visit| visit.head.push(byte));
    }
    match manner(&notes.enter(|visit| visit.authority())) {
        Manner::Open(to) => tunnel(stream, to, notes).await,
        Manner::Say(answer) => {
            let _ = stream.write_all(answer).await;
            carry(stream, sink(), notes).await;
        }
        Manner::Leave => {}
    }
}

async fn tunnel(mut client: TcpStream, to: SocketAddr, notes: &Notes) {
    let mut provider = TcpStream::connect(to).await.unwrap();
    // Every event of a stream is a segment of its own.
    let _ = (client.set_nodelay(true), provider.set_nodelay(true));
    let _ = client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    let ((from_client, mut to_client), (mut from_provider, to_provider)) = (client.split(), provider.split());
    let back = async {
        let _ = copy(&mut from_provider, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::join!(carry(from_client, to_provider, notes), back);
}

/// Notes what the product sends until it ends it, and passes it on.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, notes: &Notes) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        notes.enter(|visit| visit.behind.extend_from_slice(&buffer[..read]));
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
