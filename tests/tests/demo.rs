//! `llm-proxy demo`: what it prints works when it is pasted, in any directory, also after a restart, and fits the
//! providers that answer; a taken port is one clear line, and of generated secrets the place is told, never the value.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use llm_proxy_load::mock::{Mock, MockOptions};
use llm_proxy_tests::{Provider, binary};

/// A running demo and what it printed. Killed when dropped.
struct Demo {
    child: Child,
    printed: String,
}

impl Demo {
    fn command(dir: &Path, listen: &str) -> Command {
        let mut command = Command::new(binary());
        command.args(["demo", "--listen-addr", listen, "--admin-listen-addr", "127.0.0.1:0", "--data-dir"]);
        // With an empty environment secrets are generated and providers played.
        command.arg(dir).current_dir(dir).env_clear().stdin(Stdio::null());
        command
    }

    fn start(dir: &Path, variables: &[(&str, &str)]) -> Self {
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let mut command = Self::command(dir, "127.0.0.1:0");
        let mut child = command.envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
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

    /// The printed commands that have this in them.
    fn commands(&self, part: &str) -> Vec<String> {
        let mut commands: Vec<String> = Vec::new();
        let mut goes_on = false;
        for line in self.printed.lines() {
            if !goes_on && line.starts_with("  ") {
                commands.push(String::new());
            }
            if let Some(command) = commands.last_mut().filter(|command| goes_on || command.is_empty()) {
                command.push_str(line);
                command.push('\n');
            }
            goes_on = line.ends_with('\\');
        }
        commands.retain(|command| command.contains(part));
        commands
    }

    /// The only one that has this in it.
    fn command_with(&self, part: &str) -> String {
        let commands = self.commands(part);
        assert_eq!(commands.len(), 1, "{part}: {}", self.printed);
        commands[0].clone()
    }

    /// The lines of code that are printed for a language.
    fn snippet(&self, language: &str) -> String {
        let (_, after) = self.printed.split_once(&format!("\n{language}, `")).expect("a snippet is printed");
        after.split("\n\n").nth(1).unwrap().to_owned() + "\n"
    }

    fn address(&self) -> &str {
        self.addresses()[0]
    }

    /// Of the data plane and of the admin plane.
    fn addresses(&self) -> [&str; 2] {
        let mut found = self.printed.split("http://").skip(1).map(|rest| rest.split([',', ' ', '\n']).next().unwrap());
        [found.next().unwrap(), found.next().unwrap().trim_end_matches('.')]
    }

    fn token(&self) -> &str {
        let start = self.printed.find("sk-lp-").unwrap();
        self.printed[start..].lines().next().unwrap()
    }

    /// State and requests of each token, and the project of the last.
    fn tokens(&self) -> (Vec<(String, String)>, String) {
        let table = pasted(&self.command_with(" manage token list "));
        let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
        let states = rows.iter().map(|row| (row[2].to_owned(), row[5].to_owned())).collect();
        (states, rows.last().unwrap()[1].to_owned())
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

/// What a shell in another directory gets of a command.
fn pasted(command: &str) -> String {
    let elsewhere = tempfile::tempdir().unwrap();
    let command = command.replacen("  curl ", "curl --silent --show-error --max-time 20 --noproxy '*' ", 1);
    let mut shell = Command::new("bash");
    shell.args(["-c", &command]).current_dir(elsewhere.path()).env_remove("MANAGEMENT_TOKEN").stdin(Stdio::null());
    let done = shell.output().unwrap();
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn what_the_demo_prints_works_when_pasted_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut last_token = None;
    for (start, expected) in [
        ("the first", &[("active", "2")][..]),
        // Its own token was replaced, somebody else's lives on.
        ("another", &[("revoked", "2"), ("active", "0"), ("active", "2")]),
    ] {
        let demo = Demo::start(dir.path(), &[]);
        let curls = demo.commands("  curl ");
        let answers: Vec<_> = curls.iter().map(|curl| pasted(curl)).collect();
        assert_eq!(answers.len(), 2, "{}", demo.printed);
        assert!(answers[0].contains("\"object\": \"chat.completion\""), "{start} start: {}", answers[0]);
        assert!(answers[1].contains("\"type\":\"message\""), "{start} start: {}", answers[1]);
        for line in ["from openai import OpenAI", "import Anthropic from \"@anthropic-ai/sdk\";"] {
            assert!(demo.printed.contains(&format!("\n{line}\n")), "not at the start of a line: {line}");
        }

        let (tokens, project) = demo.tokens();
        let expected: Vec<_> =
            expected.iter().map(|(state, requests)| ((*state).to_owned(), (*requests).to_owned())).collect();
        assert_eq!(tokens, expected, "{start} start");
        if let Some(last_token) = last_token.replace(demo.token().to_owned()) {
            let refused = pasted(&curls[0].replace(demo.token(), &last_token));
            assert!(refused.contains("\"token_revoked\""), "{refused}");
        } else {
            let create = format!(" manage token create --project {project} --duration 1h ");
            pasted(&demo.command_with(" manage token list ").replace(" manage token list ", &create));
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
        let tail = demo.command_with("  tail -f ");
        demo.stop();
        let events = std::fs::read_to_string(tail.trim().strip_prefix("tail -f ").unwrap()).unwrap();
        let records = if start == "the first" { 2 } else { 5 };
        let exchanges = events.lines().filter(|line| line.contains(r#""type":"exchange""#)).count();
        assert_eq!(exchanges, records, "each request left its record: {events}");
    }
}

#[test]
fn with_a_real_key_everything_printed_is_for_that_provider() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let real = runtime.block_on(Mock::start(MockOptions::default())).unwrap();
    for (provider, variable, answer, sdks) in [
        (Provider::OpenAi, "OPENAI_API_KEY", "\"chat.completion\"", ["from openai ", "from \"openai\";"]),
        (Provider::Anthropic, "ANTHROPIC_API_KEY", "\"message\"", ["from anthropic ", "from \"@anthropic-ai/sdk\";"]),
        (Provider::Gemini, "GEMINI_API_KEY", "\"candidates\"", ["from google ", "from \"@google/genai\";"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let base_url = format!("base_url: http://{}", real.addr());
        let yaml = format!("apis:\n  openai: {{{base_url}}}\n  anthropic: {{{base_url}}}\n  gemini: {{{base_url}}}\n");
        std::fs::write(dir.path().join("llm-proxy.yaml"), yaml).unwrap();
        let demo = Demo::start(dir.path(), &[(variable, provider.key())]);
        let told = format!("\nProvider: the real one answers for {}; a built-in mock", provider.name());
        assert!(demo.printed.contains(&told) && !demo.printed.contains(provider.key()), "{}", demo.printed);

        let before = real.stats().requests;
        let text = pasted(&demo.command_with("  curl "));
        assert!(text.contains(answer), "{provider:?}: {text}");
        assert_eq!(real.stats().requests, before + 1, "{provider:?}: the real provider was not asked");

        let [python, node] = ["Python", "Node"].map(|language| demo.snippet(language));
        assert!(python.contains(sdks[0]) && node.contains(sdks[1]), "{provider:?}: {python}\n{node}");
        let (python_file, node_file) = (dir.path().join("demo.py"), dir.path().join("demo.mjs"));
        std::fs::write(&python_file, &python).unwrap();
        std::fs::write(&node_file, &node).unwrap();
        let parse = "import ast, sys; ast.parse(open(sys.argv[1]).read())";
        let parsed = Command::new("python3").args(["-c", parse]).arg(&python_file).status().unwrap();
        assert!(parsed.success(), "{provider:?}: {python}");
        let parsed = Command::new("node").arg("--check").arg(&node_file).status().unwrap();
        assert!(parsed.success(), "{provider:?}: {node}");
        demo.stop();
    }
}

#[test]
fn the_readme_shows_what_the_demo_prints() {
    let dir = tempfile::tempdir().unwrap();
    let demo = Demo::start(dir.path(), &[]);
    let [data, admin] = demo.addresses();
    let printed = demo.printed.replace(data, "127.0.0.1:8080").replace(admin, "127.0.0.1:8081");
    let printed = printed.replace(demo.token(), "sk-lp-…");
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let shown = readme.split_once("```text\n").unwrap().1.split_once("\n```").unwrap().0;
    assert!(printed.trim_start().starts_with(shown), "the README has:\n{shown}\nthe demo printed:\n{printed}");
    demo.stop();
}
