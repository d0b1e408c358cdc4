//! Connections to Neo4j, each lent to one transaction at a time.
//!
//! The library gives a connection back to its pool even when a call was given up in the middle of an answer, and the
//! next one who takes it may read that answer. So each connection here is a pool of one, which is only used again when
//! everything that was asked of it was answered.
//!
//! **Invariant:** a connection on which anything failed, or that did not answer in time, is used by no later call.
//! **Invariant:** whoever waits for others of this server, its own tenant's among them, waits outside the layers: it does
//! not count as a failure of Neo4j's.

use std::sync::Arc;
use std::time::Duration;

use neo4rs::{
    BoltList, BoltMap, BoltType, ConfigBuilder, Error, Graph, Neo4jClientErrorKind, Neo4jErrorKind, Query,
    Row, Txn,
};
use parking_lot::Mutex;
use secrecy::ExposeSecret as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::{BACKEND, Neo4jSettings};
use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::layers::{Calls, Layers};
use crate::store::shares::{Share, TenantShares};

/// Rows that are sent at once; what a statement returns is bounded by what it was asked.
const FETCH: usize = 4096;

/// A statement with its parameters. Its text is made of what is written in this module and of labels, which are
/// hexadecimal digits of a tenant's identity.
#[derive(Clone)]
pub(super) struct Statement(Query);

impl Statement {
    pub(super) fn new(text: String) -> Self {
        Self(Query::new(text))
    }

    pub(super) fn with(self, name: &str, value: impl Into<BoltType>) -> Self {
        Self(self.0.param(name, value))
    }
}

/// A parameter that is a map.
pub(super) fn map<const N: usize>(entries: [(&str, BoltType); N]) -> BoltType {
    let entries = entries.into_iter().map(|(name, value)| (name.into(), value));
    BoltType::Map(entries.collect::<BoltMap>())
}

/// A parameter that is a list.
pub(super) fn list(values: impl IntoIterator<Item = BoltType>) -> BoltType {
    BoltType::List(BoltList { value: values.into_iter().collect() })
}

/// A transaction that runs, with a connection of its own. Dropped without [`Transaction::commit`], it did nothing, and
/// its connection is closed.
pub(super) struct Transaction {
    txn: Txn,
    operation: &'static str,
    connection: Graph,
    client: Client,
}

impl Transaction {
    /// Runs a statement, and returns all its rows.
    pub(super) async fn run(&mut self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        let operation = self.operation;
        let fail = |error| failed(operation, &error);
        let mut stream = self.txn.execute(statement.0).await.map_err(fail)?;
        let mut rows = Vec::new();
        while let Some(row) = stream.next(self.txn.handle()).await.map_err(fail)? {
            rows.push(row);
        }
        Ok(rows)
    }

    /// Makes it last.
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        self.txn.commit().await.map_err(|error| failed(self.operation, &error))?;
        self.client.0.idle.lock().push(self.connection);
        Ok(())
    }
}

/// The right to use one connection at a time, of the tenant's own share where there is one. Taken before the layers,
/// and held through all attempts of a call.
pub(super) struct Place {
    client: Client,
    _share: Option<Share>,
    _connection: OwnedSemaphorePermit,
}

impl Place {
    /// Begins a transaction. The caller puts the layers around it.
    pub(super) async fn begin(&self, operation: &'static str) -> Result<Transaction, StoreError> {
        let client = &self.client;
        let idle = client.0.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => client.connect(operation).await?,
        };
        let txn = connection.start_txn().await.map_err(|error| failed(operation, &error))?;
        Ok(Transaction { txn, operation, connection, client: client.clone() })
    }

    async fn all(
        &self,
        layers: &Layers,
        operation: &'static str,
        tenant: Option<TenantId>,
        statements: &[Statement],
    ) -> Result<Vec<Vec<Row>>, StoreError> {
        let read = || async {
            let mut transaction = self.begin(operation).await?;
            let mut all = Vec::with_capacity(statements.len());
            for statement in statements {
                all.push(transaction.run(statement.clone()).await?);
            }
            transaction.commit().await?;
            Ok(all)
        };
        layers.repeatable(operation, tenant, read).await
    }
}

struct Inner {
    settings: Neo4jSettings,
    idle: Mutex<Vec<Graph>>,
    places: Arc<Semaphore>,
    shares: TenantShares,
    reading: Layers,
    writing: Layers,
}

/// A client of one Neo4j. Clones are cheap and share its connections.
#[derive(Clone)]
pub(super) struct Client(Arc<Inner>);

impl Client {
    /// A client that connects with its first call.
    pub(super) fn new(settings: Neo4jSettings, calls: Arc<Calls>, clock: Arc<dyn Clock>) -> Self {
        // The provider of the library's TLS; a second call in one process changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let reading = Layers::new(BACKEND, &settings.calls, calls, clock);
        let writing = reading.within(Duration::from_millis(settings.write_ms));
        let places = Arc::new(Semaphore::new(settings.connections));
        let shares = TenantShares::new(settings.tenant_connections);
        Self(Arc::new(Inner { settings, idle: Mutex::default(), places, shares, reading, writing }))
    }

