//! Where a request carries its token, and where the provider's key goes instead.

use std::borrow::Cow;

use http::HeaderValue;
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::http1::call::{Call, Name};
use llm_proxy_core::secret::Secret;
use llm_proxy_core::target::{Target, decode};
use llm_proxy_core::token::{Pepper, ProxyToken, TokenDigest};
use llm_proxy_core::websocket::handshake::Upgrade;

use super::tokens::ProviderKey;

/// The forms in which this request carries the token.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Forms {
    authorization: bool,
    x_api_key: bool,
    api_key: bool,
    x_goog_api_key: bool,
    query: bool,
    subprotocol: bool,
}

/// No credential, two of one form, two different ones, or none that is a token: one answer for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoToken;

/// Finds the token in every form a client may use. No form twice; several forms only with the same token.
///
/// # Errors
/// [`NoToken`].
pub fn find<'a>(
    call: &'a Call,
    target: &Target<'a>,
    dialect: Dialect,
    upgrade: Option<&Upgrade<'a>>,
) -> Result<(Cow<'a, str>, Forms), NoToken> {
    let mut forms = Forms::default();
    let mut token: Option<Cow<'a, str>> = None;
    let mut take = |form: &mut bool, text: Cow<'a, str>| -> Result<(), NoToken> {
        if *form || token.as_ref().is_some_and(|token| *token != text) {
            return Err(NoToken);
        }
        *form = true;
        token = Some(text);
        Ok(())
    };
    for field in call.fields() {
        let form = match field.kind {
            Name::Authorization => &mut forms.authorization,
            Name::XApiKey => &mut forms.x_api_key,
            Name::ApiKey => &mut forms.api_key,
            Name::XGoogApiKey => &mut forms.x_goog_api_key,
            _ => continue,
        };
        let text = std::str::from_utf8(call.value(field)).map_err(|_| NoToken)?;
        let text = if field.kind == Name::Authorization { bearer(text).ok_or(NoToken)? } else { text };
        take(form, Cow::Borrowed(text))?;
    }
    for name in query_forms(dialect) {
        for value in target.query_values(name) {
            let text = decode(value.value).ok_or(NoToken)?;
            let text = if *name == "Authorization" {
                // URLSearchParams writes the space behind `Bearer` as a plus.
                Cow::Owned(bearer(&text.replace('+', " ")).ok_or(NoToken)?.to_owned())
            } else {
                text
            };
            take(&mut forms.query, text)?;
        }
    }
    for text in upgrade.into_iter().flat_map(Upgrade::tokens) {
        take(&mut forms.subprotocol, Cow::Borrowed(text))?;
    }
    Ok((token.ok_or(NoToken)?, forms))
}

/// The token of the last request on this connection, and its digest: a client that keeps its connection keeps its
/// token, and need not be hashed again.
#[derive(Debug, Default)]
pub struct Remembered(Option<(Secret, TokenDigest)>);

impl Remembered {
    /// The digest under which this text would be known.
    ///
    /// # Errors
    /// [`NoToken`] when the text has not the form of a token.
    pub fn digest(&mut self, pepper: &Pepper, text: &str) -> Result<TokenDigest, NoToken> {
        if let Some((token, digest)) = &self.0
            && equal(token.expose().as_bytes(), text.as_bytes())
        {
            return Ok(*digest);
        }
        let token = ProxyToken::parse(text).map_err(|_| NoToken)?;
        let digest = pepper.digest(&token);
        self.0 = Some((Secret::new(text), digest));
        Ok(digest)
    }
}

/// Compares in a time that depends on the lengths alone: behind a load balancer, the last request on a connection may
/// have been somebody else's.
fn equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |found, (one, other)| found | (one ^ other)) == 0
}

/// The token of `Bearer …` (RFC 6750 §2.1); the scheme in any letter case.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, rest) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim_start_matches(' '))
}

/// The query parameters in which this dialect's clients may put their key.
const fn query_forms(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::Gemini => &["key"],
        // Browsers cannot set fields on a WebSocket, so Azure's realtime clients put their credential here.
        Dialect::Azure => &["api-key", "Authorization"],
        Dialect::OpenAi | Dialect::Anthropic => &[],
    }
}

/// Where the provider's key goes. Always a field: a provider may show the query again (in the address of an upload it
/// has begun, say), and its key with it.
#[derive(Debug, PartialEq, Eq)]
pub enum Placement {
    /// `authorization: Bearer …`.
    Authorization,
    /// A field of its own.
    Field(&'static str),
}

impl Forms {
    /// Chooses the one place for the provider's key.
    pub fn placement(&self, dialect: Dialect) -> Placement {
        match dialect {
            Dialect::OpenAi => Placement::Authorization,
            // Newer Anthropic SDKs send their key as Bearer, older ones in x-api-key; the provider takes both.
            Dialect::Anthropic if self.authorization => Placement::Authorization,
            Dialect::Anthropic => Placement::Field("x-api-key"),
            Dialect::Gemini => Placement::Field("x-goog-api-key"),
            // Azure takes a Bearer only from Entra ID; a key goes into api-key.
            Dialect::Azure => Placement::Field("api-key"),
        }
    }

