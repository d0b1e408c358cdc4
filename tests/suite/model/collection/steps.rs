//! What messages change, and what a server sends next.

use stateright::Model as _;

use super::{Action, Body, Call, Cell, Collection, Fate, Head, Message, Stamp, State, Task};
use crate::model::record::{Broken, History, PARTITIONS};

impl Collection {
    pub(super) fn is_broken(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    /// Carries out a message. `false`: its collection is not there any more.
    pub(super) fn arrive(&self, state: &mut State, message: &Message) -> bool {
        if state.collection != Some(message.collection) {
            return false;
        }
        let (partition, stamp) = (message.partition, message.stamp);
        let later = |there: Option<Stamp>| {
            self.is_broken(Broken::StampCondition) || there.is_none_or(|there| there < stamp)
        };
        match &message.body {
            Body::Points { put, gone } => {
                let put = put.iter().map(|(chunk, version)| (*chunk, Some(*version)));
                for (chunk, version) in put.chain(gone.iter().map(|chunk| (*chunk, None))) {
                    let at = (chunk, stamp.generation);
                    if !later(state.cells.get(&at).map(|cell| cell.stamp)) {
                        continue;
                    }
                    if version.is_none() && self.is_broken(Broken::Tombstones) {
                        state.cells.remove(&at);
                    } else {
                        state.cells.insert(at, Cell { partition, stamp, version });
                    }
                }
            }
            Body::Head { is_served } => {
                if later(state.heads[partition].map(|head| head.stamp)) {
                    let head = Head { stamp, is_served: *is_served, is_old: false };
                    state.heads[partition] = Some(head);
                }
            }
            Body::Before => {
                state.cells.retain(|(_, of), cell| cell.partition != partition || *of >= stamp.generation);
                let head = &mut state.heads[partition];
                *head = head.filter(|head| head.stamp.generation >= stamp.generation);
            }
            Body::All => {
                state.cells.retain(|_, cell| cell.partition != partition);
                state.heads[partition] = None;
            }
            Body::Foreign => {}
        }
        true
    }

    /// A generation's number.
    fn draw(&self, state: &mut State, partition: usize) -> u8 {
        if self.is_broken(Broken::Generations) {
            return state.heads[partition].map_or(0, |head| head.stamp.generation) + 1;
        }
        state.drawn += 1;
        state.drawn
    }

    /// The collection, made if there is none.
    fn require(state: &mut State) -> u8 {
        if state.collection.is_none() {
            state.made += 1;
            (state.collection, state.drawn) = (Some(state.made), 0);
        }
        state.made
    }

    /// Goes on from what was read to the first message; `None`: the call ends without one.
    pub(super) fn start(&self, state: &mut State, at: usize, call: &mut Call) -> Option<Message> {
        let partition = call.partition;
        let message = |collection, stamp, body| Some(Message { partition, collection, stamp, body });
        match &call.task {
            Task::Apply(changes) => {
                let served = state.served(partition);
                let seq = served.map_or(state.servers[at].empty[partition].unwrap_or(0), |stamp| stamp.seq);
                let fence = state.servers[at].reached[partition];
                if state.servers[at].removed[partition]
                    || seq < fence && !self.is_broken(Broken::PositionFence)
                {
                    return None;
                }
                if served.is_some() {
                    call.base = served;
                    return self.apply(state, at, call);
                }
                if state.collection.is_none() && changes.added.is_empty() {
                    let own = &mut state.servers[at];
                    own.empty[partition] = Some(seq.max(changes.through));
                    own.reached[partition] = seq.max(changes.through);
                    return None;
                }
                let collection = Self::require(state);
                let generation = self.draw(state, partition);
                let seq = state.servers[at].empty[partition].unwrap_or(0);
                message(collection, Stamp { generation, seq }, Body::Head { is_served: true })
            }
            Task::Rebuild(from) => {
                let put: Vec<_> = state.records[partition].points().into_iter().collect();
                if state.servers[at].removed[partition] || put.is_empty() && state.collection.is_none() {
                    let own = &mut state.servers[at];
                    if !own.removed[partition] {
                        (own.empty[partition], own.reached[partition]) = (Some(*from), *from);
                    }
                    return None;
                }
                let collection = Self::require(state);
                let generation = self.draw(state, partition);
                if put.is_empty() {
                    return message(
                        collection,
                        Stamp { generation, seq: *from },
                        Body::Head { is_served: true },
                    );
                }
                message(collection, Stamp { generation, seq: 0 }, Body::Points { put, gone: Vec::new() })
            }
            Task::Remove => {
                let own = &mut state.servers[at];
                own.removed[partition] = true;
                (own.empty[partition], own.reached[partition]) = (None, 0);
                let collection = state.collection?;
                let ended = state.heads[partition].filter(|head| !head.is_served && head.is_old);
                if let Some(head) = ended {
                    return message(collection, head.stamp, Body::All);
                }
                let generation = self.draw(state, partition);
                message(collection, Stamp { generation, seq: 0 }, Body::Head { is_served: false })
            }
        }
    }

    /// The next message of a call that applies changes behind the head that it has.
    fn apply(&self, state: &mut State, at: usize, call: &Call) -> Option<Message> {
        let (Task::Apply(changes), Some(base)) = (&call.task, call.base) else { return None };
        if changes.through <= base.seq {
            let reached = &mut state.servers[at].reached[call.partition];
            *reached = base.seq.max(*reached);
            return None;
        }
        let put: Vec<_> = changes.added.clone().into_iter().collect();
        let body = if put.is_empty() && changes.removed.is_empty() || self.is_broken(Broken::HeadLast) {
            Body::Head { is_served: true }
        } else {
            Body::Points { put, gone: changes.removed.clone() }
        };
        let stamp = Stamp { seq: changes.through, ..base };
        Some(Message { partition: call.partition, collection: state.collection?, stamp, body })
    }

    /// What follows a message that was carried out and answered; `None`: the call ends.
    pub(super) fn go_on(
        &self,
        state: &mut State,
        at: usize,
        call: &mut Call,
        sent: &Message,
    ) -> Option<Message> {
        let partition = call.partition;
        let next = |stamp, body| Some(Message { stamp, body, ..sent.clone() });
        match (&call.task, &sent.body) {
            (Task::Apply(_), Body::Head { .. }) if call.base.is_none() => {
                // The head of an index that begins.
                state.servers[at].empty[partition] = None;
                call.base = Some(sent.stamp);
                self.apply(state, at, call)
            }
            (Task::Apply(changes), Body::Head { .. }) => {
                state.servers[at].empty[partition] = None;
                let reached = &mut state.servers[at].reached[partition];
                *reached = changes.through.max(*reached);
                let put: Vec<_> = changes.added.clone().into_iter().collect();
                let is_late =
                    self.is_broken(Broken::HeadLast) && !(put.is_empty() && changes.removed.is_empty());
                is_late.then_some(())?;
                next(sent.stamp, Body::Points { put, gone: changes.removed.clone() })
            }
            (Task::Apply(_), Body::Points { .. }) if !self.is_broken(Broken::HeadLast) => {
                next(sent.stamp, Body::Head { is_served: true })
            }
            (Task::Rebuild(from), Body::Points { .. }) => {
                next(Stamp { seq: *from, ..sent.stamp }, Body::Head { is_served: true })
            }
            (Task::Rebuild(from), Body::Head { .. }) => {
                state.servers[at].empty[partition] = None;
                let served = state.served(partition)?;
                (served.generation == sent.stamp.generation).then_some(())?;
                state.servers[at].reached[partition] = *from;
                next(sent.stamp, Body::Foreign)
            }
            (Task::Remove, Body::Head { .. }) => next(sent.stamp, Body::Before),
            (Task::Remove, Body::Before | Body::All) => {
                if !state.heads.iter().flatten().any(|head| head.is_served) {
                    // The last one takes the collection along.
                    (state.collection, state.heads) = (None, [None; 2]);
                    state.cells.clear();
                }
                None
            }
            _ => None,
        }
    }

    /// What a server reads before it is about something; `None`: there is nothing to do.
    pub(super) fn read(&self, state: &mut State, at: usize, partition: usize) -> Option<Task> {
        let record = &state.records[partition];
        let (served, is_gone) = (state.served(partition), record.is_gone);
        let of = |cell: &Cell| cell.partition == partition;
        let is_left = !self.is_broken(Broken::SecondSweep)
            && state.heads[partition]
                .map_or(state.cells.values().any(of), |head| !head.is_served && head.is_old);
        let is_abandoned = state.abandoned[partition] && state.has_drafts(partition);
        let own = &mut state.servers[at];
        let since = if state.collection.is_some() { served.map(|at| at.seq) } else { own.empty[partition] };
        let since = since.filter(|_| !own.removed[partition]).unwrap_or(0);
        match record.history(since) {
            History::Gone if served.is_some() || is_left => Some(Task::Remove),
            History::Changes(changes) if !is_gone => {
                own.reached[partition] = since;
                Some(Task::Apply(changes))
            }
            History::UpToDate if is_abandoned && !self.is_broken(Broken::Abandoned) => {
                Some(Task::Rebuild(since))
            }
            _ => None,
        }
    }

    /// Everything that sweeps do by themselves, without a fault, until they find nothing to do.
    pub(super) fn settle(&self, state: &State) -> State {
        let mut state = state.clone();
        for _ in 0..3 {
            for partition in PARTITIONS {
                let mut next = self.next_state(&state, Action::Read { server: 0, partition });
                while let Some(after) = next {
                    state = after;
                    let Some(call) = &state.servers[0].call else { break };
                    let is_begun = call.held.is_some();
                    let action = if is_begun { Action::Send(0, Fate::Applied) } else { Action::Start(0) };
                    next = self.next_state(&state, action);
                }
            }
            self.wait(&mut state);
        }
        state
    }

    pub(super) fn wait(&self, state: &mut State) {
        if !self.is_broken(Broken::PurgeTime) {
            state.late.clear();
        }
        for partition in PARTITIONS {
            state.abandoned[partition] = state.has_drafts(partition);
            let Some(head) = &mut state.heads[partition] else { continue };
            head.is_old = true;
            let Head { stamp, is_served, .. } = *head;
            state.cells.retain(|(_, generation), cell| {
                let is_kept = cell.version.is_some() && *generation >= stamp.generation;
                cell.partition != partition || !is_served || is_kept
            });
        }
    }
}
