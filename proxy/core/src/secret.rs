//! Text that must never be printed: provider keys, proxy tokens, the management token.

use std::fmt;

use zeroize::Zeroizing;

/// A secret text. It has no `Display`, its `Debug` shows nothing, it cannot be serialized, and its memory is wiped
/// on drop. [`Secret::expose`] is the only way to its value, so that every use can be found by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text as a secret from here on.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The secret itself, for the one place that must send or hash it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The last four characters, which the management API shows so that people can tell keys apart. Secrets of
    /// fewer than twelve characters show nothing: four of them would be too much of the whole.
    pub fn last4(&self) -> String {
        let count = self.0.chars().count();
        if count < 12 { String::new() } else { self.0.chars().skip(count.saturating_sub(4)).collect() }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_nothing_of_itself() {
        let secret = Secret::new("sk-live-0123456789");
        assert_eq!(format!("{secret:?}"), "[secret]");
        assert_eq!(secret.last4(), "6789");
        assert_eq!(Secret::new("short").last4(), "");
    }
}
