//! The head of a request on a stream, as a [`Call`].
//!
//! It is written down as the HTTP/1.1 head that says the same, and that is judged by the reader of HTTP/1.1 heads: one
//! set of rules for both versions, and everything behind it knows one form. A request of HTTP/2 thereby is at least as
//! strict as one that came over HTTP/1.1, and what goes to the provider is made from the same parts. Written is only
//! what cannot end a line: `h2` lets no CR, LF or NUL into a name, value, method or path.
//!
//! What HTTP/2 has in a form of its own is brought into HTTP/1.1's: the authority becomes Host (RFC 9113 §8.3.1), the
//! crumbs of a cookie one field (§8.2.3), and a body whose length nobody tells is framed as chunked, so that it goes
//! out in chunks. A body's length is checked against its DATA by `h2` (§8.1.1). A fragment behind the path never gets
//! here: `h2` cuts it off, and what is judged is what is sent.

use bytes::Bytes;
use http::header::{COOKIE, HOST};
use http::request::Parts;
use http::uri::PathAndQuery;
use llm_proxy_core::http1::call::Call;
use llm_proxy_core::http1::request_head::{self, BadHead};

use crate::http1::put_field;

/// Judges the head of a stream. `has_body`: more than the head is to come.
///
/// # Errors
/// What is wrong, for a 400.
pub fn call(head: &Parts, has_body: bool) -> Result<Call, BadHead> {
    request_head::parse(Bytes::from(written(head, has_body)?))
}

fn written(head: &Parts, has_body: bool) -> Result<Vec<u8>, BadHead> {
    // CONNECT has an authority and no path, OPTIONS may have `*`: neither asks for anything here.
    let path = head.uri.path_and_query().filter(|_| !head.uri.path().is_empty()).map(PathAndQuery::as_str);
    let path = path.filter(|path| path.starts_with('/')).ok_or("the path is not in origin form")?;
    let mut text = Vec::with_capacity(1024);
    text.extend_from_slice(head.method.as_str().as_bytes());
    text.extend_from_slice(b" ");
    text.extend_from_slice(path.as_bytes());
    text.extend_from_slice(b" HTTP/1.1\r\n");

    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let Some(authority) = authority {
        let mut hosts = head.headers.get_all(HOST).iter();
        let same = hosts.next().is_none_or(|host| host.as_bytes().eq_ignore_ascii_case(authority));
        if !same || hosts.next().is_some() {
            return Err("the Host field is not the authority".into());
        }
        put_field(&mut text, b"host", authority);
    }
    for (name, value) in &head.headers {
        match name.as_str() {
            "host" if authority.is_some() => {}
            "cookie" => {}
            // `h2` refuses them too, but what they would mean in HTTP/1.1 must not hang on that.
            "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => {
                return Err("a field is there that HTTP/2 does not have".into());
            }
            name => put_field(&mut text, name.as_bytes(), value.as_bytes()),
        }
    }
    let crumbs: Vec<&[u8]> = head.headers.get_all(COOKIE).iter().map(|crumb| crumb.as_bytes()).collect();
    if !crumbs.is_empty() {
        put_field(&mut text, b"cookie", &crumbs.join(&b"; "[..]));
    }
    if has_body && !head.headers.contains_key(http::header::CONTENT_LENGTH) {
        put_field(&mut text, b"transfer-encoding", b"chunked");
    }
    text.extend_from_slice(b"\r\n");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};
    use llm_proxy_core::http1::call::Framing;

    use super::*;

    fn head(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        request.body(()).unwrap().into_parts().0
    }

    fn text(head: &Parts, has_body: bool) -> String {
        String::from_utf8(written(head, has_body).unwrap()).unwrap()
    }

    #[test]
    fn a_head_is_written_as_http_1_1_would_have_it() {
        let fields = [
            ("authorization", "Bearer t"),
            ("cookie", "a=1"),
            ("x-a", "1"),
            ("cookie", "b=2"),
            ("te", "trailers"),
            ("x-a", "2"),
        ];
        assert_eq!(
            text(&head("POST", "https://proxy.test:8443/v1/chat?x=%20", &fields), true),
            "POST /v1/chat?x=%20 HTTP/1.1\r\nhost: proxy.test:8443\r\nauthorization: Bearer t\r\nx-a: 1\r\nx-a: 2\r\n\
             te: trailers\r\ncookie: a=1; b=2\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        assert_eq!(text(&head("GET", "/", &[("host", "a")]), false), "GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    }

    #[test]
    fn the_framing_is_what_the_stream_and_its_length_say() {
        for (length, has_body, expected) in [
            (None, false, Framing::None),
            (None, true, Framing::Chunked),
            (Some("0"), false, Framing::Length(0)),
            (Some("5"), true, Framing::Length(5)),
        ] {
            let fields: Vec<_> = length.map(|length| ("content-length", length)).into_iter().collect();
            let call = call(&head("POST", "https://a/v1", &fields), has_body).unwrap();
            assert_eq!(call.framing, expected, "{length:?} {has_body}");
            assert!(!call.wants_close);
        }
        let expects = head("POST", "https://a/v1", &[("expect", "100-continue"), ("content-length", "5")]);
        assert!(call(&expects, true).unwrap().expects_continue);
    }

    #[test]
    fn a_host_may_say_the_authority_again_and_nothing_else() {
        for (hosts, good) in [
            (&["a.test"][..], true),
            (&["A.TEST"], true),
            (&["b.test"], false),
            (&["a.test:443"], false),
            (&[""], false),
            (&["a.test", "a.test"], false),
        ] {
            let fields: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            assert_eq!(call(&head("GET", "https://a.test/", &fields), false).is_ok(), good, "{hosts:?}");
        }
    }

    #[test]
    fn what_http_1_1_would_not_have_is_refused() {
        const NONE: &[(&str, &str)] = &[];
        let many: Vec<_> = (0..101).map(|_| ("x-a", "b")).collect();
        for (case, method, uri, fields, has_body) in [
            ("connect", "CONNECT", "a.test:443", NONE, true),
            ("asterisk", "OPTIONS", "*", &[("host", "a")], false),
            ("no authority, no host", "GET", "/", NONE, false),
            ("two hosts", "GET", "/", &[("host", "a"), ("host", "a")], false),
            ("user in the authority", "GET", "https://user@a.test/", NONE, false),
            ("long method", "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG", "https://a/", NONE, false),
            ("path", "GET", "https://a/{x}", NONE, false),
            ("many fields", "GET", "https://a/", &many, false),
            ("tabs", "GET", "https://a/", &[("content-length", "\t1\t2")], true),
            ("two lengths", "POST", "https://a/", &[("content-length", "1"), ("content-length", "1")], true),
            ("length", "POST", "https://a/", &[("content-length", "+1")], true),
            ("expect", "POST", "https://a/", &[("expect", "more")], true),
            ("chunked", "POST", "https://a/", &[("transfer-encoding", "chunked")], true),
            ("connection", "GET", "https://a/", &[("connection", "close")], false),
            ("keep-alive", "GET", "https://a/", &[("keep-alive", "1")], false),
            ("upgrade", "GET", "https://a/", &[("upgrade", "websocket")], false),
        ] {
            assert!(call(&head(method, uri, fields), has_body).is_err(), "{case}");
        }
    }
}
