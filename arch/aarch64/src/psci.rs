//! What a guest asks of its firmware: PSCI 1.1 (DEN0022) over the SMC calling convention 1.1 (DEN0028), decoded.
//!
//! Pure: it turns argument registers into a [`Call`] and answers into a register. Who is on and who is off, and doing
//! what is asked, is the caller's. Every number here comes from a hostile guest; each of them decodes to something.

use bulkhead_vdev::virt;

/// `PSCI_VERSION`'s answer: 1.1 (DEN0022 5.1.1).
pub const PSCI_VERSION: u64 = 1 << 16 | 1;
/// `SMCCC_VERSION`'s answer: 1.1 (DEN0028 7.2).
pub const SMCCC_VERSION: u64 = 1 << 16 | 1;
/// `MIGRATE_INFO_TYPE`'s answer: there is no trusted operating system that would have to move (DEN0022 5.1.8).
pub const NO_MIGRATION: u64 = 2;

/// Function identifiers (DEN0022 5.1, DEN0028 7): the form with 32-bit arguments.
mod id {
    pub(super) const SMCCC_VERSION: u32 = 0x8000_0000;
    pub(super) const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
    pub(super) const PSCI_VERSION: u32 = 0x8400_0000;
    pub(super) const CPU_SUSPEND: u32 = 0x8400_0001;
    pub(super) const CPU_OFF: u32 = 0x8400_0002;
    pub(super) const CPU_ON: u32 = 0x8400_0003;
    pub(super) const AFFINITY_INFO: u32 = 0x8400_0004;
    pub(super) const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    pub(super) const SYSTEM_OFF: u32 = 0x8400_0008;
    pub(super) const SYSTEM_RESET: u32 = 0x8400_0009;
    pub(super) const PSCI_FEATURES: u32 = 0x8400_000a;
    pub(super) const SYSTEM_RESET2: u32 = 0x8400_0012;

    /// Bit 30: the form of the same function with 64-bit arguments.
    pub(super) const WIDE: u32 = 1 << 30;
    pub(super) const CPU_SUSPEND_WIDE: u32 = CPU_SUSPEND | WIDE;
    pub(super) const CPU_ON_WIDE: u32 = CPU_ON | WIDE;
    pub(super) const AFFINITY_INFO_WIDE: u32 = AFFINITY_INFO | WIDE;
    /// Fast 64-bit calls of the hypervisor's own services, less those that identify its vendor (DEN0028 6).
    pub(super) const SERVICES: u32 = 0xc600_0000;
    pub(super) const LAST_SERVICE: u32 = 0xc600_feff;
    pub(super) const SYSTEM_RESET2_WIDE: u32 = SYSTEM_RESET2 | WIDE;
}

/// A call to the firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// `PSCI_VERSION`: the answer is [`PSCI_VERSION`].
    Version,
    /// `CPU_SUSPEND`
    CpuSuspend {
        /// How deep.
        state: PowerState,
        /// Where to go on after a power-down.
        entry: u64,
        /// For x0 there.
        context: u64,
    },
    /// `CPU_OFF`
    CpuOff,
    /// `CPU_ON`
    CpuOn {
        /// `MPIDR_EL1` of the CPU to start, without the bits that are no affinity.
        target: u64,
        /// Its first instruction.
        entry: u64,
        /// For its x0.
        context: u64,
    },
    /// `AFFINITY_INFO`: the answer is an [`Affinity`].
    AffinityInfo {
        /// As for [`Call::CpuOn`].
        target: u64,
        /// Affinity levels below this are ignored; only 0 exists since version 1.0.
        level: u64,
    },
    /// `MIGRATE_INFO_TYPE`: the answer is [`NO_MIGRATION`].
    MigrateInfoType,
    /// `SYSTEM_OFF`
    SystemOff,
    /// `SYSTEM_RESET`
    SystemReset,
    /// `SYSTEM_RESET2`
    SystemReset2 {
        /// 0 is the architecture's warm reset; others do not exist here.
        kind: u32,
    },
    /// `PSCI_FEATURES`; [`features`] answers.
    Features(u32),
    /// `SMCCC_VERSION`: the answer is [`SMCCC_VERSION`].
    SmcccVersion,
    /// `SMCCC_ARCH_FEATURES`; [`arch_features`] answers.
    ArchFeatures(u32),
    /// A service of the hypervisor itself, by number (DEN0028 6: vendor-specific hypervisor services, fast, 64 bit).
    Service(u64),
    /// Anything else: the answer is [`Status::NotSupported`].
    Unknown,
}

