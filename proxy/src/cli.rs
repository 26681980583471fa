//! The command line: what can be asked for, and what `--help` teaches.
//!
//! Flags are texts here. What they mean, and whether they are right, is judged where the other layers of settings are
//! judged ([`crate::settings`]), so that a bad value reads the same wherever it stands.
//!
//! No text is wrapped by hand: a paragraph is one line, and clap breaks it at the width of the terminal. What is typed
//! (examples, YAML) must not be broken, so those lines fit the narrowest one.

use std::convert::Infallible;
use std::error::Error as _;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use llm_proxy_core::secret::Secret;

use crate::dispatcher::Source;
use crate::events::EventsCommand;
use crate::manage::ManageCommand;

/// Heads the flags that several commands share, below the command's own.
pub(crate) const GLOBAL: &str = "Global options";

const FILE: &str = "Settings file and providers";
const LISTENERS: &str = "Listeners";
const DATA: &str = "Data and secrets";
const RECORDS: &str = "Records";
const LOG: &str = "Log";
const LIMITS: &str = "Limits";

/// Beyond this width, lines are harder to read than to scroll.
const WIDEST: usize = 100;

const ABOUT: &str = "\
Hands every app, teammate and CI job a token that expires, has limits and can be revoked, instead of your provider \
keys. Apps change one line, the base URL of their SDK; everything else stays byte for byte as the provider sent it.";

const EXAMPLES: &str = "\
Examples:
  # The whole product on this machine, nothing to set up
  llm-proxy demo

  # Run it, with ./llm-proxy.yaml if there is one
  llm-proxy server

  # A project and a token on a running server
  llm-proxy manage project create shop --api-key-env OPENAI_API_KEY
  llm-proxy manage token create --project PROJECT_ID --duration 7d

  # Watch its requests as they end
  llm-proxy events tail

Each command has its own --help; that of server lists the settings.";

const SERVER_EXAMPLES: &str = "\
Every setting is a flag, an environment variable, a line in ./.env and a key of the YAML file. The flag wins over the \
variable, the variable over .env, .env over the file. The key is the variable's name in small letters (listen_addr:). \
An unknown flag or key and a bad value anywhere stop the start with one line that says where.

A duration has a unit: 500ms, 10s, 5m, 1h. A size may have one: 32MiB, 10MB.

Providers with their policies, and where records go, stand in the file alone. Without it, openai, anthropic and gemini \
are served, and records go to events.jsonl in DATA_DIR:

  apis:
    openai:
      allowed_endpoints: [/v1/chat/completions, /v1/models]
    groq:
      dialect: openai
      base_url: https://api.groq.com/openai/v1
  sinks:
    lunary:
      api_key_env: LUNARY_API_KEY

Without MANAGEMENT_TOKEN and ROOT_KEY, the first start makes them and logs where they are. Keep ROOT_KEY: without it \
the provider keys in the database cannot be read.

Examples:
  # For apps on other machines, data in a place of its own
  llm-proxy server --listen-addr 0.0.0.0:8080 --data-dir /var/lib/llm-proxy

  # Everything from a file
  llm-proxy server --config /etc/llm-proxy.yaml";

const DEMO_EXAMPLES: &str = "\
It prints a token, and a curl line and SDK snippets to paste. Everything is kept in the directory demo below the data \
directory. Other settings come from the environment, .env and the YAML file, as for server.

With OPENAI_API_KEY, ANTHROPIC_API_KEY or GEMINI_API_KEY set, the real provider answers instead of the built-in one.

Examples:
  llm-proxy demo

  # Where the usual ports are taken
  llm-proxy demo --listen-addr 127.0.0.1:9090 --admin-listen-addr 127.0.0.1:9091";

const DISPATCHER_EXAMPLES: &str = "\
It reads the settings that the server reads, and brings every event of the journal in DATA_DIR to each sink under sinks:. \
Start the server with DISPATCHER=outside beside it; otherwise the server does this itself, and whoever comes second is \
refused and told who has the sink.

SIGTERM lets it deliver what is there, for DRAIN_TIMEOUT at most. What is left waits, and the next start goes on with it.

Examples:
  # Server and dispatcher side by side, on one machine
  llm-proxy server --dispatcher outside
  llm-proxy dispatcher

  # From a stream in Redis, which the sinks of many servers fill
  llm-proxy dispatcher --from redis --redis-url rediss://redis.example.com";

