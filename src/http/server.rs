//! The servers: one for tenants, one for operators, from the same parts.
//!
//! **Invariant:** plain HTTP is served on loopback and Unix sockets alone, unless a proxy in front is stated.
//! **Invariant:** operators are served on a socket that only the server's own user can open, and elsewhere
//! only where the configuration says so.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix_web::body::BoxBody;
use actix_web::dev::{ServerHandle, ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{App as Routes, Error, HttpResponse, HttpServer};
use tokio::task::JoinSet;

use super::edge::edge;
use super::problem::Problem;
use super::settings::HttpSettings;
use super::state::App;
use super::tls::{Certificate, TlsError};
use super::{
    admin, auth, documents, graph, health, jobs, metrics, namespaces, ollama, openai, openapi, query, ready,
    usage,
};

/// The server cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The settings have these faults.
    #[error("{}", .0.join("; "))]
    Settings(Vec<String>),
    /// An address or socket cannot be had.
    #[error("cannot listen on {place}: {source}")]
    Listen {
        /// Where.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The routes of tenants.
fn tenants(config: &mut ServiceConfig) {
    health::routes(config);
    ready::routes(config);
    auth::routes(config);
    documents::routes(config);
    jobs::routes(config);
    namespaces::routes(config);
    usage::routes(config);
    query::routes(config);
    graph::routes(config);
    openai::routes(config);
    ollama::routes(config);
    openapi::routes(config);
    config.default_service(web::to(nothing_here));
}

/// The routes of operators.
fn operators(config: &mut ServiceConfig) {
    admin::routes(config);
    config.default_service(web::to(nothing_here));
}

async fn nothing_here() -> Result<HttpResponse, Problem> {
    Err(Problem::not_found())
}

/// Whose routes a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Tenants,
    Operators,
}

/// The application of one side, the same for sockets and tests.
pub(super) fn application(
    app: Data<App>,
    side: Side,
) -> Routes<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<BoxBody>,
        Error = Error,
        InitError = (),
    >,
> {
    Routes::new()
        .app_data(app)
        .configure(match side {
            Side::Tenants => tenants,
            Side::Operators => operators,
        })
        .wrap(from_fn(edge))
}

/// A running server. Dropped without [`Serving::stop`], it is cut off.
pub struct Serving {
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    metrics_address: Option<SocketAddr>,
    scheme: &'static str,
    socket: Option<PathBuf>,
    handles: Vec<ServerHandle>,
    running: JoinSet<io::Result<()>>,
    // Ends with the server.
    _following: JoinSet<()>,
}

/// Begins to serve tenants on the configured address, and operators on the Unix socket (mode 0600) and, when
/// configured, on an address; likewise metrics.
///
/// # Errors
/// [`ServeError`]; then nothing is served.
pub fn serve(app: Arc<App>, admin_socket: Option<&Path>) -> Result<Serving, ServeError> {
    let settings = app.limits.clone();
    let faults = settings.validate();
    if !faults.is_empty() {
        return Err(ServeError::Settings(faults));
    }
    let certificate = settings.tls.as_ref().map(Certificate::load).transpose()?;
    let tls = certificate.as_ref().map(Certificate::config).transpose()?;
    let data = Data::from(app);
    let listener = listen(settings.address)?;
    let address = local(&listener, settings.address)?;
    let connections = settings.connections(1, descriptors(Side::Tenants)?);
    if connections < settings.max_connections {
        tracing::warn!(
            connections,
            wanted = settings.max_connections,
            "fewer connections at once than http.max_connections says: raise the limit on open files (ulimit -n)"
        );
    }
    let mut servers = vec![tcp(&data, Side::Tenants, listener, tls.as_ref())?];
    let mut admin_address = None;
    if let Some(wanted) = settings.admin_address {
        let listener = listen(wanted)?;
        admin_address = Some(local(&listener, wanted)?);
        servers.push(tcp(&data, Side::Operators, listener, tls.as_ref())?);
    }
    if let Some(path) = admin_socket {
        servers.push(unix(&data, path)?);
    }
    let mut metrics_address = None;
    if let Some(wanted) = data.metrics_address {
        let listener = listen(wanted)?;
        metrics_address = Some(local(&listener, wanted)?);
        servers.push(metrics::serve(&data, listener).map_err(failed(&wanted))?);
    }
    let mut running = JoinSet::new();
    let mut handles = Vec::new();
    for server in servers {
        handles.push(server.handle());
        running.spawn(server);
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let socket = admin_socket.map(Path::to_owned);
    let mut following = JoinSet::new();
    if let Some(certificate) = certificate {
        following.spawn(certificate.follow());
    }
    Ok(Serving {
        address,
        admin_address,
        metrics_address,
        scheme,
        socket,
        handles,
        running,
        _following: following,
    })
}

impl Serving {
    /// Where tenants are served, with the port that was given.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where operators are served besides the socket.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Where metrics are served.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// `http://ADDRESS` or `https://ADDRESS`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Returns when a server ends by itself, which none does without a fault.
    pub async fn ended(&mut self) -> io::Error {
        match self.running.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => io::Error::other(error),
            Some(Ok(Ok(()))) | None => io::Error::other("the HTTP server ended"),
        }
    }

    /// Takes no more connections, lets running requests end within their time, and removes the socket.
    pub async fn stop(mut self) {
        futures::future::join_all(self.handles.iter().map(|handle| handle.stop(true))).await;
        while self.running.join_next().await.is_some() {}
        if let Some(socket) = &self.socket {
            // A socket that stays behind is replaced at the next start.
            let _gone = std::fs::remove_file(socket);
        }
    }
}

fn failed(place: &dyn std::fmt::Display) -> impl FnOnce(io::Error) -> ServeError + use<> {
    let place = place.to_string();
    move |source| ServeError::Listen { place, source }
}

fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).map_err(failed(&address))
}

