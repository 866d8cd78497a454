//! Which bits of control registers a CPUID goes with (SDM Vol. 3A, 2.5; APM Vol. 2, 3.1.3 and 3.1.7).
#![forbid(unsafe_code)]

use super::Table;
use crate::control::{Offer, cr4, efer};

pub(super) fn offer(table: &Table) -> Offer {
    let (basic, structured) = (table.fixed(1, 0), table.fixed(7, 0));
    let extended = table.fixed(0x8000_0001, 0);
    let pick = |rules: &[(u32, u32, u64)]| {
        rules.iter().filter(|(word, bit, _)| word >> bit & 1 != 0).fold(0, |mask, (_, _, bits)| mask | bits)
    };
    let cr4 = pick(&[
        (basic.edx, 1, cr4::VME | cr4::PVI),
        (basic.edx, 2, cr4::DE),
        (basic.edx, 3, cr4::PSE),
        (basic.edx, 4, cr4::TSD),
        (basic.edx, 6, cr4::PAE),
        (basic.edx, 7, cr4::MCE),
        (basic.edx, 13, cr4::PGE),
        (basic.edx, 24, cr4::OSFXSR),
        (basic.edx, 25, cr4::OSXMMEXCPT),
        (basic.ecx, 17, cr4::PCIDE),
        (basic.ecx, 26, cr4::OSXSAVE),
        (structured.ebx, 0, cr4::FSGSBASE),
        (structured.ebx, 7, cr4::SMEP),
        (structured.ebx, 20, cr4::SMAP),
        (structured.ecx, 2, cr4::UMIP),
        (structured.ecx, 3, cr4::PKE),
    ]);
    let efer = pick(&[
        (extended.edx, 11, efer::SCE),
        (extended.edx, 20, efer::NXE),
        (extended.edx, 25, efer::FFXSR),
        (extended.edx, 29, efer::LME | efer::LMA),
    ]);
    let [address_bits, ..] = table.fixed(0x8000_0008, 0).eax.to_le_bytes();
    // PCE has no bit of its own: RDPMC exists everywhere.
    Offer { cr4: cr4 | cr4::PCE, efer, xcr0: table.xsave.offered(), address_bits }
}