const VERSION_EXAMPLE: &str = "\
Example:
  llm-proxy version";

/// What was asked for.
#[derive(Parser)]
#[command(
    name = "llm-proxy",
    version,
    about = ABOUT,
    after_help = EXAMPLES,
    arg_required_else_help = true,
    max_term_width = WIDEST,
    disable_help_flag = true,
    disable_version_flag = true
)]
pub struct Cli {
    /// The one thing to do.
    #[command(subcommand)]
    pub command: Command,

    /// Print help
    #[arg(short, long, global = true, action = ArgAction::Help, help_heading = GLOBAL, display_order = 100)]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = GLOBAL, display_order = 101)]
    version: Option<bool>,
}

/// The things that can be done.
#[derive(Subcommand)]
pub enum Command {
    /// Run the proxy: the data plane and the admin plane
    Server(Box<ServerArgs>),
    /// Try the whole product on this machine, with a built-in provider, a project and a fresh token
    Demo(DemoArgs),
    /// Make, list, change and revoke projects and tokens of a running server
    Manage(Box<ManageCommand>),
    /// Watch, find and count what happened, and send it to a sink again
    Events(Box<EventsCommand>),
    /// Bring events to sinks, in a process apart from the server
    Dispatcher(Box<DispatcherArgs>),
    /// Print the version
    #[command(after_help = VERSION_EXAMPLE)]
    Version,
}

/// The flags of `llm-proxy server`: one for every setting.
#[derive(Args, Debug)]
#[command(after_help = SERVER_EXAMPLES)]
pub struct ServerArgs {
    /// The YAML file [env: CONFIG] [default: llm-proxy.yaml if present]
    #[arg(long, value_name = "FILE", help_heading = FILE)]
    config: Option<String>,

    /// Where apps connect [env: LISTEN_ADDR] [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT", help_heading = LISTENERS)]
    listen_addr: Option<String>,

    /// Where management API, health and metrics are [env: ADMIN_LISTEN_ADDR] [default: 127.0.0.1:8081]
    #[arg(long, value_name = "HOST:PORT", help_heading = LISTENERS)]
    admin_listen_addr: Option<String>,

    /// Certificate for LISTEN_ADDR, a PEM file: apps then connect with https [env: TLS_CERT_FILE] [default: none]
    #[arg(long, value_name = "FILE", help_heading = LISTENERS)]
    tls_cert_file: Option<String>,

    /// The certificate's key, a PEM file [env: TLS_KEY_FILE] [default: none]
    #[arg(long, value_name = "FILE", help_heading = LISTENERS)]
    tls_key_file: Option<String>,

    /// Load balancers and proxies that are believed about where a request came from: addresses and networks, with commas
    /// between them [env: TRUSTED_PROXIES] [default: none]
    #[arg(long, value_name = "NETWORKS", help_heading = LISTENERS)]
    trusted_proxies: Option<String>,

    /// on or off: connections to LISTEN_ADDR come from trusted proxies only, and begin with a PROXY protocol header
    /// [env: PROXY_PROTOCOL] [default: off]
    #[arg(long, value_name = "SWITCH", help_heading = LISTENERS)]
    proxy_protocol: Option<String>,

    /// none, truncated or full: how much of the client's address goes into records
    /// [env: RECORD_CLIENT_ADDRESS] [default: none]
    #[arg(long, value_name = "EXTENT", help_heading = LISTENERS)]
    record_client_address: Option<String>,

    /// Database, journal, events.jsonl and generated secrets [env: DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIR", help_heading = DATA)]
    data_dir: Option<String>,

    /// The database, as sqlite:FILE [env: DATABASE_URL] [default: DATA_DIR/llm-proxy.db]
    #[arg(long, value_name = "URL", help_heading = DATA)]
    database_url: Option<String>,

    /// Credential of the management API, 16 to 256 characters; better in its variable, for process lists show flags
    /// [env: MANAGEMENT_TOKEN] [default: generated]
    #[arg(long, value_name = "TOKEN", help_heading = DATA, value_parser = secret)]
    management_token: Option<Secret>,

    /// The key that seals provider keys, 32 bytes in base64; better in its variable, for process lists show flags
    /// [env: ROOT_KEY] [default: generated]
    #[arg(long, value_name = "BASE64", help_heading = DATA, value_parser = secret)]
    root_key: Option<Secret>,

