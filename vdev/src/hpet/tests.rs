//! The timer against its specification.

use super::*;
use crate::isa::NS_PER_S;
use crate::pc::HPET_BYTES;
use crate::pl011::testing::Lent;
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
}

#[test]
fn it_says_that_it_is_a_clock_and_not_in_place_of_older_timers() {
    let mut bench = Bench::default();
    let capabilities = bench.read(CAPABILITIES, Width::Double);
    assert_eq!(capabilities >> 32, 10_000_000, "femtoseconds");
    assert_eq!(capabilities & 0xff, 1, "revision");
    assert_eq!(capabilities >> 8 & 0x1f, 2, "the last of three comparators");
    assert_eq!(capabilities >> 13 & 7, 1, "64 bits, no legacy replacement");
    assert_eq!(bench.read(CAPABILITIES + 4, Width::Word), 10_000_000);
    bench.write(CONFIGURATION, Width::Word, 0xffff_ffff);
    assert_eq!(bench.read(CONFIGURATION, Width::Double), 1);
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
fn a_comparator_can_be_routed_nowhere() {
    let mut bench = Bench::running();
    for at in (0..3).map(|index| COMPARATORS + index * COMPARATOR_BYTES) {
        assert_eq!(bench.read(at, Width::Double), 0x20);
        assert_eq!(bench.read(at + 8, Width::Double), u64::MAX);
        bench.write(at, Width::Double, u64::MAX);
        assert_eq!(bench.read(at, Width::Double), 0x126, "no route, no period, no message");
        bench.write(at + 8, Width::Double, 0x1_0000_0002);
        assert_eq!(bench.read(at + 8, Width::Double), 2);
        bench.write(at, Width::Word, 4);
        assert_eq!(bench.read(at + 8, Width::Double), 2, "what 32 bits do not hold is lost");
        bench.write(at + 12, Width::Word, 3);
        assert_eq!(bench.read(at + 8, Width::Double), 0x3_0000_0002);
        bench.write(at + 16, Width::Double, u64::MAX);
        assert_eq!(bench.read(at + 16, Width::Double), 0);
    }
    bench.lent.now_ns = NS_PER_S;
    bench.lent.with(|ports| bench.hpet.notify(ports));
    assert_eq!(bench.read(0x020, Width::Double), 0, "no interrupt");
    assert_eq!((bench.hpet.irq(), bench.hpet.alarm()), (false, None));
    assert_eq!(bench.read(COMPARATORS + 3 * COMPARATOR_BYTES, Width::Double), 0);
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
