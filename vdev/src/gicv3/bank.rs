//! The state of 32 interrupts as bit masks, one bit for each, and how the states combine (IHI 0069, chapter 4).

/// The implemented bits of a priority: 32 levels.
pub(super) const PRIORITY_MASK: u8 = 0xf8;

/// The set bits of a mask, lowest first.
pub(super) struct Bits(pub(super) u32);

impl Iterator for Bits {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(bit)
    }
}

/// 32 interrupts. While an interrupt is *listed*, a list register holds it: what software then knows of its state is
/// what it last saw there, and what others want changed waits in the three request masks.
#[derive(Clone)]
pub(super) struct Bank {
    /// Group 1 (else group 0).
    pub(super) group: u32,
    pub(super) enabled: u32,
    /// Enabled, and the group is forwarded: `enabled` seen through `GICD_CTLR`.
    pub(super) open: u32,
    /// Edge-triggered (else level-sensitive).
    pub(super) edge: u32,
    /// The level of the wire. For a hardware timer: it fired, and no list register has taken that up.
    pub(super) level: u32,
    /// Pending until acknowledged: by an edge, an SGI or a write to `ISPENDR`.
    pub(super) latched: u32,
    pub(super) active: u32,
    pub(super) listed: u32,
    /// Of the listed ones: pending when last seen.
    pub(super) listed_pending: u32,
    drop_pending: u32,
    drop_active: u32,
    force_active: u32,
    pub(super) priority: [u8; 32],
}

/// What a list register was loaded with, to know later what became of it.
#[derive(Clone, Copy, Default)]
pub(super) struct Slot(u16);

impl Slot {
    const LATCHED: u16 = 1 << 15;
    const LINKED: u16 = 1 << 14;

    pub(super) const fn new(intid: u32, latched: bool, linked: bool) -> Self {
        let flags = if latched { Self::LATCHED } else { 0 } | if linked { Self::LINKED } else { 0 };
        Self((intid & 0x3fff) as u16 | flags)
    }

    pub(super) const fn intid(self) -> u32 {
        (self.0 & 0x3fff) as u32
    }

    /// The pending state came from the latch and goes back there if it was not acknowledged.
    pub(super) const fn is_latched(self) -> bool {
        self.0 & Self::LATCHED != 0
    }

    /// Linked to a physical interrupt.
    pub(super) const fn is_linked(self) -> bool {
        self.0 & Self::LINKED != 0
    }
}

impl Bank {
    /// All disabled, in group 0, with the highest priority.
    pub(super) const fn new(edge: u32) -> Self {
        Self {
            group: 0,
            enabled: 0,
            open: 0,
            edge,
            level: 0,
            latched: 0,
            active: 0,
            listed: 0,
            listed_pending: 0,
            drop_pending: 0,
            drop_active: 0,
            force_active: 0,
            priority: [0; 32],
        }
    }

    /// Pending, apart from what list registers hold.
    #[inline]
    pub(super) const fn pending(&self) -> u32 {
        self.latched | self.level & !self.edge
    }

    /// What waits for a list register.
    #[inline]
    pub(super) const fn candidates(&self) -> u32 {
        self.pending() & self.open & !self.active & !self.listed
    }

    /// `ISPENDR` as far as software knows.
    pub(super) const fn shown_pending(&self) -> u32 {
        self.pending() | self.listed_pending & !self.drop_pending
    }

    /// `ISACTIVER` as far as software knows.
    pub(super) const fn shown_active(&self) -> u32 {
        (self.active | self.force_active) & !self.drop_active
    }

    /// Works out `open` again, given which interrupts of group 0 and of group 1 are forwarded.
    pub(super) const fn update_open(&mut self, group_0: u32, group_1: u32) {
        self.open = self.enabled & (self.group & group_1 | !self.group & group_0);
    }

    /// Takes back what a list register held, which was loaded as `slot` and is now `pending` and `active`. Tells
    /// whether the interrupt is active.
    #[inline]
    pub(super) const fn take_back(&mut self, bit: u32, slot: Slot, pending: bool, active: bool) -> bool {
        self.listed &= !bit;
        self.listed_pending &= !bit;
        if pending && slot.is_latched() && self.drop_pending & bit == 0 {
            self.latched |= bit;
        }
        if pending && slot.is_linked() {
            self.level |= bit;
        }
        let seen = if active { bit } else { 0 };
        let now = (seen & !self.drop_active) | (self.force_active & bit);
        self.active = self.active & !bit | now;
        self.drop_pending &= !bit;
        self.drop_active &= !bit;
        self.force_active &= !bit;
        now != 0
    }

    /// `ICPENDR`: levels stay pending as long as the wire is high.
    pub(super) const fn clear_pending(&mut self, bits: u32) {
        self.latched &= !bits;
        self.drop_pending |= bits & self.listed;
    }

    /// `ISACTIVER`; returns the ones that became active in software.
    pub(super) const fn set_active(&mut self, bits: u32) -> u32 {
        let listed = bits & self.listed;
        self.force_active |= listed;
        self.drop_active &= !listed;
        let fresh = bits & !self.listed & !self.active;
        self.active |= fresh;
        fresh
    }

    /// `ICACTIVER`; returns the ones that were active in software.
    pub(super) const fn clear_active(&mut self, bits: u32) -> u32 {
        let listed = bits & self.listed;
        self.drop_active |= listed;
        self.force_active &= !listed;
        let ended = bits & !self.listed & self.active;
        self.active &= !ended;
        ended
    }
}
