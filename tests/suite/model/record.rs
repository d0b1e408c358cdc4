//! The system of record as the models see it: one document in each of two partitions, and what each transaction leaves
//! for whoever projects it.

use std::collections::BTreeMap;

/// Partitions of a model.
pub const PARTITIONS: [usize; 2] = [0, 1];

/// Chunks of a partition begin at its number times this.
const CHUNKS: u8 = 16;

/// A chunk's number, which is never given again. The partition can be told from it.
pub type Chunk = u8;

/// Chunks with the version of their document.
pub type Points = BTreeMap<Chunk, u8>;

/// The partition that a chunk was made for.
pub fn owner(chunk: Chunk) -> usize {
    usize::from(chunk / CHUNKS)
}

/// A protection that a model can do without, to show that it notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// A worker whose lease has ended may commit.
    CommitFence,
    /// Changes are applied to an index that went back since its position was read.
    PositionFence,
    /// What is written replaces whatever is there.
    StampCondition,
    /// A deletion leaves no mark.
    Tombstones,
    /// The head moves before the points are written.
    HeadLast,
    /// An abandoned generation's number is given again.
    Generations,
    /// Marks go while something may still be late.
    PurgeTime,
    /// What arrives after a namespace went is not looked for again.
    SecondSweep,
    /// What a rebuild left that was given up is not looked for.
    Abandoned,
    /// A search does not look at the tag.
    TagFilter,
    /// What is durable is recorded before it is.
    FlushFirst,
    /// Where a new generation begins is read after its rows.
    PositionFirst,
}

/// A row of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Row {
    pub version: u8,
    pub seq: u8,
}

/// A partition in the system of record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Record {
    pub seq: u8,
    pub rows: BTreeMap<Chunk, Row>,
    /// What each transaction removed.
    pub outbox: BTreeMap<u8, Vec<Chunk>>,
    pub is_gone: bool,
    /// The newest version that was accepted.
    newest: u8,
    /// The version that answers.
    live: Option<u8>,
}

/// A transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Write {
    /// The document comes, or its next version takes the place of the one before.
    Put,
    /// A worker whose lease has ended commits what it made of an older version.
    PutLate,
    /// The document goes.
    Delete,
    /// The namespace goes.
    Drop,
}

/// How history reaches an index.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum History {
    UpToDate,
    Changes(Changes),
    /// What follows is not there any more.
    Broken,
    /// The namespace is not there any more.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Changes {
    pub added: Points,
    pub removed: Vec<Chunk>,
    pub through: u8,
}

impl Record {
    /// Carries out a transaction; `None`: it changes nothing.
    pub fn write(&self, partition: usize, write: Write, broken: Option<Broken>) -> Option<Self> {
        if self.is_gone {
            return None;
        }
        let mut after = self.clone();
        let base = CHUNKS * u8::try_from(partition).expect("two");
        match write {
            Write::Put => {
                after.newest += 1;
                after.replace(base + after.newest, after.newest);
            }
            Write::PutLate => {
                // The fence: only the lease of the newest version's job commits, and once.
                let older = self.newest.checked_sub(u8::from(self.live.is_some())).filter(|v| *v > 0)?;
                if broken != Some(Broken::CommitFence) {
                    return None;
                }
                after.seq += 1;
                after.outbox.insert(after.seq, Vec::new());
                after.rows.insert(base + CHUNKS / 2 + older, Row { version: older, seq: after.seq });
            }
            Write::Delete => {
                self.live?;
                after.seq += 1;
                after.outbox.insert(after.seq, std::mem::take(&mut after.rows).into_keys().collect());
                after.live = None;
            }
            Write::Drop => {
                (after.seq > 0).then_some(())?;
                after = Self { is_gone: true, ..Self::default() };
            }
        }
        Some(after)
    }

    fn replace(&mut self, chunk: Chunk, version: u8) {
        self.seq += 1;
        self.outbox.insert(self.seq, std::mem::take(&mut self.rows).into_keys().collect());
        self.rows.insert(chunk, Row { version, seq: self.seq });
        self.live = Some(version);
    }

    /// What answers is the version that was accepted last, or nothing after it was deleted.
    pub fn brings_nothing_back(&self) -> bool {
        self.rows.values().all(|row| Some(row.version) == self.live)
    }

    pub fn points(&self) -> Points {
        self.rows.iter().map(|(chunk, row)| (*chunk, row.version)).collect()
    }

    /// What changed since a position.
    pub fn history(&self, since: u8) -> History {
        if self.is_gone {
            return History::Gone;
        }
        if since == self.seq {
            return History::UpToDate;
        }
        if since > self.seq || !(since + 1..=self.seq).all(|seq| self.outbox.contains_key(&seq)) {
            return History::Broken;
        }
        let removed = self.outbox.range(since + 1..).flat_map(|(_, removed)| removed.clone()).collect();
        let added = self.rows.iter().filter(|(_, row)| row.seq > since);
        let added = added.map(|(chunk, row)| (*chunk, row.version)).collect();
        History::Changes(Changes { added, removed, through: self.seq })
    }

    /// Forgets history up to here.
    pub fn forget(&mut self, through: u8) {
        self.outbox.retain(|seq, _| *seq > through);
    }

    /// Whether an index that says it stands at `at` may answer with this: everything up to there that is still a row,
    /// and nothing that was removed up to there.
    pub fn allows(&self, found: &Points, at: u8) -> bool {
        let there = |(chunk, row): (&Chunk, &Row)| row.seq > at || found.get(chunk) == Some(&row.version);
        let removed = || self.outbox.range(..=at).flat_map(|(_, removed)| removed);
        self.is_gone || self.rows.iter().all(there) && removed().all(|chunk| !found.contains_key(chunk))
    }
}
