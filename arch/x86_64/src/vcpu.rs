//! One vCPU: its registers, its local APIC, what it waits for, and the state that stays in the CPU while it is loaded.

use crate::board::StartState;
use crate::control::Offer;
use crate::cpuid::{self, Live};
use crate::hw::extended::ExtendedState;
use crate::hw::trail::Trails;
use crate::hw::{
    GuestMsr, Registers, cpuid as host_cpuid, read_dr0, read_dr1, read_dr2, read_dr3, read_msr, read_xcr0,
    write_dr0, write_dr1, write_dr2, write_dr3, write_guest_msr, write_xcr0,
};
use crate::insn::memo::Memo;
use crate::mmio::Plan;
use crate::msr::{HostWords, Msrs};
use crate::speculation;
use crate::vendor::{Control, PortAccess, Register, Segment, SegmentName, TableName, TableRegister, Vendor};
use alloc::boxed::Box;
use alloc::sync::Arc;
use bulkhead::arch::{Entry, VcpuId};
use bulkhead_vdev::Width;
use bulkhead_vdev::lapic::LocalApic;
use core::sync::atomic::AtomicU32;

/// What has to be done before the guest is entered again: bits of [`Vcpu::todo`].
pub(crate) mod todo {
    /// Its interrupts, or its deadline, may have changed.
    pub(crate) const LOOK: u8 = 1;
    /// A device has answered.
    pub(crate) const RESUME: u8 = 1 << 1;
    /// It has executed HLT.
    pub(crate) const HALTED: u8 = 1 << 2;
}

/// Which answer the instruction at RIP waits for.
#[derive(Clone, Copy)]
pub(crate) enum Waiting {
    /// None.
    Nothing,
    /// That of a port; the instruction has so many bytes.
    Port(PortAccess, u8),
    /// That of a device, for an access of this width.
    Device(Plan, Width),
    /// It has come.
    Answered(Plan, u64),
}

/// One vCPU.
pub struct Vcpu<V: Vendor> {
    pub(crate) registers: Registers,
    pub(crate) control: V::Control,
    pub(crate) todo: u8,
    pub(crate) id: VcpuId,
    pub(crate) waiting: Waiting,
    /// Other vCPUs run on its CPU.
    pub(crate) is_shared: bool,
    pub(crate) apic: Box<LocalApic>,
    pub(crate) cpuid: Box<cpuid::Table>,
    pub(crate) offer: Offer,
    pub(crate) msrs: Box<Msrs>,
    /// The guest's XCR0, which is in the CPU while it is loaded.
    pub(crate) xcr0: u64,
    /// Where its instructions lay that were decoded last.
    pub(crate) trails: Box<Trails>,
    /// What its instructions meant that were decoded last.
    pub(crate) memo: Box<Memo>,
    /// How often a debug exception came at the same place.
    pub(crate) repeated: Repeated,
    /// Counts resets of the VM.
    pub(crate) resets: Arc<AtomicU32>,
    /// Those that this vCPU has seen.
    pub(crate) seen_resets: u32,
    kept: Kept,
}

/// The same exception at the same instruction, again and again.
#[derive(Clone, Copy, Default)]
pub(crate) struct Repeated {
    pub(crate) rip: u64,
    pub(crate) times: u32,
}

/// What stays in the CPU while the guest is loaded, and is no part of the vendor's control block.
struct Kept {
    extended: ExtendedState,
    /// XCR0 with which extended states are saved; 0 without XSAVE.
    mask: u64,
    breakpoints: [u64; 4],
    tsc_aux: Option<u64>,
    speculation: Option<u64>,
    /// Bits of SPEC_CTRL that stay set; with any, the guest's value is not in the CPU, and its accesses exit.
    host_speculation: u64,
}

/// What of [`Kept`] this CPU has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keeps {
    /// XCR0 bits that the hypervisor saves; 0 without XSAVE.
    pub(crate) xcr0: u64,
    /// TSC_AUX.
    pub(crate) tsc_aux: bool,
    /// SPEC_CTRL, which guests reach.
    pub(crate) speculation: bool,
    /// A barrier for branch prediction.
    pub(crate) barrier: bool,
    /// What is done against its speculation.
    pub(crate) remedies: speculation::Remedies,
}

impl Keeps {
    /// What the CPU that executes this has. Its CR4.OSXSAVE is set where it has XSAVE.
    pub(crate) fn of_this_cpu() -> Self {
        const XSAVE: u32 = 1 << 26;
        const RDTSCP: u32 = 1 << 27;
        const RDPID: u32 = 1 << 22;
        // x87, SSE, AVX, AVX-512 and protection keys (SDM Vol. 1, 13.1).
        const KNOWN: u64 = 0x2e7;
        let states = host_cpuid(0xd, 0);
        let offered = u64::from(states.edx) << 32 | u64::from(states.eax);
        let has_xsave = host_cpuid(1, 0).ecx & XSAVE != 0;
        Self {
            xcr0: if has_xsave { offered & KNOWN } else { 0 },
            tsc_aux: host_cpuid(0x8000_0001, 0).edx & RDTSCP != 0 || host_cpuid(7, 0).ecx & RDPID != 0,
            speculation: false,
            barrier: false,
            remedies: speculation_facts(&[]).remedies(),
        }
    }
}

