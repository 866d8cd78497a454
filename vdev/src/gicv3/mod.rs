//! Arm GICv3 (IHI 0069) as a guest sees it: distributor, redistributors, and the list registers that the hardware's
//! virtual CPU interface delivers from.
//!
//! One security state (`GICD_CTLR.DS` = 1), affinity routing always on, no LPIs, no extended ranges, 32 priority
//! levels, two groups. Affinity level 0 is the vCPU's index, the others are 0.
//!
//! ```text
//! wires, registers, SGIs ──► Bank: pending, enabled, ... ──deliver──► list registers ──► guest
//!                              ▲                                          │
//!                              └──────────────── take back ◄──────────────┘
//! ```
//!
//! A list register owns the state of the interrupt it holds until [`Gicv3::refresh`] takes it back. Everything that
//! changes software state marks the vCPUs it concerns; a marked vCPU has to refresh before it enters its guest again
//! ([`Gicv3::wants_refresh`]), and one that runs elsewhere has to be kicked for it (the returned [`VcpuSet`]).
//!
//! Nothing here allocates or loops without a bound that is small and named: 288 interrupts, 16 list registers. The
//! owner serialises all calls of one VM with one lock, and lends each the interface of the CPU that the vCPU runs on.

mod bank;
mod deliver;
mod distributor;
mod lr;
#[cfg(test)]
mod model;
mod redistributor;
mod registers;
mod sgi;
#[cfg(test)]
mod simulator;
#[cfg(test)]
mod tests;

use core::array;

use bitflags::bitflags;

use self::bank::{Bank, Bits, Slot};
pub use self::lr::{HardwareLine, ListRegister, Maintenance, VirtualInterface};
use crate::virt::INTIDS;
use crate::{IrqLines, MAX_VCPUS, VcpuSet};

/// Words of 32 interrupts: word 0 is each vCPU's own, the others are shared.
const WORDS: usize = (INTIDS / 32) as usize;
const SHARED: usize = 8;
/// Index masks: they keep bounds checks out of the short paths.
const VCPU: usize = MAX_VCPUS - 1;
const WORD: usize = 15;
const SPI: usize = SHARED * 32 - 1;
const _: () = assert!(MAX_VCPUS.is_power_of_two() && WORDS == SHARED + 1 && WORDS <= WORD + 1);

/// No vCPU: an interrupt routed to an affinity that nobody has.
const NOBODY: u8 = 0xff;
/// `GICD_IROUTER.IRM`: to any one vCPU.
const ROUTE_ANY: u32 = 1 << 31;

/// The interrupt controller of one VM.
#[derive(Clone)]
pub struct Gicv3 {
    timers: [HardwareLine; 2],
    /// The timers as bits of word 0.
    timer_bits: u32,
    /// The vCPUs there are, one bit each.
    present: u32,

    /// All ones or nothing: whether the distributor forwards group 0 and group 1.
    groups: [u32; 2],
    vcpus: [Vcpu; MAX_VCPUS],
    shared: [Bank; SHARED],
    routes: [Route; SHARED * 32],
    /// The vCPU that lists or listed the interrupt last: the owner of its active state.
    holders: [u8; SHARED * 32],
    /// Who has to look at its interrupts, gathered during one call.
    kicks: u32,
}

/// Where a shared interrupt goes.
#[derive(Clone, Copy)]
struct Route {
    /// As written: affinities 3, 2, 1 and 0 in one byte each.
    affinity: u32,
    any: bool,
    /// What that amounts to: a vCPU's index, or [`NOBODY`].
    target: u8,
}

bitflags! {
    /// What stands in the way of a short path, in one byte.
    #[derive(Clone, Copy)]
    struct Notes: u8 {
        /// A refresh has to come before the guest is entered.
        const DIRTY = 1 << 0;
        /// The cause may be more than SGIs that were latched.
        const RECONSIDER = 1 << 1;
        /// More deliverable interrupts than list registers.
        const WAITING = 1 << 2;
        /// More active interrupts than list registers.
        const EVICTED = 1 << 3;
    }
}

