//! How a PC's interrupt wires run: each goes to the I/O APIC and, below 16, to the 8259 pair; the pair's output goes to LINT0
//! of every local APIC.
//!
//! A line's number is its global system interrupt. As on every PC with an I/O APIC, input 0 of the pair, the timer, is
//! pin 2 there: line 0 is that one, and no device is on line 2. All else is the same number on both.

use alloc::sync::Arc;

use crate::ioapic::IoApic;
use crate::lapic::Apics;
use crate::pc::{PIT_LINE, PIT_PIN};
use crate::pic::Pics;
use crate::{Access, IrqLines, VcpuSet};

/// What the interrupts of one VM share. The local APICs are their vCPUs' own.
#[derive(Debug)]
pub struct PcIrqs {
    ioapic: IoApic,
    pics: Pics,
    apics: Arc<Apics>,
}

impl PcIrqs {
    /// For `vcpus` vCPUs, as after power-on.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        Self { ioapic: IoApic::new(), pics: Pics::new(), apics: Arc::new(Apics::new(vcpus)) }
    }

    /// What the local APICs are made with.
    #[must_use]
    pub fn apics(&self) -> &Arc<Apics> {
        &self.apics
    }

    /// One access to the I/O APIC's page; tells who has to look.
    pub fn mmio(&mut self, offset: u64, access: Access) -> (u64, VcpuSet) {
        self.ioapic.access(offset, access, &self.apics)
    }

    /// One access to a port of the 8259 pair; tells who has to look. Nothing if the port is none of theirs.
    pub fn port(&mut self, port: u16, access: Access) -> Option<(u64, VcpuSet)> {
        let value = self.pics.port(port, access)?;
        Some((value, self.pass_on()))
    }

    /// A level-triggered interrupt with this vector ended in a local APIC; tells who has to look.
    pub fn eoi(&mut self, vector: u8) -> VcpuSet {
        self.ioapic.end(vector, &self.apics)
    }

    /// A CPU takes the 8259 pair's interrupt: its vector, a spurious one if there is none any more.
    pub fn acknowledge_pic(&mut self) -> u8 {
        let vector = self.pics.acknowledge();
        // Whoever has to look at what remains is the one that acknowledges, and asks again before it enters its guest.
        let _ = self.pass_on();
        vector
    }

    fn pass_on(&self) -> VcpuSet {
        self.apics.set_intr(self.pics.output())
    }
}

impl IrqLines for PcIrqs {
    fn set_line(&mut self, line: u32, level: bool) -> VcpuSet {
        let Ok(number) = u8::try_from(line) else { return VcpuSet::EMPTY };
        let pin = match line {
            PIT_LINE => PIT_PIN,
            PIT_PIN => return VcpuSet::EMPTY,
            _ => line,
        };
        self.pics.set_line(number, level);
        let told = self.pass_on();
        told.union(self.ioapic.set_pin(pin, level, &self.apics))
    }

    /// The wires keep their levels. Each vCPU resets its own local APIC.
    fn reset(&mut self) {
        self.ioapic.reset();
        self.pics.reset();
        self.apics.reset();
        let _ = self.pass_on();
    }
}

#[cfg(test)]
mod tests;
