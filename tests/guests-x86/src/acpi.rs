//! Just enough ACPI to find tables and count processors (ACPI 6.5, 5.2).

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use crate::MAX_CPUS;
use crate::machine::byte;

static CPUS: AtomicUsize = AtomicUsize::new(0);
static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static ROOT: AtomicU32 = AtomicU32::new(0);

/// A table in memory, its checksum verified.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Where it lies.
    pub address: u64,
    /// How long it is, header included.
    pub bytes: u64,
}

impl Table {
    fn at(address: u64) -> Option<Self> {
        let bytes = u64::from(word(address + 4)).min(0x1_0000);
        let sum = (address..address + bytes).fold(0_u8, |sum, at| sum.wrapping_add(byte(at)));
        (sum == 0 && bytes >= 36).then_some(Self { address, bytes })
    }
}

fn word(address: u64) -> u32 {
    u32::from_le_bytes([byte(address), byte(address + 1), byte(address + 2), byte(address + 3)])
}

fn has(address: u64, text: &[u8]) -> bool {
    (address..).zip(text).all(|(at, letter)| byte(at) == *letter)
}

/// The table with this signature.
#[must_use]
pub fn table(signature: &[u8; 4]) -> Option<Table> {
    let root = Table::at(u64::from(ROOT.load(Relaxed)))?;
    let entries = (root.address + 36..root.address + root.bytes).step_by(4);
    let mut addresses = entries.map(|entry| u64::from(word(entry)));
    addresses.find(|address| has(*address, signature)).and_then(Table::at)
}

/// How many processors are enabled.
#[must_use]
pub fn cpus() -> usize {
    CPUS.load(Relaxed).max(1)
}

/// The APIC identifier of CPU `index`.
#[must_use]
pub fn apic_id(index: usize) -> u32 {
    APIC_IDS[index].load(Relaxed)
}

pub(crate) fn discover() {
    let Some(pointer) = (0xe_0000..0x10_0000).step_by(16).find(|place| has(*place, b"RSD PTR ")) else {
        return;
    };
    ROOT.store(word(pointer + 16), Relaxed);
    let Some(madt) = table(b"APIC") else { return };
    let mut at = madt.address + 44;
    while at < madt.address + madt.bytes {
        // Processor local APIC, enabled.
        if byte(at) == 0 && word(at + 4) & 1 != 0 {
            let index = CPUS.load(Relaxed);
            if let Some(slot) = APIC_IDS.get(index) {
                slot.store(u32::from(byte(at + 3)), Relaxed);
                CPUS.store(index + 1, Relaxed);
            }
        }
        at += u64::from(byte(at + 1)).max(2);
    }
}
