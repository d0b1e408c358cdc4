//! What [`super::bootstrap`] reads from the system catalogues to decide whether anything is amiss.
//!
//! **Invariant:** reads only.

use sqlx::FromRow;
use sqlx::postgres::PgConnection;

use crate::store::postgres::roles::Role;

/// The server's version.
#[derive(FromRow)]
pub(in crate::store::postgres) struct Version {
    /// As in `server_version_num`: 180004 for 18.4.
    pub number: i32,
    /// As a person writes it.
    pub text: String,
}

/// One of our roles as it is.
#[derive(FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "one per column of pg_roles")]
pub(in crate::store::postgres) struct RoleRow {
    pub name: String,
    pub login: bool,
    pub superuser: bool,
    pub create_role: bool,
    pub create_db: bool,
    pub replication: bool,
    pub bypass: bool,
    /// Settings as `name=value`, sorted.
    pub settings: Vec<String>,
    pub comment: Option<String>,
    /// Roles whose rights this one has.
    pub member_of: Vec<String>,
}

impl RoleRow {
    /// Whether nothing needs doing.
    pub(in crate::store::postgres) fn is_as_wanted(&self, role: Role, comment: &str) -> bool {
        self.corrections(role).is_empty()
            && self.settings == wanted_settings(role)
            && self.comment.as_deref() == Some(comment)
    }

    /// The options of `ALTER ROLE` that make the role what it should be. Only those that differ are
    /// named: an administrator that is no superuser may not even say NOSUPERUSER.
    pub(in crate::store::postgres) fn corrections(&self, role: Role) -> Vec<String> {
        let excess = [
            (self.superuser, "NOSUPERUSER"),
            (self.create_role, "NOCREATEROLE"),
            (self.create_db, "NOCREATEDB"),
            (self.replication, "NOREPLICATION"),
            (self.bypass && !role.bypasses_row_security(), "NOBYPASSRLS"),
            (!self.bypass && role.bypasses_row_security(), "BYPASSRLS"),
            (!self.login && role.may_log_in(), "LOGIN"),
            (self.login && !role.may_log_in(), "NOLOGIN"),
        ];
        excess.iter().filter(|(differs, _)| *differs).map(|(_, option)| (*option).to_owned()).collect()
    }
}

/// Settings that a role's sessions start with, as `name=value`, sorted.
pub(in crate::store::postgres) fn wanted_settings(role: Role) -> Vec<String> {
    let mut wanted: Vec<String> =
        role.session_settings().iter().map(|(name, value)| format!("{name}={value}")).collect();
    wanted.sort_unstable();
    wanted
}

/// Our database as it is.
#[derive(FromRow)]
pub(in crate::store::postgres) struct Database {
    pub owner: String,
    /// Whether everybody may connect or create temporary tables.
    pub open: bool,
    /// How many of our roles may connect.
    pub doors: i64,
}

impl Database {
    pub(in crate::store::postgres) fn is_as_wanted(&self) -> bool {
        self.owner == Role::Owner.name() && !self.open && usize::try_from(self.doors) == Ok(Role::ALL.len())
    }
}

pub(in crate::store::postgres) async fn version(
    connection: &mut PgConnection,
) -> Result<Version, sqlx::Error> {
    sqlx::query_as(
        "SELECT current_setting('server_version_num')::int4 AS number, \
                current_setting('server_version') AS text",
    )
    .fetch_one(connection)
    .await
}

pub(in crate::store::postgres) async fn roles(
    connection: &mut PgConnection,
    names: &[String],
) -> Result<Vec<RoleRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT r.rolname::text AS name, r.rolcanlogin AS login, r.rolsuper AS superuser, \
                r.rolcreaterole AS create_role, r.rolcreatedb AS create_db, \
                r.rolreplication AS replication, r.rolbypassrls AS bypass, \
                ARRAY(SELECT s FROM pg_db_role_setting d, unnest(d.setconfig) s \
                       WHERE d.setrole = r.oid AND d.setdatabase = 0 \
                       ORDER BY s COLLATE \"C\") AS settings, \
                shobj_description(r.oid, 'pg_authid') AS comment, \
                ARRAY(SELECT g.rolname::text FROM pg_auth_members m \
                       JOIN pg_roles g ON g.oid = m.roleid \
                       WHERE m.member = r.oid) AS member_of \
           FROM pg_roles r WHERE r.rolname::text = ANY ($1)",
    )
    .bind(names)
    .fetch_all(connection)
    .await
}

pub(in crate::store::postgres) async fn database(
    connection: &mut PgConnection,
    name: &str,
) -> Result<Option<Database>, sqlx::Error> {
    // In an access list the grantee 0 is PUBLIC; no list at all means the defaults, which are open.
    sqlx::query_as(
        "SELECT pg_get_userbyid(d.datdba)::text AS owner, \
                EXISTS (SELECT 1 FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a \
                         WHERE a.grantee = 0) AS open, \
                (SELECT count(*) FROM pg_roles r \
                  WHERE r.rolname IN ('bulkhead_owner', 'bulkhead_app', 'bulkhead_auth', \
                                      'bulkhead_dispatch', 'bulkhead_control', 'bulkhead_backup') \
                    AND has_database_privilege(r.oid, d.oid, 'CONNECT')) AS doors \
           FROM pg_database d WHERE d.datname::text = $1",
    )
    .bind(name)
    .fetch_optional(connection)
    .await
}

pub(in crate::store::postgres) async fn is_superuser(
    connection: &mut PgConnection,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        .fetch_one(connection)
        .await
}

/// The newest pgvector that the server could install.
pub(in crate::store::postgres) async fn vector_available(
    connection: &mut PgConnection,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
        .fetch_optional(connection)
        .await
}

/// The pgvector of this database.
pub(in crate::store::postgres) async fn vector_installed(
    connection: &mut PgConnection,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        .fetch_optional(connection)
        .await
}
