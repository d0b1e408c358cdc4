//! What the store does for recovery: leases that are given back, purges that nothing comes after, files that
//! nothing names.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bulkhead::domain::Seq;
use bulkhead::domain::clock::{Clock as _, SystemClock};
use bulkhead::domain::ids::{IdSource as _, NamespaceName, SystemIds, TenantId};
use bulkhead::domain::limits::Limits;
use bulkhead::store::layers::CallSettings;
use bulkhead::store::neo4j::{Neo4jGraph, Neo4jSettings};
use bulkhead::store::postgres::documents::{Content, OnExisting};
use bulkhead::store::postgres::examine::{Finding, FindingKind};
use bulkhead::store::postgres::leases::LeaseTerms;
use bulkhead::store::postgres::projection::Changes;
use bulkhead::store::{ErrorKind, StoreError};
use bulkhead::tenancy::{Permit, Write};
use bytes::Bytes;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::consistency::consistent;
use crate::database::deletion;
use crate::deployment::{Harness, accept, chunk, document, terms};
use crate::store::processed;

#[tokio::test]
async fn only_the_leases_of_ones_own_data_folder_are_freed() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    let tenant = permit.scope().tenant();
    let [own, other] = [SystemIds(SystemClock).uuid(), SystemIds(SystemClock).uuid()];
    for (id, node) in [("mine", own), ("theirs", other)] {
        accept(&corpus, &[document(id, id)], OnExisting::Replace).await;
        let leased = harness.stores.job_lease(tenant, LeaseTerms { node, ..terms(1, 1000) }).await;
        assert_eq!(leased.expect("leased").len(), 1);
    }
    assert!(harness.lease(&corpus).await.is_empty(), "both are held");
    assert_eq!(harness.stores.leases_free(own).await.expect("freed"), 1);
    let again = harness.lease(&corpus).await;
    assert_eq!(again.iter().map(|job| job.attempts).collect::<Vec<_>>(), [2], "one, whose attempt counts");
    let task = corpus.job_open(&again).await.expect("opened").remove(0);
    assert_eq!(task.document_id, "mine");
    assert_eq!(harness.stores.leases_free(own).await.expect("freed"), 0, "it is another's now");
    harness.close().await;
}

#[tokio::test]
async fn an_attempt_that_was_none_does_not_count_however_often_it_is_given_back() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    accept(&corpus, &[document("doc", "harbour")], OnExisting::Replace).await;
    for _ in 0..9 {
        let leased = harness.lease(&corpus).await;
        assert_eq!(leased[0].attempts, 1);
        harness.stores.job_release(&leased, Duration::ZERO).await.expect("released");
    }
    for attempt in 1..4 {
        let leased = harness.lease(&corpus).await;
        assert_eq!(leased[0].attempts, attempt);
        harness.stores.job_retry(&leased, Duration::ZERO).await.expect("released");
    }
    harness.close().await;
}

#[tokio::test]
async fn a_job_that_did_not_end_twice_is_leased_alone_and_takes_no_other_down() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    let all: Vec<_> = ["a", "b", "c"].map(|id| document(id, id)).into();
    accept(&corpus, &all[..2], OnExisting::Replace).await;
    for _ in 0..2 {
        assert_eq!(harness.lease(&corpus).await.len(), 2);
        harness.stores.leases_free(terms(1, 1).node).await.expect("freed");
    }
    harness.clock.advance(Duration::from_secs(1));
    accept(&corpus, &all[2..], OnExisting::Replace).await;
    let sizes = [harness.lease(&corpus).await, harness.lease(&corpus).await, harness.lease(&corpus).await];
    assert_eq!(sizes.map(|jobs| jobs.iter().map(|job| job.attempts).collect::<Vec<_>>()), [[3], [3], [1]]);
    harness.close().await;
}

