//! Why a guest's turn ended, out of its control block (APM Vol. 2, appendix C).

use super::vmcb::{ControlArea, SaveArea, event};
use crate::hw::Alarm;
use crate::vendor::{ControlAccess, Delivery, DeliveryKind, Event, MemoryAccess, PortAccess};
use bulkhead_vdev::Gpa;

/// Exit codes.
pub mod code {
    /// Reads of CR0 to CR15, then writes.
    pub const CONTROL: u64 = 0;
    /// The last of them.
    pub const LAST_CONTROL: u64 = 0x1f;
    /// Exceptions: this and the vector.
    pub const EXCEPTION: u64 = 0x40;
    /// A machine check.
    pub const MACHINE_CHECK: u64 = EXCEPTION + 18;
    /// The last exception.
    pub const LAST_EXCEPTION: u64 = 0x5f;
    /// A physical interrupt.
    pub const INTERRUPT: u64 = 0x60;
    /// A physical NMI.
    pub const NMI: u64 = 0x61;
    /// A physical SMI.
    pub const SMI: u64 = 0x62;
    /// A physical INIT.
    pub const INIT: u64 = 0x63;
    /// A virtual interrupt can be taken.
    pub const VIRTUAL_INTERRUPT: u64 = 0x64;
    /// RDPMC
    pub const RDPMC: u64 = 0x6f;
    /// CPUID
    pub const CPUID: u64 = 0x72;
    /// IRET
    pub const IRET: u64 = 0x74;
    /// INVD
    pub const INVD: u64 = 0x76;
    /// HLT
    pub const HLT: u64 = 0x78;
    /// A port.
    pub const PORT: u64 = 0x7b;
    /// An MSR.
    pub const MSR: u64 = 0x7c;
    /// A shutdown.
    pub const SHUTDOWN: u64 = 0x7f;
    /// VMMCALL
    pub const VMMCALL: u64 = 0x81;
    /// WBINVD
    pub const WBINVD: u64 = 0x89;
    /// XSETBV
    pub const XSETBV: u64 = 0x8d;
    /// A fault of the second stage.
    pub const NESTED_FAULT: u64 = 0x400;
    /// The guest's state is one that the CPU does not run.
    pub const INVALID: u64 = u64::MAX;
}

/// `exit_info_1` of a port (15.10.2). Bits 6:4 are 1, 2 or 4 for the width: but for the lowest, what [`PortAccess`] has.
mod port {
    pub(super) const IN: u32 = 1;
    pub(super) const STRING: u32 = 1 << 2;
    pub(super) const WIDTH_SHIFT: u32 = 5;
}

/// `exit_info_1` of a nested fault (15.25.6).
mod fault {
    pub(super) const WRITE: u64 = 1 << 1;
    pub(super) const FETCH: u64 = 1 << 4;
    /// On a walk of the guest's own tables.
    pub(super) const WALK: u64 = 1 << 33;
}

/// CR0, CR4, EFER and CS bits of the checks in [`refusal`].
mod bits {
    pub(super) const PE: u64 = 1;
    pub(super) const NW: u64 = 1 << 29;
    pub(super) const CD: u64 = 1 << 30;
    pub(super) const PG: u64 = 1 << 31;
    pub(super) const PAE: u64 = 1 << 5;
    pub(super) const LME: u64 = 1 << 8;
    pub(super) const LONG_AND_BIG: u16 = 0x600;
}

/// Exceptions that push an error code (8.2).
const HAS_ERROR: u32 = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21;

/// The last event of this block; IRET is not decoded here.
#[inline(always)]
pub(crate) fn decode(control: &ControlArea, save: &SaveArea) -> Event {
    match control.exit_code {
        code::CPUID => Event::Cpuid,
        code::MSR if control.exit_info_1 & 1 == 0 => Event::ReadMsr,
        code::MSR => Event::WriteMsr,
        code::INTERRUPT => Event::Interrupt(None),
        code::NESTED_FAULT => Event::Memory(memory(control)),
        code::PORT => Event::Port(port_access(control.exit_info_1)),
        code::HLT => Event::Halt,
        code::VMMCALL => Event::Hypercall,
        code::VIRTUAL_INTERRUPT => Event::Window,
        other => rare(other, control, save),
    }
}

