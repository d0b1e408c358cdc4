//! What is configured about limits: those of a tenant unless others were set for it, and those of an address.
//!
//! **Invariant:** no limit of a tenant depends on what another does.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::scope::TenantScope;
use crate::domain::limits::{Limits, TABLE};

/// Where requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitBackend {
    /// In this process: each server has the limits for itself.
    Memory,
    /// In Redis: all servers over it have them together.
    Redis,
}

impl LimitBackend {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "in process",
            Self::Redis => "Redis",
        }
    }
}

/// Limits of the deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Of every tenant for which no others were set.
    pub tenant: Limits,
    /// Requests of one address in a minute, whoever sends them, before a credential is looked at.
    pub address_requests_per_minute: u32,
    /// Of these, how many may be refused for their credential; beyond, a refusal is 429 and is not recorded.
    pub address_refusals_per_minute: u32,
    /// How long a question waits for its place, milliseconds; then 429.
    pub query_wait_ms: u64,
    /// Tenants, principals and addresses whose requests are remembered, each.
    pub remembered: u64,
    /// Where requests are counted.
    pub backend: LimitBackend,
    /// The share of each limit of requests that a server counts against by itself while Redis does not answer.
    pub local_share: f64,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            tenant: Limits::default(),
            address_requests_per_minute: 60_000,
            address_refusals_per_minute: 300,
            query_wait_ms: 5000,
            remembered: 100_000,
            backend: LimitBackend::Memory,
            local_share: 0.25,
        }
    }
}

impl LimitSettings {
    /// What a caller's tenant may use.
    #[must_use]
    pub fn of(&self, scope: &TenantScope) -> Limits {
        self.tenant.with(scope.limits())
    }

    /// How long a question waits for its place.
    #[must_use]
    pub fn query_wait(&self) -> Duration {
        Duration::from_millis(self.query_wait_ms)
    }

    /// All faults, as sentences for the person who wrote the configuration. Empty: none.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let stated = self.tenant.named();
        let mut faults: Vec<String> = std::iter::zip(TABLE, stated)
            .filter(|((_, least, most), (_, value))| !(least..=most).contains(&value))
            .map(|((name, least, most), _)| format!("limits.tenant.{name}: {least} to {most}"))
            .collect();
        let positive = [
            ("address_requests_per_minute", u64::from(self.address_requests_per_minute)),
            ("address_refusals_per_minute", u64::from(self.address_refusals_per_minute)),
            ("remembered", self.remembered),
        ];
        let none = positive.iter().filter(|(_, number)| *number == 0);
        faults.extend(none.map(|(name, _)| format!("limits.{name}: more than 0")));
        if !(self.local_share > 0.0 && self.local_share <= 1.0) {
            faults.push("limits.local_share: more than 0, at most 1".to_owned());
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_told_with_its_name() {
        let tenant = Limits { requests_per_minute: 0, ..Limits::default() };
        let settings =
            LimitSettings { tenant, remembered: 0, local_share: f64::NAN, ..LimitSettings::default() };
        let faults = settings.validate();
        assert!(faults[0].starts_with("limits.tenant.requests_per_minute: 1 to "), "{faults:?}");
        let others = ["limits.remembered: more than 0", "limits.local_share: more than 0, at most 1"];
        assert_eq!(faults[1..], others);
        assert_eq!(LimitSettings::default().validate(), Vec::<String>::new());
    }
}
