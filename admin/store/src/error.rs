//! What can go wrong in the store, sorted by what the caller does about it.

use crate::root_key::RootKeyError;
use crate::seal::SealError;

/// Why the store did not do what it was asked.
///
/// The texts are for operators. They name tables, files and causes, never a stored value.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another row has this value: answer 409.
    #[error("{what} is already taken")]
    Conflict {
        /// What is taken, e.g. `the project name`.
        what: &'static str,
    },
    /// A row that the call builds on is not there: answer 404.
    #[error("{what} does not exist")]
    NotFound {
        /// What is missing, e.g. `the project`.
        what: &'static str,
    },
    /// An argument cannot be stored or understood: answer 400, or stop the start.
    #[error("{0}")]
    Invalid(String),
    /// Locked, full, unreadable or closed: answer 503 and try later. Nothing was granted.
    #[error("the database cannot be used right now: {0}")]
    Unavailable(String),
    /// The file or a row in it is damaged or tampered with: stop the start, or answer 503 and tell the operator.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// The database belongs to another version of the program: stop the start.
    #[error("the database schema does not fit: {0}")]
    Schema(String),
    /// The database was sealed under another root key: stop the start.
    #[error(
        "this database was sealed with the root key {sealed_by}, but the one given is {given}. Start with the ROOT_KEY, \
         or the root key file, that this database was made with: a backup of one is of no use without the other"
    )]
    WrongRootKey {
        /// Fingerprint of the key that sealed the database.
        sealed_by: String,
        /// Fingerprint of the key that was given.
        given: String,
    },
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(cause) if says_corrupt(cause.code().as_deref()) => Self::Corrupt(cause.to_string()),
            // A column that does not hold what the schema says was written by something else than this program.
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => Self::Corrupt(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<SealError> for StoreError {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Random => Self::Unavailable(error.to_string()),
            SealError::NotSealed | SealError::OtherKey { .. } | SealError::Broken => Self::Corrupt(error.to_string()),
        }
    }
}

impl From<RootKeyError> for StoreError {
    /// Only the start asks for it, and it stops.
    fn from(error: RootKeyError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// Whether a SQLite result code means a damaged file: `SQLITE_CORRUPT` (11) or `SQLITE_NOTADB` (26). The low octet of
/// an extended code is the primary one.
fn says_corrupt(code: Option<&str>) -> bool {
    let primary = code.and_then(|code| code.parse::<i32>().ok()).map(|code| code & 0xff);
    matches!(primary, Some(11 | 26))
}

/// Whether a statement failed because a unique value is taken.
pub(crate) fn is_taken(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(cause) if cause.is_unique_violation())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_apart_from_a_busy_database() {
        for (code, expected) in [
            (Some("11"), true),
            (Some("26"), true),
            (Some("267"), true), // SQLITE_CORRUPT_VTAB
            (Some("5"), false),
            (Some("13"), false),
            (Some("23000"), false), // an SQLSTATE: its low octet is 216
            (Some("junk"), false),
            (None, false),
        ] {
            assert_eq!(says_corrupt(code), expected, "{code:?}");
        }
    }
}