    /// What llm-proxy dispatcher --from redis reads events from; better in its variable, for it may hold a password
    /// [env: REDIS_URL] [default: none]
    #[arg(long, value_name = "URL", help_heading = RECORDS, value_parser = secret)]
    redis_url: Option<Secret>,

    /// strict, durable or lossy: when a record counts as recorded [env: JOURNAL_MODE] [default: durable]
    #[arg(long, value_name = "MODE", help_heading = RECORDS)]
    journal_mode: Option<String>,

    /// Most bytes that the journal takes on disk; none is no bound [env: JOURNAL_MAX_BYTES] [default: none]
    #[arg(long, value_name = "SIZE", help_heading = RECORDS)]
    journal_max_bytes: Option<String>,

    /// inside, or outside: llm-proxy dispatcher then brings events to sinks, and this process does not
    /// [env: DISPATCHER] [default: inside]
    #[arg(long, value_name = "PLACE", help_heading = RECORDS)]
    dispatcher: Option<String>,

    /// error, warn, info, debug or trace [env: LOG_LEVEL] [default: info]
    #[arg(long, value_name = "LEVEL", help_heading = LOG)]
    log_level: Option<String>,

    /// text or json [env: LOG_FORMAT] [default: text on a terminal, else json]
    #[arg(long, value_name = "FORMAT", help_heading = LOG)]
    log_format: Option<String>,

    /// Longest time for a whole request head, up to 720h [env: HEAD_TIMEOUT] [default: 10s]
    #[arg(long, value_name = "DURATION", help_heading = LIMITS)]
    head_timeout: Option<String>,

    /// How long streams may go on after SIGTERM, 0s to 720h [env: DRAIN_TIMEOUT] [default: 30s]
    #[arg(long, value_name = "DURATION", help_heading = LIMITS)]
    drain_timeout: Option<String>,

    /// Request bodies held in memory at once for policies [env: MAX_HELD_BYTES_TOTAL] [default: 512MiB]
    #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
    max_held_bytes_total: Option<String>,

    /// The API that a project's bare api_key belongs to
    /// [env: DEFAULT_API] [default: openai, else the first in the file]
    #[arg(long, value_name = "NAME", help_heading = FILE)]
    default_api: Option<String>,
}

impl ServerArgs {
    /// The given flags by the names of their settings, for [`crate::settings::Settings::load`].
    pub fn into_flags(self) -> Vec<(&'static str, Secret)> {
        let text = |text: Option<String>| text.map(Secret::new);
        [
            ("CONFIG", text(self.config)),
            ("LISTEN_ADDR", text(self.listen_addr)),
            ("ADMIN_LISTEN_ADDR", text(self.admin_listen_addr)),
            ("TLS_CERT_FILE", text(self.tls_cert_file)),
            ("TLS_KEY_FILE", text(self.tls_key_file)),
            ("TRUSTED_PROXIES", text(self.trusted_proxies)),
            ("PROXY_PROTOCOL", text(self.proxy_protocol)),
            ("RECORD_CLIENT_ADDRESS", text(self.record_client_address)),
            ("DATA_DIR", text(self.data_dir)),
            ("DATABASE_URL", text(self.database_url)),
            ("MANAGEMENT_TOKEN", self.management_token),
            ("ROOT_KEY", self.root_key),
            ("REDIS_URL", self.redis_url),
            ("JOURNAL_MODE", text(self.journal_mode)),
            ("JOURNAL_MAX_BYTES", text(self.journal_max_bytes)),
            ("DISPATCHER", text(self.dispatcher)),
            ("LOG_LEVEL", text(self.log_level)),
            ("LOG_FORMAT", text(self.log_format)),
            ("HEAD_TIMEOUT", text(self.head_timeout)),
            ("DRAIN_TIMEOUT", text(self.drain_timeout)),
            ("MAX_HELD_BYTES_TOTAL", text(self.max_held_bytes_total)),
            ("DEFAULT_API", text(self.default_api)),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.map(|given| (name, given)))
        .collect()
    }
}

/// The flags of `llm-proxy demo`. All other settings come from the other layers.
#[derive(Args, Debug)]
#[command(after_help = DEMO_EXAMPLES)]
pub struct DemoArgs {
    /// Where apps connect [env: LISTEN_ADDR] [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    listen_addr: Option<String>,

