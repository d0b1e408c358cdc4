//! A disk that is full: a small one of its own, in a mount namespace that ends with the test.
//!
//! Root may make one, and so may whoever may make a user namespace. Where neither is allowed these tests fail and say
//! so, unless `BULKHEAD_WITHOUT_MOUNTS` says that they are not wanted.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use super::Town;
use crate::crashes::child::PATIENCE;

const INSIDE: &str = "BULKHEAD_SMALL_DISK";
const MIB: u64 = 1024 * 1024;

/// Runs an ignored test of this module in a mount namespace of its own.
fn in_a_namespace(test: &str) {
    if std::env::var_os("BULKHEAD_WITHOUT_MOUNTS").is_some() {
        eprintln!("{test} did not run: BULKHEAD_WITHOUT_MOUNTS is set");
        return;
    }
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-current-user", "--keep-caps"]);
    }
    let me = std::env::current_exe().expect("this program");
    command
        .arg(me)
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "yes");
    let ran = command.output().expect("unshare, of util-linux");
    let said = [ran.stdout, ran.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(
        ran.status.success() && said.contains("1 passed"),
        "{said}\nWithout the right to mount, set BULKHEAD_WITHOUT_MOUNTS to go without."
    );
}

/// Puts a folder on a disk that has so much room beside what is in it.
fn on_a_small_disk(folder: &Path, room: u64) {
    assert!(std::env::var_os(INSIDE).is_some(), "run by its neighbour, in a namespace");
    let run = |program: &str, arguments: &[&str]| {
        let ran = Command::new(program).args(arguments).output().expect("a program");
        assert!(ran.status.success(), "{program}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).expect("text")
    };
    let here = folder.to_str().expect("text");
    let aside = format!("{here}.aside");
    let kib: u64 =
        run("du", &["-sk", here]).split_whitespace().next().expect("a number").parse().expect("a number");
    fs::rename(folder, &aside).expect("moved");
    fs::create_dir(folder).expect("a folder");
    let options = format!("size={}k,mode=0710", kib + room / 1024);
    run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", here]);
    run("cp", &["-a", &format!("{aside}/."), here]);
    fs::remove_dir_all(aside).expect("removed");
}

fn free(folder: &Path) -> u64 {
    let about = nix::sys::statvfs::statvfs(folder).expect("a disk");
    about.blocks_available() * about.fragment_size()
}

/// Something that takes all the room but so much.
struct Ballast(PathBuf);

impl Ballast {
    fn leaving(folder: &Path, room: u64) -> Self {
        let ballast = Self(folder.join("ballast"));
        ballast.leave(room);
        ballast
    }

    fn leave(&self, room: u64) {
        let mut file = File::options().create(true).append(true).open(&self.0).expect("a file");
        let block = vec![7_u8; 64 * 1024];
        while let over @ 1.. = free(self.0.parent().expect("a folder")).saturating_sub(room) {
            let piece = block.len().min(usize::try_from(over).unwrap_or(usize::MAX));
            if file.write_all(&block[..piece]).is_err() {
                return;
            }
        }
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_disk_that_fills_up_is_refused_in_words_that_help_and_room_brings_everything_back() {
    in_a_namespace("faults::disk::on_a_disk_that_fills_up");
}

#[ignore = "its neighbour runs it, in a namespace of its own"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_disk_that_fills_up() {
    let mut town = Town::new().await;
    let folder = town.ground.data().to_owned();
    // On tmpfs what a shard maps takes room even where it is a hole.
    on_a_small_disk(&folder, 320 * MIB);
    let floor = 16 * MIB;
    let settings = [("BULKHEAD__VECTORS__MIN_FREE_BYTES", floor.to_string())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = town.ground.start_with(&settings).await;
    assert_eq!(town.send(&server, 2).await, 4);
    town.check(&server).await;
    town.served_by_shards(&server).await;

    // Below the floor of the shards: everything is answered, by the database.
    let ballast = Ballast::leaving(&folder, floor - 4 * MIB);
    assert_eq!(town.send(&server, 2).await, 4);
    town.check(&server).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    town.assert_told("are kept free: free space, move the data folder or lower vectors.min_free_bytes");
    drop(ballast);
    town.served_by_shards(&server).await;

    // Nothing left at all: uploads, and then the database itself.
    let ballast = Ballast::leaving(&folder, 0);
    let large = "The harbour has a lighthouse. ".repeat(20_000);
    let refused = town.upload(&server, 0, "large.txt", &large).send().await.expect("an answer");
    assert_eq!(refused.status(), 503, "{}", town.ground.log());
    assert!(refused.headers().contains_key("retry-after"));
    let begun = Instant::now();
    let mut refusals = 0;
    while refusals < 3 {
        // More and more until the database has no room either; each is remembered as accepted, or sent again later.
        let sent = town.send(&server, 40).await;
        refusals += usize::from(sent < 80);
        assert!(begun.elapsed() < PATIENCE, "the disk takes more and more: {} bytes", free(&folder));
        ballast.leave(0);
    }
    let health = town.ground.http.get(format!("{}/health", server.url())).send().await.expect("an answer");
    assert_eq!(health.status(), 200);
    drop(ballast);
    let recovered = Instant::now();
    town.check(&server).await;
    town.served_by_shards(&server).await;
    println!("{refusals} refusals, all there again after {:?}", recovered.elapsed());
    town.assert_told("No space left on device");
    let uploaded = town.upload(&server, 0, "large.txt", &large).send().await.expect("an answer");
    assert_eq!(uploaded.status(), 200);
    let json: serde_json::Value = uploaded.json().await.expect("JSON");
    let id = &json["document_ids"][0];
    let gone =
        town.call(&server, 0, Method::DELETE, "/documents/delete_document").json(&json!({"doc_ids": [id]}));
    assert_eq!(gone.send().await.expect("an answer").status(), 200);
    assert!(server.terminate().success());

    // What little there is does for the database: a server that starts answers, and opens no shard, which would end it.
    let ballast = Ballast::leaving(&folder, 4 * MIB);
    let server = town.ground.start_with(&settings).await;
    town.check(&server).await;
    drop(ballast);
    town.served_by_shards(&server).await;
    assert!(server.terminate().success());
}
