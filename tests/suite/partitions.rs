//! Large namespaces get a partition of their own with an index, and nobody's answers or rows change by it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bulkhead::domain::Seq;
use bulkhead::domain::ids::{ChunkId, NamespaceName};
use bulkhead::store::postgres::migrate;
use bulkhead::store::postgres::partitions::VectorSettings;
use bulkhead::store::postgres::roles::Role;
use bulkhead::store::postgres::vector_index::RowIndex;
use bulkhead::store::uploads::Uploads;
use bulkhead::store::vector::{Hit, VectorIndex, VectorQuery};
use bulkhead::store::{Corpus, CorpusWriter, ErrorKind, Stores};
use bulkhead::tenancy::{Permit, Write, authorise_purge};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use crate::database::MODEL;
use crate::deployment::{Harness, chunk};
use crate::place::{Place, code, connect};

/// Namespaces of this many chunks are large in these tests.
const LARGE: u64 = 2000;

fn stores(harness: &Harness) -> Stores {
    let vectors = VectorSettings { own_partition_from_chunks: LARGE, move_rows: 300, ..Default::default() };
    let index = Arc::clone(&harness.index) as Arc<dyn VectorIndex>;
    let uploads = Uploads::in_folder(harness.deployment.uploads.path()).expect("uploads");
    Stores::new(harness.postgres.clone().with_vectors(vectors), index, uploads)
}

async fn open(stores: &Stores, permit: &Permit<Write>) -> CorpusWriter {
    let name = NamespaceName::default();
    stores.background(permit).corpus_require(&name).await.expect("opened").expect("reached")
}

/// A tenant with one document of so many chunks.
async fn tenant(harness: &Harness, stores: &Stores, chunks: u64, topic: &str) -> (Permit<Write>, Corpus) {
    let permit = harness.tenant().await;
    let corpus = open(stores, &permit).await;
    let chunks = (0..chunks).map(|n| chunk(i32::try_from(n).expect("few"), &format!("{topic} {n}")));
    harness.put(&corpus, "doc", chunks.collect()).await;
    let corpus = stores.reader(&permit).corpus_get(&NamespaceName::default()).await;
    (permit, corpus.expect("read").expect("there"))
}

fn leaf(corpus: &Corpus) -> String {
    format!("vectors_{MODEL}_{}", corpus.partition().namespace().0.simple())
}

/// Makes the partition of this corpus, which is due.
async fn promote(stores: &Stores, corpus: &Corpus) {
    let due = stores.partitions_due().await.expect("listed");
    let own = due.iter().find(|due| due.namespace() == corpus.partition().namespace());
    assert!(stores.partition_make(own.expect("it is due")).await.expect("made"));
}

/// A tenant whose namespace has a partition of its own, for tests of what the database says of it.
pub async fn promoted(harness: &Harness) -> String {
    let stores = stores(harness);
    let (_, corpus) = tenant(harness, &stores, LARGE, "catalogue").await;
    promote(&stores, &corpus).await;
    leaf(&corpus)
}

fn question(text: &str, limit: usize) -> VectorQuery {
    let asked = chunk(0, text);
    VectorQuery { embedding: Some(asked.embedding), terms: Some(asked.terms), limit }
}

async fn dense(corpus: &Corpus, text: &str) -> Vec<Hit> {
    corpus.chunk_search(&question(text, 10)).await.expect("searched").dense
}

async fn exact(corpus: &Corpus, text: &str) -> Vec<Hit> {
    corpus.chunk_search_exact(&question(text, 10), Seq(-1)).await.expect("searched").dense
}

#[cfg(feature = "laboratory")]
async fn plan(corpus: &Corpus) -> String {
    corpus.chunk_search_plan(&question("a question", 10)).await.expect("planned").join("\n")
}

/// Every row of a namespace, without its leaf.
async fn rows(superuser: &mut PgConnection, corpus: &Corpus) -> BTreeSet<String> {
    let rows: Vec<String> = sqlx::query_scalar(
        "select concat_ws(' ', e.chunk_id, e.version, e.seq, md5(e.embedding::text), md5(e.terms::text),
             md5(c.text), c.ordinal)
         from chunk_embedding e join chunk c using (tenant_id, namespace_id, chunk_id) where e.namespace_id = $1",
    )
    .bind(corpus.partition().namespace().0)
    .fetch_all(superuser)
    .await
    .expect("rows");
    let count = rows.len();
    let set: BTreeSet<String> = rows.into_iter().collect();
    assert_eq!(set.len(), count, "a row is there twice");
    set
}

