//! Excel workbooks: each sheet a section, each row a line.
//!
//! **Invariant:** cells are streamed; the size of a sheet's rectangle, which a hostile file may claim to be
//! 17 billion cells, costs nothing.

use std::io::Cursor;

use calamine::{Data, DataRef, ExcelDateTime, Reader, Xlsx, XlsxError};

use crate::pipeline::parse::{Damage, ParseError, outline::Outline};

use super::rows::Rows;

/// Reads every sheet that is a grid of cells.
pub(super) fn read(bytes: Vec<u8>, outline: &mut Outline) -> Result<(), ParseError> {
    let mut workbook = Xlsx::new(Cursor::new(bytes)).map_err(|e| refusal(&e))?;
    for name in workbook.sheet_names() {
        let mut cells = match workbook.worksheet_cells_reader(&name) {
            Ok(cells) => cells,
            // A sheet that is a chart or a macro has no cells.
            Err(XlsxError::NotAWorksheet(_)) => continue,
            Err(error) => return Err(refusal(&error)),
        };
        let mut sheet = Sheet { outline, name: Some(&name), header: None, row: Vec::new(), number: 0 };
        while let Some(cell) = cells.next_cell().map_err(|e| refusal(&e))? {
            let (row, column) = cell.get_position();
            if row != sheet.number {
                sheet.end_row()?;
                sheet.number = row;
            }
            let value = cell.get_value();
            let text = words(value);
            if !text.trim().is_empty() {
                let is_text = matches!(value, DataRef::String(_) | DataRef::SharedString(_));
                sheet.row.push((column as usize, text, is_text));
            }
        }
        sheet.end_row()?;
    }
    Ok(())
}

fn refusal(error: &XlsxError) -> ParseError {
    match error {
        XlsxError::Password => ParseError::Encrypted,
        _ => ParseError::damaged(Damage::Workbook),
    }
}

struct Sheet<'a> {
    outline: &'a mut Outline,
    /// The sheet's name until its first row is written.
    name: Option<&'a str>,
    header: Option<Rows>,
    row: Vec<(usize, String, bool)>,
    number: u32,
}

impl Sheet<'_> {
    fn end_row(&mut self) -> Result<(), ParseError> {
        let row = std::mem::take(&mut self.row);
        if row.is_empty() {
            return Ok(());
        }
        if let Some(name) = self.name.take() {
            self.outline.heading(1, name)?;
        }
        // The first row of two or more cells that are all words is the header; a lone cell above it is a caption.
        if self.header.is_none() && row.len() > 1 {
            if row.iter().all(|(_, _, is_text)| *is_text) {
                let width = row.iter().map(|(column, ..)| column + 1).max().unwrap_or(0);
                let mut headers = vec![""; width];
                for (column, text, _) in &row {
                    headers[*column] = text;
                }
                self.header = Some(Rows::under(headers.into_iter()));
            } else {
                self.header = Some(Rows::default());
            }
            let line = Rows::default().line(row.iter().map(|(column, text, _)| (*column, text.as_str())));
            return line.map_or(Ok(()), |line| self.outline.line(&line));
        }
        let none = Rows::default();
        let rows = self.header.as_ref().unwrap_or(&none);
        match rows.line(row.iter().map(|(column, text, _)| (*column, text.as_str()))) {
            Some(line) => self.outline.line(&line),
            None => Ok(()),
        }
    }
}

fn words(value: &DataRef<'_>) -> String {
    match value {
        DataRef::DateTime(time) => moment(time),
        other => Data::from(other.clone()).to_string(),
    }
}

/// A date, a time or both as ISO 8601 writes them; a duration as hours, minutes and seconds.
fn moment(time: &ExcelDateTime) -> String {
    let (year, month, day, hour, minute, second, _) = time.to_ymd_hms_milli();
    if time.is_duration() {
        let days = time.as_f64().trunc().max(0.0);
        return format!("{}:{minute:02}:{second:02}", days * 24.0 + f64::from(hour));
    }
    let clock = format!("{hour:02}:{minute:02}:{second:02}");
    if time.as_f64() < 1.0 {
        return clock;
    }
    let date = format!("{year:04}-{month:02}-{day:02}");
    if (hour, minute, second) == (0, 0, 0) { date } else { format!("{date} {clock}") }
}
