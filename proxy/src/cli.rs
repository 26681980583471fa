//! The command line: what can be asked for, and what `--help` teaches.
//!
//! Flags are texts here. What they mean, and whether they are right, is judged where the other layers of settings are
//! judged ([`crate::settings`]), so that a bad value reads the same wherever it stands.

use std::convert::Infallible;
use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use llm_proxy_core::secret::Secret;

use crate::manage::ManageCommand;

const ABOUT: &str = "\
Hands every app, teammate and CI job a token that expires, has limits and can be revoked, instead of your provider keys.
Apps change one line, the base URL of their SDK; everything else stays byte for byte as the provider sent it.";

const EXAMPLES: &str = "\
Examples:
  # Try it: the whole product with a built-in provider, a project and a token, nothing to set up
  llm-proxy demo

  # Run it, with ./llm-proxy.yaml if there is one
  llm-proxy server

  # Make a project and a token on a running server
  llm-proxy manage project create shop --api-key-env OPENAI_API_KEY
  llm-proxy manage token create --project 0193… --duration 7d

`llm-proxy server --help` lists the settings.";

const SERVER_EXAMPLES: &str = "\
Every setting is a flag, an environment variable, a line in ./.env and a key of the YAML file. The flag wins over the
variable, the variable over .env, .env over the file. The variable is the flag's name in capitals (--listen-addr,
LISTEN_ADDR), the key the same in small letters (listen_addr:). An unknown flag or key and a bad value anywhere stop
the start with one line that says where.

Durations have a unit (500ms, 10s, 5m, 1h), sizes may have one (32MiB, 10MB).

The providers stand in the file alone. Without it, openai, anthropic and gemini are served:
  apis:
    openai:
      allowed_endpoints: [/v1/chat/completions, /v1/models]
    groq:
      dialect: openai
      base_url: https://api.groq.com/openai/v1

Examples:
  llm-proxy server --listen-addr 0.0.0.0:8080 --data-dir /var/lib/llm-proxy
  MANAGEMENT_TOKEN=\"$(openssl rand -hex 24)\" llm-proxy server --config /etc/llm-proxy.yaml

Without MANAGEMENT_TOKEN and ROOT_KEY, the first start makes them and prints where they are. Keep ROOT_KEY: without it
the provider keys in the database cannot be read.";

/// What was asked for.
#[derive(Parser)]
#[command(name = "llm-proxy", version, about = ABOUT, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// The one thing to do.
    #[command(subcommand)]
    pub command: Command,
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
    /// Print the version
    Version,
}

/// The flags of `llm-proxy server`: one for every setting.
#[derive(Args, Debug)]
#[command(after_help = SERVER_EXAMPLES)]
pub struct ServerArgs {
    #[arg(long, value_name = "FILE", help = "The YAML file (CONFIG) [default: llm-proxy.yaml if present]")]
    config: Option<String>,

    #[arg(long, value_name = "HOST:PORT", help = "Where apps connect (LISTEN_ADDR) [default: 127.0.0.1:8080]")]
    listen_addr: Option<String>,

    #[arg(
        long,
        value_name = "HOST:PORT",
        help = "Where management API, health and metrics are (ADMIN_LISTEN_ADDR) [default: 127.0.0.1:8081]"
    )]
    admin_listen_addr: Option<String>,

    #[arg(
        long,
        value_name = "FILE",
        help = "Certificate for LISTEN_ADDR, a PEM file: apps connect with https (TLS_CERT_FILE) [default: none, http]"
    )]
    tls_cert_file: Option<String>,

    #[arg(long, value_name = "FILE", help = "The certificate's key, a PEM file (TLS_KEY_FILE) [default: none]")]
    tls_key_file: Option<String>,

    #[arg(long, value_name = "DIR", help = "Database, journal and generated secrets (DATA_DIR) [default: ./data]")]
    data_dir: Option<String>,

    #[arg(
        long,
        value_name = "URL",
        help = "The database, as sqlite:FILE (DATABASE_URL) [default: a SQLite file in the data directory]"
    )]
    database_url: Option<String>,

    #[arg(
        long,
        value_name = "TOKEN",
        value_parser = secret,
        help = "First credential of the management API, 16 characters or more (MANAGEMENT_TOKEN, better there: process \
                lists show flags) [default: generated into the data directory]"
    )]
    management_token: Option<Secret>,

    #[arg(
        long,
        value_name = "BASE64",
        value_parser = secret,
        help = "The key that seals provider keys, 32 bytes in base64 (ROOT_KEY, better there: process lists show flags) \
                [default: generated into the data directory]"
    )]
    root_key: Option<Secret>,

    #[arg(
        long,
        value_name = "URL",
        help = "Limits and events shared over Redis (REDIS_URL): not part of this version, refused"
    )]
    redis_url: Option<String>,

    #[arg(long, value_name = "LEVEL", help = "error, warn, info, debug or trace (LOG_LEVEL) [default: info]")]
    log_level: Option<String>,

    #[arg(long, value_name = "FORMAT", help = "text or json (LOG_FORMAT) [default: text on a terminal, else json]")]
    log_format: Option<String>,

    #[arg(long, value_name = "DURATION", help = "Longest time for a whole request head (HEAD_TIMEOUT) [default: 10s]")]
    head_timeout: Option<String>,

    #[arg(
        long,
        value_name = "DURATION",
        help = "How long streams may go on after SIGTERM (DRAIN_TIMEOUT) [default: 30s]"
    )]
    drain_timeout: Option<String>,

    #[arg(
        long,
        value_name = "SIZE",
        help = "Request bodies held in memory at once (MAX_HELD_BYTES_TOTAL) [default: 512MiB]"
    )]
    max_held_bytes_total: Option<String>,

    #[arg(
        long,
        value_name = "NAME",
        help = "The API that a project's bare api_key belongs to (DEFAULT_API) [default: openai, else the first in the file]"
    )]
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
            ("DATA_DIR", text(self.data_dir)),
            ("DATABASE_URL", text(self.database_url)),
            ("MANAGEMENT_TOKEN", self.management_token),
            ("ROOT_KEY", self.root_key),
            ("REDIS_URL", text(self.redis_url)),
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
#[command(
    after_help = "With OPENAI_API_KEY, ANTHROPIC_API_KEY or GEMINI_API_KEY set, the demo uses the real provider."
)]
pub struct DemoArgs {
    #[arg(long, value_name = "HOST:PORT", help = "Where apps connect (LISTEN_ADDR) [default: 127.0.0.1:8080]")]
    listen_addr: Option<String>,

