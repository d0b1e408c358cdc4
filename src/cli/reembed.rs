//! `bulkhead reembed`: another embedding model for a tenant's namespaces.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use uuid::Uuid;

use super::Global;
use super::action::Action;
use super::desk::{Desk, at_desk_with};
use super::output::{Answer, table};
use crate::admin::NewModel;
use crate::domain::ids::TenantId;
use crate::store::postgres::reembed::SWEEPING;

/// How often the change is looked at.
const POLL: Duration = Duration::from_millis(300);
/// What is over sooner needs no bar.
const QUIET: Duration = Duration::from_secs(1);

/// Embed a tenant's namespaces by another model, while they go on answering by the old one. Run again, it goes on
/// where it stopped.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The tenant's id or slug.
    #[arg(long)]
    tenant: String,
    /// The one namespace.
    #[arg(long, required_unless_present = "all", conflicts_with = "all")]
    namespace: Option<String>,
    /// All of the tenant's namespaces.
    #[arg(long)]
    all: bool,
    /// The model; a running server must have it (`embedding.model` or `embedding.further`).
    #[arg(long)]
    model: String,
    /// Why, for the audit log.
    #[arg(long, default_value = "another embedding model")]
    reason: String,
}

impl Command {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<Answer> {
        let mut settings = global.settings()?;
        if settings.embedding.model != self.model && !settings.embedding.further.contains(&self.model) {
            // For when no server runs; one that does has its own.
            settings.embedding.further.push(self.model.clone());
        }
        let namespace = if self.all { None } else { self.namespace };
        let new = NewModel { model: self.model, namespace, reason: self.reason };
        at_desk_with(global, &settings, async |desk| {
            let tenant = desk.tenant(&self.tenant).await?;
            // Asked for once the model is loaded: a job for one that cannot be would be in the way.
            let change = async {
                let begun = desk.ask(&Action::Reembed(tenant, new)).await?;
                let job = begun["job_id"].as_str().and_then(|id| Uuid::parse_str(id).ok());
                watch(desk, tenant, job.context("the answer names no job")?).await
            };
            let json = desk.while_working(&settings, change).await?;
            let text = table(std::slice::from_ref(&json), &["job_id", "state", "stage", "done", "total"], "");
            Ok(Answer { json, text })
        })
        .await
    }
}

/// Looks at the change until every namespace has switched; without a server, until nothing old is left.
async fn watch(desk: &Desk, tenant: TenantId, job: Uuid) -> anyhow::Result<Value> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    let style = "{bar:40} {pos}/{len} chunks, {per_sec}, {eta} left";
    bar.set_style(ProgressStyle::with_template(style)?);
    let mut waited = Duration::ZERO;
    loop {
        let view = desk.ask(&Action::ReembedGet(tenant, job)).await?;
        let number = |field: &str| view[field].as_u64().unwrap_or_default();
        bar.set_length(number("total"));
        bar.set_position(number("done"));
        if waited >= QUIET && bar.is_hidden() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        match (view["state"].as_str(), view["stage"].as_str()) {
            (Some("failed" | "cancelled"), _) => {
                bail!("{}", view["error"].as_str().unwrap_or("the change of model failed"))
            }
            (Some("done"), _) => {
                bar.finish_and_clear();
                return Ok(view);
            }
            (_, Some(SWEEPING)) if desk.is_server() => {
                bar.finish_and_clear();
                return Ok(view);
            }
            _ => tokio::time::sleep(POLL).await,
        }
        waited += POLL;
    }
}
