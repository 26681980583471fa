//! The providers: where they are, how a connection to one is had, and what a failure to get one means.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use pingora_core::ErrorType;
use pingora_core::connectors::TransportConnector;
use pingora_core::upstreams::peer::{HttpPeer, Peer};
use tokio::time::{Instant, timeout_at};

use super::clocks::after;
use crate::http1::Provider;
use crate::settings::{ApiSettings, Timeouts};

/// How long a pooled connection may idle: below the minute after which providers close theirs.
const POOL_IDLE: Duration = Duration::from_secs(55);
/// How long resolved addresses are believed.
const RESOLVED_FOR: Duration = Duration::from_secs(30);
/// The most addresses of a host that are tried within the connect clock.
const MOST_ADDRESSES: usize = 4;

/// One API's provider.
pub struct Upstream {
    host: String,
    port: u16,
    tls: bool,
    /// The `host` field of forwarded heads.
    pub authority: HeaderValue,
    /// The clocks.
    pub timeouts: Timeouts,
    /// The largest body forwarded, in bytes.
    pub max_request_bytes: u64,
    /// The largest body held for a policy, in bytes.
    pub max_held_bytes: u64,
    resolved: ArcSwapOption<Resolved>,
    group: u64,
}

struct Resolved {
    peers: Vec<HttpPeer>,
    until: Option<Instant>,
}

/// A connection to a provider, for one exchange.
pub struct Connection {
    /// The exchange on it.
    pub http: Provider,
    /// Whether it came from the pool.
    pub reused: bool,
    /// Under what it goes back there.
    pool_key: u64,
}

/// Why there is no connection. The text is for the log: it may name addresses.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The connect clock ran out.
    #[error("connecting to {0} took longer than {1:?}")]
    TimedOut(String, Duration),
    /// No address, refused, unreachable, or TLS failed.
    #[error("connecting to {0} failed: {1}")]
    Failed(String, String),
}

impl Upstream {
    /// `index` separates the pools of APIs that share an address.
    ///
    /// # Errors
    /// When the host cannot stand in a `host` field.
    pub fn new(api: &ApiSettings, index: usize) -> anyhow::Result<Self> {
        let base = &api.base_url;
        let default_port = if base.tls { 443 } else { 80 };
        let bracketed = if base.host.contains(':') { format!("[{}]", base.host) } else { base.host.clone() };
        let authority = if base.port == default_port { bracketed } else { format!("{bracketed}:{}", base.port) };
        let upstream = Self {
            host: base.host.clone(),
            port: base.port,
            tls: base.tls,
            authority: HeaderValue::from_str(&authority)?,
            timeouts: api.timeouts.clone(),
            max_request_bytes: api.max_request_bytes,
            max_held_bytes: api.max_held_bytes,
            resolved: ArcSwapOption::empty(),
            group: u64::try_from(index)?,
        };
        if let Ok(address) = base.host.parse() {
            let peers = vec![upstream.peer(SocketAddr::new(address, base.port))];
            upstream.resolved.store(Some(Arc::new(Resolved { peers, until: None })));
        }
        Ok(upstream)
    }

    fn peer(&self, address: SocketAddr) -> HttpPeer {
        // The name is never empty: an empty one would switch certificate verification off.
        let mut peer = HttpPeer::new(address, self.tls, self.host.clone());
        peer.group_key = self.group;
        peer.options.idle_timeout = Some(POOL_IDLE);
        peer.options.connection_timeout = Some(self.timeouts.connect);
        peer.options.total_connection_timeout = Some(self.timeouts.connect);
        peer
    }

    /// A connection from the pool, or a new one, within the connect clock.
    ///
    /// Cancel safety: cancelling costs the connection being made, nothing else.
    ///
    /// # Errors
    /// [`ConnectError`] when no address could be reached.
    pub async fn connect(&self, connector: &TransportConnector, fresh: bool) -> Result<Connection, ConnectError> {
        let deadline = after(Instant::now(), self.timeouts.connect);
        let timed_out = || ConnectError::TimedOut(self.host.clone(), self.timeouts.connect);
        let resolved = timeout_at(deadline, self.addresses()).await.map_err(|_| timed_out())??;
        let mut failures = Vec::new();
        let mut too_slow = false;
        for peer in resolved.peers.iter().take(MOST_ADDRESSES) {
            let getting = async {
                if fresh { Ok((connector.new_stream(peer).await?, false)) } else { connector.get_stream(peer).await }
            };
            match timeout_at(deadline, getting).await {
                Ok(Ok((stream, reused))) => {
                    return Ok(Connection { http: Provider::new(stream), reused, pool_key: peer.reuse_hash() });
                }
                Ok(Err(error)) => {
                    too_slow = matches!(error.etype(), ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout);
                    failures.push(error.to_string());
                }
                Err(_) => return Err(timed_out()),
            }
        }
        // What was resolved may be stale: ask again next time.
        if resolved.until.is_some() {
            self.resolved.store(None);
        }
        if failures.is_empty() {
            failures.push("the name has no address".to_owned());
        }
        // Of several addresses one may be refused and another have the wrong certificate: the log names both.
        Err(if too_slow { timed_out() } else { ConnectError::Failed(self.host.clone(), failures.join("; then ")) })
    }

    async fn addresses(&self) -> Result<Arc<Resolved>, ConnectError> {
        if let Some(resolved) = self.resolved.load_full()
            && resolved.until.is_none_or(|until| until > Instant::now())
        {
            return Ok(resolved);
        }
        let found = tokio::net::lookup_host((self.host.as_str(), self.port))
            .await
            .map_err(|error| ConnectError::Failed(self.host.clone(), error.to_string()))?;
        let peers = found.map(|address| self.peer(address)).collect();
        let resolved = Arc::new(Resolved { peers, until: Some(after(Instant::now(), RESOLVED_FOR)) });
        self.resolved.store(Some(Arc::clone(&resolved)));
        Ok(resolved)
    }
}

impl Connection {
    /// Gives a connection on which everything went right back to the pool; any other is closed.
    pub fn release(self, connector: &TransportConnector) {
        if let Some(stream) = self.http.into_reusable() {
            connector.release_stream(stream, self.pool_key, Some(POOL_IDLE));
        }
    }
}
