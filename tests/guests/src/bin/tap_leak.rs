//! Nothing that one VM writes into a CPU's registers is read by another VM on the same CPU, and each finds its own again.
//!
//! It runs in two VMs that share one CPU, with `mark=1` and `mark=2` on the command line: each fills every register that it
//! can reach with its pattern, of which no bit is the other's, and looks for a while whether all stay as they are.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "system registers by the hundred")]

use core::arch::asm;

use bulkhead_test_guests::tap::Tap;
use bulkhead_test_guests::timer;
use bulkhead_test_guests::{exception, machine, println, registers};

bulkhead_test_guests::program!(main);

/// How often the other VM has to have had the CPU, and for how long it is waited for.
const TURNS_OF_THE_OTHER: u32 = 6;
const PATIENCE_US: u64 = 20_000_000;
/// A gap in the counter that only another VM's turn makes.
const TURN_US: u64 = 1_000;
/// Bits that would do something beyond being kept: timers and breakpoints stay off, nothing is stepped.
const ALL: u64 = u64::MAX;
const NOT_ENABLED: u64 = ALL - 1;

struct Register {
    name: &'static str,
    write: fn(u64),
    read: fn() -> u64,
    /// The bits that are filled.
    mask: u64,
    /// What it held when the pattern had been written; `None`: it is not there.
    kept: Option<u64>,
}

/// `NAME write_encoding read_encoding mask`: what is written by one name may be read by another.
macro_rules! registers {
    ($($name:literal $write:literal $read:literal $mask:expr;)*) => {
        [$(Register {
            name: $name,
            write: |value| {
                // SAFETY: none of these registers moves this program's memory, code or stack.
                unsafe { asm!(concat!("msr ", $write, ", {}"), "isb", in(reg) value, options(nostack)) };
            },
            read: || {
                let mut value = 0u64;
                // SAFETY: reads a register.
                unsafe { asm!(concat!("mrs {}, ", $read), inout(reg) value, options(nostack)) };
                value
            },
            mask: $mask,
            kept: None,
        },)*]
    };
}

