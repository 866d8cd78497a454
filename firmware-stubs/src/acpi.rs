//! The ACPI tables of an x86 guest: the machine of `vdev::pc` (ACPI 6.5).
//!
//! ```text
//! RSDP -> RSDT (32-bit addresses) -> FADT -> DSDT, FACS
//!      -> XSDT (64-bit addresses) -> MADT, MCFG, HPET
//! ```
//! It relies on `vdev` for addresses, ports and lines, and names nothing that is not there.

use crate::pc_placement::ACPI;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name, Package,
    ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_vdev::{MAX_VCPUS, pc};

/// Where the first table is: what a boot protocol passes on.
pub const RSDP: bulkhead_vdev::Gpa = ACPI;

const OEM: [u8; 6] = *b"BLKHD ";
const OEM_TABLE: [u8; 8] = *b"BULKHEAD";
const OEM_REVISION: u32 = 1;

const RSDP_BYTES: usize = 36;
/// The FACS has to lie at a multiple of it (ACPI 6.5, 5.2.10); the others may lie anywhere.
const ALIGNMENT: usize = 64;
const HEADER_BYTES: u32 = 36;

/// IA-PC boot architecture flags (ACPI 6.5, 5.2.9.3): there are devices at the places of old, but no video. That there
/// is no keyboard controller is a flag that is not set.
const LEGACY_DEVICES: u16 = 1;
const VGA_NOT_PRESENT: u16 = 1 << 2;

/// Interrupt flags of the MADT (ACPI 6.5, 5.2.12.5).
const ACTIVE_HIGH: u16 = 1;
const LEVEL_TRIGGERED: u16 = 3 << 2;
/// The MADT's flag for 8259s beside the IOAPIC.
const PCAT_COMPAT: u8 = 1;
const MADT_FLAGS_OFFSET: usize = 40;
const ALL_PROCESSORS: u8 = 0xff;
/// The local APIC's input that carries NMI.
const NMI_INPUT: u8 = 1;

/// All tables of a machine with `vcpus` virtual CPUs, to be put at [`RSDP`].
#[must_use]
pub fn tables(vcpus: u32) -> Vec<u8> {
    let mut area = Area(vec![0; RSDP_BYTES]);
    let facs = area.add(&bytes(&FACS::new()));
    let dsdt = area.add(dsdt(vcpus).as_slice());
    let listed = [
        area.add(&bytes(&fadt(facs, dsdt))),
        area.add(&madt(vcpus)),
        area.add(&bytes(&mcfg())),
        area.add(hpet().as_slice()),
    ];
    let rsdt = area.add(rsdt(&listed).as_slice());
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    listed.iter().for_each(|&table| xsdt.add_entry(table.into()));
    let xsdt = area.add(&bytes(&xsdt));
    area.0[..RSDP_BYTES].copy_from_slice(&rsdp(rsdt, xsdt));
    area.0
}

/// Tables, one behind the other.
struct Area(Vec<u8>);