impl Call {
    /// The call that a guest made with these values in x0 to x3. Functions with 32-bit arguments ignore the upper halves
    /// (DEN0028 3.1).
    #[inline]
    #[must_use]
    pub const fn decode([function, first, second, third]: [u64; 4]) -> Self {
        let [narrow_first, narrow_second, narrow_third] =
            [low(first) as u64, low(second) as u64, low(third) as u64];
        match low(function) {
            id::PSCI_VERSION => Self::Version,
            id::CPU_SUSPEND => Self::suspend(first, narrow_second, narrow_third),
            id::CPU_SUSPEND_WIDE => Self::suspend(first, second, third),
            id::CPU_OFF => Self::CpuOff,
            id::CPU_ON => Self::CpuOn { target: narrow_first, entry: narrow_second, context: narrow_third },
            id::CPU_ON_WIDE => Self::CpuOn { target: first, entry: second, context: third },
            id::AFFINITY_INFO => Self::AffinityInfo { target: narrow_first, level: narrow_second },
            id::AFFINITY_INFO_WIDE => Self::AffinityInfo { target: first, level: narrow_second },
            id::MIGRATE_INFO_TYPE => Self::MigrateInfoType,
            id::SYSTEM_OFF => Self::SystemOff,
            id::SYSTEM_RESET => Self::SystemReset,
            id::SYSTEM_RESET2 | id::SYSTEM_RESET2_WIDE => Self::SystemReset2 { kind: low(first) },
            id::PSCI_FEATURES => Self::Features(low(first)),
            id::SMCCC_VERSION => Self::SmcccVersion,
            id::SMCCC_ARCH_FEATURES => Self::ArchFeatures(low(first)),
            id::SERVICES..=id::LAST_SERVICE => Self::Service((low(function) - id::SERVICES) as u64),
            _ => Self::Unknown,
        }
    }

    const fn suspend(state: u64, entry: u64, context: u64) -> Self {
        Self::CpuSuspend { state: PowerState(low(state)), entry, context }
    }
}

/// The `W` half of a register.
/// Whether `function` is `PSCI_VERSION`, the call that guests measure a hypervisor by: told apart before all others.
#[inline]
#[must_use]
pub const fn is_version(function: u64) -> bool {
    low(function) == id::PSCI_VERSION
}

#[expect(clippy::cast_possible_truncation, reason = "the upper half is meant to go")]
const fn low(register: u64) -> u32 {
    register as u32
}

/// The `power_state` of `CPU_SUSPEND`, in the original format (DEN0022 5.4.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PowerState(pub u32);

impl PowerState {
    /// No reserved bit is set, and it is about this CPU alone.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        const RESERVED: u32 = 0xfcfe_0000;
        const POWER_LEVEL: u32 = 3 << 24;
        self.0 & (RESERVED | POWER_LEVEL) == 0
    }

    /// The CPU loses its registers and goes on at the entry point; otherwise the call returns.
    #[must_use]
    pub const fn is_power_down(self) -> bool {
        self.0 >> 16 & 1 != 0
    }
}

/// What PSCI functions answer (DEN0022 5.2.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Status {
    /// Done.
    Success = 0,
    /// There is no such function.
    NotSupported = -1,
    /// There is no such CPU, level or state.
    InvalidParameters = -2,
    /// Refused.
    Denied = -3,
    /// The CPU runs.
    AlreadyOn = -4,
    /// The CPU is being started.
    OnPending = -5,
    /// It should have worked.
    InternalFailure = -6,
    /// There is no trusted operating system.
    NotPresent = -7,
    /// The CPU cannot be used.
    Disabled = -8,
    /// The entry point is not where a CPU can start.
    InvalidAddress = -9,
}

impl Status {
    /// The answer as x0 holds it: sign-extended, right for both widths of a function.
    #[inline]
    #[must_use]
    pub const fn register(self) -> u64 {
        (self as i64).cast_unsigned()
    }
}

/// What `AFFINITY_INFO` answers about a CPU (DEN0022 5.1.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Affinity {
    /// It runs.
    On = 0,
    /// It is off.
    Off = 1,
    /// It is being started.
    OnPending = 2,
}

/// `PSCI_FEATURES`' answer about `function`: success (for `CPU_SUSPEND`: original format, no co-ordination by the
/// operating system) or not supported (DEN0022 5.1.15).
#[must_use]
pub const fn features(function: u32) -> Status {
    match function {
        id::PSCI_VERSION
        | id::CPU_SUSPEND
        | id::CPU_SUSPEND_WIDE
        | id::CPU_OFF
        | id::CPU_ON
        | id::CPU_ON_WIDE
        | id::AFFINITY_INFO
        | id::AFFINITY_INFO_WIDE
        | id::MIGRATE_INFO_TYPE
        | id::SYSTEM_OFF
        | id::SYSTEM_RESET
        | id::SYSTEM_RESET2
        | id::SYSTEM_RESET2_WIDE
        | id::PSCI_FEATURES
        | id::SMCCC_VERSION => Status::Success,
        _ => Status::NotSupported,
    }
}

/// `SMCCC_ARCH_FEATURES`' answer about `function` (DEN0028 7.3): the two functions that must exist, and no workaround.
#[must_use]
pub const fn arch_features(function: u32) -> Status {
    match function {
        id::SMCCC_VERSION | id::SMCCC_ARCH_FEATURES => Status::Success,
        _ => Status::NotSupported,
    }
}

