//! Where Redis is: one server, a master that Sentinels know, or a cluster.
//!
//! `redis://`, `redis+sentinel://` and `redis+cluster://`, each with a second `s` before the `+` or the colon for TLS:
//! `scheme://[[user]:password@]host[:port][,host[:port]…][/path]`. The path is the database of a server, `service` or
//! `service/database` for Sentinels, and nothing for a cluster, which has one database. Sentinels that want a password
//! of their own get it from the query: `?sentinel_user=…&sentinel_password=…`. What is special in a URL is written as
//! `%` and two hexadecimal digits there.
//!
//! Reading is strict, and there is no way to switch off the verification of certificates.

use std::fmt;
use std::str::FromStr;

use llm_proxy_core::secret::Secret;
use rustls::pki_types::ServerName;

use crate::sinks::values::FromText;

const SERVER_PORT: u16 = 6_379;
const SENTINEL_PORT: u16 = 26_379;

/// Where Redis is, and how to log in. Holds a password, so it shows only scheme, hosts and service.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub(super) shape: Shape,
    pub(super) tls: bool,
    /// At least one; exactly one for a single server.
    pub(super) hosts: Vec<Host>,
    pub(super) login: Login,
}

/// How the server that takes writes is found.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// It is the one host.
    Server,
    /// The hosts know it.
    Sentinel {
        /// The name that they know it by.
        service: String,
        /// For the Sentinels themselves.
        login: Login,
    },
    /// The hosts are some of its nodes.
    Cluster,
}

/// Who we are, and which database we want.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Login {
    /// `None`: the default user.
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub db: i64,
}

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// A name or an IP address; an IPv6 address without its brackets.
    pub name: String,
    pub port: u16,
}

/// The text is no URL of Redis. It may hold a password, so it is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found a value that is not shown here, expected {0}")]
pub struct InvalidRedisUrl(&'static str);

impl FromStr for RedisUrl {
    type Err = InvalidRedisUrl;

    fn from_str(text: &str) -> Result<Self, InvalidRedisUrl> {
        Self::from_text(text).ok_or_else(|| InvalidRedisUrl(Self::expected(text)))
    }
}

impl FromText for RedisUrl {
    const EXPECTED: &'static str = "a URL such as redis://:password@redis.example.com:6379/0, \
        redis+sentinel://host-1:26379,host-2:26379/service or redis+cluster://host-1:6379,host-2:6379, \
        with rediss in it for TLS";
    const IS_SECRET: bool = true;

    fn from_text(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://").filter(|(_, rest)| !rest.contains('#'))?;
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user_info, hosts) = match authority.rsplit_once('@') {
            Some((user_info, hosts)) => (Some(user_info), hosts),
            None => (None, authority),
        };
        let (tls, is_sentinel, is_cluster) = match scheme {
            "redis" => (false, false, false),
            "rediss" => (true, false, false),
            "redis+sentinel" => (false, true, false),
            "rediss+sentinel" => (true, true, false),
            "redis+cluster" => (false, false, true),
            "rediss+cluster" => (true, false, true),
            _ => return None,
        };
        let own_port = if is_sentinel { SENTINEL_PORT } else { SERVER_PORT };
        let hosts: Vec<Host> = hosts.split(',').map(|host| Host::read(host, own_port)).collect::<Option<_>>()?;
        let (user, password) = user_info.map_or(Some((None, None)), read_user_info)?;
        let (shape, db) = if is_sentinel {
            let (service, db) = path.split_once('/').unwrap_or((path, ""));
            let service = percent_decoded(service).filter(|service| !service.is_empty())?;
            (Shape::Sentinel { service, login: read_sentinel_login(query)? }, read_db(db)?)
        } else {
            let shape = if is_cluster { Shape::Cluster } else { Shape::Server };
            (shape, query.is_none().then(|| read_db(path))??)
        };
        let fits = match shape {
            Shape::Server => hosts.len() == 1,
            Shape::Sentinel { .. } => true,
            Shape::Cluster => db == 0,
        };
        fits.then_some(Self { shape, tls, hosts, login: Login { user, password, db } })
    }

    fn expected(text: &str) -> &'static str {
        if names_no_service(text) {
            "a service name behind the Sentinels, as in redis+sentinel://host-1:26379,host-2:26379/service"
        } else {
            Self::EXPECTED
        }
    }
}

/// Whether Sentinels are told, and not of which service.
fn names_no_service(text: &str) -> bool {
    let rest = ["redis+sentinel://", "rediss+sentinel://"].into_iter().find_map(|scheme| text.strip_prefix(scheme));
    let place = rest.map(|rest| rest.split_once('?').map_or(rest, |(place, _)| place));
    // Behind hosts only: without any, the whole URL is to be told.
    place.is_some_and(|place| match place.split_once('/') {
        Some((hosts, path)) => !hosts.is_empty() && (path.is_empty() || path.starts_with('/')),
        None => !place.is_empty(),
    })
}

/// User and password. A user alone is refused: it would be taken for one that logs in, and does not.
fn read_user_info(text: &str) -> Option<(Option<String>, Option<Secret>)> {
    let (user, password) = text.split_once(':')?;
    let (user, password) = (percent_decoded(user)?, percent_decoded(password)?);
    let user = (!user.is_empty()).then_some(user);
    (!password.is_empty()).then(|| (user, Some(Secret::new(password))))
}

fn read_sentinel_login(query: Option<&str>) -> Option<Login> {
    let mut login = Login::default();
    for pair in query.into_iter().flat_map(|query| query.split('&')) {
        let (key, value) = pair.split_once('=')?;
        let value = percent_decoded(value).filter(|value| !value.is_empty())?;
        match key {
            "sentinel_user" if login.user.is_none() => login.user = Some(value),
            "sentinel_password" if login.password.is_none() => login.password = Some(Secret::new(value)),
            _ => return None,
        }
    }
    (login.user.is_none() || login.password.is_some()).then_some(login)
}

