//! The ways in which a PC's software resets its machine: the reset control register, port 0x92 and the keyboard
//! controller's pulse.
//!
//! Of the keyboard controller (8042) there is just enough for that: it is never busy, has neither keyboard nor mouse, and knows
//! the commands that reach its output port, and those that a PC's software waits for the answer of. Address line 20 can be
//! switched and read back, but memory never wraps.

use crate::isa::{Byte, bytewise};
use crate::{Access, Device, Ports, Width, Wish};

/// Offsets of port 0x92 and of the keyboard controller's ports 0x60 and 0x64, as [`crate::pc::RESET`] places them.
const SYSTEM_CONTROL: u64 = 0;
const DATA: u64 = 1;
const COMMAND: u64 = 2;

/// Port 0x92: a rising edge resets the CPU; address line 20.
const FAST_RESET: u8 = 1 << 0;
const ADDRESS_20: u8 = 1 << 1;

/// Status: there is an answer to read; the controller passed its self test; bit 1 is clear, so it can be written.
const STATUS_FULL: u8 = 1 << 0;
const STATUS_PASSED: u8 = 1 << 2;
/// Commands that are answered.
const READ_COMMAND_BYTE: u8 = 0x20;
const TEST_CONTROLLER: u8 = 0xaa;
const TEST_KEYBOARD: u8 = 0xab;
const READ_OUTPUT_PORT: u8 = 0xd0;
/// Their answers: passed the self test, both ports off, no interrupts; no fault of the controller; none of the keyboard's wires.
const COMMAND_BYTE: u8 = 0x34;
const CONTROLLER_PASSED: u8 = 0x55;
const KEYBOARD_PASSED: u8 = 0x00;
const WRITE_OUTPUT_PORT: u8 = 0xd1;
const DISABLE_ADDRESS_20: u8 = 0xdd;
const ENABLE_ADDRESS_20: u8 = 0xdf;
/// Commands from here on pulse the output lines whose bits are 0.
const PULSE: u8 = 0xf0;
/// The output port's line 0 keeps the CPU out of reset.
const OUTPUT_RUN: u8 = 1 << 0;

/// Port 0x92 and the keyboard controller.
#[derive(Clone, Debug)]
pub struct PcReset {
    system_control: u8,
    /// The next byte of data is for the output port.
    takes_output: bool,
    answer: Option<u8>,
}

impl Default for PcReset {
    fn default() -> Self {
        Self { system_control: ADDRESS_20, takes_output: false, answer: None }
    }
}

impl PcReset {
    /// Address line 20 enabled, nothing pending.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self, offset: u64) -> u8 {
        match offset {
            SYSTEM_CONTROL => self.system_control,
            DATA => self.answer.unwrap_or(0),
            COMMAND if self.answer.is_some() => STATUS_PASSED | STATUS_FULL,
            COMMAND => STATUS_PASSED,
            _ => u8::MAX,
        }
    }

    /// `true` if the machine is to be reset.
    fn write(&mut self, offset: u64, value: u8) -> bool {
        match offset {
            SYSTEM_CONTROL => self.write_system_control(value),
            DATA if self.takes_output => {
                self.takes_output = false;
                self.switch_address_20(value & ADDRESS_20 != 0);
                value & OUTPUT_RUN == 0
            }
            COMMAND => self.command(value),
            _ => false,
        }
    }

    fn write_system_control(&mut self, value: u8) -> bool {
        let resets = value & !self.system_control & FAST_RESET != 0;
        self.system_control = value & (FAST_RESET | ADDRESS_20);
        resets
    }

    fn command(&mut self, command: u8) -> bool {
        self.takes_output = command == WRITE_OUTPUT_PORT;
        match command {
            READ_COMMAND_BYTE => self.answer = Some(COMMAND_BYTE),
            TEST_CONTROLLER => self.answer = Some(CONTROLLER_PASSED),
            TEST_KEYBOARD => self.answer = Some(KEYBOARD_PASSED),
            READ_OUTPUT_PORT => self.answer = Some(OUTPUT_RUN | self.system_control & ADDRESS_20),
            DISABLE_ADDRESS_20 => self.switch_address_20(false),
            ENABLE_ADDRESS_20 => self.switch_address_20(true),
            PULSE.. => return command & OUTPUT_RUN == 0,
            _ => {}
        }
        false
    }

    fn switch_address_20(&mut self, on: bool) {
        self.system_control =
            if on { self.system_control | ADDRESS_20 } else { self.system_control & !ADDRESS_20 };
    }
}

impl Device for PcReset {
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64 {
        bytewise(offset, access, |offset, ask| match ask {
            Byte::Read => {
                let value = self.read(offset);
                if offset == DATA {
                    self.answer = None;
                }
                value
            }
            Byte::Write(value) => {
                if self.write(offset, value) {
                    ports.wish = Some(Wish::Reset);
                }
                0
            }
        })
    }

    fn peek(&self, offset: u64, width: Width) -> Option<u64> {
        let changes = offset == DATA && self.answer.is_some();
        (width == Width::Byte && !changes).then(|| u64::from(self.read(offset)))
    }

    fn irq(&self) -> bool {
        false
    }

    fn notify(&mut self, _: &mut Ports<'_>) {}

    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Reset control register: the kind of reset, kept, and a bit whose rising edge resets (Intel ICH9, 13.7.5).
const RESET_KIND: u8 = 0x0a;
const RESET_NOW: u8 = 1 << 2;

/// The reset control register at port 0xcf9, which lies among PCI's configuration ports.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResetControl {
    value: u8,
}

impl ResetControl {
    pub(crate) const fn read(&self) -> u8 {
        self.value
    }

