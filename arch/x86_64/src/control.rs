//! Which values a guest may load into CR0, CR3, CR4, EFER and XCR0, and what a change entails.
//!
//! Pure: the caller has the registers and writes them. The rules are those of the CPU's own MOV to CR, WRMSR and XSETBV
//! (SDM Vol. 3A, 2.5 and 2.6, Vol. 2 of each instruction; APM Vol. 2, 3.1): what they refuse is refused here, and so is what
//! the guest's CPUID does not offer.
#![forbid(unsafe_code)]

use crate::paging::pdpte_reserved;

/// CR0 (SDM Vol. 3A, 2.5).
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1;
    /// Monitor coprocessor.
    pub const MP: u64 = 1 << 1;
    /// Emulation.
    pub const EM: u64 = 1 << 2;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Extension type; always set.
    pub const ET: u64 = 1 << 4;
    /// Numeric error.
    pub const NE: u64 = 1 << 5;
    /// Write protect.
    pub const WP: u64 = 1 << 16;
    /// Alignment mask.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
    /// All that exist; the CPU ignores others below bit 32.
    pub(super) const ALL: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// CR4 (SDM Vol. 3A, 2.5).
pub mod cr4 {
    /// Virtual-8086 extensions.
    pub const VME: u64 = 1;
    /// Protected-mode virtual interrupts.
    pub const PVI: u64 = 1 << 1;
    /// RDTSC is privileged.
    pub const TSD: u64 = 1 << 2;
    /// Debugging extensions.
    pub const DE: u64 = 1 << 3;
    /// 4 MiB pages.
    pub const PSE: u64 = 1 << 4;
    /// Physical-address extension.
    pub const PAE: u64 = 1 << 5;
    /// Machine check.
    pub const MCE: u64 = 1 << 6;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// RDPMC for user mode.
    pub const PCE: u64 = 1 << 8;
    /// FXSAVE and SSE.
    pub const OSFXSR: u64 = 1 << 9;
    /// SSE exceptions.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// SGDT and so on are privileged.
    pub const UMIP: u64 = 1 << 11;
    /// 5-level paging.
    pub const LA57: u64 = 1 << 12;
    /// VMX.
    pub const VMXE: u64 = 1 << 13;
    /// RDFSBASE and so on.
    pub const FSGSBASE: u64 = 1 << 16;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys.
    pub const PKE: u64 = 1 << 22;
}

/// With PCIDs: a write of CR3 that keeps cached translations (SDM Vol. 2B, MOV to CR).
const CR3_KEEP: u64 = 1 << 63;

/// XCR0 (SDM Vol. 1, 13.3).
pub mod xcr0 {
    /// x87 state; always set.
    pub const X87: u64 = 1;
    /// SSE state.
    pub const SSE: u64 = 1 << 1;
    /// AVX state.
    pub const AVX: u64 = 1 << 2;
    /// AVX-512 state, all three parts.
    pub const AVX512: u64 = 7 << 5;
    /// PKRU.
    pub const PKRU: u64 = 1 << 9;
}

/// EFER (APM Vol. 2, 3.1.7).
pub mod efer {
    /// SYSCALL
    pub const SCE: u64 = 1;
    /// Long mode wanted.
    pub const LME: u64 = 1 << 8;
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute pages.
    pub const NXE: u64 = 1 << 11;
    /// SVM.
    pub const SVME: u64 = 1 << 12;
    /// Fast FXSAVE (AMD).
    pub const FFXSR: u64 = 1 << 14;
}

/// The registers that settle the CPU's mode, as the guest sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Controls {
    /// CR0
    pub cr0: u64,
    /// CR3
    pub cr3: u64,
    /// CR4
    pub cr4: u64,
    /// EFER
    pub efer: u64,
}

/// What a guest's CPUID offers, as masks of bits that may be set. Made once per VM by [`crate::cpuid::Table::offer`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// CR4
    pub cr4: u64,
    /// EFER, LMA included
    pub efer: u64,
    /// XCR0; 0 without XSAVE
    pub xcr0: u64,
    /// Bits of a physical address
    pub address_bits: u8,
}

/// The instruction raises #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

/// What an accepted change of a control register entails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// All of them afterwards, EFER.LMA included.
    pub controls: Controls,
    /// Cached translations of the guest's own tables are to be forgotten.
    pub flush: bool,
    /// In PAE paging the four PDPTEs were loaded anew: these.
    pub pdptes: Option<[u64; 4]>,
}

impl Controls {
    /// PAE paging: the only one whose first level is loaded with CR3.
    const fn is_pae(&self) -> bool {
        self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && self.efer & efer::LMA == 0
    }

    /// The four PDPTEs as `read` finds them, if paging needs any. A reserved bit in one that is present raises #GP (SDM Vol. 3A,
    /// 4.4.1); where there is no RAM the CPU would find such bits.
    fn pdptes(
        &self,
        offer: &Offer,
        read: impl Fn(u64) -> Option<[u64; 4]>,
    ) -> Result<Option<[u64; 4]>, GeneralProtection> {
        if !self.is_pae() {
            return Ok(None);
        }
        let entries = read(self.cr3 & 0xffff_ffe0).ok_or(GeneralProtection)?;
        let reserved = pdpte_reserved(offer.address_bits);
        let is_wrong = |entry: &u64| entry & 1 != 0 && entry & reserved != 0;
        if entries.iter().any(is_wrong) { Err(GeneralProtection) } else { Ok(Some(entries)) }
    }
}

