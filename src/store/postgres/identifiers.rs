//! The one place that puts names and literals into SQL text.
//!
//! Roles, databases and passwords cannot be bound as parameters of `CREATE ROLE` and its like.
//! Everything else in the store is static text with bound parameters.
//!
//! **Invariant:** what leaves this file is always quoted, also when it looks harmless.

/// A name that cannot be written into SQL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// PostgreSQL has no empty names.
    #[error("a database name must not be empty")]
    Empty,
    /// PostgreSQL cuts longer names in silence, so two of them could mean the same thing.
    #[error("a database name has at most 63 bytes, this one has {0}")]
    TooLong(usize),
    /// No PostgreSQL text can hold the byte 0.
    #[error("a database name must not contain a NUL byte")]
    Nul,
}

/// Quotes a name: `a"b` becomes `"a""b"`.
///
/// # Errors
/// When PostgreSQL would refuse the name or shorten it.
pub fn quote_identifier(name: &str) -> Result<String, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > 63 {
        return Err(NameError::TooLong(name.len()));
    }
    if name.contains('\0') {
        return Err(NameError::Nul);
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

/// Quotes a literal so that it means the same whatever `standard_conforming_strings` is:
/// `it's` becomes `'it''s'`, and a text with a backslash becomes an `E''` literal.
///
/// # Errors
/// When the text contains the byte 0.
pub fn quote_literal(text: &str) -> Result<String, NameError> {
    if text.contains('\0') {
        return Err(NameError::Nul);
    }
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        Ok(format!(" E'{}'", quoted.replace('\\', "\\\\")))
    } else {
        Ok(format!("'{quoted}'"))
    }
}

#[cfg(test)]
mod tests {
    use super::{NameError, quote_identifier, quote_literal};

    #[test]
    fn a_name_with_quotes_stays_one_name() {
        assert_eq!(quote_identifier("bulkhead").as_deref(), Ok("\"bulkhead\""));
        assert_eq!(quote_identifier("a\"; DROP ROLE b; --").as_deref(), Ok("\"a\"\"; DROP ROLE b; --\""));
    }

    #[test]
    fn a_name_that_postgres_would_change_is_refused() {
        assert_eq!(quote_identifier(""), Err(NameError::Empty));
        assert_eq!(quote_identifier("a\0b"), Err(NameError::Nul));
        assert_eq!(quote_identifier(&"x".repeat(64)), Err(NameError::TooLong(64)));
    }

    #[test]
    fn a_literal_cannot_end_early() {
        assert_eq!(quote_literal("it's").as_deref(), Ok("'it''s'"));
        assert_eq!(quote_literal("a\\'b").as_deref(), Ok(" E'a\\\\''b'"));
        assert_eq!(quote_literal("a\0b"), Err(NameError::Nul));
    }
}
