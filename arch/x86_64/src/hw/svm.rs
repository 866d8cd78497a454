//! SVM's instructions: switching it on, and the way into a guest and back. It alone makes control blocks, so that what a guest is
//! intercepted at and which second stage it has is settled here (APM Vol. 2, chapter 15).

use super::{Registers, cpuid, read_msr, write_msr};
use crate::msr::Direction;
use crate::npt::Npt;
use crate::svm::vmcb::{ControlArea, SaveArea, Vmcb, clean, intercept, interrupt, tlb};
use alloc::boxed::Box;
use alloc::vec;
use bulkhead::arch::Unsupported;
use bulkhead::memory::table::Stage2;

/// EFER and its SVME.
const EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const EFER_AUTOMATIC_IBRS: u64 = 1 << 21;
/// VM_CR (15.30.1): SVMDIS.
const VM_CR: u32 = 0xc001_0114;
const VM_CR_DISABLED: u64 = 1 << 4;
/// VM_HSAVE_PA (15.30.4).
const HOST_SAVE: u32 = 0xc001_0117;
/// DE_CFG: bit 1 makes LFENCE serialise (AMD, Software techniques for managing speculation, G-2).
const DE_CFG: u32 = 0xc001_1029;
const LFENCE_SERIALISES: u64 = 1 << 1;
/// CPUID leaves (APM Vol. 3, E.4): features, address sizes, SVM.
const FEATURES: u32 = 0x8000_0001;
const FEATURE_SVM: u32 = 1 << 2;
const FEATURE_LARGE_PAGES: u32 = 1 << 26;
const ADDRESS_SIZES: u32 = 0x8000_0008;
const SVM: u32 = 0x8000_000a;
const SVM_NESTED_PAGING: u32 = 1;
const SVM_NEXT_RIP: u32 = 1 << 3;
const SVM_CLEAN_BITS: u32 = 1 << 5;
const SVM_FLUSH_BY_ASID: u32 = 1 << 6;
const SVM_DECODE_ASSISTS: u32 = 1 << 7;
/// Four levels of tables translate no more.
const MOST_ADDRESS_BITS: u32 = 48;

/// Exceptions that could be delivered for ever without an instruction in between: #DB and #AC; and #MC, which is ours.
const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;
/// Of CR4 a guest might set what its CPUID does not offer, or switch machine checks off.
const CONTROL: u32 = intercept::WRITE_CR4;
const FIRST: u32 = intercept::INTERRUPT
    | intercept::NMI
    | intercept::SMI
    | intercept::INIT
    | intercept::RDPMC
    | intercept::CPUID
    | intercept::RSM
    | intercept::INVD
    | intercept::HLT
    | intercept::INVLPGA
    | intercept::PORTS
    | intercept::MSRS
    | intercept::SHUTDOWN;
const SECOND: u32 = intercept::VMRUN
    | intercept::VMMCALL
    | intercept::VMLOAD
    | intercept::VMSAVE
    | intercept::STGI
    | intercept::CLGI
    | intercept::SKINIT
    | intercept::WBINVD
    | intercept::MONITOR
    | intercept::MWAIT
    | intercept::XSETBV
    | intercept::RDPRU;
const THIRD: u32 = intercept::INVLPGB | intercept::MCOMMIT | intercept::TLBSYNC;

/// A page of memory, all bits set: no port and no MSR is let through.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Bitmap([u8; 4096]);

/// Which ports a guest reaches without an exit (15.10.1): none.
static PORTS: [Bitmap; 3] = [Bitmap([0xff; 4096]); 3];

/// SVM, switched on on one CPU.
pub struct Extension {
    /// Which MSRs a guest reaches (15.11): two bits each.
    msrs: Box<[Bitmap]>,
    /// This CPU's own state, for the way back.
    host: Box<Vmcb>,
    /// Where the CPU keeps what VMRUN replaces.
    _save: Box<[Bitmap]>,
    /// How many tags there are, the host's among them.
    pub asids: u32,
    /// How many bits a guest-physical address may have.
    pub address_bits: u32,
    /// The CPU notes where an intercepted instruction ends.
    pub has_next_rip: bool,
    /// The CPU notes the instruction of a nested fault.
    pub has_decode_assists: bool,
    has_flush_by_asid: bool,
    /// What may be left as it is in a block, if the CPU looks at that.
    clean: u64,
}

