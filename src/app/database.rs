//! The database: a private one that is started, or one that is there; made ready and opened.
//!
//! **Invariant:** nothing is opened over a database that does not keep tenants apart.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use sqlx::postgres::PgConnectOptions;

use super::{DatabaseSettings, Settings, services};
use crate::domain::clock::Clock;
use crate::domain::ids::{IdSource, ModelId};
use crate::store::layers::Calls;
use crate::store::postgres::address::{ServerAddresses, app_on};
use crate::store::postgres::bootstrap::{ForeignSecrets, bootstrap};
use crate::store::postgres::secrets::{RoleSecrets, SystemEntropy};
use crate::store::postgres::server::{DataLock, PrivateServer, ServerPaths};
use crate::store::postgres::{Pooling, Postgres, Reach, RoleAddresses, migrate};

/// The addresses of the database, private or given.
pub(super) async fn reach(
    settings: &Settings,
    data_dir: &Path,
    lock: &DataLock,
) -> anyhow::Result<(Option<PrivateServer>, Reach)> {
    let name = settings.database.name.as_str();
    let administrator = settings.database.administrator().context("database.url_file cannot be read")?;
    if let Some(url) = administrator {
        let servers = ServerAddresses::parse(&url).context("the database's address cannot be read")?;
        let (admin, others) = servers.primary().await?;
        let secrets = RoleSecrets::load_or_create(&data_dir.join("secrets"), &SystemEntropy)?;
        let pooler = settings.database.pooler.address().context("database.pooler.url")?;
        bootstrap(&admin, name, &secrets, ForeignSecrets::Refuse).await?;
        let of = |admin: &PgConnectOptions| RoleAddresses::of(admin, pooler.as_ref(), &secrets, name);
        let replica = settings.database.replica.address().context("database.replica.url")?;
        let replica = replica.map(|replica| app_on(&replica, &secrets, name));
        let pooling = if pooler.is_some() { Pooling::Transaction } else { Pooling::Session };
        return Ok((
            None,
            Reach { primary: of(&admin), others: others.iter().map(of).collect(), pooling, replica },
        ));
    }
    let paths = ServerPaths {
        install: std::path::absolute(&settings.database.install)?,
        data_dir: data_dir.to_owned(),
    };
    let server = PrivateServer::start(&paths, &settings.database.server, &SystemEntropy, lock).await?;
    server.bootstrap(name).await?;
    let addresses = server.addresses(name);
    Ok((Some(server), Reach::from(&addresses)))
}

/// Brings the database to this version for the active model and the further ones, and opens it.
pub(super) async fn open(
    settings: &Settings,
    reach: Reach,
    model: &ModelId,
    calls: &Arc<Calls>,
    (clock, ids): (&Arc<dyn Clock>, &Arc<dyn IdSource>),
) -> anyhow::Result<Postgres> {
    let owner = reach.primary.owner.clone();
    migrate::migrate(&owner, model).await.context("the database could not be prepared")?;
    migrate::require_isolation(&owner).await.context("the database does not keep tenants apart")?;
    let embedding = settings.embedding.clone();
    let mut models = tokio::task::spawn_blocking(move || embedding.identify_further()).await??;
    let further: Vec<ModelId> = models.iter().map(|(_, id)| id.clone()).collect();
    migrate::add_models(&owner, &further).await.context("a model has no partition")?;
    models.insert(0, (settings.embedding.model.clone(), model.clone()));
    let DatabaseSettings { pools, vectors, .. } = &settings.database;
    let postgres = Postgres::new(reach.clone(), pools, model.clone(), Arc::clone(clock), Arc::clone(ids))
        .with_vectors(vectors.clone())
        .with_models(models);
    services::replica(postgres, &reach, settings, calls).await
}
