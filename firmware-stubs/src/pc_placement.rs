//! What lies where in the RAM of an x86 guest when it starts.
//!
//! ```text
//! 0x00400   BIOS data area
//! 0x01000   |  what the boot protocol asks for; parts of a kernel that wants to be here
//! 0x9fc00   extended BIOS data area
//! 0xa0000   nothing
//! 0xe0000   ACPI tables
//! 1 MiB     |  kernel, initial RAM disk, up to the end of RAM or to 3 GiB
//! ```
//! Pure: a kernel says where it wants to be, [`Layout`] finds places for the rest, and nothing overlaps.

use crate::placement::Extent;
use alloc::vec::Vec;
use bulkhead_vdev::{Gpa, pc};
use core::fmt;

/// The BIOS data area: which ports there are, and how much RAM below 1 MiB.
pub const BIOS_DATA: Gpa = Gpa(0x400);
/// Where what has no place of its own may begin.
pub const CONVENTIONAL: Gpa = Gpa(0x1000);
/// The extended BIOS data area, 1 KiB, up to the end of RAM below 1 MiB.
pub const EXTENDED_BIOS_DATA: Gpa = Gpa(0x9_fc00);
/// The ACPI tables; the first is the RSDP, at one of the places where a guest looks for it (ACPI 6.5, 5.2.5.1).
pub const ACPI: Gpa = Gpa(0xe_0000);
/// Where RAM goes on above the places that belong to firmware.
pub const EXTENDED_RAM: Gpa = Gpa(0x10_0000);

/// The most zeros that one part of a kernel may have behind its bytes: each start copies them.
pub const MAX_ZEROS: u64 = 64 << 20;

/// The pieces of a guest's RAM of `bytes` together with the hole below 1 MiB: up to 640 KiB, from 768 KiB to 3 GiB, from
/// 4 GiB. Pieces may be empty.
#[must_use]
pub const fn ram(bytes: u64) -> [Extent; 3] {
    const fn piece(start: Gpa, end: u64) -> Extent {
        Extent { start, bytes: end.saturating_sub(start.0) }
    }
    const fn least(a: u64, b: u64) -> u64 {
        if a < b { a } else { b }
    }
    let above = bytes.saturating_sub(pc::HOLE.0);
    [
        piece(Gpa(0), least(bytes, pc::LOW_RAM_END.0)),
        piece(pc::FIRMWARE_RAM, least(bytes, pc::HOLE.0)),
        Extent { start: pc::HIGH_RAM, bytes: above },
    ]
}

/// Where everything lies, as far as it is decided.
#[derive(Clone, Debug)]
pub struct Layout {
    extended_end: u64,
    taken: Vec<Extent>,
}

/// What is placed, for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The kernel or a piece of it.
    Kernel,
    /// The initial RAM disk.
    Initrd,
    /// What the boot protocol asks for.
    BootData,
}

/// Why a guest's files cannot be placed. Displays as one line with the mend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DoesNotFit {
    /// A part of the kernel wants to lie where no RAM is that a kernel may have.
    OutsideRam {
        /// That part.
        extent: Extent,
        /// Where RAM below 4 GiB ends.
        ram_end: Gpa,
    },
    /// Two parts of the kernel want the same place.
    Overlap {
        /// The second.
        extent: Extent,
    },
    /// No place is left that is large enough.
    NoRoom {
        /// What it is for.
        part: Part,
        /// Its size.
        bytes: u64,
        /// Where it has to end at the latest.
        end: Gpa,
    },
    /// A part of the kernel has more zeros than are kept count of.
    TooManyZeros {
        /// How many.
        bytes: u64,
    },
    /// The kernel takes a shorter command line.
    CommandLineTooLong {
        /// Its length in bytes.
        bytes: u64,
        /// The longest that the kernel takes.
        most: u64,
    },
}

impl Layout {
    /// An empty machine with `ram_bytes` of RAM.
    #[must_use]
    pub fn new(ram_bytes: u64) -> Self {
        Self { extended_end: ram(ram_bytes)[1].end().0, taken: Vec::new() }
    }

    /// Takes the place that a part of the kernel wants; an empty one takes none.
    ///
    /// # Errors
    /// [`DoesNotFit::OutsideRam`], [`DoesNotFit::Overlap`].
    pub fn claim(&mut self, extent: Extent) -> Result<(), DoesNotFit> {
        if extent.bytes == 0 {
            return Ok(());
        }
        let end = extent.start.0.checked_add(extent.bytes);
        let is_inside =
            |(start, last): (u64, u64)| extent.start.0 >= start && end.is_some_and(|end| end <= last);
        if !self.ranges().into_iter().any(is_inside) {
            return Err(DoesNotFit::OutsideRam { extent, ram_end: Gpa(self.extended_end) });
        }
        if !self.is_free(extent) {
            return Err(DoesNotFit::Overlap { extent });
        }
        self.taken.push(extent);
        Ok(())
    }

