//! JSON bodies, parsed at the door: size, time, media type, encoding, form, then each field's own rule.
//!
//! **Invariant:** a body that names a tenant is refused, whatever else it holds.
//! **Invariant:** an error repeats at most a short value that the caller sent, never a long text.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;

use actix_web::dev::Payload;
use actix_web::http::header;
use actix_web::{FromRequest, HttpMessage, HttpRequest};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::identity::{Identity, gate, state};
use super::problem::{FieldError, Kind, Problem};
use super::state::App;
use super::watch::still_let_in;

/// Names by which a body or a document's metadata would name a tenant.
const TENANT_NAMES: [&str; 8] = [
    "tenant",
    "tenant_id",
    "tenantid",
    "tenant_slug",
    "tenant_name",
    "x_tenant_id",
    "x-tenant-id",
    "bulkhead_tenant",
];
/// The longest text that an error repeats, bytes.
const MAX_INPUT: usize = 100;

/// Rules that a type's form cannot say.
pub trait Check {
    /// Adds what is wrong to `faults`.
    fn check(&self, faults: &mut Faults);
}

/// What is wrong with a request's fields.
#[derive(Debug, Default)]
pub struct Faults(Vec<FieldError>);

impl Faults {
    /// Adds a fault of a field of the body.
    pub fn body(
        &mut self,
        rule: &'static str,
        path: &[Value],
        msg: impl Into<String>,
        input: &Value,
        ctx: Option<Value>,
    ) {
        let mut loc = vec![json!("body")];
        loc.extend_from_slice(path);
        self.0.push(FieldError { rule, loc, msg: msg.into(), input: short(input), ctx });
    }

    /// A text of `min` to `max` characters.
    pub fn text(&mut self, name: &str, text: &str, min: usize, max: usize) {
        self.text_at(&[json!(name)], text, min, max);
    }

    /// As [`Faults::text`], for a text further in.
    pub fn text_at(&mut self, path: &[Value], text: &str, min: usize, max: usize) {
        let length = text.chars().count();
        let input = Value::from(if text.len() > MAX_INPUT { "" } else { text });
        if length < min {
            let (s, ctx) = (if min == 1 { "" } else { "s" }, json!({"min_length": min}));
            self.body(
                "string_too_short",
                path,
                format!("String should have at least {min} character{s}"),
                &input,
                Some(ctx),
            );
        } else if length > max {
            let ctx = json!({"max_length": max});
            self.body(
                "string_too_long",
                path,
                format!("String should have at most {max} characters"),
                &input,
                Some(ctx),
            );
        }
    }

    /// A number of `min` to `max`.
    pub fn number(&mut self, name: &str, number: i64, min: i64, max: i64) {
        let path = [json!(name)];
        if number < min {
            let msg = format!("Input should be greater than or equal to {min}");
            self.body("greater_than_equal", &path, msg, &json!(number), Some(json!({"ge": min})));
        } else if number > max {
            let msg = format!("Input should be less than or equal to {max}");
            self.body("less_than_equal", &path, msg, &json!(number), Some(json!({"le": max})));
        }
    }

    /// A list of `min` to `max` items.
    pub fn list(&mut self, name: &str, length: usize, min: usize, max: usize) {
        let path = [json!(name)];
        if length < min {
            let msg = format!("List should have at least {min} item after validation, not {length}");
            self.body(
                "too_short",
                &path,
                msg,
                &json!([]),
                Some(json!({"min_length": min, "actual_length": length})),
            );
        } else if length > max {
            let msg = format!("List should have at most {max} items after validation, not {length}");
            self.body(
                "too_long",
                &path,
                msg,
                &json!([]),
                Some(json!({"max_length": max, "actual_length": length})),
            );
        }
    }

    /// A value that breaks a rule of ours.
    pub fn value(&mut self, name: &str, msg: impl Into<String>) {
        self.body("value_error", &[json!(name)], msg, &Value::Null, None);
    }

    /// Nothing, or the problem.
    ///
    /// # Errors
    /// 422 with every fault.
    pub fn end(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::invalid(self.0)) }
    }
}

/// What is repeated of a value.
fn short(value: &Value) -> Value {
    match value {
        Value::String(text) if text.len() > MAX_INPUT => json!(""),
        Value::Array(_) => json!([]),
        Value::Object(_) => json!({}),
        other => other.clone(),
    }
}

/// How a body is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Whether the media type must be JSON.
    pub(super) media_type: bool,
}

/// A body of LightRAG's, OpenAI's or Ollama's surface: fields that are not known are ignored.
#[derive(Debug)]
pub struct ApiJson<T>(pub T);

/// A body of our own surface, whose type refuses unknown fields.
#[derive(Debug)]
pub struct StrictJson<T>(pub T);

