//! MongoDB for tests: a real server when `MONGODB_URL` names one, else a stand-in of the test's own, which is not
//! MongoDB and says so.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use mongodb::bson::Document;
use mongodb::{Client, Collection};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::server::random;

/// Where events are, of whatever server.
pub struct Mongo {
    pub url: String,
    pub database: String,
    /// The stand-in, unless it is a real server.
    stand_in: Option<StandIn>,
}

struct StandIn {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Mongo {
    /// A database of its own: in the real server, else in a stand-in.
    pub fn start() -> Self {
        match std::env::var("MONGODB_URL") {
            Ok(url) if !url.is_empty() => {
                let database = format!("bulkhead_test_{}", random(12));
                println!("run against the MongoDB that MONGODB_URL names, database {database}");
                Self { url, database, stand_in: None }
            }
            _ => Self::stand_in(),
        }
    }

    /// A stand-in in any case: for what is done to its process.
    pub fn stand_in() -> Self {
        println!("run against mongo-java-server 1.47.0, a stand-in for MongoDB");
        let folder = TempDir::new().expect("a folder");
        let (child, port) = launch(folder.path(), 0);
        let url = format!("mongodb://127.0.0.1:{port}/?directConnection=true");
        Self { url, database: "bulkhead".to_owned(), stand_in: Some(StandIn { child, port, folder }) }
    }

    /// Settings of a server that keeps its log there.
    pub fn settings(&self) -> String {
        let Self { url, database, .. } = self;
        format!(
            "audit.backend = 'mongodb'
            audit.mongodb.url = '{url}'
            audit.mongodb.database = '{database}'
            audit.mongodb.forward_ms = 100
            audit.mongodb.deadline_ms = 1000"
        )
    }

    /// The raw events, as only a test reaches them.
    pub async fn events(&self) -> Collection<Document> {
        let client = Client::with_uri_str(&self.url).await.expect("a client");
        client.database(&self.database).collection("audit_event")
    }

    /// Halts the stand-in, or lets it go on.
    pub fn halt(&self, halt: bool) {
        let signal = if halt { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(self.pid(), signal).expect("it runs");
    }

    /// Ends the stand-in without a warning. Its file stays.
    pub fn kill(&mut self) {
        let stand_in = self.stand_in.as_mut().expect("a stand-in");
        stand_in.child.kill().expect("it runs");
        stand_in.child.wait().expect("it ends");
    }

    /// Starts the stand-in again over its file, where it was.
    pub fn restart(&mut self) {
        let stand_in = self.stand_in.as_mut().expect("a stand-in");
        let (child, port) = launch(stand_in.folder.path(), stand_in.port);
        assert_eq!(port, stand_in.port);
        stand_in.child = child;
    }

    fn pid(&self) -> Pid {
        let stand_in = self.stand_in.as_ref().expect("a stand-in");
        Pid::from_raw(i32::try_from(stand_in.child.id()).expect("a process number"))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the stand-in over a folder's file, and waits until it answers.
fn launch(folder: &Path, port: u16) -> (Child, u16) {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join(".local/vendor/mongodb");
    let missing = "the stand-in for MongoDB is not there: run make setup, or name a server by MONGODB_URL";
    let files = std::fs::read_dir(&installed).expect(missing);
    let jars = files.flatten().map(|file| file.path());
    let jars = jars.filter(|path| path.extension().is_some_and(|extension| extension == "jar"));
    let mut places: Vec<String> = jars.map(|path| path.display().to_string()).collect();
    places.push(installed.join("classes").display().to_string());
    let mut child = Command::new("java")
        .args(["-XX:+UseSerialGC", "-Xmx256m", "-cp", &places.join(":"), "Launcher"])
        .arg(folder.join("mongodb.mv"))
        .arg(port.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("java");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let port = line.trim().parse().unwrap_or_else(|_| panic!("the stand-in does not start: {line:?}"));
    (child, port)
}
