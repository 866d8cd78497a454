//! The clock against its data sheet and against what operating systems do with it.

use super::*;
use crate::Width;
use crate::pl011::testing::Lent;
use proptest::prelude::*;

/// 2023-11-14 22:13:20 UTC, a Tuesday.
const EVENING: u64 = 1_700_000_000;
const AFTERNOON_DATE: [u8; 8] = [0x20, 0x13, 0x22, 0x03, 0x14, 0x11, 0x23, 0x20];

struct Bench {
    cmos: Cmos,
    lent: Lent,
}

impl Bench {
    fn new() -> Self {
        let lent = Lent { epoch_ns: EVENING * NS_PER_S + 250_000_000, ..Lent::default() };
        Self { cmos: Cmos::new(64 * MIB), lent }
    }

    fn access(&mut self, offset: u64, access: Access) -> u8 {
        u8::try_from(self.lent.with(|ports| self.cmos.access(offset, access, ports))).unwrap()
    }

    fn read(&mut self, register: u8) -> u8 {
        assert!(self.cmos.poke(INDEX, Width::Byte, register.into()));
        self.access(DATA, Access::Read(Width::Byte))
    }

    fn write(&mut self, register: u8, value: u8) {
        self.access(INDEX, Access::Write(Width::Byte, register.into()));
        self.access(DATA, Access::Write(Width::Byte, value.into()));
    }

    fn date(&mut self) -> [u8; 8] {
        TIME.map(|register| self.read(register))
    }

    fn notify(&mut self) -> bool {
        self.lent.with(|ports| self.cmos.notify(ports));
        self.cmos.irq()
    }

    /// As Linux sets the time: updates stopped, the divider in reset.
    fn set_date(&mut self, date: [u8; 8]) {
        let (a, b) = (self.read(A), self.read(B));
        self.write(B, b | 0x80);
        self.write(A, a & 0x7f | 0x70);
        for (register, value) in TIME.into_iter().zip(date) {
            self.write(register, value);
        }
        self.write(B, b);
        self.write(A, a & 0x7f);
    }

    /// Goes to the next alarm, at which the line has to rise; returns when that was.
    fn next_rise(&mut self) -> u64 {
        let due = self.cmos.alarm().unwrap();
        assert!(!self.cmos.irq());
        self.lent.now_ns = due - 1;
        assert!(!self.notify());
        self.lent.now_ns = due;
        assert!(self.notify());
        assert_eq!(self.cmos.alarm(), None);
        due
    }
}

#[test]
fn it_shows_real_time_from_power_on() {
    let mut bench = Bench::new();
    assert_eq!(bench.date(), AFTERNOON_DATE);
    assert_eq!([A, B, C, D].map(|register| bench.read(register)), [0x26, 0x02, 0x00, 0x80]);
    bench.lent.now_ns = 749_999_999;
    assert_eq!(bench.read(SECONDS), 0x20);
    bench.lent.now_ns += 1;
    assert_eq!(bench.read(SECONDS), 0x21);
    assert_eq!(bench.cmos.alarm(), None);
}

#[test]
fn an_update_is_announced_before_it_comes() {
    let mut bench = Bench::new();
    for (now_ns, notice) in
        [(0, 0x26), (749_755_999, 0x26), (749_756_000, 0xa6), (749_999_999, 0xa6), (750_000_000, 0x26)]
    {
        bench.lent.now_ns = now_ns;
        assert_eq!(bench.read(A), notice, "at {now_ns}");
    }
    bench.lent.now_ns = 1_749_999_999;
    bench.write(B, 0x82);
    assert_eq!(bench.read(A), 0x26, "no update comes while the clock is set");
}

#[test]
fn digits_follow_register_b() {
    let mut bench = Bench::new();
    bench.write(B, 0x06);
    assert_eq!(bench.date(), [20, 13, 22, 3, 14, 11, 23, 20]);
    bench.write(B, 0x04);
    assert_eq!(bench.read(HOURS), 0x8a);
    bench.write(B, 0x00);
    assert_eq!(bench.read(HOURS), 0x90);
    bench.write(B, 0x02);
    assert_eq!(bench.date(), AFTERNOON_DATE);
}

