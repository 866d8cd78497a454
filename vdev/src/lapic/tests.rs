//! The local APIC against the manuals' tables and rules.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::register as reg;
use super::{
    Apics, Delivery, Destination, Effect, Features, LocalApic, Message, Owner, Page, Refused, Setup, Trigger,
};
use crate::{Access, MAX_VCPUS, VcpuSet, Width};

pub(super) const ENABLED: u32 = 0x1ff;
pub(super) const XAPIC: u64 = 0xfee0_0800;
pub(super) const X2APIC: u64 = 0xfee0_0c00;
const MASKED: u32 = 1 << 16;
/// The host's ticks in a second.
const HZ: u64 = 3_000_000_000;

pub(super) fn setup() -> Setup {
    Setup { features: Features::all(), owner: Owner::Software, ticks_per_second: HZ }
}

fn made(vcpu: usize, apics: &Arc<Apics>, setup: Setup) -> LocalApic {
    LocalApic::new(vcpu, Box::leak(Box::new(Page::new())), Arc::clone(apics), setup)
}

/// As after power-on.
fn fresh(vcpus: usize) -> Vec<LocalApic> {
    let apics = Arc::new(Apics::new(vcpus));
    (0..vcpus).map(|vcpu| made(vcpu, &apics, setup())).collect()
}

/// Enabled by software, with flat logical ids as operating systems give them.
pub(super) fn enabled(vcpus: usize) -> Vec<LocalApic> {
    let mut machine = fresh(vcpus);
    for (index, apic) in machine.iter_mut().enumerate() {
        assert_eq!(apic.write(reg::SPURIOUS, ENABLED, 0), Effect::Nothing);
        assert_eq!(apic.write(reg::LOGICAL_DESTINATION, 1 << (24 + index % 8), 0), Effect::Nothing);
    }
    machine
}

fn enabled_x2(vcpus: usize) -> Vec<LocalApic> {
    let mut machine = enabled(vcpus);
    for apic in &mut machine {
        apic.set_base(apic.base() | X2APIC).unwrap();
    }
    machine
}

fn one() -> LocalApic {
    enabled(1).remove(0)
}

/// Sends by xAPIC mode's two registers.
fn send(apic: &mut LocalApic, destination: u32, command: u32) -> Effect {
    let _ = apic.write(reg::COMMAND_HIGH, destination << 24, 0);
    apic.write(reg::COMMAND, command, 0)
}

fn look(vcpus: u32) -> Effect {
    Effect::Look(VcpuSet(vcpus))
}

/// Who got `vector` and takes it now.
fn takers(machine: &mut [LocalApic], vector: u8) -> u32 {
    let mut takers = 0;
    for (index, apic) in machine.iter_mut().enumerate() {
        apic.absorb();
        if apic.pending() == Some(vector) {
            assert_eq!(apic.acknowledge(), vector);
            assert_eq!(apic.eoi(), None);
            takers |= 1 << index;
        }
        assert_eq!(apic.pending(), None, "vCPU {index} has nothing else");
    }
    takers
}

fn message(destination: Destination, delivery: Delivery, vector: u8, trigger: Trigger) -> Message {
    Message { destination, delivery, vector, trigger }
}

fn fixed(destination: Destination, vector: u8) -> Message {
    message(destination, Delivery::Fixed, vector, Trigger::Edge)
}

fn errors(apic: &mut LocalApic) -> u32 {
    let _ = apic.write(reg::ERROR_STATUS, 0, 0);
    apic.read(reg::ERROR_STATUS, 0)
}

mod registers;
mod routing;
mod timer;

#[test]
fn the_page_is_a_page() {
    assert_eq!((size_of::<Page>(), align_of::<Page>()), (4096, 4096));
}

