//! `bulkhead tenant limits` and `usage`: what a tenant may, and what it uses of it.

use clap::Args;
use serde_json::{Map, Value, json};

use super::action::Action;
use super::desk::Desk;
use super::output::{Answer, table};
use crate::admin::NewLimits;

/// A tenant, and the limits to be set for it; without any, they are shown.
#[derive(Debug, Args)]
pub(super) struct Limits {
    /// The tenant's id or slug.
    #[arg(long)]
    tenant: String,
    /// Why, for the audit log.
    #[arg(long, requires = "limits")]
    reason: Option<String>,
    #[command(flatten)]
    numbers: Numbers,
}

#[derive(Debug, Args)]
#[group(id = "limits", multiple = true, requires = "reason")]
struct Numbers {
    /// Requests in a minute.
    #[arg(long, value_name = "N|default", value_parser = number)]
    requests_per_minute: Option<Value>,
    /// Of these, how many one key or token's subject may have; 0: all.
    #[arg(long, value_name = "N|default", value_parser = number)]
    principal_requests_per_minute: Option<Value>,
    /// Questions that are answered at the same time.
    #[arg(long, value_name = "N|default", value_parser = number)]
    concurrent_queries: Option<Value>,
    /// Questions that wait for one of these places.
    #[arg(long, value_name = "N|default", value_parser = number)]
    queued_queries: Option<Value>,
    /// Documents.
    #[arg(long, value_name = "N|default", value_parser = number)]
    documents: Option<Value>,
    /// Bytes of texts and files.
    #[arg(long, value_name = "N|default", value_parser = number)]
    bytes: Option<Value>,
    /// Jobs that wait or run.
    #[arg(long, value_name = "N|default", value_parser = number)]
    queued_jobs: Option<Value>,
}

/// A number, or null for `default`.
fn number(text: &str) -> Result<Value, String> {
    match text {
        "default" => Ok(Value::Null),
        text => text.parse::<u64>().map(Value::from).map_err(|_| "a whole number, or `default`".to_owned()),
    }
}

impl Numbers {
    fn stated(&self) -> Map<String, Value> {
        let all = [
            ("requests_per_minute", &self.requests_per_minute),
            ("principal_requests_per_minute", &self.principal_requests_per_minute),
            ("concurrent_queries", &self.concurrent_queries),
            ("queued_queries", &self.queued_queries),
            ("documents", &self.documents),
            ("bytes", &self.bytes),
            ("queued_jobs", &self.queued_jobs),
        ];
        let stated = all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
        stated.collect()
    }
}

impl Limits {
    pub(super) async fn run(&self, desk: &Desk) -> anyhow::Result<Answer> {
        let tenant = desk.tenant(&self.tenant).await?;
        let action = match &self.reason {
            Some(reason) => {
                let new = NewLimits { reason: reason.clone(), limits: self.numbers.stated() };
                Action::TenantLimits(tenant, new)
            }
            None => Action::TenantGet(tenant),
        };
        let json = desk.ask(&action).await?;
        let (limits, set) = (json["limits"].as_object(), &json["limits_set"]);
        let row = |(name, value): (&String, &Value)| {
            let from = if set[name].is_null() { "the configuration" } else { "this tenant's own" };
            json!({"limit": name, "value": value, "from": from})
        };
        let rows: Vec<Value> = limits.into_iter().flatten().map(row).collect();
        let text = table(&rows, &["limit", "value", "from"], "");
        Ok(Answer { json, text })
    }
}

/// Shows what a tenant keeps, and how long its queue is.
pub(super) async fn usage(desk: &Desk, tenant: &str) -> anyhow::Result<Answer> {
    let json = desk.ask(&Action::TenantUsage(desk.tenant(tenant).await?)).await?;
    let row =
        |(used, limit): (&str, &str)| json!({"of": used, "used": json[used], "limit": json["limits"][limit]});
    let rows = [
        ("documents", "documents"),
        ("bytes", "bytes"),
        ("queued_jobs", "queued_jobs"),
        ("running_jobs", ""),
        ("requests", ""),
        ("refused_requests", ""),
    ];
    let text = table(&rows.map(row), &["of", "used", "limit"], "");
    Ok(Answer { json, text })
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command};

    use super::*;
    use crate::domain::limits::TABLE;

    #[test]
    fn every_limit_has_an_option_of_its_name() {
        let command = Numbers::augment_args(Command::new("limits"));
        let options: Vec<&str> = command.get_arguments().map(|argument| argument.get_id().as_str()).collect();
        let limits: Vec<&str> = TABLE.iter().map(|(name, ..)| *name).collect();
        assert_eq!(options, limits);
        assert_eq!(number("default"), Ok(Value::Null));
        assert!(number("-1").is_err() && number("1e3").is_err());
    }
}
