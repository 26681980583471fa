//! A process beside the product, which can be killed and started again.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use llm_proxy_tests::eventually;

/// One that runs, or is about to be started again. Dropping it kills it.
pub struct Process {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
    folder: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts it in this folder, where its log goes too.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn start(
        name: &'static str,
        program: PathBuf,
        arguments: &[&str],
        variables: Vec<(&'static str, String)>,
        folder: &Path,
    ) -> io::Result<Self> {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut process = Self { name, program, arguments, variables, folder: folder.to_owned(), child: None };
        process.child = Some(process.spawn()?);
        Ok(process)
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    /// What it has written so far, over restarts.
    pub fn log(&self) -> String {
        std::fs::read(self.log_path())
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    /// `kill -9`, and waits until it is dead.
    ///
    /// # Panics
    /// When it was dead already.
    pub fn kill9(&mut self) {
        assert!(!self.has_ended(), "the {} has ended by itself:\n{}", self.name, self.log());
        self.stop();
    }

    /// Starts it again. What still runs is killed.
    pub fn restart(&mut self) {
        self.stop();
        self.child = Some(self.spawn().unwrap());
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Panics
    /// When it does not end within that time, or was dead already.
    pub async fn sigterm(&mut self, within: Duration) -> ExitStatus {
        assert!(!self.has_ended(), "the {} has ended by itself:\n{}", self.name, self.log());
        let child = self.child.as_mut().unwrap();
        let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill -TERM");
        eventually(within, "the process ends", async || child.try_wait().unwrap()).await
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- the log of the {}:\n{}", self.name, self.log());
        }
    }
}
