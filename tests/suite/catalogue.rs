//! What the database itself says of who may see what, turned round: every table, role, grant and index is as
//! it is listed here, or the test fails. A list may get longer only with a reason.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use sqlx::postgres::PgConnection;

use crate::deployment::Harness;
use crate::partitions::promoted;

/// Tables without a tenant, with the only reader and the reason.
const WITHOUT_TENANT: [(&str, &str); 2] = [
    ("_sqlx_migrations", "what was migrated and when; the owner's and the backup's alone, no tenant data"),
    ("operator_key", "operators belong to the deployment"),
];

/// The only table without row-level security.
const WITHOUT_ROW_SECURITY: &str = "_sqlx_migrations";

/// Policies that show rows of several tenants, with the roles and the reason.
const ACROSS_TENANTS: [(&str, &str, &str); 11] = [
    ("tenant", "auth,control", "a credential is looked up before its tenant is known; control makes tenants"),
    ("api_key", "auth,control", "a credential is looked up before its tenant is known; control makes keys"),
    ("operator_key", "auth,control", "operators belong to the deployment"),
    ("job", "dispatch", "the queue of all tenants, heads only by column grants"),
    ("namespace", "dispatch", "positions of histories, by column grants"),
    ("consumer", "dispatch", "positions of projections, by column grants"),
    ("outbox", "dispatch", "positions of histories, by column grants"),
    ("audit_head", "dispatch", "whose events wait to be forwarded, by column grants"),
    ("audit_anchor", "dispatch", "whose events wait to be forwarded, by column grants"),
    ("tenant_usage", "control", "operators compare what tenants keep: ids and numbers"),
    (
        "vector_collection",
        "dispatch",
        "tenants that have collections and how many are their own, by column grants; not their names",
    ),
];

/// Indexes that are not led by the tenant, with the reason.
const NOT_LED_BY_TENANT: [(&str, &str); 2] = [
    ("api_key_lookup", "80 random bits, looked up before a tenant is known, by auth alone"),
    ("tenant_slug", "a host name is looked up before a tenant is known, by auth alone"),
];

const OWN: &str = "(tenant_id = (current_setting('bulkhead.tenant'::text))::uuid)";
const NOT_DEPLOYMENT: &str = "(tenant_id <> '00000000-0000-0000-0000-000000000000'::uuid)";

/// Whole-table grants. Everything else is by column, or to the owner.
const GRANTS: &str = "\
app audit_anchor insert,select,update
app audit_event insert,select
app audit_head insert,select,update
app chunk delete,insert,select,update
app chunk_embedding delete,insert,select,update
app chunk_mention delete,insert,select,update
app consumer delete,insert,select,update
app document delete,insert,select,update
app document_version delete,insert,select,update
app idempotency delete,insert,select,update
app job delete,insert,select,update
app namespace delete,insert,select,update
app outbox delete,insert,select,update
app tenant_usage delete,insert,select,update
app term_frequency delete,insert,select,update
app vector_collection delete,insert,select,update
app vector_placement delete,insert,select,update
backup _sqlx_migrations select
backup api_key select
backup audit_anchor select
backup audit_event select
backup audit_head select
backup chunk select
backup chunk_embedding select
backup chunk_embedding_MODEL select
backup chunk_embedding_MODEL_shared select
backup chunk_mention select
backup consumer select
backup document select
backup document_version select
backup idempotency select
backup job select
backup namespace select
backup operator_key select
backup outbox select
backup tenant select
backup tenant_usage select
backup term_frequency select
backup vector_collection select
backup vector_placement select
backup vectors_MODEL_NAMESPACE select
control api_key delete,insert,select,update
control audit_anchor insert,select,update
control audit_event insert,select
control audit_head insert,select,update
control job insert,select
control operator_key insert,select,update
control tenant insert,select,update
control tenant_usage select
control vector_placement insert,select,update
dispatch outbox delete";

