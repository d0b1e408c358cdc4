//! The child's body: confine, read one document, answer, end.
//!
//! **Invariant:** not a byte of the document is read before the walls stand, and whatever a format library prints goes
//! nowhere.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    panic,
    process::ExitCode,
    thread,
};

use nix::unistd;

use super::{
    Bound, Damage, ParseError, Parsed, formats, sandbox,
    sandbox::Confinement,
    wire::{Header, Reply},
};

/// Stack of the thread that parses, bytes: some format libraries descend by recursion.
const STACK_BYTES: usize = 64 << 20;

/// Body of the hidden subcommand `parse-worker`: reads one framed request on standard input, answers on standard
/// output and returns. To be called before anything else of the program runs, with one thread.
#[must_use]
pub fn worker_main() -> ExitCode {
    // A panic's message may hold words of the document.
    panic::set_hook(Box::new(|_| {}));
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> io::Result<()> {
    sandbox::close_inherited();
    let mut answer = claim_stdout()?;
    let header = Header::read(&mut io::stdin().lock())?;
    let reply = match sandbox::confine(&header.limits) {
        Ok(confinement) => Reply { confinement, outcome: on_large_stack(header) },
        Err(_) => Reply { confinement: Confinement::WithoutLandlock, outcome: Err(ParseError::Unconfined) },
    };
    serde_json::to_writer(&mut answer, &reply)?;
    answer.flush()
}

/// Takes standard output for the reply alone and turns what others print into nothing.
fn claim_stdout() -> io::Result<BufWriter<File>> {
    let answer = unistd::dup(io::stdout())?;
    let nowhere = OpenOptions::new().write(true).open("/dev/null")?;
    unistd::dup2_stdout(nowhere)?;
    Ok(BufWriter::new(File::from(answer)))
}

fn on_large_stack(header: Header) -> Result<Parsed, ParseError> {
    let limit_bytes = header.limits.memory_bytes;
    thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || {
            sandbox::forbid_processes().map_err(|_| ParseError::Unconfined)?;
            read_and_parse(&header)
        })
        .map_err(|_| ParseError::OutOfMemory { limit_bytes })?
        .join()
        .unwrap_or(Err(ParseError::damaged(Damage::Reader)))
}

fn read_and_parse(header: &Header) -> Result<Parsed, ParseError> {
    let limits = &header.limits;
    let too_large = ParseError::TooLarge { what: Bound::Input, limit: limits.input_bytes };
    if header.document_bytes > limits.input_bytes {
        return Err(too_large);
    }
    let length = usize::try_from(header.document_bytes).map_err(|_| too_large)?;
    let mut document = Vec::new();
    document
        .try_reserve_exact(length)
        .map_err(|_| ParseError::OutOfMemory { limit_bytes: limits.memory_bytes })?;
    io::stdin()
        .lock()
        .take(header.document_bytes)
        .read_to_end(&mut document)
        .map_err(|source| ParseError::Worker { source })?;
    #[cfg(feature = "laboratory")]
    if let Some(outcome) = super::laboratory::obey(&document) {
        return outcome;
    }
    formats::parse(header.file_type, document, limits)
}
