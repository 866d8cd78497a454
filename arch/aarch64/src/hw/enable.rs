//! The controls that keep a guest at EL1, set once on each CPU, and what the CPU can do.

use super::{
    CNTHCTL_EL2, CPTR_EL2, HAFGRTR_EL2, HCR_EL2, HCRX_EL2, HDFGRTR_EL2, HDFGRTR2_EL2, HDFGWTR_EL2,
    HDFGWTR2_EL2, HFGITR_EL2, HFGITR2_EL2, HFGRTR_EL2, HFGRTR2_EL2, HFGWTR_EL2, HFGWTR2_EL2, HSTR_EL2,
    ICC_SRE_EL1, ICC_SRE_EL2, ICH_VTR_EL2, ID_CRM4_EL1, ID_CRM5_EL1, ID_CRM6_EL1, ID_CRM7_EL1, MDCR_EL2,
    MPAM2_EL2, MPAMHCR_EL2, MPAMIDR_EL1, PMCR_EL0, VTCR_EL2, VTTBR_EL2, ZCR_EL2, dsb, forget_all_guests, isb,
    vector_bytes,
};
use crate::vmsa::Vmsa;
use bulkhead::arch::Unsupported;
use bulkhead::memory::table::Stage2;

/// What this CPU can do, of what Bulkhead uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// EL2 runs with VHE.
    pub vhe: bool,
    /// Bytes of one SVE vector; 0 without SVE.
    pub vector_bytes: usize,
    /// Pointer authentication.
    pub pointer_keys: bool,
    /// Errors can be deferred (RAS): a guest has a `DISR_EL1`.
    pub deferred_errors: bool,
    /// AArch32 at EL0.
    pub aarch32: bool,
    /// Bits of a guest-physical address.
    pub address_bits: u32,
    /// Hardware breakpoints and watchpoints.
    pub breakpoints: usize,
    /// See above.
    pub watchpoints: usize,
    /// List registers of the GIC's virtual interface.
    pub list_registers: usize,
    /// Active priority registers of each group.
    pub active_priorities: usize,
    /// `ICC_DIR_EL1` can be trapped alone.
    pub traps_deactivation: bool,
}

/// Guest-physical addresses have at most this many bits: what `virt` needs, and a root of two tables.
const MOST_ADDRESS_BITS: u32 = 40;

/// HCR_EL2 (Arm ARM D24.2.48).
mod hcr {
    /// VM: second stage. SWIO: invalidation by set and way cleans as well. FMO, IMO, AMO: interrupts come here. FB, BSU: maintenance
    /// and barriers reach all inner-shareable CPUs.
    pub(super) const VM: u64 = 1;
    pub(super) const SWIO: u64 = 1 << 1;
    pub(super) const FMO: u64 = 1 << 3;
    pub(super) const IMO: u64 = 1 << 4;
    pub(super) const AMO: u64 = 1 << 5;
    pub(super) const FB: u64 = 1 << 9;
    pub(super) const BSU_INNER: u64 = 1 << 10;
    /// Traps: WFI, the ID registers, SMC, implementation-defined registers, auxiliary control.
    pub(super) const TWI: u64 = 1 << 13;
    pub(super) const TID3: u64 = 1 << 18;
    pub(super) const TSC: u64 = 1 << 19;
    pub(super) const TIDCP: u64 = 1 << 20;
    pub(super) const TACR: u64 = 1 << 21;
    /// RW: EL1 is AArch64. E2H: VHE. TLOR, TERR: limited ordering regions, error records. TEA: external aborts come here.
    pub(super) const RW: u64 = 1 << 31;
    pub(super) const E2H: u64 = 1 << 34;
    pub(super) const TLOR: u64 = 1 << 35;
    pub(super) const TERR: u64 = 1 << 36;
    pub(super) const TEA: u64 = 1 << 37;
    /// APK, API: pointer authentication does not trap.
    pub(super) const APK: u64 = 1 << 40;
    pub(super) const API: u64 = 1 << 41;

