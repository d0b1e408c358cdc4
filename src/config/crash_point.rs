//! Named places at which a test kills the process. Releases do nothing there.
//!
//! **Invariant:** without the feature `laboratory` the environment is not even read.

/// Ends the process at once, without a farewell, when `BULKHEAD_CRASH_AT` names this place.
pub fn crash_point(name: &str) {
    #[cfg(feature = "laboratory")]
    if std::env::var("BULKHEAD_CRASH_AT").is_ok_and(|at| at == name) {
        std::process::abort();
    }
    let _ = name;
}
