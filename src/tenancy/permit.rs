//! Proofs that an action was checked.

use std::marker::PhantomData;

use super::scope::{Role, TenantScope};

/// Keeps actions to those below: one made elsewhere could name a lesser role.
mod sealed {
    pub trait Sealed {}
}

/// Something a caller may be allowed to do.
pub trait Action: sealed::Sealed + Send + Sync + 'static {
    /// The action's name, for audit and refusals.
    const NAME: &'static str;
    /// The least role that includes it.
    const ROLE: Role;
}

/// An action that reads tenant data.
pub trait Reads: Action {}
/// An action that changes tenant data.
pub trait Writes: Reads {}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident, $wire:literal, $role:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub enum $name {}
        impl sealed::Sealed for $name {}
        impl Action for $name {
            const NAME: &'static str = $wire;
            const ROLE: Role = Role::$role;
        }
        impl Reads for $name {}
    )*};
}

actions! {
    /// Query, list, look at the graph.
    Read, "read", Reader;
    /// Ingest, replace, delete.
    Write, "write", Writer;
    /// Manage namespaces and keys, read the audit log of the own tenant.
    Administer, "administer", TenantAdmin;
}

impl Writes for Write {}
impl Writes for Administer {}

/// The caller's role does not include the action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the credential does not allow to {action}")]
pub struct Denied {
    /// The action that was asked for.
    pub action: &'static str,
}

/// Proof that a scope may do `A`.
#[derive(Debug, Clone)]
pub struct Permit<A> {
    scope: TenantScope,
    action: PhantomData<fn() -> A>,
}

impl<A: Action> Permit<A> {
    pub(in crate::tenancy) fn new(scope: TenantScope) -> Self {
        Self { scope, action: PhantomData }
    }

    /// The scope that holds the permission.
    #[must_use]
    pub fn scope(&self) -> &TenantScope {
        &self.scope
    }
}
