//! The machine that Bulkhead runs on, as the loader and firmware's ACPI tables describe it.
//!
//! Pure: it keeps what a hypervisor needs of the tables and says in one line what is missing. It believes them: firmware is
//! trusted. It never touches what it finds. Tables are those of the ACPI Specification 6.5.

mod power;

pub use power::{Power, sleep_type};

use crate::hw::identity::Tables;
use acpi::address::{AddressSpace, GenericAddress};
use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::spcr::{Spcr, SpcrInterfaceType};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// The most physical CPUs that are used.
pub const MAX_CPUS: usize = 16;
/// RAM from here on is not used: our own tables end here.
pub const RAM_LIMIT: u64 = 512 << 30;
/// The first mebibyte is firmware's, the trampoline's, and holes.
const LOW: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// What a loader handed over. Addresses are host-physical.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Handover {
    /// Usable RAM, in any order.
    pub ram: Vec<Range<u64>>,
    /// What is not usable though part of the above.
    pub reserved: Vec<Range<u64>>,
    /// The ACPI root pointer, if the loader knows it.
    pub rsdp: Option<u64>,
    /// The first module: the system archive.
    pub archive: Option<Range<u64>>,
}

/// The machine. Addresses are host-physical.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// RAM from 1 MiB on, whole pages, in ascending order, apart from each other.
    pub ram: Vec<Range<u64>>,
    /// RAM that does not count: beyond [`RAM_LIMIT`].
    pub unused_bytes: u64,
    /// A page of RAM below 1 MiB, where other CPUs begin.
    pub trampoline: Option<u8>,
    /// APIC numbers of the CPUs, the one that boots first.
    pub cpus: Vec<u32>,
    /// How many more CPUs there are that cannot be used: beyond [`MAX_CPUS`], or out of reach of the APIC.
    pub unused_cpus: usize,
    /// The local APIC's registers, as far as they are in memory.
    pub local_apic: u64,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// The UART of the console.
    pub uart: Uart,
    /// The ACPI power management timer.
    pub pm_timer: Option<PmTimer>,
    /// How the machine is switched off.
    pub power: Power,
    /// What the loader passed as first module: the system archive.
    pub archive: Option<Range<u64>>,
    /// The CMOS register that holds the century (ACPI 5.2.9), if there is one.
    pub century: Option<u8>,
}

/// An I/O APIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoApic {
    /// Its registers.
    pub registers: u64,
    /// The global interrupt number of its first pin.
    pub first: u32,
}

/// A 16550.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uart {
    /// Its first register.
    pub registers: Register,
    /// Bytes from one register to the next.
    pub stride: u8,
    /// Its wire, if it has one.
    pub wire: Option<Wire>,
    /// Firmware uses it: its speed is right.
    pub is_set_up: bool,
}

/// A wire into the I/O APICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wire {
    /// The global interrupt number.
    pub number: u32,
    /// Active low.
    pub is_low: bool,
    /// Level, not edge.
    pub is_level: bool,
}

/// Where a register is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// An I/O port.
    Port(u16),
    /// Memory.
    Memory(u64),
}

impl Register {
    fn from_acpi(address: &GenericAddress) -> Option<Self> {
        match address.address_space {
            AddressSpace::SystemIo => {
                u16::try_from(address.address).ok().filter(|port| *port != 0).map(Self::Port)
            }
            AddressSpace::SystemMemory => Some(address.address).filter(|at| *at != 0).map(Self::Memory),
            _ => None,
        }
    }
}

/// The power management timer: 3.579545 MHz.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PmTimer {
    /// Its port.
    pub port: u16,
    /// It counts 32 bits, not 24.
    pub is_wide: bool,
}

/// What the machine lacks, or what its tables do not say. Displays as one line with the mend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MachineError {
    /// No usable RAM above 1 MiB.
    NoRam,
    /// No ACPI tables.
    NoTables,
    /// No MADT.
    NoMadt,
    /// No I/O APIC.
    NoIoApic,
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRam => "the loader names no usable RAM above 1 MiB",
            Self::NoTables => "the machine has no ACPI tables: switch ACPI on in its firmware or emulator",
            Self::NoMadt => "the ACPI tables do not describe the interrupt controllers (no MADT)",
            Self::NoIoApic => "the machine has no I/O APIC: a PC with APICs is needed",
        })
    }
}

