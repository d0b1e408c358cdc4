//! Bulkhead.
