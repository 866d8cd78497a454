//! The virtual machine control block: how the CPU lays it out (APM Vol. 2, appendix B).
//!
//! Pure: it is memory. `hw::svm` owns the blocks, and decides alone what a guest is intercepted at and which tables it has.

use crate::vendor::Segment;
use core::mem::offset_of;

/// A block: 1 KiB that says how to run, then the guest's state.
#[repr(C, align(4096))]
pub struct Vmcb {
    /// How to run, and why it ended.
    pub control: ControlArea,
    /// The guest's state.
    pub save: SaveArea,
    rest: [u8; 0x900],
}

/// How to run, and why it ended (table B-1).
#[repr(C)]
pub struct ControlArea {
    /// Reads of CR0 to CR15 (15:0), writes (31:16).
    pub intercept_control: u32,
    /// Reads of DR0 to DR15 (15:0), writes (31:16).
    pub intercept_debug: u32,
    /// Exceptions by vector.
    pub intercept_exceptions: u32,
    /// See [`intercept`].
    pub intercept_first: u32,
    /// See [`intercept`].
    pub intercept_second: u32,
    /// See [`intercept`].
    pub intercept_third: u32,
    reserved_018: [u32; 9],
    /// Low half: threshold; high half: count.
    pub pause_filter: u32,
    /// Physical, 12 KiB.
    pub io_permissions: u64,
    /// Physical, 8 KiB.
    pub msr_permissions: u64,
    /// Added to the time stamp counter.
    pub tsc_offset: u64,
    /// The tag of cached translations; 0 is the host's.
    pub asid: u32,
    /// What is forgotten on entry: see [`tlb`].
    pub tlb_control: u32,
    /// See [`interrupt`].
    pub interrupt: u64,
    /// Bit 0: an interrupt shadow.
    pub interrupt_state: u64,
    /// Why it ended: see [`crate::svm::exit`].
    pub exit_code: u64,
    /// More about it.
    pub exit_info_1: u64,
    /// More about it.
    pub exit_info_2: u64,
    /// What was being delivered then: see [`event`].
    pub exit_interrupt: u64,
    /// Bit 0: nested paging.
    pub nested_control: u64,
    reserved_098: [u64; 2],
    /// What is delivered on entry: see [`event`].
    pub event_injection: u64,
    /// Physical: the root of the second stage.
    pub nested_cr3: u64,
    /// Bit 0: last branch records; bit 1: VMSAVE and VMLOAD.
    pub virtual_extensions: u64,
    /// What was not changed since the last run.
    pub clean: u64,
    /// With NRIPS: behind the instruction that was intercepted.
    pub next_rip: u64,
    /// With decode assists: how many of `fetched` are valid.
    pub fetched_count: u8,
    /// With decode assists: the instruction.
    pub fetched: [u8; 15],
    reserved_0e0: [u64; 100],
}

/// The guest's state (table B-2).
#[repr(C)]
pub struct SaveArea {
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [SegmentState; 6],
    /// GDTR
    pub gdtr: SegmentState,
    /// LDTR
    pub ldtr: SegmentState,
    /// IDTR
    pub idtr: SegmentState,
    /// TR
    pub tr: SegmentState,
    reserved_0a0: [u8; 43],
    /// The current privilege level.
    pub cpl: u8,
    reserved_0cc: u32,
    /// EFER
    pub efer: u64,
    reserved_0d8: [u64; 14],
    /// CR4
    pub cr4: u64,
    /// CR3
    pub cr3: u64,
    /// CR0
    pub cr0: u64,
    /// DR7
    pub dr7: u64,
    /// DR6
    pub dr6: u64,
    /// RFLAGS
    pub rflags: u64,
    /// RIP
    pub rip: u64,
    reserved_180: [u64; 11],
    /// RSP
    pub rsp: u64,
    reserved_1e0: [u64; 3],
    /// RAX
    pub rax: u64,
    /// STAR
    pub star: u64,
    /// LSTAR
    pub lstar: u64,
    /// CSTAR
    pub cstar: u64,
    /// SFMASK
    pub sfmask: u64,
    /// KernelGSBase
    pub kernel_gs_base: u64,
    /// SYSENTER_CS
    pub sysenter_cs: u64,
    /// SYSENTER_ESP
    pub sysenter_esp: u64,
    /// SYSENTER_EIP
    pub sysenter_eip: u64,
    /// CR2
    pub cr2: u64,
    reserved_248: [u64; 4],
    /// PAT
    pub pat: u64,
    /// DEBUGCTL
    pub debug_control: u64,
    reserved_278: [u64; 13],
    /// SPEC_CTRL, where the CPU keeps it apart by itself.
    pub spec_ctrl: u64,
    reserved_2e8: [u64; 3],
}

