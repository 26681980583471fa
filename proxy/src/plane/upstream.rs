//! The providers: where they are, how a connection to one is had, and what a failure to get one means.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::HeaderValue;
use llm_proxy_core::network::outbound_proxy;
use pingora_core::connectors::{L4Connect, TransportConnector};
use pingora_core::protocols::{ALPN, Stream};
use pingora_core::upstreams::peer::{HttpPeer, Peer};
use tokio::time::{Instant, timeout_at};

use super::Gateway;
use super::clocks::after;
use super::idle::Idle;
use super::race::{self, Lost};
use super::resolver::Resolver;
use super::shared::{Entry, Lines, Making, Place};
use super::trust::Trust;
use super::tunnel::Tunnel;
use crate::http1;
use crate::http2::{self, Line};
use crate::provider::Provider;
use crate::settings::{ApiSettings, Timeouts};

/// How long a connection may idle: below the minute after which providers close theirs.
pub const POOL_IDLE: Duration = Duration::from_secs(55);

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
    /// Its connections of HTTP/1.1 that wait.
    idle: Arc<Idle>,
    /// Its connections of HTTP/2, where it may choose that: by TLS, and unless the settings forbid it.
    lines: Option<Arc<Lines>>,
}

/// A connection to a provider, or a place on one, for one exchange.
pub struct Connection {
    /// The exchange on it.
    pub http: Provider,
    /// Whether it stood before.
    pub reused: bool,
    home: Home,
}

/// What becomes of a connection after the exchange.
enum Home {
    /// It is one of this provider's, to this address.
    Alone(Arc<Idle>, SocketAddr),
    /// Others have it, too.
    Shared(Place),
}

