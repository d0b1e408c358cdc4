//! Durations in settings: numbers of seconds, whole or not. For `#[serde(with = ..)]`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de::Error};

#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Whole(u64),
    Fraction(f64),
    // Environment variables arrive as text.
    Text(String),
}

/// Writes a duration as seconds.
///
/// # Errors
/// The serializer's own.
pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(value.as_secs_f64())
}

/// Reads seconds, whole or not; environment variables arrive as text.
///
/// # Errors
/// When it is not a number, or negative.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let wrong = || D::Error::custom("a number of seconds, not negative");
    match Number::deserialize(from).map_err(|_| wrong())? {
        Number::Whole(whole) => Ok(Duration::from_secs(whole)),
        Number::Fraction(fraction) => Duration::try_from_secs_f64(fraction).map_err(|_| wrong()),
        Number::Text(text) => {
            text.parse().ok().and_then(|n| Duration::try_from_secs_f64(n).ok()).ok_or_else(wrong)
        }
    }
}
