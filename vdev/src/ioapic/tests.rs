//! The I/O APIC against its data sheet, with real local APICs behind it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use proptest::prelude::*;

use super::*;
use crate::lapic::{Effect, Features, LocalApic, Owner, Page, Setup, register};

struct Machine {
    ioapic: IoApic,
    apics: Arc<Apics>,
    locals: Vec<LocalApic>,
}

impl Machine {
    fn new() -> Self {
        let apics = Arc::new(Apics::new(2));
        let setup =
            Setup { features: Features::empty(), owner: Owner::Software, ticks_per_second: 1_000_000_000 };
        let local = |vcpu: usize| {
            let mut apic = LocalApic::new(vcpu, Box::leak(Box::new(Page::new())), Arc::clone(&apics), setup);
            let _ = apic.write(register::SPURIOUS, 0x1ff, 0);
            let _ = apic.write(register::LOGICAL_DESTINATION, 1 << (24 + vcpu), 0);
            apic
        };
        Self { ioapic: IoApic::new(), locals: (0..2).map(local).collect(), apics }
    }

    fn write(&mut self, select: u8, value: u32) -> VcpuSet {
        let word = |value: u64| Access::Write(Width::Word, value);
        let _ = self.ioapic.access(SELECT, word(select.into()), &self.apics);
        self.ioapic.access(WINDOW, word(value.into()), &self.apics).1
    }

    fn read(&mut self, select: u8) -> u64 {
        let _ = self.ioapic.access(SELECT, Access::Write(Width::Byte, select.into()), &self.apics);
        self.ioapic.access(WINDOW, Access::Read(Width::Word), &self.apics).0
    }

    /// Entry `pin`, to vCPU 1.
    fn route(&mut self, pin: u8, low: u32) -> VcpuSet {
        let _ = self.write(ENTRIES + 2 * pin + 1, 1 << 24);
        self.write(ENTRIES + 2 * pin, low)
    }

    fn set(&mut self, pin: u32, level: bool) -> u32 {
        self.ioapic.set_pin(pin, level, &self.apics).0
    }

    /// What vCPU 1 takes now.
    fn take(&mut self) -> Option<u8> {
        let local = &mut self.locals[1];
        local.absorb();
        let vector = local.pending()?;
        local.take(vector);
        Some(vector)
    }

    fn end(&mut self) -> VcpuSet {
        match self.locals[1].write(register::END_OF_INTERRUPT, 0, 0) {
            Effect::Ended(vector) => self.ioapic.end(vector, &self.apics),
            _ => VcpuSet::EMPTY,
        }
    }
}

#[test]
fn registers_are_as_after_power_on() {
    let mut machine = Machine::new();
    assert_eq!(machine.read(VERSION), 0x0017_0020);
    assert_eq!((machine.read(ID), machine.read(ARBITRATION)), (0, 0));
    for pin in 0..24 {
        assert_eq!((machine.read(0x10 + 2 * pin), machine.read(0x11 + 2 * pin)), (0x1_0000, 0));
    }
    assert_eq!((machine.read(0x40), machine.read(0x0f), machine.read(0xff)), (0, 0, 0));
}

#[test]
fn an_entry_has_the_data_sheets_bits() {
    let mut machine = Machine::new();
    let _ = machine.write(0x10, u32::MAX);
    let _ = machine.write(0x11, u32::MAX);
    assert_eq!((machine.read(0x10), machine.read(0x11)), (0x1_afff, 0xff00_0000));
    let _ = machine.write(ID, u32::MAX);
    assert_eq!((machine.read(ID), machine.read(ARBITRATION)), (0x0f00_0000, 0x0f00_0000));
    let _ = machine.write(VERSION, 0);
    assert_eq!(machine.read(VERSION), 0x0017_0020);
}

#[test]
fn an_edge_is_sent_once() {
    let mut machine = Machine::new();
    assert_eq!(machine.route(4, 0x44), VcpuSet::EMPTY);
    assert_eq!(machine.set(4, true), 2);
    assert_eq!(machine.set(4, true), 0);
    assert_eq!((machine.take(), machine.end()), (Some(0x44), VcpuSet::EMPTY));
    assert_eq!((machine.set(4, false), machine.take()), (0, None));
    assert_eq!((machine.set(4, true), machine.take()), (2, Some(0x44)));
}

