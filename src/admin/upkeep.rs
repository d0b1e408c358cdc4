//! What is kept twice: compared, put right, written anew. A tenant a call, and of it a namespace, so that no call
//! lasts longer than one namespace takes.
//!
//! **Invariant:** an operator learns numbers and the identities of namespaces, nothing that a tenant wrote.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::forms::{fault, reason};
use super::{AdminError, Administration, Fault, Faults};
use crate::domain::Seq;
use crate::domain::audit::ChainReport;
use crate::domain::ids::{NamespaceId, NamespaceName, TenantId};
use crate::store::digest::{IndexKind, StoreDigest};
use crate::store::layers::Calls;
use crate::store::postgres::examine::{Finding, IndexExamined};
use crate::store::{
    Corpus, CorpusWriter, ErrorKind, MovedModel, Placement, Placements, StoreError, TenantWriter,
};
use crate::tenancy::{Directory, OperatorScope, Permit, Write, authorise_upkeep};

/// Whoever keeps indexes up to date, and so can keep others away from one while it is compared or replaced.
#[async_trait]
pub trait IndexKeeper: Send + Sync {
    /// Compares an index with its rows; with `repair`, writes it anew when they differ.
    ///
    /// # Errors
    /// As the stores' own.
    async fn examine(&self, corpus: &Corpus, repair: bool) -> Result<IndexExamined, StoreError>;

    /// Writes an index anew, and returns how far it has come.
    ///
    /// # Errors
    /// As the stores' own.
    async fn rebuild(&self, corpus: &Corpus) -> Result<Seq, StoreError>;
}

/// What comparing, rebuilding and examining need beside the stores.
#[derive(Clone)]
pub struct Upkeep {
    /// Knows how calls to services fare.
    pub calls: Arc<Calls>,
    /// Keeps the vector indexes.
    pub indexes: Arc<dyn IndexKeeper>,
    /// Keeps the graphs that are in an index; none where they are in memory alone.
    pub graphs: Option<Arc<dyn IndexKeeper>>,
    /// Knows the tenants.
    pub directory: Arc<dyn Directory>,
    /// Moves tenants' vectors between placements; none where the index has but one.
    pub placements: Option<Arc<dyn Placements>>,
    /// For how long a file may be named by nothing, since its document may be about to be accepted.
    pub margin: Duration,
}

/// What is to be compared, or written anew.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Examination {
    /// Whether to put right what can be.
    #[serde(default)]
    pub repair: bool,
    /// This namespace alone, and nothing beside namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// This index alone, and nothing beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<IndexKind>,
    /// The namespace after this one; absent: the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Uuid>,
    /// Why, for the audit log.
    pub reason: String,
}

impl Faults for Examination {
    fn faults(&self) -> Vec<Fault> {
        let name = self.namespace.as_deref().map(NamespaceName::parse);
        let name = name.and_then(Result::err).map(|error| fault("namespace", error.0));
        reason(&self.reason).chain(name).collect()
    }
}

/// Where a tenant's vectors are to be.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPlacement {
    /// Beside whom.
    pub placement: Placement,
    /// Why, for the audit log.
    pub reason: String,
}

impl Faults for NewPlacement {
    fn faults(&self) -> Vec<Fault> {
        reason(&self.reason).collect()
    }
}

/// Where a tenant's vectors are now.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Placed {
    /// Beside whom: those it has, and those that will come.
    pub placement: Placement,
    /// What was moved; nothing, when it was there already or there was none.
    pub moved: Vec<MovedModel>,
}

/// A backup that is about to be taken.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBackup {
    /// Why, for the audit log.
    pub reason: String,
}

impl Faults for NewBackup {
    fn faults(&self) -> Vec<Fault> {
        reason(&self.reason).collect()
    }
}

/// A namespace, compared.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct NamespaceExamined {
    /// Its identity.
    pub namespace_id: Uuid,
    /// Points of its index of vectors.
    pub points: u64,
    /// What each store holds of it, the record first; after a repair, what it holds then.
    pub stores: Vec<StoreDigest>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl NamespaceExamined {
    fn of(namespace_id: Uuid) -> Self {
        Self { namespace_id, points: 0, stores: Vec::new(), findings: Vec::new() }
    }
}

/// A tenant, compared, or a part of it.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
pub struct Examined {
    /// What is wrong beside its namespaces.
    pub findings: Vec<Finding>,
    /// Its audit log, by server.
    pub chains: Vec<ChainReport>,
    /// The namespace of this call; absent: there is none any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespaceExamined>,
    /// Where the next call goes on (`after`); absent: this was the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Uuid>,
}

/// A namespace's indexes, written anew.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
pub struct Rebuilt {
    /// Its namespace; absent: there is none any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_id: Option<Uuid>,
    /// How far they have come in the namespace's history, all of them.
    pub seq: i64,
    /// Where the next call goes on (`after`); absent: this was the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Uuid>,
}

