//! The graph against its definition, and walks over it.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::names::{NameKey, names, title_key};
use crate::domain::words::sentences;
use crate::store::graph::{GraphLoaded, Mention};

fn hasher() -> NameHasher {
    NameHasher::new(&[3; 16])
}

fn id(n: u128) -> ChunkId {
    ChunkId(Uuid::from_u128(n))
}

/// A chunk whose mentions are found as ingestion finds them and whose embedding leans to `toward`.
fn chunk(n: u128, document: &str, title: &str, text: &str, toward: usize) -> GraphChunk {
    let mut names: Vec<NameKey> =
        sentences(text).flat_map(names).map(|name| hasher().key(&name.key)).collect();
    names.push(hasher().key(&title_key(title)));
    let mut embedding = vec![0.1_f32; 8];
    embedding[toward % 8] = 1.0;
    let norm = embedding.iter().map(|x| x * x).sum::<f32>().sqrt();
    GraphChunk {
        chunk: id(n),
        document: document.to_owned(),
        title: Some(title.to_owned()),
        heading: None,
        text: text.to_owned(),
        names,
        concepts: text.split(' ').filter(|w| w.ends_with("ship")).map(|w| hasher().key(w)).collect(),
        embedding: embedding.into_iter().map(|x| x / norm).collect(),
    }
}

fn fleet() -> Vec<GraphChunk> {
    vec![
        chunk(1, "a", "Tern", "The Tern was built by Halvorsen Yard for the northern route.", 0),
        chunk(2, "b", "Halvorsen Yard", "Halvorsen Yard stands in Port Anselm and employs ninety.", 1),
        chunk(3, "c", "Port Anselm", "Port Anselm is a harbour on the east coast.", 2),
        chunk(4, "d", "Gull", "The Gull was repaired by Mara Okonjo in spring.", 3),
        chunk(5, "e", "Winter log", "In winter Mara Okonjo wrote the log of another vessel.", 4),
    ]
}

fn question_toward(toward: usize) -> Vec<f32> {
    chunk(0, "", "", "", toward).embedding
}

fn order(ranked: &[(ChunkId, f32)]) -> Vec<u128> {
    ranked.iter().map(|hit| hit.0.0.as_u128()).collect()
}

/// The entities that most chunks mention, and what is between them.
fn best_connected(graph: &Graph, n: usize) -> Neighbourhood {
    let top: Vec<u64> = graph.top_entities(n + 1).into_iter().map(|(key, _)| key.0).collect();
    graph.among(&top[..n.min(top.len())], top.len() > n)
}

fn walk(graph: &Graph, question: &str, fused: &[(ChunkId, f32)]) -> Vec<(ChunkId, f32)> {
    graph.walk(question, fused, &question_toward(0), &WalkSettings::default(), 50)
}

#[test]
fn a_walk_reaches_what_a_named_document_names_in_two_steps() {
    let graph = Graph::build(Seq(1), hasher(), fleet());
    let ranked = walk(&graph, "Where was the Tern built?", &[(id(4), 0.1), (id(1), 0.9)]);
    let order = order(&ranked);
    assert_eq!(order[0], 1);
    assert!(order.contains(&2) && order.contains(&3), "{order:?}");
    assert!(!order.contains(&5), "nothing leads there");
}

#[test]
fn a_walk_goes_along_a_rare_entity() {
    let graph = Graph::build(Seq(1), hasher(), fleet());
    assert!(order(&walk(&graph, "what happened in spring?", &[(id(4), 0.9)])).contains(&5));
}

#[test]
fn search_hits_that_the_graph_does_not_have_yet_are_kept() {
    let graph = Graph::build(Seq(1), hasher(), fleet());
    assert_eq!(order(&walk(&graph, "spring?", &[(id(99), 0.9), (id(3), 0.1)]))[0], 99);
    let empty = Graph::build(Seq(0), hasher(), []);
    assert_eq!(order(&walk(&empty, "Tern?", &[(id(7), 0.2), (id(99), 0.9)])), [99, 7]);
    assert!(walk(&empty, "Tern?", &[]).is_empty());
}

#[test]
fn a_removed_chunk_is_never_reached_again() {
    let graph = Graph::build(Seq(1), hasher(), fleet());
    let next = graph.apply(Seq(2), [], &[id(2), id(77)]);
    assert_eq!((next.seq(), next.chunks(), graph.chunks()), (Seq(2), 4, 5));
    let reached = order(&walk(&next, "Where is the Halvorsen Yard of the Tern?", &[(id(1), 0.9)]));
    assert!(!reached.contains(&2), "{reached:?}");
    assert!(order(&walk(&graph, "Where is the Halvorsen Yard of the Tern?", &[(id(1), 0.9)])).contains(&2));
    for hit in next.entities_for("Halvorsen Yard", &[(id(1), 0.9)], 50) {
        assert!(!hit.chunks.contains(&id(2)));
    }
}

