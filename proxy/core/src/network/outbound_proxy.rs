//! Which proxy a connection to a provider goes through, from the variables that other programs obey: `https_proxy`,
//! `http_proxy`, `all_proxy`, `no_proxy`, as curl reads them.
//!
//! * `https_proxy`, else `HTTPS_PROXY`, for providers reached by `https`; `http_proxy` for those reached by plain `http`,
//!   in lower case only: under CGI a request's `Proxy` field is the variable `HTTP_PROXY`. For both else `all_proxy`,
//!   `ALL_PROXY`. An empty variable counts as unset.
//! * `no_proxy`, else `NO_PROXY`: entries between commas or white space. A name is exempt with all names below it, with or
//!   without a leading dot; letter case and a dot at the end do not matter. Addresses and networks exempt providers that
//!   are given by address: nothing is resolved for it. `*` exempts all.
//! * Loopback is exempt only where `no_proxy` says so, as with curl (Go exempts it always).
//!
//! Beyond curl, where it would pass in silence over what its writer meant: an entry may have a port and is then for that
//! port only, an IPv6 address may stand in brackets, `*.example.com` is `example.com`, and `*` may stand among others.
//! What cannot be meant in one way stops the start: a bad entry, a proxy without a port (curl takes 1080, others 80), a
//! path, a scheme other than `http`. Only variables that a provider needs are judged.

use std::net::{IpAddr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::cidr::{InvalidNetwork, Network};
use crate::secret::Secret;
use crate::target::decode;

const FOR_HTTPS: &[&str] = &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
const FOR_HTTP: &[&str] = &["http_proxy", "all_proxy", "ALL_PROXY"];
const EXEMPTIONS: &[&str] = &["no_proxy", "NO_PROXY"];

/// A provider, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Provider<'a> {
    /// Whether it is reached by `https`.
    pub tls: bool,
    /// Its name, or its IP address; an IPv6 address without brackets.
    pub host: &'a str,
    /// Its port.
    pub port: u16,
}

/// A proxy that is spoken to in plain HTTP/1.1 and asked for tunnels by `CONNECT` (RFC 9110 §9.3.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundProxy {
    /// Its name in lower case, or its IP address; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `user:password`, without percent-encoding. The user has no colon, neither has control characters.
    credentials: Option<Secret>,
}

impl OutboundProxy {
    /// The value of `Proxy-Authorization` (RFC 7617 §2, UTF-8), if the proxy's URL has credentials.
    pub fn authorization(&self) -> Option<Secret> {
        self.credentials.as_ref().map(|credentials| {
            let mut value = "Basic ".to_owned();
            STANDARD.encode_string(credentials.expose(), &mut value);
            Secret::new(value)
        })
    }
}

/// A variable that cannot be obeyed. Nothing of a proxy's URL is in it: any part of it may be a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct InvalidVariable {
    /// Its name.
    pub variable: &'static str,
    /// What was found and what is expected.
    pub problem: String,
}

/// The proxy for this provider, if it is not reached directly. `variable` gives the value of the variable of that name.
///
/// # Errors
/// [`InvalidVariable`] for the exemptions when any proxy is set, and for the proxy when the provider is not exempt.
pub fn choose<'a>(
    variable: impl Fn(&str) -> Option<&'a str>,
    provider: Provider<'_>,
) -> Result<Option<OutboundProxy>, InvalidVariable> {
    let first_set = |names: &[&'static str]| {
        names.iter().find_map(|name| Some((*name, variable(name).filter(|value| !value.is_empty())?)))
    };
    let Some((name, url)) = first_set(if provider.tls { FOR_HTTPS } else { FOR_HTTP }) else { return Ok(None) };
    if let Some((name, list)) = first_set(EXEMPTIONS)
        && is_exempt(list, provider).map_err(|problem| InvalidVariable { variable: name, problem })?
    {
        return Ok(None);
    }
    let refused =
        |problem: &str| InvalidVariable { variable: name, problem: format!("{problem}, expected {EXPECTED}") };
    proxy(url).map(Some).map_err(refused)
}

const EXPECTED: &str = "http://host:port or http://user:password@host:port, with other characters than letters, digits, \
                        -, ., _ and ~ in user and password percent-encoded";

