//! The opening handshake (RFC 6455 §4), judged on both sides, and the credential that may stand in it.
//!
//! Browsers cannot set fields on a WebSocket. OpenAI's clients there offer their key as a subprotocol,
//! `openai-insecure-api-key.<key>`, beside the true one, `realtime`; everywhere else they send `Authorization` and offer
//! no subprotocol. OpenAI takes either and refuses a handshake with both. So the provider's key goes where the client's
//! token stood: into the offer, or into a field and then nowhere else. Azure and Gemini take keys in fields and queries
//! only: there such an item is dropped.
//!
//! A subprotocol comes back in the answer. The client gets one that it offered and that is no credential, whatever the
//! provider chose. Extensions are never offered to the provider: what it sends must be readable as it stands.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;

use crate::dialect::Dialect;
use crate::http1::call::{Framing, Version};
use crate::http1::octets::is_token;
use crate::secret::Secret;

/// The value of `sec-websocket-version`, the only one there is.
pub const VERSION: &str = "13";
/// What a server adds to the key to show that it knows WebSocket (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// How an offered subprotocol begins that is a credential.
const CREDENTIAL: &str = "openai-insecure-api-key.";
/// The subprotocol of OpenAI's realtime API.
const REALTIME: &str = "realtime";
/// The most subprotocols a request may offer. SDKs offer up to five.
const MOST_PROTOCOLS: usize = 16;

/// A request that asks for a WebSocket and may get one.
#[derive(Clone, PartialEq, Eq)]
pub struct Upgrade<'a> {
    key: &'a str,
    protocols: Vec<&'a str>,
}

/// A request that asks for a WebSocket in a way that cannot be answered with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUpgrade {
    /// Another version of the protocol: 426 with `sec-websocket-version: 13` (RFC 6455 §4.4).
    #[error("only version 13 of the WebSocket protocol is spoken here")]
    Version,
    /// A fault in the handshake: 400.
    #[error("the WebSocket handshake is malformed: {0}")]
    Malformed(&'static str),
}

