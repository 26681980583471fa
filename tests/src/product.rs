//! The product as a child process: its settings, its life, its files.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::{Admin, PATIENCE, eventually};

/// The bootstrap credential of every product that does not set another.
const MANAGEMENT_TOKEN: &str = "Zq7mT2vXc9LrW4nKd8BsYh3GfP6jEa5u";
/// Ports are chosen below those that the system gives to outgoing connections: one that was looked at and let go
/// stays free until the product binds it, also across a restart.
const FIRST_PORT: u16 = 12_000;
const PORTS: u16 = 20_000;
/// How often a start is tried with other ports.
const TRIES: u32 = 5;

/// The four providers that a product serves unless told otherwise.
const PROVIDERS: [&str; 4] = ["openai", "anthropic", "gemini", "azure"];

/// How a product is started.
#[derive(Clone, Debug)]
pub struct ProductOptions {
    provider: SocketAddr,
    apis: Vec<(String, Vec<String>)>,
    settings: BTreeMap<String, String>,
    program: Option<(PathBuf, Vec<String>)>,
}

impl ProductOptions {
    /// openai, anthropic, gemini and azure, all at `provider`.
    pub fn new(provider: SocketAddr) -> Self {
        let apis =
            PROVIDERS.iter().map(|name| ((*name).to_owned(), vec![format!("base_url: http://{provider}")])).collect();
        let settings = [
            ("MANAGEMENT_TOKEN", MANAGEMENT_TOKEN),
            ("LOG_FORMAT", "json"),
            ("LOG_LEVEL", "info"),
            // A test that leaves a stream open must not wait for it.
            ("DRAIN_TIMEOUT", "5s"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { provider, apis, settings, program: None }
    }

    /// Adds lines of YAML to an API, or makes one with these lines at the same provider. A `base_url` among them
    /// replaces the one it has.
    #[must_use]
    pub fn api(mut self, name: &str, yaml: &str) -> Self {
        let index = self.apis.iter().position(|(found, _)| found == name).unwrap_or_else(|| {
            self.apis.push((name.to_owned(), vec![format!("base_url: http://{}", self.provider)]));
            self.apis.len() - 1
        });
        let lines = &mut self.apis[index].1;
        if yaml.lines().any(|line| line.starts_with("base_url:")) {
            lines.retain(|line| !line.starts_with("base_url:"));
        }
        lines.extend(yaml.lines().map(str::to_owned));
        self
    }

    /// Sets a setting, by the name of its environment variable.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.insert(name.to_owned(), value.to_string());
        self
    }

    /// Another program in place of the binary, with these arguments: one that runs the product's own code, and gets its
    /// settings the same way.
    #[must_use]
    pub fn run_by(mut self, program: PathBuf, arguments: &[&str]) -> Self {
        self.program = Some((program, arguments.iter().map(|argument| (*argument).to_owned()).collect()));
        self
    }

    /// The settings file.
    pub fn yaml(&self) -> String {
        let mut yaml = "apis:\n".to_owned();
        for (name, lines) in &self.apis {
            yaml.push_str(&format!("  {name}:\n"));
            for line in lines {
                yaml.push_str(&format!("    {line}\n"));
            }
        }
        yaml
    }
}

/// The binary under test: `LLM_PROXY_BIN`, else the one built beside the tests.
///
/// # Panics
/// When there is none.
pub fn binary() -> PathBuf {
    let path = match std::env::var_os("LLM_PROXY_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let tests = std::env::current_exe().unwrap();
            tests.parent().unwrap().parent().unwrap().join("llm-proxy")
        }
    };
    // It is run in other folders.
    path.canonicalize().unwrap_or_else(|_| panic!("{} is missing: cargo build --bin llm-proxy", path.display()))
}

/// What a run of the binary left behind.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` after a signal.
    pub code: Option<i32>,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

