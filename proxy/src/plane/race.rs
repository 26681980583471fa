//! A new connection to whichever address of a host answers first (RFC 8305, "Happy Eyeballs").
//!
//! An address that does not answer at all would otherwise cost the whole connect clock, and a host with a dead IPv6
//! route every request.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pingora_core::connectors::TransportConnector;
use pingora_core::protocols::Stream;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{BError, ErrorType};
use tokio::time::{Instant, sleep_until};

use super::clocks::after;

/// The most addresses of a host that are tried within the connect clock.
const MOST_ADDRESSES: usize = 6;
/// How long an attempt may take before the next address is tried beside it (RFC 8305 §8).
const HEAD_START: Duration = Duration::from_millis(250);

/// Why there is no connection.
#[derive(Clone, Debug)]
pub enum Lost {
    /// The deadline passed.
    TooLate,
    /// Every address failed; what was said of each.
    Failed(String),
}

/// Connects, TLS included. The first that succeeds wins, the others are given up.
///
/// Cancel safe: all attempts are given up.
///
/// # Errors
/// [`Lost`].
pub async fn connect<'p>(
    connector: &TransportConnector,
    peers: &'p [HttpPeer],
    deadline: Instant,
) -> Result<(Stream, &'p HttpPeer), Lost> {
    let attempt = |peer: &'p HttpPeer| async move { (peer, connector.new_stream(peer).await) };
    let mut waiting = peers.iter().take(MOST_ADDRESSES);
    let mut running = FuturesUnordered::new();
    let mut failures: Vec<String> = Vec::new();
    let mut next_start = Instant::now();
    running.extend(waiting.next().map(attempt));
    loop {
        next_start = after(next_start.max(Instant::now()), HEAD_START);
        let ended = tokio::select! {
            biased;
            ended = running.next() => ended,
            () = sleep_until(next_start), if waiting.len() > 0 => None,
            () = sleep_until(deadline) => return Err(Lost::TooLate),
        };
        match ended {
            Some((peer, Ok(stream))) => return Ok((stream, peer)),
            Some((_, Err(error))) if is_too_late(&error) && waiting.len() == 0 && running.is_empty() => {
                return Err(Lost::TooLate);
            }
            Some((_, Err(error))) => failures.push(error.to_string()),
            None => {}
        }
        match waiting.next() {
            Some(peer) => running.push(attempt(peer)),
            None if running.is_empty() => {
                // Of several addresses one may be refused and another have the wrong certificate: both are told.
                return Err(Lost::Failed(failures.join("; then ")));
            }
            None => {}
        }
    }
}

fn is_too_late(error: &BError) -> bool {
    matches!(error.etype(), ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::time::timeout;

    use super::*;

    fn peer(address: SocketAddr) -> HttpPeer {
        HttpPeer::new(address, false, "x".to_owned())
    }

    /// An address on which nobody listens.
    async fn refused() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn the_first_address_that_answers_wins_and_failures_are_told() {
        let connector = TransportConnector::new(None);
        let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listening.local_addr().unwrap();
        let (bad, other) = (refused().await, refused().await);
        let deadline = || Instant::now() + Duration::from_secs(5);
        for (peers, wins) in [(vec![good], Some(good)), (vec![bad, other, good], Some(good)), (vec![bad, other], None)]
        {
            let peers: Vec<HttpPeer> = peers.into_iter().map(peer).collect();
            match (connect(&connector, &peers, deadline()).await, wins) {
                (Ok((_, peer)), Some(wins)) => assert_eq!(peer._address.as_inet(), Some(&wins)),
                (Err(Lost::Failed(told)), None) => assert_eq!(told.matches("refused").count(), 2, "{told}"),
                (other, _) => panic!("{:?}", other.map(|_| ())),
            }
        }
        assert!(matches!(connect(&connector, &[], deadline()).await, Err(Lost::Failed(_))));
    }

    /// An address that lets nobody in and tells nobody so, like a host behind a dead route.
    async fn silent() -> (SocketAddr, Vec<TcpStream>, TcpListener) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        // The system answers for a listener that accepts nobody until its queue is full.
        while let Ok(connected) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            waiting.push(connected.unwrap());
        }
        (address, waiting, listener)
    }

    #[tokio::test]
    async fn an_address_that_stays_silent_costs_a_head_start_and_no_more() {
        let connector = TransportConnector::new(None);
        let (dead, _waiting, _listener) = silent().await;
        let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listening.local_addr().unwrap();
        let began = Instant::now();
        let peers = [peer(dead), peer(good)];
        let (_, chosen) = connect(&connector, &peers, began + Duration::from_secs(5)).await.unwrap();
        assert_eq!(chosen._address.as_inet(), Some(&good));
        let took = began.elapsed();
        assert!(took >= HEAD_START && took < Duration::from_secs(2), "{took:?}");
        let alone = [peer(dead)];
        let lost = connect(&connector, &alone, Instant::now() + Duration::from_millis(300)).await;
        assert!(matches!(lost, Err(Lost::TooLate)));
    }
}