#[test]
fn a_higher_class_interrupts_a_lower_one_and_each_end_is_that_of_the_highest() {
    let mut apic = one();
    for vector in [0x31, 0x51, 0x5f] {
        assert_eq!(send(&mut apic, 0, vector), Effect::Nothing);
    }
    assert_eq!(apic.acknowledge(), 0x5f);
    assert_eq!(apic.pending(), None, "0x51 is of the same class");
    assert_eq!(send(&mut apic, 0, 0x60), Effect::Nothing);
    assert_eq!(apic.acknowledge(), 0x60);
    assert_eq!(apic.read(reg::PROCESSOR_PRIORITY, 0), 0x60);
    assert_eq!((apic.highest_in_service(), apic.highest_requested()), (0x60, 0x51));
    assert_eq!(apic.write(reg::END_OF_INTERRUPT, 0, 0), Effect::Nothing);
    assert_eq!(apic.highest_in_service(), 0x5f);
    assert_eq!(apic.pending(), None);
    let _ = apic.eoi();
    assert_eq!(apic.acknowledge(), 0x51);
    let _ = apic.eoi();
    assert_eq!(apic.acknowledge(), 0x31);
    let _ = apic.eoi();
    assert_eq!((apic.eoi(), apic.pending()), (None, None));
}

/// SDM Vol. 3A, 11.8.3.1.
#[test]
fn the_processor_priority_is_the_higher_of_task_and_service() {
    let mut apic = one();
    let _ = send(&mut apic, 0, 0x45);
    assert_eq!(apic.acknowledge(), 0x45);
    for (task, priority) in [(0x00, 0x40), (0x3f, 0x40), (0x40, 0x40), (0x47, 0x47), (0x53, 0x53)] {
        let _ = apic.write(reg::TASK_PRIORITY, task, 0);
        assert_eq!(apic.read(reg::PROCESSOR_PRIORITY, 0), priority, "task priority {task:#x}");
    }
}

#[test]
fn the_task_priority_holds_back_its_own_class_and_those_below() {
    let mut apic = one();
    let _ = send(&mut apic, 0, 0x5f);
    apic.set_cr8(5).unwrap();
    assert_eq!((apic.read(reg::TASK_PRIORITY, 0), apic.pending()), (0x50, None));
    let _ = apic.write(reg::TASK_PRIORITY, 0x4f, 0);
    assert_eq!((apic.cr8(), apic.pending()), (4, Some(0x5f)));
    assert_eq!(apic.set_cr8(16), Err(Refused));
    assert_eq!(apic.set_cr8(u64::MAX), Err(Refused));
}

#[test]
fn an_acknowledge_without_a_pending_interrupt_is_spurious_and_in_service_nowhere() {
    let mut apic = one();
    let _ = apic.write(reg::SPURIOUS, 0x1e3, 0);
    let _ = send(&mut apic, 0, 0x50);
    apic.set_cr8(5).unwrap();
    assert_eq!(apic.acknowledge(), 0xe3);
    assert_eq!((apic.highest_in_service(), apic.highest_requested()), (0, 0x50));
}

#[test]
fn a_level_interrupts_end_is_told_and_an_edges_is_not() {
    let mut apic = one();
    let level = message(Destination::Physical(0), Delivery::Fixed, 0x61, Trigger::Level);
    assert_eq!(apic.apics().send(level).look, VcpuSet::only(0));
    apic.absorb();
    assert_eq!(apic.read(reg::TRIGGER_MODE + 3, 0), 2);
    assert_eq!(apic.acknowledge(), 0x61);
    assert_eq!(apic.write(reg::END_OF_INTERRUPT, 0, 0), Effect::Ended(0x61));
    let _ = apic.apics().send(Message { trigger: Trigger::Edge, ..level });
    apic.absorb();
    assert_eq!(apic.read(reg::TRIGGER_MODE + 3, 0), 0);
    assert_eq!(apic.acknowledge(), 0x61);
    assert_eq!(apic.eoi(), None);
}

#[test]
fn a_guest_may_suppress_the_broadcast_of_ends_if_it_was_told_so() {
    for (features, told) in [(Features::all(), None), (Features::empty(), Some(0x61))] {
        let apics = Arc::new(Apics::new(1));
        let mut apic = made(0, &apics, Setup { features, ..setup() });
        let _ = apic.write(reg::SPURIOUS, 0x11ff, 0);
        let _ = apics.send(message(Destination::All, Delivery::Fixed, 0x61, Trigger::Level));
        apic.absorb();
        assert_eq!(apic.acknowledge(), 0x61);
        assert_eq!(apic.eoi(), told);
    }
}