impl Administration {
    /// Compares a tenant's counters, files and audit log, or, with `after`, the namespace after that one.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn verify(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        asked: &Examination,
    ) -> Result<Examined, AdminError> {
        asked.require()?;
        let keepers = self.keepers(asked)?;
        let writer = self.upkeep_of(tenant).await?;
        let mut examined = Examined::default();
        if asked.after.is_none() {
            let action = if asked.repair { "tenant.repair" } else { "tenant.verify" };
            self.record(by, Some(tenant.0), action, &asked.reason, []).await?;
            if asked.namespace.is_none() && asked.index.is_none() {
                let before = self.clock.now() - self.upkeep.margin;
                examined.findings = writer.tenant_examine(before, asked.repair).await?;
                examined.chains = self.audit.attest(by, Some(tenant)).await?;
            }
        }
        let Some(corpus) = corpus_of(&writer, asked).await? else { return Ok(examined) };
        let namespace = corpus.partition().namespace().0;
        let mut of_it = NamespaceExamined::of(namespace);
        if asked.index.is_none() {
            of_it.findings = corpus.corpus_examine(asked.repair).await?;
        }
        for (kind, keeper) in keepers {
            let index = keeper.examine(&corpus, asked.repair).await?;
            of_it.findings.extend(index.findings);
            of_it.stores.extend(index.digests);
            if kind == IndexKind::Vectors {
                of_it.points = index.points;
            }
        }
        examined.namespace = Some(of_it);
        examined.next = asked.namespace.is_none().then_some(namespace);
        Ok(examined)
    }

    /// Writes the indexes of one namespace anew, or the one that is named: of the namespace that is, or of the one after
    /// `after`.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn rebuild(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        asked: &Examination,
    ) -> Result<Rebuilt, AdminError> {
        asked.require()?;
        let keepers = self.keepers(asked)?;
        let writer = self.upkeep_of(tenant).await?;
        if asked.after.is_none() {
            self.record(by, Some(tenant.0), "tenant.rebuild", &asked.reason, []).await?;
        }
        let Some(corpus) = corpus_of(&writer, asked).await? else { return Ok(Rebuilt::default()) };
        let namespace = corpus.partition().namespace().0;
        let mut seq = i64::MAX;
        for (_, keeper) in keepers {
            seq = seq.min(keeper.rebuild(&corpus).await?.0);
        }
        let next = asked.namespace.is_none().then_some(namespace);
        Ok(Rebuilt { namespace_id: Some(namespace), seq, next })
    }

    /// Chooses where a tenant's vectors are, and moves those it has; questions and writes go on meanwhile.
    ///
    /// # Errors
    /// [`AdminError`]; then the placement before is served, and it is to be asked for again. The choice may be made and
    /// recorded by then, and holds for what comes.
    pub async fn place(
        &self,
        by: &OperatorScope,
        tenant: TenantId,
        new: &NewPlacement,
    ) -> Result<Placed, AdminError> {
        new.require()?;
        let Some(placements) = &self.upkeep.placements else {
            let rule = "there is one placement only, unless vectors.backend is \"qdrant\"".to_owned();
            return Err(AdminError::Invalid(vec![Fault { field: "placement", rule }]));
        };
        let permit = self.permit_of(tenant).await?;
        let act = self.act(by, "tenant.placement", &new.reason, [new.placement.name().to_owned()]);
        if !self.stores.placement_choose(act, tenant, new.placement).await? {
            return Err(AdminError::NotFound);
        }
        let moved = placements.place(&permit, new.placement).await?;
        Ok(Placed { placement: new.placement, moved })
    }

    /// Writes down that a backup is taken, before it is: it holds what every tenant wrote.
    ///
    /// # Errors
    /// [`AdminError`]; then none is to be taken.
    pub async fn backup(&self, by: &OperatorScope, new: &NewBackup) -> Result<(), AdminError> {
        new.require()?;
        self.record(by, None, "deployment.backup", &new.reason, []).await
    }

    /// Who keeps what a call is about: one at least.
    fn keepers(&self, asked: &Examination) -> Result<Vec<(IndexKind, &dyn IndexKeeper)>, AdminError> {
        let Upkeep { indexes, graphs, .. } = &self.upkeep;
        let all = [(IndexKind::Vectors, Some(indexes)), (IndexKind::Graph, graphs.as_ref())];
        let asked_for = |kind| asked.index.is_none_or(|index| index == kind);
        let wanted = all.into_iter().filter(|(kind, _)| asked_for(*kind));
        let wanted: Vec<_> = wanted.filter_map(|(kind, keeper)| Some((kind, keeper?.as_ref()))).collect();
        if wanted.is_empty() {
            let rule = "graphs are in memory alone, unless graph.backend is \"neo4j\"".to_owned();
            return Err(AdminError::Invalid(vec![Fault { field: "index", rule }]));
        }
        Ok(wanted)
    }

    /// A tenant's data, to be compared.
    async fn upkeep_of(&self, tenant: TenantId) -> Result<TenantWriter, AdminError> {
        Ok(self.stores.background(&self.permit_of(tenant).await?))
    }

    /// Its authority is made by looking the tenant up, not from the operator's.
    async fn permit_of(&self, tenant: TenantId) -> Result<Permit<Write>, AdminError> {
        let permit = authorise_upkeep(self.upkeep.directory.as_ref(), tenant).await.map_err(|error| {
            let words = "the directory is away";
            StoreError::new(ErrorKind::Unavailable, "directory", "tenant.verify", words).with_source(error)
        })?;
        permit.ok_or(AdminError::NotFound)
    }
}

/// The namespace that a call is about.
async fn corpus_of(writer: &TenantWriter, asked: &Examination) -> Result<Option<CorpusWriter>, AdminError> {
    if let Some(name) = &asked.namespace {
        // Parsed before: what was stated can be a name.
        let name = NamespaceName::parse(name).map_err(|_| AdminError::NotFound)?;
        let found = writer.corpus_get(&name).await?.ok_or(AdminError::NotFound)?;
        return Ok(writer.corpus_writer(found.partition().namespace()).await?);
    }
    let mut after = asked.after.map(NamespaceId);
    loop {
        let Some(next) = writer.namespace_after(after).await? else { return Ok(None) };
        if let Some(corpus) = writer.corpus_writer(next).await? {
            return Ok(Some(corpus));
        }
        // Deleted between the two.
        after = Some(next);
    }
}
