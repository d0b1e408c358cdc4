//! One qdrant-edge shard: points in, hits out, every call guarded against panics. All calls block.
//!
//! **Invariant:** a point's payload is its tag (tenant, namespace) and its version; no text.
//! **Invariant:** every search filters by the tag, though the shard holds one partition only.
//!
//! The caller sees to it that one writer at a time updates, flushes or optimizes: qdrant-edge's `flush`
//! panics when it meets another writer.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use qdrant_edge::{
    Condition, CreateIndex, Distance, EdgeConfig, EdgeOptimizersConfig, EdgeShard, EdgeSparseVectorParams,
    EdgeVectorParams, FieldCondition, FieldIndexOperations, Filter, HnswIndexConfig, JsonPath, Match,
    NamedQuery, Payload, PayloadFieldSchema, PayloadSchemaType, PointId, PointInsertOperations,
    PointOperations, PointStruct, QueryEnum, Record, ScrollRequest, SearchParams, SearchRequest,
    SparseVector, UpdateOperation, ValueVariants, Vector, VectorInternal, Vectors, WalOptions,
    WithPayloadInterface, WithVector,
};
use uuid::Uuid;

use super::fault::{Fault, guarded};
use super::layout::{folder_bytes, identity};
use super::settings::EdgeSettings;
use super::tags::{Tag, Tags};
use crate::domain::ids::{ChunkId, NamespaceId, TenantId};
use crate::store::partition::Partition;
use crate::store::vector::{Entries, Entry, Hit, Point, Terms};

pub(super) const DENSE: &str = "dense";
const TERMS: &str = "terms";
const TENANT: &str = "tenant";
const NAMESPACE: &str = "namespace";
const VERSION: &str = "version";
/// The folder of qdrant-edge's log inside a shard.
const LOG: &str = "wal";
/// Points in one update: one fits a segment of the log, and searches get their turn in between.
const SLICE: usize = 64;
const BYTES_PER_NUMBER: usize = 4;

/// An open shard.
#[derive(Debug)]
pub(super) struct Shard {
    /// `None` only while it is being dropped.
    edge: Option<EdgeShard>,
    path: PathBuf,
    /// Which folder was at the path when it was opened.
    folder: (u64, u64),
    dimension: usize,
    tags: Tags,
}

/// Waits for a log that its last holder in this process is just letting go: its lock lives a moment longer.
/// The whole folder is locked by this process, so nobody else can be meant.
fn load_patiently(path: &Path) -> Result<EdgeShard, Fault> {
    let mut tries = 0;
    loop {
        match guarded(|| EdgeShard::load(path, None)) {
            Err(fault) if tries < 40 && fault.to_string().contains("another process uses") => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            done => return done,
        }
    }
}

impl Shard {
    /// A new shard in an empty folder, for embeddings of this dimension.
    pub(super) fn create(path: &Path, dimension: usize, settings: &EdgeSettings) -> Result<Self, Fault> {
        let edge = guarded(|| EdgeShard::new(path, config(dimension, settings)))?;
        let (path, folder) = (path.to_owned(), folder(path)?);
        let shard = Self { edge: Some(edge), path, folder, dimension, tags: Tags::default() };
        for field in [TENANT, NAMESPACE] {
            let field_name = key(field)?;
            let field_schema = Some(PayloadFieldSchema::FieldType(PayloadSchemaType::Uuid));
            shard.update(UpdateOperation::FieldIndexOperation(FieldIndexOperations::CreateIndex(
                CreateIndex { field_name, field_schema },
            )))?;
        }
        Ok(shard)
    }

    /// A shard as its last flush left it: what came after is not in it, though it is in its log.
    pub(super) fn load(path: &Path, settings: &EdgeSettings) -> Result<Self, Fault> {
        let edge = load_patiently(path)?;
        let dimension = edge.config().vectors.get(DENSE).map(|params| params.size);
        let (path, folder) = (path.to_owned(), folder(path)?);
        let mut shard = Self { edge: Some(edge), path, folder, dimension: 0, tags: Tags::default() };
        shard.dimension = dimension.ok_or_else(|| Fault::Damaged("the shard has no dense vector".into()))?;
        let wanted = config(shard.dimension, settings).optimizers;
        if shard.edge()?.config().optimizers != wanted {
            let edge = shard.edge()?;
            guarded(|| edge.set_optimizers_config(wanted))?;
        }
        Ok(shard)
    }

    fn edge(&self) -> Result<&EdgeShard, Fault> {
        self.edge.as_ref().ok_or_else(|| Fault::Damaged("the shard is closed".into()))
    }