/// The provider's 101 does not open the WebSocket that was asked for: 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the provider's WebSocket handshake is malformed: {0}")]
pub struct BadSwitch(pub &'static str);

/// What the provider is offered.
#[derive(Debug, PartialEq, Eq)]
pub struct Offer {
    /// The value of `sec-websocket-protocol`; a secret, since it may hold the provider's key.
    pub protocols: Option<Secret>,
    /// The provider's key is in it, and must stand nowhere else.
    pub carries_key: bool,
}

/// Whether this field belongs to the handshake. Such fields are never passed on as they came: they are for one
/// connection only, and may hold the token.
pub fn is_handshake_field(name: &[u8]) -> bool {
    const PREFIX: &[u8] = b"sec-websocket-";
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// Judges a request. `None` for one that is ordinary, or that asks in a way that may be ignored (RFC 9110 §7.8): with
/// another method than GET, in HTTP/1.0, for another protocol, or without naming `upgrade` in `Connection`.
///
/// # Errors
/// [`BadUpgrade`] for a WebSocket handshake with a fault. A body is one: behind it, two readers could see the first frame
/// in two places.
pub fn judge<'a>(
    method: &str,
    version: Version,
    framing: Framing,
    fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<Option<Upgrade<'a>>, BadUpgrade> {
    let fields = Fields(fields.into_iter().collect());
    let asks = method == "GET"
        && version == Version::Http11
        && fields.lists("upgrade", "websocket")
        && fields.lists("connection", "upgrade");
    if !asks {
        return Ok(None);
    }
    if !matches!(framing, Framing::None | Framing::Length(0)) {
        return Err(BadUpgrade::Malformed("it has a body"));
    }
    if fields.only("sec-websocket-version") != Some(VERSION.as_bytes()) {
        return Err(BadUpgrade::Version);
    }
    let key = fields.only("sec-websocket-key").filter(|key| is_nonce(key)).and_then(|key| str::from_utf8(key).ok());
    let key = key.ok_or(BadUpgrade::Malformed("Sec-WebSocket-Key is not the base64 of 16 bytes, once"))?;
    let mut protocols: Vec<&str> = Vec::new();
    for item in fields.elements("sec-websocket-protocol") {
        let item = str::from_utf8(item).ok().filter(|item| !item.is_empty() && is_token(item.as_bytes()));
        let item = item.ok_or(BadUpgrade::Malformed("Sec-WebSocket-Protocol is no list of tokens"))?;
        if protocols.contains(&item) {
            return Err(BadUpgrade::Malformed("Sec-WebSocket-Protocol names one twice"));
        }
        if protocols.len() == MOST_PROTOCOLS {
            return Err(BadUpgrade::Malformed("Sec-WebSocket-Protocol has more than 16 items"));
        }
        protocols.push(item);
    }
    Ok(Some(Upgrade { key, protocols }))
}

impl<'a> Upgrade<'a> {
    /// The client's `sec-websocket-key`, fit to be sent on: the provider's answer to it is checked here, and the client's
    /// answer is made here.
    pub fn key(&self) -> &'a str {
        self.key
    }

    /// The tokens among the offered subprotocols, as they stand there.
    pub fn tokens(&self) -> impl Iterator<Item = &'a str> {
        self.protocols.iter().copied().filter_map(credential)
    }

    /// The offered subprotocols that are no credential: what an answer may choose from.
    pub fn choices(&self) -> impl Iterator<Item = &'a str> {
        self.protocols.iter().copied().filter(|item| credential(item).is_none())
    }

    /// What the provider is offered: the client's items in their order, its token swapped for the key or dropped.
    pub fn offer(&self, dialect: Dialect, key: &Secret) -> Offer {
        // A key that is no token would break the list; it goes into a field instead.
        let takes_key = dialect == Dialect::OpenAi && !key.expose().is_empty() && is_token(key.expose().as_bytes());
        let carries_key = takes_key && self.tokens().next().is_some();
        let mut list = String::with_capacity(256);
        for item in &self.protocols {
            let (name, value) = match credential(item) {
                None => (*item, ""),
                Some(_) if takes_key => (CREDENTIAL, key.expose()),
                Some(_) => continue,
            };
            if !list.is_empty() {
                list.push_str(", ");
            }
            list.push_str(name);
            list.push_str(value);
        }
        Offer { protocols: (!list.is_empty()).then(|| Secret::new(list)), carries_key }
    }

    /// The value of `sec-websocket-accept` that answers this request (RFC 6455 §4.2.2).
    pub fn accept(&self) -> String {
        // SHA-1 protects nothing here: it shows that the answer was made by someone who knows the protocol.
        let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
        sha1.update(self.key.as_bytes());
        sha1.update(GUID);
        STANDARD.encode(sha1.finish())
    }

    /// Judges the fields of the provider's 101 (RFC 6455 §4.1) and gives the subprotocol for the client: the provider's
    /// choice or, where that was a credential, `realtime` if it was offered. The answer to the client is built from
    /// [`Self::accept`] and this.
    ///
    /// # Errors
    /// [`BadSwitch`].
    pub fn check_answer<'f>(
        &self,
        fields: impl IntoIterator<Item = (&'f [u8], &'f [u8])>,
    ) -> Result<Option<&'a str>, BadSwitch> {
        let fields = Fields(fields.into_iter().collect());
        if fields.only("upgrade").is_none_or(|value| !value.eq_ignore_ascii_case(b"websocket")) {
            return Err(BadSwitch("Upgrade is not websocket"));
        }
        if !fields.lists("connection", "upgrade") {
            return Err(BadSwitch("Connection does not name upgrade"));
        }
        if fields.only("sec-websocket-accept") != Some(self.accept().as_bytes()) {
            return Err(BadSwitch("Sec-WebSocket-Accept does not answer the key"));
        }
        if fields.all("sec-websocket-extensions").next().is_some() {
            return Err(BadSwitch("Sec-WebSocket-Extensions was not asked for"));
        }
        if fields.all("sec-websocket-protocol").next().is_none() {
            return Ok(None);
        }
        let chosen = fields.only("sec-websocket-protocol").and_then(|chosen| str::from_utf8(chosen).ok());
        let for_client = chosen.and_then(|chosen| {
            if credential(chosen).is_some() && self.tokens().next().is_some() {
                return Some(self.choices().find(|item| *item == REALTIME));
            }
            self.choices().find(|item| *item == chosen).map(Some)
        });
        for_client.ok_or(BadSwitch("Sec-WebSocket-Protocol is none of those offered"))
    }
}

