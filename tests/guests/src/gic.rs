//! A guest's driver of the GICv3: distributor, this CPU's redistributor, system registers (Arm IHI 0069).
//!
//! Everything is group 1, one security state, affinity routing on.

use crate::registers::{
    icc_bpr1_el1, icc_ctlr_el1, icc_igrpen1_el1, icc_pmr_el1, icc_sgi1r_el1, icc_sre_el1,
};
use crate::{machine, mmio, registers, timer};

/// The distributor.
pub const GICD: usize = 0x0800_0000;
/// The first redistributor; two frames of 64 KiB for each CPU.
pub const GICR: usize = 0x080a_0000;
const GICR_STRIDE: usize = 0x2_0000;
const SGI_FRAME: usize = 0x1_0000;

/// GICD_CTLR.
pub const GICD_CTLR: usize = GICD;
/// GICD_TYPER.
pub const GICD_TYPER: usize = GICD + 4;
const GICD_IROUTER: usize = GICD + 0x6000;
/// GICD_CTLR.ARE (bit 4) and EnableGrp1 (bit 1).
const DISTRIBUTOR_ON: u32 = 1 << 4 | 1 << 1;
/// GICD_CTLR.ARE alone.
const DISTRIBUTOR_OFF: u32 = 1 << 4;
const WRITE_PENDING: u32 = 1 << 31;
/// GICR_WAKER: ProcessorSleep and ChildrenAsleep.
const PROCESSOR_SLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;

/// INTID of a read of ICC_IAR1 when nothing is pending.
pub const SPURIOUS: u32 = 1023;
/// ICC_CTLR.EOImode: EOIR only drops the priority, DIR deactivates.
pub const EOI_MODE: u64 = 1 << 1;

/// A bit for each interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bits {
    /// Group 1 rather than 0.
    Group = 0x80,
    /// Set enable.
    Enable = 0x100,
    /// Clear enable.
    Disable = 0x180,
    /// Set pending.
    Pend = 0x200,
    /// Clear pending.
    Unpend = 0x280,
    /// Set active.
    Activate = 0x300,
    /// Clear active.
    Deactivate = 0x380,
}

/// The frame of CPU `cpu`'s redistributor.
#[must_use]
pub const fn redistributor(cpu: usize) -> usize {
    GICR + cpu * GICR_STRIDE
}

fn base(cpu: usize, intid: u32) -> usize {
    if intid < 32 { redistributor(cpu) + SGI_FRAME } else { GICD }
}

fn bit_register(cpu: usize, bits: Bits, intid: u32) -> usize {
    base(cpu, intid) + bits as usize + intid as usize / 32 * 4
}

/// Writes a one for `intid`; private interrupts are CPU `cpu`'s.
pub fn set(cpu: usize, bits: Bits, intid: u32) {
    mmio::write32(bit_register(cpu, bits, intid), 1 << (intid % 32));
}

/// Reads the bit of `intid`.
#[must_use]
pub fn get(cpu: usize, bits: Bits, intid: u32) -> bool {
    mmio::read32(bit_register(cpu, bits, intid)) & 1 << (intid % 32) != 0
}

/// Writes a word of 32 bits at once, the one that holds `intid`.
pub fn set_word(cpu: usize, bits: Bits, intid: u32, word: u32) {
    mmio::write32(bit_register(cpu, bits, intid), word);
}

/// Waits until a write to an enable or control register took effect (RWP).
pub fn settle(cpu: usize) {
    for register in [GICD_CTLR, redistributor(cpu)] {
        // GICR_CTLR.RWP is bit 3, GICD_CTLR.RWP bit 31.
        let mask = if register == GICD_CTLR { WRITE_PENDING } else { 1 << 3 };
        timer::spin_until(100_000, || mmio::read32(register) & mask == 0);
    }
}

/// Lets `intid` through, at `priority`.
pub fn enable(cpu: usize, intid: u32, priority: u8) {
    set_priority(cpu, intid, priority);
    set(cpu, Bits::Enable, intid);
    settle(cpu);
}

/// Holds `intid` back.
pub fn disable(cpu: usize, intid: u32) {
    set(cpu, Bits::Disable, intid);
    settle(cpu);
}

/// Lower is more urgent.
pub fn set_priority(cpu: usize, intid: u32, priority: u8) {
    mmio::write8(base(cpu, intid) + 0x400 + intid as usize, priority);
}

