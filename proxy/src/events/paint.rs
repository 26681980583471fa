//! Colour, where there is a person to see it.

use std::ffi::OsStr;
use std::io::IsTerminal;

/// Whether what is written is coloured; by default it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Paint(bool);

/// How a text stands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hue {
    /// It went well.
    Green,
    /// Somebody was refused.
    Yellow,
    /// Something broke.
    Red,
    /// Somebody stopped it.
    Magenta,
    /// An administrator was at work.
    Cyan,
    /// Less important than the rest.
    Dim,
}

impl Hue {
    /// Select Graphic Rendition, ECMA-48 §8.3.117.
    const fn code(self) -> &'static str {
        match self {
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Red => "31",
            Self::Magenta => "35",
            Self::Cyan => "36",
            Self::Dim => "2",
        }
    }
}

impl Paint {
    /// Colour on a terminal, unless the environment asks for none.
    pub(super) fn of_stdout() -> Self {
        let variable = |name| std::env::var_os(name);
        Self::decide(std::io::stdout().is_terminal(), variable("NO_COLOR").as_deref(), variable("TERM").as_deref())
    }

    /// <https://no-color.org>: set and not empty means none, whatever the value.
    fn decide(is_terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> Self {
        let is_unwanted = no_color.is_some_and(|value| !value.is_empty()) || term.is_some_and(|term| term == "dumb");
        Self(is_terminal && !is_unwanted)
    }

    /// The text in this colour.
    pub(super) fn on(self, hue: Hue, text: &str) -> String {
        if self.0 { format!("\u{1b}[{}m{text}\u{1b}[0m", hue.code()) } else { text.to_owned() }
    }
}

#[cfg(test)]
impl Paint {
    pub(super) const NONE: Self = Self(false);
    pub(super) const ALWAYS: Self = Self(true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_needs_a_terminal_and_nobody_against_it() {
        let text = |text: &'static str| Some(OsStr::new(text));
        for (is_terminal, no_color, term, expected) in [
            (true, None, None, true),
            (true, None, text("xterm-256color"), true),
            (true, text(""), None, true),
            (true, text("1"), None, false),
            (true, text("0"), None, false),
            (true, None, text("dumb"), false),
            (false, None, text("xterm"), false),
        ] {
            assert_eq!(Paint::decide(is_terminal, no_color, term), Paint(expected), "{no_color:?} {term:?}");
        }
        assert_eq!(Paint::ALWAYS.on(Hue::Red, "x"), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(Paint::NONE.on(Hue::Red, "x"), "x");
    }
}
