//! The timer against a clocked model of its data sheet, and against what operating systems do with it.

use super::*;
use crate::Width;
use crate::pl011::testing::Lent;
use alloc::vec::Vec;
use proptest::prelude::*;

struct Bench {
    pit: Pit,
    lent: Lent,
}

impl Bench {
    fn new() -> Self {
        Self { pit: Pit::new(), lent: Lent::default() }
    }

    fn read(&mut self, offset: u64) -> u8 {
        let value = self.lent.with(|ports| self.pit.access(offset, Access::Read(Width::Byte), ports));
        u8::try_from(value).unwrap()
    }

    fn write(&mut self, offset: u64, value: u8) {
        self.lent.with(|ports| self.pit.access(offset, Access::Write(Width::Byte, value.into()), ports));
    }

    fn program(&mut self, counter: u64, mode: u8, count: u16) {
        self.write(CONTROL, u8::try_from(counter).unwrap() << 6 | 0x30 | mode << 1);
        for byte in count.to_le_bytes() {
            self.write(counter, byte);
        }
    }

    fn count(&mut self, counter: u64) -> u16 {
        self.write(CONTROL, u8::try_from(counter).unwrap() << 6);
        u16::from_le_bytes([self.read(counter), self.read(counter)])
    }

    fn at_tick(&mut self, tick: u64) {
        self.lent.now_ns = moment_ns(tick, PIT_HZ);
    }

    fn at_ns(&mut self, now_ns: u64) {
        self.lent.now_ns = now_ns;
    }

    fn notify(&mut self) -> bool {
        self.lent.with(|ports| self.pit.notify(ports));
        self.pit.irq()
    }

    /// The moments at which the line rises up to `until_ns`, when each alarm is kept `late_ns` after its time.
    fn rises(&mut self, until_ns: u64, late_ns: u64) -> Vec<u64> {
        let mut rises = Vec::new();
        while let Some(due) = self.pit.alarm().filter(|&due| due + late_ns <= until_ns) {
            let before = self.pit.irq();
            self.at_ns(self.lent.now_ns.max(due + late_ns));
            assert_ne!(self.notify(), before, "an alarm is a transition");
            if !before {
                rises.push(self.lent.now_ns);
            }
        }
        rises
    }
}

#[test]
fn after_power_on_nothing_counts_and_no_alarm_is_set() {
    let mut bench = Bench::new();
    assert_eq!((bench.pit.alarm(), bench.pit.irq()), (None, false));
    bench.at_ns(1 << 40);
    assert!(!bench.notify());
    assert_eq!(bench.count(0), 0);
}

#[test]
fn a_guest_that_calibrates_with_counter_2_sees_real_time() {
    let mut bench = Bench::new();
    bench.at_ns(77_777_777);
    bench.write(PORT_61, 0x01);
    bench.program(2, 0, 11_932);
    let start = bench.lent.now_ns;
    while bench.read(PORT_61) & PORT_61_OUTPUT == 0 {
        bench.lent.now_ns += 500;
    }
    let took = bench.lent.now_ns - start;
    assert!((10_000_000..10_002_000).contains(&took), "{took} ns instead of 10 ms");
    assert!(bench.pit.alarm().is_none());
}

#[test]
fn the_high_byte_can_be_watched_without_latching() {
    let mut bench = Bench::new();
    bench.write(PORT_61, 0x01);
    bench.program(2, 0, 0xffff);
    for high in (0xf0..=0xff).rev() {
        let tick = (0xffff - (u64::from(high) << 8 | 0x80)) + 1;
        bench.at_tick(tick);
        assert_eq!((bench.read(2), bench.read(2)), (0x80, high));
    }
}

