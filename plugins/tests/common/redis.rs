//! Real Redis servers, started by the tests on free ports with their data in folders of their own, and stopped by their
//! handles. Nothing is written that a `kill -9` could lose: each write is on disk before it is answered.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "each test uses its own part, and may be blunt"
)]

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::{Connection, FromRedisValue};
use tempfile::TempDir;

/// Longer than any of them takes to start, to stop, or to come to an agreement.
const PATIENCE: Duration = Duration::from_secs(30);
/// Below the ports that systems give to clients: one of those, calling where nobody listens yet, could get through to
/// itself.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// A server. Dropping it kills it.
pub struct Server {
    pub port: u16,
    dir: TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
    password: Option<String>,
}

impl Server {
    /// One that takes writes and keeps them.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// One with more arguments.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::launch(arguments, None)
    }

    /// One that wants this password.
    pub fn start_locked(password: &str, arguments: &[&str]) -> Self {
        let own = ["--requirepass", password, "--masterauth", password];
        Self::launch(&[own.as_slice(), arguments].concat(), Some(password))
    }

    fn launch(arguments: &[&str], password: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let own = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", "always"];
        let more = ["--repl-diskless-sync-delay", "0", "--dir", "."];
        let words = [own.as_slice(), more.as_slice(), arguments].concat();
        let arguments = words.into_iter().map(str::to_owned).collect();
        let mut server = Self { port: 0, dir, arguments, child: None, password: password.map(str::to_owned) };
        for _ in 0..20 {
            server.port = free_port();
            if server.try_restart() {
                return server;
            }
        }
        panic!("no Redis server starts: {}", server.log());
    }

    /// The one that a Sentinel runs as, which watches a master with a password.
    pub fn start_sentinel(service: &str, master: &Self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let (master_port, password) = (master.port, master.password.as_deref().unwrap());
        let configuration = format!(
            "bind 127.0.0.1\nport {port}\ndir .\nsentinel monitor {service} 127.0.0.1 {master_port} 1\n\
             sentinel auth-pass {service} {password}\nsentinel down-after-milliseconds {service} 300\n\
             sentinel failover-timeout {service} 1000\n"
        );
        fs::write(dir.path().join("sentinel.conf"), configuration).unwrap();
        let arguments = ["sentinel.conf", "--sentinel"].map(str::to_owned).to_vec();
        let mut server = Self { port, dir, arguments, child: None, password: None };
        assert!(server.try_restart(), "no Sentinel starts: {}", server.log());
        server
    }

    /// Kills it as a power cut would, without a word.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it again where it was, with what it had.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.try_restart(), "the Redis server does not start again: {}", self.log());
    }

    fn try_restart(&mut self) -> bool {
        let log = File::create(self.dir.path().join("log")).unwrap();
        let mut command = Command::new("redis-server");
        command.args(&self.arguments).current_dir(self.dir.path());
        if !self.arguments.iter().any(|argument| argument == "--sentinel") {
            command.arg("--port").arg(self.port.to_string());
        }
        let spawned = command.stdin(Stdio::null()).stderr(log.try_clone().unwrap()).stdout(log).spawn();
        self.child = Some(spawned.unwrap_or_else(|error| {
            panic!("these tests need a Redis server (redis-server, of the Debian package of this name): {error}")
        }));
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                self.child = None;
                return false;
            }
            let answer = self.connect().and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection));
            if answer.is_ok_and(|answer| answer == "PONG") {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn url(&self) -> String {
        let user_info = self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("redis://{user_info}127.0.0.1:{}", self.port)
    }

    pub fn connect(&self) -> redis::RedisResult<Connection> {
        redis::Client::open(self.url())?.get_connection()
    }

    /// Asks it something.
    pub fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_ask(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub fn try_ask<T: FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query(&mut self.connect()?)
    }

    /// The value of a line of `INFO`.
    pub fn info(&self, section: &str, key: &str) -> String {
        let info: String = self.ask(&["INFO", section]);
        let found = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        found.unwrap_or_default().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three servers that share all keys.
pub fn start_cluster() -> Vec<Server> {
    let nodes: Vec<Server> = (0..3)
        .map(|_| {
            let bus = free_port().to_string();
            Server::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"])
        })
        .collect();
    for (node, slots) in nodes.iter().zip([["0", "5460"], ["5461", "10922"], ["10923", "16383"]]) {
        node.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]);
    }
    for node in &nodes[1..] {
        let config: (String, String) = node.ask(&["CONFIG", "GET", "cluster-port"]);
        nodes[0].ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string(), &config.1]);
    }
    wait("the cluster to agree", || {
        nodes.iter().all(|node| {
            let info: String = node.ask(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        })
    });
    nodes
}

/// A replica of a server, in step with it.
pub fn start_replica(master: &Server) -> Server {
    let password = master.password.clone().unwrap();
    let replica = Server::start_locked(&password, &["--replicaof", "127.0.0.1", &master.port.to_string()]);
    wait("the replica to be in step", || replica.info("replication", "master_link_status") == "up");
    replica
}

/// Certificate and key of `localhost` as files in `dir`, for a server with `--tls-port`.
pub fn tls_arguments(dir: &Path, certificate: &str, key: &str, port: u16) -> Vec<String> {
    let (certificate_file, key_file) = (dir.join("certificate.pem"), dir.join("key.pem"));
    fs::write(&certificate_file, certificate).unwrap();
    fs::write(&key_file, key).unwrap();
    let (certificate_file, key_file) = (certificate_file.to_str().unwrap(), key_file.to_str().unwrap());
    let words = ["--tls-port", &port.to_string(), "--tls-cert-file", certificate_file, "--tls-key-file", key_file];
    words.into_iter().chain(["--tls-auth-clients", "no"]).map(str::to_owned).collect()
}

/// A port of this machine that nobody listens at now.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until it holds.
pub fn wait(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
