//! The ACPI tables, read by another implementation: the `acpi` crate, which the hypervisor itself uses on real machines.
#![expect(unsafe_code, reason = "the oracle reads memory by pointers")]

use acpi::address::AddressSpace;
use acpi::fadt::Fadt;
use acpi::hpet::{HpetInfo, PageProtection};
use acpi::madt::{Madt, MadtEntry};
use acpi::mcfg::Mcfg;
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};
use bulkhead_firmware_stubs::acpi::{RSDP, tables};
use bulkhead_vdev::pc;
use std::ptr::NonNull;

/// Memory that holds nothing but the tables.
#[derive(Clone, Copy)]
struct Memory(&'static [u8]);

impl Memory {
    fn of(vcpus: u32) -> Self {
        // Words, so that every table is aligned as it is in the guest.
        let bytes = tables(vcpus);
        let words: Vec<u128> = bytes
            .chunks(16)
            .map(|chunk| {
                let mut word = [0; 16];
                word[..chunk.len()].copy_from_slice(chunk);
                u128::from_le_bytes(word)
            })
            .collect();
        let words: &'static [u128] = words.leak();
        // SAFETY: any bytes are valid as bytes, and they are as many and live as long.
        Self(unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) })
    }

    fn at(self, address: usize, size: usize) -> &'static [u8] {
        let offset = address - usize::try_from(RSDP.0).unwrap();
        &self.0[offset..offset + size]
    }
}

impl AcpiHandler for Memory {
    unsafe fn map_physical_region<T>(&self, address: usize, size: usize) -> PhysicalMapping<Self, T> {
        let bytes = self.at(address, size);
        let start = NonNull::new(bytes.as_ptr().cast_mut().cast()).unwrap();
        // SAFETY: the bytes are there, as many as asked for, and stay.
        unsafe { PhysicalMapping::new(address, start, size, size, *self) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

fn parsed(vcpus: u32) -> (Memory, AcpiTables<Memory>) {
    let memory = Memory::of(vcpus);
    // SAFETY: the handler answers for all addresses that the tables name.
    let tables = unsafe { AcpiTables::from_rsdp(memory, usize::try_from(RSDP.0).unwrap()) };
    (memory, tables.unwrap())
}

#[test]
fn all_tables_are_found_and_their_sums_are_right() {
    let (_, tables) = parsed(4);
    let signatures: Vec<String> = tables.headers().map(|header| header.signature.to_string()).collect();
    assert_eq!(signatures, ["FACP", "APIC", "MCFG", "HPET"]);
    tables.find_table::<Fadt>().unwrap().validate().unwrap();
    tables.find_table::<Madt>().unwrap();
    tables.find_table::<Mcfg>().unwrap();
}

#[test]
fn systems_that_know_only_the_old_root_table_find_the_same() {
    let (memory, _) = parsed(4);
    let word = |at: usize| u32::from_le_bytes(memory.at(at, 4).try_into().unwrap());
    let start = usize::try_from(RSDP.0).unwrap();
    let rsdt = usize::try_from(word(start + 16)).unwrap();
    let length = usize::try_from(word(rsdt + 4)).unwrap();
    let sum = memory.at(rsdt, length).iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!((memory.at(rsdt, 4), length, sum), (&b"RSDT"[..], 36 + 4 * 4, 0));
    let first = memory.at(usize::try_from(word(rsdt + 36)).unwrap(), 4);
    assert_eq!(first, b"FACP");
}

#[test]
fn fixed_hardware_is_where_the_models_are() {
    let (memory, tables) = parsed(1);
    let fadt = tables.find_table::<Fadt>().unwrap();
    let io = |block: acpi::address::GenericAddress| {
        assert_eq!(block.address_space, AddressSpace::SystemIo);
        block.address
    };
    assert_eq!(io(fadt.pm1a_event_block().unwrap()), pc::ACPI_PM1_EVENT.into());
    assert_eq!(io(fadt.pm1a_control_block().unwrap()), pc::ACPI_PM1_CONTROL.into());
    assert_eq!(io(fadt.pm_timer_block().unwrap().unwrap()), pc::ACPI_PM_TIMER.into());
    assert_eq!(io(fadt.reset_register().unwrap()), pc::RESET_CONTROL.into());
    assert!(fadt.pm1b_control_block().unwrap().is_none() && fadt.gpe0_block().unwrap().is_none());
    let (flags, boot) = (fadt.flags, fadt.iapc_boot_arch);
    assert!(flags.supports_system_reset_via_fadt() && !flags.pm_timer_is_32_bit());
    assert!(!flags.system_is_hw_reduced_acpi());
    assert!(
        boot.legacy_devices_are_accessible() && !boot.motherboard_implements_8042() && boot.dont_probe_vga()
    );
    let facs = fadt.facs_address().unwrap();
    assert_eq!((facs % 64, memory.at(facs, 4)), (0, &b"FACS"[..]));
}

#[test]
fn interrupts_are_routed_as_the_models_are_wired() {
    let (_, tables) = parsed(3);
    let madt = tables.find_table::<Madt>().unwrap();
    assert!(madt.get().supports_8259());
    let mut apic_ids = Vec::new();
    let mut overrides = Vec::new();
    for entry in madt.get().entries() {
        match entry {
            MadtEntry::LocalApic(entry) => apic_ids.push((entry.processor_id, entry.apic_id)),
            MadtEntry::IoApic(entry) => {
                let (address, base) = (entry.io_apic_address, entry.global_system_interrupt_base);
                assert_eq!((u64::from(address), base), (pc::IOAPIC.0, 0));
            }
            MadtEntry::InterruptSourceOverride(entry) => {
                overrides.push((entry.irq, entry.global_system_interrupt, entry.flags));
            }
            MadtEntry::LocalApicNmi(entry) => assert_eq!((entry.processor_id, entry.nmi_line), (0xff, 1)),
            _ => panic!("an entry that no model answers for"),
        }
    }
    assert_eq!(apic_ids, [(0, 0), (1, 1), (2, 2)]);
    assert_eq!(overrides, [(0, 2, 0), (9, 9, 0xd)]);
}

#[test]
fn the_pci_configuration_space_is_one_bus() {
    let (_, tables) = parsed(1);
    let mcfg = tables.find_table::<Mcfg>().unwrap();
    let [entry] = mcfg.entries() else { panic!("there is one PCI host") };
    let (base, segment) = (entry.base_address, entry.pci_segment_group);
    assert_eq!((base, segment, entry.bus_number_start, entry.bus_number_end), (pc::PCI_ECAM.0, 0, 0, 0));
}

#[test]
fn the_event_timer_is_a_clock_that_replaces_nothing() {
    let (_, tables) = parsed(1);
    let hpet = HpetInfo::new(&tables).unwrap();
    assert_eq!(hpet.base_address as u64, pc::HPET.0);
    assert_eq!((hpet.hpet_number, hpet.num_comparators(), hpet.clock_tick_unit), (0, 3, 0));
    assert!(hpet.main_counter_is_64bits() && !hpet.legacy_irq_capable());
    assert!(matches!(hpet.page_protection, PageProtection::None));
}

#[test]
fn the_tables_of_the_largest_machine_end_below_1_mib() {
    assert!(tables(u32::MAX).len() < 0x1_0000);
    assert_eq!(tables(u32::MAX), tables(16));
}
