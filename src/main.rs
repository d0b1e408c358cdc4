//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead::{app, config};

fn main() -> anyhow::Result<ExitCode> {
    // Before anything else starts: a worker has one thread and opens nothing.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == bulkhead::pipeline::parse::WORKER_COMMAND) {
        return Ok(bulkhead::pipeline::parse::worker_main());
    }
    let settings = config::load(std::env::var_os("BULKHEAD_CONFIG").map(PathBuf::from).as_deref())?;
    tokio::runtime::Runtime::new()?.block_on(app::run(settings))?;
    Ok(ExitCode::SUCCESS)
}