#[tokio::test]
async fn jobs_that_read_files_are_leased_apart_and_only_when_there_is_a_place_for_them() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    let upload = corpus.upload_put(Bytes::from_static(b"a file")).await.expect("stored");
    let mut file = document("scanned", "a scan");
    file.content = Content::Upload(upload);
    accept(&corpus, &[file], OnExisting::Replace).await;
    harness.clock.advance(Duration::from_secs(1));
    accept(&corpus, &[document("note", "a note")], OnExisting::Replace).await;
    let tenant = permit.scope().tenant();
    let without = LeaseTerms { uploads: false, ..terms(100, 1000) };
    let texts = harness.stores.job_lease(tenant, without).await.expect("leased");
    assert_eq!(texts.iter().map(|job| job.upload).collect::<Vec<_>>(), [false]);
    assert!(harness.stores.job_lease(tenant, without).await.expect("leased").is_empty());
    harness.stores.job_release(&texts, Duration::ZERO).await.expect("released");
    let files = harness.lease(&corpus).await;
    assert_eq!(
        files.iter().map(|job| job.upload).collect::<Vec<_>>(),
        [true],
        "the oldest, and none beside it"
    );
    corpus.job_fail(files[0].job, files[0].lease, "unreadable").await.expect("failed");
    assert_eq!(corpus.documents_requeue().await.expect("requeued"), 1);
    let again = harness.stores.job_lease(tenant, LeaseTerms { uploads: true, ..without }).await;
    let again = again.expect("leased");
    let rest =
        harness.stores.job_lease(tenant, LeaseTerms { uploads: true, ..without }).await.expect("leased");
    let mut kinds: Vec<bool> = again.iter().chain(&rest).map(|job| job.upload).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [false, true], "put back as what it is");
    harness.close().await;
}

/// Deletes a tenant as an operator does, with the job that purges it, but does not run that job.
async fn delete(superuser: &mut PgConnection, tenant: TenantId) {
    sqlx::query(
        "with gone as (update tenant set state = 'deleted' where tenant_id = $1 returning tenant_id)
         insert into job (tenant_id, job_id, namespace_id, kind, state, cost, due_at, created_at, updated_at)
         select tenant_id, $2, $2, 'purge_tenant', 'running', 0, now(), now(), now() from gone",
    )
    .bind(tenant.0)
    .bind(SystemIds(SystemClock).uuid())
    .execute(superuser)
    .await
    .expect("deleted");
}

/// Tables in which a tenant has rows that a purge should have taken.
async fn rows_left(superuser: &mut PgConnection, tenant: TenantId) -> Vec<String> {
    sqlx::query_scalar(
        "select 'namespace' from namespace where tenant_id = $1
         union all select 'document' from document where tenant_id = $1
         union all select 'version' from document_version where tenant_id = $1
         union all select 'chunk' from chunk where tenant_id = $1
         union all select 'consumer' from consumer where tenant_id = $1
         union all select 'outbox' from outbox where tenant_id = $1
         union all select 'idempotency' from idempotency where tenant_id = $1
         union all select 'job' from job where tenant_id = $1 and kind <> 'purge_tenant'",
    )
    .bind(tenant.0)
    .fetch_all(superuser)
    .await
    .expect("counted")
}

/// Long enough for a call that can go on to do so.
async fn moment() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

async fn execute(connection: &mut PgConnection, statement: &'static str, id: Uuid) {
    sqlx::query(statement).bind(id).execute(connection).await.expect(statement);
}

async fn plain(connection: &mut PgConnection, statement: &'static str) {
    sqlx::query(statement).execute(connection).await.expect(statement);
}

