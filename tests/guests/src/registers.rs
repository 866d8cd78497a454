//! System registers that a program may read and write without harm to itself.
//!
//! Each is a module with `read`, `write` or both, named as in the Arm ARM. Registers that move the program's own
//! ground (translation, vectors, stack) are not here.
#![expect(unsafe_code, reason = "system registers")]

use core::arch::asm;

macro_rules! read {
    ($encoding:literal) => {
        /// Its value; 0 if the read was caught as UNDEFINED.
        #[must_use]
        pub fn read() -> u64 {
            let mut value: u64 = 0;
            // SAFETY: reads a register; no memory changes. Side effects are what the caller wants.
            unsafe { asm!(concat!("mrs {v}, ", $encoding), v = inout(reg) value, options(nostack)) };
            value
        }
    };
}

macro_rules! write {
    ($encoding:literal) => {
        /// Writes it and waits until the write took effect.
        pub fn write(value: u64) {
            // SAFETY: the module lists only registers that leave the program's memory alone.
            unsafe { asm!(concat!("msr ", $encoding, ", {v}"), "isb", v = in(reg) value, options(nostack)) };
        }
    };
}

macro_rules! registers {
    ($($kind:ident $name:ident = $encoding:literal;)*) => { $(
        #[doc = concat!("`", $encoding, "`")]
        pub mod $name {
            use super::asm;
            registers!(@$kind $encoding);
        }
    )* };
    (@ro $encoding:literal) => { read!($encoding); };
    (@wo $encoding:literal) => { write!($encoding); };
    (@rw $encoding:literal) => { read!($encoding); write!($encoding); };
}

registers! {
    ro cntfrq_el0 = "cntfrq_el0";
    ro cntvct_el0 = "cntvct_el0";
    ro cntpct_el0 = "cntpct_el0";
    rw cntv_ctl_el0 = "cntv_ctl_el0";
    rw cntv_cval_el0 = "cntv_cval_el0";
    rw cntv_tval_el0 = "cntv_tval_el0";
    rw cntp_ctl_el0 = "cntp_ctl_el0";
    rw cntp_cval_el0 = "cntp_cval_el0";
    rw cntp_tval_el0 = "cntp_tval_el0";
    rw cntkctl_el1 = "cntkctl_el1";
    rw tpidr_el0 = "tpidr_el0";
    ro tpidr_el1 = "tpidr_el1";
    ro mpidr_el1 = "mpidr_el1";
    ro midr_el1 = "midr_el1";
    ro isr_el1 = "isr_el1";
    ro sctlr_el1 = "sctlr_el1";
    ro current_el = "CurrentEL";
    ro daif = "daif";
    rw cpacr_el1 = "cpacr_el1";
    rw zcr_el1 = "s3_0_c1_c2_0";
    rw csselr_el1 = "csselr_el1";
    ro ccsidr_el1 = "ccsidr_el1";
    ro clidr_el1 = "clidr_el1";
    rw contextidr_el1 = "contextidr_el1";
    rw far_el1 = "far_el1";
    rw afsr0_el1 = "afsr0_el1";
    rw actlr_el1 = "actlr_el1";
    rw amair_el1 = "amair_el1";
    rw mdscr_el1 = "mdscr_el1";
    rw dbgbvr0_el1 = "dbgbvr0_el1";
    wo oslar_el1 = "oslar_el1";
    ro oslsr_el1 = "oslsr_el1";
    ro id_aa64pfr0_el1 = "id_aa64pfr0_el1";
    ro id_aa64pfr1_el1 = "id_aa64pfr1_el1";
    ro id_aa64dfr0_el1 = "id_aa64dfr0_el1";
    ro id_aa64mmfr0_el1 = "id_aa64mmfr0_el1";
    ro pmcr_el0 = "pmcr_el0";
    ro pmccntr_el0 = "pmccntr_el0";
    ro erridr_el1 = "s3_0_c5_c3_0";
    ro mpamidr_el1 = "s3_0_c10_c4_4";
    ro rgsr_el1 = "s3_0_c1_c0_5";
    ro smcr_el1 = "s3_0_c1_c2_6";
    ro hcr_el2 = "s3_4_c1_c1_0";
    ro scr_el3 = "s3_6_c1_c1_0";
    ro icc_sre_el2 = "s3_4_c12_c9_5";
    ro icc_iar1_el1 = "s3_0_c12_c12_0";
    ro icc_hppir1_el1 = "s3_0_c12_c12_2";
    wo icc_eoir1_el1 = "s3_0_c12_c12_1";
    wo icc_dir_el1 = "s3_0_c12_c11_1";
    wo icc_sgi1r_el1 = "s3_0_c12_c11_5";
    ro icc_rpr_el1 = "s3_0_c12_c11_3";
    rw icc_pmr_el1 = "s3_0_c4_c6_0";
    rw icc_bpr1_el1 = "s3_0_c12_c12_3";
    rw icc_ctlr_el1 = "s3_0_c12_c12_4";
    rw icc_sre_el1 = "s3_0_c12_c12_5";
    rw icc_igrpen1_el1 = "s3_0_c12_c12_7";
    rw icc_igrpen0_el1 = "s3_0_c12_c12_6";
    rw icc_ap0r0_el1 = "s3_0_c12_c8_4";
    rw icc_ap1r0_el1 = "s3_0_c12_c9_0";
}
