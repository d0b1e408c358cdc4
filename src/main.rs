//! The program.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else starts: a worker has one thread and opens nothing.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == bulkhead::pipeline::parse::WORKER_COMMAND) {
        return bulkhead::pipeline::parse::worker_main();
    }
    bulkhead::cli::main()
}
