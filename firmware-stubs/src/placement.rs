//! Where the kernel, the device tree and the initial RAM disk of an Arm guest go in its RAM.
//!
//! ```text
//! RAM  |        kernel (as its format says)        | device tree |  initrd   |  free ...  |
//!              ^ load address                      ^ 2 MiB       ^ page
//! ```
//! Pure. The rules are those of Linux, Documentation/arch/arm64/booting.rst; a guest that is not Linux is placed alike.

use bulkhead_vdev::Gpa;
use core::fmt;

/// A range of guest-physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first byte.
    pub start: Gpa,
    /// How many.
    pub bytes: u64,
}

impl Extent {
    /// The first byte behind it; the end of the address space if it would lie beyond.
    #[must_use]
    pub const fn end(self) -> Gpa {
        Gpa(self.start.0.saturating_add(self.bytes))
    }
}

/// What has to be placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The guest's RAM; the first bank if there are several.
    pub ram: Extent,
    /// The kernel with its zeroed data, where its format wants it.
    pub kernel: Extent,
    /// Size of the initial RAM disk, if there is one.
    pub initrd_bytes: Option<u64>,
    /// Size of the device tree.
    pub device_tree_bytes: u64,
}

/// Where everything goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// As requested.
    pub kernel: Extent,
    /// At the start of a 2 MiB block that is its own but for the initial RAM disk.
    pub device_tree: Extent,
    /// From a page's start.
    pub initrd: Option<Extent>,
}

/// The most a device tree may take, and its alignment: Linux maps it with one such block.
const DEVICE_TREE_BLOCK: u64 = 2 << 20;
const PAGE: u64 = 4096;
/// Kernel and initial RAM disk lie in one window of this size that starts at a multiple of [`WINDOW_ALIGNMENT`].
const WINDOW: u64 = 32 << 30;
const WINDOW_ALIGNMENT: u64 = 1 << 30;

/// Why a guest's files cannot be placed. Displays as one line with the mend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DoesNotFit {
    /// The kernel's place is not in RAM.
    KernelOutsideRam {
        /// Where it wants to be.
        kernel: Extent,
        /// What there is.
        ram: Extent,
    },
    /// RAM is too small for all together.
    RamTooSmall {
        /// What they take, from the start of RAM.
        needed_bytes: u64,
        /// What there is.
        ram_bytes: u64,
    },
    /// The device tree is larger than guests accept.
    DeviceTreeTooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The end of the initial RAM disk is too far from the kernel.
    InitrdTooFar {
        /// Its size.
        bytes: u64,
    },
}

impl Request {
    /// Finds a place for everything.
    ///
    /// # Errors
    /// [`DoesNotFit`] with the figures.
    pub fn place(&self) -> Result<Placement, DoesNotFit> {
        self.check_kernel()?;
        if self.device_tree_bytes > DEVICE_TREE_BLOCK {
            return Err(DoesNotFit::DeviceTreeTooLarge { bytes: self.device_tree_bytes });
        }
        let device_tree = Extent {
            start: self.next(self.kernel, DEVICE_TREE_BLOCK, self.device_tree_bytes)?,
            bytes: self.device_tree_bytes,
        };
        let initrd = match self.initrd_bytes {
            None => None,
            Some(bytes) => Some(Extent { start: self.next(device_tree, PAGE, bytes)?, bytes }),
        };
        if let Some(initrd) = initrd {
            let window = self.kernel.start.0 / WINDOW_ALIGNMENT * WINDOW_ALIGNMENT;
            if initrd.end().0 - window > WINDOW {
                return Err(DoesNotFit::InitrdTooFar { bytes: initrd.bytes });
            }
        }
        Ok(Placement { kernel: self.kernel, device_tree, initrd })
    }

    fn check_kernel(&self) -> Result<(), DoesNotFit> {
        let end = self.kernel.start.0.checked_add(self.kernel.bytes);
        let fits = end.is_some_and(|end| end <= self.ram.end().0);
        if self.kernel.start >= self.ram.start && fits {
            return Ok(());
        }
        Err(DoesNotFit::KernelOutsideRam { kernel: self.kernel, ram: self.ram })
    }

    /// The first place for `bytes` behind `before`, at a multiple of `alignment`.
    fn next(&self, before: Extent, alignment: u64, bytes: u64) -> Result<Gpa, DoesNotFit> {
        let start = before.end().0.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let end = start.saturating_add(bytes);
        if end > self.ram.end().0 {
            return Err(DoesNotFit::RamTooSmall {
                needed_bytes: end.saturating_sub(self.ram.start.0),
                ram_bytes: self.ram.bytes,
            });
        }
        Ok(Gpa(start))
    }
}

