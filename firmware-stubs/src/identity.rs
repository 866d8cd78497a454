//! Page tables that map the first 4 GiB to themselves, as 64-bit Linux is entered with (SDM Vol. 3A, 4.5).
//!
//! ```text
//! ROOT    PML4: 1 entry -> PDPT: 4 entries -> 4 page directories: 512 pages of 2 MiB each
//! ```
//! The same for every guest, so they are made once, while compiling.

use crate::pc_placement::CONVENTIONAL;
use bulkhead_vdev::Gpa;

/// Where they have to lie: they hold their own addresses.
pub(crate) const ROOT: Gpa = CONVENTIONAL;

const PAGE: usize = 4096;
const COUNT: usize = 6;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// Their bytes.
pub(crate) static TABLES: [u8; PAGE * COUNT] = tables();

const fn tables() -> [u8; PAGE * COUNT] {
    let mut bytes = [0; PAGE * COUNT];
    set(&mut bytes, 0, table(1) | PRESENT_WRITABLE);
    let mut index = 0;
    while index < 4 {
        set(&mut bytes, PAGE / 8 + index, table(2 + index) | PRESENT_WRITABLE);
        index += 1;
    }
    let mut page = 0;
    while page < 4 * 512 {
        set(&mut bytes, 2 * PAGE / 8 + page, (page as u64) << 21 | LARGE | PRESENT_WRITABLE);
        page += 1;
    }
    bytes
}

const fn table(index: usize) -> u64 {
    ROOT.0 + (index * PAGE) as u64
}

const fn set(bytes: &mut [u8], entry: usize, value: u64) {
    let value = value.to_le_bytes();
    let mut at = 0;
    while at < 8 {
        bytes[entry * 8 + at] = value[at];
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(table: u64, index: u64) -> u64 {
        let at = usize::try_from(table - ROOT.0 + index * 8).unwrap();
        u64::from_le_bytes(TABLES[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn each_address_below_4_gib_is_mapped_to_itself() {
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        for at in (0..4_u64 << 30).step_by(2 << 20) {
            let third = entry(ROOT.0, at >> 39);
            let second = entry(third & ADDRESS, at >> 30);
            let first = entry(second & ADDRESS, at >> 21 & 0x1ff);
            assert_eq!([third & 0x83, second & 0x83, first], [3, 3, at | 0x83], "{at:#x}");
        }
    }
}
