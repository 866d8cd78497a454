//! The UART against its data sheet and against what drivers do with it.

use super::*;
use crate::pl011::testing::Lent;
use alloc::format;
use alloc::vec::Vec;
use proptest::prelude::*;

const IER_ALL: u8 = 0x0f;
const MCR_PC: u8 = 0x0b;
const LSR_IDLE: u8 = 0x60;

struct Bench {
    uart: Uart16550,
    lent: Lent,
}

impl Bench {
    fn new() -> Self {
        Self { uart: Uart16550::new(true), lent: Lent::default() }
    }

    /// As a driver sets it up: FIFOs on, trigger at 8 bytes, everything enabled, the gate open.
    fn running() -> Self {
        let mut bench = Self::new();
        bench.write(LINE_CONTROL, 0x03);
        bench.write(IDENTIFY, 0x87);
        bench.write(MODEM_CONTROL, MCR_PC);
        bench.write(ENABLE, IER_ALL);
        bench.read(IDENTIFY);
        bench
    }

    /// As the core does it: a read that changes nothing is a peek.
    fn read(&mut self, offset: u64) -> u8 {
        let mut copy = self.uart.clone();
        let value = self.lent.with(|ports| self.uart.access(offset, Access::Read(Width::Byte), ports));
        if let Some(peeked) = copy.peek(offset, Width::Byte) {
            assert_eq!(peeked, value);
            let again = Lent::default().with(|ports| copy.access(offset, Access::Read(Width::Byte), ports));
            assert_eq!((again, copy.irq()), (value, self.uart.irq()));
        }
        u8::try_from(value).unwrap()
    }

    /// As the core does it: a write that only stores is a poke.
    fn write(&mut self, offset: u64, value: u8) {
        let access = Access::Write(Width::Byte, value.into());
        let mut copy = self.uart.clone();
        self.lent.with(|ports| self.uart.access(offset, access, ports));
        let (line, alarm) = (copy.irq(), copy.alarm());
        if copy.poke(offset, Width::Byte, value.into()) {
            assert_eq!((copy.irq(), copy.alarm()), (line, alarm));
            assert_eq!(format!("{copy:?}"), format!("{:?}", self.uart));
        }
    }

    fn notify(&mut self) {
        self.lent.with(|ports| self.uart.notify(ports));
    }

    /// Goes to the alarm.
    fn ring(&mut self) {
        self.lent.now_ns = self.uart.alarm().unwrap();
        self.notify();
    }

    fn type_in(&mut self, text: &[u8]) {
        self.lent.terminal.input.extend(text);
        self.notify();
    }

    fn cause(&mut self) -> u8 {
        self.read(IDENTIFY) & 0x0f
    }

    fn has_input(&mut self) -> bool {
        self.read(LINE_STATUS) & 1 != 0
    }
}

#[test]
fn registers_after_power_on_are_those_of_the_data_sheet() {
    let mut bench = Bench::new();
    let table = [(ENABLE, 0), (IDENTIFY, 1), (LINE_CONTROL, 0), (MODEM_CONTROL, 0), (LINE_STATUS, 0x60)];
    for (offset, value) in table.into_iter().chain([(MODEM_STATUS, 0xb0), (SCRATCH, 0), (DATA, 0)]) {
        assert_eq!(bench.read(offset), value, "register {offset}");
    }
    assert!(!bench.uart.irq());
}

#[test]
fn registers_keep_their_implemented_bits_and_status_is_read_only() {
    let mut bench = Bench::new();
    let table = [(ENABLE, 0x0f), (LINE_CONTROL, 0xff), (SCRATCH, 0xff), (DATA, 0xff), (ENABLE, 0xff)];
    for (offset, bits) in table {
        bench.write(offset, 0xff);
        assert_eq!(bench.read(offset), bits, "register {offset}");
    }
    bench.write(LINE_CONTROL, 0);
    assert_eq!(bench.read(ENABLE), 0x0f);
    bench.write(LINE_STATUS, 0);
    bench.write(MODEM_STATUS, 0xff);
    assert_eq!((bench.read(LINE_STATUS), bench.read(MODEM_STATUS)), (0x60, 0xb0));
}

#[test]
fn the_divisor_hides_data_and_interrupt_enable() {
    let mut bench = Bench::new();
    bench.write(ENABLE, 5);
    bench.write(LINE_CONTROL, 0x80);
    assert_eq!((bench.read(DATA), bench.read(ENABLE)), (12, 0));
    bench.write(DATA, 1);
    bench.write(ENABLE, 2);
    assert_eq!((bench.read(DATA), bench.read(ENABLE)), (1, 2));
    assert!(bench.lent.terminal.output.is_empty());
    bench.write(LINE_CONTROL, 0x03);
    assert_eq!(bench.read(ENABLE), 5);
}

