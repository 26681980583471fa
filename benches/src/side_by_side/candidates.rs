//! Who is measured, and the mock provider behind all of them. Every candidate gets requests of the same size: the
//! mock's key is as long as a proxy token.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use llm_proxy_load::generate;
use serde_json::{Value, json};

use crate::child::{Child, Launch};
use crate::records::Records;

/// The candidate to which all others are compared.
pub const BASELINE: &str = "bare-pingora";
/// The provider's key. As long as a proxy token, so that heads are equal in length.
const PROVIDER_KEY: &str = "sk-mock-bench-0000000000000000000000000";
/// High enough never to be met, so that every exchange pays for the limit and none is refused.
const MAX_REQUESTS: u64 = 1_000_000_000;
const REQUESTS_PER_MINUTE: u64 = 1_000_000;

/// What runs as one process.
#[derive(Clone, Copy)]
pub enum Program {
    /// An empty Pingora proxy.
    Bare,
    /// The same with llm-proxy's allocator.
    BareJemalloc,
    /// `llm-proxy server` with everything on.
    LlmProxy,
    /// The same with a journal that makes no system call on the way of a request: the difference is the durable one's.
    LlmProxyLossy,
}

impl Program {
    /// All of them, the baseline first.
    pub const ALL: [Self; 4] = [Self::Bare, Self::BareJemalloc, Self::LlmProxy, Self::LlmProxyLossy];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LlmProxyLossy => "llm-proxy-lossy",
            Self::Bare | Self::BareJemalloc | Self::LlmProxy => self.file(),
        }
    }

    /// The name of its file.
    const fn file(self) -> &'static str {
        match self {
            Self::Bare => BASELINE,
            Self::BareJemalloc => "bare-pingora-jemalloc",
            Self::LlmProxy | Self::LlmProxyLossy => "llm-proxy",
        }
    }
}

/// One way to the mock, as a table names it.
pub struct Lane {
    /// Its name.
    pub name: &'static str,
    /// Where requests go.
    pub addr: SocketAddr,
    /// What they carry as bearer.
    pub credential: String,
    /// The process that pays for them.
    pub pid: u32,
    /// Where each exchange must leave a line.
    pub records: Option<Rc<Records>>,
}

/// A running candidate with its lanes.
pub struct Proxy {
    /// At least one.
    pub lanes: Vec<Lane>,
    _child: Child,
}

/// What all candidates share: the programs, the CPUs, a folder that is deleted at the end, and the mock provider.
pub struct Stage {
    programs: PathBuf,
    proxy_cpu: usize,
    mock_addr: SocketAddr,
    // Processes end before the folder goes that they write to: fields are dropped in this order.
    _mock: Child,
    folder: tempfile::TempDir,
}

impl Stage {
    /// Starts the mock.
    ///
    /// # Errors
    /// When a program is missing or does not start.
    pub async fn set(proxy_cpu: usize, load_cpu: usize) -> Result<Self> {
        let programs = programs()?;
        let folder = tempfile::tempdir().context("a temporary folder cannot be made")?;
        let mut mock = Child::start(&Launch {
            name: "llm-proxy-mock",
            cpu: load_cpu,
            wrapper: &[],
            program: &programs.join("llm-proxy-mock"),
            arguments: &["--threads".into(), "1".into(), "--key".into(), format!("openai={PROVIDER_KEY}").into()],
            dir: folder.path(),
        })?;
        let mock_addr = mock.says("mock provider listening on http://").await?;
        let mock_addr: SocketAddr = mock_addr.trim().parse().context("the mock's address")?;
        Ok(Self { programs, proxy_cpu, mock_addr, _mock: mock, folder })
    }

    /// The mock itself, for what a right answer is.
    pub fn direct(&self) -> (SocketAddr, &'static str) {
        (self.mock_addr, PROVIDER_KEY)
    }

    /// Where files may be left.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a candidate, run by `wrapper` if that is not empty, and waits until it serves.
    ///
    /// # Errors
    /// When it does not start, or takes no project or token.
    pub async fn start(&self, program: Program, wrapper: &[OsString]) -> Result<Proxy> {
        match program {
            Program::Bare | Program::BareJemalloc => self.start_bare(program, wrapper).await,
            Program::LlmProxy => self.start_llm_proxy(program, "durable", wrapper).await,
            Program::LlmProxyLossy => self.start_llm_proxy(program, "lossy", wrapper).await,
        }
    }

    fn child(&self, program: Program, wrapper: &[OsString], arguments: &[OsString], dir: &Path) -> Result<Child> {
        Child::start(&Launch {
            name: program.name(),
            cpu: self.proxy_cpu,
            wrapper,
            program: &self.programs.join(program.file()),
            arguments,
            dir,
        })
    }

    async fn start_bare(&self, program: Program, wrapper: &[OsString]) -> Result<Proxy> {
        let addr = free_addr()?;
        let arguments: [OsString; 2] = [addr.to_string().into(), self.mock_addr.to_string().into()];
        let mut child = self.child(program, wrapper, &arguments, self.folder())?;
        child.accepts(addr).await?;
        let lane =
            Lane { name: program.file(), addr, credential: PROVIDER_KEY.to_owned(), pid: child.pid(), records: None };
        Ok(Proxy { lanes: vec![lane], _child: child })
    }