#[test]
fn port_61_keeps_its_switches_and_turns_with_each_refresh() {
    let mut bench = Bench::new();
    bench.write(PORT_61, 0xff);
    assert_eq!(bench.read(PORT_61) & 0xdf, 0x0f);
    bench.at_ns(REFRESH_NS);
    assert_eq!(bench.read(PORT_61) & 0xdf, 0x1f);
    assert_eq!(bench.read(CONTROL), 0xff);
}

#[test]
fn a_periodic_line_rises_at_the_end_of_each_period_however_late_the_alarms_are() {
    for mode in [2, 3] {
        let mut bench = Bench::new();
        bench.program(0, mode, 11_932);
        let ends: Vec<u64> = (1..=20).map(|period| moment_ns(1 + period * 11_932, PIT_HZ)).collect();
        assert_eq!(bench.clone_rises(ends[19], 0), ends);
        let late = bench.clone_rises(ends[19] + 3_000_000, 3_000_000);
        assert_eq!(late.len(), 20);
        assert!(late.iter().zip(ends).all(|(rise, end)| *rise == end + 3_000_000));
    }
}

impl Bench {
    fn clone_rises(&self, until_ns: u64, late_ns: u64) -> Vec<u64> {
        let lent = Lent { now_ns: self.lent.now_ns, ..Lent::default() };
        Self { pit: self.pit.clone(), lent }.rises(until_ns, late_ns)
    }
}

#[test]
fn ticks_that_were_missed_are_made_up_one_by_one_and_dropped_after_100_ms() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1_193);
    bench.at_ns(50_400_000);
    let soon = bench.rises(50_400_000 + 100 * GAP_NS, 0);
    assert!((50..53).contains(&soon.len()), "{} of 50 missed ticks", soon.len());
    bench.at_ns(10_000_000_400);
    assert!(bench.rises(10_000_900_000, 0).len() <= 1);
    assert_eq!(bench.rises(10_010_000_400, 0).len(), 9);
}

#[test]
fn a_one_shot_rises_once_and_can_be_rewritten_without_an_edge() {
    for mode in [0, 4] {
        let mut bench = Bench::new();
        bench.program(0, mode, 1_000);
        bench.at_tick(500);
        for byte in 2_000u16.to_le_bytes() {
            bench.write(0, byte);
            assert!(!bench.pit.irq());
        }
        let end = 501 + 2_000 + u64::from(mode == 4);
        assert_eq!(bench.rises(u64::MAX / 2, 0), [moment_ns(end, PIT_HZ)]);
        assert!(bench.pit.irq());
        assert_eq!(bench.pit.alarm(), None);
        for byte in 100u16.to_le_bytes() {
            bench.write(0, byte);
        }
        assert!(!bench.pit.irq());
        assert_eq!(bench.rises(u64::MAX / 2, 0).len(), 1);
    }
}

#[test]
fn a_new_control_word_stops_the_line() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1_193);
    assert_eq!(bench.rises(1_500_000, 0).len(), 1);
    bench.write(CONTROL, 0x30);
    assert_eq!((bench.pit.irq(), bench.pit.alarm()), (false, None));
    bench.program(0, 0, 0);
    assert_eq!(bench.rises(u64::MAX / 2, 0).len(), 1);
}

#[test]
fn a_new_period_begins_where_the_old_one_ends() {
    for mode in [2, 3] {
        let mut bench = Bench::new();
        bench.program(0, mode, 10_000);
        bench.at_tick(9_000);
        for byte in 20_000u16.to_le_bytes() {
            bench.write(0, byte);
        }
        let ends = [10_001, 30_001, 50_001].map(|tick| moment_ns(tick, PIT_HZ));
        assert_eq!(bench.rises(ends[2], 0), ends);
    }
}

#[test]
fn the_shortest_periods_do_not_flood_the_host() {
    for (mode, count) in [(2, 1), (3, 2), (2, 2), (3, 3)] {
        let mut bench = Bench::new();
        bench.program(0, mode, count);
        assert!(bench.rises(1_000_000_000, 0).len() <= 25_001);
    }
}

