//! Figures: a row against its target, medians and percentiles, progress while they are made.
//!
//! **Invariant:** a target is part of the row, so that a figure is never shown without what it should be.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Which side of its target a figure should be on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// At least this.
    Least(f64),
    /// At most this.
    Most(f64),
}

/// One figure against its target.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub row: String,
    /// The figure.
    pub value: f64,
    /// What the value is.
    pub unit: &'static str,
    /// What it should be at least, or at most.
    pub target: f64,
    /// Whether it is.
    pub holds: bool,
    /// What the figure was made of: one for each round, or those it is a ratio of.
    pub samples: Vec<f64>,
}

impl Row {
    /// A figure with what it was made of.
    #[must_use]
    pub fn new(row: &str, value: f64, unit: &'static str, target: Target, samples: Vec<f64>) -> Self {
        let (bound, holds) = match target {
            Target::Least(bound) => (bound, value >= bound),
            Target::Most(bound) => (bound, value <= bound),
        };
        Self { row: row.to_owned(), value, unit, target: bound, holds, samples }
    }
}

/// A table of rows for people.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    format!("{:<76} {:>10} {:>10} {:>10}  holds\n{}", "row", "value", "unit", "target", lines(rows))
}

/// Rows for people, a line each.
#[must_use]
pub fn lines(rows: &[Row]) -> String {
    let line = |row: &Row| {
        let holds = if row.holds { "yes" } else { "NO" };
        format!("{:<76} {:>10.3} {:>10} {:>10.3}  {holds}\n", row.row, row.value, row.unit, row.target)
    };
    rows.iter().map(line).collect()
}

/// The middle one; not a number when there is none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The value that `percent` of all do not exceed; not a number when there is none.
#[must_use]
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Milliseconds of a time.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Milliseconds between two moments.
pub(super) fn between(from: Instant, to: Instant) -> f64 {
    milliseconds(to.duration_since(from))
}

/// A bar on standard error.
#[must_use]
pub fn progress(what: &str, length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:36} {wide_bar} {pos}/{len} {elapsed}");
    let bar = ProgressBar::new(length as u64);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (0..100).rev().map(f64::from).collect();
        assert!((median(&values) - 50.0).abs() < 1e-9);
        assert!((percentile(&values, 99) - 99.0).abs() < 1e-9);
        assert!((percentile(&values, 100) - 99.0).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_row_that_misses_its_target_says_so() {
        let rows = [
            Row::new("share", 0.9, "share", Target::Least(0.9), vec![]),
            Row::new("times", 1.31, "times", Target::Most(1.3), vec![]),
        ];
        assert!(rows[0].holds && !rows[1].holds);
        assert!(table(&rows).lines().nth(2).is_some_and(|line| line.ends_with("NO")));
        assert!(!Row::new("nothing", f64::NAN, "times", Target::Most(1.0), vec![]).holds);
    }
}
