//! A provider that plays scripts. A request that carries [`CASE`] is answered with the script's bytes, any other one
//! regularly and with its own body, so that whoever gets somebody else's answer can tell. It remembers which request
//! came on which connection.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::corpus::{Ending, Script};

/// The field of a request that is about the script.
pub const CASE: &str = "x-case";
/// The longest that anything here takes unless it never happens.
const SOON: Duration = Duration::from_secs(5);
/// Between two pieces, so that the proxy reads them one by one. Where it reads them together, the answer is the same.
const PAUSE: Duration = Duration::from_millis(1);

/// Something that happens once.
pub struct Flag(watch::Sender<bool>);

impl Flag {
    fn new() -> Self {
        Self(watch::channel(false).0)
    }

    /// It happens now.
    pub fn raise(&self) {
        self.0.send_replace(true);
    }

    async fn raised(&self) {
        let mut seen = self.0.subscribe();
        let _ = seen.wait_for(|is_raised| *is_raised).await;
    }

    /// Waits until it has happened. `false`: it does not.
    pub async fn soon(&self) -> bool {
        timeout(SOON, self.raised()).await.is_ok()
    }
}

/// One connection of the proxy's.
pub struct Connection {
    /// What has come on it since the script was prepared: whether it was the case.
    arrivals: Mutex<Vec<bool>>,
    /// How many requests came before that.
    earlier: AtomicUsize,
    /// The whole script has been sent on it.
    pub played: Flag,
    /// It has ended.
    pub closed: Flag,
    dismissed: Flag,
}

impl Connection {
    /// How often it brought the request of the case.
    pub fn times_asked(&self) -> usize {
        self.arrivals.lock().unwrap().iter().filter(|is_case| **is_case).count()
    }

    /// Whether it had carried a request before the script was prepared.
    pub fn was_pooled(&self) -> bool {
        self.earlier.load(Ordering::SeqCst) > 0
    }

    fn forget_arrivals(&self) {
        let forgotten = std::mem::take(&mut *self.arrivals.lock().unwrap());
        self.earlier.fetch_add(forgotten.len(), Ordering::SeqCst);
    }

    /// Whether a request came behind the one of the case.
    pub fn was_used_again(&self) -> bool {
        let arrivals = self.arrivals.lock().unwrap();
        arrivals.iter().position(|is_case| *is_case).is_some_and(|at| arrivals.len() > at + 1)
    }
}

/// A script under way.
pub struct Play {
    script: Script,
    began_early: AtomicBool,
    /// The request has come.
    pub asked: Flag,
    /// The client has heard an answer.
    pub heard: Flag,
}

/// The provider. It ends with the test.
pub struct Stage {
    /// Where it listens.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    play: Mutex<Option<Arc<Play>>>,
    connections: Mutex<Vec<Arc<Connection>>>,
}

impl Stage {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let of_all = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                serving.spawn(serve(Arc::clone(&of_all), stream));
            }
        });
        Self { addr, shared, accepting }
    }

    /// Takes a script for the next request that carries [`CASE`].
    pub fn prepare(&self, script: Script) -> Arc<Play> {
        let play =
            Arc::new(Play { script, began_early: AtomicBool::new(false), asked: Flag::new(), heard: Flag::new() });
        let mut connections = self.shared.connections.lock().unwrap();
        connections.retain(|connection| !*connection.closed.0.borrow());
        connections.iter().for_each(|connection| connection.forget_arrivals());
        *self.shared.play.lock().unwrap() = Some(Arc::clone(&play));
        play
    }

    /// The connections on which the request of the script has come.
    pub fn asked(&self) -> Vec<Arc<Connection>> {
        let connections = self.shared.connections.lock().unwrap();
        connections.iter().filter(|connection| connection.times_asked() > 0).cloned().collect()
    }

    /// Ends every connection, so that the proxy's pool is empty. How many it does not give up.
    pub async fn dismiss(&self) -> usize {
        let connections = self.shared.connections.lock().unwrap().clone();
        connections.iter().for_each(|connection| connection.dismissed.raise());
        let mut kept = 0;
        for connection in connections {
            kept += usize::from(!connection.closed.soon().await);
        }
        kept
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let connection = Arc::new(Connection {
        arrivals: Mutex::default(),
        earlier: AtomicUsize::new(0),
        played: Flag::new(),
        closed: Flag::new(),
        dismissed: Flag::new(),
    });
    shared.connections.lock().unwrap().push(Arc::clone(&connection));
    // However the proxy ends it: that it does is what counts.
    let _ = converse(&shared, &connection, stream).await;
    connection.closed.raise();
}

async fn converse(shared: &Shared, connection: &Connection, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let play = shared.play.lock().unwrap().clone();
    if let Some(play) = play
        && !play.script.before.is_empty()
        && !play.began_early.swap(true, Ordering::SeqCst)
    {
        send(&mut stream, &play.script.before).await?;
    }
    let mut buffer = Vec::new();
    loop {
        let request = tokio::select! {
            request = read_request(&mut stream, &mut buffer) => request?,
            () = connection.dismissed.raised() => {
                stream.shutdown().await?;
                while stream.read(&mut [0; 1024]).await? > 0 {}
                return Ok(());
            }
        };
        let Some(request) = request else { return Ok(()) };
        connection.arrivals.lock().unwrap().push(request.is_case);
        let play = shared.play.lock().unwrap().clone();
        match play.filter(|_| request.is_case) {
            Some(play) => {
                play.asked.raise();
                let sent = perform(&play, &mut stream).await;
                if play.script.then == Ending::Reset {
                    // Only this sends the reset.
                    drop(stream);
                    connection.played.raise();
                    return sent;
                }
                connection.played.raise();
                sent?;
            }
            None => {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", request.body.len());
                stream.write_all(&[head.as_bytes(), request.body.as_slice()].concat()).await?;
            }
        }
    }
}

/// Sends a script from the request on. Where it ends with a reset, the stream has to be dropped then.
async fn perform(play: &Play, stream: &mut TcpStream) -> io::Result<()> {
    send(stream, &play.script.send).await?;
    if !play.script.late.is_empty() {
        play.heard.soon().await;
        send(stream, &play.script.late).await?;
    }
    match play.script.then {
        Ending::Keep => Ok(()),
        Ending::Fin => stream.shutdown().await,
        Ending::Reset => stream.set_zero_linger(),
    }
}

async fn send(stream: &mut TcpStream, pieces: &[Vec<u8>]) -> io::Result<()> {
    for (index, piece) in pieces.iter().enumerate() {
        if index > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        stream.write_all(piece).await?;
    }
    Ok(())
}

struct Request {
    is_case: bool,
    body: Vec<u8>,
}

/// The next request; `None` once the proxy has closed. Cancel safe, as long as the buffer stays.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    loop {
        if let Some(request) = take_request(buffer) {
            return Ok(Some(request));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn take_request(buffer: &mut Vec<u8>) -> Option<Request> {
    let head_end = buffer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&buffer[..head_end]).to_ascii_lowercase();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let length: usize = field("content-length").map_or(0, |length| length.parse().unwrap());
    if buffer.len() < head_end + length {
        return None;
    }
    let is_case = field(CASE).is_some();
    let body = buffer[head_end..head_end + length].to_vec();
    buffer.drain(..head_end + length);
    Some(Request { is_case, body })
}
