//! The header of an arm64 Linux `Image` (Linux, Documentation/arch/arm64/booting.rst), and what a file is that has none.
//!
//! Pure: it reads the first bytes of a file and nothing else.

use crate::placement::Extent;
use bulkhead_vdev::Gpa;
use core::fmt;

/// What the header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// How far behind a 2 MiB boundary the kernel is loaded.
    pub text_offset: u64,
    /// From the load address: what the kernel takes, its zeroed data included. `None` before Linux 3.17, which does not say.
    pub image_bytes: Option<u64>,
    /// The page size that the kernel was built for.
    pub page_bytes: Option<u64>,
    /// The kernel may lie anywhere in RAM, not only near its start.
    pub anywhere: bool,
}

/// Where kernels are loaded relative to.
const ALIGNMENT: u64 = 2 << 20;
/// The offset of kernels that do not give their size: the field of `text_offset` cannot be trusted in them.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// What is kept free behind the file of a kernel that does not give its size, for its zeroed data.
const OLD_SLACK_BYTES: u64 = 16 << 20;
/// `ARM\x64`, at byte 56.
const MAGIC: [u8; 4] = *b"ARM\x64";
const HEADER_BYTES: usize = 64;

/// Flags: bit 0 is the byte order, bits 1 and 2 the page size, bit 3 the placement.
const FLAG_BIG_ENDIAN: u64 = 1;
const FLAG_ANYWHERE: u64 = 1 << 3;

impl Header {
    /// The header at the start of `file`.
    ///
    /// # Errors
    /// [`NotAnImage`] says what the file is instead, as far as its first bytes tell.
    pub fn parse(file: &[u8]) -> Result<Self, NotAnImage> {
        if file.is_empty() {
            return Err(NotAnImage::Empty);
        }
        // A compressed EFI kernel has a header that looks almost like one of an Image.
        if file.get(4..8) == Some(b"zimg") {
            return Err(NotAnImage::CompressedEfi);
        }
        if file.len() < HEADER_BYTES || file.get(56..60) != Some(&MAGIC) {
            return Err(NotAnImage::recognise(file));
        }
        let flags = double_at(file, 24);
        if flags & FLAG_BIG_ENDIAN != 0 {
            return Err(NotAnImage::BigEndian);
        }
        let image_bytes = Some(double_at(file, 16)).filter(|&bytes| bytes != 0);
        Ok(Self {
            text_offset: if image_bytes.is_some() { double_at(file, 8) } else { OLD_TEXT_OFFSET },
            image_bytes,
            page_bytes: match flags >> 1 & 3 {
                1 => Some(4 << 10),
                2 => Some(16 << 10),
                3 => Some(64 << 10),
                _ => None,
            },
            anywhere: flags & FLAG_ANYWHERE != 0,
        })
    }

    /// Where the kernel goes in RAM that starts at `ram`; `None` if there is no such address.
    #[must_use]
    pub fn load_address(&self, ram: Gpa) -> Option<Gpa> {
        ram.0.checked_next_multiple_of(ALIGNMENT)?.checked_add(self.text_offset).map(Gpa)
    }

    /// Everything that the kernel takes, with a file of `file_bytes`, in RAM that starts at `ram`; `None` if no address space
    /// holds it.
    #[must_use]
    pub fn extent(&self, ram: Gpa, file_bytes: u64) -> Option<Extent> {
        let bytes = match self.image_bytes {
            // A signed kernel's file carries its signature behind the image.
            Some(bytes) => bytes.max(file_bytes),
            None => file_bytes.checked_add(OLD_SLACK_BYTES)?,
        };
        let start = self.load_address(ram)?;
        start.0.checked_add(bytes)?;
        Some(Extent { start, bytes })
    }
}

/// The little-endian number at `offset`, which lies within the header.
fn double_at(file: &[u8], offset: usize) -> u64 {
    let bytes = file.get(offset..offset + 8).and_then(|bytes| bytes.try_into().ok());
    u64::from_le_bytes(bytes.unwrap_or_default())
}