    /// Where management API, health and metrics are [env: ADMIN_LISTEN_ADDR] [default: 127.0.0.1:8081]
    #[arg(long, value_name = "HOST:PORT")]
    admin_listen_addr: Option<String>,

    /// The demo keeps everything in DIR/demo [env: DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
}

impl DemoArgs {
    /// The given flags by the names of their settings, for [`crate::settings::Settings::load`].
    pub fn into_flags(self) -> Vec<(&'static str, Secret)> {
        [("LISTEN_ADDR", self.listen_addr), ("ADMIN_LISTEN_ADDR", self.admin_listen_addr), ("DATA_DIR", self.data_dir)]
            .into_iter()
            .filter_map(|(name, given)| given.map(|given| (name, Secret::new(given))))
            .collect()
    }
}

/// The flags of `llm-proxy dispatcher`. All other settings come from the other layers.
#[derive(Args, Debug)]
#[command(after_help = DISPATCHER_EXAMPLES)]
pub struct DispatcherArgs {
    /// The YAML file, with the sinks [env: CONFIG] [default: llm-proxy.yaml if present]
    #[arg(long, value_name = "FILE")]
    config: Option<String>,

    /// Where the journal is, and how far each sink has come [env: DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,

    /// Where events come from
    #[arg(long, value_enum, value_name = "PLACE", default_value_t = Origin::Journal)]
    from: Origin,

    /// Redis; better in its variable, for it may hold a password [env: REDIS_URL] [default: none]
    #[arg(long, value_name = "URL", value_parser = secret)]
    redis_url: Option<Secret>,

    /// The stream in Redis [default: llm-proxy:events]
    #[arg(long, value_name = "NAME")]
    redis_stream: Option<String>,

    /// What this process is called among those that read the stream [default: the name of the machine]
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,

    /// How long it may deliver after SIGTERM, 0s to 720h [env: DRAIN_TIMEOUT] [default: 30s]
    #[arg(long, value_name = "DURATION")]
    drain_timeout: Option<String>,

    /// error, warn, info, debug or trace [env: LOG_LEVEL] [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,

    /// text or json [env: LOG_FORMAT] [default: text on a terminal, else json]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Origin {
    Journal,
    Redis,
}

impl DispatcherArgs {
    /// The given flags by the names of their settings, and what only this command knows.
    pub fn into_parts(self) -> (Vec<(&'static str, Secret)>, Source) {
        let text = |text: Option<String>| text.map(Secret::new);
        let flags = [
            ("CONFIG", text(self.config)),
            ("DATA_DIR", text(self.data_dir)),
            ("REDIS_URL", self.redis_url),
            ("DRAIN_TIMEOUT", text(self.drain_timeout)),
            ("LOG_LEVEL", text(self.log_level)),
            ("LOG_FORMAT", text(self.log_format)),
        ];
        let flags = flags.into_iter().filter_map(|(name, given)| given.map(|given| (name, given))).collect();
        let source = match self.from {
            Origin::Journal => Source::Journal,
            Origin::Redis => Source::Redis { stream: self.redis_stream, consumer: self.consumer },
        };
        (flags, source)
    }

    /// A flag that would do nothing was meant to do something.
    fn problem(&self) -> Option<String> {
        let given = [("--redis-stream", self.redis_stream.is_some()), ("--consumer", self.consumer.is_some())];
        let idle = given.into_iter().find(|(_, is_given)| *is_given && self.from == Origin::Journal);
        idle.map(|(flag, _)| format!("{flag}: found it without --from redis, expected both or neither"))
    }
}

/// Makes the flag's value a secret before anything can print it.
fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// Why there is no command to run.
#[derive(Debug)]
pub enum NoCommand {
    /// Help or version was asked for: print this to stdout, exit code 0.
    Asked(String),
    /// The command line is wrong: print this to stderr, exit code 2. One line, or the help where nothing was given.
    Wrong(String),
}

/// Reads the command line, the program's name first.
///
/// # Errors
/// [`NoCommand`], when there is nothing to run.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, NoCommand> {
    let cli = Cli::try_parse_from(arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => NoCommand::Asked(error.render().to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => NoCommand::Wrong(error.render().to_string()),
        _ => NoCommand::Wrong(masked(&format!("llm-proxy: {}", problem(&error)))),
    })?;
    match &cli.command {
        Command::Dispatcher(arguments) => match arguments.problem() {
            Some(problem) => Err(NoCommand::Wrong(format!("llm-proxy: {problem}"))),
            None => Ok(cli),
        },
        _ => Ok(cli),
    }
}

