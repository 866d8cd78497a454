//! The guest's own page tables, walked as its CPU walks them.
//!
//! Real mode and no paging, 32-bit tables with 4 MiB pages, PAE, and 4 levels; 5 levels are never offered. Permissions, reserved
//! bits, and the accessed and dirty bits follow SDM Vol. 3A, 4.3 to 4.8. The tables lie wherever the guest says: outside its RAM
//! is an error of its own. Protection keys are not looked at: an access that the CPU itself has just let pass needs no second
//! refusal.
#![forbid(unsafe_code)]

use crate::control::{Controls, cr0, cr4, efer};
use bulkhead_vdev::{Gpa, GuestMemory, Width};

#[cfg(test)]
mod tests;

/// Bits of entries, the same in all formats (SDM Vol. 3A, 4.3 to 4.5).
mod entry {
    pub(super) const PRESENT: u64 = 1;
    pub(super) const WRITE: u64 = 1 << 1;
    pub(super) const USER: u64 = 1 << 2;
    pub(super) const ACCESSED: u64 = 1 << 5;
    pub(super) const DIRTY: u64 = 1 << 6;
    pub(super) const PAGE_SIZE: u64 = 1 << 7;
    pub(super) const NO_EXECUTE: u64 = 1 << 63;
}

/// Error codes (SDM Vol. 3A, 4.7).
mod code {
    pub(super) const PRESENT: u32 = 1;
    pub(super) const WRITE: u32 = 1 << 1;
    pub(super) const USER: u32 = 1 << 2;
    pub(super) const RESERVED: u32 = 1 << 3;
    pub(super) const FETCH: u32 = 1 << 4;
}

/// Bits 51 to 12: where an 8-byte entry leads.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What an access wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Intent {
    /// Read data.
    #[default]
    Read,
    /// Write data.
    Write,
    /// Execute.
    Fetch,
}

/// Who accesses, and what for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reach {
    /// What for.
    pub intent: Intent,
    /// CPL is 3.
    pub user: bool,
    /// RFLAGS.AC: supervisor data accesses to user pages pass SMAP.
    pub alignment_check: bool,
}

/// A page fault: what goes to CR2, and the error code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// The linear address.
    pub address: u64,
    /// The error code (SDM Vol. 3A, 4.7).
    pub code: u32,
}

/// Why a linear address leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalkError {
    /// The CPU would raise #PF.
    Fault(PageFault),
    /// A table lies where the guest has no RAM.
    TableOutsideRam(Gpa),
}

/// How a guest's linear addresses become physical ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paging {
    controls: Controls,
    address_bits: u8,
    pdptes: Option<[u64; 4]>,
}

impl Paging {
    /// As these registers say. `pdptes`: the ones that the CPU holds (VMX); otherwise they are read from memory (SVM with
    /// nested paging, APM Vol. 2, 15.25.10).
    #[must_use]
    pub fn new(controls: &Controls, pdptes: Option<[u64; 4]>, address_bits: u8) -> Self {
        Self { controls: *controls, address_bits, pdptes }
    }

