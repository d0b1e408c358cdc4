//! What an examination of a deployment found, in words for the person who runs it.
//!
//! **Invariant:** identities, names of tables and roles, and numbers; never a word of a document or a secret.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How much a finding matters.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know; nothing has to be done.
    Note,
    /// It works, and will not for ever, or worse than it could.
    Warning,
    /// It does not work, or tenants are not kept apart as they should be.
    Error,
}

impl Severity {
    /// The severity's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that is wrong, why that matters and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What was looked at, as `database.isolation`: a stable name for programs.
    pub check: String,
    /// What is wrong.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// How to mend it.
    pub mend: String,
    /// A line to type or, where `mend` says so, a statement for the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

impl Finding {
    /// A finding without a line to type.
    #[must_use]
    pub fn new(severity: Severity, check: &str, what: impl Into<String>, why: &str, mend: &str) -> Self {
        Self {
            severity,
            check: check.to_owned(),
            what: what.into(),
            why: why.to_owned(),
            mend: mend.to_owned(),
            command: None,
        }
    }

    /// The same with a line to type.
    #[must_use]
    pub fn typing(self, command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..self }
    }
}

/// A tenant and a number of something that is its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TenantCount {
    /// The tenant.
    pub tenant_id: Uuid,
    /// How many.
    pub count: i64,
}

/// Connections of a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RoleCount {
    /// The role in the database.
    pub role: String,
    /// Connections to this database.
    pub count: i64,
}

/// What is to be known of a deployment though nothing is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Facts {
    /// PostgreSQL's version.
    pub postgresql: Option<String>,
    /// pgvector's version.
    pub pgvector: Option<String>,
    /// The tenants with the most chunks, the largest first.
    pub largest_tenants: Vec<TenantCount>,
    /// Connections by role.
    pub connections: Vec<RoleCount>,
    /// How many there may be.
    pub max_connections: Option<i64>,
    /// Connections that tenants hold at this moment; only a running server knows.
    pub tenant_connections: Vec<TenantCount>,
}

/// What could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Skipped {
    /// What.
    pub check: String,
    /// Why not.
    pub why: String,
}

/// What an examination found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Report {
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// What is to be known besides.
    pub facts: Facts,
    /// What could not be looked at.
    pub skipped: Vec<Skipped>,
}

impl Report {
    /// Adds that something could not be looked at.
    pub fn skip(&mut self, check: &str, why: impl Into<String>) {
        self.skipped.push(Skipped { check: check.to_owned(), why: why.into() });
    }

    /// Takes over what another examination found; its facts count.
    pub fn merge(&mut self, other: Self) {
        self.findings.extend(other.findings);
        self.skipped.extend(other.skipped);
        self.facts = other.facts;
    }

    /// The worst first; what is equally bad stays in its order.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        self
    }

    /// The worst that was found.
    #[must_use]
    pub fn worst(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Note)
    }
}
