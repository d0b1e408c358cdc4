//! `bulkhead backup` and `restore`: one consistent archive under writes, restored elsewhere, and refused when it is
//! not what was written.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bulkhead::domain::ids::TenantId;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::bucket::{Bucket, KEY_ID};
use crate::consistency::consistent;
use crate::place::connect;
use crate::server::{Client, PATIENCE, Tenant, TestServer, new_folder, settings, text};
use crate::verify::program;

const SETTINGS: &str = "embedding.model = 'hashing'
    orphans.every_seconds = 1
    projection.sweep_ms = 300";

async fn start(base: &Path) -> TestServer {
    let base = base.to_owned();
    tokio::task::spawn_blocking(move || TestServer::start(&base, SETTINGS)).await.expect("a server")
}

async fn stop(server: TestServer) {
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
}

/// A folder for another server, without data.
fn elsewhere(name: &str) -> PathBuf {
    let base = new_folder(name);
    settings(&base, &base.join("data"), SETTINGS);
    base
}

async fn json(base: &Path, arguments: &[&str]) -> Value {
    let output = program(base, &[arguments, &["--json"]].concat()).await;
    assert!(output.status.success(), "{arguments:?}: {}", complaint(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The complaint of a command that fails.
async fn refused(base: &Path, arguments: &[&str]) -> String {
    let output = program(base, arguments).await;
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    complaint(&output)
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// Ten documents and a file, with words that only this tenant has.
async fn fill(tenant: &Tenant) {
    for n in 0..10 {
        let words = format!("The lamp number {n} of Osterkai is kept by {}.", tenant.slug);
        tenant.writer.put_document(&format!("lamp-{n}"), "Lamps", &words).await;
    }
    let bells = format!("# Bells\n\nThe bell of Osterkai was cast by {}.", tenant.slug);
    let sent = tenant.writer.upload("bells.md", bells.as_bytes()).await;
    tenant.writer.wait_processed(&text(&sent.json(), "track_id")).await;
}

/// Puts, uploads, replaces and deletes until it is told to stop.
async fn write(tenant: Tenant, stop: Arc<AtomicBool>) -> usize {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let words = format!("Round {round} of the boat to Skarn.");
        tenant.writer.put_document(&format!("boat-{}", round % 3), "Boats", &words).await;
        let logged = format!("The log of round {round} tells of wind.");
        let sent = tenant.writer.upload(&format!("log-{round}.txt"), logged.as_bytes()).await;
        assert_eq!(sent.status, 200, "{}", sent.text());
        let track = text(&sent.json(), "track_id");
        let ended = tenant.writer.wait_processed(&track).await;
        if round % 2 == 0 {
            let id = text(&ended["documents"][0], "id");
            tenant.writer.delete(&format!("/documents/{id}"), &Value::Null, 200).await;
        }
        round += 1;
    }
    round
}

/// Every document that was there before answers, with its own tenant's words alone.
async fn answers(reader: &Client, own: &str, other: &str) {
    for n in 0..10 {
        let found = reader.query(&format!("Who keeps the lamp number {n} of Osterkai?")).await.to_string();
        assert!(found.contains(&format!("lamp number {n} of Osterkai is kept by {own}")), "{n}: {found}");
        assert!(!found.contains(other), "{found}");
    }
    let found = reader.query("Who cast the bell of Osterkai?").await.to_string();
    assert!(found.contains(&format!("cast by {own}")) && !found.contains(other), "{found}");
}

/// Until every index has been written and made durable, without a question asked.
async fn indexed(server: &TestServer) {
    let superuser = server.laboratory.superuser.as_ref().expect("a private database");
    let until = Instant::now() + PATIENCE;
    loop {
        let lag: i64 = sqlx::query_scalar(
            "select count(*) from namespace n left join consumer c using (tenant_id, namespace_id)
             where n.seq > coalesce(c.seq, 0)",
        )
        .fetch_one(&mut connect(superuser).await)
        .await
        .expect("lag");
        if lag == 0 {
            return;
        }
        assert!(Instant::now() < until, "{lag} indexes are behind");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn node(base: &Path) -> String {
    fs::read_to_string(base.join("data/node-id")).expect("an identity")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_writes_is_whole_and_answers_elsewhere_with_its_keys_and_tokens() {
    let base = new_folder("backup-from");
    let server = start(&base).await;
    let (alice, bob) = server.tenants().await;
    fill(&alice).await;
    fill(&bob).await;
    let body = json!({"subject": "anna", "roles": ["reader"], "expires_in": 3600});
    let token = server.operator().post(&format!("/admin/tenants/{}/tokens", alice.id), &body, 201).await;

    let (archives, identity) = (base.join("archives"), base.join("identity"));
    let recipient = text(&json(&base, &["backup-key", path(&identity)]).await, "recipient");
    let ending = Arc::new(AtomicBool::new(false));
    let writing: Vec<_> =
        [&alice, &bob].map(|tenant| tokio::spawn(write(tenant.clone(), Arc::clone(&ending)))).into();
    let backup = ["backup", "--to", path(&archives), "--recipient", &recipient];
    let first = json(&base, &backup).await;
    let second = json(&base, &backup).await;
    ending.store(true, Ordering::Relaxed);
    for task in writing {
        assert!(task.await.expect("no write fails") > 0, "there were writes meanwhile");
    }
    assert_ne!(first["archive"], second["archive"]);
    assert_eq!(
        (&second["encrypted"], &second["manifest"]["lost_uploads"]),
        (&json!(true), &json!(0)),
        "{second}"
    );
    let counts = &second["manifest"]["counts"];
    assert!(counts["documents"].as_i64() >= Some(22) && counts["uploads"].as_i64() >= Some(2), "{second}");
    assert!(
        fs::read_dir(base.join("data"))
            .expect("data")
            .all(|entry| { !entry.expect("one").file_name().to_string_lossy().starts_with("backup-") })
    );
    let superuser = server.laboratory.superuser.as_ref().expect("a private database");
    let may_log_in: bool =
        sqlx::query_scalar("select rolcanlogin from pg_roles where rolname = 'bulkhead_backup'")
            .fetch_one(&mut connect(superuser).await)
            .await
            .expect("the role");
    assert!(!may_log_in, "its login is closed again");
    let log = server.operator();
    log.get("/admin/audit/chains", 200).await;
    stop(server).await;

    let other = elsewhere("backup-to");
    let restore = ["restore", "--from", path(&archives), "--identity", path(&identity)];
    let restored = json(&other, &restore).await;
    assert_eq!(
        (&restored["archive"], &restored["restored"]),
        (&second["archive"], &json!(true)),
        "the newest"
    );
    let server = start(&other).await;
    assert_ne!(node(&base), node(&other), "two folders never free each other's leases");
    // Shards are written anew before anybody asks.
    indexed(&server).await;
    for (tenant, neighbour) in [(&alice, &bob), (&bob, &alice)] {
        answers(&server.caller(&tenant.admin_key.secret), &tenant.slug, &neighbour.slug).await;
        let superuser = server.laboratory.superuser.as_ref().expect("a private database");
        let id: Uuid = tenant.id.parse().expect("an id");
        consistent(&mut connect(superuser).await, TenantId(id)).await;
    }
    server.caller(&text(&token, "token")).get("/auth/verify", 200).await;
    // Writing goes on, and what is kept twice agrees: rows and index, files, counters, audit log.
    let writer = server.caller(&alice.admin_key.secret);
    writer.put_document("late", "Late", "A late ship sailed to Quorl.").await;
    let verified = json(&other, &["verify"]).await;
    assert_eq!((&verified["left"], &verified["tenants"]), (&json!(0), &json!(2)), "{verified}");
    stop(server).await;
}

/// A small deployment with an archive of it.
struct Small {
    base: PathBuf,
    server: TestServer,
    tenant: Tenant,
    archives: PathBuf,
}

impl Small {
    async fn new(name: &str) -> Self {
        let base = new_folder(name);
        let server = start(&base).await;
        let tenant = server.tenant("alice").await;
        tenant.writer.put_document("one", "One", "The only lamp of Varn is lit.").await;
        let archives = base.join("archives");
        Self { base, server, tenant, archives }
    }

    async fn back_up(&self, further: &[&str]) -> String {
        let taken =
            json(&self.base, &[&["backup", "--to", path(&self.archives)][..], further].concat()).await;
        text(&taken, "archive")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_archive_and_a_wrong_key_are_refused_in_words_and_change_nothing() {
    let small = Small::new("backup-damaged").await;
    let unnamed = refused(&small.base, &["backup", "--to", path(&small.archives)]).await;
    assert!(unnamed.contains("--unencrypted"), "{unnamed}");
    let keys = [small.base.join("right"), small.base.join("wrong")];
    let recipient = text(&json(&small.base, &["backup-key", path(&keys[0])]).await, "recipient");
    json(&small.base, &["backup-key", path(&keys[1])]).await;
    let sealed = small.back_up(&["--recipient", &recipient]).await;
    let open = small.back_up(&["--unencrypted"]).await;
    let content = |name: &str| fs::read(small.archives.join(name)).expect("an archive");
    assert!(content(&sealed).starts_with(b"age-encryption.org/v1"));

    let other = elsewhere("backup-refused");
    let folder = other.join("archives");
    fs::create_dir(&folder).expect("folder");
    let named = ["restore", "--from", path(&folder), "--identity", path(&keys[0])];
    for (name, with) in [(&sealed, &named[..]), (&open, &named[..3])] {
        let whole = content(name);
        let mut edited = whole.clone();
        edited[whole.len() / 2] ^= 1;
        let longer = [whole.as_slice(), b"and more"].concat();
        for wrong in [&whole[..whole.len() / 2], &whole[..whole.len() - 1], &edited, &longer, b""] {
            fs::write(folder.join(name), wrong).expect("written");
            let words = refused(&other, with).await;
            assert!(
                words.contains("damaged or incomplete") && words.contains("nothing was changed"),
                "{words}"
            );
        }
        fs::remove_file(folder.join(name)).expect("removed");
    }
    assert!(refused(&other, &named).await.contains("there is no archive"));
    fs::copy(small.archives.join(&sealed), folder.join(&sealed)).expect("copied");
    let wrong = ["restore", "--from", path(&folder), "--identity", path(&keys[1])];
    assert!(refused(&other, &wrong).await.contains("cannot be opened with this key"));
    assert!(refused(&other, &named[..3]).await.contains("is encrypted: name the key"));
    fs::remove_file(folder.join(&sealed)).expect("removed");
    fs::copy(small.archives.join(&open), folder.join(&open)).expect("copied");
    assert!(refused(&other, &named).await.contains("is not encrypted, though a key was given"));
    assert!(!other.join("data").exists(), "nothing was made");

    let checked = json(&other, &[&named[..3], &["--check"]].concat()).await;
    assert_eq!(checked["restored"], false);
    assert!(!other.join("data").exists(), "a check makes nothing");
    stop(small.server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_in_use_is_refused_and_one_that_is_there_is_moved_aside_when_asked() {
    let small = Small::new("backup-replace").await;
    let secret = small.base.join("passphrase");
    fs::write(&secret, "seven lamps of Varn").expect("written");
    let by_secret = ["backup", "--to", path(&small.archives), "--passphrase-file", path(&secret)];
    assert!(refused(&small.base, &by_secret).await.contains("can be read by others"));
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("closed");
    small.back_up(&["--passphrase-file", path(&secret)]).await;
    let restore = ["restore", "--from", path(&small.archives), "--passphrase-file", path(&secret)];
    let in_use = refused(&small.base, &[&restore[..], &["--replace"]].concat()).await;
    assert!(in_use.contains("is in use"), "{in_use}");
    let late = "What came after the backup.";
    small.tenant.writer.put_document("late", "Late", late).await;
    stop(small.server).await;
    assert!(refused(&small.base, &restore).await.contains("is not empty"));

    // Without a server, the same state: with a document more.
    let alone =
        json(&small.base, &["backup", "--to", path(&small.base.join("alone")), "--unencrypted"]).await;
    assert_eq!(alone["manifest"]["counts"]["documents"], 2, "{alone}");

    let restored = json(&small.base, &[&restore[..], &["--replace"]].concat()).await;
    let aside = PathBuf::from(text(&restored, "aside"));
    assert!(aside.join("secrets/operator.key").exists(), "what was there is kept");
    let server = start(&small.base).await;
    let reader = server.caller(&small.tenant.admin_key.secret);
    assert!(reader.query("Which lamp of Varn is lit?").await.to_string().contains("The only lamp of Varn"));
    reader.get("/documents/late", 404).await;
    stop(server).await;

    fs::write(small.base.join("data/restore-unfinished"), "").expect("marked");
    let half = refused(&small.base, &["tenant", "list"]).await;
    assert!(half.contains("was broken off; run it again with --replace"), "{half}");
    json(&small.base, &[&restore[..], &["--replace"]].concat()).await;
    assert_eq!(json(&small.base, &["tenant", "list"]).await.as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_beyond_the_rule_go_and_other_files_stay() {
    let small = Small::new("backup-keep").await;
    fs::create_dir(&small.archives).expect("folder");
    let others =
        ["notes.txt", "bulkhead-20200101T000000000Z.tar.zst", "bulkhead-20200101T000000000Z-0123456.tar.zst"];
    let old = "bulkhead-20200101T000000000Z-01234567.tar.zst.age";
    for name in others.iter().chain([&old]) {
        fs::write(small.archives.join(name), "mine").expect("written");
    }
    let mut names = Vec::new();
    for _ in 0..2 {
        names.push(small.back_up(&["--unencrypted", "--keep", "3"]).await);
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    names.push(small.back_up(&["--unencrypted", "--keep", "2"]).await);
    let left = || -> BTreeSet<String> {
        let entries = fs::read_dir(&small.archives).expect("folder");
        entries.map(|entry| entry.expect("one").file_name().into_string().expect("text")).collect()
    };
    let expected: BTreeSet<String> =
        others.iter().map(|name| (*name).to_owned()).chain(names[1..].iter().cloned()).collect();
    assert_eq!(left(), expected);
    small.back_up(&["--unencrypted", "--keep-days", "1"]).await;
    assert_eq!(left().len(), expected.len() + 1, "all of today");
    stop(small.server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_upload_does_not_stop_a_backup_and_is_told_before_and_after() {
    let small = Small::new("backup-lost").await;
    for name in ["kept.md", "lost.md"] {
        let sent = small.tenant.writer.upload(name, format!("# {name}\n\nA file of Varn.").as_bytes()).await;
        small.tenant.writer.wait_processed(&text(&sent.json(), "track_id")).await;
    }
    let namespace =
        fs::read_dir(small.base.join("data/uploads").join(&small.tenant.id)).expect("uploads").next();
    let files = fs::read_dir(namespace.expect("one").expect("one").path()).expect("files");
    fs::remove_file(files.last().expect("one").expect("one").path()).expect("lost");
    let taken = json(&small.base, &["backup", "--to", path(&small.archives), "--unencrypted"]).await;
    assert_eq!(taken["manifest"]["lost_uploads"], 1, "{taken}");
    assert_eq!(taken["manifest"]["parts"]["uploads"]["files"], 1, "{taken}");
    stop(small.server).await;
    let other = elsewhere("backup-lost-to");
    json(&other, &["restore", "--from", path(&small.archives)]).await;
    let output = program(&other, &["verify", "--json"]).await;
    assert_eq!(output.status.code(), Some(3));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["findings"][0]["finding"], "lost_uploads", "{report}");
    assert_eq!(report["left"], 1, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_in_an_object_store_appear_whole_are_kept_by_rule_and_restored() {
    let small = Small::new("backup-bucket").await;
    let bucket = Bucket::start();
    let run = async |base: &Path, arguments: &[&str], endpoint: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.args(arguments).arg("--json").arg("--config").arg(base.join("settings.toml"));
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        command.env("AWS_ENDPOINT", endpoint).env("AWS_REGION", "eu-central-1");
        command.env("AWS_ACCESS_KEY_ID", KEY_ID).env("AWS_SECRET_ACCESS_KEY", "secret");
        tokio::task::spawn_blocking(move || command.output().expect("it starts")).await.expect("it ends")
    };
    let backup = ["backup", "--to", "s3://archives/nightly", "--unencrypted", "--keep", "1"];
    let plain = run(&small.base, &backup, "http://backups.example.com:9000").await;
    assert!(complaint(&plain).contains("plain HTTP, which is for loopback alone"), "{}", complaint(&plain));

    for _ in 0..2 {
        let done = run(&small.base, &backup, &bucket.url).await;
        assert!(done.status.success(), "{}", complaint(&done));
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let names = bucket.names().await;
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(names[0].starts_with("nightly/bulkhead-") && names[0].ends_with(".tar.zst"), "{names:?}");
    // A store that breaks off in the middle: no archive, and the one before stays.
    for requests in 0..3 {
        bucket.break_after(Some(requests)).await;
        let broken = run(&small.base, &backup, &bucket.url).await;
        assert_eq!(broken.status.code(), Some(1));
        bucket.break_after(None).await;
        assert_eq!(bucket.names().await, names, "after {requests} requests");
    }
    let other = elsewhere("backup-bucket-to");
    let restore =
        ["restore", "--from", "s3://archives/nightly", "--archive", names[0].trim_start_matches("nightly/")];
    let done = run(&other, &restore, &bucket.url).await;
    assert!(done.status.success(), "{}", complaint(&done));
    stop(small.server).await;
    let server = start(&other).await;
    let reader = server.caller(&small.tenant.admin_key.secret);
    assert!(reader.query("Which lamp of Varn is lit?").await.to_string().contains("The only lamp of Varn"));
    stop(server).await;
}