/// What a connection is wanted for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// To switch to WebSocket, which only HTTP/1.1 can.
    pub to_switch: bool,
    /// To say again what another connection has failed.
    pub again: bool,
    /// Which one that was, where it is one of HTTP/2.
    pub refused: Option<u64>,
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

        let lines = (base.tls && api.http2).then(Arc::<Lines>::default);
        let alpn = if lines.is_some() { ALPN::H2H1 } else { ALPN::H1 };
        let group = u64::try_from(index)?;
        let (host, tls, connect) = (base.host.clone(), base.tls, api.timeouts.connect);
        let peer = move |address: SocketAddr| {
            // The name is never empty: an empty one would switch certificate verification off.
            let mut peer = HttpPeer::new(address, tls, host.clone());
            peer.group_key = group;
            peer.client_cert_key = identity.clone();
            peer.options.alpn = alpn.clone();
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
            idle: Arc::new(Idle::new(POOL_IDLE)),
            lines,
        })
    }

    /// A place on a connection of HTTP/2, a connection from the pool, or a new one, within the connect clock.
    ///
    /// Cancel safety: cancelling costs the connection being made, nothing else.
    ///
    /// # Errors
    /// [`ConnectError`] when no address could be reached.
    pub async fn connect(&self, gateway: &Gateway, wanted: Wanted) -> Result<Connection, ConnectError> {
        let lines = self.lines.as_ref().filter(|_| !wanted.to_switch);
        if let Some((place, sender)) = lines.and_then(|lines| lines.place(wanted.refused)) {
            return Ok(Connection::shared(place, sender, true));
        }
        let deadline = after(Instant::now(), self.timeouts.connect);
        let peers = timeout_at(deadline, self.resolver.peers()).await.map_err(|_| self.lost(Lost::TooLate))?;
        let peers = peers.map_err(|error| self.lost(Lost::Failed(error.to_string())))?;
        let connector = &gateway.connector;
        let Some(lines) = lines else {
            let offered = if self.lines.is_some() { http1_alone(&peers) } else { peers };
            return self.alone(connector, &offered, wanted, deadline).await;
        };
        loop {
            let making = match lines.enter(wanted.refused) {
                Entry::Place(place, sender) => return Ok(Connection::shared(place, sender, true)),
                Entry::Alone => match self.waiting(&peers, wanted) {
                    Some(connection) => return Ok(connection),
                    None => lines.make(),
                },
                Entry::Make(making) => making,
                Entry::Wait(waiting) => match timeout_at(deadline, waiting.over()).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(lost)) => return Err(self.lost(lost)),
                    Err(_) => return Err(self.lost(Lost::TooLate)),
                },
            };
            return self.of_their_choice(gateway, &peers, making, deadline).await;
        }
    }

    /// A connection of HTTP/1.1.
    async fn alone(
        &self,
        connector: &TransportConnector,
        peers: &[HttpPeer],
        wanted: Wanted,
        deadline: Instant,
    ) -> Result<Connection, ConnectError> {
        if let Some(connection) = self.waiting(peers, wanted) {
            return Ok(connection);
        }
        match race::connect(connector, peers, deadline).await {
            Ok((stream, peer)) => Ok(self.own(stream, address(peer), false)),
            Err(lost) => {
                self.resolver.doubt();
                Err(self.lost(lost))
            }
        }
    }

    /// A new connection, of the version that the provider chooses.
    async fn of_their_choice(
        &self,
        gateway: &Gateway,
        peers: &[HttpPeer],
        making: Making,
        deadline: Instant,
    ) -> Result<Connection, ConnectError> {
        match race::connect(&gateway.connector, peers, deadline).await {
            Ok((stream, _)) if stream.selected_alpn_proto() == Some(ALPN::H2) => {
                let lost = match timeout_at(deadline, Line::open(stream)).await {
                    Ok(Ok((sender, line))) => {
                        let (place, sender) = making.speaks_http2(sender, line, gateway.drain.clone());
                        return Ok(Connection::shared(place, sender, false));
                    }
                    Ok(Err(error)) => Lost::Failed(error.to_string()),
                    Err(_) => Lost::TooLate,
                };
                making.failed(&lost);
                Err(self.lost(lost))
            }
            Ok((stream, peer)) => {
                making.speaks_http1();
                Ok(self.own(stream, address(peer), false))
            }
            Err(lost) => {
                self.resolver.doubt();
                making.failed(&lost);
                Err(self.lost(lost))
            }
        }
    }

    /// A connection of HTTP/1.1 that others have left behind. What has to be said again goes over a new one.
    fn waiting(&self, peers: &[HttpPeer], wanted: Wanted) -> Option<Connection> {
        if wanted.again {
            return None;
        }
        let (stream, to) = self.idle.take(peers.iter().map(address))?;
        Some(self.own(stream, to, true))
    }

    fn own(&self, stream: Stream, to: SocketAddr, reused: bool) -> Connection {
        let http = Provider::Http1(http1::Provider::new(stream));
        Connection { http, reused, home: Home::Alone(Arc::clone(&self.idle), to) }
    }

    fn lost(&self, lost: Lost) -> ConnectError {
        match lost {
            Lost::TooLate => ConnectError::TimedOut(self.host.clone(), self.timeouts.connect),
            Lost::Failed(why) => ConnectError::Failed(self.host.clone(), why),
        }
    }
}

/// Where a peer is. Ours are all addresses of the network: one that is not would be found nowhere.
fn address(peer: &HttpPeer) -> SocketAddr {
    peer.address().as_inet().copied().unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
}

/// The same provider, asked for HTTP/1.1 alone. Connections that wait are not told apart by that, and need not be.
fn http1_alone(peers: &[HttpPeer]) -> Arc<[HttpPeer]> {
    let mut peers = peers.to_vec();
    for peer in &mut peers {
        peer.options.alpn = ALPN::H1;
    }
    peers.into()
}

impl Connection {
    fn shared(place: Place, sender: SendRequest<Bytes>, reused: bool) -> Self {
        let http = Provider::Http2(Box::new(http2::Provider::new(sender)));
        Self { http, reused, home: Home::Shared(place) }
    }

    /// Which connection of HTTP/2 this is a place on.
    pub fn line(&self) -> Option<u64> {
        match &self.home {
            Home::Alone(..) => None,
            Home::Shared(place) => Some(place.line()),
        }
    }

    /// Has a connection wait for the next exchange on which everything went right; any other is closed. One of HTTP/2 is
    /// its others'.
    pub fn release(self) {
        if let (Some(stream), Home::Alone(idle, to)) = (self.http.into_reusable(), self.home) {
            idle.put(stream, to);
        }
    }
}
