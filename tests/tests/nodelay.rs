//! Small pieces are not held back for the sake of large packets (Nagle's algorithm, RFC 9293 §3.7.4): a second one follows
//! the first at once, on both legs.
//!
//! What would be held back waits until its receiver acknowledges what came before. The receivers here put that off for as
//! long as Linux lets them, 40 ms (`TCP_QUICKACK`, tcp(7)), so that a second piece that comes sooner did not wait for it.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::TcpStreamExt;
use std::thread;
use std::time::{Duration, Instant};

use common::setup::{Api, Setup};
use common::upstream::Upstream;
use common::wire::Ask;
use llm_proxy_tests::PATIENCE;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

/// Between the two pieces at their sender.
const PAUSE: Duration = Duration::from_millis(3);
/// Less than the receivers put their acknowledgements off, much more than the pause.
const AT_ONCE: Duration = Duration::from_millis(25);
/// A busy machine may be slow now and then, but one that holds pieces back does so every time: the best round counts.
const ROUNDS: usize = 20;

/// The receiving end of a connection.
struct Receiver {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Receiver {
    fn of(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, read: Vec::new() }
    }

    fn connect(to: SocketAddr) -> Self {
        Self::of(TcpStream::connect(to).unwrap())
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads up to and with this mark, takes all of it, and says when it came.
    fn until(&mut self, mark: &[u8]) -> Instant {
        loop {
            if let Some(at) = self.read.windows(mark.len()).position(|window| window == mark) {
                self.read.drain(..at + mark.len());
                return Instant::now();
            }
            // The system forgets it soon.
            self.stream.set_quickack(false).unwrap();
            let mut piece = [0; 4096];
            let read = self.stream.read(&mut piece).unwrap();
            assert!(read > 0, "the connection ended before {}", mark.escape_ascii());
            self.read.extend_from_slice(&piece[..read]);
        }
    }

    /// How long the last of two pieces comes after what was sent before them.
    fn gap(&mut self) -> Duration {
        let head = self.until(b"\r\n\r\n");
        self.until(b"second").duration_since(head)
    }
}

fn best(gaps: &[Duration]) -> Duration {
    *gaps.iter().min().expect("there were rounds")
}

#[test]
fn a_sender_that_holds_pieces_back_shows() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let sending = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut turn = [0; 4];
        for _ in 0..ROUNDS {
            stream.read_exact(&mut turn).unwrap();
            stream.write_all(b"\r\n\r\nfirst").unwrap();
            thread::sleep(PAUSE);
            stream.write_all(b"second").unwrap();
        }
    });
    let mut receiver = Receiver::connect(addr);
    let mut gaps = Vec::new();
    for _ in 0..ROUNDS {
        receiver.send(b"next");
        gaps.push(receiver.gap());
    }
    sending.join().unwrap();
    // Now and then an acknowledgement goes at once, for a reason of the system's own.
    gaps.sort_unstable();
    assert!(gaps[ROUNDS / 2] > AT_ONCE, "nothing of this file can be seen here: {gaps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_piece_of_an_answer_follows_the_first_at_once() {
    let provider = Upstream::start(|mut wire, _| async move {
        while wire.request().await.is_some() {
            wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
            tokio::time::sleep(PAUSE).await;
            wire.send("6\r\nsecond\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("pieces", provider.addr, "")], &[]).await;
    let (to, request) = (setup.proxy(), setup.ask("GET", "/pieces/v1/models").head());
    let gaps = spawn_blocking(move || {
        let mut client = Receiver::connect(to);
        let mut gaps = Vec::new();
        for _ in 0..ROUNDS {
            client.send(&request);
            gaps.push(client.gap());
            client.until(b"0\r\n\r\n");
        }
        gaps
    });
    let gaps = gaps.await.unwrap();
    assert!(best(&gaps) <= AT_ONCE, "the client waited: {gaps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_piece_of_a_request_follows_the_first_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (report, gaps) = oneshot::channel();
    let provider = thread::spawn(move || {
        let mut provider = Receiver::of(listener.accept().unwrap().0);
        let mut gaps = Vec::new();
        for _ in 0..ROUNDS {
            gaps.push(provider.gap());
            provider.until(b"0\r\n\r\n");
            provider.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
        }
        report.send(gaps).unwrap();
    });
    let setup = Setup::with(&[Api::at("pieces", addr, "")], &[]).await;
    let head = Ask::post("/pieces/v1/files").bearer(&setup.token.text).with("transfer-encoding", "chunked").head();
    let mut wire = setup.wire().await;
    for _ in 0..ROUNDS {
        wire.send([&head[..], b"5\r\nfirst\r\n"].concat()).await;
        tokio::time::sleep(PAUSE).await;
        wire.send("6\r\nsecond\r\n0\r\n\r\n").await;
        assert_eq!(wire.answer().await.head.status, 200);
    }
    let gaps = gaps.await.unwrap();
    provider.join().unwrap();
    assert!(best(&gaps) <= AT_ONCE, "the provider waited: {gaps:?}");
}