    /// What goes around transactions that change something, or read for long.
    pub(super) fn writing(&self) -> &Layers {
        &self.0.writing
    }

    /// Whether Neo4j is not called at this moment, since it failed several times in a row.
    pub(super) fn is_left_alone(&self) -> bool {
        self.0.reading.is_left_alone()
    }

    /// A place for what may be patient.
    ///
    /// # Errors
    /// `Unavailable` when none is free within `write_ms`.
    pub(super) async fn place(
        &self,
        operation: &'static str,
        tenant: Option<TenantId>,
    ) -> Result<Place, StoreError> {
        self.place_within(self.0.settings.write_ms, operation, tenant).await
    }

    /// A place of the tenant's, then one among all.
    async fn place_within(
        &self,
        millis: u64,
        operation: &'static str,
        tenant: Option<TenantId>,
    ) -> Result<Place, StoreError> {
        let unavailable = |words| StoreError::new(ErrorKind::Unavailable, BACKEND, operation, words);
        let end = Instant::now() + Duration::from_millis(millis);
        let own = match tenant {
            Some(tenant) => {
                let share = timeout_at(end, self.0.shares.take(tenant)).await;
                Some(share.map_err(|_| unavailable("the tenant's share of the connections is in use"))?)
            }
            None => None,
        };
        let place = timeout_at(end, Arc::clone(&self.0.places).acquire_owned()).await;
        let place = place.ok().and_then(Result::ok);
        let place = place.ok_or_else(|| unavailable("every connection is in use"))?;
        Ok(Place { client: self.clone(), _share: own, _connection: place })
    }

    /// The rows of each statement, read in one transaction.
    pub(super) async fn read(
        &self,
        operation: &'static str,
        tenant: Option<TenantId>,
        statements: &[Statement],
    ) -> Result<Vec<Vec<Row>>, StoreError> {
        let place = self.place_within(self.0.settings.wait_ms, operation, tenant).await?;
        place.all(&self.0.reading, operation, tenant, statements).await
    }

    /// The rows of a statement that may look at all that a tenant has, for which nobody waits.
    pub(super) async fn scan(
        &self,
        operation: &'static str,
        tenant: TenantId,
        statement: &Statement,
    ) -> Result<Vec<Row>, StoreError> {
        let (place, statements) =
            (self.place(operation, Some(tenant)).await?, std::slice::from_ref(statement));
        let read = place.all(&self.0.writing, operation, Some(tenant), statements).await?;
        Ok(read.into_iter().next().unwrap_or_default())
    }

    async fn connect(&self, operation: &'static str) -> Result<Graph, StoreError> {
        let settings = &self.0.settings;
        let invalid = |words: &str| StoreError::new(ErrorKind::Unavailable, BACKEND, operation, words);
        let secret = settings
            .secret()
            .map_err(|error| invalid("graph.neo4j.password_file cannot be read").with_source(error))?;
        let config = ConfigBuilder::default()
            .uri(settings.url.as_str())
            .user(settings.user.as_str())
            .password(secret.expose_secret())
            .db(settings.database.as_str())
            .max_connections(1)
            .fetch_size(FETCH)
            .build()
            .map_err(|_| invalid("the settings cannot be used"))?;
        Graph::connect(config).await.map_err(|error| failed(operation, &error))
    }
}

/// What the library's errors mean for whoever called. Its own words may repeat what was sent, and go nowhere.
fn failed(operation: &'static str, error: &Error) -> StoreError {
    let (kind, words) = match error {
        Error::Neo4j(error) => {
            let kind = match error.kind() {
                Neo4jErrorKind::Transient => ErrorKind::Unavailable,
                _ if error.code().contains(".Security.") => ErrorKind::Unavailable,
                _ if error.code().contains(".ConstraintValidationFailed") => ErrorKind::Conflict,
                // What a statement had found was deleted by another before it was read.
                _ if error.code().contains(".EntityNotFound") => ErrorKind::Conflict,
                // Or another server leads, it goes down, or it ended the transaction.
                Neo4jErrorKind::Database
                | Neo4jErrorKind::Client(
                    Neo4jClientErrorKind::SessionExpired
                    | Neo4jClientErrorKind::FatalDiscovery
                    | Neo4jClientErrorKind::TransactionTerminated,
                ) => ErrorKind::Unavailable,
                _ => ErrorKind::Internal,
            };
            (kind, error.code().to_owned())
        }
        Error::AuthenticationError(_) => {
            (ErrorKind::Unavailable, "it refuses the user or the password".to_owned())
        }
        Error::DeserializationError(_) => (ErrorKind::Damaged, "a row cannot be read".to_owned()),
        // What is found while rows are read comes in this form.
        Error::UnexpectedMessage(said)
            if said.contains(".EntityNotFound") || said.contains(".ConstraintValidationFailed") =>
        {
            (ErrorKind::Conflict, "what it is about changed meanwhile".to_owned())
        }
        Error::IOError { detail } => (ErrorKind::Unavailable, detail.kind().to_string()),
        Error::ConnectionError => (ErrorKind::Unavailable, "no connection".to_owned()),
        _ => (ErrorKind::Unavailable, "it does not answer as it should".to_owned()),
    };
    StoreError::new(kind, BACKEND, operation, words)
}