/// Bytes in MiB, rounded up, as messages say them.
struct Mebibytes(u64);

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0.div_ceil(1 << 20))
    }
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::KernelOutsideRam { kernel, ram } => write!(
                f,
                "the kernel takes {} at {}, but RAM is {} from {}; raise `ram` or change where the kernel is loaded",
                Mebibytes(kernel.bytes),
                kernel.start,
                Mebibytes(ram.bytes),
                ram.start
            ),
            Self::RamTooSmall { needed_bytes, ram_bytes } => write!(
                f,
                "kernel, device tree and initrd reach {} into RAM of {}; raise `ram` or use a smaller initrd",
                Mebibytes(needed_bytes),
                Mebibytes(ram_bytes)
            ),
            Self::DeviceTreeTooLarge { bytes } => {
                write!(
                    f,
                    "the device tree takes {bytes} bytes, more than the 2 MiB that guests accept; shorten `cmdline`"
                )
            }
            Self::InitrdTooFar { bytes } => {
                write!(
                    f,
                    "an initrd of {} ends more than 32 GiB behind the kernel; use a smaller initrd",
                    Mebibytes(bytes)
                )
            }
        }
    }
}

impl core::error::Error for DoesNotFit {}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_vdev::virt;
    use proptest::prelude::*;
    use std::string::ToString;

    const MIB: u64 = 1 << 20;

    fn request(ram_mib: u64, kernel_offset: u64, kernel_mib: u64, initrd_bytes: Option<u64>) -> Request {
        Request {
            ram: Extent { start: virt::RAM, bytes: ram_mib * MIB },
            kernel: Extent { start: Gpa(virt::RAM.0 + kernel_offset), bytes: kernel_mib * MIB },
            initrd_bytes,
            device_tree_bytes: 3000,
        }
    }

    #[test]
    fn a_small_machine_holds_a_debian_kernel_and_an_initrd() {
        let placement = request(64, 0, 27, Some(8 * MIB + 5)).place().unwrap();
        assert_eq!(placement.device_tree.start, Gpa(0x4000_0000 + 28 * MIB));
        let initrd = Extent { start: Gpa(0x4000_0000 + 28 * MIB + 4096), bytes: 8 * MIB + 5 };
        assert_eq!(placement.initrd, Some(initrd));
    }

    #[test]
    fn a_large_machine_keeps_everything_near_the_kernel() {
        let placement = request(3072, 0x8_0000, 27, Some(200 * MIB)).place().unwrap();
        assert_eq!(placement.kernel.start, Gpa(0x4008_0000));
        assert!(placement.initrd.unwrap().end().0 < 0x4000_0000 + 256 * MIB);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_figures() {
        let refusal = request(64, 0, 27, Some(40 * MIB)).place().unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "kernel, device tree and initrd reach 69 MiB into RAM of 64 MiB; raise `ram` or use a smaller initrd"
        );
        let refusal = request(16, 0, 27, None).place().unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "the kernel takes 27 MiB at 0x40000000, but RAM is 16 MiB from 0x40000000; raise `ram` or change where the kernel is loaded"
        );
    }

    #[test]
    fn a_kernel_below_ram_or_beyond_all_addresses_is_refused() {
        let mut below = request(64, 0, 1, None);
        below.kernel.start = Gpa(0);
        assert!(matches!(below.place(), Err(DoesNotFit::KernelOutsideRam { .. })));
        let mut beyond = request(64, 0, 1, None);
        beyond.kernel.bytes = u64::MAX;
        assert!(matches!(beyond.place(), Err(DoesNotFit::KernelOutsideRam { .. })));
    }

    #[test]
    fn an_initrd_beyond_the_window_is_refused() {
        let far = request(64 << 10, 0, 1, Some(33 << 30));
        assert_eq!(far.place(), Err(DoesNotFit::InitrdTooFar { bytes: 33 << 30 }));
    }

    #[test]
    fn a_device_tree_beyond_2_mib_is_refused() {
        let large = Request { device_tree_bytes: 2 * MIB + 1, ..request(64, 0, 1, None) };
        assert_eq!(large.place(), Err(DoesNotFit::DeviceTreeTooLarge { bytes: 2 * MIB + 1 }));
    }

    proptest! {
        #[test]
        fn places_are_in_ram_in_order_and_apart(
            ram_mib in 1_u64..4096,
            offset in 0_u64..64 * MIB,
            kernel_mib in 0_u64..128,
            initrd in proptest::option::of(any::<u64>()),
            small in 0_u64..256 * MIB,
            device_tree_bytes in 1_u64..3 * MIB,
        ) {
            let initrd_bytes = initrd.map(|bytes| if bytes % 4 == 0 { bytes } else { small });
            let request = Request { device_tree_bytes, ..request(ram_mib, offset, kernel_mib, initrd_bytes) };
            if let Ok(placement) = request.place() {
                let tree = placement.device_tree;
                prop_assert!(placement.kernel.end() <= tree.start);
                prop_assert_eq!(tree.start.0 / DEVICE_TREE_BLOCK, (tree.end().0 - 1) / DEVICE_TREE_BLOCK);
                prop_assert!(tree.end() <= request.ram.end());
                if let Some(initrd) = placement.initrd {
                    prop_assert!(tree.end() <= initrd.start && initrd.end() <= request.ram.end());
                    prop_assert_eq!(initrd.start.0 % PAGE, 0);
                }
            }
        }
    }
}
