//! Where a request carries its token, and where the provider's key goes instead.

use std::borrow::Cow;

use http::HeaderValue;
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::secret::Secret;
use llm_proxy_core::target::{Target, decode};
use llm_proxy_core::token::{Pepper, ProxyToken, TokenDigest};

use super::tokens::ProviderKey;
use crate::call::{Call, Name};

/// The forms in which this request carries the token.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Forms {
    authorization: bool,
    x_api_key: bool,
    api_key: bool,
    x_goog_api_key: bool,
    query: bool,
}

/// No credential, two of one form, two different ones, or none that is a token: one answer for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoToken;

/// Finds the token in every form a client may use. No form twice; several forms only with the same token.
///
/// # Errors
/// [`NoToken`].
pub fn find<'a>(call: &'a Call, target: &Target<'a>, dialect: Dialect) -> Result<(Cow<'a, str>, Forms), NoToken> {
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
    if dialect == Dialect::Gemini {
        for value in target.query_values("key") {
            take(&mut forms.query, decode(value.value).ok_or(NoToken)?)?;
        }
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

/// Where the provider's key goes: in place of the token where the provider takes it there, else where it does.
#[derive(Debug, PartialEq, Eq)]
pub enum Placement {
    /// `authorization: Bearer …`.
    Authorization,
    /// A field of its own.
    Field(&'static str),
    /// In the query, in place of the token.
    Query,
}

impl Forms {
    /// Chooses the one place for the provider's key.
    pub fn placement(&self, dialect: Dialect) -> Placement {
        match dialect {
            Dialect::OpenAi => Placement::Authorization,
            // Newer Anthropic SDKs send their key as Bearer, older ones in x-api-key; the provider takes both.
            Dialect::Anthropic if self.authorization => Placement::Authorization,
            Dialect::Anthropic => Placement::Field("x-api-key"),
            Dialect::Gemini if self.query && !self.x_goog_api_key => Placement::Query,
            Dialect::Gemini => Placement::Field("x-goog-api-key"),
            // Azure takes a Bearer only from Entra ID; a key goes into api-key.
            Dialect::Azure => Placement::Field("api-key"),
        }
    }

    /// The query to forward: as received, with the token in it replaced or, where the key goes elsewhere, dropped.
    pub fn query(&self, target: &Target<'_>, placement: &Placement, key: &ProviderKey) -> Option<String> {
        let query = target.query?;
        if !self.query {
            return Some(query.to_owned());
        }
        let Some(found) = target.query_values("key").next() else { return Some(query.to_owned()) };
        let before = query.get(..found.start).unwrap_or("");
        let after = query.get(found.end..).unwrap_or("");
        if *placement == Placement::Query {
            let mut swapped = String::with_capacity(query.len().saturating_add(64));
            swapped.push_str(before);
            push_encoded(&mut swapped, key.text.expose());
            swapped.push_str(after);
            return Some(swapped);
        }
        let before = before.rfind('&').map_or("", |ampersand| before.get(..ampersand).unwrap_or(""));
        let rest = if before.is_empty() {
            after.strip_prefix('&').unwrap_or(after).to_owned()
        } else {
            format!("{before}{after}")
        };
        (!rest.is_empty()).then_some(rest)
    }
}

impl Placement {
    /// The field that carries the key, where it goes into one.
    pub fn field<'k>(&self, key: &'k ProviderKey) -> Option<(&'static str, &'k HeaderValue)> {
        match self {
            Self::Authorization => Some(("authorization", &key.bearer)),
            Self::Field(name) => Some((name, &key.plain)),
            Self::Query => None,
        }
    }
}

/// Percent-encodes what RFC 3986 §2.3 does not call unreserved.
fn push_encoded(text: &mut String, value: &str) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
}
