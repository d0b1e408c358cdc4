//! What the parts of a server count themselves, written on the page of metrics when it is asked for.

use std::collections::HashMap;
use std::sync::Arc;

use super::pulse::Usages;
use crate::admin::{Resource, compare};
use crate::domain::ids::TenantId;
use crate::inference::Models;
use crate::jobs::projector::Projector;
use crate::jobs::stages::Stages;
use crate::store::Audit;
use crate::store::layers::Calls;
use crate::store::postgres::Postgres;
use crate::store::postgres::usage::Usage;
use crate::store::qdrant_edge::EdgeIndex;
use crate::telemetry::page::{Page, Written};
use crate::telemetry::tenants::{OTHER, Tenants};
use crate::telemetry::{Metrics, Readiness};

/// The parts that count.
pub(super) struct Parts {
    pub(super) postgres: Postgres,
    pub(super) index: Arc<EdgeIndex>,
    pub(super) calls: Arc<Calls>,
    pub(super) audit: Audit,
    pub(super) projector: Projector,
    pub(super) stages: Arc<Stages>,
    pub(super) models: Models,
    pub(super) readiness: Arc<Readiness>,
    pub(super) usages: Usages,
}

/// Has the parts' numbers on the page.
pub(super) fn watch(metrics: &Metrics, parts: Parts) {
    let tenants = metrics.tenants();
    metrics.watch(move |page| {
        let ready = u32::from(parts.readiness.is_ready());
        page.gauge("bulkhead_ready", "Whether /ready says yes", f64::from(ready))?;
        stores(page, &parts)?;
        parts.calls.write(page)?;
        ingestion(page, &parts)?;
        kept(page, &parts.usages.lock(), &tenants)?;
        models(page, &parts.models)
    });
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}

fn seconds(micros: u64) -> f64 {
    number(micros) / 1e6
}

fn stores(page: &mut Page<'_, '_>, parts: &Parts) -> Written {
    let uses = parts.postgres.pool_uses();
    let connections = uses.iter().flat_map(|pool| {
        let labels = |state| [("pool", pool.name), ("state", state)];
        [(labels("busy"), f64::from(pool.busy)), (labels("idle"), f64::from(pool.idle))]
    });
    page.gauges("bulkhead_pool_connections", "Open connections to the database", connections)?;
    let most = uses.iter().map(|pool| ([("pool", pool.name)], f64::from(pool.most)));
    page.gauges("bulkhead_pool_most_connections", "The most connections that a pool may open", most)?;
    let shards = u32::try_from(parts.index.open_shards()).unwrap_or(u32::MAX);
    page.gauge("bulkhead_open_shards", "Vector shards open at this moment", f64::from(shards))?;
    let audit = parts.audit.counts();
    page.counter("bulkhead_audit_events_written", "Audit events written", number(audit.written))?;
    page.counter("bulkhead_audit_events_lost", "Audit events lost", number(audit.lost))?;
    page.gauge("bulkhead_audit_events_waiting", "Audit events that wait to be written", number(audit.waiting))
}

fn ingestion(page: &mut Page<'_, '_>, parts: &Parts) -> Written {
    let usages = Arc::clone(&parts.usages.lock());
    let jobs = |state, of: fn(&Usage) -> i64| {
        let all: i64 = usages.values().map(of).sum();
        ([("state", state)], number(u64::try_from(all).unwrap_or(0)))
    };
    let counted = [jobs("waiting", |usage| usage.queued_jobs), jobs("running", |usage| usage.running_jobs)];
    page.gauges("bulkhead_jobs", "Jobs in the queue, of every server over this database", counted)?;
    let stages = parts.stages.read();
    page.counter("bulkhead_documents_processed", "Documents processed", number(stages.documents))?;
    page.counter("bulkhead_documents_failed", "Documents that failed for good", number(stages.failed))?;
    page.counter("bulkhead_chunks", "Chunks committed", number(stages.chunks))?;
    let times =
        [("analysis", stages.analysis_us), ("embedding", stages.embedding_us), ("commit", stages.commit_us)];
    let times = times.map(|(stage, time)| ([("stage", stage)], seconds(time)));
    page.counters(
        "bulkhead_ingestion_seconds",
        "Time of batches in each stage, side by side ones each",
        times,
    )?;
    let projector = parts.projector.counts();
    page.counter(
        "bulkhead_projected_points",
        "Points added to and removed from shards",
        number(projector.points),
    )?;
    page.counter(
        "bulkhead_projection_flushes",
        "Times that a shard was made durable",
        number(projector.flushes),
    )?;
    page.counter("bulkhead_projection_rebuilds", "Shards written anew", number(projector.rebuilds))?;
    page.counter("bulkhead_projection_failures", "Projections that failed", number(projector.failures))?;
    page.gauge(
        "bulkhead_projections_waiting",
        "Namespaces that wait for projection",
        number(projector.waiting),
    )
}

/// What tenants keep and how long their queues are: those that are named, and the others together.
fn kept(page: &mut Page<'_, '_>, usages: &HashMap<TenantId, Usage>, tenants: &Tenants) -> Written {
    let named = tenants.named();
    let mut rows: Vec<(String, Usage)> = named
        .iter()
        .map(|tenant| (tenant.to_string(), usages.get(tenant).copied().unwrap_or_default()))
        .collect();
    let mut other = Usage::default();
    for (_, usage) in usages.iter().filter(|(tenant, _)| !named.contains(tenant)) {
        other.documents += usage.documents;
        other.bytes += usage.bytes;
        other.queued_jobs += usage.queued_jobs;
        other.running_jobs += usage.running_jobs;
    }
    rows.push((OTHER.to_owned(), other));
    let each = |of: fn(&Usage) -> i64| {
        rows.iter().map(move |(tenant, usage)| {
            ([("tenant", tenant.as_str())], number(u64::try_from(of(usage)).unwrap_or(0)))
        })
    };
    page.gauges("bulkhead_tenant_documents", "Documents that a tenant keeps", each(|usage| usage.documents))?;
    page.gauges("bulkhead_tenant_bytes", "Bytes that a tenant keeps", each(|usage| usage.bytes))?;
    let queued = each(|usage| usage.queued_jobs + usage.running_jobs);
    page.gauges("bulkhead_tenant_jobs", "A tenant's jobs that wait or run", queued)?;
    let compared = compare(usages, &tenants.all());
    let above = Resource::ALL.map(|resource| {
        let above = u64::try_from(compared.above(resource)).unwrap_or(0);
        ([("resource", resource.name())], number(above))
    });
    let help = "Tenants that use more than twice the median; `bulkhead tenant top` names them";
    page.gauges("bulkhead_tenants_above_twice_the_median", help, above)
}

fn models(page: &mut Page<'_, '_>, models: &Models) -> Written {
    let counts: Vec<_> = models
        .all()
        .flat_map(|model| model.counts().map(|counts| (model.info().name.as_str(), counts)))
        .collect();
    let each = |number: fn(&crate::inference::SessionCounts) -> f64| {
        counts
            .iter()
            .map(move |(model, counts)| ([("model", *model), ("session", counts.session)], number(counts)))
    };
    let texts = each(|counts| number(counts.texts));
    page.counters("bulkhead_embedded_texts", "Texts embedded", texts)?;
    let busy = each(|counts| seconds(counts.busy_us));
    page.counters("bulkhead_embedding_seconds", "Time that an embedding session ran", busy)?;
    let waiting = each(|counts| number(counts.waiting));
    page.gauges("bulkhead_embedding_waiting", "Batches that wait for an embedding session", waiting)
}