/// The proxy under this URL, or what was found instead.
fn proxy(url: &str) -> Result<OutboundProxy, &'static str> {
    if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("found white space, a control character or one that is not ASCII");
    }
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    match scheme.to_ascii_lowercase().as_str() {
        "http" => {}
        "https" => return Err("found a proxy that is itself reached by https, which is not supported"),
        "socks" | "socks4" | "socks4a" | "socks5" | "socks5h" => {
            return Err("found a SOCKS proxy, which is not supported");
        }
        _ => return Err("found an unknown scheme"),
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
    if !matches!(path, "" | "/") {
        return Err("found a path, query or fragment");
    }
    let (userinfo, authority) = match authority.rsplit_once('@') {
        Some((userinfo, authority)) => (Some(userinfo), authority),
        None => (None, authority),
    };
    let credentials = match userinfo {
        None | Some("") => None,
        Some(userinfo) => Some(credentials(userinfo).ok_or("found a malformed user or password")?),
    };
    let (host, port) = host_and_port(authority).ok_or("found a malformed host or port")?;
    let port = port.ok_or("found no port, which curl takes for 1080 and others for 80")?;
    Ok(OutboundProxy { host: host.to_ascii_lowercase(), port, credentials })
}

/// Basic credentials cannot have a colon in the user, nor control characters (RFC 7617 §2).
fn credentials(userinfo: &str) -> Option<Secret> {
    if userinfo.contains('@') {
        return None;
    }
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let (user, password) = (decode(user)?, decode(password)?);
    let is_sound = !user.contains(':') && !user.chars().chain(password.chars()).any(char::is_control);
    if is_sound { Some(Secret::new(format!("{user}:{password}"))) } else { None }
}

/// `host`, `host:port`, `[address]` or `[address]:port`. The host without brackets.
fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, rest) = bracketed.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => {
            let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
            if host.is_empty() || !host.bytes().all(is_host_byte) {
                return None;
            }
            (host, port)
        }
    };
    match port {
        None => Some((host, None)),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u16>().ok().filter(|port| *port != 0).map(|port| (host, Some(port)))
        }
        Some(_) => None,
    }
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether the list exempts the provider. Every entry is judged, behind a matching one too: a mistake must not wait for
/// the day on which the entry before it goes.
fn is_exempt(list: &str, provider: Provider<'_>) -> Result<bool, String> {
    let host = Host::of(provider.host);
    let mut is_exempt = false;
    for entry in list.split(|letter: char| letter == ',' || letter.is_whitespace()).filter(|entry| !entry.is_empty()) {
        let exemption = Exemption::read(entry)
            .map_err(|expected| format!("found {:?} in the list, expected {expected}", shortened(entry)))?;
        is_exempt |= exemption.has(host, provider.port);
    }
    Ok(is_exempt)
}

/// The entry, cut where nobody would read on.
fn shortened(entry: &str) -> &str {
    entry.char_indices().nth(80).and_then(|(end, _)| entry.get(..end)).unwrap_or(entry)
}

/// A host by address or by name, the name without a dot at its end.
#[derive(Clone, Copy, Debug)]
enum Host<'a> {
    Address(IpAddr),
    Name(&'a str),
}

impl<'a> Host<'a> {
    fn of(host: &'a str) -> Self {
        match host.parse::<IpAddr>() {
            Ok(address) => Self::Address(address),
            Err(_) => Self::Name(host.strip_suffix('.').unwrap_or(host)),
        }
    }
}

/// What an entry of the list is.
const FORMS: &str = "a host name, an IP address or network, a host with its port, or *";

/// One entry of the list.
#[derive(Clone, Copy, Debug)]
enum Exemption<'a> {
    All,
    Network(Network, Option<u16>),
    /// A name and all below it. Without dots at its ends.
    Domain(&'a str, Option<u16>),
}

