//! What must be true of a tenant's rows at any time, and what must not be found in any table.

use bulkhead::domain::ids::TenantId;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

/// The counts that are kept beside the rows are those of the rows, and nothing refers to what is not there.
pub async fn consistent(superuser: &mut PgConnection, tenant: TenantId) {
    let checks = [
        (
            "term frequencies are those of the chunks",
            "select coalesce(kept.term, counted.term)::text from
                 (select namespace_id, term, chunks from term_frequency where tenant_id = $1) kept
             full join
                 (select namespace_id, split_part(entry, ':', 1)::int - 1 as term, count(*)::int as chunks
                  from chunk_embedding,
                      regexp_split_to_table(trim(both '{}' from split_part(terms::text, '/', 1)), ',') entry
                  where tenant_id = $1 and entry <> '' group by 1, 2) counted
             using (namespace_id, term) where kept.chunks is distinct from counted.chunks",
        ),
        (
            "a namespace's size is that of its chunks",
            "select n.name from namespace n where n.tenant_id = $1 and n.chunks <>
                 (select count(*) from chunk c where c.tenant_id = $1 and c.namespace_id = n.namespace_id)",
        ),
        (
            "each chunk has an embedding of its version",
            "select c.chunk_id::text from chunk c left join chunk_embedding e
                 on e.tenant_id = $1 and e.chunk_id = c.chunk_id and e.version = c.version and e.seq = c.seq
             where c.tenant_id = $1 and e.chunk_id is null",
        ),
        (
            "each embedding and mention has a chunk",
            "select chunk_id::text from chunk_embedding where tenant_id = $1 and chunk_id not in
                 (select chunk_id from chunk where tenant_id = $1)
             union all select chunk_id::text from chunk_mention where tenant_id = $1 and chunk_id not in
                 (select chunk_id from chunk where tenant_id = $1)",
        ),
        (
            "each chunk is of the version that answers, whose content is there",
            "select c.chunk_id::text from chunk c
             left join document d on d.tenant_id = $1 and d.namespace_id = c.namespace_id
                 and d.document_id = c.document_id and d.live_version = c.version
             left join document_version v on v.tenant_id = $1 and v.namespace_id = c.namespace_id
                 and v.document_id = c.document_id and v.version = c.version
             where c.tenant_id = $1 and (d.document_id is null or v.document_id is null)",
        ),
        (
            "each version and job has a document",
            "select x.document_id from (
                 select namespace_id, document_id from document_version where tenant_id = $1
                 union all select namespace_id, document_id from job where tenant_id = $1 and kind = 'ingest') x
             where not exists (select from document d where d.tenant_id = $1
                 and d.namespace_id = x.namespace_id and d.document_id = x.document_id)",
        ),
        (
            "each document, history and consumer has a namespace",
            "select x.namespace_id::text from (
                 select namespace_id from document where tenant_id = $1
                 union all select namespace_id from outbox where tenant_id = $1
                 union all select namespace_id from consumer where tenant_id = $1) x
             where not exists (select from namespace n where n.tenant_id = $1 and n.namespace_id = x.namespace_id)",
        ),
        (
            "histories have no gap and end at the namespace's position",
            "select n.name from namespace n
             left join outbox o on o.tenant_id = $1 and o.namespace_id = n.namespace_id
             where n.tenant_id = $1 group by n.name, n.seq
             having count(o.seq) > 0 and (max(o.seq) <> n.seq or max(o.seq) - min(o.seq) + 1 <> count(*))",
        ),
    ];
    for (rule, query) in checks {
        let broken: Vec<String> =
            sqlx::query_scalar(query).bind(tenant.0).fetch_all(&mut *superuser).await.expect(rule);
        assert_eq!(broken, Vec::<String>::new(), "{rule}");
    }
}

/// In which tables a text is found, in any column of any row.
pub async fn residue(superuser: &mut PgConnection, needle: &str) -> Vec<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace",
    )
    .fetch_all(&mut *superuser)
    .await
    .expect("tables");
    let mut found = Vec::new();
    for table in tables {
        let hit: bool = sqlx::query_scalar(AssertSqlSafe(format!(
            "select exists(select from {table} t where strpos(t::text, $1) > 0)"
        )))
        .bind(needle)
        .fetch_one(&mut *superuser)
        .await
        .expect("searched");
        if hit {
            found.push(table);
        }
    }
    found
}
