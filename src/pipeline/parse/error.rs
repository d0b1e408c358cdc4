//! Why a document could not be parsed, in words for the person who uploaded it.
//!
//! **Invariant:** every field is a number or a word of a closed list. The child sends these values, so nothing that a
//! document says, or a subverted child invents, can reach a log or an answer through them.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::FileType;

/// Why a document could not be parsed.
#[derive(Debug, Error, Serialize, Deserialize)]
pub enum ParseError {
    /// The file's extension is none of [`FileType::supported_extensions`].
    #[error("this type of file is not supported")]
    Unsupported,
    /// Zero bytes, or nothing readable in them.
    #[error("the document holds no text (pictures and scanned pages are not read)")]
    Empty,
    /// Bytes that are not text in the declared or assumed encoding.
    #[error(
        "the text is not valid UTF-8 (first bad byte at offset {offset}); save it as UTF-8, or as UTF-16 with a byte order mark"
    )]
    Encoding {
        /// Offset of the first bad byte, from 0.
        offset: u64,
    },
    /// A NUL byte in what should be text.
    #[error("the file is not text: it holds a NUL byte at offset {offset}")]
    Binary {
        /// Offset of the first NUL byte, from 0.
        offset: u64,
    },
    /// The content is of another type than the extension says.
    #[error("the file's name says {expected}, but its content is {found}")]
    WrongType {
        /// What the name says.
        expected: FileType,
        /// What the first bytes say.
        found: Found,
    },
    /// The file breaks the rules of its format.
    #[error("the file is damaged: {what}")]
    Damaged {
        /// What is wrong.
        what: Damage,
    },
    /// A password is needed.
    #[error("the document is encrypted; upload it without a password")]
    Encrypted,
    /// One of the bounds on size was passed.
    #[error("the document is too large: {what} (at most {limit})")]
    TooLarge {
        /// Which bound.
        what: Bound,
        /// Its value, in the unit that the bound names.
        limit: u64,
    },
    /// Nested deeper than allowed.
    #[error("the document is nested deeper than {limit} levels")]
    TooDeep {
        /// The bound, levels.
        limit: u32,
    },
    /// More processor time than allowed.
    #[error("the document needs more than {seconds} s of processor time to read")]
    TooSlow {
        /// The bound, seconds.
        seconds: u64,
    },
    /// Not finished at the deadline; the machine may merely have been busy.
    #[error("reading the document was not finished within {seconds} s")]
    Timeout {
        /// The deadline, seconds.
        seconds: u64,
    },
    /// More memory than allowed.
    #[error("the document needs more memory to read than the limit of {limit_bytes} bytes")]
    OutOfMemory {
        /// The bound, bytes of address space.
        limit_bytes: u64,
    },
    /// The worker ended without an answer.
    #[error("the reader of this format crashed on the document")]
    Crashed {
        /// The signal that ended it, when it was one.
        signal: Option<i32>,
    },
    /// The worker could not be started, confined or spoken to; no fault of the document.
    #[error("the document could not be handed to a reader")]
    #[serde(skip)]
    Worker {
        /// What went wrong with the process or its pipes.
        #[source]
        source: std::io::Error,
    },
    /// The child could not confine itself and therefore refused to read the document.
    #[error("the document's reader could not be confined")]
    Unconfined,
}

impl ParseError {
    /// Whether the same bytes would fail again, so that another attempt is no use.
    #[must_use]
    pub const fn is_permanent(&self) -> bool {
        !matches!(self, Self::Timeout { .. } | Self::Crashed { .. } | Self::Worker { .. } | Self::Unconfined)
    }

    /// Shorthand for [`ParseError::Damaged`].
    pub(super) const fn damaged(what: Damage) -> Self {
        Self::Damaged { what }
    }
}

/// What is wrong with a damaged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Damage {
    /// Not a PDF, cut off, or with a broken structure.
    #[error("it cannot be read as PDF")]
    Pdf,
    /// The zip container is broken or cut off.
    #[error("its zip container is broken or cut off")]
    Archive,
    /// An entry's name would lead out of the container.
    #[error("its zip container holds a name that leads outside of it")]
    ArchivePath,
    /// An entry is packed with a method these formats do not use.
    #[error("its zip container uses an unusual compression method")]
    ArchiveMethod,
    /// The container is sound, but a part that its format demands is missing.
    #[error("a part that its format demands is missing")]
    MissingPart,
    /// A declaration of XML entities, which these formats forbid and attackers use.
    #[error("it declares XML entities, which its format forbids")]
    Entities,
    /// A Word file or a presentation whose content cannot be read.
    #[error("its content cannot be read as an Office document")]
    Office,
    /// A workbook whose content cannot be read.
    #[error("its content cannot be read as a workbook")]
    Workbook,
    /// A book whose content cannot be read.
    #[error("its content cannot be read as EPUB")]
    Epub,
    /// A syntax error in JSON.
    #[error("it is not valid JSON (line {line}, column {column})")]
    Json {
        /// Line of the error, from 1.
        line: u64,
        /// Column of the error, from 1.
        column: u64,
    },
    /// A record that cannot be read.
    #[error("it is not valid CSV (line {line})")]
    Csv {
        /// Line of the error, from 1; 0 when unknown.
        line: u64,
    },
    /// A parser library gave up in the way it should not: by panicking.
    #[error("the reader of this format gave up on it")]
    Reader,
}

/// What the first bytes of a file say it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Found {
    /// `%PDF-`
    #[error("a PDF document")]
    Pdf,
    /// A zip container of unknown purpose.
    #[error("a zip archive")]
    Zip,
    /// A Word document.
    #[error("a Word document")]
    Word,
    /// A presentation.
    #[error("a PowerPoint presentation")]
    PowerPoint,
    /// An Excel workbook.
    #[error("an Excel workbook")]
    Excel,
    /// An EPUB book.
    #[error("an EPUB book")]
    Epub,
    /// A binary Office file of 1997 to 2003.
    #[error("an Office document of the old binary format")]
    OldOffice,
    /// Rich text.
    #[error("a rich text document")]
    RichText,
    /// Another archive or compressed file.
    #[error("an archive")]
    Archive,
    /// A picture.
    #[error("a picture")]
    Image,
    /// Sound or film.
    #[error("sound or video")]
    Media,
    /// A program.
    #[error("a program")]
    Program,
    /// Something that is not text.
    #[error("of another type")]
    Other,
}

/// A bound on size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Bound {
    /// Bytes of the upload.
    #[error("bytes of the file")]
    Input,
    /// Bytes of text found.
    #[error("bytes of text in it")]
    Output,
    /// Bytes of a zip container when unpacked.
    #[error("bytes when unpacked")]
    Unpacked,
    /// How many times larger a zip container is when unpacked.
    #[error("times larger when unpacked")]
    Ratio,
    /// Entries of a zip container.
    #[error("files inside it")]
    Entries,
}
