//! The parent's side: starts a worker for each document, speaks to it, and ends it.
//!
//! **Invariant:** no worker outlives the call that started it, whether that returns, times out or is dropped.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Once},
};

use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    sync::Semaphore,
    time,
};

use super::{
    Bound, Damage, FileType, ParseError, ParseLimits, Parsed, WORKER_COMMAND,
    sandbox::Confinement,
    wire::{self, Header, Reply},
};

/// How much of a worker's standard error is looked at, bytes.
const LAST_WORDS_BYTES: u64 = 4096;
/// What Rust's runtime says before it aborts for want of memory.
const OUT_OF_MEMORY: &[u8] = b"memory allocation of ";
/// What it says before it aborts because a recursion went too deep.
const OUT_OF_STACK: &[u8] = b"has overflowed its stack";

/// Parses documents in child processes, a bounded number at a time. Cheap to clone; clones share the bound.
#[derive(Debug, Clone)]
pub struct Parser {
    program: Arc<Path>,
    limits: ParseLimits,
    workers: Arc<Semaphore>,
}

/// What came back from a worker.
struct Remains {
    reply: Vec<u8>,
    last_words: Vec<u8>,
    status: ExitStatus,
}

impl Parser {
    /// A parser that starts `program` (this program's own path) with the argument [`WORKER_COMMAND`], at most
    /// `workers` (at least one) at a time.
    #[must_use]
    pub fn new(program: PathBuf, limits: ParseLimits, workers: usize) -> Self {
        Self {
            program: program.into(),
            limits,
            workers: Arc::new(Semaphore::new(workers.clamp(1, Semaphore::MAX_PERMITS))),
        }
    }

    /// Parses one document. Waits for a free worker first; the deadline counts from the worker's start. Dropping the
    /// future ends the worker.
    ///
    /// # Errors
    /// Every [`ParseError`] but [`ParseError::Unsupported`]; [`ParseError::is_permanent`] tells whether another
    /// attempt may help.
    pub async fn parse(&self, file_type: FileType, bytes: Bytes) -> Result<Parsed, ParseError> {
        if bytes.is_empty() {
            return Err(ParseError::Empty);
        }
        if bytes.len() as u64 > self.limits.input_bytes {
            return Err(ParseError::TooLarge { what: Bound::Input, limit: self.limits.input_bytes });
        }
        let _worker = self.workers.acquire().await.map_err(io::Error::other).map_err(worker)?;
        let mut child = self.start().map_err(worker)?;
        let finished = time::timeout(self.limits.wall(), self.converse(&mut child, file_type, &bytes)).await;
        let Ok(remains) = finished else {
            // Waiting for the end here keeps the bound on workers honest.
            child.kill().await.map_err(worker)?;
            return Err(ParseError::Timeout { seconds: self.limits.wall_seconds });
        };
        // It was started, so what it did to the pipes is the document's doing.
        let remains = remains.map_err(|error| {
            tracing::info!(%error, "a parse worker could not be heard");
            ParseError::Crashed { signal: None }
        })?;
        self.judge(remains).await
    }

    fn start(&self) -> io::Result<Child> {
        Command::new(&*self.program)
            .arg(WORKER_COMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A signal typed at the terminal is the server's to handle.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    async fn converse(
        &self,
        child: &mut Child,
        file_type: FileType,
        document: &Bytes,
    ) -> io::Result<Remains> {
        let missing = || io::Error::other("a pipe to the worker is missing");
        let mut input = child.stdin.take().ok_or_else(missing)?;
        let mut output = child.stdout.take().ok_or_else(missing)?;
        let mut errors = child.stderr.take().ok_or_else(missing)?;
        let header =
            Header { file_type, limits: self.limits, document_bytes: document.len() as u64 }.frame()?;
        let ask = async move {
            // A worker that has refused or died closes its end; its reply or its status says why.
            if input.write_all(&header).await.is_ok() {
                let _ = input.write_all(document).await;
            }
        };
        let bound = wire::reply_bound(&self.limits);
        let hear = async move {
            let mut reply = Vec::new();
            let read = (&mut output).take(bound + 1).read_to_end(&mut reply).await?;
            if read as u64 > bound {
                return Err(io::Error::other("the worker's reply is too long"));
            }
            Ok(reply)
        };
        let overhear = async move {
            let mut last_words = Vec::new();
            let _ = (&mut errors).take(LAST_WORDS_BYTES).read_to_end(&mut last_words).await;
            let _ = tokio::io::copy(&mut errors, &mut tokio::io::sink()).await;
            last_words
        };
        let both = async {
            let ((), heard, last_words) = tokio::join!(ask, hear, overhear);
            heard.map(|reply| (reply, last_words))
        };
        let (reply, last_words) = match both.await {
            Ok(heard) => heard,
            Err(error) => {
                child.kill().await?;
                return Err(error);
            }
        };
        let status = child.wait().await?;
        Ok(Remains { reply, last_words, status })
    }

    async fn judge(&self, remains: Remains) -> Result<Parsed, ParseError> {
        if !remains.status.success() {
            return Err(self.cause_of_death(&remains));
        }
        // Tens of megabytes of JSON would hold up everything else on this thread.
        let reply: Reply = tokio::task::spawn_blocking(move || serde_json::from_slice(&remains.reply))
            .await
            .map_err(io::Error::other)
            .map_err(worker)?
            .map_err(|_| ParseError::Crashed { signal: None })?;
        if reply.confinement == Confinement::WithoutLandlock {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                tracing::warn!("this kernel has no Landlock: parse workers are confined without it");
            });
        }
        reply.outcome
    }

    fn cause_of_death(&self, remains: &Remains) -> ParseError {
        let signal = remains.status.signal();
        let named = signal.and_then(|number| Signal::try_from(number).ok());
        let said = |words: &[u8]| remains.last_words.windows(words.len()).any(|window| window == words);
        match named {
            Some(Signal::SIGXCPU) => ParseError::TooSlow { seconds: self.limits.cpu_seconds },
            Some(Signal::SIGALRM) => ParseError::Timeout { seconds: self.limits.wall_seconds },
            Some(Signal::SIGABRT) if said(OUT_OF_MEMORY) => {
                ParseError::OutOfMemory { limit_bytes: self.limits.memory_bytes }
            }
            // Certain to happen again, unlike a crash of unknown cause.
            Some(Signal::SIGABRT) if said(OUT_OF_STACK) => ParseError::damaged(Damage::Reader),
            _ => ParseError::Crashed { signal },
        }
    }
}

fn worker(source: io::Error) -> ParseError {
    ParseError::Worker { source }
}
