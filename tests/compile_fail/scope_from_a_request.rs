use bulkhead::config::{ConfigError, load};
use bulkhead::tenancy::TenantScope;

/// `load` reads anything that can be read from outside.
pub fn forge() -> Result<TenantScope, ConfigError> {
    load(None)
}
