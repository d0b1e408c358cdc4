//! Entry points of the fuzzers, in laboratory builds alone: what is promised about any body.
//!
//! **Invariant:** nothing here is reached by a request.

use serde_json::Value;

use super::chat;
use super::documents::{DeleteRequest, PageRequest, PutRequest, TextRequest, TextsRequest};
use super::json::{Check, parse};
use super::ollama::{ChatRequest, GenerateRequest};
use super::openai::CompletionRequest;
use super::query::QueryRequest;
use super::query::usual;
use crate::inference::Message;

/// The longest value that a problem repeats, bytes of JSON: the bound of `json` on a text, escaped.
const REPEATED_BYTES: usize = 700;

/// Bodies of questions; the first byte chooses the operation.
///
/// # Panics
/// When a refusal repeats a long text of the body.
pub fn questions(data: &[u8]) {
    let Some((first, body)) = data.split_first() else { return };
    match first % 4 {
        0 => {
            if let Some(request) = read::<QueryRequest>(body) {
                let _asked = request.asked(&usual::settings());
            }
        }
        1 => drop(read::<ChatRequest>(body)),
        2 => drop(read::<GenerateRequest>(body)),
        _ => drop(read::<CompletionRequest>(body)),
    }
}

/// The last message of a conversation, whose beginning may choose how it is answered.
///
/// # Panics
/// When what is asked is no part of what was said.
pub fn messages(data: &[u8]) {
    let content = String::from_utf8_lossy(data).into_owned();
    let message = Message { role: "user".to_owned(), content: content.clone() };
    if let Ok(turn) = chat::turn(vec![message], true, &usual::settings()) {
        assert!(content.contains(&turn.asked.text), "{:?} was not said", turn.asked.text);
    }
}

/// Bodies about documents; the first byte chooses the operation.
///
/// # Panics
/// When a refusal repeats a long text of the body.
pub fn documents(data: &[u8]) {
    let Some((first, body)) = data.split_first() else { return };
    match first % 5 {
        0 => drop(read::<TextRequest>(body)),
        1 => drop(read::<TextsRequest>(body)),
        2 => drop(read::<PutRequest>(body)),
        3 => drop(read::<PageRequest>(body)),
        _ => drop(read::<DeleteRequest>(body)),
    }
}

fn read<T: serde::de::DeserializeOwned + Check>(body: &[u8]) -> Option<T> {
    match parse(body) {
        Ok(request) => Some(request),
        Err(problem) => {
            assert!(problem.status().is_client_error(), "{}", problem.status());
            for field in problem.fields() {
                let repeated = Value::to_string(&field.input);
                assert!(repeated.len() <= REPEATED_BYTES, "{} bytes are repeated", repeated.len());
            }
            None
        }
    }
}
