use bulkhead::store::vector::{VectorIndex, VectorQuery};

pub async fn search(index: &dyn VectorIndex, query: &VectorQuery) {
    let _ = index.search(query).await;
}
