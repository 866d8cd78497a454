//! Between software state and list registers: taking back what the hardware did, choosing what it gets next.
//!
//! The short paths put one interrupt into a free list register. Everything else is a refresh: take all back, then
//! load the most urgent. A refresh is the only place that decides, so the rules are here once:
//!
//! * active interrupts first, so that their end is seen by the hardware;
//! * one list register is always left for the most urgent pending interrupt, at the cost of the least urgent active
//!   one, which is then *parked*: its end shows in EOIcount, or as a trapped write to `ICC_DIR_EL1`;
//! * equal priorities go by number.

use super::bank::{Bank, Bits, Slot};
use super::{
    Gicv3, HardwareLine, ListRegister, Maintenance, NOBODY, Notes, SGIS, VCPU, VirtualInterface, WORD, WORDS,
    spi,
};
use crate::VcpuSet;

/// The most list registers there can be.
const LIST_REGISTERS: usize = 16;

/// What a short path may do with an interrupt.
enum Way {
    /// Into the list register that it was in before and has left.
    Again(usize),
    /// Into this list register, which was never used or was taken back.
    Free(usize),
    /// A refresh has to look at the whole.
    Refresh,
    /// It cannot be delivered now.
    Blocked,
}

impl Gicv3 {
    /// Takes back what the hardware did with `vcpu`'s list registers, then loads the most urgent deliverable
    /// interrupts and says which maintenance interrupts are wanted. Call it on each maintenance interrupt too. The
    /// others in the returned set have something new to look at.
    pub fn refresh(&mut self, vcpu: usize, cpu: &mut impl VirtualInterface) -> VcpuSet {
        let vcpu = vcpu & VCPU;
        if self.vcpus[vcpu].notes.bits() == Notes::DIRTY.bits() && self.deliver_sgis(vcpu, cpu) {
            self.vcpus[vcpu].notes = Notes::empty();
            return VcpuSet::EMPTY;
        }
        self.refresh_all(vcpu, cpu)
    }

    #[inline(never)]
    fn refresh_all(&mut self, vcpu: usize, cpu: &mut impl VirtualInterface) -> VcpuSet {
        self.retire_ended(vcpu, cpu);
        self.take_back(vcpu, cpu);
        self.settle(vcpu, cpu);
        let wanted = self.deliver(vcpu, cpu);
        let state = &mut self.vcpus[vcpu & VCPU];
        state.notes &= Notes::WAITING.union(Notes::EVICTED);
        if state.maintenance != wanted {
            state.maintenance = wanted;
            cpu.set_maintenance(wanted);
        }
        self.take_kicks(vcpu)
    }

    /// The short refresh, when others sent SGIs and nothing else happened. Tells whether all could be loaded.
    #[inline]
    fn deliver_sgis(&mut self, vcpu: usize, cpu: &mut impl VirtualInterface) -> bool {
        let private = &self.vcpus[vcpu & VCPU].private;
        for intid in Bits(private.latched & private.open & SGIS) {
            let place = self.place(vcpu, intid, cpu);
            if !self.put(vcpu, Slot::new(intid, true, false), place, cpu) {
                return false;
            }
            self.vcpus[vcpu & VCPU].private.latched &= !(1 << intid);
        }
        true
    }

    /// The physical interrupt behind the guest's timer `intid` was acknowledged and its priority dropped; it stays
    /// active in the physical controller until the guest deactivates its own.
    #[inline]
    pub fn timer_fired(&mut self, vcpu: usize, intid: u32, cpu: &mut impl VirtualInterface) {
        let (vcpu, bit) = (vcpu & VCPU, 1 << (intid & 31));
        if intid > 31 || self.timer_bits & bit == 0 {
            return;
        }
        self.vcpus[vcpu].held |= bit;
        let way = self.way(vcpu, intid, cpu);
        let blocked = matches!(way, Way::Blocked);
        if !self.put(vcpu, Slot::new(intid, false, true), way, cpu) {
            self.vcpus[vcpu].private.level |= bit;
            self.call_for_refresh(vcpu, blocked);
        }
    }

