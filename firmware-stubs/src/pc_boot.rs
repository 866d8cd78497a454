//! From a kernel file to a PC's memory and its first CPU's start, whatever the kernel's format.
//!
//! It recognises the format by content, lets the format's module say what has to lie where, and adds what firmware leaves on
//! every PC: BIOS data and ACPI tables. Pure: pieces of memory come out, and somebody else copies them.

use crate::acpi;
pub use crate::boot_data::Descriptors;
use crate::pc_placement::{BIOS_DATA, DoesNotFit, EXTENDED_BIOS_DATA};
use crate::{bzimage, multiboot1, pvh};
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_vdev::{Gpa, pc};
use core::fmt;
use core::ops::Range;

/// What is booted, besides the kernel itself.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// RAM, the hole below 1 MiB included.
    pub ram_bytes: u64,
    /// How many virtual CPUs.
    pub vcpus: u32,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The size of the initial RAM disk, if there is one.
    pub initrd_bytes: Option<u64>,
    /// Entropy for the guest's random numbers, if the machine has some to give.
    pub rng_seed: Option<[u8; 32]>,
}

/// A kernel of a known format.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// Linux's own format.
    BzImage(bzimage::Kernel),
    /// ELF with a PVH note.
    Pvh(pvh::Kernel),
    /// Multiboot, or a flat binary.
    Multiboot(multiboot1::Kernel),
}

/// Bytes of a guest's RAM before it starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where they go.
    pub to: Gpa,
    /// What they are.
    pub content: Content,
}

/// What a [`Piece`] holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// This part of the kernel's file.
    Kernel(Range<usize>),
    /// The whole initial RAM disk.
    Initrd,
    /// What was made here.
    Bytes(Vec<u8>),
    /// What is the same for every guest.
    Fixed(&'static [u8]),
    /// So many zeros.
    Zeros(u64),
}

/// How the first CPU starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// In long mode, as 64-bit Linux asks for.
    Linux64 {
        /// The first instruction.
        entry: Gpa,
        /// RSI.
        boot_params: Gpa,
        /// CR3.
        page_tables: Gpa,
        /// GDTR.
        descriptors: Descriptors,
    },
    /// In 32-bit protected mode, as 32-bit Linux asks for.
    Linux32 {
        /// The first instruction.
        entry: Gpa,
        /// ESI.
        boot_params: Gpa,
        /// GDTR.
        descriptors: Descriptors,
    },
    /// In 32-bit protected mode.
    Protected {
        /// The first instruction.
        entry: Gpa,
        /// What is known of the machine.
        ebx: Gpa,
        /// The boot protocol's magic number.
        eax: u32,
        /// GDTR.
        descriptors: Descriptors,
    },
}

/// A guest that can start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// What has to lie in RAM; no two overlap.
    pub pieces: Vec<Piece>,
    /// How it starts.
    pub start: Start,
}

/// Why a file is no kernel that a PC boots. Displays as one line with the mend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotAKernel {
    /// No bytes at all.
    Empty,
    /// Linux's format, but not such that it boots.
    BzImage(bzimage::NotABzImage),
    /// ELF with a PVH note, but not such that it boots.
    Pvh(pvh::NotPvh),
    /// Multiboot, but not such that it boots.
    Multiboot(multiboot1::NotMultiboot),
    /// Something else that is known: what it is, and the mend.
    Other(&'static str, &'static str),
}

impl Kernel {
    /// The kernel in `file`, whose format is seen from its content: Linux, else PVH, else multiboot.
    ///
    /// # Errors
    /// [`NotAKernel`] says what the file is instead, as far as its bytes tell.
    pub fn recognise(file: &[u8]) -> Result<Self, NotAKernel> {
        use crate::bzimage::NotABzImage;
        use crate::multiboot1::NotMultiboot;
        use crate::pvh::NotPvh;
        if file.is_empty() {
            return Err(NotAKernel::Empty);
        }
        match bzimage::Kernel::parse(file) {
            Ok(kernel) => return Ok(Self::BzImage(kernel)),
            Err(NotABzImage::NoHeader) => {}
            Err(error) => return Err(NotAKernel::BzImage(error)),
        }
        let pvh_error = match pvh::Kernel::parse(file) {
            Ok(kernel) => return Ok(Self::Pvh(kernel)),
            Err(error) => error,
        };
        match multiboot1::Kernel::parse(file) {
            Ok(kernel) => Ok(Self::Multiboot(kernel)),
            Err(NotMultiboot::NoHeader) if !file.starts_with(b"\x7fELF") => Err(other(file)),
            Err(NotMultiboot::NoHeader) if pvh_error == NotPvh::NoNote => Err(NotAKernel::Other(
                "an ELF file without a PVH note or a multiboot header",
                "build Linux with CONFIG_PVH or use its bzImage",
            )),
            Err(NotMultiboot::NoHeader) => Err(NotAKernel::Pvh(pvh_error)),
            Err(error) => Err(NotAKernel::Multiboot(error)),
        }
    }

