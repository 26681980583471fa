//! What a process is told before it starts: flags, environment, `.env`, the YAML file, and defaults.
//!
//! The file as it is written and the [`Settings`] that are served are two types: a `Settings` that exists is valid,
//! so nothing behind it checks again. Reading is strict throughout, because a typo must never start a laxer proxy.
//! All problems are one line ([`SettingsError`]); what is only suspicious is a warning.

mod apis;
mod base_url;
mod dotenv;
mod error;
mod layers;
mod near_miss;
mod sinks;
mod values;
mod yaml;

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use llm_proxy_core::network::cidr::Network;
use llm_proxy_core::network::client_address::truncated;
use llm_proxy_core::secret::Secret;
use llm_proxy_plugins::journal::Mode;
use llm_proxy_plugins::redis_source::RedisUrl;
use llm_proxy_plugins::sinks::SinksSettings;

pub use self::apis::{
    ApiSettings, DEFAULT_CONNECT_TIMEOUT, DEFAULT_FIRST_BYTE_TIMEOUT, DEFAULT_IDLE_TIMEOUT, DEFAULT_MAX_HELD_BYTES,
    DEFAULT_MAX_REQUEST_BYTES, Timeouts,
};
pub use self::base_url::BaseUrl;
pub use self::error::SettingsError;

use self::error::{Place, quoted};
use self::layers::{Chosen, Layers};
use self::values as rules;
use self::yaml::{Content, Fields, Node};

/// Every setting that flags, environment and `.env` know, by its variable's name. The YAML key is its lower-case form
/// (all but `CONFIG`), the flag its kebab-case form.
pub const NAMES: [&str; 22] = [
    "CONFIG",
    "LISTEN_ADDR",
    "ADMIN_LISTEN_ADDR",
    "TLS_CERT_FILE",
    "TLS_KEY_FILE",
    "TRUSTED_PROXIES",
    "PROXY_PROTOCOL",
    "RECORD_CLIENT_ADDRESS",
    "DATA_DIR",
    "DATABASE_URL",
    "MANAGEMENT_TOKEN",
    "ROOT_KEY",
    "REDIS_URL",
    "JOURNAL_MODE",
    "JOURNAL_MAX_BYTES",
    "DISPATCHER",
    "LOG_LEVEL",
    "LOG_FORMAT",
    "HEAD_TIMEOUT",
    "DRAIN_TIMEOUT",
    "MAX_HELD_BYTES_TOTAL",
    "DEFAULT_API",
];

/// Settings whose value is shown nowhere and which are an error when empty.
const SECRETS: [&str; 2] = ["MANAGEMENT_TOKEN", "ROOT_KEY"];

