//! How each operation is called with the names of somebody's things.

use serde_json::{Value, json};

use crate::operations::Operation;
use crate::server::{Answer, Client, random, random_id, random_name};

/// Names of things, for a caller to ask for.
#[derive(Debug, Clone)]
pub struct Ids {
    pub tenant: String,
    pub key: String,
    pub document: String,
    pub inserted: String,
    pub track: String,
    pub job: String,
    pub namespace: String,
    pub word: String,
    pub name: String,
    pub file: String,
}

impl Ids {
    pub fn all(&self) -> [&String; 10] {
        let Self { tenant, key, document, inserted, track, job, namespace, word, name, file } = self;
        [tenant, key, document, inserted, track, job, namespace, word, name, file]
    }

    /// Of the same form and length as these, and of nobody.
    pub fn random_like(other: &Self) -> Self {
        let uuid = random_id;
        let (stem, _) = other.track.rsplit_once('_').expect("a track");
        Self {
            tenant: uuid(),
            key: random(other.key.len()),
            document: format!("only-{}", random(12)),
            inserted: format!("doc-{}", random(32)),
            track: format!("{stem}_{}", random(8)),
            job: uuid(),
            namespace: format!("space-{}", random(12)),
            word: random(32),
            name: format!("{} {}", random_name(), random_name()),
            file: format!("{}.txt", random(12)),
        }
    }

    /// Of nothing.
    pub fn nobody() -> Self {
        let none = String::new;
        Self {
            tenant: none(),
            key: none(),
            document: none(),
            inserted: none(),
            track: none(),
            job: none(),
            namespace: none(),
            word: none(),
            name: none(),
            file: none(),
        }
    }
}

/// A request to be made.
#[derive(Debug, Clone, Default)]
pub struct Call {
    pub path: String,
    pub body: Value,
    pub namespace: Option<String>,
    /// A file to upload instead of the body: name and content.
    pub file: Option<(String, String)>,
    /// Whether the answer depends on nothing but what was asked for: no time, no random id, no echo of words.
    pub comparable: bool,
}

fn get(path: impl Into<String>) -> Call {
    Call { path: path.into(), comparable: true, ..Call::default() }
}

fn with(path: impl Into<String>, body: Value) -> Call {
    Call { body, ..get(path) }
}

impl Call {
    fn changing(self) -> Self {
        Self { comparable: false, ..self }
    }

