//! The document formats Bulkhead reads.
//!
//! **Invariant:** a type is chosen by the file name's extension alone; whether the content agrees is `sniff`'s question.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A document format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    /// Plain text.
    Txt,
    /// Markdown (`CommonMark` with tables, footnotes and front matter).
    Markdown,
    /// HTML.
    Html,
    /// One JSON value.
    Json,
    /// One JSON value a line.
    Jsonl,
    /// Comma-separated values; semicolons, tabs and bars are recognised too.
    Csv,
    /// Portable Document Format.
    Pdf,
    /// Word, Office Open XML.
    Docx,
    /// Presentations, Office Open XML.
    Pptx,
    /// Excel, Office Open XML.
    Xlsx,
    /// EPUB 2 and 3.
    Epub,
}

impl FileType {
    /// Every format.
    pub const ALL: [Self; 11] = [
        Self::Txt,
        Self::Markdown,
        Self::Html,
        Self::Json,
        Self::Jsonl,
        Self::Csv,
        Self::Pdf,
        Self::Docx,
        Self::Pptx,
        Self::Xlsx,
        Self::Epub,
    ];

    /// The format of a file by the extension of its name, in any case of letters; `None` for any other extension.
    #[must_use]
    pub fn from_name(file_name: &str) -> Option<Self> {
        let (stem, extension) = file_name.rsplit_once('.')?;
        if stem.is_empty() {
            return None;
        }
        let extension = extension.to_ascii_lowercase();
        Self::ALL.into_iter().find(|file_type| file_type.extensions().contains(&extension.as_str()))
    }

    /// The extensions of this format, lower case, without a dot; the usual one first.
    #[must_use]
    pub const fn extensions(self) -> &'static [&'static str] {
        match self {
            Self::Txt => &["txt"],
            Self::Markdown => &["md", "markdown"],
            Self::Html => &["html", "htm"],
            Self::Json => &["json"],
            Self::Jsonl => &["jsonl", "ndjson"],
            Self::Csv => &["csv"],
            Self::Pdf => &["pdf"],
            Self::Docx => &["docx"],
            Self::Pptx => &["pptx"],
            Self::Xlsx => &["xlsx"],
            Self::Epub => &["epub"],
        }
    }

    /// Every extension that is read, with its dot, sorted.
    #[must_use]
    pub fn supported_extensions() -> Vec<&'static str> {
        let mut dotted = vec![
            ".csv",
            ".docx",
            ".epub",
            ".htm",
            ".html",
            ".json",
            ".jsonl",
            ".markdown",
            ".md",
            ".ndjson",
            ".pdf",
            ".pptx",
            ".txt",
            ".xlsx",
        ];
        dotted.sort_unstable();
        dotted
    }

    /// Whether the file is text, to be decoded before it is read.
    pub(super) const fn is_text(self) -> bool {
        matches!(self, Self::Txt | Self::Markdown | Self::Html | Self::Json | Self::Jsonl | Self::Csv)
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Txt => "plain text",
            Self::Markdown => "Markdown",
            Self::Html => "HTML",
            Self::Json => "JSON",
            Self::Jsonl => "JSON Lines",
            Self::Csv => "CSV",
            Self::Pdf => "PDF",
            Self::Docx => "a Word document",
            Self::Pptx => "a PowerPoint presentation",
            Self::Xlsx => "an Excel workbook",
            Self::Epub => "an EPUB book",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_decides_in_any_case() {
        assert_eq!(FileType::from_name("Report.PDF"), Some(FileType::Pdf));
        assert_eq!(FileType::from_name("a.tar.md"), Some(FileType::Markdown));
        assert_eq!(FileType::from_name("notes"), None);
        assert_eq!(FileType::from_name(".pdf"), None);
        assert_eq!(FileType::from_name("program.exe"), None);
    }

    #[test]
    fn the_published_list_is_that_of_the_types() {
        let mut listed: Vec<String> = FileType::ALL
            .iter()
            .flat_map(|file_type| file_type.extensions())
            .map(|extension| format!(".{extension}"))
            .collect();
        listed.sort_unstable();
        assert_eq!(FileType::supported_extensions(), listed);
    }
}
