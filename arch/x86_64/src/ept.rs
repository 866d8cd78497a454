//! Extended page tables (SDM Vol. 3C, 29.3.2): the second stage of VMX, guest-physical to host-physical.

use bulkhead::memory::Hpa;
use bulkhead::memory::table::{Format, Perm, Slot};

/// Bits 2:0: what is allowed; an entry that allows nothing is not present.
const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const ANY: u64 = READ | WRITE | EXECUTE;
/// Bits 5:3 of a leaf: its memory type. The guest's PAT may weaken write-back; devices are uncached.
const WRITE_BACK: u64 = 6 << 3;
const UNCACHED: u64 = 0;
/// Bit 7: a leaf above level 0.
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// EPTP (25.6.11): tables are cached write-back, and the walk has four levels (less one, in bits 5:3).
const POINTER_WRITE_BACK: u64 = 6;
const POINTER_FOUR_LEVELS: u64 = 3 << 3;

/// Stage 2 of a guest under VMX.
pub struct Ept;

impl Ept {
    /// The EPT pointer for the tables with this root.
    #[must_use]
    pub fn pointer(root: Hpa) -> u64 {
        root.0 & ADDRESS | POINTER_FOUR_LEVELS | POINTER_WRITE_BACK
    }
}

impl Format for Ept {
    const LARGEST_LEAF: u32 = 2;

    /// Four levels whatever the address size: five are a different EPTP, and no guest here is that large.
    fn root(_bits: u32) -> (u32, usize) {
        (3, 1)
    }

    fn table(next: Hpa) -> u64 {
        next.0 & ADDRESS | ANY
    }

    fn leaf(page: Hpa, level: u32, perm: Perm) -> u64 {
        let mut entry = page.0 & ADDRESS | READ | if perm.device { UNCACHED } else { WRITE_BACK };
        if level > 0 {
            entry |= LARGE;
        }
        if perm.write {
            entry |= WRITE;
        }
        if perm.execute {
            entry |= EXECUTE;
        }
        entry
    }

    fn decode(entry: u64, level: u32) -> Slot {
        let page = Hpa(entry & ADDRESS);
        match entry & ANY {
            0 => Slot::Empty,
            _ if level == 0 || entry & LARGE != 0 => Slot::Leaf(page),
            _ => Slot::Table(page),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_those_of_the_manual() {
        assert_eq!(Ept::leaf(Hpa(0x4000_0000), 2, Perm::RAM), 0x4000_00b7);
        assert_eq!(Ept::leaf(Hpa(0x20_0000), 1, Perm::RAM), 0x20_00b7);
        assert_eq!(Ept::leaf(Hpa(0x1000), 0, Perm::RAM), 0x1037);
        assert_eq!(Ept::leaf(Hpa(0x1000), 0, Perm::CONSTANT), 0x1031);
        assert_eq!(Ept::leaf(Hpa(0xfed0_0000), 0, Perm::DEVICE), 0xfed0_0003);
        assert_eq!(Ept::table(Hpa(0x5000)), 0x5007);
        assert_eq!(Ept::pointer(Hpa(0x7000)), 0x701e);
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        for level in 0..=Ept::LARGEST_LEAF {
            for perm in [Perm::RAM, Perm::DATA, Perm::CONSTANT, Perm::CODE, Perm::DEVICE] {
                let page = Hpa(0x40_0000_0000);
                assert_eq!(Ept::decode(Ept::leaf(page, level, perm), level), Slot::Leaf(page));
            }
        }
        for level in 1..=3 {
            assert_eq!(Ept::decode(Ept::table(Hpa(0x5000)), level), Slot::Table(Hpa(0x5000)));
        }
        assert_eq!(Ept::decode(0, 1), Slot::Empty);
    }
}