/// Why a file is no arm64 Image: what it is instead. Displays as one line with the mend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotAnImage {
    /// No bytes at all.
    Empty,
    /// An Image for a big-endian machine.
    BigEndian,
    /// Compressed, without a program that unpacks it.
    Compressed(Compression),
    /// A kernel that unpacks itself with the help of EFI (`CONFIG_EFI_ZBOOT`).
    CompressedEfi,
    /// An EFI application.
    Efi,
    /// An ELF file.
    Elf,
    /// A kernel for x86.
    BzImage,
    /// A kernel for 32-bit Arm.
    ZImage,
    /// A U-Boot image.
    UImage,
    /// A device tree, or a U-Boot FIT.
    DeviceTree,
    /// Nothing that is known.
    Unknown,
}

/// How a file is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// gzip
    Gzip,
    /// xz
    Xz,
    /// zstd
    Zstd,
    /// LZ4
    Lz4,
    /// bzip2
    Bzip2,
}

impl NotAnImage {
    /// What the file is, by the signatures of formats that kernels come in.
    fn recognise(file: &[u8]) -> Self {
        let has =
            |offset: usize, magic: &[u8]| file.get(offset..).is_some_and(|rest| rest.starts_with(magic));
        let known: [(bool, Self); 12] = [
            (has(0, b"\x1f\x8b"), Self::Compressed(Compression::Gzip)),
            (has(0, b"\xfd7zXZ\0"), Self::Compressed(Compression::Xz)),
            (has(0, b"\x28\xb5\x2f\xfd"), Self::Compressed(Compression::Zstd)),
            (has(0, b"\x02\x21\x4c\x18") || has(0, b"\x04\x22\x4d\x18"), Self::Compressed(Compression::Lz4)),
            (has(0, b"BZh"), Self::Compressed(Compression::Bzip2)),
            (has(0, b"\x7fELF"), Self::Elf),
            // Before EFI: an x86 kernel is an EFI application as well.
            (has(0x202, b"HdrS"), Self::BzImage),
            (has(0x24, b"\x18\x28\x6f\x01"), Self::ZImage),
            (has(0, b"\x27\x05\x19\x56"), Self::UImage),
            (has(0, b"\xd0\x0d\xfe\xed"), Self::DeviceTree),
            (has(0, b"MZ"), Self::Efi),
            (true, Self::Unknown),
        ];
        known.iter().find(|(is, _)| *is).map_or(Self::Unknown, |&(_, format)| format)
    }
}

impl Compression {
    /// The name of the format and of the program that unpacks it.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Gzip => ("gzip", "gunzip"),
            Self::Xz => ("xz", "unxz"),
            Self::Zstd => ("zstd", "unzstd"),
            Self::Lz4 => ("LZ4", "unlz4"),
            Self::Bzip2 => ("bzip2", "bunzip2"),
        }
    }
}

impl fmt::Display for NotAnImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Empty => "the file is empty, not an arm64 Image",
            Self::BigEndian => {
                "an arm64 Image for a big-endian machine; build the kernel with CONFIG_CPU_LITTLE_ENDIAN"
            }
            Self::Compressed(compression) => {
                let (name, program) = compression.words();
                return write!(f, "compressed with {name}, not an arm64 Image; unpack it with {program}");
            }
            Self::CompressedEfi => {
                "a compressed EFI kernel (CONFIG_EFI_ZBOOT), not an arm64 Image; use arch/arm64/boot/Image of the same build"
            }
            Self::Efi => "an EFI application, not an arm64 Image; use the kernel itself",
            Self::Elf => {
                "an ELF file, not an arm64 Image; use arch/arm64/boot/Image rather than vmlinux, or make a flat binary with objcopy -O binary"
            }
            Self::BzImage => "an x86 kernel (bzImage), not an arm64 Image; use a kernel for arm64",
            Self::ZImage => "a 32-bit Arm kernel (zImage), not an arm64 Image; use a kernel for arm64",
            Self::UImage => "a U-Boot image, not an arm64 Image; take the kernel out of it with dumpimage",
            Self::DeviceTree => "a device tree or a FIT image, not an arm64 Image; use the kernel itself",
            Self::Unknown => {
                "not an arm64 Image: the magic number at byte 56 is missing; for a bare binary say format = \"flat\""
            }
        };
        f.write_str(text)
    }
}

