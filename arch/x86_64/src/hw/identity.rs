//! Firmware's tables, where they lie in memory: physical addresses are our own.

use acpi::{AcpiHandler, AcpiTable, AcpiTables, AmlTable, PhysicalMapping};
use core::ptr::{NonNull, with_exposed_provenance, with_exposed_provenance_mut};

/// The end of what is mapped while tables are read; on a host, where only tests read, there is no end.
const LIMIT: usize = if cfg!(target_os = "none") { 4 << 30 } else { usize::MAX >> 1 };

/// What stands for a table that is out of reach: no signature fits it.
static NOTHING: [u64; 512] = [0; 512];

/// Hands out memory at its own address.
#[derive(Clone, Copy, Debug)]
pub struct Identity;

impl AcpiHandler for Identity {
    unsafe fn map_physical_region<T>(&self, at: usize, bytes: usize) -> PhysicalMapping<Self, T> {
        let is_mapped = at != 0 && at.checked_add(bytes).is_some_and(|end| end <= LIMIT);
        let start =
            if is_mapped { with_exposed_provenance_mut(at) } else { NOTHING.as_ptr().cast_mut().cast() };
        let start = NonNull::new(start).unwrap_or(NonNull::dangling());
        // SAFETY: the crate reads tables only, and the maker of `Tables` answers for what firmware's addresses lead to.
        unsafe { PhysicalMapping::new(at, start, bytes, bytes, *self) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

/// Firmware's tables.
pub struct Tables(AcpiTables<Identity>);

impl Tables {
    /// The tables that the root pointer at `rsdp` leads to; `None` if there is none.
    ///
    /// # Safety
    /// Memory is mapped at its own address, and what looks like a table there is one of firmware's, which nobody writes to.
    #[must_use]
    pub unsafe fn at(rsdp: u64) -> Option<Self> {
        // SAFETY: the caller answers for the address.
        unsafe { AcpiTables::from_rsdp(Identity, usize::try_from(rsdp).ok()?) }.ok().map(Self)
    }

    /// The first table of a kind, if there is one and its checksum is right.
    #[must_use]
    pub fn find<T: AcpiTable>(&self) -> Option<PhysicalMapping<Identity, T>> {
        self.0.find_table().ok()
    }

    /// The byte code of the DSDT, then that of each SSDT.
    pub fn byte_code(&self) -> impl Iterator<Item = &[u8]> {
        self.0.dsdt().ok().into_iter().chain(self.0.ssdts()).map(|table| self.bytes(&table))
    }

    fn bytes(&self, table: &AmlTable) -> &[u8] {
        if table.address.checked_add(table.length as usize).is_none_or(|end| end > LIMIT) {
            return &[];
        }
        // SAFETY: a table whose checksum was right; nobody writes to it, as `at` was promised.
        unsafe { core::slice::from_raw_parts(with_exposed_provenance(table.address), table.length as usize) }
    }
}
