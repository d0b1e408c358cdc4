//! Addresses: an administrator's, of one server or of several among which the primary is looked for, and a pooler's.
//!
//! **Invariant:** an address that cannot be used is refused without a word of it, since it may hold a password.

use secrecy::ExposeSecret as _;
use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::pools::RoleAddresses;
use super::roles::Role;
use super::secrets::RoleSecrets;
use crate::domain::address::is_loopback;

/// The most servers that an address may name.
const SERVERS: usize = 16;

/// Why an address cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is no address.
    #[error("postgres://user:password@host:port/database, or host:port,host:port of at most 16 servers")]
    Form,
    /// It asks for something else than the primary.
    #[error("target_session_attrs: read-write or primary; a server that only reads is database.replica.url")]
    Target,
    /// A place names somebody.
    #[error("postgres://host:port without user, password and database; each role has its own")]
    Place,
    /// It would be spoken to in the clear, or whoever it is.
    #[error("beyond loopback with sslmode=verify-full")]
    Unverified,
}

/// An administrator's address, of each server that the database may be on: `postgres://user:password@a:5432,b:5432/db`,
/// as libpq writes it.
#[derive(Clone)]
pub struct ServerAddresses {
    servers: Vec<PgConnectOptions>,
}

impl ServerAddresses {
    /// Reads an address.
    ///
    /// # Errors
    /// [`AddressError::Form`], [`AddressError::Target`] or [`AddressError::Unverified`].
    pub fn parse(url: &str) -> Result<Self, AddressError> {
        let (scheme, rest) = url.split_once("://").ok_or(AddressError::Form)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
        let at = if user.is_empty() { "" } else { "@" };
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        let query = of_primary(query)?;
        let hosts: Vec<&str> = hosts.split(',').collect();
        let one = |host: &&str| {
            let options = format!("{scheme}://{user}{at}{host}{path}?{query}").parse::<PgConnectOptions>();
            options.ok().filter(|options| !options.get_host().contains(','))
        };
        let servers: Option<Vec<PgConnectOptions>> = hosts.iter().map(one).collect();
        let several = hosts.len() > 1;
        let named = !several || (hosts.len() <= SERVERS && hosts.iter().all(|host| !host.is_empty()));
        let servers = servers.filter(|_| named && matches!(scheme, "postgres" | "postgresql"));
        let servers = servers.ok_or(AddressError::Form)?;
        servers.iter().try_for_each(require_verified)?;
        Ok(Self { servers })
    }

    /// The administrator's address of each server; at least one.
    #[must_use]
    pub fn into_servers(self) -> Vec<PgConnectOptions> {
        self.servers
    }
}

/// Parameters without the one that the driver does not know.
fn of_primary(query: &str) -> Result<String, AddressError> {
    let mut kept = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("target_session_attrs", "read-write" | "primary")) => {}
            Some(("target_session_attrs", _)) => return Err(AddressError::Target),
            _ => kept.push(pair),
        }
    }
    Ok(kept.join("&"))
}

/// The app role's address on a server that follows.
#[must_use]
pub fn app_on(replica: &PgConnectOptions, secrets: &RoleSecrets, database: &str) -> PgConnectOptions {
    on(replica, Role::App, secrets, database)
}

fn on(server: &PgConnectOptions, role: Role, secrets: &RoleSecrets, database: &str) -> PgConnectOptions {
    server.clone().username(role.name()).password(secrets.of(role).expose_secret()).database(database)
}

impl RoleAddresses {
    /// The addresses of the roles in a database of the server of an administrator's address; all but the owner's go
    /// through the pooler, if there is one.
    #[must_use]
    pub fn of(
        administrator: &PgConnectOptions,
        pooler: Option<&PgConnectOptions>,
        secrets: &RoleSecrets,
        database: &str,
    ) -> Self {
        let address = |server: &PgConnectOptions, role: Role| on(server, role, secrets, database);
        let other = pooler.unwrap_or(administrator);
        Self {
            owner: address(administrator, Role::Owner),
            app: address(other, Role::App),
            auth: address(other, Role::Auth),
            dispatch: address(other, Role::Dispatch),
            control: address(other, Role::Control),
        }
    }
}

/// `[database.pooler]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolerSettings {
    /// Where it is, as `postgres://host:port`; empty: there is none.
    pub url: String,
}

impl PoolerSettings {
    /// Its address without a role; `None`: there is no pooler.
    ///
    /// # Errors
    /// [`AddressError::Place`] or [`AddressError::Unverified`].
    pub fn address(&self) -> Result<Option<PgConnectOptions>, AddressError> {
        place(&self.url)
    }
}

/// An address of a server without a role, `postgres://host:port`; `None` when it is empty.
pub(super) fn place(url: &str) -> Result<Option<PgConnectOptions>, AddressError> {
    if url.is_empty() {
        return Ok(None);
    }
    let (place, _) = url.split_once('?').unwrap_or((url, ""));
    let place = place.split_once("://").map_or("", |(_, place)| place);
    let address: PgConnectOptions = url.parse().map_err(|_| AddressError::Place)?;
    if place.is_empty() || place.contains(['@', '/', ',']) {
        return Err(AddressError::Place);
    }
    require_verified(&address)?;
    Ok(Some(address))
}

