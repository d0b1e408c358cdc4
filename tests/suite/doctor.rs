//! `bulkhead doctor`: faults that are planted in machine, configuration, files and database, each named with why it
//! matters and how to mend it, and nothing changed by looking.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bulkhead::store::postgres::server::DataLock;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::command_line::Shell;
use crate::place::{connect, text};
use crate::site::Site;

/// What the program told, and how it ended.
struct Told {
    code: i32,
    report: Value,
}

impl Told {
    fn by(mut command: Command) -> Self {
        let output = command.output().expect("the program starts");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        let report =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {complaint}"));
        Self { code: output.status.code().expect("it ended by itself"), report }
    }

    fn findings(&self) -> &Vec<Value> {
        self.report["findings"].as_array().expect("findings")
    }

    /// The one finding of this check that says this.
    fn find(&self, check: &str, what: &str) -> &Value {
        let like = |finding: &&Value| {
            finding["check"] == check && finding["what"].as_str().is_some_and(|text| text.contains(what))
        };
        let found: Vec<&Value> = self.findings().iter().filter(like).collect();
        assert_eq!(found.len(), 1, "{check}: {what} in {:#}", self.report);
        for field in ["why", "mend"] {
            assert!(found[0][field].as_str().is_some_and(|text| text.len() > 10), "{}", found[0]);
        }
        found[0]
    }

    /// The checks that found something of this severity.
    fn checks(&self, severity: &str) -> Vec<&str> {
        let of = self.findings().iter().filter(|finding| finding["severity"] == severity);
        of.filter_map(|finding| finding["check"].as_str()).collect()
    }
}

fn doctor(shell: &Shell) -> Told {
    Told::by(shell.command(&["doctor", "--json"]))
}

/// The settings with another text in the place of one.
fn reset(shell: &Shell, from: &str, to: &str) {
    let settings = fs::read_to_string(&shell.settings).expect("settings");
    assert!(settings.contains(from), "{settings}");
    fs::write(&shell.settings, settings.replace(from, to)).expect("settings");
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn a_configuration_that_cannot_be_used_is_told_fault_by_fault() {
    let shell = Shell::new();
    reset(&shell, "address = \"127.0.0.1:0\"", "adress = \"127.0.0.1:0\"\nworkers = \"many\"");
    let told = doctor(&shell);
    assert_eq!(told.code, 2);
    told.find("configuration", "http.adress");
    told.find("configuration", "http.workers");
    assert_eq!(told.report["worst"], "error");
    fs::write(&shell.settings, "[http\n").expect("settings");
    let told = doctor(&shell);
    assert_eq!((told.code, told.findings().len()), (2, 1), "{:#}", told.report);
    let plain = shell.command(&["doctor"]).output().expect("it starts");
    let text = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(text.starts_with("error (configuration)") && text.contains("\n  mend  "), "{text}");
    assert!(text.contains("not looked at: everything else"), "{text}");
}

#[test]
fn faults_of_files_parts_and_limits_are_named_without_a_server() {
    let shell = Shell::new();
    let data = shell.place.paths.data_dir.clone();
    let told = doctor(&shell);
    told.find("files.data_dir", "is not there yet");
    assert!(!data.exists(), "looking makes nothing");
    assert!(told.checks("error").is_empty(), "{:#}", told.report);

    shell.json(&["tenant", "create", "--name", "n", "--slug", "first", "--reason", "a test"]);
    let told = doctor(&shell);
    assert!(told.checks("error").is_empty(), "{:#}", told.report);
    told.find("files.lock", "the lock is free");
    told.find("database.durable", "fsync is off");
    assert_eq!(told.code, 1, "warnings alone: {:#}", told.report);
    assert!(told.report["facts"]["postgresql"].is_string() && told.report["facts"]["pgvector"].is_string());

    let stranger = data.join("shards/holiday.jpg");
    fs::write(&stranger, "x").expect("planted");
    chmod(&data.join("uploads"), 0o755);
    chmod(&data, 0o777);
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut certificate = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
    certificate.not_after = rcgen::date_time_ymd(2001, 2, 3);
    let (chain, secret) =
        (shell.place.base.path().join("chain.pem"), shell.place.base.path().join("key.pem"));
    fs::write(&chain, certificate.self_signed(&key).expect("signed").pem()).expect("planted");
    fs::write(&secret, key.serialize_pem()).expect("planted");
    let tls =
        format!("[http]\ntls = {{ certificate = \"{}\", key = \"{}\" }}", chain.display(), secret.display());
    reset(&shell, "[http]", &tls);
    reset(
        &shell,
        "model = \"hashing\"",
        "model = \"all-MiniLM-L6-v2\"\nonnxruntime = \"/nowhere/libonnxruntime.so\"",
    );
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 300; exec \"$0\" doctor --json --config \"$1\""]);
    limited.arg(env!("CARGO_BIN_EXE_bulkhead")).arg(&shell.settings).current_dir(env!("CARGO_MANIFEST_DIR"));
    let told = Told::by(limited);
    assert_eq!(told.code, 2);
    let line = |check: &str, what: &str| {
        told.find(check, what)["command"].as_str().unwrap_or_else(|| panic!("no line for {check}")).to_owned()
    };
    assert_eq!(line("files.uploads", "mode 0755"), format!("chmod 0700 {}", data.join("uploads").display()));
    assert_eq!(line("files.data_dir", "mode 0777"), format!("chmod 0700 {}", data.display()));
    assert!(line("files.shards", "holiday.jpg").starts_with("mv "));
    assert_eq!(line("embedding.model", "/nowhere/libonnxruntime.so is missing"), "make setup");
    assert!(line("machine.descriptors", "may open 300 files").starts_with("ulimit -n "));
    told.find("http.certificate", "expired 2001-02-03");
    chmod(&data, 0o700);
    chmod(&data.join("uploads"), 0o700);

    // Programs with known leaks: these say so of themselves, and are not started.
    let old = shell.place.base.path().join("old");
    fs::create_dir_all(old.join("bin")).expect("folder");
    for program in ["postgres", "initdb"] {
        fs::write(old.join("bin").join(program), "#!/bin/sh\necho 'postgres (PostgreSQL) 17.2'\n")
            .expect("planted");
        chmod(&old.join("bin").join(program), 0o755);
    }
    let install = shell.place.paths.install.display().to_string();
    reset(&shell, &format!("install = \"{install}\""), &format!("install = \"{}\"", old.display()));
    let told = doctor(&shell);
    told.find("database.programs", "17.2");
    told.find("database.start", "17.2");
    reset(&shell, &old.display().to_string(), "/nowhere");
    doctor(&shell).find("database.programs", "/nowhere/bin/postgres is missing");
    reset(&shell, "/nowhere\"\n[database.server]", &format!("{install}\"\n[database.server]"));

    let pepper = data.join("secrets/api-key-pepper");
    chmod(&pepper, 0o644);
    let app = data.join("secrets/postgres-bulkhead_app");
    fs::rename(&app, shell.place.base.path().join("kept")).expect("planted");
    let told = doctor(&shell);
    told.find("files.secrets", "mode 0644");
    told.find("files.secrets", "postgres-bulkhead_app is missing");
    assert!(!app.exists(), "looking makes no secret");
}

