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
pub mod fuzz;
#[cfg(feature = "laboratory")]
mod laboratory;
mod limits;
mod outline;
mod parser;
mod sandbox;
mod sniff;
mod wire;
mod worker;

use crate::domain::document::Parsed;
#[cfg(any(test, feature = "laboratory"))]
use crate::domain::document::Section;

pub use error::{Bound, Damage, Found, ParseError};
pub use file_type::FileType;
pub use limits::ParseLimits;
pub use parser::Parser;
pub use worker::worker_main;

/// The subcommand under which the program becomes a parse worker.
pub const WORKER_COMMAND: &str = "parse-worker";

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
