//! Files of shards that are damaged, cut, taken away or older than they should be, while the server is stopped and while
//! it runs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bulkhead::domain::Seq;
use bulkhead::domain::clock::SystemClock;
use bulkhead::store::error::ErrorKind;
use bulkhead::store::qdrant_edge::{EdgeIndex, EdgeSettings};
use bulkhead::store::vector::VectorIndex as _;
use tempfile::TempDir;

use super::Town;
use crate::conformance_vectors::{chunks, dense, partition, point};

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Copies what is in a folder; its files are mostly holes, and stay so.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).arg(from.join(".")).arg(to).status();
    assert!(copied.expect("cp").success());
}

/// What a read of a mapped page that is not there any more does to a process.
fn emptied(path: &Path) {
    File::options().write(true).open(path).expect("a file").set_len(0).expect("cut");
}

fn open(root: &Path) -> EdgeIndex {
    EdgeIndex::new(root.to_owned(), EdgeSettings::default(), Arc::new(SystemClock)).expect("opened")
}

/// Something that is done to a file.
type Damage = fn(&Path);
/// Something that is done to a shard's folder.
type Harm<'a> = &'a dyn Fn(&Path);

/// What may become of one file.
const DAMAGES: [(&str, Damage); 4] = [
    ("a byte of it is flipped", |path| {
        let file = File::options().read(true).write(true).open(path).expect("a file");
        let middle = file.metadata().expect("its length").len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, middle).expect("read");
        file.write_all_at(&[byte[0] ^ 0x10], middle).expect("written");
    }),
    ("half of it is cut off", |path| {
        let file = File::options().write(true).open(path).expect("a file");
        file.set_len(file.metadata().expect("its length").len() / 2).expect("cut");
    }),
    ("it is gone", |path| fs::remove_file(path).expect("removed")),
    ("something is behind its end", |path| {
        let file = File::options().write(true).open(path).expect("a file");
        file.write_all_at(b"more", file.metadata().expect("its length").len()).expect("written");
    }),
];

#[tokio::test]
async fn whatever_happens_to_any_file_of_a_stopped_shard_is_noticed_before_it_answers() {
    let (root, kept, own) =
        (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"), partition(1, 1));
    let index = open(root.path());
    index.apply(&own, (1..=60).map(point).collect(), vec![], Seq(1)).await.expect("applied");
    index.flush(&own).await.expect("flushed");
    index.close().await;
    drop(index);
    copy(root.path(), kept.path());
    let files = files_below(kept.path());
    assert!(files.len() > 15, "{files:?}");
    let mut tried = 0;
    for file in files.iter().filter(|file| !file.ends_with(".lock")) {
        for (words, damage) in DAMAGES {
            let empty = fs::metadata(file).expect("a file").len() == 0;
            // The record and the seal are what the others are compared with: without one of them there is no index, or
            // nothing to compare.
            let own_file = ["watermark.json", "seal"].iter().any(|name| file.ends_with(name));
            if (empty && (words.contains("flipped") || words.contains("half")))
                || (own_file && words.contains("gone"))
            {
                continue;
            }
            let root = TempDir::new().expect("a folder");
            copy(kept.path(), root.path());
            damage(&root.path().join(file.strip_prefix(kept.path()).expect("below")));
            let index = open(root.path());
            let about = format!("{}: {words}", file.display());
            let error = index.search(&own, &dense(1, 5)).await.expect_err(&about);
            assert_eq!(error.kind, ErrorKind::Damaged, "{about}: {error}");
            assert_eq!(index.position(&own).await.expect("asked"), None, "{about}: it is to be written anew");
            let mut rebuild = index.rebuild(&own).await.expect("begun");
            rebuild.add((1..=60).map(point).collect()).await.expect("added");
            rebuild.finish(Seq(1)).await.expect("finished");
            assert_eq!(chunks(&index, &own).await.len(), 60, "{about}");
            tried += 1;
        }
    }
    println!("{tried} damages of {} files", files.len());
    // And a shard to which nothing happened opens as it was, again and again.
    for _ in 0..2 {
        let index = open(kept.path());
        assert_eq!(chunks(&index, &own).await.len(), 60);
        index.close().await;
    }
}

#[tokio::test]
async fn an_older_copy_in_the_place_of_a_shard_or_of_its_record_is_noticed() {
    let (root, own) = (TempDir::new().expect("a folder"), partition(1, 1));
    let older = TempDir::new().expect("a folder");
    let index = open(root.path());
    index.apply(&own, (1..=10).map(point).collect(), vec![], Seq(1)).await.expect("applied");
    index.close().await;
    copy(root.path(), older.path());
    index.apply(&own, (11..=20).map(point).collect(), vec![], Seq(2)).await.expect("applied");
    index.close().await;
    drop(index);
    let below = |root: &Path| {
        root.join(own.tenant().to_string()).join(own.namespace().to_string()).join(own.model().as_str())
    };
    for part in ["1", "watermark.json"] {
        let mixed = TempDir::new().expect("a folder");
        copy(root.path(), mixed.path());
        let (from, to) = (below(older.path()).join(part), below(mixed.path()).join(part));
        if from.is_dir() {
            fs::remove_dir_all(&to).expect("removed");
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).expect("copied");
        }
        let error = open(mixed.path()).search(&own, &dense(1, 5)).await.expect_err(part);
        assert_eq!(error.kind, ErrorKind::Damaged, "{part}: {error}");
    }
    // All of it is older: that is a shard as it was once, which says so, and follows from there.
    let index = open(older.path());
    assert_eq!(index.position(&own).await.expect("asked").map(|at| at.applied), Some(Seq(1)));
}

