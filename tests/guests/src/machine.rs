//! What the device tree says: RAM, CPUs, boot arguments; and whether a hypervisor is below.
#![expect(unsafe_code, reason = "the FDT is found by its address")]

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property, ToCellInt};

use crate::{MAX_CPUS, entry_state, psci};

/// Where RAM starts on every such machine.
pub const RAM_START: usize = 0x4000_0000;
/// First word of an FDT, big-endian (Devicetree Specification 5.2).
pub const FDT_MAGIC: u32 = 0xd00d_feed;

static RAM_END: AtomicUsize = AtomicUsize::new(usize::MAX);
static CPUS: AtomicUsize = AtomicUsize::new(0);
static AFFINITIES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// The tree that x0 named at entry.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn device_tree() -> Fdt<'static> {
    let address = usize::try_from(entry_state().arguments[0]).expect("usize has 64 bits");
    let start: *const u8 = core::ptr::with_exposed_provenance(address);
    // SAFETY: the boot protocol puts an FDT there, and nobody changes it.
    unsafe { Fdt::from_raw(start) }.expect("x0 is the address of an FDT")
}

pub(crate) fn discover() {
    let tree = device_tree();
    let memory = tree.memory().expect("the FDT describes memory");
    let bank = memory.reg().ok().flatten().and_then(|mut banks| banks.next()).expect("memory has a bank");
    let start: u64 = bank.address().expect("an address has two cells at most");
    let size: u64 = bank.size().expect("a size has two cells at most");
    assert_eq!(start, RAM_START as u64);
    RAM_END.store(usize::try_from(start + size).expect("usize has 64 bits"), Relaxed);
    let cpus = tree.cpus().expect("the FDT describes CPUs");
    for cpu in cpus.cpus() {
        let affinity = cpu.ids().ok().and_then(|mut ids| ids.next()).and_then(|id| id.to_int::<u64>().ok());
        let index = CPUS.load(Relaxed);
        if let (Some(affinity), Some(slot)) = (affinity, AFFINITIES.get(index)) {
            slot.store(affinity, Relaxed);
            CPUS.store(index + 1, Relaxed);
        }
    }
}

/// The first address behind RAM.
#[must_use]
pub fn ram_end() -> usize {
    RAM_END.load(Relaxed)
}

/// Whether `address` lies in RAM; before [`ram_end`] is known, everything from its start on does.
#[must_use]
pub fn is_ram(address: usize) -> bool {
    (RAM_START..ram_end()).contains(&address)
}

/// How many CPUs there are (at most [`MAX_CPUS`] are used).
#[must_use]
pub fn cpus() -> usize {
    CPUS.load(Relaxed)
}

/// The affinity of CPU `index`, as MPIDR_EL1 holds it.
#[must_use]
pub fn affinity(index: usize) -> u64 {
    AFFINITIES[index].load(Relaxed)
}

/// What follows `key=` on the kernel command line.
#[must_use]
pub fn argument(key: &str) -> Option<&'static str> {
    let chosen = device_tree().find_node("/chosen")?;
    let property = chosen.properties().find(|property| property.name() == "bootargs")?;
    let text: &'static str = property.value_as().ok()?;
    text.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// Whether a hypervisor answers: QEMU's own machine has no SMC at EL1, Bulkhead's has.
#[must_use]
pub fn is_hypervised() -> bool {
    psci::try_smc(psci::VERSION, 0, 0, 0).is_ok()
}
