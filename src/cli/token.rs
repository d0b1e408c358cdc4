//! `bulkhead token`: a short-lived token, signed by the server's own key.

use std::time::Duration;

use clap::Args;

use super::Global;
use super::action::Action;
use super::desk::at_desk;
use super::output::Answer;
use crate::admin::NewToken;
use crate::tenancy::Role;

#[derive(Debug, Args)]
pub(super) struct Command {
    /// The tenant's id or slug.
    #[arg(long)]
    tenant: String,
    /// What it allows: reader, writer or `tenant_admin`; the highest counts.
    #[arg(long = "role", required = true, value_parser = super::role)]
    roles: Vec<Role>,
    /// Who will use it.
    #[arg(long, default_value = "command-line")]
    subject: String,
    /// Its life, as 10m; at most `auth.session_ttl`.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    expires_in: Duration,
    /// Why, for the audit log.
    #[arg(long)]
    reason: Option<String>,
}

impl Command {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<Answer> {
        at_desk(global, async |desk| {
            let new = NewToken {
                subject: self.subject,
                roles: self.roles,
                expires_in: self.expires_in.as_secs(),
                reason: self.reason,
            };
            let tenant = desk.tenant(&self.tenant).await?;
            let json = desk.ask(&Action::TokenCreate(tenant, new)).await?;
            // The token alone, so that a shell can take it.
            let text = json["token"].as_str().unwrap_or_default().to_owned();
            Ok(Answer { json, text })
        })
        .await
    }
}
