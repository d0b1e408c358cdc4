//! Names of keys: `bulkhead:{<tenant>}:<kind>:<keyed hash of the rest>`.
//!
//! The braces are Redis Cluster's hash tag: all keys of a tenant are in one slot, so that one script can use several.
//! What belongs to no tenant is below `bulkhead:address:`, without a tag, and spreads over all slots.
//!
//! **Invariant:** nothing of a principal, an address or a text is in a key but its hash.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::domain::ids::TenantId;
use crate::store::cache::CacheKey;
use crate::store::rate_limit::RateKey;

/// Bytes of the proof behind a value.
const PROOF: usize = 32;

/// Makes the names of keys, the same on all servers that have the same secret.
#[derive(Clone)]
pub(super) struct Keys(Hmac<Sha256>);

/// A key, and whose value it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) name: String,
    /// What the value repeats.
    pub(super) owner: String,
    pub(super) tenant: Option<TenantId>,
}

/// What the names of all keys of a tenant begin with, and of no other key.
pub(super) fn prefix(tenant: TenantId) -> String {
    format!("bulkhead:{{{tenant}}}:")
}

impl Keys {
    /// Names by this secret.
    pub(super) fn new(secret: &[u8; 32]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes a key of any length"))
    }

    /// The key of a limit's count.
    pub(super) fn rate(&self, key: &RateKey) -> Key {
        match key {
            RateKey::Tenant(tenant) => self.of_tenant(*tenant, "rate", b""),
            RateKey::Excess(tenant) => self.of_tenant(*tenant, "excess", b""),
            RateKey::Principal(tenant, principal) => {
                self.of_tenant(*tenant, "principal", principal.as_str().as_bytes())
            }
            RateKey::Address(address) => self.of_nobody("rate", address.to_string().as_bytes()),
            RateKey::Refused(address) => self.of_nobody("refused", address.to_string().as_bytes()),
        }
    }

    /// The key of something kept.
    pub(super) fn kept(&self, key: &CacheKey) -> Key {
        self.of_tenant(key.tenant(), key.kind().name(), &key.rest())
    }

    /// The key of the lock of something kept.
    pub(super) fn lock(&self, key: &CacheKey) -> Key {
        let rest = [key.kind().name().as_bytes(), &[0], &key.rest()].concat();
        self.of_tenant(key.tenant(), "lock", &rest)
    }

    /// A value with the proof that a server with this secret put it under this key.
    pub(super) fn seal(&self, key: &Key, mut value: Vec<u8>) -> Vec<u8> {
        let proof = self.proof(key, &value).finalize().into_bytes();
        value.extend_from_slice(&proof);
        value
    }

    /// The value of what was sealed, and whether its proof holds; `None` for what is too short to have one.
    pub(super) fn open<'v>(&self, key: &Key, sealed: &'v [u8]) -> Option<(&'v [u8], bool)> {
        let (value, proof) = sealed.split_at_checked(sealed.len().checked_sub(PROOF)?)?;
        Some((value, self.proof(key, value).verify_slice(proof).is_ok()))
    }

    fn proof(&self, key: &Key, value: &[u8]) -> Hmac<Sha256> {
        // No kind of key is called so.
        self.0.clone().chain_update("value:").chain_update(&key.name).chain_update([0]).chain_update(value)
    }

    fn of_tenant(&self, tenant: TenantId, kind: &'static str, rest: &[u8]) -> Key {
        let hash = self.hash(kind, rest);
        Key {
            name: format!("{}{kind}:{hash}", prefix(tenant)),
            owner: tenant.to_string(),
            tenant: Some(tenant),
        }
    }

    fn of_nobody(&self, kind: &'static str, rest: &[u8]) -> Key {
        let hash = self.hash(kind, rest);
        Key { name: format!("bulkhead:address:{kind}:{hash}"), owner: "address".to_owned(), tenant: None }
    }

    /// 128 bits, 32 hexadecimal digits.
    fn hash(&self, kind: &'static str, rest: &[u8]) -> String {
        let mac = self.0.clone().chain_update(kind).chain_update([0]).chain_update(rest);
        hex::encode(&mac.finalize().into_bytes()[..16])
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::tenancy::Principal;

    fn tenant(n: u128) -> TenantId {
        TenantId(Uuid::from_u128(n))
    }

    #[test]
    fn kinds_tenants_and_secrets_have_different_keys() {
        let address: IpAddr = "192.0.2.7".parse().expect("an address");
        let rates = [
            RateKey::Tenant(tenant(1)),
            RateKey::Excess(tenant(1)),
            RateKey::Principal(tenant(1), Principal::of_a_test("a")),
            RateKey::Tenant(tenant(2)),
            RateKey::Principal(tenant(2), Principal::of_a_test("a")),
            RateKey::Address(address),
            RateKey::Refused(address),
        ];
        let mut names = Vec::new();
        for secret in [[1; 32], [2; 32]] {
            names.extend(rates.iter().map(|rate| Keys::new(&secret).rate(rate).name));
        }
        names.sort();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(!names.iter().any(|name| name.contains("192.0.2.7")), "{names:?}");
    }

    #[test]
    fn a_value_opens_under_its_own_key_and_secret_alone() {
        let (keys, others) = (Keys::new(&[1; 32]), Keys::new(&[2; 32]));
        let key = |tenant_of| keys.rate(&RateKey::Tenant(tenant(tenant_of)));
        let sealed = keys.seal(&key(1), b"words".to_vec());
        assert_eq!(keys.open(&key(1), &sealed), Some((&b"words"[..], true)));
        assert_eq!(keys.open(&key(2), &sealed), Some((&b"words"[..], false)));
        assert_eq!(others.open(&key(1), &sealed), Some((&b"words"[..], false)));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(keys.open(&key(1), &changed).is_some_and(|(_, holds)| !holds), "{at}");
        }
        assert_eq!(keys.open(&key(1), &sealed[..PROOF - 1]), None);
    }

    proptest! {
        #[test]
        fn whatever_a_principal_is_called_its_key_is_of_fixed_width_below_its_tenant(subject in ".*") {
            let hostile = format!("{subject}:*?[{{}}\r\n");
            for subject in [subject, hostile] {
                let key = Keys::new(&[7; 32]).rate(&RateKey::Principal(tenant(1), Principal::of_a_test(&subject)));
                let prefix = format!("bulkhead:{{{}}}:principal:", tenant(1));
                let hash = key.name.strip_prefix(&prefix).expect("below its tenant");
                prop_assert!(hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
    }
}
