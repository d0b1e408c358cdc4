//! Prepares a PostgreSQL server for Bulkhead: version check, roles with their secrets, database,
//! extension `vector`. It works through an administrator's address, be it the private server's
//! superuser or the operator's `DATABASE_URL`, which nothing uses afterwards.
//!
//! A server that is ready is recognised over one connection and left as it is.
//!
//! **Invariant:** no role gets more than [`Role`] says; what a role has beyond it is taken away or
//! stops the start. No plaintext secret is sent to the server.

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use super::identifiers::{NameError, quote_identifier, quote_literal};
use super::roles::Role;
use super::secrets::RoleSecrets;

pub(super) mod survey;

use survey::{Database, RoleRow, Version};

/// The oldest patch release of each major version that is accepted. Older ones let planner
/// statistics or error texts tell about rows that a policy hides.
const FLOORS: [(i32, i32); 3] = [(15, 14), (16, 10), (17, 6)];

/// The oldest accepted pgvector: the first with sparse vectors and iterative index scans.
const VECTOR_FLOOR: [u32; 3] = [0, 8, 0];

/// Key of the advisory lock under which one server at a time prepares a database.
const LOCK: i64 = 0x6275_6c6b_6865_6164;

/// What to do when a role carries a secret that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignSecrets {
    /// Set ours. For the private server, which nobody else uses.
    Replace,
    /// Stop: another installation uses these roles, and setting ours would lock it out.
    Refuse,
}

/// What [`bootstrap`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bootstrapped {
    /// All was there; nothing was changed.
    Ready,
    /// Something was created or corrected.
    Changed,
}

/// Why a PostgreSQL server could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// No connection with the administrator's address.
    #[error("cannot connect to PostgreSQL as the administrator {user:?}")]
    Connect {
        /// The user of the address.
        user: String,
        /// What the driver says.
        source: sqlx::Error,
    },
    /// A version with known leaks or missing functions.
    #[error("PostgreSQL {found} is too old: at least 15.14, 16.10, 17.6 or 18.0 is needed")]
    ServerTooOld {
        /// The server's version.
        found: String,
    },
    /// pgvector is not installed on the server.
    #[error("the PostgreSQL server has no extension \"vector\"; install pgvector 0.8.0 or newer there")]
    VectorMissing,
    /// pgvector is too old.
    #[error("pgvector {found} is too old, at least 0.8.0 is needed; install a newer one there")]
    VectorTooOld {
        /// The newest version the server offers.
        found: String,
    },
    /// The administrator's address lacks a right.
    #[error("the administrator {user:?} may not {action}: {reason}")]
    NotAllowed {
        /// The user of the address.
        user: String,
        /// What was tried.
        action: String,
        /// The database's own words.
        reason: String,
    },
    /// The roles belong to another installation.
    #[error(
        "role {role} carries the secret of another installation; give this server the same secrets \
         folder, or an address for each role"
    )]
    ForeignSecret {
        /// The role.
        role: Role,
    },
    /// A role of ours was put into another role and has its rights.
    #[error("role {role} is a member of {of:?}, which gives it rights that it must not have")]
    Membership {
        /// The role.
        role: Role,
        /// The role it is in.
        of: String,
    },
    /// The database's name cannot be used.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A statement failed.
    #[error("PostgreSQL failed to {action}")]
    Query {
        /// What was tried.
        action: String,
        /// What the driver says.
        source: sqlx::Error,
    },
}

/// Makes the server at `admin` ready for Bulkhead's use of `database`. May be repeated at will, also
/// by several servers at once.
///
/// # Errors
/// See [`BootstrapError`]. What was done before an error stays and is found by the next call.
pub async fn bootstrap(
    admin: &PgConnectOptions,
    database: &str,
    secrets: &RoleSecrets,
    foreign: ForeignSecrets,
) -> Result<Bootstrapped, BootstrapError> {
    quote_identifier(database)?;
    let work = Bootstrap { admin, database, secrets, foreign };
    if work.is_ready().await? {
        return Ok(Bootstrapped::Ready);
    }
    work.prepare().await?;
    Ok(Bootstrapped::Changed)
}

struct Bootstrap<'a> {
    admin: &'a PgConnectOptions,
    database: &'a str,
    secrets: &'a RoleSecrets,
    foreign: ForeignSecrets,
}

