//! The order to stop: SIGTERM or SIGINT once to drain, a second time to stop at once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::plane::Gateway;

/// How long a drain lasts at least: idle connections linger, and a client may just be sending.
const LEAST: Duration = Duration::from_millis(450);
/// What cut exchanges get to write their last event and record.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Tells Pingora when to close its listeners, and the drain when to begin.
pub struct Signals {
    /// Raised with the first signal.
    pub stopping: Arc<Notify>,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                self.stopping.notify_one();
                std::thread::spawn(move || second_signal(terminate, interrupt));
            }
            _ => {
                tracing::error!(
                    "signals cannot be watched: stop the process with SIGKILL, nothing acknowledged is lost"
                );
                std::future::pending::<()>().await;
            }
        }
        ShutdownSignal::GracefulTerminate
    }
}

/// Who signals twice wants out now: the journal is in the file already.
fn second_signal(mut terminate: tokio::signal::unix::Signal, mut interrupt: tokio::signal::unix::Signal) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    tracing::warn!("stopped at once by a second signal");
    std::process::exit(1);
}

/// Lets running exchanges end, at most for `patience`; then cuts them. Returns when none is left, or none will end.
pub async fn drain(gateway: &Gateway, patience: Duration) {
    let began = Instant::now();
    gateway.drain.stop();
    tracing::info!(running = gateway.drain.running(), "stopping: no new connections, running streams may end");
    while began.elapsed() < LEAST || (gateway.drain.running() > 0 && began.elapsed() < patience.max(LEAST)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let left = gateway.drain.running();
    if left > 0 {
        tracing::warn!(left, "DRAIN_TIMEOUT is over: what still runs is cut");
        gateway.drain.cut();
        let cut = Instant::now();
        while gateway.drain.running() > 0 && cut.elapsed() < LAST_WORDS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
