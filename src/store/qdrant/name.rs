//! Names of collections: keyed hashes, so that a name tells nothing about its tenant and cannot be chosen by one.

use std::fmt;

use hmac::digest::Key;
use hmac::{Hmac, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::domain::ids::{ModelId, TenantId};

const PREFIX: &str = "bulkhead-";
/// Hexadecimal digits behind the prefix: 160 bits.
const DIGITS: usize = 40;

/// The name of a collection: `bulkhead-` and 40 of `0-9 a-f`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollectionName(String);

impl CollectionName {
    /// A name that was registered; `None` when it is not one of ours.
    #[must_use]
    pub fn parse(raw: &str) -> Option<Self> {
        let digits = raw.strip_prefix(PREFIX)?;
        let plain = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (digits.len() == DIGITS && digits.bytes().all(plain)).then(|| Self(raw.to_owned()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CollectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key of the deployment under which names are made. Names are kept in the registry: another key makes other new
/// names, and finds the old ones all the same.
#[derive(Clone)]
pub struct NameKey([u8; 32]);

impl fmt::Debug for NameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NameKey")
    }
}

impl NameKey {
    /// The key of this secret.
    #[must_use]
    pub fn new(secret: &SecretString) -> Self {
        Self(Sha256::digest(secret.expose_secret().as_bytes()).into())
    }

    /// The name of a new collection. `fresh` is drawn for it: a collection that is made anew does not have the name of
    /// the one before, so that what was late for that one finds nothing.
    #[must_use]
    pub fn name(&self, tenant: TenantId, model: &ModelId, fresh: Uuid) -> CollectionName {
        let mut mac = self.mac();
        // Of fixed width each but the last, so that no two inputs look the same.
        mac.update(b"bulkhead collection name v1\0");
        mac.update(tenant.0.as_bytes());
        mac.update(fresh.as_bytes());
        mac.update(model.as_str().as_bytes());
        named(mac)
    }

    /// The name of the collection of a model that tenants share. The same for all of them, and for good: it is never
    /// deleted.
    #[must_use]
    pub fn shared(&self, model: &ModelId) -> CollectionName {
        let mut mac = self.mac();
        mac.update(b"bulkhead shared collection v1\0");
        mac.update(model.as_str().as_bytes());
        named(mac)
    }

    fn mac(&self) -> Hmac<Sha256> {
        let mut key = Key::<Hmac<Sha256>>::default();
        key[..self.0.len()].copy_from_slice(&self.0);
        Hmac::<Sha256>::new(&key)
    }
}

fn named(mac: Hmac<Sha256>) -> CollectionName {
    let digits = hex::encode(mac.finalize().into_bytes());
    CollectionName(format!("{PREFIX}{}", &digits[..DIGITS]))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn model(bits: u64) -> ModelId {
        ModelId::parse(&format!("{bits:016x}")).expect("a model")
    }

    proptest! {
        #[test]
        fn different_tenants_and_models_have_different_names_of_one_alphabet_and_width(
            inputs in proptest::collection::hash_set((any::<u128>(), any::<u64>()), 2..40),
            key in ".*",
            fresh in any::<u128>(),
        ) {
            let key = NameKey::new(&key.into());
            let fresh = Uuid::from_u128(fresh);
            let name = |(tenant, bits): &(u128, u64)| key.name(TenantId(Uuid::from_u128(*tenant)), &model(*bits), fresh);
            let mut names: HashSet<CollectionName> = inputs.iter().map(name).collect();
            prop_assert_eq!(names.len(), inputs.len());
            let models: HashSet<u64> = inputs.iter().map(|(_, bits)| *bits).collect();
            names.extend(models.iter().map(|bits| key.shared(&model(*bits))));
            prop_assert_eq!(names.len(), inputs.len() + models.len());
            for name in &names {
                prop_assert_eq!(CollectionName::parse(name.as_str()), Some(name.clone()));
            }
        }

        #[test]
        fn only_names_of_ours_are_read(raw in ".*") {
            prop_assert_eq!(CollectionName::parse(&raw), None);
        }
    }

    #[test]
    fn a_name_depends_on_the_key_and_is_fresh_each_time() {
        let name = |key: &str, fresh: u128| {
            let key = NameKey::new(&key.to_owned().into());
            key.name(TenantId(Uuid::from_u128(1)), &model(7), Uuid::from_u128(fresh))
        };
        assert_eq!(name("a", 1), name("a", 1));
        assert_ne!(name("a", 1), name("b", 1));
        assert_ne!(name("a", 1), name("a", 2));
    }
}
