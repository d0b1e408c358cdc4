//! What the query routes answer, as LightRAG's clients read it, with where each thing is from.
//!
//! **Invariant:** tenant and namespace of everything shown are those of its row, never those of the request,
//! so that a foreign row would show itself.

use std::collections::HashMap;

use serde::Serialize;
use uuid::Uuid;

use super::asking::Found;
use super::request::{Asked, Keywords};
use crate::retrieval::{Entity, Material, Metadata, Relation};

/// What joins several sources in one text.
const SEPARATOR: &str = "<SEP>";

/// A document that an answer is from.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub(crate) struct ReferenceBody {
    /// `1` for the most used.
    pub(crate) reference_id: String,
    /// The name by which the document is cited.
    pub(crate) file_path: String,
    /// Texts of its chunks, where they were asked for.
    content: Option<Vec<String>>,
    /// The tenant, as the row says.
    tenant_id: Uuid,
    /// The namespace, as the row says.
    namespace: String,
}

/// The references of an answer, most used first.
pub(crate) fn references(material: &Material, content: bool) -> Vec<ReferenceBody> {
    let body = |reference: &crate::retrieval::Reference| {
        let mut chunks = reference.chunks.iter().filter_map(|place| material.chunks.get(*place));
        let texts = content.then(|| chunks.clone().map(|chunk| chunk.row.text.clone()).collect());
        let first = chunks.next()?;
        Some(ReferenceBody {
            reference_id: reference.reference_id.clone(),
            file_path: reference.file_path.clone(),
            content: texts,
            tenant_id: first.row.tenant.0,
            namespace: first.row.namespace.clone(),
        })
    };
    material.references.iter().filter_map(body).collect()
}

/// An answer.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct QueryReply {
    /// The words, with `[n]` behind what reference n says.
    pub(super) response: String,
    /// Null when they were not asked for.
    pub(super) references: Option<Vec<ReferenceBody>>,
    /// Seconds.
    pub(super) response_time: f64,
    /// Whether a language model wrote it; otherwise it quotes the documents.
    pub(super) llm_generated: bool,
    /// How the material was found.
    pub(super) metadata: ReplyMetadata,
}

/// How the material was found, and the words.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ReplyMetadata {
    #[serde(flatten)]
    pub(super) found: MetadataBody,
    /// Whether a language model wrote the words for an earlier question, from the same material.
    pub(super) cached: bool,
}

/// How the material was found.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub(crate) struct MetadataBody {
    /// The corpus' history that the answer is from.
    corpus_seq: i64,
    /// The graph's history; null when none was used.
    graph_seq: Option<i64>,
    /// Where the graph was walked: `memory` or `neo4j`; null when none was used.
    graph: Option<&'static str>,
    /// `pgvector` when the database searched instead of the index, or beside it.
    fallback: Option<&'static str>,
    /// What was not as it should be.
    degraded: Vec<&'static str>,
}

impl From<&Metadata> for MetadataBody {
    fn from(metadata: &Metadata) -> Self {
        Self {
            corpus_seq: metadata.corpus_seq,
            graph_seq: metadata.graph_seq,
            graph: metadata.graph,
            fallback: metadata.fallback,
            degraded: metadata.degraded.clone(),
        }
    }
}