#[test]
fn the_vectors_whose_end_matters_are_told_once_they_change() {
    let mut apic = one();
    assert!(apic.changed_levels().is_some());
    assert_eq!(apic.changed_levels(), None);
    let _ = apic.apics().send(message(Destination::All, Delivery::Fixed, 0x61, Trigger::Level));
    let _ = apic.apics().send(message(Destination::All, Delivery::Fixed, 0xff, Trigger::Level));
    apic.absorb();
    assert_eq!(apic.changed_levels(), Some([0, 1 << 0x21, 0, 1 << 63]));
    let _ = send(&mut apic, 0, 0x50);
    assert_eq!(apic.changed_levels(), None);
}

/// The hardware requests, delivers and ends by itself; nothing here remembers what it was.
#[test]
fn what_the_hardware_did_to_the_page_counts() {
    let apics = Arc::new(Apics::new(1));
    let mut apic = made(0, &apics, Setup { owner: Owner::Hardware, ..setup() });
    let _ = apic.write(reg::SPURIOUS, ENABLED, 0);
    let page = apic.page();
    page.set(reg::REQUEST + 2, 1 << 3);
    page.set(reg::IN_SERVICE + 1, 1 << 9);
    assert_eq!((apic.highest_requested(), apic.highest_in_service()), (0x43, 0x29));
    assert_eq!(apic.pending(), Some(0x43));
    page.set(reg::TASK_PRIORITY, 0x45);
    assert_eq!((apic.pending(), apic.cr8()), (None, 4));
    let _ = send(&mut apic, 0, 0x81);
    apic.take(0x81);
    page.set(reg::IN_SERVICE + 4, 0);
    assert_eq!(apic.highest_in_service(), 0x29);
    assert_eq!(apic.eoi(), None);
    assert_eq!(apic.highest_in_service(), 0);
    let _ = apics.send(message(Destination::All, Delivery::Fixed, 0x61, Trigger::Level));
    apic.absorb();
    page.set(reg::REQUEST + 3, 0);
    assert_eq!(apic.ended(0x61), Some(0x61));
    assert_eq!(apic.ended(0x62), None);
}

/// SDM Vol. 3C, 30.4.3.3: the guest's value is in the page before anybody looks at it.
#[test]
fn a_write_that_the_hardware_performed_is_mended_and_acted_on() {
    let mut apic = enabled(2).remove(1);
    let page = apic.page();
    let raw = |apic: &mut LocalApic, register: u8, value: u32| {
        page.set(register, value);
        let effect = apic.written(register, 0);
        (effect, page.get(register))
    };
    assert_eq!(raw(&mut apic, reg::ID, 0xff00_0000), (Effect::Nothing, 1 << 24));
    assert_eq!(raw(&mut apic, reg::LOGICAL_DESTINATION, u32::MAX).1, 0xff00_0000);
    assert_eq!(raw(&mut apic, reg::DESTINATION_FORMAT, 0).1, 0x0fff_ffff);
    assert_eq!(raw(&mut apic, reg::LVT_TIMER, u32::MAX).1, 0x7_00ff);
    assert_eq!(raw(&mut apic, reg::ERROR_STATUS, u32::MAX).1, 0);
    assert_eq!(raw(&mut apic, reg::SPURIOUS, 0xff), (Effect::Nothing, 0xff));
    assert_eq!(page.get(reg::LVT_TIMER) & MASKED, MASKED);
    let _ = raw(&mut apic, reg::SPURIOUS, ENABLED);
    assert_eq!(raw(&mut apic, reg::COMMAND, 0x0004_0050).0, Effect::Nothing);
    assert_eq!(apic.pending(), Some(0x50));
}

