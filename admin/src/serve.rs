//! The admin listener: plain HTTP/1.1 with a deadline for every head, a bound on connections, and a stop that lets
//! answers finish.
//!
//! `axum::serve` has no deadline for heads, so that one idle connection a second would hold memory for ever; hyper's
//! own connection, which it wraps, has one.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::audit::Peer;

/// From the moment a connection waits for a request until its whole head is here. Bounds idle keep-alive as well.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// Heads and read buffers of one connection, in bytes.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// Connections at once. More wait in the listener's backlog: people and scrapers need a handful.
const MAX_CONNECTIONS: usize = 512;

/// How long answers may take to finish once the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// How long to wait when the system has no descriptor or memory for a further connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` until `shutdown` completes, then finishes the answers under way, for at most five seconds.
///
/// # Errors
/// None at present: failures to accept are logged and retried, as they pass.
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()> + Send) -> io::Result<()> {
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(converse(stream, peer.ip(), router.clone(), stopped.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "The admin listener could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(listener);
    drop(stop);
    let finished = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    if finished.is_err() {
        tracing::warn!("Cut {} admin connections that did not finish in time", connections.len());
        connections.shutdown().await;
    }
    Ok(())
}

/// One connection from its first byte to its last. `stopped` ends when the server stops.
async fn converse(stream: TcpStream, peer: IpAddr, router: Router, mut stopped: watch::Receiver<()>) {
    // Without it small answers wait for the client's delayed acknowledgement. A socket that refuses is only slower.
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_BUFFER_BYTES);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        router.call(request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A client that hangs up or speaks no HTTP is no event worth a line.
        _ = connection.as_mut() => return,
        _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
