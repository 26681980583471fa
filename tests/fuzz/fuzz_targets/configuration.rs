//! Do settings read alike however they are told, and do their mistakes say one line and no secret?
//!
//! An input is a YAML file, a `.env` file, an environment and flags, with a NUL between them. Whatever is refused or
//! warned of is one line that no terminal obeys. Settings that are taken, written down in full as one file (but for
//! sinks and the URL of Redis), must read back equal: nothing that was told is lost, and no value is read in two ways.
//! Variables given as flags too change nothing. And a secret put into any layer is in no error, no warning and no debug
//! text, whatever else is wrong.

#![no_main]

use std::ffi::OsString;
use std::fmt::Write;
use std::io;
use std::path::Path;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use llm_proxy_core::secret::Secret;
use llm_proxy_plugins::sinks::SinksSettings;

use settings::{Loaded, NAMES, Settings};

// The proxy's own files: depending on the proxy would build all of Pingora with instrumentation.
#[path = "../../../proxy/src/settings/mod.rs"]
#[allow(dead_code, unused_imports, reason = "a part of the settings' interface is the proxy's only")]
mod settings;

/// Strong enough to be taken as a management token, and no base64.
const SECRET: &str = "hunter2-Zq7vXw3kLm9pTs5dRf8";

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let told = Told::of(text);
    match told.load() {
        Err(error) => assert!(is_one_line(&error), "{error:?}"),
        Ok(Loaded { settings, warnings }) => {
            assert!(warnings.iter().all(|warning| is_one_line(warning)), "{warnings:?}");
            let expected = Comparable::of(&settings);
            let with_flags = told.with_variables_as_flags().load().expect("a flag is what a variable is");
            assert_eq!(Comparable::of(&with_flags.settings), expected);
            // What has secrets that it shows nowhere cannot be written down from what it shows.
            let shown = Settings { redis_url: None, sinks: SinksSettings::default(), ..settings };
            if let Some(file) = written(&shown) {
                let again = Told { file: &file, ..Told::default() }.load();
                let again = again.unwrap_or_else(|error| panic!("{error}\n{file}"));
                assert_eq!(Comparable::of(&again.settings), Comparable::of(&shown), "{file}");
            }
        }
    }
    if !text.contains("hunter2") {
        hides_its_secret(&told, text.len());
    }
});

/// What a process is told.
#[derive(Clone, Default)]
struct Told<'t> {
    file: &'t str,
    dotenv: &'t str,
    variables: Vec<(&'t str, &'t str)>,
    flags: Vec<(&'static str, &'t str)>,
}

impl<'t> Told<'t> {
    fn of(text: &'t str) -> Self {
        let mut parts = text.split('\0');
        let mut next = || parts.next().unwrap_or("");
        let (file, dotenv, variables, flags) = (next(), next(), next(), next());
        let flags = assignments(flags).into_iter().filter_map(|(name, value)| Some((known(name)?, value))).collect();
        Self { file, dotenv, variables: assignments(variables), flags }
    }

    /// Flags outrank variables, so those of the same name stay behind. An empty variable is none; an empty flag is one.
    /// The variables stay, since `sinks:` may name any of them.
    fn with_variables_as_flags(&self) -> Self {
        let variables = self.variables.iter().filter(|(_, value)| !value.is_empty());
        let mut flags: Vec<_> = variables.filter_map(|(name, value)| Some((known(name)?, *value))).collect();
        flags.extend(&self.flags);
        Self { flags, ..self.clone() }
    }

    fn load(&self) -> Result<Loaded, String> {
        let flags = self.flags.iter().map(|(name, value)| (*name, Secret::new(*value))).collect();
        let variables = self.variables.iter().map(|(name, value)| (OsString::from(*name), OsString::from(*value)));
        let read = |path: &Path| match path.to_str() {
            Some("/srv/llm-proxy.yaml") => Ok(self.file.to_owned()),
            Some("/srv/.env") => Ok(self.dotenv.to_owned()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        settings::load_with(flags, variables, Path::new("/srv"), read).map_err(|error| error.to_string())
    }
}

fn assignments(text: &str) -> Vec<(&str, &str)> {
    text.split('\n').filter_map(|line| line.split_once('=')).collect()
}

fn known(name: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|known| *known == name)
}

fn is_one_line(text: &str) -> bool {
    !text.chars().any(|letter| letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}'))
}

/// Settings with everything that their debug text leaves out.
#[derive(Debug, PartialEq)]
struct Comparable {
    shown: String,
    secrets: [Option<String>; 2],
    data_dir: std::path::PathBuf,
}

impl Comparable {
    fn of(settings: &Settings) -> Self {
        let mut settings = settings.clone();
        let exposed = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.expose().to_owned());
        let secrets = [exposed(&settings.management_token), exposed(&settings.root_key)];
        // Paths compare by their components.
        let data_dir = std::mem::take(&mut settings.data_dir);
        Self { shown: format!("{settings:?}"), secrets, data_dir }
    }
}

