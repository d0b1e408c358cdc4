//! A question, parsed at the door.

use serde::{Deserialize, Serialize};

/// How the answer's material is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Entities near the question, with their relations and chunks.
    Local,
    /// Relations near the question, with their ends and chunks.
    Global,
    /// Local and global, in turn.
    Hybrid,
    /// Chunks alone: dense and lexical search, fused.
    Naive,
    /// Naive, with a walk over the graph.
    #[default]
    Mix,
    /// No retrieval: the language model alone.
    Bypass,
}

impl Mode {
    /// The mode of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "local" => Self::Local,
            "global" => Self::Global,
            "hybrid" => Self::Hybrid,
            "naive" => Self::Naive,
            "mix" => Self::Mix,
            "bypass" => Self::Bypass,
            _ => return None,
        })
    }

    /// The mode's name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Global => "global",
            Self::Hybrid => "hybrid",
            Self::Naive => "naive",
            Self::Mix => "mix",
            Self::Bypass => "bypass",
        }
    }
}

/// A number of results, 1 to 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopK(u16);

impl TopK {
    /// `None` outside 1 to 1000.
    #[must_use]
    pub fn new(raw: i64) -> Option<Self> {
        u16::try_from(raw).ok().filter(|n| (1..=1000).contains(n)).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> usize {
        usize::from(self.0)
    }
}
