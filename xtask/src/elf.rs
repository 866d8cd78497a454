//! ELF programs for a PC, made as small and as plain as their loaders want them.
//!
//! Only what program headers speak of is kept: no symbols, no debug information, no section headers.

use std::fmt;

use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

/// Where the first segment starts in a rewritten file: behind the headers, and early enough for a multiboot header
/// (Multiboot Specification 0.6.96, 3.1: within the first 8192 bytes).
const FIRST_SEGMENT: usize = 4096;
/// Sizes of the headers of an ELF32 file (TIS ELF 1.2, figures 1-3 and 2-1).
const HEADER32: u16 = 52;
const PROGRAM_HEADER32: u16 = 32;

type File64 = elf::FileHeader64<Endianness>;
type Segment = elf::ProgramHeader64<Endianness>;

/// The same program without what follows its last segment.
pub(crate) fn trim(program: &[u8]) -> Result<Vec<u8>, NotAProgram> {
    let (header, segments) = parse(program)?;
    let endian = Endianness::Little;
    let headers = header.e_phoff.get(endian) + segments.len() as u64 * size_of::<Segment>() as u64;
    let ends =
        segments.iter().map(|segment| segment.p_offset(endian).saturating_add(segment.p_filesz(endian)));
    let end = ends.chain([headers]).max().and_then(|end| usize::try_from(end).ok());
    let mut bytes = end.and_then(|end| program.get(..end)).ok_or(NotAProgram::CutShort)?.to_vec();
    // e_shoff; e_shnum and e_shstrndx: there is no section any more.
    bytes.get_mut(40..48).ok_or(NotAProgram::CutShort)?.fill(0);
    bytes.get_mut(60..64).ok_or(NotAProgram::CutShort)?.fill(0);
    Ok(bytes)
}

/// The same program for loaders that know 32 bits only, such as those of multiboot 1: it must start in that mode and lie
/// below 4 GiB.
pub(crate) fn narrow(program: &[u8]) -> Result<Vec<u8>, NotAProgram> {
    let (header, segments) = parse(program)?;
    let endian = Endianness::Little;
    let loads: Vec<&Segment> =
        segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD).collect();
    let count = u16::try_from(loads.len()).map_err(|_| NotAProgram::TooLarge)?;
    let narrow = |value: u64| u32::try_from(value).map_err(|_| NotAProgram::TooLarge);
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    // e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, then seven halves.
    file.extend([elf::ET_EXEC.0, elf::EM_386.0].map(u16::to_le_bytes).concat());
    let entry = narrow(header.e_entry.get(endian))?;
    file.extend([1, entry, u32::from(HEADER32), 0, 0].map(u32::to_le_bytes).concat());
    file.extend([HEADER32, PROGRAM_HEADER32, count, 0, 0, 0].map(u16::to_le_bytes).concat());
    let mut content = Vec::new();
    for load in loads {
        let bytes = load.data(endian, program).map_err(|()| NotAProgram::CutShort)?;
        let offset = narrow((FIRST_SEGMENT + content.len()) as u64)?;
        let address = narrow(load.p_paddr(endian))?;
        let (in_file, in_memory) = (narrow(bytes.len() as u64)?, narrow(load.p_memsz(endian))?);
        let words = [elf::PT_LOAD.0, offset, address, address, in_file, in_memory, load.p_flags(endian).0, 4];
        file.extend(words.map(u32::to_le_bytes).concat());
        content.extend_from_slice(bytes);
        content.resize(content.len().next_multiple_of(16), 0);
    }
    if file.len() > FIRST_SEGMENT {
        return Err(NotAProgram::TooLarge);
    }
    file.resize(FIRST_SEGMENT, 0);
    file.extend(content);
    Ok(file)
}

fn parse(program: &[u8]) -> Result<(&File64, &[Segment]), NotAProgram> {
    let header = File64::parse(program).map_err(NotAProgram::NotElf)?;
    let segments = header.program_headers(Endianness::Little, program).map_err(NotAProgram::NotElf)?;
    Ok((header, segments))
}

/// Why a program cannot be rewritten.
#[derive(Debug)]
pub(crate) enum NotAProgram {
    /// Not a 64-bit ELF file.
    NotElf(object::read::Error),
    /// A segment's bytes are not in the file.
    CutShort,
    /// An address or a size has more than 32 bits, or there are too many segments.
    TooLarge,
}

impl fmt::Display for NotAProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf(error) => write!(f, "this is not a 64-bit ELF program: {error}"),
            Self::CutShort => write!(f, "the ELF program is cut short; build it again"),
            Self::TooLarge => {
                write!(f, "the ELF program does not fit into 32 bits; look at its linker script")
            }
        }
    }
}

impl std::error::Error for NotAProgram {}

#[cfg(test)]
mod tests {
    use object::read::elf::ElfFile32;
    use object::{Object, ObjectSegment};

    use super::*;

    /// A 64-bit program with one segment of four bytes at `address`, and noise behind it.
    fn program(address: u64) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        file.extend([address + 2, 64, 124].map(u64::to_le_bytes).concat());
        file.extend(0_u32.to_le_bytes());
        file.extend([64_u16, 56, 1, 64, 3, 1].map(u16::to_le_bytes).concat());
        file.extend([1_u32, 5].map(u32::to_le_bytes).concat());
        file.extend([120, address, address, 4, 16, 8].map(u64::to_le_bytes).concat());
        file.extend(b"codenoise");
        file
    }

    #[test]
    fn nothing_behind_the_last_segment_is_kept() {
        let trimmed = trim(&program(0x10_0000)).unwrap();
        assert!(trimmed.ends_with(b"code"));
        assert_eq!(
            object::read::elf::ElfFile64::<Endianness>::parse(&*trimmed).unwrap().sections().count(),
            0
        );
    }

    #[test]
    fn a_narrow_program_has_the_same_segments_and_entry() {
        let narrowed = narrow(&program(0x10_0000)).unwrap();
        let file = ElfFile32::<Endianness>::parse(&*narrowed).unwrap();
        assert_eq!(file.entry(), 0x10_0002);
        let segments: Vec<_> = file
            .segments()
            .map(|segment| (segment.address(), segment.size(), segment.data().unwrap()))
            .collect();
        assert_eq!(segments, [(0x10_0000, 16, &b"code"[..])]);
    }

    #[test]
    fn each_cause_has_its_line() {
        assert!(narrow(&program(1 << 32)).unwrap_err().to_string().contains("32 bits"));
        assert!(trim(b"MZ").unwrap_err().to_string().contains("not a 64-bit ELF"));
        let cut = &program(0)[..122];
        assert!(trim(cut).unwrap_err().to_string().contains("cut short"));
        assert!(narrow(cut).unwrap_err().to_string().contains("cut short"));
    }
}
