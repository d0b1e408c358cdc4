//! What every graph does: the one in memory, and one of which Neo4j holds all and a question fetches a part.

use std::collections::{BTreeMap, HashMap};

use bulkhead::domain::Seq;
use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{ChunkId, ModelId, NamespaceId, SystemIds, TenantId};
use bulkhead::domain::names::{NameHasher, NameKey, names, title_key};
use bulkhead::domain::words::sentences;
use bulkhead::retrieval::graph::{
    EntityHit, Graph, GraphChunk, Known, Neighbourhood, RelationHit, WalkSettings,
};
use bulkhead::store::Partition;
use bulkhead::store::graph::{GraphIndex, WholeGraph, bring};
use bulkhead::store::neo4j::Neo4jGraph;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use uuid::Uuid;

use crate::Test;
use crate::limits::id;
use crate::neo4j_server::{index, shared};

/// The partition of a tenant that is nobody else's.
pub fn partition() -> Partition {
    let model = ModelId::parse("00112233445566ff").expect("a model");
    Partition::for_laboratory(TenantId(id()), NamespaceId(id()), model)
}

/// The key's maker of a partition.
pub fn hasher(partition: &Partition) -> NameHasher {
    NameHasher::new(partition.namespace().0.as_bytes())
}

/// A chunk's id.
pub fn chunk_id(n: u128) -> ChunkId {
    ChunkId(Uuid::from_u128(n))
}

/// A chunk whose mentions are found as ingestion finds them and whose embedding leans to `toward`.
fn chunk(partition: &Partition, n: u128, title: &str, text: &str, toward: usize) -> GraphChunk {
    let hasher = hasher(partition);
    let mut found: Vec<NameKey> = sentences(text).flat_map(names).map(|name| hasher.key(&name.key)).collect();
    found.push(hasher.key(&title_key(title)));
    let mut embedding = vec![0.1_f32; 8];
    embedding[toward % 8] = 1.0;
    let norm = embedding.iter().map(|x| x * x).sum::<f32>().sqrt();
    GraphChunk {
        chunk: chunk_id(n),
        document: format!("document {title}"),
        title: Some(title.to_owned()),
        heading: None,
        text: text.to_owned(),
        names: found,
        concepts: text
            .split(' ')
            .filter(|word| word.ends_with("ship"))
            .map(|word| hasher.key(word))
            .collect(),
        embedding: embedding.into_iter().map(|x| x / norm).collect(),
    }
}

/// Five documents, of which the first names the second, and that the third; the last two share a rare name.
pub fn fleet(partition: &Partition) -> Vec<GraphChunk> {
    let chunk = |n, title, text, toward| chunk(partition, n, title, text, toward);
    vec![
        chunk(1, "Tern", "The Tern was built by Halvorsen Yard for the northern route.", 0),
        chunk(2, "Halvorsen Yard", "Halvorsen Yard stands in Port Anselm and employs ninety.", 1),
        chunk(3, "Port Anselm", "Port Anselm is a harbour on the east coast.", 2),
        chunk(4, "Gull", "The Gull was repaired by Mara Okonjo in spring.", 3),
        chunk(5, "Winter log", "In winter Mara Okonjo wrote the log of another ship.", 4),
    ]
}

/// What leads to a question's answer.
type Asked<'q> = (&'q str, &'q [(ChunkId, f32)]);

/// A graph somewhere, which follows one in memory.
pub struct Place {
    /// Whose graph it is.
    pub partition: Partition,
    /// Where it is; in memory without one.
    pub index: Option<Neo4jGraph>,
    /// The graph in memory.
    pub graph: Graph,
    embeddings: HashMap<ChunkId, Vec<f32>>,
}

impl Place {
    fn new(index: Option<Neo4jGraph>) -> Self {
        let partition = partition();
        let graph = Graph::build(Seq(0), hasher(&partition), []);
        Self { partition, index, graph, embeddings: HashMap::new() }
    }

    /// Changes it.
    pub async fn change(&mut self, added: Vec<GraphChunk>, removed: &[ChunkId]) {
        self.embeddings.extend(added.iter().map(|chunk| (chunk.chunk, chunk.embedding.clone())));
        let seq = Seq(self.graph.seq().0 + 1);
        self.graph = self.graph.apply(seq, added, removed);
        if let Some(index) = &self.index {
            let ids = SystemIds(SystemClock);
            let head = index.begin(&self.partition, id()).await.expect("a head");
            let whole = WholeGraph { seq, chunks: self.graph.linked().collect() };
            // Two chunks at a time, so that a change is several transactions.
            bring(index, &self.partition, head, &whole, (2, &ids)).await.expect("brought");
        }
    }

