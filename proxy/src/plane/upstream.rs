//! The providers: where they are, how a connection to one is had, and what a failure to get one means.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use llm_proxy_core::network::outbound_proxy;
use pingora_core::connectors::{L4Connect, TransportConnector};
use pingora_core::upstreams::peer::{HttpPeer, Peer};
use tokio::time::{Instant, timeout_at};

use super::clocks::after;
use super::race::{self, Lost};
use super::resolver::Resolver;
use super::trust::Trust;
use super::tunnel::Tunnel;
use crate::http1::Provider;
use crate::settings::{ApiSettings, Timeouts};

/// How long a pooled connection may idle: below the minute after which providers close theirs.
const POOL_IDLE: Duration = Duration::from_secs(55);
/// One API's provider.
pub struct Upstream {
    host: String,
    /// The `host` field of forwarded heads.
    pub authority: HeaderValue,
    /// The clocks.
    pub timeouts: Timeouts,
    /// The largest body forwarded, in bytes.
    pub max_request_bytes: u64,
    /// The largest body held for a policy, in bytes.
    pub max_held_bytes: u64,
    resolver: Arc<Resolver>,
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
    /// `index` separates the pools of APIs that share an address. `variable` is the environment, for the network's proxy.
    ///
    /// # Errors
    /// A host that cannot stand in a `host` field, a file that cannot be used, or a proxy that cannot be meant.
    pub fn new<'v>(
        api: &ApiSettings,
        index: usize,
        variable: impl Fn(&str) -> Option<&'v str>,
    ) -> anyhow::Result<Self> {
        let base = &api.base_url;
        let default_port = if base.tls { 443 } else { 80 };
        let bracketed = if base.host.contains(':') { format!("[{}]", base.host) } else { base.host.clone() };
        let authority =
            if base.port == default_port { bracketed.clone() } else { format!("{bracketed}:{}", base.port) };
        let provider = outbound_proxy::Provider { tls: base.tls, host: &base.host, port: base.port };
        let proxy = outbound_proxy::choose(variable, provider)?;
        let Trust { authorities, identity } = Trust::read(api)?;
        let tunnel = proxy.as_ref().map(|proxy| -> Arc<dyn L4Connect + Send + Sync> {
            Arc::new(Tunnel::new(format!("{bracketed}:{}", base.port), proxy))
        });
        if let Some(proxy) = &proxy {
            tracing::info!("{} is reached through the proxy at {}:{}", api.name, proxy.host, proxy.port);
        }

        let group = u64::try_from(index)?;
        let (host, tls, connect) = (base.host.clone(), base.tls, api.timeouts.connect);
        let peer = move |address: SocketAddr| {
            // The name is never empty: an empty one would switch certificate verification off.
            let mut peer = HttpPeer::new(address, tls, host.clone());
            peer.group_key = group;
            peer.client_cert_key = identity.clone();
            peer.options.ca = authorities.clone();
            peer.options.custom_l4 = tunnel.clone();
            peer.options.idle_timeout = Some(POOL_IDLE);
            peer.options.connection_timeout = Some(connect);
            peer.options.total_connection_timeout = Some(connect);
            peer
        };
        let (host, port) = proxy.as_ref().map_or((&base.host, base.port), |proxy| (&proxy.host, proxy.port));
        Ok(Self {
            host: base.host.clone(),
            authority: HeaderValue::from_str(&authority)?,
            timeouts: api.timeouts.clone(),
            max_request_bytes: api.max_request_bytes,
            max_held_bytes: api.max_held_bytes,
            resolver: Arc::new(Resolver::new(host, port, peer)),
        })
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
        let failed = |why: String| ConnectError::Failed(self.host.clone(), why);
        let peers = timeout_at(deadline, self.resolver.peers()).await.map_err(|_| timed_out())?;
        let peers = peers.map_err(|error| failed(error.to_string()))?;
        if !fresh {
            for peer in peers.iter() {
                if let Some(stream) = connector.reused_stream(peer).await {
                    return Ok(Connection { http: Provider::new(stream), reused: true, pool_key: peer.reuse_hash() });
                }
            }
        }
        match race::connect(connector, &peers, deadline).await {
            Ok((stream, peer)) => {
                Ok(Connection { http: Provider::new(stream), reused: false, pool_key: peer.reuse_hash() })
            }
            Err(lost) => {
                self.resolver.doubt();
                Err(match lost {
                    Lost::TooLate => timed_out(),
                    Lost::Failed(why) => failed(why),
                })
            }
        }
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