#[test]
fn a_driver_that_probes_finds_a_16550a() {
    let mut bench = Bench::new();
    bench.write(ENABLE, 0);
    assert_eq!(bench.read(ENABLE) & 0x0f, 0);
    bench.write(ENABLE, 0x0f);
    assert_eq!(bench.read(ENABLE), 0x0f);
    bench.write(ENABLE, 0);
    bench.write(MODEM_CONTROL, 0x1a);
    assert_eq!(bench.read(MODEM_STATUS) & 0xf0, 0x90);
    bench.write(MODEM_CONTROL, 0);
    bench.write(IDENTIFY, 0x01);
    assert_eq!(bench.read(IDENTIFY) >> 6, 3);
    // Behind the values that select the enhanced registers of other parts, nothing but the 16550A's is found.
    bench.write(LINE_CONTROL, 0xbf);
    assert_eq!(bench.read(IDENTIFY), 0xc1);
    bench.write(LINE_CONTROL, 0);
    bench.write(IDENTIFY, 0x21);
    assert_eq!(bench.read(IDENTIFY) >> 5, 6);
    bench.write(ENABLE, 0x40);
    assert_eq!(bench.read(ENABLE), 0);
}

#[test]
fn a_store_to_the_transmitter_raises_its_interrupt_and_identification_ends_it() {
    let mut bench = Bench::running();
    assert!(!bench.uart.irq());
    bench.write(DATA, b'A');
    assert_eq!(bench.lent.terminal.output, b"A");
    assert_eq!(bench.read(LINE_STATUS), LSR_IDLE);
    assert!(bench.uart.irq());
    assert_eq!(bench.read(IDENTIFY), 0xc2);
    assert!(!bench.uart.irq());
    assert_eq!(bench.read(IDENTIFY), 0xc1);
}

/// Drivers that send a byte for each interrupt, and do not ask for its cause.
#[test]
fn a_byte_ends_the_transmitters_interrupt_and_raises_it_again_later() {
    for fifo_control in [0, 0x87] {
        let mut bench = Bench::new();
        bench.write(IDENTIFY, fifo_control);
        bench.write(MODEM_CONTROL, MCR_PC);
        bench.write(ENABLE, 2);
        for byte in b"abc" {
            assert!(bench.uart.irq());
            assert_eq!(bench.read(LINE_STATUS), LSR_IDLE);
            bench.write(DATA, *byte);
            assert!(!bench.uart.irq());
            assert_eq!(bench.cause(), 1);
            bench.write(DATA, *byte);
            assert!(!bench.uart.irq());
            bench.ring();
        }
        assert_eq!((bench.uart.irq(), bench.uart.alarm()), (true, None));
        assert_eq!(bench.lent.terminal.output, b"aabbcc");
    }
}

#[test]
fn bytes_behind_one_that_raised_the_interrupt_leave_it_until_a_driver_looks() {
    for look in [LINE_STATUS, IDENTIFY, DATA] {
        let mut bench = Bench::running();
        bench.type_in(b"xy");
        for byte in b"0123456789abcdef" {
            bench.write(DATA, *byte);
            assert!(bench.uart.irq());
        }
        assert_eq!(bench.uart.alarm(), None);
        // Input is the cause that is told, so this does not end the other one.
        assert_ne!(bench.read(look), 0);
        bench.write(DATA, b'!');
        assert!(bench.uart.alarm().is_some(), "register {look}");
        bench.ring();
        assert_eq!((bench.read(DATA), bench.uart.alarm()), (if look == DATA { b'y' } else { b'x' }, None));
    }
}

#[test]
fn a_console_that_blocks_meanwhile_puts_off_what_is_owed() {
    let mut bench = Bench::running();
    bench.write(ENABLE, 0);
    bench.write(ENABLE, 2);
    bench.write(DATA, 1);
    bench.lent.terminal.blocked = true;
    bench.write(DATA, 2);
    bench.ring();
    assert!(!bench.uart.irq());
    bench.lent.terminal.blocked = false;
    bench.notify();
    assert!(bench.uart.irq());
}

