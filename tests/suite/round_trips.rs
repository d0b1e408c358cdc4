//! What a read costs on the wire, counted by a proxy between the server and PostgreSQL.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead::domain::ids::NamespaceName;
use bulkhead::store::postgres::RoleAddresses;
use bulkhead::store::postgres::laboratory::BY_WHOLE_KEY;
use sqlx::Connection;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use crate::deployment::{Harness, chunk, pools};

/// What must be waited for before a caller has its answer, where the statement is not prepared beforehand.
const MOST_WAITED_FOR: usize = 4;
/// The check and the ping by which a connection goes back to its pool. Nobody waits for them.
const MOST_ON_RELEASE: usize = 2;

/// A Unix socket that passes everything on and notes each message which the server answers.
struct Proxy {
    folder: TempDir,
    trips: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Puts itself before the address of the app role.
    fn before(addresses: &mut RoleAddresses) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let file = format!(".s.PGSQL.{}", addresses.app.get_port());
        let target = addresses.app.get_socket().expect("a Unix socket").join(&file);
        let listener = UnixListener::bind(folder.path().join(&file)).expect("bound");
        let trips = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(accept(listener, target, Arc::clone(&trips)));
        addresses.app = addresses.app.clone().socket(folder.path());
        Self { folder, trips }
    }

    /// What was sent since the last call, when nothing more comes.
    async fn take(&self) -> Vec<String> {
        let mut before = usize::MAX;
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut trips = self.trips.lock().expect("trips");
            if trips.len() == before {
                return std::mem::take(&mut *trips);
            }
            before = trips.len();
        }
    }
}

async fn accept(listener: UnixListener, target: PathBuf, trips: Arc<Mutex<Vec<String>>>) {
    while let Ok((client, _)) = listener.accept().await {
        let server = UnixStream::connect(&target).await.expect("PostgreSQL");
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let trips = Arc::clone(&trips);
        tokio::spawn(async move {
            let mut started = false;
            // Ends with an error when the client hangs up.
            while let Ok(message) = read_message(&mut from_client, started).await {
                // A question for TLS comes before the start, and has no type either.
                started = started || message[4..] != [0x04, 0xd2, 0x16, 0x2f];
                match message[0] {
                    b'S' => trips.lock().expect("trips").push("sync".to_owned()),
                    b'Q' => {
                        let text = String::from_utf8_lossy(&message[5..message.len() - 1]).into_owned();
                        trips.lock().expect("trips").push(text);
                    }
                    _ => {}
                }
                to_server.write_all(&message).await.expect("passed on");
            }
        });
    }
}

/// One message of the protocol; the first of a connection has no type.
async fn read_message(from: &mut (impl AsyncReadExt + Unpin), typed: bool) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; if typed { 5 } else { 4 }];
    from.read_exact(&mut message).await?;
    let length: [u8; 4] = message[message.len() - 4..].try_into().expect("4 bytes");
    let head = message.len();
    message.resize(head + u32::from_be_bytes(length) as usize - 4, 0);
    from.read_exact(&mut message[head..]).await?;
    Ok(message)
}

