//! The registers that distributor and redistributors lay out alike (IHI 0069, chapter 12): one block of bit
//! registers, priorities and configuration, of which the distributor shows the shared words and each redistributor
//! word 0.

use core::ops::RangeInclusive;

use super::bank::{Bits, PRIORITY_MASK};
use super::{Gicv3, SGIS, VCPU, VirtualInterface};
use crate::{Access, Width};

/// Peripheral and component identification at the end of a frame, from `PIDR4` on; `PIDR2` tells GICv3
/// (IHI 0069, chapter 12). The part number is what QEMU's `virt` shows.
const ID: u64 = 0xffd0;
/// Arm's identification as implementer (JEP106 code 0x43b), for `GICD_IIDR` and `GICR_IIDR`.
pub(super) const IIDR: u64 = 0x43b;

/// One register of the block.
enum Register {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    Priority,
    /// The lower or the upper 16 interrupts of a word.
    Configuration {
        upper: bool,
    },
}

/// Which words a frame shows, and whose word 0 is.
pub(super) struct Frame {
    pub(super) owner: usize,
    pub(super) words: RangeInclusive<usize>,
}

impl Gicv3 {
    /// An access by `acting` to the block in `frame`; reserved registers read as zero and ignore writes.
    pub(super) fn block(
        &mut self,
        acting: usize,
        frame: &Frame,
        offset: u64,
        access: Access,
        cpu: &mut impl VirtualInterface,
    ) -> u64 {
        let Some((register, word)) = decode(offset, access.width()) else { return 0 };
        if !frame.words.contains(&word) {
            return 0;
        }
        if matches!(
            register,
            Register::SetPending | Register::ClearPending | Register::SetActive | Register::ClearActive
        ) {
            self.take_back(acting, cpu);
        }
        match access {
            Access::Read(width) => {
                self.read_block(frame.owner, word, &register, (offset & 31) as usize, width, cpu, acting)
            }
            Access::Write(_, value) => {
                let value = (value & 0xffff_ffff) as u32;
                self.write_block(frame.owner, word, &register, (offset & 31) as usize, access.width(), value);
                0
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one register of one word, by one vCPU")]
    fn read_block(
        &mut self,
        owner: usize,
        word: usize,
        register: &Register,
        first: usize,
        width: Width,
        cpu: &impl VirtualInterface,
        acting: usize,
    ) -> u64 {
        let bank = self.bank(owner, word);
        let value = match register {
            Register::Group => bank.group,
            Register::SetEnable | Register::ClearEnable => bank.enabled,
            Register::SetPending | Register::ClearPending => self.read_pending(owner, word, cpu, acting),
            Register::SetActive | Register::ClearActive => {
                let active = bank.shown_active();
                self.ask_holders(owner, word);
                active
            }
            Register::Priority => return self.read_priorities(owner, word, first, width),
            Register::Configuration { upper } => spread(bank.edge >> if *upper { 16 } else { 0 }),
        };
        value.into()
    }

    fn write_block(
        &mut self,
        owner: usize,
        word: usize,
        register: &Register,
        first: usize,
        width: Width,
        value: u32,
    ) {
        match register {
            Register::Group => {
                let bank = self.bank_mut(owner, word);
                let changed = bank.group ^ value;
                bank.group = value;
                self.open_changed(owner, word, changed);
                self.prepare(owner);
            }
            Register::SetEnable => {
                self.bank_mut(owner, word).enabled |= value;
                self.open_changed(owner, word, value);
            }
            Register::ClearEnable => {
                self.bank_mut(owner, word).enabled &= !value;
                self.open_changed(owner, word, value);
            }
            Register::SetPending => {
                self.bank_mut(owner, word).latched |= value;
                self.touch(owner, word, value);
            }
            Register::ClearPending => {
                self.bank_mut(owner, word).clear_pending(value);
                self.touch(owner, word, value);
            }
            Register::SetActive => self.set_active(owner, word, value),
            Register::ClearActive => self.clear_active(owner, word, value),
            Register::Priority => self.write_priorities(owner, word, first, width, value),
            Register::Configuration { upper } => self.configure(owner, word, *upper, value),
        }
    }

    /// What is pending. The acting vCPU's own timers show the level of their line, as their hardware would.
    fn read_pending(&mut self, owner: usize, word: usize, cpu: &impl VirtualInterface, acting: usize) -> u32 {
        self.ask_holders(owner, word);
        let bank = self.bank(owner, word);
        if word != 0 || owner != acting & VCPU {
            return bank.shown_pending();
        }
        let lines = Bits(self.timer_bits).filter(|&bit| cpu.line(bit)).fold(0, |lines, bit| lines | 1 << bit);
        (bank.shown_pending() & !self.timer_bits) | (bank.latched & self.timer_bits) | lines
    }

    /// Lets whoever lists an interrupt of the word bring its state up to date, so that a guest that polls converges.
    fn ask_holders(&mut self, owner: usize, word: usize) {
        let listed = self.bank(owner, word).listed;
        if listed != 0 {
            self.touch(owner, word, listed);
        }
    }

    /// Enables or groups of `bits` changed.
    fn open_changed(&mut self, owner: usize, word: usize, bits: u32) {
        let [group_0, group_1] = self.groups;
        self.bank_mut(owner, word).update_open(group_0, group_1);
        self.touch(owner, word, bits);
    }

    fn read_priorities(&self, owner: usize, word: usize, first: usize, width: Width) -> u64 {
        let bytes = self.bank(owner, word).priority.iter().skip(first).take(bytes(width));
        bytes.rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    fn write_priorities(&mut self, owner: usize, word: usize, first: usize, width: Width, value: u32) {
        let targets = self.bank_mut(owner, word).priority.iter_mut().skip(first).take(bytes(width));
        for (byte, priority) in value.to_le_bytes().into_iter().zip(targets) {
            *priority = byte & PRIORITY_MASK;
        }
        self.touch(owner, word, 0xf << (first & 31));
        self.prepare(owner);
    }

    /// SGIs are edges and timers are levels whatever the guest says (IHI 0069, chapter 12).
    fn configure(&mut self, owner: usize, word: usize, upper: bool, value: u32) {
        let half = if upper { 0xffff_0000 } else { 0x0000_ffff };
        let fixed = if word == 0 { SGIS | self.timer_bits } else { 0 };
        let edges = gather(value) << if upper { 16 } else { 0 };
        let bank = self.bank_mut(owner, word);
        let writable = half & !fixed;
        let changed = (bank.edge ^ edges) & writable;
        bank.edge ^= changed;
        self.touch(owner, word, changed);
    }
}

/// Which register of which word lies at an offset from the frame's start.
fn decode(offset: u64, width: Width) -> Option<(Register, usize)> {
    let in_bits = ((offset & 0x7f) >> 2) as usize;
    let (register, word) = match offset {
        0x400..0x800 if matches!(width, Width::Byte | Width::Word) => {
            return Some((Register::Priority, (offset >> 5 & 0x1f) as usize));
        }
        0x080..0x100 => (Register::Group, in_bits),
        0x100..0x180 => (Register::SetEnable, in_bits),
        0x180..0x200 => (Register::ClearEnable, in_bits),
        0x200..0x280 => (Register::SetPending, in_bits),
        0x280..0x300 => (Register::ClearPending, in_bits),
        0x300..0x380 => (Register::SetActive, in_bits),
        0x380..0x400 => (Register::ClearActive, in_bits),
        0xc00..0xd00 => (Register::Configuration { upper: offset & 4 != 0 }, (offset >> 3 & 0x1f) as usize),
        _ => return None,
    };
    (width == Width::Word).then_some((register, word))
}

/// One identification register; `part` is the low byte of the part number.
pub(super) fn identity(offset: u64, part: u8) -> u64 {
    let ids = [0x44, 0, 0, 0, part, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];
    offset.checked_sub(ID).and_then(|at| ids.get((at >> 2 & 0xf) as usize)).map_or(0, |&id| id.into())
}

/// Whether an access lies at a multiple of its size; no register can be reached otherwise.
pub(super) const fn is_aligned(offset: u64, access: Access) -> bool {
    offset & (access.width().bytes() - 1) == 0
}

/// The upper or lower half of a 64-bit register, or the whole.
pub(super) const fn half_of(value: u64, offset: u64, width: Width) -> u64 {
    match width {
        Width::Double => value,
        Width::Word => value >> (8 * (offset & 4)) & 0xffff_ffff,
        Width::Byte | Width::Half => 0,
    }
}

const fn bytes(width: Width) -> usize {
    if matches!(width, Width::Byte) { 1 } else { 4 }
}

/// The lower 16 bits, each as the upper of a pair.
fn spread(edges: u32) -> u32 {
    Bits(edges & 0xffff).fold(0, |value, bit| value | 2 << (2 * bit))
}

/// The upper bits of 16 pairs.
fn gather(value: u32) -> u32 {
    Bits(value >> 1 & 0x5555_5555).fold(0, |edges, bit| edges | 1 << (bit / 2))
}
