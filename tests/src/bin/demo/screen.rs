//! What the viewer sees: two bars and a line per event on a terminal, plain lines elsewhere.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use samovar_tests::clock;
use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How often plain output says how far the day is.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// The screen.
pub(crate) struct Screen {
    bars: Option<(MultiProgress, ProgressBar, ProgressBar)>,
    total: u64,
    started: Instant,
    last: Mutex<Instant>,
}

impl Screen {
    /// A screen for a day of so many orders.
    pub(crate) fn new(total: u64) -> Self {
        let bars = std::io::stdout().is_terminal().then(|| {
            let bars = MultiProgress::new();
            let add = |name: &'static str| {
                let style = ProgressStyle::with_template("{prefix:>9} [{bar:40}] {pos}/{len}  {msg}");
                let bar = ProgressBar::new(total).with_prefix(name);
                bars.add(style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style)))
            };
            let (accepted, settled) = (add("accepted"), add("settled"));
            (bars, accepted, settled)
        });
        Self { bars, total, started: clock::now(), last: Mutex::new(clock::now()) }
    }

    /// One thing that happened.
    pub(crate) fn event(&self, text: &str) {
        let line = format!("{:6.1} s  {text}", self.started.elapsed().as_secs_f64());
        match &self.bars {
            Some((bars, ..)) => drop(bars.println(line)),
            None => println!("{line}"),
        }
    }

    /// How far the day is.
    pub(crate) fn progress(&self, clock: &str, accepted: u64, settled: u64) {
        if let Some((_, first, second)) = &self.bars {
            first.set_position(accepted);
            first.set_message(clock.to_owned());
            second.set_position(settled);
            second.set_message(format!("{} on the way", accepted.saturating_sub(settled)));
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= PLAIN_EVERY {
            *last = clock::now();
            let total = self.total;
            self.event(&format!("{clock}  {accepted} of {total} accepted, {settled} settled"));
        }
    }

    /// Leaves the bars as they are.
    pub(crate) fn done(&self) {
        if let Some((_, accepted, settled)) = &self.bars {
            accepted.abandon();
            settled.abandon();
        }
    }
}
