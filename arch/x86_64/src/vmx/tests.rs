//! A vCPU under a scripted VMX.

use super::controls::tests::{capabilities, skylake};
use super::controls::{entry, primary, secondary};
use super::failure::{Values, explain};
use super::vmcs::interruption;
use super::*;
use crate::control::{cr0, cr4};
use crate::hw::set_tsc;
use crate::hw::vmx::{Invalidation, script_exit, take_invalidations};
use crate::vendor::{Control, Delivery, Window};
use alloc::vec;
use alloc::vec::Vec;
use bulkhead::memory::frames::{Frame, FramePool};
use bulkhead_vdev::lapic::register;

fn vmx() -> Vmx {
    let capabilities = capabilities(&skylake());
    Vmx {
        controls: Controls::choose(&capabilities).unwrap(),
        shared: Shared::new(&capabilities),
        capabilities,
        permitted: MsrBitmap::new(),
        msrs: OnceCell::new(),
        address_bits: 46,
        clears_buffers: false,
    }
}

/// One without virtual-interrupt delivery.
fn older() -> Vmx {
    let mut vmx = vmx();
    vmx.controls.features.virtual_interrupts = false;
    vmx.controls.secondary &= !(secondary::VIRTUAL_INTERRUPTS | secondary::APIC_REGISTERS);
    vmx
}

fn control(vmx: &Vmx, id: usize) -> VmxControl {
    let frames: Vec<Frame> = (0..4).map(|_| Frame::EMPTY).collect();
    let mut pool = FramePool::new(frames.leak());
    let space = Stage2::new(&mut pool, 46, Ept::LARGEST_LEAF).unwrap();
    let mut control = vmx.control(0, VcpuId(id), &space, Box::leak(Box::default()));
    vmx.reset(&mut control);
    control
}

fn loaded(vmx: &Vmx) -> VmxControl {
    let mut control = control(vmx, 0);
    vmx.load(&mut control);
    control
}

fn set(page: &Page, register: u8, value: u32) {
    page.0[usize::from(register) * 4].store(value, Ordering::Relaxed);
}

/// The VMCS of a vCPU, with a host that is sound.
struct OnSoundHost<'a>(&'a VmxControl);

impl Values for OnSoundHost<'_> {
    fn field(&self, field: Field) -> u64 {
        self.0.vmcs.read(field)
    }

    fn guarded(&self, field: Guarded) -> u64 {
        match field {
            Guarded::HOST_CR0 => 0x8001_0033,
            Guarded::HOST_CR4 => 0x2020,
            Guarded::HOST_EFER => 0xd00,
            Guarded::HOST_CS | Guarded::HOST_TR => 8,
            other => self.0.vmcs.read(other),
        }
    }
}

const SOUND: &str = "the CPU refused to run it, for a reason that none of the known checks finds";

#[test]
fn a_vcpu_after_power_on_passes_the_checks_of_the_cpu() {
    let vmx = vmx();
    let control = control(&vmx, 0);
    assert_eq!(explain(&OnSoundHost(&control), &vmx.capabilities), SOUND);
}

#[test]
fn a_vcpu_in_64_bit_mode_passes_them_too() {
    let vmx = vmx();
    let mut control = control(&vmx, 0);
    control.set(Register::Cr4, 1 << 5);
    control.set(Register::Efer, 0x500);
    control.set(Register::Cr0, 0x8000_0001);
    let code = Segment { selector: 16, attributes: 0xa9b, limit: u32::MAX, base: 0 };
    control.set_segment(SegmentName::Cs, code);
    let task = Segment { attributes: 0x8b, limit: 0xffff, ..Segment::default() };
    control.set_segment(SegmentName::Tr, task);
    assert_eq!(control.vmcs.read(Guarded::ENTRY_CONTROLS) & u64::from(entry::LONG_MODE), 0x200);
    assert_eq!(explain(&OnSoundHost(&control), &vmx.capabilities), SOUND);
}

#[test]
fn a_guest_sees_the_control_registers_that_it_wrote() {
    let vmx = vmx();
    let mut control = control(&vmx, 0);
    control.set(Register::Cr0, 0xe001_0011);
    assert_eq!(control.get(Register::Cr0), 0xe001_0011);
    let real = control.vmcs.read(Field::GUEST_CR0);
    assert_eq!(real & (cr0::CD | cr0::NW | cr0::NE), cr0::NE, "caches stay on, and VMX goes on");
    control.set(Register::Cr4, 0xa0);
    assert_eq!(control.get(Register::Cr4), 0xa0);
    assert_eq!(control.vmcs.read(Field::GUEST_CR4), 0x20e0);
}

