//! The feature bits that a guest may be offered: what needs nothing of us, and what we emulate. (SDM Vol. 2A, CPUID; APM Vol. 3,
//! appendix E.)
#![forbid(unsafe_code)]

/// `bits![a, b..]`: a word with these bits set.
macro_rules! bits {
    ($($bit:literal),* $(,)?) => { 0u32 $(| 1 << $bit)* };
}

/// Leaf 1, EDX bit 9, and the same in leaf 8000_0001 of AMD.
pub(super) const APIC: u32 = bits![9];
/// Leaf 1, ECX.
pub(super) const X2APIC: u32 = bits![21];
pub(super) const TSC_DEADLINE: u32 = bits![24];
pub(super) const XSAVE: u32 = bits![26];
pub(super) const OSXSAVE: u32 = bits![27];
pub(super) const HYPERVISOR: u32 = bits![31];
/// Leaf 1, ECX: FMA, AVX, F16C.
pub(super) const LEAF_1_ECX_AVX: u32 = bits![12, 28, 29];
/// Leaf 1, EDX.
pub(super) const HTT: u32 = bits![28];
/// Leaf 7, ECX.
pub(super) const PKU: u32 = bits![3];
pub(super) const OSPKE: u32 = bits![4];
/// Leaf 7, EBX.
pub(super) const INVPCID: u32 = bits![10];
/// Leaf 7, ECX.
pub(super) const WAITPKG: u32 = bits![5];
pub(super) const RDPID: u32 = bits![22];
/// Leaf 8000_0001, EDX.
pub(super) const RDTSCP: u32 = bits![27];

/// SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
pub(super) const LEAF_1_ECX: u32 = bits![0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30];
/// FPU, VME, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFSH, MMX, FXSR, SSE, SSE2, SS.
pub(super) const LEAF_1_EDX: u32 =
    bits![0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 27];

/// FSGSBASE, TSC_ADJUST, BMI1, HLE, AVX2, FDP_EXCPTN, SMEP, BMI2, ERMS, INVPCID, RTM, no FCS and FDS, AVX512F, AVX512DQ, RDSEED,
/// ADX, SMAP, AVX512_IFMA, CLFLUSHOPT, CLWB, AVX512PF, AVX512ER, AVX512CD, SHA, AVX512BW, AVX512VL.
pub(super) const LEAF_7_EBX: u32 =
    bits![0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 16, 17, 18, 19, 20, 21, 23, 24, 26, 27, 28, 29, 30, 31];
pub(super) const LEAF_7_EBX_AVX: u32 = bits![5];
pub(super) const LEAF_7_EBX_AVX512: u32 = bits![16, 17, 21, 26, 27, 28, 30, 31];
/// PREFETCHWT1, AVX512_VBMI, UMIP, PKU, WAITPKG, AVX512_VBMI2, GFNI, VAES, VPCLMULQDQ, AVX512_VNNI, AVX512_BITALG,
/// AVX512_VPOPCNTDQ, RDPID, CLDEMOTE, MOVDIRI, MOVDIR64B.
pub(super) const LEAF_7_ECX: u32 = bits![0, 1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 14, 22, 25, 27, 28];
pub(super) const LEAF_7_ECX_AVX: u32 = bits![9, 10];
pub(super) const LEAF_7_ECX_AVX512: u32 = bits![1, 6, 11, 12, 14];
/// AVX512_4VNNIW, AVX512_4FMAPS, FSRM, AVX512_VP2INTERSECT, MD_CLEAR, RTM_ALWAYS_ABORT, SERIALIZE, TSXLDTRK, AVX512_FP16.
pub(super) const LEAF_7_EDX: u32 = bits![2, 3, 4, 8, 10, 11, 14, 16, 23];
pub(super) const LEAF_7_EDX_AVX512: u32 = bits![2, 3, 8, 23];
/// IBRS and IBPB, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD: by model-specific registers.
pub(super) const LEAF_7_EDX_SPECULATION: u32 = bits![26, 27, 28, 29, 31];
/// AVX-VNNI, AVX512_BF16, fast REP forms, AVX-IFMA.
pub(super) const LEAF_7_1_EAX: u32 = bits![4, 5, 10, 11, 12, 23];
pub(super) const LEAF_7_1_EAX_AVX: u32 = bits![4, 23];
pub(super) const LEAF_7_1_EAX_AVX512: u32 = bits![5];
/// AVX-VNNI-INT8, AVX-NE-CONVERT, PREFETCHI.
pub(super) const LEAF_7_1_EDX: u32 = bits![4, 5, 14];
pub(super) const LEAF_7_1_EDX_AVX: u32 = bits![4, 5];
/// MCDT_NO.
pub(super) const LEAF_7_2_EDX: u32 = bits![5];
/// PSFD, IPRED_CTRL, RRSBA_CTRL, BHI_CTRL: bits of SPEC_CTRL.
pub(super) const LEAF_7_2_EDX_SPECULATION: u32 = bits![0, 1, 2, 4];

/// XSAVEOPT, XSAVEC, XGETBV with ECX = 1.
pub(super) const LEAF_D_1_EAX: u32 = bits![0, 1, 2];
/// XSAVES.
pub(super) const LEAF_D_1_EAX_XSAVES: u32 = bits![3];

/// LAHF, ABM, SSE4A, misaligned SSE, PREFETCHW, OSVW, XOP, FMA4, TBM, topology extensions. Not CR8 by LOCK MOV CR0, which we do
/// not decode.
pub(super) const LEAF_80000001_ECX: u32 = bits![0, 5, 6, 7, 8, 9, 11, 16, 21, 22];
pub(super) const LEAF_80000001_ECX_AVX: u32 = bits![11, 16];
/// CMP_LEGACY: cores are told apart, not threads.
pub(super) const CMP_LEGACY: u32 = bits![1];
/// SYSCALL, NX, MMXEXT, FFXSR, 1 GiB pages, RDTSCP, long mode, 3DNow!; below these, what leaf 1 has too.
pub(super) const LEAF_80000001_EDX: u32 = bits![11, 20, 22, 25, 26, 27, 29, 30, 31];
pub(super) const LEAF_80000001_EDX_SHARED: u32 =
    bits![0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24];
/// Invariant TSC.
pub(super) const LEAF_80000007_EDX: u32 = bits![8];
/// CLZERO, XSAVEERPTR, WBNOINVD, and what hardware has no need of: EFER.LMSLE, SSB_NO, BTC_NO.
pub(super) const LEAF_80000008_EBX: u32 = bits![0, 2, 9, 20, 26, 29];
/// IBPB, IBRS, STIBP, how IBRS and STIBP are preferred, SSBD, PSFD, IBPB that clears the return stack.
pub(super) const LEAF_80000008_EBX_SPECULATION: u32 = bits![12, 14, 15, 16, 17, 18, 19, 24, 28, 30];
/// No nested data breakpoints, LFENCE serialises, a null selector clears the base.
pub(super) const LEAF_80000021_EAX: u32 = bits![0, 2, 6];
/// SBPB, IBPB for branch types, SRSO_NO.
pub(super) const LEAF_80000021_EAX_SPECULATION: u32 = bits![27, 28, 29];
