//! The system registers that Bulkhead uses, each named once (Arm ARM D24.2; GICv3: IHI 0069 12).
//!
//! [`for_each_register`] hands the lists to whoever makes types of them: `metal` of real accesses, `fake` of scripted ones.

/// Calls `$declare!` with four lists.
///
/// * `guest`: state of a guest or of its timers, and what is only read: a wrong value harms that guest alone.
/// * `host`: what keeps guests apart; writing is unsafe.
/// * `banked`: EL1 registers that EL2 reaches under another name when it runs with VHE (`_EL12`, `_EL02`).
/// * `listed`: families of registers with a number.
macro_rules! for_each_register {
    ($declare:ident) => {
        $declare! {
            guest {
                CNTFRQ_EL0 = "S3_3_C14_C0_0", CNTPCT_EL0 = "S3_3_C14_C0_1",
                CNTHP_CTL_EL2 = "S3_4_C14_C2_1", CNTHP_CVAL_EL2 = "S3_4_C14_C2_2", CNTVOFF_EL2 = "S3_4_C14_C0_3",
                CURRENT_EL = "S3_0_C4_C2_2", CSSELR_EL1 = "S3_2_C0_C0_0", CTR_EL0 = "S3_3_C0_C0_1",
                ELR_EL2 = "S3_4_C4_C0_1", ESR_EL2 = "S3_4_C5_C2_0", FAR_EL2 = "S3_4_C6_C0_0", HPFAR_EL2 = "S3_4_C6_C0_4",
                FPCR = "S3_3_C4_C4_0", FPSR = "S3_3_C4_C4_1",
                MDSCR_EL1 = "S2_0_C0_C2_2", OSLAR_EL1 = "S2_0_C1_C0_4", OSLSR_EL1 = "S2_0_C1_C1_4",
                MIDR_EL1 = "S3_0_C0_C0_0", MPAMIDR_EL1 = "S3_0_C10_C4_4", MPIDR_EL1 = "S3_0_C0_C0_5", PAR_EL1 = "S3_0_C7_C4_0", PMCR_EL0 = "S3_3_C9_C12_0",
                SP_EL0 = "S3_0_C4_C1_0", SP_EL1 = "S3_4_C4_C1_0",
                TPIDR_EL0 = "S3_3_C13_C0_2", TPIDRRO_EL0 = "S3_3_C13_C0_3", TPIDR_EL1 = "S3_0_C13_C0_4",
                VDISR_EL2 = "S3_4_C12_C1_1", VMPIDR_EL2 = "S3_4_C0_C0_5", VPIDR_EL2 = "S3_4_C0_C0_0",
                ICC_BPR1_EL1 = "S3_0_C12_C12_3", ICC_CTLR_EL1 = "S3_0_C12_C12_4", ICC_DIR_EL1 = "S3_0_C12_C11_1",
                ICC_EOIR1_EL1 = "S3_0_C12_C12_1", ICC_IAR1_EL1 = "S3_0_C12_C12_0", ICC_IGRPEN1_EL1 = "S3_0_C12_C12_7",
                ICC_PMR_EL1 = "S3_0_C4_C6_0", ICC_SGI1R_EL1 = "S3_0_C12_C11_5", ICC_SRE_EL1 = "S3_0_C12_C12_5",
                ICH_ELRSR_EL2 = "S3_4_C12_C11_5", ICH_HCR_EL2 = "S3_4_C12_C11_0", ICH_VMCR_EL2 = "S3_4_C12_C11_7",
                ICH_VTR_EL2 = "S3_4_C12_C11_1",
                APIAKEYLO_EL1 = "S3_0_C2_C1_0", APIAKEYHI_EL1 = "S3_0_C2_C1_1",
                APIBKEYLO_EL1 = "S3_0_C2_C1_2", APIBKEYHI_EL1 = "S3_0_C2_C1_3",
                APDAKEYLO_EL1 = "S3_0_C2_C2_0", APDAKEYHI_EL1 = "S3_0_C2_C2_1",
                APDBKEYLO_EL1 = "S3_0_C2_C2_2", APDBKEYHI_EL1 = "S3_0_C2_C2_3",
                APGAKEYLO_EL1 = "S3_0_C2_C3_0", APGAKEYHI_EL1 = "S3_0_C2_C3_1",
            }
            host {
                HFGRTR_EL2 = "S3_4_C1_C1_4", HFGWTR_EL2 = "S3_4_C1_C1_5", HFGITR_EL2 = "S3_4_C1_C1_6",
                HDFGRTR_EL2 = "S3_4_C3_C1_4", HDFGWTR_EL2 = "S3_4_C3_C1_5", HAFGRTR_EL2 = "S3_4_C3_C1_6",
                HFGRTR2_EL2 = "S3_4_C3_C1_2", HFGWTR2_EL2 = "S3_4_C3_C1_3", HFGITR2_EL2 = "S3_4_C3_C1_7",
                HDFGRTR2_EL2 = "S3_4_C3_C1_0", HDFGWTR2_EL2 = "S3_4_C3_C1_1",
                MPAM2_EL2 = "S3_4_C10_C5_0", MPAMHCR_EL2 = "S3_4_C10_C4_0",
                CNTHCTL_EL2 = "S3_4_C14_C1_0", CPTR_EL2 = "S3_4_C1_C1_2", HCR_EL2 = "S3_4_C1_C1_0", HCRX_EL2 = "S3_4_C1_C2_2",
                HSTR_EL2 = "S3_4_C1_C1_3", ICC_SRE_EL2 = "S3_4_C12_C9_5", MDCR_EL2 = "S3_4_C1_C1_1", TPIDR_EL2 = "S3_4_C13_C0_2",
                SPSR_EL2 = "S3_4_C4_C0_0", VTCR_EL2 = "S3_4_C2_C1_2", VTTBR_EL2 = "S3_4_C2_C1_0", ZCR_EL2 = "S3_4_C1_C2_0",
            }
            banked {
                AFSR0_EL1 = "S3_0_C5_C1_0" or "S3_5_C5_C1_0", AFSR1_EL1 = "S3_0_C5_C1_1" or "S3_5_C5_C1_1",
                AMAIR_EL1 = "S3_0_C10_C3_0" or "S3_5_C10_C3_0", CNTKCTL_EL1 = "S3_0_C14_C1_0" or "S3_5_C14_C1_0",
                CONTEXTIDR_EL1 = "S3_0_C13_C0_1" or "S3_5_C13_C0_1", CPACR_EL1 = "S3_0_C1_C0_2" or "S3_5_C1_C0_2",
                ELR_EL1 = "S3_0_C4_C0_1" or "S3_5_C4_C0_1", ESR_EL1 = "S3_0_C5_C2_0" or "S3_5_C5_C2_0",
                FAR_EL1 = "S3_0_C6_C0_0" or "S3_5_C6_C0_0", MAIR_EL1 = "S3_0_C10_C2_0" or "S3_5_C10_C2_0",
                SCTLR_EL1 = "S3_0_C1_C0_0" or "S3_5_C1_C0_0", SPSR_EL1 = "S3_0_C4_C0_0" or "S3_5_C4_C0_0",
                TCR_EL1 = "S3_0_C2_C0_2" or "S3_5_C2_C0_2", TTBR0_EL1 = "S3_0_C2_C0_0" or "S3_5_C2_C0_0",
                TTBR1_EL1 = "S3_0_C2_C0_1" or "S3_5_C2_C0_1", VBAR_EL1 = "S3_0_C12_C0_0" or "S3_5_C12_C0_0",
                ZCR_EL1 = "S3_0_C1_C2_0" or "S3_5_C1_C2_0",
                CNTP_CTL_EL0 = "S3_3_C14_C2_1" or "S3_5_C14_C2_1", CNTP_CVAL_EL0 = "S3_3_C14_C2_2" or "S3_5_C14_C2_2",
                CNTV_CTL_EL0 = "S3_3_C14_C3_1" or "S3_5_C14_C3_1", CNTV_CVAL_EL0 = "S3_3_C14_C3_2" or "S3_5_C14_C3_2",
            }
            listed {
                ICH_LR_EL2 = [
                    0 "S3_4_C12_C12_0", 1 "S3_4_C12_C12_1", 2 "S3_4_C12_C12_2", 3 "S3_4_C12_C12_3", 4 "S3_4_C12_C12_4",
                    5 "S3_4_C12_C12_5", 6 "S3_4_C12_C12_6", 7 "S3_4_C12_C12_7", 8 "S3_4_C12_C13_0", 9 "S3_4_C12_C13_1",
                    10 "S3_4_C12_C13_2", 11 "S3_4_C12_C13_3", 12 "S3_4_C12_C13_4", 13 "S3_4_C12_C13_5", 14 "S3_4_C12_C13_6",
                    15 "S3_4_C12_C13_7"
                ],
                ICH_AP0R_EL2 = [0 "S3_4_C12_C8_0", 1 "S3_4_C12_C8_1", 2 "S3_4_C12_C8_2", 3 "S3_4_C12_C8_3"],
                ICH_AP1R_EL2 = [0 "S3_4_C12_C9_0", 1 "S3_4_C12_C9_1", 2 "S3_4_C12_C9_2", 3 "S3_4_C12_C9_3"],
                DBGBVR_EL1 = [
                    0 "S2_0_C0_C0_4", 1 "S2_0_C0_C1_4", 2 "S2_0_C0_C2_4", 3 "S2_0_C0_C3_4", 4 "S2_0_C0_C4_4", 5 "S2_0_C0_C5_4",
                    6 "S2_0_C0_C6_4", 7 "S2_0_C0_C7_4", 8 "S2_0_C0_C8_4", 9 "S2_0_C0_C9_4", 10 "S2_0_C0_C10_4",
                    11 "S2_0_C0_C11_4", 12 "S2_0_C0_C12_4", 13 "S2_0_C0_C13_4", 14 "S2_0_C0_C14_4", 15 "S2_0_C0_C15_4"
                ],
                DBGBCR_EL1 = [
                    0 "S2_0_C0_C0_5", 1 "S2_0_C0_C1_5", 2 "S2_0_C0_C2_5", 3 "S2_0_C0_C3_5", 4 "S2_0_C0_C4_5", 5 "S2_0_C0_C5_5",
                    6 "S2_0_C0_C6_5", 7 "S2_0_C0_C7_5", 8 "S2_0_C0_C8_5", 9 "S2_0_C0_C9_5", 10 "S2_0_C0_C10_5",
                    11 "S2_0_C0_C11_5", 12 "S2_0_C0_C12_5", 13 "S2_0_C0_C13_5", 14 "S2_0_C0_C14_5", 15 "S2_0_C0_C15_5"
                ],
                DBGWVR_EL1 = [
                    0 "S2_0_C0_C0_6", 1 "S2_0_C0_C1_6", 2 "S2_0_C0_C2_6", 3 "S2_0_C0_C3_6", 4 "S2_0_C0_C4_6", 5 "S2_0_C0_C5_6",
                    6 "S2_0_C0_C6_6", 7 "S2_0_C0_C7_6", 8 "S2_0_C0_C8_6", 9 "S2_0_C0_C9_6", 10 "S2_0_C0_C10_6",
                    11 "S2_0_C0_C11_6", 12 "S2_0_C0_C12_6", 13 "S2_0_C0_C13_6", 14 "S2_0_C0_C14_6", 15 "S2_0_C0_C15_6"
                ],
                DBGWCR_EL1 = [
                    0 "S2_0_C0_C0_7", 1 "S2_0_C0_C1_7", 2 "S2_0_C0_C2_7", 3 "S2_0_C0_C3_7", 4 "S2_0_C0_C4_7", 5 "S2_0_C0_C5_7",
                    6 "S2_0_C0_C6_7", 7 "S2_0_C0_C7_7", 8 "S2_0_C0_C8_7", 9 "S2_0_C0_C9_7", 10 "S2_0_C0_C10_7",
                    11 "S2_0_C0_C11_7", 12 "S2_0_C0_C12_7", 13 "S2_0_C0_C13_7", 14 "S2_0_C0_C14_7", 15 "S2_0_C0_C15_7"
                ],
                ID_CRM1_EL1 = [
                    0 "S3_0_C0_C1_0", 1 "S3_0_C0_C1_1", 2 "S3_0_C0_C1_2", 3 "S3_0_C0_C1_3", 4 "S3_0_C0_C1_4", 5 "S3_0_C0_C1_5",
                    6 "S3_0_C0_C1_6", 7 "S3_0_C0_C1_7"
                ],
                ID_CRM2_EL1 = [
                    0 "S3_0_C0_C2_0", 1 "S3_0_C0_C2_1", 2 "S3_0_C0_C2_2", 3 "S3_0_C0_C2_3", 4 "S3_0_C0_C2_4", 5 "S3_0_C0_C2_5",
                    6 "S3_0_C0_C2_6", 7 "S3_0_C0_C2_7"
                ],
                ID_CRM3_EL1 = [
                    0 "S3_0_C0_C3_0", 1 "S3_0_C0_C3_1", 2 "S3_0_C0_C3_2", 3 "S3_0_C0_C3_3", 4 "S3_0_C0_C3_4", 5 "S3_0_C0_C3_5",
                    6 "S3_0_C0_C3_6", 7 "S3_0_C0_C3_7"
                ],
                ID_CRM4_EL1 = [
                    0 "S3_0_C0_C4_0", 1 "S3_0_C0_C4_1", 2 "S3_0_C0_C4_2", 3 "S3_0_C0_C4_3", 4 "S3_0_C0_C4_4", 5 "S3_0_C0_C4_5",
                    6 "S3_0_C0_C4_6", 7 "S3_0_C0_C4_7"
                ],
                ID_CRM5_EL1 = [
                    0 "S3_0_C0_C5_0", 1 "S3_0_C0_C5_1", 2 "S3_0_C0_C5_2", 3 "S3_0_C0_C5_3", 4 "S3_0_C0_C5_4", 5 "S3_0_C0_C5_5",
                    6 "S3_0_C0_C5_6", 7 "S3_0_C0_C5_7"
                ],
                ID_CRM6_EL1 = [
                    0 "S3_0_C0_C6_0", 1 "S3_0_C0_C6_1", 2 "S3_0_C0_C6_2", 3 "S3_0_C0_C6_3", 4 "S3_0_C0_C6_4", 5 "S3_0_C0_C6_5",
                    6 "S3_0_C0_C6_6", 7 "S3_0_C0_C6_7"
                ],
                ID_CRM7_EL1 = [
                    0 "S3_0_C0_C7_0", 1 "S3_0_C0_C7_1", 2 "S3_0_C0_C7_2", 3 "S3_0_C0_C7_3", 4 "S3_0_C0_C7_4", 5 "S3_0_C0_C7_5",
                    6 "S3_0_C0_C7_6", 7 "S3_0_C0_C7_7"
                ],
            }
        }
    };
}
pub(crate) use for_each_register;