#[cfg(feature = "laboratory")]
#[tokio::test]
async fn a_large_namespace_is_searched_by_its_own_index_and_a_small_one_by_none() {
    let harness = Harness::new().await;
    let stores = stores(&harness);
    let mut superuser = harness.deployment.superuser().await;
    let (_, large) = tenant(&harness, &stores, LARGE, "island").await;
    let (_, small) = tenant(&harness, &stores, 50, "island").await;
    let before = rows(&mut superuser, &large).await;
    let (large_found, small_found) = (exact(&large, "island 7").await, dense(&small, "island 7").await);
    assert!(!plan(&large).await.contains("hnsw"));
    promote(&stores, &large).await;
    assert_eq!(rows(&mut superuser, &large).await, before, "moved, not changed");
    let (of_large, of_small) = (plan(&large).await, plan(&small).await);
    assert!(of_large.contains(&format!("{}_hnsw", leaf(&large))), "{of_large}");
    assert!(!of_small.contains("hnsw") && !of_small.contains("vectors_"), "{of_small}");
    // Nothing of a large neighbour changes what a small one finds, nor the other way round.
    assert_eq!(dense(&small, "island 7").await, small_found);
    assert_eq!(dense(&large, "island 7").await[0], large_found[0]);
    let due = stores.partitions_due().await.expect("listed");
    assert!(due.iter().all(|due| due.namespace() != large.partition().namespace()), "made once");
    harness.close().await;
}

#[tokio::test]
async fn a_thousand_neighbours_take_nothing_from_recall_and_change_no_answer() {
    const QUESTIONS: usize = 100;
    let harness = Harness::new().await;
    let stores = stores(&harness);
    let (_, large) = tenant(&harness, &stores, LARGE, "harbour").await;
    let (_, small) = tenant(&harness, &stores, 40, "harbour").await;
    promote(&stores, &large).await;
    let ask = async |corpus: &Corpus| {
        let mut answers = Vec::new();
        for n in 0..QUESTIONS {
            answers.push(dense(corpus, &format!("harbour {n} by night")).await);
        }
        answers
    };
    let alone = (ask(&large).await, ask(&small).await);
    let insert = format!(
        "insert into chunk_embedding (tenant_id, namespace_id, model_id, chunk_id, version, seq, embedding, terms)
         select md5('neighbour ' || t)::uuid, md5('namespace ' || t)::uuid, '{MODEL}', md5(t || ' ' || n)::uuid, 1, 1,
             l2_normalize((select array_agg(random() - 0.5) from generate_series(1, 8) where t > 0 and n > 0)::vector),
             '{{1:1}}/1000000000'
         from generate_series(1, 1000) t, generate_series(1, 10) n"
    );
    let mut superuser = harness.deployment.superuser().await;
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(&mut superuser).await.expect("neighbours");
    let beside = (ask(&large).await, ask(&small).await);
    assert_eq!(alone, beside);
    for corpus in [&large, &small] {
        let (mut found, mut wanted) = (0, 0);
        for (n, hits) in ask(corpus).await.iter().enumerate() {
            let best: BTreeSet<ChunkId> =
                exact(corpus, &format!("harbour {n} by night")).await.iter().map(|hit| hit.chunk).collect();
            wanted += best.len();
            found += hits.iter().filter(|hit| best.contains(&hit.chunk)).count();
        }
        assert!(found * 100 >= wanted * 99, "recall@10: {found} of {wanted}");
    }
    let gone =
        format!("delete from chunk_embedding where terms = '{{1:1}}/1000000000' and model_id = '{MODEL}'");
    sqlx::raw_sql(AssertSqlSafe(gone)).execute(&mut superuser).await.expect("gone");
    harness.close().await;
}

