//! `bulkhead key`: a tenant's API keys.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::Global;
use super::action::Action;
use super::desk::at_desk;
use super::output::{Answer, table};
use crate::admin::{NewTenantKey, Reason};
use crate::tenancy::Role;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a key. It is shown once.
    Create {
        /// The tenant's id or slug.
        #[arg(long)]
        tenant: String,
        /// What it allows: reader, writer or `tenant_admin`; the highest counts.
        #[arg(long = "role", required = true, value_parser = super::role)]
        roles: Vec<Role>,
        /// A namespace that it is confined to; all when absent.
        #[arg(long = "namespace")]
        namespaces: Vec<String>,
        /// Its name.
        #[arg(long)]
        name: String,
        /// Its life, as 30d or 12h; until it is revoked when absent.
        #[arg(long, value_parser = humantime::parse_duration)]
        expires_in: Option<Duration>,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
    /// List a tenant's keys, without their secrets.
    List {
        /// The tenant's id or slug.
        #[arg(long)]
        tenant: String,
    },
    /// End a key. It is refused within two seconds, in running streams too.
    Revoke {
        /// The tenant's id or slug.
        #[arg(long)]
        tenant: String,
        /// The key's public identifier: the part after `bk_`.
        #[arg(long)]
        key: String,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
}

impl Command {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<Answer> {
        at_desk(global, async |desk| match self {
            Self::Create { tenant, roles, namespaces, name, expires_in, reason } => {
                let new = NewTenantKey {
                    name,
                    roles,
                    namespaces: Some(namespaces).filter(|names| !names.is_empty()),
                    expires_in: expires_in.map(|life| life.as_secs()),
                    reason,
                };
                let tenant = desk.tenant(&tenant).await?;
                let json = desk.ask(&Action::KeyCreate(tenant, new)).await?;
                let about = table(std::slice::from_ref(&json), &["key_id", "roles", "expires_at"], "");
                let key = json["api_key"].as_str().unwrap_or_default();
                let text = format!("{about}\nThe key, shown this once:\n{key}");
                Ok(Answer { json, text })
            }
            Self::List { tenant } => {
                let tenant = desk.tenant(&tenant).await?;
                let mut answer = desk.ask(&Action::KeyList(tenant)).await?;
                let keys = match answer["keys"].take() {
                    Value::Array(keys) => keys,
                    _ => Vec::new(),
                };
                let fields =
                    ["key_id", "name", "roles", "namespaces", "created_at", "expires_at", "revoked_at"];
                let text = table(&keys, &fields, "The tenant has no key.");
                Ok(Answer { json: Value::Array(keys), text })
            }
            Self::Revoke { tenant, key, reason } => {
                anyhow::ensure!(
                    key.len() <= 64 && key.bytes().all(|byte| byte.is_ascii_alphanumeric()),
                    "a key's public identifier has letters and digits alone"
                );
                let tenant = desk.tenant(&tenant).await?;
                desk.ask(&Action::KeyRevoke(tenant, key.clone(), Reason { reason })).await?;
                let text = format!("The key {key} is revoked.");
                Ok(Answer { json: json!({ "key_id": key, "revoked": true }), text })
            }
        })
        .await
    }
}