#[test]
fn to_enable_the_transmitters_interrupt_while_it_is_empty_raises_it_each_time() {
    let mut bench = Bench::running();
    for _ in 0..2 {
        bench.write(ENABLE, 0);
        assert!(!bench.uart.irq());
        bench.write(ENABLE, 2);
        assert!(bench.uart.irq());
        assert_eq!(bench.cause(), 2);
        bench.write(ENABLE, 2);
        assert_eq!(bench.cause(), 1);
    }
}

#[test]
fn a_blocked_console_fills_the_fifo_and_its_end_is_told() {
    let mut bench = Bench::running();
    bench.lent.terminal.blocked = true;
    for byte in 0..20 {
        bench.write(DATA, byte);
        assert_eq!(bench.read(LINE_STATUS), 0);
        assert!(!bench.uart.irq());
    }
    bench.lent.terminal.blocked = false;
    bench.notify();
    assert_eq!(bench.lent.terminal.output, (0..16).collect::<Vec<u8>>());
    assert!(bench.uart.irq());
    assert_eq!((bench.read(LINE_STATUS), bench.cause()), (LSR_IDLE, 2));
}

#[test]
fn polling_line_status_drains_what_was_blocked() {
    let mut bench = Bench::new();
    bench.lent.terminal.blocked = true;
    bench.write(DATA, 1);
    assert_eq!(bench.read(LINE_STATUS), 0);
    bench.lent.terminal.blocked = false;
    assert_eq!(bench.uart.peek(LINE_STATUS, Width::Byte), None);
    assert_eq!(bench.read(LINE_STATUS), LSR_IDLE);
    assert_eq!(bench.lent.terminal.output, [1]);
}

#[test]
fn to_clear_the_transmit_fifo_loses_what_is_held() {
    let mut bench = Bench::running();
    bench.lent.terminal.blocked = true;
    bench.write(DATA, 1);
    bench.write(IDENTIFY, 0x04);
    assert_eq!(bench.read(LINE_STATUS), LSR_IDLE, "a change of the enable bit clears");
    bench.write(IDENTIFY, 0x01);
    bench.write(DATA, 2);
    bench.write(IDENTIFY, 0x05);
    bench.lent.terminal.blocked = false;
    bench.notify();
    assert!(bench.lent.terminal.output.is_empty());
    assert_eq!(bench.cause(), 2);
}

#[test]
fn a_short_message_is_a_time_out_and_a_long_one_is_data() {
    let mut bench = Bench::running();
    bench.type_in(b"1234567");
    assert_eq!(bench.read(IDENTIFY), 0xcc);
    bench.type_in(b"8");
    assert_eq!(bench.read(IDENTIFY), 0xc4);
    assert_eq!(bench.read(DATA), b'1');
    assert_eq!(bench.read(IDENTIFY), 0xcc);
    for byte in b"2345678" {
        assert!(bench.uart.irq());
        assert_eq!(bench.read(LINE_STATUS), LSR_IDLE | 1);
        assert_eq!(bench.read(DATA), *byte);
    }
    assert!(!bench.uart.irq());
    assert_eq!((bench.cause(), bench.read(LINE_STATUS), bench.read(DATA)), (1, LSR_IDLE, 0));
}

#[test]
fn each_trigger_level_is_the_data_sheets() {
    for (field, level) in [(0, 1), (1, 4), (2, 8), (3, 14)] {
        let mut bench = Bench::running();
        bench.write(IDENTIFY, field << 6 | 1);
        for count in 1..=16 {
            bench.type_in(b"x");
            assert_eq!(bench.cause() == 4, count >= level, "{count} bytes at level {level}");
        }
    }
}

#[test]
fn without_fifos_one_byte_is_held_and_the_rest_waits_in_the_console() {
    let mut bench = Bench::new();
    bench.write(MODEM_CONTROL, MCR_PC);
    bench.write(ENABLE, 1);
    bench.type_in(b"ab");
    assert_eq!(bench.lent.terminal.input.len(), 1);
    assert_eq!(bench.read(IDENTIFY), 4);
    assert_eq!(bench.read(DATA), b'a');
    assert!(bench.has_input(), "who polls gets the next one at once");
    assert_eq!(bench.read(DATA), b'b');
    assert!(!bench.has_input());
}

#[test]
fn without_fifos_the_line_falls_between_two_bytes() {
    let mut bench = Bench::new();
    bench.write(MODEM_CONTROL, MCR_PC);
    bench.write(ENABLE, 1);
    bench.type_in(b"abc");
    for byte in b"abc" {
        assert!(bench.uart.irq());
        assert_eq!(bench.read(DATA), *byte);
        assert!(!bench.uart.irq());
        bench.ring();
    }
    assert_eq!((bench.uart.irq(), bench.uart.alarm()), (false, None));
}

