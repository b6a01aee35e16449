//! Rules against the transactions of a flow.
//!
//! A transaction is looked at whenever it has gone on. Literals find candidates in the buffers that have become
//! complete (or have grown); a candidate is decided when everything that it asks about is there, and waits until then.

use std::net::{IpAddr, Ipv6Addr};

use protocols::{COMPLETE, View, Way};
use signatures::TransactionTest;

use crate::app::{App, Looked, Tracked};
use crate::detect::{Job, Run};
use crate::flow::Flow;
use crate::groups::{BufferGroup, test_place, test_way};

/// Buffers of one kind in one transaction that are looked at.
const MOST_BUFFERS: usize = 1024;

/// Chains of flowbits inside one transaction that are followed; public rule sets have two links.
const MOST_ROUNDS: usize = 3;

/// A growing buffer is looked at when it is complete, or this long.
const LEAST_GROWN: usize = 32 << 10;

/// What one test says about a transaction so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Match,
    No,
    Wait,
}

impl Run<'_> {
    pub(crate) fn transaction_rules(&mut self, flow: &mut Flow) {
        let Some(way) = self.job.flow.map(|flow| flow.way) else { return };
        let Some(protocol) = flow.app.protocol else { return };
        if !self.detector.groups.looks_at(protocol, way) {
            return;
        }
        let mut app = std::mem::take(&mut flow.app);
        let (first, end) = app.range();
        for id in first..end {
            self.one_transaction(&mut app, protocol, way, id, flow);
        }
        flow.app = app;
    }

    fn one_transaction(&mut self, app: &mut App, protocol: u8, way: Way, id: u64, flow: &mut Flow) {
        let fed = app.fed[way as usize];
        let Some((transaction, tracked)) = app.both(id) else { return };
        let progress = Way::BOTH.map(|way| transaction.progress(way));
        let Tracked { looked, .. } = tracked;
        let looked = &mut looked[way as usize];
        if looked.is_over || progress[way as usize] == 0 {
            return;
        }
        let Some(group) = self.detector.groups.transaction(protocol, way) else { return };
        let grown = grown(transaction, group.buffers.as_slice());
        if looked.progress != progress {
            looked.repeating.clear();
        }
        let repeats = !looked.repeating.is_empty() && looked.fed != fed;
        if looked.has_begun && looked.progress == progress && looked.grown == grown && !repeats {
            return;
        }
        self.scratch.found.clear();
        for buffer in &group.buffers {
            self.scan_buffer(transaction, buffer, looked, progress, grown);
        }
        let mut candidates = std::mem::take(&mut looked.waiting);
        while let Some((needed, rule)) = group.always.get(looked.always as usize)
            && *needed <= progress[way as usize]
        {
            candidates.push(*rule);
            looked.always += 1;
        }
        candidates.extend_from_slice(&self.scratch.found.rules);
        candidates.append(&mut looked.repeating);
        candidates.sort_unstable();
        candidates.dedup();
        self.scratch.refused_by_state.clear();
        for index in candidates {
            self.try_transaction_rule(index, transaction, looked, (protocol, way, id), progress, flow);
        }
        // a match may have set what an earlier rule of the same transaction waits for
        for _ in 0..MOST_ROUNDS {
            let before = self.scratch.matches.len();
            for index in std::mem::take(&mut self.scratch.refused_by_state) {
                self.try_transaction_rule(index, transaction, looked, (protocol, way, id), progress, flow);
            }
            if self.scratch.matches.len() == before || self.scratch.refused_by_state.is_empty() {
                break;
            }
        }
        (looked.progress, looked.grown, looked.fed, looked.has_begun) = (progress, grown, fed, true);
        looked.is_over = progress[way as usize] == COMPLETE && (looked.waiting.is_empty() || progress == [COMPLETE; 2]);
    }

    fn scan_buffer(
        &mut self,
        transaction: &dyn protocols::Transaction,
        group: &BufferGroup,
        looked: &Looked,
        progress: [u8; 2],
        grown: u64,
    ) {
        let side = group.way as usize;
        let is_new = !looked.has_begun || looked.progress[side] < group.progress;
        let has_changed = is_new || (group.is_multiple && looked.progress[side] != progress[side]);
        if progress[side] < group.progress
            || !(has_changed || group.is_growing && (looked.grown != grown || looked.progress != progress))
        {
            return;
        }
        for nth in 0..if group.is_multiple { MOST_BUFFERS } else { 1 } {
            let Some(view) = transaction.buffer(usize::from(group.buffer), group.way, nth) else { return };
            if !is_due(&view, group.is_growing, self.job.is_inline) {
                continue;
            }
            let data = transformed(&group.transforms, view.data, &mut self.scratch.buffers);
            group.prefilter.scan(data, &mut self.scratch.found);
        }
    }

    fn try_transaction_rule(
        &mut self,
        index: u32,
        transaction: &dyn protocols::Transaction,
        looked: &mut Looked,
        (protocol, way, id): (u8, Way, u64),
        progress: [u8; 2],
        flow: &mut Flow,
    ) {
        let Some(rule) = self.detector.rules.signatures.get(index as usize) else { return };
        if looked.matched.contains(&index) || !self.passes_gate(rule) {
            return;
        }
        let needs = self.detector.groups.needs.get(index as usize).copied().unwrap_or_default();
        let mut verdict = Verdict::Match;
        if progress[0] < needs[0] || progress[1] < needs[1] {
            verdict = Verdict::Wait;
        }
        self.scratch.variables.clear();
        self.scratch.captures.clear();
        self.scratch.pending.clear();
        for test in &rule.transaction_tests {
            match self.transaction_test(test, transaction, usize::from(protocol), way, progress) {
                Verdict::Match => {}
                Verdict::No => return,
                Verdict::Wait => verdict = Verdict::Wait,
            }
        }
        if verdict == Verdict::Wait {
            return looked.wait_for(index);
        }
        let is_in_stream = match (flow.payload_matches.contains(&index), self.payload_matches(rule)) {
            (_, Some(is_in_stream)) => is_in_stream,
            (true, None) => true,
            (false, None) => {
                looked.wait_for(index); // the stream around the transaction may come later
                return;
            }
        };
        if self.matched(index, rule, Some(flow), Some(id), is_in_stream) {
            match rule.hook {
                // a state that lasts, such as a body: the hook is met anew with what comes
                Some((hooked, state)) if rule.transaction_tests.is_empty() && progress[hooked as usize] == state => {
                    looked.repeating.push(index);
                }
                _ => looked.matched.push(index),
            }
        } else {
            self.scratch.refused_by_state.push(index);
        }
    }

    fn transaction_test(
        &mut self,
        test: &TransactionTest,
        transaction: &dyn protocols::Transaction,
        protocol: usize,
        way: Way,
        progress: [u8; 2],
    ) -> Verdict {
        let Some(place) = test_place(test, protocol) else { return Verdict::No };
        let way = test_way(test, &place, way);
        if progress[way as usize] < place.progress {
            return Verdict::Wait;
        }
        let decided = |is_so: bool| if is_so { Verdict::Match } else { Verdict::No };
        match test {
            TransactionTest::Buffer(test) => {
                let index = usize::from(place.index);
                let most = if place.is_multiple { MOST_BUFFERS } else { 1 };
                let mut verdict = Verdict::No;
                for nth in 0..most {
                    let Some(view) = transaction.buffer(index, way, nth) else {
                        if nth == 0 && progress[way as usize] != COMPLETE && place.is_growing {
                            return Verdict::Wait;
                        }
                        if nth == 0 {
                            return decided(test.inspection.matches_absence());
                        }
                        break;
                    };
                    if !is_due(&view, place.is_growing, self.job.is_inline) {
                        verdict = Verdict::Wait;
                        continue;
                    }
                    if self.buffer_matches(test, view) {
                        return Verdict::Match;
                    }
                    if !view.is_complete {
                        verdict = Verdict::Wait;
                    }
                }
                if place.is_multiple && progress[way as usize] != COMPLETE && verdict == Verdict::No {
                    verdict = Verdict::Wait; // another may come
                }
                verdict
            }
            TransactionTest::Number(test) => {
                let index = usize::from(place.index);
                let most = if place.is_multiple { MOST_BUFFERS } else { 1 };
                let numbers = (0..most).map_while(|nth| transaction.number(index, way, nth));
                decided(test.choice.matches(test.range, numbers))
            }
            TransactionTest::Custom(test) => {
                let found = test.places.iter().find(|(owner, _, _)| usize::from(*owner) == protocol);
                let client = client_address(self.job);
                let is_so = found.is_some_and(|(_, _, custom)| custom.matches_between(transaction, way, client));
                decided(is_so != test.is_negated)
            }
            TransactionTest::Event { event, .. } => match transaction.events().contains(event) {
                true => Verdict::Match,
                false if progress[way as usize] != COMPLETE => Verdict::Wait,
                false => Verdict::No,
            },
        }
    }

    fn buffer_matches(&mut self, test: &signatures::BufferTest, view: View<'_>) -> bool {
        if test.transforms.is_empty() {
            return self.inspect(&test.inspection, view) && self.datasets_match(test, view.data);
        }
        let mut buffers = std::mem::take(&mut self.scratch.buffers);
        let data = transformed(&test.transforms, view.data, &mut buffers);
        let is_so = self.inspect(&test.inspection, View { data, ..view }) && self.datasets_match(test, data);
        self.scratch.buffers = buffers;
        is_so
    }

    fn datasets_match(&mut self, test: &signatures::BufferTest, data: &[u8]) -> bool {
        for dataset in &test.datasets {
            if !dataset.matches(&mut self.memory.datasets, data) {
                return false;
            }
            let context = dataset.context(&self.memory.datasets, data);
            self.scratch.pending.extend(context.map(|(name, json)| (name.to_owned(), json.to_owned())));
        }
        true
    }
}

