//! A model without weights: words hashed into a vector. It costs next to nothing, so that a measurement
//! shows what everything around the model costs. Its vectors say little about meaning.

use sha2::{Digest, Sha256};

/// Dimension of the vectors when the name states none.
const DIMENSION: usize = 384;

/// The dimension that a model's name stands for: `hashing`, or `hashing-64`; `None` for any other model.
pub(super) fn dimension(name: &str) -> Option<usize> {
    match name.strip_prefix("hashing")? {
        "" => Some(DIMENSION),
        stated => stated.strip_prefix('-')?.parse().ok().filter(|dimension| (2..=2000).contains(dimension)),
    }
}

/// The hashed bag of words, unit length.
pub(super) fn embed(text: &str, dimension: usize) -> Vec<f32> {
    let mut vector = vec![0.0_f32; dimension];
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in word.bytes() {
            hash = (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x100_0000_01b3);
        }
        let slot = usize::try_from(hash % dimension as u64).unwrap_or_default();
        vector[slot] += if hash >> 63 == 0 { 1.0 } else { -1.0 };
    }
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm > 0.0 {
        for x in &mut vector {
            *x /= norm;
        }
    } else {
        vector[0] = 1.0;
    }
    vector
}

/// The identity of this model.
pub(super) fn identity(dimension: usize) -> String {
    let text = match dimension {
        DIMENSION => "bulkhead hashing model 1".to_owned(),
        other => format!("bulkhead hashing model 1 of {other} dimensions"),
    };
    hex::encode(&Sha256::digest(text.as_bytes())[..8])
}
