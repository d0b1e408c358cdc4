//! Projection as two small models, of which every state is looked at: shards in one server, and one Qdrant collection
//! under two servers. What each does without one of its protections is found; and paths of both are replayed on the
//! real code, step by step. See `docs/simulation.md`.

mod collection;
mod cover;
mod record;
mod replay_collection;
mod replay_shards;
mod shards;

use std::time::Instant;

use futures::{StreamExt as _, stream};
use stateright::{Checker as _, HasDiscoveries, Model};

use collection::Collection;
use record::Broken;
use shards::Shards;

/// Paths that are replayed at once.
const AT_ONCE: usize = 4;

const OWN: &str = "a search returns no other partition's point";
const APPLIED: &str = "what is told as applied is applied";
const NOTHING_BACK: &str = "no transaction brings a version back";
const TOLD_TRULY: &str = "an index at the record's position is equal to it";
const CONVERGES: &str = "when faults end the index becomes the record";
const LEFT: &str = "what a crash leaves holds everything up to its record";

/// Transactions by partition, faults, rebuilds, and how often time passes.
const fn collection(writes: [u8; 2], faults: u8, rebuilds: u8, waits: u8) -> Collection {
    Collection { writes, faults, rebuilds, waits, broken: None }
}

const fn shards(writes: [u8; 2], faults: u8, rebuilds: u8) -> Shards {
    Shards { writes, faults, rebuilds, broken: None }
}

/// Looks at every state, and sees that every property holds in each.
fn hold<M: Model + Send + Sync + std::fmt::Debug + 'static>(model: M)
where
    M::State: Send + Sync + std::hash::Hash + Clone + std::fmt::Debug + PartialEq,
    M::Action: Send + Sync + Clone + std::fmt::Debug + PartialEq,
{
    let (name, begun) = (format!("{model:?}"), Instant::now());
    let checked = model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "{name}: {} states, {} steps, up to {} deep, in {:.1?}",
        checked.unique_state_count(),
        checked.state_count(),
        checked.max_depth(),
        begun.elapsed()
    );
    assert!(checked.unique_state_count() > 1_000, "there is something to look at");
    checked.assert_properties();
}

/// The shortest path on which a model that does without something breaks a property.
fn counterexample<M: Model + Send + Sync + 'static>(model: M, property: &'static str) -> Vec<M::Action>
where
    M::State: Send + Sync + std::hash::Hash + Clone + std::fmt::Debug + PartialEq,
    M::Action: Send + Sync + Clone + std::fmt::Debug + PartialEq,
{
    let until = HasDiscoveries::AnyOf([property].into());
    let checked = model.checker().finish_when(until).spawn_bfs().join();
    checked.discovery(property).expect("the property is broken").into_actions()
}

fn broken_collection(broken: Broken) -> Vec<collection::Action> {
    let (bounds, property) = match broken {
        Broken::CommitFence => (collection([3, 0], 0, 0, 0), NOTHING_BACK),
        Broken::PositionFence => (collection([3, 0], 0, 1, 0), APPLIED),
        Broken::StampCondition | Broken::Tombstones => (collection([2, 0], 1, 0, 0), TOLD_TRULY),
        Broken::HeadLast => (collection([1, 0], 1, 0, 0), APPLIED),
        Broken::Generations => (collection([2, 0], 1, 1, 0), APPLIED),
        Broken::PurgeTime => (collection([2, 0], 1, 0, 1), TOLD_TRULY),
        Broken::SecondSweep | Broken::Abandoned => (collection([2, 0], 1, 1, 0), CONVERGES),
        Broken::TagFilter => (collection([1, 1], 0, 0, 0), OWN),
        Broken::FlushFirst | Broken::PositionFirst => unreachable!("of the shards alone"),
    };
    counterexample(Collection { broken: Some(broken), ..bounds }, property)
}

fn broken_shards(broken: Broken) -> Vec<shards::Action> {
    let (bounds, property) = match broken {
        Broken::PositionFence => (shards([3, 0], 2, 0), APPLIED),
        Broken::FlushFirst => (shards([1, 0], 1, 0), LEFT),
        Broken::PositionFirst => (shards([2, 0], 0, 1), CONVERGES),
        _ => unreachable!("of a collection alone"),
    };
    counterexample(Shards { broken: Some(broken), ..bounds }, property)
}

/// What a collection's model can do without.
const OF_A_COLLECTION: [Broken; 10] = [
    Broken::CommitFence,
    Broken::PositionFence,
    Broken::StampCondition,
    Broken::Tombstones,
    Broken::HeadLast,
    Broken::Generations,
    Broken::PurgeTime,
    Broken::SecondSweep,
    Broken::Abandoned,
    Broken::TagFilter,
];

const OF_SHARDS: [Broken; 3] = [Broken::PositionFence, Broken::FlushFirst, Broken::PositionFirst];

/// Whether the larger bounds are asked for, as a long run does.
fn is_large() -> bool {
    std::env::var("MODEL").is_ok_and(|which| which == "large")
}

#[test]
fn every_state_of_a_collection_under_two_servers_keeps_what_is_promised() {
    hold(collection([2, 0], 1, 1, 0));
    hold(collection([2, 1], 0, 0, 1));
    hold(collection([1, 1], 1, 0, 1));
    hold(collection([2, 0], 1, 0, 1));
    if is_large() {
        hold(collection([3, 0], 1, 0, 1));
        hold(collection([3, 0], 1, 1, 0));
        hold(collection([2, 1], 0, 1, 1));
        hold(collection([2, 1], 1, 0, 0));
        hold(collection([2, 0], 2, 0, 0));
    }
}