/// LINT0 in virtual wire mode: a level that knows no priority.
#[test]
fn the_8259_pair_reaches_the_vcpu_whose_lint0_passes_it_on() {
    let mut machine = fresh(2);
    let apics = Arc::clone(machine[0].apics());
    assert_eq!(apics.set_intr(true), VcpuSet::EMPTY);
    assert!(!machine[0].has_external());
    machine[0].set_up_as_firmware_does();
    assert!(machine[0].has_external() && machine[0].wakes() && !machine[1].wakes());
    assert_eq!(apics.set_intr(false), VcpuSet::EMPTY);
    assert!(!machine[0].has_external(), "withdrawn");
    assert_eq!(apics.set_intr(true), VcpuSet::only(0));
    assert_eq!(apics.set_intr(true), VcpuSet::EMPTY);
    let _ = machine[0].write(reg::LVT_LINT0, MASKED | 0x700, 0);
    assert!(!machine[0].has_external());
    let _ = machine[0].write(reg::LVT_LINT0, 0x700, 0);
    let _ = machine[0].write(reg::SPURIOUS, 0xff, 0);
    assert!(!machine[0].has_external(), "software disable masks it");
    machine[0].set_base(0xfee0_0000).unwrap();
    assert!(machine[0].has_external(), "without an APIC the pin is INTR");
}

#[test]
fn lint0_can_be_an_edge_a_level_or_an_nmi() {
    let mut apic = one();
    let apics = Arc::clone(apic.apics());
    let _ = apic.write(reg::LVT_LINT0, 0x50, 0);
    assert_eq!(apics.set_intr(true), VcpuSet::only(0));
    apic.absorb();
    assert_eq!(apic.acknowledge(), 0x50);
    assert_eq!(apic.eoi(), None);
    assert_eq!(apic.pending(), None);

    let _ = apic.write(reg::LVT_LINT0, 0x8050, 0);
    assert_eq!(apic.read(reg::LVT_LINT0, 0), 0xc050, "remote IRR");
    assert_eq!(apic.acknowledge(), 0x50);
    assert_eq!(apic.eoi(), None, "no I/O APIC sent it");
    assert_eq!(apic.acknowledge(), 0x50, "still active");
    let _ = apics.set_intr(false);
    assert_eq!((apic.eoi(), apic.pending()), (None, None));
    assert_eq!(apic.read(reg::LVT_LINT0, 0), 0x8050);
    let _ = apics.set_intr(true);
    apic.absorb();
    assert_eq!(apic.read(reg::LVT_LINT0, 0), 0xc050);
    let _ = apic.write(reg::LVT_LINT0, 0x50, 0);
    assert_eq!(apic.read(reg::LVT_LINT0, 0), 0x50, "an edge has no remote IRR");
    assert_eq!(apic.acknowledge(), 0x50);
    let _ = (apic.eoi(), apics.set_intr(false));

    let _ = apic.write(reg::LVT_LINT0, 0x400, 0);
    assert_eq!(apics.set_intr(true), VcpuSet::only(0));
    apic.absorb();
    assert!(apic.has_nmi());
    apic.take_nmi();
    assert!(!apic.has_nmi());
}

#[test]
fn lint1_is_the_nmi_wire() {
    let mut machine = fresh(2);
    machine[0].set_up_as_firmware_does();
    let apics = Arc::clone(machine[0].apics());
    assert_eq!(apics.pulse_lint1(), VcpuSet::only(0));
    assert!(machine[0].wakes() && machine[0].has_nmi());
    machine[1].set_base(0xfee0_0000).unwrap();
    assert_eq!(apics.pulse_lint1(), VcpuSet(3));
    assert!(machine[1].wakes() && machine[1].has_nmi());
}

/// SDM Vol. 3A, figure 11-27 and table 11-5.
#[test]
fn modes_change_only_as_the_manual_draws_it() {
    const DISABLED: u64 = 0xfee0_0000;
    const INVALID: u64 = 0xfee0_0400;
    let ways = [
        (XAPIC, [true, true, true, false]),
        (X2APIC, [true, false, true, false]),
        (DISABLED, [true, true, false, false]),
    ];
    for (from, legal) in ways {
        for (to, legal) in [DISABLED, XAPIC, X2APIC, INVALID].into_iter().zip(legal) {
            let mut apic = one();
            apic.set_base(from).unwrap();
            assert_eq!(apic.set_base(to).is_ok(), legal, "{from:#x} to {to:#x}");
            assert_eq!(apic.base(), if legal { to } else { from } | 0x100);
        }
    }
    let mut apic = fresh(2).remove(1);
    assert_eq!(apic.base(), XAPIC, "only the first is the bootstrap vCPU");
    for refused in [0xfee0_1800, XAPIC | 1, XAPIC | 1 << 9, XAPIC | 1 << 40, u64::MAX] {
        assert_eq!(apic.set_base(refused), Err(Refused));
    }
    let apics = Arc::new(Apics::new(1));
    let mut apic = made(0, &apics, Setup { features: Features::empty(), ..setup() });
    assert_eq!(apic.set_base(X2APIC), Err(Refused), "the guest was not told of it");
}

