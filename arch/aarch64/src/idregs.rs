//! What a guest reads and writes in the system registers that trap: the identification registers, cut to what the guest
//! is really offered, and the few others.
//!
//! Pure: values of the hardware come in, values for the guest go out. The identification registers are a whitelist: a
//! field that is not named here reads as 0, and so does a register that is not, so that an extension of tomorrow's CPU
//! stays hidden until its state is kept apart. It relies on the controls that go with it: FP, SVE (where offered) and
//! pointer authentication untrapped, `SCXTNUM` trapped (`HCR_EL2.EnSCXT` clear), `HCRX_EL2` all clear, `MDCR_EL2` with TPM, TPMS, TTRF,
//! TDA, TDOSA and TDRA set. Fields are those of the Arm ARM's register descriptions, D24.2 and G8.2.

use crate::debug::{DebugRegister, debug_register};
use crate::esr::{Direction, Encoding};

/// What a guest is offered beyond what its CPU settles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offered {
    /// Guest-physical addresses have this many bits.
    pub address_bits: u32,
    /// The scalable vector extension.
    pub sve: bool,
    /// AArch32 at EL0; without it the hardware's AArch32 registers hold nothing.
    pub aarch32: bool,
}

/// What becomes of a trapped access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trapped {
    /// Reads as [`filter`] says.
    Identification,
    /// Reads as this value, ignores writes.
    Constant(u64),
    /// A write of `ICC_SGI0R_EL1` or `ICC_ASGI1R_EL1`: of a group that the guest, with one security state, does not have.
    SoftwareInterruptOfOtherGroup,
    /// A write of `ICC_DIR_EL1`: deactivation.
    Deactivate,
    /// A register of self-hosted debug.
    Debug(DebugRegister),
    /// The instruction is undefined.
    Undefined,
}

/// The register that each kind of access that may trap names.
mod register {
    use super::Encoding;

    /// `ACTLR_EL1`, trapped by `HCR_EL2.TACR`.
    pub(super) const ACTLR: Encoding = Encoding::new(3, 0, 1, 0, 1);
    /// `ICC_DIR_EL1`, trapped by `ICH_HCR_EL2.TDIR` or TC (GICv3 architecture, IHI 0069 12.2.7).
    pub(super) const ICC_DIR: Encoding = Encoding::new(3, 0, 12, 11, 1);
    /// `ICC_SGI1R_EL1`, trapped by `HCR_EL2.IMO` and FMO (IHI 0069 12.2.22).
    pub(super) const ICC_SGI1R: Encoding = Encoding::new(3, 0, 12, 11, 5);
    /// `ICC_ASGI1R_EL1`
    pub(super) const ICC_ASGI1R: Encoding = Encoding::new(3, 0, 12, 11, 6);
    /// `ICC_SGI0R_EL1`
    pub(super) const ICC_SGI0R: Encoding = Encoding::new(3, 0, 12, 11, 7);
    /// `ICC_SRE_EL1`, trapped by `ICC_SRE_EL2.Enable` being clear.
    pub(super) const ICC_SRE: Encoding = Encoding::new(3, 0, 12, 12, 5);
}

/// `ICC_SRE_EL1`: system registers only, no IRQ or FIQ bypass (IHI 0069, `ICC_SRE_EL1`).
const SYSTEM_REGISTERS_ONLY: u64 = 7;

/// Whether the access is a write of `ICC_SGI1R_EL1`: a software interrupt of group 1. Guests measure a hypervisor by these,
/// so they are told apart before all others.
#[inline]
#[must_use]
pub const fn is_software_interrupt(encoding: Encoding, direction: Direction) -> bool {
    matches!((encoding, direction), (register::ICC_SGI1R, Direction::Write))
}

/// What becomes of another access to `encoding` that trapped.
///
/// Undefined is the rule: performance monitors (MDCR_EL2.TPM), statistical profiling (TPMS), trace filters (TTRF), limited
/// ordering regions (`HCR_EL2.TLOR`), error records (`TERR`), activity monitors (`CPTR_EL2.TAM`), memory tagging, `SCXTNUM`,
/// implementation-defined registers (`TIDCP`) and whatever a later architecture adds are not offered, and hardware without them
/// does the same.
#[inline]
#[must_use]
pub const fn classify(encoding: Encoding, direction: Direction) -> Trapped {
    let is_read = matches!(direction, Direction::Read);
    match encoding {
        register::ICC_DIR if !is_read => Trapped::Deactivate,
        register::ICC_SGI0R | register::ICC_ASGI1R if !is_read => Trapped::SoftwareInterruptOfOtherGroup,
        register::ICC_SRE => Trapped::Constant(SYSTEM_REGISTERS_ONLY),
        register::ACTLR => Trapped::Constant(0),
        _ if is_read && is_identification(encoding) => Trapped::Identification,
        _ => match debug_register(encoding) {
            Some(register) => Trapped::Debug(register),
            None => Trapped::Undefined,
        },
    }
}