#[test]
fn every_state_of_the_shards_keeps_what_is_promised() {
    hold(shards([3, 1], 2, 1));
    hold(shards([2, 2], 2, 1));
    if is_large() {
        hold(shards([4, 1], 2, 2));
        hold(shards([3, 3], 2, 1));
    }
}

macro_rules! counterexamples {
    ($($name:ident: $find:ident($broken:ident);)*) => {$(
        #[test]
        fn $name() {
            let path = $find(Broken::$broken);
            println!("without {:?}: {path:?}", Broken::$broken);
            assert!(!path.is_empty());
        }
    )*};
}

counterexamples! {
    without_the_fence_of_a_commit_a_version_comes_back: broken_collection(CommitFence);
    without_the_fence_of_a_position_a_collection_loses_changes: broken_collection(PositionFence);
    without_the_condition_of_stamps_what_is_late_comes_back: broken_collection(StampCondition);
    without_tombstones_what_is_late_comes_back: broken_collection(Tombstones);
    with_the_head_before_the_points_a_collection_tells_more_than_it_has: broken_collection(HeadLast);
    with_a_generations_number_given_twice_old_points_are_found: broken_collection(Generations);
    with_tombstones_purged_too_early_what_is_late_comes_back: broken_collection(PurgeTime);
    without_a_second_sweep_something_is_left_of_a_namespace_that_is_gone: broken_collection(SecondSweep);
    without_looking_for_drafts_a_rebuild_that_was_given_up_leaves_its_points: broken_collection(Abandoned);
    without_the_tag_in_the_filter_a_neighbours_point_is_found: broken_collection(TagFilter);
    without_the_fence_of_a_position_a_shard_loses_changes: broken_shards(PositionFence);
    with_the_watermark_before_the_flush_a_crash_loses_points: broken_shards(FlushFirst);
    with_its_position_read_after_its_rows_a_rebuild_loses_changes: broken_shards(PositionFirst);
}

/// The kind of a step: what is sent and what becomes of it, no matter by whom.
fn kind_in_a_collection(state: &collection::State, action: &collection::Action) -> String {
    use collection::{Action, Body};
    let call = |server: &usize| state.servers[*server].call.as_ref();
    let body = |server| match call(server).and_then(|call| call.held.as_ref()).map(|sent| &sent.body) {
        Some(Body::Points { .. }) => "points",
        Some(Body::Head { .. }) => "head",
        Some(Body::Before) => "before",
        Some(Body::Foreign) => "foreign",
        _ => "all",
    };
    match action {
        Action::Write(_, write) => format!("{write:?}"),
        Action::Read { .. } => "read".to_owned(),
        Action::Rebuild { .. } => "rebuild".to_owned(),
        Action::Start(_) => "start".to_owned(),
        Action::Send(server, fate) => format!("{} {fate:?}", body(server)),
        Action::Crash(_) => "crash".to_owned(),
        Action::Deliver(_) => "deliver".to_owned(),
        Action::Wait => "wait".to_owned(),
    }
}

fn kind_in_shards(state: &shards::State, action: &shards::Action) -> String {
    use shards::{Action, Call};
    match action {
        Action::Step(partition) => match &state.shards[*partition].call {
            Some(Call::Apply(_)) => "apply".to_owned(),
            Some(Call::Rebuild { rows, .. }) => format!("rebuild {}", rows.is_some()),
            Some(Call::Flush(..)) => "record".to_owned(),
            _ => "pass".to_owned(),
        },
        Action::Write(_, write) => format!("{write:?}"),
        other => format!("{other:?}").chars().filter(char::is_ascii_alphabetic).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pair_of_steps_of_a_collection_is_replayed_on_the_real_back_end() {
    let model = collection([2, 1], 1, 1, 1);
    let (mut paths, mut pairs) = (Vec::new(), 0);
    for bounds in [collection([2, 0], 1, 1, 0), collection([1, 1], 1, 0, 1)] {
        let (found, many) = cover::cover(&bounds, kind_in_a_collection);
        paths.extend(found);
        pairs += many;
    }
    println!("{} paths for {pairs} pairs of steps", paths.len());
    assert!(paths.len() > 10);
    let all = stream::iter(&paths).map(|path| replay_collection::replay(&model, path));
    all.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pair_of_steps_of_the_shards_is_replayed_on_real_shards() {
    let model = shards([2, 1], 1, 1);
    let (paths, pairs) = cover::cover(&model, kind_in_shards);
    println!("{} paths for {pairs} pairs of steps", paths.len());
    assert!(paths.len() > 10);
    let all = stream::iter(&paths).map(|path| replay_shards::replay(&model, path));
    all.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

/// As far as the whole model can take them.
#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_a_model_that_does_without_something_does_not_break_the_real_code() {
    for broken in OF_A_COLLECTION {
        let path = broken_collection(broken);
        replay_collection::replay(&collection([9, 9], 9, 9, 9), &path).await;
    }
    for broken in OF_SHARDS {
        replay_shards::replay(&shards([9, 9], 9, 9), &broken_shards(broken)).await;
    }
}