    /// Takes the lowest place below 640 KiB.
    ///
    /// # Errors
    /// [`DoesNotFit::NoRoom`].
    pub fn take_low(&mut self, part: Part, bytes: u64, alignment: u64) -> Result<Gpa, DoesNotFit> {
        let [low, _] = self.ranges();
        self.take_lowest(part, low, bytes, alignment)
    }

    /// Takes the lowest place above 1 MiB and `from`.
    ///
    /// # Errors
    /// [`DoesNotFit::NoRoom`].
    pub fn take_from(
        &mut self,
        from: Gpa,
        part: Part,
        bytes: u64,
        alignment: u64,
    ) -> Result<Gpa, DoesNotFit> {
        let [_, (start, end)] = self.ranges();
        self.take_lowest(part, (start.max(from.0), end), bytes, alignment)
    }

    /// Takes the highest place above 1 MiB that ends at `end` at the latest.
    ///
    /// # Errors
    /// [`DoesNotFit::NoRoom`].
    pub fn take_top(&mut self, part: Part, bytes: u64, alignment: u64, end: u64) -> Result<Gpa, DoesNotFit> {
        let [_, (first, last)] = self.ranges();
        let end = end.min(last);
        let ends = core::iter::once(end).chain(self.taken.iter().map(|taken| taken.start.0));
        let place = ends
            .filter(|&at| at <= end)
            .filter_map(|at| at.checked_sub(bytes))
            .map(|start| start / alignment * alignment)
            .filter(|&start| start >= first && self.is_free(Extent { start: Gpa(start), bytes }))
            .max();
        self.take(part, place, bytes, end)
    }

    fn take_lowest(
        &mut self,
        part: Part,
        (first, end): (u64, u64),
        bytes: u64,
        alignment: u64,
    ) -> Result<Gpa, DoesNotFit> {
        let starts = core::iter::once(first).chain(self.taken.iter().map(|taken| taken.end().0));
        let fits = |&start: &u64| start.checked_add(bytes).is_some_and(|behind| behind <= end);
        let place = starts
            .filter_map(|start| start.checked_next_multiple_of(alignment))
            .filter(|&start| start >= first)
            .filter(fits)
            .filter(|&start| self.is_free(Extent { start: Gpa(start), bytes }))
            .min();
        self.take(part, place, bytes, end)
    }

    fn take(&mut self, part: Part, place: Option<u64>, bytes: u64, end: u64) -> Result<Gpa, DoesNotFit> {
        let start = place.map(Gpa).ok_or(DoesNotFit::NoRoom { part, bytes, end: Gpa(end) })?;
        self.taken.push(Extent { start, bytes });
        Ok(start)
    }

    /// The two ranges in which something may lie: below 640 KiB and above 1 MiB.
    fn ranges(&self) -> [(u64, u64); 2] {
        [(CONVENTIONAL.0, EXTENDED_BIOS_DATA.0), (EXTENDED_RAM.0, self.extended_end)]
    }

    fn is_free(&self, extent: Extent) -> bool {
        self.taken.iter().all(|taken| extent.end() <= taken.start || taken.end() <= extent.start)
    }
}

/// Bytes in MiB or KiB, rounded up, as messages say them.
struct Rounded(u64);

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1 << 20 {
            return write!(f, "{} KiB", self.0.div_ceil(1 << 10));
        }
        write!(f, "{} MiB", self.0.div_ceil(1 << 20))
    }
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OutsideRam { extent, ram_end } => write!(
                f,
                "the kernel takes {} at {}, but it may only lie from {CONVENTIONAL} to {EXTENDED_BIOS_DATA} and from \
                 {EXTENDED_RAM} to {ram_end}; raise `ram` or link it elsewhere",
                Rounded(extent.bytes),
                extent.start,
            ),
            Self::Overlap { extent } => write!(
                f,
                "two parts of the kernel overlap at {}, where one takes {}; link it anew",
                extent.start,
                Rounded(extent.bytes),
            ),
            Self::NoRoom { part: Part::Initrd, bytes, end } => write!(
                f,
                "an initrd of {} finds no room beside the kernel, below {end}; raise `ram` or use a smaller initrd",
                Rounded(bytes),
            ),
            Self::NoRoom { bytes, end, .. } => write!(
                f,
                "the kernel leaves no {} free below {end} for what the firmware says to it; link it elsewhere",
                Rounded(bytes),
            ),
            Self::TooManyZeros { bytes } => write!(
                f,
                "the kernel has {} of zeroed data in one piece, more than {}; let it clear its memory itself",
                Rounded(bytes),
                Rounded(MAX_ZEROS),
            ),
            Self::CommandLineTooLong { bytes, most } => write!(
                f,
                "the command line has {bytes} bytes, more than the {most} that this kernel takes; shorten it",
            ),
        }
    }
}

impl core::error::Error for DoesNotFit {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    const MIB: u64 = 1 << 20;

