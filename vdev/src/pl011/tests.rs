//! The UART against its manual and against what drivers do with it.

use super::testing::Lent;
use super::*;
use crate::Width;
use alloc::vec::Vec;
use proptest::prelude::*;

#[derive(Default)]
struct Bench {
    uart: Pl011,
    lent: Lent,
}

impl Bench {
    /// As Linux sets it up: FIFOs on, half-full triggers, everything enabled and unmasked.
    fn running() -> Self {
        let mut bench = Self::default();
        bench.write(LCR_H, 0x70);
        bench.write(IFLS, 0x12);
        bench.write(CR, 0x301);
        bench.write(IMSC, 0x7ff);
        bench
    }

    fn read(&mut self, offset: u64) -> u32 {
        let value = self.lent.with(|ports| self.uart.access(offset, Access::Read(Width::Word), ports));
        u32::try_from(value).unwrap()
    }

    fn write(&mut self, offset: u64, value: u32) {
        let access = Access::Write(Width::Word, value.into());
        self.lent.with(|ports| self.uart.access(offset, access, ports));
    }

    fn notify(&mut self) {
        self.lent.with(|ports| self.uart.notify(ports));
    }

    fn type_in(&mut self, text: &[u8]) {
        self.lent.terminal.input.extend(text);
        self.notify();
    }

    fn flags(&mut self) -> Flags {
        Flags::from_bits_retain(self.read(FR))
    }

    fn raw(&mut self) -> Events {
        Events::from_bits_retain(self.read(RIS))
    }
}

