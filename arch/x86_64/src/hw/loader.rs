//! The loader's word: where the machine's RAM, firmware's tables and the system archive are.
//!
//! Nothing can prove it, so this is where it is believed. What is read here is copied before any guest exists.

use super::start::image;
use crate::machine::{Handover, Machine};
use alloc::vec::Vec;
use bulkhead::memory::{HostMemory, PAGE};
use core::fmt;
use core::ops::Range;
use core::ptr::with_exposed_provenance;
use multiboot2::{BootInformation, BootInformationHeader, MemoryAreaType};

/// What is mapped when the loader is heard.
const LIMIT: u64 = 4 << 30;

/// Why the loader is not understood. Displays as one line with the mend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LoaderError {
    /// Neither protocol.
    Unknown,
    /// The information is damaged.
    Damaged,
    /// There is no memory map in it.
    NoMemoryMap,
}

impl fmt::Display for LoaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => {
                "the loader speaks neither multiboot2 nor PVH: use GRUB's `multiboot2`, or QEMU's `-kernel`"
            }
            Self::Damaged => "the loader's information is damaged",
            Self::NoMemoryMap => "the loader passes no memory map",
        })
    }
}

/// What the loader hands over: `magic` is what EAX held, 0 for PVH, and `at` what EBX held.
pub(super) fn read(magic: u64, at: u64) -> Result<Handover, LoaderError> {
    let mut handover = match magic {
        0 => pvh(at)?,
        _ if magic == u64::from(multiboot2::MAGIC) => multiboot2(at)?,
        _ => return Err(LoaderError::Unknown),
    };
    handover.rsdp = handover.rsdp.filter(|rsdp| *rsdp != 0).or_else(search_rsdp);
    Ok(handover)
}

/// The start of day of PVH (Xen, public/arch-x86/hvm/start_info.h).
#[derive(Clone, Copy)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    _flags: u32,
    modules: u32,
    module_list: u64,
    _command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    _reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Module {
    at: u64,
    bytes: u64,
    _command_line: u64,
    _reserved: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct MemoryMapEntry {
    at: u64,
    bytes: u64,
    kind: u32,
    _reserved: u32,
}

fn pvh(at: u64) -> Result<Handover, LoaderError> {
    const MAGIC: u32 = 0x336e_c578;
    const RAM: u32 = 1;
    let info = peek::<StartInfo>(at).filter(|info| info.magic == MAGIC).ok_or(LoaderError::Unknown)?;
    // The map came with version 1.
    if info.version < 1 || info.memory_map_entries == 0 {
        return Err(LoaderError::NoMemoryMap);
    }
    let mut handover = Handover { rsdp: Some(info.rsdp), ..Handover::default() };
    for index in 0..info.memory_map_entries {
        let entry: MemoryMapEntry = peek_array(info.memory_map, index).ok_or(LoaderError::Damaged)?;
        let range = entry.at..entry.at.saturating_add(entry.bytes);
        if entry.kind == RAM { handover.ram.push(range) } else { handover.reserved.push(range) }
    }
    if info.modules > 0 {
        let module: Module = peek_array(info.module_list, 0).ok_or(LoaderError::Damaged)?;
        handover.archive = Some(module.at..module.at.saturating_add(module.bytes));
    }
    Ok(handover)
}

fn multiboot2(at: u64) -> Result<Handover, LoaderError> {
    let pointer = with_exposed_provenance::<BootInformationHeader>(usize::try_from(at).unwrap_or(0));
    // SAFETY: the protocol puts the address of the information into EBX; the crate refuses what does not look like it.
    let info = unsafe { BootInformation::load(pointer) }.map_err(|_| LoaderError::Damaged)?;
    let map = info.memory_map_tag().ok_or(LoaderError::NoMemoryMap)?;
    let mut handover = Handover { rsdp: root_pointer(&info), ..Handover::default() };
    for area in map.memory_areas() {
        let range = area.start_address()..area.end_address();
        let is_ram = area.typ() == MemoryAreaType::Available;
        if is_ram { handover.ram.push(range) } else { handover.reserved.push(range) }
    }
    handover.archive =
        info.module_tags().next().map(|module| module.start_address().into()..module.end_address().into());
    Ok(handover)
}

/// The loader's copy of the ACPI root pointer, behind the head of its tag.
fn root_pointer(info: &BootInformation<'_>) -> Option<u64> {
    const TAG_HEAD: u64 = 8;
    let new = info.rsdp_v2_tag().map(|tag| core::ptr::from_ref(tag).expose_provenance());
    let old = || info.rsdp_v1_tag().map(|tag| core::ptr::from_ref(tag).expose_provenance());
    Some(new.or_else(old)? as u64 + TAG_HEAD)
}

/// The ACPI root pointer where a BIOS has it (ACPI 5.2.5.1): in its own 128 KiB, or in the first KiB of its data.
fn search_rsdp() -> Option<u64> {
    const SIGNATURE: [u8; 8] = *b"RSD PTR ";
    const EXTENDED_DATA_SEGMENT: u64 = 0x40e;
    let extended = u64::from(peek::<u16>(EXTENDED_DATA_SEGMENT)?) << 4;
    let is_root = |at: &u64| {
        let sum = |bytes: [u8; 20]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        peek(*at) == Some(SIGNATURE) && peek(*at).map(sum) == Some(0)
    };
    (0xe_0000..0x10_0000)
        .step_by(16)
        .chain((extended..extended + 1024).step_by(16).filter(|at| *at >= 0x400))
        .find(is_root)
}

/// A copy of what the loader put at `at`; `None` if that is out of reach.
fn peek<T: Copy>(at: u64) -> Option<T> {
    let end = at.checked_add(size_of::<T>() as u64)?;
    if at == 0 || end > LIMIT {
        return None;
    }
    let pointer = with_exposed_provenance::<T>(usize::try_from(at).ok()?);
    // SAFETY: mapped, and the callers' types are plain numbers, for which any bytes will do.
    Some(unsafe { pointer.read_unaligned() })
}

/// A copy of element `index` of an array at `at`.
fn peek_array<T: Copy>(at: u64, index: u32) -> Option<T> {
    peek(at.checked_add(u64::from(index) * size_of::<T>() as u64)?)
}

/// The machine's RAM, less ourselves and the archive.
pub(crate) fn memory(machine: &Machine) -> HostMemory {
    let mut used: Vec<Range<u64>> = Vec::from([pages_around(image())]);
    used.extend(machine.archive.clone().map(pages_around));
    // SAFETY: the loader says what is RAM, `own_tables` maps it, and what lies in it is listed. Firmware's tables and the
    // trampoline's page are not part of it, and the loader's information was copied.
    unsafe { HostMemory::new(machine.ram.clone(), used) }
}

/// The archive that the loader passed as first module; empty if there is none.
pub(crate) fn archive(machine: &Machine) -> &'static [u8] {
    let Some(range) = machine.archive.clone() else { return &[] };
    if !machine.ram.iter().any(|bank| bank.start <= range.start && range.end <= bank.end) {
        return &[];
    }
    let (Ok(start), Ok(bytes)) =
        (usize::try_from(range.start), usize::try_from(range.end.saturating_sub(range.start)))
    else {
        return &[];
    };
    // SAFETY: RAM, mapped, kept out of what is given to guests by `memory`, and written by nobody.
    unsafe { core::slice::from_raw_parts(with_exposed_provenance(start), bytes) }
}

/// The whole pages that `range` touches.
pub(super) fn pages_around(range: Range<u64>) -> Range<u64> {
    range.start & !(PAGE - 1)..range.end.next_multiple_of(PAGE)
}