    /// Where the byte at linear address `at` lies. Above the CPU's address space it is cut; whether it is canonical was
    /// looked at before.
    ///
    /// # Errors
    /// [`WalkError`]
    #[inline]
    pub fn translate<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        at: u64,
        reach: Reach,
    ) -> Result<Gpa, WalkError> {
        if self.controls.cr0 & cr0::PG == 0 {
            return Ok(Gpa(at & 0xffff_ffff));
        }
        let leaf = self.walk(memory, at, |_, _, _| ()).map_err(|broken| self.error(broken, at, reach))?;
        if !self.allows(&leaf, reach) {
            return Err(self.error(Broken::Forbidden, at, reach));
        }
        if !leaf.accessed || reach.intent == Intent::Write && !leaf.dirty {
            self.mark(memory, at, reach.intent);
        }
        Ok(leaf.at)
    }

    /// Walks as the mode has it; `visit` gets each entry that has an accessed bit: where, what, and whether it is the leaf.
    #[inline]
    fn walk<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        at: u64,
        visit: impl FnMut(Gpa, u64, bool),
    ) -> Result<Leaf, Broken> {
        let nx = if self.controls.efer & efer::NXE == 0 { entry::NO_EXECUTE } else { 0 };
        if self.controls.efer & efer::LMA != 0 {
            let reserved = self.beyond_address() & FRAME | nx;
            return walk_wide(memory, at, self.controls.cr3 & FRAME, 3, reserved, visit);
        }
        if self.controls.cr4 & cr4::PAE == 0 {
            return self.walk_narrow(memory, at, visit);
        }
        // Bits 62 to 52 are ignored in long mode only.
        let reserved = self.beyond_address() & !entry::NO_EXECUTE | nx;
        let pdpte = self.pdpte(memory, at)?;
        if pdpte & entry::PRESENT == 0 {
            return Err(Broken::NotPresent);
        }
        // Entries in memory were checked by the CPU that walks them, under nested paging not all alike (QEMU sets their
        // accessed bit, which is reserved): only what would lead astray counts.
        let wrong =
            if self.pdptes.is_some() { pdpte_reserved(self.address_bits) } else { self.beyond_address() };
        if pdpte & wrong != 0 {
            return Err(Broken::Reserved);
        }
        walk_wide(memory, at & 0xffff_ffff, pdpte & FRAME, 1, reserved, visit)
    }

    /// Address bits that the guest's CPU does not have.
    fn beyond_address(&self) -> u64 {
        u64::MAX.checked_shl(u32::from(self.address_bits)).unwrap_or(0)
    }

    /// The first level of PAE paging: four entries, found by bits 31 and 30.
    fn pdpte<M: GuestMemory + ?Sized>(&self, memory: &M, at: u64) -> Result<u64, Broken> {
        let index = at >> 30 & 3;
        match self.pdptes {
            Some([first, second, third, fourth]) => Ok(match index {
                0 => first,
                1 => second,
                2 => third,
                _ => fourth,
            }),
            None => read_wide(memory, Gpa((self.controls.cr3 & 0xffff_ffe0) + index * 8)),
        }
    }

    /// 32-bit paging: two levels of 4-byte entries (SDM Vol. 3A, 4.3).
    fn walk_narrow<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        at: u64,
        mut visit: impl FnMut(Gpa, u64, bool),
    ) -> Result<Leaf, Broken> {
        let place = Gpa((self.controls.cr3 & 0xffff_f000) + (at >> 22 & 0x3ff) * 4);
        let directory = read_narrow(memory, place)?;
        if directory & entry::PRESENT == 0 {
            return Err(Broken::NotPresent);
        }
        if directory & entry::PAGE_SIZE != 0 && self.controls.cr4 & cr4::PSE != 0 {
            // Bits 20 to 13 are bits 39 to 32 of the page's address; bit 21 is reserved (SDM Vol. 3A, table 4-4).
            let page = directory & 0xffc0_0000 | (directory >> 13 & 0xff) << 32;
            if directory & 1 << 21 != 0 || page & self.beyond_address() != 0 {
                return Err(Broken::Reserved);
            }
            visit(place, directory, true);
            return Ok(Leaf::new(page | at & 0x3f_ffff, directory, directory, directory));
        }
        visit(place, directory, false);
        let place = Gpa((directory & 0xffff_f000) + (at >> 12 & 0x3ff) * 4);
        let page = read_narrow(memory, place)?;
        if page & entry::PRESENT == 0 {
            return Err(Broken::NotPresent);
        }
        visit(place, page, true);
        Ok(Leaf::new(page & 0xffff_f000 | at & 0xfff, directory & page, 0, page))
    }

    /// The rules of SDM Vol. 3A, 4.6.1.
    #[inline]
    fn allows(&self, leaf: &Leaf, reach: Reach) -> bool {
        let Controls { cr0, cr4, .. } = self.controls;
        if reach.intent == Intent::Fetch
            && (leaf.no_execute || !reach.user && leaf.user && cr4 & cr4::SMEP != 0)
        {
            return false;
        }
        if reach.user {
            return leaf.user && (leaf.write || reach.intent != Intent::Write);
        }
        if reach.intent == Intent::Write && !leaf.write && cr0 & cr0::WP != 0 {
            return false;
        }
        reach.intent == Intent::Fetch || !leaf.user || cr4 & cr4::SMAP == 0 || reach.alignment_check
    }

    #[cold]
    fn error(&self, broken: Broken, at: u64, reach: Reach) -> WalkError {
        let mut code = match broken {
            Broken::TableOutsideRam(table) => return WalkError::TableOutsideRam(table),
            Broken::NotPresent => 0,
            Broken::Forbidden => code::PRESENT,
            Broken::Reserved => code::PRESENT | code::RESERVED,
        };
        let Controls { cr4, efer, .. } = self.controls;
        let tells_fetches = efer & efer::NXE != 0 && cr4 & cr4::PAE != 0 || cr4 & cr4::SMEP != 0;
        code |= match reach.intent {
            Intent::Write => code::WRITE,
            Intent::Fetch if tells_fetches => code::FETCH,
            Intent::Fetch | Intent::Read => 0,
        };
        code |= if reach.user { code::USER } else { 0 };
        let address = if efer & efer::LMA != 0 { at } else { at & 0xffff_ffff };
        WalkError::Fault(PageFault { address, code })
    }

    /// Sets the accessed bits on the way to `at`, and for a write the leaf's dirty bit. An entry that another vCPU has changed
    /// since it was read is left alone.
    #[cold]
    fn mark<M: GuestMemory + ?Sized>(&self, memory: &M, at: u64, intent: Intent) {
        let is_wide = self.controls.efer & efer::LMA != 0 || self.controls.cr4 & cr4::PAE != 0;
        let width = if is_wide { Width::Double } else { Width::Word };
        let _ = self.walk(memory, at, |place, found, is_leaf| {
            let dirty = if is_leaf && intent == Intent::Write { entry::DIRTY } else { 0 };
            let wanted = found | entry::ACCESSED | dirty;
            if found != wanted {
                memory.compare_exchange(place, width, found, wanted);
            }
        });
    }
}