impl Bootstrap<'_> {
    async fn is_ready(&self) -> Result<bool, BootstrapError> {
        let mut connection = match self.connect(self.database).await {
            Ok(connection) => connection,
            Err(BootstrapError::Connect { source, .. }) if is_missing_database(&source) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        self.check_version(&mut connection).await?;
        let roles = self.roles(&mut connection).await?;
        let found =
            self.ask("look at the database", survey::database(&mut connection, self.database)).await?;
        let roles_ready = Role::ALL.iter().all(|&role| {
            roles
                .iter()
                .any(|row| row.name == role.name() && row.is_as_wanted(role, &comment(self.secrets, role)))
        });
        let ready = roles_ready && found.is_some_and(|found| found.is_as_wanted());
        let vector = self.vector_installed(&mut connection).await?;
        // Closing politely is not worth an error: the work is done.
        let _ = connection.close().await;
        Ok(ready && vector)
    }

    async fn prepare(&self) -> Result<(), BootstrapError> {
        let maintenance =
            self.admin.get_database().filter(|&name| name != self.database).unwrap_or("postgres");
        let mut connection = self.connect(maintenance).await?;
        self.ask(
            "wait for other servers that prepare this database",
            sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut connection),
        )
        .await?;
        self.check_version(&mut connection).await?;
        self.require_vector(&mut connection).await?;
        let rows = self.roles(&mut connection).await?;
        for role in Role::ALL {
            let row = rows.iter().find(|row| row.name == role.name());
            self.prepare_role(&mut connection, role, row).await?;
        }
        // An administrator that is no superuser can hand a database only to a role it is in.
        let superuser = self.ask("read its own rights", survey::is_superuser(&mut connection)).await?;
        let owner = quote_identifier(Role::Owner.name())?;
        if !superuser {
            let join = format!("GRANT {owner} TO CURRENT_USER");
            self.run(&mut connection, "become a member of the owner role", join).await?;
        }
        let prepared = self.prepare_database(&mut connection, superuser).await;
        if !superuser {
            let leave = format!("REVOKE {owner} FROM CURRENT_USER");
            self.run(&mut connection, "leave the owner role", leave).await?;
        }
        // The lock goes with its connection.
        let _ = connection.close().await;
        prepared
    }

    async fn prepare_role(
        &self,
        connection: &mut PgConnection,
        role: Role,
        row: Option<&RoleRow>,
    ) -> Result<(), BootstrapError> {
        let wanted = comment(self.secrets, role);
        if row.is_some_and(|row| row.is_as_wanted(role, &wanted)) {
            return Ok(());
        }
        let name = quote_identifier(role.name())?;
        let password = quote_literal(&self.secrets.verifier(role))?;
        let mut statements = Vec::new();
        match row {
            None => {
                let login = if role.may_log_in() { "LOGIN" } else { "NOLOGIN" };
                let bypass = if role.bypasses_row_security() { "BYPASSRLS" } else { "NOBYPASSRLS" };
                statements.push(format!(
                    "CREATE ROLE {name} {login} {bypass} NOSUPERUSER NOCREATEDB NOCREATEROLE \
                     NOREPLICATION PASSWORD {password}"
                ));
            }
            Some(row) => {
                let strange = row.comment.as_deref() != Some(wanted.as_str());
                if strange && self.foreign == ForeignSecrets::Refuse {
                    return Err(BootstrapError::ForeignSecret { role });
                }
                let mut changes = row.corrections(role);
                if strange {
                    tracing::warn!(%role, "role had another secret; it now has this installation's");
                    changes.push(format!("PASSWORD {password}"));
                }
                if !changes.is_empty() {
                    statements.push(format!("ALTER ROLE {name} {}", changes.join(" ")));
                }
                statements.push(format!("ALTER ROLE {name} RESET ALL"));
            }
        }
        for (setting, value) in role.session_settings() {
            statements.push(format!(
                "ALTER ROLE {name} SET {} = {}",
                quote_identifier(setting)?,
                quote_literal(value)?
            ));
        }
        statements.push(format!("COMMENT ON ROLE {name} IS {}", quote_literal(&wanted)?));
        // Password and mark change together or not at all.
        let script = format!("BEGIN; {}; COMMIT", statements.join("; "));
        let action = format!("create or correct the role {role}");
        self.run(connection, &action, script).await
    }

    async fn prepare_database(
        &self,
        connection: &mut PgConnection,
        superuser: bool,
    ) -> Result<(), BootstrapError> {
        let name = quote_identifier(self.database)?;
        let owner = quote_identifier(Role::Owner.name())?;
        let found: Option<Database> =
            self.ask("look at the database", survey::database(connection, self.database)).await?;
        if found.is_none() {
            let create = format!("CREATE DATABASE {name} OWNER {owner} TEMPLATE template0 ENCODING 'UTF8'");
            self.run(connection, "create the database", create).await?;
        } else if found.as_ref().is_some_and(|found| found.owner != Role::Owner.name()) {
            let give = format!("ALTER DATABASE {name} OWNER TO {owner}");
            self.run(connection, "give the database to the owner role", give).await?;
        }
        let mut users: Vec<String> = Role::ALL
            .iter()
            .filter(|&&role| role != Role::Owner)
            .map(|role| quote_identifier(role.name()))
            .collect::<Result<_, _>>()?;
        if !superuser {
            // For its next look; a superuser needs no grant.
            users.push("CURRENT_USER".to_owned());
        }
        let doors = format!(
            "REVOKE ALL ON DATABASE {name} FROM PUBLIC; GRANT CONNECT ON DATABASE {name} TO {}",
            users.join(", ")
        );
        self.run(connection, "grant access to the database", doors).await?;

        let mut inside = self.connect(self.database).await?;
        if !self.vector_installed(&mut inside).await? {
            let script = "CREATE EXTENSION IF NOT EXISTS vector SCHEMA public; \
                          ALTER EXTENSION vector UPDATE";
            self.run(&mut inside, "install the extension vector", script.to_owned()).await?;
        }
        let _ = inside.close().await;
        Ok(())
    }

    async fn check_version(&self, connection: &mut PgConnection) -> Result<(), BootstrapError> {
        let version: Version = self.ask("tell its version", survey::version(connection)).await?;
        if version_is_accepted(version.number) {
            Ok(())
        } else {
            Err(BootstrapError::ServerTooOld { found: version.text })
        }
    }

    async fn require_vector(&self, connection: &mut PgConnection) -> Result<(), BootstrapError> {
        let found = self.ask("list its extensions", survey::vector_available(connection)).await?;
        match found {
            None => Err(BootstrapError::VectorMissing),
            Some(found) if !vector_is_accepted(&found) => Err(BootstrapError::VectorTooOld { found }),
            Some(_) => Ok(()),
        }
    }

    async fn vector_installed(&self, connection: &mut PgConnection) -> Result<bool, BootstrapError> {
        let found = self.ask("list its extensions", survey::vector_installed(connection)).await?;
        Ok(found.is_some_and(|found| vector_is_accepted(&found)))
    }

    async fn roles(&self, connection: &mut PgConnection) -> Result<Vec<RoleRow>, BootstrapError> {
        let names: Vec<String> = Role::ALL.iter().map(|role| role.name().to_owned()).collect();
        let rows = self.ask("list its roles", survey::roles(connection, &names)).await?;
        for row in &rows {
            let role = Role::ALL.into_iter().find(|role| role.name() == row.name);
            if let (Some(role), Some(of)) = (role, row.member_of.first()) {
                return Err(BootstrapError::Membership { role, of: of.clone() });
            }
        }
        Ok(rows)
    }

    async fn connect(&self, database: &str) -> Result<PgConnection, BootstrapError> {
        let options = self.admin.clone().database(database).disable_statement_logging();
        PgConnection::connect_with(&options)
            .await
            .map_err(|source| BootstrapError::Connect { user: self.user(), source })
    }

    async fn run(
        &self,
        connection: &mut PgConnection,
        action: &str,
        script: String,
    ) -> Result<(), BootstrapError> {
        // Every name and literal in the scripts of this file went through `identifiers`.
        let done = sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *connection).await;
        if done.is_err() {
            // The script may have failed after its BEGIN; outside a transaction this is a warning.
            let _ = sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await;
        }
        done.map(drop).map_err(|source| self.failed(action, source))
    }

    async fn ask<T>(
        &self,
        action: &str,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, BootstrapError> {
        answer.await.map_err(|source| self.failed(action, source))
    }

    fn failed(&self, action: &str, source: sqlx::Error) -> BootstrapError {
        let action = action.to_owned();
        match source.as_database_error() {
            Some(refusal) if refusal.code().as_deref() == Some("42501") => {
                BootstrapError::NotAllowed { user: self.user(), action, reason: refusal.message().to_owned() }
            }
            _ => BootstrapError::Query { action, source },
        }
    }

    fn user(&self) -> String {
        self.admin.get_username().to_owned()
    }
}