    pub(crate) fn write(&mut self, value: u8, ports: &mut Ports<'_>) {
        if value & !self.value & RESET_NOW != 0 {
            ports.wish = Some(Wish::Reset);
        }
        self.value = value & (RESET_KIND | RESET_NOW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pl011::testing::Lent;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Bench {
        device: PcReset,
        lent: Lent,
    }

    impl Bench {
        fn read(&mut self, offset: u64) -> u64 {
            let peeked = self.device.peek(offset, Width::Byte);
            let value = self.lent.with(|ports| self.device.access(offset, Access::Read(Width::Byte), ports));
            assert!(peeked.is_none_or(|peeked| peeked == value));
            value
        }

        fn resets(&mut self, offset: u64, value: u8) -> bool {
            let access = Access::Write(Width::Byte, value.into());
            self.lent.with(|ports| self.device.access(offset, access, ports));
            self.lent.wish == Some(Wish::Reset)
        }
    }

    #[test]
    fn the_keyboard_controllers_pulse_resets() {
        let mut bench = Bench::default();
        assert_eq!((bench.read(COMMAND), bench.read(DATA)), (4, 0));
        for command in 0..=255 {
            let pulses_reset = command >= 0xf0 && command % 2 == 0;
            assert_eq!(bench.resets(COMMAND, command), pulses_reset, "command {command:#x}");
        }
    }

    #[test]
    fn the_output_port_reaches_reset_and_address_line_20() {
        let mut bench = Bench::default();
        assert!(!bench.resets(COMMAND, 0xd1));
        assert!(!bench.resets(DATA, 0xdd));
        assert_eq!(bench.read(SYSTEM_CONTROL), 0);
        assert!(!bench.resets(DATA, 0), "data without a command is dropped");
        bench.resets(COMMAND, 0xd1);
        assert!(bench.resets(DATA, 0xfe));
        assert_eq!(bench.read(SYSTEM_CONTROL), 2);
        bench.resets(COMMAND, 0xdd);
        assert_eq!(bench.read(SYSTEM_CONTROL), 0);
        bench.resets(COMMAND, 0xdf);
        assert_eq!(bench.read(SYSTEM_CONTROL), 2);
    }

    #[test]
    fn commands_that_answer_are_answered_once() {
        let mut bench = Bench::default();
        for (command, answer) in [(0x20, 0x34), (0xaa, 0x55), (0xab, 0), (0xd0, 3)] {
            assert!(!bench.resets(COMMAND, command));
            assert_eq!(bench.device.peek(COMMAND, Width::Byte), Some(5));
            assert_eq!(bench.device.peek(DATA, Width::Byte), None, "to read it changes the status");
            assert_eq!((bench.read(COMMAND), bench.read(DATA)), (5, answer), "command {command:#x}");
            assert_eq!((bench.read(COMMAND), bench.read(DATA)), (4, 0));
        }
    }

    /// What boot loaders do: the keyboard off, the output port read and written again with the bit set.
    #[test]
    fn address_line_20_is_switched_on_by_way_of_the_output_port() {
        let mut bench = Bench::default();
        bench.resets(COMMAND, 0xdd);
        bench.resets(COMMAND, 0xad);
        bench.resets(COMMAND, 0xd0);
        assert_eq!(bench.read(COMMAND) & 3, 1);
        let output = u8::try_from(bench.read(DATA)).unwrap();
        assert_eq!(output & 2, 0);
        bench.resets(COMMAND, 0xd1);
        assert!(!bench.resets(DATA, output | 2));
        assert_eq!(bench.read(SYSTEM_CONTROL), 2);
    }

    #[test]
    fn fast_reset_is_a_rising_edge() {
        let mut bench = Bench::default();
        assert_eq!(bench.read(SYSTEM_CONTROL), 2);
        assert!(!bench.resets(SYSTEM_CONTROL, 0x00));
        assert!(bench.resets(SYSTEM_CONTROL, 0x03));
        assert_eq!(bench.read(SYSTEM_CONTROL), 3);
        assert!(!bench.resets(SYSTEM_CONTROL, 0x01));
        bench.device.reset();
        assert_eq!(bench.read(SYSTEM_CONTROL), 2);
    }

    #[test]
    fn reset_control_resets_with_the_rising_edge_of_its_trigger() {
        let (mut control, mut lent) = (ResetControl::default(), Lent::default());
        for (value, resets, kept) in [
            (0x02, false, 0x02),
            (0x06, true, 0x06),
            (0x06, false, 0x06),
            (0xfb, false, 0x0a),
            (0x0e, true, 0x0e),
        ] {
            lent.with(|ports| control.write(value, ports));
            assert_eq!((lent.wish.is_some(), control.read()), (resets, kept), "value {value:#x}");
        }
    }

    proptest! {
        #[test]
        fn no_access_panics(offset in 0u64..6, value: u64, kind in 0usize..8) {
            let mut bench = Bench::default();
            let width = [Width::Byte, Width::Half, Width::Word, Width::Double][kind % 4];
            let access = if kind < 4 { Access::Read(width) } else { Access::Write(width, value & width.mask()) };
            bench.lent.with(|ports| bench.device.access(offset, access, ports));
        }
    }
}