/// The folders of all shards below the data folder.
fn generations(town: &Town, party: usize) -> Vec<PathBuf> {
    let below = town.ground.below(&format!("shards/{}", town.parties[party].id));
    below.into_iter().filter(|path| path.join("segments").is_dir()).collect()
}

fn only(mut folders: Vec<PathBuf>) -> PathBuf {
    assert_eq!(folders.len(), 1, "{folders:?}");
    folders.remove(0)
}

/// The largest file of a shard that holds numbers of vectors.
fn vectors(shard: &Path) -> PathBuf {
    let files = files_below(&shard.join("segments"));
    let of_vectors = files.into_iter().filter(|path| path.to_string_lossy().contains("dense"));
    of_vectors
        .max_by_key(|path| fs::metadata(path).map(|about| about.len()).unwrap_or_default())
        .expect("vectors")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_starts_over_damaged_missing_or_older_shards_loses_and_doubles_nothing() {
    let mut town = Town::new().await;
    let server = town.ground.start(None).await;
    town.send(&server, 3).await;
    town.check(&server).await;
    town.served_by_shards(&server).await;
    assert!(server.terminate().success());
    let older = TempDir::new().expect("a folder");
    copy(&only(generations(&town, 0)), older.path());
    let steps: [(&str, &str, Harm); 4] = [
        ("nothing", "", &|_| ()),
        ("cut", "are not what the last stop of the server left", &|shard| DAMAGES[1].1(&vectors(shard))),
        ("gone", "the folder of the vector shard is gone", &|shard| {
            fs::remove_dir_all(shard).expect("removed");
        }),
        ("older", "are not what the last stop of the server left", &|shard| {
            fs::remove_dir_all(shard).expect("removed");
            copy(older.path(), shard);
        }),
    ];
    for (step, told, damage) in steps {
        damage(&only(generations(&town, 0)));
        let neighbour = only(generations(&town, 1));
        let before = town.ground.whole_log().len();
        let server = town.ground.start(None).await;
        town.check(&server).await;
        town.served_by_shards(&server).await;
        let log = town.ground.whole_log()[before..].to_owned();
        assert!(log.contains(told), "{step}: {log}");
        assert_eq!(log.contains("vector shard"), !told.is_empty(), "{step}: {log}");
        assert_eq!(only(generations(&town, 1)), neighbour, "{step}: the neighbour's stays as it is");
        // The next older copy is older than this.
        town.send(&server, 1).await;
        town.check(&server).await;
        town.served_by_shards(&server).await;
        assert!(server.terminate().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_ends_the_server_when_it_is_opened_does_so_once() {
    let mut town = Town::new().await;
    let server = town.ground.start(None).await;
    town.send(&server, 2).await;
    town.check(&server).await;
    town.served_by_shards(&server).await;
    assert!(server.terminate().success());
    // As a file does whose damage makes its reader ask for more memory than there is.
    let mut server = town.ground.start(Some("shard-opening")).await;
    let word = town.parties[0].accepted.values().next().expect("a document").clone();
    let body = serde_json::json!({"query": word});
    let asked = town.call(&server, 0, reqwest::Method::POST, "/query/data").json(&body).send().await;
    assert!(asked.is_err());
    assert!(!server.ended().success());
    let server = town.ground.start(None).await;
    town.check(&server).await;
    town.served_by_shards(&server).await;
    town.assert_told("the server ended while it opened this vector shard");
    assert!(server.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_that_are_damaged_under_a_running_server_cost_at_most_a_restart() {
    let mut town = Town::new().await;
    let mut server = town.ground.start(None).await;
    town.send(&server, 3).await;
    town.check(&server).await;
    town.served_by_shards(&server).await;
    let damages: [(&str, Harm); 4] = [
        ("flipped", &|shard| DAMAGES[0].1(&vectors(shard))),
        ("emptied", &|shard| emptied(&vectors(shard))),
        ("gone", &|shard| fs::remove_dir_all(shard).expect("removed")),
        ("replaced", &|shard| {
            let aside = shard.with_extension("aside");
            fs::rename(shard, &aside).expect("moved");
            copy(&aside, shard);
            fs::remove_dir_all(aside).expect("removed");
        }),
    ];
    for (step, damage) in damages {
        damage(&only(generations(&town, 0)));
        // Reading and writing may meet a page that is not there any more, which ends the process (SIGBUS): whatever
        // keeps servers running starts it again.
        town.send(&server, 1).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let lives = town.ground.http.get(format!("{}/health", server.url())).send().await.is_ok();
        println!("{step}: the server {}", if lives { "lives on" } else { "ended" });
        if !lives {
            assert!(!server.ended().success());
            server = town.ground.start(None).await;
        }
        town.check(&server).await;
        town.served_by_shards(&server).await;
        assert!(server.terminate().success());
        server = town.ground.start(None).await;
        town.check(&server).await;
        town.served_by_shards(&server).await;
    }
    town.assert_told("vector shard");
    assert!(server.terminate().success());
}