fn read_db(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('/').unwrap_or(text);
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    if digits.is_empty() { Some(0) } else { digits.parse::<u32>().ok().filter(|_| is_number).map(i64::from) }
}

impl Host {
    fn read(text: &str, own_port: u16) -> Option<Self> {
        let (name, port) = match text.strip_prefix('[') {
            Some(text) => {
                let (name, rest) = text.split_once(']')?;
                (name, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
            }
            None => text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port))),
        };
        let port = match port {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
            Some(_) => return None,
            None => own_port,
        };
        let is_name = ServerName::try_from(name).is_ok();
        (is_name && port != 0).then(|| Self { name: name.to_owned(), port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, port } = self;
        if name.contains(':') { write!(formatter, "[{name}]:{port}") } else { write!(formatter, "{name}:{port}") }
    }
}

/// RFC 3986 §2.1.
fn percent_decoded(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut octets = text.bytes();
    while let Some(octet) = octets.next() {
        decoded.push(if octet == b'%' {
            let digits = [octets.next()?, octets.next()?];
            let is_number = digits.iter().all(u8::is_ascii_hexdigit);
            let digits = std::str::from_utf8(&digits).ok().filter(|_| is_number)?;
            u8::from_str_radix(digits, 16).ok()?
        } else {
            octet
        });
    }
    String::from_utf8(decoded).ok()
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, service) = match &self.shape {
            Shape::Server => ("", None),
            Shape::Sentinel { service, .. } => ("+sentinel", Some(service)),
            Shape::Cluster => ("+cluster", None),
        };
        write!(formatter, "redis{}{kind}://", if self.tls { "s" } else { "" })?;
        for (place, host) in self.hosts.iter().enumerate() {
            write!(formatter, "{}{host}", if place > 0 { "," } else { "" })?;
        }
        service.map_or(Ok(()), |service| write!(formatter, "/{service}"))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RedisUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: Option<&str>, password: Option<&str>, db: i64) -> Login {
        Login { user: user.map(str::to_owned), password: password.map(Secret::new), db }
    }

    #[test]
    fn a_url_is_taken_apart_and_shown_without_its_secrets() {
        for (text, expected_login, shown) in [
            ("redis://a", login(None, None, 0), "redis://a:6379"),
            ("redis://a:7000/3", login(None, None, 3), "redis://a:7000"),
            ("rediss://:p%40ss%2Fw@a.example", login(None, Some("p@ss/w"), 0), "rediss://a.example:6379"),
            ("redis://me:p:w@10.0.0.7/1/", login(Some("me"), Some("p:w"), 1), "redis://10.0.0.7:6379"),
            ("redis://:x@[::1]:7000", login(None, Some("x"), 0), "redis://[::1]:7000"),
            (
                "redis+sentinel://me:x@a,b:7000/my%20master/2",
                login(Some("me"), Some("x"), 2),
                "redis+sentinel://a:26379,b:7000/my master",
            ),
            ("rediss+cluster://a,b:1,[::2]/0", login(None, None, 0), "rediss+cluster://a:6379,b:1,[::2]:6379"),
        ] {
            let url: RedisUrl = text.parse().unwrap();
            assert!(url.login == expected_login, "{text}");
            assert_eq!(url.to_string(), shown, "{text}");
            assert_eq!(format!("{url:?}"), format!("RedisUrl({shown})"));
            assert_eq!(url.tls, text.starts_with("rediss"));
        }
    }

    #[test]
    fn sentinels_can_have_a_login_of_their_own() {
        for (text, expected) in [
            ("redis+sentinel://:x@a/m", Login::default()),
            ("redis+sentinel://:x@a/m?sentinel_password=y%26", login(None, Some("y&"), 0)),
            ("redis+sentinel://a/m?sentinel_user=u&sentinel_password=y", login(Some("u"), Some("y"), 0)),
        ] {
            let url: RedisUrl = text.parse().unwrap();
            assert!(matches!(&url.shape, Shape::Sentinel { login, .. } if *login == expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_such_url_is_refused_and_not_repeated() {
        for text in [
            "",
            "redis",
            "redis://",
            "http://hunter2@a",
            "redis://a,b",
            "redis://a:0",
            "redis://a:70000",
            "redis://a:+1",
            "redis://::1",
            "redis://[::1",
            "redis://a b",
            "redis://a/x",
            "redis://a/-1",
            "redis://a/0/1",
            "redis://hunter2@a",
            "redis://me:@a",
            "redis://:%4@a",
            "redis://:%ff@a",
            "rediss://a/#insecure",
            "redis://a?protocol=resp3",
            "redis+sentinel://",
            "redis+sentinel:///m",
            "redis+sentinel://a/m?sentinel_user=u",
            "redis+sentinel://a/m?password=x",
            "redis+cluster://a/1",
            "redis+cluster://a,,b",
            "valkey://a",
        ] {
            let error = text.parse::<RedisUrl>().unwrap_err().to_string();
            assert!(
                error.starts_with("found a value that is not shown here, expected a URL such as redis://"),
                "{text}"
            );
            assert!(!error.contains("hunter2"));
        }
    }

    #[test]
    fn sentinels_without_a_service_are_told_that_it_is_missing() {
        for text in [
            "redis+sentinel://a",
            "rediss+sentinel://:hunter2@a,b:1/",
            "redis+sentinel://a//0",
            "redis+sentinel://a?sentinel_password=hunter2",
        ] {
            let error = text.parse::<RedisUrl>().unwrap_err().to_string();
            assert!(error.contains("expected a service name behind the Sentinels"), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
