//! Lists under hashed keys: a packed base that versions share, and the lists that changed since.
//!
//! **Invariant:** a base is never written to; a version holds copies of the lists that it changed and nothing else of its own.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;

/// A map whose keys are hashes already.
pub(super) type KeyMap<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// A set of such keys.
pub(super) type KeySet = HashSet<u64, BuildHasherDefault<KeyHasher>>;

/// Mixes keys that are hashes already; one multiplication, since a table looks at the upper bits too.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u32(&mut self, key: u32) {
        self.write_u64(u64::from(key));
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = (self.0.rotate_left(5) ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}

/// Lists of `T` by 64-bit key, each sorted and without repeats.
#[derive(Clone)]
pub(super) struct Postings<T> {
    base: Arc<Base<T>>,
    changed: KeyMap<u64, Vec<T>>,
    /// Keys that were asked for and are not here, where lists are somewhere else until they are asked for.
    asked: Option<Arc<Mutex<KeySet>>>,
}

struct Base<T> {
    /// First place and the place behind the last in `flat`.
    spans: KeyMap<u64, (u32, u32)>,
    flat: Vec<T>,
}

impl<T: Copy + Ord> Postings<T> {
    /// Packs `(key, value)` pairs.
    #[expect(clippy::cast_possible_truncation, reason = "a partition has far fewer than 2^32 mentions")]
    pub(super) fn pack(mut pairs: Vec<(u64, T)>) -> Self {
        pairs.sort_unstable();
        pairs.dedup();
        let mut spans = KeyMap::default();
        let mut from = 0;
        for same in pairs.chunk_by(|a, b| a.0 == b.0) {
            spans.insert(same[0].0, (from, from + same.len() as u32));
            from += same.len() as u32;
        }
        spans.shrink_to_fit();
        let flat = pairs.into_iter().map(|(_, value)| value).collect();
        Self { base: Arc::new(Base { spans, flat }), changed: KeyMap::default(), asked: None }
    }

    /// Lists that are somewhere else, but for these.
    pub(super) fn partial(known: impl Iterator<Item = (u64, Vec<T>)>) -> Self {
        let sorted = |(key, mut list): (u64, Vec<T>)| {
            list.sort_unstable();
            list.dedup();
            (key, list)
        };
        Self { changed: known.map(sorted).collect(), asked: Some(Arc::default()), ..Self::pack(Vec::new()) }
    }

    /// Whether lists are somewhere else.
    pub(super) fn is_partial(&self) -> bool {
        self.asked.is_some()
    }

    /// What was asked for and is not here, ascending.
    pub(super) fn missing(&self) -> Vec<u64> {
        let mut keys: Vec<u64> =
            self.asked.iter().flat_map(|asked| asked.lock().iter().copied().collect::<Vec<_>>()).collect();
        keys.sort_unstable();
        keys
    }

    /// The list of a key; empty when there is none.
    pub(super) fn get(&self, key: u64) -> &[T] {
        if !self.changed.is_empty()
            && let Some(list) = self.changed.get(&key)
        {
            return list;
        }
        let list = self.base.get(key);
        if list.is_empty()
            && let Some(asked) = &self.asked
        {
            asked.lock().insert(key);
        }
        list
    }

    /// Adds a value to a list.
    pub(super) fn insert(&mut self, key: u64, value: T) {
        let list = self.edit(key);
        if let Err(at) = list.binary_search(&value) {
            list.insert(at, value);
        }
    }

    /// Takes a value out of a list.
    pub(super) fn remove(&mut self, key: u64, value: T) {
        let list = self.edit(key);
        if let Ok(at) = list.binary_search(&value) {
            list.remove(at);
        }
    }

    fn edit(&mut self, key: u64) -> &mut Vec<T> {
        self.changed.entry(key).or_insert_with(|| self.base.get(key).to_vec())
    }

    /// Every key with its list, in no order; lists may be empty.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &[T])> {
        let old = self.base.spans.keys().filter(|key| !self.changed.contains_key(key));
        old.map(|&key| (key, self.base.get(key)))
            .chain(self.changed.iter().map(|(&key, list)| (key, list.as_slice())))
    }

    /// Memory, bytes, nearly.
    pub(super) fn bytes(&self) -> usize {
        let base = self.base.spans.capacity() * 18 + self.base.flat.len() * size_of::<T>();
        base + self.changed.capacity() * 34
            + self.changed.values().map(|list| 16 + list.capacity() * size_of::<T>()).sum::<usize>()
    }
}

impl<T> Base<T> {
    fn get(&self, key: u64) -> &[T] {
        self.spans.get(&key).map_or(&[], |&(from, to)| &self.flat[from as usize..to as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_by_its_version_alone() {
        let old = Postings::pack(vec![(7, 3_u32), (7, 1), (9, 1), (7, 3)]);
        assert_eq!(old.get(7), [1, 3]);
        let mut new = old.clone();
        new.insert(7, 2);
        new.remove(9, 1);
        new.insert(8, 5);
        assert_eq!((new.get(7), new.get(8), new.get(9)), (&[1, 2, 3][..], &[5][..], &[][..]));
        assert_eq!((old.get(7), old.get(8), old.get(9)), (&[1, 3][..], &[][..], &[1][..]));
        assert_eq!(new.iter().filter(|(_, list)| !list.is_empty()).count(), 2);
    }
}