/// Refuses what is beyond loopback without a verified certificate.
fn require_verified(address: &PgConnectOptions) -> Result<(), AddressError> {
    let verified = matches!(address.get_ssl_mode(), PgSslMode::VerifyFull);
    if address.get_socket().is_some() || is_loopback(address.get_host()) || verified {
        Ok(())
    } else {
        Err(AddressError::Unverified)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(url: &str) -> Vec<String> {
        let addresses = ServerAddresses::parse(url).expect("an address");
        let place = |server: &PgConnectOptions| {
            let user = server.get_username();
            match server.get_socket() {
                Some(socket) => format!("{user}@{}:{}", socket.display(), server.get_port()),
                None => format!("{user}@{}:{}", server.get_host(), server.get_port()),
            }
        };
        addresses.into_servers().iter().map(place).collect()
    }

    #[test]
    fn an_address_of_one_server_is_read_as_ever() {
        assert_eq!(
            places("postgres://me:word@db.example:5433/main?sslmode=verify-full"),
            ["me@db.example:5433"]
        );
        assert_eq!(places("postgresql://me:w%40rd@[::1]/main"), ["me@[::1]:5432"]);
        assert_eq!(places("postgres://me:word@%2Frun%2Fdb:5432/main"), ["me@/run/db:5432"]);
        assert_eq!(places("postgres:///main?host=/run/db&user=me"), ["me@/run/db:5432"]);
    }

    #[test]
    fn an_address_names_several_servers_as_libpq_does() {
        let hosts = "a.example:5432,b.example:6543,[::1]";
        let url =
            format!("postgres://me:word@{hosts}/main?target_session_attrs=read-write&sslmode=verify-full");
        let url = url.as_str();
        assert_eq!(places(url), ["me@a.example:5432", "me@b.example:6543", "me@[::1]:5432"]);
        let sockets = "postgres://me:word@%2Frun%2Fa:5432,%2Frun%2Fb:5432/main?target_session_attrs=primary";
        assert_eq!(places(sockets), ["me@/run/a:5432", "me@/run/b:5432"]);
        let servers = ServerAddresses::parse(url).expect("an address");
        for server in servers.into_servers() {
            assert_eq!(server.get_database(), Some("main"));
        }
    }

    #[test]
    fn an_address_of_nothing_or_of_another_than_the_primary_is_refused_without_its_words() {
        let many = format!("postgres://me:secret@{}/main", ["a"; 17].join(","));
        for url in [
            "secret",
            "mysql://me:secret@a/main",
            "postgres://me:secret@a,,b/main",
            "postgres://me:secret@a:x/main",
            "postgres://me:secret@/main?host=a,b",
            &many,
        ] {
            let refused = ServerAddresses::parse(url).err().unwrap_or_else(|| panic!("{url}"));
            assert_eq!(refused, AddressError::Form, "{url}");
            assert!(!refused.to_string().contains("secret"));
        }
        for target in ["any", "read-only", "standby", "prefer-standby"] {
            let url = format!("postgres://a,b/main?target_session_attrs={target}");
            assert_eq!(ServerAddresses::parse(&url).err(), Some(AddressError::Target), "{target}");
        }
    }

    #[test]
    fn no_server_beyond_loopback_is_spoken_to_unverified() {
        for url in ["postgres://me:word@127.0.0.1/main", "postgres://me:word@localhost,[::1]/main"] {
            assert!(ServerAddresses::parse(url).is_ok(), "{url}");
        }
        for url in [
            "postgres://me:word@db.example/main",
            "postgres://me:word@db.example/main?sslmode=require",
            "postgres://me:word@localhost,db.example/main?sslmode=prefer",
        ] {
            assert_eq!(ServerAddresses::parse(url).err(), Some(AddressError::Unverified), "{url}");
        }
    }

    #[test]
    fn a_pooler_has_a_place_and_nothing_else_and_is_verified_beyond_loopback() {
        let read = |url: &str| PoolerSettings { url: url.to_owned() }.address().map(|found| found.is_some());
        assert_eq!(read(""), Ok(false));
        for url in [
            "postgres://127.0.0.1:6432",
            "postgres://localhost:6432",
            "postgres://%2Frun%2Fpgbouncer:6432",
            "postgres://pool.example:6432?sslmode=verify-full&sslrootcert=/etc/ssl/pool.pem",
        ] {
            assert_eq!(read(url), Ok(true), "{url}");
        }
        for url in
            ["postgres://me@127.0.0.1", "postgres://127.0.0.1/main", "postgres://a,b", "postgres://", "x"]
        {
            assert_eq!(read(url), Err(AddressError::Place), "{url}");
        }
        for url in ["postgres://pool.example:6432", "postgres://pool.example:6432?sslmode=require"] {
            assert_eq!(read(url), Err(AddressError::Unverified), "{url}");
        }
    }
}
