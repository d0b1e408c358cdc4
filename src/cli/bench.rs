//! `bulkhead bench`: what the server costs beyond its parts, what it bears, and what a tenant takes.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use crate::app;
use crate::eval::bench::{Part, Plan};

/// What is measured.
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// As large as the targets say, however long that takes.
    #[arg(long)]
    full: bool,
    /// These parts alone: ingestion, question, clients, delete, neighbour, free, free-clients, row-security, tenants,
    /// recovery, services.
    #[arg(long, value_name = "PART", value_parser = part)]
    only: Vec<Part>,
    /// Where the figures go.
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    output: PathBuf,
}

impl Bench {
    /// Measures. Fails when a target is missed.
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let parts = if self.only.is_empty() { Part::ALL.to_vec() } else { self.only };
        let plan = if self.full { Plan::full(parts) } else { Plan::short(parts) };
        let reached = Box::pin(app::bench::bench(global.settings()?, &plan, &self.output)).await?;
        anyhow::ensure!(reached, "a target was missed");
        Ok(())
    }
}

fn part(raw: &str) -> Result<Part, String> {
    Part::ALL.into_iter().find(|part| part.name() == raw).ok_or_else(|| {
        let names = Part::ALL.map(Part::name);
        format!("one of {}", names.join(", "))
    })
}
