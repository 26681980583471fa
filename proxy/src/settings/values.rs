//! What the text of a setting may be: one [`Rule`] per kind of value, the same for flag, variable and file.
//!
//! Every rule is strict. A value that could be read in two ways (`10`, `512M`, `:8080`) is refused with the forms that
//! cannot, because a limit that is a thousand times what its writer meant is found only under load.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::network::cidr::Network;
use llm_proxy_core::secret::Secret;
use llm_proxy_plugins::journal::Mode;
use llm_proxy_plugins::redis_source::{InvalidRedisUrl, RedisUrl};
use secrecy::zeroize::Zeroizing;

use super::error::quoted;
use super::{DispatcherPlace, LogFormat, LogLevel, RecordClientAddress};

/// What stands where a single value is expected.
#[derive(Clone, Copy)]
pub(super) enum Found<'a> {
    Text(&'a str),
    /// Nothing, a list or a map, by that name.
    Other(&'static str),
}

impl Found<'_> {
    pub(super) fn described(self) -> String {
        match self {
            Self::Text(text) => quoted(text),
            Self::Other(kind) => kind.to_owned(),
        }
    }
}

/// Why a rule refuses a text.
pub(super) enum Refused {
    /// It is not of the expected form; the message is made from the text and the rule's `expected`.
    Malformed,
    /// It is refused for a reason that needs its own words, complete with what was found and what is expected.
    Because(String),
}

/// How a text becomes a value.
pub(super) struct Rule<T> {
    /// Ends the sentence "found …, expected".
    pub(super) expected: &'static str,
    /// Whether the text must not be shown.
    pub(super) is_secret: bool,
    pub(super) read: fn(&str) -> Result<T, Refused>,
}

impl<T> Rule<T> {
    const fn new(expected: &'static str, read: fn(&str) -> Result<T, Refused>) -> Self {
        Self { expected, is_secret: false, read }
    }

    const fn secret(expected: &'static str, read: fn(&str) -> Result<T, Refused>) -> Self {
        Self { expected, is_secret: true, read }
    }

    /// The value, or the problem without its place.
    pub(super) fn judge(&self, found: Found<'_>) -> Result<T, String> {
        let refused = match found {
            Found::Text(text) => match (self.read)(text) {
                Ok(value) => return Ok(value),
                Err(refused) => refused,
            },
            Found::Other(_) => Refused::Malformed,
        };
        match (refused, found) {
            (Refused::Because(problem), _) => Err(problem),
            (Refused::Malformed, Found::Text(text)) if self.is_secret && !text.is_empty() => {
                Err(format!("found a value that is not shown here, expected {}", self.expected))
            }
            (Refused::Malformed, found) => Err(format!("found {}, expected {}", found.described(), self.expected)),
        }
    }
}

/// Longest duration taken. Anything longer is a slip of the unit, and would overflow clocks on some systems.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const MANAGEMENT_TOKEN_FORM: &str =
    "16 to 256 visible ASCII characters that nobody guesses, such as the output of `openssl rand -hex 24`";

pub(super) const ADDRESS: Rule<SocketAddr> = Rule::new(
    "an address as host:port, the host an IP address or localhost, such as 127.0.0.1:8080 or [::1]:8080",
    address,
);
pub(super) const PATH: Rule<PathBuf> = Rule::new("a path", path);
pub(super) const NETWORK: Rule<Network> =
    Rule::new("an IP address or network, such as 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32", network);
pub(super) const NETWORKS: Rule<Vec<Network>> =
    Rule::new("IP addresses and networks, separated by commas, such as 10.0.0.0/8,2001:db8::/32", |text| {
        text.split(',').map(|entry| network(entry.trim_matches(' '))).collect()
    });
pub(super) const ON_OR_OFF: Rule<bool> = Rule::new("on or off", |text| match text {
    "on" => Ok(true),
    "off" => Ok(false),
    _ => Err(Refused::Malformed),
});
pub(super) const RECORD_CLIENT_ADDRESS: Rule<RecordClientAddress> = Rule::new("one of none, truncated, full", |text| {
    RecordClientAddress::ALL.into_iter().find(|choice| choice.name() == text).ok_or(Refused::Malformed)
});
pub(super) const DATABASE_URL: Rule<String> =
    Rule::secret("a database URL such as sqlite:/var/lib/llm-proxy/llm-proxy.db", database_url);