    /// Makes an edge of `vcpu`'s own private interrupt pending; the caller has checked that it is not a timer.
    #[inline]
    pub(super) fn raise_own(&mut self, vcpu: usize, intid: u32, cpu: &mut impl VirtualInterface) {
        let way = self.way(vcpu, intid, cpu);
        let blocked = matches!(way, Way::Blocked);
        if !self.put(vcpu, Slot::new(intid, true, false), way, cpu) {
            self.vcpus[vcpu & VCPU].private.latched |= 1 << (intid & 31);
            self.call_for_refresh(vcpu, blocked);
        }
    }

    #[inline]
    fn call_for_refresh(&mut self, vcpu: usize, blocked: bool) {
        if !blocked {
            self.vcpus[vcpu & VCPU].notes |= Notes::DIRTY.union(Notes::RECONSIDER);
        }
    }

    #[inline]
    fn way(&self, vcpu: usize, intid: u32, cpu: &impl VirtualInterface) -> Way {
        let state = &self.vcpus[vcpu & VCPU];
        if state.private.open >> (intid & 31) & 1 == 0 {
            return Way::Blocked;
        }
        if !state.notes.is_empty() {
            return Way::Refresh;
        }
        self.place(vcpu, intid, cpu)
    }

    /// Where there is room for a private interrupt. A finished one's own list register is the first choice: then
    /// nothing has to be taken back.
    #[inline]
    fn place(&self, vcpu: usize, intid: u32, cpu: &impl VirtualInterface) -> Way {
        let state = &self.vcpus[vcpu & VCPU];
        if state.private.listed >> (intid & 31) & 1 != 0 {
            let index = usize::from(state.slot_of[(intid & 31) as usize]) & 15;
            return if cpu.empty() >> index & 1 != 0 { Way::Again(index) } else { Way::Refresh };
        }
        let free = cpu.empty() & !state.used;
        if free == 0 || state.private.active >> (intid & 31) & 1 != 0 {
            return Way::Refresh;
        }
        Way::Free(free.trailing_zeros() as usize & 15)
    }

    /// Loads a private interrupt as prepared, if there is a way.
    #[inline]
    fn put(&mut self, vcpu: usize, slot: Slot, way: Way, cpu: &mut impl VirtualInterface) -> bool {
        let state = &mut self.vcpus[vcpu & VCPU];
        let private = (slot.intid() & 31) as usize;
        let index = match way {
            Way::Again(index) => index & 15,
            Way::Free(index) => {
                let index = index & 15;
                state.private.listed |= 1 << private;
                state.private.listed_pending |= 1 << private;
                state.slot_of[private] = small(index);
                state.used |= 1 << index;
                index
            }
            Way::Refresh | Way::Blocked => return false,
        };
        state.slots[index] = slot;
        cpu.write(index, state.prepared[private]);
        true
    }

    /// Works out again what the short paths load, after a priority or a group changed.
    pub(super) fn prepare(&mut self, vcpu: usize) {
        for intid in 0..32 {
            let entry = self.vcpus[vcpu & VCPU].private.entry(intid).pending();
            let is_timer = self.timer_bits >> intid & 1 != 0;
            let entry = if is_timer { entry.linked_to(self.physical(intid)) } else { entry };
            self.vcpus[vcpu & VCPU].prepared[intid as usize] = entry;
        }
    }

    /// Whether a wait for interrupts is over: a pending interrupt is in a list register or ready for one.
    #[must_use]
    pub fn has_pending(&self, vcpu: usize, cpu: &impl VirtualInterface) -> bool {
        let state = &self.vcpus[vcpu & VCPU];
        if state.private.candidates() != 0 {
            return true;
        }
        let shared = Bits(state.hints).any(|word| {
            let word = word as usize & WORD;
            self.bank(vcpu, word).candidates() & state.routed[word] != 0
        });
        shared
            || state.used != 0 && Bits(state.used & !cpu.empty()).any(|n| cpu.read(n as usize).is_pending())
    }

