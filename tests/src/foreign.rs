//! Clients that somebody else wrote, and the listener as they find it. What they make of an answer is not for this
//! project to say, so they see what its own readers forgive.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::PATIENCE;
use crate::tls::{Authority, Identity, VALID};

/// The address that the listener's certificate is for.
const HOST: &str = "127.0.0.1";

/// Runs a program that must be there, to its end, and gives it this to read.
///
/// # Panics
/// When it is missing, or does not end in time.
pub async fn run(program: &str, arguments: &[&str], input: &[u8], within: Duration) -> Output {
    let running = async {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().expect("its input is a pipe");
        // One that ends before it has read everything has its reasons.
        let _ = stdin.write_all(input).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let output = timeout(within, running).await;
    output.unwrap_or_else(|_| panic!("{program} does not end")).unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// The proxy's listener, in the clear or under TLS.
pub struct Listener {
    tls: Option<Tls>,
}

/// What a listener shows, and what its clients are given to judge it by.
struct Tls {
    authority: Authority,
    certificate: String,
    key: String,
    identity: Identity,
}

impl Listener {
    /// One in the clear.
    pub fn clear() -> Self {
        Self { tls: None }
    }

    /// One under TLS.
    pub fn sealed() -> Self {
        let authority = Authority::new("The listener's authority");
        let identity = authority.certify(HOST, VALID);
        let text = |path: PathBuf| path.to_str().expect("a path is text").to_owned();
        let (certificate, key) = (text(identity.certificate_file()), text(identity.key_file()));
        Self { tls: Some(Tls { authority, certificate, key, identity }) }
    }

    /// One of each.
    pub fn both() -> [Self; 2] {
        [Self::clear(), Self::sealed()]
    }

    /// Whether it is under TLS.
    pub fn is_sealed(&self) -> bool {
        self.tls.is_some()
    }

    /// The settings that make it so.
    pub fn settings(&self) -> Vec<(&str, &str)> {
        let tls = self.tls.iter();
        tls.flat_map(|tls| [("TLS_CERT_FILE", &*tls.certificate), ("TLS_KEY_FILE", &*tls.key)]).collect()
    }

    /// Where a client of HTTP finds this path.
    pub fn url(&self, to: SocketAddr, path: &str) -> String {
        format!("{}://{to}{path}", if self.is_sealed() { "https" } else { "http" })
    }

    /// A connection under TLS that offers these protocols (ALPN).
    ///
    /// # Panics
    /// When it does not come about, or the listener is in the clear.
    pub async fn connect(&self, to: SocketAddr, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        let tls = self.tls.as_ref().expect("a listener under TLS");
        tls.authority.connect(to, HOST, protocols).await.unwrap_or_else(|error| panic!("connecting to {to}: {error}"))
    }

    /// What browsers know the certificate by: [`Identity::pin`].
    pub fn pin(&self) -> Option<&str> {
        self.tls.as_ref().map(|tls| tls.identity.pin())
    }

    /// How curl is told to speak HTTP/1.1, and HTTP/2.
    pub fn ways(&self) -> [&'static str; 2] {
        ["--http1.1", if self.is_sealed() { "--http2" } else { "--http2-prior-knowledge" }]
    }

    /// A transfer by curl, which verifies who answers it.
    pub fn curl(&self, way: &str, to: SocketAddr, path: &str) -> Curl {
        // Whatever the machine has for a `.curlrc` or a proxy is not meant here.
        let mut arguments = Vec::from(["-q", "-sS", "--noproxy", "*", way].map(str::to_owned));
        if let Some(tls) = &self.tls {
            let authority = tls.authority.file();
            arguments.extend(["--cacert".to_owned(), authority.to_str().expect("a path is text").to_owned()]);
        }
        Curl { arguments, url: self.url(to, path), folder: tempfile::tempdir().unwrap() }
    }
}

/// One transfer by curl.
pub struct Curl {
    arguments: Vec<String>,
    url: String,
    folder: TempDir,
}

/// What became of a transfer.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The version of HTTP in which the answer came: `1.1`, `2`.
    pub version: String,
    /// Its status.
    pub status: u16,
    /// Every head in its order, interim ones (1xx) and trailers included.
    pub heads: String,
    /// The body as curl wrote it; of an answer to HEAD, its head.
    pub body: Vec<u8>,
    /// Bytes of the request's body that curl has sent.
    pub sent: u64,
    /// Bytes of the answer's body that it has received.
    pub received: u64,
    /// From the start to the end.
    pub took: Duration,
}

impl Curl {
    /// An argument with its value.
    #[must_use]
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.arguments.extend([name, value].map(str::to_owned));
        self
    }

    /// An argument without a value.
    #[must_use]
    pub fn flag(mut self, name: &str) -> Self {
        self.arguments.push(name.to_owned());
        self
    }

    /// A field of the request.
    #[must_use]
    pub fn with(self, name: &str, value: &str) -> Self {
        self.option("-H", &format!("{name}: {value}"))
    }

    /// The credential as most clients send it.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.with("authorization", &format!("Bearer {token}"))
    }

    /// A POST with this JSON.
    #[must_use]
    pub fn json(self, body: &str) -> Self {
        self.with("content-type", "application/json").option("--data-binary", body)
    }

    /// A POST with what is in this file.
    #[must_use]
    pub fn upload(self, file: &Path) -> Self {
        let body = format!("@{}", file.display());
        self.with("content-type", "application/octet-stream").option("--data-binary", &body)
    }

    /// Goes on with a body of which this is there already.
    #[must_use]
    pub fn resume(self, there: &[u8]) -> Self {
        std::fs::write(self.body(), there).unwrap();
        self.option("-C", "-")
    }

    /// Does it.
    ///
    /// # Panics
    /// When curl is missing, does not end, or takes the answer for a broken one.
    pub async fn fetch(self) -> Fetched {
        self.fetch_within(2 * PATIENCE).await
    }

    /// The same, with more patience.
    ///
    /// # Panics
    /// As [`Self::fetch`].
    pub async fn fetch_within(self, patience: Duration) -> Fetched {
        let (heads, body) = (self.folder.path().join("heads"), self.body());
        let written = "%{http_version} %{http_code} %{size_upload} %{size_download} %{time_total}";
        let (heads_to, body_to) = (heads.to_str().unwrap(), body.to_str().unwrap());
        let mut arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        arguments.extend(["-D", heads_to, "-o", body_to, "-w", written, &self.url]);
        let output = run("curl", &arguments, b"", patience).await;
        let (told, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let heads = String::from_utf8_lossy(&std::fs::read(&heads).unwrap_or_default()).into_owned();
        assert!(output.status.success(), "curl {arguments:?}: {complaint}{heads}");
        let told: Vec<&str> = told.split(' ').collect();
        let [version, status, sent, received, took] = told[..] else { panic!("curl {arguments:?}: {told:?}") };
        Fetched {
            version: version.to_owned(),
            status: status.parse().unwrap(),
            heads,
            // None is made for an answer without one.
            body: std::fs::read(body).unwrap_or_default(),
            sent: sent.parse().unwrap(),
            received: received.parse().unwrap(),
            took: Duration::from_secs_f64(took.parse().unwrap()),
        }
    }

    fn body(&self) -> PathBuf {
        self.folder.path().join("body")
    }
}