#[test]
fn a_new_title_links_old_chunks_that_name_it() {
    let mut chunks = fleet();
    let yard = chunks.remove(1);
    let graph = Graph::build(Seq(1), hasher(), chunks);
    let asked = |graph: &Graph| order(&walk(graph, "Where was the Tern built?", &[(id(1), 0.9)]));
    assert!(!asked(&graph).contains(&2));
    let next = graph.apply(Seq(2), [yard], &[]);
    assert!(asked(&next).contains(&2) && asked(&next).contains(&3));
}

#[test]
fn a_long_document_is_entered_at_the_chunk_that_is_likest_the_question() {
    let mut chunks = fleet();
    chunks[1].embedding = question_toward(5);
    chunks.push(chunk(6, "b", "Halvorsen Yard", "Its docks are narrow.", 0));
    let graph = Graph::build(Seq(1), hasher(), chunks);
    let order = order(&walk(&graph, "Who built the Tern?", &[(id(1), 0.9)]));
    let place = |n| order.iter().position(|&id| id == n);
    assert!(place(6) < place(2) && place(6).is_some(), "{order:?}");
}

#[test]
fn a_heading_is_a_title_of_its_section() {
    let mut chunks = fleet();
    chunks.push(GraphChunk {
        heading: Some("Dry dock rules".into()),
        ..chunk(6, "f", "Handbook", "Boots are worn at all times.", 0)
    });
    let graph = Graph::build(Seq(1), hasher(), chunks);
    assert!(order(&walk(&graph, "what do the dry dock rules say?", &[])).contains(&6));
}

#[test]
fn entities_of_a_question_come_with_the_chunks_that_mention_them() {
    let graph = Graph::build(Seq(1), hasher(), fleet());
    let found = graph.entities_for("who is mara okonjo?", &[(id(5), 0.9), (id(4), 0.2)], 3);
    assert_eq!(found[0].key, hasher().key("mara okonjo"));
    assert_eq!(found[0].chunks, [id(5), id(4)]);
    let relations = graph.relations_for("who is mara okonjo?", &[(id(4), 0.9)], 10);
    assert!(relations.iter().all(|relation| relation.chunks == [id(4)] && relation.source < relation.target));
    assert!(!relations.is_empty());
}

#[test]
fn a_neighbourhood_is_bounded_and_says_so() {
    let graph = Graph::build(Seq(1), hasher(), fleet());
    let start = hasher().key("halvorsen yard");
    let near = graph.neighbourhood(start, 1, 10);
    assert_eq!(near.entities[0].key, start);
    assert!(!near.truncated && near.entities.len() == 3, "Tern and Port Anselm: {near:?}");
    let cut = graph.neighbourhood(start, 3, 2);
    assert!(cut.truncated && cut.entities.len() == 2 && cut.relations.len() == 1);
    assert_eq!(graph.neighbourhood(hasher().key("nobody"), 3, 10), Neighbourhood::default());
    assert_eq!(graph.top_entities(1).len(), 1);
    assert!(best_connected(&graph, 2).truncated && !best_connected(&graph, 100).truncated);
}

#[test]
fn memory_is_counted_and_given_back() {
    let graph = Graph::build(Seq(1), hasher(), fleet());
    assert!(graph.bytes() > 500);
    let ids: Vec<_> = (1..=5).map(id).collect();
    assert_eq!(graph.apply(Seq(2), [], &ids).node_bytes, 0);
}

/// Words that titles are made of and texts use, so that titles nest, collide and come and go.
const WORDS: [&str; 8] = ["Tern", "Grey", "Gull", "Yard", "Port", "Anselm", "ship", "Mara"];

