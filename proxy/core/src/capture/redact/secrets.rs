//! Credentials, by the shapes that their issuers gave them so that they can be found.

use memchr::memmem;

/// What a run of [`is_key_letter`] must begin with to be a credential, and the least that follows, in bytes.
///
/// Not listed are shapes that are nothing but letters and digits: whatever would find them would find hashes too.
const SHAPES: [(&str, usize); 25] = [
    ("sk-", 20),      // OpenAI, Anthropic (`sk-ant-`), OpenRouter, DeepSeek and many more; ours (`sk-lp-`)
    ("sk_live_", 16), // Stripe
    ("rk_live_", 16),
    ("ek_", 20),  // OpenAI, for clients of the Realtime API
    ("AIza", 30), // Google
    ("AKIA", 16), // AWS
    ("ASIA", 16),
    ("ghp_", 30), // GitHub
    ("gho_", 30),
    ("ghu_", 30),
    ("ghs_", 30),
    ("ghr_", 30),
    ("github_pat_", 30),
    ("glpat-", 20), // GitLab
    ("xoxa-", 10),  // Slack
    ("xoxb-", 10),
    ("xoxp-", 10),
    ("xoxr-", 10),
    ("xoxs-", 10),
    ("gsk_", 30), // Groq
    ("xai-", 30),
    ("hf_", 30),   // Hugging Face
    ("pplx-", 30), // Perplexity
    ("r8_", 30),   // Replicate
    ("npm_", 30),
];

/// Shortest part of a key between `-` and `_` that words do not have.
const MIN_RANDOM_BYTES: usize = 12;
const MIN_BEARER_BYTES: usize = 16;
const MAX_LABEL_BYTES: usize = 64;
const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

/// Length of the key or JSON Web Token that `rest` begins with. To be asked where a run of [`is_key_letter`] begins: so
/// no letter is read for more than a few of them, however many there are.
pub(super) fn key(rest: &[u8]) -> Option<usize> {
    let shape = SHAPES.iter().find(|(prefix, _)| rest.starts_with(prefix.as_bytes()));
    let Some((prefix, least)) = shape else { return web_token(rest) };
    let run = rest.get(..run_of(rest, is_key_letter)).unwrap_or_default();
    let body = run.get(prefix.len()..).unwrap_or_default();
    (body.len() >= *least && looks_random(body)).then_some(run.len())
}

pub(super) fn is_key_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// Whether some part is long enough and has digits or letters of both cases: `sk-learn-contributions` is a name.
fn looks_random(body: &[u8]) -> bool {
    body.split(|byte| matches!(byte, b'-' | b'_')).any(|part| {
        let has = |is: fn(&u8) -> bool| part.iter().any(is);
        let is_mixed = has(u8::is_ascii_digit) || has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase);
        // Slack's parts are short, and its prefix is no word.
        part.len() >= MIN_RANDOM_BYTES.min(body.len()) && is_mixed
    })
}

/// A JSON Web Token (RFC 7519): two JSON objects in base64url, which begin with `eyJ`, and the signature if it is
/// there.
fn web_token(rest: &[u8]) -> Option<usize> {
    if !rest.starts_with(b"eyJ") {
        return None;
    }
    let header = run_of(rest, is_key_letter);
    let claims = rest.get(header..)?.strip_prefix(b".").filter(|claims| claims.starts_with(b"eyJ"))?;
    let claims_end = header.saturating_add(1).saturating_add(run_of(claims, is_key_letter));
    let signature = rest.get(claims_end..).and_then(|rest| rest.strip_prefix(b"."));
    let signature = signature.map_or(0, |signature| run_of(signature, is_key_letter));
    Some(if signature > 0 { claims_end.saturating_add(1).saturating_add(signature) } else { claims_end })
}

/// Where the credential after the word `Bearer` (RFC 6750 §2.1) begins and ends, if `rest` begins with one.
pub(super) fn bearer(rest: &[u8]) -> Option<(usize, usize)> {
    let (word, after) = rest.split_at_checked(6)?;
    if !word.eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    let spaces = after.iter().take(4).take_while(|byte| **byte == b' ').count();
    if spaces == 0 {
        // Before the run is measured: a run of such words would be measured from each of them.
        return None;
    }
    let token = after.get(spaces..).unwrap_or_default();
    let is_letter = |byte: u8| is_key_letter(byte) || matches!(byte, b'.' | b'~' | b'+' | b'/' | b'=');
    let length = run_of(token, is_letter);
    let is_random = token.get(..length).is_some_and(|token| token.iter().any(u8::is_ascii_digit));
    let start = spaces.saturating_add(6);
    (length >= MIN_BEARER_BYTES && is_random).then(|| (start, start.saturating_add(length)))
}

