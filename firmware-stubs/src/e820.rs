//! The memory map of an x86 guest, as a PC's firmware reports it (ACPI 6.5, 15).
//!
//! ```text
//! 0 - 0x9fc00            RAM
//! 0x9fc00 - 0xa0000      reserved: extended BIOS data
//! 0xa0000 - 0xe0000      not listed: nothing that a guest is to use
//! 0xe0000 - 1 MiB        reserved: ACPI tables
//! 1 MiB - 3 GiB or less  RAM
//! 0xe0000000, 1 MiB      reserved: PCI configuration space
//! 4 GiB - ...            RAM that found no room below
//! ```

use crate::pc_placement::{ACPI, EXTENDED_BIOS_DATA, EXTENDED_RAM, ram};
use crate::placement::Extent;
use alloc::vec::Vec;
use bulkhead_vdev::{Gpa, pc};

/// What a region of the map is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// For the guest to use.
    Ram = 1,
    /// Not for the guest's use.
    Reserved = 2,
}

/// One region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Where it is.
    pub extent: Extent,
    /// What it is for.
    pub kind: Kind,
}

/// The map of a machine with `ram_bytes` of RAM, lowest address first.
#[must_use]
pub fn map(ram_bytes: u64) -> Vec<Region> {
    let region = |start: Gpa, end: Gpa, kind| Region {
        extent: Extent { start, bytes: end.0.saturating_sub(start.0) },
        kind,
    };
    let [_, below_4_gib, above_4_gib] = ram(ram_bytes);
    let configuration_end = Gpa(pc::PCI_ECAM.0 + pc::PCI_ECAM_BYTES);
    let mut regions = Vec::from([
        region(Gpa(0), EXTENDED_BIOS_DATA, Kind::Ram),
        region(EXTENDED_BIOS_DATA, pc::LOW_RAM_END, Kind::Reserved),
        region(ACPI, EXTENDED_RAM, Kind::Reserved),
        region(EXTENDED_RAM, below_4_gib.end(), Kind::Ram),
        region(pc::PCI_ECAM, configuration_end, Kind::Reserved),
        region(above_4_gib.start, above_4_gib.end(), Kind::Ram),
    ]);
    regions.retain(|region| region.extent.bytes > 0);
    regions
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ram_of(map: &[Region]) -> Vec<(u64, u64)> {
        let ram = map.iter().filter(|region| region.kind == Kind::Ram);
        ram.map(|region| (region.extent.start.0, region.extent.bytes)).collect()
    }

    #[test]
    fn a_small_machine_has_two_pieces_of_ram() {
        assert_eq!(ram_of(&map(64 << 20)), [(0, 0x9_fc00), (0x10_0000, 63 << 20)]);
    }

    #[test]
    fn ram_that_finds_no_room_below_the_devices_follows_above_4_gib() {
        let expected = [(0, 0x9_fc00), (0x10_0000, (3 << 30) - (1 << 20)), (4 << 30, 2 << 30)];
        assert_eq!(ram_of(&map(5 << 30)), expected);
    }

    proptest! {
        #[test]
        fn regions_are_in_order_and_apart(ram_bytes: u64) {
            for pair in map(ram_bytes).windows(2) {
                prop_assert!(pair[0].extent.end() <= pair[1].extent.start);
            }
        }

        #[test]
        fn what_is_called_ram_is_ram(mib in 2_u64..1_047_552) {
            for (start, bytes) in ram_of(&map(mib << 20)) {
                let inside = |piece: &Extent| piece.start.0 <= start && start + bytes <= piece.end().0;
                prop_assert!(ram(mib << 20).iter().any(inside));
            }
        }
    }
}
