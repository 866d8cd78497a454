//! An ELF program as the bytes that a boot loader copies: its loadable segments, each at its place, from the lowest
//! address on. What is not in the file (zero-initialised data) is not in the result unless something follows it; the
//! Image header says how much memory the program needs.

use std::fmt;

use bulkhead_firmware_stubs::arm64_image::{Header, NotAnImage};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

/// More than any program of ours: a stray segment must not fill the disk.
const MAX_BYTES: u64 = 64 << 20;

/// Makes an arm64 `Image` of an ELF program that has the header of one at its lowest address.
pub(crate) fn flatten(program: &[u8]) -> Result<Vec<u8>, FlattenError> {
    let image = flat(program)?;
    let header = Header::parse(&image).map_err(FlattenError::NoImageHeader)?;
    let (says, is) = (header.image_bytes.unwrap_or(0), image.len() as u64);
    if says < is {
        return Err(FlattenError::HeaderTooSmall { says, is });
    }
    Ok(image)
}

fn flat(program: &[u8]) -> Result<Vec<u8>, FlattenError> {
    let header = elf::FileHeader64::<Endianness>::parse(program).map_err(FlattenError::NotElf)?;
    let endian = header.endian().map_err(FlattenError::NotElf)?;
    let segments = header.program_headers(endian, program).map_err(FlattenError::NotElf)?;
    let mut loads = Vec::new();
    for segment in segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD) {
        let bytes = segment.data(endian, program).map_err(|()| FlattenError::SegmentOutsideFile)?;
        if !bytes.is_empty() {
            loads.push((segment.p_paddr(endian), bytes));
        }
    }
    loads.sort_by_key(|(address, _)| *address);
    let lowest = loads.first().ok_or(FlattenError::NothingToLoad)?.0;
    let mut image = Vec::new();
    for (address, bytes) in loads {
        let offset = address - lowest;
        if offset.saturating_add(bytes.len() as u64) > MAX_BYTES {
            return Err(FlattenError::TooLarge { offset });
        }
        let offset = usize::try_from(offset).expect("it is below MAX_BYTES");
        if offset < image.len() {
            return Err(FlattenError::Overlap { address });
        }
        image.resize(offset, 0);
        image.extend_from_slice(bytes);
    }
    Ok(image)
}

/// Why a program cannot be flattened.
#[derive(Debug)]
pub(crate) enum FlattenError {
    /// Not a 64-bit ELF file.
    NotElf(object::read::Error),
    /// No segment has bytes.
    NothingToLoad,
    /// A segment's bytes are not in the file.
    SegmentOutsideFile,
    /// Two segments share an address.
    Overlap {
        /// That address.
        address: u64,
    },
    /// The segments lie too far apart.
    TooLarge {
        /// How far behind the first this one lies.
        offset: u64,
    },
    /// The lowest segment does not start with the header of an arm64 `Image`.
    NoImageHeader(NotAnImage),
    /// The header asks for less memory than the bytes themselves take.
    HeaderTooSmall {
        /// What it asks for.
        says: u64,
        /// What is there.
        is: u64,
    },
}

impl fmt::Display for FlattenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf(error) => write!(f, "this is not a 64-bit ELF program: {error}"),
            Self::NothingToLoad => {
                write!(f, "the ELF program has no loadable segment; look at its linker script")
            }
            Self::SegmentOutsideFile => write!(f, "the ELF program is cut short; build it again"),
            Self::Overlap { address } => {
                write!(f, "two segments of the ELF program share {address:#x}; look at its linker script")
            }
            Self::TooLarge { offset } => {
                write!(
                    f,
                    "a segment of the ELF program lies {offset:#x} behind the first; look at its linker script"
                )
            }
            Self::NoImageHeader(error) => {
                write!(f, "the ELF program does not start with the header of an Image: {error}")
            }
            Self::HeaderTooSmall { says, is } => write!(
                f,
                "the Image header asks for {says:#x} bytes of memory, but the program has {is:#x}; look at its linker script"
            ),
        }
    }
}

impl std::error::Error for FlattenError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The start of an arm64 Image that needs `image_size` bytes of memory.
    fn image_start(image_size: u64) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
        bytes[24] = 0b1010;
        bytes[0x38..0x3c].copy_from_slice(b"ARM\x64");
        bytes
    }

    /// A little-endian AArch64 ELF program with these loadable segments: address and bytes.
    fn elf(segments: &[(u64, &[u8])]) -> Vec<u8> {
        const HEADER: usize = 64;
        const PROGRAM_HEADER: usize = 56;
        let count = u16::try_from(segments.len()).unwrap();
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([3, 0, 183, 0, 1, 0, 0, 0]);
        file.extend([0, HEADER as u64, 0].map(u64::to_le_bytes).concat());
        file.extend(0_u32.to_le_bytes());
        file.extend([64, 56, count, 64, 0, 0].map(u16::to_le_bytes).concat());
        let mut offset = HEADER + PROGRAM_HEADER * segments.len();
        for (address, bytes) in segments {
            let length = bytes.len() as u64;
            file.extend([1_u32, 5].map(u32::to_le_bytes).concat());
            file.extend(
                [offset as u64, *address, *address, length, length + 8, 8].map(u64::to_le_bytes).concat(),
            );
            offset += bytes.len();
        }
        for (_, bytes) in segments {
            file.extend_from_slice(bytes);
        }
        file
    }

    #[test]
    fn segments_lie_at_their_distance_from_the_lowest() {
        let start = image_start(0x200);
        let image = flatten(&elf(&[(0x8100, b"data"), (0x8000, &start), (0x9000, b"")])).unwrap();
        assert_eq!(image.len(), 0x104);
        assert_eq!(image[..64], start);
        assert!(image[64..0x100].iter().all(|byte| *byte == 0));
        assert_eq!(&image[0x100..], b"data");
    }

    #[test]
    fn each_cause_has_its_line() {
        let start = image_start(0x200);
        let line = |segments: &[(u64, &[u8])]| flatten(&elf(segments)).unwrap_err().to_string();
        assert!(line(&[]).contains("no loadable segment"));
        assert!(line(&[(0, &start), (32, b"x")]).contains("share 0x20"));
        assert!(line(&[(0, &start), (1 << 40, b"x")]).contains("0x10000000000 behind the first"));
        assert!(line(&[(u64::MAX, b"x"), (0, &start)]).contains("behind the first"));
        assert!(line(&[(0, &[0; 64])]).contains("does not start with the header"));
        assert!(line(&[(0, &start), (0x1ff, b"xy")]).contains("asks for 0x200 bytes of memory"));
        assert!(flatten(b"#!/bin/sh").unwrap_err().to_string().contains("not a 64-bit ELF"));
        let whole = elf(&[(0, &start)]);
        assert!(flatten(&whole[..whole.len() - 1]).unwrap_err().to_string().contains("cut short"));
    }
}
