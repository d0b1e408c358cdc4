//! The allocator: what is in use of the memory that it holds, and when it gives back the rest.

use tikv_jemalloc_ctl::{background_thread, epoch, stats};

/// Has a thread give unused memory back to the system, some ten seconds after it was freed; without it that happens
/// only when something else is allocated. Not for a parser's process, which has one thread.
pub fn give_back_when_idle() {
    if let Err(error) = background_thread::write(true) {
        tracing::warn!(%error, "memory that is no longer needed stays with the server while it rests");
    }
}

/// Bytes that this process has allocated and not freed; `None` when the allocator does not tell.
#[must_use]
pub fn allocated() -> Option<usize> {
    epoch::advance().ok()?;
    stats::allocated::read().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_counts_until_it_is_freed() {
        // Far more than what other tests allocate and free meanwhile; no page of it is touched.
        const SIZE: usize = 2 << 30;
        let before = allocated().expect("told");
        let held = std::hint::black_box(Vec::<u8>::with_capacity(SIZE));
        let during = allocated().expect("told");
        drop(held);
        let after = allocated().expect("told");
        assert!(during > before + SIZE / 2, "{before} {during}");
        assert!(after < during - SIZE / 2, "{during} {after}");
    }
}