fn local(listener: &TcpListener, wanted: SocketAddr) -> Result<SocketAddr, ServeError> {
    listener.local_addr().map_err(failed(&wanted))
}

/// The settings that every server has. A macro, since the types of the servers cannot be named.
macro_rules! server {
    ($data:expr, $side:expr) => {{
        let (data, side): (Data<App>, Side) = ($data.clone(), $side);
        let settings: HttpSettings = data.limits.clone();
        let workers = match (side, settings.workers) {
            // Operators are few.
            (Side::Operators, _) => 1,
            (Side::Tenants, 0) => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            (Side::Tenants, workers) => workers,
        };
        HttpServer::new(move || application(data.clone(), side))
            .workers(workers)
            .max_connections(settings.connections(workers, descriptors(side)?))
            .keep_alive(Duration::from_secs(settings.keep_alive_seconds))
            .client_request_timeout(Duration::from_secs(settings.head_seconds))
            .client_disconnect_timeout(Duration::from_secs(1))
            .shutdown_timeout(settings.shutdown_seconds)
            .disable_signals()
    }};
}

/// The descriptors that the connections of one side may have: what is left is the stores', which would otherwise be
/// without when callers are many.
fn descriptors(side: Side) -> Result<u64, ServeError> {
    let place = "a socket: the limit on open files cannot be read";
    let all = rlimit::Resource::NOFILE.get_soft().map_err(failed(&place))?;
    Ok(match side {
        Side::Tenants => all / 2,
        Side::Operators => all / 16,
    })
}

fn tcp(
    data: &Data<App>,
    side: Side,
    listener: TcpListener,
    tls: Option<&rustls::ServerConfig>,
) -> Result<actix_web::dev::Server, ServeError> {
    let place = data.limits.address;
    let server = server!(data, side);
    let server = match tls {
        Some(tls) => server.listen_rustls_0_23(listener, tls.clone()),
        None => server.listen(listener),
    };
    Ok(server.map_err(failed(&place))?.run())
}

/// A socket that is never open to others, not even for a moment: it gets its mode before it gets its name.
fn unix(data: &Data<App>, path: &Path) -> Result<actix_web::dev::Server, ServeError> {
    let place = path.display();
    let unnamed = path.with_extension(format!("{}.new", std::process::id()));
    let _stale = std::fs::remove_file(&unnamed);
    let listener = UnixListener::bind(&unnamed).map_err(failed(&place))?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600)).map_err(failed(&place))?;
    std::fs::rename(&unnamed, path).map_err(failed(&place))?;
    Ok(server!(data, Side::Operators).listen_uds(listener).map_err(failed(&place))?.run())
}
