//! The fields of a virtual-machine control structure and the layout of their values (SDM Vol. 3C, chapter 25 and
//! appendix B). Pure: who reads and writes them is `hw::vmx`.

use crate::vendor::SegmentName;

/// A field with a guest's state, or about its last exit: a wrong value harms that guest alone. There is no other way to
/// make one than to name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Field(u32);

/// A field that confines the guest or restores the host: only `hw::vmx` writes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Guarded(u32);

/// Either kind of field, to be read.
pub trait Encoded: Copy {
    /// The encoding, for VMREAD and VMWRITE.
    fn encoding(self) -> u32;
}

impl Encoded for Field {
    #[inline]
    fn encoding(self) -> u32 {
        self.0
    }
}

impl Encoded for Guarded {
    #[inline]
    fn encoding(self) -> u32 {
        self.0
    }
}

/// Declares fields as constants of their type.
macro_rules! fields {
    ($kind:ident $($name:ident = $encoding:literal: $what:literal,)*) => {
        impl $kind {
            $(
                #[doc = $what]
                pub const $name: Self = Self($encoding);
            )*
        }
    };
}

// 16 bits (B.1).
fields! {
    Field
    GUEST_INTERRUPT_STATUS = 0x0810: "Requesting virtual interrupt in bits 7:0, serviced one in bits 15:8.",
}
fields! {
    Guarded
    VPID = 0x0000: "Virtual-processor identifier.",
    HOST_ES = 0x0c00: "Selector.",
    HOST_CS = 0x0c02: "Selector.",
    HOST_SS = 0x0c04: "Selector.",
    HOST_DS = 0x0c06: "Selector.",
    HOST_FS = 0x0c08: "Selector.",
    HOST_GS = 0x0c0a: "Selector.",
    HOST_TR = 0x0c0c: "Selector.",
}

// 64 bits (B.2).
fields! {
    Field
    TSC_OFFSET = 0x2010: "Added to what RDTSC gives.",
    EOI_EXIT_0 = 0x201c: "Vectors 0 to 63 whose EOI exits.",
    EOI_EXIT_1 = 0x201e: "Vectors 64 to 127.",
    EOI_EXIT_2 = 0x2020: "Vectors 128 to 191.",
    EOI_EXIT_3 = 0x2022: "Vectors 192 to 255.",
    GUEST_PHYSICAL = 0x2400: "Where the second stage had nothing.",
    GUEST_DEBUGCTL = 0x2802: "IA32_DEBUGCTL.",
    GUEST_PAT = 0x2804: "IA32_PAT.",
    GUEST_EFER = 0x2806: "IA32_EFER.",
    GUEST_PDPTE_0 = 0x280a: "Page-directory pointer with PAE paging.",
    GUEST_PDPTE_1 = 0x280c: "See above.",
    GUEST_PDPTE_2 = 0x280e: "See above.",
    GUEST_PDPTE_3 = 0x2810: "See above.",
}
fields! {
    Guarded
    IO_BITMAP_A = 0x2000: "Ports 0 to 0x7fff.",
    IO_BITMAP_B = 0x2002: "Ports 0x8000 to 0xffff.",
    MSR_BITMAP = 0x2004: "Which MSRs exit.",
    VIRTUAL_APIC = 0x2012: "The page with the guest's APIC registers.",
    APIC_ACCESS = 0x2014: "The page that stands for the APIC in guest-physical memory.",
    EPT_POINTER = 0x201a: "Root of the second stage.",
    ENCLS_EXITING = 0x202e: "Leaves of ENCLS that exit.",
    LINK_POINTER = 0x2800: "No shadow VMCS: all ones.",
    HOST_PAT = 0x2c00: "IA32_PAT.",
    HOST_EFER = 0x2c02: "IA32_EFER.",
}

