//! `bulkhead audit`: the log examined in place, exported, and examined from the file alone, where each kind of damage
//! is found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::server::{PATIENCE, TestServer, new_folder};

/// Runs the program with the settings of the server in this folder.
async fn program(base: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.args(arguments).arg("--config").arg(base.join("settings.toml"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    tokio::task::spawn_blocking(move || command.output().expect("it starts")).await.expect("it ends")
}

fn report(output: &Output, code: i32) -> Value {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{complaint} {}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

struct Desk {
    base: PathBuf,
}

impl Desk {
    async fn verify(&self, file: &Path, code: i32) -> Value {
        let file = file.to_str().expect("a path");
        report(&program(&self.base, &["audit", "verify", "--file", file, "--json"]).await, code)
    }

    async fn export(&self, name: &str, further: &[&str]) -> PathBuf {
        let file = self.base.join(name);
        let mut arguments = vec!["audit", "export", "--json", "--output", file.to_str().expect("a path")];
        arguments.extend(further);
        report(&program(&self.base, &arguments).await, 0);
        file
    }
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).expect("the export");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn write(file: &Path, lines: &[Value]) {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(file, lines.join("\n") + "\n").expect("written");
}

/// What was found of the one chain of a file: fault and number.
fn only(found: &Value) -> (Value, Value) {
    let chains = found["chains"].as_array().expect("chains");
    assert_eq!(chains.len(), 1, "{found}");
    (chains[0]["fault"].clone(), chains[0]["number"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_is_examined_without_a_server_and_each_kind_of_damage_is_found_in_it() {
    let base = new_folder("export");
    let folder = base.clone();
    let start = move || TestServer::start(&folder, "embedding.model = 'hashing'");
    let server = tokio::task::spawn_blocking(start).await.expect("a server");
    let desk = Desk { base };
    let (alice, bob) = server.tenants().await;
    alice.writer.put_document("boats", "Boats", "Ottoline paints the boats at the pier.").await;
    for number in 0..8 {
        let question = json!({"query": format!("Which boat is number {number}?"), "only_need_context": true});
        alice.reader.post("/query", &question, 200).await;
    }
    bob.reader.get("/auth/verify", 200).await;
    let sound = report(&program(&desk.base, &["audit", "verify", "--json"]).await, 0);
    assert!(sound["chains"].as_array().is_some_and(|chains| chains.len() == 3), "{sound}");
    assert_eq!(sound["left"], 0);

    let everything = desk.export("all.jsonl", &[]).await;
    assert_eq!(desk.verify(&everything, 0).await["chains"].as_array().map(Vec::len), Some(3));
    let until = std::time::Instant::now() + PATIENCE;
    // Questions are queued for a moment.
    let mut round = 0;
    let own = loop {
        let file = desk
            .export(&format!("alice-{round}.jsonl"), &["--tenant", &alice.slug, "--reason", "an audit"])
            .await;
        if lines(&file).iter().filter(|line| line["body"].to_string().contains("query.create")).count() == 8 {
            break file;
        }
        assert!(std::time::Instant::now() < until, "the questions are not in the log");
        round += 1;
    };
    let whole = lines(&own);
    assert!(whole.iter().all(|line| line["tenant"] == alice.id.as_str()), "nobody else's");
    let body = |line: &Value| line["body"].as_str().unwrap_or_default().to_owned();
    assert!(
        whole.iter().any(|line| body(line).contains("\"audit.export\"") && body(line).contains("an audit"))
    );
    let words = program(&desk.base, &["audit", "export", "--output", own.to_str().expect("a path")]).await;
    assert_eq!(words.status.code(), Some(1), "a file that is there is not written over");

    let usage = report(&program(&desk.base, &["audit", "usage", "--tenant", &alice.slug, "--json"]).await, 0);
    let questions = usage.as_array().expect("days").iter().filter(|day| day["kind"] == "query");
    assert_eq!(questions.filter_map(|day| day["events"].as_i64()).sum::<i64>(), 8, "{usage}");
    damaged(&desk, &whole).await;
    part_by_time(&desk, &alice.slug, &whole).await;
    let address = server.laboratory.superuser.as_ref().expect("a private database");
    let mut superuser = crate::place::connect(address).await;
    sqlx::query("delete from audit_event where tenant_id = $1::uuid and number = 2")
        .bind(&alice.id)
        .execute(&mut superuser)
        .await
        .expect("removed");
    superuser.close().await.expect("closed");
    let wrong =
        report(&program(&desk.base, &["audit", "verify", "--tenant", &alice.slug, "--json"]).await, 3);
    assert_eq!(only(&wrong), (json!("removed"), json!(2)));
    let gone = desk.export("gone.jsonl", &["--tenant", &alice.slug]).await;
    assert_eq!(only(&desk.verify(&gone, 3).await), (json!("removed"), json!(2)));
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
}

async fn damaged(desk: &Desk, whole: &[Value]) {
    let last = whole.len() - 2;
    let numbered = |line: &Value, number: usize| {
        let mut line = line.clone();
        line["number"] = json!(number);
        line
    };
    let mut changed = whole.to_vec();
    changed[2]["body"] = json!(changed[2]["body"].as_str().expect("a text").replace("allowed", "denied"));
    let mut removed = whole.to_vec();
    removed.remove(2);
    let mut first = whole.to_vec();
    first.remove(0);
    let mut reordered = whole.to_vec();
    reordered[1] = numbered(&whole[4], 2);
    reordered[4] = numbered(&whole[1], 5);
    let mut inserted = whole.to_vec();
    inserted.insert(3, whole[2].clone());
    let mut cut = whole.to_vec();
    cut.remove(last);
    let mut unended = whole.to_vec();
    unended.pop();
    let mut both = whole.to_vec();
    both.remove(last);
    both.last_mut().expect("an end")["last"] = json!(last);
    let mut more = whole.to_vec();
    more.push(whole[0].clone());
    let count = last + 1;
    for (what, lines, fault, number) in [
        ("an event changed", changed, "changed", 3),
        ("one removed", removed, "removed", 3),
        ("the first removed", first, "removed", 1),
        ("two in each other's place", reordered, "reordered", 2),
        ("one twice", inserted, "inserted", 3),
        ("the last removed", cut, "truncated", count),
        ("the end removed", unended, "head", count),
        ("the last removed and the end moved back", both, "truncated", count),
        ("one after the end", more, "inserted", 1),
    ] {
        let file = desk.base.join("damaged.jsonl");
        write(&file, &lines);
        let found = desk.verify(&file, 3).await;
        assert_eq!(only(&found), (json!(fault), json!(number)), "{what}: {found}");
    }
    let none = desk.base.join("none.jsonl");
    fs::write(&none, "{\"line\": \"event\"}\n").expect("written");
    let none = program(&desk.base, &["audit", "verify", "--file", none.to_str().expect("a path")]).await;
    assert_eq!(none.status.code(), Some(1), "not an export");
}

async fn part_by_time(desk: &Desk, tenant: &str, whole: &[Value]) {
    let at = |line: &Value| {
        let body: Value = serde_json::from_str(line["body"].as_str().expect("a text")).expect("JSON");
        body["at"].as_str().expect("a time").to_owned()
    };
    let mut times: Vec<String> = whole[..whole.len() - 1].iter().map(at).collect();
    times.sort();
    let (since, until) = (times[2].clone(), times[6].clone());
    let times = ["--tenant", tenant, "--since", &since, "--until", &until];
    let part = desk.export("part.jsonl", &times).await;
    let lines = lines(&part);
    let inside = lines.iter().filter(|line| line["line"] == "event").map(at);
    assert!(inside.clone().any(|at| at == since) && lines.len() > 4, "{lines:?}");
    assert_eq!(lines.last().map(|end| end["goes_on"].clone()), Some(json!(true)));
    assert_eq!(only(&desk.verify(&part, 0).await).0, Value::Null);
    let mut cut = lines.clone();
    cut.remove(lines.len() - 2);
    let file = desk.base.join("part-cut.jsonl");
    write(&file, &cut);
    assert_eq!(only(&desk.verify(&file, 3).await).0, json!("truncated"));
}
