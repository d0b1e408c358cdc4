//! How partitions, points and filters look in Qdrant.
//!
//! A collection holds, of each of its namespaces, the points of one or more *generations*, a *head* that says which
//! of them is served and how far it has come, and *marks* where points were deleted.
//!
//! A point's id is its chunk's. So that two generations of a chunk can be there at once, the lowest three of the four
//! bits that a UUID keeps for its version are mixed with the generation's number; the fourth one is set in a head's
//! id, which is its namespace's. Chunks keep their order.
//!
//! **Invariant:** a payload is tag (tenant, namespace), version and stamp (generation, seq); no text.
//! **Invariant:** what is written replaces only what has an earlier stamp, so that nothing late undoes what came after.

use std::collections::{BTreeSet, HashMap};

use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::value::Kind as ValueKind;
use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::{
    Condition, DenseVector, Filter, NamedVectors, PointId, PointStruct, Range, SparseVector, Value, Vector,
    Vectors, vector,
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::domain::Seq;
use crate::domain::ids::{ChunkId, NamespaceId, TenantId};
use crate::store::partition::Partition;
use crate::store::placement::Placement;
use crate::store::vector::{Entry, Hit, Point};

pub(super) const DENSE: &str = "dense";
pub(super) const TERMS: &str = "terms";
pub(super) const TENANT: &str = "tenant";
pub(super) const NAMESPACE: &str = "namespace";
pub(super) const GENERATION: &str = "generation";
/// `head` or `gone`; a point that can be found has none.
pub(super) const KIND: &str = "kind";
const VERSION: &str = "version";
const SEQ: &str = "seq";
const AT: &str = "at";
const HEAD: &str = "head";
const GONE: &str = "gone";

/// Where the four bits begin that a UUID keeps for its version.
const VERSION_BITS: u32 = 76;
/// How many generations have ids of their own.
const GENERATIONS: i64 = 8;

/// A payload as it is sent.
pub(super) type Payload = HashMap<String, Value>;

/// When something was written: ordered by generation, then by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    pub(super) generation: i64,
    pub(super) seq: Seq,
}

/// What is served of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) stamp: Stamp,
    /// Since when this generation is served, seconds of Unix time.
    pub(super) at: i64,
}

/// Whether two generations would share their ids.
pub(super) fn share_ids(one: i64, other: i64) -> bool {
    one.rem_euclid(GENERATIONS) == other.rem_euclid(GENERATIONS)
}

fn mixed(id: Uuid, bits: u128) -> Uuid {
    Uuid::from_u128(id.as_u128() ^ (bits << VERSION_BITS))
}

fn bits(generation: i64) -> u128 {
    // Below 8, so nothing is lost.
    u128::from(generation.rem_euclid(GENERATIONS).unsigned_abs())
}

/// The id of a chunk's point in a generation.
pub(super) fn point_id(chunk: ChunkId, generation: i64) -> PointId {
    PointId::from(mixed(chunk.0, bits(generation)).to_string())
}

/// The chunk of a point's id in a generation.
pub(super) fn chunk_of(id: Option<&PointId>, generation: i64) -> Option<ChunkId> {
    match &id?.point_id_options {
        Some(PointIdOptions::Uuid(id)) => Some(ChunkId(mixed(Uuid::parse_str(id).ok()?, bits(generation)))),
        _ => None,
    }
}

/// The id of a namespace's head. Where tenants share a collection it is a hash of the tenant too, so that one tenant's
/// head is never in another's place, whatever their namespaces are called.
pub(super) fn head_id(partition: &Partition, placement: Placement) -> PointId {
    let namespace = partition.namespace().0;
    let id = match placement {
        Placement::Own => namespace,
        Placement::Shared => {
            let mut hash = Sha256::new();
            hash.update(partition.tenant().0.as_bytes());
            hash.update(namespace.as_bytes());
            let digest: [u8; 32] = hash.finalize().into();
            let (bytes, _) = digest.split_at(16);
            let number = bytes.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
            // As if it had been made of a UUID of version 7.
            uuid::Builder::from_u128(number).with_version(uuid::Version::SortRand).into_uuid()
        }
    };
    PointId::from(mixed(id, 1 << 3).to_string())
}

