//! Two servers that keep an index in one Qdrant collection: heads, stamps, marks and generations, and messages that
//! are refused, late, doubled, or carried out without an answer.
//!
//! A step of a server is what the real one does between two messages that change something; so a path can be replayed.
//! Both partitions are in one collection, where tag and stamp alone separate them.

mod steps;

use std::collections::BTreeMap;

use stateright::{Model, Property};

use super::record::{Broken, Changes, Chunk, PARTITIONS, Points, Record, Write, owner};

const SERVERS: [usize; 2] = [0, 1];

/// When something was written: ordered by generation, then by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    pub generation: u8,
    pub seq: u8,
}

/// What a message changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Body {
    /// Points, and marks where some are deleted.
    Points { put: Vec<(Chunk, u8)>, gone: Vec<Chunk> },
    /// Which generation is served, and how far it is; or that none is any more.
    Head { is_served: bool },
    /// Deletes generations before this one.
    Before,
    /// Deletes what is another tenant's: nothing here.
    Foreign,
    /// Deletes everything of a partition.
    All,
}

/// What a server sends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    pub partition: usize,
    /// Which of the collections that there were, one after the other.
    pub collection: u8,
    pub stamp: Stamp,
    pub body: Body,
}

/// A point, or without a version the mark of a deleted one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cell {
    pub partition: usize,
    pub stamp: Stamp,
    pub version: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Head {
    pub stamp: Stamp,
    pub is_served: bool,
    /// Nothing that was sent before it was written can arrive any more.
    pub is_old: bool,
}

/// What a server is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Task {
    /// Applies changes that it has read.
    Apply(Changes),
    /// Writes a generation that begins at this position.
    Rebuild(u8),
    /// Takes the index of a namespace away that is gone.
    Remove,
}

/// A call under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Call {
    pub partition: usize,
    pub task: Task,
    /// What it is about to send; `None`: it has read what it will act on.
    pub held: Option<Message>,
    /// The head that it found or made.
    base: Option<Stamp>,
}

/// A server's memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Server {
    pub call: Option<Call>,
    /// The highest position that it was told or told, by partition.
    reached: [u8; 2],
    removed: [bool; 2],
    /// How far an index without a point and without a collection has come.
    empty: [Option<u8>; 2],
}

/// What was spent of the bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Spent {
    writes: [u8; 2],
    faults: u8,
    rebuilds: u8,
    waits: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct State {
    pub records: [Record; 2],
    /// The collection that there is.
    pub collection: Option<u8>,
    made: u8,
    /// Generations that were given.
    drawn: u8,
    /// By chunk and generation.
    pub cells: BTreeMap<(Chunk, u8), Cell>,
    pub heads: [Option<Head>; 2],
    /// There were points of a later generation than the one that is served when time passed.
    abandoned: [bool; 2],
    pub servers: [Server; 2],
    /// Messages that will arrive, or never.
    pub late: Vec<Message>,
    spent: Spent,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    Applied,
    /// It does not arrive, and the sender learns that.
    Refused,
    /// It is carried out, and the sender does not learn that.
    TimedOut,
    /// The sender gives up, and it arrives later or never.
    Late,
    /// It is carried out and arrives once more, later or never.
    Doubled,
}

const FATES: [Fate; 5] = [Fate::Applied, Fate::Refused, Fate::TimedOut, Fate::Late, Fate::Doubled];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Write(usize, Write),
    /// A server reads how far the index is, and what changed since.
    Read {
        server: usize,
        partition: usize,
    },
    /// A server reads from where a new generation is to begin.
    Rebuild {
        server: usize,
        partition: usize,
    },
    /// A server goes on from what it has read to its first message.
    Start(usize),
    /// A server's message meets its fate, and the server goes on to the next one.
    Send(usize, Fate),
    /// A server ends between two steps; its message with it.
    Crash(usize),
    /// A message that is late arrives.
    Deliver(usize),
    /// Time passes: nothing that was sent before can arrive any more, and what was kept for that is purged.
    Wait,
}

/// The bounds of a model, and what it does without.
#[derive(Debug, Clone)]
pub struct Collection {
    /// Transactions, by partition.
    pub writes: [u8; 2],
    pub faults: u8,
    pub rebuilds: u8,
    pub waits: u8,
    pub broken: Option<Broken>,
}

impl State {
    /// What a search finds.
    pub fn search(&self, partition: usize, broken: Option<Broken>) -> Points {
        let Some(head) = self.heads[partition].filter(|head| head.is_served) else { return Points::new() };
        let no_filter = broken == Some(Broken::TagFilter);
        let served = self.cells.iter().filter(|((_, generation), cell)| {
            no_filter || cell.partition == partition && *generation == head.stamp.generation
        });
        served.filter_map(|((chunk, _), cell)| Some((*chunk, cell.version?))).collect()
    }

    /// How far the index of a partition is, by the server's word.
    fn served(&self, partition: usize) -> Option<Stamp> {
        self.heads[partition].filter(|head| head.is_served).map(|head| head.stamp)
    }

    /// Whether there are points of a later generation than the one that is served.
    fn has_drafts(&self, partition: usize) -> bool {
        let served = self.heads[partition].map(|head| head.stamp.generation);
        let is_later = |((_, generation), cell): (&(Chunk, u8), &Cell)| {
            cell.partition == partition && served.is_some_and(|served| *generation > served)
        };
        self.cells.iter().any(is_later)
    }