/// A segment register as the block holds it.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct SegmentState {
    /// The selector.
    pub selector: u16,
    /// As [`Segment::attributes`].
    pub attributes: u16,
    /// In bytes.
    pub limit: u32,
    /// Linear.
    pub base: u64,
}

impl From<SegmentState> for Segment {
    fn from(state: SegmentState) -> Self {
        let SegmentState { selector, attributes, limit, base } = state;
        Self { selector, attributes, limit, base }
    }
}

impl From<Segment> for SegmentState {
    fn from(segment: Segment) -> Self {
        let Segment { selector, attributes, limit, base } = segment;
        Self { selector, attributes, limit, base }
    }
}

const _: () = {
    assert!(size_of::<Vmcb>() == 4096);
    assert!(size_of::<ControlArea>() == 0x400);
    assert!(size_of::<SaveArea>() == 0x300);
    assert!(offset_of!(ControlArea, pause_filter) == 0x3c);
    assert!(offset_of!(ControlArea, asid) == 0x58);
    assert!(offset_of!(ControlArea, interrupt) == 0x60);
    assert!(offset_of!(ControlArea, exit_code) == 0x70);
    assert!(offset_of!(ControlArea, nested_control) == 0x90);
    assert!(offset_of!(ControlArea, event_injection) == 0xa8);
    assert!(offset_of!(ControlArea, next_rip) == 0xc8);
    assert!(offset_of!(ControlArea, fetched) == 0xd1);
    assert!(offset_of!(SaveArea, tr) == 0x90);
    assert!(offset_of!(SaveArea, cpl) == 0xcb);
    assert!(offset_of!(SaveArea, efer) == 0xd0);
    assert!(offset_of!(SaveArea, cr4) == 0x148);
    assert!(offset_of!(SaveArea, rip) == 0x178);
    assert!(offset_of!(SaveArea, rsp) == 0x1d8);
    assert!(offset_of!(SaveArea, rax) == 0x1f8);
    assert!(offset_of!(SaveArea, cr2) == 0x240);
    assert!(offset_of!(SaveArea, pat) == 0x268);
    assert!(offset_of!(SaveArea, spec_ctrl) == 0x2e0);
};

/// What a guest may be stopped at (15.9, table B-1).
pub mod intercept {
    // Control registers.
    /// A read of CR4.
    pub const READ_CR4: u32 = 1 << 4;
    /// A write of CR4.
    pub const WRITE_CR4: u32 = 1 << 20;
    /// A write of CR8.
    pub const WRITE_CR8: u32 = 1 << 24;

