//! A real Redis server that can be killed. What it has answered is on its disk: each write is synced first.

use std::net::SocketAddr;
use std::path::PathBuf;

use llm_proxy_tests::{PATIENCE, eventually};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::Process;
use crate::receiver::free_addr;

/// How often a start is tried with another port.
const TRIES: u32 = 5;

/// The server. Dropping it kills it.
pub struct Redis {
    addr: SocketAddr,
    process: Process,
    _folder: TempDir,
}

impl Redis {
    /// Starts one without any data.
    ///
    /// # Panics
    /// When there is no Redis on this machine.
    pub async fn start() -> Self {
        for _ in 0..TRIES {
            let (addr, folder) = (free_addr(), tempfile::tempdir().unwrap());
            let port = addr.port().to_string();
            let listens = ["--bind", "127.0.0.1", "--port", &port];
            let keeps = ["--dir", ".", "--save", "", "--appendonly", "yes", "--appendfsync", "always"];
            let arguments = [&listens[..], &keeps].concat();
            let started =
                Process::start("redis-server", PathBuf::from("redis-server"), &arguments, Vec::new(), folder.path());
            let process = started.unwrap_or_else(|error| {
                panic!(
                    "redis-server cannot be started ({error}): install the package redis-server, as `make test` does"
                )
            });
            let mut redis = Self { addr, process, _folder: folder };
            // Somebody else took the port in between.
            if redis.until_up().await {
                return redis;
            }
        }
        panic!("no Redis server starts");
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// `kill -9`.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts it again with the data that it had, and waits until it answers.
    pub async fn restart(&mut self) {
        self.process.restart();
        assert!(self.until_up().await, "Redis does not start again:\n{}", self.process.log());
    }

    /// False: it has ended.
    async fn until_up(&mut self) -> bool {
        let (addr, process) = (self.addr, &mut self.process);
        let up = eventually(PATIENCE, "Redis answers", async || {
            if process.has_ended() { Some(false) } else { is_up(addr).await.then_some(true) }
        });
        up.await
    }
}

async fn is_up(addr: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(addr).await else { return false };
    let mut answer = [0; 7];
    // While it reads its data it answers otherwise.
    stream.write_all(b"PING\r\n").await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && answer == *b"+PONG\r\n"
}