/// Where the YAML file is looked for when nobody names one.
pub const DEFAULT_CONFIG: &str = "llm-proxy.yaml";
/// The data plane's address.
pub const DEFAULT_LISTEN_ADDR: SocketAddr = loopback(8080);
/// The admin plane's address.
pub const DEFAULT_ADMIN_LISTEN_ADDR: SocketAddr = loopback(8081);
/// SQLite, journal and generated secrets, below the working directory.
pub const DEFAULT_DATA_DIR: &str = "./data";
/// Longest time for a whole request head.
pub const DEFAULT_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long streams may go on after a stop was asked for.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Request bodies held in memory at once by the whole process, in bytes.
pub const DEFAULT_MAX_HELD_BYTES_TOTAL: u64 = 512 << 20;

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Everything a process is told before it starts, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the data plane listens.
    pub listen_addr: SocketAddr,
    /// Where the admin plane listens. Never the data plane's address.
    pub admin_listen_addr: SocketAddr,
    /// Certificate and key of the data plane's listener. `None`: it speaks in the clear.
    pub tls: Option<TlsFiles>,
    /// Who is believed about where a request came from: load balancers and proxies before the data plane.
    pub trusted_proxies: Vec<Network>,
    /// Connections to the data plane come from trusted proxies only, and begin with a header of the PROXY protocol. Never
    /// without `trusted_proxies`.
    pub proxy_protocol: bool,
    /// How much of clients' addresses goes into records.
    pub record_client_address: RecordClientAddress,
    /// Where everything is kept that outlives the process.
    pub data_dir: PathBuf,
    /// A `sqlite:` URL. `None`: the SQLite file in `data_dir`.
    pub database_url: Option<String>,
    /// The bootstrap credential of the admin plane, 16 to 256 visible ASCII characters. `None`: generated into `data_dir`.
    pub management_token: Option<Secret>,
    /// Base64 (standard alphabet, padded) of 32 bytes. `None`: generated into `data_dir`.
    pub root_key: Option<Secret>,
    /// Where events are read from by `llm-proxy dispatcher --from redis`.
    pub redis_url: Option<RedisUrl>,
    /// When a record counts as recorded.
    pub journal_mode: Mode,
    /// The most bytes that the journal takes on disk; above zero. `None`: what the disk has.
    pub journal_max_bytes: Option<u64>,
    /// Which process brings events to sinks.
    pub dispatcher: DispatcherPlace,
    /// Where records go.
    pub sinks: SinksSettings,
    /// The least severe lines that are logged.
    pub log_level: LogLevel,
    /// `None`: text on a terminal, else JSON; whoever opens the log can tell.
    pub log_format: Option<LogFormat>,
    /// Longest time for a whole request head; above zero.
    pub head_timeout: Duration,
    /// How long streams may go on after a stop was asked for; zero cuts them at once.
    pub drain_timeout: Duration,
    /// Request bodies held in memory at once by the whole process, in bytes; above zero.
    pub max_held_bytes_total: u64,
    /// The providers, in the order of the file. Never empty, names are unique.
    pub apis: Vec<ApiSettings>,
    /// The API that a bare `api_key` belongs to. Names one of `apis`.
    pub default_api: String,
}

/// What the data plane proves its name with. Nothing has looked into the files yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM: the certificate, and behind it those that lead to its authority.
    pub certificate: PathBuf,
    /// PEM: the certificate's private key.
    pub key: PathBuf,
}

/// How much of a client's address goes into records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordClientAddress {
    /// Nothing.
    None,
    /// The network around it: 256 addresses of IPv4, a site of IPv6.
    Truncated,
    /// All of it.
    Full,
}

impl RecordClientAddress {
    /// All choices.
    pub const ALL: [Self; 3] = [Self::None, Self::Truncated, Self::Full];

    /// As it is written in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Truncated => "truncated",
            Self::Full => "full",
        }
    }

    /// What is recorded of this address.
    pub fn of(self, address: IpAddr) -> Option<String> {
        match self {
            Self::None => None,
            Self::Truncated => Some(truncated(address).to_string()),
            Self::Full => Some(address.to_string()),
        }
    }
}

/// Which process brings events to sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DispatcherPlace {
    /// The server, beside everything else.
    Inside,
    /// `llm-proxy dispatcher`, a process of its own. The server only keeps the journal for it.
    Outside,
}

impl DispatcherPlace {
    /// Both places.
    pub const ALL: [Self; 2] = [Self::Inside, Self::Outside];

    /// As it is written in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
        }
    }
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// What somebody must act on.
    Error,
    /// What will become an error if nobody looks.
    Warn,
    /// What happens, once per event that matters to an operator.
    Info,
    /// What explains it.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// All levels, most severe first.
    pub const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// As it is written in settings and filters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

impl LogFormat {
    /// Both formats.
    pub const ALL: [Self; 2] = [Self::Text, Self::Json];

    /// As it is written in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// What settings are read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// All of it: traffic, events, or a sink.
    Serve,
    /// To find what another process keeps or serves. Of sinks that the dispatcher serves only the names are read: their
    /// credentials need not be at hand where somebody looks.
    Look,
}

