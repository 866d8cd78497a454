//! What a guest reads with CPUID: what is offered is what works.
//!
//! Made once per vCPU from the host's leaves; what depends on the guest's own state (OSXSAVE, OSPKE, APIC, the size of
//! the XSAVE area) is put in at each read. A whitelist: a feature that is not named here reads as absent. The topology is one
//! socket of as many cores as the VM has vCPUs, with one thread each, APIC id = vCPU number.
#![forbid(unsafe_code)]

mod features;
mod leaves;
mod offer;
#[cfg(test)]
pub(crate) mod tests;
mod xsave;

use self::xsave::Xsave;
use crate::control::{Offer, cr4};
use heapless::Vec;

/// For leaves that do not look at ECX.
const ANY: u32 = u32::MAX;

/// EAX, EBX, ECX, EDX.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leaf {
    /// EAX
    pub eax: u32,
    /// EBX
    pub ebx: u32,
    /// ECX
    pub ecx: u32,
    /// EDX
    pub edx: u32,
}

/// What a VM settles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// vCPUs of the VM.
    pub vcpus: u32,
    /// This one: its number and APIC id.
    pub vcpu: u32,
    /// Whether leaf 0x4000_0000 is wanted.
    pub hypervisor_leaf: bool,
    /// The time-stamp counter's frequency, as calibrated.
    pub tsc_hz: u64,
    /// XCR0 bits whose state the hypervisor keeps apart; the host's XCR0.
    pub xcr0: u64,
    /// Bits of a guest-physical address that second-stage translation takes.
    pub address_bits: u8,
    /// What the vendor's extension allows to be native.
    pub native: Native,
}

/// Features that a guest gets only if the CPU runs them without our help. Host support is looked at besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Native {
    /// RDTSCP, RDPID and TSC_AUX.
    pub tsc_aux: bool,
    /// INVPCID.
    pub invpcid: bool,
    /// XSAVES, XRSTORS and the XSS register.
    pub xsaves: bool,
    /// TPAUSE, UMONITOR, UMWAIT.
    pub user_wait: bool,
    /// SPEC_CTRL is switched with the guest, PRED_CMD is passed through.
    pub speculation: bool,
}

/// What of the guest's state CPUID shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Live {
    /// CR4
    pub cr4: u64,
    /// XCR0
    pub xcr0: u64,
    /// The local APIC is enabled in IA32_APIC_BASE.
    pub apic: bool,
}

/// A vCPU's CPUID.
pub struct Table {
    entries: Vec<Entry, ENTRIES>,
    /// Per leaf, where its first entry is.
    basic: [u8; BASIC],
    extended: [u8; EXTENDED],
    hypervisor: u8,
    xsave: Xsave,
    offer: Offer,
    vendor: Maker,
    tsc_hz: u64,
}

/// Who made the CPU, as far as it matters to a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Maker {
    /// Intel and those who follow it.
    Intel,
    /// AMD, Hygon.
    Amd,
}

/// Leaves 0 to this are looked up by their number; so are the extended ones.
const BASIC: usize = 0x20;
const EXTENDED: usize = 0x22;
const ENTRIES: usize = 96;
/// No entry.
const NOWHERE: u8 = u8::MAX;
/// The first extended leaf, and the first that hypervisors use.
const FIRST_EXTENDED: u32 = 0x8000_0000;
const FIRST_HYPERVISOR: u32 = 0x4000_0000;

struct Entry {
    leaf: u32,
    subleaf: u32,
    change: Change,
    value: Leaf,
}

/// What the guest's own state changes in an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    /// Leaf 1: OSXSAVE, APIC.
    Features,
    /// Leaf 7: OSPKE.
    Structured,
    /// Leaf 8000_0001: APIC.
    Extended,
    /// Leaf 0xd: the size of the area.
    XsaveSize,
    /// Leaf 0xd, 1: the size of the compacted area.
    XsaveCompacted,
    /// Leaves 0xb and 0x1f: levels behind the last keep the APIC id.
    Topology,
}

impl Table {
    /// Makes it from what `host(leaf, subleaf)` reads.
    #[must_use]
    pub fn new(host: &dyn Fn(u32, u32) -> Leaf, facts: &Facts) -> Self {
        let mut table = Self {
            entries: Vec::new(),
            basic: [NOWHERE; BASIC],
            extended: [NOWHERE; EXTENDED],
            hypervisor: NOWHERE,
            xsave: Xsave::new(host, facts),
            offer: Offer { cr4: 0, efer: 0, xcr0: 0, address_bits: 0 },
            vendor: maker(host(0, 0)),
            tsc_hz: facts.tsc_hz,
        };
        let source = leaves::Source { host, facts, maker: table.vendor, xcr0: table.xsave.offered() };
        source.fill(&mut table);
        table.offer = offer::offer(&table);
        table
    }

