//! The hardware: every privileged instruction, and nothing that decides.
//!
//! `metal` is the real CPU, `fake` a scripted one for tests on the host; they offer the same names. Here is all of this
//! crate's `unsafe` but one promise (that of the seam, made in `x86`), and only here it matters what CPU it is compiled for.
#![expect(unsafe_code, reason = "privileged instructions, device registers and the way into a guest")]

pub mod clock;
pub mod extended;
pub mod host_apic;
pub mod identity;
pub mod mmio;
pub mod svm;
pub mod tables;
pub mod trail;
pub mod vmx;

#[cfg(target_os = "none")]
pub mod descriptors;
#[cfg(not(target_os = "none"))]
mod fake;
#[cfg(target_os = "none")]
pub mod heap;
#[cfg(target_os = "none")]
pub(crate) mod interrupts;
#[cfg(target_os = "none")]
pub(crate) mod loader;
#[cfg(target_os = "none")]
mod metal;
#[cfg(target_os = "none")]
pub mod others;
#[cfg(target_os = "none")]
pub mod pc16550;
#[cfg(target_os = "none")]
pub mod power;
#[cfg(target_os = "none")]
pub mod recovery;
#[cfg(target_os = "none")]
pub mod start;

#[cfg(not(target_os = "none"))]
pub use fake::*;
#[cfg(target_os = "none")]
pub use metal::*;
#[cfg(target_os = "none")]
pub use recovery::{give_up, keep_running};

/// A guest's general registers, in the order in which instructions encode them. The vendors' entry code knows the layout: 8
/// bytes each. `RSP` (number 4) lives in the control block while a guest runs; the shared layer keeps it there.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(16))]
pub struct Registers {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub r: [u64; 16],
}

impl Registers {
    /// Places in [`Registers::r`].
    pub const RAX: usize = 0;
    /// As above.
    pub const RCX: usize = 1;
    /// As above.
    pub const RDX: usize = 2;
    /// As above.
    pub const RBX: usize = 3;
    /// As above.
    pub const RSP: usize = 4;
    /// As above.
    pub const RBP: usize = 5;
    /// As above.
    pub const RSI: usize = 6;
    /// As above.
    pub const RDI: usize = 7;
}

/// What `CPUID` answers.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// The extended states that XCR0 may enable (SDM Vol. 1, 13.2); 0 if the CPU saves none but x87 and SSE.
#[must_use]
pub fn supported_xcr0() -> u64 {
    const XSAVE: u32 = 1 << 26;
    if cpuid(1, 0).ecx & XSAVE == 0 {
        return 0;
    }
    let states = cpuid(0xd, 0);
    u64::from(states.edx) << 32 | u64::from(states.eax)
}

/// Whether the CPU has [`GuestMsr::TscAux`]: by RDTSCP, or by RDPID.
#[must_use]
pub fn has_tsc_aux() -> bool {
    const RDTSCP: u32 = 1 << 27;
    const RDPID: u32 = 1 << 22;
    cpuid(0x8000_0001, 0).edx & RDTSCP != 0 || cpuid(0, 0).eax >= 7 && cpuid(7, 0).ecx & RDPID != 0
}

/// What a machine tells of itself at any time (SDM Vol. 3A, table 6-1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alarm {
    /// A physical NMI.
    NonMaskable,
    /// A machine check.
    MachineCheck,
}

/// Where this CPU's descriptor tables are, as a control block wants them for the way back to the host.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct HostTables {
    /// The code segment.
    pub code: u16,
    /// The segment of stack and data.
    pub data: u16,
    /// The task register's selector.
    pub task: u16,
    /// The base of the task state segment.
    pub task_base: u64,
    /// The base of the global descriptor table.
    pub gdt_base: u64,
    /// The base of the interrupt descriptor table.
    pub idt_base: u64,
}

/// Model-specific registers that hold a guest's state while it is loaded, and that no code of ours depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum GuestMsr {
    /// SYSENTER's code segment (SDM Vol. 4, table 2-2).
    SysenterCs = 0x174,
    /// SYSENTER's stack.
    SysenterEsp = 0x175,
    /// SYSENTER's target.
    SysenterEip = 0x176,
    /// SYSCALL's segments.
    Star = 0xc000_0081,
    /// SYSCALL's target in long mode.
    Lstar = 0xc000_0082,
    /// SYSCALL's target in compatibility mode.
    Cstar = 0xc000_0083,
    /// The flags that SYSCALL clears.
    Sfmask = 0xc000_0084,
    /// The base of FS.
    FsBase = 0xc000_0100,
    /// The base of GS.
    GsBase = 0xc000_0101,
    /// What SWAPGS exchanges.
    KernelGsBase = 0xc000_0102,
    /// What RDTSCP and RDPID return.
    TscAux = 0xc000_0103,
    /// Extended states of supervisors.
    Xss = 0xda0,
    /// Speculation controls.
    SpecCtrl = 0x48,
    /// Cache commands: bit 0 writes the level-1 data cache back and empties it.
    FlushCmd = 0x10b,
    /// Speculation commands: bit 0 forgets what branches were predicted from (SDM Vol. 4, table 2-2).
    PredCmd = 0x49,
}

impl GuestMsr {
    /// Whether the register holds an address, which has to be canonical.
    const fn is_address(self) -> bool {
        matches!(
            self,
            Self::SysenterEsp
                | Self::SysenterEip
                | Self::Lstar
                | Self::Cstar
                | Self::FsBase
                | Self::GsBase
                | Self::KernelGsBase
        )
    }

    /// What is written when a guest's value is `value`: no value of an address makes the CPU refuse it.
    const fn accepted(self, value: u64) -> u64 {
        if self.is_address() { (value.cast_signed() << 16 >> 16).cast_unsigned() } else { value }
    }
}
