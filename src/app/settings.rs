//! All settings of a server, section by section.

mod graph;
mod vectors;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use graph::{GraphBackend, GraphSettings};
pub use vectors::{VectorBackend, VectorIndexSettings};

use crate::config::Validate;
use crate::domain::lexical::LexicalSettings;
use crate::http::HttpSettings;
use crate::inference::{EmbeddingSettings, LanguageModelSettings};
use crate::jobs::orphans::OrphanSettings;
use crate::jobs::projector::ProjectorSettings;
use crate::jobs::worker::IngestionSettings;
use crate::pipeline::parse::ParseLimits;
use crate::retrieval::RetrievalSettings;
use crate::store::audit::AuditSettings;
use crate::store::cache::{CacheBackend, CacheSettings};
use crate::store::postgres::PoolSettings;
use crate::store::postgres::address::PoolerSettings;
use crate::store::postgres::partitions::VectorSettings;
use crate::store::postgres::replica::ReplicaSettings;
use crate::store::postgres::server::ServerSettings;
use crate::store::redis::RedisSettings;
use crate::telemetry::TelemetrySettings;
use crate::tenancy::{AuthSettings, LimitBackend, LimitSettings};

/// All settings. The defaults and their meaning are in `config/default.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where uploaded files are kept; none: in the data folder. Several servers share it.
    pub uploads_dir: Option<PathBuf>,
    /// The program whose children read documents; none: the one that runs. Not configured: it is for tests,
    /// which run the server inside of another program.
    #[serde(skip)]
    pub program: Option<PathBuf>,
    /// This server's name among others over the same stores.
    pub node: String,
    /// `[telemetry]`
    pub telemetry: TelemetrySettings,
    /// `[http]`
    pub http: HttpSettings,
    /// `[auth]`
    pub auth: AuthSettings,
    /// `[limits]`
    pub limits: LimitSettings,
    /// `[database]`
    pub database: DatabaseSettings,
    /// `[embedding]`
    pub embedding: EmbeddingSettings,
    /// `[language_model]`
    pub language_model: LanguageModelSettings,
    /// `[ingestion]`
    pub ingestion: IngestionSettings,
    /// `[parse]`
    pub parse: ParseLimits,
    /// `[lexical]`
    pub lexical: LexicalSettings,
    /// `[vectors]`
    pub vectors: VectorIndexSettings,
    /// `[projection]`
    pub projection: ProjectorSettings,
    /// `[orphans]`
    pub orphans: OrphanSettings,
    /// `[retrieval]`
    pub retrieval: RetrievalSettings,
    /// `[audit]`
    pub audit: AuditSettings,
    /// `[graph]`
    pub graph: GraphSettings,
    /// `[cache]`
    pub cache: CacheSettings,
    /// `[redis]`, for what is set to be there.
    pub redis: RedisSettings,
}

/// The database: a private one, or one that is there already.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseSettings {
    /// An administrator's address; empty: a private PostgreSQL is started.
    pub url: String,
    /// A file that holds the address.
    pub url_file: Option<PathBuf>,
    /// The database that is made in it.
    pub name: String,
    /// The private one's programs.
    pub install: PathBuf,
    /// `[database.pooler]`
    pub pooler: PoolerSettings,
    /// `[database.replica]`
    pub replica: ReplicaSettings,
    /// `[database.pools]`
    pub pools: PoolSettings,
    /// `[database.vectors]`
    pub vectors: VectorSettings,
    /// `[database.server]`, of the private one.
    pub server: ServerSettings,
}

impl DatabaseSettings {
    /// The administrator's address, if one is given.
    ///
    /// # Errors
    /// Says that the file cannot be read.
    pub fn administrator(&self) -> Result<Option<String>, std::io::Error> {
        let url = match &self.url_file {
            Some(file) => std::fs::read_to_string(file)?.trim().to_owned(),
            None => self.url.clone(),
        };
        Ok(Some(url).filter(|url| !url.is_empty()))
    }
}

