//! Documents of many formats to plain text, in reading order.
//!
//! An upload is untrusted input for a parser that somebody else wrote. It is therefore read in a child process (the
//! same program, subcommand `parse-worker`) that has an empty environment, no descriptors but its three pipes, limits
//! on memory and CPU, no way to open a file or a socket, and a deadline. [`Parser`] is the parent's handle,
//! [`worker_main`] the child's body; between them goes one framed request and one framed reply (`wire`).
//!
//! Text that arrives as JSON needs no parser and no child: see [`parse_text`].
//!
//! **Invariant:** no format library runs on uploaded bytes in the server's own process, and no error carries words of
//! a document: errors are made of fixed words and numbers, so that a log or an answer cannot leak what was parsed.

mod archive;
mod encoding;
mod error;
mod file_type;
mod formats;
#[cfg(feature = "laboratory")]
mod laboratory;
mod limits;
mod outline;
mod parser;
mod sandbox;
mod sniff;
mod wire;
mod worker;

use serde::{Deserialize, Serialize};

pub use error::{Bound, Damage, Found, ParseError};
pub use file_type::FileType;
pub use limits::ParseLimits;
pub use parser::Parser;
pub use worker::worker_main;

/// The subcommand under which the program becomes a parse worker.
pub const WORKER_COMMAND: &str = "parse-worker";

/// A parsed document: its sections in reading order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parsed {
    /// The document's own title, when it names one: metadata, or a heading that opens it.
    pub title: Option<String>,
    /// Sections in reading order; at least one in what [`Parser::parse`] returns.
    pub sections: Vec<Section>,
    /// Parts (pages of a PDF) that could not be read and are missing from `sections`; 0 for a whole document.
    pub unread: u32,
}

/// A run of text under one heading.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// The nearest heading above the text, plain text on one line; it is not repeated in `text`.
    pub heading: Option<String>,
    /// Depth of the heading: 1 (outermost) to 6, 0 without one.
    pub level: u8,
    /// Plain text. Lines end in `\n`, paragraphs are separated by an empty line, table rows are lines. Free of NUL and
    /// other control characters. Empty only where a heading stands directly above another.
    pub text: String,
}

/// Sections of a text that needs no parser: lines of the form `# Heading` (one to six `#`, outside fenced code) open a
/// section, everything else is kept as it stands. Blank text gives no sections.
#[must_use]
pub fn parse_text(text: &str) -> Parsed {
    let mut outline = outline::Outline::unbounded();
    match formats::text::read(text, &mut outline) {
        Ok(()) => outline.into_parsed(),
        Err(_) => Parsed::default(),
    }
}

#[cfg(test)]
mod tests;
