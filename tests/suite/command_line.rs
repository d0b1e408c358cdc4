//! The program as a person or a script runs it: without a server, beside a running one, and used wrongly.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::place::Place;

/// A data folder, and settings that need no model's weights.
struct Shell {
    place: Place,
    settings: PathBuf,
}

impl Shell {
    fn new() -> Self {
        let place = Place::new();
        let settings = place.base.path().join("settings.toml");
        let text = format!(
            "data_dir = \"{}\"\n[http]\naddress = \"127.0.0.1:0\"\n[embedding]\nmodel = \"hashing\"\n\
             [database]\ninstall = \"{}\"\n[database.server]\ndurable = false\nshared_buffers_mib = 16\n\
             relocation = \"{}\"\n",
            place.paths.data_dir.display(),
            place.paths.install.display(),
            place.settings.relocation.display()
        );
        fs::write(&settings, text).expect("settings");
        Self { place, settings }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.args(arguments).arg("--config").arg(&self.settings).current_dir(env!("CARGO_MANIFEST_DIR"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// The JSON of a command that succeeds.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {complaint}");
        serde_json::from_slice(&output.stdout).expect("JSON alone on standard output")
    }

    /// The complaint of a command that fails.
    fn complaint(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    fn serve(&self) -> Server {
        let log = fs::File::create(self.place.base.path().join("server.log")).expect("log");
        let child = self.command(&["serve"]).stdout(Stdio::null()).stderr(log).spawn().expect("starts");
        let mut server = Server(child);
        let socket = self.place.paths.data_dir.join("admin.sock");
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let ended = server.0.try_wait().expect("watched");
            let log = || fs::read_to_string(self.place.base.path().join("server.log")).unwrap_or_default();
            assert!(ended.is_none() && begun.elapsed() < Duration::from_mins(2), "no server: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }
}

/// A server that ends with its test.
struct Server(Child);

impl Server {
    fn stop(&mut self) -> std::process::ExitStatus {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).expect("told to stop");
        self.0.wait().expect("ended")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

/// Every operators' command, whoever carries it out.
fn operate(shell: &Shell, slug: &str) {
    let name = format!("Name of {slug}");
    let tenant = shell.json(&["tenant", "create", "--name", &name, "--slug", slug, "--reason", "a test"]);
    assert_eq!(
        (tenant["name"].as_str(), tenant["slug"].as_str(), tenant["state"].as_str()),
        (Some(name.as_str()), Some(slug), Some("active"))
    );
    let id = tenant["tenant_id"].as_str().expect("an id");
    let taken = shell.complaint(&["tenant", "create", "--name", "x", "--slug", slug, "--reason", "a test"]);
    assert!(taken.contains("slug"), "{taken}");
    let listed = shell.json(&["tenant", "list"]);
    assert!(listed.as_array().expect("a list").iter().any(|row| row["tenant_id"] == id), "{listed}");

    let key = ["key", "create", "--tenant", id, "--role", "writer", "--name", "demo", "--reason", "demo"];
    let key = shell.json(&[&key[..], &["--expires-in", "30d"]].concat());
    assert!(key["api_key"].as_str().expect("a key").starts_with("bk_"));
    assert_eq!(key["roles"], serde_json::json!(["writer"]));
    assert!(key["expires_at"].is_string());
    let key_id = key["key_id"].as_str().expect("an id");
    let keys = shell.json(&["key", "list", "--tenant", slug]);
    assert_eq!((keys[0]["key_id"].as_str(), keys[0]["revoked_at"].is_null()), (Some(key_id), true));
    assert!(!keys.to_string().contains(key["api_key"].as_str().expect("a key")), "secrets are shown once");
    shell.json(&["key", "revoke", "--tenant", slug, "--key", key_id, "--reason", "a test"]);
    let keys = shell.json(&["key", "list", "--tenant", slug]);
    assert!(keys[0]["revoked_at"].is_string());

    let signed = shell.json(&["token", "--tenant", slug, "--role", "reader", "--expires-in", "10m"]);
    assert_eq!(signed["token"].as_str().expect("a token").split('.').count(), 3);
    let long = shell.complaint(&["token", "--tenant", slug, "--role", "reader", "--expires-in", "9h"]);
    assert!(long.contains("3600"), "{long}");

    let operator = shell.json(&["operator", "create", "--name", "second", "--reason", "a test"]);
    let file = shell.place.base.path().join(format!("{slug}.key"));
    fs::write(&file, operator["operator_key"].as_str().expect("a key")).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("closed");
    let with = ["--operator-key", file.to_str().expect("a path")];
    let suspended = ["tenant", "suspend", "--tenant", slug, "--reason", "a test"];
    assert_eq!(shell.json(&[&suspended[..], &with].concat())["state"], "suspended");
    let resumed = shell.json(&["tenant", "resume", "--tenant", slug, "--reason", "a test"]);
    assert_eq!(resumed["state"], "active");
    let deleted = shell.json(&["tenant", "delete", "--yes", "--tenant", slug, "--reason", "a test"]);
    assert_eq!(deleted["state"], "deleted");
    let gone = shell.complaint(&["tenant", "suspend", "--tenant", id, "--reason", "a test"]);
    assert!(!gone.contains(id), "{gone}");
    let unknown = shell.complaint(&["key", "list", "--tenant", "nobody"]);
    assert!(unknown.contains("no tenant with the slug \"nobody\""), "{unknown}");

    let text = shell.run(&["tenant", "list"]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("no tenant"), "{text:?}");
    fs::write(&file, key["api_key"].as_str().expect("a key")).expect("a tenant's key");
    shell.complaint(&[&["tenant", "list"][..], &with].concat());
}

#[test]
fn operators_commands_do_the_same_without_a_server_and_beside_one() {
    let shell = Shell::new();
    operate(&shell, "alone");
    let mut server = shell.serve();
    operate(&shell, "served");
    assert!(server.stop().success(), "a server that is told to stop succeeds");
    // What a server left behind is no server.
    operate(&shell, "alone-again");
}

#[test]
fn a_folder_in_use_whose_server_does_not_answer_is_told_in_words() {
    let shell = Shell::new();
    let lock = bulkhead::store::postgres::server::DataLock::acquire(&shell.place.paths.data_dir);
    let complaint = shell.complaint(&["tenant", "list"]);
    assert!(complaint.contains("is in use by process"), "{complaint}");
    assert!(complaint.contains("is it starting"), "{complaint}");
    drop(lock);
}

#[test]
fn settings_are_printed_with_their_meaning_and_checked() {
    let shell = Shell::new();
    let printed = shell.run(&["config"]);
    assert_eq!(String::from_utf8_lossy(&printed.stdout), bulkhead::config::DEFAULTS);
    assert!(shell.run(&["config", "--check"]).status.success());
    fs::write(&shell.settings, "[http]\nadress = \"x\"\n").expect("settings");
    assert!(shell.complaint(&["config", "--check"]).contains("adress"));
    let wrong = shell.run(&["tenant", "create"]);
    assert_eq!(wrong.status.code(), Some(2), "a wrong usage");
}

#[test]
fn retrieval_is_evaluated_on_a_set_of_questions_and_nothing_is_left_behind() {
    let shell = Shell::new();
    let set = shell.place.base.path().join("harbour");
    fs::create_dir(&set).expect("a folder");
    let topics =
        ["lighthouse keeper", "granite quarry", "tidal mill", "herring fleet", "rope walk", "salt pans"];
    let lines = |line: &dyn Fn(usize, &str) -> String| -> String {
        topics.iter().enumerate().map(|(at, topic)| line(at, topic) + "\n").collect()
    };
    let corpus = lines(&|at, topic| {
        format!(r#"{{"_id": {at}, "title": "The {topic}", "text": "Here the {topic} is described."}}"#)
    });
    let queries =
        lines(&|at, topic| format!(r#"{{"_id": "q{at}", "text": "What is said of the {topic}?"}}"#));
    let answers = lines(&|at, _| format!("q{at}\t{at}\t1"));
    for (file, text) in [("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels.tsv", answers)] {
        fs::write(set.join(file), text).expect("written");
    }
    let (set, cache, output) =
        (set.display().to_string(), shell.place.base.path().join("cache"), "figures.json");
    let output = shell.place.base.path().join(output).display().to_string();
    let cache = cache.display().to_string();
    for join in ["1", "3"] {
        let asked = ["eval", "retrieval", &set, "--limit-queries", "4", "--join", join];
        let figures = shell.json(&[&asked[..], &["--vector-cache", &cache, "--output", &output]].concat());
        let found = &figures["sets"][0];
        let methods = found["methods"].as_array().expect("methods");
        let names: Vec<_> = methods.iter().filter_map(|method| method["method"].as_str()).collect();
        assert_eq!(names, ["dense", "bm25", "naive", "local", "global", "hybrid", "mix"]);
        for method in methods {
            assert_eq!(method["quality"]["questions"], 4, "{method}");
            assert_eq!(method["quality"]["recall_at_10"]["mean"], 1.0, "{method}");
        }
        assert_eq!(found["rows"][0]["value"], 1.0, "the index finds what exact search finds: {found}");
        assert_eq!(figures["vectors_cached"], true);
        let written: Value = serde_json::from_slice(&fs::read(&output).expect("written")).expect("JSON");
        assert_eq!(written, figures);
    }
    assert!(!shell.place.paths.data_dir.exists(), "the server was one of its own");
}
