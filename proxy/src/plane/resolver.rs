//! Where a host is. Resolved again now and then, and not at a request's cost as long as an older answer will do.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use pingora_core::upstreams::peer::HttpPeer;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long an answer is believed. The operating system does not tell how long it may be.
const FRESH: Duration = Duration::from_secs(30);
/// How long an answer is believed that led to nobody: a provider that is down must not cost a question with each request.
const DOUBTFUL: Duration = Duration::from_secs(1);
/// How long an answer is used while, and should, a newer one fail to come.
const USABLE: Duration = Duration::from_secs(10 * 60);

/// The addresses of one host, as peers that connections can be made to.
pub struct Resolver {
    host: String,
    port: u16,
    peer: Box<dyn Fn(SocketAddr) -> HttpPeer + Send + Sync>,
    known: ArcSwapOption<Known>,
    /// Held by whoever asks: one question at a time. When the last one began that nobody waited for.
    asking: Arc<Mutex<Option<Instant>>>,
}

struct Known {
    peers: Arc<[HttpPeer]>,
    /// `None`: the host is an address.
    asked: Option<Instant>,
}

impl Resolver {
    /// `peer` makes a peer of an address. A host that is an address is never asked for.
    pub fn new(host: &str, port: u16, peer: impl Fn(SocketAddr) -> HttpPeer + Send + Sync + 'static) -> Self {
        let known = host
            .parse::<IpAddr>()
            .ok()
            .map(|address| Arc::new(Known { peers: Arc::from([peer(SocketAddr::new(address, port))]), asked: None }));
        Self {
            host: host.to_owned(),
            port,
            peer: Box::new(peer),
            known: ArcSwapOption::new(known),
            asking: Arc::default(),
        }
    }

    /// The host's addresses, families alternating (RFC 8305 §4). Never empty.
    ///
    /// # Errors
    /// When nothing is known and the question fails.
    pub async fn peers(self: &Arc<Self>) -> io::Result<Arc<[HttpPeer]>> {
        if let Some(known) = self.known.load_full() {
            let age = known.asked.map_or(Duration::ZERO, |asked| asked.elapsed());
            if age >= FRESH {
                self.ask_behind();
            }
            if age < USABLE {
                return Ok(Arc::clone(&known.peers));
            }
        }
        let _asking = self.asking.lock().await;
        match self.known.load_full() {
            Some(known) if known.asked.is_none_or(|asked| asked.elapsed() < FRESH) => Ok(Arc::clone(&known.peers)),
            _ => self.ask().await,
        }
    }

    /// No address could be reached: what is known may be wrong, and is asked for again. It stays in use until then.
    pub fn doubt(self: &Arc<Self>) {
        let asked = self.known.load().as_ref().and_then(|known| known.asked);
        if asked.is_some_and(|asked| asked.elapsed() >= DOUBTFUL) {
            self.ask_behind();
        }
    }

    /// Asks behind the requests' back, unless somebody does.
    fn ask_behind(self: &Arc<Self>) {
        let Ok(mut asking) = Arc::clone(&self.asking).try_lock_owned() else { return };
        // A resolver that fails must not be asked with each request either.
        if asking.is_some_and(|begun| begun.elapsed() < DOUBTFUL) {
            return;
        }
        *asking = Some(Instant::now());
        let resolver = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = resolver.ask().await {
                tracing::warn!(host = resolver.host, %error, "a provider's name could not be resolved again");
            }
            drop(asking);
        });
    }

    async fn ask(&self) -> io::Result<Arc<[HttpPeer]>> {
        let found: Vec<SocketAddr> = tokio::net::lookup_host((self.host.as_str(), self.port)).await?.collect();
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        let peers: Arc<[HttpPeer]> = alternating(found).into_iter().map(&self.peer).collect();
        self.known.store(Some(Arc::new(Known { peers: Arc::clone(&peers), asked: Some(Instant::now()) })));
        Ok(peers)
    }
}

/// The first family first, then by turns, so that a family without a route costs one head start only.
fn alternating(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (ahead, behind): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut ahead, mut behind) = (ahead.into_iter(), behind.into_iter());
    let mut ordered = Vec::new();
    loop {
        match (ahead.next(), behind.next()) {
            (None, None) => return ordered,
            (one, other) => ordered.extend(one.into_iter().chain(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn families_take_turns() {
        let of = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        for (found, ordered) in [
            (of(&[]), of(&[])),
            (of(&["1.1.1.1:1", "2.2.2.2:1"]), of(&["1.1.1.1:1", "2.2.2.2:1"])),
            (of(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]), of(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"])),
            (of(&["1.1.1.1:1", "[::1]:1", "2.2.2.2:1"]), of(&["1.1.1.1:1", "[::1]:1", "2.2.2.2:1"])),
        ] {
            assert_eq!(alternating(found), ordered);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_not_asked_for_and_a_name_only_behind_once_it_is_doubted() {
        let address = Arc::new(Resolver::new("::1", 80, peer));
        address.doubt();
        assert_eq!(address.peers().await.unwrap().len(), 1);

        let name = Arc::new(Resolver::new("localhost", 80, peer));
        let first = name.peers().await.unwrap();
        assert!(Arc::ptr_eq(&first, &at_once(&name)), "it was asked for twice");
        name.doubt();
        assert!(name.asking.try_lock().is_ok(), "an answer of this very second is asked for again");
        tokio::time::advance(DOUBTFUL).await;
        name.doubt();
        assert!(Arc::ptr_eq(&first, &at_once(&name)), "a request waits for a question");
        while Arc::ptr_eq(&first, &at_once(&name)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(Arc::new(Resolver::new("no-such-host.invalid", 80, peer)).peers().await.is_err());
    }

    fn peer(address: SocketAddr) -> HttpPeer {
        HttpPeer::new(address, false, "x".to_owned())
    }

    /// What is given out without waiting.
    fn at_once(resolver: &Arc<Resolver>) -> Arc<[HttpPeer]> {
        resolver.peers().now_or_never().expect("nobody waits for a question").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_longer_fresh_is_given_out_at_once_and_asked_for_behind_the_requests_back() {
        let name = Arc::new(Resolver::new("localhost", 80, peer));
        let first = name.peers().await.unwrap();
        tokio::time::advance(FRESH).await;
        // Somebody asks already: nobody waits for that, and nobody asks beside.
        let asking = Arc::clone(&name.asking).lock_owned().await;
        for _ in 0..3 {
            assert!(Arc::ptr_eq(&first, &at_once(&name)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(Arc::ptr_eq(&first, &at_once(&name)), "it was asked for twice at once");
        drop(asking);
        // The next one begins the question and does not wait for it either.
        assert!(Arc::ptr_eq(&first, &at_once(&name)));
        while Arc::ptr_eq(&first, &at_once(&name)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_used_for_ten_minutes_while_no_newer_one_comes() {
        let name = Arc::new(Resolver::new("no-such-host.invalid", 80, peer));
        let old: Arc<[HttpPeer]> = Arc::from([peer("127.0.0.1:80".parse().unwrap())]);
        name.known.store(Some(Arc::new(Known { peers: Arc::clone(&old), asked: Some(Instant::now()) })));
        tokio::time::advance(USABLE - Duration::from_secs(1)).await;
        for _ in 0..3 {
            assert!(Arc::ptr_eq(&old, &at_once(&name)));
            // The question fails meanwhile.
            drop(Arc::clone(&name.asking).lock_owned().await);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(name.peers().await.is_err(), "an address is used that nobody has confirmed for ten minutes");
    }
}
