//! What the demo prints. All of it is there to be pasted, so it fits what runs: the providers that answer, with their
//! own paths, headers and SDKs, the addresses and paths of this start, and this binary where no `PATH` leads to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use llm_proxy_core::dialect::Dialect;

use super::TOKEN_HOURS;

/// The version of Azure's API in paths.
const AZURE_VERSION: &str = "2024-10-21";

/// What is known of the demo before it runs.
pub(super) struct Welcome {
    /// Its directory.
    pub(super) data_dir: PathBuf,
    /// Whether the management token is in that directory, and not in a setting.
    pub(super) has_token_file: bool,
    /// The APIs whose real provider answers.
    pub(super) real: Vec<String>,
    /// The APIs that the mock answers for.
    pub(super) mocked: Vec<String>,
    /// What snippets are shown for: the real providers, else what the mock plays. Never empty.
    pub(super) shown: Vec<Dialect>,
}

impl Welcome {
    /// The whole text. Its last line tells a program that reads along that it has it all.
    pub(super) fn text(&self, data: SocketAddr, admin: SocketAddr, token: &str) -> String {
        let (data, admin) = (reachable(data), reachable(admin));
        let mut text = format!(
            "\n\
            llm-proxy is running. Apps connect to http://{data}, the management API is on http://{admin}.\n\
            Provider: {}.\n\
            \n\
            A token for you, good for {TOKEN_HOURS} hours or until the demo starts again:\n\
            \n  {token}\n\
            \n\
            Try it:\n",
            self.who_answers()
        );
        for dialect in &self.shown {
            text.push_str(&format!("\n{}", curl(*dialect, data, token)));
        }
        // Of two providers each has a snippet: the first in Python, the last in Node.
        if let (Some(first), Some(last)) = (self.shown.first(), self.shown.last()) {
            text.push_str(&format!("\n{}\n{}", python(*first, data, token), node(*last, data, token)));
        }
        let needed =
            if self.has_token_file { "" } else { "; the second line needs MANAGEMENT_TOKEN as it is set here" };
        text.push_str(&format!(
            "\n\
            Each request leaves a line in events.jsonl and counts for its token{needed}:\n\
            \n  tail -f {}\n  {}\n\
            \n\
            Stop with Ctrl-C.\n",
            quoted(&self.data_dir.join("events.jsonl").display().to_string()),
            self.list_tokens(admin)
        ));
        text
    }

    fn who_answers(&self) -> String {
        if self.real.is_empty() {
            return "a built-in mock provider answers; set OPENAI_API_KEY, ANTHROPIC_API_KEY or GEMINI_API_KEY to use \
                    the real one"
                .to_owned();
        }
        let real = format!("the real one answers for {}", self.real.join(", "));
        if self.mocked.is_empty() {
            return real;
        }
        format!("{real}; a built-in mock provider for {}", self.mocked.join(", "))
    }

    /// The command that lists the demo's tokens, from whatever directory.
    fn list_tokens(&self, admin: SocketAddr) -> String {
        let mut command = format!("{} manage token list --admin-url http://{admin}", program());
        if self.has_token_file {
            command.push_str(&format!(" --data-dir {}", quoted(&self.data_dir.display().to_string())));
        }
        command
    }
}

/// Where this machine finds a listener: one that listens on every address, on its own.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(every) if every.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(every) if every.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        one => one,
    };
    SocketAddr::new(ip, address.port())
}

/// What a shell calls this binary by: its name where the `PATH` leads to it, else its path.
fn program() -> String {
    const NAME: &str = "llm-proxy";
    let Ok(this) = std::env::current_exe() else { return NAME.to_owned() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join(NAME)).find(|file| file.is_file());
    match found.and_then(|found| found.canonicalize().ok()) {
        Some(found) if found == this => NAME.to_owned(),
        _ => quoted(&this.display().to_string()),
    }
}

/// The text as one word of a shell (POSIX, XCU §2.2.2).
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%=,".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A small model that the provider recommends today and the shipped table has a price for. Azure's is the name of a
/// deployment.
const fn model(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::OpenAi | Dialect::Azure => "gpt-6-luna",
        Dialect::Anthropic => "claude-haiku-5-5",
        Dialect::Gemini => "gemini-3.8-flash",
    }
}

