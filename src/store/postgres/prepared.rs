//! Statements that every connection of a tenant pool has prepared, and calls of them as text.
//!
//! Behind a pooler nothing stays prepared: there a call is the statement itself, with its values in their places.
//!
//! **Invariant:** a call is written of values that have no character which could end a literal: identities, numbers
//! and checked names. There is no way to put a text in.

use std::fmt::Write;

use uuid::Uuid;

use super::chunks::{CHUNK_LIST, MENTION_LIST};
use super::namespaces::NAMESPACE_TERMS;
use super::primary::History;
use super::session::Pooling;
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
    Prepared { name: "namespace_terms", parameters: "uuid, text, int[], bool", text: NAMESPACE_TERMS };

/// Whether a server follows, how far a namespace has come there, and on which history.
///
/// A server that follows knows its timeline from its control file alone, where it is once a restart point or a flush
/// came after it. It never goes back, as long as a connection lasts: so the session remembers, and the file is read
/// while it does not say what is wanted.
pub(super) const POSITION: Prepared = Prepared {
    name: "namespace_position",
    parameters: "uuid, uuid, text",
    text: "select pg_is_in_recovery() as follows,
         (select seq from namespace where tenant_id = $1 and namespace_id = $2) as reached,
         case current_setting('bulkhead.history', true) when $3 then $3
             else set_config('bulkhead.history', (
                 select concat(s.system_identifier, '/', greatest(c.timeline_id, r.min_recovery_end_timeline))
                 from pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r), false)
         end as history",
};

/// What prepares them all.
pub(super) fn preparation() -> String {
    let prepare = |Prepared { name, parameters, text }: &Prepared| {
        ["prepare ", *name, "(", *parameters, ") as ", *text].concat()
    };
    [CHUNKS, MENTIONS, NAMESPACE, POSITION].iter().map(prepare).collect::<Vec<_>>().join("; ")
}

/// A value in a call.
pub(in crate::store) enum Value<'a> {
    Id(Uuid),
    Ids(&'a [Uuid]),
    Numbers(&'a [i32]),
    Name(&'a NamespaceName),
    Flag(bool),
    History(History),
}

/// A prepared statement with its values.
#[derive(Clone, Copy)]
pub(in crate::store) struct Call<'a> {
    pub(super) statement: &'a Prepared,
    pub(super) values: &'a [Value<'a>],
}

impl Call<'_> {
    /// Appends the call.
    pub(super) fn write(&self, message: &mut String, pooling: Pooling) {
        match pooling {
            Pooling::Session => self.execute(message),
            Pooling::Transaction => self.inline(message),
        }
    }

    fn execute(&self, message: &mut String) {
        message.extend(["execute ", self.statement.name, "("]);
        for (at, value) in self.values.iter().enumerate() {
            if at > 0 {
                message.push(',');
            }
            value.write(message);
        }
        message.push(')');
    }

    /// The statement's text, each `$n` replaced by the value of that place and its type.
    fn inline(&self, message: &mut String) {
        let types: Vec<&str> = self.statement.parameters.split(", ").collect();
        let mut parts = self.statement.text.split('$');
        message.extend(parts.next());
        for part in parts {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, rest) = part.split_at(digits);
            let place = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
            // A number without a value stays, and PostgreSQL refuses the statement.
            match place.and_then(|place| Some((self.values.get(place)?, types.get(place)?))) {
                Some((value, kind)) => {
                    message.push('(');
                    value.write(message);
                    message.extend(["::", kind, ")"]);
                }
                None => message.extend(["$", number]),
            }
            message.push_str(rest);
        }
    }
}

impl Value<'_> {
    fn write(&self, message: &mut String) {
        // Writing to a string cannot fail.
        let _ = match self {
            Self::Id(id) => write!(message, "'{id}'"),
            Self::Name(name) => write!(message, "'{name}'"),
            Self::Flag(flag) => write!(message, "{flag}"),
            Self::History(history) => write!(message, "'{history}'"),
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
        let history = History { cluster: -7, timeline: 2 };
        let values = [
            Value::Id(id),
            Value::Ids(&ids),
            Value::Ids(&[]),
            Value::Numbers(&[-1, 2]),
            Value::Name(&name),
            Value::Flag(true),
            Value::History(history),
        ];
        let mut message = String::new();
        let call = Call { statement: &CHUNKS, values: &values };
        call.write(&mut message, Pooling::Session);
        let nil = "00000000-0000-0000-0000-000000000000";
        assert_eq!(
            message,
            format!("execute chunk_list('{nil}','{{{nil},{nil}}}','{{}}','{{-1,2}}','a-b_c',true,'-7/2')")
        );
    }

    #[test]
    fn behind_a_pooler_a_call_is_the_statement_with_its_values_in_their_places() {
        let statement = Prepared {
            name: "some",
            parameters: "uuid, text, int[]",
            text: "select $2, $3[1] where $1 = $1",
        };
        let name = NamespaceName::parse("a-b_c").expect("a name");
        let values = [Value::Id(Uuid::nil()), Value::Name(&name), Value::Numbers(&[7])];
        let mut message = String::new();
        Call { statement: &statement, values: &values }.write(&mut message, Pooling::Transaction);
        let nil = "('00000000-0000-0000-0000-000000000000'::uuid)";
        assert_eq!(message, format!("select ('a-b_c'::text), ('{{7}}'::int[])[1] where {nil} = {nil}"));
    }

    #[test]
    fn every_place_of_a_statement_has_a_value_behind_a_pooler() {
        let ids = [Uuid::nil()];
        for statement in [&CHUNKS, &MENTIONS, &NAMESPACE, &POSITION] {
            let name = NamespaceName::default();
            let values: Vec<Value<'_>> = statement
                .parameters
                .split(", ")
                .map(|kind| match kind {
                    "uuid" => Value::Id(Uuid::nil()),
                    "uuid[]" => Value::Ids(&ids),
                    "int[]" => Value::Numbers(&[]),
                    "bool" => Value::Flag(false),
                    _ => Value::Name(&name),
                })
                .collect();
            let mut message = String::new();
            Call { statement, values: &values }.write(&mut message, Pooling::Transaction);
            assert!(!message.contains('$'), "{}: {message}", statement.name);
        }
    }
}
