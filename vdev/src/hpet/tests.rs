//! The timer against its specification.

use super::*;
use crate::isa::NS_PER_S;
use crate::pc::HPET_BYTES;
use crate::pl011::testing::Lent;
use alloc::vec::Vec;
use proptest::prelude::*;

const WIDTHS: [Width; 4] = [Width::Byte, Width::Half, Width::Word, Width::Double];

#[derive(Default)]
struct Bench {
    hpet: Hpet,
    lent: Lent,
}

impl Bench {
    fn running() -> Self {
        let mut bench = Self::default();
        bench.write(CONFIGURATION, Width::Word, 1);
        bench
    }

    fn read(&mut self, offset: u64, width: Width) -> u64 {
        self.lent.with(|ports| self.hpet.access(offset, Access::Read(width), ports))
    }

    fn write(&mut self, offset: u64, width: Width, value: u64) {
        self.lent.with(|ports| self.hpet.access(offset, Access::Write(width, value), ports));
    }

    /// When the wire rises from now on until `end_ns`.
    fn rises(&mut self, end_ns: u64) -> Vec<u64> {
        let (mut rises, mut before) = (Vec::new(), self.hpet.irq());
        while let Some(due) = self.hpet.alarm().filter(|&due| due <= end_ns) {
            self.lent.now_ns = self.lent.now_ns.max(due);
            self.lent.with(|ports| self.hpet.notify(ports));
            if self.hpet.irq() && !before {
                rises.push(self.lent.now_ns);
            }
            before = self.hpet.irq();
        }
        self.lent.now_ns = end_ns;
        rises
    }
}

#[test]
fn it_says_what_it_is_and_nothing_of_legacy_replacement() {
    let mut bench = Bench::default();
    let capabilities = bench.read(CAPABILITIES, Width::Double);
    assert_eq!(capabilities >> 32, 10_000_000, "femtoseconds");
    assert_eq!(capabilities & 0xff, 1, "revision");
    assert_eq!(capabilities >> 8 & 0x1f, 2, "the last of three comparators");
    assert_eq!(capabilities >> 13 & 7, 1, "64 bits, no legacy replacement");
    assert_eq!(bench.read(CAPABILITIES + 4, Width::Word), 10_000_000);
    bench.write(CONFIGURATION, Width::Word, 0xffff_ffff);
    assert_eq!(bench.read(CONFIGURATION, Width::Double), 3);
    bench.write(CAPABILITIES, Width::Double, 0);
    assert_eq!(bench.read(CAPABILITIES, Width::Double), capabilities);
}

#[test]
fn the_counter_stands_until_it_is_enabled_and_then_counts_real_time() {
    let mut bench = Bench::default();
    bench.lent.now_ns = NS_PER_S;
    assert_eq!(bench.read(COUNTER, Width::Double), 0);
    bench.write(CONFIGURATION, Width::Word, 1);
    assert_eq!(bench.read(COUNTER, Width::Double), 0);
    bench.lent.now_ns += 60 * NS_PER_S;
    let minute = 6_000_000_000;
    assert_eq!(bench.read(COUNTER, Width::Double), minute);
    assert_eq!(bench.read(COUNTER, Width::Word), minute & 0xffff_ffff);
    assert_eq!(bench.read(COUNTER + 4, Width::Word), minute >> 32);
    bench.write(CONFIGURATION, Width::Word, 0);
    bench.lent.now_ns += NS_PER_S;
    assert_eq!(bench.read(COUNTER, Width::Double), minute);
    bench.write(CONFIGURATION, Width::Word, 1);
    bench.lent.now_ns += 10;
    assert_eq!(bench.read(COUNTER, Width::Double), minute + 1);
}

#[test]
fn the_counter_is_written_while_it_stands() {
    let mut bench = Bench::default();
    bench.lent.now_ns = 12_345;
    bench.write(COUNTER, Width::Double, u64::MAX);
    bench.write(COUNTER, Width::Word, 0xffff_fff0);
    assert_eq!(bench.read(COUNTER, Width::Double), u64::MAX - 0xf);
    bench.write(CONFIGURATION, Width::Word, 1);
    bench.lent.now_ns += 170;
    assert_eq!(bench.read(COUNTER, Width::Double), 1, "it goes round");
    bench.write(COUNTER, Width::Double, 1000);
    bench.write(COUNTER + 4, Width::Word, 1000);
    assert_eq!(bench.read(COUNTER, Width::Double), 1, "dropped while it runs");
    bench.hpet.reset();
    assert_eq!(bench.read(COUNTER, Width::Double), 0);
}

