//! Translation tables of the Arm architecture, 4 KiB granule (Arm ARM D8.3): a guest's second stage, and EL2's own first.

use bulkhead::memory::Hpa;
use bulkhead::memory::table::{Format, Perm, Slot};

/// Bits 1:0: a table or a page; a block has bit 1 clear.
const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 3;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// AF: accessed, so that no access flag fault comes.
const ACCESSED: u64 = 1 << 10;
/// SH: inner shareable.
const INNER_SHAREABLE: u64 = 3 << 8;

/// Levels of blocks: 1 GiB.
const LARGEST_BLOCK: u32 = 2;

fn decode(entry: u64, level: u32) -> Slot {
    let page = Hpa(entry & ADDRESS);
    match entry & TABLE_OR_PAGE {
        TABLE_OR_PAGE if level > 0 => Slot::Table(page),
        TABLE_OR_PAGE => Slot::Leaf(page),
        VALID if level > 0 => Slot::Leaf(page),
        _ => Slot::Empty,
    }
}

const fn leaf(page: Hpa, level: u32) -> u64 {
    let kind = if level == 0 { TABLE_OR_PAGE } else { VALID };
    page.0 & ADDRESS | ACCESSED | kind
}

/// Stage 2 (Arm ARM D8.3.2, D8.5): guest-physical to host-physical.
pub struct Vmsa;

/// MemAttr (D8.6.5): normal memory, write-back in both caches; Device-nGnRnE.
const STAGE_2_NORMAL: u64 = 0xf << 2;
/// S2AP (D8.4.2).
const STAGE_2_READ: u64 = 1 << 6;
const STAGE_2_WRITE: u64 = 1 << 7;
/// XN: neither EL1 nor EL0 executes.
const STAGE_2_NO_EXECUTE: u64 = 1 << 54;

impl Format for Vmsa {
    const LARGEST_LEAF: u32 = LARGEST_BLOCK;

    /// Up to 43 bits the root is that of level 1, of up to 16 tables in a row (D8.2.5, concatenated tables).
    fn root(bits: u32) -> (u32, usize) {
        match bits {
            0..=39 => (2, 1),
            40..=43 => (2, 1 << (bits - 39)),
            _ => (3, 1),
        }
    }

    fn table(next: Hpa) -> u64 {
        next.0 & ADDRESS | TABLE_OR_PAGE
    }

    fn leaf(page: Hpa, level: u32, perm: Perm) -> u64 {
        let mut entry = leaf(page, level) | STAGE_2_READ;
        if perm.write {
            entry |= STAGE_2_WRITE;
        }
        if !perm.execute {
            entry |= STAGE_2_NO_EXECUTE;
        }
        if perm.device { entry } else { entry | STAGE_2_NORMAL | INNER_SHAREABLE }
    }

    fn decode(entry: u64, level: u32) -> Slot {
        decode(entry, level)
    }
}

/// EL2's own stage 1 (Arm ARM D8.3.1); with `VHE`, that of the EL2&0 regime.
pub struct Own<const VHE: bool>;

/// `AttrIndx` into the MAIR_EL2 that [`MAIR`] is.
const STAGE_1_DEVICE: u64 = 1 << 2;
/// AP: read-only; and bit 6, which is RES1 where EL2 has no EL0, and gives EL0 access where it has.
const STAGE_1_READ_ONLY: u64 = 1 << 7;
const STAGE_1_RES1: u64 = 1 << 6;
/// XN without VHE, UXN with; PXN is RES0 without.
const STAGE_1_NO_EXECUTE: u64 = 1 << 54;
const STAGE_1_NO_PRIVILEGED_EXECUTE: u64 = 1 << 53;

/// MAIR_EL2: attribute 0 is normal memory, write-back; attribute 1 Device-nGnRnE.
pub const MAIR: u64 = 0xff;

impl<const VHE: bool> Format for Own<VHE> {
    const LARGEST_LEAF: u32 = LARGEST_BLOCK;

    fn root(_bits: u32) -> (u32, usize) {
        (3, 1)
    }

    fn table(next: Hpa) -> u64 {
        next.0 & ADDRESS | TABLE_OR_PAGE
    }

    fn leaf(page: Hpa, level: u32, perm: Perm) -> u64 {
        let mut entry = leaf(page, level);
        if !VHE {
            entry |= STAGE_1_RES1;
        }
        if !perm.write {
            entry |= STAGE_1_READ_ONLY;
        }
        if VHE || !perm.execute {
            entry |= STAGE_1_NO_EXECUTE;
        }
        if VHE && !perm.execute {
            entry |= STAGE_1_NO_PRIVILEGED_EXECUTE;
        }
        if perm.device { entry | STAGE_1_DEVICE } else { entry | INNER_SHAREABLE }
    }

    fn decode(entry: u64, level: u32) -> Slot {
        decode(entry, level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_stage_2_are_those_of_the_manual() {
        assert_eq!(Vmsa::leaf(Hpa(0x4000_0000), 2, Perm::RAM), 0x4000_07fd);
        assert_eq!(Vmsa::leaf(Hpa(0x4000_1000), 0, Perm::RAM), 0x4000_17ff);
        assert_eq!(Vmsa::leaf(Hpa(0x0900_0000), 0, Perm::DEVICE), 0x0040_0000_0900_04c3);
        assert_eq!(Vmsa::table(Hpa(0x4000_2000)), 0x4000_2003);
    }

    #[test]
    fn entries_of_stage_1_never_write_and_execute() {
        assert_eq!(Own::<false>::leaf(Hpa(0x1000), 0, Perm::CODE), 0x17c3);
        assert_eq!(Own::<false>::leaf(Hpa(0x1000), 0, Perm::DATA), 0x0040_0000_0000_1743);
        assert_eq!(Own::<true>::leaf(Hpa(0x1000), 0, Perm::CODE), 0x0040_0000_0000_1783);
        assert_eq!(Own::<true>::leaf(Hpa(0x1000), 0, Perm::DATA), 0x0060_0000_0000_1703);
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        for level in 0..=LARGEST_BLOCK {
            let page = Hpa(0x40_0000_0000);
            assert_eq!(Vmsa::decode(Vmsa::leaf(page, level, Perm::RAM), level), Slot::Leaf(page));
            assert_eq!(
                Own::<true>::decode(Own::<true>::leaf(page, level, Perm::DATA), level),
                Slot::Leaf(page)
            );
        }
        assert_eq!(Vmsa::decode(Vmsa::table(Hpa(0x5000)), 1), Slot::Table(Hpa(0x5000)));
        assert_eq!(Vmsa::decode(0, 1), Slot::Empty);
        assert_eq!(Vmsa::decode(1, 0), Slot::Empty, "a block at the last level is reserved");
    }

    #[test]
    fn forty_bits_take_a_root_of_two_tables() {
        assert_eq!(Vmsa::root(40), (2, 2));
        assert_eq!(Vmsa::root(36), (2, 1));
        assert_eq!(Vmsa::root(44), (3, 1));
    }
}