#[tokio::test]
async fn as_the_index_it_finds_what_an_exact_search_finds_and_its_graph_can_be_built_anew() {
    let harness = Harness::new().await;
    let stores = stores(&harness);
    let (permit, large) = tenant(&harness, &stores, LARGE, "quay").await;
    let (_, small) = tenant(&harness, &stores, 60, "quay").await;
    promote(&stores, &large).await;
    let vectors = VectorSettings { own_partition_from_chunks: LARGE, ..Default::default() };
    let index = RowIndex::new(harness.postgres.clone().with_vectors(vectors));
    let recall = async |corpus: &Corpus| {
        let (mut found, mut wanted) = (0, 0);
        for n in 0..100 {
            let text = format!("quay {n} by night");
            let best: BTreeSet<ChunkId> = exact(corpus, &text).await.iter().map(|hit| hit.chunk).collect();
            let hits = index.search(corpus.partition(), &question(&text, 10)).await;
            let hits = hits.expect("searched").expect("there").dense;
            let own = (corpus.partition().tenant(), corpus.partition().namespace());
            assert!(hits.iter().all(|hit| (hit.tenant, hit.namespace) == own));
            wanted += best.len();
            found += hits.iter().filter(|hit| best.contains(&hit.chunk)).count();
        }
        (found, wanted)
    };
    assert_eq!(recall(&small).await, (1000, 1000), "a small one is searched exactly");
    let (found, wanted) = recall(&large).await;
    assert!(found * 100 >= wanted * 99, "recall@10: {found} of {wanted}");
    let mut superuser = harness.deployment.superuser().await;
    let mut graph = async || -> i64 {
        let name = format!("{}_hnsw", leaf(&large));
        let node = sqlx::query_scalar("select relfilenode::bigint from pg_class where relname = $1");
        node.bind(name).fetch_one(&mut superuser).await.expect("a graph")
    };
    let before = graph().await;
    for corpus in [&large, &small] {
        index.rebuild(corpus.partition()).await.expect("begun").finish(corpus.seq()).await.expect("finished");
    }
    assert_ne!(graph().await, before);
    let (found, wanted) = recall(&large).await;
    assert!(found * 100 >= wanted * 99, "recall@10: {found} of {wanted}");

    // The position is the record's own, and so is the listing.
    let writer = open(&stores, &permit).await;
    harness.put(&writer, "later", vec![chunk(0, "a later quay")]).await;
    let position = index.position(large.partition()).await.expect("read").expect("there");
    assert_eq!((position.applied, position.durable), (Seq(large.seq().0 + 1), Seq(large.seq().0 + 1)));
    let hits = index.search(large.partition(), &question("a later quay", 1)).await.expect("searched");
    assert!((hits.expect("there").dense[0].score - 1.0).abs() < 1e-5);
    let page = index.entries(large.partition(), None, 1500).await.expect("listed").expect("there");
    let rest = index.entries(large.partition(), page.next, 1500).await.expect("listed").expect("there");
    let listed: BTreeSet<ChunkId> = page.list.iter().chain(&rest.list).map(|entry| entry.chunk).collect();
    assert_eq!((u64::try_from(listed.len()).expect("few"), rest.next), (LARGE + 1, None));
    harness.close().await;
}

/// The indexes of a leaf that are graphs, and whether they are used.
async fn graphs(superuser: &mut PgConnection, leaf: &str) -> Vec<(String, bool)> {
    let graphs =
        "select c.relname::text, i.indisvalid from pg_index i join pg_class c on c.oid = i.indexrelid
        join pg_am a on a.oid = c.relam where i.indrelid = $1::regclass and a.amname = 'hnsw' order by 1";
    sqlx::query_as(graphs).bind(leaf).fetch_all(superuser).await.expect("graphs")
}

