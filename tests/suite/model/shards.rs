//! One server with a shard for each partition: what is on disk, what is open, what a crash or a panic leaves, and
//! history that goes when all that was applied is durable.
//!
//! A projector holds a partition's lane from what it read to what it did with it: one call at a time.

use stateright::{Model, Property};

use super::record::{Broken, Changes, History, PARTITIONS, Points, Record, Write};

/// What a projector is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Call {
    /// It has read what changed.
    Apply(Changes),
    /// It has read where a new generation begins, and then perhaps its rows.
    Rebuild { from: u8, rows: Option<Points> },
    /// The files are flushed, or the record of that is written, whichever comes first.
    Flush(Points, u8),
    /// So much is durable, and not yet registered.
    Pass(u8),
}

/// A partition's shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Shard {
    files: Points,
    /// What is recorded as durable; `None`: there is no index.
    pub durable: Option<u8>,
    /// What is served, and up to where it was applied.
    open: Option<(Points, u8)>,
    /// The highest position that a caller could know.
    reached: u8,
    went_back: bool,
    removed: bool,
    pub call: Option<Call>,
}

/// What was spent of the bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Spent {
    writes: [u8; 2],
    faults: u8,
    rebuilds: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct State {
    pub records: [Record; 2],
    pub shards: [Shard; 2],
    spent: Spent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Write(usize, Write),
    /// Reads how far the index is and what changed since; takes the index of a namespace away that is gone.
    Read(usize),
    /// Reads from where a new generation is to begin.
    Rebuild(usize),
    /// Makes something durable, as far as its first half.
    Flush(usize),
    /// Goes on with the call that was begun: applies, reads rows, finishes, records, registers.
    Step(usize),
    /// The shard panics and is closed; the next call opens what was flushed.
    Interrupt(usize),
    /// The process ends.
    Crash,
}

/// The bounds of a model, and what it does without.
#[derive(Debug, Clone)]
pub struct Shards {
    /// Transactions, by partition.
    pub writes: [u8; 2],
    pub faults: u8,
    pub rebuilds: u8,
    pub broken: Option<Broken>,
}

impl Shard {
    /// Opens what is on disk, if it is not open.
    fn settle(&mut self) {
        if self.open.is_none() {
            self.open = self.durable.map(|durable| (self.files.clone(), durable));
            let at = self.open.as_ref().map_or(0, |(_, applied)| *applied);
            self.went_back |= at < self.reached;
        }
    }

    /// What a search finds, and up to where that is told to be everything.
    pub fn search(&self) -> Option<(Points, u8)> {
        let files = || self.durable.map(|durable| (self.files.clone(), durable));
        self.open.clone().or_else(files).filter(|_| !self.removed)
    }

    /// What the end of the process leaves.
    fn crash(&mut self) {
        let (files, durable) = (std::mem::take(&mut self.files), self.durable);
        *self =
            Self { files: if durable.is_some() { files } else { Points::new() }, durable, ..Self::default() };
    }

    fn acknowledge(&mut self, seq: u8) {
        (self.reached, self.went_back) = (seq, false);
    }
}

impl State {
    /// Whether each index is the record, and durably so.
    pub fn is_converged(&self) -> bool {
        PARTITIONS.into_iter().all(|partition| {
            let (record, shard) = (&self.records[partition], &self.shards[partition]);
            let found = shard.search().map(|(found, _)| found).unwrap_or_default();
            let is_left = record.is_gone && (shard.durable.is_some() || !shard.files.is_empty());
            let is_durable =
                record.is_gone || shard.durable.unwrap_or(0) == record.seq && shard.files == found;
            found == record.points() && is_durable && !is_left
        })
    }
}

