//! What crosses from one CPU to another: a mailbox for each vCPU, and the routing of messages into them.
//!
//! ```text
//! sender:    level bit ─► vector bit (Release) ─► note (Release) ─► tell the vCPU if that note is new
//! receiver:  take notes (Acquire) ─► take vector bits (Acquire) ─► read level bits
//! ```
//!
//! A note is set after what it announces, and taken before it. So a note may announce something that is taken
//! already, which harms nothing, but nothing stays without a note. No lock, and no loop longer than there are vCPUs.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bitflags::bitflags;

use crate::{MAX_VCPUS, VcpuSet};

const VCPU: usize = MAX_VCPUS - 1;
const _: () = assert!(MAX_VCPUS.is_power_of_two() && MAX_VCPUS <= 16);

/// The first vector that an APIC delivers (SDM Vol. 3A, 11.5.2).
pub const FIRST_VECTOR: u8 = 16;

/// A message on the way from a device, an I/O APIC or another CPU to local APICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Who gets it.
    pub destination: Destination,
    /// What it does there.
    pub delivery: Delivery,
    /// Which interrupt, for those deliveries that have one.
    pub vector: u8,
    /// Whether its end has to be told to the I/O APICs.
    pub trigger: Trigger,
}

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// Who has to look: those that were not told before.
    pub look: VcpuSet,
    /// Somebody accepted its vector, and will end it.
    pub is_requested: bool,
}

impl Sent {
    /// No vector was requested.
    const fn note(look: VcpuSet) -> Self {
        Self { look, is_requested: false }
    }
}

/// Who gets a message (SDM Vol. 3A, 11.6.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// The APIC with this id.
    Physical(u32),
    /// Those that a mask selects.
    Logical(u32),
    /// Every APIC.
    All,
}

/// What a message does, as the three bits of every APIC register that has a delivery mode (SDM Vol. 3A, 11.6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// 0: the vector, to all that are named.
    Fixed,
    /// 1: the vector, to one of those that are named.
    LowestPriority,
    /// 2: a system management interrupt, which this machine has no use for.
    Smi,
    /// 4: a non-maskable interrupt.
    Nmi,
    /// 5: into the wait for a start-up message.
    Init,
    /// 6: out of it; the vector is a page number.
    StartUp,
    /// 7: the 8259 pair has the vector.
    External,
    /// 3
    Reserved,
}

impl Delivery {
    /// The mode in bits 10:8.
    #[inline]
    #[must_use]
    pub const fn of(register: u32) -> Self {
        match register >> 8 & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::External,
            _ => Self::Reserved,
        }
    }
}

/// How a source signals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// Once.
    Edge,
    /// Again after its end, as long as it is asserted.
    Level,
}

impl Destination {
    /// The eight bits that an I/O APIC or an APIC in xAPIC mode sends.
    #[inline]
    #[must_use]
    pub const fn of_byte(byte: u8, logical: bool) -> Self {
        match (byte, logical) {
            (_, true) => Self::Logical(byte as u32),
            (0xff, false) => Self::All,
            (_, false) => Self::Physical(byte as u32),
        }
    }
}

/// Notes in a mailbox, by their bits: 7:0 say which words of vectors have something.
pub(super) mod note {
    pub(crate) const WORDS: u32 = 0xff;
    pub(crate) const NMI: u32 = 8;
    pub(crate) const EXTERNAL: u32 = 9;
    pub(crate) const LINT0: u32 = 10;
    pub(crate) const LINT1: u32 = 11;
    pub(crate) const ILLEGAL_VECTOR: u32 = 12;
}

bitflags! {
    /// What the others have to know of an APIC to send to it: the logical id is in bits 31:0.
    #[derive(Clone, Copy)]
    pub(super) struct Route: u64 {
        const LOGICAL_ID = 0xffff_ffff;
        /// IA32_APIC_BASE.EN
        const ON = 1 << 32;
        /// And the software enable of the spurious-interrupt vector register.
        const ACCEPTS = 1 << 33;
        const X2APIC = 1 << 34;
        /// The destination format register selects clusters.
        const CLUSTERS = 1 << 35;
        /// A change at the pin concerns the vCPU.
        const LINT0 = 1 << 36;
        const LINT1 = 1 << 37;
    }
}

impl Route {
    /// Whether a logical destination selects this APIC (SDM Vol. 3A, 11.6.2.2 and 11.12.10.1).
    #[inline]
    fn is_selected_by(self, mask: u32) -> bool {
        let own = (self.bits() & 0xffff_ffff) as u32;
        if self.contains(Self::X2APIC) {
            return mask == u32::MAX || mask >> 16 == own >> 16 && mask & own & 0xffff != 0;
        }
        if mask == u32::MAX {
            return true;
        }
        if self.contains(Self::CLUSTERS) {
            let cluster = mask >> 4;
            return (cluster == 0xf || cluster == own >> 4) && mask & own & 0xf != 0;
        }
        mask & own & 0xff != 0 && mask <= 0xff
    }
}