/// MOV to CR0. `pdptes` reads the four PDPTEs at a guest-physical address; `None` outside RAM.
///
/// # Errors
/// #GP
pub fn write_cr0(
    now: &Controls,
    value: u64,
    code_is_64_bit: bool,
    offer: &Offer,
    pdptes: impl Fn(u64) -> Option<[u64; 4]>,
) -> Result<Change, GeneralProtection> {
    let is_paged = value & cr0::PG != 0;
    if value >> 32 != 0
        || is_paged && value & cr0::PE == 0
        || value & cr0::NW != 0 && value & cr0::CD == 0
        || !is_paged && now.cr4 & cr4::PCIDE != 0
    {
        return Err(GeneralProtection);
    }
    let mut controls = Controls { cr0: value & cr0::ALL | cr0::ET, ..*now };
    let changed = controls.cr0 ^ now.cr0;
    if changed & cr0::PG != 0 {
        let wants_long = now.efer & efer::LME != 0;
        // Long mode is entered from 32-bit code with PAE, and left by 32-bit code (SDM Vol. 3A, 10.8.5).
        if code_is_64_bit || is_paged && wants_long && now.cr4 & cr4::PAE == 0 {
            return Err(GeneralProtection);
        }
        controls.efer &= !efer::LMA;
        if is_paged && wants_long {
            controls.efer |= efer::LMA;
        }
    }
    let reloads = changed & (cr0::PG | cr0::CD | cr0::NW) != 0;
    let pdptes = if reloads { controls.pdptes(offer, pdptes)? } else { None };
    Ok(Change { controls, flush: changed & (cr0::PG | cr0::PE) != 0, pdptes })
}

/// MOV to CR3.
///
/// # Errors
/// #GP
pub fn write_cr3(
    now: &Controls,
    value: u64,
    offer: &Offer,
    pdptes: impl Fn(u64) -> Option<[u64; 4]>,
) -> Result<Change, GeneralProtection> {
    let is_long = now.efer & efer::LMA != 0;
    let keeps = is_long && now.cr4 & cr4::PCIDE != 0 && value & CR3_KEEP != 0;
    let value = match (is_long, keeps) {
        (true, true) => value & !CR3_KEEP,
        (true, false) => value,
        (false, _) => value & 0xffff_ffff,
    };
    if value.checked_shr(u32::from(offer.address_bits)).unwrap_or(0) != 0 {
        return Err(GeneralProtection);
    }
    let controls = Controls { cr3: value, ..*now };
    Ok(Change { controls, flush: !keeps, pdptes: controls.pdptes(offer, pdptes)? })
}

/// MOV to CR4.
///
/// # Errors
/// #GP
pub fn write_cr4(
    now: &Controls,
    value: u64,
    offer: &Offer,
    pdptes: impl Fn(u64) -> Option<[u64; 4]>,
) -> Result<Change, GeneralProtection> {
    let is_long = now.efer & efer::LMA != 0;
    let changed = value ^ now.cr4;
    let sets_pcide = changed & value & cr4::PCIDE != 0;
    if value & !offer.cr4 != 0
        || is_long && value & cr4::PAE == 0
        || sets_pcide && (!is_long || now.cr3 & 0xfff != 0)
    {
        return Err(GeneralProtection);
    }
    let controls = Controls { cr4: value, ..*now };
    // These change what translations mean (SDM Vol. 3A, 4.10.4.1 and 4.4.1).
    let modes = cr4::PGE | cr4::PAE | cr4::PSE | cr4::SMEP;
    let pdptes = if changed & modes != 0 { controls.pdptes(offer, pdptes)? } else { None };
    Ok(Change { controls, flush: changed & (modes | cr4::PCIDE) != 0, pdptes })
}

/// WRMSR of EFER.
///
/// # Errors
/// #GP
pub fn write_efer(now: &Controls, value: u64, offer: &Offer) -> Result<Change, GeneralProtection> {
    // LMA follows LME and PG; what is written to it does not count.
    let value = value & !efer::LMA | now.efer & efer::LMA;
    let changed = value ^ now.efer;
    if value & !offer.efer != 0 || changed & efer::LME != 0 && now.cr0 & cr0::PG != 0 {
        return Err(GeneralProtection);
    }
    let controls = Controls { efer: value, ..*now };
    Ok(Change { controls, flush: changed & efer::NXE != 0, pdptes: None })
}

/// XSETBV of register `number`; the caller has checked CPL and CR4.OSXSAVE. Gives the new XCR0.
///
/// # Errors
/// #GP
pub fn write_xcr0(number: u32, value: u64, offer: &Offer) -> Result<u64, GeneralProtection> {
    let avx_without_sse = value & xcr0::AVX != 0 && value & xcr0::SSE == 0;
    let avx512 = value & xcr0::AVX512;
    let avx512_in_part = avx512 != 0 && (avx512 != xcr0::AVX512 || value & xcr0::AVX == 0);
    if number != 0 || value & !offer.xcr0 != 0 || value & xcr0::X87 == 0 || avx_without_sse || avx512_in_part
    {
        return Err(GeneralProtection);
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
