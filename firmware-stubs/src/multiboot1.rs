//! Multiboot kernels (Multiboot Specification, version 0.6.96): ELF, or any file whose header has addresses.
//!
//! They are entered in 32-bit protected mode with EAX = magic number and EBX = information: memory, command line, memory map,
//! the initial RAM disk as the first module. All structures lie below 640 KiB. Pure; the file is a claim.

use crate::boot_data::{BootData, CodeSegment, word};
use crate::e820;
use crate::elf_image::{self, Load, NotAnElf};
use crate::pc_boot::{Content, Guest, Piece, Prepared, Start};
use crate::pc_placement::{DoesNotFit, EXTENDED_BIOS_DATA, EXTENDED_RAM, Layout, Part, ram};
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_vdev::Gpa;
use core::fmt;

/// A kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    loads: Vec<Load>,
    entry: Gpa,
    magic: u32,
}

/// Why a file is no such kernel. Displays as one line with the mend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotMultiboot {
    /// There is no header in the first 8 KiB.
    NoHeader,
    /// The header demands what no loader of this version has: the flags that say so.
    Demands(u32),
    /// The header's addresses do not fit together or to the file.
    Addresses,
    /// The header has no addresses, and the file is no ELF file.
    NeitherElf,
    /// It is an ELF file, but not a kernel.
    Elf(NotAnElf),
    /// The entry is in none of the kernel's pieces.
    EntryOutside {
        /// That entry.
        entry: u64,
    },
}

/// Where the header has to be: from a multiple of 4 in the first 8 KiB.
const SEARCHED_BYTES: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX says to the kernel.
const MAGIC: u32 = 0x2bad_b002;

/// Flags of the header. Modules are always at pages, and memory is always told; a video mode is a wish.
const KNOWN_DEMANDS: u32 = 0b111;
const DEMANDS: u32 = 0xffff;
const HAS_ADDRESSES: u32 = 1 << 16;

/// Flags of the information.
const TELLS_MEMORY: u32 = 1;
const TELLS_COMMAND_LINE: u32 = 1 << 2;
const TELLS_MODULES: u32 = 1 << 3;
const TELLS_MEMORY_MAP: u32 = 1 << 6;
const TELLS_LOADER: u32 = 1 << 9;

const INFO_BYTES: usize = 88;
const MODULE_BYTES: usize = 16;
const MAP_ENTRY_BYTES: usize = 24;
const LOADER: &str = "Bulkhead";
/// Descriptors, the loader's name and what alignment costs.
const SLACK_BYTES: usize = 128;

impl Kernel {
    /// Reads the headers of `file`.
    ///
    /// # Errors
    /// [`NotMultiboot`].
    pub fn parse(file: &[u8]) -> Result<Self, NotMultiboot> {
        let header = find_header(file).ok_or(NotMultiboot::NoHeader)?;
        let flags = word_at(file, header + 4).ok_or(NotMultiboot::NoHeader)?;
        let unknown = flags & DEMANDS & !KNOWN_DEMANDS;
        if unknown != 0 {
            return Err(NotMultiboot::Demands(unknown));
        }
        if flags & HAS_ADDRESSES != 0 {
            return by_addresses(file, header).ok_or(NotMultiboot::Addresses);
        }
        if !file.starts_with(b"\x7fELF") {
            return Err(NotMultiboot::NeitherElf);
        }
        let elf = elf_image::parse(file).map_err(NotMultiboot::Elf)?;
        let loads = elf_image::loads(&elf, file).map_err(NotMultiboot::Elf)?;
        let entry = physical(elf.ehdr.e_entry, &loads);
        let entry = entry.ok_or(NotMultiboot::EntryOutside { entry: elf.ehdr.e_entry })?;
        Ok(Self { loads, entry, magic: MAGIC })
    }

    /// A file without a header that says anything: bytes to be loaded at `load` and entered at `entry` as if they were a
    /// multiboot kernel, but for the magic number.
    #[must_use]
    pub fn flat(file_bytes: usize, load: Gpa, entry: Gpa) -> Self {
        let load = Load { to: load, virtual_address: load.0, file: 0..file_bytes, bytes: file_bytes as u64 };
        Self { loads: vec![load], entry, magic: 0 }
    }

