//! `bulkhead tenant`: customers of the deployment.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::Global;
use super::action::Action;
use super::desk::at_desk;
use super::limits::{self, Limits};
use super::output::{Answer, table};
use super::top::Top;
use crate::admin::{NewPlacement, NewTenant, Reason};
use crate::store::Placement;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a tenant.
    Create {
        /// Its name.
        #[arg(long)]
        name: String,
        /// Its short name in host names; made from the name when absent.
        #[arg(long)]
        slug: Option<String>,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
    /// List the tenants that are not deleted.
    List,
    /// Set what a tenant may use, or show it. Holds within two seconds; what is kept already is never removed.
    Limits(Box<Limits>),
    /// Show what a tenant keeps, and how long its queue is.
    Usage {
        /// The tenant's id or slug.
        #[arg(long)]
        tenant: String,
    },
    /// Show the tenants that use the most, and name those that use more than twice the median of anything.
    Top(Top),
    /// Refuse a tenant's callers and let its jobs wait, until it is resumed.
    Suspend(Which),
    /// Serve a suspended tenant again.
    Resume(Which),
    /// Choose where a tenant's vectors are in Qdrant, and move those it has while it is served: in a collection of its
    /// own, or in one that tenants share. What was written is compared with the rows before it is served.
    Placement {
        /// In a collection of its own, or in the shared one.
        #[arg(value_enum)]
        to: To,
        #[command(flatten)]
        which: Which,
    },
    /// Delete a tenant with everything it owns. Nothing brings it back.
    Delete {
        #[command(flatten)]
        which: Which,
        /// Say that you mean it.
        #[arg(long, required = true)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum To {
    Own,
    Shared,
}

#[derive(Debug, Args)]
pub(super) struct Which {
    /// The tenant's id or slug.
    #[arg(long)]
    tenant: String,
    /// Why, for the audit log.
    #[arg(long)]
    reason: String,
}

impl Command {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<Answer> {
        at_desk(global, async |desk| {
            let of = async |which: &Which| {
                let reason = Reason { reason: which.reason.clone() };
                anyhow::Ok((desk.tenant(&which.tenant).await?, reason))
            };
            let action = match &self {
                Self::List => {
                    let tenants = desk.tenants().await?;
                    let text =
                        table(&tenants, &["tenant_id", "slug", "state", "name"], "There is no tenant.");
                    return Ok(Answer { json: Value::Array(tenants), text });
                }
                Self::Limits(limits) => return limits.run(desk).await,
                Self::Top(top) => return top.run(desk).await,
                Self::Usage { tenant } => return limits::usage(desk, tenant).await,
                Self::Create { name, slug, reason } => Action::TenantCreate(NewTenant {
                    name: name.clone(),
                    slug: slug.clone(),
                    reason: reason.clone(),
                }),
                Self::Suspend(which) => {
                    let (tenant, reason) = of(which).await?;
                    Action::TenantSuspend(tenant, reason)
                }
                Self::Resume(which) => {
                    let (tenant, reason) = of(which).await?;
                    Action::TenantResume(tenant, reason)
                }
                Self::Placement { to, which } => {
                    let (tenant, Reason { reason }) = of(which).await?;
                    let placement = match to {
                        To::Own => Placement::Own,
                        To::Shared => Placement::Shared,
                    };
                    let json = desk.ask(&Action::Place(tenant, NewPlacement { placement, reason })).await?;
                    return Ok(Answer { text: placed(&json), json });
                }
                Self::Delete { which, .. } => {
                    let (tenant, reason) = of(which).await?;
                    Action::TenantDelete(tenant, reason)
                }
            };
            let json = desk.ask(&action).await?;
            let text = table(std::slice::from_ref(&json), &["tenant_id", "slug", "state", "name"], "");
            Ok(Answer { json, text })
        })
        .await
    }
}

/// What a move did.
fn placed(answer: &Value) -> String {
    let moved = answer["moved"].as_array().map(Vec::as_slice).unwrap_or_default();
    table(moved, &["model", "namespaces", "points", "checksum"], "Nothing had to be moved.")
}