#[tokio::test]
async fn a_namespace_that_is_being_made_does_not_survive_its_tenants_purge() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let tenant = permit.scope().tenant();
    let mut superuser = harness.deployment.superuser().await;
    let mut holder = harness.deployment.superuser().await;
    // Holds the name, so that the writer waits in the middle of its transaction.
    plain(&mut holder, "begin").await;
    execute(
        &mut holder,
        "insert into namespace (tenant_id, namespace_id, name, model_id, created_at)
         values ($1, gen_random_uuid(), 'late', '0123456789abcdef', now())",
        tenant.0,
    )
    .await;
    let writer = harness.stores.background(&permit);
    let making = tokio::spawn(async move {
        writer.corpus_require(&NamespaceName::parse("late").expect("name")).await.map(drop)
    });
    moment().await;
    assert!(!making.is_finished(), "it waits for the name");
    delete(&mut superuser, tenant).await;
    let purger = harness.stores.background(&permit);
    let purging = tokio::spawn(async move { purger.tenant_purge().await });
    moment().await;
    assert!(!purging.is_finished(), "the purge waits for who writes");
    plain(&mut holder, "rollback").await;
    let made = making.await.expect("no panic");
    assert!(made.is_ok() || made.is_err_and(|error| error.kind == ErrorKind::Conflict));
    purging.await.expect("no panic").expect("purged");
    assert_eq!(rows_left(&mut superuser, tenant).await, Vec::<String>::new());

    // And whoever comes later, with a permit from before.
    let late = harness.stores.background(&permit).corpus_require(&NamespaceName::default()).await;
    assert_eq!(late.map(drop).expect_err("deleted").kind, ErrorKind::Conflict);
    assert_eq!(rows_left(&mut superuser, tenant).await, Vec::<String>::new());
    harness.close().await;
}

/// What may be under way when everything is deleted.
#[derive(Debug, Clone, Copy)]
enum InFlight {
    Acceptance,
    Commit,
    Requeue,
    Consumer,
}

/// A write and a deletion that both wait for a lock, in this order, and then go on.
async fn race(
    harness: &Harness,
    permit: &Permit<Write>,
    write: InFlight,
    whole_tenant: bool,
    write_first: bool,
) {
    let about = format!("{write:?}, the whole tenant: {whole_tenant}, the write first: {write_first}");
    let tenant = permit.scope().tenant();
    let mut superuser = harness.deployment.superuser().await;
    let corpus = harness.namespace(permit, "race").await;
    harness.put(&corpus, "old", vec![chunk(0, "old")]).await;
    accept(&corpus, &[document("new", "new")], OnExisting::Replace).await;
    let leased = harness.lease(&corpus).await;
    let task = corpus.job_open(&leased).await.expect("opened").remove(0);
    if matches!(write, InFlight::Requeue) {
        corpus.job_fail(task.job, task.lease, "once").await.expect("failed");
    }
    let mut holder = harness.deployment.superuser().await;
    plain(&mut holder, "begin").await;
    let namespace = corpus.partition().namespace();
    execute(&mut holder, "select from namespace where namespace_id = $1 for update", namespace.0).await;
    execute(&mut holder, "select pg_advisory_xact_lock(hashtextextended($1::uuid::text, 7))", namespace.0)
        .await;

    let late = corpus.clone();
    let writing = async move {
        match write {
            InFlight::Acceptance => {
                let batch = [document("late", "late")];
                late.documents_accept(&batch, OnExisting::Replace, "track", &Limits::default())
                    .await
                    .map(drop)
            }
            InFlight::Commit => {
                late.documents_commit(&[processed(&task, vec![chunk(0, "new")])]).await.map(drop)
            }
            InFlight::Requeue => late.documents_requeue().await.map(drop),
            InFlight::Consumer => late.index_flush("vectors:late").await.map(drop),
        }
    };
    let writer = harness.stores.background(permit);
    let act = deletion(&harness.postgres, permit.scope());
    let deleting = async move {
        if whole_tenant {
            writer.tenant_purge().await.map(drop)
        } else {
            writer.namespace_delete(act, &NamespaceName::parse("race").expect("name")).await.map(drop)
        }
    };
    let (written, deleted) = if write_first {
        let writing = tokio::spawn(writing);
        moment().await;
        let deleting = tokio::spawn(deleting);
        moment().await;
        assert!(!writing.is_finished() && !deleting.is_finished(), "{about}: both wait");
        plain(&mut holder, "commit").await;
        (writing.await, deleting.await)
    } else {
        let deleting = tokio::spawn(deleting);
        moment().await;
        let writing = tokio::spawn(writing);
        moment().await;
        assert!(!writing.is_finished() && !deleting.is_finished(), "{about}: both wait");
        plain(&mut holder, "commit").await;
        (writing.await, deleting.await)
    };
    deleted.expect("no panic").expect("deleted");
    if let Err(error) = written.expect("no panic") {
        assert_eq!(error.kind, ErrorKind::Conflict, "{about}");
    }
    assert_eq!(rows_left(&mut superuser, tenant).await, Vec::<String>::new(), "{about}");
    consistent(&mut superuser, tenant).await;
}

