//! Ends a client's connection with a reset.
//!
//! An HTTP/1.0 client reads an answer without a length to the end of the connection: an ordinary end would make an answer
//! that broke off look whole. A connection whose SO_LINGER is on and zero is reset when it is closed (socket(7)).
//!
//! Pingora's stream tells the number of its socket and no more. A number alone is no right to a socket, but the kernel
//! gives a second descriptor of it by `pidfd_getfd(2)` (Linux 5.6). Container runtimes may forbid that call: then the
//! connection ends as it would have, and only the record knows.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::downstream::Downstream;

/// Makes the coming close of a connection in the clear a reset, and says whether it will be. Under TLS the missing
/// `close_notify` tells the client (RFC 8446 §6.1).
pub fn on_close(connection: &Downstream) -> bool {
    match connection {
        Downstream::Plain(stream) => linger_not(stream.id()).inspect_err(forbidden).is_ok(),
        Downstream::Tls(_) => false,
    }
}

fn linger_not(socket: i32) -> io::Result<()> {
    static OURSELVES: OnceLock<rustix::io::Result<OwnedFd>> = OnceLock::new();
    let ourselves = OURSELVES.get_or_init(|| pidfd_open(getpid(), PidfdFlags::empty()));
    let ourselves = ourselves.as_ref().map_err(|error| *error)?;
    let socket = pidfd_getfd(ourselves, socket, PidfdGetfdFlags::empty())?;
    Ok(set_socket_linger(&socket, Some(Duration::ZERO))?)
}

/// Told once: it will not change while the process runs.
fn forbidden(error: &io::Error) {
    static TOLD: OnceLock<()> = OnceLock::new();
    TOLD.get_or_init(|| {
        tracing::warn!(%error, "HTTP/1.0 clients cannot be shown that an answer without a length broke off");
    });
}