/// In the group that `HCR_EL2.TID3` traps: op0 3, op1 0, `CRn` 0, `CRm` 1 to 7.
const fn is_identification(encoding: Encoding) -> bool {
    encoding.op0() == 3
        && encoding.op1() == 0
        && encoding.crn() == 0
        && encoding.crm() >= 1
        && encoding.crm() <= 7
}

/// What the guest reads in an identification register whose hardware value is `hardware`.
#[must_use]
pub fn filter(encoding: Encoding, hardware: u64, offered: &Offered) -> u64 {
    let Some(register) = REGISTERS.iter().find(|register| register.encoding == encoding) else {
        return 0;
    };
    match register.offered {
        With::Always => (),
        With::Aarch32 if offered.aarch32 => (),
        With::Sve if offered.sve => (),
        With::Aarch32 | With::Sve => return 0,
    }
    let mut value = hardware & register.keep;
    for (shift, rule) in register.rules {
        value &= !(0xf << shift);
        value |= rule.apply(hardware >> shift & 0xf, offered) << shift;
    }
    value
}

/// One identification register: the fields that the guest reads as the hardware has them, and those that are changed.
struct Register {
    encoding: Encoding,
    offered: With,
    keep: u64,
    rules: &'static [(u32, Rule)],
}

/// What a whole register depends on.
enum With {
    Always,
    Aarch32,
    Sve,
}

/// What becomes of a field that is neither kept nor hidden.
enum Rule {
    /// This, whatever the hardware says.
    Is(u64),
    /// The hardware's, but no later version than this; the field must be unsigned.
    AtMost(u64),
    /// The hardware's if SVE is offered.
    Sve,
    /// `PARange`: what the guest's address space has.
    AddressBits,
}

impl Rule {
    fn apply(&self, hardware: u64, offered: &Offered) -> u64 {
        match *self {
            Self::Is(value) => value,
            Self::AtMost(limit) => hardware.min(limit),
            Self::Sve if offered.sve => hardware,
            Self::Sve => 0,
            Self::AddressBits => hardware.min(address_range(offered.address_bits)),
        }
    }
}

/// The largest `ID_AA64MMFR0_EL1.PARange` of at most `bits`.
const fn address_range(bits: u32) -> u64 {
    match bits {
        0..36 => 0,
        36..40 => 1,
        40..42 => 2,
        42..44 => 3,
        44..48 => 4,
        48..52 => 5,
        52..56 => 6,
        _ => 7,
    }
}

/// A mask of four-bit fields, named by their lowest bits.
const fn fields(shifts: &[u32]) -> u64 {
    let mut mask = 0;
    let mut next = 0;
    while next < shifts.len() {
        mask |= 0xf << shifts[next];
        next += 1;
    }
    mask
}

const ALL: u64 = u64::MAX;

const fn id(crm: u32, op2: u32) -> Encoding {
    Encoding::new(3, 0, 0, crm, op2)
}

const fn kept(crm: u32, op2: u32, offered: With, keep: u64) -> Register {
    Register { encoding: id(crm, op2), offered, keep, rules: &[] }
}

const fn changed(crm: u32, op2: u32, offered: With, keep: u64, rules: &'static [(u32, Rule)]) -> Register {
    Register { encoding: id(crm, op2), offered, keep, rules }
}