fn tag(partition: &Partition, stamp: Stamp) -> Payload {
    Payload::from([
        (TENANT.to_owned(), Value::from(partition.tenant().to_string())),
        (NAMESPACE.to_owned(), Value::from(partition.namespace().to_string())),
        (GENERATION.to_owned(), Value::from(stamp.generation)),
        (SEQ.to_owned(), Value::from(stamp.seq.0)),
    ])
}

/// A point, tagged with its partition.
pub(super) fn point(partition: &Partition, point: &Point, stamp: Stamp) -> PointStruct {
    let dense = vector::Vector::Dense(DenseVector { data: point.embedding.clone() });
    let terms = vector::Vector::Sparse(SparseVector {
        values: point.terms.values.clone(),
        indices: point.terms.indices.clone(),
    });
    let named = |vector| Vector { vector: Some(vector), ..Vector::default() };
    let vectors = HashMap::from([(DENSE.to_owned(), named(dense)), (TERMS.to_owned(), named(terms))]);
    let mut payload = tag(partition, stamp);
    payload.insert(VERSION.to_owned(), Value::from(point.version));
    PointStruct { id: Some(point_id(point.chunk, stamp.generation)), payload, vectors: Some(only(vectors)) }
}

/// A point without vectors, which no search finds.
fn bare(id: PointId, payload: Payload) -> PointStruct {
    PointStruct { id: Some(id), payload, vectors: Some(only(HashMap::new())) }
}

fn only(vectors: HashMap<String, Vector>) -> Vectors {
    Vectors { vectors_options: Some(VectorsOptions::Vectors(NamedVectors { vectors })) }
}

/// The mark of a deleted point. It stands in the way of an upsert that is late.
pub(super) fn gone(partition: &Partition, chunk: ChunkId, stamp: Stamp, at: i64) -> PointStruct {
    let mut payload = tag(partition, stamp);
    payload.insert(KIND.to_owned(), Value::from(GONE));
    payload.insert(AT.to_owned(), Value::from(at));
    bare(point_id(chunk, stamp.generation), payload)
}

/// A head, or the mark of one that is no more.
pub(super) fn head(partition: &Partition, placement: Placement, head: Head, is_served: bool) -> PointStruct {
    let mut payload = tag(partition, head.stamp);
    payload.insert(KIND.to_owned(), Value::from(if is_served { HEAD } else { GONE }));
    payload.insert(AT.to_owned(), Value::from(head.at));
    bare(head_id(partition, placement), payload)
}

fn text<'a>(payload: &'a Payload, field: &str) -> Option<&'a str> {
    match &payload.get(field)?.kind {
        Some(ValueKind::StringValue(text)) => Some(text),
        _ => None,
    }
}

fn number(payload: &Payload, field: &str) -> Option<i64> {
    match payload.get(field)?.kind {
        Some(ValueKind::IntegerValue(number)) => Some(number),
        _ => None,
    }
}

fn id(payload: &Payload, field: &str) -> Option<Uuid> {
    Uuid::parse_str(text(payload, field)?).ok()
}

/// What was read is no head, or another partition's.
#[derive(Debug)]
pub(super) struct NotItsHead;

/// A partition's head; `None` when there is none any more.
pub(super) fn head_of(partition: &Partition, payload: &Payload) -> Result<Option<Head>, NotItsHead> {
    let (namespace, head) = read_head(payload).ok_or(NotItsHead)?;
    let tenant = id(payload, TENANT).map(TenantId);
    let is_its = (tenant, namespace) == (Some(partition.tenant()), partition.namespace());
    if is_its { Ok(head) } else { Err(NotItsHead) }
}