impl<'a> Exemption<'a> {
    /// The entry, or what is expected instead.
    fn read(entry: &'a str) -> Result<Self, String> {
        if entry == "*" {
            return Ok(Self::All);
        }
        match entry.parse::<Network>() {
            // Curl takes the network, and this list is not ours alone.
            Ok(network) | Err(InvalidNetwork::HostBits(network)) => return Ok(Self::Network(network, None)),
            Err(InvalidNetwork::Address) => {}
            Err(error @ (InvalidNetwork::Prefix(_) | InvalidNetwork::MappedPrefix)) => {
                let text = error.to_string();
                return Err(text.strip_prefix("expected ").unwrap_or(&text).to_owned());
            }
        }
        let below = entry.strip_prefix("*.").or_else(|| entry.strip_prefix('.')).unwrap_or(entry);
        let (host, port) = host_and_port(below).ok_or(FORMS)?;
        match Host::of(host) {
            Host::Address(_) if below.len() != entry.len() => Err(FORMS.to_owned()),
            Host::Address(address) => Ok(Self::Network(Network::from(address), port)),
            Host::Name(name) if name.split('.').any(str::is_empty) => Err(FORMS.to_owned()),
            // The last label of a name is never a number: such a text is part of an address.
            Host::Name(name) if name.rsplit('.').next().is_some_and(is_number) => {
                Err("a whole IP address, or a network such as 192.168.0.0/16".to_owned())
            }
            Host::Name(name) => Ok(Self::Domain(name, port)),
        }
    }

    fn has(self, host: Host<'_>, port: u16) -> bool {
        let (is_there, on_port) = match (self, host) {
            (Self::All, _) => (true, None),
            (Self::Network(network, on_port), Host::Address(address)) => (network.contains(address), on_port),
            (Self::Domain(domain, on_port), Host::Name(name)) => (is_within(name, domain), on_port),
            (Self::Network(..), Host::Name(_)) | (Self::Domain(..), Host::Address(_)) => (false, None),
        };
        is_there && on_port.is_none_or(|expected| expected == port)
    }
}

