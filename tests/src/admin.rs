//! The management API as a script uses it.

use std::net::SocketAddr;

use llm_proxy_load::generate::fetch;
use serde_json::Value;

/// A client of the admin listener, with a credential.
#[derive(Clone, Debug)]
pub struct Admin {
    addr: SocketAddr,
    token: String,
}

/// What the admin plane answered.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its status.
    pub status: u16,
    /// Its head as received.
    pub head: String,
    /// Its body.
    pub body: Vec<u8>,
}

impl Told {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The body of an answer that must have this status.
    ///
    /// # Panics
    /// When it has another.
    #[must_use]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        if self.body.is_empty() { Value::Null } else { self.json() }
    }
}

impl Admin {
    /// A client of this listener.
    pub fn new(addr: SocketAddr, token: &str) -> Self {
        Self { addr, token: token.to_owned() }
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Told {
        self.send("GET", path, None).await
    }

    /// POST with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Told {
        self.send("POST", path, Some(body)).await
    }

    /// PATCH with a JSON body.
    pub async fn patch(&self, path: &str, body: &Value) -> Told {
        self.send("PATCH", path, Some(body)).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Told {
        self.send("DELETE", path, None).await
    }

    /// POST without a body.
    pub async fn post_empty(&self, path: &str) -> Told {
        self.send("POST", path, None).await
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Told {
        let Self { addr, token } = self;
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {addr}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n"
        );
        match body {
            Some(body) => {
                let body = body.to_string();
                let length = body.len();
                request.push_str(&format!("content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"));
            }
            None if method == "POST" => request.push_str("content-length: 0\r\n\r\n"),
            None => request.push_str("\r\n"),
        }
        let reply = fetch(*addr, request.as_bytes()).await.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        Told { status: reply.status, head: String::from_utf8_lossy(&reply.head).into_owned(), body: reply.body }
    }
}
