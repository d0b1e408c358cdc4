use bulkhead::tenancy::{Action, Role};

/// An action that every reader may do.
pub enum Anything {}

impl Action for Anything {
    const NAME: &'static str = "anything";
    const ROLE: Role = Role::Reader;
}