/// Runs the binary to its end in `folder`, with no environment but `variables`.
///
/// # Panics
/// When it does not end within [`PATIENCE`].
pub async fn run_binary(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Finished {
    let mut command = tokio::process::Command::new(binary());
    command.args(arguments).env_clear().envs(variables.iter().copied()).current_dir(folder);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("llm-proxy {arguments:?} does not end")).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A running product. Dropping it kills the process and deletes its files.
pub struct Product {
    child: Child,
    options: ProductOptions,
    data_addr: SocketAddr,
    admin_addr: SocketAddr,
    folder: TempDir,
}

impl Product {
    /// Starts it and waits until both planes answer.
    ///
    /// # Panics
    /// When it does not, with its log.
    pub async fn start(options: ProductOptions) -> Self {
        let mut tries = 0;
        loop {
            tries += 1;
            let folder = tempfile::tempdir().unwrap();
            let (data_addr, admin_addr) = (free_addr(), free_addr());
            let child = spawn(&options, folder.path(), data_addr, admin_addr);
            let mut product = Self { child, options: options.clone(), data_addr, admin_addr, folder };
            match product.until_ready().await {
                Ok(()) => return product,
                // Somebody else took the port in between.
                Err(log) if tries < TRIES && log.contains("is taken") => {}
                Err(log) => panic!("llm-proxy did not start:\n{log}"),
            }
        }
    }

    /// Where apps connect.
    pub fn data_addr(&self) -> SocketAddr {
        self.data_addr
    }

    /// Where admins connect.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// The admin API, with its credential.
    pub fn admin(&self) -> Admin {
        Admin::new(self.admin_addr, self.management_token())
    }

    /// The bootstrap credential.
    pub fn management_token(&self) -> &str {
        &self.options.settings["MANAGEMENT_TOKEN"]
    }

    /// The running process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory now and at its highest, in bytes.
    pub fn memory_bytes(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
        };
        (kib("VmRSS:"), kib("VmHWM:"))
    }

    /// `DATA_DIR`.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Everything it wrote to stdout and stderr, over restarts.
    pub fn log(&self) -> String {
        std::fs::read(log_path(self.folder.path()))
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Changes what the next [`Self::restart`] starts with.
    pub fn reconfigure(&mut self, change: impl FnOnce(ProductOptions) -> ProductOptions) {
        self.options = change(self.options.clone());
    }

    /// `kill -9`, and waits until it is dead.
    pub fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal by its name, `TERM` for one.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(status.success(), "kill -{name}");
    }

    /// Waits for the process to end by itself.
    ///
    /// # Panics
    /// When it does not within that time.
    pub async fn ended(&mut self, within: Duration) -> ExitStatus {
        let child = &mut self.child;
        eventually(within, "the process ends", async || child.try_wait().unwrap()).await
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Panics
    /// When it does not end within that time.
    pub async fn sigterm(&mut self, within: Duration) -> ExitStatus {
        self.signal("TERM");
        self.ended(within).await
    }

    /// Starts it again, with the same files and ports, and waits until it answers. What still runs is killed.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = spawn(&self.options, self.folder.path(), self.data_addr, self.admin_addr);
        if let Err(log) = self.until_ready().await {
            panic!("llm-proxy did not start again:\n{log}");
        }
    }

    /// The records of exchanges in `events.jsonl`, oldest first.
    pub fn events(&self) -> Vec<Value> {
        let mut events = self.all_events();
        events.retain(|event| event["type"] == "exchange");
        events
    }

    /// All records in `events.jsonl`, those of management actions too, oldest first.
    pub fn all_events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.data_dir().join("events.jsonl")).unwrap_or_default();
        // The last line may still be on its way.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// The record with this id, as soon as it is there.
    ///
    /// # Panics
    /// When it does not come within 5 seconds.
    pub async fn wait_event(&self, id: &str) -> Value {
        self.wait_events(&format!("the record {id}"), |events| events.iter().find(|event| event["id"] == id).cloned())
            .await
    }

    /// What `choose` makes of the records, as soon as it makes something of them.
    ///
    /// # Panics
    /// When that does not happen within 5 seconds.
    pub async fn wait_events<T>(&self, what: &str, choose: impl Fn(&[Value]) -> Option<T>) -> T {
        eventually(Duration::from_secs(5), what, async || choose(&self.events())).await
    }

    /// The same of [all records](Self::all_events).
    ///
    /// # Panics
    /// When that does not happen within 5 seconds.
    pub async fn wait_all_events<T>(&self, what: &str, choose: impl Fn(&[Value]) -> Option<T>) -> T {
        eventually(Duration::from_secs(5), what, async || choose(&self.all_events())).await
    }

    /// Runs a statement on the database, behind the product's back. Changes nothing that it has in memory.
    ///
    /// # Panics
    /// When that fails.
    pub async fn sql(&self, statement: &str) {
        const SCRIPT: &str = "import sqlite3, sys\n\
            db = sqlite3.connect(sys.argv[1], timeout=10)\n\
            db.execute(sys.argv[2])\n\
            db.commit()\n";
        let database = self.data_dir().join("llm-proxy.db");
        let mut python = tokio::process::Command::new("python3");
        let status = python.arg("-c").arg(SCRIPT).arg(database).arg(statement).status().await.unwrap();
        assert!(status.success(), "{statement}");
    }

    /// The metrics as Prometheus reads them.
    pub async fn metrics(&self) -> String {
        let told = self.admin().get("/metrics").await;
        assert_eq!(told.status, 200, "/metrics");
        told.text()
    }

    /// Ready on the admin listener, and the data plane takes connections; or the log of what died.
    async fn until_ready(&mut self) -> Result<(), String> {
        let (data, admin) = (self.data_addr, self.admin_addr);
        let settings = &self.options.settings;
        let is_silent = settings.contains_key("TLS_CERT_FILE") || settings.contains_key("PROXY_PROTOCOL");
        let child = &mut self.child;
        let ready = eventually(PATIENCE, "llm-proxy is ready", async || {
            if child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            // What speaks TLS, or waits for a PROXY header, is asked nothing: that it listens is enough.
            let takes = if is_silent { TcpStream::connect(data).await.is_ok() } else { is_ready(data).await };
            (takes && is_ready(admin).await).then_some(true)
        });
        if ready.await { Ok(()) } else { Err(self.log()) }
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the log of llm-proxy:\n{}", self.log());
        }
    }
}

