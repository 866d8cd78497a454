//! What an ELF kernel wants to have loaded where: its loadable segments at their physical addresses. Pure; the file is a claim.

use crate::pc_boot::{Content, Piece};
use crate::pc_placement::{DoesNotFit, Layout, MAX_ZEROS};
use crate::placement::Extent;
use alloc::vec::Vec;
use bulkhead_vdev::Gpa;
use core::fmt;
use core::ops::Range;
use elf::ElfBytes;
use elf::abi::{EM_386, EM_X86_64, PT_LOAD};
use elf::endian::LittleEndian;
use elf::parse::ParseError;
use elf::segment::ProgramHeader;

/// One piece of a kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Load {
    /// Where it goes.
    pub(crate) to: Gpa,
    /// The address that the kernel calls it by.
    pub(crate) virtual_address: u64,
    /// Its bytes in the file.
    pub(crate) file: Range<usize>,
    /// What it takes; zeros follow the bytes.
    pub(crate) bytes: u64,
}

/// Why a file is no ELF kernel for a PC. Displays as one line with the mend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotAnElf {
    /// It is damaged, or not for a little-endian machine.
    Damaged,
    /// It is for another machine: that machine's number.
    Foreign(u16),
    /// Nothing in it is to be loaded.
    Nothing,
    /// More pieces than a kernel has.
    TooManySegments(usize),
    /// A segment does not lie inside the file, or holds less than its bytes.
    SegmentOutsideFile,
}

/// More loadable segments than a kernel has.
const MAX_SEGMENTS: usize = 64;

pub(crate) type Elf<'a> = ElfBytes<'a, LittleEndian>;

/// Reads the headers of `file`.
pub(crate) fn parse(file: &[u8]) -> Result<Elf<'_>, NotAnElf> {
    let elf = Elf::minimal_parse(file).map_err(|_: ParseError| NotAnElf::Damaged)?;
    match elf.ehdr.e_machine {
        EM_386 | EM_X86_64 => Ok(elf),
        other => Err(NotAnElf::Foreign(other)),
    }
}

/// All that is to be loaded.
pub(crate) fn loads(elf: &Elf<'_>, file: &[u8]) -> Result<Vec<Load>, NotAnElf> {
    let segments = elf.segments().ok_or(NotAnElf::Nothing)?;
    let mut loads = Vec::new();
    for segment in segments.iter().filter(|segment| segment.p_type == PT_LOAD && segment.p_memsz > 0) {
        if loads.len() == MAX_SEGMENTS {
            return Err(NotAnElf::TooManySegments(MAX_SEGMENTS));
        }
        loads.push(load(&segment, file).ok_or(NotAnElf::SegmentOutsideFile)?);
    }
    if loads.is_empty() { Err(NotAnElf::Nothing) } else { Ok(loads) }
}

fn load(segment: &ProgramHeader, file: &[u8]) -> Option<Load> {
    let start = usize::try_from(segment.p_offset).ok()?;
    let end = start.checked_add(usize::try_from(segment.p_filesz).ok()?)?;
    file.get(start..end).filter(|_| segment.p_filesz <= segment.p_memsz)?;
    Some(Load {
        to: Gpa(segment.p_paddr),
        virtual_address: segment.p_vaddr,
        file: start..end,
        bytes: segment.p_memsz,
    })
}

/// Takes the places of `loads`; what to put there, and where the last ends.
pub(crate) fn place(loads: &[Load], layout: &mut Layout) -> Result<(Vec<Piece>, Gpa), DoesNotFit> {
    let mut pieces = Vec::new();
    let mut end = Gpa(0);
    for load in loads {
        let extent = Extent { start: load.to, bytes: load.bytes };
        layout.claim(extent)?;
        end = end.max(extent.end());
        let in_file = load.file.len() as u64;
        if load.bytes - in_file > MAX_ZEROS {
            return Err(DoesNotFit::TooManyZeros { bytes: load.bytes - in_file });
        }
        if in_file > 0 {
            pieces.push(Piece { to: load.to, content: Content::Kernel(load.file.clone()) });
        }
        if load.bytes > in_file {
            let to = Gpa(load.to.0 + in_file);
            pieces.push(Piece { to, content: Content::Zeros(load.bytes - in_file) });
        }
    }
    Ok((pieces, end))
}

impl fmt::Display for NotAnElf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged => write!(f, "an ELF file that is damaged or big-endian; link it again"),
            Self::Foreign(machine) => {
                write!(f, "an ELF file for machine number {machine}, not for x86; use a kernel for x86")
            }
            Self::Nothing => write!(f, "an ELF file with nothing to load; use a linked kernel"),
            Self::TooManySegments(most) => {
                write!(f, "an ELF file with more than {most} loadable segments; link it with fewer")
            }
            Self::SegmentOutsideFile => {
                write!(f, "an ELF file whose segments do not lie inside it; copy or link it again")
            }
        }
    }
}

impl core::error::Error for NotAnElf {}
