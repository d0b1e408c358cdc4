//! `bulkhead verify` and `bulkhead rebuild`: what is kept twice, compared, put right, written anew.

use std::fmt;

use anyhow::bail;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Global;
use super::action::Action;
use super::desk::{Desk, at_desk};
use super::output::{self, Answer, Progress, table};
use crate::admin::Examination;
use crate::domain::ids::TenantId;
use crate::store::digest::IndexKind;

/// Compare rows, indexes, files, counters and audit logs, of one tenant or of all, while they are in use.
///
/// Ends with 0 when nothing is wrong or everything was put right, with 3 when something is left that is.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The tenant's id or slug; none: every tenant, and the deployment's own audit log.
    #[arg(long)]
    tenant: Option<String>,
    /// One namespace of the tenant alone.
    #[arg(long, requires = "tenant")]
    namespace: Option<String>,
    /// One index alone, and nothing beside it: of vectors, or of graphs where there is one.
    #[arg(long, value_parser = index())]
    index: Option<IndexKind>,
    /// Put right what can be: write indexes anew, count again, process again, remove what nothing names.
    #[arg(long)]
    repair: bool,
    /// Why, for the audit log.
    #[arg(long, default_value = "a check")]
    reason: String,
}

/// Write indexes anew from the database, while questions are answered.
#[derive(Debug, Args)]
pub(super) struct Rebuild {
    /// The tenant's id or slug.
    #[arg(long, required_unless_present = "all", conflicts_with = "all")]
    tenant: Option<String>,
    /// One namespace of the tenant alone.
    #[arg(long, requires = "tenant")]
    namespace: Option<String>,
    /// One index alone, of vectors or of graphs; none: every index that there is.
    #[arg(long, value_parser = index())]
    index: Option<IndexKind>,
    /// The indexes of every tenant.
    #[arg(long)]
    all: bool,
    /// Why, for the audit log.
    #[arg(long, default_value = "indexes are written anew")]
    reason: String,
}

fn index() -> impl TypedValueParser<Value = IndexKind> {
    PossibleValuesParser::new(IndexKind::ALL.map(IndexKind::name))
        .try_map(|name| IndexKind::parse(&name).ok_or("there is no such index"))
}

/// Something is wrong that was not put right.
#[derive(Debug)]
pub(super) struct FaultsRemain(pub(super) usize);

impl FaultsRemain {
    /// The program's exit code.
    pub(super) const CODE: u8 = 3;
}

impl fmt::Display for FaultsRemain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.0 == 1 { "thing is" } else { "things are" };
        write!(f, "{} {what} wrong and not repaired", self.0)
    }
}

impl std::error::Error for FaultsRemain {}

/// The tenants that are meant: identity and slug.
pub(super) async fn meant(desk: &Desk, named: Option<&str>) -> anyhow::Result<Vec<(TenantId, String)>> {
    if let Some(named) = named {
        return Ok(vec![(desk.tenant(named).await?, named.to_owned())]);
    }
    let listed = desk.tenants().await?;
    let tenant = |row: &Value| {
        let id = Uuid::parse_str(row["tenant_id"].as_str()?).ok()?;
        Some((TenantId(id), row["slug"].as_str().unwrap_or_default().to_owned()))
    };
    Ok(listed.iter().filter_map(tenant).collect())
}

/// Asks namespace by namespace, until there is none any more.
async fn every_namespace(
    desk: &Desk,
    action: impl Fn(Examination) -> Action,
    mut asked: Examination,
    mut take: impl FnMut(Value),
) -> anyhow::Result<()> {
    loop {
        let answer = desk.ask(&action(asked.clone())).await?;
        let next = answer["next"].as_str().and_then(|next| Uuid::parse_str(next).ok());
        take(answer);
        if next.is_none() {
            return Ok(());
        }
        asked.after = next;
    }
}