/// Without the tokens in it: what is typed in the wrong place must not end up in a log.
fn masked(text: &str) -> String {
    const PREFIX: &str = "sk-lp-";
    let mut parts = text.split(PREFIX);
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        masked.push_str(PREFIX);
        masked.push('…');
        masked.push_str(part.trim_start_matches(|letter: char| letter.is_ascii_alphanumeric()));
    }
    masked
}

/// What is wrong, as one line.
fn problem(error: &clap::Error) -> String {
    bad_value(error).unwrap_or_else(|| format!("{}{}", one_line(&error.render().to_string()), whose_help(error)))
}

/// A bad value reads as one of a setting does: the flag, what was found, what is expected.
fn bad_value(error: &clap::Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let flag = text(ContextKind::InvalidArg)?.split(' ').next()?;
    let found = text(ContextKind::InvalidValue)?;
    let expected = match (error.kind(), error.get(ContextKind::ValidValue)) {
        (ErrorKind::ValueValidation, _) => error.source()?.to_string(),
        // Nothing found is told better by clap.
        (ErrorKind::InvalidValue, Some(ContextValue::Strings(valid))) if !found.is_empty() => {
            format!("expected {}", valid.join(" or "))
        }
        _ => return None,
    };
    Some(format!("{flag}: found {found:?}, {expected}"))
}

/// Clap's message without its usage text: what was found, and what was probably meant. A list below a colon goes on
/// behind it.
fn one_line(rendered: &str) -> String {
    let mut line = String::new();
    let mut in_list = false;
    for part in rendered.lines().map(str::trim) {
        if part.starts_with("Usage:") || part.starts_with("For more information") {
            break;
        }
        if part.is_empty() {
            in_list = false;
            continue;
        }
        if line.ends_with(':') {
            line.push(' ');
            in_list = true;
        } else if !line.is_empty() {
            line.push_str(if in_list { ", " } else { "; " });
        }
        line.push_str(part.strip_prefix("error: ").or_else(|| part.strip_prefix("tip: ")).unwrap_or(part));
    }
    line
}

