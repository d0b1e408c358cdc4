//! `bulkhead eval`: how well a server retrieves.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};

use super::Global;
use crate::app::eval::{Evaluation, retrieval};
use crate::eval::retrieval::Options;

/// Measures of quality.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Recall and gain of every mode on sets of questions with known answers, with 95% intervals.
    Retrieval(Retrieval),
}

#[derive(Debug, Args)]
pub(super) struct Retrieval {
    /// Folders with `corpus.jsonl`, `queries.jsonl` and `qrels.tsv`, or with `corpus.txt` and `queries.jsonl`.
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// A server that runs; without it one is made in a temporary folder, and removed afterwards.
    #[arg(long, requires = "key")]
    url: Option<String>,
    /// A file with a writer's key for it.
    #[arg(long, requires = "url", value_name = "FILE")]
    key: Option<PathBuf>,
    /// The namespace that the documents go to; in a server that runs, they stay there.
    #[arg(long, default_value = "eval")]
    namespace: String,
    /// Questions of a set, at most.
    #[arg(long, value_name = "N")]
    limit_queries: Option<usize>,
    /// Passages that are joined to one document, each under its title.
    #[arg(long, default_value_t = 1, value_name = "N")]
    join: usize,
    /// Tenants to be made beside each set's own, each with some of its passages; then every tenant's index is held
    /// against exact search.
    #[arg(long, default_value_t = 0, value_name = "N", conflicts_with = "url")]
    neighbours: usize,
    /// Keep vectors in this folder, so that the same texts are not embedded again.
    #[arg(long, conflicts_with = "url", value_name = "DIR")]
    vector_cache: Option<PathBuf>,
    /// What the intervals are drawn with.
    #[arg(long, default_value_t = 20_260_101)]
    seed: u64,
    /// Write the figures here too, as JSON.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Command {
    /// Measures. Fails when a target is missed.
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let Self::Retrieval(asked) = self;
        let server = match (asked.url, asked.key) {
            (Some(url), Some(file)) => Some((url, key(&file)?.into())),
            _ => None,
        };
        let evaluation = Evaluation {
            folders: asked.folders,
            options: Options {
                questions: asked.limit_queries.unwrap_or(usize::MAX),
                join: asked.join,
                seed: asked.seed,
            },
            neighbours: asked.neighbours,
            server,
            namespace: asked.namespace,
            vector_cache: asked.vector_cache,
            output: asked.output,
            json: global.json,
        };
        anyhow::ensure!(Box::pin(retrieval(global.settings()?, &evaluation)).await?, "a target was missed");
        Ok(())
    }
}

fn key(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(text.trim().to_owned())
}