#[test]
fn a_date_that_is_set_goes_on_half_a_second_later() {
    let mut bench = Bench::new();
    let new_year = [0x59, 0x59, 0x23, 0x06, 0x31, 0x12, 0x99, 0x19];
    bench.lent.now_ns = 5_123_456_789;
    bench.set_date(new_year);
    assert_eq!(bench.date(), new_year);
    bench.lent.now_ns += 499_999_999;
    assert_eq!(bench.date(), new_year);
    bench.lent.now_ns += 1;
    assert_eq!(bench.date(), [0, 0, 0, 0x07, 0x01, 0x01, 0x00, 0x20]);
    bench.cmos.reset();
    assert_eq!(bench.read(YEAR), 0x23);
}

#[test]
fn the_clock_stands_still_while_it_is_set_or_its_divider_is_in_reset() {
    for (register, stopped) in [(B, 0x82), (A, 0x66), (A, 0x76)] {
        let mut bench = Bench::new();
        let running = bench.read(register);
        bench.write(register, stopped);
        bench.lent.now_ns = 100 * NS_PER_S;
        assert_eq!(bench.date(), AFTERNOON_DATE);
        assert_eq!(bench.read(C) & 0x30, 0);
        bench.write(register, running);
        assert_eq!(bench.date(), AFTERNOON_DATE);
        bench.lent.now_ns += NS_PER_S;
        assert_eq!(bench.read(SECONDS), 0x21);
    }
}

#[test]
fn a_field_can_be_set_while_the_clock_runs() {
    let mut bench = Bench::new();
    bench.write(HOURS, 0x07);
    bench.write(WEEKDAY, 0x07);
    assert_eq!(bench.date(), [0x20, 0x13, 0x07, 0x07, 0x14, 0x11, 0x23, 0x20]);
    bench.lent.now_ns = 86_400 * NS_PER_S;
    assert_eq!(bench.date(), [0x20, 0x13, 0x07, 0x01, 0x15, 0x11, 0x23, 0x20]);
}

#[test]
fn a_date_that_cannot_be_becomes_one_that_can() {
    let mut bench = Bench::new();
    bench.set_date([0xff; 8]);
    assert_eq!(bench.date(), [0x59, 0x59, 0x23, 0x04, 0x31, 0x12, 0x99, 0x99]);
    bench.set_date([0; 8]);
    assert_eq!(bench.date(), [0, 0, 0, 0x07, 0x01, 0x01, 0, 0]);
    bench.set_date([0, 0, 0, 1, 0x30, 0x02, 0x24, 0x20]);
    assert_eq!(bench.date()[4..6], [0x01, 0x03]);
}

#[test]
fn update_interrupts_come_each_second_and_reading_c_ends_them() {
    let mut bench = Bench::new();
    bench.write(B, 0x12);
    for second in 0..3 {
        assert_eq!(bench.next_rise(), 750_000_000 + second * NS_PER_S);
        assert_eq!(bench.read(C) & 0xb0, 0x90);
        assert!(!bench.cmos.irq());
        assert_eq!(bench.read(C), 0);
    }
    bench.write(B, 0x92);
    assert_eq!((bench.read(B), bench.cmos.alarm()), (0x82, None));
}

#[test]
fn flags_are_raised_without_their_interrupts_too() {
    let mut bench = Bench::new();
    bench.lent.now_ns = NS_PER_S;
    assert_eq!(bench.read(C), 0x50);
    assert_eq!(bench.read(C), 0);
    bench.lent.now_ns += NS_PER_S / 1_024 + 1;
    assert_eq!(bench.read(C), 0x40);
    bench.lent.now_ns += NS_PER_S;
    bench.write(B, 0x12);
    assert!(bench.cmos.irq());
    assert_eq!(bench.read(C), 0xd0);
}

#[test]
fn an_alarm_comes_when_the_time_does_and_again_the_next_day() {
    let mut bench = Bench::new();
    bench.write(SECONDS_ALARM, 0x05);
    bench.write(MINUTES_ALARM, 0x14);
    bench.write(HOURS_ALARM, 0x22);
    bench.write(B, 0x22);
    let first = bench.next_rise();
    assert_eq!(first, 44 * NS_PER_S + 750_000_000);
    assert_eq!(&bench.date()[..3], [0x05, 0x14, 0x22]);
    assert_eq!(bench.read(C) & 0xa0, 0xa0);
    assert_eq!(bench.next_rise(), first + 86_400 * NS_PER_S);
}

#[test]
fn alarm_registers_may_stand_for_any_value() {
    let mut bench = Bench::new();
    for (registers, distance) in
        [([0xff, 0xff, 0xff], 1), ([0x00, 0xc0, 0xff], 60), ([0x00, 0x00, 0xff], 3600)]
    {
        for (register, value) in [SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM].into_iter().zip(registers) {
            bench.write(register, value);
        }
        bench.read(C);
        bench.write(B, 0x22);
        let first = bench.next_rise();
        bench.read(C);
        assert_eq!(bench.next_rise(), first + distance * NS_PER_S);
        bench.read(C);
    }
    bench.write(HOURS_ALARM, 0x24);
    assert_eq!(bench.cmos.alarm(), None, "no day has such an hour");
}