    /// Numbers in an embedding.
    pub(super) fn dimension(&self) -> usize {
        self.dimension
    }

    /// The shard's folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn update(&self, operation: UpdateOperation) -> Result<(), Fault> {
        let edge = self.edge()?;
        guarded(|| edge.update(operation))
    }

    /// Adds or replaces points, tagged with the partition.
    ///
    /// qdrant-edge answers Ok and does nothing when its log has lost its place, so what was written is looked up.
    pub(super) fn upsert(&self, tag: &Partition, points: &[Point]) -> Result<(), Fault> {
        for slice in points.chunks(SLICE) {
            let list = slice.iter().map(|point| to_edge(tag, point)).collect::<Result<_, _>>()?;
            let list = PointInsertOperations::PointsList(list);
            let written = self.update(UpdateOperation::PointOperation(PointOperations::UpsertPoints(list)));
            let chunks: Vec<ChunkId> = slice.iter().map(|point| point.chunk).collect();
            self.tags.forget(chunks.iter().copied());
            written?;
            let tags = self.read_tags(&chunks)?;
            let is_there =
                |point: &Point| tags.get(&point.chunk).map(|tag| tag.version) == Some(point.version);
            if !slice.iter().all(is_there) {
                return Err(Fault::Damaged("the shard ignores what is written to it".into()));
            }
        }
        Ok(())
    }

    /// Removes points; those that are not there are passed over.
    pub(super) fn delete(&self, chunks: &[ChunkId]) -> Result<(), Fault> {
        for slice in chunks.chunks(SLICE) {
            let ids = slice.iter().map(|chunk| PointId::Uuid(chunk.0)).collect();
            let deleted = self.update(UpdateOperation::PointOperation(PointOperations::DeletePoints { ids }));
            self.tags.forget(slice.iter().copied());
            deleted?;
            if !self.read_tags(slice)?.is_empty() {
                return Err(Fault::Damaged("the shard ignores what is deleted from it".into()));
            }
        }
        Ok(())
    }

    /// The tags of these points, as their payloads say; of those that are not there, none.
    fn read_tags(&self, chunks: &[ChunkId]) -> Result<HashMap<ChunkId, Tag>, Fault> {
        let ids: Vec<_> = chunks.iter().map(|chunk| PointId::Uuid(chunk.0)).collect();
        let payload = Some(WithPayloadInterface::Bool(true));
        let edge = self.edge()?;
        let records = guarded(|| edge.retrieve(&ids, payload, Some(WithVector::Bool(false))))?;
        let tags = records.into_iter().map(|record| {
            let PointId::Uuid(id) = record.id else { return None };
            Some((ChunkId(id), tag_of(record.payload.as_ref()?)?))
        });
        tags.collect::<Option<_>>().ok_or_else(|| Fault::Damaged("a point without a readable tag".into()))
    }

    /// The tags of these points, those that are kept and the others as their payloads say.
    fn tags(&self, chunks: &[ChunkId]) -> Result<HashMap<ChunkId, Tag>, Fault> {
        let (mut tags, ticket) = self.tags.of(chunks.iter().copied());
        let missing: Vec<ChunkId> =
            chunks.iter().filter(|chunk| !tags.contains_key(chunk)).copied().collect();
        if !missing.is_empty() {
            let read = self.read_tags(&missing)?;
            self.tags.keep(ticket, &read);
            tags.extend(read);
        }
        Ok(tags)
    }

    /// A page of every point, whatever its tag, ordered by chunk.
    pub(super) fn entries(&self, from: Option<ChunkId>, limit: usize) -> Result<Entries, Fault> {
        let request = ScrollRequest {
            offset: from.map(|chunk| PointId::Uuid(chunk.0)),
            limit: Some(limit),
            with_payload: Some(WithPayloadInterface::Bool(true)),
            with_vector: WithVector::Bool(false),
            ..Default::default()
        };
        let edge = self.edge()?;
        let (records, next) = guarded(|| edge.scroll(request))?;
        let tagless = || Fault::Damaged("a point without a readable tag".into());
        let list =
            records.iter().map(|record| entry(record).ok_or_else(tagless)).collect::<Result<_, _>>()?;
        let next = next.and_then(|id| if let PointId::Uuid(id) = id { Some(ChunkId(id)) } else { None });
        Ok(Entries { list, next })
    }

    /// The nearest by cosine, best first; equal ones by id.
    pub(super) fn nearest(
        &self,
        filter: Option<Filter>,
        embedding: Vec<f32>,
        limit: usize,
        settings: &EdgeSettings,
    ) -> Result<Vec<Hit>, Fault> {
        let query = QueryEnum::Nearest(NamedQuery::new(VectorInternal::Dense(embedding), DENSE));
        let params =
            SearchParams { hnsw_ef: Some(settings.hnsw_candidates.max(limit)), ..Default::default() };
        self.search(query, filter, Some(params), limit)
    }

    /// The best by the sum of products of term weights, best first; equal ones by id.
    pub(super) fn lexical(
        &self,
        filter: Option<Filter>,
        terms: Terms,
        limit: usize,
    ) -> Result<Vec<Hit>, Fault> {
        let terms = SparseVector::new(terms.indices, terms.values)
            .map_err(|error| Fault::Refused(format!("terms are not a sparse vector: {error}")))?;
        let query = QueryEnum::Nearest(NamedQuery::new(VectorInternal::Sparse(terms), TERMS));
        let mut hits = self.search(query, filter, None, limit)?;
        hits.retain(|hit| hit.score > 0.0);
        Ok(hits)
    }

    fn search(
        &self,
        query: QueryEnum,
        filter: Option<Filter>,
        params: Option<SearchParams>,
        limit: usize,
    ) -> Result<Vec<Hit>, Fault> {
        let request = SearchRequest {
            query,
            filter,
            params,
            limit,
            offset: 0,
            with_payload: None,
            with_vector: None,
            score_threshold: None,
        };
        let edge = self.edge()?;
        let found = guarded(|| edge.search(request))?.into_iter().map(|point| match point.id {
            PointId::Uuid(id) => Some((ChunkId(id), point.score)),
            PointId::NumId(_) => None,
        });
        let found: Option<Vec<(ChunkId, f32)>> = found.collect();
        let found = found.ok_or_else(|| Fault::Damaged("a point without a readable id".into()))?;
        let chunks: Vec<ChunkId> = found.iter().map(|(chunk, _)| *chunk).collect();
        let tags = self.tags(&chunks)?;
        // What was deleted since it was found has none.
        let hit = |(chunk, score)| {
            let Tag { tenant, namespace, version } = *tags.get(&chunk)?;
            Some(Hit { tenant, namespace, chunk, version, score })
        };
        let mut hits: Vec<Hit> = found.into_iter().filter_map(hit).collect();
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk)));
        Ok(hits)
    }

    /// Makes durable what was written: at its path, which may have been given to another folder meanwhile.
    pub(super) fn flush(&self) -> Result<(), Fault> {
        if folder(&self.path)? != self.folder {
            return Err(Fault::Damaged("another folder was put in the place of the vector shard's".into()));
        }
        let edge = self.edge()?;
        guarded(|| {
            edge.flush();
            Ok(())
        })
    }

    /// Builds the HNSW graph when enough points are outside of it. Seconds for each ten thousand points.
    pub(super) fn optimize(&self, settings: &EdgeSettings) -> Result<bool, Fault> {
        let edge = self.edge()?;
        let info = guarded(|| Ok(edge.info()))?;
        // Sparse vectors always count as indexed, so what is above the number of points is in the graph.
        let inside = info.indexed_vectors_count.saturating_sub(info.points_count);
        let outside = info.points_count.saturating_sub(inside);
        // In proportion to the graph, since joining points to it builds it anew.
        if outside <= settings.hnsw_from_points.max(inside / 4) {
            return Ok(false);
        }
        guarded(|| edge.optimize())
    }

    /// Points in the shard, about.
    pub(super) fn points(&self) -> Result<usize, Fault> {
        let edge = self.edge()?;
        guarded(|| Ok(edge.info().points_count))
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        let edge = self.edge.take();
        // Dropping flushes, and panics where flushing fails; what counts as durable the watermark says.
        if let Err(fault) = guarded(|| {
            drop(edge);
            Ok(())
        }) {
            tracing::warn!(path = %self.path.display(), %fault, "a vector shard closed without flushing");
        }
    }
}

