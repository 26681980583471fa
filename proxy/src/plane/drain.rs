//! Stopping: who is told when, and what still runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;

/// The process's way to its end, shared by everything that must know of it.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    stop: CancellationToken,
    cut: CancellationToken,
    running: Arc<AtomicUsize>,
}

impl Drain {
    /// The order to stop has come: take nothing new, say `connection: close`, be not ready.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// The drain time is over: end what still runs.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Whether the order to stop has come.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits for the order to stop. Cancel safe.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// A token that falls with the drain time, for those that can also be cut for reasons of their own.
    pub fn cut_token(&self) -> CancellationToken {
        self.cut.child_token()
    }

    /// Exchanges running now.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Counts an exchange until the guard is dropped.
    pub fn enter(&self) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(&self.running))
    }
}

/// One running exchange.
#[derive(Debug)]
pub struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
