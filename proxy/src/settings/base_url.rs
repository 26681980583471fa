//! Where a provider is reached.

use std::fmt;
use std::net::Ipv6Addr;

use super::error::quoted;
use super::values::{Refused, Rule};

/// A checked base URL: scheme, authority and path, nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    /// `https`. Plain `http` is taken as meant: models also run next door.
    pub tls: bool,
    /// A name in lower case, or an IP address; an IPv6 address without its brackets.
    pub host: String,
    /// The port given, or the scheme's: 443 with TLS, else 80.
    pub port: u16,
    /// What goes before every request's path: empty, or with a leading and without a trailing slash.
    pub path: String,
}

impl BaseUrl {
    /// The `Host` of requests: the port only where it is not the scheme's own (RFC 9110 §4.2.3), IPv6 in brackets.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == default_port(self.tls) { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(formatter, "{scheme}://{}{}", self.authority(), self.path)
    }
}

const fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

pub(super) const BASE_URL: Rule<BaseUrl> = Rule {
    expected: "a URL such as https://api.example.com/v1, without user name, query or fragment",
    is_secret: false,
    read,
};

fn read(text: &str) -> Result<BaseUrl, Refused> {
    // What stands before an `@` may be a password: nothing of such a URL is shown.
    if text.contains('@') {
        return Err(Refused::Because(
            "found a URL with a user name or an `@`, expected one without: the provider's key belongs to a project"
                .to_owned(),
        ));
    }
    if text.contains(['?', '#']) {
        return Err(Refused::Because("found a URL with a query or fragment, expected one without".to_owned()));
    }
    let base_url = parts(text).ok_or(Refused::Malformed)?;
    if base_url.path.split('/').skip(1).any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(Refused::Because(format!(
            "found {}, expected a path without empty, `.` or `..` segments",
            quoted(text)
        )));
    }
    Ok(base_url)
}

fn parts(text: &str) -> Option<BaseUrl> {
    if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
        return None;
    }
    let (scheme, rest) = text.split_once("://")?;
    let tls = match scheme {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    let (authority, path) = rest.split_at_checked(rest.find('/').unwrap_or(rest.len()))?;
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => {
            let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
            if host.is_empty() || !host.bytes().all(is_host_byte) {
                return None;
            }
            (host, port)
        }
    };
    let port = match port {
        None => default_port(tls),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u16>().ok().filter(|port| *port != 0)?
        }
        Some(_) => return None,
    };
    Some(BaseUrl { tls, host: host.to_ascii_lowercase(), port, path: path.trim_end_matches('/').to_owned() })
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::super::values::Found;
    use super::*;

    #[test]
    fn a_base_url_is_scheme_authority_and_path() {
        for (text, tls, host, port, path, shown) in [
            ("https://api.openai.com", true, "api.openai.com", 443, "", "https://api.openai.com"),
            ("https://api.openai.com/", true, "api.openai.com", 443, "", "https://api.openai.com"),
            ("https://API.Example.com:443/v1/", true, "api.example.com", 443, "/v1", "https://api.example.com/v1"),
            ("http://10.0.0.7:8000/llm/v1", false, "10.0.0.7", 8000, "/llm/v1", "http://10.0.0.7:8000/llm/v1"),
            ("http://[::1]:9000", false, "::1", 9000, "", "http://[::1]:9000"),
            ("http://localhost", false, "localhost", 80, "", "http://localhost"),
        ] {
            let base_url = BASE_URL.judge(Found::Text(text)).unwrap();
            assert_eq!(
                (base_url.tls, &*base_url.host, base_url.port, &*base_url.path),
                (tls, host, port, path),
                "{text}"
            );
            assert_eq!(base_url.to_string(), shown);
        }
    }

    #[test]
    fn other_urls_are_refused_and_passwords_never_shown() {
        for text in [
            "",
            "api.openai.com",
            "ftp://api.openai.com",
            "https:/api.openai.com",
            "https://",
            "https:///v1",
            "https://user:hunter2@api.openai.com",
            "https://hunter2@api.openai.com",
            "https://api.openai.com?key=hunter2",
            "https://api.openai.com/#hunter2",
            "https://api.openai.com:0",
            "https://api.openai.com:65536",
            "https://api.openai.com:",
            "https://api.openai.com:+443",
            "https://a b",
            "https://a/b\\c",
            "https://a//b",
            "https://a/../b",
            "https://[::1",
            "https://[nonsense]",
            "https://[::1]x",
            "https://ü.example",
        ] {
            let problem = BASE_URL.judge(Found::Text(text)).unwrap_err();
            assert!(problem.contains("found") && problem.contains("expected"), "{text}: {problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }
}
