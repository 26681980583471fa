//! The opening of a WebSocket (RFC 6455 §4): the request judged strictly, and the 101 that answers it, in the form that
//! was asked for.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;

use super::choice::of_model;
use super::credentials::{KEY_PROTOCOL, Provider};
use super::errors::Problem;
use super::head::Head;
use super::routes::Route;
use super::steering::Opening;
use crate::body::Framing;

/// What a server adds to the key to show that it knows WebSocket (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The subprotocol of the realtime APIs.
const REALTIME: &str = "realtime";

/// A request that gets its WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upgrade {
    accept: String,
    protocols: Vec<String>,
}

impl Upgrade {
    /// Judges a request to a realtime endpoint: its handshake, and the model that its query names.
    pub(super) fn judge<'a>(head: &Head, route: &Route<'a>) -> Result<Self, Problem<'a>> {
        let unreadable = |reason: &str| Problem::Unreadable(reason.to_owned());
        if !lists(head, "upgrade", "websocket") || !lists(head, "connection", "upgrade") || head.is_http10 {
            return Err(unreadable("this is a WebSocket endpoint, and the request asks for none"));
        }
        if head.framing != Framing::Length(0) {
            return Err(unreadable("a WebSocket handshake has no body"));
        }
        if only(head, "sec-websocket-version") != Some(b"13".as_slice()) {
            return Err(unreadable("sec-websocket-version is not 13"));
        }
        let key = only(head, "sec-websocket-key").filter(|key| STANDARD.decode(key).is_ok_and(|key| key.len() == 16));
        let key = key.ok_or_else(|| unreadable("sec-websocket-key is not the base64 of 16 bytes"))?;
        let protocols = head
            .elements("sec-websocket-protocol")
            .map(|item| String::from_utf8(item.to_vec()).ok().filter(|item| !item.is_empty()))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| unreadable("sec-websocket-protocol is not a list of tokens"))?;
        if let Some(problem) = route.model.and_then(|model| of_model(route.provider, model)) {
            return Err(problem);
        }
        // A sideband connection names a call instead, a transcription session its intent.
        let names_another = head.query("call_id").or_else(|| head.query("intent")).is_some();
        if route.provider == Provider::OpenAi && route.model.is_none() && !names_another {
            return Err(Problem::MissingField("model"));
        }
        Ok(Self { accept: accept(key), protocols })
    }

    /// The subprotocol chosen.
    pub(super) fn protocol(&self, opening: Option<Opening>) -> Option<&str> {
        let mut offered = self.protocols.iter().map(String::as_str);
        match opening {
            Some(Opening::ForeignProtocol) => Some("nobody-offered-this"),
            Some(Opening::EchoCredential) => offered.find(|item| item.starts_with(KEY_PROTOCOL)),
            _ => offered.find(|item| *item == REALTIME),
        }
    }

    /// The head of the 101.
    pub(super) fn answer(&self, provider: Provider, opening: Option<Opening>) -> String {
        let accept = match opening {
            Some(Opening::WrongAccept) => accept(b"another key"),
            _ => self.accept.clone(),
        };
        let mut head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {accept}\r\n"
        );
        if let Some(protocol) = self.protocol(opening) {
            head.push_str(&format!("sec-websocket-protocol: {protocol}\r\n"));
        }
        if opening == Some(Opening::Extension) {
            head.push_str("sec-websocket-extensions: permessage-deflate\r\n");
        }
        head.push_str(match provider {
            Provider::OpenAi => "x-request-id: req_mock\r\n",
            Provider::Azure => "apim-request-id: 00000000-0000-4000-8000-000000000000\r\n",
            Provider::Anthropic | Provider::Gemini => "",
        });
        head.push_str("\r\n");
        head
    }
}

/// The value of `sec-websocket-accept` that answers this key (RFC 6455 §4.2.2).
fn accept(key: &[u8]) -> String {
    // SHA-1 protects nothing here: it shows that the answer was made by someone who knows the protocol.
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key);
    sha1.update(GUID);
    STANDARD.encode(sha1.finish())
}

fn lists(head: &Head, name: &str, wanted: &str) -> bool {
    head.elements(name).any(|element| element.eq_ignore_ascii_case(wanted.as_bytes()))
}

/// The value of a field that is there once and holds one element.
fn only<'a>(head: &'a Head, name: &'a str) -> Option<&'a [u8]> {
    let mut elements = head.elements(name);
    let element = elements.next()?;
    elements.next().is_none().then_some(element)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::routes::route;
    use bytes::BytesMut;

    const FIELDS: [(&str, &str); 4] = [
        ("upgrade", "websocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn judge(target: &str, fields: &[(&str, &str)]) -> Result<Upgrade, String> {
        let mut text = format!("GET {target} HTTP/1.1\r\nhost: a\r\n");
        for (name, value) in fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let head = Head::take(&mut BytesMut::from(format!("{text}\r\n").as_str())).unwrap().unwrap();
        Upgrade::judge(&head, &route(&head, false)).map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn the_key_is_answered_as_the_standard_shows() {
        let upgrade = judge("/v1/realtime?model=m", &FIELDS).unwrap();
        let answer = upgrade.answer(Provider::OpenAi, None);
        assert!(answer.contains("\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
        assert!(!answer.contains("sec-websocket-protocol"), "{answer}");
    }

    #[test]
    fn a_handshake_with_any_fault_is_refused() {
        for at in 0..FIELDS.len() {
            let mut fields = FIELDS.to_vec();
            let (name, _) = fields.remove(at);
            assert!(judge("/v1/realtime?model=m", &fields).is_err(), "without {name}");
            fields.push((name, "12"));
            assert!(judge("/v1/realtime?model=m", &fields).is_err(), "another {name}");
        }
        for (target, expected) in [
            ("/v1/realtime", "MissingField(\"model\")"),
            ("/v1/realtime?model=does-not-exist", "UnknownModel(\"does-not-exist\")"),
            ("/openai/realtime?deployment=rate-limited", "RateLimited"),
        ] {
            assert_eq!(judge(target, &FIELDS), Err(expected.to_owned()), "{target}");
        }
        assert!(judge("/v1/realtime?call_id=rtc_1", &FIELDS).is_ok());
    }

    #[test]
    fn the_subprotocol_is_realtime_unless_asked_otherwise() {
        let offer = [&FIELDS[..], &[("sec-websocket-protocol", "realtime, openai-insecure-api-key.k")]].concat();
        let upgrade = judge("/v1/realtime?model=m", &offer).unwrap();
        for (opening, expected) in [
            (None, "realtime"),
            (Some(Opening::Early), "realtime"),
            (Some(Opening::EchoCredential), "openai-insecure-api-key.k"),
            (Some(Opening::ForeignProtocol), "nobody-offered-this"),
        ] {
            assert_eq!(upgrade.protocol(opening), Some(expected), "{opening:?}");
        }
        let wrong = upgrade.answer(Provider::OpenAi, Some(Opening::Extension));
        assert!(wrong.contains("\r\nsec-websocket-extensions: permessage-deflate\r\n"), "{wrong}");
    }
}
