//! The stand-in for Qdrant as a program: `qdrant-stand-in FOLDER PORT`, with its API key in `QDRANT_API_KEY`. It says
//! where it listens and that it is a stand-in, and ends when it is told to.

#[path = "qdrant/mod.rs"]
#[expect(dead_code, reason = "the suite uses all of it")]
mod qdrant;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().map(PathBuf::from);
    let port = arguments.next().and_then(|port| port.parse().ok());
    let (Some(folder), Some(port), Ok(key)) = (folder, port, std::env::var("QDRANT_API_KEY")) else {
        eprintln!("usage: QDRANT_API_KEY=... qdrant-stand-in FOLDER PORT");
        return ExitCode::FAILURE;
    };
    let stand_in = qdrant::StandIn::start(&folder, &key, port);
    println!("{} {}", stand_in.url(), qdrant::VERSION);
    loop {
        std::thread::park();
    }
}
