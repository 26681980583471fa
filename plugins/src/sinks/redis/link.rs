//! A connection to the server that takes writes, however it has to be found.
//!
//! The protocol is the `redis` crate's. Streams under it are our own: TLS then believes the same authorities as every
//! other sink, and nothing can switch its verification off. So are the two ways to find a server, because there is one
//! key only:
//! * **Sentinel**: each is asked for the master's address until one names a server that says of itself that it is one.
//! * **Cluster**: a node that does not have the key names the one that has it (`MOVED`).
//!
//! A link is not repaired. After whatever failed it is dropped, and the next one is opened to where the master, or the
//! key, is by then: one way for restarts, failovers and resharding alike.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, RedisConnectionInfo, Value};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

use super::fault::RedisFault;
use super::url::{Host, Login, RedisUrl, Shape};

/// The longest wait for one server while the right one is looked for. One that is gone must not use up the time for
/// the next one.
const STEP_TIMEOUT: Duration = Duration::from_secs(3);
/// Most nodes of a cluster that are asked one after the other where the key is. Two are the rule.
const MOST_HOPS: usize = 5;
/// Commands that may wait for their turn before whoever sends more has to wait.
const MOST_QUEUED: usize = 1_024;
/// Bytes of commands that are collected before they are written.
const WRITE_BYTES: usize = 64 << 10;

/// An open connection. Commands sent over it at the same time are pipelined, and answered in order.
pub(crate) struct Link {
    connection: MultiplexedConnection,
    driver: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        // A command that blocks would hold the connection for as long as it likes.
        self.driver.abort();
    }
}

impl Link {
    /// Connects to the server that takes writes to `key`. `tls` says which certificate authorities are believed.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// What the last server that was tried came to.
    pub async fn open(url: &RedisUrl, key: &str, tls: &Arc<ClientConfig>) -> Result<Self, RedisFault> {
        let tls = url.tls.then(|| TlsConnector::from(Arc::clone(tls)));
        let tls = tls.as_ref();
        let mut last = None;
        for host in &url.hosts {
            let opened = match &url.shape {
                Shape::Server => Self::connect(host, &url.login, tls).await,
                Shape::Sentinel { service, login } => Self::master(host, login, service, &url.login, tls).await,
                Shape::Cluster => Self::owner(host, key, &url.login, tls).await,
            };
            match opened {
                Ok(link) => return Ok(link),
                Err(fault) => last = Some(fault),
            }
        }
        Err(last.unwrap_or_else(|| RedisFault::NotMaster { authority: url.to_string() }))
    }

    /// The answer to a command, however long it takes.
    ///
    /// Cancel safe, in that the link stays usable; whether the command was carried out is not known then.
    ///
    /// # Errors
    /// [`RedisFault::Refused`], or [`RedisFault::Broken`] after which the link is of no use.
    pub async fn ask(&self, command: &Cmd) -> Result<Value, RedisFault> {
        match self.connection.clone().send_packed_command(command).await {
            Ok(Value::ServerError(error)) => Err(error.into()),
            Ok(value) => Ok(value),
            Err(error) => Err(RedisFault::Broken(error)),
        }
    }

    /// The master of a service, as one Sentinel knows it.
    async fn master(
        sentinel: &Host,
        sentinel_login: &Login,
        service: &str,
        login: &Login,
        tls: Option<&TlsConnector>,
    ) -> Result<Self, RedisFault> {
        let sentinel = Self::connect(sentinel, sentinel_login, tls).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
        let answer = within(STEP_TIMEOUT, sentinel.ask(&command)).await?;
        let no_master = || RedisFault::NoMaster { service: service.to_owned() };
        let host = master_address(&answer).ok_or_else(no_master)?;
        let link = Self::connect(&host, login, tls).await?;
        match within(STEP_TIMEOUT, link.ask(&redis::cmd("ROLE"))).await {
            Ok(Value::Array(role)) if role.first().and_then(text) == Some("master") => Ok(link),
            Ok(_) => Err(RedisFault::NotMaster { authority: host.to_string() }),
            // Who may not ask finds out at the first write.
            Err(fault) if fault.has_code("NOPERM") => Ok(link),
            Err(fault) => Err(fault),
        }
    }