fn any_chunk() -> impl Strategy<Value = GraphChunk> {
    let text = prop::collection::vec(prop_oneof![4 => 0..WORDS.len(), 1 => Just(usize::MAX)], 0..12);
    let title = prop::collection::vec(0..WORDS.len(), 0..4);
    let heading = prop::option::weighted(0.3, prop::collection::vec(0..WORDS.len(), 1..3));
    (0_u128..14, 0..6_usize, title, heading, text, 0..8_usize).prop_map(
        |(n, document, title, heading, text, toward)| {
            let join = |words: &[usize]| {
                words
                    .iter()
                    .map(|&w| WORDS.get(w).copied().unwrap_or("And. The"))
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            let heading = heading.map(|heading| join(&heading));
            GraphChunk { heading, ..chunk(n, &document.to_string(), &join(&title), &join(&text), toward) }
        },
    )
}

/// What a question finds when it is handed no more of a graph than it asks for.
fn in_part<T>(
    whole: &Graph,
    alive: &std::collections::BTreeMap<ChunkId, GraphChunk>,
    question: impl Fn(&Graph) -> T,
) -> T {
    let linked: Vec<LinkedChunk> = whole.linked().collect();
    let mut known = Known::new(whole.seq(), whole.chunks(), hasher());
    loop {
        let part = known.graph();
        let found = question(&part);
        let wanted = part.missing();
        if wanted.is_empty() {
            return found;
        }
        let listed = |keys: &[u64], has: &dyn Fn(&LinkedChunk, u64) -> bool| {
            let chunks =
                |key| linked.iter().filter(|chunk| has(chunk, key)).map(|chunk| chunk.chunk).collect();
            keys.iter().map(|&key| (key, chunks(key))).collect()
        };
        let groups = |title: u64| {
            let groups = linked.iter().flat_map(|chunk| &chunk.groups).filter(|group| group.title == title);
            groups.map(|group| group.group).collect()
        };
        let mentions = |key: u64| {
            let kinds = linked.iter().map(|chunk| Mention {
                chunk: chunk.chunk,
                name: chunk.names.contains(&key),
                concept: chunk.concepts.contains(&key),
            });
            kinds.filter(|mention| mention.name || mention.concept).collect()
        };
        let loaded = GraphLoaded {
            chunks: linked.iter().filter(|chunk| wanted.chunks.contains(&chunk.chunk)).cloned().collect(),
            titles: wanted.titles.iter().map(|&title| (title, groups(title))).collect(),
            members: listed(&wanted.members, &|chunk, key| chunk.groups.iter().any(|own| own.group == key)),
            namers: listed(&wanted.namers, &|chunk, key| chunk.named.contains(&key)),
            rare: listed(&wanted.rare, &|chunk, key| chunk.names.contains(&key)),
            mentions: wanted.mentions.iter().map(|&key| (key, mentions(key))).collect(),
        };
        let embedding = |chunk: &ChunkId| Some((*chunk, alive.get(chunk)?.embedding.clone()));
        known.learn(&wanted, loaded, wanted.chunks.iter().filter_map(embedding).collect());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn changes_one_by_one_give_the_graph_that_building_anew_gives(
        first in prop::collection::vec(any_chunk(), 0..12),
        changes in prop::collection::vec((prop::collection::vec(any_chunk(), 0..4), prop::collection::vec(0_u128..14, 0..4)), 1..6),
        question in prop::collection::vec(0..WORDS.len(), 1..5),
        fused in prop::collection::btree_map(0_u128..14, 1_u8..10, 0..6),
    ) {
        let mut alive: std::collections::BTreeMap<ChunkId, GraphChunk> =
            first.iter().map(|chunk| (chunk.chunk, chunk.clone())).collect();
        let mut graph = Graph::build(Seq(0), hasher(), first);
        let question = question.iter().map(|&w| WORDS[w]).collect::<Vec<_>>().join(" ");
        for (step, (added, removed)) in changes.into_iter().enumerate() {
            let removed: Vec<ChunkId> = removed.into_iter().map(id).collect();
            alive.retain(|chunk, _| !removed.contains(chunk));
            alive.extend(added.iter().map(|chunk| (chunk.chunk, chunk.clone())));
            graph = graph.apply(Seq(i64::try_from(step).unwrap() + 1), added, &removed);
            let anew = Graph::build(graph.seq(), hasher(), alive.values().cloned());
            // A hit that is gone from the graph may still come from search; only live ones are asked with.
            let mut fused: Vec<(ChunkId, f32)> =
                fused.iter().map(|(&n, &score)| (id(n), f32::from(score))).filter(|hit| alive.contains_key(&hit.0)).collect();
            fused.sort_by(|a, b| b.1.total_cmp(&a.1));
            let ranked = walk(&graph, &question, &fused);
            prop_assert_eq!(&ranked, &walk(&anew, &question, &fused));
            prop_assert!(ranked.iter().all(|hit| alive.contains_key(&hit.0)));
            prop_assert_eq!(graph.entities_for(&question, &fused, 9), anew.entities_for(&question, &fused, 9));
            prop_assert_eq!(graph.relations_for(&question, &fused, 9), anew.relations_for(&question, &fused, 9));
            prop_assert_eq!(best_connected(&graph, 20), best_connected(&anew, 20));
            prop_assert_eq!(&in_part(&graph, &alive, |part| walk(part, &question, &fused)), &ranked);
            let (entities, relations) = (graph.entities_for(&question, &fused, 9), graph.relations_for(&question, &fused, 9));
            prop_assert_eq!(in_part(&graph, &alive, |part| part.entities_for(&question, &fused, 9)), entities);
            prop_assert_eq!(in_part(&graph, &alive, |part| part.relations_for(&question, &fused, 9)), relations);
            for (key, _) in graph.top_entities(3) {
                let around = graph.neighbourhood(key, 2, 6);
                prop_assert_eq!(in_part(&graph, &alive, |part| part.neighbourhood(key, 2, 6)), around);
            }
            prop_assert_eq!((graph.chunks(), graph.node_bytes), (anew.chunks(), anew.node_bytes));
        }
    }
}