    // The first word.
    /// A physical interrupt.
    pub const INTERRUPT: u32 = 1;
    /// A physical NMI.
    pub const NMI: u32 = 1 << 1;
    /// A physical SMI.
    pub const SMI: u32 = 1 << 2;
    /// A physical INIT.
    pub const INIT: u32 = 1 << 3;
    /// The guest is about to take a virtual interrupt.
    pub const VIRTUAL_INTERRUPT: u32 = 1 << 4;
    /// RDPMC
    pub const RDPMC: u32 = 1 << 15;
    /// CPUID
    pub const CPUID: u32 = 1 << 18;
    /// RSM
    pub const RSM: u32 = 1 << 19;
    /// IRET
    pub const IRET: u32 = 1 << 20;
    /// INVD
    pub const INVD: u32 = 1 << 22;
    /// HLT
    pub const HLT: u32 = 1 << 24;
    /// INVLPGA
    pub const INVLPGA: u32 = 1 << 26;
    /// Ports, as the bitmap says.
    pub const PORTS: u32 = 1 << 27;
    /// MSRs, as the bitmap says.
    pub const MSRS: u32 = 1 << 28;
    /// A shutdown.
    pub const SHUTDOWN: u32 = 1 << 31;

    // The second word.
    /// VMRUN
    pub const VMRUN: u32 = 1;
    /// VMMCALL
    pub const VMMCALL: u32 = 1 << 1;
    /// VMLOAD
    pub const VMLOAD: u32 = 1 << 2;
    /// VMSAVE
    pub const VMSAVE: u32 = 1 << 3;
    /// STGI
    pub const STGI: u32 = 1 << 4;
    /// CLGI
    pub const CLGI: u32 = 1 << 5;
    /// SKINIT
    pub const SKINIT: u32 = 1 << 6;
    /// WBINVD and WBNOINVD
    pub const WBINVD: u32 = 1 << 9;
    /// MONITOR and MONITORX
    pub const MONITOR: u32 = 1 << 10;
    /// MWAIT and MWAITX
    pub const MWAIT: u32 = 1 << 11;
    /// XSETBV
    pub const XSETBV: u32 = 1 << 13;
    /// RDPRU
    pub const RDPRU: u32 = 1 << 14;

    // The third word.
    /// INVLPGB, all of them.
    pub const INVLPGB: u32 = 1;
    /// MCOMMIT
    pub const MCOMMIT: u32 = 1 << 3;
    /// TLBSYNC
    pub const TLBSYNC: u32 = 1 << 4;
}

/// `tlb_control` (15.16.1).
pub mod tlb {
    /// Nothing.
    pub const KEEP: u32 = 0;
    /// Everything.
    pub const FORGET_ALL: u32 = 1;
    /// What is tagged with this guest's ASID: only with FlushByAsid.
    pub const FORGET_ASID: u32 = 3;
}

/// `interrupt` (15.21.1, 15.21.4).
pub mod interrupt {
    /// The guest's CR8.
    pub const TASK_PRIORITY: u64 = 0xf;
    /// A virtual interrupt waits.
    pub const REQUESTED: u64 = 1 << 8;
    /// Its priority: bits 19:16.
    pub const PRIORITY_SHIFT: u32 = 16;
    /// See above.
    pub const PRIORITY: u64 = 0xf << PRIORITY_SHIFT;
    /// CR8 does not hold it back.
    pub const ANY_TASK_PRIORITY: u64 = 1 << 20;
    /// Its vector: bits 39:32.
    pub const VECTOR_SHIFT: u32 = 32;
    /// See above.
    pub const VECTOR: u64 = 0xff << VECTOR_SHIFT;
    /// All that is about a virtual interrupt.
    pub const WAITING: u64 = REQUESTED | PRIORITY | ANY_TASK_PRIORITY | VECTOR;
    /// RFLAGS.IF and CR8 are the guest's own; the host's IF counts for physical interrupts.
    pub const VIRTUAL_MASKING: u64 = 1 << 24;
}

/// `event_injection` and `exit_interrupt` (15.20, 15.7.2).
pub mod event {
    /// Bits 10:8: what it is.
    pub const KIND: u64 = 7 << 8;
    /// From an interrupt controller.
    pub const EXTERNAL: u64 = 0;
    /// An NMI.
    pub const NMI: u64 = 2 << 8;
    /// An exception.
    pub const EXCEPTION: u64 = 3 << 8;
    /// `INT n`
    pub const SOFTWARE: u64 = 4 << 8;
    /// Bits 63:32 are pushed.
    pub const HAS_ERROR: u64 = 1 << 11;
    /// There is one.
    pub const VALID: u64 = 1 << 31;
}