const COLUMN_GRANTS: &str = "\
auth select api_key digest,expires_at,key_id,namespaces,revoked_at,roles,tenant_id
auth select operator_key digest,expires_at,key_id,revoked_at
auth select tenant limits,slug,state,tenant_id
control update job finished_at,lease,leased_until,stage,state,updated_at
dispatch select audit_anchor node,number,tenant_id
dispatch select audit_head node,number,tenant_id
dispatch select consumer consumer,namespace_id,seq,tenant_id,updated_at
dispatch select job attempts,cost,due_at,job_id,kind,lease,leased_by,leased_until,namespace_id,state,tenant_id,upload
dispatch select namespace building,chunks,homes,model_id,namespace_id,seq,tenant_id
dispatch select outbox namespace_id,seq,tenant_id
dispatch select vector_collection placement,tenant_id
dispatch update job attempts,due_at,lease,leased_by,leased_until,state,updated_at";

/// Table, name, command, roles, whether it permits, what it shows, what it lets in.
type Policy = (String, String, String, Vec<String>, bool, Option<String>, Option<String>);

async fn rows(connection: &mut PgConnection, query: &'static str) -> Vec<String> {
    let mut rows: Vec<String> = sqlx::query_scalar(query).fetch_all(connection).await.expect(query);
    rows.sort();
    rows
}

/// Partitions of models and of large namespaces under one name each.
fn without_identities(rows: &[String]) -> Vec<String> {
    let leaf = Regex::new("vectors_[0-9a-f]{16}_[0-9a-f]{32}").expect("a pattern");
    let model = Regex::new("chunk_embedding_[0-9a-f]{16}").expect("a pattern");
    let plain = |row: &String| {
        let row = leaf.replace_all(row, "vectors_MODEL_NAMESPACE");
        model.replace_all(&row, "chunk_embedding_MODEL").into_owned()
    };
    let mut rows: Vec<String> = rows.iter().map(plain).collect();
    rows.sort();
    rows.dedup();
    rows
}

const TABLES: &str = "select c.relname::text from pg_class c
    where c.relkind in ('r', 'p', 'f') and c.relnamespace not in
        ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)";

#[tokio::test]
async fn every_table_forces_row_security() {
    let harness = Harness::new().await;
    let own = promoted(&harness).await;
    let mut superuser = harness.deployment.superuser().await;
    let all = rows(&mut superuser, TABLES).await;
    assert!(all.len() > 15 && all.contains(&own), "{all:?}");
    let unforced = rows(
        &mut superuser,
        "select c.relname::text from pg_class c where c.relkind in ('r', 'p', 'f')
             and c.relnamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
             and not (c.relrowsecurity and c.relforcerowsecurity)",
    )
    .await;
    assert_eq!(unforced, [WITHOUT_ROW_SECURITY]);

    let with_tenant = rows(
        &mut superuser,
        "select c.relname::text from pg_class c join pg_attribute a on a.attrelid = c.oid
         where c.relkind in ('r', 'p') and a.attname = 'tenant_id' and a.attnotnull
             and a.atttypid = 'uuid'::regtype",
    )
    .await;
    let missing: Vec<&String> = all.iter().filter(|table| !with_tenant.contains(table)).collect();
    assert_eq!(missing, WITHOUT_TENANT.map(|(table, _)| table), "tables without a tenant");
    harness.close().await;
}

#[tokio::test]
async fn every_table_has_policies_for_each_command_that_name_their_roles() {
    let harness = Harness::new().await;
    let own = promoted(&harness).await;
    let mut superuser = harness.deployment.superuser().await;
    let policies: Vec<Policy> = sqlx::query_as(
        "select tablename::text, policyname::text, lower(cmd), roles::text[], permissive = 'PERMISSIVE',
                 qual, with_check from pg_policies order by 1, 2",
    )
    .fetch_all(&mut superuser)
    .await
    .expect("policies");
    let mut commands: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (table, name, command, roles, permissive, using, check) in policies {
        let about = format!("{name} on {table}");
        assert!(!roles.iter().any(|role| role == "public"), "{about} is for everybody");
        assert!(roles.iter().all(|role| role.starts_with("bulkhead_")), "{about}: {roles:?}");
        if !permissive {
            assert_eq!(using.as_deref(), Some(NOT_DEPLOYMENT), "{about}");
            assert_eq!(check.as_deref(), Some(NOT_DEPLOYMENT), "{about}");
            continue;
        }
        commands.entry(table.clone()).or_default().insert(command.clone());
        let (reads, writes) = (command != "insert", command == "insert" || command == "update");
        assert_eq!((using.is_some(), check.is_some()), (reads, writes), "{about}");
        for expression in using.iter().chain(&check).filter(|expression| *expression != OWN) {
            assert_eq!(expression, "true", "{about}");
            let listed = ACROSS_TENANTS.iter().find(|(listed, ..)| *listed == table);
            let (_, allowed, _) = listed.unwrap_or_else(|| panic!("{about} shows every tenant"));
            for role in &roles {
                let short = role.trim_start_matches("bulkhead_");
                assert!(allowed.split(',').any(|role| role == short), "{about} shows {role} every tenant");
            }
        }
    }
    let every = BTreeSet::from(["delete", "insert", "select", "update"].map(str::to_owned));
    assert!(commands.contains_key(&own));
    for table in rows(&mut superuser, TABLES).await {
        if table != WITHOUT_ROW_SECURITY {
            assert_eq!(commands.get(&table), Some(&every), "{table}");
        }
    }
    harness.close().await;
}