#[tokio::test]
async fn a_rebuild_that_broke_off_leaves_no_second_graph() {
    let harness = Harness::new().await;
    let stores = stores(&harness);
    let (_, large) = tenant(&harness, &stores, LARGE, "slip").await;
    promote(&stores, &large).await;
    let (index, leaf) = (RowIndex::new(harness.postgres.clone()), leaf(&large));
    let mut superuser = harness.deployment.superuser().await;
    let only = [(format!("{leaf}_hnsw"), true)];
    let rebuild = async || index.rebuild(large.partition()).await.expect("begun").finish(large.seq()).await;
    // What a server that was killed leaves, as PostgreSQL names it, which cuts the index's own name.
    let (dimension, name) = (chunk(0, "any").embedding.len(), format!("{leaf}_ccnew"));
    let left = format!(
        "create index {name} on {leaf} using hnsw ((embedding::vector({dimension})) vector_ip_ops);
         update pg_index set indisvalid = false where indexrelid = '{name}'::regclass"
    );
    sqlx::raw_sql(AssertSqlSafe(left)).execute(&mut superuser).await.expect("left");
    assert_eq!(graphs(&mut superuser, &leaf).await, [(name, false), only[0].clone()]);
    rebuild().await.expect("built");
    assert_eq!(graphs(&mut superuser, &leaf).await, only);

    // One that fails while it waits for a writer takes away what it began.
    let mut writer = harness.deployment.superuser().await;
    let held = format!("begin; lock table {leaf} in row exclusive mode");
    sqlx::raw_sql(AssertSqlSafe(held)).execute(&mut writer).await.expect("held");
    let broken = async {
        let cancelled = "select pg_cancel_backend(pid) from pg_stat_activity
            where query like 'reindex index concurrently ' || $1 || '%' and wait_event_type = 'Lock'";
        let end = Instant::now() + Duration::from_secs(30);
        while sqlx::query(cancelled)
            .bind(&leaf)
            .fetch_optional(&mut superuser)
            .await
            .expect("asked")
            .is_none()
        {
            assert!(Instant::now() < end, "it waits for nobody");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sqlx::raw_sql("rollback").execute(&mut writer).await.expect("ended");
    };
    let (ended, ()) = tokio::join!(rebuild(), broken);
    assert_eq!(ended.expect_err("it was cancelled").kind, ErrorKind::Timeout);
    assert_eq!(graphs(&mut superuser, &leaf).await, only);
    harness.close().await;
}

#[tokio::test]
async fn nothing_is_lost_when_a_partition_is_made_under_writes_and_questions() {
    let harness = Harness::new().await;
    let stores = stores(&harness);
    let (permit, corpus) = tenant(&harness, &stores, LARGE, "buoy").await;
    let writer = open(&stores, &permit).await;
    let done = AtomicBool::new(false);
    let write = async {
        let mut round = 0;
        while !done.load(Ordering::Relaxed) || round < 20 {
            let chunks = (0..20).map(|n| chunk(n, &format!("written {round} {n}"))).collect();
            harness.put(&writer, &format!("round-{round}"), chunks).await;
            if round % 3 == 2 {
                let gone = format!("round-{}", round - 1);
                assert_eq!(writer.documents_delete(&[gone]).await.expect("deleted").len(), 1);
            }
            round += 1;
        }
        round
    };
    let ask = async {
        while !done.load(Ordering::Relaxed) {
            let first = dense(&corpus, "buoy 7").await;
            assert_eq!(first.len(), 10);
            assert!(
                (first[0].score - 1.0).abs() < 1e-5,
                "the chunk itself is always found: {}",
                first[0].score
            );
            tokio::task::yield_now().await;
        }
    };
    let make = async {
        promote(&stores, &corpus).await;
        done.store(true, Ordering::Relaxed);
    };
    let (rounds, (), ()) = tokio::join!(write, ask, make);
    let mut superuser = harness.deployment.superuser().await;
    let namespace = corpus.partition().namespace().0;
    let (chunks, counted): (i64, i64) = sqlx::query_as(
        "select (select count(*) from chunk c where c.namespace_id = n.namespace_id), chunks
         from namespace n where namespace_id = $1",
    )
    .bind(namespace)
    .fetch_one(&mut superuser)
    .await
    .expect("counts");
    let deleted = rounds / 3;
    let wanted = i64::try_from(LARGE).expect("few") + 20 * (rounds - deleted);
    assert_eq!((chunks, counted), (wanted, wanted));
    assert_eq!(i64::try_from(rows(&mut superuser, &corpus).await.len()).expect("few"), wanted);
    let elsewhere: i64 =
        sqlx::query_scalar("select count(*) from chunk_embedding where namespace_id = $1 and home <> $1")
            .bind(namespace)
            .fetch_one(&mut superuser)
            .await
            .expect("count");
    assert_eq!(elsewhere, 0, "rows outside of the namespace's own partition");
    harness.close().await;
}

#[cfg(feature = "laboratory")]
#[tokio::test]
async fn a_partition_that_was_left_half_made_is_finished() {
    let harness = Harness::new().await;
    let stores = stores(&harness);
    let (_, corpus) = tenant(&harness, &stores, LARGE, "lighthouse").await;
    let mut superuser = harness.deployment.superuser().await;
    let before = rows(&mut superuser, &corpus).await;
    promote(&stores, &corpus).await;
    let (leaf, namespace) = (leaf(&corpus), corpus.partition().namespace());
    let nil = uuid::Uuid::nil();
    for left in [
        format!("drop index {leaf}_hnsw"),
        format!("update pg_index set indisvalid = false where indexrelid = '{leaf}_hnsw'::regclass"),
        format!(
            "drop index {leaf}_hnsw; update chunk_embedding set home = '{nil}'
                 where namespace_id = '{namespace}' and version = 1 and chunk_id < (select max(chunk_id::text)::uuid
                     from chunk_embedding where namespace_id = '{namespace}')"
        ),
        format!(
            "update chunk_embedding set home = '{nil}' where namespace_id = '{namespace}';
             alter table chunk_embedding_{MODEL} detach partition {leaf}"
        ),
    ] {
        sqlx::raw_sql(AssertSqlSafe(left.clone())).execute(&mut superuser).await.expect("broken");
        if left.contains("detach") {
            // Its index is there and valid: as after a drop that was cut short, nobody calls it home.
            let homeless = "update namespace set homes = '{}' where namespace_id = $1";
            sqlx::query(homeless).bind(namespace.0).execute(&mut superuser).await.expect("homeless");
            assert!(stores.partitions_drop_orphans().await.expect("dropped") >= 1);
        }
        promote(&stores, &corpus).await;
        assert_eq!(rows(&mut superuser, &corpus).await, before, "{left}");
        assert!(plan(&corpus).await.contains("_hnsw"), "{left}");
    }
    harness.close().await;
}

#[tokio::test]
async fn a_deleted_tenants_partition_goes_and_its_neighbours_stays() {
    let harness = Harness::new().await;
    let stores = stores(&harness);
    let (permit, gone) = tenant(&harness, &stores, LARGE, "whale").await;
    let (_, stays) = tenant(&harness, &stores, LARGE, "whale").await;
    promote(&stores, &gone).await;
    promote(&stores, &stays).await;
    let tenant = permit.scope().tenant();
    let mut superuser = harness.deployment.superuser().await;
    sqlx::query("update tenant set state = 'deleted' where tenant_id = $1")
        .bind(tenant.0)
        .execute(&mut superuser)
        .await
        .expect("deleted");
    let purge = authorise_purge(&harness.postgres, tenant).await.expect("directory").expect("deleted");
    stores.background(&purge).tenant_purge().await.expect("purged");
    stores.partitions_drop_orphans().await.expect("dropped");
    let there = async |leaf: String, superuser: &mut PgConnection| -> bool {
        let there = sqlx::query_scalar("select to_regclass($1) is not null").bind(leaf);
        there.fetch_one(superuser).await.expect("looked")
    };
    assert!(!there(leaf(&gone), &mut superuser).await);
    assert!(there(leaf(&stays), &mut superuser).await);
    assert!((dense(&stays, "whale 3").await[0].score - 1.0).abs() < 1e-5);
    harness.close().await;
}

#[tokio::test]
async fn a_partition_is_reached_through_its_table_alone_and_tells_no_statistics() {
    let harness = Harness::new().await;
    let leaf = promoted(&harness).await;
    for role in [Role::App, Role::Dispatch, Role::Control, Role::Auth] {
        let mut connection = harness.deployment.role(role).await;
        sqlx::query("select set_config('bulkhead.tenant', gen_random_uuid()::text, false)")
            .execute(&mut connection)
            .await
            .expect("set");
        for statement in ["select * from", "delete from", "truncate", "analyze verbose"] {
            let statement = format!("{statement} {leaf}");
            let done = sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut connection).await;
            match done {
                Err(refused) => assert_eq!(code(&refused), "42501", "{role}: {statement}: {refused}"),
                // Passes over what it may not, with a warning.
                Ok(_) => assert!(statement.starts_with("analyze"), "{role}: {statement}"),
            }
        }
        let told: i64 = sqlx::query_scalar(
            "select count(*) from pg_stats where tablename like 'vectors\\_%' or tablename like 'chunk\\_embedding%'",
        )
        .fetch_one(&mut connection)
        .await
        .expect("statistics");
        assert_eq!(told, 0, "{role}");
    }
    // A row of another tenant cannot be put into a neighbour's partition, by whomever.
    let mut superuser = harness.deployment.superuser().await;
    let foreign = format!("update {leaf} set tenant_id = gen_random_uuid()");
    let refused = sqlx::raw_sql(AssertSqlSafe(foreign)).execute(&mut superuser).await.expect_err("foreign");
    assert_eq!(code(&refused), "23514", "{refused}");
    harness.close().await;
}

