//! The exception syndrome: what `ESR_EL2` says about an exception that reached EL2. What goes the other way is in `inject`.
//!
//! Pure: it relies on nothing but the numbers that it is given, reads no register and never fails; a value that no
//! manual defines decodes to something that prints as a number. Decoding what a trap from the guest means is on the
//! hot path, so each field is one shift and one mask. References are to the Arm Architecture Reference Manual,
//! DDI 0487.

mod words;

use bulkhead_vdev::{Access, Gpa, Width};

/// A value of `ESR_EL2` (Arm ARM D24.2.40).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Esr(pub u64);

impl Esr {
    /// What kind of exception it was.
    #[inline]
    #[must_use]
    pub const fn class(self) -> Class {
        Class((self.0 >> 26 & 0x3f) as u8)
    }

    /// The length of the instruction that trapped: 4, or 2 for a Thumb instruction.
    #[inline]
    #[must_use]
    pub const fn instruction_bytes(self) -> u64 {
        2 + (self.0 >> 24 & 2)
    }

    /// Instruction-specific syndrome as a data or instruction abort.
    #[inline]
    #[must_use]
    pub const fn abort(self) -> Abort {
        Abort(self.iss())
    }

    /// Instruction-specific syndrome as a trapped `MSR`, `MRS` or `SYS` instruction ([`Class::SYSTEM_REGISTER`]).
    #[inline]
    #[must_use]
    pub const fn system_register(self) -> SystemRegisterAccess {
        SystemRegisterAccess(self.iss())
    }

    /// Instruction-specific syndrome as a trapped wait ([`Class::WAIT`]).
    #[inline]
    #[must_use]
    pub const fn wait(self) -> Wait {
        match self.iss() & 3 {
            0 => Wait::Interrupt,
            1 => Wait::Event,
            2 => Wait::InterruptUntil(self.wait_register()),
            _ => Wait::EventUntil(self.wait_register()),
        }
    }

    /// The constant in an `HVC`, `SMC`, `SVC` or `BRK` instruction.
    #[inline]
    #[must_use]
    pub const fn immediate(self) -> u16 {
        (self.iss() & 0xffff) as u16
    }

    #[inline]
    const fn iss(self) -> u32 {
        (self.0 & 0x1ff_ffff) as u32
    }

    /// The number of the register with the deadline of a `WFIT` or `WFET`.
    const fn wait_register(self) -> u8 {
        (self.iss() >> 5 & 0x1f) as u8
    }
}

/// Exception class: the EC field (Arm ARM D24.2.40, table of EC values). Not an `enum`, so that reading it costs one
/// shift and each of the 64 values is a valid one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class(pub u8);

/// Declares each exception class once: its name, its value and its words.
macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $words:literal;)*) => {
        impl Class {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The class in words.
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self.0 {
                    $($value => $words,)*
                    _ => "exception of an unknown class",
                }
            }
        }
    };
}