/// What belongs to one vCPU.
#[derive(Clone)]
struct Vcpu {
    notes: Notes,
    /// The guest put its redistributor to sleep (`GICR_WAKER`).
    asleep: bool,
    /// List registers that hold an interrupt, or did when last looked at.
    used: u32,
    /// List registers that have been taken back and not yet written again.
    stale: u32,
    /// Timers whose physical interrupt is active on behalf of this vCPU.
    held: u32,
    maintenance: Maintenance,
    private: Bank,
    /// The list register that each private interrupt goes into when nothing stands in the way: pending, and a timer
    /// linked to its physical interrupt.
    prepared: [ListRegister; 32],
    slots: [Slot; 16],
    /// The list register of each listed private interrupt.
    slot_of: [u8; 32],
    /// Active interrupts of this vCPU that no list register holds; the summary has a bit for each non-zero word.
    parked: [u32; WORD + 1],
    parked_words: u32,
    /// Shared interrupts that go to this vCPU.
    routed: [u32; WORD + 1],
    /// Shared words that may hold something to deliver.
    hints: u32,
}

impl Vcpu {
    fn new(timer_bits: u32) -> Self {
        Self {
            notes: Notes::DIRTY.union(Notes::RECONSIDER),
            asleep: true,
            used: 0,
            stale: 0,
            held: 0,
            maintenance: Maintenance::empty(),
            private: Bank::new(SGIS & !timer_bits),
            prepared: [ListRegister::INVALID; 32],
            slots: [Slot::default(); 16],
            slot_of: [0; 32],
            parked: [0; WORD + 1],
            parked_words: 0,
            routed: [0; WORD + 1],
            hints: 0,
        }
    }

    fn park(&mut self, word: usize, bits: u32) {
        self.parked[word & WORD] |= bits;
        self.parked_words |= 1 << (word & WORD);
    }

    fn unpark(&mut self, word: usize, bits: u32) {
        self.parked[word & WORD] &= !bits;
        if self.parked[word & WORD] == 0 {
            self.parked_words &= !(1 << (word & WORD));
        }
    }
}

/// Software-generated interrupts: the lower half of word 0.
const SGIS: u32 = 0xffff;

impl Gicv3 {
    /// A controller as after power-on, for `vcpus` vCPUs (1 to [`MAX_VCPUS`]), whose private interrupts `timers` are
    /// the CPU's own.
    #[must_use]
    pub fn new(vcpus: usize, timers: [HardwareLine; 2]) -> Self {
        let vcpus = vcpus.clamp(1, MAX_VCPUS);
        let timer_bits = timers.iter().fold(0, |bits, line| bits | 1 << (line.intid & 31)) & !SGIS;
        let mut gic = Self {
            timers,
            timer_bits,
            present: u32::MAX >> (32 - vcpus),
            groups: [0; 2],
            vcpus: array::from_fn(|_| Vcpu::new(timer_bits)),
            shared: array::from_fn(|_| Bank::new(0)),
            routes: [Route { affinity: 0, any: false, target: 0 }; SHARED * 32],
            holders: [0; SHARED * 32],
            kicks: 0,
        };
        gic.power_on();
        gic
    }

    /// Everything that a guest can change is as after power-on. In place: the whole is too large for a stack.
    fn power_on(&mut self) {
        self.groups = [0; 2];
        self.kicks = 0;
        self.routes.fill(Route { affinity: 0, any: false, target: 0 });
        self.holders.fill(0);
        self.shared.fill_with(|| Bank::new(0));
        let timer_bits = self.timer_bits;
        self.vcpus.fill_with(|| Vcpu::new(timer_bits));
        self.vcpus[0].routed = [u32::MAX; WORD + 1];
        for vcpu in 0..MAX_VCPUS {
            self.prepare(vcpu);
        }
    }

    /// Whether something changed for `vcpu` since its last refresh. Ask before each entry into the guest, and
    /// [`refresh`](Self::refresh) if so.
    #[inline]
    #[must_use]
    pub fn wants_refresh(&self, vcpu: usize) -> bool {
        self.vcpus[vcpu & VCPU].notes.contains(Notes::DIRTY)
    }

    #[inline]
    fn bank(&self, vcpu: usize, word: usize) -> &Bank {
        if word == 0 { &self.vcpus[vcpu & VCPU].private } else { &self.shared[word.wrapping_sub(1) % SHARED] }
    }

    #[inline]
    fn bank_mut(&mut self, vcpu: usize, word: usize) -> &mut Bank {
        if word == 0 {
            &mut self.vcpus[vcpu & VCPU].private
        } else {
            &mut self.shared[word.wrapping_sub(1) % SHARED]
        }
    }

