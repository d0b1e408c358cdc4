//! A value as it is kept: a line that says under which key, then the value itself.

use std::str;

use uuid::Uuid;

use super::CacheKey;
use crate::store::error::ErrorKind;

/// The line: tenant, namespace, history, kind, hash of the rest.
fn line(key: &CacheKey) -> String {
    let rest = hex::encode(key.rest);
    format!("{} {} {} {} {rest}\n", key.tenant, key.namespace, key.seq.0, key.kind.name())
}

/// A value with whose it is.
pub(in crate::store) fn wrap(key: &CacheKey, value: &[u8]) -> Vec<u8> {
    [line(key).as_bytes(), value].concat()
}

/// The value, when it is this key's.
///
/// # Errors
/// `Foreign` when it says that it is another tenant's or namespace's, else `Damaged`; with words for the log.
pub(in crate::store) fn unwrap<'v>(
    key: &CacheKey,
    kept: &'v [u8],
) -> Result<&'v [u8], (ErrorKind, &'static str)> {
    if let Some(value) = kept.strip_prefix(line(key).as_bytes()) {
        return Ok(value);
    }
    let said = kept.split(|byte| *byte == b'\n').next().and_then(|line| str::from_utf8(line).ok());
    let mut ids = said.unwrap_or_default().split(' ').map(Uuid::parse_str);
    match (ids.next(), ids.next()) {
        (Some(Ok(tenant)), _) if tenant != key.tenant.0 => {
            Err((ErrorKind::Foreign, "another tenant's value"))
        }
        (Some(Ok(_)), Some(Ok(namespace))) if namespace != key.namespace => {
            Err((ErrorKind::Foreign, "another namespace's value"))
        }
        _ => Err((ErrorKind::Damaged, "a value of another key")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Epoch;
    use super::*;
    use crate::domain::ids::{NamespaceId, TenantId};

    fn key(tenant: u128, namespace: u128, seq: i64, rest: &str) -> CacheKey {
        let (tenant, namespace) =
            (TenantId(Uuid::from_u128(tenant)), NamespaceId(Uuid::from_u128(namespace)));
        CacheKey::answer(&Epoch::for_laboratory(tenant, namespace, seq), &[rest.as_bytes()])
    }

    #[test]
    fn a_value_is_read_by_its_own_key_alone() {
        let own = key(1, 1, 1, "a");
        for value in [&b""[..], b"\n", b"words\nof\0two lines"] {
            assert_eq!(unwrap(&own, &wrap(&own, value)), Ok(value));
        }
        let kind =
            |other: &CacheKey| unwrap(&own, &wrap(other, b"words")).map(drop).map_err(|(kind, _)| kind);
        assert_eq!(kind(&key(2, 1, 1, "a")), Err(ErrorKind::Foreign));
        assert_eq!(kind(&key(1, 2, 1, "a")), Err(ErrorKind::Foreign));
        assert_eq!(kind(&key(1, 1, 2, "a")), Err(ErrorKind::Damaged));
        assert_eq!(kind(&key(1, 1, 1, "b")), Err(ErrorKind::Damaged));
    }

    #[test]
    fn what_is_no_value_is_damaged() {
        let own = key(1, 1, 1, "a");
        for kept in [&b""[..], b"\n", b"words", b"\xff\xfe", b"1 2 3 4 5\n", line(&own).trim_end().as_bytes()]
        {
            assert_eq!(unwrap(&own, kept).map_err(|(kind, _)| kind), Err(ErrorKind::Damaged), "{kept:?}");
        }
    }
}
