//! A server that stands in for a service: real sockets, HTTP/1.1, in a thread of its own.
//!
//! What the service does is for its own module to say; here are the ways in which any server can fail. Faults are
//! queued and used up one a request, before the service sees it (and so before it keeps anything), or after it has
//! answered, for an answer that does not arrive.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

type Body = BoxBody<Bytes, io::Error>;

/// The service behind the server.
pub trait Service: Send + 'static {
    /// Answers a request whose body is here.
    fn answer(&mut self, head: &Parts, body: &[u8]) -> Response<String>;
}

/// One way to fail.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status instead of an answer, nothing kept.
    Status(u16),
    /// 429, with the seconds to wait, nothing kept.
    TooMany { retry_after: u64 },
    /// The connection is reset, nothing kept.
    Reset,
    /// The request is taken, and the connection reset instead of an answer.
    TakenThenReset,
    /// The request is taken, and half an answer sent.
    HalfAnswer,
    /// The answer comes only after this; the request is taken.
    Slow(Duration),
}

/// A running server. Dropping it stops it and its connections.
pub struct StandIn<S> {
    pub addr: SocketAddr,
    shared: Arc<Shared<S>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<S> {
    service: Mutex<S>,
    faults: Mutex<VecDeque<Fault>>,
    calls: Mutex<Vec<Instant>>,
    running: AtomicUsize,
    most_running: AtomicUsize,
}

/// An address that is taken, and where nobody listens yet: connections are refused.
pub fn reserve() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    // Another one may want the same port later, while connections of this one are still closing.
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

impl<S: Service> StandIn<S> {
    /// Serves on a free port of this machine.
    pub fn start(service: S) -> Self {
        Self::start_on(reserve().1, service, None)
    }

    /// Serves where the socket is bound. On return it takes connections.
    pub fn start_on(socket: TcpSocket, service: S, tls: Option<TlsAcceptor>) -> Self {
        let shared = Arc::new(Shared {
            service: Mutex::new(service),
            faults: Mutex::default(),
            calls: Mutex::default(),
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
        });
        let addr = socket.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (listens, is_listening) = mpsc::channel();
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let listener = socket.listen(1_024).unwrap();
                    listens.send(()).unwrap();
                    tokio::select! {
                        () = accept(listener, shared, tls) => {}
                        _ = stopped => {}
                    }
                });
            })
        };
        is_listening.recv().unwrap();
        Self { addr, shared, stop: Some(stop), thread: Some(thread) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Queues faults.
    pub fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.faults.lock().extend(faults);
    }

    /// Faults that nobody has met yet.
    pub fn faults_left(&self) -> usize {
        self.shared.faults.lock().len()
    }

    /// Looks at the service, or changes it.
    pub fn service<T>(&self, look: impl FnOnce(&mut S) -> T) -> T {
        look(&mut self.shared.service.lock())
    }

    /// When requests came.
    pub fn calls(&self) -> Vec<Instant> {
        self.shared.calls.lock().clone()
    }

    /// The most requests that were there at the same time.
    pub fn most_running(&self) -> usize {
        self.shared.most_running.load(Ordering::SeqCst)
    }
}

impl<S> StandIn<S> {
    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<S> Drop for StandIn<S> {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept<S: Service>(listener: TcpListener, shared: Arc<Shared<S>>, tls: Option<TlsAcceptor>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        tokio::spawn(async move {
            let (tcp, handle) = with_handle(tcp);
            match tls {
                Some(tls) => {
                    if let Ok(stream) = tls.accept(tcp).await {
                        serve(stream, handle, shared).await;
                    }
                }
                None => serve(tcp, handle, shared).await,
            }
        });
    }
}

/// The connection, and a second handle on its socket, for a reset.
fn with_handle(tcp: TcpStream) -> (TcpStream, TcpStream) {
    let tcp = tcp.into_std().unwrap();
    let handle = tcp.try_clone().unwrap();
    (TcpStream::from_std(tcp).unwrap(), TcpStream::from_std(handle).unwrap())
}

async fn serve<T, S>(stream: T, handle: TcpStream, shared: Arc<Shared<S>>)
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    let handle = &handle;
    let answer = service_fn(|request: Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move { one(request, &shared, handle).await }
    });
    // An error is a connection that the client, or a fault, has broken.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

async fn one<S: Service>(
    request: Request<Incoming>,
    shared: &Shared<S>,
    handle: &TcpStream,
) -> Result<Response<Body>, io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    shared.calls.lock().push(Instant::now());
    let running = shared.running.fetch_add(1, Ordering::SeqCst) + 1;
    shared.most_running.fetch_max(running, Ordering::SeqCst);
    let fault = shared.faults.lock().pop_front();
    let answered = faulty(&head, &body, shared, handle, fault).await;
    shared.running.fetch_sub(1, Ordering::SeqCst);
    answered
}

async fn faulty<S: Service>(
    head: &Parts,
    body: &[u8],
    shared: &Shared<S>,
    handle: &TcpStream,
    fault: Option<Fault>,
) -> Result<Response<Body>, io::Error> {
    let reset = || {
        handle.set_zero_linger().unwrap();
        Err(io::Error::from(io::ErrorKind::ConnectionReset))
    };
    let status = |status: u16| Response::builder().status(StatusCode::from_u16(status).unwrap());
    match fault {
        Some(Fault::Status(code)) => return Ok(status(code).body(whole("out of order".to_owned())).unwrap()),
        Some(Fault::TooMany { retry_after }) => {
            return Ok(status(429).header("retry-after", retry_after).body(whole(String::new())).unwrap());
        }
        Some(Fault::Reset) => return reset(),
        _ => {}
    }
    // Others get their turn while this one is there, as on a server with a network before it.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let answer = shared.service.lock().answer(head, body);
    match fault {
        Some(Fault::TakenThenReset) => reset(),
        Some(Fault::HalfAnswer) => {
            let half =
                [Ok(Frame::data(Bytes::from_static(b"{\"res"))), Err(io::Error::from(io::ErrorKind::ConnectionReset))];
            Ok(answer.map(|_| BodyExt::boxed(StreamBody::new(stream::iter(half)))))
        }
        Some(Fault::Slow(wait)) => {
            tokio::time::sleep(wait).await;
            Ok(answer.map(whole))
        }
        _ => Ok(answer.map(whole)),
    }
}

fn whole(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed()
}
