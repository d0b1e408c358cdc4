//! One file of a spool: frames one after the other.
//!
//! **Invariant:** a frame is read whole and with its CRC-32, or it is the end.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Bytes before a record: its length and its CRC-32, little endian.
const HEAD: usize = 8;
/// The longest record, bytes: far beyond the longest event.
const LONGEST: usize = 8 << 20;

/// One file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// The number of its first record.
    pub(super) begins: u64,
    /// How long it is.
    pub(super) bytes: u64,
}

impl Segment {
    pub(super) fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{:020}.spool", self.begins))
    }
}

/// A record as it is written.
pub(super) fn frame(record: &[u8]) -> io::Result<Vec<u8>> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "the record is too long");
    let length = u32::try_from(record.len()).map_err(|_| too_long())?;
    if record.len() > LONGEST {
        return Err(too_long());
    }
    let mut framed = Vec::with_capacity(HEAD + record.len());
    framed.extend_from_slice(&length.to_le_bytes());
    framed.extend_from_slice(&crc32fast::hash(record).to_le_bytes());
    framed.extend_from_slice(record);
    Ok(framed)
}

/// The files of a folder, in order.
pub(super) fn list(folder: &Path) -> io::Result<VecDeque<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".spool"));
        if let Some(begins) = number.and_then(|number| number.parse().ok()).filter(|begins| *begins > 0) {
            segments.push(Segment { begins, bytes: entry.metadata()?.len() });
        }
    }
    segments.sort_by_key(|segment| segment.begins);
    Ok(segments.into())
}

/// A file to append to, made when it is not there.
pub(super) fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// What of a file is whole.
pub(super) struct Whole {
    pub(super) bytes: u64,
    /// The number after its last whole record.
    pub(super) next: u64,
}

/// Reads a file up to its first frame that is not whole.
pub(super) fn whole(path: &Path, begins: u64) -> io::Result<Whole> {
    let mut reader = Reader::open(path, 0)?;
    let mut next = begins;
    while reader.next()?.is_some() {
        next += 1;
    }
    Ok(Whole { bytes: reader.offset(), next })
}

/// Cuts a file off, durably.
pub(super) fn cut(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(bytes)?;
    file.sync_all()
}

/// Reads frames.
pub(super) struct Reader {
    file: BufReader<File>,
    offset: u64,
}

impl Reader {
    pub(super) fn open(path: &Path, offset: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self { file: BufReader::new(file), offset })
    }

    /// The next record; `None`: there is none, or none that is whole.
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; HEAD];
        if !self.fill(&mut head)? {
            return Ok(None);
        }
        let [a, b, c, d, crc @ ..] = head;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Ok(None);
        }
        let mut record = vec![0; length];
        if !self.fill(&mut record)? || crc32fast::hash(&record) != u32::from_le_bytes(crc) {
            return Ok(None);
        }
        self.offset += (HEAD + length) as u64;
        Ok(Some(record))
    }

    /// Bytes up to the end of the last record that was read.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        match self.file.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}
