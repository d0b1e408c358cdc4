//! Uploaded files of every format, sound and hostile: read, or refused with a reason, and nothing else harmed.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::ingestion::found;
use crate::server::{Client, PATIENCE, server, text};

/// Whether a document was read and is large enough to be still embedded; else it has ended or will at once.
async fn parsed(reader: &Client, track: &str) -> bool {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = reader.get(&format!("/documents/track_status/{track}"), 200).await;
        match status["documents"][0]["status"].as_str() {
            Some("processed" | "failed") => return false,
            Some("processing") => return true,
            _ => assert!(Instant::now() < until, "not read: {status}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One line, each gap one blank.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn files_of_every_format_are_read_and_hostile_ones_refused_with_a_reason() {
    let folder = tempfile::tempdir().expect("folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/make_fixtures.py");
    let made = Command::new("python3").arg(script).arg(folder.path()).output().expect("Python");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let manifest = std::fs::read(folder.path().join("manifest.json")).expect("manifest");
    let manifest: Vec<Value> = serde_json::from_slice(&manifest).expect("manifest");
    let tenant = server().tenant("files").await;
    let mut sent = Vec::new();
    for (n, entry) in manifest.iter().enumerate() {
        let content = std::fs::read(folder.path().join(text(entry, "file"))).expect("a file");
        // Each in a namespace of its own, so that what is found is from it alone.
        let writer = tenant.writer.with("x-namespace", &format!("file-{n}"));
        sent.push((entry, writer.upload(&text(entry, "file"), &content).await, writer));
    }
    let mut wrong = Vec::new();
    for (entry, answer, writer) in sent {
        let (file, expect) = (text(entry, "file"), text(entry, "expect"));
        if answer.status != 200 {
            if expect == "text" || answer.status >= 500 {
                wrong.push(format!("{file}: {} {}", answer.status, answer.text()));
            }
            continue;
        }
        let track = text(&answer.json(), "track_id");
        if expect == "either" && entry["absent"] == json!([]) && parsed(&writer, &track).await {
            // Read without harm; to embed thousands of brackets would show nothing more.
            writer.delete("/documents", &Value::Null, 200).await;
            continue;
        }
        let ended = writer.wait_ended(&track).await;
        let document = &ended["documents"][0];
        let processed = document["status"] == "processed";
        let reason = document["error_msg"].as_str().unwrap_or_default().to_owned();
        let content =
            if processed { flat(&found(&writer, "Orlestone").await.join(" ")) } else { String::new() };
        if (expect == "text" && !processed) || (expect == "refused" && processed) {
            wrong.push(format!("{file}: {} {reason}", document["status"]));
        }
        if !processed && (reason.is_empty() || reason.contains('/')) {
            wrong.push(format!("{file}: refused as {reason:?}"));
        }
        let said = |list: &str| {
            entry[list].as_array().expect("a list").iter().map(|text| text.as_str().expect("text"))
        };
        for sentence in said("sentences").filter(|sentence| processed && !content.contains(&flat(sentence))) {
            wrong.push(format!("{file}: without {sentence:?}: {content:.300}"));
        }
        for bad in said("absent").filter(|bad| content.contains(*bad)) {
            wrong.push(format!("{file}: with {bad:?}: {content:.300}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    tenant.reader.get("/auth/verify", 200).await;
}