#[test]
fn an_edge_at_a_masked_entry_is_lost_and_a_level_is_not() {
    for (bits, taken) in [(0, None), (0x8000, Some(0x44))] {
        let mut machine = Machine::new();
        let _ = machine.route(4, 0x1_0044 | bits);
        assert_eq!(machine.set(4, true), 0);
        let _ = machine.route(4, 0x44 | bits);
        assert_eq!(machine.take(), taken);
    }
}

#[test]
fn a_level_is_sent_again_after_its_end_as_long_as_it_lasts() {
    let mut machine = Machine::new();
    let _ = machine.route(9, 0xa049);
    assert_eq!((machine.set(9, true), machine.take()), (2, Some(0x49)));
    assert_eq!(machine.read(0x22), 0xe049, "remote IRR");
    assert_eq!((machine.set(9, false), machine.set(9, true), machine.take()), (0, 0, None));
    assert_eq!((machine.end(), machine.take()), (VcpuSet(2), Some(0x49)));
    let _ = machine.set(9, false);
    assert_eq!((machine.end(), machine.take()), (VcpuSet::EMPTY, None));
    assert_eq!(machine.read(0x22), 0xa049);
}

#[test]
fn masked_while_in_service_it_waits_for_the_mask() {
    let mut machine = Machine::new();
    let _ = machine.route(9, 0x8049);
    assert_eq!((machine.set(9, true), machine.take()), (2, Some(0x49)));
    let _ = machine.route(9, 0x1_8049);
    assert_eq!((machine.end(), machine.take()), (VcpuSet::EMPTY, None));
    assert_eq!((machine.route(9, 0x8049), machine.take()), (VcpuSet(2), Some(0x49)));
}

#[test]
fn the_mode_changed_there_and_back_clears_remote_irr() {
    let mut machine = Machine::new();
    let _ = machine.route(9, 0x8049);
    let _ = machine.set(9, true);
    let _ = machine.set(9, false);
    let _ = machine.route(9, 0x1_0049);
    let _ = machine.route(9, 0x8049);
    assert_eq!(machine.read(0x22), 0x8049);
}

#[test]
fn a_level_that_nobody_accepts_does_not_block_its_pin() {
    let mut machine = Machine::new();
    let _ = machine.locals[1].write(register::SPURIOUS, 0xff, 0);
    let _ = machine.route(9, 0x8049);
    assert_eq!((machine.set(9, true), machine.read(0x22)), (0, 0x8049), "disabled by software");
    let _ = machine.locals[1].write(register::SPURIOUS, 0x1ff, 0);
    assert_eq!((machine.set(9, false), machine.set(9, true), machine.read(0x22)), (0, 2, 0xc049));
    assert_eq!((machine.take(), machine.set(9, false)), (Some(0x49), 0));
    let _ = machine.end();
    // A mask that names nobody, until the entry is written.
    let _ = machine.write(0x23, 0x80 << 24);
    let _ = machine.write(0x22, 0x8849);
    assert_eq!((machine.set(9, true), machine.read(0x22)), (0, 0x8849));
    assert_eq!(machine.write(0x23, 2 << 24), VcpuSet(2));
    assert_eq!((machine.take(), machine.read(0x22)), (Some(0x49), 0xc849));
}

#[test]
fn what_nobody_accepted_is_sent_again_at_the_next_end() {
    let mut machine = Machine::new();
    let _ = machine.route(10, 0x804a);
    let _ = machine.set(10, true);
    assert_eq!(machine.take(), Some(0x4a));
    let _ = machine.locals[1].write(register::SPURIOUS, 0xff, 0);
    let _ = machine.route(9, 0x8049);
    let _ = machine.route(5, 0x8400);
    let _ = machine.set(5, true);
    let _ = machine.set(9, true);
    assert!(machine.locals[1].wakes());
    machine.locals[1].take_nmi();
    let _ = machine.locals[1].write(register::SPURIOUS, 0x1ff, 0);
    let _ = machine.set(10, false);
    assert_eq!((machine.end(), machine.take()), (VcpuSet(2), Some(0x49)));
    assert!(!machine.locals[1].has_nmi(), "an NMI is sent once");
}

