//! Begin, go on, end: how a flood of packets becomes three kinds of report and not a flood of reports.

use crate::event::Phase;

/// One detector's alert about one source or destination.
#[derive(Clone, Copy)]
pub(crate) struct Alarm {
    pub active: bool,
    pub last_us: u64,
    pub total: u64,
    reported_us: u64,
}

impl Alarm {
    pub const OFF: Alarm = Alarm { active: false, last_us: 0, total: 0, reported_us: 0 };

    /// Count one more packet of what the alarm is about, while it is on.
    pub fn count(&mut self, now_us: u64) {
        if self.active {
            self.total = self.total.saturating_add(1);
            self.last_us = now_us;
        }
    }

    /// Return what to report now: the start if `reached`, an update when the last report is old enough.
    pub fn step(&mut self, reached: bool, so_far: u64, now_us: u64, update_us: u64) -> Option<Phase> {
        if !self.active {
            if !reached {
                return None;
            }
            *self = Alarm { active: true, last_us: now_us, total: so_far, reported_us: now_us };
            return Some(Phase::Start);
        }
        if now_us.saturating_sub(self.reported_us) < update_us {
            return None;
        }
        self.reported_us = now_us;
        Some(Phase::Update)
    }
}

/// So many events a second, with one second's worth in reserve.
pub(crate) struct RateLimit {
    per_s: u32,
    second: u64,
    used: u32,
}

impl RateLimit {
    pub fn new(per_s: u32) -> RateLimit {
        RateLimit { per_s, second: 0, used: 0 }
    }

    /// Return whether one more is allowed; `keep_percent` of a second's allowance is left for what matters more.
    pub fn allow(&mut self, now_us: u64, keep_percent: u32) -> bool {
        let second = now_us / 1_000_000;
        if second != self.second {
            (self.second, self.used) = (second, 0);
        }
        let limit = u64::from(self.per_s) * u64::from(100 - keep_percent.min(100)) / 100;
        if u64::from(self.used) >= limit.max(1) {
            return false;
        }
        self.used += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_start_and_updates_no_closer_than_told() {
        let mut alarm = Alarm::OFF;
        assert_eq!(alarm.step(false, 0, 0, 10), None);
        assert_eq!(alarm.step(true, 5, 1, 10), Some(Phase::Start));
        assert_eq!(alarm.step(true, 0, 10, 10), None);
        assert_eq!(alarm.step(false, 0, 11, 10), Some(Phase::Update));
        assert_eq!(alarm.step(false, 0, 12, 10), None);
    }

    #[test]
    fn a_second_has_its_allowance_and_the_reserve_is_kept() {
        let mut limit = RateLimit::new(10);
        assert_eq!((0..20).filter(|_| limit.allow(5, 50)).count(), 5);
        assert_eq!((0..20).filter(|_| limit.allow(5, 0)).count(), 5);
        assert!(limit.allow(1_000_000, 0));
    }
}
