//! A receiver of webhooks that can be killed: its listener goes, its connections are reset, calls that it has kept stay
//! unanswered, and what it has kept is still there when it comes back. It can also hang: it accepts and never answers.
#![allow(dead_code, reason = "each scenario uses its own part")]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use llm_proxy_tests::{PATIENCE, eventually};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// What calls are signed with. The signature is another test's business.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Between the ports that products are given and those that the system gives to outgoing connections: one that was let
/// go stays free until it is listened at again.
const PORTS: std::ops::Range<u16> = 32_000..32_768;

/// What tells whether two records are the same.
pub type Digest = [u8; 32];

/// SHA-256 of a record, whatever the spaces in it.
pub fn digest(record: &Value) -> Digest {
    let digest = ring::digest::digest(&ring::digest::SHA256, record.to_string().as_bytes());
    digest.as_ref().try_into().unwrap()
}

/// An address of this machine that nobody listens at now.
pub fn free_addr() -> SocketAddr {
    loop {
        let addr = SocketAddr::from(([127, 0, 0, 1], rand::random_range(PORTS)));
        if std::net::TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
}

/// A record that was received.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// How often it came.
    pub times: u64,
    /// What it was, each time.
    pub digest: Digest,
}

/// What outlives a kill.
#[derive(Debug, Default)]
pub struct Kept {
    /// By the records' ids.
    pub records: HashMap<String, Taken>,
    /// What was wrong with what came.
    pub faults: Vec<String>,
}

#[derive(Default)]
struct Shared {
    kept: Mutex<Kept>,
    hangs: AtomicBool,
    calls: AtomicU64,
}

/// The receiver.
pub struct Receiver {
    addr: SocketAddr,
    shared: Arc<Shared>,
    serving: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Starts one.
    pub async fn start() -> Self {
        loop {
            let addr = free_addr();
            // Somebody else may have been quicker.
            let Ok(listener) = TcpListener::bind(addr).await else { continue };
            let mut receiver = Self { addr, shared: Arc::default(), serving: None };
            receiver.serve(listener);
            return receiver;
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it has kept so far. Not to be held while it should work.
    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        self.shared.kept.lock().unwrap()
    }

    /// Whole calls so far, those that hang included.
    pub fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// Whether calls are left without an answer from now on, and nothing of them is kept.
    pub fn hang(&self, hangs: bool) {
        self.shared.hangs.store(hangs, Ordering::SeqCst);
    }

    /// Closes the listener and resets every connection, whatever it is at.
    pub async fn kill(&mut self) {
        let Some(serving) = self.serving.take() else { return };
        serving.abort();
        let _ = serving.await;
    }

    /// Listens again, at the same address.
    pub async fn revive(&mut self) {
        let addr = self.addr;
        let listener = eventually(PATIENCE, "the port is free again", async || TcpListener::bind(addr).await.ok());
        let listener = listener.await;
        self.serve(listener);
    }

    fn serve(&mut self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        self.serving = Some(tokio::spawn(async move {
            // They end with the task.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                // Whoever is killed with something unread leaves a reset behind.
                stream.set_zero_linger().unwrap();
                connections.spawn(receive(stream, Arc::clone(&shared)));
            }
        }));
    }
}

/// The calls of one connection, until it closes.
async fn receive(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut held = Vec::new();
    while let Some(body) = next_body(&mut stream, &mut held).await {
        shared.calls.fetch_add(1, Ordering::SeqCst);
        if shared.hangs.load(Ordering::SeqCst) {
            // Until the other side has had enough of it.
            let _ = stream.read(&mut [0]).await;
            return;
        }
        shared.kept.lock().unwrap().keep(&body);
        // Kept, and nobody knows: the moment in which a kill, of either side, makes it come again.
        sleep(Duration::from_millis(rand::random_range(0..8))).await;
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.is_err() {
            return;
        }
    }
}

/// The body of the next call. `None`: the connection ended before it was whole.
async fn next_body(stream: &mut TcpStream, held: &mut Vec<u8>) -> Option<Vec<u8>> {
    let head_bytes = loop {
        if let Some(at) = held.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        fill(stream, held).await?;
    };
    let head = String::from_utf8_lossy(&held[..head_bytes]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let call_bytes = head_bytes + length.unwrap_or_else(|| panic!("a call without a length: {head}"));
    while held.len() < call_bytes {
        fill(stream, held).await?;
    }
    let rest = held.split_off(call_bytes);
    let mut call = std::mem::replace(held, rest);
    Some(call.split_off(head_bytes))
}

async fn fill(stream: &mut TcpStream, held: &mut Vec<u8>) -> Option<()> {
    held.reserve(64 * 1024);
    matches!(stream.read_buf(held).await, Ok(1..)).then_some(())
}

impl Kept {
    fn keep(&mut self, body: &[u8]) {
        let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
        let Some(records) = parsed["data"].as_array() else {
            self.faults.push(format!("no batch of records: {}", String::from_utf8_lossy(body)));
            return;
        };
        for record in records {
            let Some(id) = record["id"].as_str() else {
                self.faults.push(format!("a record without an id: {record}"));
                continue;
            };
            let digest = digest(record);
            match self.records.entry(id.to_owned()) {
                Entry::Vacant(place) => {
                    place.insert(Taken { times: 1, digest });
                }
                Entry::Occupied(mut place) => {
                    let taken = place.get_mut();
                    taken.times += 1;
                    if taken.digest != digest {
                        self.faults.push(format!("it came again and is another one: {record}"));
                    }
                }
            }
        }
    }
}