/// One vCPU's mailbox. What is read before each entry is in its first cache line.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub(super) struct Mailbox {
    notes: AtomicU32,
    route: AtomicU64,
    vectors: [AtomicU32; 8],
    /// Which of the vectors were level-triggered when last sent.
    levels: [AtomicU32; 8],
}

impl Mailbox {
    /// Whether there is something to take.
    #[inline]
    pub(super) fn has_notes(&self) -> bool {
        self.notes.load(Ordering::Relaxed) != 0
    }

    #[inline]
    pub(super) fn take_notes(&self) -> u32 {
        self.notes.swap(0, Ordering::Acquire)
    }

    /// The requested vectors of one word, and which of the word are level-triggered.
    #[inline]
    pub(super) fn take_word(&self, word: usize) -> (u32, u32) {
        let vectors = self.vectors[word & 7].swap(0, Ordering::Acquire);
        (vectors, self.levels[word & 7].load(Ordering::Relaxed))
    }

    /// Tells whether the vCPU has to be told. Whoever left the same note before has told it, and it has not looked since. Only
    /// the one bit is asked for: that is one instruction, where the whole word would be a loop.
    #[inline]
    fn put_note(&self, note: u32) -> bool {
        let bit = 1 << (note & 31);
        self.notes.fetch_or(bit, Ordering::Release) & bit == 0
    }

    #[inline]
    fn put_vector(&self, vector: u8, trigger: Trigger) -> bool {
        let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
        let is_level = self.levels[word].load(Ordering::Relaxed) & bit != 0;
        match trigger {
            Trigger::Edge if is_level => {
                self.levels[word].fetch_and(!bit, Ordering::Relaxed);
            }
            Trigger::Level if !is_level => {
                self.levels[word].fetch_or(bit, Ordering::Relaxed);
            }
            Trigger::Edge | Trigger::Level => {}
        }
        self.vectors[word].fetch_or(bit, Ordering::Release);
        self.put_note((vector >> 5).into())
    }

    #[inline]
    fn route(&self) -> Route {
        Route::from_bits_retain(self.route.load(Ordering::SeqCst))
    }

