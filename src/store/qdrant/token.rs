//! Tokens for one collection (JWT, RFC 7519, HS256 by the API key; the claims are Qdrant's).
//!
//! **Invariant:** a token without `access` may do everything in Qdrant. What is signed here is one type that has it:
//! exactly one collection, read or write, for five minutes at most. Nothing else in the program signs with the key.

use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use super::name::CollectionName;

/// The longest that a token may live, seconds.
pub(super) const LONGEST_LIFE_SECONDS: u64 = 300;

/// What a token allows on its collection's points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Access {
    /// To search and to read: for queries.
    Read,
    /// To write as well: for projection.
    Write,
}

#[derive(Serialize)]
struct Grant<'a> {
    collection: &'a str,
    access: &'static str,
}

#[derive(Serialize)]
struct Claims<'a> {
    exp: i64,
    access: [Grant<'a>; 1],
}

/// A signed token.
#[derive(Debug)]
pub(super) struct Token {
    secret: SecretString,
    expires: DateTime<Utc>,
}

impl Token {
    /// As it is sent.
    pub(super) fn secret(&self) -> &SecretString {
        &self.secret
    }

    /// Until when it is valid.
    pub(super) fn expires(&self) -> DateTime<Utc> {
        self.expires
    }
}

/// Mints a token: one collection, one kind of access, `seconds` or the longest life, whichever is shorter.
///
/// # Errors
/// When it cannot be signed.
pub(super) fn mint(
    key: &SecretString,
    collection: &CollectionName,
    access: Access,
    now: DateTime<Utc>,
    seconds: u64,
) -> Result<Token, jsonwebtoken::errors::Error> {
    let life = i64::try_from(seconds.min(LONGEST_LIFE_SECONDS)).unwrap_or(0);
    let expires = now + chrono::Duration::seconds(life);
    let access = match access {
        Access::Read => "r",
        Access::Write => "rw",
    };
    let claims =
        Claims { exp: expires.timestamp(), access: [Grant { collection: collection.as_str(), access }] };
    let key = EncodingKey::from_secret(key.expose_secret().as_bytes());
    let secret = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)?;
    Ok(Token { secret: secret.into(), expires })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn claims(token: &Token) -> Value {
        let text = token.secret().expose_secret();
        let part = text.split('.').nth(1).expect("three parts");
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).expect("base64");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    proptest! {
        #[test]
        fn every_token_is_for_one_collection_and_five_minutes_at_most(
            digits in "[0-9a-f]{40}",
            is_write in any::<bool>(),
            now in 0_i64..4_000_000_000,
            seconds in any::<u64>(),
        ) {
            let name = CollectionName::parse(&format!("bulkhead-{digits}")).expect("a name");
            let now = DateTime::from_timestamp(now, 0).expect("a time");
            let access = if is_write { Access::Write } else { Access::Read };
            let token = mint(&"a key".to_owned().into(), &name, access, now, seconds).expect("minted");
            let expires = token.expires().timestamp();
            let access = if is_write { "rw" } else { "r" };
            let expected = json!({"exp": expires, "access": [{"collection": name.as_str(), "access": access}]});
            prop_assert_eq!(claims(&token), expected);
            prop_assert!((0..=300).contains(&(expires - now.timestamp())));
        }
    }
}
