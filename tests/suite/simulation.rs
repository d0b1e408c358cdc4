//! The core under simulation: real workers and projectors over models of the stores, in a world in which a seed
//! decides the order of everything. docs/simulation.md says how to read one that fails.
//!
//! `BULKHEAD_SEED=123` runs one seed and prints its history; `BULKHEAD_SEEDS=100000` runs so many.

mod conformance;
mod executor;
mod handles;
mod history;
mod index;
mod invariants;
mod record;
mod script;
mod server;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use executor::World;
use index::ModelIndex;
use script::{Outcome, simulate};
use uuid::Uuid;

use crate::conformance_vectors as suite;

/// Seeds that `make test` runs.
const SEEDS: u64 = 3000;
/// Within so many seeds each fault that is built in is found.
const FOUND_WITHIN: u64 = 500;

/// Faults that can be built into the models, to see that they are found: each takes away what production has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The watermark is written before the shard is flushed.
    WatermarkFirst,
    /// A commit does not look at lease and version.
    FenceIgnored,
    /// A lease does not count as an attempt.
    AttemptsUncounted,
    /// A deletion leaves nothing in the history.
    TombstoneForgotten,
    /// History goes when one consumer has passed it, though another has not, which then does not notice.
    HistoryForgottenEarly,
    /// What came last is applied first.
    OutOfOrder,
    /// An index is written anew from rows that were read before its beginning was.
    RebuiltFromBefore,
}

const ALL_BROKEN: [Broken; 7] = [
    Broken::WatermarkFirst,
    Broken::FenceIgnored,
    Broken::AttemptsUncounted,
    Broken::TombstoneForgotten,
    Broken::HistoryForgottenEarly,
    Broken::OutOfOrder,
    Broken::RebuiltFromBefore,
];

/// The end of an identity, by which histories name it.
fn short(id: Uuid) -> String {
    id.simple().to_string()[26..].to_owned()
}

fn outcome<T>(result: &Result<T, bulkhead::store::StoreError>) -> String {
    result.as_ref().map_or_else(|error| format!("{:?}, {}", error.kind, error.context), |_| "done".to_owned())
}

/// The same, with a panic as a violation.
fn guarded(seed: u64, broken: Option<Broken>, traced: bool) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| simulate(seed, broken, traced))).unwrap_or_else(|_| Outcome {
        violation: Some("a panic, told above".to_owned()),
        trace: Vec::new(),
        fingerprint: String::new(),
    })
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {value}")))
}

fn fails(seed: u64, violation: &str) -> ! {
    let history = guarded(seed, None, true).trace;
    for line in &history {
        println!("{line}");
    }
    panic!("seed {seed}: {violation}\n\nrun it again: make simulate SEED={seed}");
}

#[test]
fn no_interleaving_loses_doubles_resurrects_or_leaves_anything() {
    if let Some(seed) = number("BULKHEAD_SEED") {
        let outcome = guarded(seed, None, true);
        outcome.trace.iter().for_each(|line| println!("{line}"));
        assert_eq!(outcome.violation, None, "seed {seed}");
        return;
    }
    let seeds = number("BULKHEAD_SEEDS").unwrap_or(SEEDS);
    let begun = Instant::now();
    for seed in 0..seeds {
        if let Some(violation) = guarded(seed, None, false).violation {
            fails(seed, &violation);
        }
    }
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = seeds as f64 / minutes;
    println!("{seeds} interleavings in {:.1} s: {rate:.0} a minute", minutes * 60.0);
}

#[test]
fn a_seed_always_gives_the_same_history() {
    for seed in 0..20 {
        let (first, second) = (guarded(seed, None, true), guarded(seed, None, true));
        assert!(first.trace.len() > 50, "things happen");
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.fingerprint, second.fingerprint, "seed {seed}");
        assert_eq!(
            first.fingerprint,
            guarded(seed, None, false).fingerprint,
            "seed {seed}: looking changes nothing"
        );
    }
}

/// Runs one behaviour over an index of its own, in a world of its own.
fn alone<F: Future<Output = ()> + Send + 'static>(behaviour: impl FnOnce(Arc<ModelIndex>) -> F) {
    let world = World::new(1, false);
    let work = behaviour(Arc::new(ModelIndex::new(&world, None)));
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    world.spawn(1, async move {
        work.await;
        end.store(true, Ordering::Relaxed);
    });
    world.run(Duration::from_hours(1), || ());
    assert!(ended.load(Ordering::Relaxed), "it came to its end");
    world.end();
}

/// Those that ask for no vectors, which the model does not compare.
#[test]
fn the_model_of_an_index_does_what_every_index_must_do() {
    macro_rules! behaviours {
        ($($behaviour:ident),*) => {$(alone(|index| async move { suite::$behaviour(index.as_ref()).await });)*};
    }
    behaviours!(
        a_search_sees_only_its_partition,
        a_partition_without_an_index_is_none,
        changes_without_points_count,
        the_same_changes_again_change_nothing,
        a_removed_partition_stays_removed,
        a_rebuild_replaces_what_was_there
    );
}

#[test]
fn every_fault_that_is_built_in_is_found() {
    for broken in ALL_BROKEN {
        let found =
            (0..FOUND_WITHIN).find_map(|seed| Some((seed, guarded(seed, Some(broken), false).violation?)));
        let Some((seed, violation)) = found else {
            panic!("{broken:?} was not found within {FOUND_WITHIN} seeds")
        };
        println!("{broken:?} is found by seed {seed}: {violation}");
    }
}
