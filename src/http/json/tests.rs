//! Bodies of every form at the door of a JSON route.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Debug, Deserialize)]
struct Form {
    text: String,
    #[serde(default)]
    page: Option<i64>,
    #[serde(default)]
    mode: Option<Mode>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Local,
}

impl Check for Form {
    fn check(&self, faults: &mut Faults) {
        faults.text("text", &self.text, 1, 10);
        if let Some(page) = self.page {
            faults.number("page", page, 1, 9);
        }
        let _known = matches!(self.mode, Some(Mode::Local));
    }
}

fn fault(body: &str) -> (&'static str, Vec<Value>, Value) {
    let problem = parse::<Form>(body.as_bytes()).expect_err("refused");
    let field = &problem.fields()[0];
    (field.rule, field.loc.clone(), field.input.clone())
}

#[test]
fn a_wrong_field_is_told_as_lightrag_tells_it() {
    assert_eq!(fault("{}"), ("missing", vec![json!("body"), json!("text")], json!({})));
    assert_eq!(fault(r#"{"text": ""}"#).0, "string_too_short");
    assert_eq!(fault(r#"{"text": 3}"#), ("string_type", vec![json!("body"), json!("text")], json!(3)));
    assert_eq!(fault(r#"{"text": "a", "page": 0}"#).0, "greater_than_equal");
    assert_eq!(fault(r#"{"text": "a", "page": "x"}"#).0, "int_type");
    assert_eq!(fault(r#"{"text": "a", "mode": "nope"}"#).0, "enum");
    assert_eq!(fault("[]").0, "model_attributes_type");
    assert_eq!(fault("").0, "json_invalid");
    assert_eq!(fault(&"[".repeat(100_000)).0, "json_invalid");
    assert_eq!(fault(r#"{"text": "12345678901"}"#).0, "string_too_long");
}

#[test]
fn a_body_that_names_a_tenant_is_refused_in_any_writing() {
    for name in ["tenant", "tenant_id", "Tenant_ID", " tenant_id", "TENANT", "x-tenant-id"] {
        let body = json!({"text": "a", name: "b"}).to_string();
        assert_eq!(fault(&body).0, "extra_forbidden", "{name}");
    }
    assert!(parse::<Form>(br#"{"text": "a", "temperature": 1}"#).is_ok());
}

#[test]
fn a_nul_character_is_refused_wherever_it_is() {
    assert_eq!(fault(r#"{"text": "a\u0000"}"#).0, "string_nul");
    assert_eq!(fault(r#"{"text": "a", "x": [{"y\u0000": 1}]}"#).0, "string_nul");
}

#[test]
fn bytes_that_are_not_utf8_are_refused() {
    let problem = parse::<Form>(b"{\"text\": \"\xff\"}").expect_err("refused");
    assert_eq!(problem.kind(), Kind::InvalidBody);
}

proptest! {
    #[test]
    fn no_body_makes_the_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse::<Form>(&body);
    }

    #[test]
    fn an_error_never_repeats_a_long_text(text in "[a-z]{101,300}") {
        let body = json!({"text": text}).to_string();
        let problem = parse::<Form>(body.as_bytes()).expect_err("too long");
        prop_assert!(!serde_json::to_string(problem.fields()).expect("JSON").contains(&text));
    }
}
