//! Nested page tables: a guest's second stage on AMD (APM Vol. 2, 15.25.5). They have the format of the host's own tables in
//! long mode, with four levels.
//!
//! ```text
//!  63  62       52 51              12 11    9  8   7   6   5   4    3    2   1   0
//! +--+------------+------------------+-------+---+---+---+---+----+----+---+---+---+
//! |NX| ignored    | physical address |ignored| G | PS| D | A | PCD| PWT| U | W | P |
//! +--+------------+------------------+-------+---+---+---+---+----+----+---+---+---+
//! ```

use bulkhead::memory::Hpa;
use bulkhead::memory::table::{Format, Perm, Slot};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
/// Every access of a guest counts as one of user mode (15.25.5).
const USER: u64 = 1 << 2;
/// PWT and PCD: with the guest's own attribute, not cached.
const UNCACHED: u64 = 3 << 3;
/// A and D, so that the CPU need not write them.
const ACCESSED_DIRTY: u64 = 3 << 5;
/// PS: the entry of a level above 0 is a leaf.
const LEAF: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The format of nested page tables.
pub struct Npt;

impl Format for Npt {
    const LARGEST_LEAF: u32 = 2;

    fn root(_bits: u32) -> (u32, usize) {
        (3, 1)
    }

    fn table(next: Hpa) -> u64 {
        next.0 & ADDRESS | PRESENT | WRITE | USER
    }

    fn leaf(page: Hpa, level: u32, perm: Perm) -> u64 {
        let mut entry = page.0 & ADDRESS | PRESENT | USER | ACCESSED_DIRTY;
        if level > 0 {
            entry |= LEAF;
        }
        if perm.write {
            entry |= WRITE;
        }
        if !perm.execute {
            entry |= NO_EXECUTE;
        }
        if perm.device {
            entry |= UNCACHED;
        }
        entry
    }

    fn decode(entry: u64, level: u32) -> Slot {
        let address = Hpa(entry & ADDRESS);
        match (entry & PRESENT != 0, level == 0 || entry & LEAF != 0) {
            (false, _) => Slot::Empty,
            (true, true) => Slot::Leaf(address),
            (true, false) => Slot::Table(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_those_of_the_manual() {
        assert_eq!(Npt::leaf(Hpa(0x4000_0000), 2, Perm::RAM), 0x4000_00e7);
        assert_eq!(Npt::leaf(Hpa(0x1000), 0, Perm::RAM), 0x1067);
        assert_eq!(Npt::leaf(Hpa(0x1000), 0, Perm::CODE), 0x1065);
        assert_eq!(Npt::leaf(Hpa(0x1000), 0, Perm::DEVICE), 0x8000_0000_0000_107f);
        assert_eq!(Npt::table(Hpa(0x2000)), 0x2007);
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        for level in 0..=Npt::LARGEST_LEAF {
            let page = Hpa(0x40_0000_0000);
            assert_eq!(Npt::decode(Npt::leaf(page, level, Perm::RAM), level), Slot::Leaf(page));
        }
        assert_eq!(Npt::decode(Npt::table(Hpa(0x5000)), 1), Slot::Table(Hpa(0x5000)));
        assert_eq!(Npt::decode(0, 1), Slot::Empty);
    }
}