/// Which command's `--help` would have told, where clap knows the command.
fn whose_help(error: &clap::Error) -> String {
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else { return String::new() };
    let usage = usage.to_string();
    let words = usage.trim_start_matches("Usage:").split_whitespace();
    let command: Vec<_> = words.take_while(|word| !word.starts_with(['-', '<', '['])).collect();
    if command.is_empty() { String::new() } else { format!(" (see {} --help)", command.join(" ")) }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;
    use crate::settings::{DEFAULT_CONFIG, DEFAULT_DATA_DIR, Loaded, NAMES, Timeouts, load_with};

    fn parsed(arguments: &[&str]) -> Result<Cli, NoCommand> {
        parse(["llm-proxy"].iter().chain(arguments).map(OsString::from))
    }

    fn wrong(arguments: &[&str]) -> String {
        match parsed(arguments) {
            Err(NoCommand::Wrong(text)) => text,
            Err(NoCommand::Asked(text)) => panic!("{arguments:?} is help: {text}"),
            Ok(_) => panic!("{arguments:?} was taken"),
        }
    }

    /// Every command as it helps on a terminal of this width, `help` apart.
    fn commands(width: usize) -> Vec<clap::Command> {
        fn collect(command: &clap::Command, all: &mut Vec<clap::Command>) {
            all.push(command.clone());
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                collect(sub, all);
            }
        }
        let mut cli = Cli::command().term_width(width);
        cli.build();
        let mut all = Vec::new();
        collect(&cli, &mut all);
        all
    }

    fn name(command: &clap::Command) -> String {
        command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned()
    }

    fn after_help(command: &clap::Command) -> String {
        command.get_after_help().map(ToString::to_string).unwrap_or_default()
    }

    #[test]
    fn a_token_in_the_wrong_place_is_not_shown_again() {
        for (text, shown) in [
            ("no token", "no token"),
            ("<ID>: found \"sk-lp-abc123XYZ\", expected its id", "<ID>: found \"sk-lp-…\", expected its id"),
            ("sk-lp-a sk-lp-b", "sk-lp-… sk-lp-…"),
            ("sk-lp-", "sk-lp-…"),
        ] {
            assert_eq!(masked(text), shown);
        }
        let text = wrong(&["manage", "token", "get", "sk-lp-abc123XYZ"]);
        assert!(text.contains("sk-lp-…") && !text.contains("abc123"), "{text}");
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_fits_its_terminal_and_what_is_typed_stays_whole() {
        for width in [80, 100, 120] {
            for mut command in commands(width) {
                let help = command.render_help().to_string();
                for line in help.lines().filter(|line| !line.starts_with("Usage:")) {
                    assert!(line.chars().count() <= width, "{} at {width}: {line}", name(&command));
                }
                for typed in after_help(&command).lines().filter(|line| line.starts_with(' ')) {
                    assert!(help.lines().any(|line| line == typed), "{} at {width}: {typed}", name(&command));
                }
            }
        }
    }

    #[test]
    fn no_paragraph_is_wrapped_by_hand() {
        for command in commands(80) {
            let text = after_help(&command);
            for (line, next) in text.lines().zip(text.lines().skip(1)) {
                let goes_on = !line.is_empty() && !next.is_empty() && !next.starts_with(' ');
                assert!(!goes_on, "{}: {line}\n{next}", name(&command));
            }
        }
    }

    #[test]
    fn every_command_has_an_example_that_it_takes() {
        for command in commands(80) {
            let text = after_help(&command).replace("\\\n", " ");
            let examples: Vec<_> = text.lines().map(str::trim).filter(|line| line.starts_with("llm-proxy ")).collect();
            assert!(examples.iter().any(|example| example.starts_with(&name(&command))), "{}", name(&command));
            for example in examples {
                // What stands for an id is none, but has the form of one.
                let example = example.replace("_ID", "-ID").replace('\'', "");
                let words: Vec<_> = example.split_whitespace().skip(1).collect();
                assert!(parsed(&words).is_ok(), "{example}");
            }
        }
    }

    #[test]
    fn flags_that_commands_share_stand_apart_from_their_own() {
        for command in commands(80) {
            for flag in command.get_arguments() {
                let heading = flag.get_help_heading();
                let expected = flag.is_global_set() || flag.get_id() == "version";
                assert_eq!(heading == Some(GLOBAL), expected, "{}: {flag}", name(&command));
                assert!(heading.is_some() || name(&command) != "llm-proxy server", "{flag} stands under no subject");
            }
        }
    }

    #[test]
    fn every_setting_is_a_flag_of_the_server_and_its_help_names_the_variable() {
        let cli = Cli::command();
        let server = cli.find_subcommand("server").unwrap();
        let flags: Vec<_> = server.get_arguments().collect();
        assert_eq!(flags.len(), NAMES.len());
        for (flag, name) in flags.iter().zip(NAMES) {
            assert_eq!(flag.get_long(), Some(&*name.to_ascii_lowercase().replace('_', "-")));
            let help = flag.get_help().unwrap().to_string();
            assert!(help.contains(&format!(" [env: {name}] [default: ")), "{help}");
        }
    }

    /// Setting and default of each row of a section of `docs/settings.md`.
    fn documented(heading: &str) -> Vec<(String, String)> {
        let document = include_str!("../../docs/settings.md");
        let section = document.split_once(&format!("\n{heading}\n")).unwrap().1;
        let section = section.split("\n## ").next().unwrap();
        let mut rows = Vec::new();
        for line in section.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<_> = line.split(" | ").collect();
            for name in cells[0].trim_start_matches("| ").split(", ") {
                rows.push((name.replace('`', ""), cells[1].replace('`', "")));
            }
        }
        rows
    }

    #[test]
    fn defaults_are_the_same_in_the_code_in_help_and_in_the_document() {
        let absent = |_: &Path| -> io::Result<String> { Err(io::ErrorKind::NotFound.into()) };
        let Loaded { settings, .. } = load_with(Vec::new(), Vec::new(), Path::new("/"), absent).unwrap();
        let code = [
            ("CONFIG", format!("{DEFAULT_CONFIG} if present")),
            ("LISTEN_ADDR", settings.listen_addr.to_string()),
            ("ADMIN_LISTEN_ADDR", settings.admin_listen_addr.to_string()),
            ("PROXY_PROTOCOL", if settings.proxy_protocol { "on" } else { "off" }.to_owned()),
            ("RECORD_CLIENT_ADDRESS", settings.record_client_address.name().to_owned()),
            ("DATA_DIR", DEFAULT_DATA_DIR.to_owned()),
            ("JOURNAL_MODE", settings.journal_mode.name().to_owned()),
            ("JOURNAL_MAX_BYTES", settings.journal_max_bytes.map_or("none".to_owned(), |bytes| bytes.to_string())),
            ("DISPATCHER", settings.dispatcher.name().to_owned()),
            ("LOG_LEVEL", settings.log_level.name().to_owned()),
            ("HEAD_TIMEOUT", format!("{}s", settings.head_timeout.as_secs())),
            ("DRAIN_TIMEOUT", format!("{}s", settings.drain_timeout.as_secs())),
            ("MAX_HELD_BYTES_TOTAL", format!("{}MiB", settings.max_held_bytes_total >> 20)),
            ("DEFAULT_API", format!("{}, else the first in the file", settings.default_api)),
        ];
        let rows = documented("## The process");
        assert_eq!(rows.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), NAMES);
        let cli = Cli::command();
        for command in ["server", "demo", "dispatcher"] {
            for flag in cli.find_subcommand(command).unwrap().get_arguments() {
                let help = flag.get_help().unwrap().to_string();
                let Some((_, told)) = help.split_once("[env: ") else {
                    // What only this command knows.
                    assert_eq!(command, "dispatcher", "{flag}");
                    continue;
                };
                let (name, default) = told.trim_end_matches(']').split_once("] [default: ").unwrap();
                assert!(rows.contains(&(name.to_owned(), default.to_owned())), "{command}: {name} {default}");
                for (_, real) in code.iter().filter(|(of, _)| *of == name) {
                    assert_eq!(default, real, "{name}");
                }
            }
        }

        let api = &settings.apis[0];
        let Timeouts { connect, first_byte, idle, total } = &api.timeouts;
        let rows = documented("## `apis:`");
        for (key, default) in [
            ("timeouts.connect", format!("{}s", connect.as_secs())),
            ("timeouts.first_byte", format!("{}s", first_byte.as_secs())),
            ("timeouts.idle", format!("{}s", idle.as_secs())),
            ("timeouts.total", total.map_or_else(|| "none".to_owned(), |total| format!("{}s", total.as_secs()))),
            ("max_request_bytes", format!("{}GiB", api.max_request_bytes >> 30)),
            ("max_held_bytes", format!("{}MiB", api.max_held_bytes >> 20)),
            ("inject_usage", api.inject_usage.to_string()),
        ] {
            assert!(rows.contains(&(key.to_owned(), default.clone())), "{key} {default}");
        }
    }

    #[test]
    fn every_flag_reaches_its_setting() {
        let mut arguments = vec!["server".to_owned()];
        for name in NAMES {
            arguments.push(format!("--{}", name.to_ascii_lowercase().replace('_', "-")));
            arguments.push(format!("value of {name}"));
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let Ok(Cli { command: Command::Server(server), .. }) = parsed(&arguments) else { panic!("no server") };
        assert!(!format!("{server:?}").contains("value of ROOT_KEY"));
        assert!(!format!("{server:?}").contains("value of MANAGEMENT_TOKEN"));
        assert!(!format!("{server:?}").contains("value of REDIS_URL"));
        let flags = server.into_flags();
        assert_eq!(flags.iter().map(|(name, _)| *name).collect::<Vec<_>>(), NAMES);
        for (name, value) in flags {
            assert_eq!(value.expose(), format!("value of {name}"));
        }
    }

    #[test]
    fn absent_flags_say_nothing() {
        let Ok(Cli { command: Command::Server(server), .. }) = parsed(&["server"]) else { panic!("no server") };
        assert!(server.into_flags().is_empty());
        let parsed = parsed(&["demo", "--data-dir", "d"]);
        let Ok(Cli { command: Command::Demo(demo), .. }) = parsed else { panic!("no demo") };
        assert_eq!(demo.into_flags(), [("DATA_DIR", Secret::new("d"))]);
    }

    #[test]
    fn a_dispatcher_is_told_where_from_and_whatever_else_it_needs() {
        let parts = |arguments: &[&str]| match parsed(&[&["dispatcher"][..], arguments].concat()) {
            Ok(Cli { command: Command::Dispatcher(dispatcher), .. }) => dispatcher.into_parts(),
            _ => panic!("{arguments:?}: no dispatcher"),
        };
        assert_eq!(parts(&[]), (Vec::new(), Source::Journal));
        let redis = Source::Redis { stream: Some("s".to_owned()), consumer: None };
        let flags = vec![("DATA_DIR", Secret::new("d")), ("REDIS_URL", Secret::new("redis://h"))];
        let given = ["--redis-url", "redis://h", "--from", "redis", "--redis-stream", "s", "--data-dir", "d"];
        assert_eq!(parts(&given), (flags, redis));
        for flag in ["--redis-stream", "--consumer"] {
            let expected = format!("llm-proxy: {flag}: found it without --from redis, expected both or neither");
            assert_eq!(wrong(&["dispatcher", flag, "x"]), expected);
        }
    }

    #[test]
    fn a_wrong_command_line_is_one_line_that_names_it() {
        let create = ["manage", "token", "create", "--project", "p", "--duration", "7d"];
        for (arguments, expected) in [
            (
                &["server", "--listen-adr", "x"][..],
                &["--listen-adr'", "'--listen-addr'", "(see llm-proxy server --help)"][..],
            ),
            (&["server", "--listen-adr=x"], &["--listen-addr"]),
            (&["server", "--listen-addr"], &["a value is required", "--listen-addr"]),
            (&["server", "--listen-addr", "a", "--listen-addr", "b"], &["--listen-addr"]),
            (&["server", "extra"], &["extra"]),
            (&["sever"], &["sever", "server", "(see llm-proxy --help)"]),
            (&["demo", "--root-key", "x"], &["--root-key"]),
            (&["dispatcher", "--from", "kafka"], &["--from: found \"kafka\", expected journal or redis"]),
            (&["events", "tail", "--status", "9"], &["--status: found \"9\", expected a status such as 429"]),
            (&["events", "tail", "--since", "soon"], &["--since: found \"soon\", expected a time such as"]),
            (
                &["events", "replay", "--sink", "x"],
                &["not provided: --since <TIME> (see llm-proxy events replay --help)"],
            ),
            (
                &create[..3],
                &["not provided: --project <PROJECT_ID>, --duration <TIME> (see llm-proxy manage token create --help)"],
            ),
            (&["manage", "project", "create"], &["not provided: <NAME> (see"]),
            (&["manage", "project", "list", "--output", "xml"], &["--output: found \"xml\", expected table or json"]),
            (&["manage", "project", "list", "--limit", "0"], &["--limit: found \"0\", expected", "from 1 to 200"]),
            (&["manage", "token", "get", "a/b"], &["<ID>: found \"a/b\", expected"]),
        ] {
            let text = wrong(arguments);
            assert!(text.starts_with("llm-proxy: "), "{text}");
            assert!(!text.contains('\n') && !text.contains("Usage"), "{text}");
            for expected in expected {
                assert!(text.contains(expected), "{expected}: {text}");
            }
        }
        for (flag, range) in [
            ("--max-requests", "a whole number of requests from 1 to 9007199254740991"),
            ("--requests-per-minute", "a whole number of requests a minute from 1 to 1000000"),
        ] {
            for found in ["abc", "0", "-1", "1.5", "1,000", "9007199254740992", "99999999999999999999999", ""] {
                let text = wrong(&[&create[..], &[flag, found]].concat());
                assert_eq!(text, format!("llm-proxy: {flag}: found {found:?}, expected {range}"));
            }
        }
        for found in ["10x", "0", "0d", "-1", "-7d", "366d", "8761h", "525601", "1.5h", "7 d", "2027-01-01", "abc", ""]
        {
            let text = wrong(&[&create[..6], &[found]].concat());
            assert!(text.starts_with(&format!("llm-proxy: --duration: found {found:?}, expected ")), "{text}");
            assert!(text.contains("from 1m to 365d") && text.contains("90m, 12h or 7d"), "{text}");
        }
    }

    #[test]
    fn help_and_version_are_answers() {
        for arguments in [
            &["--help"][..],
            &["server", "--help"],
            &["demo", "-h"],
            &["manage", "token", "create", "--help"],
            &["events", "tail", "--help"],
            &["dispatcher", "--help"],
            &["--version"],
            &["-V"],
            &["help", "server"],
            &["help", "manage", "token"],
        ] {
            assert!(matches!(parsed(arguments), Err(NoCommand::Asked(_))), "{arguments:?}");
        }
        assert!(wrong(&[]).contains("Examples:"));
        assert!(matches!(parsed(&["version"]), Ok(Cli { command: Command::Version, .. })));
    }
}
