//! Answers on standard output: JSON for programs, lines and tables for people.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use serde_json::Value;

/// What a command answers.
pub(super) struct Answer {
    /// For programs.
    pub(super) json: Value,
    /// For people.
    pub(super) text: String,
}

impl Answer {
    pub(super) fn render(&self, json: bool) -> anyhow::Result<String> {
        Ok(if json { serde_json::to_string_pretty(&self.json)? } else { self.text.clone() })
    }
}

/// Shows on a terminal that something goes on, until it is dropped. Elsewhere nothing is shown.
pub(super) fn waiting(words: &'static str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(words).with_finish(ProgressFinish::AndClear);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// What is over sooner needs no bar.
const QUIET: Duration = Duration::from_secs(1);

/// A bar on a terminal, of what lasts longer than a second. Gone when it is dropped.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// A bar of so many steps.
    pub(super) fn new(steps: usize, unit: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::hidden());
        // The template is fixed and valid; the library's own stands in for it.
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}, {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(unit);
        Self(bar.with_finish(ProgressFinish::AndClear))
    }

    /// One step is done.
    pub(super) fn step(&self) {
        if self.0.is_hidden() && self.0.elapsed() >= QUIET {
            self.0.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.0.inc(1);
    }
}

/// Prints a line or several. A reader who went away is no failure.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Rows as a table: the named fields of each, in columns as wide as they need.
pub(super) fn table(rows: &[Value], fields: &[&str], empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut lines = vec![fields.iter().map(|field| field.replace('_', " ").to_uppercase()).collect()];
    lines.extend(rows.iter().map(|row| fields.iter().map(|field| cell(&row[*field])).collect()));
    let lines: Vec<Vec<String>> = lines;
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..fields.len()).map(width).collect();
    let mut table = String::new();
    for line in &lines {
        let mut text = String::new();
        for (cell, width) in std::iter::zip(line, &widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        table.push_str(text.trim_end());
        table.push('\n');
    }
    table
}

/// A value in one cell. Control characters, which could rule a terminal, are shown as a sign.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_has_columns_as_wide_as_they_need() {
        let rows = [
            json!({"key_id": "a1", "roles": ["reader", "writer"], "expires_at": null}),
            json!({"key_id": "b22222", "roles": [], "expires_at": "2030-01-01"}),
        ];
        assert_eq!(
            table(&rows, &["key_id", "roles", "expires_at"], "none"),
            "KEY ID  ROLES          EXPIRES AT\n\
             a1      reader,writer  -\n\
             b22222                 2030-01-01\n"
        );
        assert_eq!(table(&[], &["key_id"], "There are none."), "There are none.");
    }

    #[test]
    fn a_name_cannot_rule_the_terminal() {
        assert_eq!(cell(&json!("a\u{1b}[2Jb\n")), "a\u{fffd}[2Jb\u{fffd}");
    }
}