pub(super) const MANAGEMENT_TOKEN: Rule<Secret> = Rule::secret(MANAGEMENT_TOKEN_FORM, management_token);
pub(super) const ROOT_KEY: Rule<Secret> =
    Rule::secret("32 random bytes in base64, such as the output of `openssl rand -base64 32`", root_key);
pub(super) const REDIS_URL: Rule<RedisUrl> =
    Rule::secret("a URL such as redis://:password@redis.example.com:6379/0", |text| {
        text.parse().map_err(|invalid: InvalidRedisUrl| Refused::Because(invalid.to_string()))
    });
pub(super) const JOURNAL_MODE: Rule<Mode> = Rule::new("one of strict, durable, lossy", |text| {
    Mode::ALL.into_iter().find(|mode| mode.name() == text).ok_or(Refused::Malformed)
});
pub(super) const DISPATCHER: Rule<DispatcherPlace> = Rule::new("one of inside, outside", |text| {
    DispatcherPlace::ALL.into_iter().find(|place| place.name() == text).ok_or(Refused::Malformed)
});
pub(super) const LOG_LEVEL: Rule<LogLevel> = Rule::new("one of error, warn, info, debug, trace", |text| {
    LogLevel::ALL.into_iter().find(|level| level.name() == text).ok_or(Refused::Malformed)
});
pub(super) const LOG_FORMAT: Rule<LogFormat> = Rule::new("one of text, json", |text| {
    LogFormat::ALL.into_iter().find(|format| format.name() == text).ok_or(Refused::Malformed)
});
pub(super) const DURATION: Rule<Duration> =
    Rule::new("a duration with its unit, above zero and up to 720h, such as 500ms, 10s, 5m or 1h", |text| {
        duration(text).filter(|duration| !duration.is_zero()).ok_or(Refused::Malformed)
    });
pub(super) const DURATION_OR_ZERO: Rule<Duration> =
    Rule::new("a duration with its unit, up to 720h, such as 0s, 500ms, 10s, 5m or 1h", |text| {
        duration(text).ok_or(Refused::Malformed)
    });
pub(super) const DURATION_OR_NONE: Rule<Option<Duration>> = Rule::new(
    "none, or a duration with its unit, above zero and up to 720h, such as 10s, 5m or 1h",
    |text| match text {
        "none" => Ok(None),
        text => duration(text).filter(|duration| !duration.is_zero()).map(Some).ok_or(Refused::Malformed),
    },
);
pub(super) const BYTES: Rule<u64> = Rule::new(
    "a number of bytes above zero, alone or with one of KB, MB, GB, TB, KiB, MiB, GiB, TiB, such as 32MiB",
    |text| bytes(text).filter(|bytes| *bytes > 0).ok_or(Refused::Malformed),
);
pub(super) const BYTES_OR_NONE: Rule<Option<u64>> = Rule::new(
    "none, or a number of bytes from 4MiB, alone or with one of KB, MB, GB, TB, KiB, MiB, GiB, TiB, such as 10GiB",
    |text| match text {
        "none" => Ok(None),
        text => bytes(text).filter(|bytes| *bytes >= 4 << 20).map(Some).ok_or(Refused::Malformed),
    },
);
pub(super) const DIALECT: Rule<Dialect> =
    Rule::new("one of openai, anthropic, gemini, azure", |text| text.parse().map_err(|_| Refused::Malformed));
pub(super) const API_NAME: Rule<String> = Rule::new(
    "1 to 32 lower-case letters, digits, - and _, but none of health, manage, metrics, upload, v1, v1beta, ws",
    |text| if is_api_name(text) { Ok(text.to_owned()) } else { Err(Refused::Malformed) },
);

/// Whether the name can be a URL prefix. The names left out are roots that clients and operators use under the bare host.
fn is_api_name(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'))
        && !["health", "manage", "metrics", "upload", "v1", "v1beta", "ws"].contains(&text)
}

fn address(text: &str) -> Result<SocketAddr, Refused> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    // `parse` alone would take "+80".
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match (host, port.parse::<u16>()) {
        ("localhost", Ok(port)) if is_number => Ok(SocketAddr::from(([127, 0, 0, 1], port))),
        ("", Ok(port)) if is_number => Err(Refused::Because(format!(
            "found {}, expected a host too: 127.0.0.1:{port} for this machine only, 0.0.0.0:{port} for every network",
            quoted(text)
        ))),
        _ => Err(Refused::Malformed),
    }
}

