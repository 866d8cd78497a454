//! Intel's extension: VMX with EPT and unrestricted guests (SDM Vol. 3C).
//!
//! What a CPU has besides (tags, the virtual APIC, delivery of virtual interrupts) is used where it is; [`controls`] says
//! what that is and what is needed. It relies on `hw::vmx` for every instruction and for all that confines a guest.

mod control;
pub mod controls;
pub mod exit;
pub mod failure;
pub mod vmcs;

use crate::ept::Ept;
use crate::hw::vmx::{Confinement, MsrBitmap, Shared, Vmcs, capabilities, switch_on};
use crate::hw::{GuestMsr, Registers, cpuid, read_dr6, read_tsc, take_interrupt, write_dr6};
use crate::msr::Direction;
use crate::vcpu::speculation_facts;
use crate::vendor::{
    Control as _, Delivery, Event, PageMode, Register, Segment, SegmentName, TableName, TableRegister, Vendor,
};
use alloc::boxed::Box;
use bulkhead::arch::{Unsupported, VcpuId};
use bulkhead::memory::table::{Format as _, Stage2};
use bulkhead_vdev::MAX_VCPUS;
use bulkhead_vdev::lapic::Page;
pub use control::VmxControl;
use control::{MsrBitmaps, Parked};
use controls::{Capabilities, Controls};
use core::cell::OnceCell;
use core::sync::atomic::{AtomicU64, Ordering};
use exit::Decoded;
use vmcs::{Field, Guarded, interruption, reason, shadow};

/// Registers after power-on (SDM Vol. 3A, table 10-1).
const CR0_RESET: u64 = 0x6000_0010;
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;
/// Descriptors of real mode: present, accessed; code, writable data, an LDT, a busy TSS (of 32 bits: long mode may not be entered
/// with one of 16).
const CODE_RESET: u16 = 0x9b;
const DATA_RESET: u16 = 0x93;
const LDTR_RESET: u16 = 0x82;
const TR_RESET: u16 = 0x8b;

/// Exceptions that exit: #DB and #AC, which a guest could make loop without end inside the CPU; #MC, which is the host's.
const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;
/// DR6: what a debug exception sets, and what it clears (SDM Vol. 3B, 18.2.3).
const DR6_CAUSES: u64 = 0x600f;

/// The walk has four levels, so addresses have at most this many bits.
const MOST_ADDRESS_BITS: u32 = 48;

/// MSRs that only the guest and the CPU use and that no VMCS holds: they move at load and unload.
const MOVED: [GuestMsr; 5] =
    [GuestMsr::Star, GuestMsr::Lstar, GuestMsr::Cstar, GuestMsr::Sfmask, GuestMsr::KernelGsBase];

/// The x2APIC's registers, by number less 0x800, that the CPU serves from the virtual APIC (30.5): read, and written.
const SERVED_READS: [core::ops::RangeInclusive<u32>; 9] = [
    0x02..=0x03,
    0x08..=0x08,
    0x0a..=0x0a,
    0x0d..=0x0d,
    0x0f..=0x28,
    0x2f..=0x2f,
    0x32..=0x37,
    0x38..=0x38,
    0x3e..=0x3e,
];
const SERVED_WRITES: [u32; 3] = [0x08, 0x0b, 0x3f];
const X2APIC: u32 = 0x800;

/// The preemption timer has 32 bits.
const TIMER_MAX: u64 = u32::MAX as u64;

/// Counts [`Vmx::invalidate`]: a vCPU whose translations were forgotten before the last one forgets them when it is loaded.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// VMX on the CPU that this was made on.
pub struct Vmx {
    capabilities: Capabilities,
    controls: Controls,
    shared: Shared,
    permitted: MsrBitmap,
    /// Made of `permitted` once it is complete.
    msrs: OnceCell<MsrBitmaps>,
    address_bits: u32,
    /// See [`Confinement`].
    clears_buffers: bool,
}

impl Vmx {
    fn bitmaps(&self) -> MsrBitmaps {
        *self.msrs.get_or_init(|| {
            let mut x2apic = self.permitted.copied();
            for register in SERVED_READS.into_iter().flatten() {
                x2apic.permit(X2APIC + register, false);
            }
            for register in SERVED_WRITES {
                x2apic.permit(X2APIC + register, true);
            }
            MsrBitmaps {
                plain: Box::leak(Box::new(self.permitted.copied())),
                x2apic: Box::leak(Box::new(x2apic)),
            }
        })
    }

    /// The timer counts from each entry anew.
    #[inline]
    fn start_timer(&self, control: &VmxControl) {
        let shift = self.controls.features.timer_shift.unwrap_or(0);
        let left = control.deadline.saturating_sub(read_tsc());
        // Rather late by less than one count than early.
        let counts = (left >> shift).saturating_add(u64::from(shift > 0));
        control.vmcs.write(Field::PREEMPTION_TIMER, counts.min(TIMER_MAX));
    }