classes! {
    /// No class of its own: undefined instructions above all.
    UNKNOWN = 0x00, "undefined instruction or unknown reason";
    /// `WFI`, `WFE` and their forms with a deadline.
    WAIT = 0x01, "trapped WFI or WFE";
    /// AArch32: `MCR` or `MRC` to coprocessor 15.
    AARCH32_CP15 = 0x03, "trapped AArch32 access to coprocessor 15";
    /// AArch32: `MCRR` or `MRRC` to coprocessor 15.
    AARCH32_CP15_PAIR = 0x04, "trapped AArch32 access to a register pair of coprocessor 15";
    /// AArch32: `MCR` or `MRC` to coprocessor 14.
    AARCH32_CP14 = 0x05, "trapped AArch32 access to coprocessor 14";
    /// AArch32: `LDC` or `STC` to coprocessor 14.
    AARCH32_CP14_MEMORY = 0x06, "trapped AArch32 transfer between memory and coprocessor 14";
    /// Floating point and Advanced SIMD.
    FLOATING_POINT = 0x07, "trapped floating-point, Advanced SIMD or SVE instruction";
    /// AArch32: `VMRS` of an identification register.
    AARCH32_VMRS = 0x08, "trapped AArch32 VMRS";
    /// Pointer authentication that EL2 did not enable.
    POINTER_AUTHENTICATION = 0x09, "trapped pointer authentication";
    /// 64-byte loads and stores, and others that a later extension gates.
    LS64 = 0x0a, "trapped 64-byte load or store";
    /// AArch32: `MRRC` to coprocessor 14.
    AARCH32_CP14_PAIR = 0x0c, "trapped AArch32 access to a register pair of coprocessor 14";
    /// Branch target identification.
    BRANCH_TARGET = 0x0d, "branch to a place that is no branch target";
    /// `PSTATE.IL` was set.
    ILLEGAL_STATE = 0x0e, "illegal execution state";
    /// AArch32: `SVC`.
    AARCH32_SVC = 0x11, "AArch32 SVC";
    /// AArch32: `HVC`.
    AARCH32_HVC = 0x12, "AArch32 HVC";
    /// AArch32: `SMC`.
    AARCH32_SMC = 0x13, "AArch32 SMC";
    /// 128-bit system register accesses.
    SYSTEM_REGISTER_PAIR = 0x14, "trapped MSRR, MRRS or SYSP";
    /// `SVC`.
    SVC = 0x15, "SVC";
    /// `HVC`.
    HVC = 0x16, "HVC";
    /// `SMC`, trapped by `HCR_EL2.TSC`.
    SMC = 0x17, "SMC";
    /// `MSR`, `MRS` and the `SYS` instructions.
    SYSTEM_REGISTER = 0x18, "trapped system register access";
    /// SVE that `CPTR_EL2` does not let through.
    SVE = 0x19, "trapped SVE instruction";
    /// Nested virtualisation.
    ERET = 0x1a, "trapped ERET";
    /// `PSTATE` authentication of a failed pointer check.
    POINTER_AUTHENTICATION_FAILURE = 0x1c, "failed pointer authentication";
    /// SME that `CPTR_EL2` does not let through.
    SME = 0x1d, "trapped SME instruction";
    /// Granule protection check of the realm management extension.
    GRANULE_PROTECTION = 0x1e, "granule protection check";
    /// An instruction fetch of the guest failed.
    INSTRUCTION_ABORT_LOWER = 0x20, "instruction abort of the guest";
    /// An instruction fetch of EL2 failed.
    INSTRUCTION_ABORT_SAME = 0x21, "instruction abort at its own level";
    /// The program counter was not a multiple of 4.
    PC_ALIGNMENT = 0x22, "misaligned program counter";
    /// A load or store of the guest failed.
    DATA_ABORT_LOWER = 0x24, "data abort of the guest";
    /// A load or store of EL2 failed.
    DATA_ABORT_SAME = 0x25, "data abort at its own level";
    /// The stack pointer was not a multiple of 16.
    SP_ALIGNMENT = 0x26, "misaligned stack pointer";
    /// Memory copy and set instructions.
    MEMORY_OPERATION = 0x27, "memory copy or set exception";
    /// AArch32: a floating-point exception.
    AARCH32_FLOATING_POINT_EXCEPTION = 0x28, "AArch32 floating-point exception";
    /// A trapped floating-point exception.
    FLOATING_POINT_EXCEPTION = 0x2c, "floating-point exception";
    /// Guarded control stack.
    CONTROL_STACK = 0x2d, "guarded control stack exception";
    /// System error.
    SERROR = 0x2f, "system error (SError)";
    /// A hardware breakpoint of the guest.
    BREAKPOINT_LOWER = 0x30, "breakpoint of the guest";
    /// A hardware breakpoint of EL2.
    BREAKPOINT_SAME = 0x31, "breakpoint at its own level";
    /// The guest was single-stepped.
    STEP_LOWER = 0x32, "software step of the guest";
    /// EL2 was single-stepped.
    STEP_SAME = 0x33, "software step at its own level";
    /// A watchpoint of the guest.
    WATCHPOINT_LOWER = 0x34, "watchpoint of the guest";
    /// A watchpoint of EL2.
    WATCHPOINT_SAME = 0x35, "watchpoint at its own level";
    /// AArch32: `BKPT`.
    AARCH32_BKPT = 0x38, "AArch32 BKPT";
    /// AArch32: vector catch.
    AARCH32_VECTOR_CATCH = 0x3a, "AArch32 vector catch";
    /// `BRK`.
    BRK = 0x3c, "BRK";
    /// Performance monitor or profiling.
    PROFILING = 0x3d, "profiling exception";
}

/// The syndrome of a data or instruction abort (Arm ARM D24.2.40, "ISS encoding for an exception from a Data Abort",
/// "... from an Instruction Abort"). Fields of the access itself mean something for data aborts only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abort(u32);

