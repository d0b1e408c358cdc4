//! Documents and their states.

use serde::{Deserialize, Serialize};

/// A parsed document: its sections in reading order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Parsed {
    /// The title that the document gives itself.
    pub title: Option<String>,
    /// Sections in reading order.
    pub sections: Vec<Section>,
    /// Parts, such as pages of a PDF, that could not be read and are missing from `sections`; 0 for a whole document.
    #[serde(default)]
    pub unread: u32,
}

/// A stretch of text under one heading.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Section {
    /// The nearest heading above the text, plain text on one line; it is not repeated in `text`.
    pub heading: Option<String>,
    /// The heading's level, 1 the highest, at most 6; 0 without a heading.
    pub level: u8,
    /// The text. Lines end in `\n`, an empty line parts paragraphs, a table's row is a line. Free of NUL and other
    /// control characters. Empty only where a heading stands directly above another.
    pub text: String,
}

/// A document's state, in LightRAG's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Accepted, not begun.
    Pending,
    /// Its file is being read.
    Parsing,
    /// It is being cut into chunks and searched for entities.
    Analyzing,
    /// It is being embedded and written.
    Processing,
    /// It can be found.
    Processed,
    /// It could not be processed; `error_msg` says why.
    Failed,
}

impl Status {
    /// Every state, in the order of a document's life.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Parsing, Self::Analyzing, Self::Processing, Self::Processed, Self::Failed];

    /// The state's name on the wire and in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Parsing => "parsing",
            Self::Analyzing => "analyzing",
            Self::Processing => "processing",
            Self::Processed => "processed",
            Self::Failed => "failed",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }
}