fn curl(dialect: Dialect, data: SocketAddr, token: &str) -> String {
    let model = model(dialect);
    let hello = r#""messages": [{"role": "user", "content": "Hello"}]"#;
    let (path, headers, body) = match dialect {
        Dialect::OpenAi => (
            "v1/chat/completions".to_owned(),
            vec![format!("Authorization: Bearer {token}")],
            format!(r#"{{"model": "{model}", {hello}}}"#),
        ),
        Dialect::Anthropic => (
            "v1/messages".to_owned(),
            vec![format!("x-api-key: {token}"), "anthropic-version: 2023-06-01".to_owned()],
            format!(r#"{{"model": "{model}", "max_tokens": 100, {hello}}}"#),
        ),
        Dialect::Gemini => (
            format!("v1beta/models/{model}:generateContent"),
            vec![format!("x-goog-api-key: {token}")],
            r#"{"contents": [{"parts": [{"text": "Hello"}]}]}"#.to_owned(),
        ),
        Dialect::Azure => (
            format!("openai/deployments/{model}/chat/completions?api-version={AZURE_VERSION}"),
            vec![format!("api-key: {token}")],
            format!("{{{hello}}}"),
        ),
    };
    // A question mark is a pattern to some shells.
    let mut text = format!("  curl {}", quoted(&format!("http://{data}/{path}")));
    for header in headers.iter().map(String::as_str).chain(["Content-Type: application/json"]) {
        text.push_str(&format!(" \\\n    -H \"{header}\""));
    }
    text.push_str(&format!(" \\\n    -d '{body}'\n"));
    text
}

fn python(dialect: Dialect, data: SocketAddr, token: &str) -> String {
    let model = model(dialect);
    let streamed = format!(
        r#"for chunk in client.chat.completions.create(model="{model}", stream=True,
                                            messages=[{{"role": "user", "content": "Hello"}}]):
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
"#
    );
    match dialect {
        Dialect::OpenAi => format!(
            r#"Python, `pip install openai`:

from openai import OpenAI
client = OpenAI(base_url="http://{data}/v1", api_key="{token}")
{streamed}"#
        ),
        Dialect::Azure => format!(
            r#"Python, `pip install openai`:

from openai import AzureOpenAI
client = AzureOpenAI(azure_endpoint="http://{data}", api_key="{token}", api_version="{AZURE_VERSION}")
{streamed}"#
        ),
        Dialect::Anthropic => format!(
            r#"Python, `pip install anthropic`:

from anthropic import Anthropic
client = Anthropic(base_url="http://{data}", api_key="{token}")
with client.messages.stream(model="{model}", max_tokens=100,
                            messages=[{{"role": "user", "content": "Hello"}}]) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
"#
        ),
        Dialect::Gemini => format!(
            r#"Python, `pip install google-genai`:

from google import genai
client = genai.Client(api_key="{token}", http_options={{"base_url": "http://{data}"}})
for chunk in client.models.generate_content_stream(model="{model}", contents="Hello"):
    print(chunk.text or "", end="", flush=True)
"#
        ),
    }
}

fn node(dialect: Dialect, data: SocketAddr, token: &str) -> String {
    let model = model(dialect);
    let streamed = format!(
        r#"const stream = await client.chat.completions.create({{
  model: "{model}", stream: true, messages: [{{ role: "user", content: "Hello" }}] }});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
"#
    );
    match dialect {
        Dialect::OpenAi => format!(
            r#"Node, `npm install openai`, saved as demo.mjs:

import OpenAI from "openai";
const client = new OpenAI({{ baseURL: "http://{data}/v1", apiKey: "{token}" }});
{streamed}"#
        ),
        Dialect::Azure => format!(
            r#"Node, `npm install openai`, saved as demo.mjs:

import {{ AzureOpenAI }} from "openai";
const client = new AzureOpenAI({{
  endpoint: "http://{data}", apiKey: "{token}", apiVersion: "{AZURE_VERSION}" }});
{streamed}"#
        ),
        Dialect::Anthropic => format!(
            r#"Node, `npm install @anthropic-ai/sdk`, saved as demo.mjs:

import Anthropic from "@anthropic-ai/sdk";
const client = new Anthropic({{ baseURL: "http://{data}", apiKey: "{token}" }});
console.log(await client.messages.create({{
  model: "{model}", max_tokens: 100, messages: [{{ role: "user", content: "Hello" }}] }}));
"#
        ),
        Dialect::Gemini => format!(
            r#"Node, `npm install @google/genai`, saved as demo.mjs:

import {{ GoogleGenAI }} from "@google/genai";
const client = new GoogleGenAI({{ apiKey: "{token}", httpOptions: {{ baseUrl: "http://{data}" }} }});
const answer = await client.models.generateContent({{ model: "{model}", contents: "Hello" }});
console.log(answer.text);
"#
        ),
    }
}

#[cfg(test)]
mod tests {
    use llm_proxy_core::prices::PriceTable;
    use llm_proxy_core::usage::{Number, Source, Usage};

    use super::*;

