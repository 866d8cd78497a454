//! The Linux kernel for PCs, `bzImage` (Linux, Documentation/arch/x86/boot.rst and zero-page.rst, version 2.10 and later).
//!
//! ```text
//! file   | boot sector | set-up, not used | kernel for protected mode ...
//!          0x1f1: header                   ^ (setup_sects + 1) * 512
//! RAM    boot data below 640 KiB | kernel at pref_address, init_size | initrd at the top
//! ```
//! A 64-bit kernel is entered in long mode at 0x200, another in protected mode at 0. Pure; the file is a claim.

use crate::acpi;
use crate::boot_data::{BootData, CodeSegment, word};
use crate::e820;
use crate::identity;
use crate::pc_boot::{Content, Guest, Piece, Prepared, Start};
use crate::pc_placement::{DoesNotFit, Layout, Part};
use crate::placement::Extent;
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_vdev::Gpa;
use core::fmt;
use core::ops::Range;

/// A kernel, as its header describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// From 0x1f1 to the header's end: what the kernel wants to find again in its boot parameters.
    header: Vec<u8>,
    /// The part of the file that runs.
    code: Range<usize>,
    /// Where it runs, and all that it takes until it has looked at the memory map. No lower place would do even for a kernel
    /// that says it is relocatable: loaded lower, it moves itself up to here before it unpacks (boot.rst on `init_size`).
    place: Extent,
    is_64_bit: bool,
    initrd_last: u32,
    command_line_bytes: u32,
}

/// Why a file is no such kernel. Displays as one line with the mend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotABzImage {
    /// The header's magic number is missing.
    NoHeader,
    /// Its boot protocol is too old: major and minor version.
    TooOld(u8, u8),
    /// A `zImage`, for real mode and low memory.
    Low,
    /// The file is shorter than its header says.
    CutShort {
        /// What it should have at least.
        expected: u64,
        /// What it has.
        found: u64,
    },
    /// The header asks for a place beyond all memory.
    BeyondMemory,
}

const SECTOR: usize = 512;
const HEADER: usize = 0x1f1;
/// The end of the boot parameters' place for the header.
const HEADER_END: usize = 0x290;
const MAGIC: usize = 0x202;
/// 2.10 says where the kernel wants to be and how much it takes.
const OLDEST: u16 = 0x020a;
/// 2.12 says whether there is a 64-bit entry.
const WITH_FLAGS: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const HAS_64_BIT_ENTRY: u16 = 1;
const ENTRY_64: u64 = 0x200;

/// Offsets of the header's fields, the same in the file and in the boot parameters.
mod field {
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const SYSSIZE: usize = 0x1f4;
    pub(super) const VID_MODE: usize = 0x1fa;
    pub(super) const JUMP: usize = 0x201;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const CODE32_START: usize = 0x214;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const SETUP_DATA: usize = 0x250;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
}

/// Offsets of the boot parameters' own fields.
mod parameter {
    pub(super) const ACPI_RSDP: usize = 0x070;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

const E820_ENTRY_BYTES: usize = 20;
const UNKNOWN_LOADER: u8 = 0xff;
const NORMAL_VIDEO: u16 = 0xffff;
const SETUP_RNG_SEED: u32 = 9;

const PAGE: usize = 4096;
/// Parameters; descriptors and the seed.
const BOOT_DATA_BYTES: usize = PAGE + 128;

impl Kernel {
    /// Reads the header of `file`.
    ///
    /// # Errors
    /// [`NotABzImage`].
    pub fn parse(file: &[u8]) -> Result<Self, NotABzImage> {
        if file.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
            return Err(NotABzImage::NoHeader);
        }
        let header_end = MAGIC + usize::from(number::<1>(file, field::JUMP)?[0]);
        let version = u16::from_le_bytes(number(file, field::VERSION)?);
        if version < OLDEST || header_end < field::INIT_SIZE + 4 {
            let [major, minor] = version.to_be_bytes();
            return Err(NotABzImage::TooOld(major, minor));
        }
        if number::<1>(file, field::LOADFLAGS)?[0] & LOADED_HIGH == 0 {
            return Err(NotABzImage::Low);
        }
        let header_end = header_end.min(HEADER_END);
        let header = file.get(HEADER..header_end).ok_or(cut_short(file, header_end as u64))?.to_vec();
        let code = Self::code(file)?;
        let flags = u16::from_le_bytes(number(file, field::XLOADFLAGS)?);
        let start = Gpa(u64::from_le_bytes(number(file, field::PREF_ADDRESS)?));
        let bytes = u32::from_le_bytes(number(file, field::INIT_SIZE)?);
        let place = Extent { start, bytes: u64::from(bytes).max(code.len() as u64) };
        start.0.checked_add(place.bytes).ok_or(NotABzImage::BeyondMemory)?;
        Ok(Self {
            header,
            code,
            place,
            is_64_bit: version >= WITH_FLAGS && flags & HAS_64_BIT_ENTRY != 0,
            initrd_last: u32::from_le_bytes(number(file, field::INITRD_ADDR_MAX)?),
            command_line_bytes: u32::from_le_bytes(number(file, field::CMDLINE_SIZE)?),
        })
    }