    /// A trapped `ICC_DIR_EL1`: the guest ends the active state of `intid`. Trap it always if guests may split
    /// priority drop from deactivation; the hardware alone cannot end what no list register holds.
    pub fn deactivate(&mut self, vcpu: usize, intid: u32, cpu: &mut impl VirtualInterface) -> VcpuSet {
        let word = (intid >> 5) as usize;
        if word < WORDS {
            self.take_back(vcpu, cpu);
            self.clear_active(vcpu & VCPU, word, 1 << (intid & 31));
        }
        self.take_kicks(vcpu)
    }

    /// `vcpu` leaves its CPU: all state is taken back, the list registers are emptied and no maintenance is wanted.
    /// The physical interrupts that it held active have been deactivated, so that the next vCPU gets its own; they are
    /// returned, as bits of the guest's private numbers.
    pub fn unload(&mut self, vcpu: usize, cpu: &mut impl VirtualInterface) -> (u32, VcpuSet) {
        let vcpu = vcpu & VCPU;
        self.retire_ended(vcpu, cpu);
        self.take_back(vcpu, cpu);
        self.settle(vcpu, cpu);
        self.empty_stale(vcpu, cpu);
        let state = &mut self.vcpus[vcpu];
        state.notes = Notes::DIRTY.union(Notes::RECONSIDER);
        state.maintenance = Maintenance::empty();
        cpu.set_maintenance(Maintenance::empty());
        let held = state.held;
        for bit in Bits(held) {
            cpu.deactivate(self.physical(bit));
        }
        (held, self.take_kicks(vcpu))
    }

    /// `vcpu` comes onto a CPU whose interface is as [`unload`](Self::unload) leaves it and whose timer registers are
    /// already `vcpu`'s.
    /// Returned are the private interrupts whose physical counterparts the caller must make active, before it lets
    /// the physical controller signal them.
    pub fn load(&mut self, vcpu: usize, cpu: &mut impl VirtualInterface) -> (u32, VcpuSet) {
        let vcpu = vcpu & VCPU;
        let state = &mut self.vcpus[vcpu];
        for bit in Bits(state.private.level & state.held) {
            if !cpu.line(bit) {
                state.private.level &= !(1 << bit);
            }
        }
        // Nothing is physically active yet, so what ended meanwhile needs no deactivation.
        state.held &= state.private.level | state.private.active;
        state.notes |= Notes::RECONSIDER;
        let kick = self.refresh(vcpu, cpu);
        (self.vcpus[vcpu].held, kick)
    }

    /// Ends parked interrupts whose end the hardware counted: the most urgent first, because that is the order in
    /// which nested handlers return.
    fn retire_ended(&mut self, vcpu: usize, cpu: &mut impl VirtualInterface) {
        if !self.vcpus[vcpu & VCPU].notes.contains(Notes::EVICTED) {
            return;
        }
        for _ in 0..cpu.take_eoi_count() {
            let mut best = Ranking::new(1);
            self.rank_parked(vcpu, &mut best);
            let Some(&intid) = best.chosen().first() else { return };
            self.clear_active(vcpu, (intid >> 5) as usize, 1 << (intid & 31));
        }
    }

    /// Makes software state the whole truth about `vcpu` again. What its list registers still hold is stale now, so
    /// a refresh has to follow before the guest is entered.
    pub(super) fn take_back(&mut self, vcpu: usize, cpu: &impl VirtualInterface) {
        let vcpu = vcpu & VCPU;
        let used = self.vcpus[vcpu].used;
        if used == 0 {
            return;
        }
        let live = used & !cpu.empty();
        for index in Bits(used) {
            let index = index as usize & 15;
            let entry = if live >> index & 1 != 0 { cpu.read(index) } else { ListRegister::INVALID };
            self.take_back_one(vcpu, self.vcpus[vcpu].slots[index], entry);
        }
        let state = &mut self.vcpus[vcpu];
        state.used = 0;
        state.stale |= live;
        state.notes |= Notes::DIRTY.union(Notes::RECONSIDER);
    }