impl Shards {
    fn is_broken(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    fn read(state: &mut State, partition: usize) -> Option<()> {
        let (record, shard) = (&state.records[partition], &mut state.shards[partition]);
        shard.settle();
        let position = shard.open.as_ref().map_or(0, |(_, applied)| *applied);
        let call = match record.history(position) {
            History::UpToDate => return None,
            History::Changes(changes) => Call::Apply(changes),
            History::Broken => Call::Rebuild { from: record.seq, rows: None },
            History::Gone => {
                (shard.open.is_some() || shard.durable.is_some()).then_some(())?;
                *shard = Shard { removed: true, ..Shard::default() };
                return Some(());
            }
        };
        shard.acknowledge(position);
        shard.call = Some(call);
        Some(())
    }

    fn step(&self, state: &mut State, partition: usize) -> Option<()> {
        let (record, shard) = (&mut state.records[partition], &mut state.shards[partition]);
        shard.call = match shard.call.take()? {
            Call::Apply(changes) => {
                shard.settle();
                if shard.removed || shard.went_back && !self.is_broken(Broken::PositionFence) {
                    return Some(());
                }
                let (points, applied) = shard.open.get_or_insert_default();
                if changes.through > *applied {
                    points.extend(changes.added);
                    points.retain(|chunk, _| !changes.removed.contains(chunk));
                    *applied = changes.through;
                    shard.reached = shard.reached.max(changes.through);
                }
                None
            }
            Call::Rebuild { from, rows: None } => Some(Call::Rebuild { from, rows: Some(record.points()) }),
            Call::Rebuild { from, rows: Some(rows) } => {
                let from = if self.is_broken(Broken::PositionFirst) { record.seq } else { from };
                if shard.removed {
                    return Some(());
                }
                (shard.files, shard.durable) = (rows.clone(), Some(from));
                shard.open = Some((rows, from));
                shard.acknowledge(from);
                Some(Call::Pass(from))
            }
            Call::Flush(points, seq) => {
                if self.is_broken(Broken::FlushFirst) {
                    shard.files = points;
                } else {
                    shard.durable = Some(seq);
                }
                Some(Call::Pass(seq))
            }
            Call::Pass(seq) => {
                record.forget(seq);
                None
            }
        };
        Some(())
    }

    fn flush(&self, shard: &mut Shard) -> Option<()> {
        shard.settle();
        let (points, seq) = shard.open.clone().filter(|(_, seq)| shard.durable != Some(*seq))?;
        if self.is_broken(Broken::FlushFirst) {
            shard.durable = Some(seq);
        } else {
            shard.files.clone_from(&points);
        }
        shard.call = Some(Call::Flush(points, seq));
        Some(())
    }

    /// Everything that sweeps do by themselves, without a fault, until they find nothing to do.
    fn settle(&self, state: &State) -> State {
        let mut state = state.clone();
        for partition in PARTITIONS.into_iter().cycle().take(8) {
            for begin in [Action::Read(partition), Action::Flush(partition)] {
                let mut next = self.next_state(&state, begin);
                while let Some(after) = next {
                    state = after;
                    next = self.next_state(&state, Action::Step(partition));
                }
            }
        }
        state
    }
}

impl Model for Shards {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let may_fail = state.spent.faults < self.faults;
        for partition in PARTITIONS {
            if state.spent.writes[partition] < self.writes[partition] {
                let all = [Write::Put, Write::Delete, Write::Drop];
                actions.extend(all.map(|write| Action::Write(partition, write)));
            }
            match &state.shards[partition].call {
                None => {
                    actions.extend([Action::Read(partition), Action::Flush(partition)]);
                    if state.spent.rebuilds < self.rebuilds {
                        actions.push(Action::Rebuild(partition));
                    }
                }
                Some(_) => actions.push(Action::Step(partition)),
            }
            if may_fail && !matches!(state.shards[partition].call, Some(Call::Flush(..))) {
                actions.push(Action::Interrupt(partition));
            }
        }
        if may_fail {
            actions.push(Action::Crash);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut after = state.clone();
        match action {
            Action::Write(partition, write) => {
                after.records[partition] = state.records[partition].write(partition, write, self.broken)?;
                after.spent.writes[partition] += 1;
            }
            Action::Read(partition) => Self::read(&mut after, partition)?,
            Action::Rebuild(partition) => {
                let record = &state.records[partition];
                (!record.is_gone && record.seq > 0).then_some(())?;
                after.shards[partition].call = Some(Call::Rebuild { from: record.seq, rows: None });
                after.spent.rebuilds += 1;
            }
            Action::Flush(partition) => self.flush(&mut after.shards[partition])?,
            Action::Step(partition) => self.step(&mut after, partition)?,
            Action::Interrupt(partition) => {
                after.shards[partition].open.take()?;
                after.spent.faults += 1;
            }
            Action::Crash => {
                after.shards.iter_mut().for_each(Shard::crash);
                after.spent.faults += 1;
            }
        }
        Some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what is told as applied is applied", |_, state: &State| {
                PARTITIONS.into_iter().all(|partition| {
                    let found = state.shards[partition].search();
                    found.is_none_or(|(found, at)| state.records[partition].allows(&found, at))
                })
            }),
            Property::always("what a crash leaves holds everything up to its record", |_, state: &State| {
                PARTITIONS.into_iter().all(|partition| {
                    let shard = &state.shards[partition];
                    shard.durable.is_none_or(|at| state.records[partition].allows(&shard.files, at))
                })
            }),
            Property::always(
                "when faults end the index becomes the record",
                |model: &Self, state: &State| {
                    state.shards.iter().any(|shard| shard.call.is_some())
                        || model.settle(state).is_converged()
                },
            ),
        ]
    }
}