#[test]
fn the_end_register_ends_by_vector() {
    let mut machine = Machine::new();
    let _ = machine.route(9, 0x8049);
    let _ = machine.route(10, 0x8049);
    let _ = machine.route(11, 0x804b);
    for pin in [9, 10, 11] {
        let _ = machine.set(pin, true);
        let _ = machine.set(pin, false);
    }
    let _ = machine.ioapic.access(END, Access::Write(Width::Word, 0x49), &machine.apics);
    assert_eq!([0x22, 0x24, 0x26].map(|low| machine.read(low)), [0x8049, 0x8049, 0xc04b]);
}

#[test]
fn delivery_modes_reach_the_local_apics() {
    let mut machine = Machine::new();
    let _ = machine.route(5, 0x8400);
    assert_eq!(machine.set(5, true), 2);
    assert_eq!(machine.read(0x1a), 0x8400, "an NMI is an edge");
    assert!(machine.locals[1].wakes() && machine.locals[1].has_nmi());
    let _ = machine.route(6, 0x0700);
    assert_eq!(machine.set(6, true), 2);
    assert!(machine.locals[1].wakes() && machine.locals[1].has_external());
    let _ = machine.route(7, 0x0500);
    assert_eq!(machine.set(7, true), 0, "no device switches a vCPU off");
    let _ = machine.route(8, 0x0944);
    let _ = machine.write(0x21, 0xff << 24);
    let told = machine.set(8, true);
    assert_eq!(told.count_ones(), 1, "lowest priority");
    let _ = machine.route(12, 0x000e);
    assert_eq!(machine.set(12, true), 2);
    machine.locals[1].absorb();
    let _ = machine.locals[1].write(register::ERROR_STATUS, 0, 0);
    assert_eq!(machine.locals[1].read(register::ERROR_STATUS, 0), 0x40);
}

#[test]
fn reset_keeps_the_pins() {
    let mut machine = Machine::new();
    let _ = machine.route(9, 0x8049);
    let _ = machine.set(9, true);
    machine.ioapic.reset();
    assert_eq!(machine.read(0x22), 0x1_0000);
    let _ = machine.take();
    assert_eq!(machine.route(9, 0x804a), VcpuSet(2));
    assert_eq!(machine.set(24, true), 0);
    assert_eq!(machine.set(u32::MAX, true), 0);
}

proptest! {
    #[test]
    fn a_level_is_in_flight_exactly_while_remote_irr_says_so(
        steps in prop::collection::vec((0u8..8, 0u8..4, any::<u32>()), 1..120),
    ) {
        let mut machine = Machine::new();
        for (what, pin, value) in steps {
            match what {
                0 => { let _ = machine.route(pin, value & 0x1_20ff | 0x8010); }
                1..4 => { let _ = machine.set(pin.into(), value & 1 != 0); }
                4 => { let _ = machine.take(); }
                5 => { let _ = machine.end(); }
                6 => { let _ = machine.write(value.to_le_bytes()[0], value); }
                _ => { let _ = machine.ioapic.access(value.into(), Access::Write(Width::Word, value.into()), &machine.apics); }
            }
            for pin in 0..PINS {
                let entry = machine.ioapic.entries[pin];
                let waits = entry & (MASKED | REMOTE_IRR) == 0
                    && is_level(entry)
                    && machine.ioapic.levels >> pin & 1 != 0;
                if waits {
                    let _ = machine.ioapic.deliver(pin, &machine.apics);
                    let accepted = machine.ioapic.entries[pin] & REMOTE_IRR != 0;
                    prop_assert!(!accepted, "an asserted, open, level-triggered pin {} has been sent", pin);
                }
            }
        }
    }
}
