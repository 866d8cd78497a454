//! The wires of a PC from a device to what a vCPU takes.

use alloc::boxed::Box;

use super::*;
use crate::Width;
use crate::lapic::{Effect, Features, LocalApic, Owner, Page, Setup, register};

fn machine() -> (PcIrqs, LocalApic) {
    let irqs = PcIrqs::new(1);
    let setup = Setup { features: Features::all(), owner: Owner::Software, ticks_per_second: 1_000_000_000 };
    let mut local = LocalApic::new(0, Box::leak(Box::new(Page::new())), Arc::clone(irqs.apics()), setup);
    local.set_up_as_firmware_does();
    (irqs, local)
}

fn out(irqs: &mut PcIrqs, port: u16, value: u64) -> VcpuSet {
    irqs.port(port, Access::Write(Width::Byte, value)).unwrap().1
}

fn set_up_pics(irqs: &mut PcIrqs) {
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x38)] {
        let _ = out(irqs, port, value);
    }
    for (port, value) in [(0xa1, 2), (0xa1, 1), (0x21, 0), (0xa1, 0)] {
        let _ = out(irqs, port, value);
    }
}

fn route(irqs: &mut PcIrqs, pin: u64, low: u64) {
    for (offset, value) in [(0, 0x10 + 2 * pin), (0x10, low)] {
        let _ = irqs.mmio(offset, Access::Write(Width::Word, value));
    }
}

#[test]
fn the_timer_is_input_0_of_the_pair_and_pin_2() {
    let (mut irqs, mut local) = machine();
    set_up_pics(&mut irqs);
    route(&mut irqs, 2, 0x52);
    route(&mut irqs, 0, 0x50);
    assert_eq!(irqs.set_line(0, true), VcpuSet::only(0));
    local.absorb();
    assert_eq!(local.pending(), Some(0x52));
    assert!(local.has_external());
    assert_eq!(irqs.acknowledge_pic(), 0x30);
    assert!(!local.has_external());
}

#[test]
fn other_lines_have_their_own_number_on_both() {
    for line in (1..24).filter(|&line| line != 2) {
        let (mut irqs, mut local) = machine();
        set_up_pics(&mut irqs);
        route(&mut irqs, line.into(), 0x50);
        assert_eq!(irqs.set_line(line, true), VcpuSet::only(0), "line {line}");
        local.absorb();
        assert_eq!(local.pending(), Some(0x50));
        assert_eq!(local.has_external(), line < 16);
        if line < 16 {
            assert_eq!(u32::from(irqs.acknowledge_pic()), 0x30 + line);
        }
    }
}

#[test]
fn lines_that_are_not_there_do_nothing() {
    let (mut irqs, mut local) = machine();
    set_up_pics(&mut irqs);
    for line in [2, 24, 255, 256, 258, u32::MAX] {
        assert_eq!(irqs.set_line(line, true), VcpuSet::EMPTY);
    }
    assert!(!local.wakes());
}

#[test]
fn the_pairs_output_is_seen_as_it_is_now() {
    let (mut irqs, local) = machine();
    set_up_pics(&mut irqs);
    assert_eq!(irqs.set_line(4, true), VcpuSet::only(0));
    assert!(local.has_external());
    assert_eq!(out(&mut irqs, 0x21, 0xff), VcpuSet::EMPTY);
    assert!(!local.has_external(), "masked before it was taken");
    assert_eq!(out(&mut irqs, 0x21, 0), VcpuSet::EMPTY, "it has not looked since it was told");
    assert!(local.has_external());
    assert_eq!(irqs.acknowledge_pic(), 0x34);
    assert_eq!(irqs.acknowledge_pic(), 0x37, "spurious");
    assert!(irqs.port(0x60, Access::Read(Width::Byte)).is_none());
}

#[test]
fn a_level_goes_round_until_the_device_is_served() {
    let (mut irqs, mut local) = machine();
    route(&mut irqs, 9, 0x8059);
    let _ = irqs.set_line(9, true);
    for is_last in [false, true] {
        local.absorb();
        assert_eq!(local.acknowledge(), 0x59);
        if is_last {
            let _ = irqs.set_line(9, false);
        }
        let Effect::Ended(vector) = local.write(register::END_OF_INTERRUPT, 0, 0) else { panic!("a level") };
        assert_eq!(irqs.eoi(vector), if is_last { VcpuSet::EMPTY } else { VcpuSet::only(0) });
    }
    assert!(!local.wakes());
}

#[test]
fn reset_forgets_what_the_guest_wrote() {
    let (mut irqs, mut local) = machine();
    set_up_pics(&mut irqs);
    route(&mut irqs, 4, 0x54);
    let _ = irqs.set_line(4, true);
    let _ = irqs.set_line(4, false);
    irqs.reset();
    local.reset();
    assert!(!local.wakes());
    local.set_up_as_firmware_does();
    assert!(!local.wakes());
    assert_eq!(irqs.mmio(0x10, Access::Read(Width::Word)), (0, VcpuSet::EMPTY));
    assert_eq!(irqs.set_line(4, true), VcpuSet::EMPTY.union(VcpuSet(irqs.apics().intr().into())));
}