// 32 bits (B.3).
fields! {
    Field
    ENTRY_INTERRUPTION = 0x4016: "The event to inject.",
    ENTRY_ERROR_CODE = 0x4018: "Its error code.",
    ENTRY_LENGTH = 0x401a: "Bytes of the instruction that raises it.",
    TPR_THRESHOLD = 0x401c: "A task priority below this exits.",
    INSTRUCTION_ERROR = 0x4400: "Why a VMX instruction failed.",
    EXIT_REASON = 0x4402: "Why the guest stopped.",
    EXIT_INTERRUPTION = 0x4404: "The interrupt or exception that exited.",
    EXIT_ERROR_CODE = 0x4406: "Its error code.",
    VECTORING = 0x4408: "The event that was being delivered.",
    VECTORING_ERROR_CODE = 0x440a: "Its error code.",
    EXIT_LENGTH = 0x440c: "Bytes of the instruction that exited.",
    EXIT_INSTRUCTION = 0x440e: "Details of the instruction that exited.",
    GUEST_GDTR_LIMIT = 0x4810: "Limit.",
    GUEST_IDTR_LIMIT = 0x4812: "Limit.",
    GUEST_INTERRUPTIBILITY = 0x4824: "Shadows that block interrupts.",
    GUEST_ACTIVITY = 0x4826: "Running, halted, shut down, waiting for SIPI.",
    GUEST_SYSENTER_CS = 0x482a: "IA32_SYSENTER_CS.",
    PREEMPTION_TIMER = 0x482e: "Counts down while the guest runs.",
}
fields! {
    Guarded
    PIN_CONTROLS = 0x4000: "Pin-based controls.",
    PRIMARY_CONTROLS = 0x4002: "Primary processor-based controls.",
    EXCEPTION_BITMAP = 0x4004: "Exceptions that exit.",
    PAGE_FAULT_MASK = 0x4006: "Which bits of a page fault's error code are compared.",
    PAGE_FAULT_MATCH = 0x4008: "With what.",
    CR3_TARGETS = 0x400a: "How many values of CR3 do not exit.",
    EXIT_CONTROLS = 0x400c: "VM-exit controls.",
    EXIT_STORES = 0x400e: "MSRs to store on exit.",
    EXIT_LOADS = 0x4010: "MSRs to load on exit.",
    ENTRY_CONTROLS = 0x4012: "VM-entry controls.",
    ENTRY_LOADS = 0x4014: "MSRs to load on entry.",
    SECONDARY_CONTROLS = 0x401e: "Secondary processor-based controls.",
    HOST_SYSENTER_CS = 0x4c00: "IA32_SYSENTER_CS.",
}

// Natural width (B.4).
fields! {
    Field
    CR0_SHADOW = 0x6004: "What the guest reads in them.",
    CR4_SHADOW = 0x6006: "What the guest reads in them.",
    QUALIFICATION = 0x6400: "Details of the exit.",
    GUEST_LINEAR = 0x640a: "The linear address of the access that exited.",
    GUEST_CR0 = 0x6800: "CR0.",
    GUEST_CR3 = 0x6802: "CR3.",
    GUEST_CR4 = 0x6804: "CR4.",
    GUEST_GDTR_BASE = 0x6816: "Base.",
    GUEST_IDTR_BASE = 0x6818: "Base.",
    GUEST_DR7 = 0x681a: "DR7.",
    GUEST_RSP = 0x681c: "RSP.",
    GUEST_RIP = 0x681e: "RIP.",
    GUEST_RFLAGS = 0x6820: "RFLAGS.",
    GUEST_PENDING_DEBUG = 0x6822: "Debug exceptions that are still to come.",
    GUEST_SYSENTER_ESP = 0x6824: "IA32_SYSENTER_ESP.",
    GUEST_SYSENTER_EIP = 0x6826: "IA32_SYSENTER_EIP.",
}
fields! {
    Guarded
    CR0_MASK = 0x6000: "Bits of CR0 that are not the guest's.",
    CR4_MASK = 0x6002: "Bits of CR4 that are not the guest's.",
    HOST_CR0 = 0x6c00: "CR0.",
    HOST_CR3 = 0x6c02: "CR3.",
    HOST_CR4 = 0x6c04: "CR4.",
    HOST_FS_BASE = 0x6c06: "Base.",
    HOST_GS_BASE = 0x6c08: "Base.",
    HOST_TR_BASE = 0x6c0a: "Base.",
    HOST_GDTR_BASE = 0x6c0c: "Base.",
    HOST_IDTR_BASE = 0x6c0e: "Base.",
    HOST_SYSENTER_ESP = 0x6c10: "IA32_SYSENTER_ESP.",
    HOST_SYSENTER_EIP = 0x6c12: "IA32_SYSENTER_EIP.",
    HOST_RSP = 0x6c14: "Stack pointer after an exit.",
    HOST_RIP = 0x6c16: "Where an exit continues.",
}