#[test]
fn a_latched_count_stays_until_it_is_read_and_a_second_latch_is_ignored() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1_000);
    bench.at_tick(101);
    bench.write(CONTROL, 0x00);
    bench.at_tick(201);
    bench.write(CONTROL, 0x00);
    assert_eq!(u16::from_le_bytes([bench.read(0), bench.read(0)]), 900);
    assert_eq!(u16::from_le_bytes([bench.read(0), bench.read(0)]), 800);
}

#[test]
fn read_back_gives_status_before_count() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1_000);
    bench.write(CONTROL, 0xe2);
    assert_eq!(bench.read(0), 0xf4, "OUT high, count not loaded yet");
    bench.at_tick(101);
    bench.write(CONTROL, 0xc2);
    assert_eq!([bench.read(0), bench.read(0), bench.read(0)], [0xb4, 0x84, 0x03]);
    bench.at_tick(1_000);
    bench.write(CONTROL, 0xe2);
    assert_eq!(bench.read(0), 0x34, "OUT is low in the last tick");
    bench.write(CONTROL, 0xde);
    assert_eq!(u16::from_le_bytes([bench.read(0), bench.read(0)]), 1);
    assert_eq!(bench.read(1), 0);
}

#[test]
fn single_byte_access_modes_move_one_byte() {
    let mut bench = Bench::new();
    bench.write(CONTROL, 0x14);
    bench.write(0, 200);
    bench.at_tick(11);
    assert_eq!((bench.read(0), bench.read(0)), (190, 190));
    bench.write(CONTROL, 0x24);
    bench.write(0, 2);
    bench.at_tick(12 + 0x100);
    assert_eq!((bench.read(0), bench.read(0)), (1, 1));
}

#[test]
fn bcd_counts_in_decimal_and_bad_digits_do_no_harm() {
    let mut bench = Bench::new();
    bench.write(CONTROL, 0x31);
    bench.write(0, 0x00);
    bench.write(0, 0x10);
    bench.at_tick(2);
    assert_eq!(bench.count(0), 0x0999);
    bench.at_tick(1_002);
    assert_eq!(bench.count(0), 0x9999);
    for digits in [0xffff_u16, 0xa000, 0x9999, 0] {
        for mode in 0..6 {
            bench.write(CONTROL, 0x31 | mode << 1);
            digits.to_le_bytes().into_iter().for_each(|byte| bench.write(0, byte));
            let count = bench.count(0);
            assert!((0..4).all(|place| count >> (4 * place) & 0xf < 10));
        }
    }
}

#[test]
fn a_reset_stops_everything() {
    let mut bench = Bench::new();
    bench.program(0, 2, 100);
    bench.rises(1_000_000, 0);
    bench.pit.reset();
    assert_eq!((bench.pit.irq(), bench.pit.alarm()), (false, None));
}

/// A counter as the data sheet tells it: one clock pulse after the other.
struct Clocked {
    mode: u8,
    counting: u32,
    written: Option<u32>,
    length: u32,
    out: bool,
    gate: bool,
    armed: bool,
    load: bool,
    trigger: bool,
}

impl Clocked {
    fn new(mode: u8, gate: bool) -> Self {
        let out = mode != 0;
        Self {
            mode,
            counting: 0,
            written: None,
            length: 0,
            out,
            gate,
            armed: false,
            load: false,
            trigger: false,
        }
    }

    fn write(&mut self, count: u32) {
        self.written = Some(count);
        match self.mode {
            0 => (self.out, self.load) = (false, true),
            4 => (self.out, self.load) = (true, true),
            2 | 3 => self.load |= self.length == 0,
            _ => {}
        }
    }

    fn set_gate(&mut self, gate: bool) {
        self.trigger |= gate && !self.gate;
        if !gate && matches!(self.mode, 2 | 3) {
            self.out = true;
        }
        self.gate = gate;
    }