/// What the CPU need not read again (15.15.3). A bit that is set: not changed.
pub mod clean {
    /// ASID.
    pub const ASID: u64 = 1 << 2;
    /// CR8, virtual interrupts.
    pub const INTERRUPT: u64 = 1 << 3;
    /// Intercepts, TSC offset.
    pub const INTERCEPTS: u64 = 1;
    /// Nested paging: nested CR3, PAT.
    pub const NESTED: u64 = 1 << 4;
    /// CR0, CR3, CR4, EFER.
    pub const CONTROL: u64 = 1 << 5;
    /// DR6, DR7.
    pub const DEBUG: u64 = 1 << 6;
    /// GDTR, IDTR.
    pub const TABLES: u64 = 1 << 7;
    /// CS, DS, SS, ES, CPL.
    pub const SEGMENTS: u64 = 1 << 8;
    /// CR2
    pub const CR2: u64 = 1 << 9;
    /// All that this hypervisor uses.
    pub const ALL: u64 = 0x3ff;
}

impl Vmcb {
    /// All zero.
    #[must_use]
    pub const fn new() -> Self {
        Self { control: ControlArea::NEW, save: SaveArea::NEW, rest: [0; 0x900] }
    }
}

impl Default for Vmcb {
    fn default() -> Self {
        Self::new()
    }
}

impl ControlArea {
    /// All zero.
    const NEW: Self = Self {
        intercept_control: 0,
        intercept_debug: 0,
        intercept_exceptions: 0,
        intercept_first: 0,
        intercept_second: 0,
        intercept_third: 0,
        reserved_018: [0; 9],
        pause_filter: 0,
        io_permissions: 0,
        msr_permissions: 0,
        tsc_offset: 0,
        asid: 0,
        tlb_control: 0,
        interrupt: 0,
        interrupt_state: 0,
        exit_code: 0,
        exit_info_1: 0,
        exit_info_2: 0,
        exit_interrupt: 0,
        nested_control: 0,
        reserved_098: [0; 2],
        event_injection: 0,
        nested_cr3: 0,
        virtual_extensions: 0,
        clean: 0,
        next_rip: 0,
        fetched_count: 0,
        fetched: [0; 15],
        reserved_0e0: [0; 100],
    };
}

impl SaveArea {
    /// All zero.
    pub const NEW: Self = Self {
        segments: [SegmentState::NEW; 6],
        gdtr: SegmentState::NEW,
        ldtr: SegmentState::NEW,
        idtr: SegmentState::NEW,
        tr: SegmentState::NEW,
        reserved_0a0: [0; 43],
        cpl: 0,
        reserved_0cc: 0,
        efer: 0,
        reserved_0d8: [0; 14],
        cr4: 0,
        cr3: 0,
        cr0: 0,
        dr7: 0,
        dr6: 0,
        rflags: 0,
        rip: 0,
        reserved_180: [0; 11],
        rsp: 0,
        reserved_1e0: [0; 3],
        rax: 0,
        star: 0,
        lstar: 0,
        cstar: 0,
        sfmask: 0,
        kernel_gs_base: 0,
        sysenter_cs: 0,
        sysenter_esp: 0,
        sysenter_eip: 0,
        cr2: 0,
        reserved_248: [0; 4],
        pat: 0,
        debug_control: 0,
        reserved_278: [0; 13],
        spec_ctrl: 0,
        reserved_2e8: [0; 3],
    };
}

impl SegmentState {
    const NEW: Self = Self { selector: 0, attributes: 0, limit: 0, base: 0 };
}