/// The settings as one file in which nothing is left to a default; `None` where a field's name is longer than a key of
/// YAML may be.
fn written(settings: &Settings) -> Option<String> {
    let mut file = String::new();
    let mut line = |indent: usize, key: &str, value: String| writeln!(file, "{:indent$}{key}: {value}", "");
    let text = |value: Option<&str>| value.map(quoted);
    let proxies: Vec<String> = settings.trusted_proxies.iter().map(ToString::to_string).collect();
    let all = [
        ("listen_addr", Some(quoted(&settings.listen_addr.to_string()))),
        ("admin_listen_addr", Some(quoted(&settings.admin_listen_addr.to_string()))),
        ("data_dir", text(settings.data_dir.to_str())),
        ("database_url", text(settings.database_url.as_deref())),
        ("management_token", text(settings.management_token.as_ref().map(Secret::expose))),
        ("root_key", text(settings.root_key.as_ref().map(Secret::expose))),
        ("journal_mode", Some(settings.journal_mode.name().to_owned())),
        ("journal_max_bytes", Some(settings.journal_max_bytes.map_or("none".to_owned(), |bytes| bytes.to_string()))),
        ("dispatcher", Some(settings.dispatcher.name().to_owned())),
        ("log_level", Some(settings.log_level.name().to_owned())),
        ("log_format", settings.log_format.map(|format| format.name().to_owned())),
        ("head_timeout", Some(duration(settings.head_timeout))),
        ("drain_timeout", Some(duration(settings.drain_timeout))),
        ("max_held_bytes_total", Some(settings.max_held_bytes_total.to_string())),
        ("tls_cert_file", text(settings.tls.as_ref().and_then(|tls| tls.certificate.to_str()))),
        ("tls_key_file", text(settings.tls.as_ref().and_then(|tls| tls.key.to_str()))),
        ("trusted_proxies", (!proxies.is_empty()).then(|| list(&proxies))),
        ("proxy_protocol", Some(if settings.proxy_protocol { "on" } else { "off" }.to_owned())),
        ("record_client_address", Some(settings.record_client_address.name().to_owned())),
        ("default_api", text(Some(settings.default_api.as_str()))),
        ("apis", Some(String::new())),
    ];
    for (key, value) in all {
        if let Some(value) = value {
            line(0, key, value).ok()?;
        }
    }
    for api in &settings.apis {
        line(2, &quoted(&api.name), String::new()).ok()?;
        let mut key = |key: &str, value: String| line(4, key, value);
        key("dialect", api.dialect.name().to_owned()).ok()?;
        key("base_url", quoted(&api.base_url.to_string())).ok()?;
        for (name, items) in [
            ("allowed_endpoints", &api.allowed_endpoints),
            ("allowed_methods", &api.allowed_methods),
            ("allowed_origins", &api.allowed_origins),
            ("required_headers", &api.required_headers),
        ] {
            if let Some(items) = items {
                key(name, list(items)).ok()?;
            }
        }
        if let Some(params) = &api.param_whitelist {
            let params: Vec<_> = params.iter().map(|(field, globs)| (quoted(field), list(globs))).collect();
            if params.iter().any(|(field, _)| field.len() > 900) {
                return None;
            }
            let params: Vec<_> = params.iter().map(|(field, globs)| format!("{field}: {globs}")).collect();
            key("param_whitelist", format!("{{{}}}", params.join(", "))).ok()?;
        }
        let clocks = &api.timeouts;
        let (connect, first_byte, idle) =
            (duration(clocks.connect), duration(clocks.first_byte), duration(clocks.idle));
        let total = clocks.total.map_or("none".to_owned(), duration);
        let clocks = format!("{{connect: {connect}, first_byte: {first_byte}, idle: {idle}, total: {total}}}");
        key("timeouts", clocks).ok()?;
        key("max_request_bytes", api.max_request_bytes.to_string()).ok()?;
        key("max_held_bytes", api.max_held_bytes.to_string()).ok()?;
        key("inject_usage", api.inject_usage.to_string()).ok()?;
        key("http2", api.http2.to_string()).ok()?;
        for (name, file) in [
            ("ca_file", &api.ca_file),
            ("client_cert_file", &api.client_cert_file),
            ("client_key_file", &api.client_key_file),
        ] {
            if let Some(file) = file {
                key(name, quoted(file.to_str()?)).ok()?;
            }
        }
    }
    Some(file)
}

fn duration(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

fn list(items: &[String]) -> String {
    let items: Vec<_> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}

/// A text in double quotes, everything but plain ASCII escaped (YAML 1.2.2 §5.7).
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            ' '..='~' => quoted.push(letter),
            letter => quoted.push_str(&format!("\\U{:08X}", u32::from(letter))),
        }
    }
    quoted.push('"');
    quoted
}

/// Puts a secret into one layer, `choice` says which and how, and looks for it in everything that is said.
fn hides_its_secret(told: &Told<'_>, choice: usize) {
    let value = [SECRET.to_owned(), format!("{SECRET} {SECRET}"), SECRET.repeat(12)][choice % 3].clone();
    let name = ["MANAGEMENT_TOKEN", "ROOT_KEY", "DATABASE_URL", "REDIS_URL"][choice / 3 % 4];
    let dotenv = format!("{name}='{value}'\n{}", told.dotenv);
    let file = format!("{}: {value}\n{}", name.to_ascii_lowercase(), told.file);
    let mut told = told.clone();
    match choice / 12 % 4 {
        0 => told.flags.push((known(name).expect("it is a setting"), value.as_str())),
        1 => told.variables.push((name, value.as_str())),
        2 => told.dotenv = &dotenv,
        _ => told.file = &file,
    }
    match told.load() {
        Err(error) => assert!(!error.contains("hunter2") && is_one_line(&error), "{error}"),
        Ok(Loaded { settings, warnings }) => {
            assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");
            assert!(!warnings.iter().any(|warning| warning.contains("hunter2")), "{warnings:?}");
        }
    }
}