#[tokio::test]
async fn no_write_in_flight_leaves_a_row_behind_a_deletion_whoever_comes_first() {
    let harness = Harness::new().await;
    for write in [InFlight::Acceptance, InFlight::Commit, InFlight::Requeue, InFlight::Consumer] {
        for (whole_tenant, write_first) in [(true, true), (true, false), (false, true), (false, false)] {
            let permit = harness.tenant().await;
            race(&harness, &permit, write, whole_tenant, write_first).await;
        }
    }
    harness.close().await;
}

fn age(path: &Path, by: Duration) {
    let then = SystemTime::now() - by;
    let file = File::options().write(true).open(path).expect("a file");
    file.set_times(FileTimes::new().set_modified(then)).expect("aged");
}

#[tokio::test]
async fn orphaned_files_go_and_live_young_and_foreign_ones_stay() {
    let harness = Harness::new().await;
    let (permit, neighbour) = (harness.tenant().await, harness.tenant().await);
    let (corpus, other) = (harness.corpus(&permit).await, harness.corpus(&neighbour).await);
    let gone = harness.namespace(&permit, "gone").await;
    harness.put(&gone, "doc", vec![chunk(0, "gone")]).await;
    let put = async |corpus: &bulkhead::store::CorpusWriter| -> (Uuid, PathBuf) {
        let upload = corpus.upload_put(Bytes::from_static(b"a file")).await.expect("stored");
        let place = corpus.partition();
        let folder = harness.deployment.uploads.path().join(place.tenant().to_string());
        (upload, folder.join(place.namespace().to_string()).join(upload.to_string()))
    };
    let (named, live) = put(&corpus).await;
    let mut file = document("scanned", "a scan");
    file.content = Content::Upload(named);
    accept(&corpus, &[file], OnExisting::Replace).await;
    let ((_, orphan), (_, young), (_, stray), (_, foreign)) =
        (put(&corpus).await, put(&corpus).await, put(&gone).await, put(&other).await);
    let unfinished = live.with_file_name(format!("{named}#1"));
    fs::write(&unfinished, b"half a f").expect("written");
    let unknown = live.with_file_name("notes.txt");
    fs::write(&unknown, b"somebody's").expect("written");
    for path in [&live, &orphan, &stray, &foreign, &unfinished, &unknown] {
        age(path, Duration::from_hours(3));
    }
    // An index of the namespace that goes, as it stays behind after a crash.
    let changes = bulkhead::store::postgres::projection::Changes {
        through: bulkhead::domain::Seq(1),
        ..Default::default()
    };
    gone.index_apply(changes.clone()).await.expect("applied");
    corpus.index_apply(changes.clone()).await.expect("applied");
    let writer = harness.stores.background(&permit);
    let act = deletion(&harness.postgres, permit.scope());
    assert!(
        writer
            .namespace_delete(act, &NamespaceName::parse("gone").expect("name"))
            .await
            .expect("deleted")
            .is_some()
    );
    assert!(!stray.exists(), "a deletion takes its files along");
    fs::create_dir_all(stray.parent().expect("a folder")).expect("made");
    fs::write(&stray, b"too late").expect("written");
    age(&stray, Duration::from_hours(3));
    gone.index_apply(changes).await.expect("applied too late");

    let before = SystemClock.now() - chrono::Duration::hours(1);
    let removed = writer.orphans_remove(before).await;
    assert_eq!((removed.uploads, removed.indexes), (3, 1), "orphan, unfinished and stray; one index");
    for (path, stays) in [
        (&live, true),
        (&young, true),
        (&foreign, true),
        (&unknown, true),
        (&orphan, false),
        (&stray, false),
        (&unfinished, false),
    ] {
        assert_eq!(path.exists(), stays, "{}", path.display());
    }
    assert!(corpus.index_position().await.expect("asked").is_some(), "a live namespace keeps its index");
    assert!(gone.index_position().await.expect("asked").is_none());
    let again = writer.orphans_remove(before).await;
    assert_eq!((again.uploads, again.indexes), (0, 0));
    harness.close().await;
}