fn is_number(label: &str) -> bool {
    label.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether the name is the domain or below it.
fn is_within(name: &str, domain: &str) -> bool {
    name.len()
        .checked_sub(domain.len())
        .and_then(|start| name.split_at_checked(start))
        .is_some_and(|(before, end)| end.eq_ignore_ascii_case(domain) && (before.is_empty() || before.ends_with('.')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn chosen(variables: Variables<'_>, url: &str) -> Result<Option<OutboundProxy>, InvalidVariable> {
        let (scheme, authority) = url.split_once("://").unwrap();
        let (host, port) = host_and_port(authority).unwrap();
        let tls = scheme == "https";
        let provider = Provider { tls, host, port: port.unwrap_or(if tls { 443 } else { 80 }) };
        choose(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| *value), provider)
    }

    /// The proxy's host and port, or `direct`.
    fn way(variables: Variables<'_>, url: &str) -> String {
        chosen(variables, url).unwrap().map_or("direct".to_owned(), |proxy| format!("{}:{}", proxy.host, proxy.port))
    }

    #[test]
    fn each_scheme_has_its_variables_in_their_order() {
        let all = [
            ("ALL_PROXY", "http://all:1"),
            ("all_proxy", "http://all-lower:2"),
            ("HTTPS_PROXY", "http://https:3"),
            ("https_proxy", "http://https-lower:4"),
            ("HTTP_PROXY", "http://http:5"),
            ("http_proxy", "http://http-lower:6"),
        ];
        for (set, https, http) in [
            (&[] as &[&str], "direct", "direct"),
            (&["ALL_PROXY"], "all:1", "all:1"),
            (&["ALL_PROXY", "all_proxy"], "all-lower:2", "all-lower:2"),
            (&["ALL_PROXY", "HTTPS_PROXY"], "https:3", "all:1"),
            (&["HTTPS_PROXY"], "https:3", "direct"),
            (&["HTTPS_PROXY", "https_proxy"], "https-lower:4", "direct"),
            (&["HTTP_PROXY"], "direct", "direct"),
            (&["HTTP_PROXY", "all_proxy"], "all-lower:2", "all-lower:2"),
            (&["HTTP_PROXY", "http_proxy", "all_proxy"], "all-lower:2", "http-lower:6"),
        ] {
            let variables: Vec<_> = all.iter().copied().filter(|(name, _)| set.contains(name)).collect();
            assert_eq!(way(&variables, "https://api.example.com"), https, "{set:?}");
            assert_eq!(way(&variables, "http://api.example.com"), http, "{set:?}");
        }
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        for (variables, expected) in [
            (&[("https_proxy", ""), ("HTTPS_PROXY", "http://proxy:3128")][..], "proxy:3128"),
            (&[("HTTPS_PROXY", ""), ("ALL_PROXY", "http://proxy:3128")], "proxy:3128"),
            (&[("HTTPS_PROXY", "")], "direct"),
            (&[("HTTPS_PROXY", "http://proxy:3128"), ("no_proxy", ""), ("NO_PROXY", "*")], "direct"),
            (&[("HTTPS_PROXY", "http://proxy:3128"), ("no_proxy", "x"), ("NO_PROXY", "*")], "proxy:3128"),
        ] {
            assert_eq!(way(variables, "https://api.example.com"), expected, "{variables:?}");
        }
    }

    #[test]
    fn a_proxy_is_host_port_and_perhaps_credentials() {
        for (url, host, port, authorization) in [
            ("http://proxy.example.com:3128", "proxy.example.com", 3128, None),
            ("http://proxy.example.com:3128/", "proxy.example.com", 3128, None),
            ("HTTP://Proxy:080", "proxy", 80, None),
            ("proxy:3128", "proxy", 3128, None),
            ("10.0.0.7:3128", "10.0.0.7", 3128, None),
            ("http://[2001:DB8::1]:3128", "2001:db8::1", 3128, None),
            ("http://@proxy:3128", "proxy", 3128, None),
            ("http://user:pass@proxy:3128", "proxy", 3128, Some("Basic dXNlcjpwYXNz")),
            ("user:pass@proxy:3128", "proxy", 3128, Some("Basic dXNlcjpwYXNz")),
            ("http://user@proxy:3128", "proxy", 3128, Some("Basic dXNlcjo=")),
            ("http://us%40r:p%3Aw@proxy:3128", "proxy", 3128, Some("Basic dXNAcjpwOnc=")),
            ("http://us:p:w@proxy:3128", "proxy", 3128, Some("Basic dXM6cDp3")),
            ("http://:secret@proxy:3128", "proxy", 3128, Some("Basic OnNlY3JldA==")),
        ] {
            let proxy = chosen(&[("HTTPS_PROXY", url)], "https://api.example.com").unwrap().unwrap();
            assert_eq!((proxy.host.as_str(), proxy.port), (host, port), "{url}");
            let found = proxy.authorization();
            assert_eq!(found.as_ref().map(Secret::expose), authorization, "{url}");
            assert!(!format!("{proxy:?}").contains("pass"), "{proxy:?}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_obeyed_stops_the_start_and_is_not_shown() {
        for (url, problem) in [
            ("https://hunter2:hunter2@proxy:443", "reached by https"),
            ("socks5://hunter2@proxy:1080", "SOCKS"),
            ("SOCKS5H://proxy:1080", "SOCKS"),
            ("ftp://proxy:21", "unknown scheme"),
            ("http://hunter2@proxy", "found no port"),
            ("proxy", "found no port"),
            ("http://", "malformed host"),
            ("http://:3128", "malformed host"),
            ("http://pro xy:3128", "white space"),
            ("http://proxy:3128\n", "white space"),
            ("http://proxý:3128", "not ASCII"),
            ("http://proxy:0", "malformed host or port"),
            ("http://proxy:65536", "malformed host or port"),
            ("http://proxy:+80", "malformed host or port"),
            ("http://proxy:", "malformed host or port"),
            ("http://2001:db8::1:3128", "malformed host or port"),
            ("http://[::1", "malformed host or port"),
            ("http://[proxy]:3128", "malformed host or port"),
            ("http://proxy:3128/path", "found a path"),
            ("http://proxy:3128?hunter2", "found a path"),
            ("http://user:hunter2/2@proxy:3128", "found a path"),
            ("http://user:hunter2#@proxy:3128", "found a path"),
            ("http://user:hunter2@2@proxy:3128", "malformed user"),
            ("http://user:hunter2%@proxy:3128", "malformed user"),
            ("http://user:hunter2%0A@proxy:3128", "malformed user"),
            ("http://user:hunter2%FF@proxy:3128", "malformed user"),
            ("http://us%3Aer:hunter2@proxy:3128", "malformed user"),
        ] {
            let error = chosen(&[("ALL_PROXY", url)], "https://api.example.com").unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("ALL_PROXY: found") && text.contains("expected http://host:port"), "{text}");
            assert!(text.contains(problem), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn only_what_a_provider_needs_is_judged() {
        for (variables, url) in [
            (&[("HTTPS_PROXY", "socks5://proxy:1")][..], "http://api.example.com"),
            (&[("HTTPS_PROXY", "socks5://proxy:1"), ("NO_PROXY", "example.com")], "https://api.example.com"),
            (&[("NO_PROXY", "192.168.")], "https://api.example.com"),
        ] {
            assert_eq!(way(variables, url), "direct", "{variables:?} {url}");
        }
        let variables = [("https_proxy", "http://proxy:1"), ("HTTPS_PROXY", "socks5://proxy:1"), ("ALL_PROXY", "?")];
        assert_eq!(way(&variables, "https://api.example.com"), "proxy:1");
    }

    #[test]
    fn exemptions_match_as_they_do_for_curl() {
        for (list, url, is_exempt) in [
            ("example.com", "https://example.com", true),
            ("example.com", "https://api.example.com", true),
            ("example.com", "https://EXAMPLE.com", true),
            ("Example.COM.", "https://api.example.com", true),
            ("example.com", "https://api.example.com.", true),
            ("example.com", "https://notexample.com", false),
            ("example.com", "https://example.com.org", false),
            ("example.com", "https://com", false),
            (".example.com", "https://example.com", true),
            (".example.com", "https://api.example.com", true),
            (".example.com", "https://notexample.com", false),
            ("api.example.com", "https://example.com", false),
            ("example.com", "https://example.com:8443", true),
            ("localhost", "https://localhost", true),
            ("", "https://localhost", false),
            ("other.org", "https://localhost", false),
            ("other.org", "https://127.0.0.1", false),
            ("*", "https://api.example.com", true),
            ("*", "https://[::1]", true),
            ("a.org, example.com", "https://example.com", true),
            ("a.org,,example.com,", "https://example.com", true),
            ("a.org example.com", "https://example.com", true),
            (" \texample.com ", "https://example.com", true),
            ("127.0.0.1", "https://127.0.0.1", true),
            ("127.0.0.1", "https://127.0.0.2", false),
            ("127.0.0.0/8", "https://127.1.2.3", true),
            ("127.0.0.5/8", "https://127.0.0.1", true),
            ("192.168.0.0/16", "https://192.169.0.1", false),
            ("192.168.0.0/16", "https://192.168.0.1.example.com", false),
            ("example.com", "https://10.0.0.1", false),
            ("::1", "https://[::1]", true),
            ("fd00::/8", "https://[fd12::1]", true),
            ("fd00::/8", "https://[fe80::1]", false),
            ("0.0.0.0/0", "https://[::1]", false),
            ("10.0.0.1", "https://[::ffff:10.0.0.1]", true),
        ] {
            let variables = [("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", list)];
            let expected = if is_exempt { "direct" } else { "proxy:3128" };
            assert_eq!(way(&variables, url), expected, "{list:?} {url}");
        }
    }

    #[test]
    fn exemptions_go_beyond_curl_where_it_would_pass_over_them() {
        for (list, url, is_exempt) in [
            ("*,other.org", "https://example.com", true),
            ("other.org,*", "https://example.com", true),
            ("*.example.com", "https://api.example.com", true),
            ("*.example.com", "https://example.com", true),
            ("*.example.com", "https://notexample.com", false),
            ("example.com:443", "https://api.example.com", true),
            ("example.com:443", "https://api.example.com:8443", false),
            (".example.com:8443", "https://api.example.com:8443", true),
            ("10.0.0.1:8000", "https://10.0.0.1:8000", true),
            ("10.0.0.1:8000", "https://10.0.0.1", false),
            ("[::1]", "https://[::1]", true),
            ("[::1]:8000", "https://[::1]:8000", true),
            ("[::1]:8000", "https://[::1]:8001", false),
        ] {
            let variables = [("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", list)];
            let expected = if is_exempt { "direct" } else { "proxy:3128" };
            assert_eq!(way(&variables, url), expected, "{list:?} {url}");
        }
    }

    #[test]
    fn an_exemption_that_cannot_be_meant_stops_the_start() {
        for (entry, expected) in [
            ("http://example.com", "a host name"),
            ("example.com/path", "a host name"),
            ("exa*mple.com", "a host name"),
            ("192.168.*", "a host name"),
            ("**", "a host name"),
            ("*.", "a host name"),
            (".", "a host name"),
            ("*.10.0.0.1", "a host name"),
            (".10.0.0.1", "a host name"),
            ("<local>", "a host name"),
            ("ü.example", "a host name"),
            ("example.com:", "a host name"),
            ("example.com:0", "a host name"),
            ("example.com:https", "a host name"),
            ("[::1", "a host name"),
            ("[example.com]", "a host name"),
            ("192.168.0.0/16:80", "a prefix length from 0 to 32"),
            ("10.0.0.0/33", "a prefix length from 0 to 32"),
            ("fd00::/129", "a prefix length from 0 to 128"),
            ("::ffff:10.0.0.0/8", "a prefix length from 96 to 128"),
            ("192.168", "a whole IP address"),
            ("192.168.", "a whole IP address"),
            ("10.0.0.256", "a whole IP address"),
            ("..", "a host name"),
            ("example..com", "a host name"),
        ] {
            // Behind an entry that matches too.
            let list = format!("example.com,{entry}");
            let variables = [("HTTPS_PROXY", "http://proxy:3128"), ("no_proxy", list.as_str())];
            let error = chosen(&variables, "https://example.com").unwrap_err();
            assert_eq!(error.variable, "no_proxy");
            let text = error.to_string();
            assert!(text.contains(&format!("found {entry:?} in the list, expected {expected}")), "{text}");
        }
        let long = "x".repeat(200) + "*";
        let variables = [("HTTPS_PROXY", "http://proxy:3128"), ("no_proxy", long.as_str())];
        assert!(chosen(&variables, "https://example.com").unwrap_err().to_string().len() < 250);
    }

    proptest! {
        #[test]
        fn any_credentials_survive_their_encoding(user in "[^:\\p{Cc}]{1,12}", password in "\\P{Cc}{0,12}") {
            let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
            let url = format!("http://{}:{}@proxy:3128", encoded(&user), encoded(&password));
            let proxy = chosen(&[("HTTPS_PROXY", url.as_str())], "https://api.example.com").unwrap().unwrap();
            let value = proxy.authorization().unwrap();
            let basic = value.expose().strip_prefix("Basic ").unwrap().to_owned();
            prop_assert_eq!(STANDARD.decode(basic).unwrap(), format!("{user}:{password}").into_bytes());
        }

        #[test]
        fn no_error_tells_a_password(password in "[ -~]{0,6}hunter2[ -~]{0,6}", rest in "[ -~]{0,8}") {
            let url = format!("http://user:{password}@proxy{rest}");
            let told = match chosen(&[("HTTPS_PROXY", url.as_str())], "https://api.example.com") {
                Ok(proxy) => format!("{proxy:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            prop_assert!(!told.contains("hunter2"));
        }

        #[test]
        fn a_name_is_exempt_by_itself_and_by_every_domain_above_it(
            labels in proptest::collection::vec("[a-z][a-z0-9-]{0,5}", 1..5),
            up in 0usize..5,
            dotted in any::<bool>(),
        ) {
            let domain = labels[up.min(labels.len() - 1)..].join(".");
            let list = if dotted { format!(".{domain}") } else { domain.clone() };
            let variables = [("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", list.as_str())];
            prop_assert_eq!(way(&variables, &format!("https://{}", labels.join("."))), "direct");
            prop_assert_eq!(way(&variables, &format!("https://x{domain}")), "proxy:3128");
        }
    }
}
