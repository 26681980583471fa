//! A provider's side of WebSockets that says what a test wrote, byte for byte: what the mock provider does not say.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::ws::RawSocket;

/// A scripted provider. It ends with the test.
pub struct SocketProvider {
    /// Where it listens.
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl SocketProvider {
    /// Gives each connection to `script` once the head of its request has come; the script answers it
    /// ([`RawSocket::switch`]) or not, and closes the connection by ending.
    pub async fn start<Script, Serving>(script: Script) -> Self
    where
        Script: Fn(RawSocket) -> Serving + Send + Sync + 'static,
        Serving: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let script = Arc::new(script);
        let task = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let script = Arc::clone(&script);
                serving.spawn(async move {
                    if let Some(socket) = RawSocket::accepted(stream).await {
                        script(socket).await;
                    }
                });
            }
        });
        Self { addr, task }
    }
}

impl Drop for SocketProvider {
    fn drop(&mut self) {
        self.task.abort();
    }
}