    /// What a question finds, asked as often as it takes.
    pub async fn ask<T>(&self, question: impl Fn(&Graph) -> T) -> T {
        let Some(index) = &self.index else { return question(&self.graph) };
        let head = index.head(&self.partition).await.expect("a head").expect("a graph");
        let chunks = usize::try_from(head.chunks).expect("few");
        let mut known = Known::new(head.seq.expect("complete"), chunks, hasher(&self.partition));
        for _ in 0..64 {
            let graph = known.graph();
            let found = question(&graph);
            let wanted = graph.missing();
            if wanted.is_empty() {
                return found;
            }
            let loaded = index.load(&self.partition, &wanted, Known::BOUNDS).await.expect("loaded");
            let embeddings = wanted.chunks.iter();
            let embeddings =
                embeddings.filter_map(|chunk| Some((*chunk, self.embeddings.get(chunk)?.clone())));
            known.learn(&wanted, loaded, embeddings.collect());
        }
        panic!("it leads on and on");
    }

    async fn walk(&self, (text, fused): Asked<'_>) -> Vec<(ChunkId, f32)> {
        let embedding = chunk(&self.partition, 0, "", "", 0).embedding;
        self.ask(|graph| graph.walk(text, fused, &embedding, &WalkSettings::default(), 50)).await
    }

    async fn entities(&self, (text, fused): Asked<'_>) -> Vec<EntityHit> {
        self.ask(|graph| graph.entities_for(text, fused, 9)).await
    }

    async fn relations(&self, (text, fused): Asked<'_>) -> Vec<RelationHit> {
        self.ask(|graph| graph.relations_for(text, fused, 9)).await
    }

    async fn around(&self, name: &str, depth: usize) -> Neighbourhood {
        let key = hasher(&self.partition).key(name);
        self.ask(|graph| graph.neighbourhood(key, depth, 20)).await
    }

    /// The entities that most chunks mention, and what is between them.
    async fn best_connected(&self, most: usize) -> Neighbourhood {
        let top: Vec<u64> = match &self.index {
            Some(index) => {
                let top = index.top(&self.partition, most + 1).await.expect("a list");
                top.into_iter().map(|(key, _)| key).collect()
            }
            None => self.graph.top_entities(most + 1).into_iter().map(|(key, _)| key.0).collect(),
        };
        let keys = &top[..most.min(top.len())];
        self.ask(|graph| graph.among(keys, top.len() > most)).await
    }
}

fn memory() -> Place {
    Place::new(None)
}

/// One in the shared Neo4j.
pub fn neo4j() -> Place {
    Place::new(Some(index(shared())))
}

behaviours!(
    neo4j as in_neo4j:
    a_walk_goes_along_titles_and_along_rare_names,
    a_chunk_that_is_removed_is_reached_by_nothing,
    a_title_that_comes_is_named_by_chunks_that_were_there,
    what_is_around_an_entity_grows_with_the_depth,
    nothing_is_found_in_an_empty_graph,
);

fn order(ranked: &[(ChunkId, f32)]) -> Vec<u128> {
    ranked.iter().map(|hit| hit.0.0.as_u128()).collect()
}

async fn a_walk_goes_along_titles_and_along_rare_names(mut place: Place) {
    let fleet = fleet(&place.partition);
    place.change(fleet, &[]).await;
    let fused = [(chunk_id(4), 0.1), (chunk_id(1), 0.9)];
    let found = order(&place.walk(("Where was the Tern built?", &fused)).await);
    assert_eq!(found[0], 1);
    assert!(found.contains(&2) && found.contains(&3), "{found:?}");
    let found = order(&place.walk(("what happened in spring?", &[(chunk_id(4), 0.9)])).await);
    assert!(found.contains(&5) && !found.contains(&3), "{found:?}");
}

async fn a_chunk_that_is_removed_is_reached_by_nothing(mut place: Place) {
    let fleet = fleet(&place.partition);
    place.change(fleet, &[]).await;
    let question = ("Where is the Halvorsen Yard of the Tern?", [(chunk_id(1), 0.9)]);
    let asked: Asked<'_> = (question.0, &question.1);
    assert!(order(&place.walk(asked).await).contains(&2));
    place.change(Vec::new(), &[chunk_id(2)]).await;
    assert!(!order(&place.walk(asked).await).contains(&2));
    for hit in place.entities(asked).await {
        assert!(!hit.chunks.contains(&chunk_id(2)));
    }
    for hit in place.relations(asked).await {
        assert!(!hit.chunks.contains(&chunk_id(2)));
    }
    assert!(
        place.around("halvorsen yard", 3).await.entities.iter().all(|hit| !hit.chunks.contains(&chunk_id(2)))
    );
}

async fn a_title_that_comes_is_named_by_chunks_that_were_there(mut place: Place) {
    let mut rest = fleet(&place.partition);
    let yard = rest.remove(1);
    place.change(rest, &[]).await;
    let asked: Asked<'_> = ("Where was the Tern built?", &[(chunk_id(1), 0.9)]);
    assert!(!order(&place.walk(asked).await).contains(&2));
    place.change(vec![yard], &[]).await;
    assert!(order(&place.walk(asked).await).contains(&2));
}

