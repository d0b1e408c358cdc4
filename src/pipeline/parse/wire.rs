//! What parent and worker say to each other: one request, one reply, over pipes.
//!
//! Request: length of the header (4 bytes, little endian), header (JSON), the document's bytes. Reply: JSON up to the
//! end of the stream; it counts only if the worker then exits with success.
//!
//! **Invariant:** the parent believes nothing of a reply but its shape and its bound.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use super::{FileType, ParseError, ParseLimits, Parsed, sandbox::Confinement};

/// Longest header accepted, bytes.
const HEADER_BYTES: u32 = 4096;

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) file_type: FileType,
    pub(super) limits: ParseLimits,
    /// Length of the document that follows, bytes.
    pub(super) document_bytes: u64,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    /// How well the worker was confined when it read the document.
    pub(super) confinement: Confinement,
    pub(super) outcome: Result<Parsed, ParseError>,
}

impl Header {
    /// The header as it goes over the pipe, its length first.
    pub(super) fn frame(&self) -> io::Result<Vec<u8>> {
        let header = serde_json::to_vec(self)?;
        let length = u32::try_from(header.len()).map_err(io::Error::other)?;
        let mut frame = length.to_le_bytes().to_vec();
        frame.extend(header);
        Ok(frame)
    }

    /// Reads a header, and nothing of the document behind it.
    pub(super) fn read(source: &mut impl Read) -> io::Result<Self> {
        let mut length = [0; 4];
        source.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        if length > HEADER_BYTES {
            return Err(io::Error::other("the request's header is too long"));
        }
        let mut header = vec![0; length as usize];
        source.read_exact(&mut header)?;
        Ok(serde_json::from_slice(&header)?)
    }
}

/// The longest reply an honest worker sends: every byte of text may be escaped, and a section's frame is shorter than
/// twice what the outline charges for it.
pub(super) const fn reply_bound(limits: &ParseLimits) -> u64 {
    limits.output_bytes.saturating_mul(2).saturating_add(64 << 10)
}
