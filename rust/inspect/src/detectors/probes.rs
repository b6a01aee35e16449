//! What one source asked for and how it was answered: ports of a host, or hosts with one port.

use super::table::Entry;

/// One bit of a word for each remembered target; thresholds are below.
pub const MOST: usize = 32;
/// Unanswered for this long, at most twice as long, counts as ignored; what answers later is taken off again.
const GRACE_US: u64 = 250_000;

/// Targets and their fates.
#[derive(Clone, Default)]
pub struct Probes {
    window_us: u64,
    rotated_us: u64,
    last_us: u64,
    targets: [u32; MOST],
    length: u8,
    // one bit for each target: asked just now, asked a while ago, refused or ignored, answered
    fresh: u32,
    waiting: u32,
    failed: u32,
    open: u32,
    // failed ones that were handed out by `newly_failed`
    told: u32,
    /// Silence says nothing: only refusals count.
    pub counts_refusals_only: bool,
    /// Targets are not ours.
    pub is_outward: bool,
    /// It is on the list of those that time alone may change.
    pub is_queued: bool,
    /// Packets that asked.
    pub asked: u32,
    /// The latest packet's ports.
    pub ports: [u16; 2],
    /// The latest packet's flow.
    pub flow_id: u64,
}

impl Probes {
    /// Begin a new window where the old one is over.
    pub fn open_window(&mut self, now_us: u64, window_us: u64) {
        self.rotate(now_us);
        if now_us < self.window_us || now_us - self.window_us >= window_us {
            (self.fresh, self.waiting, self.failed, self.open, self.told, self.length) = (0, 0, 0, 0, 0, 0);
            (self.window_us, self.rotated_us, self.asked) = (now_us, now_us, 0);
        }
        self.last_us = now_us;
    }

    /// Two steps of at least [`GRACE_US`] lead from asked to ignored; after a pause as long, one step does.
    pub fn rotate(&mut self, now_us: u64) {
        if self.counts_refusals_only {
            return;
        }
        if now_us.saturating_sub(self.last_us) >= GRACE_US {
            self.failed |= self.waiting | self.fresh;
            (self.waiting, self.fresh, self.rotated_us) = (0, 0, now_us);
        } else if now_us.saturating_sub(self.rotated_us) >= GRACE_US {
            self.failed |= self.waiting;
            (self.waiting, self.fresh) = (self.fresh, 0);
            self.rotated_us = now_us;
        }
    }

    fn find(&self, target: u32) -> Option<usize> {
        self.targets.iter().take(usize::from(self.length)).position(|known| *known == target)
    }

    /// The source asks for a target.
    pub fn ask(&mut self, target: u32) {
        self.asked = self.asked.saturating_add(1);
        if self.find(target).is_some() {
            return;
        }
        let index = match usize::from(self.length) {
            // one that is no suspicion makes room: it will be asked for anew, or is of no interest
            MOST => (!(self.fresh | self.waiting | self.failed)).trailing_zeros() as usize,
            length => length,
        };
        let Some(place) = self.targets.get_mut(index) else { return };
        *place = target;
        self.length = self.length.max(index as u8 + 1);
        self.set(index, |probes| &mut probes.fresh);
    }

    fn set(&mut self, index: usize, list: fn(&mut Probes) -> &mut u32) {
        let bit = 1_u32 << (index % MOST);
        for mask in [&mut self.fresh, &mut self.waiting, &mut self.failed, &mut self.open] {
            *mask &= !bit;
        }
        *list(self) |= bit;
    }

    /// Whether the source asked for it.
    pub fn has_asked(&self, target: u32) -> bool {
        self.find(target).is_some()
    }

    /// A target answered as a service does.
    pub fn answered(&mut self, target: u32) {
        if let Some(index) = self.find(target).filter(|index| !self.is_served(*index)) {
            self.set(index, |probes| &mut probes.open);
            self.told &= !(1 << (index % MOST));
        }
    }

    fn is_served(&self, index: usize) -> bool {
        (self.fresh | self.waiting | self.failed | self.open) >> (index % MOST) & 1 == 0
    }

    /// Bytes went to or fro: a use, no probe.
    pub fn served(&mut self, target: u32) {
        if let Some(index) = self.find(target) {
            let bit = 1_u32 << (index % MOST);
            for mask in [&mut self.fresh, &mut self.waiting, &mut self.failed, &mut self.open] {
                *mask &= !bit;
            }
        }
    }

    /// A target that had not answered yet refused. Returns whether that is news.
    pub fn refused(&mut self, target: u32) -> bool {
        let pending = self.fresh | self.waiting;
        let Some(index) = self.find(target).filter(|index| pending >> index & 1 == 1) else { return false };
        self.set(index, |probes| &mut probes.failed);
        true
    }

    /// The source left a target that had answered and got nothing. Returns whether that is news.
    pub fn left(&mut self, target: u32) -> bool {
        let Some(index) = self.find(target).filter(|index| self.open >> index & 1 == 1) else { return false };
        self.set(index, |probes| &mut probes.failed);
        true
    }

    /// How many targets are remembered.
    pub fn length(&self) -> u32 {
        self.length.into()
    }

    /// Distinct targets that refused or ignored the source.
    pub fn failures(&self) -> u32 {
        self.failed.count_ones()
    }

    /// Whether time alone may change it.
    pub fn is_pending(&self) -> bool {
        self.fresh | self.waiting != 0
    }

    /// Return targets that failed and were not returned before.
    pub fn newly_failed(&mut self) -> impl Iterator<Item = u32> + use<> {
        let (news, targets) = (self.failed & !self.told, self.targets);
        self.told |= news;
        targets.into_iter().enumerate().filter(move |(index, _)| news >> index & 1 == 1).map(|(_, target)| target)
    }

    /// Return a few targets that failed, for evidence.
    pub fn sample(&self, most: usize) -> Vec<u32> {
        let failed = self.targets.iter().enumerate().filter(|(index, _)| self.failed >> index & 1 == 1);
        failed.map(|(_, target)| *target).take(most).collect()
    }
}

impl Entry for Probes {
    fn weight(&self) -> u32 {
        self.failures() * 2 + u32::from(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unanswered_is_ignored_only_after_the_grace_and_answers_take_it_back() {
        let mut probes = Probes::default();
        probes.open_window(1_000_000, 10_000_000);
        (1..=5).for_each(|target| probes.ask(target));
        probes.answered(1);
        assert!(probes.refused(2) && !probes.refused(77));
        assert_eq!(probes.failures(), 1);
        probes.rotate(1_200_000);
        assert_eq!(probes.failures(), 1);
        probes.rotate(1_260_000);
        assert_eq!((probes.failures(), probes.is_pending()), (4, false));
        assert_eq!(probes.newly_failed().collect::<Vec<_>>(), [2, 3, 4, 5]);
        assert_eq!(probes.newly_failed().count(), 0);
        probes.answered(3);
        assert_eq!(probes.failures(), 3);
        probes.open_window(12_000_000, 10_000_000);
        assert_eq!(probes.failures(), 0);
    }

    #[test]
    fn a_full_list_makes_room_by_what_was_answered() {
        let mut probes = Probes::default();
        (0..100).for_each(|target| {
            probes.ask(target);
            probes.answered(target);
        });
        assert!(probes.has_asked(99) && probes.failures() == 0);
        (200..300).for_each(|target| {
            probes.ask(target);
            probes.refused(target);
        });
        assert_eq!(probes.failures(), 32);
    }
}