    fn text(shown: &[Dialect], real: &[&str], mocked: &[&str], has_token_file: bool) -> String {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (real, mocked) = (names(real), names(mocked));
        let welcome =
            Welcome { data_dir: PathBuf::from("/a b/demo"), has_token_file, real, mocked, shown: shown.to_vec() };
        welcome.text(SocketAddr::from(([0, 0, 0, 0], 8080)), SocketAddr::from(([127, 0, 0, 1], 8081)), "sk-lp-x")
    }

    #[test]
    fn snippets_are_those_of_the_providers_that_answer() {
        const OPENAI: &str = "/v1/chat/completions";
        const ANTHROPIC: &str = "/v1/messages";
        const GEMINI: &str = "/v1beta/models/gemini-3.8-flash:generateContent";
        for (shown, paths, sdks) in [
            (
                &[Dialect::OpenAi, Dialect::Anthropic] as &[Dialect],
                &[OPENAI, ANTHROPIC] as &[&str],
                ["from openai import OpenAI", "import Anthropic from \"@anthropic-ai/sdk\";"],
            ),
            (&[Dialect::OpenAi], &[OPENAI], ["from openai import OpenAI", "import OpenAI from \"openai\";"]),
            (
                &[Dialect::Anthropic],
                &[ANTHROPIC],
                ["from anthropic import Anthropic", "import Anthropic from \"@anthropic-ai/sdk\";"],
            ),
            (
                &[Dialect::Gemini],
                &[GEMINI],
                ["from google import genai", "import { GoogleGenAI } from \"@google/genai\";"],
            ),
            (
                &[Dialect::OpenAi, Dialect::Anthropic, Dialect::Gemini],
                &[OPENAI, ANTHROPIC, GEMINI],
                ["from openai import OpenAI", "import { GoogleGenAI } from \"@google/genai\";"],
            ),
        ] {
            let text = text(shown, &[], &["x"], true);
            let curls: Vec<_> = text.lines().filter(|line| line.starts_with("  curl ")).collect();
            let expected: Vec<_> = paths.iter().map(|path| format!("  curl http://127.0.0.1:8080{path} \\")).collect();
            assert_eq!(curls, expected, "{shown:?}");
            for sdk in sdks {
                assert!(text.lines().any(|line| line == sdk), "{shown:?}: {sdk}: {text}");
            }
            assert!(text.ends_with("\nStop with Ctrl-C.\n") && !text.contains("\n\n\n"), "{text}");
        }
    }

    #[test]
    fn who_answers_is_told() {
        for (real, mocked, told) in [
            (&[] as &[&str], &["openai"] as &[&str], "a built-in mock provider answers; set OPENAI_API_KEY, "),
            (
                &["openai"],
                &["gemini", "x"],
                "the real one answers for openai; a built-in mock provider for gemini, x.\n",
            ),
            (&["openai", "gemini"], &[], "the real one answers for openai, gemini.\n"),
        ] {
            let text = text(&[Dialect::OpenAi], real, mocked, true);
            assert!(text.contains(&format!("\nProvider: {told}")), "{told}: {text}");
        }
    }

    #[test]
    fn what_is_recorded_and_counted_can_be_looked_at() {
        let told = text(&[Dialect::OpenAi], &[], &["openai"], true);
        assert!(told.contains("\n  tail -f '/a b/demo/events.jsonl'\n"), "{told}");
        let list = " manage token list --admin-url http://127.0.0.1:8081 --data-dir '/a b/demo'\n";
        assert!(told.contains(list) && !told.contains("needs MANAGEMENT_TOKEN"), "{told}");
        let told = text(&[Dialect::OpenAi], &[], &["openai"], false);
        assert!(told.contains(" manage token list --admin-url http://127.0.0.1:8081\n"), "{told}");
        assert!(told.contains("needs MANAGEMENT_TOKEN"), "{told}");
    }

    #[test]
    fn every_model_shown_has_a_price() {
        let number = Some(Number { tokens: 1000, source: Source::Reported });
        let usage = Usage { input_tokens: number, output_tokens: number, ..Usage::default() };
        for dialect in Dialect::ALL {
            let cost = PriceTable::shipped().cost(dialect, Some(model(dialect)), None, &usage);
            assert!(cost.is_some(), "{dialect}: {}", model(dialect));
        }
    }

    #[test]
    fn a_listener_on_every_address_is_reached_on_this_machine_s_own() {
        for (listens, reached) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("127.0.0.2:1", "127.0.0.2:1"),
            ("[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(reachable(listens.parse().unwrap()).to_string(), reached);
        }
    }

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        for (text, word) in
            [("/a/b-1.c", "/a/b-1.c"), ("/a b", "'/a b'"), ("it's", r"'it'\''s'"), ("$(x)", "'$(x)'"), ("", "''")]
        {
            assert_eq!(quoted(text), word);
        }
    }
}
