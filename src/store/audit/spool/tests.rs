//! The spool over real files: order, ends that are torn, damage, bounds, and what a restart finds.

use std::io::{Seek as _, SeekFrom, Write as _};

use super::*;
use crate::domain::clock::SystemClock;
use crate::domain::ids::SystemIds;

fn open(folder: &Path, limit: u64) -> Spool {
    Spool::open(folder, limit, &SystemIds(SystemClock)).unwrap()
}

fn append(spool: &Spool, numbers: std::ops::Range<u64>) {
    for number in numbers {
        spool.append(format!("record {number}").as_bytes()).unwrap();
    }
}

/// Everything that waits, passed in batches.
fn drain(spool: &Spool, limit: usize) -> Vec<u64> {
    spool.sync().unwrap();
    let mut numbers = Vec::new();
    while let Some(batch) = spool.read(limit).unwrap() {
        for (number, record) in &batch.records {
            assert!(record.starts_with(format!("record {number}").as_bytes()));
            numbers.push(*number);
        }
        spool.pass(&batch).unwrap();
    }
    numbers
}

#[test]
fn records_are_read_once_in_their_order_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path(), LEAST_BYTES);
    append(&spool, 1..11);
    assert_eq!(spool.waiting(), 10);
    assert!(spool.read(4).unwrap().is_none(), "what was not synced is not read");
    spool.sync().unwrap();
    let batch = spool.read(4).unwrap().unwrap();
    assert_eq!(batch.records.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let again = spool.read(4).unwrap().unwrap();
    assert_eq!(again.records, batch.records, "until they are passed");
    spool.pass(&batch).unwrap();
    let id = spool.id();
    drop(spool);
    let spool = open(folder.path(), LEAST_BYTES);
    assert_eq!((spool.id(), spool.waiting()), (id, 6));
    append(&spool, 11..13);
    assert_eq!(drain(&spool, 5), (5..13).collect::<Vec<_>>());
    assert_eq!((spool.waiting(), spool.lost_count()), (0, 0));
    drop(spool);
    let spool = open(folder.path(), LEAST_BYTES);
    append(&spool, 13..14);
    assert_eq!(drain(&spool, 5), [13]);
}

#[test]
fn a_torn_end_is_cut_off_and_what_was_before_stays() {
    for torn in [1, 7, 9, 12] {
        let folder = tempfile::tempdir().unwrap();
        let spool = open(folder.path(), LEAST_BYTES);
        append(&spool, 1..4);
        drop(spool);
        let file = folder.path().join("00000000000000000001.spool");
        let whole = fs::read(&file).unwrap();
        let half = frame(b"record 4").unwrap();
        fs::write(&file, [whole.as_slice(), &half[..torn]].concat()).unwrap();
        let spool = open(folder.path(), LEAST_BYTES);
        append(&spool, 4..6);
        assert_eq!(drain(&spool, 100), [1, 2, 3, 4, 5], "{torn} bytes of a record");
    }
}

#[test]
fn a_full_spool_refuses_and_takes_again_what_fits_after_some_were_passed() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path(), LEAST_BYTES);
    let long = |number: u64| format!("record {number} {}", "x".repeat(1 << 20)).into_bytes();
    let mut count = 0;
    let refused = loop {
        match spool.append(&long(count + 1)) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, SpoolError::Full) && count == 15, "{count} {refused}");
    assert_eq!(drain(&spool, 4), (1..=count).collect::<Vec<_>>());
    spool.append(&long(count + 1)).unwrap();
    let held: u64 =
        fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(held <= LEAST_BYTES, "{held}");
    assert_eq!(drain(&spool, 4), [count + 1]);
}

#[test]
fn damage_in_the_middle_costs_the_rest_of_its_segment_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path(), LEAST_BYTES);
    for number in 1..=10u64 {
        spool.append(format!("record {number} {}", "x".repeat(1 << 20)).as_bytes()).unwrap();
    }
    spool.sync().unwrap();
    let file = folder.path().join("00000000000000000001.spool");
    let mut first = fs::OpenOptions::new().write(true).open(file).unwrap();
    // In the second record of four.
    first.seek(SeekFrom::Start((1 << 20) + 500)).unwrap();
    first.write_all(b"!").unwrap();
    assert_eq!(drain(&spool, 3), [1, 5, 6, 7, 8, 9, 10]);
    assert_eq!((spool.lost_count(), spool.waiting()), (3, 0));
}

#[test]
fn a_lost_mark_of_what_was_passed_brings_records_again_and_loses_none() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path(), LEAST_BYTES);
    append(&spool, 1..4);
    assert_eq!(drain(&spool, 2), [1, 2, 3]);
    drop(spool);
    fs::write(folder.path().join("passed"), "").unwrap();
    let spool = open(folder.path(), LEAST_BYTES);
    assert_eq!(drain(&spool, 2), [1, 2, 3], "whoever forwards knows their numbers");
}
