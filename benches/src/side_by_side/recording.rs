//! What an exchange's records cost it in user instructions: making the begin and the end, appending them to the journal,
//! and freeing them. There is no llm-proxy that keeps no record to compare with, so callgrind's own books are read: what
//! was spent in the functions that do this, and in everything they called. Consumers of the journal are not in it, they
//! work behind the answer.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use serde_json::json;

use crate::figures::{Figure, Table};

/// One piece of the work.
struct Part {
    /// Its name in the JSON.
    name: &'static str,
    /// The function that does it.
    callee: &'static str,
}

/// All pieces. None is called within another.
const PARTS: [Part; 2] = [
    Part { name: "begin", callee: "llm_proxy::plane::settle::Exchange::record_begin" },
    Part { name: "end", callee: "llm_proxy::plane::settle::Exchange::record_end" },
];

/// The share of the records in a figure of all instructions, read from the dump it was made of; and why it is not to be
/// trusted, if a part was not called once for each exchange.
///
/// # Errors
/// When the dump is not understood.
pub fn figure(all: &Figure, dump: &str) -> Result<(Figure, Option<String>)> {
    let exchanges = all.details["exchanges"].as_u64().context("a figure without a number of exchanges")?;
    let spent = spent(dump);
    let missing = PARTS.iter().zip(&spent).find(|(_, spent)| spent.calls < exchanges);
    let complaint = missing.map(|(part, spent)| {
        format!(
            "{} under {}: `{}` was called {} times in {exchanges} exchanges; it has another name now, or no code of its own",
            all.candidate, all.load, part.callee, spent.calls
        )
    });
    let per_exchange = |instructions: u64| instructions as f64 / exchanges as f64;
    let value = per_exchange(spent.iter().map(|spent| spent.instructions).sum());
    let parts: BTreeMap<&str, f64> =
        PARTS.iter().zip(&spent).map(|(part, spent)| (part.name, per_exchange(spent.instructions))).collect();
    let figure = Figure {
        load: all.load,
        candidate: all.candidate,
        value,
        spread: None,
        ratio: value / (all.value - value),
        // Those of the exchanges are in the figure of all instructions.
        errors: 0,
        details: json!({ "parts": parts, "exchanges": exchanges }),
    };
    Ok((figure, complaint))
}

/// The table of such figures.
pub fn table(figures: Vec<Figure>) -> Table {
    let title = "Of these, to make and append the exchange's records; ratio to all its other instructions".to_owned();
    Table { name: "record_instructions", title, decimals: 0, figures }
}

/// What calls of a part have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spent {
    calls: u64,
    /// In the function and in everything that it called.
    instructions: u64,
}

/// Reads callgrind's format: `fn=` says whose lines follow, `cfn=` and `calls=` tell of calls out of it, and the line
/// behind has a position and what they cost. A name stands in full where it is met first, then only its number.
fn spent(dump: &str) -> [Spent; PARTS.len()] {
    let mut found = [Spent::default(); PARTS.len()];
    let mut names = HashMap::new();
    let mut callee = "";
    let mut lines = dump.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("fn=") {
            named(&mut names, name);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            callee = named(&mut names, name);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let cost = lines.next().and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok());
            let calls = calls.split_ascii_whitespace().next().and_then(|calls| calls.parse().ok());
            let part = PARTS.iter().position(|part| part.callee == callee);
            if let (Some(calls), Some(cost), Some(spent)) = (calls, cost, part.and_then(|part| found.get_mut(part))) {
                spent.calls = spent.calls.saturating_add(calls);
                spent.instructions = spent.instructions.saturating_add(cost);
            }
        }
    }
    found
}

/// Reads `(12) name`, or `(12)` where the name was told before.
fn named<'a>(names: &mut HashMap<&'a str, &'a str>, text: &'a str) -> &'a str {
    let Some((number, name)) = text.split_once(')') else { return text };
    match name.trim() {
        "" => names.get(number).copied().unwrap_or_default(),
        name => {
            names.insert(number, name);
            name
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "\
version: 1
positions: line
events: Ir
summary: 1000

fl=(1) ???
fn=(1) llm_proxy::plane::exchange::carry::{{closure}}
0 400
cfn=(2) llm_proxy::plane::settle::Exchange::record_begin
calls=6 0
* 60
cfn=(3) llm_proxy::plane::settle::Exchange::settle
calls=10 0
+3 300

fn=(2)
0 10
cob=(3) /usr/lib/libc.so.6
cfi=(9) ./malloc.c
cfn=(4) llm_proxy::plane::Gateway::append
calls=10 0
0 50

fn=(5) llm_proxy::plane::exchange::late
0 1
cfn=(2)
calls=4 0
-1 40

fn=(3)
0 7
cfn=(6) llm_proxy::plane::settle::Exchange::record_end
calls=9 0
0 70
cfn=(4)
calls=10 0
0 90
cfn=(7) core::ptr::drop_in_place<llm_proxy_plugins::event::generated::Exchange>
calls=10 0
0 30

fn=(8) llm_proxy_plugins::sinks::file::delivery::Delivery::step
cfn=(7)
calls=10 0
0 33
";

    fn all() -> Figure {
        Figure {
            load: "json",
            candidate: "llm-proxy",
            value: 100.0,
            spread: None,
            ratio: f64::NAN,
            errors: 0,
            details: json!({ "exchanges": 10 }),
        }
    }

    #[test]
    fn a_part_is_counted_with_all_it_called() {
        let expected = [(10, 100), (9, 70)];
        assert_eq!(spent(DUMP), expected.map(|(calls, instructions)| Spent { calls, instructions }));
        assert_eq!(spent(""), [Spent::default(); 2]);
    }

    #[test]
    fn the_ratio_is_to_the_rest_and_a_part_that_was_not_always_seen_is_told() {
        let (figure, complaint) = figure(&all(), DUMP).unwrap();
        assert_eq!((figure.value, figure.ratio), (17.0, 17.0 / 83.0));
        assert_eq!(figure.details["parts"]["end"], 7.0);
        assert!(
            complaint
                .unwrap()
                .contains("`llm_proxy::plane::settle::Exchange::record_end` was called 9 times in 10 exchanges")
        );
        let (_, complaint) = super::figure(&all(), &DUMP.replace("calls=9 0", "calls=10 0")).unwrap();
        assert_eq!(complaint, None);
    }
}