impl Verify {
    /// Compares, prints what is wrong, and fails when something is left.
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let Self { tenant, namespace, index, repair, reason } = self;
        let report = at_desk(global, async |desk| {
            let tenants = meant(desk, tenant.as_deref()).await?;
            let progress = Progress::new(tenants.len(), "tenants");
            let mut report = Report::default();
            if tenant.is_none() && index.is_none() {
                report.chains("-", &desk.ask(&Action::AuditChains(None)).await?);
            }
            for (id, slug) in tenants {
                let asked = Examination {
                    repair,
                    namespace: namespace.clone(),
                    index,
                    after: None,
                    reason: reason.clone(),
                };
                let take = |answer: Value| report.take(&slug, &answer);
                every_namespace(desk, |asked| Action::Verify(id, asked), asked, take).await?;
                report.tenants += 1;
                progress.step();
            }
            Ok(report)
        })
        .await?;
        output::print(&report.answer().render(global.json)?)?;
        if report.left > 0 {
            bail!(FaultsRemain(report.left));
        }
        Ok(())
    }
}

/// Everything that was found.
#[derive(Default)]
struct Report {
    tenants: usize,
    namespaces: usize,
    points: u64,
    events: i64,
    left: usize,
    findings: Vec<Value>,
    /// What each store holds of each namespace.
    stores: Vec<Value>,
}

impl Report {
    fn take(&mut self, tenant: &str, answer: &Value) {
        self.findings(tenant, &Value::Null, &answer["findings"]);
        self.chains(tenant, &answer["chains"]);
        let namespace = &answer["namespace"];
        if !namespace.is_null() {
            self.namespaces += 1;
            self.points += namespace["points"].as_u64().unwrap_or_default();
            self.findings(tenant, &namespace["namespace_id"], &namespace["findings"]);
            for held in namespace["stores"].as_array().into_iter().flatten() {
                self.stores.push(json!({
                    "tenant": tenant, "namespace_id": namespace["namespace_id"], "index": held["index"],
                    "store": held["store"], "count": held["count"], "digest": held["digest"],
                }));
            }
        }
    }

    fn findings(&mut self, tenant: &str, namespace: &Value, findings: &Value) {
        for finding in findings.as_array().into_iter().flatten() {
            self.add(json!({
                "tenant": tenant, "namespace_id": namespace, "finding": finding["kind"], "count": finding["count"],
                "repaired": finding["repaired"],
            }));
        }
    }

    /// A chain cannot be put right: what was written before is not known here.
    fn chains(&mut self, tenant: &str, chains: &Value) {
        for chain in chains.as_array().into_iter().flatten() {
            self.events += chain["events"].as_i64().unwrap_or_default();
            if let Some(fault) = chain["fault"]["fault"].as_str() {
                self.add(json!({
                    "tenant": tenant, "namespace_id": null, "finding": format!("audit_{fault}"), "count": 1,
                    "repaired": false, "node": chain["node"], "number": chain["fault"]["number"],
                }));
            }
        }
    }

    fn add(&mut self, finding: Value) {
        self.left += usize::from(finding["repaired"] != true);
        self.findings.push(finding);
    }

    fn answer(&self) -> Answer {
        let json = json!({
            "tenants": self.tenants, "namespaces": self.namespaces, "points": self.points, "events": self.events,
            "findings": self.findings, "left": self.left, "stores": self.stores,
        });
        let fields = ["tenant", "namespace_id", "finding", "count", "repaired", "node", "number"];
        let found = table(&self.findings, &fields, "Nothing is wrong.\n");
        let text = format!(
            "{found}Compared: {} tenants, {} namespaces, {} points, {} audit events.",
            self.tenants, self.namespaces, self.points, self.events
        );
        Answer { json, text }
    }
}

impl Rebuild {
    /// Writes the indexes anew, one after the other.
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<Answer> {
        let Self { tenant, namespace, index, all: _, reason } = self;
        at_desk(global, async |desk| {
            let tenants = meant(desk, tenant.as_deref()).await?;
            let progress = Progress::new(tenants.len(), "tenants");
            let mut rebuilt = Vec::new();
            for (id, slug) in tenants {
                let asked = Examination {
                    repair: false,
                    namespace: namespace.clone(),
                    index,
                    after: None,
                    reason: reason.clone(),
                };
                let take = |answer: Value| {
                    if !answer["namespace_id"].is_null() {
                        rebuilt.push(json!({
                            "tenant": slug, "namespace_id": answer["namespace_id"], "seq": answer["seq"],
                        }));
                    }
                };
                every_namespace(desk, |asked| Action::Rebuild(id, asked), asked, take).await?;
                progress.step();
            }
            let text = table(&rebuilt, &["tenant", "namespace_id", "seq"], "There is no namespace.");
            Ok(Answer { json: Value::Array(rebuilt), text })
        })
        .await
    }
}