async fn is_ready(addr: SocketAddr) -> bool {
    let request = format!("GET /health/ready HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    llm_proxy_load::generate::fetch(addr, request.as_bytes()).await.is_ok_and(|reply| reply.status == 200)
}

fn log_path(folder: &Path) -> PathBuf {
    folder.join("log")
}

fn spawn(options: &ProductOptions, folder: &Path, data_addr: SocketAddr, admin_addr: SocketAddr) -> Child {
    std::fs::write(folder.join("llm-proxy.yaml"), options.yaml()).unwrap();
    let log: File = OpenOptions::new().create(true).append(true).open(log_path(folder)).unwrap();
    let (program, arguments) = options.program.clone().unwrap_or_else(|| (binary(), vec!["server".to_owned()]));
    Command::new(program)
        .args(arguments)
        // What this machine's environment says must not reach it.
        .env_clear()
        .current_dir(folder)
        .envs(&options.settings)
        .env("LISTEN_ADDR", data_addr.to_string())
        .env("ADMIN_LISTEN_ADDR", admin_addr.to_string())
        .env("DATA_DIR", folder.join("data"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn free_addr() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test programs that run side by side begin at different places.
    let start = (std::process::id() % u32::from(PORTS)) as u16;
    loop {
        let offset = start.wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let addr = SocketAddr::from(([127, 0, 0, 1], FIRST_PORT + offset));
        if TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
}
