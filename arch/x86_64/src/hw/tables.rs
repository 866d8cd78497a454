//! Our own page tables (SDM Vol. 3A, 4.5): all RAM and the devices that we drive, one to one; our image by its parts.

use bulkhead::memory::Hpa;
use bulkhead::memory::table::{Format, Perm, Slot};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
/// PWT and PCD: entry 3 of the page attribute table, which [`PAT`] makes uncacheable.
const UNCACHED: u64 = 1 << 3 | 1 << 4;
/// Set, so that the CPU need not.
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
/// A leaf above the lowest level.
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// `IA32_PAT` as after power-on (SDM Vol. 3A, table 11-12): 0 is write-back, 3 uncacheable.
pub const PAT: u64 = 0x0007_0406_0007_0406;

/// Entries for 4-level translation; `GIGABYTES`: the CPU has pages of 1 GiB.
pub struct Own<const GIGABYTES: bool>;

impl<const GIGABYTES: bool> Format for Own<GIGABYTES> {
    const LARGEST_LEAF: u32 = if GIGABYTES { 2 } else { 1 };

    fn root(_bits: u32) -> (u32, usize) {
        (3, 1)
    }

    fn table(next: Hpa) -> u64 {
        next.0 & ADDRESS | PRESENT | WRITABLE
    }

    fn leaf(page: Hpa, level: u32, perm: Perm) -> u64 {
        let mut entry = page.0 & ADDRESS | PRESENT | ACCESSED_DIRTY;
        if level > 0 {
            entry |= LARGE;
        }
        if perm.write {
            entry |= WRITABLE;
        }
        if !perm.execute {
            entry |= NO_EXECUTE;
        }
        if perm.device { entry | UNCACHED } else { entry }
    }

    fn decode(entry: u64, level: u32) -> Slot {
        let page = Hpa(entry & ADDRESS);
        match (entry & PRESENT != 0, level == 0 || entry & LARGE != 0) {
            (false, _) => Slot::Empty,
            (true, true) => Slot::Leaf(page),
            (true, false) => Slot::Table(page),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_those_of_the_manual_and_never_write_and_execute() {
        assert_eq!(Own::<true>::leaf(Hpa(0x1000), 0, Perm::CODE), 0x1061);
        assert_eq!(Own::<true>::leaf(Hpa(0x4000_0000), 2, Perm::DATA), 0x8000_0000_4000_00e3);
        assert_eq!(Own::<false>::leaf(Hpa(0x20_0000), 1, Perm::CONSTANT), 0x8000_0000_0020_00e1);
        assert_eq!(Own::<false>::leaf(Hpa(0xfee0_0000), 0, Perm::DEVICE), 0x8000_0000_fee0_007b);
        assert_eq!(Own::<false>::table(Hpa(0x2000)), 0x2003);
    }

    #[test]
    fn what_was_made_is_understood() {
        let data = Own::<true>::leaf(Hpa(0x4000_0000), 2, Perm::DATA);
        assert_eq!(Own::<true>::decode(data, 2), Slot::Leaf(Hpa(0x4000_0000)));
        assert_eq!(Own::<true>::decode(Own::<true>::table(Hpa(0x2000)), 1), Slot::Table(Hpa(0x2000)));
        assert_eq!(Own::<true>::decode(0, 0), Slot::Empty);
    }
}
