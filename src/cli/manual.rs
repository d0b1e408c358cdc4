//! `bulkhead completions` and `bulkhead man`: what shells and readers of manuals know of the command line, made
//! from its own definition.

use std::io;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command as Line};
use clap_complete::Shell;

use super::output;

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell that will read them.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self, mut line: Line) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut line, "bulkhead", &mut script);
        output::print(&String::from_utf8(script)?)
    }
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// The folder that the pages are written to; it is made where it is missing.
    folder: PathBuf,
}

impl Man {
    pub(super) fn run(&self, line: Line) -> anyhow::Result<()> {
        let written = || -> io::Result<()> {
            std::fs::create_dir_all(&self.folder)?;
            clap_mangen::generate_to(line, &self.folder)
        };
        written().with_context(|| format!("the pages cannot be written to {}", self.folder.display()))
    }
}
