use bulkhead::store::Corpus;
use bulkhead::store::vector::VectorIndex;

pub fn take(corpus: &Corpus) -> &dyn VectorIndex {
    corpus.vectors()
}