    #[inline]
    fn take_back_one(&mut self, vcpu: usize, slot: Slot, entry: ListRegister) {
        let intid = slot.intid();
        let (word, bit) = ((intid >> 5) as usize, 1 << (intid & 31));
        let (pending, active) = (entry.is_pending(), entry.is_active());
        if self.bank_mut(vcpu, word).take_back(bit, slot, pending, active) {
            self.vcpus[vcpu & VCPU].park(word, bit);
        } else if word != 0 {
            self.touch(vcpu, word, bit);
        }
        if slot.is_linked() && !entry.is_valid() {
            // The hardware has ended the physical interrupt together with the guest's, unless it fired again since.
            let state = &mut self.vcpus[vcpu & VCPU];
            state.held &= !bit | state.private.level;
        }
    }

    /// Lets go of timers that are neither active nor still asserted, so that they can fire again.
    #[inline]
    fn settle(&mut self, vcpu: usize, cpu: &mut impl VirtualInterface) {
        let state = &mut self.vcpus[vcpu & VCPU];
        if state.held == 0 {
            return;
        }
        for bit in Bits(state.private.level & state.held) {
            if !cpu.line(bit) {
                state.private.level &= !(1 << bit);
            }
        }
        let ended = state.held & !(state.private.level | state.private.active);
        state.held &= !ended;
        for bit in Bits(ended) {
            cpu.deactivate(self.physical(bit));
        }
    }

    /// Loads the list registers; returns the maintenance interrupts that this calls for.
    #[inline]
    fn deliver(&mut self, vcpu: usize, cpu: &mut impl VirtualInterface) -> Maintenance {
        let mut chosen = [0; LIST_REGISTERS];
        let count = cpu.count().min(LIST_REGISTERS);
        let Some(len) = self.gather(vcpu, &mut chosen, count) else {
            return self.deliver_best(vcpu, count, cpu);
        };
        for (index, &intid) in chosen.iter().take(len).enumerate() {
            self.list(vcpu, index, intid, cpu);
        }
        self.empty_stale(vcpu, cpu);
        let state = &mut self.vcpus[vcpu & VCPU];
        state.hints = 0;
        state.notes -= Notes::WAITING.union(Notes::EVICTED);
        Maintenance::empty()
    }

    /// Everything that wants a list register, in no order; `None` if it is more than `count`.
    #[inline]
    fn gather(&self, vcpu: usize, chosen: &mut [u32; LIST_REGISTERS], count: usize) -> Option<usize> {
        let state = &self.vcpus[vcpu & VCPU];
        let mut len = 0;
        let mut add = |word: usize, bits: u32| {
            for bit in Bits(bits) {
                if len >= count {
                    return None;
                }
                *chosen.get_mut(len)? = u32::from(small(word)) << 5 | bit;
                len += 1;
            }
            Some(())
        };
        for word in Bits(state.parked_words) {
            let word = word as usize & WORD;
            add(word, state.parked[word])?;
        }
        add(0, state.private.candidates())?;
        for word in Bits(state.hints) {
            let word = word as usize & WORD;
            add(word, self.bank(vcpu, word).candidates() & state.routed[word])?;
        }
        Some(len)
    }

