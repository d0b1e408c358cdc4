//! Tenants side by side: who uses how much, and who far more than the others.
//!
//! **Invariant:** ids and numbers alone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::ids::TenantId;
use crate::store::postgres::usage::Usage;
use crate::telemetry::tenants::Recent;

/// What tenants share and are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Requests, lately.
    Requests,
    /// Requests answered with 4xx or 5xx, lately.
    Errors,
    /// Time that requests took together, lately.
    BusySeconds,
    /// Jobs that wait.
    QueuedJobs,
    /// Documents kept.
    Documents,
    /// Bytes kept.
    Bytes,
}

impl Resource {
    /// Every resource.
    pub const ALL: [Self; 6] =
        [Self::Requests, Self::Errors, Self::BusySeconds, Self::QueuedJobs, Self::Documents, Self::Bytes];

    /// Its name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Errors => "errors",
            Self::BusySeconds => "busy_seconds",
            Self::QueuedJobs => "queued_jobs",
            Self::Documents => "documents",
            Self::Bytes => "bytes",
        }
    }

    /// The resource of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.name() == name)
    }

    /// How much of it a tenant uses.
    #[expect(clippy::cast_precision_loss, reason = "compared, not counted")]
    fn of(self, tenant: &TenantMetrics) -> f64 {
        match self {
            Self::Requests => tenant.recent.requests as f64,
            Self::Errors => tenant.recent.errors as f64,
            Self::BusySeconds => tenant.recent.busy_seconds,
            Self::QueuedJobs => tenant.usage.queued_jobs as f64,
            Self::Documents => tenant.usage.documents as f64,
            Self::Bytes => tenant.usage.bytes as f64,
        }
    }
}

/// A tenant's numbers.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct TenantMetrics {
    /// The tenant.
    pub tenant_id: Uuid,
    /// What it keeps, and its queue, over all servers.
    #[serde(flatten)]
    #[schema(inline)]
    pub usage: Usage,
    /// What it asked of this server lately.
    pub recent: Recent,
    /// Of what it uses more than twice as much as half of the tenants do that use it at all.
    pub above_twice_the_median: Vec<Resource>,
}

impl TenantMetrics {
    /// A tenant that uses nothing.
    pub(super) fn idle(tenant: TenantId) -> Self {
        Self {
            tenant_id: tenant.0,
            usage: Usage::default(),
            recent: Recent::default(),
            above_twice_the_median: Vec::new(),
        }
    }
}

/// Tenants side by side.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Comparison {
    /// Each tenant that uses anything.
    pub tenants: Vec<TenantMetrics>,
    /// The median of each resource, over the tenants that use it at all.
    #[schema(value_type = Object)]
    pub medians: BTreeMap<Resource, f64>,
}

impl Comparison {
    /// The tenants that use the most of a resource, the first the most.
    #[must_use]
    pub fn top(mut self, by: Resource, limit: usize) -> Self {
        let bits = |tenant: &TenantMetrics| Reverse(by.of(tenant).to_bits());
        // Of numbers that are not negative, the bits have their order.
        self.tenants.sort_by_key(|tenant| (bits(tenant), tenant.tenant_id));
        self.tenants.truncate(limit);
        self
    }

    /// How many tenants use more than twice the median of a resource.
    #[must_use]
    pub fn above(&self, resource: Resource) -> usize {
        self.tenants.iter().filter(|tenant| tenant.above_twice_the_median.contains(&resource)).count()
    }
}

/// Compares tenants by what they keep and by what they asked lately.
pub(crate) fn compare(usages: &HashMap<TenantId, Usage>, recents: &HashMap<TenantId, Recent>) -> Comparison {
    let mut tenants: BTreeMap<TenantId, TenantMetrics> = BTreeMap::new();
    for (tenant, usage) in usages {
        tenants.entry(*tenant).or_insert_with(|| TenantMetrics::idle(*tenant)).usage = *usage;
    }
    for (tenant, recent) in recents {
        tenants.entry(*tenant).or_insert_with(|| TenantMetrics::idle(*tenant)).recent = *recent;
    }
    let mut tenants: Vec<TenantMetrics> = tenants.into_values().collect();
    let mut medians = BTreeMap::new();
    for resource in Resource::ALL {
        let used: Vec<f64> =
            tenants.iter().map(|tenant| resource.of(tenant)).filter(|used| *used > 0.0).collect();
        let Some(median) = median(used) else { continue };
        medians.insert(resource, median);
        for tenant in &mut tenants {
            if resource.of(tenant) > 2.0 * median {
                tenant.above_twice_the_median.push(resource);
            }
        }
    }
    Comparison { tenants, medians }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len().checked_sub(1)? / 2;
    Some(f64::midpoint(values[middle], values[values.len() / 2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_uses_more_than_twice_the_median_is_named_and_idle_tenants_do_not_count() {
        let tenant = |n: u128| TenantId(Uuid::from_u128(n));
        let usage = |bytes, queued_jobs| Usage { documents: 1, bytes, queued_jobs, running_jobs: 0 };
        let mut usages: HashMap<TenantId, Usage> = (0..10).map(|n| (tenant(n), usage(100, 0))).collect();
        usages.insert(tenant(10), usage(201, 7));
        usages.insert(tenant(11), usage(200, 0));
        let recents = HashMap::from([(tenant(20), Recent { requests: 5, ..Recent::default() })]);
        let compared = compare(&usages, &recents);
        assert_eq!(compared.tenants.len(), 13);
        assert_eq!(compared.medians.get(&Resource::Bytes), Some(&100.0));
        // The only one that uses something is no outlier among those that do.
        assert_eq!((compared.above(Resource::QueuedJobs), compared.above(Resource::Requests)), (0, 0));
        let top = compared.top(Resource::Bytes, 2);
        let named: Vec<_> =
            top.tenants.iter().map(|own| (own.tenant_id, own.above_twice_the_median.clone())).collect();
        assert_eq!(named, [(tenant(10).0, vec![Resource::Bytes]), (tenant(11).0, vec![])]);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }
}
