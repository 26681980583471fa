//! What went wrong with Redis, and what it says of the events that were sent.
//!
//! Hardly anything that Redis can answer is about the event: no memory, no permission, a replica, a cluster that is
//! moving, another type under the stream's name. Whatever is not certainly about the event's size waits, so that an
//! event is never given up for a state of the server.

use std::io;
use std::time::Duration;

use redis::{RedisError, ServerError};

use crate::dispatcher::{Fault, Outcome};

/// Most letters of the server's own words in a reason.
const MOST_WORDS: usize = 200;

/// What servers, and services that speak their protocol, say of a value that is too large for them.
const TOO_LARGE: [&str; 4] =
    ["invalid bulk length", "elements are too large", "max request size exceeded", "exceeds maximum allowed size"];

/// Why a command has no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedisFault {
    /// Nobody was reached.
    #[error("cannot connect to {authority}: {source}")]
    Connect {
        /// Where to.
        authority: String,
        /// What the system, or TLS, said.
        source: io::Error,
    },
    /// The server was reached and did not let us in.
    #[error("{authority} does not let us in: {source}")]
    Login {
        /// Which server.
        authority: String,
        /// What it said.
        source: RedisError,
    },
    /// It took too long.
    #[error("no answer from Redis within {limit:?}")]
    Timeout {
        /// How long was waited.
        limit: Duration,
    },
    /// The connection broke before the answer, or what came was no answer.
    #[error("the connection to Redis broke: {0}")]
    Broken(RedisError),
    /// The server refuses the command.
    #[error("Redis answers {code}{text}")]
    Refused {
        /// The first word of its answer.
        code: String,
        /// The rest, after a blank.
        text: String,
    },
    /// No Sentinel that answers knows a master by this name.
    #[error("the Sentinels know no master `{service}`")]
    NoMaster {
        /// The name.
        service: String,
    },
    /// The server that should take writes is not the one that does.
    #[error("{authority} is not a master that takes writes")]
    NotMaster {
        /// Which server.
        authority: String,
    },
    /// An answer of another shape than the command has.
    #[error("Redis answers {command} in a way that is not known")]
    Strange {
        /// The command.
        command: &'static str,
    },
}

impl From<ServerError> for RedisFault {
    fn from(error: ServerError) -> Self {
        // What follows are arguments of ours, the event among them.
        let said = error.details().unwrap_or_default().split(", with args").next().unwrap_or_default();
        let said: String = said.chars().filter(|letter| !letter.is_control()).take(MOST_WORDS).collect();
        let text = if said.is_empty() { said } else { format!(" {said}") };
        Self::Refused { code: error.code().to_owned(), text }
    }
}

impl RedisFault {
    /// Whether the server has answered, so that it may answer the next command too.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether the server has answered with this code.
    pub fn has_code(&self, expected: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == expected)
    }

    /// Whether the event is larger than the server takes.
    pub fn is_about_size(&self) -> bool {
        let Self::Refused { text, .. } = self else { return false };
        let text = text.to_ascii_lowercase();
        TOO_LARGE.iter().any(|words| text.contains(words))
    }

    /// What became of an event that met this. `is_suspect` for the first one that got no answer: a server that breaks
    /// at an event does so there.
    pub fn outcome(&self, is_suspect: bool) -> Outcome {
        let reason = self.to_string();
        if self.is_about_size() {
            return Outcome::Poison { reason };
        }
        let may_be_the_event = is_suspect && matches!(self, Self::Broken(_) | Self::Timeout { .. });
        Outcome::Retry { after: None, fault: if may_be_the_event { Fault::Unclear } else { Fault::Sink }, reason }
    }
}

#[cfg(test)]
mod tests {
    use redis::{ErrorKind, Value, make_extension_error, parse_redis_value};

    use super::*;

    fn refused(line: &str) -> RedisFault {
        match parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() {
            Value::ServerError(error) => error.into(),
            value => panic!("{value:?}"),
        }
    }

    #[test]
    fn only_a_value_that_is_too_large_is_given_up() {
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
            "LOADING Redis is loading the dataset in memory",
            "MOVED 3999 127.0.0.1:6381",
            "ASK 3999 127.0.0.1:6381",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "CLUSTERDOWN The cluster is down",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "CROSSSLOT Keys in request don't hash to the same slot",
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "NOPERM this user has no permissions to run the 'xadd' command",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
            "NOREPLICAS Not enough good replicas to write.",
            "BUSY Redis is busy running a script.",
            "ERR max number of clients reached",
            "ERR unknown command 'XADD', with args beginning with: 'llm-proxy:events' '*'",
            "ERR The stream has exhausted the last possible ID, unable to add more items",
        ] {
            let fault = refused(line);
            for is_suspect in [true, false] {
                let outcome = fault.outcome(is_suspect);
                assert!(matches!(outcome, Outcome::Retry { after: None, fault: Fault::Sink, .. }), "{line}");
            }
            assert!(fault.is_answer());
        }
        for line in [
            "ERR Protocol error: invalid bulk length",
            "ERR Elements are too large to be stored",
            "ERR max request size exceeded. Limit: 1048576 bytes, Actual: 1049000 bytes.",
            "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
        ] {
            assert!(matches!(refused(line).outcome(false), Outcome::Poison { .. }), "{line}");
        }
    }

    #[test]
    fn who_falls_silent_at_an_event_may_have_broken_at_it_and_who_is_not_reached_has_not() {
        let authority = || "a:6379".to_owned();
        let broken = || make_extension_error("x".to_owned(), None);
        for (fault, expected) in [
            (RedisFault::Broken(broken()), Fault::Unclear),
            (RedisFault::Timeout { limit: Duration::from_secs(1) }, Fault::Unclear),
            (RedisFault::Connect { authority: authority(), source: io::ErrorKind::TimedOut.into() }, Fault::Sink),
            (
                RedisFault::Login {
                    authority: authority(),
                    source: (ErrorKind::AuthenticationFailed, "Password authentication failed").into(),
                },
                Fault::Sink,
            ),
            (RedisFault::NoMaster { service: "m".to_owned() }, Fault::Sink),
            (RedisFault::NotMaster { authority: authority() }, Fault::Sink),
        ] {
            let of = |is_suspect| match fault.outcome(is_suspect) {
                Outcome::Retry { fault, .. } => fault,
                outcome => panic!("{outcome:?}"),
            };
            assert_eq!((of(true), of(false)), (expected, Fault::Sink), "{fault}");
            assert!(!fault.is_answer());
        }
    }

    #[test]
    fn a_reason_is_one_short_line_without_our_arguments() {
        for (line, expected) in [
            ("OOM no memory", "Redis answers OOM no memory"),
            ("NOAUTH", "Redis answers NOAUTH"),
            (
                "ERR unknown command 'XADD', with args beginning with: 'k' 'hunter2'",
                "Redis answers ERR unknown command 'XADD'",
            ),
            ("ERR a\u{1b}[2Jb", "Redis answers ERR a[2Jb"),
        ] {
            assert_eq!(refused(line).to_string(), expected);
        }
        let long = refused(&format!("ERR {}", "ä".repeat(1_000))).to_string();
        assert_eq!(long.chars().count(), "Redis answers ERR ".len() + MOST_WORDS);
    }
}