    /// Events that the shared layer has no word for, or that leave something to be done.
    #[cold]
    #[inline(never)]
    fn rare(&self, control: &mut VmxControl, decoded: Decoded) -> Event {
        match decoded {
            Decoded::Event(event) => event,
            Decoded::Debug(causes) => {
                write_dr6(read_dr6() & !0xf | causes & DR6_CAUSES);
                Event::Exception(Delivery::exception(1, None))
            }
            Decoded::BadState => self.refusal(control),
        }
    }

    /// What is wrong with a guest that the CPU does not run.
    #[cold]
    #[inline(never)]
    fn refusal(&self, control: &mut VmxControl) -> Event {
        control.vmcs.launch_again();
        Event::Refused(failure::explain(&Read(&control.vmcs), &self.capabilities))
    }

    #[cold]
    #[inline(never)]
    fn not_entered(&self, control: &mut VmxControl) -> Event {
        let number = control.vmcs.read(Field::INSTRUCTION_ERROR);
        let refusal = self.refusal(control);
        failure::instruction_error(number).map_or(refusal, Event::Refused)
    }
}

/// A VMCS, as [`failure`] reads it.
struct Read<'a>(&'a Vmcs);

impl failure::Values for Read<'_> {
    fn field(&self, field: Field) -> u64 {
        self.0.read(field)
    }

    fn guarded(&self, field: Guarded) -> u64 {
        self.0.read(field)
    }
}

impl Vendor for Vmx {
    type Format = Ept;
    type Control = VmxControl;

    const NAME: &'static str = "Intel VMX with EPT";

    const NEEDS_APIC_PAGE: bool = true;

    const LOADS_DIRECTORY_POINTERS: bool = true;

    fn enable() -> Result<Self, Unsupported> {
        let capabilities = capabilities()?;
        let controls = Controls::choose(&capabilities)?;
        switch_on(&capabilities)?;
        Ok(Self {
            capabilities,
            controls,
            shared: Shared::new(&capabilities),
            permitted: MsrBitmap::new(),
            msrs: OnceCell::new(),
            address_bits: (cpuid(0x8000_0008, 0).eax & 0xff).min(MOST_ADDRESS_BITS),
            clears_buffers: speculation_facts(&[]).remedies().clear_buffers,
        })
    }

    fn permit(&mut self, number: u32, direction: Direction) {
        self.permitted.permit(number, direction == Direction::Write);
    }

    fn address_bits(&self) -> u32 {
        self.address_bits
    }

    fn largest_leaf(&self) -> u32 {
        const MEBIBYTES: u32 = 1;
        if self.controls.features.gibibyte_pages { Ept::LARGEST_LEAF } else { MEBIBYTES }
    }

    fn has_invpcid(&self) -> bool {
        self.controls.features.invpcid
    }

    fn has_rdtscp(&self) -> bool {
        self.controls.features.rdtscp
    }

    fn control(&self, vm: usize, id: VcpuId, space: &Stage2<Ept>, page: &'static Page) -> VmxControl {
        let msrs = self.bitmaps();
        let vmcs = Vmcs::new(&Confinement {
            controls: &self.controls,
            space,
            // Tag 0 is the host's.
            vpid: u16::try_from(1 + vm * MAX_VCPUS + id.0).unwrap_or(u16::MAX),
            apic: page,
            apic_at: exit::APIC_PAGE,
            cr0_mask: control::CR0_MASK,
            cr4_mask: control::CR4_MASK,
            exceptions: EXCEPTIONS,
            shared: &self.shared,
            msrs: msrs.plain,
            clears_buffers: self.clears_buffers,
        });
        VmxControl {
            vmcs,
            controls: self.controls,
            page,
            vectoring: 0,
            reason: 0,
            rsp: 0,
            injecting: false,
            windows: 0,
            threshold: 0,
            recount: true,
            deadline: u64::MAX,
            seen: 0,
            parked: Parked { cr2: 0, dr6: DR6_RESET, msrs: MOVED.map(|msr| (msr, 0)) },
            msrs,
        }
    }

    fn reset(&self, control: &mut VmxControl) {
        control.close_windows();
        control.injecting = false;
        control.vectoring = 0;
        control.rsp = 0;
        control.deadline = u64::MAX;
        // Translation is switched off behind the CPU's back: what it remembers of this guest goes before it runs again.
        control.seen = 0;
        control.vmcs.write(Field::PREEMPTION_TIMER, TIMER_MAX);
        for field in [
            Field::ENTRY_INTERRUPTION,
            Field::GUEST_INTERRUPTIBILITY,
            Field::GUEST_ACTIVITY,
            Field::GUEST_PENDING_DEBUG,
            Field::GUEST_DEBUGCTL,
            Field::GUEST_SYSENTER_CS,
            Field::GUEST_SYSENTER_ESP,
            Field::GUEST_SYSENTER_EIP,
            Field::GUEST_RSP,
            Field::GUEST_INTERRUPT_STATUS,
            Field::TPR_THRESHOLD,
        ] {
            control.vmcs.write(field, 0);
        }
        for (_, value) in &mut control.parked.msrs {
            *value = 0;
        }
        let data = Segment { attributes: DATA_RESET, limit: 0xffff, ..Segment::default() };
        for name in SegmentName::ALL {
            control.set_segment(name, data);
        }
        let code = Segment { selector: 0xf000, attributes: CODE_RESET, base: 0xffff_0000, ..data };
        control.set_segment(SegmentName::Cs, code);
        control.set_segment(SegmentName::Ldtr, Segment { attributes: LDTR_RESET, ..data });
        control.set_segment(SegmentName::Tr, Segment { attributes: TR_RESET, ..data });
        let table = TableRegister { base: 0, limit: 0xffff };
        control.set_table(TableName::Global, table);
        control.set_table(TableName::Interrupt, table);
        for (register, value) in [
            (Register::Rip, 0xfff0),
            (Register::Rflags, 2),
            (Register::Cr0, CR0_RESET),
            (Register::Cr2, 0),
            (Register::Cr3, 0),
            (Register::Cr4, 0),
            (Register::Efer, 0),
            (Register::Dr6, DR6_RESET),
            (Register::Dr7, DR7_RESET),
            (Register::Pat, PAT_RESET),
        ] {
            control.set(register, value);
        }
        control.set_page_mode(PageMode::XApic);
    }

