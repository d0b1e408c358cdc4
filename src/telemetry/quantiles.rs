//! Durations in classes of fixed bounds, from which quantiles are read: little memory, bounded error.

use std::time::Duration;

/// Classes between a duration and its double; a quantile is at most 1/16 off.
const STEPS: u32 = 8;
/// Doublings, from [`SHORTEST`] on: up to about seven minutes.
const DOUBLINGS: u32 = 22;
/// Everything shorter is of the first class, microseconds.
const SHORTEST: u64 = 100;
const CLASSES: usize = (STEPS * DOUBLINGS) as usize;

/// Durations that were counted.
#[derive(Debug, Clone)]
pub(super) struct Durations {
    counts: Box<[u32; CLASSES]>,
    sum: Duration,
}

impl Default for Durations {
    fn default() -> Self {
        Self { counts: Box::new([0; CLASSES]), sum: Duration::ZERO }
    }
}

impl Durations {
    pub(super) fn add(&mut self, took: Duration) {
        let count = &mut self.counts[class(took)];
        *count = count.saturating_add(1);
        self.sum += took;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (own, more) in std::iter::zip(self.counts.iter_mut(), other.counts.iter()) {
            *own = own.saturating_add(*more);
        }
        self.sum += other.sum;
    }

    /// All of them together.
    pub(super) fn sum(&self) -> Duration {
        self.sum
    }

    /// The duration that this share of all did not exceed: the middle of its class. `None` when there is none.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub(super) fn quantile(&self, share: f64) -> Option<Duration> {
        let all: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        let wanted = all as f64 * share;
        let mut seen = 0;
        for (class, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if *count > 0 && seen as f64 >= wanted {
                let bounds = [class, class + 1].map(lower_bound);
                return Some(Duration::from_micros(u64::midpoint(bounds[0], bounds[1])));
            }
        }
        None
    }
}

fn class(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(SHORTEST);
    let doublings = (micros / SHORTEST).ilog2();
    let base = SHORTEST << doublings;
    let step = (micros - base) * u64::from(STEPS) / base;
    let class = u64::from(doublings * STEPS) + step;
    usize::try_from(class).map_or(CLASSES - 1, |class| class.min(CLASSES - 1))
}

/// The shortest duration of a class, microseconds.
fn lower_bound(class: usize) -> u64 {
    let class = class as u64;
    let base = SHORTEST << (class / u64::from(STEPS));
    base + (base * (class % u64::from(STEPS))).div_ceil(u64::from(STEPS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_within_a_sixteenth_of_what_it_is() {
        let mut durations = Durations::default();
        assert_eq!(durations.quantile(0.5), None);
        for millis in 1..=10_000 {
            durations.add(Duration::from_millis(millis));
        }
        for (share, exact) in [(0.5, 5.0_f64), (0.95, 9.5), (0.99, 9.9)] {
            let found = durations.quantile(share).expect("there are some").as_secs_f64();
            assert!((found - exact).abs() <= exact / 16.0, "{share}: {found}");
        }
    }

    #[test]
    fn every_duration_has_a_class_and_every_class_its_durations() {
        for class_of in [Duration::ZERO, Duration::from_hours(1), Duration::MAX] {
            assert!(class(class_of) < CLASSES);
        }
        for at in 0..CLASSES {
            assert_eq!(class(Duration::from_micros(lower_bound(at))), at);
        }
    }
}
