//! How far a long command is: a bar where somebody watches, a line now and then where a log does.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Letters of the bar.
const WIDTH: u64 = 30;
/// Between two drawings on a terminal.
const FRAME: Duration = Duration::from_millis(100);
/// Between two lines of a log.
const LINE: Duration = Duration::from_secs(5);

/// The progress of one command, on standard error.
pub(super) struct Progress {
    total: u64,
    is_terminal: bool,
    shown: Option<Instant>,
}

impl Progress {
    /// Of this many events.
    pub(super) fn of(total: u64) -> Self {
        Self { total, is_terminal: std::io::stderr().is_terminal(), shown: None }
    }

    /// So many are done, and there is this to say of them. Says it where it was not just done.
    pub(super) fn show(&mut self, done: u64, note: &str) {
        let pause = if self.is_terminal { FRAME } else { LINE };
        // The first line of a log would say that nothing is done yet.
        let shown = *self.shown.get_or_insert_with(Instant::now);
        if shown.elapsed() >= pause {
            self.shown = Some(Instant::now());
            self.write(done, note);
        }
    }

    /// The last word.
    pub(super) fn end(self, done: u64, note: &str) {
        self.write(done, note);
        if self.is_terminal {
            let _ = writeln!(std::io::stderr());
        }
    }

    fn write(&self, done: u64, note: &str) {
        let text = told(done, self.total, note);
        // Who has closed standard error wants to hear nothing.
        let _ = if self.is_terminal {
            // To the first column, and the rest of the line away: ECMA-48 §8.3.41.
            write!(std::io::stderr(), "\r{} {text}\u{1b}[K", bar(done, self.total))
        } else {
            writeln!(std::io::stderr(), "{text}")
        };
    }
}

fn told(done: u64, total: u64, note: &str) -> String {
    let separator = if note.is_empty() { "" } else { ": " };
    format!("{done} of {total} events{separator}{note}")
}

fn bar(done: u64, total: u64) -> String {
    let full = done.min(total).saturating_mul(WIDTH).checked_div(total).unwrap_or(WIDTH);
    let repeated = |letter: &str, count: u64| letter.repeat(usize::try_from(count).unwrap_or(0));
    format!("[{}{}]", repeated("#", full), repeated("-", WIDTH.saturating_sub(full)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_full_as_the_work_is_done() {
        for (done, total, full) in [(0, 10, 0), (1, 10, 3), (5, 10, 15), (10, 10, 30), (11, 10, 30), (0, 0, 30)] {
            let bar = bar(done, total);
            assert_eq!(bar.matches('#').count(), full, "{done} of {total}");
            assert_eq!(bar.len(), 32);
        }
        assert_eq!(told(1, 2, ""), "1 of 2 events");
        assert_eq!(told(1, 2, "1 delivered"), "1 of 2 events: 1 delivered");
    }
}