    /// The long way: more interrupts than list registers.
    fn deliver_best(&mut self, vcpu: usize, count: usize, cpu: &mut impl VirtualInterface) -> Maintenance {
        let (mut active, mut pending) = (Ranking::new(count), Ranking::new(count));
        self.rank_parked(vcpu, &mut active);
        self.rank_pending(vcpu, &mut pending);
        let reserved = usize::from(pending.total != 0);
        let kept = active.total.min(count.saturating_sub(reserved));
        let loaded = pending.total.min(count.saturating_sub(kept));
        let chosen = active.chosen().iter().take(kept).chain(pending.chosen().iter().take(loaded));
        for (index, &intid) in chosen.enumerate() {
            self.list(vcpu, index, intid, cpu);
        }
        self.empty_stale(vcpu, cpu);
        let state = &mut self.vcpus[vcpu & VCPU];
        let (evicted, waiting) = (active.total > kept, pending.total > loaded);
        if evicted && !state.notes.contains(Notes::EVICTED) {
            // What was counted before there was anything to count for means nothing.
            cpu.take_eoi_count();
        }
        state.notes.set(Notes::EVICTED, evicted);
        state.notes.set(Notes::WAITING, waiting);
        let mut wanted = Maintenance::empty();
        wanted.set(Maintenance::EOI_NO_LR, evicted);
        wanted.set(Maintenance::NO_PENDING, waiting);
        // With a single list register an underflow would be signalled for ever.
        wanted.set(Maintenance::UNDERFLOW, waiting && count > 1);
        wanted
    }

    fn rank_parked(&self, vcpu: usize, ranking: &mut Ranking) {
        let state = &self.vcpus[vcpu & VCPU];
        for word in Bits(state.parked_words) {
            let word = word as usize & WORD;
            ranking.offer_all(self.bank(vcpu, word), word, state.parked[word]);
        }
    }

    fn rank_pending(&self, vcpu: usize, ranking: &mut Ranking) {
        let state = &self.vcpus[vcpu & VCPU];
        ranking.offer_all(&state.private, 0, state.private.candidates());
        for word in Bits(state.hints) {
            let word = word as usize & WORD;
            let bank = self.bank(vcpu, word);
            ranking.offer_all(bank, word, bank.candidates() & state.routed[word]);
        }
    }

    /// Loads one list register with an interrupt that is deliverable or parked.
    #[inline]
    fn list(&mut self, vcpu: usize, index: usize, intid: u32, cpu: &mut impl VirtualInterface) {
        let (word, bit) = ((intid >> 5) as usize, 1 << (intid & 31));
        let state = &self.vcpus[vcpu & VCPU];
        let here = if word == 0 { bit } else { bit & state.routed[word & WORD] };
        let held = word == 0 && state.held & bit != 0;
        let physical = if held { self.physical(intid) } else { 0 };
        let bank = self.bank_mut(vcpu, word);
        let active = bank.active & bit != 0;
        let latched = bank.latched & bank.open & here != 0;
        let high = bank.level & !bank.edge & bit != 0;
        // A linked list register cannot be active and pending at once (IHI 0069, 12.4.6).
        let linked = held && !(active && latched);
        // The end must be seen when something is left to do after it.
        let more = held || high || active && !latched && bank.latched & bit != 0;

        let mut entry = bank.entry(intid);
        if active {
            entry = entry.active();
        }
        if latched || !active {
            entry = entry.pending();
        }
        if linked {
            entry = entry.linked_to(physical);
            bank.level &= !bit;
        } else if more {
            entry = entry.with_eoi();
        }
        if latched {
            bank.latched &= !bit;
        }
        bank.listed |= bit;
        bank.listed_pending |= if entry.is_pending() { bit } else { 0 };
        self.own(vcpu, index, Slot::new(intid, latched, linked));
        if active {
            self.vcpus[vcpu & VCPU].unpark(word, bit);
        }
        cpu.write(index, entry);
    }

    #[inline]
    fn own(&mut self, vcpu: usize, index: usize, slot: Slot) {
        let (index, intid) = (index & 15, slot.intid());
        let state = &mut self.vcpus[vcpu & VCPU];
        state.slots[index] = slot;
        state.used |= 1 << index;
        if intid < 32 {
            state.slot_of[(intid & 31) as usize] = small(index);
        } else {
            self.holders[spi((intid >> 5) as usize, intid & 31)] = small(vcpu);
        }
    }