#[tokio::test]
async fn what_an_older_version_left_is_brought_into_the_layout_of_today() {
    let place = Place::new();
    let server = place.start().await;
    server.bootstrap("bulkhead").await.expect("bootstrap");
    let addresses = server.addresses("bulkhead");
    let mut owner = connect(&addresses.owner).await;
    for script in [
        include_str!("../../migrations/0001_tenants.sql"),
        include_str!("../../migrations/0002_corpora.sql"),
        include_str!("../../migrations/0003_row_level_security.sql"),
        "create table chunk_embedding_0123456789abcdef partition of chunk_embedding
             for values in ('0123456789abcdef') with (toast_tuple_target = 8160);
         alter table chunk_embedding_0123456789abcdef enable row level security;
         alter table chunk_embedding_0123456789abcdef force row level security;
         create policy own_select on chunk_embedding_0123456789abcdef for select to bulkhead_owner
             using (tenant_id = current_setting('bulkhead.tenant')::uuid);
         create policy own_insert on chunk_embedding_0123456789abcdef for insert to bulkhead_owner
             with check (tenant_id = current_setting('bulkhead.tenant')::uuid);
         create policy own_update on chunk_embedding_0123456789abcdef for update to bulkhead_owner
             using (tenant_id = current_setting('bulkhead.tenant')::uuid)
             with check (tenant_id = current_setting('bulkhead.tenant')::uuid);
         create policy own_delete on chunk_embedding_0123456789abcdef for delete to bulkhead_owner
             using (tenant_id = current_setting('bulkhead.tenant')::uuid);",
    ] {
        sqlx::raw_sql(script).execute(&mut owner).await.expect("an older schema");
    }
    let mut superuser = connect(&server.superuser().database("bulkhead")).await;
    let insert = "insert into chunk_embedding
             (tenant_id, namespace_id, model_id, chunk_id, version, seq, embedding, terms)
         select md5('tenant ' || n % 2)::uuid, md5('namespace')::uuid, '0123456789abcdef', md5(n::text)::uuid, 1, n,
             '[1,0]', '{1:1}/10' from generate_series(1, 10) n";
    sqlx::raw_sql(insert).execute(&mut superuser).await.expect("rows");
    sqlx::raw_sql(include_str!("../../migrations/0005_partitions.sql"))
        .execute(&mut owner)
        .await
        .expect("migrated");
    let there: i64 = sqlx::query_scalar(
        "select count(*) from chunk_embedding_0123456789abcdef_shared
         where home = '00000000-0000-0000-0000-000000000000'",
    )
    .fetch_one(&mut superuser)
    .await
    .expect("rows");
    assert_eq!(there, 10);
    let doubled = sqlx::raw_sql(insert).execute(&mut superuser).await.expect_err("the key is there again");
    assert_eq!(code(&doubled), "23505");
    migrate::require_isolation(&addresses.owner).await.expect("tenants are kept apart");
    server.stop().await.expect("stopped");
}