    /// The part behind boot sector and set-up; a signature at its end comes along.
    fn code(file: &[u8]) -> Result<Range<usize>, NotABzImage> {
        const UNSAID: usize = 4;
        const PARAGRAPH: u64 = 16;
        let sectors = match number::<1>(file, field::SETUP_SECTS)?[0] {
            0 => UNSAID,
            sectors => usize::from(sectors),
        };
        let start = (sectors + 1) * SECTOR;
        let bytes = u64::from(u32::from_le_bytes(number(file, field::SYSSIZE)?)) * PARAGRAPH;
        // The field counts whole paragraphs, the last of which need not be whole.
        let expected = start as u64 + bytes.max(PARAGRAPH) - (PARAGRAPH - 1);
        if expected > file.len() as u64 {
            return Err(cut_short(file, expected));
        }
        Ok(start..file.len())
    }

    /// Everything that has to lie in RAM when `guest` starts.
    ///
    /// # Errors
    /// [`DoesNotFit`].
    pub fn prepare(&self, guest: &Guest<'_>) -> Result<Prepared, DoesNotFit> {
        let length = guest.command_line.len() as u64;
        if length > u64::from(self.command_line_bytes) {
            return Err(DoesNotFit::CommandLineTooLong {
                bytes: length,
                most: self.command_line_bytes.into(),
            });
        }
        let mut layout = Layout::new(guest.ram_bytes);
        layout.claim(self.place)?;
        layout.claim(Extent { start: identity::ROOT, bytes: identity::TABLES.len() as u64 })?;
        let initrd = match guest.initrd_bytes {
            None => None,
            Some(bytes) => {
                let end = u64::from(self.initrd_last) + 1;
                let start = layout.take_top(Part::Initrd, bytes, PAGE as u64, end)?;
                Some(Extent { start, bytes })
            }
        };
        let capacity = BOOT_DATA_BYTES + guest.command_line.len() + 1;
        let mut data = BootData::new(&mut layout, capacity)?;
        let start = self.boot_data(guest, initrd, &mut data);
        let (at, bytes) = data.finish();
        let mut pieces = vec![
            Piece { to: self.place.start, content: Content::Kernel(self.code.clone()) },
            Piece { to: at, content: Content::Bytes(bytes) },
            Piece { to: identity::ROOT, content: Content::Fixed(&identity::TABLES) },
        ];
        pieces.extend(initrd.map(|initrd| Piece { to: initrd.start, content: Content::Initrd }));
        Ok(Prepared { pieces, start })
    }

    fn code_segment(&self) -> CodeSegment {
        if self.is_64_bit { CodeSegment::Long } else { CodeSegment::Protected }
    }

