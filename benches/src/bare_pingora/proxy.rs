//! An empty Pingora proxy: every request goes to one fixed upstream, and nothing else is decided, counted or written.
//! It is what somebody gets who builds a proxy on Pingora before any of the product is in it.

use std::net::SocketAddr;

use async_trait::async_trait;
use clap::Parser;
use pingora_core::Result;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

/// Idle upstream connections kept, as many as llm-proxy keeps.
const POOLED: usize = 1024;

/// An empty Pingora proxy with one thread
#[derive(Parser)]
struct Arguments {
    /// Where it listens
    listen: SocketAddr,
    /// Where every request goes, as plain HTTP
    upstream: SocketAddr,
}

struct Bare {
    peer: HttpPeer,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        Ok(Box::new(self.peer.clone()))
    }
}

/// Serves until a signal ends the process.
pub fn run() -> ! {
    let arguments = Arguments::parse();
    let conf = ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: POOLED,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let bare = Bare { peer: HttpPeer::new(arguments.upstream, false, String::new()) };
    let mut service = http_proxy_service(&server.configuration, bare);
    service.add_tcp(&arguments.listen.to_string());
    server.add_service(service);
    server.run_forever()
}
