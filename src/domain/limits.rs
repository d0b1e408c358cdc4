//! What a tenant may use: requests, questions at once, documents, bytes, jobs that wait.
//!
//! **Invariant:** a stated limit lies between the least and the most of its row in [`TABLE`].

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The largest number that a limit can be.
const MOST: u64 = 1_000_000_000_000_000;

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $number:ty = $default:literal, $least:literal..=$most:expr;)*) => {
        /// The limits of one tenant.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct Limits {
            $($(#[$doc])* pub $name: $number,)*
        }

        /// Those that were set for one tenant; the others are the configuration's.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(default)]
        pub struct LimitOverrides {
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<$number>,)*
        }

        /// Name, least and most of each limit.
        pub const TABLE: &[(&str, u64, u64)] = &[$((stringify!($name), $least, $most),)*];

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl Limits {
            /// These, but for those that were set for a tenant.
            #[must_use]
            pub fn with(&self, set: &LimitOverrides) -> Self {
                Self { $($name: set.$name.unwrap_or(self.$name),)* }
            }

            /// Name and value of each.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), u64::from(self.$name)),)*]
            }
        }
    };
}

limits! {
    /// Requests in a minute. So many may come at once; then each comes back after its share of the minute.
    requests_per_minute: u32 = 1000, 1..=u32::MAX as u64;
    /// Of these, how many one key or token's subject may have; 0: all.
    principal_requests_per_minute: u32 = 0, 0..=u32::MAX as u64;
    /// Questions that are answered at the same time, by one server.
    concurrent_queries: u32 = 16, 1..=u32::MAX as u64;
    /// Questions that wait for one of these places.
    queued_queries: u32 = 64, 0..=u32::MAX as u64;
    /// Documents, in all namespaces and every state.
    documents: u64 = 1_000_000, 0..=MOST;
    /// Bytes of texts and files that are kept, every version of a document.
    bytes: u64 = 21_474_836_480, 0..=MOST;
    /// Jobs that wait or run.
    queued_jobs: u64 = 10_000, 0..=MOST;
}

/// The limit of this name.
#[must_use]
pub fn known(name: &str) -> Option<&'static str> {
    TABLE.iter().map(|(known, ..)| *known).find(|known| *known == name)
}

/// Checks that there is a limit of this name and that it can be this; null gives it back to the configuration.
///
/// # Errors
/// The rule that is broken, for people.
pub fn check(name: &str, value: &Value) -> Result<(), String> {
    let Some((_, least, most)) = TABLE.iter().find(|(known, ..)| *known == name) else {
        let known: Vec<&str> = TABLE.iter().map(|(known, ..)| *known).collect();
        return Err(format!("no such limit; there are {}", known.join(", ")));
    };
    let fits = value.is_null() || value.as_u64().is_some_and(|number| (*least..=*most).contains(&number));
    if fits { Ok(()) } else { Err(format!("a whole number of {least} to {most}, or null for the default")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_set_for_a_tenant_replaces_the_default_and_nothing_else() {
        let set = LimitOverrides { documents: Some(5), ..LimitOverrides::default() };
        let limits = Limits::default().with(&set);
        assert_eq!(limits, Limits { documents: 5, ..Limits::default() });
        assert_eq!(limits.named().len(), TABLE.len());
        assert_eq!(serde_json::to_value(set).expect("JSON"), json!({"documents": 5}));
    }

    #[test]
    fn a_limit_is_a_number_within_its_bounds_or_the_default() {
        for (name, value) in
            [("documents", json!(0)), ("requests_per_minute", json!(1)), ("bytes", json!(null))]
        {
            assert!(check(name, &value).is_ok(), "{name} {value}");
        }
        for (name, value) in [
            ("requests_per_minute", json!(0)),
            ("requests_per_minute", json!(u64::from(u32::MAX) + 1)),
            ("bytes", json!(MOST + 1)),
            ("bytes", json!(-1)),
            ("bytes", json!("1")),
            ("bytes", json!(1.5)),
            ("reason", json!(1)),
        ] {
            assert!(check(name, &value).is_err(), "{name} {value}");
        }
    }

    #[test]
    fn a_limit_that_this_server_does_not_know_is_left_out() {
        let stored = json!({"documents": 5, "of_a_later_version": 1});
        let set: LimitOverrides = serde_json::from_value(stored).expect("read");
        assert_eq!(set.documents, Some(5));
    }
}