/// Which folder is at a path.
fn folder(path: &Path) -> Result<(u64, u64), Fault> {
    identity(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Fault::Damaged("the folder of the vector shard is gone".into()),
        _ => Fault::from_io("looking at the folder of a vector shard", &error),
    })
}

/// Bytes of the log of the shard in this folder.
pub(super) fn log_bytes(path: &Path) -> u64 {
    folder_bytes(&path.join(LOG))
}

/// Deletes the finished segments of a closed shard's log, but for the newest, which keeps its place:
/// without it numbering starts anew and every write would be ignored as older than what is there.
///
/// qdrant-edge never reads them again (a shard is as its last flush left it) and never deletes them.
pub(super) fn cut_log(path: &Path) -> std::io::Result<()> {
    let mut finished = Vec::new();
    for entry in fs::read_dir(path.join(LOG))? {
        let entry = entry?;
        let name = entry.file_name();
        let start = name.to_str().and_then(|name| name.strip_prefix("closed-")?.parse::<u64>().ok());
        finished.extend(start.map(|start| (start, entry.path())));
    }
    finished.sort_unstable();
    finished.pop();
    // Oldest first: a gap in the middle would make the log unreadable.
    finished.iter().try_for_each(|(_, path)| fs::remove_file(path))
}

/// Only points of this partition.
pub(super) fn only(partition: &Partition) -> Result<Filter, Fault> {
    let field = |name, id: Uuid| {
        let value = Match::new_value(ValueVariants::String(id.to_string()));
        Ok::<_, Fault>(Condition::Field(FieldCondition::new_match(key(name)?, value)))
    };
    let must = vec![field(TENANT, partition.tenant().0)?, field(NAMESPACE, partition.namespace().0)?];
    Ok(Filter { should: None, min_should: None, must: Some(must), must_not: None })
}