/// What guests are told of this CPU's microcode and of what it is not vulnerable to.
fn host_words() -> HostWords {
    const BIOS_SIGN_ID: u32 = 0x8b;
    // Both vendors have it since long before virtualisation.
    HostWords { revision: read_msr(BIOS_SIGN_ID), arch_capabilities: speculation_facts(&[]).capabilities }
}

/// What the CPU says of its speculation; `apic_ids` are those of all of the machine's CPUs.
pub(crate) fn speculation_facts(apic_ids: &[u32]) -> speculation::Facts {
    const ARCH_CAPABILITIES: u32 = 0x10a;
    const HAS_CAPABILITIES: u32 = 1 << 29;
    const INTEL: u32 = u32::from_le_bytes(*b"Genu");
    const TOPOLOGY: u32 = 0xb;
    let first = host_cpuid(0, 0);
    let structured = if first.eax >= 7 { host_cpuid(7, 0).edx } else { 0 };
    let thread_bits = if first.eax >= TOPOLOGY { host_cpuid(TOPOLOGY, 0).eax & 0x1f } else { 0 };
    speculation::Facts {
        is_intel: first.ebx == INTEL,
        signature: host_cpuid(1, 0).eax,
        structured,
        capabilities: if structured & HAS_CAPABILITIES != 0 { read_msr(ARCH_CAPABILITIES) } else { 0 },
        has_siblings: speculation::share_cores(apic_ids, thread_bits),
    }
}

impl<V: Vendor> Vcpu<V> {
    /// Registers that [`Vcpu::reset`] has still to fill. Allocates: boot only.
    pub(crate) fn new(
        id: VcpuId,
        is_shared: bool,
        control: V::Control,
        apic: LocalApic,
        cpuid: Box<cpuid::Table>,
        keeps: Keeps,
        resets: Arc<AtomicU32>,
    ) -> Self {
        let offer = cpuid.offer();
        let msrs = Box::new(Msrs::new(&cpuid).with_host(host_words()));
        Self {
            registers: Registers::default(),
            control,
            todo: 0,
            id,
            waiting: Waiting::Nothing,
            is_shared,
            apic: Box::new(apic),
            cpuid,
            offer,
            msrs,
            xcr0: 1,
            trails: Box::default(),
            memo: Box::default(),
            repeated: Repeated::default(),
            resets,
            seen_resets: 0,
            kept: Kept {
                extended: ExtendedState::new(),
                mask: keeps.xcr0,
                breakpoints: [0; 4],
                tsc_aux: keeps.tsc_aux.then_some(0),
                speculation: keeps.speculation.then_some(0),
                host_speculation: keeps.remedies.kept_controls(),
            },
        }
    }

    /// As after power-on, or after INIT; the vendor has reset the control block. `entry` says where it goes on.
    pub(crate) fn reset(&mut self, entry: Entry) {
        self.registers = Registers::default();
        // The CPU's signature (SDM Vol. 3A, table 10-1).
        let signature = self.cpuid.read(1, 0, &Live::default()).eax;
        self.registers.r[Registers::RDX] = signature.into();
        self.todo = todo::LOOK;
        self.waiting = Waiting::Nothing;
        self.xcr0 = 1;
        self.repeated = Repeated::default();
        self.kept.extended.reset();
        self.kept.breakpoints = [0; 4];
        for value in [&mut self.kept.tsc_aux, &mut self.kept.speculation].into_iter().flatten() {
            *value = 0;
        }
        self.start(entry);
    }

    fn start(&mut self, entry: Entry) {
        let [first, second, ..] = entry.arguments;
        let registers = &mut self.registers.r;
        match entry.state {
            state if state == StartState::Real as u32 => self.start_real(entry.pc.0),
            state if state == StartState::Linux64 as u32 => {
                registers[Registers::RDX] = 0;
                registers[Registers::RSI] = first;
                self.start_flat(entry, Segment::LONG);
                self.control.set(Register::Cr3, second);
                self.control.set(Register::Cr4, CR4_PAE);
                self.control.set(Register::Efer, EFER_LONG);
                self.control.set(Register::Cr0, CR0_PROTECTED | CR0_PAGING);
            }
            state if state == StartState::Protected as u32 => {
                registers[Registers::RDX] = 0;
                registers[Registers::RBX] = first;
                registers[Registers::RAX] = second;
                self.start_flat(entry, Segment::BIG);
            }
            state if state == StartState::Linux32 as u32 => {
                registers[Registers::RDX] = 0;
                registers[Registers::RSI] = first;
                self.start_flat(entry, Segment::BIG);
            }
            // The control block is as after power-on already.
            _ => {}
        }
    }