impl core::error::Error for NotAnImage {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    fn image(text_offset: u64, image_bytes: u64, flags: u64) -> Vec<u8> {
        let mut file = vec![0; 4096];
        file[..8].copy_from_slice(&[0x4d, 0x5a, 0x40, 0xfa, 0x46, 0x63, 0x4e, 0x14]);
        file[8..16].copy_from_slice(&text_offset.to_le_bytes());
        file[16..24].copy_from_slice(&image_bytes.to_le_bytes());
        file[24..32].copy_from_slice(&flags.to_le_bytes());
        file[56..60].copy_from_slice(&MAGIC);
        file
    }

    #[test]
    fn a_debian_kernel_says_how_much_it_takes() {
        let header = Header::parse(&image(0, 27_983_872, 0xa)).unwrap();
        let expected =
            Header { text_offset: 0, image_bytes: Some(27_983_872), page_bytes: Some(4096), anywhere: true };
        assert_eq!(header, expected);
        let extent = header.extent(Gpa(0x4000_0000), 27_303_872).unwrap();
        assert_eq!(extent, Extent { start: Gpa(0x4000_0000), bytes: 27_983_872 });
    }

    #[test]
    fn an_offset_counts_from_the_next_2_mib_boundary() {
        let header = Header::parse(&image(0x8_0000, 1 << 20, 0)).unwrap();
        assert_eq!(header.load_address(Gpa(0x4000_0000)), Some(Gpa(0x4008_0000)));
        assert_eq!(header.load_address(Gpa(0x4000_1000)), Some(Gpa(0x4028_0000)));
        assert_eq!(header.load_address(Gpa(u64::MAX)), None);
    }

    #[test]
    fn a_kernel_without_a_size_goes_to_the_old_offset_with_room_behind_it() {
        let header = Header::parse(&image(0x1234_5678, 0, 0)).unwrap();
        assert_eq!(header.text_offset, 0x8_0000);
        assert_eq!(header.extent(Gpa(0), 1 << 20).unwrap().bytes, 17 << 20);
    }

    #[test]
    fn a_signature_behind_the_image_gets_room() {
        let header = Header::parse(&image(0, 4096, 0)).unwrap();
        assert_eq!(header.extent(Gpa(0), 8192).unwrap().bytes, 8192);
    }

    #[test]
    fn a_big_endian_image_is_refused() {
        assert_eq!(Header::parse(&image(0, 4096, 1)), Err(NotAnImage::BigEndian));
    }

    #[test]
    fn other_files_are_called_by_their_names() {
        let with = |offset: usize, magic: &[u8]| {
            let mut file = vec![0; 1024];
            file[offset..offset + magic.len()].copy_from_slice(magic);
            Header::parse(&file).unwrap_err()
        };
        assert_eq!(Header::parse(&[]), Err(NotAnImage::Empty));
        assert_eq!(with(0, b"\x1f\x8b\x08"), NotAnImage::Compressed(Compression::Gzip));
        assert_eq!(with(0, b"\x7fELF"), NotAnImage::Elf);
        assert_eq!(with(0, b"MZ\0\0zimg"), NotAnImage::CompressedEfi);
        assert_eq!(with(0, b"MZ"), NotAnImage::Efi);
        assert_eq!(with(0x202, b"HdrS"), NotAnImage::BzImage);
        assert_eq!(with(0x24, b"\x18\x28\x6f\x01"), NotAnImage::ZImage);
        assert_eq!(with(0, b"\xd0\x0d\xfe\xed"), NotAnImage::DeviceTree);
        assert_eq!(with(0, b"hello"), NotAnImage::Unknown);
        assert_eq!(Header::parse(b"\x1f\x8b"), Err(NotAnImage::Compressed(Compression::Gzip)), "short");
    }

    #[test]
    fn refusals_are_one_line_with_the_mend() {
        let text = NotAnImage::Compressed(Compression::Gzip).to_string();
        assert_eq!(text, "compressed with gzip, not an arm64 Image; unpack it with gunzip");
        assert!(!NotAnImage::Elf.to_string().contains('\n'));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_image_or_not(file in proptest::collection::vec(any::<u8>(), 0..128), magic: bool, ram: u64) {
            let mut file = file;
            if magic && file.len() >= 64 {
                file[56..60].copy_from_slice(&MAGIC);
            }
            if let Ok(header) = Header::parse(&file)
                && let Some(extent) = header.extent(Gpa(ram), file.len() as u64)
            {
                prop_assert!(extent.start.0.checked_add(extent.bytes).is_some());
            }
        }
    }
}