    /// Empties the list registers that were taken back and not loaded again.
    #[inline]
    fn empty_stale(&mut self, vcpu: usize, cpu: &mut impl VirtualInterface) {
        let state = &mut self.vcpus[vcpu & VCPU];
        for index in Bits(state.stale & !state.used) {
            cpu.write(index as usize, ListRegister::INVALID);
        }
        state.stale = 0;
    }

    /// `ISACTIVER` for `bits` of a word; word 0 is the one of `vcpu`.
    pub(super) fn set_active(&mut self, vcpu: usize, word: usize, bits: u32) {
        let fresh = self.bank_mut(vcpu, word).set_active(bits);
        self.touch(vcpu, word, bits);
        if word == 0 {
            self.vcpus[vcpu & VCPU].park(0, fresh);
            return;
        }
        for bit in Bits(fresh) {
            let target = self.routes[spi(word, bit)].target;
            let owner = if target == NOBODY { 0 } else { target };
            self.holders[spi(word, bit)] = owner;
            self.vcpus[usize::from(owner) & VCPU].park(word, 1 << bit);
            self.mark(usize::from(owner), word);
        }
    }

    /// `ICACTIVER` for `bits` of a word; word 0 is the one of `vcpu`.
    pub(super) fn clear_active(&mut self, vcpu: usize, word: usize, bits: u32) {
        let ended = self.bank_mut(vcpu, word).clear_active(bits);
        self.touch(vcpu, word, bits);
        if word == 0 {
            self.vcpus[vcpu & VCPU].unpark(0, ended);
            return;
        }
        for bit in Bits(ended) {
            let owner = usize::from(self.holders[spi(word, bit)]);
            self.vcpus[owner & VCPU].unpark(word, 1 << bit);
            self.mark(owner, word);
        }
    }

    /// The physical number of a timer.
    #[inline]
    fn physical(&self, intid: u32) -> u32 {
        let [HardwareLine { intid: first, physical }, second] = self.timers;
        if intid == first { physical } else { second.physical }
    }
}

impl Bank {
    /// A list register for an interrupt of this bank, without a state.
    #[inline]
    fn entry(&self, intid: u32) -> ListRegister {
        ListRegister::new(intid, self.priority[(intid & 31) as usize])
            .in_group(self.group >> (intid & 31) & 1)
    }
}

/// The index of a vCPU, a word or a list register, of which there are 16 at most.
#[inline]
const fn small(index: usize) -> u8 {
    (index as u64 & 15) as u8
}

/// The most urgent interrupts out of many, most urgent first.
struct Ranking {
    /// Priority in the upper half, number in the lower: the order of urgency.
    keys: [u32; LIST_REGISTERS],
    intids: [u32; LIST_REGISTERS],
    len: usize,
    limit: usize,
    /// How many were offered.
    total: usize,
}

impl Ranking {
    fn new(limit: usize) -> Self {
        let limit = limit.min(LIST_REGISTERS);
        Self { keys: [0; LIST_REGISTERS], intids: [0; LIST_REGISTERS], len: 0, limit, total: 0 }
    }

    fn chosen(&self) -> &[u32] {
        self.intids.get(..self.len).unwrap_or(&[])
    }

    fn offer_all(&mut self, bank: &Bank, word: usize, bits: u32) {
        for bit in Bits(bits) {
            let intid = u32::from(small(word)) << 5 | bit;
            self.offer(u32::from(bank.priority[(bit & 31) as usize]) << 16 | intid);
        }
    }

    fn offer(&mut self, key: u32) {
        self.total += 1;
        if self.len == self.limit && self.keys.get(self.len.wrapping_sub(1)).is_some_and(|&last| key > last) {
            return;
        }
        let better = self.keys.iter().take(self.len).position(|&other| key < other);
        let place = better.unwrap_or(self.len);
        if place >= self.limit {
            return;
        }
        self.len = (self.len + 1).min(self.limit);
        let mut moved = key;
        for (held, intid) in self.keys.iter_mut().zip(&mut self.intids).take(self.len).skip(place) {
            core::mem::swap(held, &mut moved);
            *intid = *held & 0xffff;
        }
    }
}