    /// Parameters, descriptors, seed and command line.
    fn boot_data(&self, guest: &Guest<'_>, initrd: Option<Extent>, data: &mut BootData) -> Start {
        let mut parameters = Parameters::new(&self.header);
        // They point to what follows them.
        let boot_params = data.add(&[0; PAGE], PAGE);
        let descriptors = data.add_descriptors(self.code_segment());
        let seed = guest.rng_seed.map(|seed| data.add(&setup_data(SETUP_RNG_SEED, &seed), 8));
        let command_line = data.add_text(guest.command_line);

        parameters.set(field::VID_MODE, &NORMAL_VIDEO.to_le_bytes());
        parameters.set(field::TYPE_OF_LOADER, &[UNKNOWN_LOADER]);
        parameters.set(field::LOADFLAGS, &[LOADED_HIGH]);
        parameters.set(field::CODE32_START, &word(self.place.start.0).to_le_bytes());
        if let Some(initrd) = initrd {
            parameters.set(field::RAMDISK_IMAGE, &word(initrd.start.0).to_le_bytes());
            parameters.set(field::RAMDISK_SIZE, &word(initrd.bytes).to_le_bytes());
        }
        parameters.set(field::CMD_LINE_PTR, &word(command_line.0).to_le_bytes());
        parameters.set(field::SETUP_DATA, &seed.map_or(0, |seed| seed.0).to_le_bytes());
        parameters.set(parameter::ACPI_RSDP, &acpi::RSDP.0.to_le_bytes());
        parameters.set_memory_map(&e820::map(guest.ram_bytes));
        data.replace(boot_params, &parameters.0);
        match self.is_64_bit {
            true => {
                let entry = Gpa(self.place.start.0 + ENTRY_64);
                Start::Linux64 { entry, boot_params, page_tables: identity::ROOT, descriptors }
            }
            false => Start::Linux32 { entry: self.place.start, boot_params, descriptors },
        }
    }
}

/// The boot parameters, the "zero page".
struct Parameters([u8; PAGE]);

impl Parameters {
    fn new(header: &[u8]) -> Self {
        let mut page = [0; PAGE];
        page[HEADER..HEADER + header.len()].copy_from_slice(header);
        Self(page)
    }

    fn set(&mut self, offset: usize, value: &[u8]) {
        self.0[offset..offset + value.len()].copy_from_slice(value);
    }

    fn set_memory_map(&mut self, regions: &[e820::Region]) {
        let count = u8::try_from(regions.len()).expect("a map has six regions at most");
        self.set(parameter::E820_ENTRIES, &[count]);
        for (index, region) in regions.iter().enumerate() {
            let at = parameter::E820_TABLE + index * E820_ENTRY_BYTES;
            self.set(at, &region.extent.start.0.to_le_bytes());
            self.set(at + 8, &region.extent.bytes.to_le_bytes());
            self.set(at + 16, &(region.kind as u32).to_le_bytes());
        }
    }
}

/// The only element of the list of set-up data.
fn setup_data(kind: u32, data: &[u8]) -> Vec<u8> {
    const LAST: u64 = 0;
    let length = u32::try_from(data.len()).expect("a seed is small");
    let mut element = Vec::from(LAST.to_le_bytes());
    element.extend_from_slice(&kind.to_le_bytes());
    element.extend_from_slice(&length.to_le_bytes());
    element.extend_from_slice(data);
    element
}

fn number<const BYTES: usize>(file: &[u8], offset: usize) -> Result<[u8; BYTES], NotABzImage> {
    let bytes = file.get(offset..).and_then(|rest| rest.first_chunk().copied());
    bytes.ok_or(cut_short(file, (offset + BYTES) as u64))
}

fn cut_short(file: &[u8], expected: u64) -> NotABzImage {
    NotABzImage::CutShort { expected, found: file.len() as u64 }
}

impl fmt::Display for NotABzImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => write!(f, "not a Linux bzImage: the magic number at byte 514 is missing"),
            Self::TooOld(major, minor) => {
                write!(
                    f,
                    "a Linux kernel with boot protocol {major}.{minor:02}, older than 2.10; use Linux 2.6.31 or later"
                )
            }
            Self::Low => {
                write!(f, "a Linux zImage, which is for low memory; use the bzImage of the same build")
            }
            Self::CutShort { expected, found } => write!(
                f,
                "a Linux bzImage that is cut short: {found} bytes instead of at least {expected}; copy it again"
            ),
            Self::BeyondMemory => {
                write!(f, "the Linux kernel's header asks for a place beyond all memory; use another file")
            }
        }
    }
}