/// A head's content, and its namespace; the inner is `None` when there is no head any more.
pub(super) fn read_head(payload: &Payload) -> Option<(NamespaceId, Option<Head>)> {
    let stamp = Stamp { generation: number(payload, GENERATION)?, seq: Seq(number(payload, SEQ)?) };
    let head = Head { stamp, at: number(payload, AT)? };
    let namespace = NamespaceId(id(payload, NAMESPACE)?);
    match text(payload, KIND)? {
        HEAD => Some((namespace, Some(head))),
        GONE => Some((namespace, None)),
        _ => None,
    }
}

/// When the index was taken away whose head this was, seconds of Unix time; `None` when it is none of those.
pub(super) fn ended_at(payload: &Payload) -> Option<i64> {
    (text(payload, KIND)? == GONE).then(|| number(payload, AT)).flatten()
}

/// The namespace that a point was written for.
pub(super) fn namespace_of(payload: &Payload) -> Option<NamespaceId> {
    Some(NamespaceId(id(payload, NAMESPACE)?))
}

/// The tag of a point that is listed; its own generation tells which chunk it is of.
pub(super) fn read_entry(point: Option<&PointId>, payload: &Payload) -> Option<Entry> {
    Some(Entry {
        tenant: TenantId(id(payload, TENANT)?),
        namespace: NamespaceId(id(payload, NAMESPACE)?),
        chunk: chunk_of(point, number(payload, GENERATION)?)?,
        version: number(payload, VERSION)?,
    })
}

/// A found point, tagged as its payload says.
pub(super) fn read_hit(point: Option<&PointId>, payload: &Payload, score: f32) -> Option<Hit> {
    let Entry { tenant, namespace, chunk, version } = read_entry(point, payload)?;
    Some(Hit { tenant, namespace, chunk, version, score })
}

fn field(name: &str, id: Uuid) -> Condition {
    Condition::matches(name, id.to_string())
}

/// Everything that was written for this partition's namespace.
pub(super) fn of_namespace(partition: &Partition) -> Vec<Condition> {
    vec![field(TENANT, partition.tenant().0), field(NAMESPACE, partition.namespace().0)]
}

/// Only points of this partition, of one generation.
pub(super) fn served(partition: &Partition, generation: i64) -> Filter {
    let mut must = of_namespace(partition);
    must.push(Condition::matches(GENERATION, generation));
    Filter::must(must)
}

/// What a partition's listing shows: its own points, and in a collection of one tenant whatever was written for another.
pub(super) fn listed(partition: &Partition, placement: Placement, generation: i64) -> Filter {
    let mut should = vec![served(partition, generation).into()];
    if placement == Placement::Own {
        should.push(foreign(partition).into());
    }
    Filter { should, must: vec![Condition::is_empty(KIND)], ..Filter::default() }
}

/// Whatever was written for another tenant than the one whose own a collection is.
pub(super) fn foreign(partition: &Partition) -> Filter {
    Filter::must_not([field(TENANT, partition.tenant().0)])
}

/// Points of generations of this partition before this one.
pub(super) fn before(partition: &Partition, generation: i64) -> Filter {
    let mut must = of_namespace(partition);
    must.push(below(GENERATION, generation));
    Filter::must(must)
}

/// Points of generations of this partition after this one.
pub(super) fn after(partition: &Partition, generation: i64) -> Filter {
    let mut must = of_namespace(partition);
    must.push(above(GENERATION, generation));
    Filter::must(must)
}

/// Everything of this partition, heads and marks too.
pub(super) fn everything(partition: &Partition) -> Filter {
    Filter::must(of_namespace(partition))
}

/// Whatever is there of the partition's tenant and of none of these namespaces.
pub(super) fn strays(any: &Partition, known: &BTreeSet<NamespaceId>) -> Filter {
    Filter {
        must: vec![field(TENANT, any.tenant().0)],
        must_not: known.iter().map(|namespace| field(NAMESPACE, namespace.0)).collect(),
        ..Filter::default()
    }
}

/// The same without marks.
pub(super) fn drafts(any: &Partition, known: &BTreeSet<NamespaceId>) -> Filter {
    let mut strays = strays(any, known);
    strays.must_not.push(Condition::matches(KIND, GONE.to_owned()));
    strays
}

