//! `bulkhead config`: what can be set, and whether what is set can work.

use clap::Args;

use super::Global;
use super::output;

#[derive(Debug, Args)]
pub(super) struct Command {
    /// Read the settings in use and tell every fault.
    #[arg(long)]
    check: bool,
}

impl Command {
    pub(super) fn run(&self, global: &Global) -> anyhow::Result<()> {
        if !self.check {
            return output::print(crate::config::DEFAULTS);
        }
        global.settings()?;
        output::print(if global.json { r#"{"valid": true}"# } else { "The settings can be used." })
    }
}
