//! Paths of a model to be replayed: between them they make every pair of kinds of steps, one after the other, that the
//! model can make.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use stateright::Model;

/// Two steps, by their kinds.
type Pair = (String, String);

/// The shortest path to each pair, without those whose pairs are on others; and how many pairs there are.
pub fn cover<M: Model>(
    model: &M,
    kind: impl Fn(&M::State, &M::Action) -> String,
) -> (Vec<Vec<M::Action>>, usize)
where
    M::State: Clone + Eq + Hash,
    M::Action: Copy,
{
    let mut known: HashMap<M::State, usize> = HashMap::new();
    // Of each state: the one before, the step from there, and its kind.
    let mut came: Vec<Option<(usize, M::Action, String)>> = Vec::new();
    let mut states = model.init_states();
    for state in &states {
        known.insert(state.clone(), came.len());
        came.push(None);
    }
    let mut shortest: BTreeMap<Pair, (usize, M::Action)> = BTreeMap::new();
    let mut at = 0;
    while at < states.len() {
        let state = states[at].clone();
        let mut actions = Vec::new();
        model.actions(&state, &mut actions);
        for action in actions {
            let name = kind(&state, &action);
            let Some(next) = model.next_state(&state, action) else { continue };
            let before = came[at].as_ref().map_or("", |(_, _, name)| name.as_str()).to_owned();
            shortest.entry((before, name.clone())).or_insert((at, action));
            known.entry(next).or_insert_with_key(|next| {
                states.push(next.clone());
                came.push(Some((at, action, name)));
                came.len() - 1
            });
        }
        at += 1;
    }
    let path = |(mut at, last): (usize, M::Action)| {
        let (mut steps, mut names) = (vec![last], vec![kind(&states[at], &last)]);
        while let Some((before, action, name)) = &came[at] {
            steps.push(*action);
            names.push(name.clone());
            at = *before;
        }
        steps.reverse();
        names.push(String::new());
        names.reverse();
        let pairs: Vec<Pair> = names.windows(2).map(|two| (two[0].clone(), two[1].clone())).collect();
        (steps, pairs)
    };
    let mut paths: Vec<_> = shortest.values().map(|end| path(*end)).collect();
    paths.sort_by_key(|(steps, _)| std::cmp::Reverse(steps.len()));
    let mut covered = BTreeSet::new();
    paths.retain(|(_, pairs)| {
        let is_new = pairs.iter().any(|pair| !covered.contains(pair));
        covered.extend(pairs.iter().cloned());
        is_new
    });
    (paths.into_iter().map(|(steps, _)| steps).collect(), shortest.len())
}