impl Abort {
    /// ISV: the syndrome describes the load or store, so that it can be emulated.
    #[inline]
    #[must_use]
    pub const fn describes_access(self) -> bool {
        self.0 >> 24 & 1 != 0
    }

    /// SAS: how much was loaded or stored.
    #[inline]
    #[must_use]
    pub const fn width(self) -> Width {
        match self.0 >> 22 & 3 {
            0 => Width::Byte,
            1 => Width::Half,
            2 => Width::Word,
            _ => Width::Double,
        }
    }

    /// SRT: the register that is loaded or stored; 31 is the zero register.
    #[inline]
    #[must_use]
    pub const fn register(self) -> usize {
        (self.0 >> 16 & 0x1f) as usize
    }

    /// `WnR`: a store. Cache maintenance by address counts as one as well.
    #[inline]
    #[must_use]
    pub const fn is_write(self) -> bool {
        self.0 >> 6 & 1 != 0
    }

    /// CM: a cache maintenance or address translation instruction, not a load or store.
    #[inline]
    #[must_use]
    pub const fn is_cache_maintenance(self) -> bool {
        self.0 >> 8 & 1 != 0
    }

    /// S1PTW: the access was the CPU's own, to the guest's translation tables.
    #[inline]
    #[must_use]
    pub const fn on_table_walk(self) -> bool {
        self.0 >> 7 & 1 != 0
    }

    /// DFSC or IFSC: what went wrong.
    #[inline]
    #[must_use]
    pub const fn fault(self) -> Fault {
        let code = (self.0 & 0x3f) as u8;
        let level = code & 3;
        match code {
            0x00..=0x03 => Fault::AddressSize { level },
            0x04..=0x07 => Fault::Translation { level },
            0x08..=0x0b => Fault::AccessFlag { level },
            0x0c..=0x0f => Fault::Permission { level },
            0x10 => Fault::External,
            0x13..=0x17 => Fault::ExternalOnWalk,
            0x18 | 0x1b..=0x1f => Fault::Parity,
            0x21 => Fault::Alignment,
            0x30 => Fault::TlbConflict,
            0x35 => Fault::UnsupportedExclusive,
            other => Fault::Other(other),
        }
    }

    /// Whether `HPFAR_EL2` holds the page (Arm ARM, `HPFAR_EL2`): not for a permission fault outside a table walk, where
    /// the address has to be translated again, and not for external aborts.
    #[inline]
    #[must_use]
    pub const fn hpfar_is_valid(self) -> bool {
        match self.fault() {
            Fault::AddressSize { .. } | Fault::Translation { .. } | Fault::AccessFlag { .. } => true,
            Fault::Permission { .. } => self.on_table_walk(),
            _ => false,
        }
    }

    /// The guest-physical address that the access was for, from `HPFAR_EL2` and `FAR_EL2`; of the page only, if it was
    /// a table walk. Means something if [`Abort::hpfar_is_valid`].
    #[inline]
    #[must_use]
    pub const fn address(self, hpfar: u64, far: u64) -> Gpa {
        page_and_offset(hpfar, if self.on_table_walk() { 0 } else { far })
    }

    /// A load or store, described by the syndrome, of a page that is not mapped: how guests reach devices. Then
    /// `HPFAR_EL2` holds the page, and [`Abort::access`] is what to emulate.
    #[inline]
    #[must_use]
    pub const fn is_plain_access(self) -> bool {
        // ISV set; CM and S1PTW clear; DFSC a translation fault.
        self.0 & (1 << 24 | 1 << 8 | 1 << 7 | 0x3c) == 1 << 24 | 0x04
    }

    /// The load or store to emulate, where a store takes `register_value` (0 for the zero register). Means something if
    /// [`Abort::is_plain_access`].
    #[inline]
    #[must_use]
    pub const fn access(self, register_value: u64) -> Access {
        let width = self.width();
        if self.is_write() {
            return Access::Write(width, register_value & width.mask());
        }
        Access::Read(width)
    }

    /// What a load leaves in its register: `value` cut to the width, then extended as SSE and SF ask.
    #[inline]
    #[must_use]
    pub const fn extend(self, value: u64) -> u64 {
        let unused = 64 - 8 * (1 << (self.0 >> 22 & 3));
        let signed = self.0 >> 21 & 1 != 0;
        let is_64_bit = self.0 >> 15 & 1 != 0;
        if !signed {
            return value << unused >> unused;
        }
        let wide = ((value << unused).cast_signed() >> unused).cast_unsigned();
        if is_64_bit { wide } else { wide & 0xffff_ffff }
    }
}

