//! The database roles: what they may do, how they are made, corrected and refused.

use bulkhead::store::postgres::bootstrap::{BootstrapError, Bootstrapped, ForeignSecrets, bootstrap};
use bulkhead::store::postgres::roles::Role;
use bulkhead::store::postgres::secrets::{RoleSecrets, SystemEntropy};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};

use crate::place::{Place, code, connect, text};

#[tokio::test]
async fn every_role_connects_with_its_secret_and_with_no_other() {
    let place = Place::new();
    let server = place.start().await;
    server.bootstrap("bulkhead").await.expect("bootstrap");
    for role in Role::ALL {
        let options = server.address(role, "bulkhead");
        if role.may_log_in() {
            let mut connection = connect(&options).await;
            assert_eq!(text(&mut connection, "SELECT current_user::text").await, role.name());
        } else {
            let refused = PgConnection::connect_with(&options).await.expect_err("no login");
            assert_eq!(code(&refused), "28000");
        }
        let wrong = options.password("wrong");
        let refused = PgConnection::connect_with(&wrong).await.expect_err("wrong secret");
        assert_eq!(code(&refused), "28P01", "{role}");
    }
    let app = server.address(Role::App, "bulkhead");
    let stranger = PgConnection::connect_with(&app.username("postgres")).await;
    assert_eq!(code(&stranger.expect_err("unknown role")), "28P01");
    server.stop().await.expect("stopped");
}

#[tokio::test]
async fn the_roles_are_what_the_design_says() {
    let place = Place::new();
    let server = place.start().await;
    server.bootstrap("bulk\"head").await.expect("a quote in the name is only a quote");
    let mut connection = connect(&server.superuser()).await;
    let rows = sqlx::query(
        "SELECT rolname::text, rolcanlogin, rolbypassrls, \
                rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication, \
                rolconfig::text \
           FROM pg_roles WHERE rolname LIKE 'bulkhead%' AND rolname <> 'bulkhead_superuser' \
          ORDER BY rolname",
    )
    .fetch_all(&mut connection)
    .await
    .expect("roles");
    let seen: Vec<(String, bool, bool, bool, String)> = rows
        .iter()
        .map(|row| {
            let config: Option<String> = row.get(4);
            (row.get(0), row.get(1), row.get(2), row.get(3), config.unwrap_or_default())
        })
        .collect();
    let role = |name: &str, login, bypass, statement: &str| {
        let config = match statement {
            "" => String::new(),
            limit => format!("{{idle_in_transaction_session_timeout=30000,statement_timeout={limit}}}"),
        };
        (format!("bulkhead_{name}"), login, bypass, false, config)
    };
    assert_eq!(
        seen,
        [
            role("app", true, false, "30000"),
            role("auth", true, false, "5000"),
            role("backup", false, true, ""),
            role("control", true, false, "30000"),
            role("dispatch", true, false, "10000"),
            role("owner", true, false, ""),
        ]
    );
    drop(connection);

    let mut app = connect(&server.address(Role::App, "bulk\"head")).await;
    assert_eq!(text(&mut app, "SHOW statement_timeout").await, "30s");
    assert_eq!(text(&mut app, "SELECT '[1,2]'::vector::text").await, "[1,2]");
    for forbidden in [
        "CREATE TABLE mine (id int)",
        "CREATE TEMPORARY TABLE mine (id int)",
        "SET ROLE bulkhead_owner",
        "ALTER ROLE bulkhead_app BYPASSRLS",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT rolpassword FROM pg_authid",
    ] {
        let refused = sqlx::raw_sql(forbidden).execute(&mut app).await.expect_err(forbidden);
        assert_eq!(code(&refused), "42501", "{forbidden}");
    }
    let mut owner = connect(&server.address(Role::Owner, "bulk\"head")).await;
    sqlx::raw_sql("CREATE TABLE mine (id int)").execute(&mut owner).await.expect("owner creates");
    server.stop().await.expect("stopped");
}