    fn take(&mut self) {
        self.length = self.written.take().unwrap_or(self.length);
        self.counting = if self.mode == 3 { self.length & !1 } else { self.length };
    }

    fn clock(&mut self) {
        let trigger = core::mem::take(&mut self.trigger);
        let load = core::mem::take(&mut self.load);
        if !matches!(self.mode, 1 | 5) && load || self.mode >> 1 == 1 && trigger && self.length > 0 {
            self.take();
            self.armed = true;
            return;
        }
        if matches!(self.mode, 1 | 5) && trigger && (self.written.is_some() || self.length > 0) {
            self.take();
            self.armed = true;
            self.out = self.mode == 5;
            return;
        }
        if self.length == 0 || !self.gate && !matches!(self.mode, 1 | 5) {
            return;
        }
        match self.mode {
            2 if self.counting == 1 => self.take(),
            3 => return self.clock_square(),
            _ => self.counting = self.counting.wrapping_sub(1) & 0xffff,
        }
        match self.mode {
            0 | 1 => self.out |= self.counting == 0 && self.armed,
            2 => self.out = self.counting != 1,
            _ => {
                self.out = self.counting != 0 || !self.armed;
                self.armed &= self.counting != 0;
            }
        }
    }

    fn clock_square(&mut self) {
        let is_last = if self.out && self.length % 2 == 1 { self.counting == 0 } else { self.counting == 2 };
        if !is_last {
            self.counting -= 2;
            return;
        }
        self.out = !self.out;
        self.counting = self.length & !1;
        if self.out {
            self.take();
        }
    }
}

proptest! {
    #[test]
    fn every_mode_agrees_with_the_data_sheet_clock_by_clock(
        mode in 0u8..6,
        gate: bool,
        steps in prop::collection::vec((0u8..3, 2u16..40, 1u64..90), 1..8),
    ) {
        let mut bench = Bench::new();
        bench.write(PORT_61, u8::from(gate));
        bench.write(CONTROL, 0xb0 | mode << 1);
        let mut clocked = Clocked::new(mode, gate);
        let mut tick = 0;
        for (what, count, wait) in steps {
            if what == 0 || clocked.length == 0 && clocked.written.is_none() {
                count.to_le_bytes().into_iter().for_each(|byte| bench.write(2, byte));
                clocked.write(count.into());
            } else {
                bench.write(PORT_61, u8::from(!clocked.gate));
                clocked.set_gate(!clocked.gate);
            }
            for _ in 0..wait {
                tick += 1;
                bench.at_tick(tick);
                clocked.clock();
                if clocked.length == 0 {
                    continue;
                }
                prop_assert_eq!(bench.read(PORT_61) & PORT_61_OUTPUT != 0, clocked.out, "OUT at {}", tick);
                prop_assert_eq!(u32::from(bench.count(2)), clocked.counting, "count at {}", tick);
            }
        }
    }

    #[test]
    fn no_access_panics_and_no_alarm_stands_still(
        steps in prop::collection::vec((0u64..7, any::<u8>(), any::<bool>(), 0u64..1 << 36), 200),
    ) {
        let mut bench = Bench::new();
        for (offset, value, store, later) in steps {
            bench.lent.now_ns += later >> (value % 36);
            if store { bench.write(offset, value) } else { bench.read(offset); }
            let due = bench.pit.alarm();
            let before = bench.pit.irq();
            bench.notify();
            let moved = bench.pit.irq() != before;
            prop_assert_eq!(moved, due.is_some_and(|due| due <= bench.lent.now_ns));
            prop_assert!(!moved || bench.pit.alarm().is_none_or(|due| due > bench.lent.now_ns));
        }
        bench.at_ns(u64::MAX);
        for offset in 0..6 {
            for value in 0..=255 {
                bench.write(offset, value);
                bench.read(offset);
                bench.notify();
            }
        }
    }
}
