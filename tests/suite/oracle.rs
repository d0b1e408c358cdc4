//! Whether a text is in what a caller got, in any writing: as it is, in either case, behind the escapes of JSON,
//! addresses and HTML, in base64 or hexadecimal, or cut into the pieces of a stream.

use std::collections::HashSet;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use regex::Regex;
use serde_json::Value;

/// How often what was unwrapped is unwrapped again.
const DEPTH: usize = 3;
/// The shortest text that is looked for as an encoded one.
const SHORTEST_RUN: usize = 12;

static LENIENT: LazyLock<GeneralPurpose> = LazyLock::new(|| {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(&STANDARD, config)
});
static BASE64: LazyLock<Regex> = LazyLock::new(|| Regex::new("[A-Za-z0-9+/_-]{12,}").expect("a pattern"));
static HEX: LazyLock<Regex> = LazyLock::new(|| Regex::new("(?:[0-9a-fA-F]{2}){12,}").expect("a pattern"));
static ENTITY: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("&#(?:x([0-9a-fA-F]{1,6})|([0-9]{1,7}));").expect("a pattern"));
static UNICODE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\\u(?:\{([0-9a-fA-F]{1,6})\}|([0-9a-fA-F]{4}))").expect("a pattern"));

/// What a caller got, in every writing that it can be read in.
pub struct Oracle(Vec<String>);

impl Oracle {
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        let mut seen = HashSet::new();
        let mut found: Vec<String> = Vec::new();
        let mut fresh = vec![String::from_utf8_lossy(bytes.as_ref()).into_owned()];
        for _ in 0..=DEPTH {
            fresh.retain(|text| !text.is_empty() && seen.insert(text.clone()));
            let unwrapped = fresh.iter().flat_map(|text| unwrapped(text)).collect();
            found.extend(fresh.into_iter().map(|text| text.to_lowercase()));
            fresh = unwrapped;
        }
        Self(found)
    }

    /// Whether the text is in it.
    pub fn finds(&self, canary: &str) -> bool {
        let canary = canary.to_lowercase();
        self.0.iter().any(|text| text.contains(&canary))
    }
}

/// A text once more, each time with one wrapping taken off; those that change nothing are left out.
fn unwrapped(text: &str) -> Vec<String> {
    let mut forms =
        vec![without_json_escapes(text), without_percent(text), without_entities(text), joined(text)];
    forms.extend((0..4).map(|skipped| from_base64(text, skipped)));
    forms.push(from_hex(text));
    forms.retain(|form| form != text);
    forms
}

fn without_json_escapes(text: &str) -> String {
    if !text.contains('\\') {
        return String::new();
    }
    let text = UNICODE.replace_all(text, |found: &regex::Captures<'_>| {
        let digits = found.get(1).or(found.get(2)).map_or("", |digits| digits.as_str());
        character(u32::from_str_radix(digits, 16).ok())
    });
    let plain = [("\\n", "\n"), ("\\t", "\t"), ("\\r", "\r"), ("\\/", "/"), ("\\\"", "\""), ("\\\\", "\\")];
    plain.iter().fold(text.into_owned(), |text, (escape, meant)| text.replace(escape, meant))
}

fn character(number: Option<u32>) -> String {
    number.and_then(char::from_u32).map(String::from).unwrap_or_default()
}

fn without_percent(text: &str) -> String {
    if !text.contains(['%', '+']) {
        return String::new();
    }
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut plain, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                plain.push(u8::try_from(high * 16 + low).expect("two digits"));
                at += 2;
            }
            (b'+', ..) => plain.push(b' '),
            (byte, ..) => plain.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn without_entities(text: &str) -> String {
    if !text.contains('&') {
        return String::new();
    }
    let text = ENTITY.replace_all(text, |found: &regex::Captures<'_>| {
        let hexadecimal = found.get(1).and_then(|digits| u32::from_str_radix(digits.as_str(), 16).ok());
        character(hexadecimal.or_else(|| found.get(2)?.as_str().parse().ok()))
    });
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    named.iter().fold(text.into_owned(), |text, (entity, meant)| text.replace(entity, meant))
}

/// Every run that can be base64, read from its first, second, third or fourth letter on.
fn from_base64(text: &str, skipped: usize) -> String {
    let runs = BASE64.find_iter(text).filter_map(|run| {
        let run = run.as_str().replace('-', "+").replace('_', "/");
        let run = run.get(skipped..).filter(|run| run.len() >= SHORTEST_RUN)?;
        readable(&LENIENT.decode(&run[..run.len() / 4 * 4 + [0, 0, 2, 3][run.len() % 4]]).ok()?)
    });
    runs.collect::<Vec<_>>().join("\n")
}