/// Switches SVM on. Allocates: boot only.
///
/// # Errors
/// [`Unsupported`]
pub fn enable() -> Result<Extension, Unsupported> {
    if cpuid(FEATURES, 0).ecx & FEATURE_SVM == 0 {
        return Err(Unsupported("the CPU has no SVM"));
    }
    if read_msr(VM_CR) & VM_CR_DISABLED != 0 {
        return Err(Unsupported("SVM is switched off by firmware: switch it on in its set-up"));
    }
    let offered = cpuid(SVM, 0);
    if offered.edx & SVM_NESTED_PAGING == 0 {
        return Err(Unsupported("the CPU's SVM has no nested paging"));
    }
    if cpuid(FEATURES, 0).edx & FEATURE_LARGE_PAGES == 0 {
        return Err(Unsupported("the CPU has no pages of 1 GiB"));
    }
    let sizes = cpuid(ADDRESS_SIZES, 0).eax;
    let bits = if sizes >> 16 & 0xff == 0 { sizes & 0xff } else { sizes >> 16 & 0xff };
    let save = pages(1);
    if can_make_lfence_serialise() {
        // SAFETY: LFENCE waits for what is before it, as everybody thinks that it does.
        unsafe { write_msr(DE_CFG, read_msr(DE_CFG) | LFENCE_SERIALISES) };
    }
    let ibrs = if has_automatic_ibrs() { EFER_AUTOMATIC_IBRS } else { 0 };
    // SAFETY: SVM's instructions exist from here on, and guests' branch predictions are kept from us.
    unsafe { write_msr(EFER, read_msr(EFER) | EFER_SVME | ibrs) };
    // SAFETY: the page belongs to the CPU from here on: it lives as long as the extension, and nobody looks at it.
    unsafe { write_msr(HOST_SAVE, physical(&save[0])) };
    let mut host = new_block();
    save_host(&mut host);
    Ok(Extension {
        msrs: pages(2),
        host,
        _save: save,
        asids: offered.ebx,
        address_bits: bits.min(MOST_ADDRESS_BITS),
        has_next_rip: offered.edx & SVM_NEXT_RIP != 0,
        has_decode_assists: offered.edx & SVM_DECODE_ASSISTS != 0,
        has_flush_by_asid: offered.edx & SVM_FLUSH_BY_ASID != 0,
        clean: if offered.edx & SVM_CLEAN_BITS != 0 { clean::ALL } else { 0 },
    })
}

/// Whether LFENCE serialises only where [`DE_CFG`] says so: not on CPUs where it always does, nor on families without the
/// register. A hypervisor below us answers for its own, and may not have the register.
fn can_make_lfence_serialise() -> bool {
    const HYPERVISOR: u32 = 1 << 31;
    const ALWAYS: u32 = 1 << 2;
    let basic = cpuid(1, 0);
    let family = match basic.eax >> 8 & 0xf {
        0xf => 0xf + (basic.eax >> 20 & 0xff),
        family => family,
    };
    basic.ecx & HYPERVISOR == 0 && matches!(family, 0x10 | 0x12..) && further_features() & ALWAYS == 0
}

/// Whether the CPU keeps a guest's branch predictions from its host as long as EFER says so (APM Vol. 2, 3.2.9).
fn has_automatic_ibrs() -> bool {
    const AUTOMATIC_IBRS: u32 = 1 << 8;
    further_features() & AUTOMATIC_IBRS != 0
}

fn further_features() -> u32 {
    const LEAF: u32 = 0x8000_0021;
    if cpuid(0x8000_0000, 0).eax >= LEAF { cpuid(LEAF, 0).eax } else { 0 }
}

#[inline(never)]
fn pages(count: usize) -> Box<[Bitmap]> {
    vec![Bitmap([0xff; 4096]); count].into_boxed_slice()
}

/// A block that says nothing yet.
fn new_block() -> Box<Vmcb> {
    // SAFETY: a block is made of numbers only, so that zeros are one. It never lies on a stack, which is not that large.
    unsafe { Box::<Vmcb>::new_zeroed().assume_init() }
}

/// The physical address of something of ours: all memory is mapped one to one.
fn physical<T>(of: &T) -> u64 {
    core::ptr::from_ref(of).expose_provenance() as u64
}