    /// `vcpu` has to look at its interrupts, those of `word` among them.
    #[inline]
    fn mark(&mut self, vcpu: usize, word: usize) {
        let state = &mut self.vcpus[vcpu & VCPU];
        state.notes |= Notes::DIRTY.union(Notes::RECONSIDER);
        state.hints |= 1 << (word & WORD) & !1;
        self.kicks |= 1 << (vcpu & VCPU);
    }

    /// The gathered kicks; a vCPU that acts does not kick itself.
    #[inline]
    fn take_kicks(&mut self, acting: usize) -> VcpuSet {
        let kicks = self.kicks & !(1 << (acting & VCPU));
        self.kicks = 0;
        VcpuSet(kicks)
    }

    /// Marks whoever has to act on a change of `bits` in a word: the holder of what is listed, the target of what is
    /// deliverable. Word 0 is the one of `vcpu`.
    fn touch(&mut self, vcpu: usize, word: usize, bits: u32) {
        if word == 0 {
            self.mark(vcpu, 0);
            return;
        }
        let bank = self.bank(0, word);
        let (listed, deliverable) = (bank.listed & bits, bank.candidates() & bits);
        for bit in Bits(listed) {
            self.mark(usize::from(self.holders[spi(word, bit)]), word);
        }
        for bit in Bits(deliverable) {
            let target = self.routes[spi(word, bit)].target;
            if target != NOBODY {
                self.mark(usize::from(target), word);
            }
        }
    }

    /// Routes one shared interrupt.
    fn set_route(&mut self, word: usize, bit: u32, affinity: u32, any: bool) {
        let index = spi(word, bit);
        let target = self.target(affinity, any);
        let old = core::mem::replace(&mut self.routes[index], Route { affinity, any, target });
        if old.target == target {
            return;
        }
        if old.target != NOBODY {
            self.vcpus[usize::from(old.target) & VCPU].routed[word & WORD] &= !(1 << bit);
        }
        if target != NOBODY {
            self.vcpus[usize::from(target) & VCPU].routed[word & WORD] |= 1 << bit;
        }
        self.touch(0, word, 1 << bit);
    }

    /// Who serves a route; one to any vCPU goes to the first that is awake.
    fn target(&self, affinity: u32, any: bool) -> u8 {
        if any {
            let awake = (0u8..16).find(|&v| self.has(v.into()) && !self.vcpus[usize::from(v) & VCPU].asleep);
            return awake.unwrap_or(0);
        }
        u8::try_from(affinity).ok().filter(|&v| self.has(v.into())).unwrap_or(NOBODY)
    }

    fn has(&self, vcpu: u32) -> bool {
        self.present.checked_shr(vcpu).unwrap_or(0) & 1 != 0
    }
}

impl IrqLines for Gicv3 {
    /// `line` is the number of a shared interrupt. The set may hold the calling vCPU, which then has to refresh.
    fn set_line(&mut self, line: u32, level: bool) -> VcpuSet {
        if !(32..INTIDS).contains(&line) {
            return VcpuSet::EMPTY;
        }
        let (word, bit) = ((line >> 5) as usize, 1 << (line & 31));
        let index = spi(word, line & 31);
        let bank = self.bank_mut(0, word);
        if (bank.level & bit != 0) == level {
            return VcpuSet::EMPTY;
        }
        bank.level ^= bit;
        if bank.edge & bit != 0 {
            if !level {
                return VcpuSet::EMPTY;
            }
            bank.latched |= bit;
        }
        let concerned = if bank.listed & bit != 0 {
            self.holders[index]
        } else if bank.candidates() & bit != 0 {
            self.routes[index].target
        } else {
            NOBODY
        };
        if concerned == NOBODY {
            return VcpuSet::EMPTY;
        }
        self.mark(usize::from(concerned), word);
        VcpuSet(core::mem::take(&mut self.kicks))
    }

    /// Each vCPU has to be unloaded before, or its list registers and its physical timers keep their state.
    fn reset(&mut self) {
        self.power_on();
    }
}

/// The index of a shared interrupt among the shared ones.
#[inline]
fn spi(word: usize, bit: u32) -> usize {
    ((word.wrapping_sub(1) % SHARED) * 32 + bit as usize) & SPI
}
