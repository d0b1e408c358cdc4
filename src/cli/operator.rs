//! `bulkhead operator`: credentials of those who run the deployment.

use clap::Subcommand;

use super::Global;
use super::action::Action;
use super::desk::at_desk;
use super::output::Answer;
use crate::admin::NewOperator;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make another operator's credential. It is shown once.
    Create {
        /// Whose it is.
        #[arg(long)]
        name: String,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
}

impl Command {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<Answer> {
        let Self::Create { name, reason } = self;
        at_desk(global, async |desk| {
            let json = desk.ask(&Action::OperatorCreate(NewOperator { name, reason })).await?;
            let key = json["operator_key"].as_str().unwrap_or_default();
            let text = format!("The credential, shown this once; keep it in a file of mode 0600:\n{key}");
            Ok(Answer { json, text })
        })
        .await
    }
}