#[tokio::test]
async fn no_role_has_more_than_it_needs() {
    let harness = Harness::new().await;
    promoted(&harness).await;
    let mut superuser = harness.deployment.superuser().await;
    let beyond = rows(
        &mut superuser,
        "select rolname::text from pg_roles
         where (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication)
             and rolname not like 'pg\\_%'",
    )
    .await;
    assert_eq!(beyond, ["bulkhead_backup", "bulkhead_superuser"]);
    let members = rows(
        &mut superuser,
        "select m.member::regrole::text from pg_auth_members m where m.member::regrole::text like 'bulkhead%'",
    )
    .await;
    assert_eq!(members, Vec::<String>::new(), "members of other roles");

    let owners = rows(
        &mut superuser,
        "select distinct c.relowner::regrole::text from pg_class c
         where c.relnamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace,
             'pg_toast'::regnamespace)",
    )
    .await;
    assert_eq!(owners, ["bulkhead_owner"]);
    let owned = rows(
        &mut superuser,
        "select refobjid::regrole::text || ' owns ' || classid::regclass::text from pg_shdepend
         where refclassid = 'pg_authid'::regclass and deptype = 'o'
             and refobjid in ('bulkhead_app'::regrole, 'bulkhead_auth'::regrole, 'bulkhead_dispatch'::regrole,
                 'bulkhead_control'::regrole, 'bulkhead_backup'::regrole)",
    )
    .await;
    assert_eq!(owned, Vec::<String>::new());
    harness.close().await;
}

#[tokio::test]
async fn the_grants_are_the_least_ones() {
    let harness = Harness::new().await;
    promoted(&harness).await;
    let mut superuser = harness.deployment.superuser().await;
    let tables = rows(
        &mut superuser,
        "select coalesce(nullif(replace(g.grantee::regrole::text, 'bulkhead_', ''), '-'), 'everybody')
             || ' ' || c.relname || ' ' || string_agg(lower(g.privilege_type), ',' order by lower(g.privilege_type))
         from pg_class c, aclexplode(c.relacl) g
         where c.relnamespace = 'public'::regnamespace and g.grantee <> c.relowner
         group by g.grantee, c.relname",
    )
    .await;
    assert_eq!(without_identities(&tables).join("\n"), GRANTS);
    let columns = rows(
        &mut superuser,
        "select coalesce(nullif(replace(g.grantee::regrole::text, 'bulkhead_', ''), '-'), 'everybody')
             || ' ' || lower(g.privilege_type) || ' ' || c.relname || ' '
             || string_agg(a.attname, ',' order by a.attname)
         from pg_attribute a join pg_class c on c.oid = a.attrelid, aclexplode(a.attacl) g
         where c.relnamespace = 'public'::regnamespace
         group by g.grantee, g.privilege_type, c.relname",
    )
    .await;
    assert_eq!(columns.join("\n"), COLUMN_GRANTS);
    let grantable = rows(
        &mut superuser,
        "select c.relname::text from pg_class c, aclexplode(c.relacl) g where g.is_grantable and g.grantee <> c.relowner",
    )
    .await;
    assert_eq!(grantable, Vec::<String>::new(), "grants that can be passed on");
    let creators = rows(
        &mut superuser,
        "select rolname::text from pg_roles where rolname like 'bulkhead\\_%'
             and (has_schema_privilege(rolname, 'public', 'create')
                 or has_database_privilege(rolname, current_database(), 'create, temporary'))",
    )
    .await;
    assert_eq!(creators, ["bulkhead_owner", "bulkhead_superuser"]);
    harness.close().await;
}