#[tokio::test]
async fn an_index_that_is_away_holds_up_neither_a_deletion_nor_the_sweep() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let tenant = permit.scope().tenant();
    // Nobody listens there.
    let settings = Neo4jSettings {
        url: "bolt://127.0.0.1:1".to_owned(),
        calls: CallSettings { deadline_ms: 300, attempts: 1, ..CallSettings::default() },
        ..Neo4jSettings::default()
    };
    let graph = Neo4jGraph::new(settings, Arc::default(), Arc::new(SystemClock));
    let stores = harness.stores.clone().with_graph(Arc::new(graph));
    let writer = stores.background(&permit);
    let upload = async |name: &NamespaceName| {
        let corpus = writer.corpus_require(name).await.expect("made").expect("reached");
        let upload = corpus.upload_put(Bytes::from_static(b"a file")).await.expect("stored");
        let place = corpus.partition();
        let folder = harness.deployment.uploads.path().join(tenant.to_string());
        let path = folder.join(place.namespace().to_string()).join(upload.to_string());
        let changes = Changes { through: Seq(1), ..Changes::default() };
        corpus.index_apply(changes.clone()).await.expect("applied");
        (corpus, changes, path)
    };

    let hall = NamespaceName::parse("hall").expect("a name");
    let (gone, changes, file) = upload(&hall).await;
    let act = deletion(&harness.postgres, permit.scope());
    let erased = writer.namespace_delete(act, &hall).await.expect("deleted").expect("it was there");
    assert_eq!(erased.later, ["neo4j"], "it says what is left to do");
    assert!(!file.exists(), "its files are gone");
    assert!(gone.index_position().await.expect("asked").is_none(), "and the index that is not away");
    let act = deletion(&harness.postgres, permit.scope());
    assert_eq!(writer.namespace_delete(act, &hall).await.expect("asked"), None);

    // The sweep goes on in the other stores.
    let (_, _, orphan) = upload(&NamespaceName::default()).await;
    age(&orphan, Duration::from_hours(3));
    gone.index_apply(changes).await.expect("applied too late");
    let (tenants, failed) = stores.tenants_on_disk().await;
    assert!(tenants.contains(&tenant));
    let backends = |failed: &[StoreError]| failed.iter().map(|error| error.backend).collect::<Vec<_>>();
    assert_eq!(backends(&failed), ["neo4j"]);
    let before = SystemClock.now() - chrono::Duration::hours(1);
    let unreached = Finding { kind: FindingKind::UnreachedIndexes, count: 1, repaired: false };
    let found = writer.tenant_examine(before, false).await.expect("examined");
    assert_eq!(found.last(), Some(&unreached), "a comparison says what it did not see");
    assert!(found.iter().any(|found| found.kind == FindingKind::StrayUploads), "{found:?}");
    let swept = writer.orphans_remove(before).await;
    assert_eq!((swept.uploads, swept.indexes), (1, 1));
    assert_eq!(backends(&swept.failed), ["neo4j"]);
    assert!(!orphan.exists());

    // A tenant's purge is repeated until nothing is left, and no file waits for that.
    let (_, _, file) = upload(&NamespaceName::default()).await;
    let error = writer.tenant_purge().await.expect_err("the graph is away");
    assert_eq!(error.backend, "neo4j");
    assert!(!file.exists());
    harness.close().await;
}