    /// Everything that has to lie in RAM when `guest` starts.
    ///
    /// # Errors
    /// [`DoesNotFit`].
    pub fn prepare(&self, guest: &Guest<'_>) -> Result<Prepared, DoesNotFit> {
        let mut prepared = match self {
            Self::BzImage(kernel) => kernel.prepare(guest),
            Self::Pvh(kernel) => kernel.prepare(guest),
            Self::Multiboot(kernel) => kernel.prepare(guest),
        }?;
        let firmware = [
            (BIOS_DATA, bios_data()),
            (EXTENDED_BIOS_DATA, vec![EXTENDED_BIOS_DATA_KIB, 0]),
            (acpi::RSDP, acpi::tables(guest.vcpus)),
        ];
        let firmware = firmware.map(|(to, bytes)| Piece { to, content: Content::Bytes(bytes) });
        prepared.pieces.extend(firmware);
        Ok(prepared)
    }
}

const EXTENDED_BIOS_DATA_KIB: u8 = 1;

/// The BIOS data area: serial ports, where the extended area is, RAM below it in KiB.
fn bios_data() -> Vec<u8> {
    const BYTES: usize = 256;
    let low = |value: u64| u16::try_from(value).expect("it is below 640 KiB");
    let mut area = vec![0; BYTES];
    let mut set = |offset: usize, value: u16| area[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    set(0x00, pc::COM1[0].port);
    set(0x02, pc::COM2[0].port);
    set(0x0e, low(EXTENDED_BIOS_DATA.0 >> 4));
    set(0x13, low(EXTENDED_BIOS_DATA.0 >> 10));
    area
}

/// What a file is that no boot protocol knows.
fn other(file: &[u8]) -> NotAKernel {
    let has = |offset: usize, magic: &[u8]| file.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let known: [(bool, &'static str, &'static str); 7] = [
        (has(0, b"\x1f\x8b"), "compressed with gzip", "unpack it with gunzip"),
        (has(0, b"\xfd7zXZ\0"), "compressed with xz", "unpack it with unxz"),
        (has(0, b"\x28\xb5\x2f\xfd"), "compressed with zstd", "unpack it with unzstd"),
        (
            has(0, b"\x02\x21\x4c\x18") || has(0, b"\x04\x22\x4d\x18"),
            "compressed with LZ4",
            "unpack it with unlz4",
        ),
        (has(0, b"BZh"), "compressed with bzip2", "unpack it with bunzip2"),
        (has(56, b"ARM\x64"), "an arm64 Image", "use a kernel for x86"),
        (has(0, b"MZ"), "an EFI application", "use the kernel itself"),
    ];
    let found = known.iter().find(|(is, _, _)| *is);
    let unknown = "neither a bzImage nor ELF nor multiboot";
    found.map_or(NotAKernel::Other(unknown, "for a bare binary say format = \"flat\""), |&(_, what, mend)| {
        NotAKernel::Other(what, mend)
    })
}

impl fmt::Display for NotAKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the file is empty, not a kernel"),
            Self::BzImage(error) => error.fmt(f),
            Self::Pvh(error) => error.fmt(f),
            Self::Multiboot(error) => error.fmt(f),
            Self::Other(what, mend) => write!(f, "{what}, not a kernel that a PC boots; {mend}"),
        }
    }
}

impl core::error::Error for NotAKernel {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::multiboot1::NotMultiboot;
    use crate::testing::{GUEST, Memory};
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn firmware_leaves_its_data_where_a_pc_has_it() {
        let kernel = Kernel::Multiboot(multiboot1::Kernel::flat(1, Gpa(0x10_0000), Gpa(0x10_0000)));
        let prepared = kernel.prepare(&GUEST).unwrap();
        let memory = Memory::load(&prepared, b"\xf4", &[0; 5000]);
        assert_eq!(memory.word(0x400), 0x02f8_03f8);
        assert_eq!((memory.word(0x40e) & 0xffff) << 4, 0x9_fc00);
        assert_eq!(memory.word(0x413) & 0xffff, 639);
        assert_eq!(memory.byte(0x9_fc00), 1);
        assert_eq!(memory.bytes(0xe_0000, 8), b"RSD PTR ");
    }

    #[test]
    fn other_files_are_called_by_their_names() {
        let line = |file: &[u8]| Kernel::recognise(file).unwrap_err().to_string();
        assert_eq!(line(b""), "the file is empty, not a kernel");
        assert_eq!(
            line(b"\x1f\x8b\x08"),
            "compressed with gzip, not a kernel that a PC boots; unpack it with gunzip"
        );
        assert!(line(b"hello").ends_with("for a bare binary say format = \"flat\""));
        let elf = crate::testing::elf64(0, &[]);
        assert!(line(&elf).starts_with("an ELF file without a PVH note or a multiboot header, not"));
        let demand = [0x1bad_b002_u32, 0x10, 0_u32.wrapping_sub(0x1bad_b012)].map(u32::to_le_bytes);
        let refusal = Kernel::recognise(demand.as_flattened());
        assert_eq!(refusal, Err(NotAKernel::Multiboot(NotMultiboot::Demands(0x10))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_kernel_or_not(file in proptest::collection::vec(any::<u8>(), 0..2000), elf: bool) {
            let mut file = file;
            if elf && file.len() > 64 {
                file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
            }
            let line = Kernel::recognise(&file).map_err(|error| error.to_string());
            prop_assert!(line.is_ok() || !line.unwrap_err().contains('\n'));
        }
    }
}
