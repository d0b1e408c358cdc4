//! Bounds on what one document may cost.
//!
//! **Invariant:** every bound is set from the configuration and has a value; none can be switched off.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bounds for one document, section `[parse]` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParseLimits {
    /// Address space of a worker, bytes. Default 1 GiB, of which the program itself maps about a tenth.
    pub memory_bytes: u64,
    /// Processor time of a worker, seconds. Default 60.
    pub cpu_seconds: u64,
    /// Time from start to answer, seconds. Default 120.
    pub wall_seconds: u64,
    /// Size of an upload, bytes. Default 100 MiB.
    pub input_bytes: u64,
    /// Size of all text of a document, headings included, bytes of UTF-8. Default 64 MiB.
    pub output_bytes: u64,
    /// Size of a zip container (docx, pptx, xlsx, epub) when unpacked, bytes. Default 512 MiB.
    pub unpacked_bytes: u64,
    /// How many times larger than the upload an unpacked container may be, once it passes 16 MiB. Default 200.
    pub unpack_ratio: u64,
    /// Entries of a zip container. Default 10,000.
    pub archive_entries: u64,
    /// Nesting of elements, objects and lists, levels. Default 256. JSON stops at 127 in any case.
    pub nesting_depth: u32,
}

impl ParseLimits {
    /// Time from start to answer.
    #[must_use]
    pub const fn wall(&self) -> Duration {
        Duration::from_secs(self.wall_seconds)
    }
}

impl Default for ParseLimits {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            memory_bytes: 1024 * MIB,
            cpu_seconds: 60,
            wall_seconds: 120,
            input_bytes: 100 * MIB,
            output_bytes: 64 * MIB,
            unpacked_bytes: 512 * MIB,
            unpack_ratio: 200,
            archive_entries: 10_000,
            nesting_depth: 256,
        }
    }
}