impl DatabaseSettings {
    /// All faults, as sentences for the person who wrote the configuration.
    fn validate(&self) -> Vec<String> {
        let mut faults = self.vectors.faults();
        let private = self.url.is_empty() && self.url_file.is_none();
        faults.extend(self.replica.calls.validate("database.replica.calls"));
        for (setting, address) in
            [("database.pooler.url", self.pooler.address()), ("database.replica.url", self.replica.address())]
        {
            match address {
                Ok(Some(_)) if private => {
                    faults.push(format!("{setting}: needs database.url; a private database is alone"));
                }
                Ok(_) => {}
                Err(rule) => faults.push(format!("{setting}: {rule}")),
            }
        }
        if self.name.is_empty() {
            faults.push("database.name: must not be empty".to_owned());
        }
        faults
    }
}

impl Settings {
    /// Where uploaded files are kept, of a server over this data folder.
    pub(super) fn uploads_in(&self, data_dir: &Path) -> PathBuf {
        self.uploads_dir.clone().unwrap_or_else(|| data_dir.join("uploads"))
    }
}

impl Validate for Settings {
    fn faults(&self) -> Vec<String> {
        let mut faults = self.auth.validate();
        faults.extend(self.database.validate());
        faults.extend(self.vectors.faults());
        faults.extend(self.graph.faults());
        faults.extend(self.http.validate());
        faults.extend(self.limits.validate());
        faults.extend(self.telemetry.validate());
        faults.extend(self.audit.validate());
        faults.extend(self.cache.validate());
        if self.limits.backend == LimitBackend::Redis || self.cache.backend == CacheBackend::Redis {
            faults.extend(self.redis.validate());
        }
        let mut require = |holds: bool, fault: &str| {
            if !holds {
                faults.push(fault.to_owned());
            }
        };
        let node = self.node.as_str();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        require(
            !node.is_empty() && node.len() <= 63 && node.chars().all(plain),
            "node: 1 to 63 of A-Z a-z 0-9 - _",
        );
        require(self.embedding.max_tokens >= 16, "embedding.max_tokens: at least 16");
        require((1..=64).contains(&self.embedding.batch), "embedding.batch: 1 to 64");
        require(self.ingestion.workers >= 1, "ingestion.workers: at least 1");
        require((5..=600).contains(&self.ingestion.lease_seconds), "ingestion.lease_seconds: 5 to 600");
        require(self.ingestion.max_attempts >= 1, "ingestion.max_attempts: at least 1");
        require(self.ingestion.tenant_parsers >= 1, "ingestion.tenant_parsers: at least 1");
        require(self.orphans.every_seconds >= 1, "orphans.every_seconds: at least 1");
        require((1..=10_000).contains(&self.retrieval.candidates), "retrieval.candidates: 1 to 10000");
        require((1..=1000).contains(&self.retrieval.top_k), "retrieval.top_k: 1 to 1000");
        require((1..=1000).contains(&self.retrieval.chunk_top_k), "retrieval.chunk_top_k: 1 to 1000");
        require(self.lexical.average_length > 0.0, "lexical.average_length: more than 0");
        require((0.0..=1.0).contains(&self.retrieval.fusion.dense), "retrieval.fusion.dense: 0 to 1");
        let pools = &self.database.pools;
        let positive: [(&str, bool); 13] = [
            ("database.pools.query_connections", pools.query_connections > 0),
            ("database.pools.ingest_connections", pools.ingest_connections > 0),
            ("database.pools.tenant_query_connections", pools.tenant_query_connections > 0),
            ("database.pools.tenant_ingest_connections", pools.tenant_ingest_connections > 0),
            ("vectors.max_open", self.vectors.max_open > 0),
            ("vectors.idle_seconds", self.vectors.idle_seconds > 0),
            ("vectors.max_searches", self.vectors.max_searches > 0),
            ("vectors.max_writes", self.vectors.max_writes > 0),
            ("projection.concurrent", self.projection.concurrent > 0),
            ("projection.page", self.projection.page > 0),
            ("ingestion.batch_documents", self.ingestion.batch_documents > 0),
            ("ingestion.progress_chunks", self.ingestion.progress_chunks > 0),
            ("retrieval.quoted_sentences", self.retrieval.quoted_sentences > 0),
        ];
        for (name, holds) in positive {
            require(holds, &format!("{name}: at least 1"));
        }
        faults
    }
}
