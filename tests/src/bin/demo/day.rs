//! The plan of a day: which order at which moment at which device, and when what goes wrong. No clock, no IO.

use samovar_tests::generator::DayOrder;
use std::collections::HashMap;
use std::time::Duration;

/// How long a replay takes at most, unless a speed was asked for.
pub(crate) const MAX_REPLAY: Duration = Duration::from_secs(40);

/// Devices of the store; the first is the till.
pub(crate) const DEVICES: [(&str, &str); 3] =
    [("POS-US-0001", "pos"), ("TEA-US-0001", "tea-machine"), ("QUEUE-US-0001", "queue-screen")];

/// One order of the plan.
pub(crate) struct Planned {
    /// After the start of the replay.
    pub(crate) at: Duration,
    /// Which of [`DEVICES`] takes it.
    pub(crate) device: usize,
    /// The order.
    pub(crate) order: DayOrder,
}

/// A day.
pub(crate) struct Day {
    /// By time.
    pub(crate) orders: Vec<Planned>,
    /// Times faster than life.
    pub(crate) speed: f64,
    opening_s: u32,
    length_s: u32,
}

/// What goes wrong, and when: moments as parts of the day.
pub(crate) struct Trouble {
    /// The line is cut.
    pub(crate) cut: Duration,
    /// The POS loses power.
    pub(crate) kill: Duration,
    /// The POS is back.
    pub(crate) revive: Duration,
    /// The line is back.
    pub(crate) restore: Duration,
}

impl Day {
    /// Orders of one or of many dates are told as one day: by their time of day.
    pub(crate) fn new(mut orders: Vec<DayOrder>, speed: Option<f64>) -> Self {
        orders.sort_by_key(|order| order.at_s);
        let opening_s = orders.first().map_or(0, |order| order.at_s);
        let closing_s = orders.last().map_or(0, |order| order.at_s);
        let length_s = (closing_s - opening_s).max(1);
        let needed = f64::from(length_s) / MAX_REPLAY.as_secs_f64();
        let speed = speed.unwrap_or(needed).max(if speed.is_some() { 0.1 } else { 100.0 });
        let mut device_of: HashMap<String, usize> = HashMap::new();
        let planned = orders.into_iter().enumerate().map(|(index, order)| {
            // A refund is made where the sale was.
            let sale = order.depends_on.as_ref().and_then(|sale| device_of.get(sale)).copied();
            let device = sale.unwrap_or(match index % 10 {
                0..8 => 0,
                8 => 1,
                _ => 2,
            });
            device_of.insert(order.order_no.clone(), device);
            let at = Duration::from_secs_f64(f64::from(order.at_s - opening_s) / speed);
            Planned { at, device, order }
        });
        Self { orders: planned.collect(), speed, opening_s, length_s }
    }

    /// Length in hours of the day.
    pub(crate) fn hours(&self) -> f64 {
        f64::from(self.length_s) / 3600.0
    }

    /// How long the replay takes.
    pub(crate) fn replay(&self) -> Duration {
        Duration::from_secs_f64(f64::from(self.length_s) / self.speed)
    }

    /// The time of day at a moment of the replay.
    pub(crate) fn clock(&self, at: Duration) -> String {
        let day_s = f64::from(self.opening_s) + at.as_secs_f64() * self.speed;
        let minutes = (day_s / 60.0).floor().clamp(0.0, 24.0 * 60.0 - 1.0);
        format!("{:02.0}:{:02.0}", (minutes / 60.0).floor(), minutes % 60.0)
    }

    /// The busiest hour of the day and what goes wrong in it.
    pub(crate) fn trouble(&self) -> Trouble {
        let replay = self.replay();
        let part = |share: f64| replay.mul_f64(share);
        let busiest = self.busiest_hour();
        // Not at the very beginning and not at the very end: one wants to see it work before and after.
        let cut = busiest.clamp(part(0.1), part(0.6));
        Trouble { cut, kill: cut + part(0.05), revive: cut + part(0.1), restore: cut + part(0.2) }
    }

    /// When the hour with most orders begins.
    fn busiest_hour(&self) -> Duration {
        let hour = Duration::from_secs_f64(3600.0 / self.speed);
        let orders_from = |start: Duration| {
            let first = self.orders.partition_point(|order| order.at < start);
            self.orders.partition_point(|order| order.at < start + hour) - first
        };
        let starts = (0..24u32).map(|n| hour * n).filter(|start| *start < self.replay());
        starts.max_by_key(|start| orders_from(*start)).unwrap_or_default()
    }
}