impl fmt::Debug for Upgrade<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Upgrade").field("choices", &self.choices().collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

/// The credential in an offered subprotocol. In any letter case: what is meant as one must not be passed on as another.
fn credential(item: &str) -> Option<&str> {
    let (prefix, rest) = item.split_at_checked(CREDENTIAL.len())?;
    prefix.eq_ignore_ascii_case(CREDENTIAL).then_some(rest)
}

fn is_nonce(key: &[u8]) -> bool {
    // Sixteen bytes are 24 characters; whatever else there may be need not be decoded.
    key.len() == 24 && STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16)
}

/// Names and values of field lines.
struct Fields<'a>(Vec<(&'a [u8], &'a [u8])>);

impl<'a> Fields<'a> {
    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| *value)
    }

    /// The value of a field that is there once.
    fn only(&self, name: &str) -> Option<&'a [u8]> {
        let mut values = self.all(name);
        let value = values.next()?;
        values.next().is_none().then(|| value.trim_ascii())
    }

    /// The elements of a list (RFC 9110 §5.6.1), over all lines of the field. Empty ones are among them.
    fn elements(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.all(name).flat_map(|value| value.split(|octet| *octet == b',')).map(<[u8]>::trim_ascii)
    }

    fn lists(&self, name: &str, wanted: &str) -> bool {
        self.elements(name).any(|element| element.eq_ignore_ascii_case(wanted.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Lines<'a> = Vec<(&'a str, &'a str)>;

    const NONCE: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn lines<'a>(lines: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()))
    }

    fn asked() -> Lines<'static> {
        vec![
            ("Host", "127.0.0.1"),
            ("Upgrade", "websocket"),
            ("Connection", "keep-alive, Upgrade"),
            ("Sec-WebSocket-Key", NONCE),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
        ]
    }

    /// The fields of `asked`, with some values put in the place of others, or behind them if they are new.
    fn with<'a>(mut fields: Lines<'a>, changes: &[(&'a str, &'a str)]) -> Lines<'a> {
        for &(name, value) in changes {
            match fields.iter().position(|(found, _)| *found == name) {
                Some(place) => fields[place].1 = value,
                None => fields.push((name, value)),
            }
        }
        fields
    }

    fn judged<'a>(fields: &'a [(&'a str, &'a str)]) -> Result<Option<Upgrade<'a>>, BadUpgrade> {
        judge("GET", Version::Http11, Framing::None, lines(fields))
    }

    fn offering(protocols: &str) -> Upgrade<'_> {
        let protocols = protocols.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
        Upgrade { key: NONCE, protocols }
    }

    #[test]
    fn a_handshake_is_told_from_what_may_be_ignored() {
        let fields = asked();
        let upgrade = judged(&fields).unwrap().unwrap();
        assert_eq!((upgrade.key(), upgrade.accept().as_str()), (NONCE, ACCEPT));
        assert_eq!((upgrade.tokens().count(), upgrade.choices().count()), (0, 0));

        let whole = |method, version, framing, fields: &Lines<'_>| {
            judge(method, version, framing, lines(fields)).map(|upgrade| upgrade.is_some())
        };
        for (method, version, expected) in [
            ("GET", Version::Http11, true),
            ("POST", Version::Http11, false),
            ("get", Version::Http11, false),
            ("GET", Version::Http10, false),
        ] {
            assert_eq!(whole(method, version, Framing::None, &fields), Ok(expected), "{method}");
            assert_eq!(whole(method, version, Framing::Length(0), &fields), Ok(expected), "{method}");
        }
        for framing in [Framing::Length(1), Framing::Chunked] {
            let outcome = whole("GET", Version::Http11, framing, &fields);
            assert!(matches!(outcome, Err(BadUpgrade::Malformed(_))), "{framing:?}: {outcome:?}");
        }
    }

    #[test]
    fn every_fault_of_a_handshake_has_its_answer() {
        let many = (0..17).map(|number| format!("p{number}")).collect::<Vec<_>>().join(",");
        let malformed = Err("malformed");
        for (changes, expected) in [
            (vec![], Ok(true)),
            (vec![("Upgrade", "WebSocket")], Ok(true)),
            (vec![("Upgrade", "h2c, websocket")], Ok(true)),
            (vec![("Connection", "upgrade")], Ok(true)),
            (vec![("Upgrade", "h2c")], Ok(false)),
            (vec![("Upgrade", "websocket2")], Ok(false)),
            (vec![("Upgrade", "")], Ok(false)),
            (vec![("Connection", "keep-alive")], Ok(false)),
            (vec![("Connection", "close"), ("Sec-WebSocket-Version", "8")], Ok(false)),
            (vec![("Sec-WebSocket-Version", "8")], Err("version")),
            (vec![("Sec-WebSocket-Version", "13, 8")], Err("version")),
            (vec![("Sec-WebSocket-Version", "")], Err("version")),
            (vec![("sec-websocket-version", "13")], Err("version")), // a second line
            (vec![("Sec-WebSocket-Key", "")], malformed),
            (vec![("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25j")], malformed), // 15 bytes
            (vec![("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZSE=")], malformed), // 17 bytes
            (vec![("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=!")], malformed),
            (vec![("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZR==")], malformed), // bits behind the sixteen bytes
            (vec![("sec-websocket-key", NONCE)], malformed),                      // a second line
            (vec![("Sec-WebSocket-Protocol", "realtime, openai-insecure-api-key.sk-1")], Ok(true)),
            (vec![("Sec-WebSocket-Protocol", "realtime"), ("sec-websocket-protocol", "other")], Ok(true)),
            (vec![("Sec-WebSocket-Protocol", "realtime"), ("sec-websocket-protocol", "realtime")], malformed),
            (vec![("Sec-WebSocket-Protocol", "realtime,,other")], malformed),
            (vec![("Sec-WebSocket-Protocol", "")], malformed),
            (vec![("Sec-WebSocket-Protocol", "a b")], malformed),
            (vec![("Sec-WebSocket-Protocol", "a/b")], malformed),
            (vec![("Sec-WebSocket-Protocol", "schlüssel")], malformed),
            (vec![("Sec-WebSocket-Protocol", many.as_str())], malformed),
        ] {
            let fields = with(asked(), &changes);
            let outcome = judged(&fields).map(|upgrade| upgrade.is_some()).map_err(|bad| match bad {
                BadUpgrade::Version => "version",
                BadUpgrade::Malformed(_) => "malformed",
            });
            assert_eq!(outcome, expected, "{changes:?}");
        }
        for (missing, expected) in [
            ("Upgrade", Ok(None)),
            ("Connection", Ok(None)),
            ("Sec-WebSocket-Version", Err(BadUpgrade::Version)),
            ("Sec-WebSocket-Extensions", Ok(Some(Upgrade { key: NONCE, protocols: vec![] }))),
        ] {
            let mut fields = asked();
            fields.retain(|(name, _)| *name != missing);
            assert_eq!(judged(&fields), expected, "{missing}");
        }
    }

    #[test]
    fn the_token_is_found_and_never_offered_to_anyone() {
        let key = Secret::new("sk-real");
        let odd = Secret::new("not/a token");
        for (protocols, dialect, key, tokens, offered, carries_key) in [
            ("", Dialect::OpenAi, &key, vec![], None, false),
            ("realtime", Dialect::OpenAi, &key, vec![], Some("realtime"), false),
            (
                "realtime, openai-insecure-api-key.sk-lp-1, openai-project.p",
                Dialect::OpenAi,
                &key,
                vec!["sk-lp-1"],
                Some("realtime, openai-insecure-api-key.sk-real, openai-project.p"),
                true,
            ),
            (
                "OpenAI-Insecure-API-Key.sk-lp-1,realtime",
                Dialect::OpenAi,
                &key,
                vec!["sk-lp-1"],
                Some("openai-insecure-api-key.sk-real, realtime"),
                true,
            ),
            ("realtime, openai-insecure-api-key.a", Dialect::Azure, &key, vec!["a"], Some("realtime"), false),
            ("openai-insecure-api-key.a", Dialect::Gemini, &key, vec!["a"], None, false),
            ("realtime, openai-insecure-api-key.a", Dialect::OpenAi, &odd, vec!["a"], Some("realtime"), false),
            ("openai-insecure-api-key.", Dialect::Azure, &key, vec![""], None, false),
            ("openai-insecure-api-key.a, openai-insecure-api-key.b", Dialect::Azure, &key, vec!["a", "b"], None, false),
            ("openai-insecure-api-key", Dialect::OpenAi, &key, vec![], Some("openai-insecure-api-key"), false),
        ] {
            let upgrade = offering(protocols);
            assert_eq!(upgrade.tokens().collect::<Vec<_>>(), tokens, "{protocols}");
            let offer = upgrade.offer(dialect, key);
            assert_eq!(offer.protocols.as_ref().map(Secret::expose), offered, "{protocols}");
            assert_eq!(offer.carries_key, carries_key, "{protocols}");
            assert!(!format!("{upgrade:?}{offer:?}").contains("sk-"), "{protocols}");
        }
    }

    #[test]
    fn only_the_answer_that_was_asked_for_opens_the_socket() {
        let browser = "realtime, openai-insecure-api-key.sk-lp-1";
        let answer = || {
            vec![("Upgrade", "WebSocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", ACCEPT), ("date", "")]
        };
        let protocol = |value| vec![("sec-websocket-protocol", value)];
        for (offered, changes, expected) in [
            ("", vec![], Some(None)),
            (browser, vec![], Some(None)),
            (browser, protocol("realtime"), Some(Some("realtime"))),
            (browser, protocol("openai-insecure-api-key.sk-real"), Some(Some("realtime"))),
            ("openai-insecure-api-key.sk-lp-1", protocol("openai-insecure-api-key.sk-real"), Some(None)),
            ("a, b", protocol("b"), Some(Some("b"))),
            ("a, b", protocol("B"), None),
            ("a, b", protocol("a, b"), None),
            ("a, b", vec![("sec-websocket-protocol", "a"), ("Sec-WebSocket-Protocol", "a")], None),
            ("", protocol("realtime"), None),
            ("realtime", protocol("openai-insecure-api-key.sk-real"), None),
            ("realtime", protocol(""), None),
            ("", vec![("Upgrade", "h2c")], None),
            ("", vec![("Upgrade", "websocket, h2c")], None),
            ("", vec![("Connection", "keep-alive")], None),
            ("", vec![("Sec-WebSocket-Accept", "s3pplmbitxaq9kygzzhzrbk+xoo=")], None),
            ("", vec![("Sec-WebSocket-Accept", "")], None),
            ("", vec![("sec-websocket-accept", ACCEPT)], None), // a second line
            ("", vec![("Sec-WebSocket-Extensions", "permessage-deflate")], None),
            ("", vec![("Sec-WebSocket-Extensions", "")], None),
        ] {
            let fields = with(answer(), &changes);
            let upgrade = offering(offered);
            assert_eq!(upgrade.check_answer(lines(&fields)).ok(), expected, "{offered} {changes:?}");
        }
    }

    #[test]
    fn fields_of_the_handshake_are_known_in_any_case() {
        for (name, expected) in [
            ("Sec-WebSocket-Protocol", true),
            ("sec-websocket-anything", true),
            ("Sec-WebSocket", false),
            ("sec-fetch-mode", false),
        ] {
            assert_eq!(is_handshake_field(name.as_bytes()), expected, "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_answer_whatever_gives_the_client_a_credential(
            offered in "((realtime|a|openai-insecure-api-key\\.[a-z]{1,3}),){0,4}",
            chosen in "(realtime|a|openai-insecure-api-key\\.[a-z]{1,3}|OPENAI-INSECURE-API-KEY\\.x)",
        ) {
            let upgrade = offering(&offered);
            let fields = [
                ("upgrade", "websocket"),
                ("connection", "upgrade"),
                ("sec-websocket-accept", ACCEPT),
                ("sec-websocket-protocol", chosen.as_str()),
            ];
            if let Ok(Some(protocol)) = upgrade.check_answer(lines(&fields)) {
                prop_assert!(credential(protocol).is_none());
                prop_assert!(upgrade.choices().any(|item| item == protocol));
            }
        }
    }
}
