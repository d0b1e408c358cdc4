//! A local append-only file of events that wait to be forwarded into a log elsewhere.
//!
//! A record is its length, its CRC-32 and its bytes, and has a number: the spool's first is 1, each later one the
//! next. Records lie in segments, files named by the number of their first record. What was forwarded is passed, and
//! a segment that was passed as a whole is removed.
//!
//! A record is with the kernel when [`Spool::append`] returns, so it survives the end of the process; [`Spool::sync`]
//! makes it survive the loss of power. Whoever owns the spool syncs it at least each second.
//!
//! **Invariant:** only what was synced is read, so that no number that was forwarded is given out again after a crash.
//! **Invariant:** a torn end, and only the end, is cut off when a spool is opened; damage elsewhere is counted as lost.
//! **Invariant:** a spool never grows beyond its bound; what does not fit is refused.

mod segment;

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use crate::domain::ids::IdSource;
use crate::tenancy::secret_file::{self, SecretFileError};
use segment::{Segment, frame};

/// Bytes of a segment after which the next one is begun.
const SEGMENT_BYTES: u64 = 4 << 20;
/// The smallest bound: some segments, so that passing one makes room.
pub const LEAST_BYTES: u64 = 4 * SEGMENT_BYTES;

/// A record could not be taken, or the spool not be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It holds as much as it may.
    #[error("the spool is full")]
    Full,
    /// Its files cannot be read or written.
    #[error("the spool's files cannot be used")]
    Io(#[from] io::Error),
    /// Its identity cannot be read or made.
    #[error("the spool has no identity")]
    Identity(#[from] SecretFileError),
    /// Its identity is none.
    #[error("the spool's identity is none")]
    Name(#[from] uuid::Error),
}

/// The spool of one data folder.
#[derive(Debug)]
pub struct Spool {
    id: Uuid,
    folder: PathBuf,
    limit: u64,
    end: Mutex<End>,
    /// Where the next batch begins.
    start: Mutex<Position>,
    passed: AtomicU64,
    synced: AtomicU64,
    lost: AtomicU64,
}

/// Where records are appended.
#[derive(Debug)]
struct End {
    file: Arc<File>,
    segments: VecDeque<Segment>,
    /// The number of the next record.
    next: u64,
}

/// A place between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    /// The number of the record after it.
    next: u64,
    /// The number of the first record of its segment.
    segment: u64,
    /// Bytes of its segment before it.
    offset: u64,
}

/// Records to be forwarded.
#[derive(Debug)]
pub struct Batch {
    /// Each with its number.
    pub records: Vec<(u64, Vec<u8>)>,
    /// Records before its end that could not be read.
    pub damaged: u64,
    end: Position,
}

impl Spool {
    /// Opens the spool in a folder, or makes it. `limit`: bytes, at least [`LEAST_BYTES`].
    ///
    /// # Errors
    /// [`SpoolError`] when its files cannot be used.
    pub fn open(folder: &Path, limit: u64, ids: &dyn IdSource) -> Result<Self, SpoolError> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let name = secret_file::load_or_create(&folder.join("identity"), || ids.uuid().to_string().into())?;
        let id = name.expose_secret().trim().parse()?;
        let mut segments = segment::list(folder)?;
        let mut next = 1;
        if let Some(last) = segments.back_mut() {
            let whole = segment::whole(&last.path(folder), last.begins)?;
            if whole.bytes < last.bytes {
                let cut = last.bytes - whole.bytes;
                tracing::warn!(cut, "the audit spool ended within a record, which is cut off");
                segment::cut(&last.path(folder), whole.bytes)?;
                last.bytes = whole.bytes;
            }
            next = whole.next;
        }
        let passed = read_passed(folder);
        if segments.is_empty() || next <= passed {
            // No number is given out twice, whatever became of the records.
            next = next.max(passed + 1);
            segments.push_back(Segment { begins: next, bytes: 0 });
        }
        let passed = passed.max(segments[0].begins - 1);
        let last = segments[segments.len() - 1];
        let file = Arc::new(segment::append_to(&last.path(folder))?);
        // What was there before is made durable now, so that it can be read.
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        let first = segments[0];
        Ok(Self {
            id,
            folder: folder.to_owned(),
            limit,
            end: Mutex::new(End { file, segments, next }),
            start: Mutex::new(Position { next: first.begins, segment: first.begins, offset: 0 }),
            passed: AtomicU64::new(passed),
            synced: AtomicU64::new(next - 1),
            lost: AtomicU64::new(0),
        })
    }

    /// Its identity: another spool's numbers are others.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Appends a record. A copy into the kernel's memory: whoever calls may be async.
    ///
    /// # Errors
    /// `Full`, or `Io`; then nothing of it is there.
    pub fn append(&self, record: &[u8]) -> Result<(), SpoolError> {
        let framed = frame(record)?;
        let bytes = framed.len() as u64;
        let mut end = self.end.lock();
        let held: u64 = end.segments.iter().map(|segment| segment.bytes).sum();
        if held + bytes > self.limit {
            return Err(SpoolError::Full);
        }
        let mut last = end.segments.len() - 1;
        if end.segments[last].bytes >= SEGMENT_BYTES {
            end.file.sync_data()?;
            let fresh = Segment { begins: end.next, bytes: 0 };
            end.file = Arc::new(segment::append_to(&fresh.path(&self.folder))?);
            File::open(&self.folder)?.sync_all()?;
            end.segments.push_back(fresh);
            last += 1;
        }
        if let Err(error) = io::Write::write_all(&mut end.file.as_ref(), &framed) {
            // So that the next record does not follow half of this one.
            end.file.set_len(end.segments[last].bytes)?;
            return Err(error.into());
        }
        end.segments[last].bytes += bytes;
        end.next += 1;
        Ok(())
    }

    /// Makes what was appended survive a loss of power. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// `Io`.
    pub fn sync(&self) -> Result<(), SpoolError> {
        let (file, last) = {
            let end = self.end.lock();
            (Arc::clone(&end.file), end.next - 1)
        };
        if self.synced.load(Ordering::Acquire) < last {
            file.sync_data()?;
            self.synced.fetch_max(last, Ordering::AcqRel);
        }
        Ok(())
    }

    /// The oldest records that were not passed yet, at most so many; `None`: there are none that were synced.
    ///
    /// # Errors
    /// `Io`.
    pub fn read(&self, limit: usize) -> Result<Option<Batch>, SpoolError> {
        let (passed, synced) = (self.passed(), self.synced.load(Ordering::Acquire));
        let mut position = *self.start.lock();
        let mut segments: Vec<Segment> = self.end.lock().segments.iter().copied().collect();
        segments.retain(|segment| segment.begins >= position.segment);
        let mut batch = Batch { records: Vec::new(), damaged: 0, end: position };
        for (index, segment) in segments.iter().enumerate() {
            if segment.begins > position.segment {
                position = Position { next: segment.begins, segment: segment.begins, offset: 0 };
            }
            let mut reader = segment::Reader::open(&segment.path(&self.folder), position.offset)?;
            while position.next <= synced && batch.records.len() < limit {
                let Some(record) = reader.next()? else { break };
                if position.next > passed {
                    batch.records.push((position.next, record));
                }
                position = Position { next: position.next + 1, offset: reader.offset(), ..position };
            }
            // Whatever lies between what could be read and the next segment is gone.
            let until = segments.get(index + 1).map_or(u64::MAX, |next| next.begins).min(synced + 1);
            if batch.records.len() < limit && position.next < until {
                batch.damaged += until.saturating_sub(position.next.max(passed + 1));
                position.next = until;
            }
            batch.end = position;
            if batch.records.len() >= limit || position.next > synced {
                break;
            }
        }
        Ok((!batch.records.is_empty() || batch.damaged > 0).then_some(batch))
    }

    /// Forgets the records of a batch and all before: they are in the log, or counted as lost.
    ///
    /// # Errors
    /// `Io`; then they are read again after the next start.
    pub fn pass(&self, batch: &Batch) -> Result<(), SpoolError> {
        self.lost(batch.damaged);
        *self.start.lock() = batch.end;
        let passed = batch.end.next - 1;
        self.passed.store(passed, Ordering::Release);
        let file = self.folder.join("passed");
        let beside = self.folder.join("passed.new");
        fs::write(&beside, passed.to_string())?;
        fs::rename(&beside, &file)?;
        let mut end = self.end.lock();
        while end.segments.len() > 1 && end.segments[1].begins <= passed + 1 {
            if let Some(gone) = end.segments.pop_front() {
                fs::remove_file(gone.path(&self.folder))?;
            }
        }
        Ok(())
    }

    /// Counts records that are lost.
    pub fn lost(&self, records: u64) {
        self.lost.fetch_add(records, Ordering::Relaxed);
    }

    /// How many records were lost since it was opened.
    #[must_use]
    pub fn lost_count(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// How many records wait.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        (self.end.lock().next - 1).saturating_sub(self.passed())
    }

    fn passed(&self) -> u64 {
        self.passed.load(Ordering::Acquire)
    }
}

/// Up to which record was forwarded, as far as it is known: what is not is forwarded again, and known there.
fn read_passed(folder: &Path) -> u64 {
    let text = fs::read_to_string(folder.join("passed")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests;
