//! Delimiter-separated values (RFC 4180, and what spreadsheets write for it).
//!
//! **Invariant:** the first record is the header; a file of one record alone is kept as that record.

use crate::pipeline::parse::{Damage, ParseError, outline::Outline};

use super::rows::Rows;

const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// Reads every record as one line.
pub(super) fn read(text: &str, outline: &mut Outline) -> Result<(), ParseError> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter(text))
        .flexible(true)
        .has_headers(false)
        .from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    let mut header: Option<(Rows, csv::StringRecord)> = None;
    let mut only_header = true;
    while reader.read_record(&mut record).map_err(|e| damage(&e))? {
        match &header {
            None => header = Some((Rows::under(record.iter()), record.clone())),
            Some((rows, _)) => {
                if let Some(line) = rows.line(record.iter().enumerate()) {
                    outline.line(&line)?;
                    only_header = false;
                }
            }
        }
    }
    match header {
        Some((_, record)) if only_header => {
            let line = Rows::default().line(record.iter().enumerate());
            line.map_or(Ok(()), |line| outline.line(&line))
        }
        _ => Ok(()),
    }
}

fn damage(error: &csv::Error) -> ParseError {
    let line = error.position().map_or(0, csv::Position::line);
    ParseError::damaged(Damage::Csv { line })
}

/// The delimiter that stands most often in the first line, outside quotes; a comma when none does.
fn delimiter(text: &str) -> u8 {
    let mut counts = [0_usize; DELIMITERS.len()];
    let mut quoted = false;
    for byte in text.bytes() {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' if !quoted => break,
            _ if quoted => {}
            _ => {
                if let Some(index) = DELIMITERS.iter().position(|delimiter| *delimiter == byte) {
                    counts[index] += 1;
                }
            }
        }
    }
    let most = counts.iter().copied().max().unwrap_or(0);
    let index = counts.iter().position(|count| *count == most).unwrap_or(0);
    DELIMITERS[index]
}
