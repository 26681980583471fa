//! A provider that keeps every octet it gets and has it read by all of [`h1_readers`](crate::h1_readers) at once.
//!
//! It answers each request that they agree on with 200 and the request's own method and target, so that an answer tells
//! whose it is. Where two readers disagree, it takes no more on that connection and enters a fault.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::h1_readers::{Message, agreed};

/// Room for one read.
const READ: usize = 16 * 1024;
/// The fields in which a provider's key can stand.
const CREDENTIALS: [&str; 4] = ["authorization", "x-api-key", "api-key", "x-goog-api-key"];

/// What has been recorded.
#[derive(Default)]
struct Books {
    /// Each request under the key that it came with, as it came in.
    requests: Vec<(String, Message)>,
    /// What must not be, in words.
    faults: Vec<String>,
}

/// The provider. It ends with the test.
pub struct Recorder {
    addr: SocketAddr,
    books: Arc<Mutex<Books>>,
    task: JoinHandle<()>,
}

impl Recorder {
    /// Starts on a port of its own.
    ///
    /// # Panics
    /// When there is none.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let books = Arc::new(Mutex::new(Books::default()));
        let shared = Arc::clone(&books);
        let task = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                serving.spawn(serve(stream, Arc::clone(&shared)));
                while serving.try_join_next().is_some() {}
            }
        });
        Self { addr, books, task }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes the requests that came with this key since the last time, in their order.
    ///
    /// # Panics
    /// When a connection's task has panicked.
    pub fn take(&self, key: &str) -> Vec<Message> {
        let mut books = self.books.lock().unwrap();
        let all = std::mem::take(&mut books.requests);
        let (of_key, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(found, _)| found == key);
        books.requests = others;
        of_key.into_iter().map(|(_, message)| message).collect()
    }

    /// Method and target of the requests that nobody has taken: they came with a key that is nobody's.
    ///
    /// # Panics
    /// When a connection's task has panicked.
    pub fn untaken(&self) -> Vec<String> {
        let books = self.books.lock().unwrap();
        books.requests.iter().map(|(_, message)| message.line().escape_ascii().to_string()).collect()
    }

    /// What must not be: streams on which readers disagree, and requests without one credential. In words, oldest first.
    ///
    /// # Panics
    /// When a connection's task has panicked.
    pub fn faults(&self) -> Vec<String> {
        self.books.lock().unwrap().faults.clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection, until its end or a fault.
async fn serve(mut stream: TcpStream, books: Arc<Mutex<Books>>) {
    let _ = stream.set_nodelay(true);
    let mut recorded: Vec<u8> = Vec::new();
    let mut agreed_to = 0;
    loop {
        recorded.reserve(READ);
        // What is left of a request when its connection ends was none, to every reader: they all waited for more.
        if !matches!(stream.read_buf(&mut recorded).await, Ok(read) if read > 0) {
            return;
        }
        loop {
            let rest = &recorded[agreed_to..];
            match agreed(rest) {
                Ok(None) => break,
                Ok(Some(message)) => {
                    agreed_to += message.end;
                    let answer = answer(&message);
                    enter(&books, message);
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
                Err(why) => {
                    let rest = &rest[..rest.len().min(2000)];
                    books.lock().unwrap().faults.push(format!("{why}: {}", rest.escape_ascii()));
                    return;
                }
            }
        }
    }
}

/// Enters a request under its one credential.
fn enter(books: &Mutex<Books>, message: Message) {
    let key = credential(&message);
    let mut books = books.lock().unwrap();
    match key {
        Some(key) => books.requests.push((key, message)),
        None => books.faults.push(format!("not exactly one credential: {}", message.line().escape_ascii())),
    }
}

/// The one credential of a request; `None` when it has none, or several.
fn credential(message: &Message) -> Option<String> {
    let mut found = CREDENTIALS.iter().flat_map(|name| message.values(name));
    let value = found.next()?;
    if found.next().is_some() {
        return None;
    }
    let key = value.strip_prefix(b"Bearer ").unwrap_or(value);
    Some(String::from_utf8_lossy(key).into_owned())
}

fn answer(message: &Message) -> Vec<u8> {
    let line = message.line();
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n", line.len()).into_bytes();
    if message.method != b"HEAD" {
        answer.extend_from_slice(&line);
    }
    answer
}