/// As it is read back.
#[must_use]
pub fn priority(cpu: usize, intid: u32) -> u8 {
    mmio::read8(base(cpu, intid) + 0x400 + intid as usize)
}

/// How a shared interrupt is triggered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// Pending while the wire is high.
    Level,
    /// Pending once for each rise.
    Edge,
}

/// Sets GICD_ICFGR for a shared interrupt.
pub fn set_trigger(intid: u32, trigger: Trigger) {
    let register = GICD + 0xc00 + intid as usize / 16 * 4;
    let bit = 2 << (intid % 16 * 2);
    let others = mmio::read32(register) & !bit;
    mmio::write32(register, if trigger == Trigger::Edge { others | bit } else { others });
}

/// Sends a shared interrupt to CPU `cpu`.
pub fn route(intid: u32, cpu: usize) {
    mmio::write64(GICD_IROUTER + intid as usize * 8, machine::affinity(cpu));
}

/// GICD_IROUTER, read back.
#[must_use]
pub fn routed_to(intid: u32) -> u64 {
    mmio::read64(GICD_IROUTER + intid as usize * 8)
}

/// Opens or shuts group 1 for all CPUs.
pub fn set_distributor(on: bool) {
    mmio::write32(GICD_CTLR, if on { DISTRIBUTOR_ON } else { DISTRIBUTOR_OFF });
    settle(0);
}

/// Opens the distributor: everything group 1, edge, disabled, routed to the first CPU.
pub fn start_distributor() {
    set_distributor(false);
    let blocks = mmio::read32(GICD_TYPER) & 0x1f;
    for block in 1..=blocks {
        set_word(0, Bits::Group, block * 32, u32::MAX);
        set_word(0, Bits::Disable, block * 32, u32::MAX);
    }
    set_distributor(true);
}

/// Wakes this CPU's redistributor and opens its interface, at the lowest mask.
pub fn start_cpu(cpu: usize) {
    let waker = redistributor(cpu) + 0x14;
    mmio::write32(waker, mmio::read32(waker) & !PROCESSOR_SLEEP);
    timer::spin_until(100_000, || mmio::read32(waker) & CHILDREN_ASLEEP == 0);
    set_word(cpu, Bits::Group, 0, u32::MAX);
    set_word(cpu, Bits::Disable, 0, u32::MAX);
    set_word(cpu, Bits::Enable, 0, 0xffff);
    for sgi in 0..16 {
        set_priority(cpu, sgi, 0x80);
    }
    settle(cpu);
    icc_sre_el1::write(icc_sre_el1::read() | 1);
    icc_pmr_el1::write(0xf8);
    icc_bpr1_el1::write(0);
    icc_ctlr_el1::write(0);
    icc_igrpen1_el1::write(1);
}

/// What to write to ICC_SGI1R to send SGI `sgi` to CPU `cpu`.
#[must_use]
pub fn request(sgi: u32, cpu: usize) -> u64 {
    let affinity = machine::affinity(cpu);
    // Aff1 is at 16, Aff2 at 32, Aff3 at 48; the range selector takes Aff0 in sixteens (IHI 0069, ICC_SGI1R_EL1).
    let cluster = affinity >> 8 & 0xff | (affinity >> 16 & 0xff) << 16 | (affinity >> 32 & 0xff) << 32;
    cluster << 16 | (affinity >> 4 & 0xf) << 44 | u64::from(sgi) << 24 | 1 << (affinity & 0xf)
}

/// Sends SGI `sgi` to CPU `cpu`.
pub fn send(sgi: u32, cpu: usize) {
    icc_sgi1r_el1::write(request(sgi, cpu));
}

/// Sends SGI `sgi` to every CPU but this one.
pub fn send_to_others(sgi: u32) {
    icc_sgi1r_el1::write(1 << 40 | u64::from(sgi) << 24);
}

/// ICC_IAR1: the interrupt that is now active.
#[must_use]
pub fn acknowledge() -> u32 {
    u32::try_from(registers::icc_iar1_el1::read() & 0xff_ffff).unwrap_or(SPURIOUS)
}

/// ICC_EOIR1.
pub fn end(intid: u32) {
    registers::icc_eoir1_el1::write(u64::from(intid));
}

/// ICC_DIR.
pub fn deactivate(intid: u32) {
    registers::icc_dir_el1::write(u64::from(intid));
}