#[test]
fn registers_after_power_on_are_those_of_the_manual() {
    let mut bench = Bench::default();
    let table = [(RSR, 0), (FR, 0x90), (LCR_H, 0), (CR, 0x300), (IFLS, 0x12), (IMSC, 0), (RIS, 0), (MIS, 0)];
    for (offset, value) in table {
        assert_eq!(bench.read(offset), value, "register {offset:#x}");
    }
    let ids: [u32; 8] = core::array::from_fn(|i| bench.read(ID + 4 * i as u64));
    assert_eq!(ids, [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn plain_registers_keep_their_implemented_bits() {
    let mut bench = Bench::default();
    let table = [(ILPR, 0xff), (IBRD, 0xffff), (FBRD, 0x3f), (LCR_H, 0xff), (CR, 0xff87), (IFLS, 0x3f)];
    for (offset, bits) in table.into_iter().chain([(IMSC, 0x7ff), (DMACR, 7)]) {
        bench.write(offset, u32::MAX);
        assert_eq!(bench.read(offset), bits, "register {offset:#x}");
    }
}

#[test]
fn a_byte_leaves_at_once_and_raises_the_transmit_event_even_while_disabled() {
    let mut bench = Bench::default();
    bench.write(CR, 0);
    bench.write(DR, 0x141);
    assert_eq!(bench.lent.terminal.output, b"A");
    assert_eq!(bench.raw(), Events::TRANSMIT);
    assert_eq!(bench.read(FR), 0x90);
    assert!(!bench.uart.irq());
    bench.write(IMSC, Events::TRANSMIT.bits());
    assert!(bench.uart.irq());
    bench.write(ICR, Events::TRANSMIT.bits());
    assert!(!bench.uart.irq());
}

#[test]
fn a_blocked_console_fills_the_fifo_and_drains_through_the_trigger_level() {
    let mut bench = Bench::running();
    bench.lent.terminal.blocked = true;
    for byte in 0..8 {
        bench.write(DR, byte);
    }
    assert_eq!(bench.flags(), Flags::BUSY | Flags::RECEIVE_EMPTY);
    bench.write(DR, 8);
    assert_eq!(bench.raw(), Events::empty());
    for byte in 9..20 {
        bench.write(DR, byte);
    }
    assert_eq!(bench.flags(), Flags::BUSY | Flags::RECEIVE_EMPTY | Flags::TRANSMIT_FULL);
    bench.lent.terminal.blocked = false;
    bench.notify();
    assert_eq!(bench.lent.terminal.output, (0..16).collect::<Vec<u8>>());
    assert_eq!(bench.raw(), Events::TRANSMIT);
    assert_eq!(bench.read(FR), 0x90);
}

#[test]
fn polling_the_flags_drains_what_was_blocked() {
    let mut bench = Bench::default();
    bench.lent.terminal.blocked = true;
    bench.write(DR, 1);
    assert_eq!(bench.flags(), Flags::BUSY | Flags::RECEIVE_EMPTY | Flags::TRANSMIT_FULL);
    bench.lent.terminal.blocked = false;
    assert_eq!(bench.read(FR), 0x90);
    assert_eq!(bench.lent.terminal.output, [1]);
}

#[test]
fn a_short_message_raises_the_time_out_and_a_long_one_the_level_too() {
    let mut bench = Bench::running();
    bench.type_in(b"1234567");
    assert_eq!(bench.raw(), Events::RECEIVE_TIMEOUT);
    bench.type_in(b"8");
    assert_eq!(bench.raw(), Events::RECEIVE_TIMEOUT | Events::RECEIVE);
    assert_eq!(bench.read(DR), u32::from(b'1'));
    assert_eq!(bench.raw(), Events::RECEIVE_TIMEOUT);
    for _ in 0..7 {
        assert!(bench.uart.irq());
        bench.read(DR);
    }
    assert_eq!(bench.read(FR), 0x90);
    assert_eq!(bench.raw(), Events::empty());
    assert_eq!(bench.read(DR), 0);
}

#[test]
fn each_trigger_level_is_the_manuals_share_of_the_fifo() {
    for (field, level) in [(0, 2), (1, 4), (2, 8), (3, 12), (4, 14)] {
        let mut bench = Bench::running();
        bench.write(IFLS, field << 3);
        for count in 1..=16 {
            bench.type_in(b"x");
            assert_eq!(bench.raw().contains(Events::RECEIVE), count >= level);
        }
    }
}

#[test]
fn without_fifos_one_byte_is_held_and_the_rest_waits_in_the_console() {
    let mut bench = Bench::default();
    bench.write(CR, 0x301);
    bench.type_in(b"ab");
    assert_eq!(bench.flags(), Flags::RECEIVE_FULL | Flags::TRANSMIT_EMPTY);
    assert_eq!(bench.raw(), Events::RECEIVE | Events::RECEIVE_TIMEOUT);
    assert_eq!(bench.read(DR), u32::from(b'a'));
    assert_eq!(bench.read(DR), u32::from(b'b'));
    assert_eq!(bench.read(FR), 0x90);
}

#[test]
fn input_waits_until_the_receiver_is_enabled() {
    let mut bench = Bench::default();
    bench.type_in(b"a");
    assert_eq!(bench.read(FR), 0x90);
    bench.write(CR, 0x201);
    assert_eq!(bench.read(DR), u32::from(b'a'));
}

#[test]
fn loopback_returns_bytes_and_modem_lines_and_overruns_when_full() {
    let mut bench = Bench::running();
    bench.write(CR, 0xff87);
    for byte in 0..17 {
        bench.write(DR, byte);
    }
    assert!(bench.lent.terminal.output.is_empty());
    let modem = Flags::CLEAR_TO_SEND | Flags::DATA_SET_READY | Flags::CARRIER | Flags::RING;
    assert_eq!(bench.flags(), modem | Flags::RECEIVE_FULL | Flags::TRANSMIT_EMPTY);
    assert!(bench.raw().contains(Events::OVERRUN));
    assert_eq!(bench.read(RSR), RSR_OVERRUN);
    assert_eq!(bench.read(DR), DR_OVERRUN);
    bench.write(RSR, 0);
    assert_eq!(bench.read(RSR), 0);
    bench.write(DR, 0x55);
    assert_eq!(bench.read(DR), 1);
}

proptest! {
    #[test]
    fn no_byte_is_lost_or_doubled_in_either_direction(steps in prop::collection::vec(0u8..7, 0..250)) {
        let mut bench = Bench::running();
        let (mut typed, mut seen, mut sent) = (0u8, Vec::new(), 0u8);
        for step in steps {
            match step {
                0 => bench.lent.terminal.blocked = !bench.lent.terminal.blocked,
                1 | 2 if !bench.flags().contains(Flags::TRANSMIT_FULL) => {
                    bench.write(DR, sent.into());
                    sent = sent.wrapping_add(1);
                }
                3 => {
                    bench.type_in(&[typed]);
                    typed = typed.wrapping_add(1);
                }
                4 | 5 if !bench.flags().contains(Flags::RECEIVE_EMPTY) => {
                    seen.push(u8::try_from(bench.read(DR)).unwrap());
                }
                6 => bench.write(LCR_H, 0x70 ^ (u32::from(sent) & 1) << 4),
                _ => bench.notify(),
            }
            let waiting = !bench.flags().contains(Flags::RECEIVE_EMPTY);
            prop_assert!(!waiting || bench.raw().contains(Events::RECEIVE_TIMEOUT));
        }
        bench.lent.terminal.blocked = false;
        bench.notify();
        while !bench.flags().contains(Flags::RECEIVE_EMPTY) {
            seen.push(u8::try_from(bench.read(DR)).unwrap());
        }
        prop_assert_eq!(&bench.lent.terminal.output, &(0..sent).collect::<Vec<u8>>());
        prop_assert_eq!(seen, (0..typed).collect::<Vec<u8>>());
    }

    #[test]
    fn no_access_panics(steps in prop::collection::vec((0u64..0x1100, any::<u32>(), any::<bool>()), 200)) {
        let mut bench = Bench::default();
        for (offset, value, store) in steps {
            if store { bench.write(offset, value) } else { bench.read(offset); }
            bench.type_in(b"z");
        }
    }
}
