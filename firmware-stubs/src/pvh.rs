//! Kernels with a PVH entry: ELF with the note `XEN_ELFNOTE_PHYS32_ENTRY` (Xen, docs/misc/pvh.pandoc and
//! public/arch-x86/hvm/start_info.h).
//!
//! They are entered in 32-bit protected mode with EBX = start information: memory map, command line, initial RAM disk as the
//! first module, RSDP. Pure; the file is a claim.

use crate::acpi;
use crate::boot_data::{BootData, CodeSegment};
use crate::e820;
use crate::elf_image::{self, Elf, Load, NotAnElf};
use crate::pc_boot::{Content, Guest, Piece, Prepared, Start};
use crate::pc_placement::{DoesNotFit, Layout, Part};
use alloc::vec::Vec;
use bulkhead_vdev::Gpa;
use core::fmt;
use elf::abi::PT_NOTE;
use elf::file::Class;
use elf::note::{Note, NoteIterator};

/// A kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    loads: Vec<Load>,
    entry: Gpa,
}

/// Why a file is no such kernel. Displays as one line with the mend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotPvh {
    /// It is no ELF kernel at all.
    Elf(NotAnElf),
    /// It has no such note.
    NoNote,
    /// The entry that the note names is in none of the kernel's segments.
    EntryOutside {
        /// That entry.
        entry: u64,
    },
}

const NOTE_NAME: &[u8] = b"Xen\0";
const NOTE_PHYS32_ENTRY: u64 = 18;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const START_INFO_BYTES: usize = 56;
const MODULE_BYTES: usize = 32;
const MEMORY_MAP_BYTES: usize = 6 * 24;
/// Descriptors and what alignment costs.
const SLACK_BYTES: usize = 128;

impl Kernel {
    /// Reads the headers of `file`.
    ///
    /// # Errors
    /// [`NotPvh`].
    pub fn parse(file: &[u8]) -> Result<Self, NotPvh> {
        let elf = elf_image::parse(file).map_err(NotPvh::Elf)?;
        let entry = note(&elf).ok_or(NotPvh::NoNote)?;
        let loads = elf_image::loads(&elf, file).map_err(NotPvh::Elf)?;
        let holds = |load: &Load| entry.checked_sub(load.to.0).is_some_and(|offset| offset < load.bytes);
        if loads.iter().any(holds) && entry <= u32::MAX.into() {
            return Ok(Self { loads, entry: Gpa(entry) });
        }
        Err(NotPvh::EntryOutside { entry })
    }

    /// Everything that has to lie in RAM when `guest` starts.
    ///
    /// # Errors
    /// [`DoesNotFit`].
    pub fn prepare(&self, guest: &Guest<'_>) -> Result<Prepared, DoesNotFit> {
        const PAGE: u64 = 4096;
        let mut layout = Layout::new(guest.ram_bytes);
        let (mut pieces, _) = elf_image::place(&self.loads, &mut layout)?;
        let mut module = None;
        if let Some(bytes) = guest.initrd_bytes {
            let to = layout.take_top(Part::Initrd, bytes, PAGE, u64::MAX)?;
            module = Some((to, bytes));
            pieces.push(Piece { to, content: Content::Initrd });
        }
        let fixed = START_INFO_BYTES + MODULE_BYTES + MEMORY_MAP_BYTES + SLACK_BYTES;
        let mut data = BootData::new(&mut layout, fixed + guest.command_line.len() + 1)?;
        let info = start_info(guest, module, &mut data);
        let descriptors = data.add_descriptors(CodeSegment::Protected);
        let (to, bytes) = data.finish();
        pieces.push(Piece { to, content: Content::Bytes(bytes) });
        Ok(Prepared { pieces, start: Start::Protected { entry: self.entry, ebx: info, eax: 0, descriptors } })
    }
}