fn key(name: &str) -> Result<JsonPath, Fault> {
    name.parse().map_err(|()| Fault::Damaged("not the name of a payload field".into()))
}

fn to_edge(tag: &Partition, point: &Point) -> Result<qdrant_edge::PointStructPersisted, Fault> {
    let terms = Vector::new_sparse(point.terms.indices.clone(), point.terms.values.clone())
        .map_err(|error| Fault::Refused(format!("terms are not a sparse vector: {error}")))?;
    let vectors = Vectors::new_named([(DENSE, Vector::new_dense(point.embedding.clone())), (TERMS, terms)]);
    let payload = serde_json::json!({
        TENANT: tag.tenant().0, NAMESPACE: tag.namespace().0, VERSION: point.version,
    });
    Ok(PointStruct::new(PointId::Uuid(point.chunk.0), vectors, payload).0)
}

fn tag_of(payload: &Payload) -> Option<Tag> {
    let id = |field: &str| Uuid::parse_str(payload.0.get(field)?.as_str()?).ok();
    Some(Tag {
        tenant: TenantId(id(TENANT)?),
        namespace: NamespaceId(id(NAMESPACE)?),
        version: payload.0.get(VERSION)?.as_i64()?,
    })
}

fn entry(record: &Record) -> Option<Entry> {
    let PointId::Uuid(chunk) = record.id else { return None };
    let payload = &record.payload.as_ref()?.0;
    let id = |field: &str| Uuid::parse_str(payload.get(field)?.as_str()?).ok();
    Some(Entry {
        tenant: TenantId(id(TENANT)?),
        namespace: NamespaceId(id(NAMESPACE)?),
        chunk: ChunkId(chunk),
        version: payload.get(VERSION)?.as_i64()?,
    })
}

pub(super) fn config(dimension: usize, settings: &EdgeSettings) -> EdgeConfig {
    // What is read stays in memory all the same. Otherwise each shard has 32 MB of empty pages filled in when it opens.
    let dense = EdgeVectorParams::builder(dimension, Distance::Cosine).on_disk(true).build();
    // Full scans begin at no size: the inverted index is the faster way, and the only one tested.
    let terms = EdgeSparseVectorParams { full_scan_threshold: Some(0), ..Default::default() };
    let kilobytes = settings.hnsw_from_points.saturating_mul(dimension * BYTES_PER_NUMBER) / 1024;
    EdgeConfig {
        // Likewise.
        on_disk_payload: true,
        vectors: HashMap::from([(DENSE.to_owned(), dense)]),
        sparse_vectors: HashMap::from([(TERMS.to_owned(), terms)]),
        hnsw_config: HnswIndexConfig {
            m: 16,
            ef_construct: 128,
            full_scan_threshold: kilobytes.max(1),
            // Half of the machine: building a graph takes long, and others are being served meanwhile.
            max_indexing_threads: std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2)),
            on_disk: None,
            // No links of its own for each payload value: every point has the same.
            payload_m: Some(0),
            inline_storage: None,
        },
        quantization_config: None,
        optimizers: EdgeOptimizersConfig {
            // 0 would mean never.
            indexing_threshold: Some(kilobytes.max(1)),
            default_segment_number: Some(1),
            ..Default::default()
        },
        wal_options: Some(WalOptions { segment_capacity: settings.log_segment_bytes, ..Default::default() }),
    }
}
