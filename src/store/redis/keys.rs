//! Names of keys: `bulkhead:{<tenant>}:<kind>:<keyed hash of the rest>`.
//!
//! The braces are Redis Cluster's hash tag: all keys of a tenant are in one slot, so that one script can use several.
//! What belongs to no tenant is below `bulkhead:address:`, without a tag, and spreads over all slots.
//!
//! **Invariant:** nothing of a principal or an address is in a key but its hash.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::domain::ids::TenantId;
use crate::store::rate_limit::RateKey;

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

    fn of_tenant(&self, tenant: TenantId, kind: &'static str, rest: &[u8]) -> Key {
        let hash = self.hash(kind, rest);
        Key {
            name: format!("bulkhead:{{{tenant}}}:{kind}:{hash}"),
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
