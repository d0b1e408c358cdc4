//! Where a tenant's vectors are in a server that many tenants use.

use async_trait::async_trait;

use super::error::StoreError;
use crate::tenancy::{Permit, Write};

/// Beside whom a tenant's vectors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// In a collection of the tenant's own. A token for it reaches no other tenant.
    Own,
    /// In a collection with other tenants, apart by tag and filter alone. A token for it reaches all of them.
    Shared,
}

impl Placement {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Shared => "shared",
        }
    }

    /// As [`Placement::name`] writes it.
    #[must_use]
    pub fn parse(raw: &str) -> Option<Self> {
        [Self::Own, Self::Shared].into_iter().find(|placement| placement.name() == raw)
    }
}

/// What one model's vectors of a tenant were found to be before they were served from where they were moved to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct MovedModel {
    /// The model.
    pub model: String,
    /// Namespaces that were compared.
    pub namespaces: u64,
    /// Points that were compared with the rows, each by identity and version.
    pub points: u64,
    /// A checksum over all of their identities and versions, hexadecimal.
    pub checksum: String,
}

/// Whoever can move a tenant's vectors from one placement to another.
#[async_trait]
pub trait Placements: Send + Sync {
    /// Moves what a tenant has to the placement that was chosen for it
    /// ([`placement_choose`](super::Stores::placement_choose)): nothing, when it is there already. Questions and writes
    /// go on. Broken off anywhere, the placement before goes on being served, and it is to be called again.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`, or `Conflict` when another move came between; `Damaged` when what was written is not
    /// what the rows say.
    async fn place(&self, permit: &Permit<Write>, to: Placement) -> Result<Vec<MovedModel>, StoreError>;

    /// Has the moves end that are under way, and waits for them: what they have written goes, and the placement before
    /// is served. Whoever asks for one afterwards is told `Unavailable`.
    async fn end(&self);
}