/// The material of an answer.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct QueryData {
    /// `success`.
    status: &'static str,
    /// For people.
    message: &'static str,
    /// The material, each list best first.
    data: DataBody,
    /// How it was found.
    metadata: DataMetadata,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct DataBody {
    entities: Vec<EntityBody>,
    relationships: Vec<RelationBody>,
    chunks: Vec<ChunkBody>,
    references: Vec<ReferenceBody>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct DataMetadata {
    /// The mode of the question.
    query_mode: &'static str,
    /// What was looked for by name.
    keywords: Keywords,
    /// How much was found and kept.
    processing_info: ProcessingInfo,
    #[serde(flatten)]
    found: MetadataBody,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ProcessingInfo {
    total_entities_found: usize,
    total_relations_found: usize,
    entities_after_truncation: usize,
    relations_after_truncation: usize,
    total_chunks_found: usize,
    merged_chunks_count: usize,
    final_chunks_count: usize,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ChunkBody {
    /// The document's reference.
    reference_id: String,
    /// The chunk's text.
    content: String,
    /// The name by which the document is cited.
    file_path: String,
    chunk_id: Uuid,
    document_id: String,
    document_version: i64,
    /// Comparable within one answer only.
    score: f32,
    /// From 1.
    rank: usize,
    /// The tenant, as the row says.
    tenant_id: Uuid,
    /// The namespace, as the row says.
    namespace: String,
}

/// Where an entity or relation is from.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct SourceBody {
    /// Chunks, joined by `<SEP>`.
    source_id: String,
    /// Names of the documents, joined by `<SEP>`.
    file_path: String,
    /// When the first document was accepted, seconds since 1970.
    created_at: i64,
    /// The documents.
    document_ids: Vec<String>,
    /// The tenant, as the rows say.
    tenant_id: Uuid,
    /// The namespace, as the rows say.
    namespace: String,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct EntityBody {
    entity_name: String,
    entity_type: String,
    /// A sentence that mentions it.
    description: String,
    #[serde(flatten)]
    source: SourceBody,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct RelationBody {
    src_id: String,
    tgt_id: String,
    /// A sentence that mentions both.
    description: String,
    keywords: String,
    weight: f32,
    #[serde(flatten)]
    source: SourceBody,
}

fn joined<T: ToString>(parts: impl IntoIterator<Item = T>) -> String {
    parts.into_iter().map(|part| part.to_string()).collect::<Vec<_>>().join(SEPARATOR)
}

impl SourceBody {
    fn new(sources: &crate::retrieval::entities::Sources, tenant: Uuid, namespace: &str) -> Self {
        Self {
            source_id: joined(&sources.chunks),
            file_path: joined(&sources.files),
            created_at: sources.created_at,
            document_ids: sources.documents.iter().cloned().collect(),
            tenant_id: tenant,
            namespace: namespace.to_owned(),
        }
    }
}

impl From<&Entity> for SourceBody {
    fn from(entity: &Entity) -> Self {
        Self::new(&entity.sources, entity.tenant.0, &entity.namespace)
    }
}

impl From<&Relation> for SourceBody {
    fn from(relation: &Relation) -> Self {
        Self::new(&relation.sources, relation.tenant.0, &relation.namespace)
    }
}

impl QueryData {
    /// The material that was found for a question.
    pub(super) fn new(asked: &Asked, found: &Found) -> Self {
        let material = &found.material;
        let by_place: HashMap<usize, &str> = material
            .references
            .iter()
            .flat_map(|reference| {
                reference.chunks.iter().map(|place| (*place, reference.reference_id.as_str()))
            })
            .collect();
        let chunks = material.chunks.iter().enumerate().map(|(place, chunk)| ChunkBody {
            reference_id: by_place.get(&place).copied().unwrap_or_default().to_owned(),
            content: chunk.row.text.clone(),
            file_path: chunk.row.file_name.clone(),
            chunk_id: chunk.row.chunk.0,
            document_id: chunk.row.document_id.clone(),
            document_version: chunk.row.version,
            score: chunk.score,
            rank: place + 1,
            tenant_id: chunk.row.tenant.0,
            namespace: chunk.row.namespace.clone(),
        });
        let entities = material.entities.iter().map(|entity| EntityBody {
            entity_name: entity.name.clone(),
            entity_type: entity.kind.clone(),
            description: entity.description.clone(),
            source: entity.into(),
        });
        let relationships = material.relations.iter().map(|relation| RelationBody {
            src_id: relation.source.clone(),
            tgt_id: relation.target.clone(),
            description: relation.description.clone(),
            keywords: String::new(),
            weight: relation.weight,
            source: relation.into(),
        });
        let count = material.chunks.len();
        let info = ProcessingInfo {
            total_entities_found: found.all_entities,
            total_relations_found: found.all_relations,
            entities_after_truncation: material.entities.len(),
            relations_after_truncation: material.relations.len(),
            total_chunks_found: count,
            merged_chunks_count: count,
            final_chunks_count: count,
        };
        Self {
            status: "success",
            message: "The material was found.",
            data: DataBody {
                entities: entities.collect(),
                relationships: relationships.collect(),
                chunks: chunks.collect(),
                references: references(material, false),
            },
            metadata: DataMetadata {
                query_mode: asked.question.mode.name(),
                keywords: asked.keywords.clone(),
                processing_info: info,
                found: MetadataBody::from(&material.metadata),
            },
        }
    }
}