fn main() {
    let mut tap = Tap::start("tap-leak");
    // FP and SVE open, SME closed.
    registers::cpacr_el1::write(0xf << 18 & !(3 << 18) | 3 << 16);
    let mark = machine::argument("mark").unwrap_or("1");
    let pattern = if mark == "1" { 0x5555_5555_5555_5555 } else { 0xaaaa_aaaa_aaaa_aaaa };
    let mut all = registers! {
        "TPIDR_EL0" "tpidr_el0" "tpidr_el0" ALL;
        "TPIDRRO_EL0" "tpidrro_el0" "tpidrro_el0" ALL;
        "TPIDR2_EL0" "s3_3_c13_c0_5" "s3_3_c13_c0_5" ALL;
        "SCXTNUM_EL0" "s3_3_c13_c0_7" "s3_3_c13_c0_7" ALL;
        "SCXTNUM_EL1" "s3_0_c13_c0_7" "s3_0_c13_c0_7" ALL;
        "CONTEXTIDR_EL1" "contextidr_el1" "contextidr_el1" ALL;
        "SP_EL0" "sp_el0" "sp_el0" ALL;
        "ELR_EL1" "elr_el1" "elr_el1" ALL;
        "SPSR_EL1" "spsr_el1" "spsr_el1" ALL;
        "ESR_EL1" "esr_el1" "esr_el1" ALL;
        "FAR_EL1" "far_el1" "far_el1" ALL;
        "AFSR0_EL1" "afsr0_el1" "afsr0_el1" ALL;
        "AFSR1_EL1" "afsr1_el1" "afsr1_el1" ALL;
        "AMAIR_EL1" "amair_el1" "amair_el1" ALL;
        "TTBR1_EL1" "ttbr1_el1" "ttbr1_el1" ALL;
        "ACTLR_EL1" "actlr_el1" "actlr_el1" ALL;
        "CSSELR_EL1" "csselr_el1" "csselr_el1" 0xf;
        "PAR_EL1" "par_el1" "par_el1" ALL;
        "CNTKCTL_EL1" "cntkctl_el1" "cntkctl_el1" ALL;
        "CNTP_CVAL_EL0" "cntp_cval_el0" "cntp_cval_el0" ALL;
        "CNTV_CVAL_EL0" "cntv_cval_el0" "cntv_cval_el0" ALL;
        "CNTP_CTL_EL0" "cntp_ctl_el0" "cntp_ctl_el0" 2;
        "CNTV_CTL_EL0" "cntv_ctl_el0" "cntv_ctl_el0" 2;
        "FPCR" "s3_3_c4_c4_0" "s3_3_c4_c4_0" ALL;
        "FPSR" "s3_3_c4_c4_1" "s3_3_c4_c4_1" ALL;
        "FPMR" "s3_3_c4_c4_2" "s3_3_c4_c4_2" ALL;
        "ZCR_EL1" "s3_0_c1_c2_0" "s3_0_c1_c2_0" 0xf;
        "SMCR_EL1" "s3_0_c1_c2_6" "s3_0_c1_c2_6" ALL;
        "SMPRI_EL1" "s3_0_c1_c2_4" "s3_0_c1_c2_4" ALL;
        "APIAKeyLo_EL1" "s3_0_c2_c1_0" "s3_0_c2_c1_0" ALL;
        "APIAKeyHi_EL1" "s3_0_c2_c1_1" "s3_0_c2_c1_1" ALL;
        "APIBKeyLo_EL1" "s3_0_c2_c1_2" "s3_0_c2_c1_2" ALL;
        "APIBKeyHi_EL1" "s3_0_c2_c1_3" "s3_0_c2_c1_3" ALL;
        "APDAKeyLo_EL1" "s3_0_c2_c2_0" "s3_0_c2_c2_0" ALL;
        "APDAKeyHi_EL1" "s3_0_c2_c2_1" "s3_0_c2_c2_1" ALL;
        "APDBKeyLo_EL1" "s3_0_c2_c2_2" "s3_0_c2_c2_2" ALL;
        "APDBKeyHi_EL1" "s3_0_c2_c2_3" "s3_0_c2_c2_3" ALL;
        "APGAKeyLo_EL1" "s3_0_c2_c3_0" "s3_0_c2_c3_0" ALL;
        "APGAKeyHi_EL1" "s3_0_c2_c3_1" "s3_0_c2_c3_1" ALL;
        "RGSR_EL1" "s3_0_c1_c0_5" "s3_0_c1_c0_5" ALL;
        "GCR_EL1" "s3_0_c1_c0_6" "s3_0_c1_c0_6" ALL;
        "TFSR_EL1" "s3_0_c5_c6_0" "s3_0_c5_c6_0" ALL;
        "TFSRE0_EL1" "s3_0_c5_c6_1" "s3_0_c5_c6_1" ALL;
        "SCTLR2_EL1" "s3_0_c1_c0_3" "s3_0_c1_c0_3" ALL;
        "TCR2_EL1" "s3_0_c2_c0_3" "s3_0_c2_c0_3" ALL;
        "MAIR2_EL1" "s3_0_c10_c2_1" "s3_0_c10_c2_1" ALL;
        "AMAIR2_EL1" "s3_0_c10_c3_1" "s3_0_c10_c3_1" ALL;
        "PIRE0_EL1" "s3_0_c10_c2_2" "s3_0_c10_c2_2" ALL;
        "PIR_EL1" "s3_0_c10_c2_3" "s3_0_c10_c2_3" ALL;
        "POR_EL1" "s3_0_c10_c2_4" "s3_0_c10_c2_4" ALL;
        "POR_EL0" "s3_3_c10_c2_4" "s3_3_c10_c2_4" ALL;
        "S2POR_EL1" "s3_0_c10_c2_5" "s3_0_c10_c2_5" ALL;
        "RCWMASK_EL1" "s3_0_c13_c0_6" "s3_0_c13_c0_6" ALL;
        "RCWSMASK_EL1" "s3_0_c13_c0_3" "s3_0_c13_c0_3" ALL;
        "ACCDATA_EL1" "s3_0_c13_c0_5" "s3_0_c13_c0_5" ALL;
        "GCSPR_EL1" "s3_0_c2_c5_1" "s3_0_c2_c5_1" ALL;
        "GCSPR_EL0" "s3_3_c2_c5_1" "s3_3_c2_c5_1" ALL;
        "LORSA_EL1" "s3_0_c10_c4_0" "s3_0_c10_c4_0" NOT_ENABLED;
        "LOREA_EL1" "s3_0_c10_c4_1" "s3_0_c10_c4_1" ALL;
        "LORN_EL1" "s3_0_c10_c4_2" "s3_0_c10_c4_2" ALL;
        "MPAM1_EL1" "s3_0_c10_c5_0" "s3_0_c10_c5_0" NOT_ENABLED;
        "MPAM0_EL1" "s3_0_c10_c5_1" "s3_0_c10_c5_1" ALL;
        "DISR_EL1" "s3_0_c12_c1_1" "s3_0_c12_c1_1" ALL;
        "ERRSELR_EL1" "s3_0_c5_c3_1" "s3_0_c5_c3_1" ALL;
        "PMSELR_EL0" "pmselr_el0" "pmselr_el0" ALL;
        "PMUSERENR_EL0" "pmuserenr_el0" "pmuserenr_el0" ALL;
        "PMCCNTR_EL0" "pmccntr_el0" "pmccntr_el0" ALL;
        "PMCCFILTR_EL0" "pmccfiltr_el0" "pmccfiltr_el0" ALL;
        "PMEVCNTR0_EL0" "pmevcntr0_el0" "pmevcntr0_el0" ALL;
        "PMEVTYPER0_EL0" "pmevtyper0_el0" "pmevtyper0_el0" ALL;
        "PMOVSSET_EL0" "pmovsset_el0" "pmovsclr_el0" ALL;
        "PMCNTENSET_EL0" "pmcntenset_el0" "pmcntenclr_el0" ALL;
        "PMINTENSET_EL1" "pmintenset_el1" "pmintenclr_el1" ALL;
        "AMUSERENR_EL0" "s3_3_c13_c2_3" "s3_3_c13_c2_3" ALL;
        "PMSIRR_EL1" "s3_0_c9_c9_3" "s3_0_c9_c9_3" ALL;
        "PMBPTR_EL1" "s3_0_c9_c10_1" "s3_0_c9_c10_1" ALL;
        "TRBPTR_EL1" "s3_0_c9_c11_1" "s3_0_c9_c11_1" ALL;
        "TRFCR_EL1" "s3_0_c1_c2_1" "s3_0_c1_c2_1" ALL;
        "BRBTS_EL1" "s2_1_c9_c0_2" "s2_1_c9_c0_2" ALL;
        "ICC_PMR_EL1" "s3_0_c4_c6_0" "s3_0_c4_c6_0" 0xff;
        "ICC_BPR0_EL1" "s3_0_c12_c8_3" "s3_0_c12_c8_3" 7;
        "ICC_BPR1_EL1" "s3_0_c12_c12_3" "s3_0_c12_c12_3" 7;
        "ICC_CTLR_EL1" "s3_0_c12_c12_4" "s3_0_c12_c12_4" 3;
        "ICC_IGRPEN0_EL1" "s3_0_c12_c12_6" "s3_0_c12_c12_6" 1;
        "ICC_IGRPEN1_EL1" "s3_0_c12_c12_7" "s3_0_c12_c12_7" 1;
        "ICC_SRE_EL1" "s3_0_c12_c12_5" "s3_0_c12_c12_5" 7;
        "ICC_AP0R0_EL1" "s3_0_c12_c8_4" "s3_0_c12_c8_4" ALL;
        "ICC_AP1R0_EL1" "s3_0_c12_c9_0" "s3_0_c12_c9_0" ALL;
        // TDCC alone: the others switch debugging on.
        "MDSCR_EL1" "mdscr_el1" "mdscr_el1" 1 << 12;
        "OSLAR_EL1" "oslar_el1" "oslsr_el1" 1;
        "OSDLR_EL1" "s2_0_c1_c3_4" "s2_0_c1_c3_4" 1;
        "OSECCR_EL1" "s2_0_c0_c6_2" "s2_0_c0_c6_2" ALL;
        "DBGPRCR_EL1" "s2_0_c1_c4_4" "s2_0_c1_c4_4" 1;
        "DBGCLAIMSET_EL1" "s2_0_c7_c8_6" "s2_0_c7_c9_6" 0xff;
        "MDCCINT_EL1" "s2_0_c0_c2_0" "s2_0_c0_c2_0" ALL;
        "DBGDTR_EL0" "s2_3_c0_c4_0" "s2_3_c0_c4_0" ALL;
        "DBGDTRTX_EL0" "s2_3_c0_c5_0" "s2_0_c0_c3_2" ALL;
        "OSDTRRX_EL1" "s2_0_c0_c0_2" "s2_0_c0_c0_2" ALL;
        "OSDTRTX_EL1" "s2_0_c0_c3_2" "s2_0_c0_c3_2" ALL;
        "MDSELR_EL1" "s2_0_c0_c4_2" "s2_0_c0_c4_2" ALL;
        "DBGBVR0_EL1" "dbgbvr0_el1" "dbgbvr0_el1" ALL;
        "DBGBCR0_EL1" "dbgbcr0_el1" "dbgbcr0_el1" NOT_ENABLED;
        "DBGBVR1_EL1" "dbgbvr1_el1" "dbgbvr1_el1" ALL;
        "DBGBCR1_EL1" "dbgbcr1_el1" "dbgbcr1_el1" NOT_ENABLED;
        "DBGBVR5_EL1" "dbgbvr5_el1" "dbgbvr5_el1" ALL;
        "DBGBCR5_EL1" "dbgbcr5_el1" "dbgbcr5_el1" NOT_ENABLED;
        "DBGBVR15_EL1" "dbgbvr15_el1" "dbgbvr15_el1" ALL;
        "DBGWVR0_EL1" "dbgwvr0_el1" "dbgwvr0_el1" ALL;
        "DBGWCR0_EL1" "dbgwcr0_el1" "dbgwcr0_el1" NOT_ENABLED;
        "DBGWVR3_EL1" "dbgwvr3_el1" "dbgwvr3_el1" ALL;
        "DBGWCR3_EL1" "dbgwcr3_el1" "dbgwcr3_el1" NOT_ENABLED;
        "DBGWVR15_EL1" "dbgwvr15_el1" "dbgwvr15_el1" ALL;
    };
    fill(&mut all, pattern);
    let there = all.iter().filter(|register| register.kept.is_some()).count();
    println!("# {there} of {} registers are there", all.len());
    tap.check("the registers of every Arm are there", there > 40);
    let turns = watch(&mut tap, &mut all);
    for register in &all {
        tap.check(register.name, register.kept.is_none_or(|kept| kept == (register.read)()));
    }
    if machine::is_hypervised() {
        tap.check("another VM had this CPU again and again", turns >= TURNS_OF_THE_OTHER);
    } else {
        tap.skip("another VM had this CPU again and again", "native");
    }
    tap.finish();
}