/// The whitelist. Registers of the group that are not here read as 0: `ID_AFR0`, `ID_DFR1`, `ID_AA64PFR2`, `ID_AA64SMFR0`,
/// `ID_AA64FPFR0`, `ID_AA64DFR1`, `ID_AA64DFR2`, `ID_AA64AFR0`, `ID_AA64AFR1`, `ID_AA64ISAR3`, `ID_AA64MMFR3`, `ID_AA64MMFR4` and the reserved ones.
static REGISTERS: &[Register] = &[
    // ID_AA64PFR0: FP and AdvSIMD (0xf: absent), DIT, CSV3 and EL0 as they are; AArch64 alone at EL1; nothing above it. CSV2 up to 1,
    // as version 2 brings SCXTNUM. Hidden: RAS, SEL2, MPAM, AMU, RME.
    changed(
        4,
        0,
        With::Always,
        fields(&[0, 16, 20, 48, 60]),
        &[(4, Rule::Is(1)), (24, Rule::Is(1)), (32, Rule::Sve), (56, Rule::AtMost(1))],
    ),
    // ID_AA64PFR1: BT and SSBS. CSV2_frac up to 1: version 1.2 brings SCXTNUM. Hidden: MTE, RAS_frac, MPAM_frac, SME, RNDR_trap, NMI,
    // GCS, THE, MTEX, DF2, PFAR.
    changed(4, 1, With::Always, fields(&[0, 4]), &[(32, Rule::AtMost(1))]),
    // ID_AA64ZFR0
    kept(4, 4, With::Sve, ALL),
    // ID_AA64DFR0: BRPs, WRPs and CTX_CMPs. DoubleLock is absent (0xf): OSDLR_EL1 ignores writes. DebugVer up to 0xa (version 8.8):
    // 8.9 banks breakpoints behind MDSELR_EL1. Hidden: trace, PMU, SPE, trace filter, trace buffer, branch records.
    changed(5, 0, With::Always, fields(&[12, 20, 28]), &[(0, Rule::AtMost(0xa)), (36, Rule::Is(0xf))]),
    // ID_AA64ISAR0: all (cryptography, CRC32, atomics, RDM, dot product, FHM, FlagM, TLBI ranges, RNDR) but TME.
    kept(6, 0, With::Always, ALL & !fields(&[24])),
    // ID_AA64ISAR1: all (DPB, pointer authentication, JSCVT, FCMA, LRCPC, FRINTTS, SB, SPECRES, BF16, DGH, I8MM, XS) but LS64, which HCRX_EL2
    // gates.
    kept(6, 1, With::Always, ALL & !fields(&[60])),
    // ID_AA64ISAR2: RPRES, GPA3, APA3, BC, PAC_frac, CLRBHB, RPRFM, CSSC. Hidden: WFxT (waits are trapped), MOPS (gated by HCRX_EL2),
    // 128-bit registers and instructions.
    kept(6, 2, With::Always, fields(&[4, 8, 12, 20, 24, 28, 48, 52])),
    // ID_AA64MMFR0: ASIDBits, BigEnd, BigEndEL0 and the granules (0xf: absent). Hidden: secure memory, stage 2's granules, ExS,
    // fine-grained traps, ECV.
    changed(7, 0, With::Always, fields(&[4, 8, 16, 20, 24, 28]), &[(0, Rule::AddressBits)]),
    // ID_AA64MMFR1: HPDS, PAN, ETS, AFP, nTLBPA, ECBHB. HAFDBS up to 2: 3 needs TCR2_EL1. Hidden: VMIDs, VH, LOR, SpecSEI, XNX, TWED, HCX,
    // TIDCP1, CMOW.
    changed(7, 1, With::Always, fields(&[12, 20, 36, 44, 48, 60]), &[(0, Rule::AtMost(2))]),
    // ID_AA64MMFR2: CnP, UAO, LSM, VARange, CCIDX, ST, AT, IDS, TTL, BBM, E0PD. Hidden: IESB, NV, FWB, EVT.
    kept(7, 2, With::Always, fields(&[0, 4, 8, 16, 20, 28, 32, 36, 48, 52, 60])),
    // ID_PFR0: states, CSV2 and DIT. Hidden: AMU, RAS.
    kept(1, 0, With::Aarch32, fields(&[0, 4, 8, 12, 16, 24])),
    // ID_PFR1: ProgMod, MProgMod, GenTimer. Hidden: security and virtualisation extensions, which no AArch32 EL1 is there to use.
    changed(1, 1, With::Aarch32, fields(&[0, 8, 16]), &[(28, Rule::Is(1))]),
    // ID_DFR0: CopDbg. Hidden: secure and memory-mapped debug, trace, PMU.
    changed(1, 2, With::Aarch32, 0, &[(0, Rule::AtMost(0xa))]),
    // ID_MMFR0 to ID_MMFR3
    kept(1, 4, With::Aarch32, ALL),
    kept(1, 5, With::Aarch32, ALL),
    kept(1, 6, With::Aarch32, ALL),
    kept(1, 7, With::Aarch32, ALL),
    // ID_ISAR0 to ID_ISAR5
    kept(2, 0, With::Aarch32, ALL),
    kept(2, 1, With::Aarch32, ALL),
    kept(2, 2, With::Aarch32, ALL),
    kept(2, 3, With::Aarch32, ALL),
    kept(2, 4, With::Aarch32, ALL),
    kept(2, 5, With::Aarch32, ALL),
    // ID_MMFR4: AC2, CnP, HPDS, LSM, CCIDX. Hidden: SpecSEI, XNX, EVT.
    kept(2, 6, With::Aarch32, fields(&[4, 12, 16, 20, 24])),
    // ID_ISAR6
    kept(2, 7, With::Aarch32, ALL),
    // MVFR0 to MVFR2
    kept(3, 0, With::Aarch32, ALL),
    kept(3, 1, With::Aarch32, ALL),
    kept(3, 2, With::Aarch32, ALL),
    // ID_PFR2: CSV3, SSBS. Hidden: RAS_frac.
    kept(3, 4, With::Aarch32, fields(&[0, 4])),
    // ID_MMFR5: ETS, nTLBPA.
    kept(3, 6, With::Aarch32, fields(&[0, 4])),
];

