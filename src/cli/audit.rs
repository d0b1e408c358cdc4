//! `bulkhead audit`: the chains of the audit log examined, exported into a file, and examined from that file alone.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write as _};
use std::path::PathBuf;

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Global;
use super::action::Action;
use super::desk::{Desk, at_desk};
use super::output::{self, Answer, Progress, table};
use super::verify::{FaultsRemain, meant};
use crate::admin::AuditExport;
use crate::domain::ids::TenantId;
use crate::store::audit::export::{self, ExportPlace, Times};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Examine every chain: is each event there, in its place and as it was written, up to the chain's head.
    ///
    /// Ends with 0 when nothing is wrong, with 3 when something is.
    Verify(Verify),
    /// Write the log into a new file of JSON lines, which `bulkhead audit verify --file` examines without a server.
    ///
    /// Each page that is read is an event of the log itself, with the reason.
    Export(Export),
    /// Count a tenant's questions, writes and other events by day and kind.
    Usage(Usage),
}

#[derive(Debug, Args)]
pub(super) struct Usage {
    /// The tenant's id or slug.
    #[arg(long)]
    tenant: String,
    /// Events of this time and later, as 2026-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<DateTime<Utc>>,
    /// Events before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<DateTime<Utc>>,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The tenant's id or slug; none: every tenant, and the deployment's own log.
    #[arg(long, conflicts_with = "file")]
    tenant: Option<String>,
    /// An exported file, examined by itself.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// The tenant's id or slug; none: every tenant, and the deployment's own log.
    #[arg(long)]
    tenant: Option<String>,
    /// From the first event of this time or later, as 2026-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<DateTime<Utc>>,
    /// Up to the last event before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<DateTime<Utc>>,
    /// The file, which must not be there yet.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Why, for the audit log.
    #[arg(long, default_value = "an export of the audit log")]
    reason: String,
}

impl Command {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Self::Verify(verify) => verify.run(global).await,
            Self::Export(export) => export.run(global).await,
            Self::Usage(usage) => usage.run(global).await,
        }
    }
}

impl Usage {
    async fn run(self, global: &Global) -> anyhow::Result<()> {
        let times = Times { since: self.since, until: self.until };
        let days = at_desk(global, async |desk| {
            let tenant = desk.tenant(&self.tenant).await?;
            desk.ask(&Action::AuditDays(tenant, times)).await
        })
        .await?;
        let rows = days.as_array().map(Vec::as_slice).unwrap_or_default();
        let text = table(rows, &["day", "kind", "events"], "There is no event.");
        output::print(&Answer { json: days, text }.render(global.json)?)
    }
}

/// The logs that are meant: of one tenant, or the deployment's and every tenant's, each with its name.
async fn logs(desk: &Desk, named: Option<&str>) -> anyhow::Result<Vec<(Option<TenantId>, String)>> {
    let own = named.is_none().then(|| (None, "-".to_owned()));
    let tenants = meant(desk, named).await?;
    Ok(own.into_iter().chain(tenants.into_iter().map(|(id, slug)| (Some(id), slug))).collect())
}

impl Verify {
    async fn run(self, global: &Global) -> anyhow::Result<()> {
        let chains = match self.file {
            Some(path) => {
                let file = File::open(&path).with_context(|| format!("{} cannot be read", path.display()))?;
                let examine = move || export::examine(BufReader::new(file));
                let reports = tokio::task::spawn_blocking(examine).await??;
                reports.iter().map(|report| row(&json!(report.tenant), &json!(report.chain))).collect()
            }
            None => self.at_desk(global).await?,
        };
        let wrong = chains.iter().filter(|chain| !chain["fault"].is_null()).count();
        let fields = ["tenant", "node", "events", "fault", "number", "head"];
        let text = table(&chains, &fields, "There is no chain.");
        let answer = Answer { json: json!({ "chains": chains, "left": wrong }), text };
        output::print(&answer.render(global.json)?)?;
        if wrong > 0 {
            bail!(FaultsRemain(wrong));
        }
        Ok(())
    }

    async fn at_desk(&self, global: &Global) -> anyhow::Result<Vec<Value>> {
        at_desk(global, async |desk| {
            let logs = logs(desk, self.tenant.as_deref()).await?;
            let progress = Progress::new(logs.len(), "logs");
            let mut chains = Vec::new();
            for (tenant, name) in logs {
                let reports = desk.ask(&Action::AuditChains(tenant)).await?;
                let reports = reports.as_array().map(Vec::as_slice).unwrap_or_default();
                chains.extend(reports.iter().map(|report| row(&json!(name), report)));
                progress.step();
            }
            Ok(chains)
        })
        .await
    }
}

/// What was found of one chain, in one row.
fn row(tenant: &Value, report: &Value) -> Value {
    let fault = &report["fault"];
    json!({
        "tenant": tenant, "node": report["node"], "events": report["events"], "head": report["head"],
        "fault": fault["fault"], "number": fault["number"],
    })
}

impl Export {
    async fn run(self, global: &Global) -> anyhow::Result<()> {
        let path = self.output.display();
        let made = OpenOptions::new().write(true).create_new(true).open(&self.output);
        let mut file = BufWriter::new(made.with_context(|| format!("{path} cannot be made"))?);
        let lines = at_desk(global, async |desk| {
            let logs = logs(desk, self.tenant.as_deref()).await?;
            let progress = Progress::new(logs.len(), "logs");
            let mut lines = 0;
            for (tenant, _) in logs {
                lines += self.write(desk, tenant, &mut file).await?;
                progress.step();
            }
            Ok(lines)
        })
        .await;
        let written = lines.and_then(|lines| {
            file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
            Ok(lines)
        });
        let lines = match written {
            Ok(lines) => lines,
            // Half an export would look like a log that was cut.
            Err(error) => {
                return Err(match std::fs::remove_file(&self.output) {
                    Ok(()) => error,
                    Err(left) => error.context(format!("{path} is not whole, and stays: {left}")),
                });
            }
        };
        let text = format!("{lines} events and ends of chains are in {path}.");
        let answer = Answer { json: json!({ "file": self.output, "lines": lines }), text };
        output::print(&answer.render(global.json)?)
    }

    /// One log, page by page.
    async fn write(
        &self,
        desk: &Desk,
        tenant: Option<TenantId>,
        file: &mut BufWriter<File>,
    ) -> anyhow::Result<usize> {
        let (mut after, mut count): (Option<ExportPlace>, usize) = (None, 0);
        loop {
            let asked =
                AuditExport { since: self.since, until: self.until, after, reason: self.reason.clone() };
            let page = desk.ask(&Action::AuditExport(tenant, asked)).await?;
            for line in page["lines"].as_array().into_iter().flatten() {
                serde_json::to_writer(&mut *file, line)?;
                file.write_all(b"\n")?;
                count += 1;
            }
            match page.get("next") {
                Some(next) => after = Some(serde_json::from_value(next.clone())?),
                None => return Ok(count),
            }
        }
    }
}