#[tokio::test]
async fn a_read_of_a_question_waits_for_one_round_trip_and_any_other_for_four_at_most() {
    let mut proxy = None;
    let harness = Harness::with(&pools(1), |addresses| proxy = Some(Proxy::before(addresses))).await;
    let proxy = proxy.expect("placed");
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    let chunks = vec![chunk(0, "harbour"), chunk(1, "lighthouse")];
    let ids: Vec<_> = chunks.iter().map(|chunk| chunk.chunk).collect();
    harness.put(&corpus, "doc", chunks).await;

    let name = NamespaceName::default();
    let reader = harness.stores.reader(&permit);
    let corpus = reader.corpus_get(&name).await.expect("read").expect("there");
    let document = bulkhead::domain::ids::DocumentId::parse("doc").expect("id");
    for round in 0..2 {
        for read in ["corpus_get", "chunk_list", "mention_list", "both", "document_get"] {
            proxy.take().await;
            match read {
                "corpus_get" => drop(reader.corpus_get(&name).await.expect(read)),
                "chunk_list" => assert_eq!(corpus.chunk_list(&ids).await.expect(read).len(), 2),
                "mention_list" => assert_eq!(corpus.mention_list(&ids, &[]).await.expect(read).len(), 2),
                "both" => {
                    let (rows, mentions) =
                        corpus.chunk_and_mention_list(&ids[..1], &ids, &[]).await.expect(read);
                    assert_eq!((rows.len(), mentions.len()), (1, 2));
                }
                _ => drop(corpus.document_get(&document).await.expect(read)),
            }
            let mut trips = proxy.take().await;
            // A connection that rested is asked whether it is alive.
            if trips.first().is_some_and(|trip| trip == "sync") {
                trips.remove(0);
            }
            let is_end = |trip: &String| trip == "COMMIT" || trip.ends_with("; commit");
            let waited_for = trips.iter().position(is_end).expect("a commit") + 1;
            if read == "document_get" {
                // The first time, the statement is prepared: one more.
                assert!(waited_for <= MOST_WAITED_FOR, "{read}: {trips:?}");
                assert!(round == 0 || waited_for == 3, "{read}, prepared: {trips:?}");
            } else {
                assert_eq!(waited_for, 1, "what a question reads is one message: {read}: {trips:?}");
            }
            assert!(trips.len() - waited_for <= MOST_ON_RELEASE, "{read}: {trips:?}");
        }
    }
    // One that was used just now is not asked.
    proxy.take().await;
    for _ in 0..2 {
        corpus.chunk_list(&ids).await.expect("read");
    }
    let trips = proxy.take().await;
    let mut reads = trips.iter().enumerate().filter(|(_, trip)| trip.ends_with("; commit")).map(|(at, _)| at);
    let (first, second) = (reads.next().expect("a read"), reads.next().expect("another"));
    assert!(second - first - 1 <= MOST_ON_RELEASE, "{trips:?}");
    harness.close().await;
    drop(proxy.folder);
}

#[tokio::test]
async fn writing_a_hundred_chunks_takes_as_many_statements_as_writing_one() {
    let mut proxy = None;
    let harness = Harness::with(&pools(1), |addresses| proxy = Some(Proxy::before(addresses))).await;
    let proxy = proxy.expect("placed");
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    // Prepares every statement.
    harness.put(&corpus, "first", vec![chunk(0, "pier")]).await;
    let mut trips = Vec::new();
    for (document, chunks) in [("one", 1), ("hundred", 100)] {
        proxy.take().await;
        harness
            .put(&corpus, document, (0..chunks).map(|at| chunk(at, &format!("buoy {at}"))).collect())
            .await;
        trips.push(proxy.take().await);
    }
    assert_eq!(trips[0].len(), trips[1].len(), "{trips:?}");
    harness.close().await;
    drop(proxy.folder);
}

/// Without statistics a table is thought to be nearly empty, and joining after reading all of a tenant's documents to
/// be as good as looking each up: reading twenty rows would then read every document twenty times.
#[tokio::test]
async fn documents_are_read_by_their_whole_key_before_there_are_statistics() {
    let harness = Harness::new().await;
    let mut superuser = harness.deployment.superuser().await;
    // Rolled back at the end: the other tests keep their statistics.
    let mut tx = superuser.begin().await.expect("begun");
    let forgotten = "delete from pg_statistic where starelid in
        ('chunk'::regclass, 'chunk_mention'::regclass, 'document_version'::regclass)";
    sqlx::query(forgotten).execute(&mut *tx).await.expect("forgotten");
    for (name, statement) in BY_WHOLE_KEY {
        let nobody = "'00000000-0000-0000-0000-000000000007'::uuid";
        let some = format!("array_fill({nobody}, array[20])");
        let values: [&str; 4] = [nobody, nobody, &some, &some];
        // From the last, so that $1 is not the beginning of another.
        let numbered = values.iter().enumerate().rev();
        let statement = numbered
            .fold(statement.to_owned(), |text, (at, value)| text.replace(&format!("${}", at + 1), value));
        let explain = sqlx::AssertSqlSafe(format!("explain {statement}"));
        let plan: Vec<String> = sqlx::query_scalar(explain).fetch_all(&mut *tx).await.expect(name);
        let plan = plan.join("\n");
        let versions: Vec<&str> =
            plan.lines().filter(|line| line.contains("document_id = c.document_id")).collect();
        let by_whole_key = |line: &str| line.contains("Index Cond") && line.contains("version = c.version");
        assert!(!versions.is_empty() && versions.iter().all(|line| by_whole_key(line)), "{name}: {plan}");
    }
    tx.rollback().await.expect("rolled back");
    harness.close().await;
}
