//! What qdrant-edge does that its users have to know; should a new version do otherwise, these say so.