    pub(super) const ALWAYS: u64 =
        VM | SWIO | FMO | IMO | AMO | FB | BSU_INNER | TID3 | TSC | TIDCP | TACR | RW | TLOR | TERR | TEA;
}

impl Facts {
    /// Asks the CPU.
    ///
    /// # Errors
    /// [`Unsupported`] names what is missing.
    pub fn read() -> Result<Self, Unsupported> {
        let processor = ID_CRM4_EL1::read(0);
        let debug = ID_CRM5_EL1::read(0);
        let memory = ID_CRM7_EL1::read(0);
        let features = ID_CRM6_EL1::read(1);
        if processor >> 24 & 0xf == 0 {
            return Err(Unsupported("the CPU has no system registers for the GIC: GICv3 is needed"));
        }
        if memory >> 28 & 0xf == 0xf {
            return Err(Unsupported("the CPU has no 4 KiB translation granule"));
        }
        let interface = ICH_VTR_EL2::read();
        let field = |value: u64, shift: u32| usize::try_from(value >> shift & 0xf).unwrap_or(0);
        Ok(Self {
            vhe: ID_CRM7_EL1::read(1) >> 8 & 0xf != 0,
            vector_bytes: 0,
            // APA, API, GPA, GPI; APA3 and GPA3 of ID_AA64ISAR2_EL1.
            pointer_keys: features & 0xff00_0ff0 != 0 || ID_CRM6_EL1::read(2) & 0xff00 != 0,
            deferred_errors: processor >> 28 & 0xf != 0,
            aarch32: processor & 0xf == 2,
            address_bits: match memory & 0xf {
                0 => 32,
                1 => 36,
                _ => MOST_ADDRESS_BITS,
            },
            breakpoints: field(debug, 12) + 1,
            watchpoints: field(debug, 20) + 1,
            list_registers: (interface & 0xf) as usize + 1,
            // PREbits: 5, 6 or 7 make 1, 2 or 4 registers (IHI 0069 12.4.9).
            active_priorities: match interface >> 26 & 7 {
                6 => 4,
                5 => 2,
                _ => 1,
            },
            traps_deactivation: interface >> 19 & 1 != 0,
        })
    }

    /// Whether the CPU has SVE.
    fn sve() -> bool {
        ID_CRM4_EL1::read(0) >> 32 & 0xf != 0
    }

    /// HCR_EL2 while a guest runs. `waits_trap`: its WFI comes back, because others want the CPU.
    #[must_use]
    pub fn hcr(&self, waits_trap: bool) -> u64 {
        let mut value = hcr::ALWAYS;
        if self.vhe {
            value |= hcr::E2H;
        }
        if self.pointer_keys {
            value |= hcr::APK | hcr::API;
        }
        if waits_trap {
            value |= hcr::TWI;
        }
        value
    }
}