#[test]
fn directory_pointers_are_those_that_the_cpu_holds() {
    let vmx = vmx();
    let mut control = control(&vmx, 0);
    control.set_directory_pointers([1, 2, 3, 4]);
    assert_eq!(control.directory_pointers(), None, "there is no paging");
    control.set(Register::Cr4, cr4::PAE);
    control.set(Register::Cr0, cr0::PE | cr0::PG);
    assert_eq!(control.directory_pointers(), Some([1, 2, 3, 4]));
    control.set(Register::Efer, 0x500);
    assert_eq!(control.directory_pointers(), None, "long mode has none");
}

#[test]
fn a_vcpu_that_starts_again_forgets_its_translations() {
    let vmx = vmx();
    let mut control = loaded(&vmx);
    vmx.unload(&mut control);
    let _ = take_invalidations();
    vmx.load(&mut control);
    assert_eq!(take_invalidations(), [], "they are its own");
    vmx.unload(&mut control);
    vmx.reset(&mut control);
    vmx.load(&mut control);
    assert!(take_invalidations().contains(&Invalidation::Translations));
}

#[test]
fn two_vcpus_keep_their_fields_apart() {
    let vmx = vmx();
    let (mut first, mut second) = (control(&vmx, 0), control(&vmx, 1));
    vmx.load(&mut first);
    second.set(Register::Rip, 2);
    first.set(Register::Rip, 1);
    assert_eq!((first.get(Register::Rip), second.get(Register::Rip)), (1, 2));
    vmx.unload(&mut first);
    assert_eq!(first.get(Register::Rip), 1);
}

#[test]
fn an_interrupt_that_the_task_priority_holds_back_waits_for_that() {
    let vmx = older();
    let mut control = loaded(&vmx);
    set(control.page, register::TASK_PRIORITY, 0x50);
    control.want_window(Window::Vector(0x41));
    assert_eq!(control.vmcs.read(Field::TPR_THRESHOLD), 4);
    assert_eq!(control.windows, 0);
    control.want_window(Window::Vector(0x61));
    assert_eq!(control.vmcs.read(Field::TPR_THRESHOLD), 0);
    assert_eq!(control.windows, primary::INTERRUPT_WINDOW);
    control.want_window(Window::Unwanted);
    assert_eq!(control.windows, 0);
}

#[test]
fn an_interrupt_of_the_8259s_knows_no_task_priority() {
    let vmx = older();
    let mut control = loaded(&vmx);
    set(control.page, register::TASK_PRIORITY, 0xf0);
    control.want_window(Window::External);
    assert_eq!(control.vmcs.read(Field::TPR_THRESHOLD), 0);
    assert_eq!(control.windows, primary::INTERRUPT_WINDOW);
}

#[test]
fn no_entry_has_a_threshold_above_the_task_priority() {
    let vmx = older();
    let mut control = loaded(&vmx);
    set(control.page, register::TASK_PRIORITY, 0x50);
    control.want_window(Window::Vector(0x41));
    set(control.page, register::TASK_PRIORITY, 0);
    script_exit(&[(Field::EXIT_REASON, 7)]);
    assert_eq!(vmx.enter(&mut control, &mut Registers::default()), Event::Window);
    assert_eq!(control.vmcs.read(Field::TPR_THRESHOLD), 0);
    assert_eq!(control.windows, 0, "a window comes once");
}

#[test]
fn an_exception_in_real_mode_has_no_error_code() {
    let vmx = vmx();
    let mut control = loaded(&vmx);
    control.inject(Delivery::exception(13, Some(0)));
    assert!(control.is_injecting());
    assert_eq!(control.vmcs.read(Field::ENTRY_INTERRUPTION) & interruption::ERROR_CODE, 0);
    control.set(Register::Cr0, 1);
    control.inject(Delivery::exception(13, Some(0)));
    assert_ne!(control.vmcs.read(Field::ENTRY_INTERRUPTION) & interruption::ERROR_CODE, 0);
}

