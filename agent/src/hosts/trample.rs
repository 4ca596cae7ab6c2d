//! Pure: when to stop putting our lines back because somebody else keeps taking them out.

use crate::clock::Mono;
use std::collections::VecDeque;
use std::time::Duration;

/// So often …
const TIMES: usize = 3;
/// … within this time, and we stop: two programs that undo each other's work help nobody.
const WITHIN: Duration = Duration::from_secs(60);

/// What somebody else did to our lines of late.
#[derive(Debug, Default)]
pub(super) struct Trample {
    hits: VecDeque<Mono>,
    stopped: bool,
}

impl Trample {
    /// Our lines were taken out or changed. Gives whether to stop.
    pub(super) fn hit(&mut self, now: Mono) -> bool {
        self.hits.retain(|at| now.after(*at) < WITHIN);
        self.hits.push_back(now);
        self.stopped |= self.hits.len() >= TIMES;
        self.stopped
    }

    /// Whether we have stopped.
    pub(super) const fn stopped(&self) -> bool {
        self.stopped
    }

    /// Somebody changed an override: it is tried again.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_times_within_a_minute_is_enough() {
        let at = |seconds| Mono(Duration::from_secs(seconds));
        let mut trample = Trample::default();
        assert!(!trample.hit(at(0)) && !trample.hit(at(30)) && !trample.hit(at(61)) && !trample.hit(at(100)));
        assert!(trample.hit(at(110)));
        assert!(trample.stopped());
        trample.forget();
        assert!(!trample.stopped() && !trample.hit(at(111)));
    }
}