#[cfg(test)]
mod tests {
    use super::*;

    const PFR0: Encoding = id(4, 0);
    const DFR0: Encoding = id(5, 0);
    const MMFR0: Encoding = id(7, 0);
    const MMFR2: Encoding = id(7, 2);
    const PLAIN: Offered = Offered { address_bits: 40, sve: false, aarch32: true };

    fn field(value: u64, shift: u32) -> u64 {
        value >> shift & 0xf
    }

    #[test]
    fn exception_levels_above_the_guest_are_absent_and_el1_is_aarch64() {
        let value = filter(PFR0, 0x2222, &PLAIN);
        assert_eq!(value & 0xffff, 0x0012);
    }

    #[test]
    fn absent_floating_point_stays_absent() {
        let value = filter(PFR0, 0x00ff_0011, &PLAIN);
        assert_eq!((field(value, 16), field(value, 20)), (0xf, 0xf));
    }

    #[test]
    fn the_gic_system_registers_are_version_3() {
        assert_eq!(field(filter(PFR0, 0, &PLAIN), 24), 1);
        assert_eq!(field(filter(PFR0, 3 << 24, &PLAIN), 24), 1);
    }

    #[test]
    fn vectors_show_only_if_they_are_offered() {
        let with_sve = Offered { sve: true, ..PLAIN };
        assert_eq!(field(filter(PFR0, ALL, &PLAIN), 32), 0);
        assert_eq!(field(filter(PFR0, 1 << 32, &with_sve), 32), 1);
        assert_eq!(filter(id(4, 4), 0x1234, &PLAIN), 0);
        assert_eq!(filter(id(4, 4), 0x1234, &with_sve), 0x1234);
        assert_eq!(filter(id(4, 5), ALL, &with_sve), 0, "SME");
    }

    #[test]
    fn extensions_with_state_of_their_own_are_hidden() {
        // RAS, SEL2, MPAM, AMU, RME
        for shift in [28, 36, 40, 44, 52] {
            assert_eq!(field(filter(PFR0, ALL, &PLAIN), shift), 0, "ID_AA64PFR0 bit {shift}");
        }
        // TraceVer, PMUVer, PMSVer, TraceFilt, TraceBuffer, MTPMU, BRBE
        for shift in [4, 8, 32, 40, 44, 48, 52] {
            assert_eq!(field(filter(DFR0, ALL, &PLAIN), shift), 0, "ID_AA64DFR0 bit {shift}");
        }
        assert_eq!(filter(id(4, 1), ALL & !(0xf << 32), &PLAIN), 0xff, "ID_AA64PFR1 keeps BT and SSBS");
        assert_eq!(field(filter(id(6, 2), ALL, &PLAIN), 16), 0, "MOPS");
    }

    #[test]
    fn debug_keeps_its_breakpoints() {
        let cortex_a57 = 0x1030_5106;
        assert_eq!(filter(DFR0, cortex_a57, &PLAIN), 0xf0_1030_5006, "all but the PMU and the double lock");
        assert_eq!(field(filter(DFR0, 0xb, &PLAIN), 0), 0xa);
    }

    #[test]
    fn the_address_size_is_the_smaller_of_hardware_and_offer() {
        let size = |hardware, address_bits| filter(MMFR0, hardware, &Offered { address_bits, ..PLAIN }) & 0xf;
        assert_eq!(size(4, 40), 2);
        assert_eq!(size(2, 48), 2);
        assert_eq!(size(5, 39), 1);
        assert_eq!(size(6, 33), 0);
        assert_eq!(size(5, 48), 5);
    }