/// Length of the private key in PEM (RFC 7468) that `rest` begins with. Without an end, what looks like its content.
pub(super) fn private_key(rest: &[u8]) -> Option<usize> {
    let after = rest.strip_prefix(BEGIN)?;
    let label = after.get(..MAX_LABEL_BYTES).unwrap_or(after);
    let label = label.get(..memmem::find(label, DASHES)?)?;
    memmem::find(label, b"PRIVATE KEY")?;
    let content = BEGIN.len().saturating_add(label.len()).saturating_add(DASHES.len());
    let body = rest.get(content..)?;
    let next = memmem::find(body, DASHES).unwrap_or(body.len());
    let tail = body.get(next..).unwrap_or_default();
    if let Some(closing) = tail.strip_prefix(END) {
        let closing = closing.get(..MAX_LABEL_BYTES).unwrap_or(closing);
        let closed = memmem::find(closing, DASHES).map_or(0, |label| label.saturating_add(DASHES.len()));
        return Some(content.saturating_add(next).saturating_add(END.len()).saturating_add(closed));
    }
    let body = body.get(..next).unwrap_or_default();
    let is_content = |byte: u8| {
        byte.is_ascii_alphanumeric() || byte.is_ascii_whitespace() || matches!(byte, b'+' | b'/' | b'=' | b'\\')
    };
    Some(content.saturating_add(run_of(body, is_content)))
}

fn run_of(rest: &[u8], is_part: impl Fn(u8) -> bool) -> usize {
    rest.iter().take_while(|byte| is_part(**byte)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text with random-looking letters, written so that no scanner takes this file for a leak.
    fn keyed(prefix: &str, length: usize) -> String {
        let letters = "Zx8Kq2Lm9Pw4Rt7Yv1Bn5Hc3Jd6Fg0Sa".chars().cycle().take(length);
        prefix.chars().chain(letters).collect()
    }

    #[test]
    fn keys_are_known_by_their_shapes() {
        for (prefix, least) in SHAPES {
            for length in [least, least + 1, 100] {
                let text = keyed(prefix, length);
                assert_eq!(key(format!("{text}\", next").as_bytes()), Some(text.len()), "{text}");
            }
            assert_eq!(key(keyed(prefix, least - 1).as_bytes()), None, "{prefix}");
        }
        let known =
            ["sk-ant-api03-", "sk-proj-", "sk-lp-", "sk-or-v1-", "sk-svcacct-", "xoxb-123456789012-123456789012-"];
        for text in known.map(|prefix| keyed(prefix, 33)) {
            assert_eq!(key(text.as_bytes()), Some(text.len()), "{text}");
        }
        for text in [
            "sk-learn-contributions-to-the-project",
            "sk-your-api-key-goes-right-here",
            "sk-2024-11-21-build-17-of-the-month",
            "skeleton",
            "AKIAplain",
            "xoxo",
            "eyJhbGciOiJIUzI1NiJ9",
            "eyJhbGciOiJIUzI1NiJ9.c29tZXRoaW5n",
            "5d41402abc4b2a76b9719d911017c592",
            "",
        ] {
            assert_eq!(key(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn web_tokens_go_with_and_without_signature() {
        let unsigned = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0";
        for (tail, length) in [("", 0), (".", 0), (".abc-_1", 7), (". Next", 0), (".abc.def", 4)] {
            assert_eq!(key(format!("{unsigned}{tail}").as_bytes()), Some(unsigned.len() + length), "{tail}");
        }
    }

    #[test]
    fn a_bearer_is_followed_by_a_credential() {
        let token = "abc.DEF~123+456/789=";
        for (text, expected) in [
            (format!("Bearer {token}"), Some((7, 27))),
            (format!("bearer  {token}\""), Some((8, 28))),
            (format!("BEARER {token}, x"), Some((7, 27))),
            (format!("Bearer{token}"), None),
            ("Bearer authentication-and-authorization".to_owned(), None),
            ("bearer of good news".to_owned(), None),
            ("Bearer abc123".to_owned(), None),
            ("Bear".to_owned(), None),
        ] {
            assert_eq!(bearer(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn private_keys_go_from_begin_to_end() {
        let begin = |label: &str| format!("-----BEGIN {label}-----");
        let whole = format!("{}\nMIIE+/a=\n-----END RSA PRIVATE KEY-----", begin("RSA PRIVATE KEY"));
        let escaped = format!("{}\\nMIIE+/a=\\n-----END PRIVATE KEY-----", begin("PRIVATE KEY"));
        let headed =
            format!("{}\nProc-Type: 4,ENCRYPTED\n\nMIIE\n-----END EC PRIVATE KEY-----", begin("EC PRIVATE KEY"));
        for text in [whole, escaped, headed] {
            assert_eq!(private_key(format!("{text}\nmore").as_bytes()), Some(text.len()), "{text}");
        }
        let cut = format!("{}\nMIIE+/a=\nMIIE", begin("PRIVATE KEY"));
        assert_eq!(private_key(cut.as_bytes()), Some(cut.len()));
        assert_eq!(private_key(format!("{cut}: more").as_bytes()), Some(cut.len()));
        let public = format!("{}\nMIIE\n-----END PUBLIC KEY-----", begin("PUBLIC KEY"));
        for text in [&*public, "-----BEGIN CERTIFICATE-----\nMIIE", "-----BEGIN PRIVATE KEY", "-----", "----------"] {
            assert_eq!(private_key(text.as_bytes()), None, "{text}");
        }
    }
}