    pub fn within(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    pub async fn make(&self, method: &str, caller: &Client) -> Answer {
        let caller = match &self.namespace {
            Some(name) => caller.with("lightrag-workspace", name),
            None => caller.clone(),
        };
        match &self.file {
            Some((name, content)) => caller.upload(name, content.as_bytes()).await,
            None => caller.send(method, &self.path, &self.body).await,
        }
    }
}

/// Calls of an operation with these names, none of which is written into anything; `None` for an operation that is not known here.
#[expect(clippy::too_many_lines, clippy::match_same_arms, reason = "a table of operations")]
pub fn calls(operation: &Operation, ids: &Ids) -> Option<Vec<Call>> {
    let path = operation.path.as_str();
    let question = format!("Who keeps the light at Pier Nine, {} or {}?", ids.name, ids.word);
    let chat = |model: &str, stream: bool| {
        let messages = json!([{"role": "user", "content": question}]);
        with(path, json!({"model": model, "messages": messages, "stream": stream})).changing()
    };
    // In the namespace that everybody has, and in the one that is named.
    let both = |call: Call| vec![call.clone(), call.within(&ids.namespace)];
    let asked = || {
        let modes = ["naive", "local", "global", "hybrid", "mix"];
        let ask = |mode| {
            with(
                path,
                json!({"query": question, "mode": mode, "include_chunk_content": true, "include_progress": true}),
            )
        };
        let mut calls: Vec<Call> = modes.into_iter().map(|mode| ask(mode).changing()).collect();
        calls.push(with(path, json!({"query": question, "only_need_context": true})).changing());
        calls.push(ask("mix").within(&ids.namespace).changing());
        calls
    };
    let name = ids.name.replace(' ', "%20");
    let reason = || json!({"reason": "a test"});
    Some(match operation.name().as_str() {
        "get /health"
        | "get /ready"
        | "get /auth-status"
        | "get /.well-known/jwks.json"
        | "get /auth/verify"
        | "get /auth/whoami"
        | "get /documents/pipeline_status"
        | "get /documents/supported_file_types"
        | "get /namespaces"
        | "get /usage"
        | "get /v1/models"
        | "get /api/version"
        | "get /api/tags"
        | "get /api/ps"
        | "get /admin/top"
        | "get /admin/doctor"
        | "get /admin/tenants"
        | "get /admin/audit/chains" => vec![get(path).changing()],
        "post /documents/text" => {
            vec![with(path, json!({"text": "A memo about the tide."})).changing()]
        }
        "post /documents/texts" => {
            vec![with(path, json!({"texts": ["A slip about the tide."]})).changing()]
        }
        "post /documents/upload" => {
            let file = (format!("{}.txt", random(8)), "A file about the tide.".to_owned());
            vec![Call { file: Some(file), ..get(path).changing() }]
        }
        "post /documents/scan" | "post /documents/clear_cache" => vec![get(path).changing()],
        "post /documents/paginated" => {
            let call = with(path, json!({"page_size": 200}));
            vec![call.clone().changing(), call.within(&ids.namespace)]
        }
        "get /documents/status_counts"
        | "post /documents/reprocess_failed"
        | "post /documents/cancel_pipeline" => {
            vec![get(path).changing(), get(path).within(&ids.namespace)]
        }
        "get /documents/track_status/{track_id}" | "get /documents/track_status/{track_id}/events" => {
            vec![get(path.replace("{track_id}", &ids.track))]
        }
        "delete /documents/delete_document" => {
            both(with(path, json!({"doc_ids": [ids.document, ids.inserted], "delete_file": true})))
        }
        "delete /documents" => vec![get(path).within(&ids.namespace), get(path).changing()],
        "put /documents/{id}" => {
            let body = json!({"text": "A page about the tide."});
            vec![with(path.replace("{id}", "page"), body).changing()]
        }
        "get /documents/{id}" => {
            let mut calls = both(get(path.replace("{id}", &ids.document)));
            calls.extend(both(get(path.replace("{id}", &ids.inserted))));
            calls
        }
        "delete /documents/{id}" => {
            let mut calls = both(get(path.replace("{id}", &ids.document)));
            calls.extend(both(get(path.replace("{id}", &ids.inserted))));
            calls
        }
        "delete /jobs/{id}" => vec![get(path.replace("{id}", &ids.job))],
        "delete /namespaces/{name}" => vec![get(path.replace("{name}", &ids.namespace))],
        "post /query" | "post /query/data" | "post /query/stream" => asked(),
        "get /graphs" => {
            let part = get(format!("{path}?label={name}"));
            vec![part.clone(), part.within(&ids.namespace), get(format!("{path}?label=*")).changing()]
        }
        "get /graph/label/list" | "get /graph/label/popular" => {
            vec![get(path).changing(), get(path).within(&ids.namespace)]
        }
        "get /graph/label/search" => {
            let (first, _) = ids.name.split_once(' ').unwrap_or_default();
            both(get(format!("{path}?q={first}")))
        }
        "get /graph/entity/exists" => both(get(format!("{path}?name={name}"))),
        "get /v1/models/{model}" => vec![get(path.replace("{model}", &ids.namespace))],
        "post /v1/chat/completions" | "post /api/chat" => {
            let mut calls = vec![chat("default", false), chat("default", true)];
            calls.push(chat(&ids.namespace, false));
            calls
        }
        "post /api/generate" => {
            vec![with(path, json!({"model": ids.namespace, "prompt": question})).changing()]
        }
        "post /admin/tenants" => vec![with(path, json!({"name": "Mallory", "reason": "a test"}))],
        "post /admin/backups" | "post /admin/audit/export" => vec![with(path, reason())],
        "post /admin/operators" => vec![with(path, json!({"name": "mallory", "reason": "a test"}))],
        "get /admin/tenants/{id}"
        | "get /admin/tenants/{id}/audit/chains"
        | "get /admin/tenants/{id}/audit/days"
        | "get /admin/tenants/{id}/keys"
        | "get /admin/tenants/{id}/metrics"
        | "get /admin/tenants/{id}/usage" => {
            vec![get(path.replace("{id}", &ids.tenant))]
        }
        "delete /admin/tenants/{id}"
        | "post /admin/tenants/{id}/suspend"
        | "post /admin/tenants/{id}/resume" => {
            vec![with(path.replace("{id}", &ids.tenant), reason())]
        }
        "patch /admin/tenants/{id}/limits" => {
            vec![with(path.replace("{id}", &ids.tenant), json!({"documents": 1, "reason": "a test"}))]
        }
        "post /admin/tenants/{id}/keys" => {
            let body = json!({"name": "key", "roles": ["reader"], "reason": "a test"});
            vec![with(path.replace("{id}", &ids.tenant), body)]
        }
        "delete /admin/tenants/{id}/keys/{key_id}" => {
            vec![with(path.replace("{id}", &ids.tenant).replace("{key_id}", &ids.key), reason())]
        }
        "post /admin/tenants/{id}/reembed" => {
            let body = json!({"model": "all-MiniLM-L6-v2", "reason": "a test"});
            vec![with(path.replace("{id}", &ids.tenant), body)]
        }
        "get /admin/tenants/{id}/reembed/{job_id}" => {
            vec![get(path.replace("{id}", &ids.tenant).replace("{job_id}", &ids.job))]
        }
        "post /admin/tenants/{id}/verify"
        | "post /admin/tenants/{id}/rebuild"
        | "post /admin/tenants/{id}/audit/export" => {
            vec![with(path.replace("{id}", &ids.tenant), reason())]
        }
        "post /admin/tenants/{id}/placement" => {
            let body = json!({"placement": "own", "reason": "a test"});
            vec![with(path.replace("{id}", &ids.tenant), body)]
        }
        "post /admin/tenants/{id}/tokens" => {
            let body = json!({"subject": "mallory", "roles": ["reader"], "expires_in": 60});
            vec![with(path.replace("{id}", &ids.tenant), body)]
        }
        _ => return None,
    })
}