impl Machine {
    /// Puts together what the loader and the tables say. `own` is the APIC number of the CPU that boots; CPUs beyond
    /// `last_apic` are out of its APIC's reach.
    ///
    /// # Errors
    /// [`MachineError`] names what is missing.
    pub fn read(
        handover: &Handover,
        tables: &Tables,
        own: u32,
        last_apic: u32,
    ) -> Result<Self, MachineError> {
        let (ram, unused_bytes) = ram(handover);
        if ram.is_empty() {
            return Err(MachineError::NoRam);
        }
        let madt = tables.find::<Madt>().ok_or(MachineError::NoMadt)?;
        let fadt = tables.find::<Fadt>();
        let mut found = Found { local_apic: madt.get().local_apic_address.into(), ..Found::default() };
        for entry in madt.get().entries() {
            found.take(&entry);
        }
        if found.io_apics.is_empty() {
            return Err(MachineError::NoIoApic);
        }
        let (cpus, unused_cpus) = cpus(found.cpus, own, last_apic);
        Ok(Self {
            ram,
            unused_bytes,
            trampoline: trampoline(handover),
            cpus,
            unused_cpus,
            local_apic: found.local_apic,
            uart: uart(tables, &found.overrides),
            io_apics: found.io_apics,
            pm_timer: fadt.as_ref().and_then(|fadt| pm_timer(fadt)),
            power: fadt.as_ref().map_or_else(Power::default, |fadt| Power::read(fadt, tables.byte_code())),
            archive: handover.archive.clone(),
            century: fadt.as_ref().map(|fadt| fadt.century).filter(|index| (1..0x80).contains(index)),
        })
    }
}

/// What the MADT names (ACPI 5.2.12).
#[derive(Default)]
struct Found {
    local_apic: u64,
    cpus: Vec<u32>,
    io_apics: Vec<IoApic>,
    overrides: Vec<(u8, Wire)>,
}

impl Found {
    fn take(&mut self, entry: &MadtEntry<'_>) {
        const ENABLED: u32 = 1;
        match entry {
            MadtEntry::LocalApic(cpu) if cpu.flags & ENABLED != 0 => self.add_cpu(cpu.apic_id.into()),
            MadtEntry::LocalX2Apic(cpu) if cpu.flags & ENABLED != 0 => self.add_cpu(cpu.x2apic_id),
            MadtEntry::IoApic(controller) => self.io_apics.push(IoApic {
                registers: controller.io_apic_address.into(),
                first: controller.global_system_interrupt_base,
            }),
            MadtEntry::InterruptSourceOverride(wire) => {
                self.overrides.push((wire.irq, isa_wire(wire.global_system_interrupt, wire.flags)))
            }
            MadtEntry::LocalApicAddressOverride(entry) => self.local_apic = entry.local_apic_address,
            _ => {}
        }
    }

    /// Firmware may name a CPU twice, in the old form and in the new one.
    fn add_cpu(&mut self, apic: u32) {
        if !self.cpus.contains(&apic) {
            self.cpus.push(apic);
        }
    }
}

/// What the flags of an override say; what they leave open is as on ISA: edge, active high (ACPI 5.2.12.5).
fn isa_wire(number: u32, flags: u16) -> Wire {
    Wire { number, is_low: flags & 3 == 3, is_level: flags >> 2 & 3 == 3 }
}

/// The CPUs that are used, `own` first, and how many are not.
fn cpus(all: Vec<u32>, own: u32, last_apic: u32) -> (Vec<u32>, usize) {
    let count = all.len().max(1);
    let others = all.into_iter().filter(|apic| *apic != own && *apic <= last_apic);
    let used: Vec<u32> = core::iter::once(own).chain(others).take(MAX_CPUS).collect();
    let unused = count.saturating_sub(used.len());
    (used, unused)
}