    /// Real mode at a page below 1 MiB.
    fn start_real(&mut self, at: u64) {
        let base = at & 0xf_f000;
        let code = Segment {
            selector: u16::try_from(base >> 4).unwrap_or(0),
            base,
            ..self.control.segment(SegmentName::Cs)
        };
        self.control.set_segment(SegmentName::Cs, code);
        self.control.set(Register::Rip, 0);
    }

    /// Protected mode with flat segments; `size` is what kind of code it is.
    fn start_flat(&mut self, entry: Entry, size: u16) {
        const CODE_SELECTOR: u16 = 0x10;
        const DATA_SELECTOR: u16 = 0x18;
        const BUSY_TASK: u16 = 0x8b;
        let [.., table, limit] = entry.arguments;
        let flat = Segment { selector: DATA_SELECTOR, attributes: FLAT_DATA, limit: u32::MAX, base: 0 };
        for name in [SegmentName::Es, SegmentName::Ss, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs] {
            self.control.set_segment(name, flat);
        }
        let code = Segment { selector: CODE_SELECTOR, attributes: FLAT_CODE | size, ..flat };
        self.control.set_segment(SegmentName::Cs, code);
        let task = Segment { attributes: BUSY_TASK, limit: 0xffff, ..Segment::default() };
        self.control.set_segment(SegmentName::Tr, task);
        let table = TableRegister { base: table, limit: u16::try_from(limit).unwrap_or(u16::MAX) };
        self.control.set_table(TableName::Global, table);
        self.control.set(Register::Rip, entry.pc.0);
        self.control.set(Register::Cr0, CR0_PROTECTED);
    }

    /// Into the CPU.
    pub(crate) fn load(&mut self) {
        let kept = &self.kept;
        if kept.mask != 0 {
            write_xcr0(kept.mask);
        }
        kept.extended.load(kept.mask);
        if kept.mask != 0 {
            write_xcr0(self.xcr0);
        }
        let [first, second, third, fourth] = kept.breakpoints;
        write_dr0(first);
        write_dr1(second);
        write_dr2(third);
        write_dr3(fourth);
        if let Some(value) = kept.tsc_aux {
            write_guest_msr(GuestMsr::TscAux, value);
        }
        if let Some(value) = kept.speculation {
            write_guest_msr(GuestMsr::SpecCtrl, value | kept.host_speculation);
        }
        self.todo |= todo::LOOK;
    }

    /// The guest's SPEC_CTRL, if its accesses exit.
    pub(crate) fn speculation(&self) -> Option<u64> {
        self.kept.speculation.filter(|_| self.kept.host_speculation != 0)
    }

    /// Changes it, to a value that the CPU takes.
    pub(crate) fn set_speculation(&mut self, value: u64) {
        self.kept.speculation = Some(value);
        write_guest_msr(GuestMsr::SpecCtrl, value | self.kept.host_speculation);
    }

    /// It never runs again: what would slow down others leaves the CPU; all else is overwritten by whoever is loaded next.
    pub(crate) fn abandon(&mut self) {
        if self.kept.speculation.is_some() {
            write_guest_msr(GuestMsr::SpecCtrl, self.kept.host_speculation);
        }
    }

    /// Out of the CPU.
    pub(crate) fn unload(&mut self) {
        let kept = &mut self.kept;
        if let Some(value) = &mut kept.speculation {
            if kept.host_speculation == 0 {
                *value = read_msr(GuestMsr::SpecCtrl as u32);
            }
            write_guest_msr(GuestMsr::SpecCtrl, kept.host_speculation);
        }
        if let Some(value) = &mut kept.tsc_aux {
            *value = read_msr(GuestMsr::TscAux as u32);
        }
        kept.breakpoints = [read_dr0(), read_dr1(), read_dr2(), read_dr3()];
        if kept.mask != 0 {
            self.xcr0 = read_xcr0();
            write_xcr0(kept.mask);
        }
        kept.extended.save(kept.mask);
    }
}

/// CR0: protected mode, extension type; and paging (SDM Vol. 3A, 2.5).
const CR0_PROTECTED: u64 = 0x11;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// EFER: LME and LMA.
const EFER_LONG: u64 = 1 << 8 | 1 << 10;
/// Flat segments: present, accessed, in pages; readable code, writable data with 32 bits.
const FLAT_CODE: u16 = Segment::GRANULAR | 0x9b;
const FLAT_DATA: u16 = Segment::GRANULAR | Segment::BIG | 0x93;