#[test]
fn without_fifos_a_driver_that_asks_for_no_interrupt_sets_no_alarm() {
    let mut bench = Bench::new();
    bench.type_in(b"ab");
    assert_eq!((bench.read(DATA), bench.uart.alarm()), (b'a', None));
    bench.write(MODEM_CONTROL, MCR_PC);
    bench.write(ENABLE, 1);
    assert!(bench.uart.irq(), "what waited is announced when that is enabled");
}

#[test]
fn input_that_waits_survives_a_driver_that_clears_while_it_sets_up() {
    let mut bench = Bench::new();
    bench.lent.terminal.input.extend(b"0123456789abcdefghij");
    for value in [0x01, 0x07, 0x00, 0x01, 0x07] {
        bench.write(IDENTIFY, value);
    }
    assert_eq!(bench.lent.terminal.input.len(), 20);
    bench.write(MODEM_CONTROL, MCR_PC);
    bench.write(ENABLE, 1);
    assert!(bench.uart.irq());
    assert_eq!(bench.read(DATA), b'0');
    bench.write(IDENTIFY, 0x03);
    assert_eq!(bench.read(DATA), b'h', "what the FIFO held is lost, and what waited follows at once");
}

#[test]
fn polling_line_status_finds_input_after_a_clear() {
    let mut bench = Bench::new();
    bench.write(IDENTIFY, 0x07);
    bench.lent.terminal.input.extend(b"a");
    assert_eq!(bench.read(LINE_STATUS), LSR_IDLE | 1);
}

#[test]
fn causes_come_in_the_data_sheets_order() {
    let mut bench = Bench::running();
    bench.write(MODEM_CONTROL, 0x1d);
    for byte in 0..17 {
        bench.write(DATA, byte);
    }
    assert_eq!(bench.cause(), 6);
    assert_eq!(bench.read(LINE_STATUS), LSR_IDLE | 3);
    assert_eq!(bench.read(LINE_STATUS), LSR_IDLE | 1);
    assert_eq!(bench.cause(), 4);
    for byte in 0..16 {
        assert_eq!(bench.read(DATA), byte);
    }
    assert_eq!(bench.cause(), 2);
    assert_eq!(bench.cause(), 0);
    assert_eq!(bench.read(MODEM_STATUS), 0xe1);
    assert_eq!(bench.cause(), 1);
    assert!(bench.lent.terminal.output.is_empty());
}

#[test]
fn without_fifos_an_overrun_leaves_the_newer_byte() {
    let mut bench = Bench::new();
    bench.write(MODEM_CONTROL, 0x10);
    bench.write(DATA, 1);
    bench.write(DATA, 2);
    assert_eq!(bench.read(LINE_STATUS), LSR_IDLE | 3);
    assert_eq!(bench.read(DATA), 2);
}

#[test]
fn modem_lines_come_back_in_loopback_and_changes_are_told_once() {
    let mut bench = Bench::running();
    for (control, inputs) in [(0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80)] {
        bench.write(MODEM_CONTROL, control);
        assert_eq!(bench.read(MODEM_STATUS) & 0xf0, inputs);
        assert_eq!(bench.read(MODEM_STATUS), inputs);
    }
    bench.write(MODEM_CONTROL, 0x14);
    assert_eq!(bench.read(MODEM_STATUS), 0x48, "the carrier fell; that the ring began is no event");
    bench.write(MODEM_CONTROL, 0x10);
    assert_eq!(bench.read(MODEM_STATUS), 0x04, "the ring ended");
    bench.write(MODEM_CONTROL, 0x0b);
    assert_eq!((bench.uart.irq(), bench.cause()), (true, 0));
    assert_eq!(bench.read(MODEM_STATUS), 0xbb);
}

#[test]
fn the_line_is_gated_by_out2_and_by_loopback() {
    let mut bench = Bench::running();
    bench.write(DATA, 1);
    for (control, level) in [(0x03, false), (0x08, true), (0x18, false), (0x0b, true)] {
        bench.write(MODEM_CONTROL, control);
        bench.read(MODEM_STATUS);
        assert_eq!(bench.uart.irq(), level, "modem control {control:#x}");
    }
}

#[test]
fn an_unconnected_uart_swallows_output_and_hears_nothing() {
    let mut bench = Bench { uart: Uart16550::new(false), lent: Lent::default() };
    bench.lent.terminal.blocked = true;
    bench.write(DATA, 1);
    bench.type_in(b"x");
    assert_eq!((bench.read(LINE_STATUS), bench.read(MODEM_STATUS)), (LSR_IDLE, 0));
    assert_eq!(bench.lent.terminal.input.len(), 1);
    bench.uart.reset();
    assert_eq!(bench.read(MODEM_STATUS), 0);
}

