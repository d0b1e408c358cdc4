//! The database roles of Bulkhead: their names, attributes and time limits.
//!
//! Each role can do one thing, so that a mistake in one part of the program meets a refusal in the
//! database. Table grants are given by the migrations; this file owns what belongs to a role itself.
//!
//! **Invariant:** no role here is a superuser, and only [`Role::Backup`] passes row-level security;
//! it cannot log in.

use std::fmt;

/// A database role that Bulkhead connects as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Owns the database and its tables; runs migrations, then closes its connection.
    Owner,
    /// Reads and writes tenant tables, under row-level security. Owns nothing.
    App,
    /// Reads the columns of credentials that a sign-in needs.
    Auth,
    /// Sees the heads of jobs and outbox: ids, kind, cost, due time. No content, no names.
    Dispatch,
    /// Administers tenants and keys.
    Control,
    /// Reads everything for a backup. May log in only while a backup runs.
    Backup,
}

impl Role {
    /// Every role, in the order in which they are created.
    pub const ALL: [Self; 6] =
        [Self::Owner, Self::App, Self::Auth, Self::Dispatch, Self::Control, Self::Backup];

    /// The role's name in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Owner => "bulkhead_owner",
            Self::App => "bulkhead_app",
            Self::Auth => "bulkhead_auth",
            Self::Dispatch => "bulkhead_dispatch",
            Self::Control => "bulkhead_control",
            Self::Backup => "bulkhead_backup",
        }
    }

    /// Whether the role may log in outside a backup.
    #[must_use]
    pub const fn may_log_in(self) -> bool {
        !matches!(self, Self::Backup)
    }

    /// Whether row-level security does not apply to the role.
    #[must_use]
    pub const fn bypasses_row_security(self) -> bool {
        matches!(self, Self::Backup)
    }

    /// Settings every session of the role starts with, as (name, value in milliseconds). The owner
    /// and the backup have none: a migration or a dump may take as long as it takes.
    #[must_use]
    pub const fn session_settings(self) -> &'static [(&'static str, &'static str)] {
        const IDLE: (&str, &str) = ("idle_in_transaction_session_timeout", "30000");
        match self {
            Self::Owner | Self::Backup => &[],
            Self::App | Self::Control => &[IDLE, ("statement_timeout", "30000")],
            Self::Dispatch => &[IDLE, ("statement_timeout", "10000")],
            Self::Auth => &[IDLE, ("statement_timeout", "5000")],
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}