/// A body that may come under any media type, as Ollama's clients send it.
#[derive(Debug)]
pub struct AnyJson<T>(pub T);

/// A body that is the parsed form and the bytes it was sent as.
pub(super) struct Body<T> {
    pub(super) value: T,
}

macro_rules! body_extractor {
    ($($name:ident, $media_type:literal;)*) => {$(
        impl<T> $name<T> {
            /// The body.
            pub fn into_inner(self) -> T {
                self.0
            }
        }

        impl<T> Deref for $name<T> {
            type Target = T;

            fn deref(&self) -> &T {
                &self.0
            }
        }

        impl<T> DerefMut for $name<T> {
            fn deref_mut(&mut self) -> &mut T {
                &mut self.0
            }
        }

        impl<T: DeserializeOwned + Check + 'static> FromRequest for $name<T> {
            type Error = Problem;
            type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

            fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
                let (request, payload) = (request.clone(), payload.take());
                Box::pin(async move {
                    let body = read(request, payload, Rules { media_type: $media_type }).await?;
                    Ok(Self(body.value))
                })
            }
        }
    )*};
}

body_extractor! {
    ApiJson, true;
    StrictJson, true;
    AnyJson, false;
}

/// Waits for the permit, then reads and parses a body.
async fn read<T: DeserializeOwned + Check>(
    request: HttpRequest,
    payload: Payload,
    rules: Rules,
) -> Result<Body<T>, Problem> {
    let identity = gate(&request)?.await?;
    let app = state(&request)?;
    if rules.media_type {
        require_json(&request)?;
    }
    let bytes = receive(&request, payload, &app, &identity).await?;
    // It may have been minutes in coming.
    if let Identity::Tenant(caller) = &identity {
        still_let_in(&app, caller).await?;
    }
    Ok(Body { value: parse(&bytes)? })
}

fn require_json(request: &HttpRequest) -> Result<(), Problem> {
    let wrong = || Problem::new(Kind::UnsupportedMediaType);
    let media_type = request.mime_type().map_err(|_| wrong())?.ok_or_else(wrong)?;
    let json = media_type.subtype() == "json" || media_type.suffix().is_some_and(|suffix| suffix == "json");
    let utf8 =
        media_type.get_param("charset").is_none_or(|charset| charset.as_str().eq_ignore_ascii_case("utf-8"));
    if json && utf8 { Ok(()) } else { Err(wrong()) }
}

/// The whole body, unless it is too large or too slow.
async fn receive(
    request: &HttpRequest,
    mut payload: Payload,
    app: &App,
    identity: &Identity,
) -> Result<Bytes, Problem> {
    let limits = &app.limits;
    // Operators are few.
    let mut buffer = match identity {
        Identity::Tenant(caller) => Some(app.meters.buffer(caller.scope().tenant())),
        Identity::Operator(..) => None,
    };
    let most = limits.max_json_bytes;
    let too_large =
        || Problem::new(Kind::TooLarge).saying(format!("A body of this route has at most {most} bytes."));
    let headers = request.headers();
    let stated =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if stated.is_some_and(|length| length > most) {
        return Err(too_large());
    }
    if headers.contains_key(header::CONTENT_ENCODING) {
        let detail = "Send the body without a content encoding.";
        return Err(Problem::new(Kind::UnsupportedMediaType).saying(detail));
    }
    let begun = tokio::time::Instant::now();
    let mut body = BytesMut::with_capacity(stated.unwrap_or(0).min(64 * 1024));
    loop {
        let piece = tokio::time::timeout_at(begun + limits.body_time(body.len()), payload.next());
        let Some(piece) = piece.await.map_err(|_| Problem::new(Kind::RequestTimeout))? else {
            // Held until the request is answered.
            if let Some(buffer) = buffer {
                request.extensions_mut().insert(buffer);
            }
            return Ok(body.freeze());
        };
        let piece = piece.map_err(|error| {
            let broken = Problem::new(Kind::BadRequest).saying("The body ended before it was whole.");
            broken.because(error.to_string())
        })?;
        if body.len() + piece.len() > most {
            return Err(too_large());
        }
        if buffer.as_mut().is_some_and(|buffer| !buffer.grow(piece.len())) {
            return Err(no_memory());
        }
        body.extend_from_slice(&piece);
    }
}

/// Too much is held in memory already.
pub(super) fn no_memory() -> Problem {
    Problem::new(Kind::RateLimited).saying("Too much is being received at once; try again in a moment.")
}