#[test]
fn a_lock_that_a_silent_process_holds_is_told_with_its_number() {
    let shell = Shell::new();
    let lock = DataLock::acquire(&shell.place.paths.data_dir).expect("free");
    let told = doctor(&shell);
    let finding = told.find("files.lock", &format!("in use by process {}", std::process::id()));
    assert_eq!((finding["command"].clone(), told.code), (json!(format!("kill {}", std::process::id())), 2));
    drop(lock);
}

/// What is planted, and how the doctor names it: statement, check, words.
const PLANTED: [(&str, &str, &str); 12] = [
    ("alter table chunk no force row level security", "database.isolation", "table chunk: row-level security is not forced"),
    ("drop policy own_delete on document", "database.isolation", "table document: no policy for delete"),
    ("alter policy own_select on outbox using (true)", "database.isolation", "policy own_select of outbox: not bound"),
    ("alter role bulkhead_app bypassrls", "database.role", "role bulkhead_app: not as it should be, which is NOBYPASSRLS"),
    ("grant pg_read_all_data to bulkhead_auth", "database.role", "bulkhead_auth: a member of pg_read_all_data"),
    ("alter role bulkhead_app set statement_timeout = 0", "database.role", "bulkhead_app: sessions start with"),
    ("grant select on document to bulkhead_dispatch", "database.grants", "bulkhead_dispatch may select document"),
    ("grant truncate on chunk to public", "database.grants", "everybody may truncate chunk"),
    ("create unique index by_name on document (file_name)", "database.index", "index by_name of document: not led by the tenant"),
    (
        "create index by_tenant_ccnew1 on document (tenant_id);
         update pg_index set indisvalid = false where indexrelid = 'by_tenant_ccnew1'::regclass",
        "database.index",
        "index by_tenant_ccnew1 of document: left by a rebuild that broke off",
    ),
    ("update pg_extension set extversion = '0.7.4' where extname = 'vector'", "database.version", "pgvector 0.7.4 is below"),
    (
        "insert into namespace (tenant_id, namespace_id, name, model_id, seq, chunks, created_at)
         values ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002', 'n', '0123456789abcdef',
             5000, 70, now());
         insert into job (tenant_id, job_id, namespace_id, kind, state, cost, due_at, created_at, updated_at)
         values ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000003',
             '00000000-0000-0000-0000-000000000002', 'ingest', 'failed', 0, now(), now(), now())",
        "jobs.failed",
        "1 jobs of tenant 00000000-0000-0000-0000-000000000001",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_the_database_are_named_with_the_statement_that_mends_them_and_none_is_mended() {
    let shell = Shell::new();
    shell.json(&["tenant", "create", "--name", "n", "--slug", "first", "--reason", "a test"]);
    let server = shell.place.start().await;
    let superuser = server.superuser().database("bulkhead");
    let mut planter = connect(&superuser).await;
    for (statement, ..) in PLANTED {
        sqlx::raw_sql(statement)
            .execute(&mut planter)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    planter.close().await.expect("closed");
    server.stop().await.expect("stopped");

    let told = tokio::task::block_in_place(|| doctor(&shell));
    assert_eq!(told.code, 2);
    for (_, check, words) in PLANTED {
        let finding = told.find(check, words);
        assert!(
            check == "jobs.failed" || words.contains("sessions") || finding["command"].is_string(),
            "{finding}"
        );
    }
    let left = told.find("database.index", "index by_tenant_ccnew1");
    assert_eq!(left["command"], "drop index concurrently by_tenant_ccnew1", "not a second index of the same");
    told.find("indexes.behind", "is 5000 changes behind");
    let largest = json!([{"tenant_id": "00000000-0000-0000-0000-000000000001", "count": 70}]);
    assert_eq!(told.report["facts"]["largest_tenants"], largest);

    let server = shell.place.start().await;
    let mut looking = connect(&server.superuser().database("bulkhead")).await;
    let unforced = text(
        &mut looking,
        "select relname::text from pg_class where relname = 'chunk' and not relforcerowsecurity",
    );
    assert_eq!(unforced.await, "chunk", "looking mends nothing");
    // What is to be typed mends it.
    for finding in told.findings() {
        let (check, command) = (finding["check"].as_str().unwrap_or_default(), finding["command"].as_str());
        if let Some(statement) =
            command.filter(|_| check.starts_with("database.") && check != "database.version")
        {
            let done = sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut looking).await;
            done.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
    }
    looking.close().await.expect("closed");
    server.stop().await.expect("stopped");
    let again = tokio::task::block_in_place(|| doctor(&shell));
    assert_eq!(again.checks("error"), ["database.version"], "{:#}", again.report);
}

#[test]
fn a_running_server_is_asked_and_tells_what_it_alone_knows() {
    let shell = Shell::new();
    let mut server = shell.serve();
    let told = doctor(&shell);
    assert!(told.checks("error").is_empty(), "{:#}", told.report);
    assert_eq!((told.code, &told.report["skipped"]), (1, &json!([])), "{:#}", told.report);
    told.find("database.durable", "fsync is off");
    let connections = told.report["facts"]["connections"].as_array().expect("connections");
    assert!(connections.iter().any(|row| row["role"] == "bulkhead_auth"), "{connections:?}");
    let other = shell.place.base.path().join("other.key");
    fs::write(&other, "bo_0").expect("written");
    chmod(&other, 0o600);
    let other = other.to_str().expect("a path");
    let refused = Told::by(shell.command(&["doctor", "--json", "--operator-key", other]));
    refused.find("server", "does not tell of its stores");
    assert_eq!(refused.code, 2);
    server.stop();
}

#[tokio::test]
async fn a_clock_far_off_the_databases_is_told_by_the_server_and_operators_alone_may_ask() {
    let site = Site::new().await;
    let of = async |check: &str| {
        let answer = site.operate(Method::GET, "/admin/doctor", &Value::Null).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let findings = answer.body["findings"].as_array().cloned().expect("findings");
        findings.into_iter().filter(|finding| finding["check"] == check).collect::<Vec<_>>()
    };
    assert!(of("database.isolation").await.is_empty() && of("database.grants").await.is_empty());
    // The test's clock stands still while the database's goes on.
    site.harness.clock.advance(Duration::from_hours(1));
    let told = of("database.clock").await;
    let what = told[0]["what"].as_str().expect("words");
    let apart: Vec<u64> = what.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(told.len() == 1 && (3000..=3600).contains(&apart[0]), "{told:?}");
    site.stop().await;
}