/// The entry that the file's note names.
fn note(elf: &Elf<'_>) -> Option<u64> {
    let segments = elf.segments()?;
    let mut notes = segments.iter().filter(|segment| segment.p_type == PT_NOTE).filter_map(|segment| {
        // Linkers leave the alignment at 0 or 1 at times; notes start at multiples of 4 all the same.
        let alignment = if segment.p_align == 8 { 8 } else { 4 };
        let data = elf.segment_data(&segment).ok()?;
        let mut notes = NoteIterator::new(elf.ehdr.endianness, Class::ELF32, alignment, data);
        notes.find_map(|note| match note {
            Note::Unknown(note) if note.name == NOTE_NAME && note.n_type == NOTE_PHYS32_ENTRY => {
                address(note.desc)
            }
            _ => None,
        })
    });
    notes.next()
}

/// The number in a note: 4 bytes, or 8 as the address size of the file.
fn address(description: &[u8]) -> Option<u64> {
    match *description {
        [a, b, c, d] => Some(u32::from_le_bytes([a, b, c, d]).into()),
        [a, b, c, d, e, f, g, h] => Some(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
        _ => None,
    }
}

/// `hvm_start_info`, version 1, and what it points to.
fn start_info(guest: &Guest<'_>, module: Option<(Gpa, u64)>, data: &mut BootData) -> Gpa {
    const NONE: u64 = 0;
    let at = data.add(&[0; START_INFO_BYTES], 8);
    let modules = module.map_or(Gpa(NONE), |(start, bytes)| {
        let entry = [start.0, bytes, NONE, NONE].map(u64::to_le_bytes);
        data.add(entry.as_flattened(), 8)
    });
    let map = e820::map(guest.ram_bytes);
    let entries: Vec<u8> = map.iter().flat_map(memory_map_entry).collect();
    let memory_map = data.add(&entries, 8);
    let command_line = data.add_text(guest.command_line);

    let map_entries = u32::try_from(map.len()).expect("a map has six regions at most");
    let mut info = Vec::with_capacity(START_INFO_BYTES);
    let words = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    info.extend(words(&[MAGIC, VERSION, 0, module.is_some().into()]));
    for pointer in [modules, command_line, acpi::RSDP, memory_map] {
        info.extend_from_slice(&pointer.0.to_le_bytes());
    }
    info.extend(words(&[map_entries, 0]));
    data.replace(at, &info);
    at
}

/// `hvm_memmap_table_entry`: address, size, kind, nothing.
fn memory_map_entry(region: &e820::Region) -> [u8; 24] {
    let mut entry = [0; 24];
    entry[..8].copy_from_slice(&region.extent.start.0.to_le_bytes());
    entry[8..16].copy_from_slice(&region.extent.bytes.to_le_bytes());
    entry[16..20].copy_from_slice(&(region.kind as u32).to_le_bytes());
    entry
}

impl fmt::Display for NotPvh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(error) => error.fmt(f),
            Self::NoNote => write!(
                f,
                "an ELF file without the PVH note XEN_ELFNOTE_PHYS32_ENTRY; build Linux with CONFIG_PVH or use its bzImage"
            ),
            Self::EntryOutside { entry } => {
                write!(f, "an ELF file whose PVH entry {entry:#x} is in none of its segments; link it anew")
            }
        }
    }
}

