//! The local APIC as a guest sees it (SDM Vol. 3A, chapter 11; APM Vol. 2, chapter 16): xAPIC and x2APIC modes.
//!
//! ```text
//! other CPUs, I/O APIC, MSI ──► mailbox ──absorb──► request ──take──► in service ──eoi──► I/O APIC, if level
//! own timer, LVT, self-IPI ─────────────────────────►┘ pending: above TPR and what is in service
//! ```
//!
//! A [`LocalApic`] belongs to the CPU that runs the vCPU and needs no lock; [`Apics`] is what all of one VM share, and is
//! lock-free. Task priority, requests and what is in service are in the [`Page`] and nowhere else, because the
//! hardware may change them there while the guest runs; the processor priority is worked out when asked for.
//!
//! The APIC id is the vCPU's index and cannot be changed. The page cannot be moved from [`LAPIC`](crate::pc::LAPIC).
//! SMI does nothing; INIT through a local pin does nothing. Nothing here allocates, and no loop is longer than there are vCPUs or words of vectors.

mod base;
mod command;
mod local;
mod mailbox;
#[cfg(test)]
mod model;
mod page;
mod registers;
#[cfg(test)]
mod tests;
mod timer;

use alloc::sync::Arc;
use core::num::NonZero;

use bitflags::bitflags;

use self::base::Mode;
pub use self::mailbox::{Apics, Delivery, Destination, FIRST_VECTOR, Message, Sent, Trigger};
use self::mailbox::{Mailbox, Route, note};
pub use self::page::{Page, register};
use self::page::{low_byte, place};
use self::register::{IN_SERVICE, REQUEST, SPURIOUS, TASK_PRIORITY, TRIGGER_MODE};
pub use self::timer::TIMER_HZ;
use self::timer::Timer;
use crate::{MAX_VCPUS, VcpuSet};

/// As many as an id can name.
const VCPUS: u32 = 16;
const _: () = assert!(VCPUS as usize == MAX_VCPUS);

bitflags! {
    /// What the guest was told that its local APIC can do.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u8 {
        /// x2APIC mode (CPUID 1, ECX bit 21).
        const X2APIC = 1 << 0;
        /// The timer's TSC-deadline mode (CPUID 1, ECX bit 24).
        const TSC_DEADLINE = 1 << 1;
        /// Suppression of EOI broadcasts (version register, bit 24).
        const EOI_SUPPRESSION = 1 << 2;
        /// A local vector for corrected machine checks (version register, bits 23:16 are 6).
        const CMCI = 1 << 3;
    }
}

/// Who changes requests and what is in service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Only this model: it then knows which words are empty.
    Software,
    /// The hardware too, while the guest runs: virtual-interrupt delivery (SDM Vol. 3C, 30.2).
    Hardware,
}

/// What does not change over the life of a local APIC.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// What the guest was told.
    pub features: Features,
    /// Who changes the page.
    pub owner: Owner,
    /// Ticks of `now` in one second.
    pub ticks_per_second: u64,
}

/// What a write to a register asks of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing; the vCPU's own interrupts may have changed.
    Nothing,
    /// These have to look at their interrupts.
    Look(VcpuSet),
    /// INIT: these wait for a start-up message from now on, whatever they do. The writer may be one of them.
    SwitchOff(VcpuSet),
    /// Start-up: those of these that wait begin in real mode at this page (times 4096).
    Start(VcpuSet, u8),
    /// The level-triggered interrupt with this vector ended: the I/O APICs have to be told.
    Ended(u8),
}

impl Effect {
    #[inline]
    const fn look(set: VcpuSet) -> Self {
        if set.0 == 0 { Self::Nothing } else { Self::Look(set) }
    }
}

/// The access is one that raises a general-protection exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

/// One vCPU's local APIC.
#[derive(Debug)]
pub struct LocalApic {
    page: &'static Page,
    apics: Arc<Apics>,
    /// Its index, and its id.
    vcpu: u32,
    features: Features,
    /// Words that are looked at even when this model believes them empty: all where the hardware owns the page too.
    always: u8,

    /// Words of requests, and of what is in service, that are not empty.
    requested: u8,
    in_service: u8,
    /// A message with an interrupt of the 8259 pair, not taken yet.
    external: bool,
    /// LINT0 passes the 8259 pair's interrupts on.
    is_wired_to_pics: bool,
    nmi: bool,
    levels_changed: bool,
    /// LINT0 delivered a level that has not ended.
    remote_irr: bool,
    /// Errors since the error status register was written last.
    errors: u32,
    mode: Mode,
    timer: Timer,
}