/// What the role's comment says when the database holds our secret for it.
fn comment(secrets: &RoleSecrets, role: Role) -> String {
    format!("Bulkhead; secret {}", secrets.mark(role))
}

fn is_missing_database(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.as_deref() == Some("3D000")
}

/// `number` as in `server_version_num`: 180004 for 18.4.
pub(super) fn version_is_accepted(number: i32) -> bool {
    let (major, minor) = (number / 10_000, number % 10_000);
    major >= 18 || FLOORS.iter().any(|&(floor, patch)| major == floor && minor >= patch)
}

pub(super) fn vector_is_accepted(version: &str) -> bool {
    let parts: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    !parts.is_empty() && parts.as_slice() >= VECTOR_FLOOR.as_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_below_the_floor_are_refused() {
        let accepted = [180_000, 180_004, 190_000, 170_006, 160_010, 160_014, 150_014];
        let refused = [170_005, 160_009, 150_013, 140_020, 90_624];
        assert!(accepted.into_iter().all(version_is_accepted));
        assert!(!refused.into_iter().any(version_is_accepted));
    }

    #[test]
    fn pgvector_is_compared_by_number_and_not_by_text() {
        assert!(["0.8.0", "0.8.5", "0.10.0", "1.0"].into_iter().all(vector_is_accepted));
        assert!(!["0.7.4", "0.8", "", "x"].into_iter().any(vector_is_accepted));
    }
}