/// Bits of a PDPTE that must be clear in PAE paging (SDM Vol. 3A, table 4-8).
#[must_use]
pub fn pdpte_reserved(address_bits: u8) -> u64 {
    u64::MAX.checked_shl(u32::from(address_bits)).unwrap_or(0) | 0x1e6
}

/// The page that a walk found, and what all entries on the way allow together.
struct Leaf {
    at: Gpa,
    write: bool,
    user: bool,
    no_execute: bool,
    accessed: bool,
    dirty: bool,
}

impl Leaf {
    /// `all`: the entries ANDed; `any`: ORed, for NX; `last`: the leaf.
    #[inline]
    fn new(at: u64, all: u64, any: u64, last: u64) -> Self {
        Self {
            at: Gpa(at),
            write: all & entry::WRITE != 0,
            user: all & entry::USER != 0,
            no_execute: any & entry::NO_EXECUTE != 0,
            accessed: all & entry::ACCESSED != 0,
            dirty: last & entry::DIRTY != 0,
        }
    }
}

/// Why a walk ends early.
#[derive(Clone, Copy)]
enum Broken {
    NotPresent,
    Reserved,
    Forbidden,
    TableOutsideRam(Gpa),
}

/// Walks tables of 512 8-byte entries from `table` at `level` down (SDM Vol. 3A, 4.4 and 4.5). Entries with one of the
/// `reserved` bits are refused.
#[inline]
fn walk_wide<M: GuestMemory + ?Sized>(
    memory: &M,
    at: u64,
    mut table: u64,
    mut level: u32,
    reserved: u64,
    mut visit: impl FnMut(Gpa, u64, bool),
) -> Result<Leaf, Broken> {
    let (mut all, mut any) = (u64::MAX, 0);
    loop {
        let place = Gpa(table + (at >> (12 + 9 * level) & 0x1ff) * 8);
        let found = read_wide(memory, place)?;
        if found & entry::PRESENT == 0 {
            return Err(Broken::NotPresent);
        }
        if found & reserved != 0 {
            return Err(Broken::Reserved);
        }
        (all, any) = (all & found, any | found);
        let is_leaf = level == 0 || found & entry::PAGE_SIZE != 0;
        if !is_leaf {
            visit(place, found, false);
            table = found & FRAME;
            level -= 1;
            continue;
        }
        // Of a large page's entry, the bits between the page's size and bit 13 are reserved; no page has 512 GiB.
        let offset = (1 << (12 + 9 * level)) - 1;
        if level == 3 || level > 0 && found & offset & FRAME & !0x1000 != 0 {
            return Err(Broken::Reserved);
        }
        visit(place, found, true);
        return Ok(Leaf::new(found & FRAME & !offset | at & offset, all, any, found));
    }
}

#[inline]
fn read_wide<M: GuestMemory + ?Sized>(memory: &M, at: Gpa) -> Result<u64, Broken> {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes).map_err(|_| Broken::TableOutsideRam(at))?;
    Ok(u64::from_le_bytes(bytes))
}

fn read_narrow<M: GuestMemory + ?Sized>(memory: &M, at: Gpa) -> Result<u64, Broken> {
    let mut bytes = [0; 4];
    memory.read(at, &mut bytes).map_err(|_| Broken::TableOutsideRam(at))?;
    Ok(u64::from(u32::from_le_bytes(bytes)))
}