impl LocalApic {
    /// The local APIC of the vCPU with this index, as after power-on. `page` is nobody else's.
    #[must_use]
    pub fn new(vcpu: usize, page: &'static Page, apics: Arc<Apics>, setup: Setup) -> Self {
        let mut apic = Self {
            page,
            apics,
            vcpu: u32::try_from(vcpu).unwrap_or(0) % VCPUS,
            features: setup.features,
            always: if setup.owner == Owner::Hardware { u8::MAX } else { 0 },
            requested: 0,
            in_service: 0,
            external: false,
            is_wired_to_pics: false,
            nmi: false,
            levels_changed: false,
            remote_irr: false,
            errors: 0,
            mode: Mode::XApic,
            timer: Timer::new(setup.ticks_per_second),
        };
        apic.reset();
        apic
    }

    /// The registers.
    #[must_use]
    pub fn page(&self) -> &'static Page {
        self.page
    }

    /// What all local APICs of the VM share.
    #[must_use]
    pub fn apics(&self) -> &Arc<Apics> {
        &self.apics
    }

    /// Moves what others sent into the own registers. Before each entry into the guest, and before a wait.
    ///
    /// A sender whose note is here already does not tell the vCPU again, so the vCPU must not rest with notes unabsorbed. One
    /// that marks itself "in the guest" or "at rest" for senders to see must do that before, with a full fence.
    #[inline]
    pub fn absorb(&mut self) {
        if self.mailbox().has_notes() {
            self.take_mail();
        }
    }

    #[inline]
    fn take_mail(&mut self) {
        let notes = self.mailbox().take_notes();
        let mut words = notes & note::WORDS;
        while let Some(left) = NonZero::new(words) {
            let word = low_byte(left.trailing_zeros() & 7);
            words &= words.wrapping_sub(1);
            let (vectors, levels) = self.mailbox().take_word(word.into());
            let request = REQUEST + word;
            self.page.set(request, self.page.get(request) | vectors);
            self.requested |= u8::from(vectors != 0) << word;
            self.set_trigger(TRIGGER_MODE + word, vectors, levels);
        }
        if notes & !note::WORDS != 0 {
            self.take_signals(notes);
        }
    }

    /// Requests an own interrupt; the vector is a legal one.
    #[inline]
    fn request(&mut self, vector: u8, trigger: Trigger) {
        let (register, bit) = place(REQUEST, vector);
        self.page.set(register, self.page.get(register) | bit);
        self.requested |= 1 << (vector >> 5);
        let levels = if trigger == Trigger::Level { bit } else { 0 };
        self.set_trigger(place(TRIGGER_MODE, vector).0, bit, levels);
    }

    /// Accepted vectors note how they were triggered (SDM Vol. 3A, 11.8.4).
    #[inline]
    fn set_trigger(&mut self, register: u8, vectors: u32, levels: u32) {
        let old = self.page.get(register);
        let new = old & !vectors | levels & vectors;
        if new != old {
            self.page.set(register, new);
            self.levels_changed = true;
        }
    }

    /// The interrupt to deliver now: the highest requested one, if its class is above the processor priority's. After
    /// [`absorb`](Self::absorb).
    #[inline]
    #[must_use]
    pub fn pending(&self) -> Option<u8> {
        let vector = self.highest_requested();
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Whether there is anything to take, whatever holds it back. After [`absorb`](Self::absorb).
    #[inline]
    #[must_use]
    pub fn has_requests(&self) -> bool {
        self.requested | self.always != 0 || self.nmi || self.has_external()
    }

    /// The highest requested vector whatever the priority, 0 if there is none: RVI.
    #[inline]
    #[must_use]
    pub fn highest_requested(&self) -> u8 {
        self.page.highest(REQUEST, self.requested | self.always)
    }

    /// The highest vector in service, 0 if there is none: SVI.
    #[inline]
    #[must_use]
    pub fn highest_in_service(&self) -> u8 {
        self.page.highest(IN_SERVICE, self.in_service | self.always)
    }

    /// The highest vector that was requested since last asked, 0 if none was. Only where the hardware owns the page: it knows of
    /// all others already.
    #[inline]
    #[must_use]
    pub fn newly_requested(&mut self) -> u8 {
        let words = core::mem::take(&mut self.requested);
        if words == 0 { 0 } else { self.page.highest(REQUEST, words) }
    }

    /// SDM Vol. 3A, 11.8.3.1, as hardware virtualises it (SDM Vol. 3C, 30.1.3).
    #[inline]
    fn processor_priority(&self) -> u8 {
        let task = low_byte(self.page.get(TASK_PRIORITY));
        let service = self.highest_in_service();
        if task >> 4 >= service >> 4 { task } else { service & 0xf0 }
    }

    /// The CPU accepts the interrupt that [`pending`](Self::pending) named.
    #[inline]
    pub fn take(&mut self, vector: u8) {
        let (word, bit) = (vector >> 5, place(0, vector).1);
        let left = self.page.get(REQUEST + word) & !bit;
        self.page.set(REQUEST + word, left);
        self.requested &= !(u8::from(left == 0) << word);
        self.page.set(IN_SERVICE + word, self.page.get(IN_SERVICE + word) | bit);
        self.in_service |= 1 << word;
    }

    /// The CPU asks for a vector: the pending one, which is in service from now on, or the spurious one, which is not
    /// (SDM Vol. 3A, 11.9).
    #[inline]
    pub fn acknowledge(&mut self) -> u8 {
        let Some(vector) = self.pending() else { return low_byte(self.page.get(SPURIOUS)) };
        self.take(vector);
        vector
    }

    /// The guest ends the interrupt of the highest priority in service. The vector of a level-triggered one, which the I/O
    /// APICs have to be told, unless the guest does that itself (SDM Vol. 3A, 11.8.5).
    #[inline]
    pub fn eoi(&mut self) -> Option<u8> {
        let vector = self.highest_in_service();
        if vector == 0 {
            return None;
        }
        let (word, bit) = (vector >> 5, place(0, vector).1);
        let left = self.page.get(IN_SERVICE + word) & !bit;
        self.page.set(IN_SERVICE + word, left);
        self.in_service &= !(u8::from(left == 0) << word);
        if self.page.get(TRIGGER_MODE + word) & bit == 0 { None } else { self.ended(vector) }
    }

    /// The rest of [`eoi`](Self::eoi) where the hardware did the first part and left the guest with `vector` (SDM Vol. 3C,
    /// 30.1.4).
    #[cold]
    pub fn ended(&mut self, vector: u8) -> Option<u8> {
        let (register, bit) = place(TRIGGER_MODE, vector);
        if self.page.get(register) & bit == 0 || self.ends_local_level(vector) {
            return None;
        }
        (self.page.get(SPURIOUS) & registers::SUPPRESS_BROADCAST == 0).then_some(vector)
    }

    /// The vectors whose end [`ended`](Self::ended) must hear of, if they changed since last asked.
    pub fn changed_levels(&mut self) -> Option<[u64; 4]> {
        core::mem::take(&mut self.levels_changed).then(|| {
            let word = |index: u8| u64::from(self.page.get(TRIGGER_MODE + index));
            [0, 2, 4, 6].map(|index| word(index) | word(index + 1) << 32)
        })
    }

    /// The task priority's class, which is CR8.
    #[inline]
    #[must_use]
    pub fn cr8(&self) -> u8 {
        low_byte(self.page.get(TASK_PRIORITY)) >> 4
    }

    /// Sets the task priority's class; the sub-class becomes 0 (SDM Vol. 3A, 11.8.6).
    ///
    /// # Errors
    /// [`Refused`] above 15.
    #[inline]
    pub fn set_cr8(&mut self, value: u64) -> Result<(), Refused> {
        let class = u32::try_from(value).ok().filter(|&class| class < 16).ok_or(Refused)?;
        self.page.set(TASK_PRIORITY, class << 4);
        Ok(())
    }

    /// Whether an NMI is waiting. After [`absorb`](Self::absorb).
    #[inline]
    #[must_use]
    pub fn has_nmi(&self) -> bool {
        self.nmi
    }

    /// The CPU accepts the NMI.
    #[inline]
    pub fn take_nmi(&mut self) {
        self.nmi = false;
    }

    /// Whether the 8259 pair has an interrupt for this vCPU, which comes before all of the APIC's and knows no priority. Its
    /// vector is the pair's to say; then [`take_external`](Self::take_external).
    #[inline]
    #[must_use]
    pub fn has_external(&self) -> bool {
        self.external || self.is_wired_to_pics && self.apics.intr()
    }

    /// The CPU accepts the interrupt of the 8259 pair.
    #[inline]
    pub fn take_external(&mut self) {
        self.external = false;
    }

    /// Absorbs, then tells whether something ends a wait of a vCPU with interrupts enabled.
    pub fn wakes(&mut self) -> bool {
        self.absorb();
        self.nmi || self.has_external() || self.pending().is_some()
    }

    #[inline]
    fn mailbox(&self) -> &Mailbox {
        self.apics.mailbox(self.vcpu as usize)
    }

    /// The own bit in a set.
    #[inline]
    fn own(&self) -> u32 {
        1 << (self.vcpu % VCPUS)
    }

    #[inline]
    fn is_enabled_by_software(&self) -> bool {
        self.page.get(SPURIOUS) & registers::SOFTWARE_ENABLE != 0
    }
}
