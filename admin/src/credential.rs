//! Who may use the admin plane: the holder of the management token.

use http::{HeaderMap, StatusCode, header};
use llm_proxy_core::secret::Secret;
use ring::{hmac, rand};

use crate::problem::Problem;

/// How every proxy token begins, well-formed or not.
const PROXY_TOKEN_PREFIX: &str = "sk-lp-";

/// The management token as a keyed hash. The comparison takes the same time wherever two tokens differ, and the token
/// itself is not kept in memory for this.
pub(crate) struct Credential(Option<(hmac::Key, hmac::Tag)>);

impl Credential {
    /// Takes the management token. Without one, or without randomness for the key, nobody is admitted.
    pub(crate) fn new(token: &Secret) -> Self {
        if token.expose().is_empty() {
            return Self(None);
        }
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new()).ok();
        Self(key.map(|key| {
            let tag = hmac::sign(&key, token.expose().as_bytes());
            (key, tag)
        }))
    }

    /// Admits a request or says why not.
    pub(crate) fn judge(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(shown) = bearer(headers) else {
            return Err(refusal(
                "invalid_management_token",
                "send the management token, once, as `authorization: Bearer …`; where none was set, the first start \
                 wrote one into the data directory",
            ));
        };
        if self.is_valid(shown) {
            return Ok(());
        }
        if shown.starts_with(PROXY_TOKEN_PREFIX) {
            return Err(refusal(
                "proxy_token_not_valid_here",
                "this is a proxy token: it belongs to the data plane's address; the admin plane takes the management \
                 token",
            ));
        }
        Err(refusal("invalid_management_token", "this is not the management token of this server"))
    }

    fn is_valid(&self, shown: &str) -> bool {
        self.0.as_ref().is_some_and(|(key, tag)| hmac::verify(key, shown.as_bytes(), tag.as_ref()).is_ok())
    }
}

/// The token of the only `authorization` header, if its scheme is Bearer (in any letter case, RFC 9110 §11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(only), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn refusal(code: &'static str, detail: &'static str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, code, detail)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn only_the_management_token_once_as_bearer_admits() {
        let credential = Credential::new(&Secret::new("correct-horse"));
        for (values, admitted) in [
            (&["Bearer correct-horse"][..], true),
            (&["bearer  correct-horse"], true),
            (&[], false),
            (&["Bearer"], false),
            (&["Bearer "], false),
            (&["Basic correct-horse"], false),
            (&["correct-horse"], false),
            (&["Bearer correct-hors"], false),
            (&["Bearer correct-horse-"], false),
            (&["Bearer correct-horse", "Bearer correct-horse"], false),
            (&["Bearer sk-lp-0000000000000000000000000000000"], false),
        ] {
            assert_eq!(credential.judge(&headers(values)).is_ok(), admitted, "{values:?}");
        }
    }

    #[test]
    fn an_empty_management_token_admits_nobody() {
        let credential = Credential::new(&Secret::new(""));
        assert!(credential.judge(&headers(&["Bearer x"])).is_err());
        assert!(credential.judge(&headers(&["Bearer "])).is_err());
    }
}