/// How many bytes of growing buffers there are in all.
fn grown(transaction: &dyn protocols::Transaction, groups: &[BufferGroup]) -> u64 {
    let mut total = 0;
    for group in groups.iter().filter(|group| group.is_growing) {
        let mut nth = 0;
        while let Some(view) = transaction.buffer(usize::from(group.buffer), group.way, nth) {
            total += view.start + view.data.len() as u64 + u64::from(view.is_complete);
            nth += 1;
            if !group.is_multiple || nth >= MOST_BUFFERS {
                break;
            }
        }
    }
    total
}

fn is_due(view: &View<'_>, is_growing: bool, is_inline: bool) -> bool {
    !is_growing || view.is_complete || is_inline || view.data.len() >= LEAST_GROWN
}

/// Apply transforms one after another, between two buffers.
fn transformed<'b>(transforms: &[signatures::Transform], data: &'b [u8], buffers: &'b mut [Vec<u8>; 2]) -> &'b [u8] {
    let Some((first, rest)) = transforms.split_first() else { return data };
    let [one, other] = buffers;
    first.apply(data, one);
    for transform in rest {
        transform.apply(one, other);
        std::mem::swap(one, other);
    }
    one
}

fn client_address(job: &Job<'_>) -> IpAddr {
    let packet = job.packet;
    let is_answer = job.flow.is_some_and(|flow| flow.way == Way::ToClient);
    let address = if is_answer { packet.destination } else { packet.source };
    IpAddr::V6(Ipv6Addr::from_bits(address)).to_canonical()
}
