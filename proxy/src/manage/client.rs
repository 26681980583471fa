//! One request to the admin listener: plain HTTP/1.1, one connection, one answer.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::credential::Credential;
use super::request::Request;

/// From the first packet to the last byte of the answer, for what is done at once.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// Largest answer that is read. A page of 200 tokens with full model lists has 3 MB.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Where the admin plane is.
pub(super) struct Server {
    host: String,
    port: u16,
    authority: String,
    /// What stands before `/manage`, for an admin plane behind a path of another server. No slash at its end.
    base_path: String,
}

impl Server {
    /// The server of `--admin-url`, else the one that listens on `listen_addr`.
    pub(super) fn new(url: Option<&str>, listen_addr: &str) -> anyhow::Result<Self> {
        let url = url.map_or_else(|| format!("http://{}", reachable(listen_addr)), str::to_owned);
        let uri: Uri = url.parse().with_context(|| format!("--admin-url: `{url}` is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => bail!("--admin-url: the admin listener speaks http; for https use a tunnel to it"),
            _ => bail!("--admin-url: a URL such as http://127.0.0.1:8081 is expected"),
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(|| anyhow!("--admin-url: a host, without a user, is expected"))?;
        if uri.query().is_some() {
            bail!("--admin-url: a URL without a query is expected");
        }
        Ok(Self {
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            base_path: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// Sends one request and returns the body of a successful answer.
    ///
    /// # Errors
    /// One line that says what happened and what to do: the server's own words where it refused.
    pub(super) async fn send(&self, request: &Request, credential: &Credential) -> anyhow::Result<String> {
        let exchange = self.exchange(request, credential);
        let (status, body) = tokio::time::timeout(request.timeout, exchange).await.map_err(|_| {
            anyhow!("http://{} did not answer within {} seconds", self.authority, request.timeout.as_secs())
        })??;
        if status.is_success() {
            return Ok(body);
        }
        Err(self.refusal(status, &body, &credential.origin))
    }

    async fn exchange(&self, request: &Request, credential: &Credential) -> anyhow::Result<(StatusCode, String)> {
        let Request { method, target, body, .. } = request;
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", credential.token.expose()))
            .map_err(|_| anyhow!("the management token from {} is not fit for a header", credential.origin))?;
        bearer.set_sensitive(true);
        let mut request = http::Request::builder()
            .method(method.clone())
            .uri(format!("{}{target}", self.base_path))
            .header(HOST, &self.authority)
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, bearer);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.as_ref().map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = request.body(Full::new(body)).context("this is no request")?;

        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("speaking HTTP")?;
        let connection = tokio::spawn(connection);
        let answered = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| anyhow!("{error}"))?.to_bytes();
            anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        let answered = answered.await.with_context(|| format!("http://{} broke off its answer", self.authority));
        connection.abort();
        answered
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| match error.kind() {
            ErrorKind::ConnectionRefused => anyhow!(
                "is `llm-proxy server` running? Tried http://{}, where nothing listens (--admin-url names another place)",
                self.authority
            ),
            _ => anyhow!("cannot reach http://{}: {error} (--admin-url names another address)", self.authority),
        })
    }

    /// The server's refusal as one line.
    fn refusal(&self, status: StatusCode, body: &str, origin: &str) -> anyhow::Error {
        let problem: Value = serde_json::from_str(body).unwrap_or_default();
        let detail = problem.get("detail").and_then(Value::as_str).map(super::table::printable);
        match (status, detail) {
            (StatusCode::UNAUTHORIZED, Some(detail)) => anyhow!("{detail} (the one sent came from {origin})"),
            (_, Some(detail)) => anyhow!("{detail} ({})", status.as_u16()),
            (_, None) => anyhow!(
                "http://{} answered {} and is not an admin listener; is it the data plane's address?",
                self.authority,
                status.as_u16()
            ),
        }
    }
}

/// A listen address as one to connect to: a server that listens on every address is reached on this machine's own.
fn reachable(listen_addr: &str) -> String {
    for (every, own) in [("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")] {
        if let Some(port) = listen_addr.strip_prefix(every) {
            return format!("{own}{port}");
        }
    }
    listen_addr.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_the_url_or_where_the_admin_plane_listens() {
        for (url, listen_addr, expected) in [
            (None, "127.0.0.1:8081", ("127.0.0.1", 8081, "")),
            (None, "0.0.0.0:9000", ("127.0.0.1", 9000, "")),
            (None, "[::]:9000", ("::1", 9000, "")),
            (Some("http://admin.internal"), "x", ("admin.internal", 80, "")),
            (Some("http://[::1]:8081/"), "x", ("::1", 8081, "")),
            (Some("http://host:1/llm/"), "x", ("host", 1, "/llm")),
        ] {
            let server = Server::new(url, listen_addr).unwrap();
            assert_eq!((server.host.as_str(), server.port, server.base_path.as_str()), expected, "{url:?}");
        }
    }

    #[test]
    fn what_is_no_address_of_an_admin_listener_is_refused() {
        for url in ["https://host", "host:8081", "ftp://host", "http://user:pass@host", "http://host/?a=b", "", "/x"] {
            assert!(Server::new(Some(url), "x").is_err(), "{url}");
        }
    }

    #[test]
    fn a_refusal_is_one_line_with_the_server_s_words() {
        let server = Server::new(None, "127.0.0.1:8081").unwrap();
        for (status, body, expected) in [
            (404, r#"{"detail":"no token has this id"}"#, "no token has this id (404)"),
            (401, r#"{"detail":"wrong"}"#, "wrong (the one sent came from FILE)"),
            (404, "<html>", "http://127.0.0.1:8081 answered 404 and is not an admin listener"),
        ] {
            let error = server.refusal(StatusCode::from_u16(status).unwrap(), body, "FILE").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
