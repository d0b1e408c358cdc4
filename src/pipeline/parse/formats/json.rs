//! JSON values as readable lines, `path: value`.
//!
//! Objects that look like documents of their own, with a title and a text, become sections that carry both; members
//! of a list of objects are sections each.
//!
//! **Invariant:** every name and every value that is not null or blank appears once.

use serde_json::{Map, Value};

use crate::pipeline::parse::{
    Damage, ParseError,
    outline::{Outline, one_line},
};

/// Names under which a record keeps its title, in order of preference.
const TITLES: [&str; 5] = ["title", "heading", "headline", "name", "subject"];
/// Names under which a record keeps its running text, in order of preference.
const TEXTS: [&str; 4] = ["text", "content", "body", "description"];
/// `serde_json` refuses to go deeper than this, levels.
const LIBRARY_DEPTH: u32 = 127;

/// Reads one JSON value.
pub(super) fn read(text: &str, depth: u32, outline: &mut Outline) -> Result<(), ParseError> {
    let value = value(text, 1, depth)?;
    match value {
        Value::Array(members) => list("", &members, outline),
        Value::Object(fields) => {
            if let Some(title) = word(&fields, &TITLES) {
                outline.title(title.1);
            }
            // Lists of objects are the document's records; the rest describes it and comes first.
            let (lists, rest): (Vec<_>, Vec<_>) =
                fields.into_iter().partition(|(_, value)| is_list_of_objects(value));
            record(&rest.into_iter().collect(), 1, outline)?;
            for (name, value) in &lists {
                if let Value::Array(members) = value {
                    list(name, members, outline)?;
                }
            }
            Ok(())
        }
        other => leaves("", &other, outline),
    }
}

/// Reads one JSON value a line, each its own section. Blank lines are passed over.
pub(super) fn read_lines(text: &str, depth: u32, outline: &mut Outline) -> Result<(), ParseError> {
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        member("", index, &value(line, index as u64 + 1, depth)?, outline)?;
    }
    Ok(())
}

fn value(text: &str, first_line: u64, limit: u32) -> Result<Value, ParseError> {
    let limit = limit.min(LIBRARY_DEPTH);
    // The library's own error for depth has no kind of its own, so nesting is measured first.
    if deeper_than(text, limit) {
        return Err(ParseError::TooDeep { limit });
    }
    serde_json::from_str(text).map_err(|e| {
        ParseError::damaged(Damage::Json {
            line: first_line + (e.line() as u64).saturating_sub(1),
            column: e.column() as u64,
        })
    })
}

/// Whether brackets outside strings nest deeper than `limit`.
fn deeper_than(text: &str, limit: u32) -> bool {
    let (mut depth, mut quoted, mut escaped) = (0_u32, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

fn is_list_of_objects(value: &Value) -> bool {
    matches!(value, Value::Array(members) if !members.is_empty() && members.iter().all(Value::is_object))
}

fn list(name: &str, members: &[Value], outline: &mut Outline) -> Result<(), ParseError> {
    if !members.iter().any(Value::is_object) {
        return leaves(name, &Value::Array(members.to_vec()), outline);
    }
    members.iter().enumerate().try_for_each(|(index, value)| member(name, index, value, outline))
}

fn member(name: &str, index: usize, value: &Value, outline: &mut Outline) -> Result<(), ParseError> {
    match value {
        Value::Object(fields) if word(fields, &TITLES).is_some() => record(fields, 2, outline),
        Value::Object(fields) => {
            if name.is_empty() {
                outline.untitled()?;
            } else {
                outline.heading(2, &format!("{name} {}", index + 1))?;
            }
            record(fields, 2, outline)
        }
        other => {
            outline.untitled()?;
            leaves("", other, outline)
        }
    }
}

/// An object: its title as heading, its running text, then all its other fields.
fn record(fields: &Map<String, Value>, level: u8, outline: &mut Outline) -> Result<(), ParseError> {
    let title = word(fields, &TITLES);
    let text = word(fields, &TEXTS);
    if let Some((_, title)) = title {
        outline.heading(level, title)?;
    }
    if let Some((_, text)) = text {
        outline.paragraph(text)?;
    }
    for (name, value) in fields {
        let told = [title, text].into_iter().flatten().any(|(told, _)| told == name);
        if !told {
            leaves(name, value, outline)?;
        }
    }
    Ok(())
}

fn word<'a>(fields: &'a Map<String, Value>, names: &[&'a str]) -> Option<(&'a str, &'a str)> {
    names.iter().find_map(|name| {
        let word = fields.get(*name)?.as_str()?;
        (!word.trim().is_empty()).then_some((*name, word))
    })
}

/// Every leaf under `value` as a line. Recursion is bounded by the depth the reader allowed.
fn leaves(path: &str, value: &Value, outline: &mut Outline) -> Result<(), ParseError> {
    match value {
        Value::Null => Ok(()),
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            leaves(&path, value, outline)
        }),
        Value::Array(members) if members.iter().all(|m| scalar(m).is_some()) => {
            let words: Vec<String> =
                members.iter().filter_map(scalar).filter(|word| !word.is_empty()).collect();
            labelled(path, &words.join(", "), outline)
        }
        Value::Array(members) => members
            .iter()
            .enumerate()
            .try_for_each(|(index, value)| leaves(&format!("{path}[{}]", index + 1), value, outline)),
        Value::String(text) if text.contains('\n') => {
            if !path.is_empty() {
                outline.line(&format!("{path}:"))?;
            }
            outline.paragraph(text)
        }
        other => labelled(path, &scalar(other).unwrap_or_default(), outline),
    }
}

fn labelled(path: &str, word: &str, outline: &mut Outline) -> Result<(), ParseError> {
    if word.trim().is_empty() {
        return Ok(());
    }
    if path.is_empty() { outline.line(word) } else { outline.line(&format!("{}: {word}", one_line(path))) }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) if !text.contains('\n') => Some(text.clone()),
        _ => None,
    }
}
