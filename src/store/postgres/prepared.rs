//! Statements that every connection of a tenant pool has prepared, and calls of them as text.
//!
//! **Invariant:** a call is written of values that have no character which could end a literal: identities, numbers
//! and checked names. There is no way to put a text in.

use std::fmt::Write;

use uuid::Uuid;

use super::chunks::{CHUNK_LIST, MENTION_LIST};
use super::namespaces::NAMESPACE_TERMS;
use crate::domain::ids::NamespaceName;

/// A statement, prepared when a connection opens.
pub(in crate::store) struct Prepared {
    name: &'static str,
    parameters: &'static str,
    text: &'static str,
}

pub(super) const CHUNKS: Prepared =
    Prepared { name: "chunk_list", parameters: "uuid, uuid, uuid[]", text: CHUNK_LIST };
pub(super) const MENTIONS: Prepared =
    Prepared { name: "mention_list", parameters: "uuid, uuid, uuid[], uuid[]", text: MENTION_LIST };
pub(super) const NAMESPACE: Prepared =
    Prepared { name: "namespace_terms", parameters: "uuid, text, int[]", text: NAMESPACE_TERMS };

/// What prepares them all.
pub(super) fn preparation() -> String {
    let prepare = |Prepared { name, parameters, text }: &Prepared| {
        ["prepare ", *name, "(", *parameters, ") as ", *text].concat()
    };
    [CHUNKS, MENTIONS, NAMESPACE].iter().map(prepare).collect::<Vec<_>>().join("; ")
}

/// A value in a call.
pub(in crate::store) enum Value<'a> {
    Id(Uuid),
    Ids(&'a [Uuid]),
    Numbers(&'a [i32]),
    Name(&'a NamespaceName),
}

/// A prepared statement with its values.
pub(in crate::store) struct Call<'a> {
    pub(super) statement: &'a Prepared,
    pub(super) values: &'a [Value<'a>],
}

impl Call<'_> {
    /// Appends the call.
    pub(super) fn write(&self, message: &mut String) {
        message.extend(["execute ", self.statement.name, "("]);
        for (at, value) in self.values.iter().enumerate() {
            if at > 0 {
                message.push(',');
            }
            value.write(message);
        }
        message.push(')');
    }
}

impl Value<'_> {
    fn write(&self, message: &mut String) {
        // Writing to a string cannot fail.
        let _ = match self {
            Self::Id(id) => write!(message, "'{id}'"),
            Self::Name(name) => write!(message, "'{name}'"),
            Self::Ids(ids) => list(message, ids),
            Self::Numbers(numbers) => list(message, numbers),
        };
    }
}

fn list(message: &mut String, values: &[impl std::fmt::Display]) -> std::fmt::Result {
    message.push_str("'{");
    for (at, value) in values.iter().enumerate() {
        if at > 0 {
            message.push(',');
        }
        write!(message, "{value}")?;
    }
    message.push_str("}'");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_written_of_literals() {
        let (id, name) = (Uuid::nil(), NamespaceName::parse("a-b_c").expect("a name"));
        let ids = [id, id];
        let values =
            [Value::Id(id), Value::Ids(&ids), Value::Ids(&[]), Value::Numbers(&[-1, 2]), Value::Name(&name)];
        let mut message = String::new();
        Call { statement: &CHUNKS, values: &values }.write(&mut message);
        let nil = "00000000-0000-0000-0000-000000000000";
        assert_eq!(
            message,
            format!("execute chunk_list('{nil}','{{{nil},{nil}}}','{{}}','{{-1,2}}','a-b_c')")
        );
    }
}