    const fn extent(start: u64, bytes: u64) -> Extent {
        Extent { start: Gpa(start), bytes }
    }

    #[test]
    fn ram_has_a_hole_for_video_memory_and_one_for_devices() {
        assert_eq!(
            ram(5 << 30),
            [extent(0, 0xa_0000), extent(0xc_0000, 0xbff4_0000), extent(4 << 30, 2 << 30)]
        );
        assert_eq!(ram(2 * MIB), [extent(0, 0xa_0000), extent(0xc_0000, 0x14_0000), extent(4 << 30, 0)]);
        assert_eq!(ram(0).map(|piece| piece.bytes), [0; 3]);
    }

    #[test]
    fn boot_data_goes_below_640_kib_beside_a_kernel_that_is_there() {
        let mut layout = Layout::new(64 * MIB);
        layout.claim(extent(0x1000, 0x7000)).unwrap();
        assert_eq!(layout.take_low(Part::BootData, 0x2000, 4096), Ok(Gpa(0x8000)));
        assert_eq!(layout.take_low(Part::BootData, 1, 16), Ok(Gpa(0xa000)));
        let refusal = layout.take_low(Part::BootData, 0xa_0000, 1).unwrap_err().to_string();
        assert_eq!(
            refusal,
            "the kernel leaves no 640 KiB free below 0x9fc00 for what the firmware says to it; link it elsewhere"
        );
    }

    #[test]
    fn an_initrd_goes_to_the_top_or_behind_the_kernel() {
        let mut layout = Layout::new(64 * MIB);
        layout.claim(extent(16 * MIB, 20 * MIB)).unwrap();
        assert_eq!(layout.take_top(Part::Initrd, 5000, 4096, u64::MAX), Ok(Gpa(64 * MIB - 8192)));
        assert_eq!(layout.take_top(Part::Initrd, 5000, 4096, 34 * MIB), Ok(Gpa(16 * MIB - 8192)));
        assert_eq!(layout.take_from(Gpa(36 * MIB), Part::Initrd, 1, 4096), Ok(Gpa(36 * MIB)));
        assert_eq!(layout.take_from(Gpa(0), Part::Initrd, 1, 4096), Ok(EXTENDED_RAM));
        let refusal = layout.take_top(Part::Initrd, 40 * MIB, 4096, u64::MAX).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "an initrd of 40 MiB finds no room beside the kernel, below 0x4000000; raise `ram` or use a smaller initrd"
        );
    }

    #[test]
    fn a_kernel_lies_in_ram_and_not_on_itself() {
        let mut layout = Layout::new(64 * MIB);
        for start in [0, 0x9_f000, 0xa_0000, 0xc_0000, 63 * MIB + 1, 4 << 30, u64::MAX] {
            let refusal = layout.claim(extent(start, MIB)).unwrap_err();
            assert!(matches!(refusal, DoesNotFit::OutsideRam { .. }), "{start:#x}");
        }
        layout.claim(extent(0x10_0000, MIB)).unwrap();
        layout.claim(extent(0x20_0000, MIB)).unwrap();
        layout.claim(extent(0, 0)).unwrap();
        let refusal = layout.claim(extent(0x1f_ffff, 1)).unwrap_err().to_string();
        assert_eq!(
            refusal,
            "two parts of the kernel overlap at 0x1fffff, where one takes 1 KiB; link it anew"
        );
    }

    proptest! {
        #[test]
        fn what_is_taken_is_aligned_inside_ram_and_apart(
            mib in 2_u64..4096,
            wishes in proptest::collection::vec((0..4_u8, any::<u32>(), 0..1_u64 << 24, 0..14_u32), 1..20),
        ) {
            let mut layout = Layout::new(mib * MIB);
            for (kind, place, bytes, alignment) in wishes {
                let (bytes, alignment) = (bytes + 1, 1 << alignment);
                let place = u64::from(place);
                let taken = match kind {
                    0 => layout.claim(extent(place, bytes)).map(|()| Gpa(place)),
                    1 => layout.take_low(Part::BootData, bytes, alignment),
                    2 => layout.take_from(Gpa(place), Part::Initrd, bytes, alignment),
                    _ => layout.take_top(Part::Initrd, bytes, alignment, place),
                };
                if let Ok(start) = taken {
                    prop_assert!(kind == 0 || start.0.is_multiple_of(alignment));
                    prop_assert!(kind != 3 || start.0 + bytes <= place);
                }
            }
            let mut taken = layout.taken.clone();
            taken.sort_by_key(|extent| extent.start);
            for pair in taken.windows(2) {
                prop_assert!(pair[0].end() <= pair[1].start);
            }
            for extent in taken {
                let [(_, low_end), (high, high_end)] = layout.ranges();
                prop_assert!(extent.end().0 <= low_end || extent.start.0 >= high && extent.end().0 <= high_end);
            }
        }
    }
}
