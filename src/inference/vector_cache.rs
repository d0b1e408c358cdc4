//! Vectors kept in a file by the hash of their text, so that measuring the same set again costs no embedding.
//!
//! For measurements only: no setting of a server reaches it, since it would let one tenant tell by time what another has embedded.
//!
//! **Invariant:** a vector is found under the model that made it alone: the file is named by the model's identity.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

type Key = [u8; 16];

/// Vectors of one model.
pub(super) struct VectorCache {
    held: Mutex<Held>,
}

struct Held {
    vectors: HashMap<Key, Vec<f32>>,
    file: File,
}

impl VectorCache {
    /// Opens or makes the cache of a model in a folder. A record that was cut off by a crash is dropped.
    pub(super) fn open(folder: &Path, model: &str, dimension: usize) -> std::io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join(format!("{model}-{dimension}.vectors"));
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let record = size_of::<Key>() + dimension * size_of::<f32>();
        let whole = bytes.len() / record * record;
        file.set_len(whole as u64)?;
        let mut vectors = HashMap::with_capacity(bytes.len() / record);
        for record in bytes[..whole].chunks_exact(record) {
            let Some((key, numbers)) = record.split_first_chunk() else { continue };
            let (numbers, _) = numbers.as_chunks();
            vectors.insert(*key, numbers.iter().map(|number| f32::from_le_bytes(*number)).collect());
        }
        Ok(Self { held: Mutex::new(Held { vectors, file }) })
    }

    /// The vectors of texts: the known ones, and for the others what `embed` makes of them.
    pub(super) fn through<E>(
        &self,
        texts: &[String],
        embed: impl FnOnce(&[String]) -> Result<Vec<Vec<f32>>, E>,
    ) -> Result<Vec<Vec<f32>>, E> {
        let keys: Vec<Key> = texts.iter().map(|text| key(text)).collect();
        let mut vectors: Vec<Option<Vec<f32>>> = {
            let held = self.held.lock();
            keys.iter().map(|key| held.vectors.get(key).cloned()).collect()
        };
        let unknown: Vec<usize> = (0..texts.len()).filter(|at| vectors[*at].is_none()).collect();
        if !unknown.is_empty() {
            let missing: Vec<String> = unknown.iter().map(|at| texts[*at].clone()).collect();
            for (at, vector) in std::iter::zip(unknown, embed(&missing)?) {
                self.keep(keys[at], &vector);
                vectors[at] = Some(vector);
            }
        }
        Ok(vectors.into_iter().flatten().collect())
    }

    fn keep(&self, key: Key, vector: &[f32]) {
        let mut record = key.to_vec();
        record.extend(vector.iter().flat_map(|number| number.to_le_bytes()));
        let mut held = self.held.lock();
        // What cannot be written is embedded again next time.
        if held.file.write_all(&record).is_ok() {
            held.vectors.insert(key, vector.to_vec());
        }
    }
}

fn key(text: &str) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&Sha256::digest(text.as_bytes())[..16]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_text_is_not_embedded_again_after_a_restart_and_a_torn_record_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let length = |texts: &[String]| -> Vec<Vec<f32>> {
            texts.iter().map(|text| vec![f32::from(u8::try_from(text.len()).expect("short")), 1.0]).collect()
        };
        let cache = VectorCache::open(folder.path(), "m", 2).expect("opened");
        let made = cache.through(&texts(&["a", "bb"]), |texts| Ok::<_, ()>(length(texts)));
        assert_eq!(made, Ok(vec![vec![1.0, 1.0], vec![2.0, 1.0]]));
        drop(cache);
        let file = folder.path().join("m-2.vectors");
        let mut bytes = fs::read(&file).expect("read");
        assert_eq!(bytes.len(), 2 * (16 + 8));
        bytes.extend([7; 5]);
        fs::write(&file, bytes).expect("torn");

        let cache = VectorCache::open(folder.path(), "m", 2).expect("opened");
        let made = cache.through(&texts(&["bb", "ccc", "a"]), |texts| {
            assert_eq!(texts, ["ccc".to_owned()]);
            Ok::<_, ()>(length(texts))
        });
        assert_eq!(made, Ok(vec![vec![2.0, 1.0], vec![3.0, 1.0], vec![1.0, 1.0]]));
        assert_eq!(fs::read(&file).expect("read").len(), 3 * (16 + 8));
    }
}