    /// Everything that has to lie in RAM when `guest` starts.
    ///
    /// # Errors
    /// [`DoesNotFit`].
    pub fn prepare(&self, guest: &Guest<'_>) -> Result<Prepared, DoesNotFit> {
        const PAGE: u64 = 4096;
        let mut layout = Layout::new(guest.ram_bytes);
        let (mut pieces, end) = elf_image::place(&self.loads, &mut layout)?;
        let mut module = None;
        if let Some(bytes) = guest.initrd_bytes {
            let to = layout.take_from(end, Part::Initrd, bytes, PAGE)?;
            module = Some((to, bytes));
            pieces.push(Piece { to, content: Content::Initrd });
        }
        let map = e820::map(guest.ram_bytes);
        let fixed = INFO_BYTES + MODULE_BYTES + map.len() * MAP_ENTRY_BYTES + SLACK_BYTES;
        let mut data = BootData::new(&mut layout, fixed + guest.command_line.len() + 1)?;
        let info = information(guest, &map, module, &mut data);
        let descriptors = data.add_descriptors(CodeSegment::Protected);
        let (to, bytes) = data.finish();
        pieces.push(Piece { to, content: Content::Bytes(bytes) });
        let start = Start::Protected { entry: self.entry, ebx: info, eax: self.magic, descriptors };
        Ok(Prepared { pieces, start })
    }
}

/// Where the header starts: magic number, flags and checksum add up to 0.
fn find_header(file: &[u8]) -> Option<usize> {
    let searched = &file[..file.len().min(SEARCHED_BYTES)];
    (0..searched.len()).step_by(4).find(|&at| {
        let fields = [0, 4, 8].map(|offset| word_at(searched, at + offset));
        match fields {
            [Some(HEADER_MAGIC), Some(flags), Some(checksum)] => {
                HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0
            }
            _ => false,
        }
    })
}

fn word_at(file: &[u8], offset: usize) -> Option<u32> {
    file.get(offset..)?.first_chunk().copied().map(u32::from_le_bytes)
}

/// The kernel whose header, at `header` of the file, has addresses; `None` if they do not fit together.
fn by_addresses(file: &[u8], header: usize) -> Option<Kernel> {
    let field = |index: usize| word_at(file, header + 12 + index * 4).map(u64::from);
    let [header_at, load, load_end, bss_end, entry] = [field(0)?, field(1)?, field(2)?, field(3)?, field(4)?];
    let start = (header as u64).checked_sub(header_at.checked_sub(load)?)?;
    let start = usize::try_from(start).ok()?;
    let end = match load_end {
        0 => file.len(),
        end => start.checked_add(usize::try_from(end.checked_sub(load)?).ok()?)?,
    };
    let in_file = file.get(start..end)?.len() as u64;
    let bytes = match bss_end {
        0 => in_file,
        end => end.checked_sub(load).filter(|&bytes| bytes >= in_file)?,
    };
    let inside = entry.checked_sub(load).is_some_and(|offset| offset < bytes);
    let load = Load { to: Gpa(load), virtual_address: load, file: start..end, bytes };
    inside.then(|| Kernel { loads: vec![load], entry: Gpa(entry), magic: MAGIC })
}

/// Where an entry that is a virtual address lies, below 4 GiB.
fn physical(entry: u64, loads: &[Load]) -> Option<Gpa> {
    let found = loads.iter().find_map(|load| {
        let offset = entry.checked_sub(load.virtual_address).filter(|&offset| offset < load.bytes)?;
        load.to.0.checked_add(offset)
    })?;
    u32::try_from(found).ok().map(|found| Gpa(found.into()))
}