    /// What CPUID gives for `leaf` (EAX) and `subleaf` (ECX).
    #[inline]
    #[must_use]
    pub fn read(&self, leaf: u32, subleaf: u32, live: &Live) -> Leaf {
        let Some(first) = self.first(leaf) else { return self.read_beyond(leaf, subleaf, live) };
        let entries = self.entries.get(first..).unwrap_or(&[]);
        let [only, more @ ..] = entries else { return Leaf::default() };
        if only.subleaf == subleaf || only.subleaf == ANY {
            return self.change(only, subleaf, live);
        }
        let mut last = only;
        for entry in more.iter().take_while(|entry| entry.leaf == leaf) {
            if entry.subleaf == subleaf {
                return self.change(entry, subleaf, live);
            }
            last = entry;
        }
        if last.change == Change::Topology { self.change(last, subleaf, live) } else { Leaf::default() }
    }

    /// Which bits of control registers go with it.
    #[must_use]
    pub fn offer(&self) -> Offer {
        self.offer
    }

    /// Who made the CPU.
    #[must_use]
    pub fn maker(&self) -> Maker {
        self.vendor
    }

    /// The time-stamp counter's frequency.
    pub(crate) fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    #[inline]
    fn first(&self, leaf: u32) -> Option<usize> {
        let index = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let place = match leaf {
            FIRST_EXTENDED.. => self.extended.get(index(leaf - FIRST_EXTENDED)),
            FIRST_HYPERVISOR => Some(&self.hypervisor),
            _ => self.basic.get(index(leaf)),
        };
        place.filter(|place| **place != NOWHERE).map(|place| usize::from(*place))
    }

    /// A leaf that is not there. Above the highest one of its range Intel's CPUs give the highest basic leaf (SDM Vol. 2A,
    /// CPUID), AMD's zeros.
    #[cold]
    fn read_beyond(&self, leaf: u32, subleaf: u32, live: &Live) -> Leaf {
        let highest = |first| self.entry(first, 0).map_or(0, |entry| entry.value.eax);
        let basic = highest(0);
        let is_inside = match leaf {
            FIRST_EXTENDED.. => leaf <= highest(FIRST_EXTENDED),
            _ => leaf <= basic,
        };
        if is_inside || self.vendor == Maker::Amd || self.first(basic).is_none() {
            return Leaf::default();
        }
        self.read(basic, subleaf, live)
    }

    /// The entry as it is stored.
    fn entry(&self, leaf: u32, subleaf: u32) -> Option<&Entry> {
        let entries = self.entries.get(self.first(leaf)?..)?;
        entries
            .iter()
            .take_while(|entry| entry.leaf == leaf)
            .find(|entry| entry.subleaf == subleaf || entry.subleaf == ANY)
    }

    /// What is offered in `leaf`, whatever the guest's state is.
    pub(crate) fn fixed(&self, leaf: u32, subleaf: u32) -> Leaf {
        self.entry(leaf, subleaf).map_or(Leaf::default(), |entry| entry.value)
    }

    fn change(&self, entry: &Entry, subleaf: u32, live: &Live) -> Leaf {
        let mut leaf = entry.value;
        match entry.change {
            Change::None => (),
            Change::Features => {
                leaf.ecx |= if live.cr4 & cr4::OSXSAVE != 0 { features::OSXSAVE } else { 0 };
                leaf.edx &= if live.apic { u32::MAX } else { !features::APIC };
            }
            Change::Structured => leaf.ecx |= if live.cr4 & cr4::PKE != 0 { features::OSPKE } else { 0 },
            Change::Extended => leaf.edx &= if live.apic { u32::MAX } else { !features::APIC },
            Change::XsaveSize => leaf.ebx = self.xsave.size(live.xcr0),
            Change::XsaveCompacted => leaf.ebx = self.xsave.compacted_size(live.xcr0),
            Change::Topology if subleaf > entry.subleaf => {
                leaf = Leaf { ecx: subleaf & 0xff, edx: entry.value.edx, ..Leaf::default() };
            }
            Change::Topology => (),
        }
        leaf
    }

    /// Adds an entry. Entries of one leaf come one behind the other. There is room for all that [`leaves`] makes.
    fn push(&mut self, leaf: u32, subleaf: u32, change: Change, value: Leaf) {
        let place = u8::try_from(self.entries.len()).unwrap_or(NOWHERE);
        if self.entries.push(Entry { leaf, subleaf, change, value }).is_err() {
            return;
        }
        let slot = match leaf {
            FIRST_EXTENDED.. => {
                usize::try_from(leaf - FIRST_EXTENDED).ok().and_then(|index| self.extended.get_mut(index))
            }
            FIRST_HYPERVISOR => Some(&mut self.hypervisor),
            _ => usize::try_from(leaf).ok().and_then(|index| self.basic.get_mut(index)),
        };
        if let Some(slot) = slot.filter(|slot| **slot == NOWHERE) {
            *slot = place;
        }
    }
}

/// "AuthenticAMD" and "HygonGenuine" behave as AMD's manual says, all others as Intel's.
fn maker(leaf: Leaf) -> Maker {
    const AMD: u32 = u32::from_le_bytes(*b"Auth");
    const HYGON: u32 = u32::from_le_bytes(*b"Hygo");
    if matches!(leaf.ebx, AMD | HYGON) { Maker::Amd } else { Maker::Intel }
}

/// Bits that say how wide a field has to be for numbers below `count`.
fn bits_for(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}