#[test]
fn comparators_keep_what_can_be_written() {
    let mut bench = Bench::running();
    for (index, routes) in [1 << 34, 0, 0].into_iter().enumerate() {
        let at = COMPARATORS + index as u64 * COMPARATOR_BYTES;
        assert_eq!(bench.read(at, Width::Double), routes | 0x30);
        assert_eq!(bench.read(at + 8, Width::Double), u64::MAX);
        bench.write(at, Width::Double, u64::MAX);
        assert_eq!(bench.read(at, Width::Double), routes | 0x17e, "no such route, no message");
        bench.write(at, Width::Word, 0x506);
        let route = if routes == 0 { 0 } else { 0x400 };
        assert_eq!(bench.read(at, Width::Double), routes | 0x136 | route);
        bench.write(at + 8, Width::Double, 0x1_0000_0002);
        assert_eq!(bench.read(at + 8, Width::Double), 2);
        bench.write(at, Width::Word, 0);
        assert_eq!(bench.read(at + 8, Width::Double), 2, "what 32 bits do not hold is lost");
        bench.write(at + 12, Width::Word, 3);
        assert_eq!(bench.read(at + 8, Width::Double), 0x3_0000_0002);
        bench.write(at + 16, Width::Double, u64::MAX);
        assert_eq!(bench.read(at + 16, Width::Double), 0);
    }
    assert_eq!(bench.read(COMPARATORS + 3 * COMPARATOR_BYTES, Width::Double), 0);
}

/// The first comparator's registers.
const FIRST: u64 = COMPARATORS;
const FIRST_VALUE: u64 = COMPARATORS + 8;
/// Its configuration: the wire that it can have, interrupts on.
const WIRED: u64 = 2 << 9 | 4;

#[test]
fn a_one_shot_is_one_edge_at_its_time() {
    for (route, general) in [(WIRED, 1), (4, 3)] {
        let mut bench = Bench::default();
        bench.write(FIRST, Width::Word, route);
        bench.write(FIRST_VALUE, Width::Double, 5000);
        assert_eq!(bench.hpet.alarm(), None, "the counter stands");
        bench.lent.now_ns = 1_000_000;
        bench.write(CONFIGURATION, Width::Word, general);
        assert_eq!(bench.rises(10_000_000), [1_050_000]);
        assert_eq!(bench.read(STATUS, Width::Double), 0, "an edge has no status");
        bench.write(FIRST_VALUE, Width::Word, 2_000_000);
        assert_eq!(bench.rises(100_000_000), [21_000_000]);
    }
}

#[test]
fn without_a_wire_or_interrupts_nothing_is_heard() {
    for (configuration, general) in [(WIRED & !4, 3), (4, 1), (20 << 9 | 4, 1)] {
        let mut bench = Bench::default();
        bench.write(FIRST, Width::Word, configuration);
        bench.write(FIRST_VALUE, Width::Double, 5000);
        bench.write(CONFIGURATION, Width::Word, general);
        assert_eq!((bench.hpet.alarm(), bench.hpet.irq()), (None, false));
    }
    let mut bench = Bench::default();
    let second = COMPARATORS + COMPARATOR_BYTES;
    bench.write(second, Width::Word, WIRED);
    bench.write(second + 8, Width::Double, 5000);
    bench.write(CONFIGURATION, Width::Word, 3);
    assert_eq!(bench.hpet.alarm(), None, "the second has no wire");
}