impl Fetched {
    /// The final head.
    fn head(&self) -> &str {
        let heads = self.heads.split_inclusive("\r\n\r\n");
        heads.filter(|head| head.starts_with("HTTP/")).last().unwrap_or_default()
    }

    /// The first value of a field of the final head.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head().lines().filter_map(|line| line.split_once(':'));
        fields.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The statuses of all heads in their order.
    pub fn statuses(&self) -> Vec<u16> {
        let lines = self.heads.lines().filter(|line| line.starts_with("HTTP/"));
        lines.map(|line| line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)).collect()
    }

    /// The body as text, for messages and searches.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The proxy's id of the exchange.
    ///
    /// # Panics
    /// When there is none.
    pub fn id(&self) -> String {
        self.field("x-llm-proxy-request-id").unwrap_or_else(|| panic!("no request id: {}", self.heads)).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_heads_is_the_answers() {
        let hints = "HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\n";
        let heads = format!("{hints}HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\n\r\nx-sum: 1\r\n");
        let fetched = Fetched {
            version: "1.1".to_owned(),
            status: 200,
            heads,
            body: Vec::new(),
            sent: 0,
            received: 0,
            took: Duration::ZERO,
        };
        assert_eq!(fetched.statuses(), [103, 200]);
        assert_eq!((fetched.field("x-a"), fetched.field("link"), fetched.field("x-sum")), (Some("1"), None, None));
    }
}