    fn load(&self, control: &mut VmxControl) {
        control.load();
        let generation = GENERATION.load(Ordering::SeqCst);
        if control.seen != generation {
            control.seen = generation;
            control.vmcs.forget_space(&self.controls);
            control.vmcs.forget_translations(&self.controls);
        }
    }

    fn unload(&self, control: &mut VmxControl) {
        control.unload();
    }

    #[inline]
    fn enter(&self, control: &mut VmxControl, registers: &mut Registers) -> Event {
        let rsp = registers.r[Registers::RSP];
        if rsp != control.rsp {
            control.vmcs.write(Field::GUEST_RSP, rsp);
        }
        control.settle_threshold();
        if control.deadline != u64::MAX {
            self.start_timer(control);
        }
        // What waits already would end the turn before it began. Bochs 2.7 needs it: it forgets about interrupts that came
        // before an entry with RFLAGS.IF clear.
        if let Some(vector) = take_interrupt() {
            control.vectoring = 0;
            return Event::Interrupt(Some(vector));
        }
        if !control.vmcs.enter(registers) {
            return self.not_entered(control);
        }
        control.injecting = false;
        control.rsp = control.vmcs.read_loaded(Field::GUEST_RSP);
        registers.r[Registers::RSP] = control.rsp;
        control.reason = control.vmcs.read_loaded(Field::EXIT_REASON);
        // Apart: its value then goes to whoever serves it in registers. It never comes while an event is delivered.
        if control.reason == reason::IO.into() {
            control.vectoring = 0;
            return Event::Port(exit::port(control.vmcs.read_loaded(Field::QUALIFICATION)));
        }
        control.vectoring = control.vmcs.read_loaded(Field::VECTORING);
        if control.reason_unblocked_nmi() {
            control.block_nmi_again();
        }
        match exit::decode(control.reason, |field| control.vmcs.read_loaded(field)) {
            Decoded::Event(Event::Window) => {
                control.close_windows();
                Event::Window
            }
            Decoded::Event(event) => event,
            other => self.rare(control, other),
        }
    }

    fn invalidate(&self, _vm: usize, _space: &Stage2<Ept>) {
        GENERATION.fetch_add(1, Ordering::SeqCst);
    }

    #[inline]
    fn instruction_length(&self, control: &VmxControl) -> Option<u8> {
        // Only instructions that exit by themselves are asked for: nothing needs to be decided here.
        debug_assert!(exit::has_length(control.reason), "the CPU tells the length of every such instruction");
        Some(control.vmcs.read_loaded(Field::EXIT_LENGTH).to_le_bytes()[0])
    }

    #[inline]
    fn set_deadline(&self, control: &mut VmxControl, at: u64) -> bool {
        if self.controls.features.timer_shift.is_none() {
            return false;
        }
        if control.deadline != at {
            control.deadline = at;
            // Without a deadline the timer runs as far as it can, and comes for nothing.
            control.vmcs.write(Field::PREEMPTION_TIMER, TIMER_MAX);
        }
        true
    }

    fn delivers_interrupts(&self) -> bool {
        self.controls.features.virtual_interrupts
    }
}

impl VmxControl {
    /// Whether the exit came out of an IRET that had just unblocked NMIs (28.2.3): it will be executed again.
    #[inline]
    fn reason_unblocked_nmi(&self) -> bool {
        let by_iret = match self.reason & 0xffff {
            0 => {
                self.vmcs.read(Field::EXIT_INTERRUPTION) & (interruption::UNBLOCKED_NMI | interruption::VALID)
                    == interruption::UNBLOCKED_NMI | interruption::VALID
            }
            48 => self.vmcs.read(Field::QUALIFICATION) & interruption::UNBLOCKED_NMI != 0,
            _ => false,
        };
        by_iret && self.vectoring & interruption::VALID == 0
    }

    #[cold]
    fn block_nmi_again(&self) {
        let blocked = self.vmcs.read(Field::GUEST_INTERRUPTIBILITY);
        self.vmcs.write(Field::GUEST_INTERRUPTIBILITY, blocked | shadow::NMI);
    }
}

#[cfg(test)]
mod tests;