/// Settings, and what should be said about them once there is a log.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// One line each, such as `LISTEN_ADR is not a setting: did you mean LISTEN_ADDR?`.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Reads and judges all layers, to [serve](Purpose::Serve): flag > environment > `.env` > YAML file > default.
    ///
    /// `flags` are the given ones by the name of their setting ([`NAMES`]). `.env` and `llm-proxy.yaml` are looked for
    /// in `working_dir`, relative paths start there. An empty variable counts as unset, except for a secret, where it
    /// is an error.
    ///
    /// # Errors
    /// The first problem found, in whatever layer. Values of secrets are never in it.
    pub fn load(
        flags: Vec<(&'static str, Secret)>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        working_dir: &Path,
    ) -> Result<Loaded, SettingsError> {
        load_with(flags, environment, working_dir, |path| std::fs::read_to_string(path))
    }

    /// [`Settings::load`] for a purpose.
    ///
    /// # Errors
    /// Those of [`Settings::load`].
    pub fn load_for(
        purpose: Purpose,
        flags: Vec<(&'static str, Secret)>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        working_dir: &Path,
    ) -> Result<Loaded, SettingsError> {
        load_for_with(purpose, flags, environment, working_dir, |path| std::fs::read_to_string(path))
    }
}

/// [`Settings::load`] with the file system as an argument.
pub(crate) fn load_with(
    flags: Vec<(&'static str, Secret)>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    working_dir: &Path,
    read: impl Fn(&Path) -> io::Result<String>,
) -> Result<Loaded, SettingsError> {
    load_for_with(Purpose::Serve, flags, environment, working_dir, read)
}

/// [`Settings::load_for`] with the file system as an argument.
fn load_for_with(
    purpose: Purpose,
    flags: Vec<(&'static str, Secret)>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    working_dir: &Path,
    read: impl Fn(&Path) -> io::Result<String>,
) -> Result<Loaded, SettingsError> {
    let mut warnings = Vec::new();
    let mut layers = Layers::default();
    if let Some(text) = if_present(read(&working_dir.join(".env")), &Place::whole_file(".env"))? {
        layers.add_dotenv(&text, &mut warnings)?;
    }
    layers.add_environment(environment, &mut warnings)?;
    layers.add_flags(flags);

    let file = config_file(&layers, working_dir, read)?;
    let settings = judge(purpose, &layers, file.as_ref(), working_dir)?;
    warnings.extend(without_effect(&settings));
    warnings.extend(guessable(&settings));
    Ok(Loaded { settings, warnings })
}

/// The YAML file: the one named, which must be there, or the default one, which need not.
fn config_file(
    layers: &Layers,
    working_dir: &Path,
    read: impl Fn(&Path) -> io::Result<String>,
) -> Result<Option<Node>, SettingsError> {
    let (name, text) = match layers.choose("CONFIG", &rules::PATH, None)? {
        Some(Chosen { value, place }) => {
            let name = value.display().to_string();
            let text = if_present(read(&working_dir.join(&value)), &place)?
                .ok_or_else(|| place.error(format!("found {}, expected a file that exists", quoted(&name))))?;
            (name, text)
        }
        None => {
            let found = if_present(read(&working_dir.join(DEFAULT_CONFIG)), &Place::whole_file(DEFAULT_CONFIG))?;
            let Some(text) = found else { return Ok(None) };
            (DEFAULT_CONFIG.to_owned(), text)
        }
    };
    yaml::parse(&name, &text).map(Some)
}

/// A file that may be absent. One that is there but cannot be read is an error: it was meant to be read.
fn if_present(read: io::Result<String>, place: &Place) -> Result<Option<String>, SettingsError> {
    match read {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(place.error(format!("found a file that cannot be read ({error}), expected UTF-8 text"))),
    }
}

fn judge(
    purpose: Purpose,
    layers: &Layers,
    file: Option<&Node>,
    working_dir: &Path,
) -> Result<Settings, SettingsError> {
    let known: Vec<String> = NAMES.iter().skip(1).map(|name| name.to_ascii_lowercase()).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).chain(["apis", sinks::KEY]).collect();
    let fields = match file {
        None => None,
        Some(node) => match &node.content {
            Content::Nothing => None, // an empty file
            _ => {
                let Content::Map(entries) = &node.content else {
                    let problem = format!("found {}, expected a map of settings", node.found().described());
                    return Err(node.place.error(problem));
                };
                Some(Fields::new(String::new(), entries, &known)?)
            }
        },
    };
    let file = fields.as_ref();

    let listen_addr = layers.choose("LISTEN_ADDR", &rules::ADDRESS, file)?;
    let admin_listen_addr = layers.choose("ADMIN_LISTEN_ADDR", &rules::ADDRESS, file)?;
    let (listen_addr, admin_listen_addr) = two_listeners(listen_addr, admin_listen_addr)?;
    let tls = tls_files(
        layers.choose("TLS_CERT_FILE", &rules::PATH, file)?,
        layers.choose("TLS_KEY_FILE", &rules::PATH, file)?,
        working_dir,
    )?;
    let trusted_proxies = layers.choose_list("TRUSTED_PROXIES", &rules::NETWORKS, &rules::NETWORK, file)?;
    let trusted_proxies = trusted_proxies.map_or_else(Vec::new, |chosen| chosen.value);
    let proxy_protocol = proxy_protocol(layers.choose("PROXY_PROTOCOL", &rules::ON_OR_OFF, file)?, &trusted_proxies)?;
    let data_dir = layers.choose("DATA_DIR", &rules::PATH, file)?;
    let data_dir = data_dir.map_or_else(|| PathBuf::from(DEFAULT_DATA_DIR), |chosen| chosen.value);
    let max_held_bytes_total = layers
        .choose("MAX_HELD_BYTES_TOTAL", &rules::BYTES, file)?
        .map_or(DEFAULT_MAX_HELD_BYTES_TOTAL, |chosen| chosen.value);
    let apis = match file.and_then(|fields| fields.get("apis")) {
        Some(node) => apis::read(node, max_held_bytes_total)?,
        None => apis::defaults(max_held_bytes_total),
    };
    let sinks = match file.and_then(|fields| fields.get(sinks::KEY)) {
        Some(node) => match purpose {
            Purpose::Serve => sinks::read(node, |name| layers.variable(name))?,
            Purpose::Look => sinks::read_names(node)?,
        },
        None => SinksSettings::default(),
    };
    let default_api = default_api(layers.choose("DEFAULT_API", &rules::API_NAME, file)?, &apis)?;

    Ok(Settings {
        listen_addr,
        admin_listen_addr,
        tls,
        trusted_proxies,
        proxy_protocol,
        record_client_address: layers
            .choose("RECORD_CLIENT_ADDRESS", &rules::RECORD_CLIENT_ADDRESS, file)?
            .map_or(RecordClientAddress::None, |chosen| chosen.value),
        data_dir: below(working_dir, &data_dir),
        database_url: layers.choose("DATABASE_URL", &rules::DATABASE_URL, file)?.map(|chosen| chosen.value),
        management_token: layers.choose("MANAGEMENT_TOKEN", &rules::MANAGEMENT_TOKEN, file)?.map(|chosen| chosen.value),
        root_key: layers.choose("ROOT_KEY", &rules::ROOT_KEY, file)?.map(|chosen| chosen.value),
        redis_url: layers.choose("REDIS_URL", &rules::REDIS_URL, file)?.map(|chosen| chosen.value),
        journal_mode: layers
            .choose("JOURNAL_MODE", &rules::JOURNAL_MODE, file)?
            .map_or_else(Mode::default, |chosen| chosen.value),
        journal_max_bytes: layers
            .choose("JOURNAL_MAX_BYTES", &rules::BYTES_OR_NONE, file)?
            .and_then(|chosen| chosen.value),
        dispatcher: layers
            .choose("DISPATCHER", &rules::DISPATCHER, file)?
            .map_or(DispatcherPlace::Inside, |chosen| chosen.value),
        sinks,
        log_level: layers.choose("LOG_LEVEL", &rules::LOG_LEVEL, file)?.map_or(LogLevel::Info, |chosen| chosen.value),
        log_format: layers.choose("LOG_FORMAT", &rules::LOG_FORMAT, file)?.map(|chosen| chosen.value),
        head_timeout: layers
            .choose("HEAD_TIMEOUT", &rules::DURATION, file)?
            .map_or(DEFAULT_HEAD_TIMEOUT, |chosen| chosen.value),
        drain_timeout: layers
            .choose("DRAIN_TIMEOUT", &rules::DURATION_OR_ZERO, file)?
            .map_or(DEFAULT_DRAIN_TIMEOUT, |chosen| chosen.value),
        max_held_bytes_total,
        apis,
        default_api,
    })
}

/// Both addresses, which must differ: on one socket the admin plane's credential would work for strangers' traffic.
fn two_listeners(
    listen_addr: Option<Chosen<SocketAddr>>,
    admin_listen_addr: Option<Chosen<SocketAddr>>,
) -> Result<(SocketAddr, SocketAddr), SettingsError> {
    let place = admin_listen_addr.as_ref().or(listen_addr.as_ref()).map(|chosen| chosen.place.clone());
    let data = listen_addr.map_or(DEFAULT_LISTEN_ADDR, |chosen| chosen.value);
    let admin = admin_listen_addr.map_or(DEFAULT_ADMIN_LISTEN_ADDR, |chosen| chosen.value);
    match place {
        // Port 0 is any free port, so two of them differ.
        Some(place) if data == admin && data.port() != 0 => {
            Err(place.error(format!("found {data} for the data plane and the admin plane, expected two addresses")))
        }
        _ => Ok((data, admin)),
    }
}

/// Both files or neither: half of a pair was meant to be TLS, and must not become a listener in the clear.
fn tls_files(
    certificate: Option<Chosen<PathBuf>>,
    key: Option<Chosen<PathBuf>>,
    working_dir: &Path,
) -> Result<Option<TlsFiles>, SettingsError> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles {
            certificate: below(working_dir, &certificate.value),
            key: below(working_dir, &key.value),
        })),
        (Some(alone), None) => Err(alone.place.error("found it without TLS_KEY_FILE, expected both or neither")),
        (None, Some(alone)) => Err(alone.place.error("found it without TLS_CERT_FILE, expected both or neither")),
        (None, None) => Ok(None),
    }
}