/// The guest-physical address from `HPFAR_EL2`, which has the page, and `FAR_EL2`, which has the rest (Arm ARM, `HPFAR_EL2`).
#[inline]
#[must_use]
pub const fn page_and_offset(hpfar: u64, far: u64) -> Gpa {
    Gpa((hpfar & 0x0000_ffff_ffff_fff0) << 8 | far & 0xfff)
}

/// What made an access fail (Arm ARM D24.2.40, DFSC and IFSC); levels are of the stage that reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// An address beyond the configured size.
    AddressSize {
        /// Level of the walk.
        level: u8,
    },
    /// Nothing is mapped.
    Translation {
        /// Level of the walk.
        level: u8,
    },
    /// Mapped, never accessed.
    AccessFlag {
        /// Level of the walk.
        level: u8,
    },
    /// Mapped, but not for this.
    Permission {
        /// Level of the walk.
        level: u8,
    },
    /// The memory system refused.
    External,
    /// The memory system refused a fetch of a translation table.
    ExternalOnWalk,
    /// Parity or ECC.
    Parity,
    /// Misaligned.
    Alignment,
    /// Two TLB entries for one address.
    TlbConflict,
    /// An exclusive or atomic access to memory that does not support it.
    UnsupportedExclusive,
    /// Any other code.
    Other(u8),
}

/// A system register as instructions and syndromes name it: op0, op1, CRn, CRm, op2. Two are equal if they are the same
/// register, whatever the direction and the general register of the access were.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Encoding(u32);

impl Encoding {
    /// The bits of the syndrome that name the register.
    const FIELDS: u32 = 3 << 20 | 7 << 17 | 7 << 14 | 0xf << 10 | 0xf << 1;

    /// The register `S<op0>_<op1>_C<crn>_C<crm>_<op2>`; surplus bits of each number are dropped.
    #[must_use]
    pub const fn new(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> Self {
        Self((op0 & 3) << 20 | (op2 & 7) << 17 | (op1 & 7) << 14 | (crn & 0xf) << 10 | (crm & 0xf) << 1)
    }

    /// op0: 3 for most registers, 2 for debug, 1 for instructions.
    #[must_use]
    pub const fn op0(self) -> u32 {
        self.0 >> 20 & 3
    }

    /// op1: the lowest exception level with access, roughly.
    #[must_use]
    pub const fn op1(self) -> u32 {
        self.0 >> 14 & 7
    }

    /// `CRn`
    #[must_use]
    pub const fn crn(self) -> u32 {
        self.0 >> 10 & 0xf
    }

    /// `CRm`
    #[must_use]
    pub const fn crm(self) -> u32 {
        self.0 >> 1 & 0xf
    }

    /// op2
    #[must_use]
    pub const fn op2(self) -> u32 {
        self.0 >> 17 & 7
    }
}

/// The syndrome of a trapped system register access (Arm ARM D24.2.40, "ISS encoding for an exception from MSR, MRS, or
/// System instruction execution in AArch64 state").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SystemRegisterAccess(u32);

impl SystemRegisterAccess {
    /// Which register.
    #[inline]
    #[must_use]
    pub const fn encoding(self) -> Encoding {
        Encoding(self.0 & Encoding::FIELDS)
    }

    /// Rt: the general register; 31 is the zero register.
    #[inline]
    #[must_use]
    pub const fn register(self) -> usize {
        (self.0 >> 5 & 0x1f) as usize
    }

    /// `MRS` or `MSR`.
    #[inline]
    #[must_use]
    pub const fn direction(self) -> Direction {
        if self.0 & 1 != 0 { Direction::Read } else { Direction::Write }
    }
}

/// Which way a trapped access to a system register goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// `MRS`
    Read,
    /// `MSR`, and instructions that are encoded as one.
    Write,
}

/// What a trapped wait waits for (Arm ARM D24.2.40, "ISS encoding for an exception from a WF* instruction").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// `WFI`
    Interrupt,
    /// `WFE`
    Event,
    /// `WFIT`, with the number of the register that holds the deadline.
    InterruptUntil(u8),
    /// `WFET`, with the number of the register that holds the deadline.
    EventUntil(u8),
}

#[cfg(test)]
mod tests;