    /// Nobody is about anything, and nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.late.is_empty() && self.servers.iter().all(|server| server.call.is_none())
    }

    /// Whether every index that does not lag by its own word is equal to its record.
    fn is_told_truly(&self) -> bool {
        PARTITIONS.into_iter().all(|partition| {
            let (record, found) = (&self.records[partition], self.search(partition, None));
            let at = self.served(partition).map_or(0, |stamp| stamp.seq);
            record.is_gone || at != record.seq || found == record.points()
        })
    }

    /// Whether everything that is in the collection is what the record says, and nothing else is.
    pub fn is_converged(&self) -> bool {
        let of = |cell: &Cell| cell.partition;
        let orphan = |((chunk, generation), cell): (&(Chunk, u8), &Cell)| {
            let record = &self.records[of(cell)];
            let served = self.served(of(cell)).map(|stamp| stamp.generation);
            served != Some(*generation)
                || cell.version.is_some() && record.rows.get(chunk).map(|row| row.version) != cell.version
        };
        PARTITIONS.into_iter().all(|partition| {
            let record = &self.records[partition];
            let is_gone = self.heads[partition].is_none();
            self.search(partition, None) == record.points() && (!record.is_gone || is_gone)
        }) && !self.cells.iter().any(orphan)
    }
}

impl Model for Collection {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for partition in PARTITIONS {
            if state.spent.writes[partition] < self.writes[partition] {
                let all = [Write::Put, Write::PutLate, Write::Delete, Write::Drop];
                actions.extend(all.map(|write| Action::Write(partition, write)));
            }
        }
        for server in SERVERS {
            match &state.servers[server].call {
                None => {
                    actions.extend(PARTITIONS.map(|partition| Action::Read { server, partition }));
                    if state.spent.rebuilds < self.rebuilds {
                        actions.extend(PARTITIONS.map(|partition| Action::Rebuild { server, partition }));
                    }
                }
                Some(Call { held: None, .. }) => actions.push(Action::Start(server)),
                Some(_) => {
                    let fates = if state.spent.faults < self.faults { &FATES[..] } else { &FATES[..1] };
                    actions.extend(fates.iter().map(|fate| Action::Send(server, *fate)));
                }
            }
            if state.spent.faults < self.faults && state.servers[server] != Server::default() {
                actions.push(Action::Crash(server));
            }
        }
        actions.extend((0..state.late.len()).map(Action::Deliver));
        if state.spent.waits < self.waits && state.servers.iter().all(|server| server.call.is_none()) {
            actions.push(Action::Wait);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut after = state.clone();
        match action {
            Action::Write(partition, write) => {
                after.records[partition] = state.records[partition].write(partition, write, self.broken)?;
                after.spent.writes[partition] += 1;
            }
            Action::Read { server, partition } => {
                let task = self.read(&mut after, server, partition)?;
                after.servers[server].call = Some(Call { partition, task, held: None, base: None });
            }
            Action::Rebuild { server, partition } => {
                let record = &state.records[partition];
                (!record.is_gone && record.seq > 0).then_some(())?;
                let task = Task::Rebuild(record.seq);
                after.servers[server].call = Some(Call { partition, task, held: None, base: None });
                after.spent.rebuilds += 1;
            }
            Action::Start(server) => {
                let mut call = after.servers[server].call.take()?;
                call.held = self.start(&mut after, server, &mut call);
                after.servers[server].call = call.held.is_some().then_some(call);
            }
            Action::Send(server, fate) => {
                let mut call = after.servers[server].call.take()?;
                let sent = call.held.take()?;
                after.spent.faults += u8::from(fate != Fate::Applied);
                let is_carried_out =
                    !matches!(fate, Fate::Refused | Fate::Late) && self.arrive(&mut after, &sent);
                if matches!(fate, Fate::Late | Fate::Doubled) {
                    after.late.push(sent.clone());
                    after.late.sort();
                }
                if is_carried_out && fate != Fate::TimedOut {
                    call.held = self.go_on(&mut after, server, &mut call, &sent);
                    after.servers[server].call = call.held.is_some().then_some(call);
                }
            }
            Action::Crash(server) => {
                after.servers[server] = Server::default();
                after.spent.faults += 1;
            }
            Action::Deliver(at) => {
                (at < after.late.len()).then_some(())?;
                let message = after.late.remove(at);
                self.arrive(&mut after, &message);
            }
            Action::Wait => {
                self.wait(&mut after);
                after.spent.waits += 1;
            }
        }
        Some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a search returns no other partition's point", |model: &Self, state: &State| {
                let own = |partition| {
                    state.search(partition, model.broken).keys().all(|chunk| owner(*chunk) == partition)
                };
                PARTITIONS.into_iter().all(own)
            }),
            Property::always("what is told as applied is applied", |_, state: &State| {
                PARTITIONS.into_iter().all(|partition| {
                    let Some(at) = state.served(partition) else { return true };
                    state.records[partition].allows(&state.search(partition, None), at.seq)
                })
            }),
            Property::always("no transaction brings a version back", |_, state: &State| {
                state.records.iter().all(Record::brings_nothing_back)
            }),
            Property::always("an index at the record's position is equal to it", |_, state: &State| {
                !state.is_idle() || state.is_told_truly()
            }),
            Property::always(
                "when faults end the index becomes the record",
                |model: &Self, state: &State| !state.is_idle() || model.settle(state).is_converged(),
            ),
        ]
    }
}