/// On only with somebody to believe: a header that anybody may send tells nothing, and one that nobody may send would
/// close every connection.
fn proxy_protocol(chosen: Option<Chosen<bool>>, trusted_proxies: &[Network]) -> Result<bool, SettingsError> {
    match chosen {
        Some(Chosen { value: true, place }) if trusted_proxies.is_empty() => Err(place.error(
            "found on without TRUSTED_PROXIES, expected there the addresses of the load balancers that send the header",
        )),
        chosen => Ok(chosen.is_some_and(|chosen| chosen.value)),
    }
}

/// What is set and does nothing. No error: where addresses are not to be recorded, the list may stay.
fn without_effect(settings: &Settings) -> Option<String> {
    let is_used = settings.proxy_protocol || settings.record_client_address != RecordClientAddress::None;
    (!settings.trusted_proxies.is_empty() && !is_used)
        .then(|| "TRUSTED_PROXIES does nothing: PROXY_PROTOCOL is off and RECORD_CLIENT_ADDRESS is none".to_owned())
}

/// Secrets that look as if somebody had thought of them. No error: whether others would think of them, nobody can tell.
fn guessable(settings: &Settings) -> impl Iterator<Item = String> {
    let is_weak =
        |secret: &Option<Secret>, test: fn(&str) -> bool| secret.as_ref().is_some_and(|secret| test(secret.expose()));
    let token = is_weak(&settings.management_token, values::is_guessable).then_some(("MANAGEMENT_TOKEN", "hex 24"));
    let key = is_weak(&settings.root_key, values::is_typed_key).then_some(("ROOT_KEY", "base64 32"));
    token.into_iter().chain(key).map(|(name, format)| {
        format!("{name} looks easy to guess: use the output of `openssl rand -{format}`, or none, and one is generated")
    })
}

fn default_api(chosen: Option<Chosen<String>>, apis: &[ApiSettings]) -> Result<String, SettingsError> {
    let has = |name: &str| apis.iter().any(|api| api.name == name);
    match chosen {
        Some(Chosen { value, .. }) if has(&value) => Ok(value),
        Some(Chosen { value, place }) => {
            let names: Vec<_> = apis.iter().map(|api| api.name.as_str()).collect();
            Err(place.error(format!("found {}, expected one of the APIs {}", quoted(&value), names.join(", "))))
        }
        None if has("openai") => Ok("openai".to_owned()),
        None => Ok(apis.first().map_or_else(String::new, |api| api.name.clone())),
    }
}

/// The path from the working directory, without the `./` that people write and nobody wants to read in a log.
fn below(working_dir: &Path, path: &Path) -> PathBuf {
    working_dir.join(path.components().filter(|component| *component != Component::CurDir).collect::<PathBuf>())
}

#[cfg(test)]
mod tests;