/// [`SegmentName`] numbers segments as the VMCS does.
impl Field {
    /// The guest's selector.
    #[must_use]
    pub const fn selector(segment: SegmentName) -> Self {
        Self(0x0800 + 2 * segment as u32)
    }

    /// The guest's segment limit.
    #[must_use]
    pub const fn limit(segment: SegmentName) -> Self {
        Self(0x4800 + 2 * segment as u32)
    }

    /// The guest's access rights.
    #[must_use]
    pub const fn rights(segment: SegmentName) -> Self {
        Self(0x4814 + 2 * segment as u32)
    }

    /// The guest's segment base.
    #[must_use]
    pub const fn base(segment: SegmentName) -> Self {
        Self(0x6806 + 2 * segment as u32)
    }
}

/// Access rights of a segment (25.4.1), the layout of a descriptor's second word, shifted.
pub mod rights {
    /// Bits 3:0.
    pub const TYPE: u64 = 0xf;
    /// Code or data, not a system segment.
    pub const CODE_OR_DATA: u64 = 1 << 4;
    /// Descriptor privilege level, from bit 5.
    pub const PRIVILEGE_SHIFT: u32 = 5;
    /// Present.
    pub const PRESENT: u64 = 1 << 7;
    /// 64-bit code.
    pub const LONG: u64 = 1 << 13;
    /// Default operand size; for a stack, the width of its pointer.
    pub const WIDE: u64 = 1 << 14;
    /// The limit counts pages.
    pub const GRANULAR: u64 = 1 << 15;
    /// Nothing is loaded.
    pub const UNUSABLE: u64 = 1 << 16;
    /// Bits that are 0.
    pub const RESERVED: u64 = 0xfffe_0f00;
}

/// An event to inject, or one whose delivery exited (25.8.3, 25.9.2).
pub mod interruption {
    /// Bits 7:0.
    pub const VECTOR: u64 = 0xff;
    /// The kind, from bit 8.
    pub const KIND_SHIFT: u32 = 8;
    /// See above.
    pub const KIND: u64 = 7 << KIND_SHIFT;
    /// An external interrupt.
    pub const EXTERNAL: u64 = 0;
    /// A non-maskable interrupt.
    pub const NMI: u64 = 2 << KIND_SHIFT;
    /// An exception by an instruction's fault, or by a debug register.
    pub const HARDWARE_EXCEPTION: u64 = 3 << KIND_SHIFT;
    /// INT n.
    pub const SOFTWARE_INTERRUPT: u64 = 4 << KIND_SHIFT;
    /// INT1.
    pub const PRIVILEGED_EXCEPTION: u64 = 5 << KIND_SHIFT;
    /// INT3 or INTO.
    pub const SOFTWARE_EXCEPTION: u64 = 6 << KIND_SHIFT;
    /// There is an error code.
    pub const ERROR_CODE: u64 = 1 << 11;
    /// In the exit's information: IRET had just unblocked NMIs.
    pub const UNBLOCKED_NMI: u64 = 1 << 12;
    /// The field means something.
    pub const VALID: u64 = 1 << 31;
}

/// Interruptibility state (25.4.2).
pub mod shadow {
    /// The instruction after STI.
    pub const STI: u64 = 1;
    /// The instruction after a load of SS.
    pub const MOV_SS: u64 = 1 << 1;
    /// In system management.
    pub const SMI: u64 = 1 << 2;
    /// An NMI is being handled.
    pub const NMI: u64 = 1 << 3;
}