impl core::error::Error for NotABzImage {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GUEST, Memory};
    use proptest::prelude::*;
    use std::string::ToString;

    const CODE: usize = 3 * SECTOR;
    const RELOCATABLE_KERNEL: usize = 0x234;

    /// A kernel of version 2.15 that wants 8 MiB at 16 MiB.
    fn image(is_64_bit: bool) -> Vec<u8> {
        let mut file = vec![0x90; CODE + 1000];
        file[..CODE].fill(0);
        let mut set = |at: usize, value: &[u8]| file[at..at + value.len()].copy_from_slice(value);
        set(field::SETUP_SECTS, &[2]);
        set(field::SYSSIZE, &63_u32.to_le_bytes());
        set(field::JUMP, &[0x6a]);
        set(MAGIC, b"HdrS");
        set(field::VERSION, &[15, 2]);
        set(field::LOADFLAGS, &[0x81]);
        set(field::INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes());
        set(0x230, &0x20_0000_u32.to_le_bytes());
        set(field::XLOADFLAGS, &[u8::from(is_64_bit)]);
        set(field::CMDLINE_SIZE, &2047_u32.to_le_bytes());
        set(field::PREF_ADDRESS, &(16_u64 << 20).to_le_bytes());
        set(field::INIT_SIZE, &(8_u32 << 20).to_le_bytes());
        file
    }

    fn changed(at: usize, value: &[u8]) -> Vec<u8> {
        let mut file = image(true);
        file[at..at + value.len()].copy_from_slice(value);
        file
    }

    fn refusal(file: &[u8]) -> NotABzImage {
        Kernel::parse(file).unwrap_err()
    }

    #[test]
    fn a_64_bit_kernel_finds_what_the_protocol_promises() {
        let file = image(true);
        let guest = Guest { rng_seed: Some([7; 32]), ..GUEST };
        let prepared = Kernel::parse(&file).unwrap().prepare(&guest).unwrap();
        let memory = Memory::load(&prepared, &file, &[0x11; 5000]);
        let Start::Linux64 { entry, boot_params: Gpa(params), page_tables, descriptors } = prepared.start
        else {
            panic!("{:?}", prepared.start)
        };
        assert_eq!(entry, Gpa(0x100_0200));
        assert_eq!(memory.bytes(0x100_0000, 1000), &file[CODE..]);
        assert_eq!(memory.bytes(params + 0x230, 4), 0x20_0000_u32.to_le_bytes(), "the header came along");
        assert_eq!((memory.byte(params + 0x1ef), memory.byte(params + 0x210)), (0, 0xff));
        assert_eq!(memory.text(memory.word(params + 0x228).into()), "console=ttyS0");
        assert_eq!(memory.double(params + 0x70), 0xe_0000);
        let initrd = memory.word(params + 0x218).into();
        assert_eq!((initrd, memory.word(params + 0x21c)), (0x3ff_e000, 5000));
        assert_eq!(memory.bytes(initrd, 5000), [0x11; 5000]);
        let seed = memory.double(params + 0x250);
        assert_eq!([memory.double(seed), memory.double(seed + 8)], [0, 32 << 32 | 9]);
        assert_eq!(memory.bytes(seed + 16, 32), [7; 32]);
        assert_eq!(memory.double(page_tables.0 + 0x2000), 0x83);
        assert_eq!(memory.double(descriptors.base.0 + 0x10), 0x00af_9b00_0000_ffff);
        assert_eq!(memory.double(descriptors.base.0 + 0x18), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn the_memory_map_is_in_the_parameters() {
        let file = image(true);
        let prepared = Kernel::parse(&file).unwrap().prepare(&GUEST).unwrap();
        let memory = Memory::load(&prepared, &file, &[0; 5000]);
        let Start::Linux64 { boot_params: Gpa(params), .. } = prepared.start else { unreachable!() };
        assert_eq!(memory.byte(params + 0x1e8), 5);
        let last_ram = params + 0x2d0 + 3 * 20;
        assert_eq!([memory.double(last_ram), memory.double(last_ram + 8)], [1 << 20, 63 << 20]);
        assert_eq!(memory.word(last_ram + 16), 1);
    }

    #[test]
    fn a_32_bit_kernel_is_entered_at_its_start() {
        let file = image(false);
        let guest = Guest { initrd_bytes: None, ..GUEST };
        let prepared = Kernel::parse(&file).unwrap().prepare(&guest).unwrap();
        let memory = Memory::load(&prepared, &file, &[]);
        let Start::Linux32 { entry, boot_params, descriptors } = prepared.start else {
            panic!("{:?}", prepared.start)
        };
        assert_eq!(entry, Gpa(16 << 20));
        assert_eq!(memory.double(boot_params.0 + 0x218), 0, "no RAM disk");
        assert_eq!(memory.double(descriptors.base.0 + 0x10), 0x00cf_9b00_0000_ffff);
    }

    #[test]
    fn the_ram_disk_ends_where_the_kernel_can_reach_it() {
        let file = changed(field::INITRD_ADDR_MAX, &0x37f_ffff_u32.to_le_bytes());
        let prepared = Kernel::parse(&file).unwrap().prepare(&GUEST).unwrap();
        let initrd = prepared.pieces.iter().find(|piece| piece.content == Content::Initrd).unwrap();
        assert_eq!(initrd.to, Gpa(0x37f_e000));
    }

    #[test]
    fn the_ram_disk_stays_out_of_all_that_the_kernel_takes() {
        let file = changed(field::INIT_SIZE, &(48_u32 << 20).to_le_bytes());
        let prepared = Kernel::parse(&file).unwrap().prepare(&GUEST).unwrap();
        let initrd = prepared.pieces.iter().find(|piece| piece.content == Content::Initrd).unwrap();
        assert_eq!(initrd.to, Gpa(0xff_e000), "no room is left above the kernel");
    }

    #[test]
    fn a_relocatable_kernel_is_not_placed_below_where_it_moves_itself() {
        let mut file = changed(field::INIT_SIZE, &(52_u32 << 20).to_le_bytes());
        file[RELOCATABLE_KERNEL] = 1;
        let kernel = Kernel::parse(&file).unwrap();
        let refusal = kernel.prepare(&GUEST).unwrap_err();
        assert!(matches!(refusal, DoesNotFit::OutsideRam { .. }), "{refusal}");
        let larger = kernel.prepare(&Guest { ram_bytes: 72 << 20, ..GUEST }).unwrap();
        assert_eq!(larger.pieces[0].to, Gpa(16 << 20));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let kernel = Kernel::parse(&image(true)).unwrap();
        let small = kernel.prepare(&Guest { ram_bytes: 20 << 20, ..GUEST }).unwrap_err();
        assert!(matches!(small, DoesNotFit::OutsideRam { .. }), "{small}");
        let initrd = kernel.prepare(&Guest { initrd_bytes: Some(50 << 20), ..GUEST }).unwrap_err();
        assert!(matches!(initrd, DoesNotFit::NoRoom { part: Part::Initrd, .. }), "{initrd}");
        let long = "x".repeat(2048);
        let line = kernel.prepare(&Guest { command_line: &long, ..GUEST }).unwrap_err();
        assert_eq!(line, DoesNotFit::CommandLineTooLong { bytes: 2048, most: 2047 });
    }

    #[test]
    fn other_files_are_refused_by_name() {
        assert_eq!(refusal(b""), NotABzImage::NoHeader);
        assert_eq!(refusal(&changed(MAGIC, b"hdrs")), NotABzImage::NoHeader);
        assert_eq!(refusal(&changed(field::VERSION, &[9, 2])), NotABzImage::TooOld(2, 9));
        assert_eq!(refusal(&changed(field::LOADFLAGS, &[0])), NotABzImage::Low);
        assert_eq!(refusal(&changed(field::PREF_ADDRESS, &[0xff; 8])), NotABzImage::BeyondMemory);
        let expected = (CODE + 62 * 16 + 1) as u64;
        let cut = refusal(&image(true)[..CODE + 62 * 16]);
        assert_eq!(cut, NotABzImage::CutShort { expected, found: expected - 1 });
        assert!(refusal(&changed(field::VERSION, &[5, 2])).to_string().contains("boot protocol 2.05, older"));
    }

    proptest! {
        #[test]
        fn any_header_is_prepared_or_refused(
            header in proptest::collection::vec(any::<u8>(), 0x300),
            keep in 0..0x300_usize,
            ram_mib in 2_u64..6000,
        ) {
            let mut file = image(true);
            file[HEADER..keep.max(HEADER)].copy_from_slice(&header[HEADER..keep.max(HEADER)]);
            file[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
            if let Ok(kernel) = Kernel::parse(&file) {
                let _ = kernel.prepare(&Guest { ram_bytes: ram_mib << 20, ..GUEST }).map_err(|error| error.to_string());
            }
        }

        #[test]
        fn any_length_is_prepared_or_refused(length in 0..CODE + 1000) {
            let _ = Kernel::parse(&image(true)[..length]).map_err(|error| error.to_string());
        }
    }
}