impl Extension {
    /// Lets guests reach an MSR.
    pub fn permit(&mut self, number: u32, direction: Direction) {
        // Three ranges of 8192 MSRs each, two bits for each: read, write (15.11).
        let block = match number {
            0..=0x1fff => 0,
            0xc000_0000..=0xc000_1fff => 0x800,
            0xc001_0000..=0xc001_1fff => 0x1000,
            _ => return,
        };
        let bit = 2 * (number as usize & 0x1fff) + usize::from(direction == Direction::Write);
        let byte = block + bit / 8;
        if let Some(Bitmap(page)) = self.msrs.get_mut(byte >> 12) {
            page[byte & 0xfff] &= !(1 << (bit & 7));
        }
    }
}

/// One vCPU's control block. What confines the guest is set when it is made, and nothing changes it.
pub struct Block {
    vmcb: Box<Vmcb>,
    /// How it forgets translations.
    forget: u32,
}

impl Block {
    /// A block for a guest that reaches `space`. Allocates: boot only.
    #[must_use]
    pub fn new(extension: &Extension, space: &Stage2<Npt>, asid: u32) -> Self {
        let mut vmcb = new_block();
        let control = &mut vmcb.control;
        control.intercept_control = CONTROL;
        control.intercept_exceptions = EXCEPTIONS;
        control.intercept_first = FIRST;
        control.intercept_second = SECOND;
        control.intercept_third = THIRD;
        control.io_permissions = physical(&PORTS);
        control.msr_permissions = physical(&extension.msrs[0]);
        control.asid = asid;
        control.interrupt = interrupt::VIRTUAL_MASKING;
        control.nested_control = 1;
        control.nested_cr3 = space.root().0;
        let forget = if extension.has_flush_by_asid { tlb::FORGET_ASID } else { tlb::FORGET_ALL };
        Self { vmcb, forget }
    }

    /// The guest's state as after VMSAVE of nothing; no event, no window.
    pub fn reset(&mut self) {
        self.vmcb.save = SaveArea::NEW;
        self.vmcb.control.event_injection = 0;
        self.vmcb.control.exit_interrupt = 0;
        self.vmcb.control.interrupt = interrupt::VIRTUAL_MASKING;
        self.vmcb.control.interrupt_state = 0;
        self.vmcb.control.intercept_first = FIRST;
        self.vmcb.control.intercept_control = CONTROL;
        self.vmcb.control.clean = 0;
    }

    /// How it runs, and why it came back.
    #[inline(always)]
    #[must_use]
    pub fn control(&self) -> &ControlArea {
        &self.vmcb.control
    }

    /// The guest's state.
    #[inline(always)]
    #[must_use]
    pub fn save(&self) -> &SaveArea {
        &self.vmcb.save
    }

    /// The guest's state, of which the part `changed` (see [`clean`]) is about to change.
    #[inline(always)]
    pub fn save_mut(&mut self, changed: u64) -> &mut SaveArea {
        self.vmcb.control.clean &= !changed;
        &mut self.vmcb.save
    }

    /// The block is not the one that ran last.
    pub fn changed_all(&mut self) {
        self.vmcb.control.clean = 0;
    }

    /// Sets the event that is delivered on entry.
    #[inline]
    pub fn inject(&mut self, event: u64) {
        self.vmcb.control.event_injection = event;
    }

    /// Whether the guest's last instruction holds off interrupts.
    #[inline(always)]
    #[must_use]
    pub fn has_shadow(&self) -> bool {
        self.vmcb.control.interrupt_state & 1 != 0
    }

    /// It no longer does.
    #[inline(always)]
    pub fn end_shadow(&mut self) {
        self.vmcb.control.interrupt_state = 0;
    }

    /// Sets CR8 and the virtual interrupt that waits. Physical interrupts stay the host's.
    #[inline]
    pub fn set_interrupt(&mut self, value: u64) {
        const OURS: u64 = interrupt::TASK_PRIORITY | interrupt::WAITING;
        self.vmcb.control.interrupt = value & OURS | interrupt::VIRTUAL_MASKING;
        self.vmcb.control.clean &= !clean::INTERRUPT;
    }

    /// Whether it stops before it takes a virtual interrupt. A lower CR8 would let one in by itself (15.21.4), but emulators fail
    /// over that: it stops at writes of CR8 too.
    #[inline]
    pub fn intercept_window(&mut self, on: bool) {
        self.intercept_control(intercept::WRITE_CR8, on);
        self.intercept(intercept::VIRTUAL_INTERRUPT, on);
    }

