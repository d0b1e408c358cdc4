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
pub struct Shell {
    pub place: Place,
    pub settings: PathBuf,
}

impl Shell {
    pub fn new() -> Self {
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

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.args(arguments).arg("--config").arg(&self.settings).current_dir(env!("CARGO_MANIFEST_DIR"));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// The JSON of a command that succeeds.
    pub fn json(&self, arguments: &[&str]) -> Value {
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

    pub fn serve(&self) -> Server {
        self.serve_at("127.0.0.1:0")
    }

    fn serve_at(&self, address: &str) -> Server {
        let log = fs::File::create(self.place.base.path().join("server.log")).expect("log");
        let mut command = self.command(&["serve"]);
        let child = command
            .env("BULKHEAD__HTTP__ADDRESS", address)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starts");
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
pub struct Server(Child);

impl Server {
    pub fn stop(&mut self) -> std::process::ExitStatus {
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

    let limits = ["tenant", "limits", "--tenant", slug];
    let set = ["--documents", "5", "--bytes", "default", "--reason", "a test"];
    let set = shell.json(&[&limits[..], &set].concat());
    assert_eq!(set["limits_set"], serde_json::json!({"documents": 5}));
    assert_eq!(shell.json(&limits)["limits"], set["limits"]);
    let shown = shell.run(&limits);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("documents"), "{shown:?}");
    assert_eq!(shell.json(&["tenant", "usage", "--tenant", slug])["documents"], 0);

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

/// A port that is free now.
#[cfg(feature = "laboratory")]
fn address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

#[cfg(feature = "laboratory")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_model_goes_on_after_each_crash_and_a_server_without_the_model_says_so() {
    const TEXTS: usize = 100;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let shell = Shell::new();
    let settings = fs::read_to_string(&shell.settings).expect("settings");
    fs::write(&shell.settings, settings.clone() + "[ingestion]\nlease_seconds = 5\n").expect("settings");
    let client = reqwest::Client::new();
    let serve = || {
        let address = address();
        (shell.serve_at(&address), format!("http://{address}"))
    };
    let (mut server, url) = serve();
    shell.json(&["tenant", "create", "--name", "n", "--slug", "first", "--reason", "a test"]);
    let key = ["key", "create", "--tenant", "first", "--role", "writer", "--name", "k", "--reason", "a test"];
    let key = shell.json(&key)["api_key"].as_str().expect("a key").to_owned();
    let call = async |url: &str, path: &str, body: Value| -> (u16, Value) {
        let request = client.post(format!("{url}{path}")).bearer_auth(&key).json(&body);
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    };
    let texts: Vec<String> = (0..TEXTS).map(|n| format!("Ship {n} sailed to the island Varn{n}.")).collect();
    assert_eq!(call(&url, "/documents/texts", serde_json::json!({"texts": texts})).await.0, 200);
    let processed = async |url: &str, count: usize| {
        let begun = Instant::now();
        loop {
            let request = client.get(format!("{url}/documents/status_counts")).bearer_auth(&key);
            let counts: Value = request.send().await.expect("an answer").json().await.expect("JSON");
            if counts["status_counts"]["processed"] == count {
                return;
            }
            assert!(begun.elapsed() < Duration::from_mins(2), "{counts}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    processed(&url, TEXTS).await;
    server.stop();

    let change = ["reembed", "--tenant", "first", "--all", "--model", "hashing-64"];
    for point in ["filling", "filled", "switched"] {
        let cut = shell.command(&change).env("BULKHEAD_CRASH_AT", point).output().expect("it starts");
        assert!(!cut.status.success(), "it ends at {point}");
    }
    let done = shell.json(&change);
    assert_eq!((&done["state"], &done["done"]), (&Value::from("done"), &Value::from(TEXTS)), "{done}");
    assert!(
        shell
            .complaint(&["reembed", "--tenant", "first", "--all", "--model", "none-such"])
            .contains("none-such")
    );
    let nowhere = ["reembed", "--tenant", "first", "--namespace", "nowhere", "--model", "hashing-64"];
    assert!(shell.complaint(&nowhere).contains("no namespace of this name"));

    // Without the model: words alone, said so; documents wait.
    let (mut server, url) = serve();
    let question = serde_json::json!({"query": "Which ship sailed to Varn7?", "mode": "naive"});
    let (status, answer) = call(&url, "/query/data", question.clone()).await;
    assert_eq!((status, &answer["metadata"]["degraded"]), (200, &serde_json::json!(["model_unavailable"])));
    assert!(
        answer["data"]["chunks"][0]["content"].as_str().is_some_and(|text| text.contains("Varn7.")),
        "{answer}"
    );
    let late = serde_json::json!({"text": "A late ship sailed to Quorl.", "file_source": "late.txt"});
    assert_eq!(call(&url, "/documents/text", late).await.0, 200);
    let unknown = shell.complaint(&change);
    assert!(unknown.contains("embedding.further"), "{unknown}");
    server.stop();
    let log = fs::read_to_string(shell.place.base.path().join("server.log")).expect("a log");
    assert!(log.contains("--all --model hashing`"), "{log}");

    // With it beside the other: as ever, and back by the running server.
    let further = settings.replace("model = \"hashing\"", "model = \"hashing\"\nfurther = [\"hashing-64\"]");
    fs::write(&shell.settings, further + "[ingestion]\nlease_seconds = 5\n").expect("settings");
    let (mut server, url) = serve();
    let (_, answer) = call(&url, "/query/data", question.clone()).await;
    assert_eq!(answer["metadata"]["degraded"], serde_json::json!([]), "{answer}");
    let back = shell.json(&["reembed", "--tenant", "first", "--namespace", "default", "--model", "hashing"]);
    assert!(back["stage"] == "sweeping" || back["state"] == "done", "{back}");
    let (_, answer) = call(&url, "/query/data", question).await;
    assert_eq!(answer["metadata"]["degraded"], serde_json::json!([]), "{answer}");
    processed(&url, TEXTS + 1).await;
    server.stop();
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
fn shells_and_manuals_know_every_command() {
    let shell = Shell::new();
    for (name, words) in [
        ("bash", ["complete -F _bulkhead", "--operator-key"]),
        ("zsh", ["#compdef bulkhead", "--operator-key"]),
        ("fish", ["complete -c bulkhead", "operator-key"]),
    ] {
        let output = shell.run(&["completions", name]);
        let script = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success(), "{name}");
        for word in words.iter().chain(&["suspend", "completions"]) {
            assert!(script.contains(word), "{name}: {word}");
        }
        assert!(!script.contains("parse-worker"), "{name} offers what nobody types");
    }
    let bash = shell.place.base.path().join("bulkhead.bash");
    fs::write(&bash, shell.run(&["completions", "bash"]).stdout).expect("written");
    let script = "source $0; COMP_WORDS=(bulkhead tenant su); COMP_CWORD=2; _bulkhead bulkhead su tenant; echo ${COMPREPLY[@]}";
    let completed = Command::new("bash").args(["-c", script]).arg(&bash).output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&completed.stdout).trim(), "suspend", "{completed:?}");

    let folder = shell.place.base.path().join("manual/pages");
    let made = shell.run(&["man", folder.to_str().expect("a path")]);
    assert!(made.status.success(), "{made:?}");
    let page =
        |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(page("bulkhead.1").contains(".TH bulkhead 1"));
    assert!(page("bulkhead-tenant-suspend.1").contains("let its jobs wait"));
    assert!(!folder.join("bulkhead-parse-worker.1").exists());
    let nowhere = shell.complaint(&["man", "/proc/nowhere"]);
    assert!(nowhere.contains("/proc/nowhere"), "{nowhere}");
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