async fn what_is_around_an_entity_grows_with_the_depth(mut place: Place) {
    let fleet = fleet(&place.partition);
    place.change(fleet, &[]).await;
    let (near, far) = (place.around("tern", 1).await, place.around("tern", usize::MAX).await);
    assert!(near.entities.len() > 1 && far.entities.len() > near.entities.len(), "{near:?} {far:?}");
    assert!(!far.relations.is_empty() && !far.truncated);
    assert!(place.best_connected(2).await.truncated && !place.best_connected(100).await.truncated);
}

async fn nothing_is_found_in_an_empty_graph(mut place: Place) {
    place.change(Vec::new(), &[]).await;
    let fused = [(chunk_id(7), 0.2), (chunk_id(99), 0.9)];
    assert_eq!(order(&place.walk(("Tern?", &fused)).await), [99, 7]);
    assert!(place.entities(("Tern?", &fused)).await.is_empty());
    assert_eq!(place.around("tern", 3).await, Neighbourhood::default());
    assert!(place.best_connected(10).await.entities.is_empty());
}

/// Words that titles are made of and texts use, so that titles nest, collide and come and go.
const WORDS: [&str; 8] = ["Tern", "Grey", "Gull", "Yard", "Port", "Anselm", "ship", "Mara"];

fn join(words: &[usize]) -> String {
    let word = |w: &usize| WORDS.get(*w).copied().unwrap_or("And. The");
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn any_chunk(partition: Partition) -> impl Strategy<Value = GraphChunk> {
    let text = prop::collection::vec(prop_oneof![4 => 0..WORDS.len(), 1 => Just(usize::MAX)], 0..12);
    let title = prop::collection::vec(0..WORDS.len(), 0..4);
    let heading = prop::option::weighted(0.3, prop::collection::vec(0..WORDS.len(), 1..3));
    (0_u128..14, 0..6_usize, title, heading, text, 0..8_usize).prop_map(
        move |(n, document, title, heading, text, toward)| GraphChunk {
            document: document.to_string(),
            heading: heading.map(|heading| join(&heading)),
            ..chunk(&partition, n, &join(&title), &join(&text), toward)
        },
    )
}

/// Random graphs that change, each asked the same in both places.
async fn random_graphs_answer_alike_in_memory_and_in_neo4j() {
    const GRAPHS: usize = 20;
    let index = index(shared());
    let mut runner = TestRunner::deterministic();
    let mut reached = 0;
    for _ in 0..GRAPHS {
        let mut far = Place::new(Some(index.clone()));
        let some = |most| prop::collection::vec(any_chunk(far.partition.clone()), 0..most);
        let changes = prop::collection::vec((some(10), prop::collection::vec(0_u128..14, 0..4)), 1..4);
        let question = prop::collection::vec(0..WORDS.len(), 1..5);
        let fused = prop::collection::btree_map(0_u128..14, 1_u8..10, 0..6);
        let drawn = (changes, question, fused).new_tree(&mut runner).expect("a case").current();
        let (changes, question, fused) = drawn;
        let text = join(&question);
        for (added, removed) in changes {
            let removed: Vec<ChunkId> = removed.into_iter().map(chunk_id).collect();
            far.change(added, &removed).await;
            // Built anew from what is left, so that it owes nothing to how it came about.
            let near = Place {
                partition: far.partition.clone(),
                index: None,
                graph: far.graph.clone(),
                embeddings: HashMap::new(),
            };
            let mut fused: Vec<(ChunkId, f32)> =
                fused.iter().map(|(&n, &score)| (chunk_id(n), f32::from(score))).collect();
            fused.sort_by(|a, b| b.1.total_cmp(&a.1));
            let asked: Asked<'_> = (&text, &fused);
            let walked = near.walk(asked).await;
            reached += walked.len().saturating_sub(fused.len());
            assert_eq!(far.walk(asked).await, walked);
            assert_eq!(far.entities(asked).await, near.entities(asked).await);
            assert_eq!(far.relations(asked).await, near.relations(asked).await);
            assert_eq!(far.around("grey gull", 2).await, near.around("grey gull", 2).await);
            assert_eq!(far.best_connected(5).await, near.best_connected(5).await);
        }
        let marks: BTreeMap<ChunkId, i64> =
            index.marks(&far.partition).await.expect("marks").into_iter().collect();
        let own: BTreeMap<ChunkId, i64> =
            far.graph.linked().map(|chunk| (chunk.chunk, chunk.mark())).collect();
        assert_eq!(marks, own);
    }
    assert!(reached > 0, "the graphs lead nowhere: {reached}");
}

/// What is asked of both.
pub fn of_both() -> Vec<Test> {
    tests![random_graphs_answer_alike_in_memory_and_in_neo4j]
}