impl core::error::Error for NotPvh {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GUEST, Memory, Segment, elf64, protected};
    use elf::abi::PT_LOAD;
    use proptest::prelude::*;
    use std::string::ToString;

    /// A note with this name, type and description.
    fn note_bytes(name: &[u8; 4], kind: u32, description: &[u8]) -> Vec<u8> {
        let length = u32::try_from(description.len()).unwrap();
        let mut note: Vec<u8> = [4, length, kind].iter().flat_map(|word| word.to_le_bytes()).collect();
        note.extend_from_slice(name);
        note.extend_from_slice(description);
        note
    }

    fn kernel(notes: &[u8]) -> Vec<u8> {
        let load = |physical, content, bytes| Segment {
            kind: PT_LOAD,
            virtual_address: 0xffff_ffff_8000_0000 | physical,
            physical,
            content,
            bytes,
        };
        let note = Segment { kind: PT_NOTE, virtual_address: 0, physical: 0, content: notes, bytes: 0 };
        let code = load(16 << 20, &b"\xfa\xf4"[..], 2);
        let data = load(17 << 20, &b"data"[..], 0x5000);
        elf64(0, &[code, data, note])
    }

    fn with_entry() -> Vec<u8> {
        let mut notes = note_bytes(b"GNU\0", 3, &[1; 20]);
        notes.extend(note_bytes(b"Xen\0", 6, b"linux\0\0\0"));
        notes.extend(note_bytes(b"Xen\0", 18, &0x100_0001_u64.to_le_bytes()));
        kernel(&notes)
    }

    #[test]
    fn a_kernel_finds_its_start_information() {
        let file = with_entry();
        let prepared = Kernel::parse(&file).unwrap().prepare(&GUEST).unwrap();
        let memory = Memory::load(&prepared, &file, &[0x11; 5000]);
        let (entry, Gpa(info), eax) = protected(&prepared);
        assert_eq!((entry, eax), (Gpa(0x100_0001), 0));
        assert_eq!(memory.bytes(17 << 20, 8), b"data\0\0\0\0");
        assert_eq!(memory.byte((17 << 20) + 0x4fff), 0);
        assert_eq!([0, 4, 8, 12].map(|offset| memory.word(info + offset)), [MAGIC, 1, 0, 1]);
        let module = memory.double(info + 16);
        let initrd = memory.double(module);
        assert_eq!([memory.double(module + 8), memory.double(module + 16)], [5000, 0]);
        assert_eq!(memory.bytes(initrd, 5000), [0x11; 5000]);
        assert_eq!(memory.text(memory.double(info + 24)), "console=ttyS0");
        assert_eq!(memory.double(info + 32), 0xe_0000);
        let map = memory.double(info + 40);
        assert_eq!(memory.word(info + 48), 5);
        let ram = map + 3 * 24;
        assert_eq!(
            [memory.double(ram), memory.double(ram + 8), memory.double(ram + 16)],
            [1 << 20, 63 << 20, 1]
        );
    }

    #[test]
    fn a_kernel_without_a_ram_disk_has_no_module() {
        let file = with_entry();
        let guest = Guest { initrd_bytes: None, ..GUEST };
        let prepared = Kernel::parse(&file).unwrap().prepare(&guest).unwrap();
        let memory = Memory::load(&prepared, &file, &[]);
        let (_, Gpa(info), _) = protected(&prepared);
        assert_eq!((memory.word(info + 12), memory.double(info + 16)), (0, 0));
    }

    #[test]
    fn the_entry_may_have_4_bytes() {
        let file = kernel(&note_bytes(b"Xen\0", 18, &0x100_0000_u32.to_le_bytes()));
        assert_eq!(Kernel::parse(&file).unwrap().entry, Gpa(0x100_0000));
    }

    #[test]
    fn what_is_no_pvh_kernel_is_refused() {
        let none = kernel(&note_bytes(b"Xen\0", 6, b"linux\0\0\0"));
        assert_eq!(Kernel::parse(&none), Err(NotPvh::NoNote));
        let outside = kernel(&note_bytes(b"Xen\0", 18, &0x100_0002_u64.to_le_bytes()));
        assert_eq!(Kernel::parse(&outside), Err(NotPvh::EntryOutside { entry: 0x100_0002 }));
        assert_eq!(Kernel::parse(b"\x7fELF"), Err(NotPvh::Elf(NotAnElf::Damaged)));
        let mut arm = with_entry();
        arm[18] = 183;
        assert_eq!(Kernel::parse(&arm), Err(NotPvh::Elf(NotAnElf::Foreign(183))));
        let mut long = with_entry();
        long[64 + 33] = 0xff;
        assert_eq!(Kernel::parse(&long), Err(NotPvh::Elf(NotAnElf::SegmentOutsideFile)));
    }

    proptest! {
        #[test]
        fn any_damage_is_prepared_or_refused(changes in proptest::collection::vec((0..400_usize, any::<u8>()), 1..6)) {
            let mut file = with_entry();
            for (at, value) in changes {
                let at = if at < 0x120 { at } else { 0x1000 + at - 0x120 };
                if let Some(byte) = file.get_mut(at) {
                    *byte = value;
                }
            }
            if let Ok(kernel) = Kernel::parse(&file).map_err(|error| error.to_string()) {
                let _ = kernel.prepare(&GUEST).map_err(|error| error.to_string());
            }
        }
    }
}