/// One of a list. Which one it is that cannot be meant, and what it should be, stands in the message.
fn network(text: &str) -> Result<Network, Refused> {
    text.parse().map_err(|problem| Refused::Because(format!("found {}, {problem}", quoted(text))))
}

fn path(text: &str) -> Result<PathBuf, Refused> {
    if text.is_empty() || text.contains('\0') { Err(Refused::Malformed) } else { Ok(Path::new(text).to_owned()) }
}

fn database_url(text: &str) -> Result<String, Refused> {
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    match scheme {
        // The rest of such a URL may hold a password, so only its scheme is shown.
        "postgres" | "postgresql" | "mysql" => Err(Refused::Because(format!(
            "found a {scheme}: URL, expected sqlite: because other databases come in a later version"
        ))),
        "sqlite" => {
            let file = text.strip_prefix("sqlite:").unwrap_or("").trim_start_matches('/');
            let file = file.split('?').next().unwrap_or("");
            if file.is_empty() || file.contains('\0') {
                Err(Refused::Malformed)
            } else if file == ":memory:" || text.contains("mode=memory") {
                Err(Refused::Because(
                    "found a database in memory, expected a file: tokens and counts must outlive the process"
                        .to_owned(),
                ))
            } else {
                Ok(text.to_owned())
            }
        }
        _ => Err(Refused::Malformed),
    }
}

fn management_token(text: &str) -> Result<Secret, Refused> {
    let length = text.chars().count();
    if length == 0 {
        Err(Refused::Because(format!(
            "found an empty secret, expected {MANAGEMENT_TOKEN_FORM}, or no such setting, so that one is generated"
        )))
    } else if length < 16 {
        Err(Refused::Because(format!("found {length} characters, expected {MANAGEMENT_TOKEN_FORM}")))
    } else if length > 256 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err(Refused::Malformed)
    } else if is_placeholder(text) {
        Err(Refused::Because(format!("found a placeholder, expected {MANAGEMENT_TOKEN_FORM}")))
    } else {
        Ok(Secret::new(text))
    }
}

/// Whether somebody left in place what was to be replaced.
fn is_placeholder(text: &str) -> bool {
    let letters = Zeroizing::new(text.to_ascii_lowercase().replace(['-', '_', '.'], ""));
    ["changeme", "placeholder"].iter().any(|word| letters.contains(word))
        || letters.chars().collect::<BTreeSet<_>>().len() < 4
}

/// Whether a root key is one that somebody has typed: 32 random octets have about 30 different values.
pub(super) fn is_typed_key(text: &str) -> bool {
    let octets = Zeroizing::new(STANDARD.decode(text).unwrap_or_default());
    octets.iter().collect::<BTreeSet<_>>().len() < 12
}

/// Whether little is left of the secret without the words and runs that people write in such places. Sixteen random
/// hexadecimal digits have fewer than six different ones less than once in a hundred thousand.
pub(super) fn is_guessable(text: &str) -> bool {
    const WORDS: [&str; 24] = [
        "management",
        "placeholder",
        "0123456789",
        "1234567890",
        "123456789",
        "12345678",
        "changeme",
        "password",
        "passwort",
        "abcdefgh",
        "qwertyui",
        "replace",
        "example",
        "default",
        "change",
        "secret",
        "qwerty",
        "abcdef",
        "123456",
        "token",
        "admin",
        "proxy",
        "test",
        "your",
    ];
    let mut rest = Zeroizing::new(text.to_ascii_lowercase());
    for word in WORDS {
        rest = Zeroizing::new(rest.replace(word, ""));
    }
    let different: BTreeSet<char> = rest.chars().filter(char::is_ascii_alphanumeric).collect();
    different.len() < 6
}

fn root_key(text: &str) -> Result<Secret, Refused> {
    if text.is_empty() {
        return Err(Refused::Because(
            "found an empty secret, expected 32 random bytes in base64, or no such setting, so that one is generated"
                .to_owned(),
        ));
    }
    let octets = Zeroizing::new(STANDARD.decode(text).map_err(|_| Refused::Malformed)?);
    if octets.len() != 32 {
        return Err(Refused::Because(format!(
            "found base64 of {} bytes, expected 32 random bytes in base64, such as the output of `openssl rand -base64 32`",
            octets.len()
        )));
    }
    Ok(Secret::new(text))
}

/// `None` without a unit, past [`LONGEST`], or when it is no duration at all.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.find(|letter: char| !letter.is_ascii_digit())?)?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let duration = Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(unit_ms)?);
    (duration <= LONGEST).then_some(duration)
}

fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let unit_bytes: u64 = match unit.trim_start_matches(' ') {
        "" | "B" => 1,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem<T>(rule: &Rule<T>, text: &str) -> String {
        match rule.judge(Found::Text(text)) {
            Ok(_) => panic!("{text:?} was taken"),
            Err(problem) => problem,
        }
    }

    #[test]
    fn a_duration_needs_a_unit() {
        for (text, expected_ms) in
            [("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000), ("720h", 2_592_000_000)]
        {
            assert_eq!(DURATION.judge(Found::Text(text)), Ok(Duration::from_millis(expected_ms)), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "1.5s",
            "-1s",
            "+1s",
            "10 s",
            "10sec",
            "1d",
            "0s",
            "721h",
            "99999999999999999999s",
            "none",
            "١s",
        ] {
            assert!(problem(&DURATION, text).starts_with(&format!("found {text:?}, expected a duration")), "{text}");
        }
        assert_eq!(DURATION_OR_ZERO.judge(Found::Text("0s")), Ok(Duration::ZERO));
        assert_eq!(DURATION_OR_NONE.judge(Found::Text("none")), Ok(None));
        assert_eq!(DURATION_OR_NONE.judge(Found::Text("1s")), Ok(Some(Duration::from_secs(1))));
        assert!(DURATION_OR_NONE.judge(Found::Text("0s")).is_err());
        assert!(DURATION_OR_NONE.judge(Found::Other("nothing")).is_err());
    }

    #[test]
    fn a_size_is_bytes_or_has_an_unmistakable_unit() {
        for (text, expected) in [
            ("1", 1),
            ("1048576", 1 << 20),
            ("1B", 1),
            ("1KB", 1_000),
            ("1kB", 1_000),
            ("1KiB", 1_024),
            ("512MiB", 512 << 20),
            ("512 MiB", 512 << 20),
            ("1GiB", 1 << 30),
            ("2TB", 2_000_000_000_000),
        ] {
            assert_eq!(BYTES.judge(Found::Text(text)), Ok(expected), "{text}");
        }
        for text in ["", "0", "0MiB", "MiB", "512M", "512m", "1.5GiB", "-1", "1e9", "0x10", "99999999TiB", "1 GiB B"] {
            assert!(
                problem(&BYTES, text).starts_with(&format!("found {text:?}, expected a number of bytes")),
                "{text}"
            );
        }
    }

    #[test]
    fn an_address_has_a_host_that_needs_no_lookup() {
        for (text, expected) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("localhost:8080", "127.0.0.1:8080"),
            ("0.0.0.0:0", "0.0.0.0:0"),
            ("[::1]:8080", "[::1]:8080"),
        ] {
            assert_eq!(ADDRESS.judge(Found::Text(text)), Ok(expected.parse().unwrap()), "{text}");
        }
        for text in
            ["", "example.org:80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "localhost:+80", "localhost", "::1:80"]
        {
            assert!(problem(&ADDRESS, text).starts_with(&format!("found {text:?}, expected an address")), "{text}");
        }
        for text in [":8080", "8080"] {
            let problem = problem(&ADDRESS, text);
            assert!(problem.contains("0.0.0.0:8080") && problem.contains("127.0.0.1:8080"), "{problem}");
        }
    }

    #[test]
    fn networks_are_whole_and_each_is_judged() {
        for (text, expected) in [
            ("10.0.0.0/8", &["10.0.0.0/8"][..]),
            ("192.0.2.7", &["192.0.2.7/32"]),
            ("10.0.0.0/8,::1", &["10.0.0.0/8", "::1/128"]),
            (" 10.0.0.0/8 ,  2001:db8::/32 ", &["10.0.0.0/8", "2001:db8::/32"]),
            ("::ffff:10.0.0.0/104", &["10.0.0.0/8"]),
        ] {
            let networks = NETWORKS.judge(Found::Text(text)).unwrap();
            assert_eq!(networks.iter().map(Network::to_string).collect::<Vec<_>>(), expected, "{text}");
        }
        for (text, found, expected) in [
            ("", "\"\"", "expected an IP address or network"),
            ("10.0.0.0/8,", "\"\"", "expected an IP address or network"),
            ("10.0.0.0/8,,::1", "\"\"", "expected an IP address or network"),
            ("10.0.0.0/8 ::1", "\"10.0.0.0/8 ::1\"", "expected a prefix length from 0 to 32"),
            ("::1,balancer", "\"balancer\"", "expected an IP address or network"),
            ("10.0.0.1:80", "\"10.0.0.1:80\"", "expected an IP address or network"),
            ("10.0.0.0/33", "\"10.0.0.0/33\"", "expected a prefix length from 0 to 32"),
            ("10.0.0.0/255.0.0.0", "\"10.0.0.0/255.0.0.0\"", "expected a prefix length from 0 to 32"),
            ("::1,10.1.2.3/8", "\"10.1.2.3/8\"", "expected 10.0.0.0/8 for the network"),
            ("*", "\"*\"", "expected an IP address or network"),
        ] {
            let problem = problem(&NETWORKS, text);
            assert!(
                problem.starts_with(&format!("found {found}, ")) && problem.contains(expected),
                "{text}: {problem}"
            );
        }
        assert!(problem(&NETWORK, "10.0.0.0/8,::1").starts_with("found \"10.0.0.0/8,::1\", expected a prefix length"));
    }

    #[test]
    fn weak_secrets_are_refused_and_no_secret_is_shown() {
        for text in [
            "",
            "changeme",
            "secret",
            "test",
            "password",
            "hunter2hunter2h",
            "changemechangeme",
            "Change-Me-Change-Me",
            "a-placeholder-for-a-token",
            "aaaaaaaaaaaaaaaaaaaa",
            "has a space in the middle",
            "päßwörter-sind-keine",
        ] {
            let problem = problem(&MANAGEMENT_TOKEN, text);
            assert!(problem.contains("found") && problem.contains("expected"), "{problem}");
            assert!(text.len() < 5 || !problem.replace("management", "").contains(text), "{problem}");
        }
        for text in ["0f8e2b1c9d7a6354", "correct-horse-battery-staple", &"x1Y2z3W4v5U6".repeat(20)] {
            assert_eq!(MANAGEMENT_TOKEN.judge(Found::Text(text)), Ok(Secret::new(text)));
            assert!(!is_guessable(text), "{text}");
        }
        for text in ["this-is-a-secret-token", "your-management-token", "test-management-token", "1234567890123456"] {
            assert_eq!(MANAGEMENT_TOKEN.judge(Found::Text(text)), Ok(Secret::new(text)));
            assert!(is_guessable(text), "{text} is worth a warning");
        }
    }

    #[test]
    fn a_root_key_is_32_bytes_in_base64() {
        let good = STANDARD.encode((0..32).collect::<Vec<u8>>());
        assert_eq!(ROOT_KEY.judge(Found::Text(&good)), Ok(Secret::new(&*good)));
        let typed = STANDARD.encode([7; 32]);
        assert_eq!(ROOT_KEY.judge(Found::Text(&typed)), Ok(Secret::new(&*typed)));
        assert!(is_typed_key(&typed) && !is_typed_key(&good), "it is worth a warning");
        for octets in [(0..31).collect(), (0..33).collect()] {
            let text = STANDARD.encode::<Vec<u8>>(octets);
            let problem = problem(&ROOT_KEY, &text);
            assert!(problem.contains("expected") && !problem.contains(&text), "{problem}");
        }
        for text in ["", "hunter2", "not base64 at all!"] {
            let problem = problem(&ROOT_KEY, text);
            assert!(problem.contains("expected") && (text.is_empty() || !problem.contains(text)), "{problem}");
        }
    }

    #[test]
    fn only_sqlite_files_are_databases_and_passwords_stay_hidden() {
        for text in ["sqlite:llm-proxy.db", "sqlite:///var/lib/a.db", "sqlite:a.db?mode=rwc"] {
            assert_eq!(DATABASE_URL.judge(Found::Text(text)), Ok(text.to_owned()));
        }
        for text in [
            "",
            "sqlite:",
            "sqlite://",
            "sqlite::memory:",
            "sqlite:a?mode=memory",
            "postgres://u:hunter2@h/d",
            "mysql://u:hunter2@h/d",
            "oracle:hunter2",
            "hunter2",
        ] {
            let problem = problem(&DATABASE_URL, text);
            assert!(
                problem.contains("found") && problem.contains("expected") && !problem.contains("hunter2"),
                "{problem}"
            );
        }
        assert!(problem(&DATABASE_URL, "postgres://h/d").contains("later version"));
        assert!(REDIS_URL.judge(Found::Text("redis://:hunter2@h")).is_ok());
        let problem = problem(&REDIS_URL, "http://:hunter2@h");
        assert!(problem.contains("redis://") && !problem.contains("hunter2"), "{problem}");
    }
}
