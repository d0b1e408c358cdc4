//! Programs that are not ours against a running server: the README's lines in a shell, and published Python
//! clients. Where one cannot be had, its tests are shown as ignored, never as passed; `BULKHEAD_REQUIRE=clients`
//! and `BULKHEAD_REQUIRE=curl` turn absence into failure.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

const CLIENTS: [&str; 3] = ["openai", "ollama", "lightrag"];
const PROGRAM: &str = env!("CARGO_BIN_EXE_bulkhead");
const README: &str = "the_readmes_lines_do_what_the_readme_says";
/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_mins(1);

fn main() {
    let arguments = Arguments::from_args();
    let names =
        CLIENTS.map(|client| format!("the_{client}_client_is_answered_from_its_own_tenants_documents"));
    let wanted =
        |name: &String| arguments.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    let python = if arguments.list || !names.iter().any(wanted) { Err(String::new()) } else { python() };
    if let Err(why) = &python
        && !why.is_empty()
    {
        eprintln!("the published clients cannot be had: {why}");
    }
    let server: Arc<Mutex<Option<Server>>> = Arc::default();
    let trials = std::iter::zip(CLIENTS, names).map(|(client, name)| {
        let (python, server) = (python.clone(), Arc::clone(&server));
        let absent = python.is_err() && !required("clients") && !arguments.list;
        Trial::test(name, move || check(client, &python?, &server)).with_ignored_flag(absent)
    });
    let readme = {
        let server = Arc::clone(&server);
        let absent = run(Command::new("curl").arg("--version")).is_err() && !required("curl");
        Trial::test(README, move || readme(&server)).with_ignored_flag(absent)
    };
    let conclusion = libtest_mimic::run(&arguments, trials.chain([readme]).collect());
    drop(server.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit();
}

fn required(part: &str) -> bool {
    std::env::var("BULKHEAD_REQUIRE").is_ok_and(|parts| parts.split(',').any(|one| one.trim() == part))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Python with the clients, made when it is missing or its list of packages changed.
fn python() -> Result<PathBuf, String> {
    let requirements = root().join("tests/clients/requirements.txt");
    let wanted = std::fs::read_to_string(&requirements).map_err(|error| error.to_string())?;
    let folder = root().join(".local/clients");
    let (python, installed) = (folder.join("bin/python"), folder.join("installed.txt"));
    if std::fs::read_to_string(&installed).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let install =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"];
    run(Command::new(&python).args(install).arg("-r").arg(&requirements))?;
    std::fs::write(installed, wanted).map_err(|error| error.to_string())?;
    Ok(python)
}

/// What a command that succeeds says.
fn run(command: &mut Command) -> Result<Vec<u8>, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn check(client: &str, python: &Path, server: &Mutex<Option<Server>>) -> Result<(), Failed> {
    let (url, data) = running(server)?;
    let mut command = Command::new(python);
    command
        .arg(root().join("tests/clients/check.py"))
        .args([client, &url])
        .arg(data.join("admin.sock"))
        .arg(data.join("secrets/operator.key"));
    run(&mut command).map(drop).map_err(Failed::from)
}

/// As a new tenant, with a credential like the demo's.
fn readme(server: &Mutex<Option<Server>>) -> Result<(), Failed> {
    let (url, data) = running(server)?;
    let operate = |arguments: &[&str]| -> Result<Value, String> {
        let mut command = Command::new(PROGRAM);
        let command = command.env("BULKHEAD__DATA_DIR", &data).args(["--json"]).args(arguments);
        serde_json::from_slice(&run(command.current_dir(root()))?).map_err(|error| error.to_string())
    };
    let tenant = operate(&["tenant", "create", "--name", "Readme", "--reason", "a test"])?;
    let id = tenant["tenant_id"].as_str().ok_or("a tenant has an id")?;
    let key = operate(&[
        "key", "create", "--tenant", id, "--role", "writer", "--name", "demo", "--reason", "a test",
    ])?;
    let credentials = data.with_file_name("demo.json");
    let demo = json!([{"name": tenant["name"], "tenant_id": id, "api_key": key["api_key"]}]);
    std::fs::write(&credentials, demo.to_string())?;
    let mut command = Command::new("python3");
    command.arg(root().join("scripts/readme.py")).args([PROGRAM, &url]).arg(credentials);
    // The blocks run in a folder of their own; what set-up made is where the checkout has it.
    let made = root().join(".local");
    command
        .env("BULKHEAD__DATA_DIR", data)
        .env("BULKHEAD__DATABASE__INSTALL", made.join("vendor/postgresql"))
        .env("BULKHEAD__EMBEDDING__MODEL_DIR", made.join("models"))
        .env("BULKHEAD__EMBEDDING__ONNXRUNTIME", made.join("vendor/onnxruntime/libonnxruntime.so"));
    run(&mut command).map(drop).map_err(Failed::from)
}

/// Address and data folder of the one server, which the first test starts.
fn running(server: &Mutex<Option<Server>>) -> Result<(String, PathBuf), Failed> {
    let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
    let server = match &mut *server {
        Some(server) => server,
        none => none.insert(Server::start()?),
    };
    Ok((server.url.clone(), server.folder.path().join("data")))
}

/// A server in a child process; stopped when it is dropped.
struct Server {
    url: String,
    child: Child,
    folder: TempDir,
}

impl Server {
    fn start() -> Result<Self, Failed> {
        use std::os::unix::fs::PermissionsExt as _;
        // The database's own user must reach its folder.
        let folder = tempfile::Builder::new()
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        // Free a moment ago; a port that somebody takes meanwhile shows as a server that does not start.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let child = Command::new(PROGRAM)
            .arg("serve")
            .current_dir(root())
            .env("BULKHEAD__DATA_DIR", folder.path().join("data"))
            .env("BULKHEAD__DATABASE__SERVER__RELOCATION", folder.path().join("relocated"))
            .env("BULKHEAD__DATABASE__SERVER__DURABLE", "false")
            .env("BULKHEAD__HTTP__ADDRESS", format!("127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut server = Self { url: format!("http://127.0.0.1:{port}"), child, folder };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("the server ended: {status}").into());
            }
            if begun.elapsed() > PATIENCE {
                return Err("the server does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            // A server that has ended already is what is wanted.
            let _ended = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
        let _status = self.child.wait();
    }
}
