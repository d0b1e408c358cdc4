//! Tags of a shard's points, kept in memory: reading one from its payload takes longer than finding its point.
//!
//! **Invariant:** a tag is as the point's payload says. Whoever writes points forgets theirs afterwards, and what was
//! read before that is not kept.

use std::collections::HashMap;

use parking_lot::RwLock;

use crate::domain::ids::{ChunkId, NamespaceId, TenantId};

/// Tags that are kept, at most; about 100 bytes each.
const MOST: usize = 65_536;

/// Whom a point was written for, and for which version of its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) tenant: TenantId,
    pub(super) namespace: NamespaceId,
    pub(super) version: i64,
}

/// The tags of one shard.
#[derive(Debug, Default)]
pub(super) struct Tags(RwLock<Kept>);

#[derive(Debug, Default)]
struct Kept {
    tags: HashMap<ChunkId, Tag>,
    /// Writes so far.
    writes: u64,
}

/// The number of writes when somebody began to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket(u64);

impl Tags {
    /// The tags of these points, as far as they are kept. The ticket is for what is read of the others.
    pub(super) fn of(&self, chunks: impl Iterator<Item = ChunkId>) -> (HashMap<ChunkId, Tag>, Ticket) {
        let kept = self.0.read();
        let found = chunks.filter_map(|chunk| Some((chunk, *kept.tags.get(&chunk)?))).collect();
        (found, Ticket(kept.writes))
    }

    /// Keeps tags that were read since the ticket was drawn, unless something was written meanwhile.
    pub(super) fn keep(&self, ticket: Ticket, read: &HashMap<ChunkId, Tag>) {
        let mut kept = self.0.write();
        if kept.writes != ticket.0 {
            return;
        }
        if kept.tags.len() + read.len() > MOST {
            kept.tags.clear();
        }
        kept.tags.extend(read);
    }

    /// To be called when these points were written or deleted.
    pub(super) fn forget(&self, chunks: impl Iterator<Item = ChunkId>) {
        let mut kept = self.0.write();
        kept.writes += 1;
        for chunk in chunks {
            kept.tags.remove(&chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn tag(version: i64) -> Tag {
        Tag { tenant: TenantId(Uuid::from_u128(1)), namespace: NamespaceId(Uuid::from_u128(2)), version }
    }

    #[test]
    fn what_was_read_before_a_write_is_not_kept() {
        let chunk = ChunkId(Uuid::from_u128(7));
        let tags = Tags::default();
        let (found, early) = tags.of([chunk].into_iter());
        assert!(found.is_empty());
        tags.forget([chunk].into_iter());
        tags.keep(early, &HashMap::from([(chunk, tag(1))]));
        let (found, ticket) = tags.of([chunk].into_iter());
        assert!(found.is_empty(), "it may be of the version before");
        tags.keep(ticket, &HashMap::from([(chunk, tag(2))]));
        assert_eq!(tags.of([chunk].into_iter()).0[&chunk], tag(2));
        tags.forget([chunk].into_iter());
        assert!(tags.of([chunk].into_iter()).0.is_empty());
    }
}