/// Marks that were set before a time, of this partition.
pub(super) fn gone_before(partition: &Partition, at: i64) -> Filter {
    let mut must = of_namespace(partition);
    must.push(Condition::matches(KIND, GONE.to_owned()));
    must.push(below(AT, at));
    Filter::must(must)
}

/// Marks that were set before a time, of this tenant.
pub(super) fn of_tenant_gone_before(tenant: TenantId, at: i64) -> Filter {
    Filter::must([field(TENANT, tenant.0), Condition::matches(KIND, GONE.to_owned()), below(AT, at)])
}

/// Every head of a tenant in a collection.
pub(super) fn heads(tenant: TenantId) -> Filter {
    Filter::must([field(TENANT, tenant.0), Condition::matches(KIND, HEAD.to_owned())])
}

/// Everything of a tenant in a collection.
pub(super) fn of_tenant(tenant: TenantId) -> Filter {
    Filter::must([field(TENANT, tenant.0)])
}

/// Everything of a tenant in a collection that is of generations before this one, but marks.
pub(super) fn of_tenant_before(tenant: TenantId, generation: i64) -> Filter {
    Filter {
        must: vec![field(TENANT, tenant.0), below(GENERATION, generation)],
        must_not: vec![Condition::matches(KIND, GONE.to_owned())],
        ..Filter::default()
    }
}

/// What may be replaced by what has this stamp: nothing that is tagged with another partition.
pub(super) fn earlier(partition: &Partition, stamp: Stamp) -> Filter {
    let same = Filter::must([Condition::matches(GENERATION, stamp.generation), below(SEQ, stamp.seq.0)]);
    let mut must = of_namespace(partition);
    must.push(Filter::should([below(GENERATION, stamp.generation), same.into()]).into());
    Filter::must(must)
}

#[expect(clippy::cast_precision_loss, reason = "positions, generations and seconds are far below 2^52")]
fn below(name: &str, number: i64) -> Condition {
    Condition::range(name, Range { lt: Some(number as f64), ..Range::default() })
}

#[expect(clippy::cast_precision_loss, reason = "generations are far below 2^52")]
fn above(name: &str, number: i64) -> Condition {
    Condition::range(name, Range { gt: Some(number as f64), ..Range::default() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::ids::ModelId;

    fn version_7(bits: u128) -> Uuid {
        uuid::Builder::from_u128(bits).with_version(uuid::Version::SortRand).into_uuid()
    }

    proptest! {
        #[test]
        fn an_id_leads_back_to_its_chunk_and_keeps_the_order(
            one in any::<u128>(), other in any::<u128>(), generation in 0_i64..1_000_000,
        ) {
            let (one, other) = (ChunkId(version_7(one)), ChunkId(version_7(other)));
            let raw = |chunk| mixed(ChunkId::clone(chunk).0, bits(generation));
            prop_assert_eq!(chunk_of(Some(&point_id(one, generation)), generation), Some(one));
            prop_assert_eq!(raw(&one).cmp(&raw(&other)), one.cmp(&other));
        }

        #[test]
        fn ids_of_generations_beside_each_other_differ_and_none_is_a_heads(
            bits in any::<u128>(), generation in 0_i64..1_000_000, apart in 1_i64..8,
        ) {
            let id = version_7(bits);
            let point = point_id(ChunkId(id), generation);
            prop_assert_ne!(&point, &point_id(ChunkId(id), generation + apart));
            prop_assert!(!share_ids(generation, generation + apart));
            for placement in [Placement::Own, Placement::Shared] {
                let of = |tenant: u128| {
                    let model = ModelId::parse("00112233445566ff").expect("a model");
                    Partition::new(TenantId(Uuid::from_u128(tenant)), NamespaceId(id), model)
                };
                prop_assert_ne!(&point, &head_id(&of(1), placement));
                let is_same = head_id(&of(1), placement) == head_id(&of(2), placement);
                prop_assert_eq!(is_same, placement == Placement::Own, "tenants share no collection of one's own");
            }
        }
    }
}