#[tokio::test]
async fn bootstrap_takes_away_what_a_role_should_not_have() {
    let place = Place::new();
    let server = place.start().await;
    server.bootstrap("bulkhead").await.expect("bootstrap");
    let mut connection = connect(&server.superuser()).await;
    sqlx::raw_sql(
        "ALTER ROLE bulkhead_app SUPERUSER BYPASSRLS; ALTER ROLE bulkhead_auth SET row_security = off; \
         ALTER ROLE bulkhead_backup LOGIN; GRANT CONNECT ON DATABASE bulkhead TO PUBLIC",
    )
    .execute(&mut connection)
    .await
    .expect("damage");
    assert_eq!(server.bootstrap("bulkhead").await.expect("repair"), Bootstrapped::Changed);
    assert_eq!(server.bootstrap("bulkhead").await.expect("again"), Bootstrapped::Ready);
    let excess: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_roles \
          WHERE rolname = 'bulkhead_app' AND (rolsuper OR rolbypassrls) \
             OR rolname = 'bulkhead_backup' AND rolcanlogin \
             OR rolname = 'bulkhead_auth' AND rolconfig::text LIKE '%row_security%'",
    )
    .fetch_one(&mut connection)
    .await
    .expect("count");
    assert_eq!(excess, 0);

    sqlx::raw_sql("GRANT bulkhead_owner TO bulkhead_app").execute(&mut connection).await.expect("grant");
    let refused = server.bootstrap("bulkhead").await.expect_err("membership");
    assert!(refused.to_string().contains("bulkhead_app is a member of \"bulkhead_owner\""), "{refused}");
    drop(connection);
    server.stop().await.expect("stopped");
}

#[tokio::test]
async fn an_administrator_needs_rights_but_not_all_of_them() {
    let place = Place::new();
    let server = place.start().await;
    let mut connection = connect(&server.superuser()).await;
    sqlx::raw_sql(
        "CREATE ROLE weak LOGIN PASSWORD 'weak'; \
         CREATE ROLE admin LOGIN CREATEDB CREATEROLE BYPASSRLS PASSWORD 'admin'",
    )
    .execute(&mut connection)
    .await
    .expect("administrators");
    drop(connection);
    let secrets = server.secrets();
    let weak = server.superuser().username("weak").password("weak");
    let refused = bootstrap(&weak, "shop", &secrets, ForeignSecrets::Refuse).await;
    let refused = refused.expect_err("may not create roles");
    assert!(matches!(&refused, BootstrapError::NotAllowed { user, .. } if user == "weak"), "{refused}");
    assert!(refused.to_string().contains("may not create or correct the role bulkhead_owner"));

    let admin = server.superuser().username("admin").password("admin");
    let refused = bootstrap(&admin, "shop", &secrets, ForeignSecrets::Refuse).await;
    let refused = refused.expect_err("pgvector as built here wants a superuser");
    assert!(refused.to_string().contains("may not install the extension vector"), "{refused}");
    let mut shop = connect(&server.superuser().database("shop")).await;
    sqlx::raw_sql("CREATE EXTENSION vector").execute(&mut shop).await.expect("by the superuser");
    let done = bootstrap(&admin, "shop", &secrets, ForeignSecrets::Refuse).await.expect("all is there");
    assert_eq!(done, Bootstrapped::Ready);
    assert_eq!(
        text(&mut shop, "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = 'shop'").await,
        "bulkhead_owner"
    );
    let members = "SELECT count(*)::text FROM pg_auth_members WHERE member = 'admin'::regrole \
                   AND roleid = 'bulkhead_owner'::regrole AND (inherit_option OR set_option)";
    assert_eq!(text(&mut shop, members).await, "0", "the administrator left the owner role");
    shop.close().await.expect("closed");
    let mut app = connect(&server.address(Role::App, "shop")).await;
    assert_eq!(text(&mut app, "SELECT '[1,2]'::vector::text").await, "[1,2]");

    // Another installation with secrets of its own does not lock this one out.
    let folder = place.base.path().join("other-secrets");
    let others = RoleSecrets::load_or_create(&folder, &SystemEntropy).expect("secrets");
    let refused = bootstrap(&admin, "shop", &others, ForeignSecrets::Refuse).await;
    let refused = refused.expect_err("foreign");
    assert!(matches!(refused, BootstrapError::ForeignSecret { role: Role::Owner }), "{refused}");
    connect(&server.address(Role::Owner, "shop")).await;
    server.stop().await.expect("stopped");
}