    /// Whether it stops at reads of CR4.
    pub fn intercept_cr4_reads(&mut self, on: bool) {
        self.intercept_control(intercept::READ_CR4, on);
        self.vmcb.control.clean &= !clean::INTERCEPTS;
    }

    #[inline(always)]
    fn intercept_control(&mut self, what: u32, on: bool) {
        let control = &mut self.vmcb.control.intercept_control;
        *control = if on { *control | what } else { *control & !what };
    }

    /// Whether it stops at IRET.
    pub fn intercept_return(&mut self, on: bool) {
        self.intercept(intercept::IRET, on);
    }

    fn intercept(&mut self, what: u32, on: bool) {
        let first = &mut self.vmcb.control.intercept_first;
        *first = if on { *first | what } else { *first & !what };
        self.vmcb.control.clean &= !clean::INTERCEPTS;
    }

    /// What is added to the time stamp counter.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.control.tsc_offset = offset;
        self.vmcb.control.clean &= !clean::INTERCEPTS;
    }

    /// The next run forgets what is cached of the guest's translations: by its tag, where the CPU can.
    pub fn forget_translations(&mut self) {
        self.vmcb.control.tlb_control = self.forget;
    }

    /// Runs the guest until it is intercepted. Host interrupts are masked, the global interrupt flag is set, before and after.
    #[inline(always)]
    pub fn run(&mut self, extension: &Extension, registers: &mut Registers) {
        self.vmcb.save.rax = registers.r[Registers::RAX];
        self.vmcb.save.rsp = registers.r[Registers::RSP];
        enter(&mut self.vmcb, &extension.host, registers);
        registers.r[Registers::RAX] = self.vmcb.save.rax;
        registers.r[Registers::RSP] = self.vmcb.save.rsp;
        self.vmcb.control.event_injection = 0;
        self.vmcb.control.tlb_control = tlb::KEEP;
        self.vmcb.control.clean = extension.clean;
    }
}

#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("svm_entry.S"));

#[cfg(target_os = "none")]
unsafe extern "C" {
    fn bulkhead_svm_enter(registers: *mut Registers, guest: u64, host: u64);
}

#[cfg(target_os = "none")]
#[inline(always)]
fn enter(guest: &mut Vmcb, host: &Vmcb, registers: &mut Registers) {
    let guest = core::ptr::from_mut(guest).expose_provenance() as u64;
    // SAFETY: the code keeps every register that the calling convention protects, and touches no memory but `registers`, the two
    // blocks and our own stack; the guest is confined by the intercepts and the second stage that `Block::new` set.
    unsafe { bulkhead_svm_enter(registers, guest, physical(host)) };
}

/// Notes what VMRUN does not restore (15.5.2): FS, GS, TR, LDTR and the MSRs of SYSCALL and SYSENTER.
#[cfg(target_os = "none")]
fn save_host(host: &mut Vmcb) {
    let block = core::ptr::from_mut(host).expose_provenance();
    // SAFETY: writes a part of the block, which is exclusively ours.
    unsafe { core::arch::asm!("vmsave rax", in("rax") block, options(nostack, preserves_flags)) };
}

#[cfg(not(target_os = "none"))]
fn enter(guest: &mut Vmcb, _host: &Vmcb, _registers: &mut Registers) {
    guest.control.exit_code = crate::svm::exit::code::INTERRUPT;
}

#[cfg(not(target_os = "none"))]
fn save_host(_host: &mut Vmcb) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::{Leaf, set_cpuid};

    #[test]
    fn lfence_is_made_to_serialise_where_that_is_a_choice() {
        let can = |eax, ecx, features: u32| {
            set_cpuid(1, 0, Leaf { eax, ecx, ..Leaf::default() });
            set_cpuid(0x8000_0000, 0, Leaf { eax: 0x8000_0021, ..Leaf::default() });
            set_cpuid(0x8000_0021, 0, Leaf { eax: features, ..Leaf::default() });
            can_make_lfence_serialise()
        };
        assert!(can(0x0080_0f12, 0, 0), "family 17h");
        assert!(can(0x0010_0f23, 0, 0), "family 10h");
        assert!(!can(0x0020_0f31, 0, 0), "family 11h has no such register");
        assert!(!can(0x0004_0f33, 0, 0), "nor has family 0fh");
        assert!(!can(0x00a0_0f11, 0, 1 << 2), "it always does");
        assert!(!can(0x0080_0f12, 1 << 31, 0), "a hypervisor is below");
    }
}