#[test]
fn periods_follow_the_first_time() {
    let mut bench = Bench::default();
    bench.write(FIRST, Width::Word, WIRED | 0x48);
    bench.write(FIRST_VALUE, Width::Double, 30_000);
    assert_eq!(bench.read(FIRST, Width::Word) & 0x48, 8, "the first time is set once");
    bench.write(FIRST_VALUE, Width::Double, 10_000);
    bench.write(CONFIGURATION, Width::Word, 1);
    assert_eq!(bench.rises(650_000), [300_000, 400_000, 500_000, 600_000]);
    assert_eq!(bench.read(FIRST_VALUE, Width::Word), 70_000);
    // Late: one edge for all that are over, and the next at its time.
    bench.lent.now_ns = 1_250_000;
    assert_eq!(bench.rises(1_450_000), [1_250_000, 1_300_000, 1_400_000]);
}

#[test]
fn a_level_lasts_until_its_status_is_cleared() {
    let mut bench = Bench::default();
    bench.write(FIRST, Width::Word, WIRED | 0x4a);
    bench.write(FIRST_VALUE, Width::Double, 10_000);
    bench.write(CONFIGURATION, Width::Word, 1);
    assert_eq!(bench.rises(100_000), [100_000]);
    assert_eq!((bench.hpet.irq(), bench.hpet.alarm()), (true, None));
    bench.lent.now_ns = 150_000;
    assert_eq!(bench.read(STATUS, Width::Word), 1);
    bench.write(STATUS, Width::Word, 2);
    assert!(bench.hpet.irq());
    bench.write(STATUS, Width::Word, 1);
    assert!(!bench.hpet.irq());
    assert_eq!(bench.rises(250_000), [200_000]);
    bench.hpet.reset();
    assert_eq!((bench.hpet.irq(), bench.hpet.alarm()), (false, None));
}

#[test]
fn with_32_bits_a_comparator_matches_in_each_round() {
    let mut bench = Bench::default();
    bench.write(COUNTER, Width::Double, 0xffff_f000);
    bench.write(FIRST, Width::Word, WIRED | 0x100);
    bench.write(FIRST_VALUE, Width::Double, 0x1000);
    bench.write(CONFIGURATION, Width::Word, 1);
    let first = 0x2000 * HPET_PERIOD_NS;
    assert_eq!(bench.rises(60 * NS_PER_S), [first, first + (HPET_PERIOD_NS << 32)]);
}

#[test]
fn a_guest_cannot_ask_for_more_than_the_wire_shows() {
    let mut bench = Bench::default();
    bench.write(FIRST, Width::Word, WIRED | 0x48);
    bench.write(FIRST_VALUE, Width::Double, 1);
    bench.write(CONFIGURATION, Width::Word, 1);
    assert_eq!(bench.rises(NS_PER_S).len() as u64, NS_PER_S / (2 * GAP_NS));
}

#[test]
fn nothing_answers_what_is_no_register_nor_half_of_one() {
    let mut bench = Bench::running();
    for (offset, width) in [(COUNTER, Width::Byte), (COUNTER + 2, Width::Word), (4, Width::Double)] {
        assert_eq!(bench.read(offset, width), width.mask(), "offset {offset:#x}");
    }
    bench.write(CONFIGURATION, Width::Byte, 0);
    assert_eq!(bench.read(CONFIGURATION, Width::Word), 1);
}

proptest! {
    #[test]
    fn the_counter_never_goes_back(steps in prop::collection::vec((0u64..NS_PER_S, any::<bool>()), 1..50)) {
        let (mut bench, mut last) = (Bench::default(), 0);
        for (later, on) in steps {
            bench.lent.now_ns += later;
            bench.write(CONFIGURATION, Width::Word, on.into());
            let now = bench.read(COUNTER, Width::Double);
            prop_assert!(now >= last && now <= bench.lent.now_ns / HPET_PERIOD_NS);
            prop_assert_eq!(bench.read(COUNTER, Width::Word), now & 0xffff_ffff);
            last = now;
        }
    }

    #[test]
    fn no_access_panics_and_a_read_fits_its_width(
        steps in prop::collection::vec((0..HPET_BYTES + 8, 0usize..8, any::<u64>()), 100),
    ) {
        let mut bench = Bench::default();
        for (offset, kind, value) in steps {
            bench.lent.now_ns = value;
            let width = WIDTHS[kind % 4];
            if kind < 4 {
                prop_assert_eq!(bench.read(offset, width) & !width.mask(), 0);
            } else {
                bench.write(offset, width, value & width.mask());
            }
        }
        bench.read(u64::MAX, Width::Double);
    }
}
