//! What the speculation of Intel's CPUs could tell a guest of others, and what is done against it.
//!
//! Pure: made of what the CPU says of itself. What is here is only used at boot; the choices cost nothing on CPUs that need
//! none. AMD's CPUs need no more than the barrier between VMs and `hw::svm::enable`.
#![forbid(unsafe_code)]

/// What a CPU says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// Intel made it.
    pub is_intel: bool,
    /// CPUID leaf 1, EAX.
    pub signature: u32,
    /// CPUID leaf 7, EDX.
    pub structured: u32,
    /// IA32_ARCH_CAPABILITIES; 0 where it is missing.
    pub capabilities: u64,
    /// Each core has more than one thread.
    pub has_siblings: bool,
}

/// What is done on a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Remedies {
    /// The level-1 data cache is emptied when another VM gets the CPU (L1TF, CVE-2018-3646).
    pub flush_l1: bool,
    /// Internal buffers are overwritten before each entry of a guest (MDS, CVE-2018-12130; RFDS, CVE-2023-28746).
    pub clear_buffers: bool,
    /// IBRS stays set, whatever a guest writes: with it the CPU keeps guests' branch predictions from us (enhanced IBRS).
    pub keep_ibrs: bool,
}

/// IA32_SPEC_CTRL: IBRS.
const IBRS: u64 = 1;

impl Remedies {
    /// Bits of IA32_SPEC_CTRL that stay set while guests run.
    #[must_use]
    pub const fn kept_controls(&self) -> u64 {
        if self.keep_ibrs { IBRS } else { 0 }
    }
}

/// CPUID leaf 7, EDX: VERW clears buffers; IA32_FLUSH_CMD.
const MD_CLEAR: u32 = 1 << 10;
const L1D_FLUSH: u32 = 1 << 28;
/// IA32_ARCH_CAPABILITIES (SDM Vol. 4, table 2-2).
const RDCL_NO: u64 = 1;
const IBRS_ALL: u64 = 1 << 1;
const MDS_NO: u64 = 1 << 5;
const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
const RFDS_CLEAR: u64 = 1 << 28;

impl Facts {
    /// What has to be done.
    #[must_use]
    pub const fn remedies(&self) -> Remedies {
        if !self.is_intel {
            return Remedies { flush_l1: false, clear_buffers: false, keep_ibrs: false };
        }
        let needs_clearing = self.leaks_buffers() && self.structured & MD_CLEAR != 0;
        Remedies {
            flush_l1: self.leaks_l1() && self.structured & L1D_FLUSH != 0,
            clear_buffers: needs_clearing || self.has(RFDS_CLEAR),
            keep_ibrs: self.has(IBRS_ALL),
        }
    }

    /// What nothing is done about, one line each, with the mend.
    pub fn warnings(&self) -> impl Iterator<Item = &'static str> {
        let leaks = self.leaks_l1() || self.leaks_buffers();
        let has_microcode = self.structured & (MD_CLEAR | L1D_FLUSH) == MD_CLEAR | L1D_FLUSH;
        [
            (
                leaks && !has_microcode,
                "a guest may read what other VMs left in the CPU (L1TF, MDS), and the microcode cannot clear it: \
                 update the firmware",
            ),
            (
                leaks && self.has_siblings,
                "a guest may read what runs on the other thread of its core (L1TF, MDS): switch hyper-threading off in \
                 the firmware's set-up, or trust all VMs",
            ),
            (
                self.is_core() && !self.has(IF_PSCHANGE_MC_NO),
                "a guest may make the CPU report an error, which stops the machine (CVE-2018-12207): trust all VMs",
            ),
        ]
        .into_iter()
        .filter_map(|(is_so, warning)| is_so.then_some(warning))
    }

    const fn has(&self, capability: u64) -> bool {
        self.capabilities & capability != 0
    }

    const fn leaks_l1(&self) -> bool {
        self.is_core() && !self.has(RDCL_NO)
    }

    const fn leaks_buffers(&self) -> bool {
        self.is_core() && !self.has(MDS_NO)
    }

    /// A CPU of the Core family: Atoms have none of these flaws.
    const fn is_core(&self) -> bool {
        const ATOMS: [u32; 16] =
            [0x1c, 0x26, 0x27, 0x35, 0x36, 0x37, 0x4a, 0x4c, 0x4d, 0x5a, 0x5c, 0x5d, 0x5f, 0x75, 0x7a, 0x86];
        let family = self.signature >> 8 & 0xf;
        let model = self.signature >> 4 & 0xf | self.signature >> 12 & 0xf0;
        let mut next = 0;
        while next < ATOMS.len() {
            if ATOMS[next] == model {
                return false;
            }
            next += 1;
        }
        self.is_intel && family == 6
    }
}

/// Whether two of these APICs' numbers are of threads of one core: they differ in the lowest `thread_bits` only.
#[must_use]
pub fn share_cores(apic_ids: &[u32], thread_bits: u32) -> bool {
    let core = |id: &u32| id.checked_shr(thread_bits).unwrap_or(0);
    let mut others = apic_ids;
    while let [first, rest @ ..] = others {
        if rest.iter().any(|other| core(other) == core(first)) {
            return true;
        }
        others = rest;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// With the microcode of 2019.
    const SKYLAKE: Facts = Facts {
        is_intel: true,
        signature: 0x0005_0654,
        structured: MD_CLEAR | L1D_FLUSH,
        capabilities: 0,
        has_siblings: true,
    };
    const SAPPHIRE_RAPIDS: Facts = Facts {
        is_intel: true,
        signature: 0x0008_06f8,
        structured: MD_CLEAR | L1D_FLUSH,
        capabilities: RDCL_NO | IBRS_ALL | MDS_NO | IF_PSCHANGE_MC_NO,
        has_siblings: true,
    };

    #[test]
    fn an_older_cpu_clears_what_a_newer_one_keeps_apart() {
        let older = Remedies { flush_l1: true, clear_buffers: true, keep_ibrs: false };
        assert_eq!(SKYLAKE.remedies(), older);
        let newer = Remedies { flush_l1: false, clear_buffers: false, keep_ibrs: true };
        assert_eq!(SAPPHIRE_RAPIDS.remedies(), newer);
        let atom = Facts { signature: 0x0005_06f1, capabilities: 0, ..SKYLAKE };
        assert_eq!(atom.remedies(), Remedies::default());
        let gracemont =
            Facts { signature: 0x000b_06e0, capabilities: MDS_NO | RDCL_NO | RFDS_CLEAR, ..SKYLAKE };
        assert!(gracemont.remedies().clear_buffers);
    }

    #[test]
    fn threads_of_a_core_are_found_by_their_numbers() {
        assert!(share_cores(&[0, 2, 3], 1));
        assert!(!share_cores(&[0, 2, 4], 1), "one thread of each");
        assert!(!share_cores(&[0, 1, 2], 0));
    }

    #[test]
    fn what_is_not_mended_is_said_with_the_mend() {
        assert_eq!(SAPPHIRE_RAPIDS.warnings().count(), 0);
        assert_eq!(Facts::default().warnings().count(), 0, "another maker's");
        let said: Vec<_> = SKYLAKE.warnings().collect();
        assert!(
            matches!(said[..], [threads, error] if threads.contains("hyper-threading") && error.contains("12207"))
        );
        let old = Facts { structured: 0, has_siblings: false, ..SKYLAKE };
        assert!(old.warnings().next().unwrap().contains("update the firmware"));
        assert_eq!(old.remedies(), Remedies::default(), "the CPU cannot");
    }
}
