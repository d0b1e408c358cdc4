//! One connection to Redis, over which all requests of a server go at the same time.
//!
//! The library's own manager keeps an error of connecting that is none of the network's, as a refused password, for
//! good; here the next call connects anew, and reads the password anew.
//!
//! **Invariant:** a connection that failed or did not answer in time is used by no later call.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, FromRedisValue, RedisError, ScriptInvocation,
    ServerErrorKind, TlsCertificates,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;

use super::{BACKEND, RedisSettings};
use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::layers::{Calls, Layers};

/// How long what was sent may stay unacknowledged by the other machine before the connection is given up.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

struct Inner {
    address: ConnectionInfo,
    user: String,
    password: Option<SecretString>,
    password_file: Option<PathBuf>,
    authorities: Option<Vec<u8>>,
    connecting: AsyncConnectionConfig,
    /// The open connection. Who finds none opens one, and the others wait for it.
    connection: Mutex<Option<MultiplexedConnection>>,
    layers: Layers,
}

/// A client of one Redis. Clones are cheap and share its connection.
#[derive(Clone)]
pub struct RedisClient(Arc<Inner>);

impl RedisClient {
    /// A client that connects with its first call.
    ///
    /// # Errors
    /// `Invalid` when the settings cannot be used.
    pub fn new(
        settings: &RedisSettings,
        calls: Arc<Calls>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        let invalid = |context| StoreError::new(ErrorKind::Invalid, BACKEND, "client.create", context);
        let address = settings.address().map_err(|rule| invalid(format!("redis.url: {rule}")))?;
        let read = |path: &PathBuf| {
            let failed = |error| {
                invalid(format!("redis.ca_file: {} cannot be read", path.display())).with_source(error)
            };
            std::fs::read(path).map_err(failed)
        };
        let authorities = settings.ca_file.as_ref().map(read).transpose()?;
        let deadline = Duration::from_millis(settings.calls.deadline_ms);
        // Its own bound on answers would come before or after ours; ours is the one that is told.
        let connecting =
            AsyncConnectionConfig::new().set_connection_timeout(Some(deadline)).set_response_timeout(None);
        Ok(Self(Arc::new(Inner {
            address: address
                .set_tcp_settings(TcpSettings::default().set_nodelay(true).set_user_timeout(UNACKNOWLEDGED)),
            user: settings.user.clone(),
            password: settings.password.clone(),
            password_file: settings.password_file.clone(),
            authorities,
            connecting,
            connection: Mutex::default(),
            layers: Layers::new(BACKEND, &settings.calls.into(), calls, clock),
        })))
    }

    /// Runs a script. It is sent once: whether it ran is not known when no answer came.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` when Redis does not do its work, or not for this user; `Internal` when it refuses
    /// the script.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        operation: &'static str,
        tenant: Option<TenantId>,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        let ran = self.0.layers.once(operation, tenant, async {
            let mut connection = self.connection(operation).await?;
            let ran = script.invoke_async(&mut connection).await;
            ran.map_err(|error| failed(operation, &error))
        });
        let ran = ran.await;
        self.forget_failed(&ran);
        ran
    }

    /// Sends a command, once.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(super) async fn send<T: FromRedisValue>(
        &self,
        operation: &'static str,
        tenant: TenantId,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let sent = self.0.layers.once(operation, Some(tenant), async {
            let mut connection = self.connection(operation).await?;
            let sent = command.query_async(&mut connection).await;
            sent.map_err(|error| failed(operation, &error))
        });
        let sent = sent.await;
        self.forget_failed(&sent);
        sent
    }

    /// Has the next call connect anew after one that failed.
    fn forget_failed<T>(&self, called: &Result<T, StoreError>) {
        let away = |error: &StoreError| matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Timeout);
        if called.as_ref().is_err_and(away)
            // Whoever holds it is opening another one.
            && let Ok(mut connection) = self.0.connection.try_lock()
        {
            *connection = None;
        }
    }

    async fn connection(&self, operation: &'static str) -> Result<MultiplexedConnection, StoreError> {
        let mut connection = self.0.connection.lock().await;
        if let Some(open) = connection.as_ref() {
            return Ok(open.clone());
        }
        let client = self.client(operation).await?;
        let opened = client.get_multiplexed_async_connection_with_config(&self.0.connecting).await;
        let opened = opened.map_err(|error| failed(operation, &error))?;
        *connection = Some(opened.clone());
        Ok(opened)
    }

    async fn client(&self, operation: &'static str) -> Result<Client, StoreError> {
        let inner = &self.0;
        let mut login = inner.address.redis_settings().clone().set_skip_set_lib_name();
        let mut password = inner.password.clone();
        if let Some(file) = &inner.password_file {
            let read = tokio::fs::read_to_string(file).await.map_err(|error| {
                let context = format!("redis.password_file: {} cannot be read", file.display());
                StoreError::new(ErrorKind::Unavailable, BACKEND, operation, context).with_source(error)
            })?;
            password = Some(read.trim().into());
        }
        if let Some(password) = password {
            login = login.set_password(password.expose_secret());
            if !inner.user.is_empty() {
                login = login.set_username(&inner.user);
            }
        }
        let address = inner.address.clone().set_redis_settings(login);
        let client = match &inner.authorities {
            Some(authorities) => {
                let authorities = TlsCertificates { client_tls: None, root_cert: Some(authorities.clone()) };
                Client::build_with_tls(address, authorities)
            }
            None => Client::open(address),
        };
        client.map_err(|error| failed(operation, &error))
    }
}

/// What a failure of Redis means. What the access rules forbid is none of Redis' own: one key that is not allowed must
/// not keep others from being counted there. Its words may hold what was sent, so that only their category is told.
fn failed(operation: &'static str, error: &RedisError) -> StoreError {
    use redis::ErrorKind as Kind;
    let kind = match error.kind() {
        _ if error.is_timeout() => ErrorKind::Timeout,
        Kind::Io
        | Kind::Parse
        | Kind::AuthenticationFailed
        | Kind::Client
        | Kind::InvalidClientConfig
        | Kind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask,
        ) => ErrorKind::Unavailable,
        // Not logged in, full, busy with another script, without its replicas, unable to save.
        _ if matches!(
            error.code(),
            Some("NOAUTH" | "WRONGPASS" | "OOM" | "BUSY" | "NOREPLICAS" | "MISCONF" | "UNBLOCKED")
        ) =>
        {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::Internal,
    };
    let context = format!("{} ({})", error.category(), error.code().unwrap_or("no code"));
    StoreError::new(kind, BACKEND, operation, context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::SystemClock;

    #[tokio::test]
    async fn a_redis_that_is_not_there_or_whose_password_cannot_be_read_is_unavailable() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("unix://{}", folder.path().join("none.sock").display());
        for password_file in [None, Some(folder.path().join("none"))] {
            let settings = RedisSettings { url: url.clone(), password_file, ..RedisSettings::default() };
            let client =
                RedisClient::new(&settings, Arc::default(), Arc::new(SystemClock)).expect("a client");
            let script = redis::Script::new("return 1");
            let error =
                client.run::<i64>("test.run", None, &script.prepare_invoke()).await.expect_err("away");
            assert_eq!((error.kind, error.operation), (ErrorKind::Unavailable, "test.run"), "{error}");
        }
    }

    #[test]
    fn a_failure_does_not_repeat_what_was_sent() {
        let error = RedisError::from((redis::ErrorKind::Extension, "canary", "canary".to_owned()));
        let error = failed("test.run", &error);
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}
