//! What was found, gathered over all answers, so that one run names everything that is wrong.

use tokio::task::JoinError;

/// Something that must not be.
pub enum Fault {
    /// A later request did not get its own answer.
    Poisoned(String),
    /// A connection on which something was irregular stayed in use.
    Reused(&'static str),
    /// The answer itself became something else than it should.
    Unexpected(String),
}

/// Every fault, by the name of the answer.
#[derive(Default)]
pub struct Report {
    poisoned: usize,
    reused: usize,
    unexpected: usize,
    lines: Vec<String>,
}

impl Report {
    pub fn add(&mut self, name: &str, faults: impl IntoIterator<Item = Fault>) {
        for fault in faults {
            let (count, what) = match fault {
                Fault::Poisoned(what) => (&mut self.poisoned, format!("POISONED: {what}")),
                Fault::Reused(what) => (&mut self.reused, format!("REUSED: {what}")),
                Fault::Unexpected(what) => (&mut self.unexpected, what),
            };
            *count += 1;
            self.lines.push(format!("{name}: {what}"));
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.poisoned += other.poisoned;
        self.reused += other.reused;
        self.unexpected += other.unexpected;
        self.lines.extend(other.lines);
    }

    /// Fails when there is a fault.
    pub fn check(mut self) {
        self.lines.sort();
        assert!(
            self.lines.is_empty(),
            "{} answers poisoned, {} irregular connections reused, {} answers not as expected:\n{}",
            self.poisoned,
            self.reused,
            self.unexpected,
            self.lines.join("\n")
        );
    }
}

/// A judge that panicked has found something too.
pub fn panicked(error: JoinError) -> Fault {
    let what = error.into_panic();
    let text = what.downcast_ref::<String>().cloned();
    let text = text.or_else(|| what.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    Fault::Unexpected(text.unwrap_or_else(|| "a panic without words".to_owned()))
}