#[test]
fn what_the_page_requests_is_handed_to_the_cpu() {
    let vmx = vmx();
    let mut control = loaded(&vmx);
    set(control.page, register::REQUEST + 1, 1 << 16);
    set(control.page, register::IN_SERVICE + 7, 1);
    control.refresh_page(0, Some([1 << 48, 0, 0, 0]));
    assert_eq!(control.vmcs.read(Field::GUEST_INTERRUPT_STATUS), 0xe030);
    assert_eq!(control.vmcs.read(Field::EOI_EXIT_0), 1 << 48);
    control.refresh_page(0x2f, None);
    assert_eq!(control.vmcs.read(Field::GUEST_INTERRUPT_STATUS), 0xe030, "a lower one changes nothing");
    control.refresh_page(0xf1, None);
    assert_eq!(control.vmcs.read(Field::GUEST_INTERRUPT_STATUS), 0xe0f1);
}

#[test]
fn the_way_to_the_apic_goes_with_its_mode() {
    let vmx = vmx();
    let mut control = control(&vmx, 0);
    let mode = |control: &VmxControl| {
        let value = control.vmcs.read(Guarded::SECONDARY_CONTROLS);
        value & u64::from(secondary::APIC_ACCESSES | secondary::X2APIC)
    };
    assert_eq!(mode(&control), u64::from(secondary::APIC_ACCESSES));
    control.set_page_mode(PageMode::X2Apic);
    assert_eq!(mode(&control), u64::from(secondary::X2APIC));
    control.set_page_mode(PageMode::Off);
    assert_eq!(mode(&control), 0);
    let _ = take_invalidations();
    control.set_page_mode(PageMode::XApic);
    assert_eq!(take_invalidations(), [Invalidation::Space], "the page was memory before");
}

#[test]
fn an_nmi_waits_for_no_sti() {
    let vmx = vmx();
    let mut control = loaded(&vmx);
    let block = |control: &VmxControl, what: u64| control.vmcs.write(Field::GUEST_INTERRUPTIBILITY, what);
    block(&control, shadow::STI);
    assert!(control.is_open_for_nmi(), "the CPU may open a window there");
    control.inject(Delivery::nmi());
    assert_eq!(control.vmcs.read(Field::GUEST_INTERRUPTIBILITY), 0);
    for what in [shadow::MOV_SS, shadow::NMI] {
        block(&control, what);
        assert!(!control.is_open_for_nmi());
    }
}

#[test]
fn the_timer_counts_from_each_entry() {
    let vmx = vmx();
    let mut control = loaded(&vmx);
    assert!(vmx.set_deadline(&mut control, 1000));
    set_tsc(400);
    script_exit(&[(Field::EXIT_REASON, 52)]);
    assert_eq!(vmx.enter(&mut control, &mut Registers::default()), Event::Deadline);
    assert_eq!(control.vmcs.read(Field::PREEMPTION_TIMER), 599, "reading the counter takes a tick");
    assert!(vmx.set_deadline(&mut control, u64::MAX));
    assert_eq!(control.vmcs.read(Field::PREEMPTION_TIMER), 0xffff_ffff);
}

#[test]
fn the_stack_pointer_is_among_the_registers() {
    let vmx = vmx();
    let mut control = loaded(&vmx);
    let mut registers = Registers::default();
    registers.r[Registers::RSP] = 0x7000;
    script_exit(&[(Field::EXIT_REASON, 10), (Field::EXIT_LENGTH, 2)]);
    assert_eq!(vmx.enter(&mut control, &mut registers), Event::Cpuid);
    assert_eq!(control.vmcs.read(Field::GUEST_RSP), 0x7000);
    assert_eq!(vmx.instruction_length(&control), Some(2));
}

#[test]
fn a_vcpu_that_was_refused_at_first_can_be_launched() {
    const BAD_STATE: u64 = 0x8000_0021;
    let vmx = vmx();
    let mut control = loaded(&vmx);
    let mut enter = |why: u64| {
        script_exit(&[(Field::EXIT_REASON, why)]);
        vmx.enter(&mut control, &mut Registers::default())
    };
    assert!(matches!(enter(BAD_STATE), Event::Refused(_)));
    assert_eq!([enter(10), enter(10)], [Event::Cpuid; 2], "launched, then resumed");
    assert!(matches!(enter(BAD_STATE), Event::Refused(_)));
    assert_eq!([enter(10), enter(10)], [Event::Cpuid; 2]);
}

#[test]
fn msrs_are_let_through_by_direction() {
    let mut vmx = vmx();
    vmx.permit(0xc000_0100, Direction::Read);
    vmx.permit(0x174, Direction::Write);
    let bytes = vmx.permitted.bytes();
    let exits: Vec<usize> = (0..4096).filter(|byte| bytes[*byte] != 0xff).collect();
    assert_eq!(exits, vec![1024 + 0x100 / 8, 2048 + 0x174 / 8]);
}