    /// The node of a cluster that has the key, or would have it.
    async fn owner(seed: &Host, key: &str, login: &Login, tls: Option<&TlsConnector>) -> Result<Self, RedisFault> {
        let mut host = seed.clone();
        for _ in 0..MOST_HOPS {
            let link = Self::connect(&host, login, tls).await?;
            let mut command = redis::cmd("EXISTS");
            command.arg(key);
            host = match within(STEP_TIMEOUT, link.ask(&command)).await {
                Ok(_) => return Ok(link),
                Err(RedisFault::Refused { code, text }) if code == "MOVED" => {
                    moved_to(&text, &host).ok_or(RedisFault::Strange { command: "EXISTS" })?
                }
                Err(fault) => return Err(fault),
            };
        }
        Err(RedisFault::NotMaster { authority: host.to_string() })
    }

    async fn connect(host: &Host, login: &Login, tls: Option<&TlsConnector>) -> Result<Self, RedisFault> {
        within(STEP_TIMEOUT, Self::connect_at_leisure(host, login, tls)).await
    }

    async fn connect_at_leisure(host: &Host, login: &Login, tls: Option<&TlsConnector>) -> Result<Self, RedisFault> {
        let failed = |source| RedisFault::Connect { authority: host.to_string(), source };
        let tcp = TcpStream::connect((host.name.as_str(), host.port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let Some(tls) = tls else { return Self::speak(tcp, host, login).await };
        let name = ServerName::try_from(host.name.clone()).map_err(|error| failed(std::io::Error::other(error)))?;
        Self::speak(tls.connect(name, tcp).await.map_err(failed)?, host, login).await
    }

    /// Logs in over an open stream, which lives in a task of its own from then on.
    async fn speak<S>(stream: S, host: &Host, login: &Login) -> Result<Self, RedisFault>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut info =
            RedisConnectionInfo::default().set_db(login.db).set_lib_name("llm-proxy", env!("CARGO_PKG_VERSION"));
        if let Some(user) = &login.user {
            info = info.set_username(user);
        }
        if let Some(password) = &login.password {
            info = info.set_password(password.expose());
        }
        // Every wait has a bound of its own, outside.
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_pipeline_buffer_size(MOST_QUEUED)
            .set_write_backpressure_boundary(WRITE_BYTES);
        let (connection, driver) = MultiplexedConnection::new_with_config(&info, stream, config)
            .await
            .map_err(|source| RedisFault::Login { authority: host.to_string(), source })?;
        Ok(Self { connection, driver: tokio::spawn(driver).abort_handle() })
    }
}

/// What comes of it within this time.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, RedisFault>>,
) -> Result<T, RedisFault> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(RedisFault::Timeout { limit }))
}

/// A text in an answer.
pub(crate) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(octets) => std::str::from_utf8(octets).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// What a Sentinel answers: host and port.
fn master_address(answer: &Value) -> Option<Host> {
    let Value::Array(parts) = answer else { return None };
    let [name, port] = parts.as_slice() else { return None };
    let (name, port) = (text(name)?, text(port)?.parse().ok()?);
    Some(Host { name: name.to_owned(), port })
}

/// What follows `MOVED`: slot, host and port. Without a host it is the one that was asked.
fn moved_to(text: &str, asked: &Host) -> Option<Host> {
    let (name, port) = text.split_ascii_whitespace().nth(1)?.rsplit_once(':')?;
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let name = if name.is_empty() { asked.name.clone() } else { name.to_owned() };
    Some(Host { name, port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, port: u16) -> Host {
        Host { name: name.to_owned(), port }
    }

    #[test]
    fn a_node_says_where_the_key_is() {
        let asked = host("seed", 6_379);
        for (text, expected) in [
            (" 3999 127.0.0.1:6381", Some(host("127.0.0.1", 6_381))),
            (" 3999 ::1:6381", Some(host("::1", 6_381))),
            (" 3999 [::1]:6381", Some(host("::1", 6_381))),
            (" 3999 node-2.example:6381", Some(host("node-2.example", 6_381))),
            (" 3999 :6381", Some(host("seed", 6_381))),
            (" 3999", None),
            (" 3999 a:b", None),
            ("", None),
        ] {
            assert_eq!(moved_to(text, &asked), expected, "{text}");
        }
    }

    #[test]
    fn a_sentinel_says_where_the_master_is_or_that_it_does_not_know() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        for (answer, expected) in [
            (Value::Array(vec![bulk("10.0.0.1"), bulk("6379")]), Some(host("10.0.0.1", 6_379))),
            (Value::Nil, None),
            (Value::Array(vec![bulk("10.0.0.1")]), None),
            (Value::Array(vec![bulk("10.0.0.1"), bulk("x")]), None),
        ] {
            assert_eq!(master_address(&answer), expected, "{answer:?}");
        }
    }
}
