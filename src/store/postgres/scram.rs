//! Makes the SCRAM-SHA-256 verifier that PostgreSQL keeps instead of a password (RFC 5802, RFC 7677).
//!
//! Computed here, so that `ALTER ROLE .. PASSWORD` carries the verifier: a server that logs its DDL
//! then never has a usable secret in its log.
//!
//! **Invariant:** a verifier lets nobody log in; only the secret it was made of does.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

/// Rounds of the key derivation. The least that RFC 7677 allows: the secrets are 256 random bits,
/// which no number of rounds makes harder to guess, and every new connection pays for them.
const ROUNDS: u32 = 4096;

/// The verifier of an ASCII `secret` in PostgreSQL's own form:
/// `SCRAM-SHA-256$<rounds>:<salt>$<stored key>:<server key>`.
#[must_use]
pub fn verifier(secret: &str, salt: [u8; 16]) -> String {
    let salted = derive(secret.as_bytes(), &salt, ROUNDS);
    let stored = Sha256::digest(keyed(&salted, &[b"Client Key"]));
    let server = keyed(&salted, &[b"Server Key"]);
    format!(
        "SCRAM-SHA-256${ROUNDS}:{}${}:{}",
        STANDARD.encode(salt),
        STANDARD.encode(stored),
        STANDARD.encode(server)
    )
}

/// PBKDF2 with HMAC-SHA-256 and one block of output, as RFC 5802 calls it `Hi`.
fn derive(secret: &[u8], salt: &[u8], rounds: u32) -> [u8; 32] {
    let mut block = keyed(secret, &[salt, &1_u32.to_be_bytes()]);
    let mut out = block;
    for _ in 1..rounds {
        block = keyed(secret, &[&block]);
        for (byte, more) in out.iter_mut().zip(block) {
            *byte ^= more;
        }
    }
    out
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange printed in RFC 7677, section 3: password `pencil`.
    #[test]
    fn the_keys_agree_with_the_example_of_the_standard() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("salt");
        let salted = derive(b"pencil", &salt, 4096);
        let exchange = b"n=user,r=rOprNGfwEbeRWgbNEkqO,\
            r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
            c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let signature = keyed(&keyed(&salted, &[b"Server Key"]), &[exchange]);
        assert_eq!(STANDARD.encode(signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn a_verifier_has_the_form_that_postgres_recognises() {
        let made = verifier("secret", [7; 16]);
        let (head, keys) = made.rsplit_once('$').expect("three parts");
        assert_eq!(head, "SCRAM-SHA-256$4096:BwcHBwcHBwcHBwcHBwcHBw==");
        assert_eq!(keys.split(':').map(str::len).collect::<Vec<_>>(), [44, 44]);
        assert!(!made.contains("secret"));
    }
}
