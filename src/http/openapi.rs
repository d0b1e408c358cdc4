//! The OpenAPI document, from the code, and the page that shows it.
//!
//! Each handler describes its own request and answer; what is the same for many (credentials, roles, problems)
//! is added here from the table of operations.

use std::sync::LazyLock;

use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, Responder};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::operations::{Access, access};
use super::problem::{FieldError, Kind};

/// A problem (RFC 9457). LightRAG's routes have the list of wrong fields under `detail`, OpenAI's and
/// Ollama's routes have `error` besides.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct ProblemBody {
    /// A URI of the kind of problem.
    r#type: String,
    /// The same for every problem of the kind.
    title: String,
    /// The HTTP status.
    status: u16,
    /// The stable name that programs compare.
    slug: String,
    /// What to do.
    #[schema(value_type = Object)]
    detail: Value,
    /// Names the problem in the server's log.
    request_id: uuid::Uuid,
    /// The fields that are wrong.
    errors: Option<Vec<FieldError>>,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Bulkhead",
        description = "Retrieval for many tenants: documents in, cited answers out. The tenant comes from the credential alone; the namespace inside it from `LIGHTRAG-WORKSPACE` or `X-Namespace`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/")),
    paths(
        super::health::health,
        super::ready::ready,
        super::auth::auth_status,
        super::auth::jwks,
        super::auth::verify,
        super::auth::whoami,
        super::documents::text,
        super::documents::texts,
        super::documents::upload,
        super::documents::scan,
        super::documents::paginated,
        super::documents::status_counts,
        super::documents::track_status,
        super::documents::track_events,
        super::documents::pipeline_status,
        super::documents::supported_file_types,
        super::documents::delete_document,
        super::documents::clear,
        super::documents::clear_cache,
        super::documents::reprocess_failed,
        super::documents::cancel_pipeline,
        super::documents::document_put,
        super::documents::document_get,
        super::documents::document_delete,
        super::jobs::cancel,
        super::namespaces::list,
        super::namespaces::remove,
        super::usage::usage,
        super::admin::tenant_create,
        super::admin::tenant_list,
        super::admin::tenant_get,
        super::admin::tenant_delete,
        super::admin::tenant_limits,
        super::admin::tenant_usage,
        super::admin::tenant_metrics,
        super::admin::tenant_top,
        super::admin::tenant_suspend,
        super::admin::tenant_resume,
        super::admin::key_create,
        super::admin::key_list,
        super::admin::key_revoke,
        super::admin::token_create,
        super::admin::operator_create,
        super::admin::reembed_create,
        super::admin::reembed_get,
        super::admin::diagnose,
        super::admin::verify,
        super::admin::rebuild,
        super::admin::placement,
        super::admin::chains,
        super::admin::export,
        super::admin::tenant_chains,
        super::admin::tenant_days,
        super::admin::tenant_export,
        super::admin::backup,
        super::query::create,
        super::query::data,
        super::query::streamed,
        super::graph::get,
        super::graph::list,
        super::graph::popular,
        super::graph::search,
        super::graph::exists,
        super::openai::models,
        super::openai::model,
        super::openai::complete,
        super::ollama::version,
        super::ollama::tags,
        super::ollama::running,
        super::ollama::chat,
        super::ollama::generate,
    ),
    components(schemas(ProblemBody, FieldError)),
)]
struct Document;

/// The document as it is served.
pub static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    document["components"]["securitySchemes"] = json!({
        "bearer": {"type": "http", "scheme": "bearer", "description": "A tenant's API key or token; on `/admin` an operator's credential."},
        "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same in a header of its own."},
    });
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    for (path, methods) in paths.into_iter().flatten() {
        for (method, operation) in methods.as_object_mut().into_iter().flatten() {
            if let (Some(operation), Some(access)) = (operation.as_object_mut(), access(method, path)) {
                complete(operation, path, access);
            }
        }
    }
    document
});

/// Adds what the table of operations knows.
fn complete(operation: &mut Map<String, Value>, path: &str, access: Access) {
    operation.insert("x-required-role".to_owned(), json!(access.name()));
    let mut kinds = vec![Kind::Internal];
    if access == Access::Open {
        operation.insert("security".to_owned(), json!([]));
    } else {
        operation.insert("security".to_owned(), json!([{"bearer": []}, {"api_key": []}]));
        kinds.extend([Kind::Unauthorized, Kind::Unavailable]);
    }
    if !matches!(access, Access::Open | Access::Operator) {
        kinds.extend([Kind::TenantHintMalformed, Kind::TenantMismatch, Kind::RateLimited]);
    }
    if path.contains('{') {
        kinds.push(Kind::NotFound);
    }
    if operation.contains_key("requestBody") {
        kinds.extend([Kind::RequestTimeout, Kind::TooLarge, Kind::UnsupportedMediaType, Kind::InvalidBody]);
    }
    let content =
        json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}});
    let responses = operation.entry("responses").or_insert_with(|| json!({}));
    for kind in kinds {
        let status = kind.status().to_string();
        if responses.get(&status).is_none() {
            responses[status] = json!({"description": kind.title(), "content": content});
        }
    }
}

async fn document() -> impl Responder {
    HttpResponse::Ok().json(&*DOCUMENT)
}

async fn to_page() -> impl Responder {
    HttpResponse::PermanentRedirect().insert_header(("Location", "/docs/")).finish()
}

/// The document and its page, both without a credential: they hold nothing of any tenant.
pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .service(web::resource("/openapi.json").route(web::get().to(document)))
        .service(web::resource("/docs").route(web::get().to(to_page)))
        .service(SwaggerUi::new("/docs/{_:.*}").config(Config::from("/openapi.json")));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::operations::OPERATIONS;

    #[test]
    fn the_document_and_the_table_of_operations_name_the_same() {
        let paths = DOCUMENT["paths"].as_object().expect("paths");
        let documented: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().expect("methods").keys().map(move |method| (method.clone(), path.clone()))
            })
            .collect();
        let listed: BTreeSet<(String, String)> = OPERATIONS
            .iter()
            .map(|operation| (operation.method.to_owned(), operation.path.to_owned()))
            .collect();
        assert_eq!(documented, listed);
        assert_eq!(listed.len(), OPERATIONS.len(), "an operation is listed twice");
    }

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(to)) = fields.get("$ref") {
                        found.push(to.clone());
                    }
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        references(&DOCUMENT, &mut found);
        for to in found {
            let pointer = to.trim_start_matches('#');
            assert!(DOCUMENT.pointer(pointer).is_some(), "{to}");
        }
        assert_eq!(DOCUMENT["openapi"].as_str().map(|version| &version[..3]), Some("3.1"));
    }

    #[test]
    fn every_operation_states_its_role_its_credential_and_its_problems() {
        for operation in OPERATIONS {
            let pointer = format!("/paths/{}/{}", operation.path.replace('/', "~1"), operation.method);
            let described = DOCUMENT.pointer(&pointer).expect("documented");
            assert_eq!(described["x-required-role"], operation.access.name());
            assert_eq!(described["security"] == json!([]), operation.access == Access::Open);
            assert!(described["responses"]["500"].is_object());
        }
    }
}