    /// The token, where it stands in the head more often than in these forms: in the query of another dialect's clients, a
    /// cookie, a field that somebody made up. Written in any other way (in percent-encoding, say) it is not found there.
    pub fn stray<'t>(&self, call: &Call, token: &'t str) -> Option<&'t str> {
        let fields = [self.authorization, self.x_api_key, self.api_key, self.x_goog_api_key, self.subprotocol];
        let known = fields.into_iter().filter(|is_used| *is_used).count();
        // A query may be percent-encoded: it is looked through in any case.
        let is_stray = self.query || occurrences(call.head(), token.as_bytes()).nth(known).is_some();
        is_stray.then_some(token)
    }

    /// The query to forward: as received, less the parameters that carried the token, and those that hold it where they
    /// should not.
    pub fn query<'a>(&self, target: &Target<'a>, dialect: Dialect, stray: Option<&str>) -> Option<Cow<'a, str>> {
        let query = target.query?;
        if !self.query && stray.is_none() {
            return Some(Cow::Borrowed(query));
        }
        let carries = |pair: &&str| {
            let name = pair.split_once('=').and_then(|(name, _)| decode(name));
            stray.is_some_and(|token| pair.contains(token))
                || (self.query && name.is_some_and(|name| query_forms(dialect).contains(&name.as_ref())))
        };
        let kept: Vec<&str> = query.split('&').filter(|pair| !carries(pair)).collect();
        (!kept.is_empty()).then(|| Cow::Owned(kept.join("&")))
    }
}

/// Where the token stands in a head. A search for a text prepares itself for it, which for a head costs many times the
/// search: here one byte of the token is looked for, of a kind that heads have few of, and the rest is compared.
fn occurrences<'h>(head: &'h [u8], token: &'h [u8]) -> impl Iterator<Item = usize> + 'h {
    let is_rare = |byte: &u8| byte.is_ascii_uppercase();
    let at = token.iter().position(is_rare).unwrap_or(token.len().saturating_sub(1));
    let rare = token.get(at).copied().into_iter();
    rare.flat_map(move |rare| memchr::memchr_iter(rare, head))
        .filter_map(move |found| found.checked_sub(at))
        .filter(move |start| head.get(*start..).is_some_and(|rest| rest.starts_with(token)))
}

impl Placement {
    /// The field that carries the key.
    pub fn field<'k>(&self, key: &'k ProviderKey) -> (&'static str, &'k HeaderValue) {
        match self {
            Self::Authorization => ("authorization", &key.bearer),
            Self::Field(name) => (name, &key.plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(seed: u8) -> String {
        ProxyToken::from_random([seed; 20]).expose().to_owned()
    }

    #[test]
    fn a_remembered_token_is_only_itself() {
        let pepper = Pepper::new(&[7; 32]);
        let mut remembered = Remembered::default();
        for text in [token(1), token(1), token(2), token(1)] {
            let fresh = pepper.digest(&ProxyToken::parse(&text).unwrap());
            assert_eq!(remembered.digest(&pepper, &text), Ok(fresh));
        }
        for wrong in ["", "x", &token(1)[..38], &format!("{}0", token(1)), &token(1).to_uppercase()] {
            assert_eq!(remembered.digest(&pepper, wrong), Err(NoToken), "{wrong}");
        }
        assert!(equal(b"", b"") && equal(b"ab", b"ab") && !equal(b"ab", b"aB") && !equal(b"ab", b"a"));
    }

    #[test]
    fn every_place_of_a_token_in_a_head_is_found() {
        for (head, token, expected) in [
            ("abcD abcD", "abcD", vec![0, 5]),
            ("DDabcDabcDD", "abcD", vec![2, 6]),
            ("abcd", "abcD", vec![]),
            ("bcD", "abcD", vec![]),
            ("abc", "abcD", vec![]),
            ("xsk-1 sk-1", "sk-1", vec![1, 6]),
            ("", "abcD", vec![]),
            ("abc", "", vec![]),
        ] {
            let found: Vec<_> = occurrences(head.as_bytes(), token.as_bytes()).collect();
            assert_eq!(found, expected, "{token} in {head}");
        }
        let tokens: Vec<_> = (0..200).map(token).collect();
        for token in &tokens {
            let head = format!("GET / HTTP/1.1\r\nAuthorization: Bearer {token}\r\nX-Y: {token}{token}\r\n\r\n");
            let places: Vec<_> = head.match_indices(token.as_str()).map(|(at, _)| at).collect();
            assert_eq!(occurrences(head.as_bytes(), token.as_bytes()).collect::<Vec<_>>(), places);
        }
    }

    #[test]
    fn parameters_that_carried_the_token_go_nowhere_and_the_others_as_they_came() {
        let forms = Forms { query: true, ..Forms::default() };
        for (dialect, query, expected) in [
            (Dialect::Gemini, "x=T&key=T&y=aTb&z=t", Some("z=t")),
            (Dialect::Gemini, "key=T", None),
            (Dialect::Gemini, "alt=sse&key=T&x=%20", Some("alt=sse&x=%20")),
            (Dialect::Gemini, "%6bey=T&keys=1&key", Some("keys=1&key")),
            (Dialect::Azure, "api-version=1&api-key=T", Some("api-version=1")),
            (Dialect::Azure, "Authorization=Bearer%20T&a", Some("a")),
        ] {
            let text = format!("/x?{query}");
            assert_eq!(forms.query(&Target::new(&text), dialect, Some("T")).as_deref(), expected, "{query}");
        }
        let text = "/x?key=not%20ours";
        let none = Forms::default();
        assert_eq!(none.query(&Target::new(text), Dialect::OpenAi, None).as_deref(), Some("key=not%20ours"));
        let text = "/x?key=T&a=1";
        assert_eq!(none.query(&Target::new(text), Dialect::OpenAi, Some("T")).as_deref(), Some("a=1"));
    }
}
