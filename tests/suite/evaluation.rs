//! `bulkhead eval retrieval` over two small sets with known answers, on a server of its own.

use serde_json::Value;

use crate::command_line::Shell;

const NEIGHBOURS: usize = 3;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn row<'a>(set: &'a Value, ending: &str) -> &'a Value {
    let rows = set["rows"].as_array().expect("rows");
    let found = rows.iter().find(|row| row["row"].as_str().is_some_and(|name| name.contains(ending)));
    found.unwrap_or_else(|| panic!("no row {ending}: {set}"))
}

fn recall(set: &Value, method: &str) -> f64 {
    let methods = set["methods"].as_array().expect("methods");
    let found = methods.iter().find(|one| one["method"] == method);
    number(&found.unwrap_or_else(|| panic!("no {method}: {set}"))["quality"]["recall_at_5"]["mean"])
}

#[test]
fn every_mode_is_measured_on_passages_and_on_a_long_text_and_each_index_against_exact_search() {
    let shell = Shell::new();
    let output = shell.run(&[
        "eval",
        "retrieval",
        "tests/fixtures/evaluation/passages",
        "tests/fixtures/evaluation/text",
        "--neighbours",
        &NEIGHBOURS.to_string(),
        "--json",
    ]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{complaint}"));
    let [passages, text] = &figures["sets"].as_array().expect("sets")[..] else { panic!("{figures}") };

    // The answers of three of the six questions are in a second passage that only a name of the first leads to.
    assert!(recall(passages, "mix") > 0.9, "{passages}");
    assert!(recall(passages, "mix") >= recall(passages, "naive"), "{passages}");
    for method in ["dense", "bm25", "naive", "local", "global", "hybrid", "mix"] {
        assert!(recall(passages, method) > 0.3, "{method}: {passages}");
    }
    // The whole text is one chunk, so that it covers all of what is asked.
    assert!(recall(text, "naive") > 0.9, "{text}");
    assert!(text["methods"][0]["quality"]["ndcg_at_10"].is_null(), "{text}");

    for set in [passages, text] {
        let alone = row(set, "index against exact search, recall at 10");
        let least = row(set, &format!("least of {} tenants", NEIGHBOURS + 1));
        assert!((number(&alone["value"]) - 1.0).abs() < 1e-9, "{set}");
        assert!((number(&least["value"]) - 1.0).abs() < 1e-9, "{set}");
    }
}