/// RAM above 1 MiB by whole pages, sorted, joined and without what is reserved; and how many bytes are out of reach.
fn ram(handover: &Handover) -> (Vec<Range<u64>>, u64) {
    let mut all: Vec<Range<u64>> = handover
        .ram
        .iter()
        .map(|range| range.start.max(LOW).next_multiple_of(PAGE)..range.end & !(PAGE - 1))
        .filter(|range| range.start < range.end)
        .collect();
    all.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in all {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    for reserved in &handover.reserved {
        joined = joined.into_iter().flat_map(|range| without(&range, reserved)).collect();
    }
    let all: u64 = joined.iter().map(bytes).sum();
    let used: Vec<Range<u64>> = joined
        .into_iter()
        .map(|range| range.start..range.end.min(RAM_LIMIT))
        .filter(|range| range.start < range.end)
        .collect();
    let reachable: u64 = used.iter().map(bytes).sum();
    (used, all - reachable)
}

fn bytes(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// What is left of `range` without the pages that `hole` touches.
fn without(range: &Range<u64>, hole: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let hole = hole.start & !(PAGE - 1)..hole.end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
    [range.start..range.end.min(hole.start), range.start.max(hole.end)..range.end]
        .into_iter()
        .filter(|part| part.start < part.end)
}

/// The highest free page below 640 KiB, as the number that a start-up names.
fn trampoline(handover: &Handover) -> Option<u8> {
    const END: u64 = 0xa_0000;
    let is_free = |page: &u8| {
        let page = u64::from(*page) * PAGE..(u64::from(*page) + 1) * PAGE;
        handover.ram.iter().any(|range| range.start <= page.start && page.end <= range.end)
            && !handover.reserved.iter().any(|range| range.start < page.end && page.start < range.end)
    };
    // The first page holds real mode's interrupt vectors.
    (1..u8::try_from(END / PAGE).unwrap_or(u8::MAX)).rev().find(is_free)
}

fn pm_timer(fadt: &Fadt) -> Option<PmTimer> {
    let address = fadt.pm_timer_block().ok()??;
    let Register::Port(port) = Register::from_acpi(&address)? else { return None };
    Some(PmTimer { port, is_wide: { fadt.flags }.pm_timer_is_32_bit() })
}

/// The UART that firmware redirects its console to, or else COM1.
fn uart(tables: &Tables, overrides: &[(u8, Wire)]) -> Uart {
    const COM1: u16 = 0x3f8;
    tables.find::<Spcr>().and_then(|spcr| redirected(&spcr, overrides)).unwrap_or(Uart {
        registers: Register::Port(COM1),
        stride: 1,
        wire: Some(isa_irq(4, overrides)),
        is_set_up: false,
    })
}

fn redirected(spcr: &Spcr, overrides: &[(u8, Wire)]) -> Option<Uart> {
    if !matches!(
        spcr.interface_type(),
        SpcrInterfaceType::Full16550 | SpcrInterfaceType::Full16450 | SpcrInterfaceType::Generic16550
    ) {
        return None;
    }
    let address = spcr.base_address()?.ok()?;
    let registers = Register::from_acpi(&address)?;
    let stride = match registers {
        Register::Port(_) => 1,
        Register::Memory(_) => (address.bit_width / 8).clamp(1, 4),
    };
    let by_line = spcr.irq().map(|line| isa_irq(line, overrides));
    let by_number = spcr.global_system_interrupt().map(|number| isa_wire(number, 0));
    Some(Uart { registers, stride, wire: by_line.or(by_number), is_set_up: true })
}

/// Where the ISA interrupt `line` goes.
fn isa_irq(line: u8, overrides: &[(u8, Wire)]) -> Wire {
    let changed = overrides.iter().find(|(other, _)| *other == line).map(|(_, wire)| *wire);
    changed.unwrap_or(isa_wire(line.into(), 0))
}

#[cfg(test)]
mod tests;