#[test]
fn a_wide_access_is_one_for_each_register() {
    let mut bench = Bench::new();
    bench.lent.with(|ports| bench.uart.access(DATA, Access::Write(Width::Half, 0x0541), ports));
    assert_eq!(bench.lent.terminal.output, b"A");
    assert_eq!(bench.read(ENABLE), 5);
    assert_eq!(bench.uart.peek(MODEM_STATUS, Width::Half), None, "it shows one byte");
    let both = bench.lent.with(|ports| bench.uart.access(MODEM_STATUS, Access::Read(Width::Half), ports));
    assert_eq!(both, 0x00b0);
}

#[test]
fn a_reset_forgets_everything() {
    let mut bench = Bench::running();
    bench.type_in(b"abc");
    bench.write(DATA, 1);
    bench.uart.reset();
    assert!(!bench.uart.irq());
    assert_eq!((bench.read(LINE_STATUS), bench.read(IDENTIFY), bench.read(DATA)), (LSR_IDLE, 1, 0));
}

proptest! {
    #[test]
    fn no_byte_is_lost_or_doubled_in_either_direction(steps in prop::collection::vec(0u8..8, 0..250)) {
        let mut bench = Bench::running();
        let (mut typed, mut seen, mut sent) = (0u8, Vec::new(), 0u8);
        for step in steps {
            match step {
                0 => bench.lent.terminal.blocked = !bench.lent.terminal.blocked,
                1 | 2 if bench.read(LINE_STATUS) & 0x20 != 0 => {
                    for _ in 0..=sent % 16 {
                        bench.write(DATA, sent);
                        sent = sent.wrapping_add(1);
                    }
                }
                3 => {
                    bench.type_in(&[typed]);
                    typed = typed.wrapping_add(1);
                }
                4 | 5 if bench.has_input() => seen.push(bench.read(DATA)),
                6 => bench.write(IDENTIFY, sent << 6 | 1),
                7 => { bench.read(IDENTIFY); }
                _ => bench.notify(),
            }
            let input = bench.has_input();
            prop_assert_eq!(bench.uart.pending.contains(Sources::RECEIVED), input);
            prop_assert!(!input || bench.uart.irq());
        }
        bench.lent.terminal.blocked = false;
        bench.notify();
        while bench.has_input() {
            seen.push(bench.read(DATA));
        }
        let all: Vec<u8> = (0..=255).cycle().take(bench.lent.terminal.output.len()).collect();
        prop_assert_eq!(&bench.lent.terminal.output, &all);
        prop_assert_eq!(all.last().map_or(0, |last| last.wrapping_add(1)), sent);
        prop_assert_eq!(seen, (0..typed).collect::<Vec<u8>>());
    }

    /// What an edge-triggered controller needs: a driver that asks for causes until there is none ends with the
    /// line low.
    #[test]
    fn a_driver_that_serves_every_cause_ends_with_the_line_low(
        steps in prop::collection::vec((0u64..9, any::<u8>(), any::<bool>()), 100),
    ) {
        let mut bench = Bench::new();
        for (offset, value, store) in steps {
            match offset {
                8 => bench.type_in(&[value]),
                _ if store => bench.write(offset, value),
                _ => { bench.read(offset); }
            }
        }
        bench.write(LINE_CONTROL, 0);
        let mut rounds = 0;
        while bench.uart.irq() {
            match bench.cause() {
                0 => bench.read(MODEM_STATUS),
                2 => 0,
                6 => bench.read(LINE_STATUS),
                _ => bench.read(DATA),
            };
            rounds += 1;
            prop_assert!(rounds < 200, "the line never falls");
        }
    }

    #[test]
    fn no_access_panics(steps in prop::collection::vec((0u64..0x12, any::<u64>(), 0usize..8), 200)) {
        let mut bench = Bench::new();
        let widths = [Width::Byte, Width::Half, Width::Word, Width::Double];
        for (offset, value, kind) in steps {
            let width = widths[kind % 4];
            let access = if kind < 4 { Access::Read(width) } else { Access::Write(width, value & width.mask()) };
            bench.lent.with(|ports| bench.uart.access(offset, access, ports));
            bench.lent.terminal.blocked = value & 1 != 0;
            bench.type_in(b"z");
        }
    }
}