#[cold]
#[inline(never)]
fn rare(exit: u64, control: &ControlArea, save: &SaveArea) -> Event {
    match exit {
        code::NMI | code::SMI | code::INIT | code::IRET => Event::Host,
        code::XSETBV => Event::Xsetbv,
        code::WBINVD | code::INVD => Event::CacheFlush,
        code::RDPMC => Event::ReadCounter,
        code::CONTROL..=code::LAST_CONTROL => Event::Control(ControlAccess::Undecoded),
        code::MACHINE_CHECK => Event::Alarm(Alarm::MachineCheck),
        code::EXCEPTION..=code::LAST_EXCEPTION => {
            let vector = u8::try_from(exit - code::EXCEPTION).unwrap_or(0);
            let error = (HAS_ERROR >> vector & 1 != 0).then_some(low_half(control.exit_info_1));
            Event::Exception(Delivery::exception(vector, error))
        }
        code::SHUTDOWN => Event::Shutdown,
        code::INVALID => Event::Refused(refusal(save)),
        // All other intercepts are of instructions that guests do not have.
        _ => Event::Forbidden,
    }
}

fn memory(control: &ControlArea) -> MemoryAccess {
    let information = control.exit_info_1;
    MemoryAccess {
        at: Gpa(control.exit_info_2),
        is_write: information & fault::WRITE != 0,
        is_fetch: information & fault::FETCH != 0,
        is_walk: information & fault::WALK != 0,
    }
}

/// The widths are three bits of which one is set.
#[inline(always)]
const fn port_access(information: u64) -> PortAccess {
    let information = low_half(information);
    let port = information & !0 << PortAccess::PORT_SHIFT;
    let width = information >> port::WIDTH_SHIFT & PortAccess::WIDTH;
    let write = (information & port::IN ^ port::IN) * PortAccess::WRITE;
    let string = (information & port::STRING) * (PortAccess::STRING / port::STRING);
    PortAccess(port | width | write | string)
}

/// What was being delivered when the guest's turn ended. An instruction that interrupts (`INT n`, `INT3`, `INTO`) is executed
/// again instead: `RIP` is still at it.
#[inline]
pub(crate) fn interrupted(control: &ControlArea) -> Option<Delivery> {
    let event = control.exit_interrupt;
    if event & event::VALID == 0 { None } else { delivery(event) }
}

#[cold]
fn delivery(event: u64) -> Option<Delivery> {
    const BREAKPOINT: u8 = 3;
    const OVERFLOW: u8 = 4;
    let [vector, ..] = event.to_le_bytes();
    let error = (event & event::HAS_ERROR != 0).then_some(low_half(event >> 32));
    let kind = match event & event::KIND {
        event::EXTERNAL => DeliveryKind::External,
        event::NMI => DeliveryKind::Nmi,
        event::EXCEPTION if vector != BREAKPOINT && vector != OVERFLOW => DeliveryKind::Exception,
        _ => return None,
    };
    Some(Delivery { kind, vector, error, length: 0 })
}

/// What is written for a guest to take `delivery`.
#[must_use]
pub(crate) fn injection(delivery: Delivery) -> u64 {
    let kind = match delivery.kind {
        DeliveryKind::External => event::EXTERNAL,
        DeliveryKind::Nmi => event::NMI,
        DeliveryKind::SoftwareInterrupt => event::SOFTWARE,
        DeliveryKind::Exception | DeliveryKind::SoftwareException | DeliveryKind::PrivilegedException => {
            event::EXCEPTION
        }
    };
    let error = delivery.error.map_or(0, |error| u64::from(error) << 32 | event::HAS_ERROR);
    u64::from(delivery.vector) | kind | error | event::VALID
}

/// Which of the CPU's checks the state fails (15.5.1), as a sentence.
fn refusal(save: &SaveArea) -> &'static str {
    let SaveArea { cr0, cr4, efer, dr6, dr7, .. } = *save;
    let long = efer & bits::LME != 0 && cr0 & bits::PG != 0;
    let [_, code, ..] = save.segments;
    if cr0 & (bits::CD | bits::NW) == bits::NW {
        "the CPU refuses its state: CR0.NW is set without CR0.CD"
    } else if cr0 >> 32 != 0 {
        "the CPU refuses its state: CR0 has high bits set"
    } else if (dr6 | dr7) >> 32 != 0 {
        "the CPU refuses its state: DR6 or DR7 has high bits set"
    } else if long && cr4 & bits::PAE == 0 {
        "the CPU refuses its state: long mode without CR4.PAE"
    } else if long && cr0 & bits::PE == 0 {
        "the CPU refuses its state: long mode without CR0.PE"
    } else if long && code.attributes & bits::LONG_AND_BIG == bits::LONG_AND_BIG {
        "the CPU refuses its state: its code segment is of 64 and of 32 bits at once"
    } else {
        "the CPU refuses its state: reserved bits of CR3, CR4 or EFER are set, or its event cannot be delivered"
    }
}

