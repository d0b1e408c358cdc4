//! The operations that the server says it has.

use crate::server::{Answer, Client, TestServer};
use serde_json::Value;

/// An operation of the OpenAPI document.
#[derive(Debug, Clone)]
pub struct Operation {
    pub method: String,
    /// With its `{parts}`.
    pub path: String,
    /// `none`, `any`, `reader`, `writer`, `tenant_admin` or `operator`.
    pub access: String,
}

/// Every operation of the OpenAPI document.
pub async fn operations(server: &TestServer) -> Vec<Operation> {
    let document = server.anybody().get("/openapi.json", 200).await;
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let access = operation["x-required-role"].as_str().expect("a role").to_owned();
            found.push(Operation { method: method.clone(), path: path.clone(), access });
        }
    }
    assert!(found.len() > 40, "the document lists too little: {found:?}");
    found
}

impl Operation {
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Whether it is served to operators alone.
    pub fn is_operators(&self) -> bool {
        self.access == "operator"
    }

    /// Calls it with names that are well formed, and with no body.
    pub async fn call(&self, caller: &Client) -> Answer {
        let id = if self.path.starts_with("/documents") {
            "doc-1"
        } else {
            "00000000-0000-4000-8000-000000000000"
        };
        let path = self
            .path
            .replace("{id}", id)
            .replace("{name}", "other")
            .replace("{model}", "default")
            .replace("{track_id}", "insert_20260101_000000_00000000")
            .replace("{job_id}", "00000000-0000-4000-8000-000000000001")
            .replace("{key_id}", "0123456789abcdef");
        assert!(!path.contains('{'), "{} has a part that the tests do not know", self.path);
        caller.send(&self.method, &path, &Value::Null).await
    }
}
