//! Shards in this process: the conformance of every vector index, and what is their own: files, crashes, limits.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bulkhead::domain::Seq;
use bulkhead::domain::clock::{Clock, SystemClock};
use bulkhead::store::error::ErrorKind;
use bulkhead::store::partition::Partition;
use bulkhead::store::qdrant_edge::{EdgeIndex, EdgeSettings};
use bulkhead::store::vector::{Position, VectorIndex};
use chrono::{DateTime, Utc};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::conformance_vectors::{self as suite, chunk, chunks, dense, find, partition, point, point_with};

fn open_with(root: &Path, settings: EdgeSettings) -> EdgeIndex {
    EdgeIndex::new(root.to_owned(), settings, Arc::new(SystemClock)).unwrap()
}

fn open(root: &Path) -> EdgeIndex {
    open_with(root, EdgeSettings::default())
}

macro_rules! conformance {
    ($($behaviour:ident;)*) => {$(
        mod $behaviour {
            use super::*;

            #[tokio::test]
            async fn conformance_inline() {
                let root = TempDir::new().unwrap();
                suite::$behaviour(&open(root.path())).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn conformance_on_the_pool() {
                let root = TempDir::new().unwrap();
                let settings = EdgeSettings { inline_points: 0, max_open: 1, ..EdgeSettings::default() };
                suite::$behaviour(&open_with(root.path(), settings)).await;
            }
        }
    )*};
}

suite::every_behaviour!(conformance);

/// What a crash leaves: the files as they are while the process still runs.
pub fn crash(root: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let left = TempDir::new().unwrap();
    copy(root, left.path());
    left
}

pub fn folder(root: &Path, own: &Partition) -> PathBuf {
    root.join(own.tenant().to_string()).join(own.namespace().to_string()).join(own.model().as_str())
}

fn generations(root: &Path, own: &Partition) -> Vec<String> {
    let entries = std::fs::read_dir(folder(root, own)).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.parse::<u64>().is_ok()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn conformance_what_was_flushed_is_there_after_a_restart() {
    let root = TempDir::new().unwrap();
    let own = partition(1, 1);
    let index = open(root.path());
    index.apply(&own, (1..=100).map(point).collect(), vec![], Seq(4)).await.unwrap();
    index.flush(&own).await.unwrap();
    index.apply(&own, vec![point(101)], vec![chunk(1)], Seq(5)).await.unwrap();
    index.close().await;
    drop(index);
    let index = open(root.path());
    let at = Position { applied: Seq(5), durable: Seq(5) };
    assert_eq!(index.position(&own).await.unwrap(), Some(at), "closing flushes");
    assert_eq!(chunks(&index, &own).await, (2..=101).collect::<Vec<_>>());
}

#[tokio::test]
async fn conformance_after_a_crash_the_changes_behind_the_durable_position_are_applied_again() {
    let root = TempDir::new().unwrap();
    let own = partition(1, 1);
    let index = open(root.path());
    index.apply(&own, (1..=100).map(point).collect(), vec![], Seq(1)).await.unwrap();
    index.flush(&own).await.unwrap();
    let later = || (vec![point_with(50, 2, &[(3, 1.0)]), point(101)], vec![chunk(1), chunk(2)]);
    let (upserts, deletes) = later();
    index.apply(&own, upserts, deletes, Seq(2)).await.unwrap();
    index.apply(&own, (200..=700).map(point).collect(), vec![chunk(101)], Seq(3)).await.unwrap();
    let left = crash(root.path());

    let index = open(left.path());
    let at = Position { applied: Seq(1), durable: Seq(1) };
    assert_eq!(index.position(&own).await.unwrap(), Some(at));
    let (upserts, deletes) = later();
    index.apply(&own, upserts, deletes, Seq(2)).await.unwrap();
    index.apply(&own, (200..=700).map(point).collect(), vec![chunk(101)], Seq(3)).await.unwrap();
    assert_eq!(chunks(&index, &own).await, (3..=100).chain(200..=700).collect::<Vec<_>>());
    index.close().await;
    drop(index);
    assert_eq!(chunks(&open(left.path()), &own).await.len(), 98 + 501);
}

#[tokio::test]
async fn conformance_a_crash_before_the_first_flush_leaves_no_index() {
    let root = TempDir::new().unwrap();
    let own = partition(1, 1);
    let index = open(root.path());
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    let left = crash(root.path());
    let index = open(left.path());
    assert_eq!(index.position(&own).await.unwrap(), None);
    assert!(generations(left.path(), &own).is_empty(), "leftovers are deleted");
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    assert_eq!(chunks(&index, &own).await, [1]);
}

#[tokio::test]
async fn conformance_a_crash_during_a_rebuild_leaves_the_generation_before() {
    let root = TempDir::new().unwrap();
    let own = partition(1, 1);
    let index = open(root.path());
    index.apply(&own, vec![point(1), point(2)], vec![], Seq(2)).await.unwrap();
    index.flush(&own).await.unwrap();
    let mut rebuild = index.rebuild(&own).await.unwrap();
    rebuild.add(vec![point(2)]).await.unwrap();
    assert_eq!(generations(root.path(), &own).len(), 2);
    let left = crash(root.path());
    let crashed = open(left.path());
    assert_eq!(chunks(&crashed, &own).await, [1, 2]);
    assert_eq!(generations(left.path(), &own).len(), 1, "the unfinished one is deleted");

    rebuild.finish(Seq(3)).await.unwrap();
    assert_eq!(generations(root.path(), &own), ["2"], "the old one is deleted");
    let left = crash(root.path());
    assert_eq!(chunks(&open(left.path()), &own).await, [2]);
}

#[tokio::test]
async fn a_dropped_rebuild_and_a_removed_partition_leave_no_file() {
    let root = TempDir::new().unwrap();
    let own = partition(1, 1);
    let index = open(root.path());
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    let mut rebuild = index.rebuild(&own).await.unwrap();
    rebuild.add(vec![point(2)]).await.unwrap();
    drop(rebuild);
    assert_eq!(generations(root.path(), &own), ["1"]);
    let mut late = index.rebuild(&own).await.unwrap();
    late.add(vec![point(2)]).await.unwrap();
    index.remove(&own).await.unwrap();
    assert_eq!(late.finish(Seq(2)).await.unwrap_err().kind, ErrorKind::Conflict);
    assert!(!root.path().join(own.tenant().to_string()).exists());
    assert_eq!(std::fs::read_dir(root.path().join(".trash")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_unreadable_record_or_shard_is_put_away_and_can_be_rebuilt() {
    for damage in ["record", "folder", "segment"] {
        let root = TempDir::new().unwrap();
        let own = partition(1, 1);
        let index = open(root.path());
        index.apply(&own, (1..=200).map(point).collect(), vec![], Seq(1)).await.unwrap();
        index.close().await;
        drop(index);
        let at = folder(root.path(), &own);
        match damage {
            "record" => std::fs::write(at.join("watermark.json"), b"{\"generation\":").unwrap(),
            "folder" => std::fs::remove_dir_all(at.join("1")).unwrap(),
            _ => {
                let segments = std::fs::read_dir(at.join("1/segments")).unwrap();
                for segment in segments.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
                    std::fs::write(segment.join("segment.json"), b"not json").unwrap();
                }
            }
        }
        let index = open(root.path());
        let error = index.search(&own, &dense(1, 5)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Damaged, "{damage}: {error}");
        assert_eq!(index.search(&own, &dense(1, 5)).await.unwrap(), None, "{damage}");
        assert!(generations(root.path(), &own).is_empty(), "{damage}");
        let unaware = index.apply(&own, vec![point(9)], vec![], Seq(2)).await.unwrap_err();
        assert_eq!(unaware.kind, ErrorKind::Conflict, "{damage}: a writer has to notice");
        assert_eq!(index.position(&own).await.unwrap(), None, "{damage}");
        let mut rebuild = index.rebuild(&own).await.unwrap();
        rebuild.add(vec![point(1), point(2)]).await.unwrap();
        rebuild.finish(Seq(2)).await.unwrap();
        assert_eq!(chunks(&index, &own).await, [1, 2], "{damage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_partitions_than_may_be_open_are_opened_and_closed_in_turn() {
    let root = TempDir::new().unwrap();
    let index = open_with(root.path(), EdgeSettings { max_open: 1, ..EdgeSettings::default() });
    for round in 1..=2_i64 {
        for tenant in 1..=6 {
            let number = tenant * 10 + u128::try_from(round).unwrap();
            index.apply(&partition(tenant, 1), vec![point(number)], vec![], Seq(round)).await.unwrap();
            assert_eq!(index.open_shards(), 1);
        }
    }
    let tasks = (0..24_u128).map(|n| {
        let index = index.clone();
        async move {
            let tenant = n % 6 + 1;
            assert_eq!(chunks(&index, &partition(tenant, 1)).await, [tenant * 10 + 1, tenant * 10 + 2]);
        }
    });
    futures::future::join_all(tasks).await;
    assert!(index.open_shards() <= 6);
    assert_eq!(chunks(&index, &partition(3, 1)).await, [31, 32]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_nobody_uses_is_closed_and_opens_again() {
    let root = TempDir::new().unwrap();
    let (used, idle) = (partition(1, 1), partition(2, 1));
    let index = open_with(root.path(), EdgeSettings { idle_seconds: 1, ..EdgeSettings::default() });
    for own in [&used, &idle] {
        index.apply(own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    }
    assert_eq!(index.open_shards(), 2);
    let stop = CancellationToken::new();
    let closing = tokio::spawn(index.clone().close_idle(stop.clone()));
    let begun = Instant::now();
    while index.open_shards() > 1 {
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing was closed");
        assert_eq!(chunks(&index, &used).await, [1]);
        // Whether it wants upkeep is looked at without using it.
        index.wants_rebuild(&idle).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(chunks(&index, &used).await, [1]);
    assert_eq!(index.open_shards(), 1, "the one in use stays open");
    assert_eq!(chunks(&index, &idle).await, [1], "nothing of the closed one was lost");
    stop.cancel();
    closing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_shard_is_opened_once_for_all_who_wait() {
    let root = TempDir::new().unwrap();
    let own = partition(1, 1);
    let index = open(root.path());
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    index.close().await;
    assert_eq!(index.open_shards(), 0);
    let searches = (0..32).map(|_| {
        let (index, own) = (index.clone(), own.clone());
        // A shard opened twice at once would fail on its lock.
        async move { assert_eq!(chunks(&index, &own).await, [1]) }
    });
    futures::future::join_all(searches).await;
    assert_eq!(index.open_shards(), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing_half_done() {
    let root = TempDir::new().unwrap();
    let own = partition(1, 1);
    let index = open(root.path());
    for round in 1..=20_i64 {
        let polls = usize::try_from(round).unwrap() / 2;
        let upserts = vec![point(u128::try_from(round).unwrap())];
        let mut call = index.apply(&own, upserts, vec![], Seq(round));
        for _ in 0..polls {
            if futures::poll!(&mut call).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
        let at = index.position(&own).await.unwrap().map_or(Seq(0), |at| at.applied);
        if at < Seq(round) {
            let again = vec![point(u128::try_from(round).unwrap())];
            index.apply(&own, again, vec![], Seq(round)).await.unwrap();
        }
        assert_eq!(chunks(&index, &own).await.len(), usize::try_from(round).unwrap());
    }
}

#[tokio::test]
async fn folders_and_records_are_closed_to_other_users() {
    let root = TempDir::new().unwrap();
    let top = root.path().join("shards");
    let own = partition(1, 1);
    let index = open(&top);
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    index.flush(&own).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let partition_folder = folder(&top, &own);
    for path in partition_folder.ancestors().take_while(|path| path.starts_with(&top)) {
        assert_eq!(mode(path), 0o700, "{}", path.display());
    }
    assert_eq!(mode(&partition_folder.join("1")), 0o700);
    assert_eq!(mode(&partition_folder.join("watermark.json")), 0o600);
}

#[derive(Debug)]
struct StillClock(AtomicI64);

impl Clock for StillClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp(self.0.load(Ordering::Relaxed), 0).unwrap()
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }
}

#[tokio::test]
async fn a_delete_asks_for_a_new_generation_before_the_deadline_for_purging() {
    let root = TempDir::new().unwrap();
    let own = partition(1, 1);
    let clock = Arc::new(StillClock(AtomicI64::new(1_000)));
    let settings = EdgeSettings { purge_after_seconds: 60, ..EdgeSettings::default() };
    let index = EdgeIndex::new(root.path().to_owned(), settings.clone(), clock.clone()).unwrap();
    index.apply(&own, vec![point(1), point(2)], vec![], Seq(1)).await.unwrap();
    clock.0.fetch_add(1_000, Ordering::Relaxed);
    assert!(!index.wants_rebuild(&own).await, "nothing was deleted");
    index.apply(&own, vec![], vec![chunk(1)], Seq(2)).await.unwrap();
    assert!(!index.wants_rebuild(&own).await);
    index.close().await;
    clock.0.fetch_add(60, Ordering::Relaxed);
    assert!(index.wants_rebuild(&own).await, "known without opening the shard");
    drop(index);
    let index = EdgeIndex::new(root.path().to_owned(), settings, clock).unwrap();
    assert!(index.wants_rebuild(&own).await, "known after a restart");
    let mut rebuild = index.rebuild(&own).await.unwrap();
    rebuild.add(vec![point(2)]).await.unwrap();
    rebuild.finish(Seq(2)).await.unwrap();
    assert!(!index.wants_rebuild(&own).await);
    assert_eq!(generations(root.path(), &own), ["2"]);
}

#[tokio::test]
async fn rewriting_does_not_let_the_log_grow() {
    let root = TempDir::new().unwrap();
    let own = partition(1, 1);
    let settings =
        EdgeSettings { log_segment_bytes: 16 * 1024, log_max_bytes: 64 * 1024, ..EdgeSettings::default() };
    let index = open_with(root.path(), settings);
    for seq in 1..=30 {
        let points = (1..=100).map(|n| point_with(n, seq, &[(3, 1.0)])).collect();
        index.apply(&own, points, vec![], Seq(seq)).await.unwrap();
        index.flush(&own).await.unwrap();
        let log: u64 = std::fs::read_dir(folder(root.path(), &own).join("1/wal"))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(log < 160 * 1024, "{log} bytes after {seq} rounds");
    }
    let found = find(&index, &own, &dense(7, 1)).await;
    assert_eq!((found.dense[0].chunk, found.dense[0].version), (chunk(7), 30));
    assert!(!index.wants_rebuild(&own).await);
}

#[tokio::test]
async fn a_foreign_point_in_a_shard_is_not_found_and_without_the_filter_shows_its_tag() {
    let root = TempDir::new().unwrap();
    let (own, neighbour) = (partition(1, 1), partition(2, 1));
    let index = open(root.path());
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    for tag in [&neighbour, &partition(1, 2), &partition(2, 2)] {
        index.laboratory_plant(&own, tag, point(666)).await.unwrap();
        assert_eq!(chunks(&index, &own).await, [1]);
        let words = suite::lexical(&[(5, 1.0)], 10);
        assert_eq!(find(&index, &own, &words).await.lexical.len(), 1);
        index.laboratory_filter_off(true);
        let found = find(&index, &own, &dense(666, 1)).await;
        assert_eq!((found.dense[0].tenant, found.dense[0].namespace), (tag.tenant(), tag.namespace()));
        index.laboratory_filter_off(false);
    }
}

#[tokio::test]
async fn a_disk_without_room_is_unavailable_in_words_that_help_and_harms_nothing() {
    let root = TempDir::new().unwrap();
    let own = partition(1, 1);
    let index = open(root.path());
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    index.close().await;
    drop(index);
    let full = open_with(root.path(), EdgeSettings { min_free_bytes: u64::MAX, ..EdgeSettings::default() });
    for error in [
        full.apply(&own, vec![point(2)], vec![], Seq(2)).await.unwrap_err(),
        full.rebuild(&own).await.map(drop).unwrap_err(),
        full.apply(&partition(2, 2), vec![point(2)], vec![], Seq(1)).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.to_string().contains("free space"), "{error}");
    }
    assert_eq!(chunks(&full, &own).await, [1], "searches go on");
    let file = root.path().join("a file");
    std::fs::write(&file, b"").unwrap();
    let error = EdgeIndex::new(file, EdgeSettings::default(), Arc::new(SystemClock)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_folder_in_use_by_another_process_is_left_alone() {
    let root = TempDir::new().unwrap();
    let own = partition(1, 1);
    let first = open(root.path());
    first.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    let second = EdgeIndex::new(root.path().to_owned(), EdgeSettings::default(), Arc::new(SystemClock));
    let error = second.map(drop).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("another process"), "{error}");
    assert_eq!(chunks(&first, &own).await, [1]);
    drop(first);
    open(root.path());
}

#[tokio::test]
async fn a_large_partition_is_searched_by_its_graph_and_finds_nearly_all() {
    let root = TempDir::new().unwrap();
    let own = partition(1, 1);
    let index = open_with(root.path(), EdgeSettings { hnsw_from_points: 1_000, ..EdgeSettings::default() });
    let mut rebuild = index.rebuild(&own).await.unwrap();
    for page in 0..5 {
        rebuild.add((page * 500 + 1..=page * 500 + 500).map(point).collect()).await.unwrap();
    }
    rebuild.finish(Seq(1)).await.unwrap();
    index.apply(&own, (2_501..=2_600).map(point).collect(), vec![chunk(1)], Seq(2)).await.unwrap();
    index.flush(&own).await.unwrap();
    index.close().await;
    let mut found = 0;
    for seed in 9_000..9_030 {
        let question = suite::unit(seed);
        let mut all: Vec<(f32, u128)> = (2..=2_600)
            .map(|n| (suite::unit(n).iter().zip(&question).map(|(a, b)| a * b).sum::<f32>(), n))
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let hits = find(&index, &own, &dense(seed, 10)).await.dense;
        found += all[..10].iter().filter(|(_, n)| hits.iter().any(|hit| hit.chunk == chunk(*n))).count();
    }
    assert!(found >= 297, "{found} of 300");
    assert_eq!(find(&index, &own, &suite::lexical(&[(5, 1.0)], 5_000)).await.lexical.len(), 2_599);
}
