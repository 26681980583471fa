//! Precedence, and the one line that every kind of mistake gives.

use std::collections::BTreeMap;

use super::*;

const TOKEN: &str = "0f8e2b1c9d7a6354";
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="; // 0, 1, 2, … 31

/// What a process could be told: flags and variables by name, files by name.
#[derive(Clone, Default)]
struct Told {
    flags: Vec<(&'static str, String)>,
    variables: Vec<(String, String)>,
    files: BTreeMap<PathBuf, String>,
}

impl Told {
    fn flag(mut self, name: &'static str, value: &str) -> Self {
        self.flags.push((name, value.to_owned()));
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn file(mut self, name: &str, text: impl Into<String>) -> Self {
        self.files.insert(Path::new("/srv").join(name), text.into());
        self
    }

    fn load(&self) -> Result<Loaded, String> {
        let flags = self.flags.iter().map(|(name, value)| (*name, Secret::new(value.as_str()))).collect();
        let variables = self.variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let read = |path: &Path| self.files.get(path).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        load_with(flags, variables, Path::new("/srv"), read).map_err(|error| error.to_string())
    }

    fn settings(&self) -> Settings {
        self.load().unwrap().settings
    }

    fn error(&self) -> String {
        match self.load() {
            Ok(_) => panic!("these settings were taken"),
            Err(error) => {
                assert!(!error.contains('\n'), "{error}");
                error
            }
        }
    }
}

fn told() -> Told {
    Told::default()
}

#[test]
fn who_only_looks_needs_no_credential_of_a_sink() {
    let text = "data_dir: /d\nsinks:\n  hook: {type: webhook, url: 'https://a.example', secret_env: HOOK_SECRET}\n";
    let load = |purpose| {
        let read = |path: &Path| {
            let is_asked_for = path.ends_with(DEFAULT_CONFIG);
            is_asked_for.then(|| text.to_owned()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        load_for_with(purpose, Vec::new(), Vec::new(), Path::new("/srv"), read)
    };
    let error = load(Purpose::Serve).unwrap_err().to_string();
    assert!(error.contains("sinks.hook.secret_env: found no variable HOOK_SECRET"), "{error}");
    let settings = load(Purpose::Look).unwrap().settings;
    assert_eq!((settings.data_dir.as_path(), settings.sinks.only_named), (Path::new("/d"), vec!["hook".to_owned()]));
}

/// Each setting with four values, and how it reads back.
type Row = (&'static str, [&'static str; 4], fn(&Settings) -> String);

const ROWS: [Row; 17] = [
    ("LISTEN_ADDR", ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"], |s| s.listen_addr.to_string()),
    ("ADMIN_LISTEN_ADDR", ["127.0.0.1:1", "127.0.0.1:2", "[::1]:3", "127.0.0.1:4"], |s| {
        s.admin_listen_addr.to_string()
    }),
    ("TRUSTED_PROXIES", ["10.0.0.0/8,::1/128", "10.0.0.0/9", "10.0.0.0/10", "10.0.0.0/11"], |s| {
        s.trusted_proxies.iter().map(Network::to_string).collect::<Vec<_>>().join(",")
    }),
    ("RECORD_CLIENT_ADDRESS", ["full", "truncated", "none", "full"], |s| s.record_client_address.name().to_owned()),
    ("DATA_DIR", ["/a", "/b", "/c", "/d"], |s| s.data_dir.display().to_string()),
    ("DATABASE_URL", ["sqlite:a", "sqlite:b", "sqlite:c", "sqlite:d"], |s| s.database_url.clone().unwrap_or_default()),
    ("MANAGEMENT_TOKEN", ["0f8e2b1c9d7a6351", "0f8e2b1c9d7a6352", "0f8e2b1c9d7a6353", "0f8e2b1c9d7a6354"], |s| {
        s.management_token.as_ref().map_or(String::new(), |token| token.expose().to_owned())
    }),
    ("REDIS_URL", ["redis://a", "rediss://b", "redis+cluster://c,d", "redis://e/1"], |s| {
        // Shown without database and password, and with the port that it has.
        match s.redis_url.as_ref().map_or(String::new(), ToString::to_string).as_str() {
            "redis://a:6379" => "redis://a".to_owned(),
            "rediss://b:6379" => "rediss://b".to_owned(),
            "redis+cluster://c:6379,d:6379" => "redis+cluster://c,d".to_owned(),
            "redis://e:6379" => "redis://e/1".to_owned(),
            other => other.to_owned(),
        }
    }),
    ("JOURNAL_MODE", ["strict", "durable", "lossy", "strict"], |s| s.journal_mode.name().to_owned()),
    ("JOURNAL_MAX_BYTES", ["1073741824", "none", "2147483648", "4294967296"], |s| {
        s.journal_max_bytes.map_or("none".to_owned(), |bytes| bytes.to_string())
    }),
    ("DISPATCHER", ["outside", "inside", "outside", "inside"], |s| s.dispatcher.name().to_owned()),
    ("LOG_LEVEL", ["error", "warn", "debug", "trace"], |s| s.log_level.name().to_owned()),
    ("LOG_FORMAT", ["text", "json", "text", "json"], |s| s.log_format.map_or("", LogFormat::name).to_owned()),
    ("HEAD_TIMEOUT", ["1s", "2s", "3s", "4s"], |s| format!("{:?}", s.head_timeout)),
    ("DRAIN_TIMEOUT", ["1s", "2s", "0ns", "4s"], |s| format!("{:?}", s.drain_timeout)),
    ("MAX_HELD_BYTES_TOTAL", ["1", "2", "3", "4"], |s| s.max_held_bytes_total.to_string()),
    ("DEFAULT_API", ["openai", "anthropic", "gemini", "openai"], |s| s.default_api.clone()),
];

#[test]
fn flag_wins_over_environment_over_dotenv_over_file() {
    for (name, values, read) in ROWS {
        // "0ns" is how a zero drain time reads back; it is written "0s".
        let [flag, variable, dotenv, file] = values.map(|value| if value == "0ns" { "0s" } else { value });
        let key = name.to_ascii_lowercase();
        let all = [
            told().file("llm-proxy.yaml", format!("{key}: '{file}'\n")),
            told().file("llm-proxy.yaml", format!("{key}: '{file}'\n")).file(".env", format!("{name}={dotenv}\n")),
            told()
                .file("llm-proxy.yaml", format!("{key}: '{file}'\n"))
                .file(".env", format!("{name}={dotenv}\n"))
                .variable(name, variable),
            told()
                .file("llm-proxy.yaml", format!("{key}: '{file}'\n"))
                .file(".env", format!("{name}={dotenv}\n"))
                .variable(name, variable)
                .flag(name, flag),
        ];
        for (told, expected) in all.iter().zip(values.iter().rev()) {
            assert_eq!(read(&told.settings()), *expected, "{name}");
        }
    }
}

#[test]
fn the_root_key_is_taken_from_every_layer() {
    for told in [
        told().flag("ROOT_KEY", KEY),
        told().variable("ROOT_KEY", KEY),
        told().file(".env", format!("ROOT_KEY={KEY}\n")),
        told().file("llm-proxy.yaml", format!("root_key: {KEY}\n")),
    ] {
        assert_eq!(told.settings().root_key, Some(Secret::new(KEY)));
    }
}

#[test]
fn config_names_the_file_and_then_it_must_be_there() {
    let files = told()
        .file("a.yaml", "log_level: warn\n")
        .file("b.yaml", "log_level: debug\n")
        .file("llm-proxy.yaml", "log_level: trace\n");
    assert_eq!(files.settings().log_level, LogLevel::Trace);
    assert_eq!(files.clone().variable("CONFIG", "a.yaml").settings().log_level, LogLevel::Warn);
    assert_eq!(files.clone().file(".env", "CONFIG=b.yaml").settings().log_level, LogLevel::Debug);
    assert_eq!(
        files.clone().variable("CONFIG", "a.yaml").flag("CONFIG", "b.yaml").settings().log_level,
        LogLevel::Debug
    );
    assert_eq!(files.clone().flag("CONFIG", "/srv/a.yaml").settings().log_level, LogLevel::Warn);
    assert_eq!(files.flag("CONFIG", "c.yaml").error(), "--config: found \"c.yaml\", expected a file that exists");
}

#[test]
fn nothing_at_all_is_the_documented_defaults() {
    for told in [told(), told().file("llm-proxy.yaml", "# nothing yet\n").file(".env", "")] {
        let Loaded { settings, warnings } = told.load().unwrap();
        assert!(warnings.is_empty());
        assert_eq!(settings.listen_addr.to_string(), "127.0.0.1:8080");
        assert_eq!(settings.admin_listen_addr.to_string(), "127.0.0.1:8081");
        assert_eq!((settings.trusted_proxies, settings.proxy_protocol), (Vec::new(), false));
        assert_eq!(settings.record_client_address, RecordClientAddress::None);
        assert_eq!(settings.data_dir, Path::new("/srv/data"));
        assert_eq!(settings.data_dir.display().to_string(), "/srv/data");
        assert_eq!((settings.database_url, settings.management_token, settings.root_key), (None, None, None));
        assert_eq!((settings.log_level, settings.log_format), (LogLevel::Info, None));
        assert_eq!((settings.redis_url, settings.journal_mode), (None, Mode::Durable));
        assert_eq!((settings.journal_max_bytes, settings.dispatcher), (None, DispatcherPlace::Inside));
        assert!(settings.sinks.file.is_some() && settings.sinks.dispatched.is_empty());
        assert_eq!((settings.head_timeout, settings.drain_timeout), (Duration::from_secs(10), Duration::from_secs(30)));
        assert_eq!(settings.max_held_bytes_total, 512 << 20);
        let apis: Vec<_> = settings.apis.iter().map(|api| (&*api.name, api.base_url.to_string())).collect();
        let expected = [
            ("openai", "https://api.openai.com"),
            ("anthropic", "https://api.anthropic.com"),
            ("gemini", "https://generativelanguage.googleapis.com"),
        ];
        assert_eq!(apis, expected.map(|(name, url)| (name, url.to_owned())));
        assert_eq!(settings.default_api, "openai");
    }
}

#[test]
fn the_default_api_is_openai_else_the_first() {
    let groq = told().file("llm-proxy.yaml", "apis: {gemini: {}, anthropic: {}}\n");
    assert_eq!(groq.settings().default_api, "gemini");
    let named = told().file("llm-proxy.yaml", "default_api: anthropic\napis: {gemini: {}, anthropic: {}}\n");
    assert_eq!(named.settings().default_api, "anthropic");
    let absent = told().file("llm-proxy.yaml", "default_api: openai\napis: {gemini: {}, anthropic: {}}\n");
    assert_eq!(
        absent.error(),
        "llm-proxy.yaml:1:14: default_api: found \"openai\", expected one of the APIs gemini, anthropic"
    );
}

#[test]
fn a_bad_value_is_one_line_with_place_found_and_expected() {
    for (told, expected) in [
        (told().flag("LISTEN_ADDR", "x"), "--listen-addr: found \"x\", expected an address as host:port"),
        (told().flag("LISTEN_ADDR", ""), "--listen-addr: found \"\", expected an address"),
        (told().variable("LISTEN_ADDR", "x"), "LISTEN_ADDR: found \"x\", expected an address"),
        (told().file(".env", "\nA=1\nLISTEN_ADDR=x"), ".env:3: LISTEN_ADDR: found \"x\", expected an address"),
        (told().file(".env", "\nnonsense"), ".env:2: found a line that is no assignment, expected KEY=VALUE"),
        (
            told().file(".env", "LOG_LEVEL=info\nLOG_LEVEL=warn"),
            ".env:2: LOG_LEVEL: found it a second time, expected it once: line 1",
        ),
        (
            told().file("llm-proxy.yaml", "a: 1\n"),
            "llm-proxy.yaml:1:1: unknown key `a`, expected one of `listen_addr`, ",
        ),
        (told().file("llm-proxy.yaml", "config: x\n"), "llm-proxy.yaml:1:1: unknown key `config`"),
        (
            told().file("llm-proxy.yaml", "listen_addr: [x]\n"),
            "llm-proxy.yaml:1:14: listen_addr: found a list, expected an address",
        ),
        (
            told().file("llm-proxy.yaml", "listen_addr:\n"),
            "llm-proxy.yaml:1:1: listen_addr: found nothing, expected an address",
        ),
        (
            told().file("llm-proxy.yaml", "log_level: info\nlog_level: info\n"),
            "llm-proxy.yaml:2:1: key `log_level` stands here for the second time",
        ),
        (told().file("llm-proxy.yaml", "- a\n"), "llm-proxy.yaml:1:1: found a list, expected a map of settings"),
        (told().file("llm-proxy.yaml", "apis:\n"), "llm-proxy.yaml:1:1: apis: found nothing, expected a map"),
        (told().flag("HEAD_TIMEOUT", "10"), "--head-timeout: found \"10\", expected a duration with its unit"),
        (told().flag("HEAD_TIMEOUT", "0s"), "--head-timeout: found \"0s\", expected a duration"),
        (
            told().variable("MAX_HELD_BYTES_TOTAL", "512M"),
            "MAX_HELD_BYTES_TOTAL: found \"512M\", expected a number of bytes",
        ),
        (
            told().variable("LOG_LEVEL", "INFO"),
            "LOG_LEVEL: found \"INFO\", expected one of error, warn, info, debug, trace",
        ),
        (
            told().variable("TRUSTED_PROXIES", "10.0.0.0/8,10.1.2.3/16"),
            "TRUSTED_PROXIES: found \"10.1.2.3/16\", the address has bits behind the prefix: expected 10.1.0.0/16",
        ),
        (told().flag("TRUSTED_PROXIES", ""), "--trusted-proxies: found \"\", expected an IP address or network"),
        (
            told().file("llm-proxy.yaml", "trusted_proxies: [10.0.0.0/8, balancer]\n"),
            "llm-proxy.yaml:1:31: trusted_proxies: found \"balancer\", expected an IP address or network",
        ),
        (
            told().file("llm-proxy.yaml", "trusted_proxies: []\n"),
            "llm-proxy.yaml:1:18: trusted_proxies: found an empty list, expected at least one item",
        ),
        (
            told().file("llm-proxy.yaml", "trusted_proxies:\n"),
            "llm-proxy.yaml:1:1: trusted_proxies: found nothing, expected IP addresses and networks",
        ),
        (told().variable("PROXY_PROTOCOL", "true"), "PROXY_PROTOCOL: found \"true\", expected on or off"),
        (
            told().variable("RECORD_CLIENT_ADDRESS", "yes"),
            "RECORD_CLIENT_ADDRESS: found \"yes\", expected one of none, truncated, full",
        ),
        (told().variable("LOG_FORMAT", "logfmt"), "LOG_FORMAT: found \"logfmt\", expected one of text, json"),
        (told().variable("DATABASE_URL", "postgres://h/d"), "DATABASE_URL: found a postgres: URL, expected sqlite:"),
        (
            told().variable("REDIS_URL", "http://:hunter2@h"),
            "REDIS_URL: found a value that is not shown here, expected a URL such as redis://",
        ),
        (
            told().variable("JOURNAL_MODE", "fast"),
            "JOURNAL_MODE: found \"fast\", expected one of strict, durable, lossy",
        ),
        (
            told().flag("JOURNAL_MAX_BYTES", "10G"),
            "--journal-max-bytes: found \"10G\", expected none, or a number of bytes",
        ),
        (told().variable("JOURNAL_MAX_BYTES", "0"), "JOURNAL_MAX_BYTES: found \"0\", expected none, or a number of"),
        (told().variable("DISPATCHER", "on"), "DISPATCHER: found \"on\", expected one of inside, outside"),
        (
            told().file("llm-proxy.yaml", "sinks:\n"),
            "llm-proxy.yaml:1:1: sinks: found nothing, expected a map from the name of a sink to its settings",
        ),
        (
            told().file("llm-proxy.yaml", "sinks:\n  lunary:\n    api_key: hunter2\n"),
            "llm-proxy.yaml:3:14: sinks.lunary.api_key: found a value that is not shown here, expected",
        ),
        (
            told().file("llm-proxy.yaml", "sinks: {lunary: {api_key_env: KEY}}").variable("KEY", ""),
            "llm-proxy.yaml:1:31: sinks.lunary.api_key_env: found no variable KEY, expected",
        ),
        (told().variable("MANAGEMENT_TOKEN", ""), "MANAGEMENT_TOKEN: found an empty secret, expected 16 to 256"),
        (told().variable("ROOT_KEY", ""), "ROOT_KEY: found an empty secret, expected 32 random bytes"),
        (
            told().variable("DEFAULT_API", "groq"),
            "DEFAULT_API: found \"groq\", expected one of the APIs openai, anthropic, gemini",
        ),
        (
            told().variable("ADMIN_LISTEN_ADDR", "127.0.0.1:8080"),
            "ADMIN_LISTEN_ADDR: found 127.0.0.1:8080 for the data plane and the admin plane, expected two addresses",
        ),
    ] {
        let error = told.error();
        assert!(error.starts_with(expected), "{error}\nexpected {expected}");
    }
}

#[test]
fn credentials_of_sinks_come_from_the_environment_or_else_from_dotenv() {
    let sinks = told().file("llm-proxy.yaml", "sinks: {file: none, lunary: {api_key_env: THE_KEY}}\n");
    let key = "0d0c5a0e-6a58-4d0b-9d59-1f6f0f6f7b11";
    for (told, expected) in [
        (sinks.clone().variable("THE_KEY", key), None),
        (sinks.clone().file(".env", format!("THE_KEY={key}\n")), None),
        // What is empty is not there.
        (sinks.clone().file(".env", format!("THE_KEY={key}\n")).variable("THE_KEY", ""), None),
        (
            sinks.clone().file(".env", format!("THE_KEY={key}\n")).variable("THE_KEY", "hunter2"),
            Some("in THE_KEY that is"),
        ),
        (sinks.clone().flag("DATA_DIR", key), Some("found no variable THE_KEY")),
    ] {
        match (told.load(), expected) {
            (Ok(Loaded { settings, warnings }), None) => {
                assert!(settings.sinks.file.is_none() && warnings.is_empty());
                let names: Vec<_> = settings.sinks.dispatched.iter().map(|sink| sink.name.as_str()).collect();
                assert_eq!(names, ["lunary"]);
                assert!(!format!("{settings:?}").contains(key));
            }
            (Err(error), Some(expected)) => assert!(error.contains(expected) && !error.contains("hunter2"), "{error}"),
            (loaded, expected) => panic!("{expected:?}: {}", loaded.err().unwrap_or_default()),
        }
    }
}

#[test]
fn certificate_and_key_come_together_from_whatever_layers() {
    assert_eq!(told().settings().tls, None);
    let tls = |told: Told| told.settings().tls.map(|files| (files.certificate, files.key));
    let both = Some((PathBuf::from("/srv/tls/cert.pem"), PathBuf::from("/etc/key.pem")));
    let file = || told().file("llm-proxy.yaml", "tls_cert_file: ./tls/cert.pem\n");
    assert_eq!(tls(file().flag("TLS_KEY_FILE", "/etc/key.pem")), both);
    assert_eq!(tls(file().variable("TLS_KEY_FILE", "/etc/key.pem")), both);
    assert_eq!(tls(told().flag("TLS_CERT_FILE", "tls/cert.pem").file(".env", "TLS_KEY_FILE=/etc/key.pem")), both);
    for (told, expected) in [
        (file(), "llm-proxy.yaml:1:16: tls_cert_file: found it without TLS_KEY_FILE, expected both or neither"),
        (
            told().flag("TLS_KEY_FILE", "key.pem"),
            "--tls-key-file: found it without TLS_CERT_FILE, expected both or neither",
        ),
        (
            told().variable("TLS_CERT_FILE", "cert.pem").variable("TLS_KEY_FILE", ""),
            "TLS_CERT_FILE: found it without TLS_KEY_FILE, expected both or neither",
        ),
        (file().flag("TLS_KEY_FILE", ""), "--tls-key-file: found \"\", expected a path"),
    ] {
        assert_eq!(told.error(), expected);
    }
}

#[test]
fn the_proxy_protocol_needs_somebody_to_believe_from_whatever_layer() {
    let proxies = |told: Told| {
        let settings = told.settings();
        (settings.proxy_protocol, settings.trusted_proxies.iter().map(Network::to_string).collect::<Vec<_>>())
    };
    let both = (true, vec!["10.0.0.0/8".to_owned(), "192.0.2.7/32".to_owned()]);
    for told in [
        told().flag("PROXY_PROTOCOL", "on").variable("TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.7"),
        told().file(".env", "PROXY_PROTOCOL=on\nTRUSTED_PROXIES=\"10.0.0.0/8, 192.0.2.7\"\n"),
        told().file("llm-proxy.yaml", "proxy_protocol: on\ntrusted_proxies: 10.0.0.0/8, 192.0.2.7\n"),
        told().file("llm-proxy.yaml", "proxy_protocol: 'on'\ntrusted_proxies:\n  - 10.0.0.0/8\n  - 192.0.2.7\n"),
        told()
            .file("llm-proxy.yaml", "trusted_proxies: [\"::1\"]\nproxy_protocol: off\n")
            .variable("PROXY_PROTOCOL", "on")
            .flag("TRUSTED_PROXIES", "10.0.0.0/8,192.0.2.7"),
    ] {
        assert_eq!(proxies(told), both);
    }
    for (told, place) in [
        (told().flag("PROXY_PROTOCOL", "on"), "--proxy-protocol"),
        (told().variable("PROXY_PROTOCOL", "on").variable("TRUSTED_PROXIES", ""), "PROXY_PROTOCOL"),
        (told().file("llm-proxy.yaml", "proxy_protocol: on\n"), "llm-proxy.yaml:1:17: proxy_protocol"),
    ] {
        let expected = "found on without TRUSTED_PROXIES, expected there the addresses of the load balancers that send \
                        the header";
        assert_eq!(told.error(), format!("{place}: {expected}"));
    }
}

#[test]
fn trusted_proxies_that_nobody_asks_for_are_told_of() {
    let told = told().variable("TRUSTED_PROXIES", "10.0.0.0/8");
    let idle = "TRUSTED_PROXIES does nothing: PROXY_PROTOCOL is off and RECORD_CLIENT_ADDRESS is none";
    assert_eq!(told.load().unwrap().warnings, [idle]);
    for used in [
        told.clone().variable("PROXY_PROTOCOL", "on"),
        told.clone().variable("RECORD_CLIENT_ADDRESS", "truncated"),
        told.clone().variable("RECORD_CLIENT_ADDRESS", "full"),
    ] {
        assert_eq!(used.load().unwrap().warnings, [] as [&str; 0]);
    }
}

#[test]
fn a_bad_value_stops_the_start_also_where_a_higher_layer_hides_it() {
    let told = told().file("llm-proxy.yaml", "head_timeout: 10\n").flag("HEAD_TIMEOUT", "10s");
    assert_eq!(told.error().split(", ").next(), Some("llm-proxy.yaml:1:15: head_timeout: found \"10\""));
}

#[test]
fn an_empty_variable_is_unset_and_two_free_ports_differ() {
    let settings = told().variable("LOG_LEVEL", "").file(".env", "LISTEN_ADDR=\n").settings();
    assert_eq!((settings.log_level, settings.listen_addr), (LogLevel::Info, DEFAULT_LISTEN_ADDR));
    told().flag("LISTEN_ADDR", "127.0.0.1:0").flag("ADMIN_LISTEN_ADDR", "127.0.0.1:0").settings();
}

#[test]
fn a_secret_is_in_no_error_and_in_no_debug_text() {
    for value in ["hunter2", "hunter2 hunter2 hunter2", "hunter2-hunter2-hünter2"] {
        for name in ["MANAGEMENT_TOKEN", "ROOT_KEY"] {
            let key = name.to_ascii_lowercase();
            for told in [
                told().flag(name, value),
                told().variable(name, value),
                told().file(".env", format!("{name}='{value}'")),
                told().file("llm-proxy.yaml", format!("{key}: {value}")),
                told().file("llm-proxy.yaml", format!("{key}: \"{value}")),
                told().file("llm-proxy.yaml", format!("{key}: [{value}]")),
            ] {
                let error = told.error();
                assert!(!error.contains("hunter2"), "{error}");
            }
        }
    }
    let settings = told().variable("MANAGEMENT_TOKEN", TOKEN).variable("ROOT_KEY", KEY).settings();
    let shown = format!("{settings:?}");
    assert!(!shown.contains(TOKEN) && !shown.contains(KEY));
}

#[test]
fn near_misses_are_warned_of_and_strangers_are_not() {
    let loaded = told()
        .variable("LISTEN_ADR", "127.0.0.1:1")
        .variable("PATH", "/bin")
        .variable("LOG_FILE", "x")
        .variable("SSL_CERT_FILE", "/etc/ssl/cert.pem")
        .file(".env", "# mine\nMANAGMENT_TOKEN=x\nOPENAI_API_KEY=y\n")
        .load()
        .unwrap();
    assert_eq!(
        loaded.warnings,
        [
            ".env:2: MANAGMENT_TOKEN is not a setting: did you mean MANAGEMENT_TOKEN?",
            "LISTEN_ADR is not a setting: did you mean LISTEN_ADDR?",
        ]
    );
}

#[test]
fn a_misspelt_top_level_key_never_starts() {
    for name in
        NAMES.iter().skip(1).map(|name| name.to_ascii_lowercase()).chain(["apis".to_owned(), "sinks".to_owned()])
    {
        for place in 0..name.len() {
            let typo = format!("{}{}", &name[..place], &name[place + 1..]);
            let error = told().file("llm-proxy.yaml", format!("{typo}: x\n")).error();
            assert!(error.starts_with("llm-proxy.yaml:1:1: ") && error.contains("unknown key"), "{typo}: {error}");
        }
    }
}

/// The folder's YAML files by name.
fn examples(folder: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/config").join(folder);
    let mut found: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read_to_string(entry.path()).unwrap()))
        .collect();
    found.sort();
    found
}

#[test]
fn good_files_start() {
    let files = examples("good");
    assert!(files.len() >= 3);
    for (name, text) in files {
        let loaded = told().file(&name, text).flag("CONFIG", &name).load();
        assert!(loaded.is_ok(), "{:?}", loaded.err());
    }
}

#[test]
fn bad_files_stop_the_start_with_the_line_they_state() {
    let files = examples("bad");
    assert!(files.len() >= 8);
    for (name, text) in files {
        let stated = text.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap();
        let error = told().file(&name, text.as_str()).flag("CONFIG", &name).error();
        assert!(error.starts_with(&format!("{name}:{stated}")), "{error}\nexpected {name}:{stated}");
    }
}