    #[arg(
        long,
        value_name = "HOST:PORT",
        help = "Where management API, health and metrics are (ADMIN_LISTEN_ADDR) [default: 127.0.0.1:8081]"
    )]
    admin_listen_addr: Option<String>,

    #[arg(long, value_name = "DIR", help = "The demo keeps everything in DIR/demo (DATA_DIR) [default: ./data]")]
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
    Cli::try_parse_from(arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => NoCommand::Asked(error.render().to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => NoCommand::Wrong(error.render().to_string()),
        _ => NoCommand::Wrong(masked(&one_line(&error.render().to_string()))),
    })
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

/// Clap's message without its usage text: what was found, and what was probably meant.
fn one_line(rendered: &str) -> String {
    let parts: Vec<_> = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .map(|line| line.strip_prefix("error: ").or_else(|| line.strip_prefix("tip: ")).unwrap_or(line))
        .collect();
    format!("llm-proxy: {} (--help lists what there is)", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::settings::NAMES;

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

    #[test]
    fn a_token_in_the_wrong_place_is_not_shown_again() {
        for (text, shown) in [
            ("no token", "no token"),
            ("invalid value 'sk-lp-abc123XYZ' for '<ID>': a token", "invalid value 'sk-lp-…' for '<ID>': a token"),
            ("sk-lp-a sk-lp-b", "sk-lp-… sk-lp-…"),
            ("sk-lp-", "sk-lp-…"),
        ] {
            assert_eq!(masked(text), shown);
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_is_a_flag_of_the_server_and_its_help_names_the_variable_and_the_default() {
        let cli = Cli::command();
        let server = cli.find_subcommand("server").unwrap();
        let flags: Vec<_> = server.get_arguments().filter(|arg| arg.get_id() != "help").collect();
        assert_eq!(flags.len(), NAMES.len());
        for (flag, name) in flags.iter().zip(NAMES) {
            assert_eq!(flag.get_long(), Some(&*name.to_ascii_lowercase().replace('_', "-")));
            let help = flag.get_help().unwrap().to_string();
            assert!(help.contains(&format!("({name}")), "{help}");
            assert!(help.contains("[default: ") || name == "REDIS_URL", "{help}");
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
        let Ok(Cli { command: Command::Server(server) }) = parsed(&arguments) else { panic!("no server") };
        assert!(!format!("{server:?}").contains("value of ROOT_KEY"));
        assert!(!format!("{server:?}").contains("value of MANAGEMENT_TOKEN"));
        let flags = server.into_flags();
        assert_eq!(flags.iter().map(|(name, _)| *name).collect::<Vec<_>>(), NAMES);
        for (name, value) in flags {
            assert_eq!(value.expose(), format!("value of {name}"));
        }
    }

    #[test]
    fn absent_flags_say_nothing() {
        let Ok(Cli { command: Command::Server(server) }) = parsed(&["server"]) else { panic!("no server") };
        assert!(server.into_flags().is_empty());
        let Ok(Cli { command: Command::Demo(demo) }) = parsed(&["demo", "--data-dir", "d"]) else { panic!("no demo") };
        assert_eq!(demo.into_flags(), [("DATA_DIR", Secret::new("d"))]);
    }

    #[test]
    fn a_wrong_command_line_is_one_line_that_names_it() {
        for (arguments, expected) in [
            (&["server", "--listen-adr", "x"][..], "--listen-adr"),
            (&["server", "--listen-adr=x"], "--listen-addr"),
            (&["server", "--listen-addr"], "--listen-addr"),
            (&["server", "--listen-addr", "a", "--listen-addr", "b"], "--listen-addr"),
            (&["server", "extra"], "extra"),
            (&["sever"], "sever"),
            (&["demo", "--root-key", "x"], "--root-key"),
        ] {
            let text = wrong(arguments);
            assert!(text.contains(expected), "{text}");
            assert!(!text.contains('\n') && !text.contains("Usage"), "{text}");
        }
    }

    #[test]
    fn help_and_version_are_answers() {
        for arguments in [&["--help"][..], &["server", "--help"], &["demo", "-h"], &["--version"], &["help", "server"]]
        {
            assert!(matches!(parsed(arguments), Err(NoCommand::Asked(_))), "{arguments:?}");
        }
        assert!(wrong(&[]).contains("Examples:"));
        assert!(matches!(parsed(&["version"]), Ok(Cli { command: Command::Version })));
    }
}