/// `VMPIDR_EL2` of the vCPU `index`: affinity level 0 is the index, bit 31 reads as one.
#[must_use]
pub const fn mpidr(index: usize) -> u64 {
    1 << 31 | (index & 0xff) as u64
}

/// The vCPU that a call names by its affinity fields, if a VM with `vcpus` of them has it. All bits that are no affinity
/// must be clear (DEN0022 5.1.4), and the higher levels of all vCPUs are 0.
#[must_use]
pub fn vcpu_index(target: u64, vcpus: usize) -> Option<usize> {
    usize::try_from(target).ok().filter(|&index| index < vcpus)
}

/// Whether a CPU of a guest with `ram_bytes` can start at `entry`: an instruction in RAM (DEN0022 5.6, `INVALID_ADDRESS`).
#[must_use]
pub const fn is_entry(entry: u64, ram_bytes: u64) -> bool {
    entry.wrapping_sub(virt::RAM.0) < ram_bytes && entry.is_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GARBAGE: u64 = 0xdead_beef_0000_0000;

    #[test]
    fn cpu_on_takes_64_bit_arguments_in_its_wide_form_only() {
        let arguments = [GARBAGE | 1, GARBAGE | 0x4008_0000, GARBAGE | 7];
        let [target, entry, context] = arguments;
        assert_eq!(
            Call::decode([0xc400_0003, target, entry, context]),
            Call::CpuOn { target, entry, context }
        );
        assert_eq!(
            Call::decode([0x8400_0003, target, entry, context]),
            Call::CpuOn { target: 1, entry: 0x4008_0000, context: 7 }
        );
    }

    #[test]
    fn the_upper_half_of_the_function_register_is_ignored() {
        assert_eq!(Call::decode([GARBAGE | 0x8400_0000, 0, 0, 0]), Call::Version);
        assert_eq!(Call::decode([GARBAGE | 0x8400_0008, 0, 0, 0]), Call::SystemOff);
    }

    #[test]
    fn functions_without_a_wide_form_are_unknown_in_it() {
        for narrow_only in [0, 2, 6, 8, 9, 0xa] {
            assert_eq!(Call::decode([0xc400_0000 | narrow_only, 0, 0, 0]), Call::Unknown, "{narrow_only:#x}");
        }
    }

    #[test]
    fn features_agrees_with_decode() {
        for low_byte in 0..=0xff {
            for base in [0x8400_0000_u32, 0xc400_0000] {
                let function = base | low_byte;
                let known = Call::decode([u64::from(function), 0, 0, 0]) != Call::Unknown;
                assert_eq!(features(function) == Status::Success, known, "{function:#x}");
            }
        }
    }

    #[test]
    fn smccc_functions_describe_themselves_and_no_workaround() {
        assert_eq!(Call::decode([0x8000_0001, 0x8000_8000, 0, 0]), Call::ArchFeatures(0x8000_8000));
        assert_eq!(arch_features(0x8000_0000), Status::Success);
        assert_eq!(arch_features(0x8000_8000), Status::NotSupported);
        assert_eq!(features(0x8000_0000), Status::Success);
    }

    #[test]
    fn statuses_are_sign_extended() {
        assert_eq!(Status::Success.register(), 0);
        assert_eq!(Status::NotSupported.register(), u64::MAX);
        assert_eq!(Status::InvalidAddress.register(), 9_u64.wrapping_neg());
    }

    #[test]
    fn only_affinity_level_0_below_the_count_is_a_vcpu() {
        assert_eq!(vcpu_index(3, 4), Some(3));
        assert_eq!(vcpu_index(4, 4), None);
        assert_eq!(vcpu_index(0x100, 4), None);
        assert_eq!(vcpu_index(1 << 31, 4), None, "the RES1 bit of MPIDR is no affinity");
        assert_eq!(vcpu_index(u64::MAX, 16), None);
        assert_eq!(mpidr(5), 0x8000_0005);
    }

    #[test]
    fn a_cpu_starts_at_an_instruction_in_ram() {
        let ram_bytes = 0x400_0000;
        assert!(is_entry(0x4000_0000, ram_bytes));
        assert!(is_entry(0x43ff_fffc, ram_bytes));
        for nowhere in [0, 0x0900_0000, 0x3fff_fffc, 0x4000_0002, 0x4400_0000, u64::MAX] {
            assert!(!is_entry(nowhere, ram_bytes), "{nowhere:#x}");
        }
    }

    #[test]
    fn a_power_state_with_reserved_bits_or_a_higher_level_is_invalid() {
        assert!(PowerState(0).is_valid());
        assert!(PowerState(0x1_0001).is_valid());
        assert!(PowerState(0x1_0001).is_power_down());
        assert!(!PowerState(0x0100_0000).is_valid());
        assert!(!PowerState(0x0002_0000).is_valid());
        assert!(!PowerState(u32::MAX).is_valid());
    }
}
