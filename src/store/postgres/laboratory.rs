//! What tests look at and measurements switch off in the database. Releases do not have this.

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::chunks::{CHUNK_LIST, MENTION_LIST};
use super::error::failed;
use crate::store::error::StoreError;

/// Statements that read an answer's rows by their whole key: name and text.
pub const BY_WHOLE_KEY: [(&str, &str); 2] = [("chunk.list", CHUNK_LIST), ("mention.list", MENTION_LIST)];

/// Switches row-level security on or off for every table that has policies.
///
/// # Errors
/// `Unavailable` or `Timeout`.
pub async fn row_security(superuser: &PgConnectOptions, on: bool) -> Result<(), StoreError> {
    const OPERATION: &str = "laboratory.row_security";
    let word = if on { "enable" } else { "disable" };
    let statement = format!(
        "do $$ declare name regclass; begin
             for name in select distinct polrelid::regclass from pg_policy loop
                 execute format('alter table %s {word} row level security', name);
             end loop;
         end $$"
    );
    let mut connection = PgConnection::connect_with(superuser).await.map_err(failed(OPERATION))?;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.map_err(failed(OPERATION))?;
    connection.close().await.map_err(failed(OPERATION))
}