    #[test]
    fn granules_stay_as_the_hardware_has_them() {
        let no_4k_no_64k = 0xff << 24;
        assert_eq!(filter(MMFR0, no_4k_no_64k, &PLAIN), no_4k_no_64k);
    }

    #[test]
    fn stage_2_and_nesting_are_hidden_from_the_memory_model() {
        let value = filter(MMFR2, ALL, &PLAIN);
        for (shift, name) in [(12, "IESB"), (24, "NV"), (40, "FWB"), (56, "EVT")] {
            assert_eq!(field(value, shift), 0, "{name}");
        }
        for (shift, name) in [(0, "CnP"), (4, "UAO"), (52, "BBM")] {
            assert_eq!(field(value, shift), 0xf, "{name}");
        }
    }

    #[test]
    fn aarch32_registers_read_as_zero_without_aarch32() {
        let aarch64_only = Offered { aarch32: false, ..PLAIN };
        assert_eq!(filter(id(2, 0), 0x0210_1110, &PLAIN), 0x0210_1110);
        for (crm, op2) in (1..=3).flat_map(|crm| (0..8).map(move |op2| (crm, op2))) {
            assert_eq!(filter(id(crm, op2), ALL, &aarch64_only), 0, "{}", id(crm, op2));
        }
    }

    #[test]
    fn registers_without_an_entry_read_as_zero() {
        for encoding in [id(4, 2), id(4, 7), id(5, 1), id(6, 3), id(7, 3), id(7, 4), id(7, 7)] {
            assert_eq!(filter(encoding, ALL, &PLAIN), 0, "{encoding}");
        }
    }

    #[test]
    fn each_register_has_one_entry_in_the_trapped_group() {
        for (at, register) in REGISTERS.iter().enumerate() {
            assert!(is_identification(register.encoding), "{}", register.encoding);
            assert!(REGISTERS[..at].iter().all(|earlier| earlier.encoding != register.encoding));
            assert!(register.rules.iter().all(|(shift, _)| register.keep >> shift & 0xf == 0));
        }
    }

    #[test]
    fn software_interrupts_and_deactivation_are_told_apart() {
        let write = |op2| classify(Encoding::new(3, 0, 12, 11, op2), Direction::Write);
        assert!(is_software_interrupt(register::ICC_SGI1R, Direction::Write));
        assert!(!is_software_interrupt(register::ICC_SGI0R, Direction::Write));
        assert_eq!(write(6), Trapped::SoftwareInterruptOfOtherGroup);
        assert_eq!(write(7), Trapped::SoftwareInterruptOfOtherGroup);
        assert_eq!(write(1), Trapped::Deactivate);
        assert_eq!(classify(Encoding::new(3, 0, 12, 11, 5), Direction::Read), Trapped::Undefined);
    }

    #[test]
    fn identification_is_read_only_and_what_is_not_offered_is_undefined() {
        assert_eq!(classify(PFR0, Direction::Read), Trapped::Identification);
        assert_eq!(classify(id(7, 7), Direction::Read), Trapped::Identification);
        assert_eq!(classify(PFR0, Direction::Write), Trapped::Undefined);
        assert_eq!(classify(Encoding::new(3, 0, 0, 0, 0), Direction::Read), Trapped::Undefined, "MIDR_EL1");
        assert_eq!(
            classify(Encoding::new(3, 0, 1, 0, 1), Direction::Write),
            Trapped::Constant(0),
            "ACTLR_EL1"
        );
        assert_eq!(
            classify(Encoding::new(3, 0, 12, 12, 5), Direction::Read),
            Trapped::Constant(7),
            "ICC_SRE_EL1"
        );
        assert_eq!(
            classify(Encoding::new(2, 0, 0, 0, 4), Direction::Write),
            Trapped::Debug(DebugRegister::BreakpointValue(0)),
            "DBGBVR0_EL1"
        );
        for (encoding, name) in [
            (Encoding::new(3, 3, 9, 12, 0), "PMCR_EL0"),
            (Encoding::new(3, 0, 10, 4, 3), "LORC_EL1"),
            (Encoding::new(3, 0, 5, 3, 0), "ERRIDR_EL1"),
            (Encoding::new(3, 0, 15, 2, 0), "implementation defined"),
        ] {
            assert_eq!(classify(encoding, Direction::Read), Trapped::Undefined, "{name}");
        }
    }
}