/// Basic exit reasons (appendix C).
pub mod reason {
    /// Bit 31 of the exit reason: the guest was not entered.
    pub const ENTRY_FAILED: u64 = 1 << 31;

    macro_rules! reasons {
        ($($name:ident = $number:literal: $what:literal,)*) => {
            $(
                #[doc = $what]
                pub const $name: u16 = $number;
            )*
        };
    }
    reasons! {
        EXCEPTION = 0: "An exception, or an NMI.",
        INTERRUPT = 1: "A physical interrupt.",
        TRIPLE_FAULT = 2: "A fault while delivering a double fault.",
        INIT = 3: "INIT arrived at this CPU.",
        SIPI = 4: "A start-up message.",
        INTERRUPT_WINDOW = 7: "The guest can take an interrupt.",
        NMI_WINDOW = 8: "The guest can take an NMI.",
        TASK_SWITCH = 9: "A task switch.",
        CPUID = 10: "CPUID.",
        GETSEC = 11: "GETSEC.",
        HLT = 12: "HLT.",
        INVD = 13: "INVD.",
        INVLPG = 14: "INVLPG.",
        RDPMC = 15: "RDPMC.",
        RDTSC = 16: "RDTSC.",
        RSM = 17: "RSM.",
        VMCALL = 18: "VMCALL.",
        VMCLEAR = 19: "The first of the VMX instructions.",
        VMXON = 27: "The last of them.",
        CONTROL_REGISTER = 28: "An access to a control register.",
        DEBUG_REGISTER = 29: "An access to a debug register.",
        IO = 30: "An access to a port.",
        RDMSR = 31: "RDMSR.",
        WRMSR = 32: "WRMSR.",
        BAD_GUEST_STATE = 33: "Not entered: the guest's state.",
        BAD_MSR_LOADING = 34: "Not entered: the list of MSRs.",
        MWAIT = 36: "MWAIT.",
        MONITOR_TRAP = 37: "One instruction was done.",
        MONITOR = 39: "MONITOR.",
        PAUSE = 40: "PAUSE.",
        MACHINE_CHECK = 41: "Not entered: a machine check.",
        TPR_BELOW_THRESHOLD = 43: "The task priority was lowered.",
        APIC_ACCESS = 44: "An access to the APIC's page.",
        VIRTUALIZED_EOI = 45: "EOI of a vector that is asked for.",
        DESCRIPTOR_TABLE = 46: "An access to GDTR or IDTR.",
        TASK_REGISTER = 47: "An access to LDTR or TR.",
        EPT_VIOLATION = 48: "The second stage does not allow it.",
        EPT_MISCONFIGURATION = 49: "An entry of the second stage means nothing.",
        INVEPT = 50: "INVEPT.",
        RDTSCP = 51: "RDTSCP.",
        PREEMPTION_TIMER = 52: "The preemption timer is down.",
        INVVPID = 53: "INVVPID.",
        WBINVD = 54: "WBINVD.",
        XSETBV = 55: "XSETBV.",
        APIC_WRITE = 56: "A write to the virtual APIC that has an effect.",
        RDRAND = 57: "RDRAND.",
        INVPCID = 58: "INVPCID.",
        VMFUNC = 59: "VMFUNC.",
        ENCLS = 60: "ENCLS.",
        RDSEED = 61: "RDSEED.",
        XSAVES = 63: "XSAVES.",
        XRSTORS = 64: "XRSTORS.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_fields_are_those_of_the_manual() {
        assert_eq!(Field::selector(SegmentName::Es).encoding(), 0x800);
        assert_eq!(Field::selector(SegmentName::Tr).encoding(), 0x80e);
        assert_eq!(Field::limit(SegmentName::Cs).encoding(), 0x4802);
        assert_eq!(Field::rights(SegmentName::Tr).encoding(), 0x4822);
        assert_eq!(Field::base(SegmentName::Tr).encoding(), 0x6814);
    }
}
