//! `IA32_APIC_BASE` and the three modes, power-on and INIT (SDM Vol. 3A, 11.4.3, 11.4.4, 11.4.7 and 11.12.5).

use super::register::{DESTINATION_FORMAT, ID, LOGICAL_DESTINATION, LVT_LINT0, LVT_LINT1, SPURIOUS, VERSION};
use super::{Features, LocalApic, Refused, Route, VCPUS, registers};
use crate::pc::LAPIC;

/// Bits of `IA32_APIC_BASE`.
const BOOTSTRAP: u64 = 1 << 8;
const X2APIC: u64 = 1 << 10;
const ENABLE: u64 = 1 << 11;

/// Whether and how the registers are reached (SDM Vol. 3A, table 11-5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    Disabled,
    XApic,
    X2Apic,
}

impl LocalApic {
    /// `IA32_APIC_BASE`.
    #[must_use]
    pub fn base(&self) -> u64 {
        let mode = match self.mode {
            Mode::Disabled => 0,
            Mode::XApic => ENABLE,
            Mode::X2Apic => ENABLE | X2APIC,
        };
        LAPIC.0 | mode | if self.vcpu == 0 { BOOTSTRAP } else { 0 }
    }

    /// Writes `IA32_APIC_BASE`. The bootstrap flag cannot be changed.
    ///
    /// # Errors
    /// [`Refused`] for reserved bits, another place than [`LAPIC`], an invalid mode, and the ways that do not lead from one mode
    /// to another (SDM Vol. 3A, figure 11-27): x2APIC to xAPIC, disabled to x2APIC.
    pub fn set_base(&mut self, value: u64) -> Result<(), Refused> {
        if value & !(BOOTSTRAP | X2APIC | ENABLE) != LAPIC.0 {
            return Err(Refused);
        }
        let wanted = match (value & ENABLE != 0, value & X2APIC != 0) {
            (false, false) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) if self.features.contains(Features::X2APIC) => Mode::X2Apic,
            (true | false, true) => return Err(Refused),
        };
        match (self.mode, wanted) {
            (Mode::Disabled, Mode::X2Apic) | (Mode::X2Apic, Mode::XApic) => return Err(Refused),
            (Mode::Disabled, Mode::Disabled) | (Mode::XApic, Mode::XApic) | (Mode::X2Apic, Mode::X2Apic) => {
                return Ok(());
            }
            (Mode::XApic, Mode::X2Apic) => {
                self.mode = Mode::X2Apic;
                self.identify();
            }
            (_, Mode::Disabled) | (Mode::Disabled, Mode::XApic) => {
                self.mode = wanted;
                self.clear();
            }
        }
        self.publish();
        Ok(())
    }

    /// Whether the page answers at [`LAPIC`].
    #[inline]
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.mode == Mode::XApic
    }

    /// Whether the registers answer by number, as 0x800 to 0x8ff.
    #[inline]
    #[must_use]
    pub fn is_x2apic(&self) -> bool {
        self.mode == Mode::X2Apic
    }

    /// As after power-on, the mailbox empty.
    pub fn reset(&mut self) {
        self.mode = Mode::XApic;
        self.init();
    }

    /// As after INIT: the mode stays, all else is as after power-on (SDM Vol. 3A, 11.4.7.3 and 11.12.5.1).
    pub fn init(&mut self) {
        self.clear();
        self.publish();
    }

    /// What a PC's firmware leaves behind on the bootstrap vCPU: enabled, LINT0 passes the 8259 pair's interrupts on,
    /// LINT1 is NMI: the virtual wire mode of the MultiProcessor Specification 1.4, 3.6.2.2.
    pub fn set_up_as_firmware_does(&mut self) {
        const EXTERNAL: u32 = 7 << 8;
        const NMI: u32 = 4 << 8;
        self.page.set(SPURIOUS, registers::SOFTWARE_ENABLE | 0xff);
        self.page.set(LVT_LINT0, EXTERNAL);
        self.page.set(LVT_LINT1, NMI);
        self.publish();
    }

    /// All registers have their values after power-on (SDM Vol. 3A, 11.4.7.1), and what was under way is lost.
    fn clear(&mut self) {
        self.apics.clear(self.vcpu as usize);
        self.page.clear();
        self.page.set(DESTINATION_FORMAT, u32::MAX);
        self.page.set(SPURIOUS, 0xff);
        self.mask_all();
        self.identify();
        self.requested = 0;
        self.in_service = 0;
        self.external = false;
        self.nmi = false;
        self.levels_changed = true;
        self.remote_irr = false;
        self.errors = 0;
        self.timer.reset();
    }

    /// The registers that the guest cannot write.
    pub(super) fn identify(&self) {
        let id = self.vcpu % VCPUS;
        if self.mode == Mode::X2Apic {
            self.page.set(ID, id);
            // Derived from the id (SDM Vol. 3A, 11.12.10.2); with ids below 16 the cluster is 0.
            self.page.set(LOGICAL_DESTINATION, 1 << id);
        } else {
            self.page.set(ID, id << 24);
        }
        /// An integrated APIC (SDM Vol. 3A, 11.4.8).
        const INTEGRATED: u32 = 0x14;
        let last_entry = if self.features.contains(Features::CMCI) { 6 } else { 5 };
        let suppression = u32::from(self.features.contains(Features::EOI_SUPPRESSION));
        self.page.set(VERSION, INTEGRATED | last_entry << 16 | suppression << 24);
    }

    /// Tells the others what they need to send here, and looks which of the pins are open.
    pub(super) fn publish(&mut self) {
        let logical = self.page.get(LOGICAL_DESTINATION);
        let is_x2apic = self.mode == Mode::X2Apic;
        let logical = if is_x2apic { logical } else { logical >> 24 };
        let mut route = Route::from_bits_retain(logical.into());
        route.set(Route::ON, self.mode != Mode::Disabled);
        route.set(Route::ACCEPTS, self.mode != Mode::Disabled && self.is_enabled_by_software());
        route.set(Route::X2APIC, is_x2apic);
        route.set(Route::CLUSTERS, !is_x2apic && self.page.get(DESTINATION_FORMAT) >> 28 == 0);
        route.set(Route::LINT0, self.is_open(LVT_LINT0));
        route.set(Route::LINT1, self.is_open(LVT_LINT1));
        self.is_wired_to_pics = self.passes_external_interrupts();
        self.apics.set_route(self.vcpu as usize, route);
        self.look_at_wire();
    }
}