#[test]
fn periodic_interrupts_have_the_rate_of_register_a() {
    for (rate, hertz) in [(0x21, 256), (0x22, 128), (0x23, 8_192), (0x26, 1_024), (0x2f, 2)] {
        let mut bench = Bench::new();
        bench.write(A, rate);
        bench.write(B, 0x42);
        let first = bench.next_rise();
        for count in 1..10 {
            assert_eq!(bench.read(C) & 0xc0, 0xc0);
            let due = bench.next_rise();
            assert!((due - first).abs_diff(count * NS_PER_S / hertz) <= 1, "{hertz} Hz");
        }
    }
    let mut bench = Bench::new();
    bench.write(A, 0x20);
    bench.write(B, 0x42);
    assert_eq!(bench.cmos.alarm(), None);
}

#[test]
fn memory_keeps_what_is_written_and_tells_how_much_ram_there_is() {
    let mut bench = Bench::new();
    bench.write(0x0f, 0x55);
    bench.write(0x7f, 0xaa);
    assert_eq!([0x0f, 0x7f, 0xff].map(|register| bench.read(register)), [0x55, 0xaa, 0xaa]);
    assert_eq!(bench.access(INDEX, Access::Read(Width::Byte)), 0xff);
    bench.write(D, 0);
    assert_eq!(bench.read(D), 0x80);
    let small = [0x15, 0x16, 0x17, 0x18, 0x30, 0x31, 0x34, 0x35].map(|register| bench.read(register));
    assert_eq!(small, [0x80, 0x02, 0x00, 0xfc, 0x00, 0xfc, 0x00, 0x03]);
    bench.cmos = Cmos::new(5 << 30);
    let large = [0x17, 0x18, 0x34, 0x35, 0x5b, 0x5c, 0x5d].map(|register| bench.read(register));
    assert_eq!(large, [0xff, 0xff, 0x00, 0xbf, 0x00, 0x80, 0x00]);
}

proptest! {
    #[test]
    fn a_date_that_is_set_is_the_date_that_is_read(seconds in -62_167_219_200i64..253_402_300_800, b in 0u8..4) {
        let mut bench = Bench::new();
        bench.write(B, b << 1);
        let style = bench.cmos.style();
        let moment = Moment::from_seconds(seconds);
        let date = [
            style.number(moment.second),
            style.number(moment.minute),
            style.hour(moment.hour),
            style.number(weekday(seconds) + 1),
            style.number(moment.day),
            style.number(moment.month),
            style.number(moment.year),
            style.number(moment.year / 100),
        ];
        bench.set_date(date);
        prop_assert_eq!(bench.date(), date);
        bench.lent.now_ns = 500_000_000;
        let shown = bench.cmos.seconds(500_000_000, &Still(bench.lent.epoch_ns));
        prop_assert_eq!(Moment::from_seconds(shown), Moment::from_seconds(seconds + 1));
    }

    #[test]
    fn no_access_panics_and_every_alarm_raises_the_line(
        steps in prop::collection::vec((any::<u8>(), any::<u8>(), 0u8..3, 0u64..1 << 40), 100),
        epoch_ns: u64,
    ) {
        let mut bench = Bench::new();
        bench.lent.epoch_ns = epoch_ns;
        for (register, value, what, later) in steps {
            let register = if value & 1 == 0 { register & 0x0f } else { register };
            bench.lent.now_ns += later >> (value % 40);
            match what {
                0 => { bench.read(register); }
                1 => bench.write(register, value),
                _ => {
                    let due = bench.cmos.alarm();
                    let before = bench.cmos.irq();
                    let is_due = due.is_some_and(|due| due <= bench.lent.now_ns);
                    prop_assert_eq!(bench.notify(), before || is_due);
                }
            }
            prop_assert!(bench.cmos.alarm().is_none() || !bench.cmos.irq());
        }
        bench.lent.now_ns = u64::MAX;
        for register in 0..=255 {
            bench.write(register, register);
            bench.read(register);
            bench.notify();
        }
    }
}

struct Still(u64);

impl Clock for Still {
    fn now_ns(&self) -> u64 {
        0
    }

    fn epoch_ns(&self) -> u64 {
        self.0
    }
}