fn from_hex(text: &str) -> String {
    let runs = HEX.find_iter(text).filter_map(|run| readable(&hex::decode(run.as_str()).ok()?));
    runs.collect::<Vec<_>>().join("\n")
}

/// Bytes as a text, unless they are noise.
fn readable(bytes: &[u8]) -> Option<String> {
    let printable = bytes.iter().filter(|byte| (b' '..=b'~').contains(*byte)).count();
    (printable * 5 >= bytes.len() * 4).then(|| String::from_utf8_lossy(bytes).into_owned())
}

/// The texts of a stream's lines one behind the other, as a client puts them together.
fn joined(text: &str) -> String {
    fn texts(value: &Value, all: &mut String) {
        match value {
            Value::String(text) => all.push_str(text),
            Value::Array(items) => items.iter().for_each(|item| texts(item, all)),
            Value::Object(fields) => fields.values().for_each(|value| texts(value, all)),
            _ => {}
        }
    }
    /// What of a line grows: the answer's next piece, whichever protocol it is in.
    fn piece(line: &Value) -> &Value {
        let places = ["/response", "/message/content", "/choices/0/delta/content"];
        places.iter().find_map(|place| line.pointer(place)).unwrap_or(line)
    }
    let mut all = String::new();
    for line in text.lines() {
        if let Ok(line) = serde_json::from_str::<Value>(line.strip_prefix("data: ").unwrap_or(line)) {
            texts(piece(&line), &mut all);
        }
    }
    all
}

/// Nothing of this is in what a caller got.
pub fn assert_without<'c>(bytes: impl AsRef<[u8]>, canaries: impl IntoIterator<Item = &'c str>, about: &str) {
    let oracle = Oracle::of(&bytes);
    for canary in canaries {
        assert!(!oracle.finds(canary), "{canary} in {about}: {}", String::from_utf8_lossy(bytes.as_ref()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "canary-of-bob-7f3a";

    fn seen(text: impl AsRef<[u8]>) -> bool {
        Oracle::of(text).finds(CANARY)
    }

    #[test]
    fn a_canary_is_found_in_every_writing() {
        let written = |one: &dyn Fn(u8) -> String| CANARY.bytes().map(one).collect::<Vec<_>>().concat();
        let percent = written(&|byte| format!("%{byte:02x}"));
        let unicode = written(&|byte| format!("\\u{byte:04X}"));
        let entities = written(&|byte| format!("&#x{byte:x};"));
        let decimal = written(&|byte| format!("&#{byte};"));
        let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        for wrapped in [
            CANARY.to_owned(),
            CANARY.to_uppercase(),
            format!("x{CANARY}y"),
            format!("a%20{percent}"),
            format!("q={}", percent.replace('%', "%25")),
            format!("{{\"a\": \"{unicode}\"}}"),
            serde_json::to_string(&serde_json::json!({"inner": format!("{{\"a\": \"{unicode}\"}}")}))
                .expect("JSON"),
            entities,
            decimal,
            hex::encode(CANARY),
            hex::encode_upper(format!("of {CANARY}")),
            LENIENT.encode(CANARY),
            url_safe.encode(format!("{{\"tenant\":\"{CANARY}\"}}")),
            // In the middle of something longer that is encoded as a whole, at any place.
            LENIENT.encode(format!("1{CANARY}")),
            LENIENT.encode(format!("12{CANARY}3")),
            format!("head.{}.tail", url_safe.encode(format!("{{\"sub\":\"{CANARY}\"}}"))),
            format!("zz{}", LENIENT.encode(CANARY)),
            LENIENT.encode(LENIENT.encode(CANARY)),
        ] {
            assert!(seen(&wrapped), "{wrapped}");
        }
    }

    #[test]
    fn a_canary_is_found_across_the_pieces_of_a_stream() {
        let (first, second) = CANARY.split_at(9);
        for (head, tail) in [
            (r#"{"response": ""#, r#""}"#),
            (r#"{"message": {"content": ""#, r#""}, "done": false}"#),
            (r#"data: {"id": "x", "choices": [{"delta": {"content": ""#, r#""}}], "model": "m"}"#),
        ] {
            let stream = format!("{head}so {first}{tail}\n\n{head}{second} it is{tail}\n");
            assert!(!stream.contains(CANARY));
            assert!(seen(&stream), "{stream}");
        }
    }

    #[test]
    fn a_canary_that_is_not_there_is_not_found() {
        let other = "canary-of-bob-7f3b";
        let all =
            [other.to_owned(), hex::encode(other), LENIENT.encode(other), "\\u0063anary %63".to_owned()];
        assert!(!seen(all.join(" ")));
        assert!(!seen(""));
    }
}
