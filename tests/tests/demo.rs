//! `llm-proxy demo`: what it prints works when it is pasted, also after a restart; a taken port is one clear line,
//! and of generated secrets the place is told, never the value.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use llm_proxy_tests::binary;

/// A running demo and what it printed. Killed when dropped.
struct Demo {
    child: Child,
    printed: String,
}

impl Demo {
    fn command(dir: &Path, listen: &str) -> Command {
        let mut command = Command::new(binary());
        command.args(["demo", "--listen-addr", listen, "--admin-listen-addr", "127.0.0.1:0", "--data-dir"]);
        command.arg(dir).current_dir(dir).stdin(Stdio::null());
        for key in ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"] {
            command.env_remove(key);
        }
        // Generated, then.
        command.env_remove("MANAGEMENT_TOKEN").env_remove("ROOT_KEY");
        command
    }

    fn start(dir: &Path) -> Self {
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let mut child = Self::command(dir, "127.0.0.1:0").stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut printed = String::new();
        // The process ends its output with this line, or ends.
        while !printed.contains("Stop with Ctrl-C.") {
            let line = lines.next().unwrap_or_else(|| panic!("the demo ended: {printed}")).unwrap();
            printed.push_str(&line);
            printed.push('\n');
        }
        Self { child, printed }
    }

    /// Runs the printed curl as a shell does.
    fn paste_curl(&self) -> Output {
        let start = self.printed.find("  curl ").expect("a curl line is printed");
        let curl = self.printed[start..].split("\n\n").next().unwrap();
        Command::new("bash")
            .args(["-c", &curl.replacen("curl", "curl --silent --show-error --max-time 20", 1)])
            .output()
            .unwrap()
    }

    fn address(&self) -> &str {
        let start = self.printed.find("http://").unwrap() + "http://".len();
        self.printed[start..].split([',', ' ', '\n']).next().unwrap()
    }

    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success(), "it ends by itself");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_the_demo_prints_works_when_pasted_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for start in ["the first", "another"] {
        let demo = Demo::start(dir.path());
        let answer = demo.paste_curl();
        let text = String::from_utf8_lossy(&answer.stdout);
        assert!(text.contains("\"object\": \"chat.completion\""), "{start} start: {text}");
        for line in ["from openai import OpenAI", "import Anthropic from \"@anthropic-ai/sdk\";"] {
            assert!(demo.printed.contains(&format!("\n{line}\n")), "not at the start of a line: {line}");
        }

        let taken = Demo::command(&dir.path().join("."), demo.address()).output().unwrap();
        let told = String::from_utf8_lossy(&taken.stderr);
        assert!(!taken.status.success() && told.lines().count() == 1 && told.contains("is taken"), "{told}");
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        for secret in ["management_token", "root_key"] {
            let value = std::fs::read_to_string(dir.path().join("demo").join(secret)).unwrap();
            assert!(log.contains(secret), "the log does not say where it is: {log}");
            assert!(!log.contains(value.trim()) && !demo.printed.contains(value.trim()), "{secret} was shown");
        }
        demo.stop();
    }
    let events = std::fs::read_to_string(dir.path().join("demo/events.jsonl")).unwrap();
    assert_eq!(events.lines().count(), 2, "each request left its record: {events}");
}
