//! What comes in is checked before an index sees it, so that whatever an index then refuses is its own fault.

use super::vector::{Point, Terms, VectorQuery};

/// Points of one dimension: the given one, or else that of the first.
pub(in crate::store) fn points(points: &[Point], dimension: Option<usize>) -> Result<(), &'static str> {
    let Some(first) = points.first() else { return Ok(()) };
    let dimension = dimension.unwrap_or(first.embedding.len());
    points.iter().try_for_each(|point| {
        embedding(&point.embedding, dimension)?;
        terms(&point.terms)
    })
}

/// A query for embeddings of this dimension.
pub(in crate::store) fn query(query: &VectorQuery, dimension: usize) -> Result<(), &'static str> {
    query.embedding.iter().try_for_each(|numbers| embedding(numbers, dimension))?;
    query.terms.iter().try_for_each(terms)
}

fn embedding(numbers: &[f32], dimension: usize) -> Result<(), &'static str> {
    if numbers.is_empty() || numbers.len() != dimension {
        return Err("an embedding has another dimension than the index");
    }
    if numbers.iter().any(|number| !number.is_finite()) {
        return Err("an embedding holds a number that is not finite");
    }
    Ok(())
}

fn terms(terms: &Terms) -> Result<(), &'static str> {
    if terms.indices.len() != terms.values.len() {
        return Err("terms and weights differ in number");
    }
    if terms.indices.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err("terms are not in ascending order");
    }
    if terms.values.iter().any(|value| !value.is_finite()) {
        return Err("a term's weight is not finite");
    }
    Ok(())
}
