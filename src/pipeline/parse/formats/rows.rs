//! Rows of a table as sentences of their own: `header: value; header: value`.
//!
//! **Invariant:** every cell that is not blank appears, with its column's header when it has one.

use crate::pipeline::parse::outline::one_line;

/// Column headers, and what they make of a row.
#[derive(Default)]
pub(super) struct Rows {
    headers: Vec<String>,
}

impl Rows {
    /// Rows under these headers; blank ones count as absent.
    pub(super) fn under<'a>(headers: impl Iterator<Item = &'a str>) -> Self {
        Self { headers: headers.map(one_line).collect() }
    }

    /// One row as a line; `None` when all its cells are blank. Columns count from 0.
    pub(super) fn line<'a>(&self, cells: impl Iterator<Item = (usize, &'a str)>) -> Option<String> {
        let mut line = String::new();
        for (column, cell) in cells {
            let cell = one_line(cell);
            if cell.is_empty() {
                continue;
            }
            if !line.is_empty() {
                line.push_str("; ");
            }
            if let Some(header) = self.headers.get(column).filter(|header| !header.is_empty()) {
                line.push_str(header);
                line.push_str(": ");
            }
            line.push_str(&cell);
        }
        (!line.is_empty()).then_some(line)
    }
}
