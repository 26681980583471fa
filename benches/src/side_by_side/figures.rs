//! What was measured, as a table for people and as JSON for programs.

use serde_json::{Value, json};

use crate::candidates::BASELINE;

/// One number: what one exchange of a load costs a candidate.
pub struct Figure {
    /// The load's short name.
    pub load: &'static str,
    /// The candidate.
    pub candidate: &'static str,
    /// Per exchange, in the table's unit.
    pub value: f64,
    /// Median absolute deviation, as a share of the value. `None` where there is one sample.
    pub spread: Option<f64>,
    /// To the baseline's value under the same load.
    pub ratio: f64,
    /// Exchanges without a whole, right answer. Any makes the figure worthless.
    pub errors: u64,
    /// Samples or parts, for the JSON alone.
    pub details: Value,
}

/// Figures of one kind.
pub struct Table {
    /// The kind's short name.
    pub name: &'static str,
    /// What was measured, how, and in which unit.
    pub title: String,
    /// Decimals that are worth showing.
    pub decimals: usize,
    /// The figures, load by load.
    pub figures: Vec<Figure>,
}

impl Table {
    /// The table for people.
    pub fn text(&self) -> String {
        let mut rows = vec![["load", "candidate", "per exchange", "MAD", "ratio", "errors"].map(str::to_owned)];
        rows.extend(self.figures.iter().map(|figure| {
            [
                figure.load.to_owned(),
                figure.candidate.to_owned(),
                format!("{:.*}", self.decimals, figure.value),
                figure.spread.map_or_else(|| "-".to_owned(), |spread| format!("{:.1} %", spread * 100.0)),
                format!("{:.3}", figure.ratio),
                figure.errors.to_string(),
            ]
        }));
        let mut widths = [0_usize; 6];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = format!("{}\n\n", self.title);
        for row in &rows {
            for (column, (width, cell)) in widths.iter().zip(row).enumerate() {
                // Names to the left, numbers to the right.
                text.push_str(&if column < 2 { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") });
            }
            text.push('\n');
        }
        text
    }

    /// The table for programs.
    pub fn json(&self) -> Value {
        let figures = self.figures.iter().map(|figure| {
            json!({
                "load": figure.load,
                "candidate": figure.candidate,
                "per_exchange": figure.value,
                "mad": figure.spread,
                "ratio": figure.ratio,
                "errors": figure.errors,
                "details": figure.details,
            })
        });
        json!({ "name": self.name, "title": self.title, "figures": figures.collect::<Vec<_>>() })
    }

    /// Exchanges that went wrong.
    pub fn errors(&self) -> u64 {
        self.figures.iter().map(|figure| figure.errors).sum()
    }
}

/// Sets every ratio from the values; for figures that have one sample each.
pub fn set_ratios(figures: &mut [Figure]) {
    let baselines: Vec<(&str, f64)> = figures
        .iter()
        .filter(|figure| figure.candidate == BASELINE)
        .map(|figure| (figure.load, figure.value))
        .collect();
    for figure in figures {
        let baseline = baselines.iter().find(|(load, _)| *load == figure.load).map_or(f64::NAN, |(_, value)| *value);
        figure.ratio = figure.value / baseline;
    }
}

/// The middle one, or the mean of the middle two; NaN if there is none.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = sorted.len() / 2;
    let lower = sorted.len().saturating_sub(1) / 2;
    match (sorted.get(lower), sorted.get(upper)) {
        (Some(lower), Some(upper)) => (lower + upper) / 2.0,
        _ => f64::NAN,
    }
}

/// Median absolute deviation from the median, as a share of it: a spread that one disturbed round does not move.
pub fn relative_mad(samples: &[f64]) -> f64 {
    let middle = median(samples);
    let deviations: Vec<f64> = samples.iter().map(|sample| (sample - middle).abs()).collect();
    median(&deviations) / middle
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disturbed_round_moves_neither_median_nor_spread() {
        for (samples, expected) in [
            (&[3.0][..], 3.0),
            (&[1.0, 2.0], 1.5),
            (&[9.0, 1.0, 2.0], 2.0),
            (&[100.0, 101.0, 99.0, 100.0, 900.0], 100.0),
        ] {
            assert_eq!(median(samples), expected, "{samples:?}");
        }
        assert!(median(&[]).is_nan());
        assert_eq!(relative_mad(&[100.0, 101.0, 99.0, 100.0, 900.0]), 0.01);
    }

    #[test]
    fn ratios_are_to_the_baseline_of_the_same_load() {
        let figure = |load, candidate, value| Figure {
            load,
            candidate,
            value,
            spread: None,
            ratio: f64::NAN,
            errors: 0,
            details: Value::Null,
        };
        let mut figures = vec![
            figure("json", BASELINE, 100.0),
            figure("json", "other", 90.0),
            figure("burst", "other", 5.0),
            figure("burst", BASELINE, 10.0),
        ];
        set_ratios(&mut figures);
        assert_eq!(figures.iter().map(|figure| figure.ratio).collect::<Vec<_>>(), [1.0, 0.9, 0.5, 1.0]);
        let table = Table { name: "n", title: "t".to_owned(), decimals: 1, figures };
        assert_eq!(table.json()["figures"][1]["ratio"], 0.9);
        let text = table.text();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
    }
}