/// Sets this CPU's controls; guests have nothing yet. Returns what the CPU can do.
///
/// # Errors
/// [`Unsupported`] names what is missing.
pub fn enable() -> Result<Facts, Unsupported> {
    let mut facts = Facts::read()?;
    let sve = Facts::sve();
    // SAFETY: no guest runs; from here on its floating point and SVE do not trap, trace, SME and activity monitors do.
    unsafe { CPTR_EL2::write(cptr(facts.vhe, sve)) };
    // SAFETY: all traps on, our own bits as `prepare` set them; the second stage maps nothing, as VTTBR_EL2 says below.
    unsafe { HCR_EL2::write(facts.hcr(true)) };
    // SAFETY: traps of performance monitors, profiling, trace and debug; the counters' number is kept.
    unsafe { MDCR_EL2::write(MDCR_TRAPS | event_counters()) };
    // SAFETY: no AArch32 system register traps beside those of HCR_EL2.
    unsafe { HSTR_EL2::write(0) };
    if ID_CRM7_EL1::read(1) >> 40 & 0xf != 0 {
        // SAFETY: extensions that this register switches on stay off.
        unsafe { HCRX_EL2::write(0) };
    }
    trap_finely();
    trap_partitioning();
    // SAFETY: guests use counters and timers of EL1.
    unsafe { CNTHCTL_EL2::write(if facts.vhe { 3 << 10 } else { 3 }) };
    // SAFETY: system registers for the GIC, at EL1 too, and no way for a guest to say otherwise: Enable is clear.
    unsafe { ICC_SRE_EL2::write(7) };
    isb();
    ICC_SRE_EL1::write(7);
    // SAFETY: the format of `Vmsa` and the size that guests' tables are made with.
    unsafe { VTCR_EL2::write(vtcr(facts.address_bits)) };
    // SAFETY: nobody is entered before `Space::load`.
    unsafe { VTTBR_EL2::write(0) };
    isb();
    if sve {
        // SAFETY: the longest vectors that the CPU has.
        unsafe { ZCR_EL2::write(0xf) };
        isb();
        facts.vector_bytes = vector_bytes();
    }
    forget_all_guests();
    dsb();
    Ok(facts)
}

/// Fine-grained traps (FEAT_FGT, FEAT_FGT2), UNKNOWN until they are written. All clear: what they could take from a guest beyond
/// the other controls is the guest's, and what later extensions let a guest reach (their bits are negative) is not.
fn trap_finely() {
    macro_rules! clear {
        ($($register:ident)*) => {
            $(
                // SAFETY: with all bits clear nothing is untrapped that another control traps.
                unsafe { $register::write(0) };
            )*
        };
    }
    let version = ID_CRM7_EL1::read(0) >> 56 & 0xf;
    if version >= 1 {
        clear!(HFGRTR_EL2 HFGWTR_EL2 HFGITR_EL2 HDFGRTR_EL2 HDFGWTR_EL2);
        let has_activity_monitors = ID_CRM4_EL1::read(0) >> 44 & 0xf != 0;
        if has_activity_monitors {
            clear!(HAFGRTR_EL2);
        }
    }
    if version >= 2 {
        clear!(HFGRTR2_EL2 HFGWTR2_EL2 HFGITR2_EL2 HDFGRTR2_EL2 HDFGWTR2_EL2);
    }
}

/// Memory partitioning (MPAM): guests neither see it nor choose a partition, and we are in partition 0.
fn trap_partitioning() {
    const TRAP_MPAM1: u64 = 1 << 48;
    const TRAP_MPAM0: u64 = 1 << 49;
    const TRAP_IDENTIFICATION: u64 = 1 << 31;
    const HAS_HCR: u64 = 1 << 17;
    if ID_CRM4_EL1::read(0) >> 40 & 0xf == 0 && ID_CRM4_EL1::read(1) >> 16 & 0xf == 0 {
        return;
    }
    // SAFETY: more traps, no more than before is allowed.
    unsafe { MPAM2_EL2::write(TRAP_MPAM0 | TRAP_MPAM1) };
    if MPAMIDR_EL1::read() & HAS_HCR != 0 {
        // SAFETY: as above.
        unsafe { MPAMHCR_EL2::write(TRAP_IDENTIFICATION) };
    }
}

/// How many event counters the CPU's performance monitor has (PMCR_EL0.N, for MDCR_EL2.HPMN); PMUVer 0 and 0xf: no PMUv3.
fn event_counters() -> u64 {
    match ID_CRM5_EL1::read(0) >> 8 & 0xf {
        0 | 0xf => 0,
        _ => PMCR_EL0::read() >> 11 & 0x1f,
    }
}

/// MDCR_EL2 (D24.3.17): TPM and TPMCR, TPMS, TTRF, and of debug TDA, TDOSA, TDRA. The buffers of profiling and trace stay EL2's
/// (E2PB, E2TB 0).
const MDCR_TRAPS: u64 = 1 << 6 | 1 << 5 | 1 << 14 | 1 << 19 | 1 << 9 | 1 << 10 | 1 << 11;