    /// Notes first, as when they are taken: what is sent meanwhile has its note.
    fn clear(&self) {
        self.take_notes();
        for word in self.vectors.iter().chain(&self.levels) {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// What the local APICs of one VM share.
#[derive(Debug)]
pub struct Apics {
    /// Bits of the vCPUs there are.
    present: u32,
    /// The level of the 8259 pair's output, which is wired to LINT0 of every local APIC.
    intr: AtomicBool,
    mailboxes: [Mailbox; MAX_VCPUS],
}

impl Apics {
    /// For `vcpus` vCPUs (1 to [`MAX_VCPUS`]). Each can be sent to once its local APIC is made.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        let vcpus = vcpus.clamp(1, MAX_VCPUS);
        Self {
            present: u32::MAX >> (32 - vcpus),
            intr: AtomicBool::new(false),
            mailboxes: core::array::from_fn(|_| Mailbox::default()),
        }
    }

    /// Sends a device's or an I/O APIC's message. SMI and INIT do nothing: this machine has no system management mode, and no
    /// device that switches CPUs off.
    #[inline]
    pub fn send(&self, message: Message) -> Sent {
        let Message { delivery, vector, trigger, .. } = message;
        let targets = self.targets(message.destination);
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority if vector < FIRST_VECTOR => {
                Sent::note(self.note(self.with(targets, Route::ACCEPTS), note::ILLEGAL_VECTOR))
            }
            Delivery::Fixed => self.put(targets, vector, trigger),
            Delivery::LowestPriority => self.put(self.one_of(targets, vector), vector, trigger),
            Delivery::Nmi => Sent::note(self.note(self.with(targets, Route::ON), note::NMI)),
            Delivery::External => Sent::note(self.note(self.with(targets, Route::ON), note::EXTERNAL)),
            Delivery::Smi | Delivery::Init | Delivery::StartUp | Delivery::Reserved => {
                Sent::note(VcpuSet::EMPTY)
            }
        }
    }

    /// Sets the output of the 8259 pair; tells who has to look.
    pub fn set_intr(&self, level: bool) -> VcpuSet {
        // Pairs with the store of a route and the load of the level in `LocalApic`: one of both sides sees the other.
        if self.intr.swap(level, Ordering::SeqCst) == level || !level {
            return VcpuSet::EMPTY;
        }
        self.note(self.with(self.present, Route::LINT0), note::LINT0)
    }

    /// The output of the 8259 pair.
    #[inline]
    #[must_use]
    pub fn intr(&self) -> bool {
        self.intr.load(Ordering::SeqCst)
    }

    /// Pulses LINT1 of every local APIC, a PC's NMI wire; tells who has to look.
    pub fn pulse_lint1(&self) -> VcpuSet {
        self.note(self.with(self.present, Route::LINT1), note::LINT1)
    }

    /// Empties all mailboxes, and routes as after power-on: each local APIC is on, and accepts nothing but INIT and NMI. The
    /// local APICs are reset by their own CPUs, the others' not before they are started, which takes a route.
    pub fn reset(&self) {
        self.intr.store(false, Ordering::SeqCst);
        for vcpu in VcpuSet(self.present).iter() {
            self.clear(vcpu);
            self.set_route(vcpu, Route::ON);
        }
    }

    /// INIT: each of `targets` accepts no interrupts from here on, but start-up messages. Its own CPU resets the rest, not before
    /// it is started; until then a message that it accepted would never be ended.
    pub(super) fn silence(&self, targets: u32) {
        let kept = Route::all().difference(Route::ACCEPTS.union(Route::LINT0).union(Route::LINT1));
        for vcpu in VcpuSet(targets).iter() {
            self.mailbox(vcpu).route.fetch_and(kept.bits(), Ordering::SeqCst);
        }
    }

    #[inline]
    pub(super) fn present(&self) -> u32 {
        self.present
    }

    #[inline]
    pub(super) fn mailbox(&self, vcpu: usize) -> &Mailbox {
        &self.mailboxes[vcpu & VCPU]
    }

    pub(super) fn set_route(&self, vcpu: usize, route: Route) {
        self.mailbox(vcpu).route.store(route.bits(), Ordering::SeqCst);
    }

    pub(super) fn clear(&self, vcpu: usize) {
        self.mailbox(vcpu).clear();
    }

    /// Whom a destination names.
    #[inline]
    pub(super) fn targets(&self, destination: Destination) -> u32 {
        match destination {
            Destination::Physical(id) => 1u32.checked_shl(id).unwrap_or(0) & self.present,
            Destination::All => self.present,
            Destination::Logical(mask) => self.selected_by(mask),
        }
    }

    #[inline(never)]
    fn selected_by(&self, mask: u32) -> u32 {
        self.filter(self.present, |route| route.is_selected_by(mask))
    }

    /// Those of `set` whose route has `flags`.
    #[inline]
    pub(super) fn with(&self, set: u32, flags: Route) -> u32 {
        self.filter(set, |route| route.contains(flags))
    }

    #[inline]
    fn filter(&self, set: u32, keep: impl Fn(Route) -> bool) -> u32 {
        let kept = VcpuSet(set).iter().filter(|&vcpu| keep(self.mailbox(vcpu).route()));
        kept.fold(0, |kept, vcpu| kept | 1 << (vcpu & VCPU))
    }

    /// The one of `targets` that a lowest-priority message goes to. Which one is the machine's choice (SDM Vol. 3A,
    /// 11.6.2.4); the vector chooses, so that different interrupts go to different vCPUs and one stays where it is warm.
    pub(super) fn one_of(&self, targets: u32, vector: u8) -> u32 {
        let able = self.with(targets, Route::ACCEPTS);
        let Some(nth) = u32::from(vector).checked_rem(able.count_ones()) else { return 0 };
        let left = (0..nth).fold(able, |left, _| left & left.wrapping_sub(1));
        left & left.wrapping_neg()
    }

    /// Requests `vector`, a legal one, of `targets`, as far as they accept it; tells who has to look.
    #[inline]
    pub(super) fn post(&self, targets: u32, vector: u8, trigger: Trigger) -> VcpuSet {
        self.put(targets, vector, trigger).look
    }

    #[inline(never)]
    fn put(&self, targets: u32, vector: u8, trigger: Trigger) -> Sent {
        let (mut is_requested, mut told) = (false, 0);
        for vcpu in VcpuSet(targets).iter() {
            let mailbox = self.mailbox(vcpu);
            if mailbox.route().contains(Route::ACCEPTS) {
                is_requested = true;
                told |= u32::from(mailbox.put_vector(vector, trigger)) << (vcpu & VCPU);
            }
        }
        Sent { look: VcpuSet(told), is_requested }
    }

    /// Leaves a note with each of `targets`.
    #[inline]
    pub(super) fn note(&self, targets: u32, note: u32) -> VcpuSet {
        let told = VcpuSet(targets).iter().filter(|&vcpu| self.mailbox(vcpu).put_note(note));
        VcpuSet(told.fold(0, |told, vcpu| told | 1 << (vcpu & VCPU)))
    }
}
