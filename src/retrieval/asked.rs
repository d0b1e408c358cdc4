//! The vector of a question, kept for a while where the configuration says so.
//!
//! **Invariant:** a vector that is kept is of the same tenant, namespace, model and text, and a reader whose credential
//! does not reach the namespace is answered without a look at what is kept.

use super::engine::{Engine, RetrievalError};
use crate::domain::ids::NamespaceName;
use crate::inference::Embedder;
use crate::store::{CacheKey, CacheKind, Looked, TenantReader};

impl Engine {
    /// The question's vector. `[dimension]`, unit length
    ///
    /// # Errors
    /// As [`Embedder::embed_question`]; `Store` with an isolation alarm.
    pub(super) async fn embed_asked(
        &self,
        reader: &TenantReader,
        namespace: &NamespaceName,
        embedder: &Embedder,
        text: &str,
    ) -> Result<Vec<f32>, RetrievalError> {
        let (caches, model) = (reader.caches(), embedder.info());
        let key = if caches.keeps(CacheKind::Embedding) {
            CacheKey::embedding(reader, namespace, &model.id, text)
        } else {
            None
        };
        let looked = match &key {
            Some(key) => caches.get(key).await?,
            None => Looked::Off,
        };
        if let Looked::Hit(kept) = &looked
            && let Some(vector) = read(kept, model.dimension)
        {
            return Ok(vector);
        }
        let vectors = embedder.embed_question(reader.scope().tenant(), vec![text.to_owned()]).await?;
        let vector = vectors.into_iter().next().unwrap_or_default();
        if let Some(key) = key.filter(|_| looked != Looked::Off) {
            caches.put(&key, &written(&vector)).await;
        }
        Ok(vector)
    }
}

/// Components, little-endian.
fn written(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|component| component.to_le_bytes()).collect()
}

/// A vector of so many numbers; `None`: something else.
fn read(kept: &[u8], dimension: usize) -> Option<Vec<f32>> {
    let (components, rest) = kept.as_chunks::<4>();
    let vector: Vec<f32> = components.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let whole = rest.is_empty() && vector.len() == dimension && vector.iter().all(|x| x.is_finite());
    whole.then_some(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_read_as_it_was_written_and_nothing_else_is_a_vector() {
        let vector = vec![0.6, -0.8, f32::MIN_POSITIVE];
        let kept = written(&vector);
        assert_eq!(read(&kept, 3), Some(vector));
        assert_eq!(read(&kept, 2), None);
        assert_eq!(read(&kept[1..], 3), None);
        assert_eq!(read(&written(&[f32::NAN, 0.0, 1.0]), 3), None);
        assert_eq!(read(b"", 3), None);
    }
}
