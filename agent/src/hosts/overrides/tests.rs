use super::*;

const HOUR: u64 = 3_600;

/// A device whose clocks a test turns.
#[derive(Clone)]
struct Device {
    wall_s: u64,
    trusted: bool,
    boot: u32,
    up_s: u64,
}

impl Device {
    fn new() -> Self {
        Self { wall_s: 1_800_000_000, trusted: true, boot: 1, up_s: 500 }
    }

    fn now(&self) -> Now {
        Now {
            wall: Timestamp::from_millis(i64::try_from(self.wall_s * 1_000).unwrap()),
            trusted: self.trusted,
            boot_id: format!("boot-{}", self.boot),
            up: Duration::from_secs(self.up_s),
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.wall_s += seconds;
        self.up_s += seconds;
    }

    fn reboot(&mut self, off_for: u64) {
        self.wall_s += off_for;
        self.boot += 1;
        self.up_s = 10;
    }
}

fn wish(name: &str, hours: u64) -> Wish {
    Wish {
        name: name.into(),
        address: "203.0.113.10".parse().unwrap(),
        owner: "lin".into(),
        reason: "test".into(),
        ticket: None,
        ttl: Duration::from_secs(hours * HOUR),
        force: false,
        source: Source::Local,
    }
}

fn one(hours: u64, device: &Device) -> Overrides {
    let mut overrides = Overrides::default();
    overrides.put(wish("us.store.example", hours), "00000001".into(), &device.now()).unwrap();
    overrides
}

fn ended(overrides: &mut Overrides, device: &Device) -> bool {
    !overrides.age(&device.now()).is_empty()
}

fn hours_left(overrides: &Overrides, device: &Device) -> f64 {
    overrides.next_end(&device.now()).unwrap().as_secs_f64() / 3_600.0
}

#[test]
fn an_override_ends_when_its_time_is_over() {
    let mut device = Device::new();
    let mut overrides = one(4, &device);
    device.pass(4 * HOUR - 1);
    assert!(!ended(&mut overrides, &device));
    assert_eq!(overrides.next_end(&device.now()), Some(Duration::from_secs(1)));
    device.pass(1);
    assert!(ended(&mut overrides, &device));
    assert_eq!(overrides.block().lines, []);
}

#[test]
fn a_clock_that_jumps_can_only_end_it_early() {
    let mut device = Device::new();
    let mut overrides = one(4, &device);
    device.wall_s -= 365 * 24 * HOUR;
    device.pass(4 * HOUR - 1);
    assert!(!ended(&mut overrides, &device));
    device.pass(1);
    assert!(ended(&mut overrides, &device), "a clock put back by a year prolongs nothing");
    let mut overrides = one(4, &device);
    device.wall_s += 365 * 24 * HOUR;
    assert!(ended(&mut overrides, &device));
}

#[test]
fn a_restart_of_the_device_with_a_good_clock_goes_on_by_the_clock() {
    let mut device = Device::new();
    let mut overrides = one(72, &device);
    device.pass(HOUR);
    overrides.age(&device.now());
    device.reboot(10 * HOUR);
    assert!(!ended(&mut overrides, &device));
    assert!((hours_left(&overrides, &device) - 61.0).abs() < 0.1, "{}", hours_left(&overrides, &device));
    device.reboot(62 * HOUR);
    assert!(ended(&mut overrides, &device), "it ended while the device was off");
}

#[test]
fn after_a_restart_without_a_clock_four_hours_are_left_at_most() {
    let mut device = Device::new();
    let mut overrides = one(72, &device);
    device.reboot(0);
    (device.wall_s, device.trusted) = (0, false);
    assert!(!ended(&mut overrides, &device));
    assert!(hours_left(&overrides, &device) < 4.0);
    device.pass(4 * HOUR);
    assert!(ended(&mut overrides, &device));
}

#[test]
fn a_device_that_restarts_again_and_again_without_a_clock_prolongs_nothing_for_ever() {
    let mut device = Device::new();
    let mut overrides = one(72, &device);
    let mut boots = 0;
    loop {
        device.reboot(0);
        (device.wall_s, device.trusted) = (0, false);
        boots += 1;
        // It never stays up for long enough to write down what is left.
        if ended(&mut overrides, &device) {
            break;
        }
        assert!(boots < 1_000, "it never ends");
    }
    assert!(boots > 10);
}

#[test]
fn an_override_made_before_the_clock_was_known_is_dated_when_it_is() {
    let mut device = Device::new();
    (device.wall_s, device.trusted) = (60, false);
    let mut overrides = one(4, &device);
    device.pass(HOUR);
    (device.wall_s, device.trusted) = (1_800_000_000, true);
    assert!(!ended(&mut overrides, &device), "a clock that was set does not end it");
    assert!((hours_left(&overrides, &device) - 3.0).abs() < 0.01);
    assert_eq!(overrides.overrides[0].until.millis() / 1_000, 1_800_000_000 + 3 * 3_600);
}

#[test]
fn there_are_twenty_at_most_and_a_second_for_a_name_replaces_the_first() {
    let device = Device::new();
    let mut overrides = Overrides::default();
    for n in 0..OVERRIDES_MAX {
        let put = overrides.put(wish(&format!("n{n}.example"), 1), format!("{n:08x}"), &device.now());
        assert_eq!(put, Ok(None));
    }
    let more = overrides.put(wish("more.example", 1), "x".into(), &device.now());
    assert_eq!(more, Err(Refused::TooMany));
    let again = overrides.put(wish("n3.example", 2), "y".into(), &device.now()).unwrap();
    assert_eq!(again.unwrap().id, "00000003");
    assert_eq!(overrides.overrides.len(), OVERRIDES_MAX);
    assert!(overrides.overrides.is_sorted_by(|a, b| a.name < b.name));
}

#[test]
fn what_the_fleet_wanted_once_does_not_come_back_when_it_has_ended() {
    let mut device = Device::new();
    let mut overrides = Overrides::default();
    let fleet = Wish { source: Source::Fleet("f-1".into()), ..wish("us.store.example", 1) };
    overrides.put(fleet, "00000001".into(), &device.now()).unwrap();
    assert!(overrides.knows("f-1") && !overrides.knows("f-2"));
    device.pass(HOUR);
    assert!(ended(&mut overrides, &device));
    assert!(overrides.knows("f-1"));
}

#[test]
fn what_is_kept_is_read_as_it_was_written() {
    let device = Device::new();
    let overrides = one(4, &device);
    let text = serde_json::to_string(&overrides).unwrap();
    assert_eq!(serde_json::from_str::<Overrides>(&text).unwrap(), overrides);
}

#[test]
fn a_list_that_says_more_than_may_be_gives_no_more() {
    let device = Device::new();
    let mut text = serde_json::to_value(one(4, &device)).unwrap();
    text["overrides"][0]["left_ms"] = u64::MAX.into();
    text["overrides"][0]["until"] = "9999-01-01T00:00:00.000Z".into();
    let overrides: Overrides = serde_json::from_value(text).unwrap();
    assert!((hours_left(&overrides, &device) - 72.0).abs() < 0.01);
}