/// CPTR_EL2 (D24.2.32), whose layout depends on VHE.
const fn cptr(vhe: bool, sve: bool) -> u64 {
    if vhe {
        let sve_untrapped = if sve { 3 << 16 } else { 0 };
        return 3 << 20 | sve_untrapped | 1 << 28 | 1 << 30;
    }
    let sve_trapped = if sve { 0 } else { 1 << 8 };
    0x32ff | sve_trapped | 1 << 20 | 1 << 30
}

/// VTCR_EL2 (D24.2.196): size, first level, walks cached and inner shareable, 4 KiB, physical size; bit 31 is RES1.
const fn vtcr(bits: u32) -> u64 {
    let physical = match bits {
        0..=35 => 0,
        36..=39 => 1,
        _ => 2,
    };
    let first_level_is_1 = 1 << 6;
    (64 - bits as u64) | first_level_is_1 | 1 << 8 | 1 << 10 | 3 << 12 | physical << 16 | 1 << 31
}

/// A guest's second stage as the CPU's register wants it. Only a `Stage2` makes one, so whatever is loaded maps claims only.
#[derive(Clone, Copy)]
pub struct Space {
    vttbr: u64,
}

impl Space {
    /// The address space of VM number `vm`, whose translations are tagged with that number.
    #[must_use]
    pub fn new(space: &Stage2<Vmsa>, vm: usize) -> Self {
        // Tag 0 is for no guest.
        let tag = (vm as u64 + 1) & 0xff;
        Self { vttbr: space.root().0 | tag << 48 }
    }

    /// The guest that is entered next lives here. `waits_trap` as in [`Facts::hcr`].
    pub fn load(&self, facts: &Facts, waits_trap: bool) {
        // SAFETY: the controls of `enable`, with the one trap that is a matter of taste.
        unsafe { HCR_EL2::write(facts.hcr(waits_trap)) };
        super::set_vttbr(self.vttbr);
    }

    /// Forgets cached translations of this space on all CPUs.
    pub fn forget(&self) {
        let current = VTTBR_EL2::read();
        super::set_vttbr(self.vttbr);
        super::forget_guest_translations();
        super::set_vttbr(current);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forty_bits_are_walked_from_level_1() {
        assert_eq!(vtcr(40), 0x8002_3558);
        assert_eq!(vtcr(36) & 0x3f, 28);
    }

    #[test]
    fn fine_grained_traps_are_what_we_wrote_where_the_cpu_has_them() {
        // SAFETY: the fake's.
        unsafe { HFGRTR_EL2::write(u64::MAX) };
        // SAFETY: as above.
        unsafe { HFGRTR2_EL2::write(u64::MAX) };
        ID_CRM7_EL1::write(0, 0);
        trap_finely();
        assert_eq!((HFGRTR_EL2::read(), HFGRTR2_EL2::read()), (u64::MAX, u64::MAX));
        ID_CRM7_EL1::write(0, 1 << 56);
        trap_finely();
        assert_eq!((HFGRTR_EL2::read(), HFGRTR2_EL2::read()), (0, u64::MAX));
        ID_CRM7_EL1::write(0, 2 << 56);
        trap_finely();
        assert_eq!(HFGRTR2_EL2::read(), 0);
    }

    #[test]
    fn counters_are_counted_only_where_there_is_a_monitor() {
        PMCR_EL0::write(6 << 11);
        for (version, counters) in [(0, 0), (1, 6), (6, 6), (0xf, 0)] {
            ID_CRM5_EL1::write(0, version << 8);
            assert_eq!(event_counters(), counters, "PMUVer {version:#x}");
        }
    }

    #[test]
    fn floating_point_is_the_guests_and_trace_is_not() {
        assert_eq!(cptr(false, false), 0x4010_33ff);
        assert_eq!(cptr(false, true) & 1 << 8, 0);
        assert_eq!(cptr(true, true), 0x5033_0000);
    }
}