#[tokio::test]
async fn nothing_in_the_database_acts_with_anothers_rights() {
    let harness = Harness::new().await;
    let mut superuser = harness.deployment.superuser().await;
    for (what, query) in [
        (
            "security definers",
            "select proname::text from pg_proc where prosecdef and pronamespace <> 'pg_catalog'::regnamespace",
        ),
        (
            "functions of ours",
            "select p.proname::text from pg_proc p where p.proowner = 'bulkhead_owner'::regrole",
        ),
        (
            "views that read with their owner's rights, and copies of data",
            "select relname::text from pg_class
             where relnamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
                 and (relkind = 'm' or relkind = 'v'
                     and not coalesce(reloptions::text[] @> '{security_invoker=true}', false))",
        ),
        (
            "triggers beside those of foreign keys",
            "select tgname::text from pg_trigger where not tgisinternal",
        ),
        (
            "rules beside those of views",
            "select r.rulename::text from pg_rewrite r join pg_class c on c.oid = r.ev_class
             where c.relkind in ('r', 'p')",
        ),
        ("statistics over several columns", "select stxname::text from pg_statistic_ext"),
        ("publications", "select pubname::text from pg_publication"),
    ] {
        assert_eq!(rows(&mut superuser, query).await, Vec::<String>::new(), "{what}");
    }
    let references = rows(
        &mut superuser,
        "select conrelid::regclass::text || ' ' || pg_get_constraintdef(oid) from pg_constraint where contype = 'f'",
    )
    .await;
    // Made and broken by control alone, which sees every tenant: it tells a tenant nothing.
    assert_eq!(references, ["api_key FOREIGN KEY (tenant_id) REFERENCES tenant(tenant_id)"]);
    harness.close().await;
}

#[tokio::test]
async fn every_index_is_led_by_the_tenant() {
    let harness = Harness::new().await;
    let own = promoted(&harness).await;
    let mut superuser = harness.deployment.superuser().await;
    let indexes = rows(
        &mut superuser,
        "select i.indexrelid::regclass::text from pg_index i
         join pg_attribute t on t.attrelid = i.indrelid and t.attname = 'tenant_id'
         join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam
         where i.indkey[0] <> t.attnum and a.amname = 'btree'",
    )
    .await;
    assert_eq!(indexes, NOT_LED_BY_TENANT.map(|(index, _)| index));
    // A graph is over one namespace's vectors alone: its table can hold no others.
    let approximate = rows(
        &mut superuser,
        "select c.relname || ' on ' || t.relname || ' by ' || a.amname from pg_class c
         join pg_am a on a.oid = c.relam join pg_index i on i.indexrelid = c.oid
         join pg_class t on t.oid = i.indrelid
         where c.relkind in ('i', 'I') and a.amname <> 'btree'",
    )
    .await;
    assert!(approximate.iter().any(|index| index.contains(&own)), "{approximate:?}");
    let only = ["vectors_MODEL_NAMESPACE_hnsw on vectors_MODEL_NAMESPACE by hnsw"];
    assert_eq!(without_identities(&approximate), only, "an index over several tenants' vectors");
    let open = rows(
        &mut superuser,
        "select c.relname::text from pg_class c
         where c.relname ~ '^vectors_[0-9a-f]{16}_[0-9a-f]{32}$' and c.relkind = 'r' and not exists (
             select from pg_constraint k where k.conrelid = c.oid and k.contype = 'c' and k.convalidated
                 and pg_get_constraintdef(k.oid) like '%tenant_id = %namespace_id = %model_id = %')",
    )
    .await;
    assert_eq!(open, Vec::<String>::new(), "partitions that could hold another tenant's rows");
    harness.close().await;
}