impl Area {
    /// Adds a table; says where it is.
    fn add(&mut self, table: &[u8]) -> u32 {
        let offset = self.0.len().next_multiple_of(ALIGNMENT);
        self.0.resize(offset, 0);
        self.0.extend_from_slice(table);
        u32::try_from(ACPI.0 + offset as u64).expect("it is below 1 MiB")
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The byte that makes a table's sum 0.
fn checksum(table: &[u8]) -> u8 {
    table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// The root pointer (ACPI 6.5, 5.2.5.3) for systems that know the XSDT and for those that do not.
fn rsdp(rsdt: u32, xsdt: u32) -> [u8; RSDP_BYTES] {
    const FIRST_VERSION_BYTES: usize = 20;
    let mut rsdp = [0; RSDP_BYTES];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(&OEM);
    rsdp[15] = 2;
    rsdp[16..20].copy_from_slice(&rsdt.to_le_bytes());
    rsdp[20..24].copy_from_slice(&HEADER_BYTES.to_le_bytes());
    rsdp[24..32].copy_from_slice(&u64::from(xsdt).to_le_bytes());
    rsdp[8] = checksum(&rsdp[..FIRST_VERSION_BYTES]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

fn rsdt(tables: &[u32]) -> Sdt {
    let mut rsdt = Sdt::new(*b"RSDT", HEADER_BYTES, 1, OEM, OEM_TABLE, OEM_REVISION);
    tables.iter().for_each(|table| rsdt.append_slice(&table.to_le_bytes()));
    rsdt
}

/// Fixed hardware (ACPI 6.5, 5.2.9). There is no SMI command port: the machine is in ACPI mode from the start.
fn fadt(facs: u32, dsdt: u32) -> FADT {
    let port = |port: u16, bytes: u8, size| GAS::new(Space::SystemIo, bytes * 8, 0, size, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.firmware_ctrl = facs.into();
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = line(pc::SCI_LINE).into();
    fadt.pm1a_evt_blk = u32::from(pc::ACPI_PM1_EVENT).into();
    fadt.pm1_evt_len = pc::ACPI_PM1_EVENT_BYTES;
    fadt.x_pm1a_evt_blk = port(pc::ACPI_PM1_EVENT, pc::ACPI_PM1_EVENT_BYTES, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(pc::ACPI_PM1_CONTROL).into();
    fadt.pm1_cnt_len = pc::ACPI_PM1_CONTROL_BYTES;
    fadt.x_pm1a_cnt_blk = port(pc::ACPI_PM1_CONTROL, pc::ACPI_PM1_CONTROL_BYTES, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(pc::ACPI_PM_TIMER).into();
    fadt.pm_tmr_len = pc::ACPI_PM_TIMER_BYTES;
    fadt.x_pm_tmr_blk = port(pc::ACPI_PM_TIMER, pc::ACPI_PM_TIMER_BYTES, AccessSize::DwordAccess);
    fadt.reset_reg = port(pc::RESET_CONTROL, 1, AccessSize::ByteAccess);
    fadt.reset_value = pc::RESET_CONTROL_VALUE;
    // Latencies beyond these say that there is no C2 and no C3.
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = pc::CMOS_CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    fadt.finalize()
}

/// Interrupt controllers (ACPI 6.5, 5.2.12). All APIC identifiers are below 255, so that none may be listed as x2APIC.
fn madt(vcpus: u32) -> Vec<u8> {
    let word = |at: bulkhead_vdev::Gpa| u32::try_from(at.0).expect("it is below 4 GiB");
    let local = LocalInterruptController::Address(word(pc::LAPIC));
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, local);
    for id in apic_ids(vcpus) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(IOAPIC_ID, word(pc::IOAPIC), 0));
    let mut table = bytes(&madt);
    // Interrupt source overrides and the local NMI, which the crate does not have.
    let timer = source_override(pc::PIT_LINE, pc::PIT_PIN, 0);
    let control = source_override(pc::SCI_LINE, pc::SCI_LINE, ACTIVE_HIGH | LEVEL_TRIGGERED);
    table.extend_from_slice(&timer);
    table.extend_from_slice(&control);
    table.extend_from_slice(&[4, 6, ALL_PROCESSORS, 0, 0, NMI_INPUT]);
    table[MADT_FLAGS_OFFSET] = PCAT_COMPAT;
    sealed(table, 4)
}

/// What the IOAPIC model says its own identifier is after power-on.
const IOAPIC_ID: u8 = 0;

/// An interrupt source override: ISA line, global interrupt, flags (ACPI 6.5, 5.2.12.5).
fn source_override(isa: u32, global: u32, flags: u16) -> [u8; 10] {
    let mut entry = [2, 10, 0, line_byte(isa), 0, 0, 0, 0, 0, 0];
    entry[4..8].copy_from_slice(&global.to_le_bytes());
    entry[8..].copy_from_slice(&flags.to_le_bytes());
    entry
}

/// A table with its final revision, length and checksum.
fn sealed(mut table: Vec<u8>, revision: u8) -> Vec<u8> {
    let length = u32::try_from(table.len()).expect("a table is small");
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[8] = revision;
    table[9] = 0;
    table[9] = checksum(&table);
    table
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(pc::PCI_ECAM.0, 0, 0, 0);
    mcfg
}

/// The event timer (IA-PC HPET 1.0a, 3.2.4): the first, no periods, and nothing said of the rest of its page.
fn hpet() -> Sdt {
    let mut hpet = Sdt::new(*b"HPET", HEADER_BYTES, 1, OEM, OEM_TABLE, OEM_REVISION);
    hpet.append_slice(&pc::HPET_ID.to_le_bytes());
    hpet.append_slice(&bytes(&GAS::new(Space::SystemMemory, 64, 0, AccessSize::Undefined, pc::HPET.0)));
    hpet.append_slice(&[0; 4]);
    hpet
}

fn apic_ids(vcpus: u32) -> impl Iterator<Item = u8> {
    let most = u8::try_from(MAX_VCPUS).expect("a set of vCPUs is small");
    0..u8::try_from(vcpus).map_or(most, |vcpus| vcpus.min(most))
}

fn line(line: u32) -> u16 {
    u16::try_from(line).expect("the IOAPIC has 24 pins")
}

fn line_byte(line: u32) -> u8 {
    u8::try_from(line).expect("the IOAPIC has 24 pins")
}

/// What is not fixed hardware: CPUs, serial ports, clock, PCI host, and how to switch off.
fn dsdt(vcpus: u32) -> Sdt {
    let off = Package::new(vec![&pc::ACPI_S5_SLEEP_TYPE, &pc::ACPI_S5_SLEEP_TYPE, &0_u8, &0_u8]);
    let mut aml = bytes(&Name::new("_S5_".into(), &off));
    cpus(vcpus, &mut aml);
    pci_host(&mut aml);
    reserved(&mut aml);
    serial("COM1", 1, pc::COM1, pc::COM1_LINE, &mut aml);
    serial("COM2", 2, pc::COM2, pc::COM2_LINE, &mut aml);
    device("RTC_", "PNP0B00", 0, &[&ports(pc::CMOS[0]), &Irq(pc::RTC_LINE)], &mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, 2, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

fn cpus(vcpus: u32, aml: &mut Vec<u8>) {
    for id in apic_ids(vcpus) {
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid = Name::new("_UID".into(), &id);
        let cpu = Device::new(format!("C{id:03X}").as_str().into(), vec![&hid, &uid]);
        Scope::new("_SB_".into(), vec![&cpu]).to_aml_bytes(aml);
    }
}

fn serial(name: &str, uid: u8, at: [pc::PortWindow; 1], line: u32, aml: &mut Vec<u8>) {
    device(name, "PNP0501", uid, &[&ports(at[0]), &Irq(line)], aml);
}

/// A device below the PCI host's ISA side: name, identification, resources.
fn device(name: &str, hid: &str, uid: u8, resources: &[&dyn Aml], aml: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new(hid));
    let uid = Name::new("_UID".into(), &uid);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec()));
    let device = Device::new(name.into(), vec![&hid, &uid, &crs]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

/// The PCI host: one bus, on which nothing has an interrupt, so that there is no routing table.
fn pci_host(aml: &mut Vec<u8>) {
    let below = |at: u64| u32::try_from(at - 1).expect("it is below 4 GiB");
    let word = |at: u64| u32::try_from(at).expect("it is below 4 GiB");
    let config = pc::PCI_CONFIG[0];
    let config_bytes = u16::try_from(config.len).expect("it is eight ports");
    let memory = |start: u64, end: u64| {
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, word(start), below(end), None)
    };
    let bus = AddressSpace::new_bus_number(0_u16, 0);
    let config_ports = ports(config);
    let ports_below = AddressSpace::new_io(0_u16, config.port - 1, None);
    let ports_above = AddressSpace::new_io(config.port + config_bytes, u16::MAX, None);
    let memory_below = memory(pc::HOLE.0, pc::PCI_ECAM.0);
    let memory_above = memory(pc::PCI_ECAM.0 + pc::PCI_ECAM_BYTES, pc::IOAPIC.0);
    let resources = ResourceTemplate::new(vec![
        &bus,
        &config_ports,
        &ports_below,
        &ports_above,
        &memory_below,
        &memory_above,
    ]);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let uid = Name::new("_UID".into(), &0_u8);
    let bbn = Name::new("_BBN".into(), &0_u8);
    let crs = Name::new("_CRS".into(), &resources);
    let host = Device::new("PCI0".into(), vec![&hid, &cid, &uid, &bbn, &crs]);
    Scope::new("_SB_".into(), vec![&host]).to_aml_bytes(aml);
}

/// What is nobody's window: the PCI configuration space (PCI Firmware 3.3, 4.1.2) and the event timer.
fn reserved(aml: &mut Vec<u8>) {
    let word = |value: u64| u32::try_from(value).expect("it is below 4 GiB");
    let configuration = Memory32Fixed::new(true, word(pc::PCI_ECAM.0), word(pc::PCI_ECAM_BYTES));
    let timer = Memory32Fixed::new(false, word(pc::HPET.0), word(pc::HPET_BYTES));
    device("RSVD", "PNP0C02", 0, &[&configuration, &timer], aml);
}

fn ports(window: pc::PortWindow) -> IO {
    let len = u8::try_from(window.len).expect("a device has few ports");
    IO::new(window.port, window.port, 1, len)
}

/// An ISA interrupt: edge-triggered, active high, not shared (ACPI 6.5, 6.4.2.1).
struct Irq(u32);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const TWO_BYTES: u8 = 0x22;
        sink.byte(TWO_BYTES);
        sink.word(1 << self.0);
    }
}