/// Parses a body and checks every rule that is the same for all bodies, then the type's own.
pub(super) fn parse<T: DeserializeOwned + Check>(bytes: &[u8]) -> Result<T, Problem> {
    let mut faults = Faults::default();
    let Ok(text) = std::str::from_utf8(bytes) else {
        faults.body("json_invalid", &[json!(0)], "The body is not UTF-8", &json!({}), None);
        return Err(Problem::invalid(faults.0));
    };
    let value: Value = serde_json::from_str(text).map_err(|error| {
        let mut faults = Faults::default();
        let place = [json!(offset(text, error.line(), error.column()))];
        let ctx = json!({"error": "not JSON, or nested too deeply"});
        faults.body("json_invalid", &place, "JSON decode error", &json!({}), Some(ctx));
        Problem::invalid(faults.0)
    })?;
    if let Some(name) = value.as_object().and_then(tenant_named) {
        faults.body(
            "extra_forbidden",
            &[json!(name)],
            "The tenant comes from the credential alone",
            &json!({}),
            None,
        );
    }
    no_nul(&value, &mut Vec::new(), &mut faults);
    faults.end()?;
    let parsed: T = serde_path_to_error::deserialize(&value).map_err(|error| wrong_form(&value, &error))?;
    let mut faults = Faults::default();
    parsed.check(&mut faults);
    faults.end()?;
    Ok(parsed)
}

fn offset(text: &str, line: usize, column: usize) -> usize {
    text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum::<usize>()
        + column.saturating_sub(1)
}

/// The field that names a tenant, if there is one.
pub(super) fn tenant_named(object: &Map<String, Value>) -> Option<&str> {
    object
        .keys()
        .map(String::as_str)
        .find(|name| TENANT_NAMES.contains(&name.trim().to_ascii_lowercase().as_str()))
}

/// A NUL character can be in JSON and cannot be in a text of PostgreSQL.
fn no_nul(value: &Value, path: &mut Vec<Value>, faults: &mut Faults) {
    let nul = |text: &str| text.contains('\0');
    match value {
        Value::String(text) if nul(text) => {
            faults.body("string_nul", path, "A text has no NUL character", &Value::Null, None);
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                path.push(json!(at));
                no_nul(item, path, faults);
                path.pop();
            }
        }
        Value::Object(fields) => {
            for (name, item) in fields {
                if nul(name) {
                    faults.body("string_nul", path, "A name has no NUL character", &Value::Null, None);
                }
                path.push(json!(name));
                no_nul(item, path, faults);
                path.pop();
            }
        }
        _ => {}
    }
}

/// What a type refused, in the words that LightRAG's clients read.
fn wrong_form(value: &Value, error: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    use serde_path_to_error::Segment;
    let mut path: Vec<Value> = error
        .path()
        .iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(json!(index)),
            Segment::Map { key } => Some(json!(key)),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect();
    let input = path.iter().try_fold(value, |value, part| match part {
        Value::String(name) => value.get(name),
        part => value.get(usize::try_from(part.as_u64()?).ok()?),
    });
    let input = input.cloned().unwrap_or(Value::Null);
    let message = error.inner().to_string();
    let quoted = |prefix: &str| Some(message.strip_prefix(prefix)?.split('`').next()?.to_owned());
    let mut faults = Faults::default();
    if let Some(name) = quoted("missing field `") {
        path.push(json!(name));
        faults.body("missing", &path, "Field required", &input, None);
    } else if let Some(name) = quoted("unknown field `") {
        if path.last() != Some(&json!(name)) {
            path.push(json!(name));
        }
        faults.body("extra_forbidden", &path, "Extra inputs are not permitted", &Value::Null, None);
    } else if let Some(expected) =
        message.strip_prefix("unknown variant `").and_then(|rest| rest.split_once("expected "))
    {
        let expected = expected.1.replace('`', "'");
        faults.body(
            "enum",
            &path,
            format!("Input should be {expected}"),
            &input,
            Some(json!({"expected": expected})),
        );
    } else {
        let rule = match message.rsplit_once("expected ").map(|(_, expected)| expected) {
            Some(expected) if expected.starts_with("a string") || expected.starts_with("string") => {
                "string_type"
            }
            Some(expected) if expected.starts_with("a sequence") => "list_type",
            Some(expected) if expected.starts_with("a boolean") => "bool_type",
            Some(expected) if expected.starts_with('i') || expected.starts_with('u') => "int_type",
            Some(expected) if expected.starts_with("struct") || expected.starts_with("a map") => {
                "model_attributes_type"
            }
            _ => "value_error",
        };
        let msg = match rule {
            "string_type" => "Input should be a valid string",
            "list_type" => "Input should be a valid list",
            "bool_type" => "Input should be a valid boolean",
            "int_type" => "Input should be a valid integer",
            "model_attributes_type" => "Input should be a valid object",
            _ => "Input is not allowed here",
        };
        faults.body(rule, &path, msg, &input, None);
    }
    Problem::invalid(faults.0)
}

#[cfg(test)]
mod tests;
