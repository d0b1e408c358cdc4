//! `bulkhead tenant top`: who uses the most of what tenants share.

use clap::Args;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser as _;
use serde_json::{Value, json};

use super::action::Action;
use super::desk::Desk;
use super::output::{Answer, table};
use crate::admin::{MAX_TENANTS, Resource};

/// What the list is sorted by, and how long it is.
#[derive(Debug, Args)]
pub(super) struct Top {
    /// What the tenants are sorted by; requests, errors and times are of the last minutes.
    #[arg(long, default_value = "requests", value_parser = resource())]
    by: Resource,
    /// How many tenants are shown.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=MAX_TENANTS))]
    limit: u16,
}

fn resource() -> impl clap::builder::TypedValueParser<Value = Resource> {
    PossibleValuesParser::new(Resource::ALL.map(Resource::name))
        .map(|name| Resource::from_name(&name).unwrap_or(Resource::Requests))
}

impl Top {
    pub(super) async fn run(&self, desk: &Desk) -> anyhow::Result<Answer> {
        let json = desk.ask(&Action::TenantTop { by: self.by, limit: self.limit.into() }).await?;
        let rows: Vec<Value> = json["tenants"].as_array().into_iter().flatten().map(row).collect();
        let fields = [
            "tenant_id",
            "requests",
            "errors",
            "busy_seconds",
            "p50_ms",
            "p95_ms",
            "p99_ms",
            "queued_jobs",
            "documents",
            "bytes",
            "above_twice_the_median",
        ];
        let text = table(&rows, &fields, "No tenant uses anything.");
        Ok(Answer { json, text })
    }
}

/// A tenant in a line.
fn row(tenant: &Value) -> Value {
    let recent = &tenant["recent"];
    let rounded = |name: &str| recent[name].as_f64().map(|number| (number * 10.0).round() / 10.0);
    json!({
        "tenant_id": tenant["tenant_id"], "requests": recent["requests"], "errors": recent["errors"],
        "busy_seconds": rounded("busy_seconds"), "p50_ms": rounded("p50_ms"), "p95_ms": rounded("p95_ms"),
        "p99_ms": rounded("p99_ms"), "queued_jobs": tenant["queued_jobs"], "documents": tenant["documents"],
        "bytes": tenant["bytes"], "above_twice_the_median": tenant["above_twice_the_median"],
    })
}
