//! What an answer, or none, says of the events that were sent.
//!
//! The question is whether to send them again, and whom a failure speaks against. A receiver that answers 401 or 404
//! says nothing about the events: the key or the address is wrong, and the records must wait until somebody has put it
//! right. Only what the receiver says of the content itself gives an event up.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

use super::client::{Answer, HttpError};
use crate::dispatcher::{Fault, Outcome};

/// Most letters of a receiver's own words in a reason.
const MOST_WORDS: usize = 200;

/// What a call came to, for all of its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver has taken the call. What it says of each event stands in the answer's body.
    Taken,
    /// Send them again.
    Again {
        /// How long the receiver wants to be left alone.
        after: Option<Duration>,
        /// Whom this speaks against.
        fault: Fault,
        /// For people.
        reason: String,
    },
    /// The content is refused: one event of it, or all of them.
    Refused {
        /// For people.
        reason: String,
    },
}

impl Verdict {
    /// The outcome for each event of the call, if they share it.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Taken => Outcome::Delivered,
            Self::Again { after, fault, reason } => Outcome::Retry { after, fault, reason },
            Self::Refused { reason } => Outcome::Poison { reason },
        }
    }
}

/// Judges a call. `hide` are secrets of ours that the receiver may repeat in its words.
pub fn judge(called: &Result<Answer, HttpError>, now: SystemTime, hide: &[&str]) -> Verdict {
    match called {
        Ok(answer) => {
            let reason = reason(answer.status, &answer.body, hide);
            judge_status(answer.status, retry_after(&answer.headers, now), reason)
        }
        // A receiver that breaks at an event leaves it without an answer; one that is not reached has not seen it.
        Err(error) => {
            let fault = if matches!(error, HttpError::Connect { .. }) { Fault::Sink } else { Fault::Unclear };
            Verdict::Again { after: None, fault, reason: error.to_string() }
        }
    }
}

fn judge_status(status: StatusCode, after: Option<Duration>, reason: String) -> Verdict {
    let again = |fault| Verdict::Again { after, fault, reason: reason.clone() };
    match status.as_u16() {
        200..=299 => Verdict::Taken,
        // About the content: malformed, too large, of a type or with values that it does not take.
        400 | 411 | 413 | 414 | 415 | 416 | 422 | 431 => Verdict::Refused { reason },
        // Too early, too often, or a wait in front of the receiver that ran out.
        408 | 425 | 429 | 503 => again(Fault::Sink),
        409 | 500..=599 => again(Fault::Unclear),
        // Moved, no permission, not found, not paid, not allowed: key or address are wrong.
        _ => again(Fault::Sink),
    }
}

/// The status, and what the receiver says about it in one line.
fn reason(status: StatusCode, body: &[u8], hide: &[&str]) -> String {
    let words = words(&String::from_utf8_lossy(body), hide);
    if words.is_empty() { format!("HTTP {}", status.as_u16()) } else { format!("HTTP {}: {words}", status.as_u16()) }
}

/// A receiver's words in one short line, without secrets of ours that it may repeat, and without what steers a terminal.
pub fn words(text: &str, hide: &[&str]) -> String {
    let mut words = text.to_owned();
    for secret in hide.iter().filter(|secret| !secret.is_empty()) {
        words = words.replace(secret, "[secret]");
    }
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().filter(|letter| !letter.is_control()).take(MOST_WORDS).collect()
}

/// How long the receiver wants to be left alone: seconds or a date (RFC 9110 §10.2.3). A date that has passed is no
/// wait.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that are too many mean for ever.
        return Some(value.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn judged(status: u16) -> Verdict {
        judge_status(StatusCode::from_u16(status).unwrap(), None, "because".to_owned())
    }

    #[test]
    fn a_status_says_whether_to_send_again_and_whom_it_speaks_against() {
        let (again, reason) = (|fault| Verdict::Again { after: None, fault, reason: "because".to_owned() }, "because");
        for status in [200, 201, 202, 204, 207] {
            assert_eq!(judged(status), Verdict::Taken, "{status}");
        }
        for status in [400, 413, 415, 422] {
            assert_eq!(judged(status), Verdict::Refused { reason: reason.to_owned() }, "{status}");
        }
        for status in [301, 302, 307, 401, 402, 403, 404, 405, 408, 410, 425, 429, 451, 503] {
            assert_eq!(judged(status), again(Fault::Sink), "{status}");
        }
        for status in [409, 500, 501, 502, 504, 520, 529] {
            assert_eq!(judged(status), again(Fault::Unclear), "{status}");
        }
    }

    #[test]
    fn who_is_not_reached_has_not_seen_the_event_and_who_falls_silent_may_have() {
        let authority = || "a.example".to_owned();
        for (error, fault) in [
            (
                HttpError::Connect { authority: authority(), source: std::io::ErrorKind::ConnectionRefused.into() },
                Fault::Sink,
            ),
            (HttpError::Timeout { authority: authority(), limit: Duration::from_secs(1) }, Fault::Unclear),
            (HttpError::Broken { authority: authority(), source: "cut".into() }, Fault::Unclear),
        ] {
            let reason = error.to_string();
            let verdict = judge(&Err(error), SystemTime::UNIX_EPOCH, &[]);
            assert_eq!(verdict, Verdict::Again { after: None, fault, reason });
        }
    }

    #[test]
    fn a_reason_is_one_short_line_without_our_secrets() {
        let of = |body: &str| reason(StatusCode::BAD_REQUEST, body.as_bytes(), &["hunter2", ""]);
        for (body, expected) in [
            ("", "HTTP 400"),
            (" \n", "HTTP 400"),
            ("no\n such \u{1b}[2Jfield", "HTTP 400: no such [2Jfield"),
            ("the key hunter2 is unknown", "HTTP 400: the key [secret] is unknown"),
        ] {
            assert_eq!(of(body), expected, "{body:?}");
        }
        assert_eq!(of(&"ä".repeat(1_000)).chars().count(), "HTTP 400: ".len() + MOST_WORDS);
        assert_eq!(reason(StatusCode::BAD_REQUEST, b"\xff\xfe", &[]), "HTTP 400: \u{fffd}\u{fffd}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, expected) in [
            ("120", Some(Duration::from_secs(120))),
            ("0", Some(Duration::ZERO)),
            ("99999999999999999999999", Some(Duration::MAX)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(Duration::from_secs(60))),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(Duration::from_secs(60))),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(Duration::ZERO)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(value).unwrap())]);
            assert_eq!(retry_after(&headers, now), expected, "Retry-After: {value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