/// The information and what it points to.
fn information(
    guest: &Guest<'_>,
    map: &[e820::Region],
    module: Option<(Gpa, u64)>,
    data: &mut BootData,
) -> Gpa {
    let at = data.add(&[0; INFO_BYTES], 8);
    let map_bytes: Vec<u8> = map.iter().flat_map(memory_map_entry).collect();
    let map_at = data.add(&map_bytes, 8);
    let command_line = data.add_text(guest.command_line);
    let loader = data.add_text(LOADER);
    let mut flags = TELLS_MEMORY | TELLS_COMMAND_LINE | TELLS_MEMORY_MAP | TELLS_LOADER;
    let mut modules = Gpa(0);
    if let Some((start, bytes)) = module {
        flags |= TELLS_MODULES;
        let entry = [word(start.0), word(start.0 + bytes), word(command_line.0), 0].map(u32::to_le_bytes);
        modules = data.add(entry.as_flattened(), 8);
    }
    let [_, below_4_gib, _] = ram(guest.ram_bytes);
    let kib = |from: Gpa, to: Gpa| word(to.0.saturating_sub(from.0) / 1024);

    let mut info = [0; INFO_BYTES];
    let mut set = |offset: usize, value: u32| {
        info[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    };
    set(0, flags);
    set(4, kib(Gpa(0), EXTENDED_BIOS_DATA));
    set(8, kib(EXTENDED_RAM, below_4_gib.end()));
    set(16, word(command_line.0));
    set(20, module.is_some().into());
    set(24, word(modules.0));
    set(44, word(map_bytes.len() as u64));
    set(48, word(map_at.0));
    set(64, word(loader.0));
    data.replace(at, &info);
    at
}

/// The size of the rest, address, length, kind.
fn memory_map_entry(region: &e820::Region) -> [u8; MAP_ENTRY_BYTES] {
    const REST: u32 = 20;
    let mut entry = [0; MAP_ENTRY_BYTES];
    entry[..4].copy_from_slice(&REST.to_le_bytes());
    entry[4..12].copy_from_slice(&region.extent.start.0.to_le_bytes());
    entry[12..20].copy_from_slice(&region.extent.bytes.to_le_bytes());
    entry[20..].copy_from_slice(&(region.kind as u32).to_le_bytes());
    entry
}

impl fmt::Display for NotMultiboot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => write!(f, "no multiboot kernel: there is no header in its first 8 KiB"),
            Self::Demands(flags) => write!(
                f,
                "a multiboot kernel that demands what there is not (header flags {flags:#x}); build it without"
            ),
            Self::Addresses => {
                write!(
                    f,
                    "a multiboot kernel whose header's addresses do not fit to each other or the file; link it anew"
                )
            }
            Self::NeitherElf => write!(
                f,
                "a multiboot kernel that is neither ELF nor has addresses in its header; link it as ELF"
            ),
            Self::Elf(error) => error.fmt(f),
            Self::EntryOutside { entry } => {
                write!(
                    f,
                    "a multiboot kernel whose entry {entry:#x} is in none of its segments below 4 GiB; link it anew"
                )
            }
        }
    }
}