#[test]
fn x2apic_mode_keeps_the_registers_and_disabling_forgets_them() {
    let mut apic = enabled(3).remove(2);
    let _ = apic.write(reg::TASK_PRIORITY, 0x33, 0);
    let _ = send(&mut apic, 2, 0x55);
    assert_eq!(apic.read(reg::ID, 0), 2 << 24);
    apic.set_base(X2APIC).unwrap();
    assert!(apic.is_x2apic() && !apic.is_mapped());
    assert_eq!(apic.read_x2apic(reg::ID, 0), Ok(2));
    assert_eq!(apic.read_x2apic(reg::LOGICAL_DESTINATION, 0), Ok(4));
    assert_eq!(apic.read_x2apic(reg::TASK_PRIORITY, 0), Ok(0x33));
    assert_eq!(apic.pending(), Some(0x55));
    apic.set_base(0xfee0_0000).unwrap();
    assert!(!apic.is_x2apic() && !apic.is_mapped());
    assert_eq!((apic.pending(), apic.read_x2apic(reg::ID, 0)), (None, Err(Refused)));
    apic.set_base(XAPIC).unwrap();
    assert_eq!(apic.read(reg::TASK_PRIORITY, 0), 0);
    assert_eq!(apic.read(reg::SPURIOUS, 0), 0xff);
}

#[test]
fn init_resets_all_but_the_mode_and_what_waits_in_the_mailbox_is_lost() {
    let mut apic = enabled_x2(2).remove(1);
    let _ = apic.apics().send(fixed(Destination::All, 0x55));
    let _ = apic.apics().send(message(Destination::All, Delivery::Nmi, 0, Trigger::Edge));
    apic.init();
    assert!(apic.is_x2apic() && !apic.wakes());
    assert_eq!(apic.read_x2apic(reg::SPURIOUS, 0), Ok(0xff));
    assert_eq!(apic.read_x2apic(reg::ID, 0), Ok(1));
    assert_eq!(apic.apics().send(fixed(Destination::Physical(1), 0x55)).look, VcpuSet::EMPTY);
    apic.reset();
    assert_eq!(apic.base(), XAPIC);
}

#[test]
fn the_last_vcpu_of_the_largest_vm_is_reached() {
    let mut machine = enabled(MAX_VCPUS);
    let last = 1 << (MAX_VCPUS - 1);
    assert_eq!(send(&mut machine[0], 15, 0x50), look(last));
    assert_eq!(takers(&mut machine, 0x50), last);
    assert_eq!(send(&mut machine[0], 16, 0x50), Effect::Nothing);
}

#[test]
fn an_access_moves_the_bytes_that_a_register_has() {
    let mut apic = enabled(2).remove(1);
    assert_eq!(apic.access(0x20, Access::Read(Width::Word), 0), (1 << 24, Effect::Nothing));
    assert_eq!(apic.access(0x23, Access::Read(Width::Byte), 0), (1, Effect::Nothing));
    assert_eq!(apic.access(0x24, Access::Read(Width::Word), 0), (0, Effect::Nothing));
    assert_eq!(apic.access(0x20, Access::Read(Width::Double), 0), (1 << 24, Effect::Nothing));
    for dropped in [Access::Write(Width::Byte, 0x50), Access::Write(Width::Double, 0x50)] {
        let _ = apic.access(0x80, dropped, 0);
    }
    let _ = apic.access(0x84, Access::Write(Width::Word, 0x50), 0);
    assert_eq!(apic.read(reg::TASK_PRIORITY, 0), 0);
    let _ = apic.access(0x80, Access::Write(Width::Word, 0x50), 0);
    assert_eq!(apic.read(reg::TASK_PRIORITY, 0), 0x50);
}