    async fn start_llm_proxy(&self, program: Program, journal_mode: &str, wrapper: &[OsString]) -> Result<Proxy> {
        // Each start has a folder of its own, so that nothing of an earlier one is read.
        let dir = tempfile::tempdir_in(self.folder())?.keep();
        let data_dir = dir.join("data");
        let config = dir.join("llm-proxy.yaml");
        let apis = format!(
            "apis:\n  openai:\n    base_url: http://{}\n    allowed_endpoints: [/v1/chat/completions, /v1/models]\n    \
             allowed_methods: [GET, POST]\n",
            self.mock_addr
        );
        std::fs::write(&config, apis)?;
        let (addr, admin_addr) = (free_addr()?, free_addr()?);
        let arguments: [OsString; 11] = [
            "server".into(),
            "--config".into(),
            config.into(),
            "--listen-addr".into(),
            addr.to_string().into(),
            "--admin-listen-addr".into(),
            admin_addr.to_string().into(),
            "--data-dir".into(),
            data_dir.clone().into(),
            "--journal-mode".into(),
            journal_mode.into(),
        ];
        let mut child = self.child(program, wrapper, &arguments, &dir)?;
        child.accepts(addr).await?;
        child.accepts(admin_addr).await?;
        while !is_ready(admin_addr).await {
            child.wait_a_little().await?;
        }

        let management_token = std::fs::read_to_string(data_dir.join("management_token"))?;
        let admin = Admin { addr: admin_addr, token: management_token.trim() };
        let project = json!({ "name": "bench", "provider_keys": [{ "api": "openai", "key": PROVIDER_KEY }] });
        let project = admin.create("/manage/projects", &project, "id").await?;
        let mut limits = json!({
            "project_id": project,
            "duration_minutes": 24 * 60,
            "max_requests": MAX_REQUESTS,
            "requests_per_minute": REQUESTS_PER_MINUTE,
        });
        let streamed_through = admin.create("/manage/tokens", &limits, "token").await?;
        if let Some(limits) = limits.as_object_mut() {
            limits.insert("allowed_models".to_owned(), json!(["gpt-4o*"]));
        }
        let with_model_list = admin.create("/manage/tokens", &limits, "token").await?;

        // Each of these changes has its record too.
        const CHANGES: u64 = 3;
        let records = Rc::new(Records::new(data_dir.join("events.jsonl"), CHANGES));
        let lane =
            |name, credential| Lane { name, addr, credential, pid: child.pid(), records: Some(Rc::clone(&records)) };
        let lanes = match program {
            Program::LlmProxyLossy => vec![lane("llm-proxy, lossy journal", with_model_list)],
            _ => vec![lane("llm-proxy", with_model_list), lane("llm-proxy, no model list", streamed_through)],
        };
        Ok(Proxy { lanes, _child: child })
    }
}

/// Where the release programs are: beside this one, unless `LLM_PROXY_BIN_DIR` says otherwise.
fn programs() -> Result<PathBuf> {
    let dir = match std::env::var_os("LLM_PROXY_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let own = std::env::current_exe().context("the place of this program is unknown")?;
            own.parent().context("this program is in no folder")?.to_owned()
        }
    };
    // Children have another working directory.
    std::path::absolute(&dir).with_context(|| format!("{} is no folder", dir.display()))
}

/// A free address on loopback. Somebody else could take it before the candidate does; the candidate then says so.
fn free_addr() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("loopback cannot be listened on")?;
    Ok(listener.local_addr()?)
}

async fn is_ready(admin_addr: SocketAddr) -> bool {
    let request = format!("GET /health/ready HTTP/1.1\r\nhost: {admin_addr}\r\nconnection: close\r\n\r\n");
    generate::fetch(admin_addr, request.as_bytes()).await.is_ok_and(|reply| reply.status == 200)
}

/// The management API of a running llm-proxy.
struct Admin<'a> {
    addr: SocketAddr,
    token: &'a str,
}

impl Admin<'_> {
    /// Makes a resource and returns one text field of it.
    async fn create(&self, target: &str, body: &Value, field: &str) -> Result<String> {
        let (addr, token, body) = (self.addr, self.token, body.to_string());
        let request = format!(
            "POST {target} HTTP/1.1\r\nhost: {addr}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let reply = generate::fetch(addr, request.as_bytes()).await.with_context(|| format!("POST {target}"))?;
        let answer = String::from_utf8_lossy(&reply.body);
        ensure!(reply.status == 201, "POST {target} was answered with {}: {answer}", reply.status);
        let answer: Value = serde_json::from_str(&answer).with_context(|| format!("POST {target}"))?;
        let value = answer.get(field).and_then(Value::as_str);
        Ok(value.with_context(|| format!("POST {target} was answered without `{field}`"))?.to_owned())
    }
}
