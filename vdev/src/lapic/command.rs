//! The interrupt command register (SDM Vol. 3A, 11.6.1 and 11.12.9): a vCPU's messages to others and to itself.

use super::local::SEND_ILLEGAL;
use super::mailbox::note;
use super::page::low_byte;
use super::{Delivery, Destination, Effect, FIRST_VECTOR, LocalApic, Route, Trigger};

/// Bits of the lower half.
const DELIVERY: u32 = 7 << 8;
const LOGICAL: u32 = 1 << 11;
const ASSERT: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;

/// Bits 19:18.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shorthand {
    None,
    Own,
    All,
    Others,
}

impl Shorthand {
    #[inline]
    const fn of(command: u32) -> Self {
        match command >> 18 & 3 {
            0 => Self::None,
            1 => Self::Own,
            2 => Self::All,
            _ => Self::Others,
        }
    }
}

impl LocalApic {
    /// Sends by the lower half written in xAPIC mode, whose destination is 8 bits of the upper half.
    #[inline]
    pub(super) fn send_by_byte(&mut self, command: u32, high: u32) -> Effect {
        let byte = low_byte(high >> 24);
        self.send(command, Destination::of_byte(byte, command & LOGICAL != 0))
    }

    /// Sends by the whole register written in x2APIC mode.
    #[inline]
    pub(super) fn send_by_word(&mut self, command: u32, high: u32) -> Effect {
        let destination = match (command & LOGICAL != 0, high) {
            (_, u32::MAX) => Destination::All,
            (true, _) => Destination::Logical(high),
            (false, _) => Destination::Physical(high),
        };
        self.send(command, destination)
    }

    /// The trigger mode matters to INIT only (SDM Vol. 3A, 11.6.1): all vectors are sent as edges.
    #[inline]
    fn send(&mut self, command: u32, destination: Destination) -> Effect {
        let targets = match Shorthand::of(command) {
            Shorthand::None => self.apics.targets(destination),
            Shorthand::Own => self.own(),
            Shorthand::All => self.apics.present(),
            Shorthand::Others => self.apics.present() & !self.own(),
        };
        let vector = low_byte(command);
        if command & DELIVERY == 0 && vector >= FIRST_VECTOR {
            return self.send_vector(targets, vector);
        }
        self.send_other(command, targets)
    }

    #[inline]
    fn send_vector(&mut self, targets: u32, vector: u8) -> Effect {
        if targets & self.own() != 0 && self.is_enabled_by_software() {
            self.request(vector, Trigger::Edge);
        }
        let others = targets & !self.own();
        if others == 0 {
            return Effect::Nothing;
        }
        Effect::look(self.apics.post(others, vector, Trigger::Edge))
    }

    /// Everything but a fixed interrupt with a legal vector. With a shorthand that includes the sender only fixed ones are
    /// valid (SDM Vol. 3A, table 11-3); others are not sent.
    #[cold]
    fn send_other(&mut self, command: u32, targets: u32) -> Effect {
        let (delivery, vector) = (Delivery::of(command), low_byte(command));
        let names_self = matches!(Shorthand::of(command), Shorthand::Own | Shorthand::All);
        if names_self && delivery != Delivery::Fixed {
            return Effect::Nothing;
        }
        let listening = self.apics.with(targets, Route::ON);
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority if vector < FIRST_VECTOR => {
                self.fail(SEND_ILLEGAL);
                Effect::Nothing
            }
            Delivery::LowestPriority => self.send_vector(self.apics.one_of(targets, vector), vector),
            Delivery::Nmi => {
                self.nmi |= listening & self.own() != 0;
                Effect::look(self.apics.note(listening & !self.own(), note::NMI))
            }
            // A level de-assert only set arbitration ids, on machines of the past.
            Delivery::Init if command & (LEVEL | ASSERT) == LEVEL => Effect::Nothing,
            Delivery::Init if listening != 0 => {
                self.apics.silence(listening);
                Effect::SwitchOff(crate::VcpuSet(listening))
            }
            Delivery::StartUp if listening != 0 => Effect::Start(crate::VcpuSet(listening), vector),
            _ => Effect::Nothing,
        }
    }

    /// The self-IPI register of x2APIC mode (SDM Vol. 3A, 11.12.11).
    #[inline]
    pub(super) fn send_to_self(&mut self, vector: u8) -> Effect {
        if vector < FIRST_VECTOR {
            self.fail(SEND_ILLEGAL);
        } else if self.is_enabled_by_software() {
            self.request(vector, Trigger::Edge);
        }
        Effect::Nothing
    }
}