const fn low_half(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

#[cfg(test)]
mod tests {
    use super::super::vmcb::Vmcb;
    use super::*;
    use bulkhead_vdev::Width;

    fn exit(code: u64, first: u64, second: u64) -> Event {
        let mut vmcb = Vmcb::new();
        vmcb.control.exit_code = code;
        vmcb.control.exit_info_1 = first;
        vmcb.control.exit_info_2 = second;
        decode(&vmcb.control, &vmcb.save)
    }

    #[test]
    fn a_port_is_decoded() {
        let access = |first| match exit(code::PORT, first, 0) {
            Event::Port(port) => (port.port(), port.width(), port.is_write(), port.is_string()),
            other => panic!("{other:?}"),
        };
        assert_eq!(access(0x03f8_0210), (0x3f8, Width::Byte, true, false));
        assert_eq!(access(0x01f0_0225), (0x1f0, Width::Half, false, true));
        assert_eq!(access(0x0cf8_0241), (0xcf8, Width::Word, false, false));
    }

    #[test]
    fn a_nested_fault_tells_what_the_guest_wanted() {
        let store = MemoryAccess { at: Gpa(0xfee0_0300), is_write: true, is_fetch: false, is_walk: false };
        assert_eq!(exit(code::NESTED_FAULT, 1 << 32 | 6, 0xfee0_0300), Event::Memory(store));
        let fetch = MemoryAccess { at: Gpa(0xfec0_0000), is_write: false, is_fetch: true, is_walk: false };
        assert_eq!(exit(code::NESTED_FAULT, 1 << 32 | 0x14, 0xfec0_0000), Event::Memory(fetch));
        let walk = MemoryAccess { at: Gpa(0xfec0_0000), is_write: true, is_fetch: false, is_walk: true };
        assert_eq!(exit(code::NESTED_FAULT, 1 << 33 | 6, 0xfec0_0000), Event::Memory(walk));
    }

    #[test]
    fn control_registers_are_left_to_the_layer_to_decode() {
        for code in [0x00, 0x04, 0x14, 0x18] {
            assert_eq!(exit(code, 0, 0), Event::Control(ControlAccess::Undecoded), "{code:#x}");
        }
    }

    #[test]
    fn exceptions_have_their_error_codes() {
        assert_eq!(exit(0x51, 0, 0), Event::Exception(Delivery::exception(17, Some(0))));
        assert_eq!(exit(0x41, 7, 0), Event::Exception(Delivery::exception(1, None)));
        assert_eq!(exit(0x52, 0, 0), Event::Alarm(Alarm::MachineCheck), "that is the machine's");
    }

    #[test]
    fn instructions_that_guests_lack_are_forbidden() {
        for code in [0x73, 0x7a, 0x80, 0x82, 0x83, 0x84, 0x85, 0x86, 0x8a, 0x8b, 0xa0] {
            assert_eq!(exit(code, 0, 0), Event::Forbidden, "{code:#x}");
        }
    }

    #[test]
    fn what_was_interrupted_is_injected_again() {
        let mut vmcb = Vmcb::new();
        for delivery in [
            Delivery::external(0x31),
            Delivery::nmi(),
            Delivery::exception(14, Some(6)),
            Delivery::exception(6, None),
        ] {
            vmcb.control.exit_interrupt = injection(delivery);
            assert_eq!(interrupted(&vmcb.control), Some(delivery));
        }
        for again in [event::SOFTWARE | event::VALID | 0x80, event::EXCEPTION | event::VALID | 3, 0x31] {
            vmcb.control.exit_interrupt = again;
            assert_eq!(interrupted(&vmcb.control), None, "{again:#x}");
        }
    }

    #[test]
    fn a_refused_state_is_explained() {
        let mut vmcb = Vmcb::new();
        vmcb.control.exit_code = code::INVALID;
        vmcb.save.cr0 = bits::NW;
        let Event::Refused(why) = decode(&vmcb.control, &vmcb.save) else { panic!("not refused") };
        assert!(why.contains("CR0.NW"));
    }
}
