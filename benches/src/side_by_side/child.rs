//! Processes of a measurement: each on a CPU of its own choosing, with nothing of the caller's environment that could
//! change what it does, and gone when the measurement is.

use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::net::TcpStream;

/// Longest start of a process. Under callgrind everything takes fifty times as long.
const START_LIMIT: Duration = Duration::from_secs(180);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What children see of the environment. Settings of llm-proxy are not among it.
const KEPT_VARIABLES: [&str; 3] = ["PATH", "HOME", "TMPDIR"];
/// Lines of a log shown when its process ends too soon.
const SHOWN_LINES: usize = 5;

/// What to start, and where.
pub struct Launch<'a> {
    /// For messages, and the name of its log in `dir`.
    pub name: &'a str,
    /// The only CPU that it may use.
    pub cpu: usize,
    /// A program and arguments that run the program, such as valgrind; mostly empty.
    pub wrapper: &'a [OsString],
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: &'a [OsString],
    /// Its working directory.
    pub dir: &'a Path,
}

/// A running process. Dropping it kills it and waits for its end.
pub struct Child {
    name: String,
    process: std::process::Child,
    log: PathBuf,
    started: Instant,
}

impl Child {
    /// Starts a process. Its output goes to a log.
    ///
    /// # Errors
    /// When the program or `taskset` is missing.
    pub fn start(launch: &Launch<'_>) -> Result<Self> {
        ensure!(launch.program.is_file(), "{} is missing; build it first (README.md)", launch.program.display());
        let log = launch.dir.join(format!("{}.log", launch.name));
        let out = File::create(&log).with_context(|| format!("{} cannot be made", log.display()))?;
        let process = command("taskset")
            .args(["-c", &launch.cpu.to_string()])
            .args(launch.wrapper)
            .arg(launch.program)
            .args(launch.arguments)
            .current_dir(launch.dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("taskset (package util-linux) cannot be run")?;
        Ok(Self { name: launch.name.to_owned(), process, log, started: Instant::now() })
    }

    /// Its process id: `taskset` and valgrind become the program, they do not start it.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until somebody listens there.
    ///
    /// # Errors
    /// When the process ends before that, or takes longer than three minutes.
    pub async fn accepts(&mut self, addr: SocketAddr) -> Result<()> {
        while TcpStream::connect(addr).await.is_err() {
            self.wait_a_little().await?;
        }
        Ok(())
    }

    /// Waits for a line of its log that begins like this and returns the rest of the line.
    ///
    /// # Errors
    /// When the process ends before that, or takes longer than three minutes.
    pub async fn says(&mut self, beginning: &str) -> Result<String> {
        loop {
            let log = std::fs::read_to_string(&self.log)?;
            let mut whole_lines = log.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            if let Some(rest) = whole_lines.find_map(|line| line.strip_prefix(beginning)) {
                return Ok(rest.to_owned());
            }
            self.wait_a_little().await?;
        }
    }

    /// One pause in the wait for something that the process does when it has started.
    ///
    /// # Errors
    /// When there is nothing to wait for any more.
    pub async fn wait_a_little(&mut self) -> Result<()> {
        if let Some(status) = self.process.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let mut last: Vec<&str> = log.lines().rev().take(SHOWN_LINES).collect();
            last.reverse();
            bail!("{} ended too soon ({status}): {}", self.name, last.join(" | "));
        }
        ensure!(self.started.elapsed() < START_LIMIT, "{} did not start within {START_LIMIT:?}", self.name);
        tokio::time::sleep(LOOK_AGAIN).await;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A command that sees the same environment as the processes measured.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    command.envs(KEPT_VARIABLES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command
}

/// Moves this process, and what it starts from now on, to one CPU.
///
/// # Errors
/// When there is no such CPU or no `taskset`.
pub fn pin_self(cpu: usize) -> Result<()> {
    let output = command("taskset")
        .args(["-a", "-c", "-p", &cpu.to_string(), &std::process::id().to_string()])
        .output()
        .context("taskset (package util-linux) cannot be run")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "CPU {cpu} cannot be used: {}", complaint.trim());
    Ok(())
}
