//! What qdrant-edge does that its users have to know; should a new version do otherwise, these say so.
//!
//! One that cannot be shown quickly: until `optimize` has run, adding a point walks the whole list of each of
//! its terms, so that writing slows down with the number of points.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use qdrant_edge::EdgeShard;
use uuid::Uuid;

use super::fault::{Fault, guarded};
use super::settings::EdgeSettings;
use super::shard::{DENSE, Shard, config, cut_log, log_bytes, only};
use crate::domain::ids::{ChunkId, ModelId, NamespaceId, TenantId};
use crate::store::partition::Partition;
use crate::store::vector::{Point, Terms};

fn partition() -> Partition {
    let model = ModelId::parse("0123456789abcdef").unwrap();
    Partition::for_laboratory(TenantId(Uuid::from_u128(1)), NamespaceId(Uuid::from_u128(2)), model)
}

fn points(count: u128, version: i64) -> Vec<Point> {
    let point = |n: u128| Point {
        chunk: ChunkId(Uuid::from_u128(n + 1)),
        version,
        embedding: vec![1.0, f32::from(u16::try_from(n).unwrap()), 0.0, 0.0],
        terms: Terms { indices: vec![7], values: vec![1.0] },
    };
    (0..count).map(point).collect()
}

fn count(shard: &Shard) -> usize {
    let filter = Some(only(&partition()).unwrap());
    shard.nearest(filter, vec![1.0, 0.0, 0.0, 0.0], 10_000, &EdgeSettings::default()).unwrap().len()
}

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

#[test]
fn what_was_written_after_the_last_flush_is_lost_in_a_crash_though_the_log_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let (path, crashed) = (folder.path().join("1"), folder.path().join("2"));
    std::fs::create_dir(&path).unwrap();
    let settings = EdgeSettings::default();
    let shard = Shard::create(&path, 4, &settings).unwrap();
    shard.upsert(&partition(), &points(100, 1)).unwrap();
    shard.flush().unwrap();
    shard.upsert(&partition(), &points(500, 2)).unwrap();
    copy(&path, &crashed);
    let reopened = Shard::load(&crashed, &settings).unwrap();
    assert!(count(&reopened) < 500);
    // Applying the lost changes again gives what the crash took.
    reopened.upsert(&partition(), &points(500, 2)).unwrap();
    assert_eq!(count(&reopened), 500);
}

#[test]
fn a_shard_whose_log_is_deleted_is_found_out_at_the_first_write() {
    let folder = tempfile::tempdir().unwrap();
    let settings = EdgeSettings::default();
    let shard = Shard::create(folder.path(), 4, &settings).unwrap();
    for version in 1..=5 {
        shard.upsert(&partition(), &points(100, version)).unwrap();
    }
    drop(shard);
    std::fs::remove_dir_all(folder.path().join("wal")).unwrap();
    let shard = Shard::load(folder.path(), &settings).unwrap();
    let written = shard.upsert(&partition(), &points(10, 6));
    assert!(matches!(written, Err(Fault::Damaged(_))), "{written:?}");
    let deleted = shard.delete(&[ChunkId(Uuid::from_u128(1))]);
    assert!(matches!(deleted, Err(Fault::Damaged(_))), "{deleted:?}");
}

#[test]
fn the_log_grows_without_end_and_a_cut_one_keeps_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let settings = EdgeSettings { log_segment_bytes: 16 * 1024, ..EdgeSettings::default() };
    let shard = Shard::create(folder.path(), 4, &settings).unwrap();
    for version in 1..=20 {
        shard.upsert(&partition(), &points(200, version)).unwrap();
        shard.flush().unwrap();
    }
    drop(shard);
    let grown = log_bytes(folder.path());
    cut_log(folder.path()).unwrap();
    let cut = log_bytes(folder.path());
    assert!(cut * 4 < grown, "{grown} bytes became {cut}");
    let shard = Shard::load(folder.path(), &settings).unwrap();
    assert_eq!(count(&shard), 200);
    shard.upsert(&partition(), &points(300, 21)).unwrap();
    shard.delete(&points(50, 21).iter().map(|p| p.chunk).collect::<Vec<_>>()).unwrap();
    drop(shard);
    assert_eq!(count(&Shard::load(folder.path(), &settings).unwrap()), 250);
}

#[test]
fn flushing_beside_a_writer_panics_hence_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let shard = Shard::create(folder.path(), 4, &EdgeSettings::default()).unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for version in 1..=400 {
                shard.upsert(&partition(), &points(64, version)).unwrap();
            }
            is_done.store(true, Ordering::Release);
        });
        let mut panicked = false;
        while !is_done.load(Ordering::Acquire) && !panicked {
            panicked = shard.flush().is_err();
        }
        assert!(panicked, "flush waits for a writer now: the writer's lock may go");
    });
    // A panic in qdrant-edge stays where it was.
    guarded(|| Ok(())).unwrap();
    shard.flush().unwrap();
}

/// Kilobytes of a folder's files that this process has in memory.
#[cfg(target_os = "linux")]
fn resident(folder: &Path) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut ours, mut files, mut kilobytes) = (false, 0, 0);
    for line in maps.lines() {
        if let Some(rss) = line.strip_prefix("Rss:") {
            let rss = rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
            kilobytes += if ours { rss } else { 0 };
        } else if line.split(' ').next().is_some_and(|range| range.contains('-')) {
            ours = line.contains(folder.to_str().unwrap());
            files += u32::from(ours);
        }
    }
    assert!(files > 0, "nothing of {} is in memory", folder.display());
    kilobytes
}

#[cfg(target_os = "linux")]
#[test]
fn vectors_that_are_not_on_the_disk_have_their_empty_pages_filled_in_hence_on_disk() {
    let (settings, folder) = (EdgeSettings::default(), tempfile::tempdir().unwrap());
    let [filled, ours] = ["filled", "ours"].map(|name| folder.path().join(name));
    std::fs::create_dir(&filled).unwrap();
    std::fs::create_dir(&ours).unwrap();
    let mut in_memory = config(4, &settings);
    in_memory.vectors.get_mut(DENSE).unwrap().on_disk = None;
    drop(EdgeShard::new(&filled, in_memory).unwrap());
    drop(Shard::create(&ours, 4, &settings).unwrap());
    for path in [&filled, &ours] {
        let shard = Shard::load(path, &settings).unwrap();
        shard.upsert(&partition(), &points(20, 1)).unwrap();
        shard.flush().unwrap();
    }
    // Pages are filled in when what has points is opened again.
    let [filled_shard, our_shard] = [&filled, &ours].map(|path| Shard::load(path, &settings).unwrap());
    assert_eq!((count(&filled_shard), count(&our_shard)), (20, 20));
    let (few, many) = (resident(&ours), resident(&filled));
    assert!(few < 2048 && many > 16 * 1024, "{few} KB and {many} KB");
}