impl core::error::Error for NotMultiboot {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GUEST, Memory, Segment, elf64, protected};
    use elf::abi::PT_LOAD;
    use proptest::prelude::*;
    use std::string::ToString;

    fn header(flags: u32, addresses: &[u32]) -> Vec<u8> {
        let checksum = 0_u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
        let words = [&[HEADER_MAGIC, flags, checksum], addresses].concat();
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn as_elf() -> Vec<u8> {
        let header = header(3, &[]);
        let content = [&header[..], b"\xfa\xf4"].concat();
        let segment = Segment {
            kind: PT_LOAD,
            virtual_address: 0xc010_0000,
            physical: 0x10_0000,
            content: &content,
            bytes: 0x3000,
        };
        elf64(0xc010_000c, &[segment])
    }

    /// 8 bytes, then the header, loaded at 1 MiB; 0x800 bytes of zeros behind.
    fn with_addresses(addresses: [u32; 5]) -> Vec<u8> {
        let mut file = vec![0xcc; 8];
        file.extend(header(HAS_ADDRESSES, &addresses));
        file.extend_from_slice(b"\xfa\xf4");
        file
    }

    #[test]
    fn a_kernel_finds_its_information_below_640_kib() {
        let file = as_elf();
        let prepared = Kernel::parse(&file).unwrap().prepare(&GUEST).unwrap();
        let memory = Memory::load(&prepared, &file, &[0x11; 5000]);
        let (entry, Gpa(info), eax) = protected(&prepared);
        assert_eq!((entry, eax), (Gpa(0x10_000c), 0x2bad_b002), "the entry is a virtual address");
        assert_eq!(memory.bytes(entry.0, 3), b"\xfa\xf4\0");
        assert_eq!([0, 4, 8].map(|offset| memory.word(info + offset)), [0b10_0100_1101, 639, 63 * 1024]);
        assert_eq!(memory.text(memory.word(info + 16).into()), "console=ttyS0");
        assert_eq!(memory.text(memory.word(info + 64).into()), "Bulkhead");
        let module = u64::from(memory.word(info + 24));
        assert_eq!(memory.word(info + 20), 1);
        assert_eq!([memory.word(module), memory.word(module + 4)], [0x10_3000, 0x10_3000 + 5000]);
        assert_eq!(memory.bytes(0x10_3000, 5000), [0x11; 5000]);
        let map = u64::from(memory.word(info + 48));
        assert_eq!((memory.word(info + 44), memory.word(map)), (5 * 24, 20));
        assert_eq!([memory.double(map + 4), memory.double(map + 12)], [0, 0x9_fc00]);
        let structures = [info + 88, module + 16, map + 5 * 24, memory.word(info + 16).into()];
        assert!(structures.iter().all(|end| *end < 0x9_fc00), "{structures:x?}");
    }

    #[test]
    fn a_header_with_addresses_needs_no_elf() {
        let file = with_addresses([0x10_0008, 0x10_0000, 0, 0x10_0800, 0x10_0028]);
        let prepared = Kernel::parse(&file).unwrap().prepare(&GUEST).unwrap();
        let memory = Memory::load(&prepared, &file, &[0; 5000]);
        assert_eq!(protected(&prepared).0, Gpa(0x10_0028));
        assert_eq!(memory.bytes(0x10_0028, 3), b"\xfa\xf4\0");
        assert_eq!(memory.byte(0x10_07ff), 0);
        let only_the_end = with_addresses([0x10_0008, 0x10_0008, 0x10_002a, 0, 0x10_0028]);
        let kernel = Kernel::parse(&only_the_end).unwrap();
        assert_eq!(kernel.loads[0].file, 8..42);
    }

    #[test]
    fn addresses_that_do_not_fit_together_are_refused() {
        for addresses in [
            [0x10_0000, 0x10_0008, 0, 0, 0x10_0008],
            [0x10_000c, 0x10_0000, 0, 0, 0x10_0000],
            [0x10_0008, 0x10_0000, 0x10_1000, 0, 0x10_0000],
            [0x10_0008, 0x10_0000, 0x10_0010, 0x10_000f, 0x10_0000],
            [0x10_0008, 0x10_0000, 0, 0, 0x10_002a],
            [0x10_0008, 0x10_0000, 0, 0, 0xf_ffff],
        ] {
            let refusal = Kernel::parse(&with_addresses(addresses));
            assert_eq!(refusal, Err(NotMultiboot::Addresses), "{addresses:x?}");
        }
    }

    #[test]
    fn a_flat_binary_gets_the_information_without_the_magic_number() {
        let prepared = Kernel::flat(2, Gpa(0x7000), Gpa(0x7001)).prepare(&GUEST).unwrap();
        let memory = Memory::load(&prepared, b"\xfa\xf4", &[0; 5000]);
        let (entry, Gpa(info), eax) = protected(&prepared);
        assert_eq!((entry, eax, memory.word(info + 4)), (Gpa(0x7001), 0, 639));
        assert_eq!(memory.bytes(0x7000, 2), b"\xfa\xf4");
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(Kernel::parse(b""), Err(NotMultiboot::NoHeader));
        let late = [vec![0; 8192 - 8], header(0, &[])].concat();
        assert_eq!(Kernel::parse(&late), Err(NotMultiboot::NoHeader));
        let uneven = [vec![0; 2], header(0, &[])].concat();
        assert_eq!(Kernel::parse(&uneven), Err(NotMultiboot::NoHeader));
        assert_eq!(Kernel::parse(&header(0x10, &[])), Err(NotMultiboot::Demands(0x10)));
        assert_eq!(Kernel::parse(&header(0, &[])), Err(NotMultiboot::NeitherElf));
        let mut elsewhere = as_elf();
        elsewhere[24] = 0;
        elsewhere[25] = 0x30;
        assert_eq!(Kernel::parse(&elsewhere), Err(NotMultiboot::EntryOutside { entry: 0xc010_3000 }));
    }

    #[test]
    fn too_many_zeros_are_refused() {
        let mut kernel = Kernel::flat(2, Gpa(0x10_0000), Gpa(0x10_0000));
        kernel.loads[0].bytes = 70 << 20;
        let refusal = kernel.prepare(&Guest { ram_bytes: 1 << 30, ..GUEST }).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "the kernel has 70 MiB of zeroed data in one piece, more than 64 MiB; let it clear its memory itself"
        );
    }

    proptest! {
        #[test]
        fn any_addresses_are_prepared_or_refused(
            addresses: [u32; 5],
            near in proptest::array::uniform5(-64_i32..64),
            is_near: bool,
        ) {
            let near = near.map(|offset| 0x10_0000_u32.wrapping_add_signed(offset));
            let file = with_addresses(if is_near { near } else { addresses });
            if let Ok(kernel) = Kernel::parse(&file) {
                let _ = kernel.prepare(&GUEST).map_err(|error| error.to_string());
            }
        }
    }
}
