//! What each operation demands of its caller: the one table, checked against the OpenAPI document by a test.
//!
//! The handlers' permits decide; this table is what is published (`x-required-role`) and what the matrix of
//! authorisation tests iterates over.

use crate::tenancy::Role;

/// Who may call an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// A caller with a tenant's credential, whatever its role.
    Tenant,
    /// A tenant's caller with this role or a higher one.
    Role(Role),
    /// An operator.
    Operator,
}

impl Access {
    /// As published.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "none",
            Self::Tenant => "any",
            Self::Role(role) => role.name(),
            Self::Operator => "operator",
        }
    }
}

/// An operation and what it demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Lower case, as in OpenAPI.
    pub method: &'static str,
    /// The pattern of its path.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
}

const fn open(method: &'static str, path: &'static str) -> Operation {
    Operation { method, path, access: Access::Open }
}

const fn any(method: &'static str, path: &'static str) -> Operation {
    Operation { method, path, access: Access::Tenant }
}

const fn reader(method: &'static str, path: &'static str) -> Operation {
    Operation { method, path, access: Access::Role(Role::Reader) }
}

const fn writer(method: &'static str, path: &'static str) -> Operation {
    Operation { method, path, access: Access::Role(Role::Writer) }
}

const fn admin(method: &'static str, path: &'static str) -> Operation {
    Operation { method, path, access: Access::Role(Role::TenantAdmin) }
}

const fn operator(method: &'static str, path: &'static str) -> Operation {
    Operation { method, path, access: Access::Operator }
}

/// Every operation of the server.
pub const OPERATIONS: &[Operation] = &[
    open("get", "/health"),
    open("get", "/ready"),
    open("get", "/auth-status"),
    open("get", "/.well-known/jwks.json"),
    any("get", "/auth/verify"),
    any("get", "/auth/whoami"),
    writer("post", "/documents/text"),
    writer("post", "/documents/texts"),
    writer("post", "/documents/upload"),
    writer("post", "/documents/scan"),
    reader("post", "/documents/paginated"),
    reader("get", "/documents/status_counts"),
    reader("get", "/documents/track_status/{track_id}"),
    reader("get", "/documents/track_status/{track_id}/events"),
    reader("get", "/documents/pipeline_status"),
    reader("get", "/documents/supported_file_types"),
    writer("delete", "/documents/delete_document"),
    writer("delete", "/documents"),
    writer("post", "/documents/clear_cache"),
    writer("post", "/documents/reprocess_failed"),
    writer("post", "/documents/cancel_pipeline"),
    writer("put", "/documents/{id}"),
    reader("get", "/documents/{id}"),
    writer("delete", "/documents/{id}"),
    writer("delete", "/jobs/{id}"),
    reader("get", "/namespaces"),
    admin("delete", "/namespaces/{name}"),
    admin("get", "/usage"),
    operator("post", "/admin/tenants"),
    operator("get", "/admin/tenants"),
    operator("get", "/admin/tenants/{id}"),
    operator("delete", "/admin/tenants/{id}"),
    operator("patch", "/admin/tenants/{id}/limits"),
    operator("get", "/admin/tenants/{id}/usage"),
    operator("get", "/admin/tenants/{id}/metrics"),
    operator("get", "/admin/top"),
    operator("post", "/admin/tenants/{id}/suspend"),
    operator("post", "/admin/tenants/{id}/resume"),
    operator("post", "/admin/tenants/{id}/keys"),
    operator("get", "/admin/tenants/{id}/keys"),
    operator("delete", "/admin/tenants/{id}/keys/{key_id}"),
    operator("post", "/admin/tenants/{id}/tokens"),
    operator("post", "/admin/tenants/{id}/reembed"),
    operator("get", "/admin/tenants/{id}/reembed/{job_id}"),
    operator("post", "/admin/tenants/{id}/verify"),
    operator("post", "/admin/tenants/{id}/placement"),
    operator("post", "/admin/tenants/{id}/rebuild"),
    operator("get", "/admin/audit/chains"),
    operator("post", "/admin/audit/export"),
    operator("get", "/admin/tenants/{id}/audit/chains"),
    operator("get", "/admin/tenants/{id}/audit/days"),
    operator("post", "/admin/tenants/{id}/audit/export"),
    operator("post", "/admin/backups"),
    operator("post", "/admin/operators"),
    operator("get", "/admin/doctor"),
    reader("post", "/query"),
    reader("post", "/query/data"),
    reader("post", "/query/stream"),
    reader("get", "/graphs"),
    reader("get", "/graph/label/list"),
    reader("get", "/graph/label/popular"),
    reader("get", "/graph/label/search"),
    reader("get", "/graph/entity/exists"),
    reader("get", "/v1/models"),
    reader("get", "/v1/models/{model}"),
    reader("post", "/v1/chat/completions"),
    reader("get", "/api/version"),
    reader("get", "/api/tags"),
    reader("get", "/api/ps"),
    reader("post", "/api/chat"),
    reader("post", "/api/generate"),
];

/// Whether an operation, as `DELETE /documents/{id}`, changes a tenant's data.
#[must_use]
pub fn writes(operation: &str) -> bool {
    let Some((method, path)) = operation.split_once(' ') else { return false };
    let demanded = access(&method.to_ascii_lowercase(), path);
    method != "GET" && matches!(demanded, Some(Access::Role(role)) if role >= Role::Writer)
}

/// What an operation demands; `None` for one that is not in the table.
#[must_use]
pub fn access(method: &str, path: &str) -> Option<Access> {
    OPERATIONS
        .iter()
        .find(|operation| operation.method == method && operation.path == path)
        .map(|found| found.access)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_demands_a_writer_and_is_no_get_writes() {
        for operation in ["POST /documents/text", "PUT /documents/{id}", "DELETE /namespaces/{name}"] {
            assert!(writes(operation), "{operation}");
        }
        for operation in ["GET /usage", "POST /query", "POST /admin/tenants", "POST /nowhere", "", "POST"] {
            assert!(!writes(operation), "{operation}");
        }
    }
}