/// Writes the pattern everywhere, notes what of it is kept, and what does not exist.
fn fill(all: &mut [Register], pattern: u64) {
    for register in &mut *all {
        let mut fault = exception::catch(|| (register.write)(pattern & register.mask));
        fault = fault.or(exception::catch(|| _ = (register.read)()));
        if fault.is_none() {
            register.kept = Some(0);
        }
    }
    // Once more: a fault changed those that tell of faults. Read when all is written: some share what they hold.
    for register in all.iter().filter(|register| register.kept.is_some()) {
        (register.write)(pattern & register.mask);
    }
    for register in all.iter_mut().filter(|register| register.kept.is_some()) {
        register.kept = Some((register.read)());
    }
}

/// Looks at all registers until the other VM has had the CPU often enough; how often it had.
fn watch(tap: &mut Tap, all: &mut [Register]) -> u32 {
    let begun = timer::now();
    let mut before = begun;
    let mut turns = 0;
    while turns < TURNS_OF_THE_OTHER && timer::now() - begun < timer::ticks(PATIENCE_US) {
        let now = timer::now();
        turns += u32::from(now - before > timer::ticks(TURN_US));
        before = now;
        for register in all.iter() {
            if let Some(kept) = register.kept {
                let found = (register.read)();
                if found != kept {
                    tap.equal(register.name, found, kept);
                    return turns;
                }
            }
        }
    }
    turns
}
